"""Merged rules of a worker: what another puts on the topic of alerts is judged by who owns its subject."""

from __future__ import annotations

import json
import time

from confluent_kafka import Producer

from streams.broker import EmbeddedBroker
from streams.events import ForecastIssued
from streams.publisher import SyncPublisher

from ..unit.test_rules import OPENED
from ..workers import WorkerProcess
from .test_golden_http import read


def test_an_alert_that_a_former_owner_opened_last_is_resolved_though_no_row_changes_any_more(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.publish(ForecastIssued(forecast_id="f", model="m", certified=True, inputs={"v": 1.0}))
    worker.until(lambda: worker.absorbed(1))
    time.sleep(1.5)  # it is judged: rules are looked at every 0.2 s here
    late = Producer({"bootstrap.servers": embedded.bootstrap, "linger.ms": 0})
    late.produce("pulsefold.alerts", OPENED, json.loads(OPENED)["data"]["alert_id"].encode())
    assert late.flush(10) == 0
    worker.until(lambda: [one["type"] for one, _ in read(embedded.bootstrap, "pulsefold.alerts")][-1:] == ["alert.resolved.v1"], 20)
