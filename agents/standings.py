"""After a swap of tables: which alerts of ordered rules stand differently by the new ones is told once, reason ``settings_changed``.

What the new tables would have said of each alert was kept while they were built (`agents.core`, `Shard.told`); the owner compares it
with the board, publishes what differs, and only then folds anything new. A crash in between repeats the comparison, which then finds
nothing for what was published; once it is written that it is done (`agents.core.MARK`), the rest is only ended.
Merged rules need none of this: they look at every subject anew.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from tables.alerting import RESOLVED
from tables.fold import Verdict
from tables.partition import WATERMARK

from .core import MARK, Shard
from .letters import RULE
from .rules import Rules

CHANGED = "settings_changed"


class Standings(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks whether a partition that was swapped is to be compared.

    Attributes:
        n_published: messages.
    """

    def __init__(self, engine: Any, rules: Rules, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.rules = rules
        self.n_published = 0

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(0.05)
            core = self.engine.core
            for shard in list(core.shards.values()) if self.engine.ready else ():
                if core.differing(shard):
                    try:
                        await self._compare(shard)
                    except KafkaError as exc:
                        self.log.warning("which alerts stand differently cannot be told at the moment: %r", exc)

    async def _compare(self, shard: Shard) -> None:
        epoch, told = shard.epoch, dict(shard.told)
        if self.engine.publishes and MARK in told:
            await self.engine.alerts_read()  # what this worker or the former owner put out last may still be under way to the board
            if shard.epoch != epoch or self.should_stop:
                return
            if (far := await self._told_upto(shard)) > shard.next:
                shard.alerts_from = far
                return
            await self._tell(shard, {name.decode(): msgspec.json.decode(value) for name, value in told.items() if name})
        if shard.epoch != epoch:
            return
        partition, topic = shard.partition, self.engine.config.changelogs[shard.partition.topic]
        done, *ended = self.engine.core.comparing(shard)
        # that it is done goes first: what a kill leaves of the others, or a late write brings back, is then not compared again
        await self.engine.send(topic, done[1], key=done[0], partition=partition.number)
        acks = [await self.engine.producer.send(topic, value, key=key, partition=partition.number) for key, value in ended]
        for ack in acks:
            await ack
        if shard.epoch == epoch:
            self.engine.core.compared(shard)

    async def _told_upto(self, shard: Shard) -> int:
        """Offset behind the newest record of which an alert is told: the former rows may have gone on before a kill and committed nothing of it.

        By these rows the same record may tell the same alert, with an id that every reader has had; so it is kept to be compared.
        """
        engine, place = self.engine, shard.partition
        source = TopicPartition(engine.full_names[place.topic], place.number)
        end = (await engine.insist(lambda: engine.follower.end_offsets([source]), "the end of a topic could not be read"))[source]
        merged = {RULE, *(rule.name for rule in self.rules.rules)}
        told = (
            entry.message["data"]["evidence"]["offset"]
            for entry in engine.board.entries.values()
            if entry.message["data"]["rule"] not in merged
            and (entry.message["data"]["evidence"]["topic"], entry.message["data"]["evidence"]["partition"]) == (place.topic, place.number)
        )
        return max((offset + 1 for offset in told if offset < end), default=0)  # anybody may write to the topic of alerts

    async def _tell(self, shard: Shard, told: dict[str, dict[str, Any]]) -> None:
        board, partition = self.engine.board, shard.partition
        merged = {RULE, *(rule.name for rule in self.rules.rules)}
        for name, message in sorted(told.items()):
            data, tenant = message["data"], message["tenant"]
            if data.get("notice"):
                continue
            cleared = data["evidence"]["offset"] <= partition.cleared_at(tenant)
            level = "ok" if message["type"] == RESOLVED or cleared else data["severity"]
            standing, _ = board.standing(name)
            if level != standing.level:
                verdict = Verdict(level, data.get("value"), data.get("threshold"), data["message"], reason=CHANGED)
                await self._publish(shard, tenant, data, standing.level, verdict)
        here = {"topic": partition.topic, "partition": partition.number}
        for name, entry in sorted(board.entries.items()):
            data = entry.message["data"]
            if entry.open and name not in told and data["rule"] not in merged and {**data["evidence"], **here} == data["evidence"]:
                said = f"By the settings in force now {data['subject']} has not crossed a limit; nothing stands any more."
                await self._publish(shard, entry.message["tenant"], data, data["severity"], Verdict("ok", None, data.get("threshold"), said, reason=CHANGED))

    async def _publish(self, shard: Shard, tenant: str, data: dict[str, Any], level: str, verdict: Verdict) -> None:
        row = shard.partition.spaces[WATERMARK.index].get(tenant, {}).get(())
        time_us = 0 if row is None else WATERMARK.load(row).time_us
        place = shard.partition
        evidence = {"topic": place.topic, "partition": place.number, "offset": max(0, shard.next - 1)}
        await self.rules.tell(place.topic, tenant, data["rule"], data["subject"], level, data["period"], verdict, time_us, evidence)
        self.n_published += 1
