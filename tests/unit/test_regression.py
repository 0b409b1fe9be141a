"""Least squares against scipy at every prefix, and the cases that scipy leaves to NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tables.moments import Pairs
from tables.regression import fit, fit_pairs, p_two_sided, t_quantile


@pytest.mark.parametrize("start", [0.0, 1.77e9])
def test_a_fit_agrees_with_scipy_at_every_prefix(start: float) -> None:
    rng = np.random.default_rng(5)
    xs = start + np.cumsum(rng.exponential(size=120))
    ys = 0.3 * (xs - start) + rng.normal(size=120)
    for n in range(3, 121):
        mine, theirs = fit(list(xs[:n]), list(ys[:n])), stats.linregress(xs[:n] - start, ys[:n])
        assert mine.n == n
        assert mine.slope == pytest.approx(theirs.slope, rel=1e-6)
        assert mine.intercept == pytest.approx(theirs.intercept - theirs.slope * start, rel=1e-6)
        assert mine.r == pytest.approx(theirs.rvalue, rel=1e-6)
        assert mine.r2 == pytest.approx(theirs.rvalue**2, rel=1e-6)
        assert mine.stderr == pytest.approx(theirs.stderr, rel=1e-6)
        assert mine.t == pytest.approx(theirs.slope / theirs.stderr, rel=1e-6)
        assert mine.p == pytest.approx(theirs.pvalue, rel=1e-5)


def test_a_fit_of_merged_pairs_is_the_fit_of_the_whole() -> None:
    rng = np.random.default_rng(6)
    xs, ys = rng.normal(size=90), rng.normal(size=90)
    pairs = Pairs.of(xs[:31], ys[:31])
    pairs.merge(Pairs.of(xs[31:], ys[31:]))
    whole, mine = fit(list(xs), list(ys)), fit_pairs(pairs, y_constant=False)
    assert mine.slope == pytest.approx(whole.slope, rel=1e-12)
    assert mine.p == pytest.approx(whole.p, rel=1e-12)


@pytest.mark.parametrize("n", [3, 7, 50, 1000])
def test_a_constant_series_has_slope_exactly_zero_and_no_trend(n: int) -> None:
    line = fit([0.1 * i for i in range(n)], [0.3] * n)
    assert (line.slope, line.r, line.r2, line.p, line.intercept) == (0.0, 0.0, 0.0, 1.0, 0.3)


def test_a_constant_y_overrules_rounding_dust_in_the_sums() -> None:
    dusty = Pairs(n=5, mean_x=2.0, m2_x=10.0, mean_y=0.3, m2_y=1e-33, cxy=7e-17)
    assert fit_pairs(dusty, y_constant=True).slope == 0.0
    assert fit_pairs(dusty, y_constant=True).p == 1.0
    assert fit_pairs(dusty, y_constant=False).slope != 0.0


@pytest.mark.parametrize(("xs", "ys"), [([], []), ([1.0], [2.0]), ([4.0, 4.0, 4.0], [1.0, 2.0, 3.0])])
def test_without_two_different_x_there_is_no_slope(xs: list[float], ys: list[float]) -> None:
    line = fit(xs, ys)
    assert (line.n, line.slope, line.intercept, line.r2, line.stderr, line.p) == (len(xs), None, None, None, None, None)


def test_two_pairs_have_a_slope_but_no_error_of_it() -> None:
    line = fit([0.0, 2.0], [1.0, 5.0])
    assert (line.slope, line.intercept, line.r2, line.stderr, line.t, line.p) == (2.0, 1.0, 1.0, None, None, None)


def test_a_perfect_line_has_no_error_and_p_zero() -> None:
    line = fit([0.0, 1.0, 2.0, 3.0], [5.0, 3.0, 1.0, -1.0])
    assert (line.slope, line.intercept, line.r, line.r2, line.stderr, line.p) == (-2.0, 5.0, -1.0, 1.0, 0.0, 0.0)
    assert line.t == -math.inf


def test_sums_beyond_the_range_of_a_double_give_no_slope_instead_of_nan() -> None:
    assert fit([0.0, 1.0, 2.0], [-1.7e308, 1.7e308, 0.0]).slope is None


def test_student_agrees_with_scipy_far_into_the_tail() -> None:
    for t in (0.0, 0.5, 2.0, 8.0, 40.0):
        for degrees in (1, 3, 48, 1000):
            assert p_two_sided(-t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9)
    assert p_two_sided(math.inf, 3) == 0.0
    assert t_quantile(0.95, 7) == pytest.approx(stats.t.ppf(0.95, 7), rel=1e-9)
