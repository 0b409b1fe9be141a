"""Tails and tests against scipy; predictions and their score against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tables.agent_alerts import LUCK
from tables.moments import Moments
from tables.prediction import Evidence, Score, backed_off, predict
from tables.tails import binomial_tail, welch_fall


@given(n=st.integers(1, 50), k=st.integers(0, 50), p=st.floats(0, 1))
def test_the_binomial_tail_is_scipys(n: int, k: int, p: float) -> None:
    assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9, abs=1e-300)


def test_fewer_than_five_of_at_most_twenty_above_the_quantile_are_never_more_than_luck() -> None:
    assert all(binomial_tail(4, n, 0.05) >= LUCK for n in range(10, 21))


@given(before=st.lists(st.floats(0, 1), min_size=2, max_size=40), after=st.lists(st.floats(0, 1), min_size=2, max_size=20), shift=st.sampled_from([0.0, -0.4]))
def test_welchs_test_is_scipys(before: list[float], after: list[float], shift: float) -> None:
    after = [x + shift for x in after]
    if np.var(before) < 1e-12 or np.var(after) < 1e-12:
        return
    t, p = welch_fall(Moments.of(before), Moments.of(after))
    expected = stats.ttest_ind(before, after, equal_var=False, alternative="greater")
    assert t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-12)


def test_a_constant_fall_is_certain_and_no_fall_is_none() -> None:
    assert welch_fall(Moments.of([0.8] * 50), Moments.of([0.5] * 20)) == (None, 0.0)
    assert welch_fall(Moments.of([0.8] * 50), Moments.of([0.8] * 20)) == (None, 1.0)


counts = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ab: Evidence(ab[0] + ab[1], ab[0]))


@given(rest=counts, type_rest=counts, agent_rest=counts, both=counts, m=st.floats(0.1, 50))
def test_a_prediction_is_the_ladder_of_disjoint_evidence(rest: Evidence, type_rest: Evidence, agent_rest: Evidence, both: Evidence, m: float) -> None:
    def sum_of(*parts: Evidence) -> Evidence:
        return Evidence(sum(e.n for e in parts), sum(e.s for e in parts))

    tenant, of_type, of_agent = sum_of(rest, type_rest, agent_rest, both), sum_of(type_rest, both), sum_of(agent_rest, both)
    found = predict(tenant, of_type, of_agent, both, m)
    p0 = (rest.s + 1) / (rest.n + 2)
    p1 = (type_rest.s + m * p0) / (type_rest.n + m)
    p2 = (agent_rest.s + m * p1) / (agent_rest.n + m)
    assert [level.n for level in found.levels] == [rest.n, type_rest.n, agent_rest.n, both.n]
    assert [level.estimate for level in found.levels] == pytest.approx([p0, p1, p2, (both.s + m * p2) / (both.n + m)])
    assert (found.alpha, found.beta) == (pytest.approx(both.s + m * p2), pytest.approx(both.n - both.s + m * (1 - p2)))
    assert backed_off(tenant, of_type, of_agent, both, m) == pytest.approx(found.probability)
    finest = [name for name, e in zip(("tenant", "task_type", "agent", "agent_task_type"), (rest, type_rest, agent_rest, both), strict=True) if e.n]
    assert found.basis == (finest[-1] if finest else "prior")


@given(outcomes=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=60), split=st.integers(0, 60))
def test_a_score_is_its_definition_and_merges(outcomes: list[tuple[float, float, bool]], split: int) -> None:
    parts = [Score(), Score()]
    for i, (p, base, y) in enumerate(outcomes):
        parts[i >= split].add(p, base, y)
    found = Score.merged(parts).render()
    assert found["n"] == len(outcomes)
    if not outcomes:
        assert (found["brier"], found["skill"], found["log_loss"], found["ece"]) == (None, None, None, None)
        return
    p, base = np.array([o[0] for o in outcomes]), np.array([o[1] for o in outcomes])
    y = np.array([float(o[2]) for o in outcomes])
    clipped = np.clip(np.where(y == 1, p, 1 - p), 1e-12, None)
    bins = np.minimum((p * 10).astype(int), 9)
    ece = sum(abs(p[bins == b].mean() - y[bins == b].mean()) * (bins == b).sum() for b in set(bins)) / len(p)
    assert found["brier"] == pytest.approx(((p - y) ** 2).mean())
    assert found["brier_base"] == pytest.approx(((base - y) ** 2).mean())
    assert found["log_loss"] == pytest.approx(-np.log(clipped).mean())
    assert found["ece"] == pytest.approx(ece, abs=1e-12)
    assert [b["n"] for b in found["bins"]] == [int((bins == b).sum()) for b in range(10)]
