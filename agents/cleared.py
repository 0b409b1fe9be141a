"""Alerts of what was cleared: after ``tenant.cleared`` with scope ``all`` nothing is left that could ever resolve them, so the owner of
the partition that their evidence names does, with reason ``cleared``.

A fold may tell it itself: only what still stands at two looks in a row is resolved here. From the clearing on no view shows such an alert
(`forgotten`), and when it is resolved `agents.tombstones` ends it without waiting thirty days.
"""

from __future__ import annotations

from typing import Any

from aiokafka.errors import KafkaError
from mode import Service

from tables.fold import Verdict
from tables.partition import WATERMARK

from .board import Entry
from .rules import Rules


def forgotten(engine: Any, entry: Entry) -> bool:
    """Whether an alert tells of what was cleared since: its message has names in it, and nobody may see them any more."""
    evidence = entry.message["data"]["evidence"]
    shard = engine.core.shards.get((evidence["topic"], evidence["partition"]))
    return shard is not None and evidence["offset"] <= shard.partition.cleared_at(entry.message["tenant"]) != -1


class ClearedAlerts(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks as often as the merged rules are judged."""

    def __init__(self, engine: Any, rules: Rules, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.rules = rules
        self.seen: set[str] = set()

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(self.rules.interval_s)
            if self.engine.ready and self.engine.publishes:
                try:
                    await self._once()
                except KafkaError as exc:
                    self.log.warning("alerts of what was cleared cannot be resolved at the moment: %r", exc)

    async def _once(self) -> None:
        standing = {}
        for name, entry in self.engine.board.entries.items():
            evidence = entry.message["data"]["evidence"]
            shard = self.engine.core.shards.get((evidence["topic"], evidence["partition"]))
            if entry.open and shard is not None and shard.ready and evidence["offset"] < shard.partition.cleared_at(entry.message["tenant"]):
                standing[name] = entry.message, shard.partition
        for name in sorted(self.seen & set(standing)):
            message, partition = standing.pop(name)
            tenant, data = message["tenant"], message["data"]
            evidence = {"topic": partition.topic, "partition": partition.number, "offset": partition.cleared_at(tenant)}
            row = partition.space(WATERMARK, tenant).get(())
            time_us = 0 if row is None else WATERMARK.load(row).time_us
            verdict = Verdict("ok", None, data.get("threshold"), f"All data of tenant {tenant} were cleared; nothing stands any more.", reason="cleared")
            await self.rules.tell(partition.topic, tenant, data["rule"], data["subject"], data["severity"], data["period"], verdict, time_us, evidence)
        self.seen = set(standing)
