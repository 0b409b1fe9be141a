"""Brokers are killed, paused, left without disk: nothing is lost, doubled or told wrongly."""

from __future__ import annotations

import signal
import time

import pytest

from ..kafka.deployment import coordinator, leaders, until
from .scene import Scene
from .trio import SMALL_DISK, Trio

pytestmark = pytest.mark.timeout(400)


def leader_alone(scene: Scene) -> int:
    """A node that leads partitions and does not coordinate the group."""
    return min(leaders(scene.deployed) - {coordinator(scene.deployed)}) - 1


def test_the_leader_of_partitions_is_killed(scene: Scene, trio: Trio) -> None:
    scene.workers()
    scene.publish(12_000, 14, seed=101)
    time.sleep(3)
    node = leader_alone(scene)
    struck = time.monotonic()
    trio.kill(node)
    scene.recovers(struck)
    trio.start(node)
    scene.judge()


def test_the_coordinator_of_the_group_is_killed(scene: Scene, trio: Trio) -> None:
    scene.workers()
    scene.publish(12_000, 14, seed=102)
    time.sleep(3)
    node = coordinator(scene.deployed) - 1
    struck = time.monotonic()
    trio.kill(node)
    scene.recovers(struck)
    trio.start(node)
    scene.judge()


def test_two_brokers_at_once_are_killed_and_come_back_after_ten_seconds(scene: Scene, trio: Trio) -> None:
    scene.workers()
    scene.publish(12_000, 14, seed=103)
    time.sleep(3)
    pair = sorted({coordinator(scene.deployed) - 1, leader_alone(scene)})
    for node in pair:
        trio.kill(node)
    time.sleep(10)
    for node in pair:
        trio.start(node, wait=False)
    scene.recovers(time.monotonic())
    scene.judge()


def test_a_broker_is_paused_beyond_its_session_and_goes_on(scene: Scene, trio: Trio) -> None:
    scene.workers()
    scene.publish(12_000, 20, seed=104)
    time.sleep(3)
    node = coordinator(scene.deployed) - 1
    trio.signal(node, signal.SIGSTOP)
    time.sleep(12)
    trio.signal(node, signal.SIGCONT)
    scene.recovers(time.monotonic())
    scene.judge()


def test_a_broker_has_no_disk_left_and_gets_it_back(scene: Scene, trio: Trio) -> None:
    if trio.disk is None:
        pytest.skip("only root may mount a small disk")
    scene.workers()
    scene.publish(20_000, 24, seed=105)
    time.sleep(3)
    assert SMALL_DISK + 1 in leaders(scene.deployed)
    struck = time.monotonic()
    trio.fill_disk()
    until(lambda: SMALL_DISK in trio.dead() or SMALL_DISK + 1 not in leaders(scene.deployed), 60, "the end of a broker without disk")
    scene.recovers(struck)
    time.sleep(3)
    trio.free_disk()
    if SMALL_DISK not in trio.dead():
        trio.kill(SMALL_DISK)  # it has given up its only disk: what its supervisor would do
    trio.start(SMALL_DISK)
    scene.judge()
