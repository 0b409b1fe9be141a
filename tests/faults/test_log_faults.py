"""Compaction among stale rows with nobody there, and a log whose head goes before it was folded.

(A zombie among a busy cleaner: `tests.kafka.test_faults`; a source topic deleted and made again: `tests.kafka.test_topics`.)
"""

from __future__ import annotations

import signal
import time

import pytest
from confluent_kafka import TopicPartition

from streams.topics import MIN_LAG_MS

from ..kafka.deployment import stopped, until
from ..kafka.truth import PARTITIONS, body, home
from .scene import STAMP, Scene
from .trio import Trio

pytestmark = pytest.mark.timeout(400)


def test_a_zombies_rows_are_the_last_and_the_cleaner_is_busy_while_no_worker_runs(scene: Scene, trio: Trio) -> None:
    changelog = scene.deployed.changelog("judgments")
    hard = {"segment_bytes": str(1 << 20), "segment_ms": "200", "min_cleanable_dirty_ratio": "0.01", "delete_retention_ms": "100"}
    scene.deployed.alter(changelog, min_compaction_lag_ms=str(MIN_LAG_MS), **hard)
    zombie, other = scene.worker("freeze:judgments"), scene.worker()
    scene.publish(20_000, 12, seed=401)
    time.sleep(3)
    zombie.signal(signal.SIGHUP)
    until(lambda: stopped(zombie), 15, "the freeze")
    other.until(lambda: all(p["owner"] and p["ready"] for p in other.get("/status")["partitions"]), 30)
    assert scene.publishing is not None
    scene.publishing.join()
    assert scene.settled([other], 90)
    scene.kill(other)
    before = sum(scene.deployed.ends(changelog).values())
    zombie.signal(signal.SIGCONT)
    until(lambda: sum(scene.deployed.ends(changelog).values()) > before, 20, "the zombie's rows")
    scene.kill(zombie)
    kept = scene.deployed.size(changelog)
    time.sleep(15)
    assert scene.deployed.size(changelog) == kept, "something younger than the lag was compacted"
    begun = time.monotonic()
    survivor = scene.worker()
    scene.watch()
    scene.recovers(begun)
    assert sum(p["repaired_rows"] for p in survivor.get("/status")["partitions"]) > 0, "there was nothing to repair"
    assert scene.settled([survivor], 60)
    scene.deployed.alter(changelog, min_compaction_lag_ms="0")  # as if the hour had passed
    until(lambda: scene.deployed.size(changelog) < kept / 2, 90, "the compaction")
    scene.deployed.alter(changelog, min_compaction_lag_ms=str(MIN_LAG_MS))
    scene.worker()
    scene.judge()


def observations(first: int, last: int) -> list[tuple[str, bytes, bytes]]:
    """Successes of keys k0 to k99, in turn."""
    made = []
    for n in range(first, last):
        data = {"kind": "model", "id": f"k{n % 100}", "success": True}
        made.append(("judgments", f"default|model|k{n % 100}".encode(), body(f"r{n}", "trust.observed.v1", STAMP, data)))
    return made


def shorten(scene: Scene, back: dict[int, int]) -> None:
    """Remove the heads of the partitions, as retention would: all but so many of the newest records."""
    topic = scene.deployed.source("judgments")
    ends = scene.deployed.ends(topic)
    places = [TopicPartition(topic, n, ends[(topic, n)] - keep) for n, keep in back.items()]
    for future in scene.deployed.admin.delete_records(places).values():
        future.result(20)


def expect_kept(scene: Scene, folded: int, written: int, last: int) -> None:
    """Truth: numbers below `folded`, and of those from `written` on, which are 100 a round, the last `last` of each key."""
    scene.expected = set()
    for n in [*range(folded), *range(written - 100 * last, written)]:
        scene.made.observe(f"k{n % 100}", True, 1.0)
    scene.made.records += [("judgments", b"", b"")] * (folded + 100 * last)


def keys_of(partition: int) -> int:
    """How many of the hundred keys live there."""
    return sum(home(f"k{n}") == partition for n in range(100))


def test_retention_passes_the_committed_offset_while_no_worker_runs(scene: Scene) -> None:
    first = scene.worker()
    scene.send(observations(0, 2000))
    first.until(lambda: first.get("/status")["counts"]["folded"] == 2000)
    scene.left.add(first)
    assert first.stop() in (0, -15)
    scene.send(observations(2000, 6000))
    shorten(scene, {n: 10 * keys_of(n) for n in range(PARTITIONS)})
    begun = time.monotonic()
    again = scene.worker()
    scene.watch()
    expect_kept(scene, 2000, 6000, 10)
    scene.recovers(begun)
    assert "no longer" in again.log.read_text(), "records were never folded and nobody was told"
    shown_right(scene)


def test_retention_passes_a_worker_that_is_paused(scene: Scene) -> None:
    worker = scene.worker()
    scene.watch()
    scene.send(observations(0, 2000))
    worker.until(lambda: worker.get("/status")["counts"]["folded"] == 2000)
    worker.signal(signal.SIGSTOP)
    time.sleep(5)  # beyond its session: it has to join again, and nothing that was on its way to it counts
    scene.send(observations(2000, 6000))
    shorten(scene, {n: 10 * keys_of(n) for n in range(PARTITIONS)})
    time.sleep(1)
    worker.signal(signal.SIGCONT)
    expect_kept(scene, 2000, 6000, 10)
    scene.recovers(time.monotonic())
    assert "no longer" in worker.log.read_text(), "records were never folded and nobody was told"
    shown_right(scene)


def test_retention_passes_an_owner_that_is_cut_off_within_its_session(scene: Scene, trio: Trio) -> None:
    worker = scene.worker(through=True, start=False)
    worker.settings["session_timeout_s"] = 40  # it keeps its partitions, and finds its log without a head
    worker.start()
    scene.watch()
    scene.send(observations(0, 2000))
    worker.until(lambda: worker.get("/status")["counts"]["folded"] == 2000)
    trio.network.cut()
    time.sleep(1)
    scene.send(observations(2000, 6000))
    shorten(scene, {n: 10 * keys_of(n) for n in range(PARTITIONS)})
    trio.network.heal()
    expect_kept(scene, 2000, 6000, 10)
    scene.recovers(time.monotonic())
    assert "no longer" in worker.log.read_text(), "records were never folded and nobody was told"
    assert not scene.ended, "the worker needed its supervisor"
    shown_right(scene)


def shown_right(scene: Scene) -> None:
    """As `Scene.judge`, without the replay, whose log has lost its head."""
    living = [worker for worker in scene.deployed.workers if worker not in scene.left]
    scene.settled(living, 60)
    for worker in living:
        scene._figures(worker)
    scene._alerts(living)
    scene.tell()
    assert scene.outcome.right, scene.outcome
