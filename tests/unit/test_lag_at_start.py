"""What a worker says of its lag from the moment it is ready: what waits on the log, not that nothing does."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from agents.engine import since_boot

from .test_decisions import engine_of
from .test_upgrades import NEW


class Log:
    """A client of a broker with empty changelogs, and seven records in each partition of the source topic."""

    def __init__(self, answers: bool) -> None:
        self.answers, self.end = answers, 7
        self._fetcher = SimpleNamespace(_records={}, _fetch_max_wait_ms=0)

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, Any]:
        await asyncio.sleep(0.01)
        return {}

    async def position(self, place: TopicPartition) -> int:
        return 0

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        await asyncio.sleep(0.01)
        if not self.answers:
            raise KafkaConnectionError
        return dict.fromkeys(places, self.end)


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_that_becomes_ready_knows_what_waits_for_it_and_is_ready_too_where_no_broker_tells(answers: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(**NEW)
    engine.follower, engine._restore_asked = Log(answers), since_boot()

    async def ready() -> list[int]:
        following = asyncio.create_task(engine._follow(engine))
        await engine.joinable()
        found = [engine.lag(shard) for shard in engine.core.shards.values()]
        following.cancel()
        return found

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(asyncio.wait_for(ready(), 20)) == ([7, 7] if answers else [0, 0])
    assert ("end offsets are not known" in caplog.text) is not answers


def test_the_ends_are_asked_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.engine.ENDS_S", 0.05)
    engine = engine_of(**NEW)
    engine.follower = Log(answers=True)

    async def never(places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return await asyncio.get_running_loop().create_future()

    async def asked() -> None:
        await engine._look_at_ends()
        engine.follower.end_offsets = never
        await engine._look_at_ends()

    asyncio.run(asyncio.wait_for(asked(), 20))
    assert {engine.lag(shard) for shard in engine.core.shards.values()} == {7}, "what was known stays"


def test_what_the_group_has_committed_may_take_long_to_be_told_and_the_ends_are_known_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folds=False, **NEW)
    engine.follower = log = Log(answers=True)

    async def never(places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(engine, "_committed", never)

    async def watched() -> None:
        tasks = [asyncio.create_task(task(engine)) for task in (engine._watch, engine._heed_commits)]
        await asyncio.sleep(0.5)
        log.end = 9
        await asyncio.sleep(2)
        for task in tasks:
            task.cancel()

    asyncio.run(asyncio.wait_for(watched(), 20))
    assert {engine.lag(shard) for shard in engine.core.shards.values()} == {9}
