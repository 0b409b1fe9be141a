"""Intervals and strength against scipy.stats and against the bounds that the cheap tests promise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types

from tables import beta

counts = st.floats(0.05, 1e6)
levels = st.floats(0.01, 6.0)


def test_level_is_that_of_the_normal_distribution() -> None:
    for z in (0.01, 1.0, 1.96, 2.576, 6.0):
        assert beta.level(z) == pytest.approx(2 * stats.norm.cdf(z) - 1, abs=1e-12)
        assert beta.tail(z) == pytest.approx(stats.norm.sf(z), rel=1e-9)


@given(counts, counts, levels)
def test_interval_has_the_quantiles_of_the_beta_distribution(a: float, b: float, z: float) -> None:
    low, high = beta.interval(a, b, z)
    outside = stats.norm.sf(z)
    assert low == pytest.approx(stats.beta.ppf(outside, a, b), abs=1e-7)
    assert high == pytest.approx(stats.beta.isf(outside, a, b), abs=1e-7)
    assert beta.upper(a, b, z) == high


def test_wald_is_cut_at_the_ends_and_counts_the_prior() -> None:
    assert beta.wald(1.0, 1.0, 1.96) == [0.0, 1.0]
    low, high = beta.wald(21.0, 1.0, 1.96)
    assert (round(low, 4), high) == (0.8675, 1.0)
    low, high = beta.wald(70.0, 30.0, 1.0)
    assert high - low == pytest.approx(2 * math.sqrt(0.7 * 0.3 / 100))


@given(st.floats(0.001, 5000), st.floats(0.001, 5000), st.floats(0.05, 0.95))
def test_cheap_and_full_comparison_with_a_limit_agree(a: float, b: float, limit: float) -> None:
    high = stats.beta.isf(stats.norm.sf(1.96), a, b)
    if abs(high - limit) > 1e-9:
        assert beta.upper_is_below(a, b, limit) == (high < limit)


def test_the_cheap_comparison_agrees_at_every_point_of_a_grid() -> None:
    outside = stats.norm.sf(1.96)
    wrong = []
    for i in range(60):
        a = 0.01 * 1.25**i
        for j in range(60):
            b = 0.01 * 1.25**j
            for limit in (0.01, 0.2, 0.4, 0.45, 0.9):
                high = float(stats.beta.isf(outside, a, b)) if i % 3 == 0 else beta.upper(a, b, 1.96)
                if beta.upper_is_below(a, b, limit) != (high < limit) and abs(high - limit) > 1e-9:
                    wrong.append((a, b, limit))
    assert wrong == []


def test_strength_of_the_spec_and_no_overflow_far_out() -> None:
    expected = {0: 0.2689, 5: 0.3775, 10: 0.5, 20: 0.7311, 50: 0.9820, 100: 0.9999}
    assert {n: round(beta.strength(float(n), 0.1, 10.0), 4) for n in expected} == expected
    assert beta.strength(-1e300, 0.1, 10.0) == 0.0
    assert beta.strength(1e300, 0.1, 10.0) == 1.0


def test_sample_size_forgives_a_billionth() -> None:
    assert [beta.sample_size(x) for x in (0.8, 2.9999999999, 3.0, 9.88)] == [0, 3, 3, 9]
