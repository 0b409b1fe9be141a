"""The topic ``scores``: what learners downstream are told, by a real worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from pulsefold import SyncPublisher

from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess


def told(broker: EmbeddedBroker, enough: Callable[[dict[bytes, dict[str, Any]]], bool], seconds: float) -> list[tuple[bytes, dict[str, Any]]]:
    """What the topic has, read until the newest of each key are enough, or for so long."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "scores", "auto.offset.reset": "earliest"})
    try:
        listed = consumer.list_topics("pulsefold.scores", timeout=10).topics["pulsefold.scores"].partitions
        consumer.assign([TopicPartition("pulsefold.scores", n, 0) for n in listed])
        found: list[tuple[bytes, dict[str, Any]]] = []
        deadline = time.monotonic() + seconds
        while not enough(dict(found)) and time.monotonic() < deadline:
            for message in consumer.consume(100, 0.3):
                assert message.error() is None
                if message.key() == b"outputs":
                    continue  # which app publishes: see streams.outputs
                found.append((bytes(message.key()), msgspec.json.decode(message.value())))
        return found
    finally:
        consumer.close()


def whole(newest: dict[bytes, dict[str, Any]]) -> bool:
    """Both variables with all of their forecasts, and the agent."""
    counts = {key: event["data"]["score"].get("count") for key, event in newest.items()}
    return counts.get(b"default|variable|a") == counts.get(b"default|variable|b") == 6 and b"default|agent|x" in counts


@pytest.mark.timeout(120)
def test_changed_variables_and_agents_are_told_once_and_a_restart_repeats_nothing(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        for n in range(6):
            data = {"model": "m", "confidence": 0.5, "fragility": 0.25, "certified": True, "inputs": {"a": n, "b": n}}
            publisher.publish({"type": "forecast.issued.v1", "id": f"f{n}", "data": data})
        publisher.publish({"type": "agent.registered.v1", "data": {"agent": "x", "capabilities": ["code"]}})
    found = told(embedded, whole, 60)
    newest, ids = dict(found), [event["id"] for _, event in found]
    assert sorted(newest) == [b"default|agent|x", b"default|variable|a", b"default|variable|b"]
    assert len(ids) == len(set(ids))  # on a busy machine a variable may be told of with some of its forecasts, and with all
    of_a = newest[b"default|variable|a"]
    assert (of_a["type"], of_a["data"]["name"], of_a["data"]["score"]["count"]) == ("variable.scored.v1", "a", 6)
    view = worker.get("/variables/a")
    assert {name: view[name] for name in ("avg_confidence", "volatility", "trust_weight")} == {
        name: of_a["data"]["score"][name] for name in ("avg_confidence", "volatility", "trust_weight")
    }
    worker.stop()
    worker.start()
    assert sorted(event["id"] for _, event in told(embedded, lambda _: False, 8)) == sorted(ids)
