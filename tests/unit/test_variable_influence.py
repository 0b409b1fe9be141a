"""Influence of values against numpy and scipy, over several partitions, late events and awkward numbers."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables.influence import OUTCOMES, influence
from tables.moments import Pairs
from tables.variable_states import Partial, Sums, VariableSettings
from tables.variables import Variables
from tests.forecast_events import NAMES, Event, forecast, registration, stream
from tests.harness import VECTORS, Log, subset

NULLS = {"r": None, "r_interval": None, "slope": None, "intercept": None, "p": None}


def oracle(events: list[Event], name: str) -> dict[str, Any]:
    data = [e["data"] for e in events if e["type"] == "forecast.issued.v1" and name in e["data"]["inputs"]]
    found: dict[str, Any] = {}
    for outcome in OUTCOMES:
        field = "alignment_score" if outcome == "alignment" else outcome
        mine = [(d["inputs"][name], float(d[field])) for d in data if d.get(field) is not None]
        found[outcome] = {"n": len(mine), **NULLS}
        if len(mine) >= 4:
            x, y = np.array(mine).T
            line, r = stats.linregress(x, y), stats.pearsonr(x, y)
            interval = list(r.confidence_interval(0.95))
            found[outcome] |= {"r": line.rvalue, "r_interval": interval, "slope": line.slope, "intercept": line.intercept, "p": r.pvalue}
    return found


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_influence_in_a_random_stream_equals_scipy_with_late_events_and_duplicates(seed: int, partitions: int) -> None:
    log = Log([Variables()], partitions)
    events = stream(seed, 400, models=9)
    for done in range(0, 400, 100):
        log.send(events[done : done + 100])
        log.send(events[done : done + 20])
        for name in NAMES:
            answer = log.get(f"/variables/{name}/influence")
            assert subset(oracle(events[: done + 100], name), answer, rel=1e-9) == [], name
    assert "not cause" in answer["note"]
    assert min(answer[outcome]["n"] for outcome in OUTCOMES) > 40


def test_values_near_a_billion_keep_nine_digits_and_so_do_hardly_varying_outcomes() -> None:
    rng = random.Random(4)
    events = [
        forecast(
            i,
            {"x": 1e9 + (u := rng.random())},
            i * 400_000_000,
            confidence=0.7 + 1e-6 * (u + rng.random()),
            fragility=0.3,
            certified=u < 0.6,
            model=f"m{i % 7}",
        )
        for i in range(500)
    ]
    log = Log([Variables()], 4)
    log.send(events)
    answer = log.get("/variables/x/influence")
    x, y = (np.array([pick(e["data"]) for e in events]) for pick in (lambda d: d["inputs"]["x"] - 1e9, lambda d: d["confidence"] - 0.7))
    line = stats.linregress(x, y)
    assert answer["confidence"]["r"] == pytest.approx(line.rvalue, rel=1e-9)
    assert answer["confidence"]["slope"] == pytest.approx(line.slope, rel=1e-9)
    assert answer["fragility"] == {"n": 500, **NULLS}
    assert answer["certified"]["r"] == pytest.approx(np.corrcoef(x, [e["data"]["certified"] for e in events])[0, 1], rel=1e-9)


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_constant_value_or_outcome_has_no_influence_however_it_is_split(partitions: int) -> None:
    rng = random.Random(1)
    log = Log([Variables()], partitions)
    log.send(
        forecast(
            i,
            {"flat": 0.1, "moves": rng.random()},
            rng.randrange(400) * 1_800_000_000,
            confidence=rng.random(),
            fragility=0.7,
            certified=True,
            model=f"m{i % 20}",
        )
        for i in range(300)
    )
    flat, moves = (log.get(f"/variables/{name}/influence") for name in ("flat", "moves"))
    assert [flat[outcome] for outcome in ("confidence", "fragility", "certified")] == [{"n": 300, **NULLS}] * 3
    assert moves["confidence"]["r"] is not None
    assert (moves["fragility"], moves["certified"], moves["alignment"]) == ({"n": 300, **NULLS}, {"n": 300, **NULLS}, {"n": 0, **NULLS})


def test_fewer_than_three_pairs_tell_nothing_three_have_no_interval_and_a_line_is_certain() -> None:
    assert influence(Pairs.of([1.0, 2.0], [0.1, 0.4])) == {"n": 2, **NULLS}
    three = influence(Pairs.of([1.0, 2.0, 4.0], [0.1, 0.4, 0.5]))
    assert (three["r_interval"], three["p"]) == (None, pytest.approx(stats.pearsonr([1, 2, 4], [0.1, 0.4, 0.5]).pvalue))
    line = influence(Pairs.of([0.0, 1.0, 2.0, 3.0], [0.0, 0.25, 0.5, 0.75]))
    assert line == {"n": 4, "r": 1.0, "r_interval": [1.0, 1.0], "slope": 0.25, "intercept": 0.0, "p": 0.0}


def test_values_too_large_for_a_double_give_nulls_and_break_neither_row_nor_answer() -> None:
    log = Log([Variables()], 2)
    log.send(forecast(i, {"x": (-1) ** i * 1.7e308, "y": float(i)}, confidence=i % 3 / 3, alignment_score=i % 4 / 4, model=f"m{i % 3}") for i in range(60))
    log.send(forecast(100 + i, {"x": 1.0 * i}, confidence=i % 3 / 3, model=f"m{i % 3}") for i in range(60))
    answer = log.get("/variables/x/influence")
    assert [{**answer[outcome], "n": 0} for outcome in OUTCOMES] == [{"n": 0, **NULLS}] * 4
    assert log.get("/variables/y/influence")["confidence"]["r"] is not None
    msgspec.json.encode(log.get("/variables/x"))
    assert log.get("/variables/x")["value"]["std"] is None


def test_nobody_saw_it_is_404_and_registered_only_is_all_null() -> None:
    log = Log([Variables(VariableSettings())])
    assert log.get("/variables/x/influence")["status"] == 404
    log.send([registration(1, "x")])
    assert log.get("/variables/x/influence")["confidence"] == {"n": 0, **NULLS}


def test_the_golden_vector_is_the_same_in_one_partition_and_by_late_delivery() -> None:
    vector = VECTORS["V3"]
    log = Log([Variables()])
    later = [{**e, "id": f"late-{e['id']}", "time": f"2026-03-{2 + i % 3:02}T00:00:00Z"} for i, e in enumerate(reversed(vector["events"]))]
    log.send(later)
    for check in vector["checks"]:
        assert subset(check["expect"], log.get(check["path"]), rel=1e-9) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.none() | st.floats(0, 1)), max_size=30), st.integers(0, 30))
def test_sums_of_two_parts_merge_to_those_of_the_whole(rows: list[tuple[float, float, float, bool, float | None]], cut: int) -> None:
    together, left, right = Sums(), Sums(), Sums()
    partial = Partial()
    for i, row in enumerate(rows):
        together.add(*row)
        partial.add(*row)
        (left if i < cut else right).add(*row)
    assert partial.newest() == together
    left.merge(right)
    for outcome in OUTCOMES:
        a, b = left.pairs(outcome), together.pairs(outcome)
        assert a.n == b.n
        scale = 1e-9 * (1.0 + max((abs(row[0]) for row in rows), default=0.0) ** 2) * (1 + len(rows))
        assert (a.mean_x, a.m2_x, a.mean_y, a.m2_y, a.cxy) == pytest.approx((b.mean_x, b.m2_x, b.mean_y, b.m2_y, b.cxy), rel=1e-9, abs=scale)


def test_small_values_with_an_alignment_score_keep_their_digits_beside_a_huge_one_without() -> None:
    log = Log([Variables()])
    pairs = [(0.1 + n / 7, (n * 3 % 10) / 10) for n in range(9)]
    log.send([forecast(99, {"a": 1e9 + 0.3})])
    log.send(forecast(n, {"a": x}, alignment_score=y) for n, (x, y) in enumerate(pairs))
    line = stats.linregress(*zip(*pairs, strict=True))
    found = log.get("/variables/a/influence")["alignment"]
    assert (found["r"], found["slope"], found["intercept"]) == pytest.approx((line.rvalue, line.slope, line.intercept), rel=1e-12)
