"""A worker is killed, or has a bug: nothing is lost, doubled or told wrongly. (More kills and pauses: `tests.kafka.test_exactness`.)"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .scene import Scene

pytestmark = pytest.mark.timeout(400)


def test_one_of_two_workers_is_killed(scene: Scene) -> None:
    killed, _ = scene.workers()
    scene.publish(12_000, 14, seed=301)
    time.sleep(3)
    struck = time.monotonic()
    scene.kill(killed)
    scene.recovers(struck)
    scene.judge()


def test_the_only_worker_is_killed_and_started_again(scene: Scene) -> None:
    (worker,) = scene.workers(1)
    scene.publish(12_000, 14, seed=302)
    time.sleep(3)
    struck = time.monotonic()
    scene.kill(worker, again=True)
    scene.recovers(struck)
    scene.judge()


def test_an_exception_in_a_fold_stops_the_worker_and_the_next_start_folds_the_record_once(scene: Scene, tmp_path: Path) -> None:
    told = tmp_path / "raised"
    worker = scene.worker(f"raising:{told}")
    scene.watch()
    scene.publish(12_000, 10, seed=303)
    deadline = time.monotonic() + 30
    while not told.exists():
        assert time.monotonic() < deadline, "no fold raised"
        time.sleep(0.05)
    scene.recovers(time.monotonic())
    assert scene.ended and 0 not in scene.ended, f"a worker with a bug must not end as if all were well: {scene.ended}"
    assert "a bug in a fold, on purpose" in worker.log.read_text()
    scene.judge()
