"""Moments and pairs against numpy, and the law of split and merge."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.moments import Moments, Pairs

finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


def series(seed: int, n: int, at: float = 0.0) -> list[float]:
    return [float(v) for v in at + np.random.default_rng(seed).normal(size=n)]


@pytest.mark.parametrize("at", [0.0, 1e6, 1.77e9])
def test_moments_agree_with_numpy_at_every_prefix_even_far_from_zero(at: float) -> None:
    values = series(1, 200, at)
    m = Moments()
    for i, x in enumerate(values, 1):
        m.add(x)
        seen = np.array(values[:i])
        assert m.n == i
        assert m.mean == pytest.approx(seen.mean(), rel=1e-12)
        assert (m.min, m.max) == (seen.min(), seen.max())
        assert m.sum == pytest.approx(seen.sum(), rel=1e-12)
        if i > 1:
            assert m.std == pytest.approx(seen.std(ddof=1), rel=1e-6)
            assert m.population_std == pytest.approx(seen.std(), rel=1e-6)


def test_nothing_has_no_std_and_one_value_has_none_either() -> None:
    assert (Moments().n, Moments().std, Moments().population_std) == (0, None, None)
    assert Moments.of([3.0]).std is None
    assert Moments.of([3.0]).population_std == 0.0


def test_a_constant_series_has_exactly_no_deviation() -> None:
    whole = Moments.of([0.1] * 1000)
    part = Moments.of([0.1] * 7)
    part.merge(Moments.of([0.1] * 13))
    assert (whole.mean, whole.std, part.mean, part.std) == (0.1, 0.0, 0.1, 0.0)


@given(st.lists(finite, max_size=60), st.integers(0, 60))
def test_split_and_merged_moments_are_those_of_the_whole(values: list[float], cut: int) -> None:
    whole, left, right = Moments.of(values), Moments.of(values[:cut]), Moments.of(values[cut:])
    before = msgspec.msgpack.encode(right)
    left.merge(right)
    assert msgspec.msgpack.encode(right) == before
    scale = max((abs(v) for v in values), default=0.0)
    assert (left.n, left.min, left.max) == (whole.n, whole.min, whole.max)
    assert left.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-12 * scale)
    assert left.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-12 * scale * scale)


def test_values_whose_difference_overflows_leave_a_finite_mean() -> None:
    m = Moments.of([1.7e308, -1.7e308, 1.7e308, -1.7e308])
    other = Moments.of([-1.7e308] * 3)
    other.merge(Moments.of([1.7e308] * 3))
    assert abs(m.mean) < 1e294 and m.std is None
    assert abs(other.mean) < 1e294 and other.std is None
    m.add(5.0)
    assert math.isfinite(m.mean) and m.std is None and m.n == 5


def test_pairs_agree_with_numpy_at_every_prefix() -> None:
    xs, ys = series(2, 100, 1.77e9), series(3, 100, -1e5)
    p = Pairs()
    for i, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
        p.add(x, y)
        a, b = np.array(xs[:i]), np.array(ys[:i])
        assert (p.mean_x, p.mean_y) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
        assert p.m2_x == pytest.approx(((a - a.mean()) ** 2).sum(), rel=1e-6, abs=1e-9)
        assert p.m2_y == pytest.approx(((b - b.mean()) ** 2).sum(), rel=1e-6, abs=1e-9)
        assert p.cxy == pytest.approx(((a - a.mean()) * (b - b.mean())).sum(), rel=1e-5, abs=1e-5)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=40), st.integers(0, 40), st.floats(-1e4, 1e4))
def test_shifted_and_merged_pairs_are_those_of_the_whole(pairs: list[tuple[float, float]], cut: int, shift: float) -> None:
    whole = Pairs.of([x + shift if i >= cut else x for i, (x, _) in enumerate(pairs)], [y for _, y in pairs])
    left = Pairs.of(*map(list, zip(*pairs[:cut], strict=True))) if pairs[:cut] else Pairs()
    right = Pairs.of(*map(list, zip(*pairs[cut:], strict=True))) if pairs[cut:] else Pairs()
    left.merge(right, shift)
    for mine, wanted in zip(msgspec.structs.astuple(left), msgspec.structs.astuple(whole), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-4)
