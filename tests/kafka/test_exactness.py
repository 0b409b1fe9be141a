"""On a real Kafka: exact under kill -9, takeover, rolling restart and a pause beyond the session.

Each case ends with every view equal to a truth computed without the product's code, equal on all workers, equal to a
replay from offset 0, and the cost alerts without a false or missing one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..workers import WorkerProcess, fresh
from .truth import PARTITIONS, load, produce, verify

EVENTS = int(os.environ.get("EVENTS", "300000"))

Chaos = Callable[[list[WorkerProcess], Callable[[], bool], random.Random], None]


def case(kafka: str, tmp_path: Path, n_workers: int, chaos: Chaos, *, events: int, seed: int, seconds: float) -> None:
    """Publish while the chaos runs, then compare."""
    settings = fresh(kafka, PARTITIONS)
    made = load(events, seed)
    workers = [
        WorkerProcess(kafka, tmp_path, **{k: v for k, v in settings.items() if k != "bootstrap"}, session_timeout_s=3, heartbeat_s=1) for _ in range(n_workers)
    ]
    try:
        for worker in workers:
            worker.start()
        publishing = produce(kafka, settings["topic_prefix"], made, seconds)
        chaos(workers, publishing.is_alive, random.Random(seed))
        publishing.join()
        alive = [worker for worker in workers if worker.process is not None and worker.process.poll() is None]
        verify(alive, made, settings)
    finally:
        for worker in workers:
            worker.stop()


@pytest.mark.timeout(400)
def test_six_kills_at_random_moments_change_nothing(kafka: str, tmp_path: Path) -> None:
    def chaos(workers: list[WorkerProcess], publishing: Callable[[], bool], rng: random.Random) -> None:
        for _ in range(6):
            time.sleep(rng.uniform(0.3, 2.5))
            workers[0].kill()
            workers[0].start(wait=rng.random() < 0.7)

    case(kafka, tmp_path, 1, chaos, events=EVENTS, seed=1, seconds=25)


@pytest.mark.timeout(400)
def test_of_two_workers_the_survivor_takes_over(kafka: str, tmp_path: Path) -> None:
    def chaos(workers: list[WorkerProcess], publishing: Callable[[], bool], rng: random.Random) -> None:
        time.sleep(4)
        workers[0].kill()

    case(kafka, tmp_path, 2, chaos, events=EVENTS // 3, seed=2, seconds=12)


@pytest.mark.timeout(400)
def test_a_rolling_restart_changes_nothing(kafka: str, tmp_path: Path) -> None:
    def chaos(workers: list[WorkerProcess], publishing: Callable[[], bool], rng: random.Random) -> None:
        for worker in (*workers, *workers):
            time.sleep(1.5)
            assert worker.stop() in (0, -15)
            worker.start()

    case(kafka, tmp_path, 2, chaos, events=EVENTS // 3, seed=3, seconds=15)


@pytest.mark.timeout(400)
def test_a_worker_paused_beyond_its_session_does_no_harm_when_it_wakes(kafka: str, tmp_path: Path) -> None:
    def chaos(workers: list[WorkerProcess], publishing: Callable[[], bool], rng: random.Random) -> None:
        for worker in workers:
            time.sleep(2)
            worker.signal(signal.SIGSTOP)
            time.sleep(6)
            worker.signal(signal.SIGCONT)

    case(kafka, tmp_path, 2, chaos, events=EVENTS // 3, seed=4, seconds=20)
