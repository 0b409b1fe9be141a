"""Ticks of the clock on a real worker: silent tenants only, once, whoever owns the partition and however often it starts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.broker import EmbeddedBroker
from streams.events import CostIncurred, GoalCreated, GoalProgressed
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess
from .test_golden_http import read


def ticks(messages: list[Any]) -> list[dict[str, Any]]:
    """Ticks on the log."""
    return [event for message in messages if (event := json.loads(message.value()))["type"] == "clock.ticked.v1"]


def rules(broker: EmbeddedBroker) -> list[tuple[str, str]]:
    """Alerts so far: (type, rule). One that was in flight when its worker was killed may have a twin of the same id, which is the same alert."""
    found = {message["id"]: (message["type"], message["data"]["rule"]) for message, _ in read(broker.bootstrap, "pulsefold.alerts")}
    return list(found.values())


def overdue(publisher: SyncPublisher, tenant: str, ago: timedelta = timedelta(minutes=10)) -> None:
    """A goal whose deadline has passed, created before it."""
    now = datetime.now(UTC)
    publisher.publish(GoalCreated(goal_id="g", target=1.0, deadline=now - ago), tenant=tenant, time=now - ago * 2)


@contextmanager
def speaking(publisher: SyncPublisher, tenant: str) -> Iterator[None]:
    """A tenant that goes on speaking, of a time before its deadline: the watermark alone would not tell that it does."""
    enough = threading.Event()

    def speak() -> None:
        while not enough.wait(0.3):
            publisher.publish(GoalProgressed(goal_id="g", current=0.1), tenant=tenant, time=datetime.now(UTC) - timedelta(minutes=25))
            publisher.flush()

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


SILENCE_S = 5
"""Longer than a thread of the test stands still on a busy machine."""


@pytest.mark.timeout(240)
def test_a_silent_tenants_deadline_is_missed_once_however_often_workers_are_killed_and_a_tenant_that_speaks_gets_no_tick(
    embedded: EmbeddedBroker, tmp_path: Path, on_topics: Callable[..., list[Any]]
) -> None:
    workers = [WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, clock_silence_s=SILENCE_S).start() for _ in range(2)]
    try:
        with SyncPublisher(embedded.bootstrap) as publisher:
            overdue(publisher, "quiet")
            overdue(publisher, "busy")
            with speaking(publisher, "busy"):
                workers[0].until(lambda: bool(ticks(on_topics("training"))))
                time.sleep(1)
                (tick,) = ticks(on_topics("training"))
                assert tick["tenant"] == "quiet"
            *_, spoken, ticked = sorted(message.timestamp()[1] for message in on_topics("training") if json.loads(message.value())["tenant"] == "quiet")
            assert ticked - spoken >= SILENCE_S * 1000, "not before it was silent for so long"
            for worker in workers:
                worker.kill()
                worker.start()
        workers[0].until(lambda: {tick["tenant"] for tick in ticks(on_topics("training"))} == {"quiet", "busy"})
        workers[0].until(lambda: len(rules(embedded)) >= 2)
        time.sleep(SILENCE_S + 1)
        assert sorted({tick["id"]: tick["tenant"] for tick in ticks(on_topics("training"))}.values()) == ["busy", "quiet"]
        assert rules(embedded) == [("alert.opened.v1", "goal.missed")] * 2
    finally:
        for worker in workers:
            worker.stop()


def end_of(time: datetime) -> datetime:
    """The end of the first minute after its day."""
    return time.replace(hour=0, minute=1, second=0, microsecond=0) + timedelta(days=1)


@pytest.mark.timeout(240)
def test_the_end_of_a_day_resolves_its_alert_and_a_worker_that_starts_later_knows_the_silence_from_the_log(
    embedded: EmbeddedBroker, tmp_path: Path, on_topics: Callable[..., list[Any]]
) -> None:
    settings = {"partitions": 4, "clock_silence_s": 2}
    off = WorkerProcess(embedded.bootstrap, tmp_path, **settings, clock_ticks="off").start()
    with SyncPublisher(embedded.bootstrap) as publisher:
        spent = datetime.now(UTC) - timedelta(days=1)
        if end_of(spent) > datetime.now(UTC):  # in the first minute of a day
            spent -= timedelta(days=1)
        publisher.publish(CostIncurred(cost=9.5), time=spent)
        publisher.flush()
    try:
        off.until(lambda: len(rules(embedded)) == 1)
        time.sleep(3)
        assert ticks(on_topics("costs")) == []
    finally:
        off.stop()
    on = WorkerProcess(embedded.bootstrap, tmp_path, **settings).start()
    try:
        on.until(lambda: len(rules(embedded)) == 2)
        assert rules(embedded)[1] == ("alert.resolved.v1", "cost.daily")
        (tick,) = ticks(on_topics("costs"))
        assert tick["data"]["until"] == end_of(spent).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    finally:
        on.stop()
