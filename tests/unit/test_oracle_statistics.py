"""The building blocks of the views against other people's implementations: statsmodels, river, and the sketch's authors' own."""

from __future__ import annotations

import random
import statistics
from math import nan

import numpy as np
import pytest
import statsmodels.api as sm
from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping
from river import stats as river
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportions_ztest
from statsmodels.stats.weightstats import DescrStatsW, ttest_ind

from tables import beta
from tables.moments import Moments, Pairs
from tables.regression import fit, fit_pairs
from tables.sketch import ALPHA, Sketch, bucket
from tables.two_samples import adjusted, two_proportions, welch

QS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@pytest.mark.parametrize("start", [0.0, 1.77e9])
@pytest.mark.parametrize("noise", [0.05, 1.0, 30.0])
def test_a_line_is_that_of_statsmodels_at_every_prefix(noise: float, start: float) -> None:
    rng = np.random.default_rng(17)
    xs = np.round(np.cumsum(rng.exponential(size=80)) * 4096) / 4096  # still exact when `start` is added
    ys = 2.0 - 0.4 * xs + noise * rng.normal(size=80)
    for n in (3, 4, 5, *range(6, 81, 5)):
        theirs = sm.OLS(ys[:n], sm.add_constant(xs[:n])).fit()
        merged = Pairs.of(start + xs[: n // 2], ys[: n // 2])
        merged.merge(Pairs.of(start + xs[n // 2 : n], ys[n // 2 : n]))
        for mine in (fit(list(start + xs[:n]), list(ys[:n])), fit_pairs(merged, y_constant=False)):
            assert mine.slope == pytest.approx(theirs.params[1], rel=1e-6)
            assert [mine.stderr, mine.t] == pytest.approx([theirs.bse[1], theirs.tvalues[1]], rel=1e-5 if start else 1e-9)
            assert mine.r2 == pytest.approx(theirs.rsquared, rel=1e-6, abs=1e-12)
            assert mine.p == pytest.approx(theirs.pvalues[1], rel=1e-3 if start else 1e-6, abs=1e-300)
            if start == 0.0:  # far from 0 the intercept has the slope's rounding times that distance
                assert mine.intercept == pytest.approx(theirs.params[0], rel=1e-6)


def test_intervals_of_a_rate_are_those_of_statsmodels() -> None:
    rng = random.Random(18)
    for _ in range(100):
        n = rng.randint(1, 2000)
        k, z = rng.randint(0, n), rng.uniform(0.1, 5.0)
        outside = 1.0 - beta.level(z)
        assert beta.interval(k + 0.5, n - k + 0.5, z) == pytest.approx(proportion_confint(k, n, outside, "jeffreys"), rel=1e-7, abs=1e-12)
        low, high = proportion_confint(k, n, outside, "beta")  # Clopper and Pearson's: an end each of two Beta distributions
        if k:
            assert beta.interval(k, n - k + 1, z)[0] == pytest.approx(low, rel=1e-7, abs=1e-12)
        if k < n:
            assert beta.interval(k + 1, n - k, z)[1] == pytest.approx(high, rel=1e-7, abs=1e-12)
        if 0 < k < n:
            assert beta.wald(k, n - k, z) == pytest.approx(proportion_confint(k, n, outside, "normal"), rel=1e-7, abs=1e-12)


def test_false_discovery_rates_are_those_of_statsmodels() -> None:
    rng = random.Random(19)
    for size in (1, 2, 3, 10, 500):
        for _ in range(5):
            ps = [rng.choice((rng.random(), rng.random() ** 8, 0.0, 1.0, 0.04)) for _ in range(size)]
            assert adjusted(ps) == pytest.approx(multipletests(ps, method="fdr_bh")[1], rel=1e-12)


def test_two_shares_and_two_means_are_compared_as_statsmodels_compares_them() -> None:
    rng = random.Random(20)
    for _ in range(80):
        before = [rng.gauss(0.0, 1.0) for _ in range(rng.randint(2, 60))]
        after = [rng.gauss(rng.choice((0.0, 2.0)), rng.choice((0.1, 3.0))) for _ in range(rng.randint(2, 60))]
        one, other = Moments.of(before), Moments.of(after)
        t, p, degrees = ttest_ind(after, before, usevar="unequal")
        found = welch(one.n, one.mean, one.m2, other.n, other.mean, other.m2)
        assert found == (pytest.approx(t, rel=1e-9), pytest.approx(degrees, rel=1e-9), pytest.approx(p, rel=1e-8))
        n1, n2 = rng.randint(1, 400), rng.randint(1, 400)
        k1, k2 = rng.randint(0, n1), rng.randint(0, n2)
        if 0 < k1 + k2 < n1 + n2:
            z, p = proportions_ztest([k2, k1], [n2, n1])
            assert two_proportions(k1, n1, k2, n2) == (pytest.approx(z, rel=1e-9, abs=1e-12), pytest.approx(p, rel=1e-9))


@pytest.mark.parametrize("around", [0.0, 1e9])
def test_running_means_variances_and_correlations_are_those_of_river_at_every_prefix_and_of_statsmodels_when_merged(around: float) -> None:
    rng = random.Random(21)
    xs = [around + rng.gauss(0.0, 3.0) for _ in range(400)]
    ys = [0.3 * (x - around) + rng.gauss(0.0, 1.0) for x in xs]
    mine, pairs = Moments(), Pairs()
    mean, variance, covariance, least, most = river.Mean(), river.Var(), river.Cov(), river.Min(), river.Max()
    for n, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
        mine.add(x)
        pairs.add(x, y)
        for one in (mean, variance, least, most):
            one.update(x)
        covariance.update(x, y)
        assert (mine.min, mine.max) == (least.get(), most.get())
        assert mine.mean == pytest.approx(mean.get(), rel=1e-12)
        if n > 1:
            assert (mine.std or nan) ** 2 == pytest.approx(variance.get(), rel=1e-6)
            assert pairs.cxy / (n - 1) == pytest.approx(covariance.get(), rel=1e-6, abs=1e-9)
    parts = [Moments.of(xs[at : at + 37]) for at in range(0, len(xs), 37)]
    for part in parts[1:]:
        parts[0].merge(part)
    whole = DescrStatsW([x - around for x in xs], ddof=1)
    assert parts[0].mean - around == pytest.approx(whole.mean, rel=1e-9, abs=1e-6 if around else 1e-12)
    assert parts[0].std == pytest.approx(whole.std, rel=1e-8)
    assert parts[0].std == pytest.approx(statistics.stdev(xs), rel=1e-8)


@pytest.mark.parametrize("draw", ["lognormal", "pareto", "both signs"])
def test_the_sketch_counts_and_answers_as_that_of_its_authors_and_both_keep_to_the_bound(draw: str) -> None:
    rng = np.random.default_rng(22)
    many = {"lognormal": rng.lognormal(0.0, 2.0, 8_000), "pareto": rng.pareto(1.2, 8_000) + 1e-3, "both signs": rng.normal(0.0, 50.0, 8_000)}[draw]
    values = [float(x) for x in many] + [0.0] * 50
    mine, theirs = Sketch.of(values), DDSketch(relative_accuracy=ALPHA)
    for x in values:
        theirs.add(x)
    mapping = LogarithmicMapping(ALPHA)
    assert (mine.n, mine.zero) == (theirs.count, 50)
    assert [bucket(abs(x)) for x in values[:3000]] == [mapping.key(abs(x)) for x in values[:3000]]
    ordered = sorted(values)
    for q, found in zip(QS, mine.quantiles(QS, ordered[0], ordered[-1]), strict=True):
        exact, beside = ordered[int(q * (len(values) - 1))], theirs.get_quantile_value(q)
        assert found is not None and beside is not None
        assert abs(found - exact) <= ALPHA * abs(exact) * (1 + 1e-9) and abs(beside - exact) <= ALPHA * abs(exact) * (1 + 1e-9)
        if 0.0 < q < 1.0:  # its least and greatest are not clamped to the values
            assert found == pytest.approx(beside, rel=1e-9)
    halves = Sketch.of(values[::2])
    halves.merge(Sketch.of(values[1::2]))
    assert halves == mine
