"""Tables are rebuilt by other settings while workers are killed, come, go, sleep: nothing is lost, doubled or told wrongly, by the new settings."""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams.topics import SOURCE_TOPICS

from ..kafka.deployment import stopped
from ..kafka.truth import PARTITIONS, body, home
from ..workers import WorkerProcess
from .scene import STAMP, Scene

pytestmark = pytest.mark.timeout(500)
PRIOR = '{"": [1, 3]}'
"""Every beta is two more; the same alerts follow, some of them from an earlier observation."""


def eventually(holds: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Wait, whoever of the workers is dead at the moment."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if holds():
                return
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.1)


def build(worker: WorkerProcess) -> dict[str, Any]:
    return worker.get("/status")["rebuild"] or {"state": "none", "folded": 0}


class Upgrade:
    """Workers of former settings, then others."""

    def __init__(self, scene: Scene, monkeypatch: pytest.MonkeyPatch, seed: int, workers: int = 1) -> None:
        self.scene, self.monkeypatch = scene, monkeypatch
        self.first = [scene.worker() for _ in range(workers)]
        scene.publish(9_000, 14, seed=seed)
        time.sleep(6)

    def stop(self, n: int) -> None:
        """Stop a worker of the former settings."""
        self.scene.left.add(self.first[n])
        assert self.first[n].stop() in (0, -15)

    def start(self, *faults: str) -> WorkerProcess:
        """A worker of the other settings, which rebuilds; from now on these are those of every command."""
        self.monkeypatch.setenv("PULSEFOLD_TRUST_PRIOR", PRIOR)
        worker = self.scene.worker(*([",".join(faults)] if faults else []), start=False)
        worker.settings["rebuild"] = "on"
        return worker.start()

    def decided(self) -> bool:
        """Whether it is recorded that the other tables serve."""
        deployed = self.scene.deployed
        records = [value for key, value in deployed.on(deployed.changelog(SOURCE_TOPICS[0]), b"served|")]
        return bool(records) and records[-1]["former"] is not None

    def serves(self, worker: WorkerProcess) -> bool:
        """Whether a worker answers by the other settings."""
        return self.decided() and worker.get("/status")["ready"] and build(worker)["state"] in ("none", "swapped")

    def judge(self, *workers: WorkerProcess) -> None:
        """Wait for the swap, then compare everything with the truth by the other settings."""
        for worker in workers:
            eventually(lambda w=worker: self.serves(w), "the swap")
        for counts in self.scene.made.trust.values():
            counts[1] += 2
        self.scene.judge()


def test_a_worker_is_killed_three_times_while_it_builds_tables_of_other_settings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = Upgrade(scene, monkeypatch, 701)
    upgrade.stop(0)
    worker = upgrade.start("building:0.1")
    scene.watch()
    folded = 0
    for _ in range(3):
        eventually(lambda n=folded: build(worker)["folded"] > n + 500, "progress")
        folded, struck = build(worker)["folded"], time.monotonic()
        assert build(worker)["state"] == "building"
        scene.kill(worker, again=True)
    scene.recovers(struck)
    upgrade.judge(worker)
    assert scene.ended == [-9] * 3


