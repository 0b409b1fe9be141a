"""The scheduled decay acts once a tick, with two workers, with a restart, and with a command that comes again much later."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.broker import EmbeddedBroker
from streams.keys import derived_id
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess

EVERY_S = 2
SCHEDULE = {"PULSEFOLD_TRUST_SCHEDULED_DECAY": json.dumps({"every_s": EVERY_S, "factor": 0.5, "min_count": 0})}
OBSERVED = 2.0**40  # halved once a tick: how often is written in the number
NAMES = [f"m{n}" for n in range(12)]


def commands(messages: list[Any]) -> list[dict[str, Any]]:
    """Scheduled commands on the log, without the copies."""
    found = [json.loads(message.value()) for message in messages]
    return [event for event in found if event["type"] == "trust.decayed.v1" and "derivedfrom" not in event]


def ticks(messages: list[Any]) -> int:
    """Of how many ticks there are commands; those of one tick have one id."""
    found = commands(messages)
    times = {event["time"] for event in found}
    assert len({event["id"] for event in found}) == len(times)
    return len(times)


def observe(broker: EmbeddedBroker) -> None:
    with SyncPublisher(broker.bootstrap) as publisher:
        for name in NAMES:
            publisher.observe("model", name, True, OBSERVED)
        assert publisher.flush(30) == 0


def halvings(worker: WorkerProcess) -> set[tuple[int, int]]:
    """(decays, halvings that alpha shows) of all keys: one pair if every key was decayed alike."""
    shown = worker.get("/trust", kind="model", ids=",".join(NAMES))
    found = set()
    for name in NAMES:
        alpha, n = shown[name]["alpha"], shown[name]["decays"]
        found.add((n, next(k for k in itertools.count() if (OBSERVED + 1) / 2**k <= alpha)))
    return found


def owns_the_first(worker: WorkerProcess) -> bool:
    """Whether it owns partition 0 of judgments."""
    return any((p["topic"], p["partition"], p["owner"]) == ("pulsefold.judgments", 0, True) for p in worker.get("/status")["partitions"])


@pytest.mark.timeout(180)
def test_two_workers_and_a_killed_one_give_one_decay_a_tick(embedded: EmbeddedBroker, tmp_path: Path, on_topics: Callable[..., list[Any]]) -> None:
    workers = [WorkerProcess(embedded.bootstrap, tmp_path, environment=SCHEDULE, partitions=4).start() for _ in range(2)]
    try:
        observe(embedded)
        for worker in workers:
            worker.until(lambda: len(commands(on_topics("judgments"))) >= 2)
        owners: list[WorkerProcess] = []
        workers[0].until(lambda: owners.extend(filter(owns_the_first, workers)) or owners)
        owner = owners[0]
        other = next(w for w in workers if w is not owner)
        owner.kill()
        n = len(commands(on_topics("judgments")))
        other.until(lambda: len(commands(on_topics("judgments"))) >= n + 2)
        owner.start()
        n = len(commands(on_topics("judgments")))
        other.until(lambda: len(commands(on_topics("judgments"))) >= n + 2)
        for worker in workers:

            def agrees(worker: WorkerProcess = worker) -> bool:
                least = ticks(on_topics("judgments"))
                shown = halvings(worker) if worker.absorbed() else set()
                most = ticks(on_topics("judgments"))  # the next tick may be between the two
                return len(shown) == 1 and any((n, n) in shown for n in range(least, most + 1))

            worker.until(agrees)
    finally:
        for worker in workers:
            worker.stop()


@pytest.mark.timeout(300)
def test_a_restarted_worker_publishes_the_tick_it_missed_and_no_tick_a_second_time(
    embedded: EmbeddedBroker, tmp_path: Path, on_topics: Callable[..., list[Any]]
) -> None:
    left = 3600 - time.time() % 3600
    if left < 150:
        time.sleep(left + 1)  # not across the hour
    hourly = {"PULSEFOLD_TRUST_SCHEDULED_DECAY": json.dumps({"every_s": 3600, "factor": 0.5, "min_count": 0})}
    worker = WorkerProcess(embedded.bootstrap, tmp_path, environment=hourly, partitions=4).start()
    try:
        observe(embedded)
        worker.until(lambda: worker.absorbed(len(NAMES)))
        number = int(time.time() // 3600)
        assert commands(on_topics("judgments")) == []  # a schedule begins with the next tick
        publish_tick(embedded, number - 3, "")
        worker.until(lambda: halvings(worker) == {(1, 1)})
        worker.kill()
        worker.start()
        worker.until(lambda: halvings(worker) == {(2, 2)})
        assert [event["time"] for event in commands(on_topics("judgments"))][1:] == [time_of(number)]
        for again in ("", "x"):  # its twin, and one whose id the dedupe window has forgotten
            publish_tick(embedded, number, again)
        before = len(on_topics("judgments"))
        worker.stop()
        worker.start()
        worker.until(lambda: worker.absorbed(before))
        time.sleep(2.5)  # longer than the worker's pause between two looks
        assert halvings(worker) == {(2, 2)}
        assert len(on_topics("judgments")) == before
    finally:
        worker.stop()


def time_of(number: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(number * 3600))


def publish_tick(broker: EmbeddedBroker, number: int, suffix: str) -> None:
    """The command of an hourly tick, as a worker publishes it."""
    event = {
        "specversion": "1.0",
        "id": derived_id("judgments", "default", f"decay-{number}", "trust.decayed.v1", "all") + suffix,
        "source": "pulsefold/pulsefold",
        "type": "trust.decayed.v1",
        "time": time_of(number),
        "tenant": "default",
        "data": {"factor": 0.5, "min_count": 0},
    }
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce("pulsefold.judgments", json.dumps(event).encode(), b"default", 0)
    assert producer.flush(10) == 0
