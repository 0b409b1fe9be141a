"""After a swap of tables: which alerts of ordered rules stand differently by the new ones is told once, reason ``settings_changed``.

What the new tables would have said of each alert was kept while they were built (`agents.core`, `Shard.told`); the owner compares it
with the board, publishes what differs, and only then folds anything new. A crash in between repeats the comparison, which then finds
nothing for what was published; once it is written that it is done (`agents.core.MARK`), the rest is only ended.
Merged rules need none of this: they look at every subject anew.

From then on the owner knows what stands by its rows. A worker that slept through the swap may still have had a message of the former rows in its
hands: what such a message says of a record that is folded here, and the rows here do not, is put right in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from tables.alerting import RESOLVED
from tables.fold import Verdict
from tables.partition import WATERMARK

from .board import Entry
from .core import MARK, Shard, scores_key
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
        self._late: set[str] = set()

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(0.05)
            core = self.engine.core
            try:
                differing = [shard for shard in core.shards.values() if core.differing(shard)] if self.engine.ready else []
                if differing:
                    await self._compare(differing)
                await self._watch()
            except KafkaError as exc:
                self.log.warning("which alerts stand differently cannot be told at the moment: %r", exc)

    async def _compare(self, shards: Sequence[Shard]) -> None:
        """Nothing of these is folded until it is done, so what takes time is done for all of them at once."""
        engine = self.engine
        epochs = {shard: shard.epoch for shard in shards}
        publishing = [shard for shard in shards if engine.publishes and MARK in shard.told]
        if publishing:
            await engine.alerts_read()  # what this worker or the former owner put out last may still be under way to the board
            sources = {shard: TopicPartition(engine.full_names[shard.partition.topic], shard.partition.number) for shard in publishing}
            ends = await engine.insist(lambda: engine.follower.end_offsets(list(sources.values())), "the ends of the topics could not be read")
            for shard in publishing:
                if (far := self._told_upto(shard, ends[sources[shard]])) > shard.next:
                    shard.alerts_from = far
        ours = [shard for shard, epoch in epochs.items() if shard.epoch == epoch and shard.next >= shard.alerts_from and not self.should_stop]
        await asyncio.gather(*(self._differ(shard, epochs[shard]) for shard in ours))

    async def _differ(self, shard: Shard, epoch: int) -> None:
        """Tell what stands differently of one partition, and note that it was told."""
        told = dict(shard.told)
        publishes = self.engine.publishes and MARK in told
        if publishes:
            await self._tell(shard, {name.decode(): msgspec.json.decode(value) for name, value in told.items() if name})
        if shard.epoch != epoch:
            return
        partition, topic = shard.partition, self.engine.config.changelogs[shard.partition.topic]
        if publishes:
            await self.engine.send(topic, b"due", key=scores_key(partition.schema.generation), partition=partition.number)
            shard.scores_due = True
        done, *ended = self.engine.core.comparing(shard)
        # that it is done goes first: what a kill leaves of the others, or a late write brings back, is then not compared again
        await self.engine.send(topic, done[1], key=done[0], partition=partition.number)
        acks = [await self.engine.producer.send(topic, value, key=key, partition=partition.number) for key, value in ended]
        for ack in acks:
            await ack
        if shard.epoch == epoch:
            self.engine.core.compared(shard)
            if publishes:
                del told[MARK]
                shard.stands = told
                self._late |= self._here(shard)  # one may have come while this was written

    def _told_upto(self, shard: Shard, end: int) -> int:
        """Offset behind the newest record of which an alert is told: the former rows may have gone on before a kill and committed nothing of it.

        By these rows the same record may tell the same alert, with an id that every reader has had; so it is kept to be compared.

        Args:
            end: of the topic's partition.
        """
        offsets = (entry.message["data"]["evidence"]["offset"] for entry in self.engine.board.entries.values() if self._shard(entry) is shard)
        return max((offset + 1 for offset in offsets if offset < end), default=0)  # anybody may write to the topic of alerts

    async def _tell(self, shard: Shard, told: dict[str, dict[str, Any]]) -> None:
        for name, message in sorted(told.items()):
            await self._put_right(shard, name, message)
        for name in sorted(self._here(shard) - told.keys()):
            await self._put_right(shard, name, None)

    def _here(self, shard: Shard) -> set[str]:
        """Alerts of ordered rules that stand by a record of a partition."""
        return {name for name, entry in self.engine.board.entries.items() if entry.open and self._shard(entry) is shard}

    def _shard(self, entry: Entry) -> Shard | None:
        """Where the record is by which an alert of an ordered rule stands; None of other rules."""
        data = entry.message["data"]
        if data["rule"] == RULE or any(data["rule"] == rule.name for rule in self.rules.rules):
            return None
        return self.engine.core.shards.get((data["evidence"]["topic"], data["evidence"]["partition"]))  # type: ignore[no-any-return]  # the engine is untyped

    async def _put_right(self, shard: Shard, name: str, message: dict[str, Any] | None) -> None:
        """Publish where an alert stands by the rows here, if the board says otherwise.

        Args:
            message: the newest that these rows had for it; None = they never raised it, or have resolved it since.
        """
        board, partition = self.engine.board, shard.partition
        standing, _ = board.standing(name)
        if message is not None:
            data, tenant = message["data"], message["tenant"]
            if data.get("notice"):
                return
            cleared = data["evidence"]["offset"] <= partition.cleared_at(tenant)
            level = "ok" if message["type"] == RESOLVED or cleared else data["severity"]
            if level != standing.level:
                verdict = Verdict(level, data.get("value"), data.get("threshold"), data["message"], reason=CHANGED)
                await self._publish(shard, tenant, data, standing.level, verdict)
        elif standing.level != "ok":
            told = board.entries[name].message
            data = told["data"]
            said = f"By the settings in force now {data['subject']} has not crossed a limit; nothing stands any more."
            await self._publish(shard, told["tenant"], data, data["severity"], Verdict("ok", None, data.get("threshold"), said, reason=CHANGED))

    # ---- after it: what a sleeper still tells

    async def _watch(self) -> None:
        """Compare alerts of which there is news with what stands by the rows here."""
        engine, board = self.engine, self.engine.board
        served = engine.core.served
        names, board.fresh, self._late = board.fresh | self._late, set(), set()
        if engine.rebuild is not None or not (engine.ready and engine.publishes) or served is None or served.former is None or served.ended is not None:
            return  # nobody has other settings
        mine = {shard for shard in engine.core.shards.values() if shard.ready and not shard.told}
        heirs = {shard for shard in mine if shard.stands is None}
        if not (names or heirs):
            return
        before = {shard: (shard.epoch, shard.n_alerts) for shard in mine if _quiet(shard)}
        await engine.alerts_read()
        still = {shard for shard, seen in before.items() if seen == (shard.epoch, shard.n_alerts)}  # the board knows all that they ever put out
        for shard in heirs & still:
            shard.stands = {name.encode(): msgspec.json.encode(board.entries[name].message) for name in self._here(shard)}
        for name in sorted(names):
            entry = board.entries.get(name)
            shard = None if entry is None else self._shard(entry)
            if entry is None or shard is None or shard not in mine or not shard.ready:
                continue
            offset = entry.message["data"]["evidence"]["offset"]
            known = shard in still and before[shard] == (shard.epoch, shard.n_alerts)
            if not known or shard.stands is None or offset >= shard.next:
                if offset < max(shard.next, engine.ends.get(shard.name, 0)):  # anybody may write to the topic
                    self._late.add(name)
            elif shard not in heirs:
                told = shard.stands.get(name.encode())
                await self._put_right(shard, name, None if told is None else msgspec.json.decode(told))
        for shard in still:
            if shard.stands is not None and before[shard] == (shard.epoch, shard.n_alerts):
                shard.stands = {name: told for name, told in shard.stands.items() if name.decode() in board.entries}  # others were over long ago

    async def _publish(self, shard: Shard, tenant: str, data: dict[str, Any], level: str, verdict: Verdict) -> None:
        row = shard.partition.spaces[WATERMARK.index].get(tenant, {}).get(())
        time_us = 0 if row is None else WATERMARK.load(row).time_us
        place = shard.partition
        evidence = {"topic": place.topic, "partition": place.number, "offset": max(0, shard.next - 1)}
        await self.rules.tell(place.topic, tenant, data["rule"], data["subject"], level, data["period"], verdict, time_us, evidence)
        self.n_published += 1


def _quiet(shard: Shard) -> bool:
    """Whether no message of an alert is on its way to the topic."""
    under_way = shard.flushing.outputs if shard.flushing is not None else []
    return not any(out.topic == "alerts" for out in (*shard.partition.outputs, *under_way))
