"""Alerts end thirty days after they are over, whoever owns the partition then; an alert that a tombstone took by mistake comes back."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
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


@pytest.mark.timeout(180)
def test_alerts_end_thirty_days_after_kafka_took_their_resolve_and_a_tombstone_that_hits_an_open_one_is_mended(
    embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    for n, days in enumerate((50, 45, 20, 15)):  # each opens its day's alert and resolves the one before
        post(worker, cost(f"c{n}", now - timedelta(days=days), 9.5))

    def daily(of: WorkerProcess) -> dict[int, bool]:
        shown = of.get("/alerts", state="all", rule="cost.daily")["alerts"]
        return {(now.date() - date.fromisoformat(alert["period"])).days: alert["open"] for alert in shown}

    everything = {50: False, 45: False, 20: False, 15: True}
    worker.until(lambda: daily(worker) == everything)
    time.sleep(6)  # two looks
    written = on_alerts(embedded)
    assert daily(worker) == everything and not any(None in values for values in written.values()), "history that was published late lost its alerts"

    with EmbeddedBroker(partitions=4) as later:
        producer = Producer({"bootstrap.servers": later.bootstrap})
        for key, values in written.items():
            days = 31 if any(f"{now - timedelta(days=50):%Y-%m-%d}" == json.loads(value or b"")["data"]["period"] for value in values) else 29
            for value in values:
                producer.produce("pulsefold.alerts", value, key, timestamp=int((now - timedelta(days=days)).timestamp() * 1000))
        assert producer.flush(30) == 0
        second = WorkerProcess(later.bootstrap, tmp_path, partitions=4).start()
        try:

            def ended() -> list[list[bytes | None]]:
                return [values for values in on_alerts(later).values() if None in values]

            second.until(lambda: daily(second) == {45: False, 20: False, 15: True})
            (values,) = ended()
            assert [value is None for value in values] == [False, False, True]
            second.kill()
            second.start()
            second.until(second.absorbed)
            time.sleep(6)  # two looks
            assert ended() == [values]

            (hit,) = (alert["alert_id"].encode() for alert in second.get("/alerts", rule="cost.daily")["alerts"])
            producer.produce("pulsefold.alerts", None, hit)
            assert producer.flush(30) == 0
            second.until(lambda: len(on_alerts(later)[hit]) == 3)
            opened, tombstone, again = on_alerts(later)[hit]
            assert tombstone is None and json.loads(opened or b"") == json.loads(again or b"")
            second.until(lambda: daily(second) == {45: False, 20: False, 15: True})
        finally:
            second.stop()
