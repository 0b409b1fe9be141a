"""The clock's ticks (common.md §4): published for tenants that have fallen silent and wait for time, by the partition's owner.

What waits, and the tick that ends it, is the folds' business (`tables.clock`); this file knows the time, who has been silent, and
what is on the log. Its rules: a tick is published only when everything on the log is folded, so the one that a worker published
before it was killed is seen by the next; and its id follows from its moment, so even two owners of a moment give one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from streams.codec import InvalidEvent, decode
from streams.events import ClockTicked
from tables.clock import Tick, ticks
from tables.partition import WATERMARK

from .core import Shard


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
        self._moved_at: dict[tuple[Shard, str], tuple[int, float]] = {}

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
        heard = shard.partition.heard.get(tick.tenant)
        heard_s = heard / 1000 if heard is not None else await self._heard_before(shard, tick.tenant)
        return time.time() - heard_s >= self.silence_s

    async def _heard_before(self, shard: Shard, tenant: str) -> float:
        """When the log last heard of a tenant that this process has not heard yet: the record that moved its watermark last.

        Returns:
            Seconds since the epoch; 0 if that was a tick itself.
        """
        row = shard.partition.space(WATERMARK, tenant).get(())
        if row is None:
            return 0.0
        known = self._moved_at.get((shard, tenant))
        if known is None or known[0] != row.applied:
            known = self._moved_at[(shard, tenant)] = row.applied, await self._time_of(shard, row.applied)
        return known[1]

    async def _time_of(self, shard: Shard, offset: int) -> float:
        """Kafka timestamp of a record of the source topic, or of the first that is kept after it."""
        config, tp = self.engine.config, self._source(shard)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=config.bootstrap, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", **config.security
        )
        await consumer.start()
        try:
            consumer.assign([tp])
            consumer.seek(tp, offset)
            async with asyncio.timeout(10):
                record = await consumer.getone()
        finally:
            await consumer.stop()
        try:
            return 0.0 if isinstance(decode(record.value).data, ClockTicked) else record.timestamp / 1000
        except InvalidEvent:
            return float(record.timestamp / 1000)

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
