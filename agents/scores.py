"""The topic ``scores``: what learners downstream are told of a subject whose figures changed, at most once in 5 s.

The owner of partition crc32(subject) mod P of the rows' topic publishes. The id is made of the newest record that changed the
subject, so two owners of a moment give twins; a restart tells nothing that has not changed since.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from mode import Service

from streams.derive import event_bytes
from streams.keys import derived_id, encode_key
from tables.fold import Scored
from tables.reader import PartitionReader
from tables.rows import Row

from .core import Shard

INTERVAL_S = 5.0


class Scores(Service):  # type: ignore[misc]  # mode is untyped here
    """Publishes scores that changed.

    Args:
        scored: what the folds say of whom.
        reader: of a tenant.
        topic: full name.
    """

    def __init__(self, engine: Any, scored: Iterable[Scored], reader: Callable[[str], PartitionReader], topic: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.scored: list[Scored] = []
        self.reader = reader
        self.topic = topic
        self.due: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
        self.n_published = 0
        self.use(scored)
        engine.on_changed.append(self.changed)

    def use(self, scored: Iterable[Scored]) -> None:
        """Tell of these from now on."""
        self.scored = list(scored)
        self.due = {one.kind: set() for one in self.scored}

    def changed(self, shard: Shard, rows: Iterable[tuple[int, Row]]) -> None:
        """Rows changed here, by our own folding or by another worker's."""
        for one in self.scored:
            if one.topic == shard.partition.topic and self.engine.ready:  # what is restored has not changed
                index = one.table.index
                self.due[one.kind].update((row.tenant, row.key) for i, row in rows if i == index)

    @Service.task
    async def _tell(self) -> None:
        while not self.should_stop:
            await self.sleep(INTERVAL_S)
            for one in self.scored:
                due, self.due[one.kind] = self.due[one.kind], set()
                if self.engine.ready and self.engine.publishes:
                    await self.engine.insist(partial(self._publish, one, sorted(due)), f"{self.topic}: scores could not be written")

    async def _publish(self, one: Scored, due: list[tuple[str, tuple[str, ...]]]) -> None:
        engine = self.engine
        count = engine.counts[one.topic]
        sent = []
        for done, (tenant, key) in enumerate(due):
            home = engine.core.shards[(one.topic, zlib.crc32(encode_key(*key)) % count)]
            if home.ready:
                reader = self.reader(tenant)
                event = one.event(reader, key)
                as_of = reader.as_of()
                if event is not None and as_of is not None:
                    place = max((row.applied, p.number) for p in engine.partitions[one.topic] if (row := p.spaces[one.table.index].get(tenant, {}).get(key)))
                    id = derived_id("scores", tenant, f"{one.kind}-{place[1]}-{place[0]}", event.TYPE, key[0])
                    data = msgspec.to_builtins(event)
                    value = event_bytes(type=event.TYPE, id=id, source=f"pulsefold/{engine.config.app_id}", time_us=as_of, tenant=tenant, data=data)
                    sent.append(await engine.producer.send(self.topic, value, key=encode_key(tenant, one.kind, key[0])))
            if done % 50 == 49:
                await self.sleep(0)
        for ack in sent:
            await ack
        self.n_published += len(sent)
