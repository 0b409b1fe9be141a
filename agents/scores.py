"""The topic ``scores``: what learners downstream are told of a subject whose figures changed, at most once in 5 s.

The owner of partition crc32(subject) mod P of the rows' topic publishes. The id is made of the newest record that changed the
subject, so two owners of a moment give twins; a restart tells nothing that has not changed since. What changed while its home was on
its way from one worker to another is told by whom it came to. Where a tenant was cleared, what the
topic says of subjects that are no more ends with tombstones. Where tables of other settings or versions serve from now on, every subject is
told once, quiet ones too: a mark on the changelog (`agents.core`, `SCORES`) says that it is to be done, and goes when it was.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from streams.derive import event_bytes
from streams.keys import derived_id, encode_key
from tables.fold import Scored
from tables.partition import CLEARED
from tables.reader import PartitionReader
from tables.rows import Row, unescape

from .core import Shard, scores_key

INTERVAL_S = 5.0
REMEMBERED = 24
"""Intervals for which it is remembered what changed and had its home elsewhere: somewhat longer than a partition is on its way."""
TOGETHER = 500
"""Subjects told of at once: as many as are told again where a broker fails meanwhile, and no more than a worker that is busy can tell in time."""
MANY = 2000
"""Subjects looked at before anything else gets its turn."""
Subject = tuple[str, tuple[str, ...]]
"""Tenant and key of its rows."""
MOST_PAUSE_S = 60.0
"""Longest pause before ending what was cleared is tried again."""


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
        self.due: dict[str, set[Subject]] = {}
        self.elsewhere: dict[str, dict[Subject, int]] = {}
        self.turn = 0
        self.owned: dict[str, dict[int, int]] = {}
        self.n_published = 0
        self.n_ended = 0
        self.cleared: dict[tuple[str, str, int], int] = {}
        self.homes: frozenset[tuple[str, int, int]] = frozenset()
        self.pause_s = 0.0
        self.again_at = 0.0
        self.use(scored)
        engine.on_changed.append(self.changed)

    def use(self, scored: Iterable[Scored]) -> None:
        """Tell of these from now on."""
        self.scored = list(scored)
        self.due = {one.kind: set() for one in self.scored}
        self.elsewhere = {one.kind: {} for one in self.scored}
        self.owned = {}

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
            self.turn += 1
            scored = self.scored
            for one in scored:
                if scored is self.scored:  # else other tables serve since
                    await self._tell_of(one)
            if self.engine.ready and self.engine.publishes:
                await self._again()
            if self.engine.ready and self.engine.publishes and self.scored and time.monotonic() >= self.again_at:
                await self._try_to_forget()

    async def _tell_of(self, one: Scored) -> None:
        """Tell of what changed since the last time and has its home here, and of what changed before its home came here."""
        changed, self.due[one.kind] = self.due[one.kind], set()
        if not (self.engine.ready and self.engine.publishes):
            return
        before = self.elsewhere[one.kind]
        owned = {n: shard.epoch for (topic, n), shard in self.engine.core.shards.items() if topic == one.topic and shard.ready}
        newly = {n for n, _ in owned.items() - self.owned.get(one.kind, {}).items()}  # what was lost and came back since is new too
        self.owned[one.kind] = owned
        due = []
        for done, subject in enumerate(list(before) if newly else ()):
            if self._home(one, subject[1]) in newly:
                changed.add(subject)
            if done % MANY == MANY - 1:
                await asyncio.sleep(0)
        for done, subject in enumerate(changed):
            if self._home(one, subject[1]) in owned:
                before.pop(subject, None)
                due.append(subject)
            else:
                self._remember(one, subject)
            if done % MANY == MANY - 1:
                await asyncio.sleep(0)
        while before and before[oldest := next(iter(before))] <= self.turn - REMEMBERED:
            del before[oldest]
        await self._tell_all(one, due)

    def _home(self, one: Scored, key: tuple[str, ...]) -> int:
        """The partition whose owner tells of a subject."""
        return zlib.crc32(encode_key(*key)) % int(self.engine.counts[one.topic])

    def _remember(self, one: Scored, subject: Subject) -> None:
        """It changed, and its home is not here: behind those that have waited for longer."""
        before = self.elsewhere.get(one.kind)
        if before is not None:  # else other tables serve since
            before.pop(subject, None)
            before[subject] = self.turn

    async def _tell_all(self, one: Scored, due: Sequence[Subject]) -> None:
        for at in range(0, len(due), TOGETHER):
            await self.engine.insist(partial(self._publish, one, sorted(due[at : at + TOGETHER])), f"{self.topic}: scores could not be written")

    async def _try_to_forget(self) -> None:
        """Without a broker less and less often, for each time takes a consumer, and told once."""
        try:
            await self._forget()
        except (TimeoutError, KafkaError) as exc:
            if not self.pause_s:
                self.log.warning("scores of what was cleared cannot be ended at the moment, it is tried again: %r", exc)
            self.pause_s = min(MOST_PAUSE_S, max(INTERVAL_S, 2 * self.pause_s))
            self.again_at = time.monotonic() + self.pause_s
        else:
            if self.pause_s:
                self.log.warning("scores of what was cleared are ended")
            self.pause_s = 0.0

    async def _again(self) -> None:
        """Tell of every subject whose home is a partition from which other tables serve than before."""
        engine = self.engine
        due = {shard: shard.epoch for shard in engine.core.shards.values() if shard.ready and shard.scores_due}
        for one in self.scored if due else ():
            homes = {shard.partition.number for shard in due if shard.partition.topic == one.topic}
            found = {(tenant, key) for p in engine.partitions[one.topic] for tenant, rows in p.spaces[one.table.index].items() for key in rows}
            await self._tell_all(one, [(tenant, key) for tenant, key in found if self._home(one, key) in homes])
        for shard, epoch in due.items():
            if shard.epoch == epoch and engine.core.shards.get((shard.partition.topic, shard.partition.number)) is shard:
                partition = shard.partition
                await engine.send(engine.config.changelogs[partition.topic], None, key=scores_key(partition.schema.generation), partition=partition.number)
                shard.scores_due = False

    async def _forget(self) -> None:
        """End what the topic says of subjects of cleared tenants, where there is no row of them any more.

        Looked for once a clearing, at the start, and whenever a partition comes here: its former owner may have left before it had done so.
        """
        homes = frozenset((*place, shard.epoch) for place, shard in self.engine.core.shards.items() if shard.ready)
        found = {
            (tenant, shard.partition.topic, shard.partition.number): CLEARED.load(row).offset
            for shard in self.engine.core.shards.values()
            for tenant, rows in shard.partition.spaces[CLEARED.index].items()
            for row in rows.values()
        }
        tenants = {place[0] for place, offset in found.items() if homes - self.homes or self.cleared.get(place) != offset}
        if tenants:
            kinds = {one.kind: one for one in self.scored}
            acks = []
            for key in await self._keys():
                tenant, kind, name = (*map(unescape, key.decode("utf-8", "replace").split("|")), "", "")[:3]
                one = kinds.get(kind)
                if tenant in tenants and one is not None and self._ended(one, tenant, name):
                    acks.append(await self.engine.producer.send(self.topic, None, key=key))
            for ack in acks:
                await ack
            self.n_ended += len(acks)
        self.cleared, self.homes = found, homes

    def _ended(self, one: Scored, tenant: str, name: str) -> bool:
        """Whether it is for this worker to end a subject, of which there is no row."""
        engine = self.engine
        home = engine.core.shards[(one.topic, self._home(one, (name,)))]
        return home.ready and not any((name,) in p.spaces[one.table.index].get(tenant, ()) for p in engine.partitions[one.topic])

    async def _keys(self) -> list[bytes]:
        """Keys of the topic that have a value."""
        engine = self.engine
        consumer = AIOKafkaConsumer(
            bootstrap_servers=engine.config.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            check_crcs=not engine.embedded,  # the mock cluster gives records of transactions (`streams.outputs`) a wrong one
            **engine.config.security,
        )
        live: dict[bytes, None] = {}
        try:
            await consumer.start()
            await consumer._client.add_topic(self.topic)
            places = [TopicPartition(self.topic, n) for n in consumer.partitions_for_topic(self.topic) or ()]
            if not places:
                raise KafkaError(f"{self.topic} is not there")
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            for place, end in (await consumer.end_offsets(places)).items():
                consumer.pause(*places)
                consumer.resume(place)
                while await consumer.position(place) < end and not self.should_stop:
                    for records in (await consumer.getmany(place, timeout_ms=200)).values():
                        for record in records:
                            live.pop(record.key or b"", None)
                            if record.key and record.value is not None:
                                live[record.key] = None
        finally:
            await consumer.stop()
        return list(live)

    async def _publish(self, one: Scored, due: list[Subject]) -> None:
        engine = self.engine
        served = engine.core.served
        swap = "" if served is None or served.former is None else f"-{served.n}"  # by other tables the same record gives other figures
        sent = []
        for done, (tenant, key) in enumerate(due):
            home = engine.core.shards[(one.topic, self._home(one, key))]
            if not home.ready:  # it has gone meanwhile
                self._remember(one, (tenant, key))
            else:
                reader = self.reader(tenant)
                event = one.event(reader, key)
                as_of = reader.as_of()
                if event is not None and as_of is not None:
                    place = max((row.applied, p.number) for p in engine.partitions[one.topic] if (row := p.spaces[one.table.index].get(tenant, {}).get(key)))
                    id = derived_id("scores", tenant, f"{one.kind}-{place[1]}-{place[0]}{swap}", event.TYPE, key[0])
                    data = msgspec.to_builtins(event)
                    value = event_bytes(type=event.TYPE, id=id, source=f"pulsefold/{engine.config.app_id}", time_us=as_of, tenant=tenant, data=data)
                    sent.append(await engine.producer.send(self.topic, value, key=encode_key(tenant, one.kind, key[0])))
            if done % 50 == 49:
                await asyncio.sleep(0)
        for ack in sent:
            await ack
        self.n_published += len(sent)
