"""Tests of two samples against scipy; nothing here is used by the product but `tables.two_samples`."""

from __future__ import annotations

from math import inf, nextafter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables.two_samples import adjusted, correlation_p, normal_p, r_interval, student_p, two_proportions, welch


@pytest.mark.parametrize("degrees", [0.5, 1, 1.5, 2, 3, 5, 10, 53.28, 79.9, 80.1, 200, 999.5, 3000, 1e4, 99_999, 1e5, 1e6, 1e9])
def test_students_tail_equals_scipys_from_the_middle_to_far_out(degrees: float) -> None:
    for t in [*np.linspace(0.0, 8.0, 41), 1e-4, 12.0, 20.47, 37.0, 74.3, 1e4]:
        expected = 2 * stats.t.sf(t, degrees)
        if expected > 1e-290:
            assert student_p(t, degrees) == pytest.approx(expected, rel=2e-10), t
            assert student_p(-t, degrees) == student_p(t, degrees)


def test_tails_of_what_is_no_number_or_nought_are_nought_and_one() -> None:
    assert (student_p(inf, 3), student_p(-inf, 3), student_p(0.0, 3), student_p(1e200, 3)) == (0.0, 0.0, 1.0, 0.0)
    assert (normal_p(0.0), normal_p(-1.96)) == (1.0, pytest.approx(2 * stats.norm.sf(1.96), rel=1e-12))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_two_shares_are_compared_as_by_the_chi_square_of_their_table(yes1: int, no1: int, yes2: int, no2: int) -> None:
    n1, n2 = yes1 + no1, yes2 + no2
    if not n1 or not n2:
        return
    z, p = two_proportions(yes1, n1, yes2, n2)
    if yes1 + yes2 in (0, n1 + n2):
        assert (z, p) == (0.0, 1.0)
        return
    chi2 = stats.chi2_contingency([[yes1, no1], [yes2, no2]], correction=False)
    assert z * z == pytest.approx(chi2.statistic, rel=1e-9, abs=1e-12)
    assert p == pytest.approx(chi2.pvalue, rel=1e-9)
    assert (z > 0) == (yes2 / n2 > yes1 / n1) or abs(yes2 / n2 - yes1 / n1) < 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_two_means_are_compared_as_by_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(0.5, 10.0 ** rng.uniform(-6, 0), rng.integers(2, 400))
    b = rng.normal(0.5 + rng.normal(0, 0.01), 10.0 ** rng.uniform(-6, 0), rng.integers(2, 400))
    t, degrees, p = welch(len(a), a.mean(), ((a - a.mean()) ** 2).sum(), len(b), b.mean(), ((b - b.mean()) ** 2).sum())
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert t == pytest.approx(expected.statistic, rel=1e-9)
    assert degrees == pytest.approx(expected.df, rel=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-6)


def test_sides_without_any_spread_are_equal_or_different_and_one_side_with_some_is_enough() -> None:
    assert welch(30, 0.7, 0.0, 40, 0.7, 0.0) == (0.0, None, 1.0)
    assert welch(30, 0.7, 0.0, 40, 0.6, 0.0) == (None, None, 0.0)
    t, degrees, p = welch(30, 0.7, 0.0, 40, 0.6, 1e-200)
    assert t is not None and t < -1e90 and degrees == pytest.approx(39) and p < 1e-290


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), max_size=40))
def test_adjusted_ps_are_scipys(ps: list[float]) -> None:
    assert adjusted(ps) == pytest.approx(list(stats.false_discovery_control(ps)) if ps else [], rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_have_scipys_p_and_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=int(rng.integers(4, 300)))
    y = x * rng.normal() + rng.normal(size=len(x))
    expected = stats.pearsonr(x, y)
    r = float(expected.statistic)
    assert correlation_p(r, len(x)) == pytest.approx(expected.pvalue, rel=1e-6)
    assert r_interval(r, len(x)) == pytest.approx(list(expected.confidence_interval(0.95)), rel=1e-9)


def test_points_on_a_line_have_a_certain_correlation_and_three_no_interval() -> None:
    assert (r_interval(1.0, 9), r_interval(-1.0, 4), r_interval(0.5, 3)) == ([1.0, 1.0], [-1.0, -1.0], None)
    assert (correlation_p(1.0, 5), correlation_p(-1.0, 5)) == (0.0, 0.0)
    low, high = r_interval(nextafter(1.0, 0.0), 10) or [0, 0]
    assert 0.99 < low <= high <= 1.0
