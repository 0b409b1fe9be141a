"""Ten minutes with a random fault every five seconds; FAULT_SOAK_S and FAULT_SEED choose others."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from .scene import Scene
from .trio import Trio

SECONDS = float(os.environ.get("FAULT_SOAK_S", "600"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
EVERY_S = 5.0
RATE = 300
"""Events a second."""


@pytest.mark.timeout(SECONDS + 900)
def test_a_soak_with_a_random_fault_every_five_seconds(scene: Scene, trio: Trio) -> None:
    workers = scene.workers(3, through=(0, 1))
    scene.publish(int(SECONDS * RATE), SECONDS, SEED)
    rng, ends_at, done = random.Random(SEED), time.monotonic() + SECONDS, []
    while time.monotonic() < ends_at:
        begun = time.monotonic()
        node, worker, lasts = rng.randrange(3), rng.choice(workers), rng.uniform(0.5, 4.5)
        fault = rng.choice(("worker killed", "worker paused", "broker killed", "broker paused", "cut", "held", "slow"))
        running = worker.process is not None and worker.process.poll() is None
        done.append(f"{fault} {lasts:.1f}")
        if fault == "worker killed":
            if running:
                scene.kill(worker, again=True)
        elif fault == "worker paused":
            if running:
                worker.signal(signal.SIGSTOP)
                time.sleep(lasts)
                if worker.process is not None and worker.process.poll() is None:
                    worker.signal(signal.SIGCONT)
        elif fault == "broker killed":
            if not trio.dead():
                trio.kill(node)
                time.sleep(lasts)
                trio.start(node, wait=False)
        elif fault == "broker paused":
            if not trio.dead():
                trio.signal(node, signal.SIGSTOP)
                time.sleep(lasts)
                trio.signal(node, signal.SIGCONT)
        else:
            {"cut": trio.network.cut, "held": trio.network.hold, "slow": lambda: trio.network.slow(0.2)}[fault]()
            time.sleep(lasts)
            trio.network.heal()
        time.sleep(max(0.0, begun + EVERY_S - time.monotonic()))
    trio.heal()
    scene.record("faults", done)
    scene.recovers(time.monotonic(), timeout_s=180)
    scene.judge(timeout_s=300)
