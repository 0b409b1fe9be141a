"""A fold that keeps every law, and beside it one fault a law: what shows that the laws of `tests.laws` can be broken at all."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from streams.events import CustomRecorded, Event
from tables.fold import Fold, NotFound, Reader, View
from tables.partition import Partition
from tables.rows import Table

Words = dict[str, Any]


class Tallied(msgspec.Struct, array_like=True):
    """How often a name came, and what was seen last of it."""

    n: int = 0
    last: int = 0
    seen: list[str] = []


class NamesKnown(msgspec.Struct, array_like=True):
    """How many names there are."""

    n: int = 0


class TallySettings(msgspec.Struct, frozen=True):
    """Settings of the fold."""

    tally_step: int = 1


class TallyParams(msgspec.Struct, frozen=True):
    """``/tallies``"""


class Tally(Fold):
    """Counts custom events by name; the keeper of all laws, and by its arguments the breaker of one.

    Args:
        fault: which law it breaks.
        step: what an event counts.
    """

    topics = ("judgments",)

    def __init__(self, fault: str = "", step: int = 1) -> None:
        self.fault, self.step, self.heard = fault, step, 0
        declared = None if fault == "undeclared setting" else TallySettings(tally_step=step)
        # what a tally reads of the names comes later in a flush than the tally: readers before what they read
        self.tallies = Table("tallies", Tallied, rank=60 if fault == "reads what is written before it" else 40, settings=declared)
        self.names = Table("tally_names", NamesKnown, rank=50)
        self.tables = (self.tallies, self.names)
        self.handlers = {CustomRecorded: self.custom}
        self.views = (View("/tallies", TallyParams, self.answer, self.topics, "How often each name came."),)

    def custom(self, event: Event, p: Partition) -> None:
        """Count one."""
        data: CustomRecorded = event.data
        key = (data.name,) if self.fault != "a row an event" else (event.id,)
        known = p.read(self.names, event.tenant, ())
        n_known = 0 if known is None else known.n
        state = p.open(self.tallies, event.tenant, key)
        if state is not None:
            self.count(event, p, state, n_known)
        if self.fault == "changes a row it only read" and known is not None:
            known.n += 1
            return
        names = p.open(self.names, event.tenant, ())
        if names is not None:
            names.n += 1

    def count(self, event: Event, p: Partition, state: Tallied, n_known: int) -> None:
        """Change one row."""
        self.heard += 1
        state.n += self.step
        state.last = p.time_us + n_known
        match self.fault:
            case "counts what it heard":
                state.last += self.heard
            case "counts the chunk":
                state.last += len(p._slice)
            case "changes the event":
                event.data.fields["seen"] = True
            case "reads the clock":
                state.last += int(time.time())
            case "goes by the hash seed":
                state.seen = list({*event.data.fields, "size", "who", "ok", "a", "b", "c"})
            case "remembers all":
                state.seen.append(event.id + p.topic * 8)

    def answer(self, reader: Reader, params: TallyParams) -> dict[str, Any]:
        """Sums over the partitions; one that breaks the law takes the first."""
        found = {key[0]: [state.n for state in states] for key, states in reader.scan(self.tallies)}
        if not found:
            raise NotFound("nothing was recorded")
        return {"tallies": {name: ns[0] if self.fault == "does not merge" else sum(ns) for name, ns in found.items()}}


def honest() -> list[Fold]:
    """Breaks nothing."""
    return [Tally()]


def clocked() -> list[Fold]:
    """Breaks purity."""
    return [Tally("reads the clock")]


def hashed() -> list[Fold]:
    """Breaks purity."""
    return [Tally("goes by the hash seed")]
