"""What the simulated workers fold: rows that read one another, outputs, refusals, and a setting that another start may change."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.events import TrustObserved
from tables.fold import Fold, Refused
from tables.partition import Bounds, Partition, Schema
from tables.rows import Row, Table

TENANTS = ("a", "a", "a", "b")
BOUNDS = Bounds(max_future_us=40_000_000, dedupe_window=128)


class InOrder(dict[Row, None]):
    """A set that is gone through in the order of what was put in, so that a seed always gives the same schedule."""

    def add(self, row: Row) -> None:
        """As a set's."""
        self[row] = None

    def discard(self, row: Row) -> None:
        """As a set's."""
        self.pop(row, None)


class Ordered(Partition):
    """A partition whose changed rows are written in the order in which they changed."""

    marks = InOrder  # type: ignore[assignment]  # it has what is asked of a set of changed rows


class Last(msgspec.Struct, array_like=True):
    """The source row: what was seen last."""

    n: int = 0
    name: str = ""


class Chain(msgspec.Struct, array_like=True):
    """The reader row: a digest over everything it saw of the source row, so any error shows for ever."""

    n: int = 0
    digest: int = 0


class Every(msgspec.Struct, frozen=True):
    """The setting that the fold reads: one in how many events of a key is told."""

    sim_every: int


class Chained(Fold):
    """Two dependent rows, one independent row a key, outputs, and refusals that depend on state."""

    topics = ("judgments",)

    def __init__(self, every: int) -> None:
        self.every = every
        self.chain = Table("sim_chain", Chain, rank=20)
        self.last = Table("sim_last", Last, rank=30)
        self.keys = Table("sim_keys", Chain, rank=25, settings=Every(every))
        self.tables = (self.chain, self.keys, self.last)
        self.handlers = {TrustObserved: self.observed}

    def observed(self, event: Any, p: Partition) -> None:
        """Fold one observation."""
        data = event.data
        last = p.read(self.last, event.tenant, ())
        name, n = (last.name, last.n) if last is not None else ("", 0)
        if data.id == name and not data.success:
            raise Refused("goal_conflict", "data.id: the same again")
        chain = p.open(self.chain, event.tenant, ())
        if chain is not None:
            chain.digest = (chain.digest * 1_000_003 + hash_of(name) + p.offset + n) % (1 << 61)
            chain.n += 1
        row = p.open(self.keys, event.tenant, (data.id,))
        if row is not None:
            row.digest = (row.digest * 31 + p.offset + self.every) % (1 << 61)
            row.n += 1
            if row.n % self.every == 0:
                p.publish("alerts", f"{event.tenant}.{data.id}".encode(), f"{data.id}:{row.n}:{p.offset}:{self.every}".encode())
        source = p.open(self.last, event.tenant, ())
        if source is not None:
            source.n += 1
            source.name = data.id


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    value = 0
    for char in text.encode():
        value = value * 131 + char
    return value


def made(every: int) -> Schema:
    """The schema of a setting."""
    return Schema([Chained(every)], BOUNDS, given={"sim_every": every})


OLD, NEW = made(3), made(2)
"""The tables by the setting that all workers start with, and by the one that some are restarted with."""