def test_two_workers_are_killed_at_the_decision_at_the_swap_and_while_they_tell_what_stands_differently(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upgrade = Upgrade(scene, monkeypatch, 702, workers=2)
    for n in range(2):
        upgrade.stop(n)
    workers = [upgrade.start(f"gated:{tmp_path / 'built'}", f"dying:{tmp_path}") for _ in range(2)]
    scene.watch()
    eventually(lambda: all(owned(worker) for worker in workers), "the rebalance")
    (tmp_path / "built").touch()
    eventually(lambda: all((tmp_path / name).exists() for name in ("decided", "swapped", "told")), "the third death")
    scene.recovers(time.monotonic())
    upgrade.judge(*workers)
    assert scene.ended == [-9] * 3


def test_two_workers_are_replaced_one_after_the_other_by_those_with_other_settings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = Upgrade(scene, monkeypatch, 703, workers=2)
    scene.watch()
    fresh = []
    for n in range(2):
        upgrade.stop(n)
        fresh.append(upgrade.start("building:0.02"))
        assert n or not upgrade.decided(), "until the last is replaced the former tables serve"
    scene.recovers(time.monotonic())
    upgrade.judge(*fresh)
    assert not scene.ended


def test_partitions_change_hands_again_and_again_while_they_are_built(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = Upgrade(scene, monkeypatch, 704)
    upgrade.stop(0)
    worker = upgrade.start("building:0.8")
    scene.watch()
    guest = upgrade.start("building:0.8")
    for leave in (guest.stop, guest.kill):
        eventually(lambda: any(p["owner"] for p in guest.get("/status")["partitions"]), "the rebalance")
        assert build(worker)["state"] == "building"
        time.sleep(1)
        scene.left.add(guest)
        leave()
        eventually(lambda: all(p["owner"] for p in worker.get("/status")["partitions"]), "the rebalance")
        guest.start()
        scene.left.discard(guest)
    scene.recovers(time.monotonic())
    upgrade.judge(worker, guest)
    assert not scene.ended


def test_a_worker_sleeps_through_the_build_and_the_swap(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    upgrade, gate = Upgrade(scene, monkeypatch, 705), tmp_path / "built"
    upgrade.stop(0)
    sleeper, other = upgrade.start(f"gated:{gate}"), upgrade.start(f"gated:{gate}")
    scene.watch()
    eventually(lambda: any(p["owner"] for p in other.get("/status")["partitions"]), "the rebalance")
    sleeper.signal(signal.SIGSTOP)
    gate.touch()
    eventually(lambda: upgrade.serves(other), "the swap")
    sleeper.signal(signal.SIGCONT)
    scene.recovers(time.monotonic())
    upgrade.judge(sleeper, other)
    assert not scene.ended


def test_a_worker_sleeps_through_the_swap_with_alerts_by_the_former_settings_in_its_hands(scene: Scene, tmp_path: Path) -> None:
    deployed, gates, hands = scene.deployed, [tmp_path / "first", tmp_path / "second"], tmp_path / "hands"
    deployed.settings["trust_low"] = 0.4
    before = scene.worker()
    scene.send(failures(0, 19))
    before.until(lambda: before.get("/status")["counts"]["folded"] == 19 * len(KEYS))
    scene.left.add(before)
    assert before.stop() in (0, -15)
    deployed.settings["trust_low"] = 0.01
    sleeper, other = scene.worker(f"holding:{hands},gated:{gates[0]}", start=False), scene.worker(f"gated:{gates[1]}", start=False)
    for worker in (sleeper, other):
        worker.settings |= {"rebuild": "on", "session_timeout_s": 20}
        worker.start()
    eventually(lambda: len(owned(other)) == len(owned(sleeper)) == PARTITIONS // 2, "the rebalance")
    mine, judgments = owned(sleeper), deployed.source("judgments")
    gates[0].touch()
    eventually(lambda: all(p["folded"] == p["to_fold"] for p in build(other)["partitions"] if p["topic"] == judgments and p["partition"] in mine), "its half")
    held = sum(home(key) in mine for key in KEYS)
    assert held, "the sleeper has nothing in its hands"
    hands.write_text(str(held))
    sleeper.signal(signal.SIGHUP)
    scene.send(failures(19, 20))
    eventually(lambda: stopped(sleeper), "the sleep")
    eventually(lambda: len(scene.told()) == len(KEYS) - held, "what the other one opened")
    gates[1].touch()
    eventually(lambda: build(other)["state"] == "swapped", "the swap", 19)
    eventually(lambda: len(owned(other)) == PARTITIONS and other.absorbed(), "what the sleeper had")
    eventually(lambda: len(scene.told()) == 2 * (len(KEYS) - held), "what it resolved")
    sleeper.signal(signal.SIGCONT)
    scene.watch()
    for key in KEYS:
        for _ in range(20):
            scene.made.observe(key, False, 1.0)
    scene.made.records += failures(0, 20)
    scene.expected = {(f"alert.{kind}.v1", "trust.low", f"model|{key}", "critical") for kind in ("opened", "resolved") for key in KEYS}
    scene.judge(resolve=False)
    last = {message["data"]["subject"]: message["type"] for _, message in deployed.on(deployed.source("alerts")) if message is not None}
    assert set(last.values()) == {"alert.resolved.v1"}, "which compaction would keep"
    assert not scene.ended


KEYS = [f"m{n}" for n in range(24)]


def failures(first: int, last: int) -> list[tuple[str, bytes, bytes]]:
    """Failures of each key, by their numbers."""
    data = {"kind": "model", "success": False}
    return [
        ("judgments", f"default|model|{key}".encode(), body(f"f{n}-{key}", "trust.observed.v1", STAMP, {**data, "id": key}))
        for n in range(first, last)
        for key in KEYS
    ]


def owned(worker: WorkerProcess) -> set[int]:
    """Partitions of the judgments that it owns."""
    return {p["partition"] for p in worker.get("/status")["partitions"] if p["owner"] and p["topic"].endswith("judgments")}
