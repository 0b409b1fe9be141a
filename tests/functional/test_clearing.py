"""Clearing a tenant on a real worker: views, alerts and changelogs forget it, a restart too, and nobody else notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from agents.scan import Sought, look
from streams.broker import EmbeddedBroker
from streams.settings import load
from streams.topics import SOURCE_TOPICS, changelog_name
from tables.rows import parse_wire_key

from ..workers import WorkerProcess
from .conftest import PARTITIONS
from .test_golden_http import read
from .test_service import post


def events(n: int) -> list[dict[str, Any]]:
    data = [
        ("trust.observed.v1", {"kind": "model", "id": f"secret-{n}", "success": True}),
        ("cost.incurred.v1", {"cost": 9, "model": f"secret-{n}"}),
        ("goal.created.v1", {"goal_id": f"secret-{n}", "target": 1}),
        ("forecast.issued.v1", {"forecast_id": "f", "model": "m", "confidence": 0.5, "fragility": 0.9, "inputs": {f"secret-{n}": 1.0}}),
    ]
    return [{"id": f"{kind}{n}", "source": "t", "type": kind, "time": "2026-03-02T00:00:00Z", "data": one} for kind, one in data]


def last(broker: EmbeddedBroker, *topics: str) -> dict[bytes, bytes | None]:
    """What compaction would leave of topics; of the changelogs where none is named."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "r", "enable.partition.eof": True, "log_level": 0})
    places = [TopicPartition(changelog_name("pulsefold.", "pulsefold", topic), n, 0) for topic in SOURCE_TOPICS for n in range(PARTITIONS)]
    if topics:
        listed = consumer.list_topics(timeout=10).topics
        places = [TopicPartition(topic, n, 0) for topic in topics for n in listed[topic].partitions]
    consumer.assign(places)
    found: dict[bytes, bytes | None] = {}
    ended = 0
    while ended < len(places):
        message = consumer.poll(10)
        assert message is not None
        if message.error() is not None:
            ended += 1
        else:
            found[b"%d|" % (message.partition() or 0) + (message.key() or b"")] = message.value()
    consumer.close()
    return found


def kept(broker: EmbeddedBroker, tenant: str) -> set[str]:
    """Tables that still have rows of a tenant on the changelog."""
    parsed = [parse_wire_key(key.partition(b"|")[2]) for key, value in last(broker).items() if value is not None]
    return {table.split(".")[0] for table, of, _ in parsed if of == tenant}


def scored(broker: EmbeddedBroker, tenant: bytes) -> list[bytes]:
    """Keys of a tenant that the topic of scores has a value for."""
    return [key for key, value in last(broker, "pulsefold.scores").items() if value is not None and key.partition(b"|")[2].startswith(tenant + b"|")]


def told(broker: EmbeddedBroker, tenant: bytes) -> list[bytes]:
    """Alerts of a tenant whose last message is on the topic."""
    return [key for key, value in last(broker, "pulsefold.alerts").items() if value is not None and b'"tenant":"' + tenant + b'"' in value]


@pytest.mark.timeout(300)
def test_a_cleared_tenant_is_forgotten_everywhere_and_stays_so_after_a_restart(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=PARTITIONS, archive_dir=tmp_path / "archive").start()
    try:
        clear(embedded, worker, tmp_path)
    finally:
        worker.stop()


def clear(embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path) -> None:
    gone, stays = {"X-Tenant": "gone"}, {"X-Tenant": "stays"}
    for n in range(12):
        for headers in (gone, stays):
            assert post(worker, events(n), "application/cloudevents-batch+json", **headers)[0] == 200

    def known(tenant: dict[str, str]) -> list[int]:
        return [
            worker.ask("/costs", headers=tenant)[1]["events"],
            worker.ask("/learning/goals", headers=tenant)[1]["total_goals"],
            sum(worker.ask(f"/trust/model/secret-{n}", headers=tenant)[0] == 200 for n in range(12)),
            len(worker.ask("/alerts", headers=tenant, state="open")[1]["alerts"]) and 1,
        ]

    for headers in (gone, stays):
        worker.until(lambda headers=headers: known(headers) == [12, 12, 12, 1])
    worker.until(lambda: len(scored(embedded, b"gone")) == len(scored(embedded, b"stays")) == 12)
    before = [message for message, _ in read(embedded.bootstrap, "pulsefold.alerts") if message["tenant"] == "stays"]
    settings = load({"bootstrap": embedded.bootstrap, "archive_dir": str(tmp_path / "archive")}, {})
    worker.until(lambda: worker.get("/status")["archive"].get("rows", 0) > 0)
    found = {one.place.removeprefix("pulsefold."): one for one in look(settings, Sought("gone"))}
    assert {place for place, one in found.items() if one.live} >= {"alerts", "scores", "pulsefold-costs-changelog", str(tmp_path / "archive")}
    command = {"id": "clear", "source": "t", "type": "tenant.cleared.v1", "time": "2026-03-02T01:00:00Z", "data": {"scope": "all"}}
    assert post(worker, command, **gone)[1]["results"][0]["accepted"]
    worker.until(lambda: known(gone) == [0, 0, 0, 0])
    worker.until(lambda: kept(embedded, "gone") == {"watermark", "cleared"})
    assert len(kept(embedded, "stays")) > 10
    worker.until(lambda: scored(embedded, b"gone") == [] and told(embedded, b"gone") == [])
    assert len(scored(embedded, b"stays")) == 12 and len(told(embedded, b"stays")) == len({one["data"]["alert_id"] for one in before})
    assert worker.ask("/alerts", headers=gone, state="all")[1]["alerts"] == []
    worker.until(lambda: all(one.live == 0 for one in look(settings, Sought("gone"))), 120)
    found = {one.place.removeprefix("pulsefold."): one for one in look(settings, Sought("gone"))}
    assert found["pulsefold-costs-changelog"].name >= PARTITIONS and found["pulsefold-costs-changelog"].waiting and found["costs"].log == 12 + PARTITIONS
    worker.kill()
    worker.start()
    worker.until(worker.absorbed)
    assert known(gone) == [0, 0, 0, 0] and known(stays) == [12, 12, 12, 1]
    assert worker.ask("/alerts", headers=gone, state="all")[1]["alerts"] == []
    assert worker.get("/status")["counts"]["folded"] == 12 * 4 * 2 + 1 + 4 * PARTITIONS
    messages = [message for message, _ in read(embedded.bootstrap, "pulsefold.alerts")]
    assert [message for message in messages if message["tenant"] == "stays"] == before
    resolved = [m["data"] for m in messages if m["tenant"] == "gone" and m["type"] == "alert.resolved.v1"]
    assert resolved and {one["reason"] for one in resolved} == {"cleared"}
    assert len({one["alert_id"] for one in resolved}) == len(resolved)
    post(worker, {**events(0)[0], "id": "anew"}, **gone)
    worker.until(lambda: worker.ask("/trust/model/secret-0", headers=gone)[1].get("observations") == 1)
