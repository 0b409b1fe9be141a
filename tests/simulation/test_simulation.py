"""The core under thousands of seeded schedules of crashes, pauses, rebalances, lost acks and compaction."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from ..workers import ROOT
from .mutants import BelievesOwnRows, Planted, planted
from .schedules import first_failure, world_of
from .shrink import shrunk

SEEDS = int(os.environ.get("SEEDS", "10000"))
CHUNK = 500


@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_every_schedule_ends_with_the_rows_and_outputs_of_the_pure_fold(start: int) -> None:
    found = first_failure(range(start, min(SEEDS, start + CHUNK)))
    if found is not None:
        seed, broken = found
        pytest.fail(f"seed {seed}: {type(broken).__name__}: {broken}\nshrunk: {' '.join(shrunk(lambda skipped: world_of(seed, skipped=skipped)).begun)}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", planted(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_found_within_a_thousand_schedules(planted: Planted, record_property: Callable[[str, object], None]) -> None:
    found = first_failure(planted.seeds, **planted.where)
    assert found is not None, f"{planted.name} went unnoticed"
    record_property("schedules", planted.seeds.index(found[0]) + 1)


def test_of_a_schedule_that_fails_little_is_left() -> None:
    found = first_failure(range(1000), BelievesOwnRows)
    assert found is not None
    whole = world_of(found[0], BelievesOwnRows)
    with pytest.raises(AssertionError):
        whole.run()
    world = shrunk(lambda skipped: world_of(found[0], BelievesOwnRows, skipped=skipped))
    assert {"produce", "deliver", "take"} <= set(world.begun) and len(world.begun) < len(whole.begun) / 5, world.begun


def test_a_seed_always_gives_the_same_schedule() -> None:
    code = "from tests.simulation import mutants, test_simulation as t; print(t.first_failure(range(60), mutants.BelievesOwnRows))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=100
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1 and "None" not in told
