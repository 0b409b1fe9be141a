"""Two apps on one set of topics: the one that was there first publishes, the other reads, and it stays so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.broker import EmbeddedBroker
from streams.errors import TopicProblem
from streams.outputs import KEY, publishing_app, recorded_app

from ..workers import WorkerProcess
from .test_golden_http import read
from .test_service import post

APPS = ("pulsefold", "second")


@pytest.fixture
def shared() -> Iterator[EmbeddedBroker]:
    """A broker with the topics of two apps."""
    with EmbeddedBroker(partitions=2, app_ids=APPS) as broker:
        yield broker


def cost(n: int, amount: float) -> dict[str, Any]:
    return {"id": f"c{n}", "source": "t", "type": "cost.incurred.v1", "time": f"2026-03-02T00:00:0{n}Z", "data": {"cost": amount}}


def outputs(broker: EmbeddedBroker) -> list[tuple[str, str]]:
    """Alerts and dead letters: (who, what)."""
    alerts = [(message["source"], message["data"]["rule"]) for message, _ in read(broker.bootstrap, "pulsefold.alerts")]
    return sorted(alerts) + [("letter", headers["reason"]) for _, headers in read(broker.bootstrap, "pulsefold.dead-letters")]


@pytest.mark.timeout(180)
def test_the_second_app_folds_everything_and_publishes_nothing_whoever_starts_first_later(shared: EmbeddedBroker, tmp_path: Path) -> None:
    first, second = (WorkerProcess(shared.bootstrap, tmp_path, partitions=2, app_id=app) for app in APPS)
    told = [("pulsefold/pulsefold", "cost.cumulative"), ("pulsefold/pulsefold", "cost.daily")]
    try:
        first.start()
        second.start()
        post(second, cost(1, 60))
        producer = Producer({"bootstrap.servers": shared.bootstrap})
        producer.produce("pulsefold.costs", json.dumps({**cost(9, -1)}), b"default")
        assert producer.flush(30) == 0
        for worker in (first, second):
            worker.until(lambda worker=worker: worker.get("/costs")["events"] == 1)
        first.until(lambda: outputs(shared) == [*told, ("letter", "invalid_field")])
        assert second.get("/status")["outputs"] == {"publishes": False, "recorded_app": "pulsefold"}
        second.until(lambda: len(second.get("/alerts")["alerts"]) == 2)  # it reads what the other told
        first.stop()
        second.stop()
        second.start()  # first now, but not first in the topics
        post(second, cost(2, 60))
        second.until(lambda: second.get("/costs")["events"] == 2)
        assert [one for one in outputs(shared) if one[0] != "letter"] == told
        first.start()
        first.until(lambda: first.get("/costs")["events"] == 2)
        first.until(lambda: len([one for one in outputs(shared) if one[0] != "letter"]) == 4)
        assert {who for who, _ in outputs(shared)} <= {"pulsefold/pulsefold", "letter"}
        second.stop()
        second.settings["outputs"] = "on"
        second.start()
        assert second.get("/status")["outputs"] == {"publishes": True, "recorded_app": "pulsefold"}
        assert len([m for m, _ in read(shared.bootstrap, "pulsefold.scores")]) == 1
    finally:
        first.stop()
        second.stop()


def test_an_app_told_to_read_only_is_not_recorded(shared: EmbeddedBroker, tmp_path: Path) -> None:
    worker = WorkerProcess(shared.bootstrap, tmp_path, partitions=2, outputs="off").start()
    try:
        assert worker.get("/status")["outputs"] == {"publishes": False, "recorded_app": None}
        assert recorded_app(shared.bootstrap, "pulsefold.") is None
        assert publishing_app(shared.bootstrap, "pulsefold.", "second") == "second"
    finally:
        worker.stop()


def test_apps_that_start_at_the_same_moment_agree_and_whoever_comes_later_reads_the_same(shared: EmbeddedBroker) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: publishing_app(shared.bootstrap, "pulsefold.", f"app{n}"), range(8)))
    assert len(found) == 1
    assert publishing_app(shared.bootstrap, "pulsefold.", "late") in found


def test_the_record_is_found_among_scores_and_what_is_no_record_is_passed_over(shared: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": shared.bootstrap})
    for n in range(3000):
        producer.produce("pulsefold.scores", json.dumps({"n": n}).encode(), b"default|variable|v%d" % n, 0)
    producer.produce("pulsefold.scores", None, KEY, 0)
    producer.flush(30)
    assert recorded_app(shared.bootstrap, "pulsefold.") is None
    assert publishing_app(shared.bootstrap, "pulsefold.", "a") == "a" == publishing_app(shared.bootstrap, "pulsefold.", "b")


def test_a_topic_that_cannot_be_read_is_an_error_with_the_way_out(shared: EmbeddedBroker) -> None:
    shared.down()
    with pytest.raises(TopicProblem, match="set outputs to on or off"):
        recorded_app(shared.bootstrap, "pulsefold.", timeout_s=2)
