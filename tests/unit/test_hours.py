"""Hours that are over, against a plain list of all forecasts."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from tables.hours import ENTRY, KEPT_HOURS, Hours, Side


def side_of(rows: list[tuple[int, float, float, bool]]) -> dict[str, Any]:
    c, f = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    return {
        "n": len(rows),
        "certified": sum(row[3] for row in rows),
        "confidence": float(c.mean()) if rows else 0.0,
        "confidence_m2": float(((c - c.mean()) ** 2).sum()) if rows else 0.0,
        "fragility": float(f.mean()) if rows else 0.0,
        "fragility_m2": float(((f - f.mean()) ** 2).sum()) if rows else 0.0,
    }


def fed(rows: list[tuple[int, float, float, bool]]) -> tuple[Hours, int, Side]:
    """Closed hours, the open hour and its forecasts, as the fold keeps them."""
    hours, newest, side = Hours(), rows[0][0], Side()
    for hour, *outcome in rows:
        if hour > newest:
            hours.close(newest, side, hour)
            newest, side = hour, Side()
        if hour == newest:
            side.add(*outcome)
        else:
            hours.late(hour, newest, *outcome)
    return hours, newest, side


@pytest.mark.parametrize("seed", range(12))
def test_both_sides_of_any_window_are_those_of_all_forecasts(seed: int) -> None:
    rng = random.Random(seed)
    rows, hour = [], rng.choice([0, 492_000, -70_000])
    for _ in range(400):
        hour += rng.choice([0, 0, 0, 1, 1, 2, rng.choice([1, 60])])
        at = hour - rng.choice([0, 0, 1, 3, 40, 47, 48, 49, 300])
        rows.append((at, rng.random(), rng.choice([0.25, rng.random()]), rng.random() < 0.7))
    hours, newest, side = fed(rows)
    assert newest == max(row[0] for row in rows)
    assert len(hours.ring) <= KEPT_HOURS * ENTRY.size
    for start in range(newest - KEPT_HOURS + 1, newest + 2):
        for end in (newest, newest - 1):
            before, recent = hours.split(start, end)
            if newest < start:
                before.merge(side)
            elif newest <= end:
                recent.merge(side)
            assert msgspec.structs.asdict(before) == pytest.approx(side_of([r for r in rows if r[0] < start]), rel=1e-9, abs=1e-12)
            assert msgspec.structs.asdict(recent) == pytest.approx(side_of([r for r in rows if start <= r[0] <= end]), rel=1e-9, abs=1e-12)


def test_constant_outcomes_have_no_spread_at_all_however_they_are_split() -> None:
    rng = random.Random(1)
    hours, newest, side = fed([(100 + i // 9 - rng.choice([0, 0, 30, 70]), 0.1, 0.7, True) for i in range(1000)])
    before, recent = hours.split(newest - 23, newest)
    recent.merge(side)
    for one in (before, recent):
        assert one.n > 50 and (one.confidence, one.confidence_m2, one.fragility, one.fragility_m2) == (0.1, 0.0, 0.7, 0.0)


def test_late_forecasts_over_a_long_gap_keep_the_ring_small_and_are_counted() -> None:
    hours = Hours()
    hours.close(5, Side(1, 1, 0.5, 0.0, 0.5, 0.0), 1000)
    for hour in range(0, 1000):
        hours.late(hour, 1000, 0.5, 0.5, False)
    assert len(hours.ring) == (KEPT_HOURS - 1) * ENTRY.size
    before, recent = hours.split(977, 1000)
    assert (before.n, before.certified, recent.n) == (978, 1, 23)
    assert hours.split(977, 980)[1].n == 4


def test_a_variable_seen_in_a_few_hours_takes_few_bytes() -> None:
    hours, _, _ = fed([(hour, 0.5, 0.5, True) for hour in range(3)])
    assert len(msgspec.msgpack.encode(hours)) < 160
    assert len(msgspec.msgpack.encode(fed([(hour, 0.5, 0.5, True) for hour in range(500)])[0])) < 2300
