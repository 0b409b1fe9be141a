"""The network between workers and brokers is slow, is cut, or stands still: nothing is lost, doubled or told wrongly."""

from __future__ import annotations

import time

import pytest

from ..kafka.deployment import coordinator
from .scene import Scene
from .trio import Trio

pytestmark = pytest.mark.timeout(400)


def test_a_broker_is_slow(scene: Scene, trio: Trio) -> None:
    scene.workers(through=(0, 1))
    scene.publish(12_000, 16, seed=201)
    time.sleep(2)
    trio.network.slow(0.3, coordinator(scene.deployed) - 1)
    scene.recovers(time.monotonic())
    time.sleep(10)
    trio.network.heal()
    scene.judge()


def test_one_of_two_workers_is_cut_off_from_every_broker_and_comes_back(scene: Scene, trio: Trio) -> None:
    _, other = scene.workers(through=(0,))
    scene.publish(12_000, 18, seed=202)
    time.sleep(3)
    struck = time.monotonic()
    trio.network.cut()
    scene.recovers(struck, [other])
    time.sleep(3)
    trio.network.heal()
    scene.judge()


def test_what_one_of_two_workers_sends_stands_still_until_the_other_has_taken_over(scene: Scene, trio: Trio) -> None:
    _, other = scene.workers(through=(0,))
    scene.publish(20_000, 18, seed=203)
    time.sleep(3)
    struck = time.monotonic()
    trio.network.hold()
    scene.recovers(struck, [other])
    time.sleep(2)
    trio.network.heal()
    scene.judge()


def test_all_workers_are_cut_off_from_every_broker_for_ten_seconds(scene: Scene, trio: Trio) -> None:
    workers = scene.workers(through=(0, 1))
    scene.publish(12_000, 18, seed=204)
    time.sleep(3)
    trio.network.cut()
    time.sleep(10)
    for worker in workers:
        assert worker.get("/trust", kind="model", limit=1), "a worker without brokers does not answer"
    trio.network.heal()
    scene.recovers(time.monotonic())
    scene.judge()
