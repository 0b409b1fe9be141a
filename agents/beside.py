"""A rebuild's decisions as a sans-I/O part: how far may be built, when is it built, when may it serve.

`agents.rebuild` does the I/O around it (fetch, ask for offsets, write), as `agents.engine` does around `agents.core`.

The rules this file keeps:
  * an owner builds no further than its serving rows are durable, so everything that the new rows would put out is on the log already;
  * it is built when every partition is as far as the group has committed; that is decided once, for the whole app;
  * it serves here when no row of either side is unwritten, and each partition is at least as far as the former rows are here. It may be
    further: whoever serves by it already has folded on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tables.partition import Record
from tables.rows import wire_key

from .core import BUILT, Core, Refusal, Served, Shard

Name = tuple[str, int]
"""A source partition."""


class Beside:
    """What is built beside what serves.

    Args:
        building: its core.
        generation: of what is built.
        serving: the generation that serves.
        former: the core that serves here; None where other workers do, because this one has not the code for it.

    Attributes:
        known: the decision that stood when building began.
        goal: what the group has committed, as it was asked last; empty until then.
        swapping: it was decided that what is built serves.
        over: it was decided that something else does.
    """

    def __init__(self, building: Core, generation: str, serving: str, former: Core | None) -> None:
        self.building = building
        self.generation = generation
        self.serving = serving
        self.former = former
        self.known: Served | None = None
        self.goal: dict[Name, int] = {}
        self.swapping = False
        self.over = False
        self._said: dict[Shard, int] = {}

    def heed(self, served: Served | None) -> bool:
        """Which generation serves, as it was decided last; whether that changed anything here."""
        if served is None or self.swapping or self.over:
            return False
        self.swapping = served.generation == self.generation
        self.over = not self.swapping and (served.generation != self.serving or (served.former is not None and served != self.known))
        return self.swapping or self.over

    def bound(self, shard: Shard) -> int:
        """Offset up to which a partition may be built: what serves is durable below it."""
        if self.former is None:
            return self.goal.get(shard.name, 0)
        return self.former.shards[shard.name].safe or 0

    def fold(self, shard: Shard, epoch: int, start: int, end: int, records: Iterable[Record]) -> int | Refusal | None:
        """`Core.chunk` as far as the bound; nothing is put out."""
        bound = self.bound(shard)
        if end > bound:
            end, records = bound, [record for record in records if record.offset < bound]
        if end <= start:
            return None
        found = self.building.chunk(shard, epoch, start, end, records)
        shard.partition.outputs.clear()
        return found

    def unsaid(self) -> list[tuple[Shard, bytes, bytes]]:
        """How far partitions are built where no row tells, because the last records of the log are none (control records).

        Each as (shard, changelog key, value), to be written once.
        """
        found = []
        for shard in self.building.shards.values():
            done = shard.ready and not shard.dirty() and shard.flushing is None and self._said.get(shard) != shard.next
            if done and shard.next > max(shard.logged() + 1, shard.built):
                self._said[shard] = shard.next
                found.append((shard, wire_key(f"{BUILT}.{self.generation}", "", ()), str(shard.next).encode()))
        return found

    def aim(self, committed: Mapping[Name, int]) -> None:
        """What the group has committed: so far it is to be built."""
        self.goal = {name: committed.get(name, 0) for name in self.building.shards}

    def built(self) -> bool:
        """Whether every partition is, whoever built it."""
        return bool(self.goal) and all(shard.absorbed() >= self.goal[name] for name, shard in self.building.shards.items())

    def level(self) -> bool:
        """Whether it may serve here: all of it at once."""
        if self.former is None:
            return self.built() and not any(shard.dirty() or shard.flushing for shard in self.building.shards.values())
        for name, shard in self.building.shards.items():
            former = self.former.shards[name]
            if former.owned:
                if not (former.ready and shard.ready and shard.next >= former.next) or former.dirty() or former.flushing or shard.dirty() or shard.flushing:
                    return False
            elif shard.absorbed() < former.absorbed():
                return False
        return True

    def swap(self) -> list[Name]:
        """From now on the core of what was built serves; returns the partitions that go on in the place of the former rows."""
        going_on = []
        for name, shard in self.building.shards.items():
            if self.former is None:
                self.building.lost(*name)
            elif shard.owned:
                self.building.serve(shard, self.former.shards[name])
                going_on.append(name)
        return going_on
