"""The clock's ticks (common.md §4): published for tenants that have fallen silent and wait for time, by the partition's owner.

What waits, and the tick that ends it, is the folds' business (`tables.clock`); this file knows the time, who has been silent, and
what is on the log. Its rules: a tick is published only when everything on the log is folded, so the one that a worker published
before it was killed is seen by the next; and its id follows from its moment, so even two owners of a moment give one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from streams.events import ClockTicked
from tables.clock import Tick, ticks

from .core import Shard

READ_S = 10.0
"""Longest time that the log is read for whom it has heard of before this worker folded it."""


class _Head(msgspec.Struct):
    tenant: str = "default"
    type: str = ""


_head = msgspec.json.Decoder(_Head).decode


class Clock(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks now and then whether a silent tenant waits for time in a partition that this worker owns.

    Args:
        silence_s: seconds, by the Kafka timestamps of its records, that a tenant has been silent in a partition.

    Attributes:
        n_published: ticks.
    """

    def __init__(self, engine: Any, silence_s: float = 600.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.silence_s = silence_s
        self.every_s = min(10.0, max(0.2, silence_s / 10))
        self.n_published = 0
        self._told: dict[tuple[Shard, str], int] = {}
        self._before: dict[Shard, tuple[int, dict[str, int], float]] = {}
        """Ownership, and what the log had heard when it began; see `_on_log`."""

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(self.every_s)
            if self.engine.ready and self.engine.publishes:
                try:
                    for shard in list(self.engine.core.shards.values()):
                        await self._shard(shard)
                except (KafkaError, TimeoutError) as exc:
                    self.log.warning("the clock cannot tick at the moment: %r", exc)

    async def _shard(self, shard: Shard) -> None:
        if not shard.ready or not shard.partition.whole:
            return
        epoch = shard.epoch
        for tick in list(ticks(shard.partition, int(time.time() * 1e6))):
            if self._told.get((shard, tick.tenant)) == tick.until_us or not await self._silent(shard, tick):
                continue
            # What came while the log's end was asked counts too: a worker that fell behind has heard of nobody for a while.
            if await self._caught_up(shard) and await self._silent(shard, tick) and shard.epoch == epoch:
                await self._publish(shard, tick)

    async def _silent(self, shard: Shard, tick: Tick) -> bool:
        """Whether the tenant has sent nothing to this partition for long enough."""
        heard_s = shard.partition.heard.get(tick.tenant, 0) / 1000
        if time.time() - heard_s >= self.silence_s:  # by what this process has folded, which is not all that was sent
            heard_s = max(heard_s, await self._heard_before(shard, tick.tenant))
        return time.time() - heard_s >= self.silence_s

    async def _heard_before(self, shard: Shard, tenant: str) -> float:
        """When the log last heard of a tenant before this process folded the partition, as far back as the silence goes.

        Its watermark does not tell: who speaks of older times does not move it.

        Returns:
            Seconds since the epoch; 0 if the tenant was silent for longer than that.
        """
        found = self._before.get(shard)
        if found is None or found[0] != shard.epoch:
            found = self._before[shard] = shard.epoch, *await self._on_log(shard)
        _, heard, least_s = found
        return max(heard.get(tenant, 0) / 1000, least_s)

    async def _on_log(self, shard: Shard) -> tuple[dict[str, int], float]:
        """Whom the log has heard of within a silence, up to what is folded: tenant -> Kafka timestamp, milliseconds.

        Returns:
            Also when anybody may have spoken, seconds since the epoch: now, where there is too much to be read in time; else 0.
        """
        config, tp, until, now_s = self.engine.config, self._source(shard), shard.next, time.time()
        heard: dict[str, int] = {}
        consumer = AIOKafkaConsumer(
            bootstrap_servers=config.bootstrap, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", **config.security
        )
        await consumer.start()
        try:
            consumer.assign([tp])
            async with asyncio.timeout(READ_S):
                if self.engine.embedded:  # it does not look for times, and has little
                    await consumer.seek_to_beginning(tp)
                else:
                    begin = (await consumer.offsets_for_times({tp: int((now_s - self.silence_s) * 1000)}))[tp]
                    if begin is None:
                        return heard, 0.0
                    consumer.seek(tp, begin.offset)
                while await consumer.position(tp) < until:
                    for records in (await consumer.getmany(timeout_ms=200, max_records=500)).values():
                        for record in records:
                            if record.offset < until and (tenant := _speaker(record.value)) is not None:
                                heard[tenant] = max(heard.get(tenant, 0), record.timestamp)
        except TimeoutError:
            return heard, now_s
        finally:
            await consumer.stop()
        return heard, 0.0

    async def _caught_up(self, shard: Shard) -> bool:
        """Whether everything on the log, asked now, is folded."""
        tp = self._source(shard)
        ends = await self.engine.follower.end_offsets([tp])
        return shard.ready and shard.next >= ends[tp]

    async def _publish(self, shard: Shard, tick: Tick) -> None:
        tp = self._source(shard)
        self._told[(shard, tick.tenant)] = tick.until_us
        try:
            await self.engine.send(tp.topic, tick.value, key=tick.key, partition=tp.partition)
        except BaseException:
            del self._told[(shard, tick.tenant)]
            raise
        self.n_published += 1

    def _source(self, shard: Shard) -> TopicPartition:
        return TopicPartition(self.engine.full_names[shard.partition.topic], shard.partition.number)


def _speaker(value: bytes | None) -> str | None:
    """Whose a record is; None of ticks, and of what is no event."""
    try:
        head = _head(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if head.type == ClockTicked.TYPE else head.tenant
