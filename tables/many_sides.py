"""Forecasts before the recent hours and in them, of many variables at once: what `tables.drift.sides` gives of one.

The rule this file keeps: every figure is the one that merging `Side`s gives, to the last bit. So what belongs to one variable is
merged in the same order, one step of all variables at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .hours import ENTRY
from .variable_states import History, Partial

Array = Any
"""A numpy array; of sides, a row a field of `tables.hours.Side` and a column a variable."""
_FIELDS = ("n", "certified", "confidence", "confidence_m2", "fragility", "fragility_m2")
_ENTRIES = np.dtype([("hour", "<i4"), ("n", "<u4"), ("certified", "<u4"), *((name, "<f8") for name in _FIELDS[2:])])
assert _ENTRIES.itemsize == ENTRY.size
MOST_BYTES, MOST_KEYS = 4 << 20, 20_000
"""Of closed hours, and variables, that are divided at a time: what is in memory meanwhile is some ten times as much."""


NEVER: dict[int, int] = {}
"""The last closed hours of a variable without any."""


def divided(found: Sequence[tuple[list[Partial], list[History]]], start: int, end: int) -> tuple[Array, Array]:
    """Sides before `start`, and from `start` to `end` inclusive (hours since the epoch), over all partitions.

    Args:
        found: of each variable the rows of all partitions, in their order.
    """
    parts = []
    begin = size = 0
    for i, (_, histories) in enumerate(found):
        for history in histories:
            size += len(history.hours.ring)
        if size >= MOST_BYTES or i - begin >= MOST_KEYS:
            parts.append(_divided(found[begin : i + 1], start, end))
            begin, size = i + 1, 0
    parts.append(_divided(found[begin:], start, end))
    return np.concatenate([before for before, _ in parts], axis=1), np.concatenate([recent for _, recent in parts], axis=1)


def _divided(found: Sequence[tuple[list[Partial], list[History]]], start: int, end: int) -> tuple[Array, Array]:
    whose: list[int] = []  # of each history the variable
    rings: list[bytearray] = []
    older: list[float] = []
    older_of: list[int] = []
    newest: list[float] = []
    newest_of: list[int] = []
    newest_hour: list[int] = []
    for i, (states, histories) in enumerate(found):
        through = {} if histories else NEVER
        for history in histories:
            hours = history.hours
            through[history.home] = hours.through
            side = hours.older
            if side.n:
                older_of.append(len(whose))
                older += (side.n, side.certified, side.confidence, side.confidence_m2, side.fragility, side.fragility_m2)
            whose.append(i)
            rings.append(hours.ring)
        for state in states:
            hour, figures = state.hour, state.open
            if figures[0] and hour <= end and not (through and hour <= through.get(state.home, hour - 1)):
                newest_of.append(i)
                newest_hour.append(hour)
                newest += (figures[0], figures[1], figures[5], figures[6], figures[8], figures[9])
    before, recent = np.zeros((6, len(found))), np.zeros((6, len(found)))
    if whose:
        _closed((before, recent), np.array(whose), rings, (np.array(older_of, dtype=np.int64), _sides(older)), start, end)
    places, hour_of, sides = np.array(newest_of, dtype=np.int64), np.array(newest_hour, dtype=np.int64), _sides(newest)
    for into, mine in ((before, hour_of < start), (recent, hour_of >= start)):
        _merge(into, places[mine], sides[:, mine])
    return before, recent


def _closed(into: tuple[Array, Array], whose: Array, rings: list[bytearray], older: tuple[Array, Array], start: int, end: int) -> None:
    """Closed hours: those of each history by themselves, and then the histories."""
    entries = np.frombuffer(b"".join(rings), dtype=_ENTRIES)
    history_of = np.repeat(np.arange(len(rings)), [len(ring) // ENTRY.size for ring in rings])
    hour_of = entries["hour"]
    for side, (whole, mine) in enumerate(zip(into, (hour_of < start, (hour_of >= start) & (hour_of <= end)), strict=True)):
        sums = np.zeros((6, len(rings)))
        if side == 0:
            _merge(sums, *older)
        chosen = entries[mine]
        _merge(sums, history_of[mine], np.array([chosen[name] for name in _FIELDS], dtype=np.float64))
        some = sums[0] > 0
        _merge(whole, whose[some], sums[:, some])


def _sides(flat: list[float]) -> Array:
    return np.array(flat, dtype=np.float64).reshape(-1, 6).T


def _merge(into: Array, places: Array, sides: Array) -> None:
    """Merge sides into those of their places, those of one place in their order.

    Args:
        places: ascending.
        sides: none of them empty.
    """
    if not len(places):
        return
    at = np.flatnonzero(np.diff(places, prepend=-1))
    places, left = places[at], np.diff(at, append=len(places))
    while len(places):
        one, other = into[:, places], sides[:, at]
        n = one[0] + other[0]
        part = other[0] / n
        weight = one[0] * part
        into[0, places] = n
        into[1, places] = one[1] + other[1]
        for mean, m2 in ((2, 3), (4, 5)):
            d = other[mean] - one[mean]
            into[mean, places] = one[mean] + d * part
            into[m2, places] = one[m2] + (other[m2] + d * d * weight)
        left = left - 1
        more = left > 0
        places, at, left = places[more], at[more] + 1, left[more]
