"""Merged rules at a change of owner: nothing stays open because its opening came late to the new owner's board."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from agents.rules import Rules
from streams.derive import event_bytes
from tables.fold import MergedRule
from tests.service import Service

from .test_decisions import Follower, Producer

AT_US = 1_772_409_600_000_000
OPENED = event_bytes(
    type="alert.opened.v1", id="a-0", source="s", time_us=AT_US, tenant="default",
    data={
        "alert_id": "a", "rule": "drift.variable", "severity": "warning", "subject": "v", "period": "2026-03-02", "value": 0.9, "threshold": 0.7,
        "previous": "ok", "message": "m", "evidence": {"topic": "forecasts", "partition": 0, "offset": 1},
    },
)  # fmt: skip


def owner(path: Path) -> tuple[Service, Rules, MergedRule, Producer]:
    """Of a variable that has drifted and recovered, while its board has nothing of it and is behind by a message."""
    service = Service(path, partitions=1)
    data = {"forecast_id": "f", "model": "m", "fragility": 0.0, "certified": True, "inputs": {"v": 1.0}}
    service.send([{"id": "f", "type": "forecast.issued.v1", "tenant": "default", "time": "2026-03-02T00:00:00Z", "data": data}])
    engine = service.engine
    engine.publishes, engine.producer, engine.follower = True, Producer(), Follower()
    engine.alert_partitions = [TopicPartition("alerts", 0)]
    rule = next(rule for fold in service.schema.folds for rule in fold.rules if rule.name == "drift.variable")
    return service, Rules(engine, [rule], service.routes.reader), rule, engine.producer


def told(producer: Producer) -> list[Any]:
    return [json.loads(value or b"") for topic, _, value in producer.sent if topic == "pulsefold.alerts"]


async def read_by(service: Service, judging: asyncio.Task[None]) -> None:
    """The follower goes on until the rule is judged."""
    service.engine.follower.at = 2
    while not judging.done():
        service.engine._turns += 1
        await asyncio.sleep(0.005)
    await judging


def test_a_new_owner_judges_when_its_board_knows_what_the_former_one_opened(tmp_path: Path) -> None:
    service, rules, rule, producer = owner(tmp_path)

    async def judged() -> None:
        judging = asyncio.create_task(rules._rule(rule))
        await asyncio.sleep(0.05)
        assert not judging.done() and rules.n["judged"] == 0, "the alert is on the topic, and not fetched"
        service.engine.board.read(b"a", OPENED, (0, 1))
        await read_by(service, judging)

    asyncio.run(asyncio.wait_for(judged(), 20))
    assert [(one["type"], one["data"]["subject"]) for one in told(producer)] == [("alert.resolved.v1", "v")]


def test_an_alert_of_a_former_owner_that_comes_when_its_subject_was_judged_is_judged_again(tmp_path: Path) -> None:
    service, rules, rule, producer = owner(tmp_path)

    async def judged() -> None:
        await read_by(service, asyncio.create_task(rules._rule(rule)))
        assert rules.n["judged"] == 1 and not told(producer)
        message = service.engine.board.read(b"a", OPENED, (0, 1))
        assert message is not None
        for heard in service.engine.on_alert:
            heard(message)
        await rules._rule(rule)

    asyncio.run(asyncio.wait_for(judged(), 20))
    assert [(one["type"], one["data"]["subject"]) for one in told(producer)] == [("alert.resolved.v1", "v")]


def test_who_cannot_learn_what_stands_judges_nothing_and_everything_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.rules.KNOWN_S", 0.2)
    service, rules, rule, producer = owner(tmp_path)
    asked = service.engine.follower.end_offsets

    async def judged() -> None:
        async def never(places: list[TopicPartition]) -> dict[TopicPartition, int]:
            raise KafkaConnectionError

        service.engine.follower.end_offsets = never
        await rules._rule(rule)
        assert rules.n["judged"] == 0
        service.engine.follower.end_offsets = asked
        service.engine.board.read(b"a", OPENED, (0, 1))
        await read_by(service, asyncio.create_task(rules._rule(rule)))

    asyncio.run(asyncio.wait_for(judged(), 20))
    assert len(told(producer)) == 1


def test_what_was_due_when_its_partition_went_is_judged_when_it_comes_back_before_the_next_look(tmp_path: Path) -> None:
    service, rules, rule, producer = owner(tmp_path)
    fragile = {"model": "m", "fragility": 0.9, "certified": False, "inputs": {"w": 1.0, "x": 1.0}}
    events = [
        {"id": f"d{n}", "type": "forecast.issued.v1", "tenant": "default", "time": "2026-03-02T00:00:00Z", "data": {"forecast_id": f"d{n}", **fragile}}
        for n in range(25)
    ]
    service.send(events)
    shard, send = service.engine.core.shards[("forecasts", 0)], service.engine.send

    async def away_meanwhile(*words: Any, **more: Any) -> Any:
        shard.ready = False
        return await send(*words, **more)

    async def judged() -> None:
        service.engine.send = away_meanwhile  # type: ignore[method-assign]  # the partition goes while a message is being written
        await read_by(service, asyncio.create_task(rules._rule(rule)))
        assert [one["data"]["subject"] for one in told(producer)] == ["w"]
        service.engine.send = send  # type: ignore[method-assign]
        shard.ready, shard.epoch = True, shard.epoch + 1
        await read_by(service, asyncio.create_task(rules._rule(rule)))

    asyncio.run(asyncio.wait_for(judged(), 20))
    assert [(one["type"], one["data"]["subject"]) for one in told(producer)] == [("alert.opened.v1", "w"), ("alert.opened.v1", "x")]
