"""Alerts end thirty days after they are over, whoever owns the partition then; an alert that a tombstone took by mistake comes back."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess
from .test_service import post


def cost(id: str, time: datetime, amount: float) -> dict[str, Any]:
    return {"id": id, "source": "t", "type": "cost.incurred.v1", "time": time.isoformat(), "data": {"cost": amount}}


def on_alerts(broker: EmbeddedBroker) -> dict[bytes, list[bytes | None]]:
    """Values of the alerts topic by key."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "r", "enable.partition.eof": True, "log_level": 0})
    consumer.assign([TopicPartition("pulsefold.alerts", 0, 0)])
    found: dict[bytes, list[bytes | None]] = {}
    while (message := consumer.poll(10)) is not None and message.error() is None:
        found.setdefault(message.key() or b"", []).append(message.value())
    consumer.close()
    return found


@pytest.mark.timeout(120)
def test_alerts_over_for_thirty_days_by_event_time_get_one_tombstone_and_one_that_hits_an_open_alert_is_mended(
    embedded: EmbeddedBroker, worker: WorkerProcess
) -> None:
    now = datetime.now(UTC)
    for n, days in enumerate((50, 45, 20, 15)):  # each opens its day's alert and resolves the one before
        post(worker, cost(f"c{n}", now - timedelta(days=days), 9.5))

    def daily() -> dict[int, bool]:
        shown = worker.get("/alerts", state="all", rule="cost.daily")["alerts"]
        return {(now.date() - date.fromisoformat(alert["period"])).days: alert["open"] for alert in shown}

    def ended() -> dict[bytes, list[bytes | None]]:
        return {key: values for key, values in on_alerts(embedded).items() if None in values}

    worker.until(lambda: daily() == {45: False, 20: False, 15: True})
    (values,) = ended().values()
    assert [value is None for value in values] == [False, False, True]
    worker.kill()
    worker.start()
    worker.until(worker.absorbed)
    time.sleep(6)  # two looks
    assert list(ended().values()) == [values]

    (hit,) = (alert["alert_id"].encode() for alert in worker.get("/alerts", rule="cost.daily")["alerts"])
    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    producer.produce("pulsefold.alerts", None, hit)
    assert producer.flush(30) == 0
    worker.until(lambda: len(on_alerts(embedded)[hit]) == 3)
    opened, tombstone, again = on_alerts(embedded)[hit]
    assert tombstone is None and json.loads(opened or b"") == json.loads(again or b"")
    worker.until(lambda: daily() == {45: False, 20: False, 15: True})
