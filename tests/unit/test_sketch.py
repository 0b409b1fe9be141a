"""The sketch against sorted values: its guarantee, its golden numbers, its law of merging, its bound."""

from __future__ import annotations

import random
from math import floor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.sketch import GAMMA, MAX_BUCKETS, Sketch, bucket, representative
from tests.harness import VECTORS

QS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
values_of_all_sizes = st.floats(min_value=-1e300, max_value=1e300, allow_nan=False)


def exact(values: list[float], q: float) -> float:
    return sorted(values)[floor(q * (len(values) - 1))]


@given(st.lists(values_of_all_sizes, min_size=1, max_size=200))
def test_every_quantile_is_within_one_percent_of_the_exact_one(values: list[float]) -> None:
    for q, mine in zip(QS, Sketch.of(values).quantiles(QS, min(values), max(values)), strict=True):
        wanted = exact(values, q)
        assert mine is not None
        assert abs(mine - wanted) <= max(0.01 * abs(wanted) * (1 + 1e-9), 1e-12)


@given(st.lists(st.integers(-3, 5000).map(float), min_size=1, max_size=300), st.integers(0, 300))
def test_split_and_merged_sketches_are_equal_to_the_last_count(values: list[float], cut: int) -> None:
    left, right = Sketch.of(values[:cut]), Sketch.of(values[cut:])
    before = msgspec.msgpack.encode(right)
    left.merge(right)
    assert left == Sketch.of(values)
    assert msgspec.msgpack.encode(right) == before
    assert left.n == len(values)


def test_the_golden_values_fall_into_the_golden_buckets() -> None:
    vector = VECTORS["M1"]
    values = [e["data"]["value"] for e in vector["events"] if not isinstance(e["data"]["value"], str)]
    expected = vector["checks"][0]["expect"]["overall"]
    assert bucket(2.785774) == 52
    assert bucket(vector["checks"][0]["exact"]["p50"]) == 52
    mine = Sketch.of(values).quantiles((0.5, 0.95, 0.99), min(values), max(values))
    assert mine == [pytest.approx(expected[p], rel=1e-12) for p in ("p50", "p95", "p99")]
    assert representative(52) == pytest.approx(2 * GAMMA**52 / (GAMMA + 1), rel=1e-15)


def test_zero_tiny_and_huge_values_have_their_places() -> None:
    s = Sketch.of([0.0, 1e-13, -1e-13, 1.7e308, -1.7e308, 1e-12])
    assert s.zero == 3
    assert s.quantiles((0.0, 0.5, 1.0), -1.7e308, 1.7e308) == [pytest.approx(-1.7e308, rel=0.01), 0.0, pytest.approx(1.7e308, rel=0.01)]


def test_nothing_has_no_quantile() -> None:
    assert Sketch().quantiles((0.5, 0.9), 0.0, 0.0) == [None, None]


def test_one_value_is_every_quantile_of_itself() -> None:
    assert Sketch.of([7.3]).quantiles((0.0, 0.5, 1.0), 7.3, 7.3) == [7.3, 7.3, 7.3]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_beyond_4096_buckets_the_lowest_collapse_whatever_the_order_and_the_split(sign: float) -> None:
    values = [sign * representative(i) for i in range(0, MAX_BUCKETS + 300)]
    shuffled = values[:]
    random.Random(3).shuffle(shuffled)
    one, other = Sketch.of(shuffled), Sketch.of(values)
    parts = Sketch.of(shuffled[:2500])
    parts.merge(Sketch.of(shuffled[2500:]))
    assert one == other == parts
    store = one.positive if sign > 0 else one.negative
    assert store is not None and one.collapsed
    assert (len(store), min(store), store[min(store)], one.n) == (MAX_BUCKETS, 300, 301, len(values))
    high = 0.9 if sign > 0 else 0.1
    mine = one.quantile(high, min(values), max(values))
    assert mine == pytest.approx(exact(values, high), rel=0.01)


def test_4096_buckets_are_not_yet_collapsed() -> None:
    assert not Sketch.of([representative(i) for i in range(MAX_BUCKETS)]).collapsed


def test_a_row_takes_at_most_12_bytes_an_occupied_bucket() -> None:
    s = Sketch.of([representative(i) for i in range(-1000, 3000) for _ in range(2)])
    assert len(msgspec.msgpack.encode(s)) <= 12 * len(s.positive)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(s), type=Sketch) == s
