"""The end of alerts: thirty days after Kafka took a resolve or a notice, the owner publishes a tombstone (contract §1).

Not thirty days of event time: the alerts of a history that is published late would end before anybody has seen them.

The owner of an alert is the owner of the partition that its evidence names. It also mends what a tombstone took that it should not
have, and what a sleeper has repeated over it: the newest message of such an alert is published once more, with the same id. What a tenant
that was cleared has left on the topic ends at once.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiokafka.errors import KafkaError
from mode import Service

from .board import Entry
from .cleared import forgotten

KEPT_MS = 30 * 86_400 * 1_000


class Tombstones(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks through the board every `every_s` seconds.

    Attributes:
        n: published tombstones, and alerts published again.
    """

    def __init__(self, engine: Any, every_s: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.every_s = every_s
        self.n = {"ended": 0, "mended": 0}

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(self.every_s)
            if self.engine.ready and self.engine.publishes:
                try:
                    await self._once(time.time_ns() // 1_000_000)
                except KafkaError as exc:
                    self.log.warning("alerts cannot be ended at the moment: %r", exc)

    async def _once(self, now_ms: int) -> None:
        board, acks = self.engine.board, []
        for name in sorted(board.bereaved):
            entry = board.entries[name]
            if self._owned(entry):
                acks.append(await self._send(name, msgspec.json.encode(entry.message), entry))
                self.n["mended"] += 1
        for name, entry in board.over(now_ms + 1):
            if self._owned(entry) and not entry.open and (entry.written_ms < now_ms - KEPT_MS or forgotten(self.engine, entry)):
                acks.append(await self._send(name, None, entry))
                self.n["ended"] += 1
        for ack in acks:
            await ack

    async def _send(self, name: str, value: bytes | None, entry: Entry) -> Any:
        return await self.engine.producer.send(self.engine.alerts_topic, value, key=name.encode(), partition=entry.order[0])

    def _owned(self, entry: Entry) -> bool:
        evidence = entry.message["data"]["evidence"]
        shard = self.engine.core.shards.get((evidence["topic"], evidence["partition"]))
        return shard is not None and shard.ready
