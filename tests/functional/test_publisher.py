"""Publishers and the subscriber against the embedded broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams import events
from streams.broker import EmbeddedBroker
from streams.codec import InvalidEvent
from streams.derive import event_bytes
from streams.errors import TopicProblem
from streams.publisher import Dropped, Publisher, SyncPublisher
from streams.spool import Spool
from streams.subscriber import AlertSubscriber

from ..workers import ROOT


def on_topic(bootstrap: str, topic: str, partitions: int = 4) -> list[dict[str, object]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "look", "enable.auto.commit": False})
    found = []
    for n in range(partitions):
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)
        consumer.assign([TopicPartition(topic, n, 0)])
        at = 0
        while at < high:
            message = consumer.poll(10)
            assert message is not None and message.error() is None
            at = message.offset() + 1
            found.append(json.loads(message.value()))
    consumer.close()
    return found


def test_everything_published_is_acknowledged_and_on_the_topic(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap, tenant="acme", source="trainer-7") as publisher:
        ids = [publisher.observe("model", f"m{n % 5}", n % 2 == 0) for n in range(500)]
        assert publisher.flush() == 0
        report = publisher.report()
    assert (report.accepted, report.delivered, report.failed, report.dropped, report.waiting) == (500, 500, 0, 0, 0)
    found = on_topic(embedded.bootstrap, "pulsefold.judgments")
    assert sorted(str(e["id"]) for e in found) == sorted(ids)
    assert {(e["tenant"], e["source"], e["specversion"]) for e in found} == {("acme", "trainer-7", "1.0")}


def test_an_invalid_event_is_refused_before_anything_is_sent(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        with pytest.raises(InvalidEvent, match=r"data\.weight"):
            publisher.observe("model", "m", True, weight=-1)
        with pytest.raises(InvalidEvent, match=r"data\.performance_score"):
            publisher.record_many(
                [
                    events.GoalProgressed(goal_id="g", current=1),
                    events.LearningRecorded(task_type="t", performance_score=1.2, learning_rate=0.1, episode_count=1, convergence_metric=0.1),
                ]
            )
        assert publisher.report().accepted == 0


def test_many_observations_travel_once_grouped_by_home_partition(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        ids = publisher.observe_many(events.Observation(kind="variable", id=f"v{n}", success=True) for n in range(40))
    assert len(ids) == 4
    found = on_topic(embedded.bootstrap, "pulsefold.judgments")
    assert sum(len(e["data"]["observations"]) for e in found) == 40  # type: ignore[index]


def test_a_full_queue_drops_counts_and_warns_but_never_blocks_for_long() -> None:
    with pytest.warns(Dropped):
        publisher = SyncPublisher("127.0.0.1:1", max_queue=10, max_block_ms=20, delivery_timeout_ms=1000)
        begun = time.perf_counter()
        for _ in range(20):
            publisher.observe("model", "m", True)
        assert time.perf_counter() - begun < 2
        assert publisher.report().dropped == 10
        report = publisher.close(timeout_s=5)
    assert (report.delivered, report.failed) == (0, 10)
    assert report.errors


def test_what_a_killed_process_left_in_the_spool_is_sent_again_with_the_same_ids(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    spool = tmp_path / "spool.db"
    code = (
        "import os, signal\nfrom streams.publisher import SyncPublisher\n"
        f"p = SyncPublisher('127.0.0.1:1', spool={str(spool)!r}, on_full='spool')\n"
        "print(*[p.observe('model', 'm', True) for _ in range(30)], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    ids = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split()
    assert len(ids) == 30
    with SyncPublisher(embedded.bootstrap, spool=spool, on_full="spool") as publisher:
        assert publisher.flush() == 0
        assert publisher.report().resent == 30
    assert sorted(str(e["id"]) for e in on_topic(embedded.bootstrap, "pulsefold.judgments")) == sorted(ids)
    again = Spool(spool)
    assert len(again) == 0
    again.close()


def test_a_missing_topic_is_told_with_the_command_that_creates_it() -> None:
    with (
        EmbeddedBroker(partitions=1, prefix="other.") as broker,
        SyncPublisher(broker.bootstrap) as publisher,
        pytest.raises(TopicProblem, match="pulsefold topics create"),
    ):
        publisher.observe_many([events.Observation(kind="model", id="m", success=True)])


def test_the_asynchronous_publisher_waits_for_the_acknowledgement(embedded: EmbeddedBroker) -> None:
    async def run() -> None:
        async with Publisher(embedded.bootstrap, linger_ms=1) as publisher:
            names = await asyncio.gather(*(publisher.publish(events.GoalProgressed(goal_id="g", current=float(n))) for n in range(20)))
            assert len(set(names)) == 20
            assert publisher.report().delivered == 20

    asyncio.run(run())


def test_the_subscriber_gives_each_alert_once_and_only_its_tenants(embedded: EmbeddedBroker) -> None:
    data = {
        "alert_id": "x", "rule": "cost.daily", "severity": "warning", "subject": "tenant", "period": "2026-03-02", "value": 8.0,
        "threshold": 7.0, "previous": "ok",
        "message": "stop", "evidence": {"topic": "costs", "partition": 0, "offset": 1},
    }  # fmt: skip
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    for id, tenant in (("1", "a"), ("1", "a"), ("2", "b"), ("3", "a")):
        raw = event_bytes(type="alert.opened.v1", id=id, source="s", time_us=1, tenant=tenant, data=data)
        producer.produce("pulsefold.alerts", raw, b"x")
    producer.flush(10)

    async def run() -> list[str]:
        found = []
        async with AlertSubscriber(embedded.bootstrap, tenant="a", since="earliest") as alerts:
            async for alert in alerts:
                found.append(alert.id)
                assert alert.data.threshold == 7.0
                if alert.id == "3":
                    return found
        return found

    assert asyncio.run(asyncio.wait_for(run(), 30)) == ["1", "3"]
