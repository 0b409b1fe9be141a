"""A trainer is killed while it publishes: what it was told is safe is there, once. (Transactions that abort: `tests.kafka.test_faults`.)"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.spool import Spool

from ..kafka.deployment import until
from ..workers import ROOT
from .scene import Scene
from .trainer import observation
from .trio import Trio

pytestmark = pytest.mark.timeout(300)
EVENTS = 20_000


def trainer(scene: Scene, bootstrap: str, spool: Path | None, handed: Path, first: int, last: int, pause_ms: float = 5) -> subprocess.Popen[bytes]:
    """The trainer's process."""
    words = (bootstrap, scene.deployed.source(""), str(spool or "-"), str(handed), str(first), str(last), str(pause_ms))
    return subprocess.Popen([sys.executable, "-m", "tests.faults.trainer", *words], cwd=ROOT, stdin=subprocess.DEVNULL)


def numbers(handed: Path) -> list[int]:
    """What the file says, without a line that the kill has cut off."""
    return [int(line) for line in handed.read_text().rpartition("\n")[0].splitlines()] if handed.exists() else []


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9."""
    process.kill()
    process.wait(10)


def expect(scene: Scene, sure: set[int]) -> None:
    """Make what is on the log the truth: every event that is sure is there, and repetitions count as duplicates."""
    scene.expected = set()
    found = [json.loads(json.dumps(body))["id"] for _, body in scene.deployed.on(scene.deployed.source("judgments"))]
    there = [int(id[1:]) for id in found if id.startswith("p") and id[1:].isdigit()]
    missing = sure - set(there)
    assert not missing, f"{len(missing)} events that were safe are not on the log, such as {sorted(missing)[:5]}"
    for n in set(there):
        scene.made.observe(*observation(n), 1.0)
    scene.made.duplicates += len(there) - len(set(there))
    scene.made.records += [("judgments", b"", b"")] * len(there)


def test_a_trainer_is_killed_in_the_middle_of_a_batch_and_says_everything_again(scene: Scene, trio: Trio, tmp_path: Path) -> None:
    scene.workers()
    acked = tmp_path / "acked"
    first = trainer(scene, trio.bootstrap, None, acked, 0, EVENTS)
    until(lambda: len(numbers(acked)) > EVENTS // 4, 60, "acknowledgements")
    kill(first)
    sure = set(numbers(acked))
    assert len(sure) < EVENTS - 100, "it was killed too late"
    assert trainer(scene, trio.bootstrap, None, acked, 0, EVENTS, 1).wait(120) == 0  # with the same ids
    said = time.monotonic()
    expect(scene, sure | set(range(EVENTS)))
    assert scene.made.duplicates >= len(sure)
    scene.recovers(said)
    scene.judge(resolve=False)


def test_a_trainer_is_killed_twice_while_it_resends_its_spool(scene: Scene, trio: Trio, tmp_path: Path) -> None:
    scene.workers()
    spool, handed = tmp_path / "spool", tmp_path / "handed"
    trio.network.cut()
    first = trainer(scene, trio.network.bootstrap, spool, handed, 0, EVENTS, 0)
    until(lambda: len(numbers(handed)) > EVENTS // 2, 90, "spooled events")
    kill(first)
    handed_over = set(numbers(handed))
    trio.network.heal()
    trio.network.slow(0.05)
    left = waiting(spool)
    assert left >= len(handed_over)
    for _ in range(2):
        again = trainer(scene, trio.network.bootstrap, spool, tmp_path / "none", 0, 0)
        enough = on_log(scene) + 500
        until(lambda more=enough: on_log(scene) > more, 60, "resent events")
        kill(again)
    assert 0 < waiting(spool) < left, "it was not killed in the middle"
    trio.network.heal()
    assert trainer(scene, trio.network.bootstrap, spool, tmp_path / "none", 0, 0).wait(120) == 0
    sent = time.monotonic()
    assert waiting(spool) == 0
    expect(scene, handed_over)
    scene.recovers(sent)
    scene.judge(resolve=False)


def waiting(spool: Path) -> int:
    """Events in the spool of a dead process."""
    opened = Spool(spool)
    try:
        return len(opened)
    finally:
        opened.close()


def on_log(scene: Scene) -> int:
    """Records of the judgments."""
    return sum(scene.deployed.ends(scene.deployed.source("judgments")).values())
