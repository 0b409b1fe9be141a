"""Reading one tenant's rows over all partitions, as the views do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .orders import ListKeeper, Part, Source, made
from .partition import WATERMARK, Partition
from .rows import S, Table


class PartitionReader:
    """A `tables.fold.Reader` over partitions in memory.

    Args:
        partitions: topic (without prefix) -> its partitions, in order.
        homes: table's wire name -> topic whose partitions keep it.
        tenant: every read is bound to it.
        now_us: the server's clock, microseconds since the epoch.
        keeper: of these partitions, keeps lists for the next question; None = each is made anew.
    """

    def __init__(
        self, partitions: Mapping[str, Sequence[Partition]], homes: Mapping[str, tuple[str, ...]], tenant: str, now_us: int, keeper: ListKeeper | None = None
    ) -> None:
        self.partitions = partitions
        self.homes = homes
        self.tenant = tenant
        self.now_us = now_us
        self.topics: set[str] = set()
        self.keeper = keeper
        self._homes: dict[Table[Any], list[Partition]] = {}

    def _over(self, table: Table[S]) -> list[Partition]:
        found = self._homes.get(table)
        if found is None:
            topics = self.homes.get(table.wire, tuple(self.partitions))
            self.topics.update(topics)
            found = self._homes[table] = [partition for topic in topics for partition in self.partitions.get(topic, ())]
        return found

    def rows(self, table: Table[S], key: tuple[str, ...]) -> list[S]:
        """States of a key, one a partition that has it, in partition order."""
        tenant, index = self.tenant, table.index
        found = []
        for partition in self._over(table):
            space = partition.spaces[index].get(tenant)
            if space is not None:
                row = space.get(key)
                if row is not None:
                    state = row.state
                    found.append(table.load(row) if state.__class__ is bytes else state)
        return found

    def placed(self, table: Table[S], key: tuple[str, ...]) -> list[tuple[int, S]]:
        """As `rows`, each with its partition's number."""
        found = []
        for partition in self._over(table):
            space = partition.spaces[table.index].get(self.tenant)
            row = space.get(key) if space is not None else None
            if row is not None:
                found.append((partition.number, table.load(row)))
        return found

    def everywhere(self, table: Table[S]) -> Iterator[tuple[int, S]]:
        """Every state of the tenant, with its partition's number; in no particular order within one."""
        for partition in self._over(table):
            number = partition.number
            for row in partition.spaces[table.index].get(self.tenant, {}).values():
                state = row.state
                yield number, table.load(row) if state.__class__ is bytes else state

    def beside(self, home: Table[Any], key: tuple[str, ...], table: Table[S], keys: Iterable[tuple[str, ...]]) -> Iterator[S]:
        """States of many keys of a table whose rows are only where a row of `key` is in `home`: key by key, each in partition order."""
        tenant, index = self.tenant, table.index
        self._over(table)
        spaces = []
        for partition in self._over(home):
            there = partition.spaces[home.index].get(tenant)
            if there is not None and key in there:
                space = partition.spaces[index].get(tenant)
                if space is not None:
                    spaces.append(space)
        for other in keys:
            for space in spaces:
                row = space.get(other)
                if row is not None:
                    state = row.state
                    yield table.load(row) if state.__class__ is bytes else state

    def scan(self, table: Table[S]) -> Iterator[tuple[tuple[str, ...], list[S]]]:
        """Every key of the tenant with its states."""
        merged: dict[tuple[str, ...], list[S]] = {}
        peek = table.peek
        for partition in self._over(table):
            space = partition.spaces[table.index].get(self.tenant, {})
            if not merged:  # the common case of a key on one partition, without looking for it
                merged = {key: [peek(row) if row.state.__class__ is bytes else row.state] for key, row in space.items()}
                continue
            for key, row in space.items():
                state = peek(row) if row.state.__class__ is bytes else row.state
                states = merged.get(key)
                if states is None:
                    merged[key] = [state]
                else:
                    states.append(state)
        return iter(merged.items())

    def lists(self, source: Source[Any], wanted: Mapping[Hashable, Callable[[], Part]]) -> dict[Hashable, Any]:
        """Lists of a source's keys as they are now, by name."""
        if self.keeper is None:
            return made(self, source, wanted)
        for table in source.tables:
            self.topics.update(self.homes.get(table.wire, tuple(self.partitions)))
        return self.keeper.get(self, source, wanted)

    def watermarks(self, topic: str) -> dict[int, int]:
        """Greatest event time absorbed in each partition of a topic that has any, microseconds."""
        self.topics.add(topic)
        return {
            partition.number: WATERMARK.load(row).time_us
            for partition in self.partitions.get(topic, ())
            if (row := partition.spaces[WATERMARK.index].get(self.tenant, {}).get(())) is not None
        }

    def as_of(self) -> int | None:
        """Greatest event time absorbed in the topics read so far."""
        times = [
            WATERMARK.load(row).time_us
            for topic in self.topics
            for partition in self.partitions.get(topic, ())
            if (row := partition.spaces[WATERMARK.index].get(self.tenant, {}).get(())) is not None
        ]
        return max(times) if times else None
