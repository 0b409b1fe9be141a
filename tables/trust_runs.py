"""Runs of trust observations: what `Trust.observed` does, for many events at a time.

The rule this file keeps: the rows are the same to the last bit as if each event had come alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from .trust_evidence import MOST
from .trust_history import FULL_BYTES, POINT
from .trust_state import LONG_AGO, TrustState

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .trust import Trust


FEW = 2
"""Events a key, on the average, from which a run is absorbed key by key."""
_offset = attrgetter("offset")


def observed_run(trust: Trust, events: Sequence[Event], offsets: Sequence[int], times: Sequence[int], p: Partition) -> None:
    """Absorb a run of observations of one tenant."""
    tenant = events[0].tenant
    absorb = _by_key if len(p.space(trust.rows, tenant)) * FEW <= len(events) else _in_turn
    n_slow = absorb(trust, tenant, events, offsets, times, p)  # counts there too
    trust.other.n_observed += len(events) - n_slow


def _by_key(trust: Trust, tenant: str, events: Sequence[Event], offsets: Sequence[int], times: Sequence[int], p: Partition) -> int:
    """All events of a key, then those of the next: its figures are at hand meanwhile. Returns how many `Trust.observed` has counted."""
    places: dict[tuple[str, str], list[int]] = {}
    for at, event in enumerate(events):
        data = event.data
        key = data.kind, data.id
        mine = places.get(key)
        if mine is None:
            places[key] = [at]
        else:
            mine.append(at)
    find, dirty = p.space(trust.rows, tenant).get, p.dirty[trust.rows.index].add
    low, pack, close = trust.low, POINT.pack, trust.history.close
    n_slow, told = 0, len(p.outputs)
    for key, mine in places.items():
        rule = trust.kinds.get(key[0], trust.other)
        row = None if rule.half_life_us is not None else find(key)
        if row is None or row.applied >= offsets[mine[0]] or type(state := row.state) is not TrustState or not state.known:
            for at in mine:
                p.offset, p.time_us = offsets[at], times[at]
                trust.observed(events[at], p)
            n_slow += len(mine)
            continue
        dirty(row)
        slots, judged_from = rule.slots, rule.judged_from
        alpha, beta, points, last, first = state.alpha, state.beta, state.points, state.last_update, state.first
        before = state.n_events
        last = LONG_AGO if last is None else last
        first = -LONG_AGO if first is None else first
        for at in mine:
            event = events[at]
            data = event.data
            if data.success:
                alpha += data.weight
                if alpha > MOST:
                    alpha = MOST
            else:
                beta += data.weight
                if beta > MOST:
                    beta = MOST
            time_us = times[at]
            if time_us > last:
                last = time_us
            if time_us < first:
                first = time_us
            n = alpha + beta
            if slots:
                points += pack(time_us, alpha / n)
                if len(points) == FULL_BYTES:
                    p.offset, p.time_us = offsets[at], time_us
                    close(p, tenant, key, slots, state)
                    points = state.points
            if state.level or (n >= judged_from and alpha - 1.0 < low * n):
                p.offset, p.time_us = offsets[at], time_us
                state.alpha, state.beta, state.last_update, state.first, row.applied = alpha, beta, last, first, p.offset
                state.n_events = before + mine.index(at) + 1
                trust.weigh(event, p, key, rule, state, alpha, n)
        state.alpha, state.beta, state.last_update, state.first, row.applied = alpha, beta, last, first, offsets[mine[-1]]
        state.n_events = before + len(mine)
    if len(p.outputs) - told > 1:
        p.outputs[told:] = sorted(p.outputs[told:], key=_offset)  # as if each event had come in its turn
    return n_slow


def _in_turn(trust: Trust, tenant: str, events: Sequence[Event], offsets: Sequence[int], times: Sequence[int], p: Partition) -> int:
    """Event by event. Returns how many `Trust.observed` has counted."""
    rows = trust.rows
    space = p.space(rows, tenant)
    find, dirty = space.get, p.dirty[rows.index].add
    other, low, pack = trust.other, trust.low, POINT.pack
    n_slow, told, rule, slots, judged_from, fades = 0, "", other, 0, 0.0, True  # of the kind that was told last; none is ""
    for event, offset, time_us in zip(events, offsets, times, strict=True):
        data = event.data
        kind = data.kind
        if kind != told:
            told, rule = kind, trust.kinds.get(kind, other)
            slots, judged_from, fades = rule.slots, rule.judged_from, rule.half_life_us is not None
        row = None if fades else find((kind, data.id))
        if row is None or row.applied >= offset or type(state := row.state) is not TrustState or not state.known:
            p.offset, p.time_us = offset, time_us
            trust.observed(event, p)
            n_slow += 1
            continue
        row.applied = offset
        dirty(row)
        alpha, beta = state.alpha, state.beta
        if data.success:
            alpha += data.weight
            if alpha > MOST:
                alpha = MOST
            state.alpha = alpha
        else:
            beta += data.weight
            if beta > MOST:
                beta = MOST
            state.beta = beta
        state.n_events += 1
        last, first = state.last_update, state.first
        if last is None or time_us > last:
            state.last_update = time_us
        if first is None or time_us < first:
            state.first = time_us
        n = alpha + beta
        if slots:
            points = state.points
            points += pack(time_us, alpha / n)
            if len(points) == FULL_BYTES:
                p.offset, p.time_us = offset, time_us
                trust.history.close(p, tenant, row.key, slots, state)
        if state.level or (n >= judged_from and alpha - 1.0 < low * n):
            p.offset, p.time_us = offset, time_us
            trust.weigh(event, p, row.key, rule, state, alpha, n)
    return n_slow
