"""Merged alert rules: judged on the follower, over partials of several partitions, when something changed.

The owner of partition crc32(subject) mod P of the rule's topic publishes. What stands is read back from the alerts topic
(`agents.board`), so a restart, a rebuild or a change of owner opens nothing twice; ids are the alert's id and the ordinal of
the message, so two owners of a moment give twins. A new owner judges when its board knows what the former one put out; what
comes of it later makes its subject due again.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka.errors import KafkaError
from mode import Service

from streams.derive import event_bytes
from streams.keys import alert_id, derived_id
from tables.alerting import change_type, verdict_data
from tables.fold import MergedRule, Standing, Verdict
from tables.reader import PartitionReader
from tables.rows import Row
from tables.times import day

from .core import Shard

KNOWN_S = 10.0
"""Longest time that judging waits until the board knows what is on the topic of alerts; what was not judged is due the next time."""


class Rules(Service):  # type: ignore[misc]  # mode is untyped here
    """Judges the merged rules at least every `interval_s` when something changed.

    Attributes:
        n: judged and published.
    """

    def __init__(self, engine: Any, rules: Iterable[MergedRule], reader: Callable[[str], PartitionReader], interval_s: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.reader = reader
        self.interval_s = interval_s
        self.rules: list[MergedRule] = []
        self.due: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
        self.beats: dict[str, set[str]] = {}
        self.news: dict[str, set[tuple[str, str]]] = {}
        """Rule -> (tenant, subject) of alert messages of others since it was judged."""
        self.homes: dict[str, dict[int, int]] = {}
        self.use(rules)
        engine.on_schema.append(lambda schema: self.use(rule for fold in schema.folds for rule in fold.rules))
        self.n = {"judged": 0, "published": 0}
        engine.on_changed.append(self.changed)
        engine.on_alert.append(self.told)

    def use(self, rules: Iterable[MergedRule]) -> None:
        """Judge these from now on, and every subject once."""
        self.rules = list(rules)
        self.due = {rule.name: set() for rule in self.rules}
        self.beats = {rule.name: set() for rule in self.rules}
        self.news = {rule.name: set() for rule in self.rules}
        self.homes = {}

    def changed(self, shard: Shard, rows: Iterable[tuple[int, Row]]) -> None:
        """Rows changed here, by our own folding or by another worker's."""
        for rule in self.rules:
            if rule.topic != shard.partition.topic:
                continue
            index = rule.table.index
            due = self.due[rule.name]
            due.update((row.tenant, row.key) for i, row in rows if i == index)
            if rule.beat is not None:
                index = rule.beat.index
                self.beats[rule.name].update(row.tenant for i, row in rows if i == index)

    def told(self, message: dict[str, Any]) -> None:
        """An alert message came that this worker did not put on the board itself: a former owner's, perhaps after its subject was judged here."""
        data = message["data"]
        if data["rule"] in self.news and self.engine.ready:
            self.news[data["rule"]].add((message["tenant"], data["subject"]))

    @Service.task
    async def _judge(self) -> None:
        while not self.should_stop:
            await self.sleep(self.interval_s)
            if self.engine.ready:
                rules = self.rules
                for rule in rules:
                    if rules is self.rules:  # else other tables serve since
                        await self._rule(rule)

    async def _rule(self, rule: MergedRule) -> None:
        engine = self.engine
        shards = {n: shard for (topic, n), shard in engine.core.shards.items() if topic == rule.topic}
        owned = {n: shard.epoch for n, shard in shards.items() if shard.ready}
        newly, rules = owned.items() - self.homes.get(rule.name, {}).items(), self.rules  # what was lost and came back since the last look is new too
        if newly and not (await self._knows() and rules is self.rules):
            return
        due, self.due[rule.name] = self.due[rule.name], set()
        beats, self.beats[rule.name] = self.beats[rule.name], set()
        for partition in engine.partitions[rule.topic] if beats else ():
            for tenant in beats:
                due.update((tenant, key) for key in partition.spaces[rule.table.index].get(tenant, ()))
        news, self.news[rule.name] = self.news[rule.name], set()
        for partition in engine.partitions[rule.topic] if news else ():
            for tenant in {tenant for tenant, _ in news}:
                due.update((tenant, key) for key in partition.spaces[rule.table.index].get(tenant, ()) if (tenant, rule.subject(key)) in news)
        if newly:  # look at every subject once
            for partition in engine.partitions[rule.topic]:
                for tenant, space in partition.spaces[rule.table.index].items():
                    due.update((tenant, key) for key in space)
        self.homes[rule.name] = owned
        count = engine.counts[rule.topic]
        for done, (tenant, key) in enumerate(sorted(due)):
            subject = rule.subject(key)
            home = zlib.crc32(subject.encode()) % count
            if home in owned and shards[home].ready and shards[home].epoch == owned[home]:  # it may have gone to another worker meanwhile, and come back
                await self._subject(rule, tenant, key, subject)
            if done % 200 == 199:
                await self.sleep(0)

    async def _knows(self) -> bool:
        """Whether the board knows what is on the topic of alerts: a former owner's last message may still be under way to it."""
        try:
            async with asyncio.timeout(KNOWN_S):
                await self.engine.alerts_read()
        except (KafkaError, TimeoutError) as exc:
            self.log.warning("alert rules cannot be judged at the moment: what stands is not known: %r", exc)
            return False
        return not self.engine.should_stop

    async def _subject(self, rule: MergedRule, tenant: str, key: tuple[str, ...], subject: str) -> None:
        board = self.engine.board
        opened = board.open_of(tenant, rule.name)
        standing = opened.get(subject)
        reader = self.reader(tenant)
        level, period = ("ok", None)
        if standing is not None:
            level, period = standing.message["data"]["severity"], standing.message["data"]["period"]
        self.n["judged"] += 1
        told: frozenset[str] = frozenset()
        if rule.beat is not None:
            told = frozenset(opened).union(*(entry.message["data"].get("related", ()) for entry in opened.values()))
        verdict = rule.judge(reader, key, Standing(level, period, told))
        if verdict is None or verdict.level == level:
            return
        await self._publish(rule, tenant, key, subject, level, period, verdict)

    async def _publish(self, rule: MergedRule, tenant: str, key: tuple[str, ...], subject: str, level: str, period: str | None, verdict: Verdict) -> None:
        time_us, evidence = self._evidence(rule, tenant, key)
        await self.tell(rule.topic, tenant, rule.name, subject, level, period, verdict, time_us, evidence)

    async def tell(
        self, topic: str, tenant: str, rule: str, subject: str, level: str, period: str | None, verdict: Verdict, time_us: int, evidence: dict[str, Any]
    ) -> None:
        """Publish the message for a change of level.

        Args:
            topic: the rule's, without prefix.
            level, period: as it stands; no period while nothing is open.
            time_us: event time of what changed it.
        """
        engine = self.engine
        kind = change_type(level, verdict.level)
        if kind is None or not engine.publishes:
            return
        name = alert_id(tenant, rule, subject, period or day(time_us))
        _, ordinal = engine.board.standing(name)
        data = verdict_data(verdict, tenant, rule, subject, period or day(time_us), level, evidence)
        source_id = f"{name}-{ordinal}"
        value = event_bytes(
            type=kind,
            id=derived_id(topic, tenant, source_id, kind, name),
            source=f"pulsefold/{engine.config.app_id}",
            time_us=time_us,
            tenant=tenant,
            data=data,
            derivedfrom=source_id,
        )
        found = await engine.send(engine.alerts_topic, value, key=name.encode())
        engine.board.read(name.encode(), value, (found.partition, found.offset), time.time_ns() // 1_000_000)
        self.n["published"] += 1

    def _evidence(self, rule: MergedRule, tenant: str, key: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
        """Event time and place of the newest record that changed the subject."""
        place = max(
            (
                (row.applied, partition.number)
                for partition in self.engine.partitions[rule.topic]
                if (row := partition.spaces[rule.table.index].get(tenant, {}).get(key)) is not None
            ),
            default=(-1, 0),
        )
        reader = self.reader(tenant)
        reader.topics.add(rule.topic)
        as_of = reader.as_of()
        return (as_of if as_of is not None else time.time_ns() // 1000), {"topic": rule.topic, "partition": place[1], "offset": place[0]}
