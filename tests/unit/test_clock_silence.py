"""Who has been silent: by what a worker folds, and by what the log has from before it owned the partition."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord, OffsetAndTimestamp

from agents.clock import Clock
from tables.clock import Tick
from tests.service import Service

SILENCE_S = 600.0


@dataclass
class Topic:
    """One partition: (seconds ago, tenant, type) by offset; a client that reads it, two records at a time."""

    log: list[tuple[float, str, str]]
    at: int = -1
    n_started: int = 0
    stuck: bool = False

    def __call__(self, **options: Any) -> Topic:
        self.at = -1
        return self

    async def start(self) -> None:
        self.n_started += 1

    async def stop(self) -> None: ...

    def assign(self, places: list[TopicPartition]) -> None: ...

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset

    async def seek_to_beginning(self, place: TopicPartition) -> None:
        self.at = 0

    async def offsets_for_times(self, asked: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        ((place, time_ms),) = asked.items()
        now = time.time()
        found = (OffsetAndTimestamp(n, int((now - ago) * 1000)) for n, (ago, _, _) in enumerate(self.log) if (now - ago) * 1000 >= time_ms)
        return {place: next(found, None)}

    async def position(self, place: TopicPartition) -> int:
        assert self.at >= 0
        return self.at

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]:
        await asyncio.sleep(0.01)
        if self.stuck:
            return {}
        begin, self.at = self.at, min(self.at + 2, len(self.log))
        place = TopicPartition("pulsefold.training", 0)
        return {place: [self._record(n) for n in range(begin, self.at)]}

    def _record(self, n: int) -> ConsumerRecord[bytes, bytes]:
        ago, tenant, type_ = self.log[n]
        value = json.dumps({"id": "x", "tenant": tenant, "type": type_}).encode() if type_ else b"\xff{"
        return ConsumerRecord("pulsefold.training", 0, n, int((time.time() - ago) * 1000), 0, None, value, None, 0, len(value), ())


def silent(path: Path, monkeypatch: pytest.MonkeyPatch, topic: Topic, upto: int, *tenants: str, embedded: bool = False) -> dict[str, bool]:
    """Whether a worker that has just gained the partition, and read its rows up to an offset, takes them for silent."""
    monkeypatch.setattr("agents.clock.AIOKafkaConsumer", topic)
    service = Service(path, partitions=1)
    service.engine.embedded = embedded
    clock, shard = Clock(service.engine, SILENCE_S), service.engine.core.shards[("training", 0)]
    shard.next = upto

    async def asked() -> dict[str, bool]:
        return {tenant: await clock._silent(shard, Tick(tenant, 0, b"", b"")) for tenant in tenants}

    return asyncio.run(asyncio.wait_for(asked(), 20))


LOG = [
    (2000.0, "quiet", "goal.created.v1"), (1900.0, "busy", "goal.created.v1"), (500.0, "ticked", "clock.ticked.v1"), (400.0, "busy", "goal.progressed.v1"),
    (300.0, "other", ""), (200.0, "late", "goal.progressed.v1"),
]  # fmt: skip


@pytest.mark.parametrize("embedded", [False, True])
def test_a_new_owner_knows_from_the_log_who_spoke_within_the_silence_whatever_time_they_spoke_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    topic = Topic(LOG)
    found = silent(tmp_path, monkeypatch, topic, len(LOG), "quiet", "busy", "ticked", "other", "late", embedded=embedded)
    assert found == {"quiet": True, "busy": False, "ticked": True, "other": True, "late": False}
    assert topic.n_started == 1, "the log is read once an ownership"


def test_nobody_spoke_where_the_log_has_nothing_of_the_time_of_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert silent(tmp_path, monkeypatch, Topic(LOG[:2]), 2, "quiet", "busy") == {"quiet": True, "busy": True}


def test_where_the_log_cannot_be_read_in_time_nobody_is_taken_for_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.clock.READ_S", 0.2)
    assert silent(tmp_path, monkeypatch, Topic(LOG, stuck=True), len(LOG), "quiet", "busy") == {"quiet": False, "busy": False}


def test_an_owner_that_was_another_meanwhile_looks_at_the_log_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = Topic(LOG[:2])
    monkeypatch.setattr("agents.clock.AIOKafkaConsumer", topic)
    service = Service(tmp_path, partitions=1)
    clock, shard = Clock(service.engine, SILENCE_S), service.engine.core.shards[("training", 0)]
    shard.next, tick = 2, Tick("busy", 0, b"", b"")
    shard.partition.heard["busy"] = int((time.time() - 1900) * 1000)

    async def asked() -> list[bool]:
        first = await clock._silent(shard, tick)
        shard.epoch += 1
        topic.log, shard.next = LOG, len(LOG)  # somebody else has folded these
        return [first, await clock._silent(shard, tick)]

    assert asyncio.run(asyncio.wait_for(asked(), 20)) == [True, False]
