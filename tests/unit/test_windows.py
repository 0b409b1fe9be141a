"""Windows against a second implementation that keeps every value, the golden vectors, and crashes at every row of a flush."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tables.fold import BadParameter
from tables.moments import Moments
from tables.partition import HEAD, Partition, Schema
from tables.regression import fit_pairs
from tables.rows import Row, parse_wire_key
from tables.sketch import Sketch
from tables.times import DAY_US, HOUR_US, MINUTE_US, rfc3339
from tables.windows import RINGS, SPANS, Bucket, Windows, WindowSettings
from tests.harness import VECTORS, Log, subset

START_US = 1_772_409_600_000_000  # 2026-03-02T00:00:00Z
SIZES = {"1m": 0, "5m": 1, "1h": 2, "1d": 3}
NO_NON_FINITE = {"nan": 0, "pos_inf": 0, "neg_inf": 0}

Value = tuple[int, float | str]
"""Event time in microseconds, value."""


def metric(n: int, time_us: int, value: float | str | None, **data: Any) -> dict[str, Any]:
    data = {"metric_type": "loss", "model": "m", "run": "r", **data}
    if value is not None:
        data["value"] = value
    return {"id": f"e{n}", "type": "metric.recorded.v1", "time": rfc3339(time_us), "tenant": "golden", "data": data}


def ask(log: Log, **params: Any) -> dict[str, Any]:
    return log.get("/metrics/aggregate", **{"metric": "loss", **params})


def wander(seed: int, n: int, hours: float) -> list[Value]:
    """Values of n events whose time mostly moves on by up to `hours`, at times far ahead, at times late or very late."""
    rng = random.Random(seed)
    now, values = START_US, []
    for _ in range(n):
        now += int(rng.random() ** 4 * hours * HOUR_US)
        behind = rng.choice([0, 0, 0, 0, rng.random() * 0.5, rng.random() * 8, rng.random() * 60, rng.random() * 24 * 40])
        if rng.random() < 0.002:
            behind = 24 * 450
        value: float | str = rng.choice([rng.expovariate(1), rng.gauss(0, 100), 0.0, 3.0])
        if rng.random() < 0.04:
            value = rng.choice(["NaN", "Infinity", "-Infinity"])
        values.append((now - int(behind * HOUR_US), value))
    return values


# ---- the second implementation: keeps everything, computes everything from scratch


class Oracle:
    """Every value of a series with the watermark before it."""

    def __init__(self, values: Iterable[Value]) -> None:
        self.seen: list[tuple[int, float | str, int | None]] = []
        watermark: int | None = None
        for time_us, value in values:
            self.seen.append((time_us, value, watermark))
            watermark = time_us if watermark is None else max(watermark, time_us)
        self.as_of = watermark or 0

    def late(self, time_us: int, before: int | None, level: int) -> bool:
        span = SPANS[level]
        return before is not None and time_us - time_us % span.size_us + span.size_us + span.grace_us <= before

    def expired(self, time_us: int, before: int | None, level: int) -> bool:
        span = SPANS[level]
        return before is not None and time_us - time_us % span.size_us + span.size_us + span.kept_us <= before

    def windows(self, level: int, width: int = 1, step: int | None = None) -> dict[int, list[tuple[int, float | str, bool]]]:
        """Start -> values of the windows that consist of buckets still kept, each value with whether it was late."""
        span = SPANS[level]
        found: dict[int, list[tuple[int, float | str, bool]]] = {}
        for time_us, value, before in self.seen:
            index = time_us // span.size_us
            if self.expired(time_us, before, level) or (index + 1) * span.size_us + span.kept_us <= self.as_of:
                continue
            for start in range(index - width + 1, index + 1):
                if start % (step or width) == 0 and (start + 1) * span.size_us + span.kept_us > self.as_of:
                    found.setdefault(start * span.size_us, []).append((time_us, value, self.late(time_us, before, level)))
        return dict(sorted(found.items()))


def figures(values: list[tuple[int, float | str, bool]], start_us: int) -> dict[str, Any]:
    finite = [v for _, v, _ in values if not isinstance(v, str)]
    hours = [(t - start_us) / HOUR_US for t, v, _ in values if not isinstance(v, str)]
    slope = None
    if len(finite) > 1 and len(set(hours)) > 1:
        slope = 0.0 if min(finite) == max(finite) else float(stats.linregress(hours, finite).slope)
    return {
        "n": len(finite),
        "mean": float(np.mean(finite)) if finite else None,
        "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        "min": min(finite, default=None),
        "max": max(finite, default=None),
        "sum": float(np.sum(finite)) if finite else None,
        "slope_per_hour": slope,
        "late": sum(late for _, _, late in values),
        "non_finite": {
            "nan": sum(v == "NaN" for _, v, _ in values),
            "pos_inf": sum(v == "Infinity" for _, v, _ in values),
            "neg_inf": sum(v == "-Infinity" for _, v, _ in values),
        },
        "quantiles": [float(np.quantile(finite, q, method="lower")) if finite else None for q in (0.5, 0.95, 0.99)],
    }


def differences(shown: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Where an answer differs from the second implementation; quantiles by 1 %."""
    wanted = dict(wanted)
    quantiles = wanted.pop("quantiles")
    found = subset(wanted, shown, abs_=1e-7, rel=1e-6)
    for name, exact in zip(("p50", "p95", "p99"), quantiles, strict=True):
        mine = shown[name]
        if (mine is None) != (exact is None) or (exact is not None and abs(mine - exact) > 0.01 * abs(exact) * (1 + 1e-9) + 1e-12):
            found.append(f"{name}: {mine}, exact {exact}")
    return found


# ---- golden


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("deliveries", [1, 2])
@pytest.mark.parametrize("vector", ["M1", "M2"])
def test_golden_windows_come_out_however_many_partitions_and_deliveries(vector: str, partitions: int, deliveries: int) -> None:
    log = Log([Windows()], partitions)
    for event in VECTORS[vector]["events"]:
        log.send([event] * deliveries)
    for check in VECTORS[vector]["checks"]:
        assert subset(check["expect"], log.get(check["path"], **check["params"])) == []


# ---- against the second implementation


@pytest.mark.parametrize(("seed", "hours"), [(1, 0.05), (2, 0.5), (3, 6.0), (4, 60.0)])
def test_every_size_shows_what_a_recount_of_all_values_shows(seed: int, hours: float) -> None:
    values = wander(seed, 700, hours)
    oracle = Oracle(values)
    log = Log([Windows()])
    log.send(metric(i, t, v) for i, (t, v) in enumerate(values))
    some_expired = False
    for window, level in SIZES.items():
        answer = ask(log, window=window)
        wanted = oracle.windows(level)
        assert [b["start"] for b in answer["buckets"]] == [rfc3339(start) for start in wanted]
        for shown, start in zip(answer["buckets"], wanted, strict=True):
            assert differences(shown, figures(wanted[start], start)) == []
        everything = [v for of in wanted.values() for v in of]
        assert differences(answer["overall"], figures(everything, START_US)) == []
        assert answer["late"] == sum(oracle.late(t, before, level) for t, _, before in oracle.seen)
        assert answer["expired"] == sum(oracle.expired(t, before, level) for t, _, before in oracle.seen)
        some_expired = some_expired or answer["expired"] > 0
    assert some_expired
    counters = log.topics["training"][0].counters()
    assert counters.late == sum(oracle.late(t, before, 0) for t, _, before in oracle.seen)
    assert counters.expired == sum(oracle.expired(t, before, 0) for t, _, before in oracle.seen)


@pytest.mark.parametrize(
    ("window", "slide", "level", "width", "step"),
    [
        ("15m", None, 1, 3, 3),
        ("2h", None, 2, 2, 2),
        ("7d", None, 3, 7, 7),
        ("1h", "15m", 1, 12, 3),
        ("3d", "1d", 3, 3, 1),
        ("3m", "2m", 0, 3, 2),
    ],
)
def test_wider_and_sliding_windows_are_merges_of_whole_buckets(window: str, slide: str | None, level: int, width: int, step: int) -> None:
    values = wander(7, 600, 2.0)
    oracle = Oracle(values)
    log = Log([Windows()])
    log.send(metric(i, t, v) for i, (t, v) in enumerate(values))
    answer = ask(log, window=window, **({"slide": slide} if slide else {}))
    wanted = oracle.windows(level, width, step)
    assert [b["start"] for b in answer["buckets"]] == [rfc3339(start) for start in wanted]
    assert all(b["end"] == rfc3339(start + width * SPANS[level].size_us) for b, start in zip(answer["buckets"], wanted, strict=True))
    for shown, start in zip(answer["buckets"], wanted, strict=True):
        assert differences(shown, figures(wanted[start], start)) == []


@pytest.mark.parametrize(("window", "slide", "width", "step"), [("3h", None, 3, 3), ("4h", "3h", 4, 3)])
def test_the_whole_is_what_the_shown_windows_cover_each_value_once(window: str, slide: str | None, width: int, step: int) -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US + i * HOUR_US, float(i)) for i in range(1000))
    first = (START_US // HOUR_US + 999 - 720 + step - 1) // step * step  # the oldest window of which every hour is kept
    oldest = ask(log, window=window, **({"slide": slide} if slide else {}))
    assert oldest["buckets"][0]["start"] == rfc3339(first * HOUR_US)
    assert oldest["overall"]["n"] == START_US // HOUR_US + 1000 - first
    since = START_US + 960 * HOUR_US
    some = ask(log, window=window, since=rfc3339(since), until=rfc3339(since + 7 * HOUR_US), **({"slide": slide} if slide else {}))
    starts = [i for i in range(since // HOUR_US, since // HOUR_US + 7) if i % step == 0]
    assert [b["start"] for b in some["buckets"]] == [rfc3339(i * HOUR_US) for i in starts]
    assert [b["n"] for b in some["buckets"]] == [width] * len(starts)
    assert some["overall"]["n"] == starts[-1] + width - starts[0]


def test_a_series_spread_over_eight_partitions_reads_as_one() -> None:
    values = [(t, v) for t, v in wander(11, 500, 0.2) if t > START_US]
    one, eight = Log([Windows()], 1), Log([Windows()], 8)
    for i, (t, v) in enumerate(values):
        event = metric(i, t, v, run=f"r{i % 5}")
        one.send([event])
        eight.send([event])
    assert sum(bool(records) for records in eight.records.values()) > 1
    for window in SIZES:
        a, b = ask(one, window=window), ask(eight, window=window)
        assert [x["start"] for x in a["buckets"]] == [x["start"] for x in b["buckets"]]
        for x, y in zip([*a["buckets"], a["overall"]], [*b["buckets"], b["overall"]], strict=True):
            x.pop("late"), y.pop("late")
            assert subset(x, y) == []


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_tag_shows_what_a_recount_of_the_values_with_that_tag_shows(partitions: int) -> None:
    values = wander(12, 600, 6.0)
    if partitions > 1:  # what comes late for a partition depends on what that partition has seen
        values = [(START_US + i * HOUR_US // 7, v) for i, (_, v) in enumerate(values)]
    rng = random.Random(3)
    log = Log([Windows()], partitions)
    kept: dict[str, list[tuple[int, float | str, int | None]]] = {"x": [], "y|z": []}
    whole = Oracle(values)
    for i, (t, v, before) in enumerate(whole.seen):
        tags = rng.choice([[], ["x"], ["y|z"], ["x", "y|z"], ["x", "x"]])
        log.send([metric(i, t, v, model=f"m{i % 3}", run=f"r{i % 5}", tags=tags)])
        for tag in set(tags):
            kept[tag].append((t, v, before))
    for tag, seen in kept.items():
        whole.seen = seen
        for window, level, width in (("1h", 2, 1), ("1d", 3, 1), ("6h", 2, 6)):
            answer, wanted = ask(log, tag=tag, window=window), whole.windows(level, width, width)
            assert [b["start"] for b in answer["buckets"]] == [rfc3339(start) for start in wanted]
            for shown, start in zip(answer["buckets"], wanted, strict=True):
                assert differences(shown, figures(wanted[start], start)) == []
            if partitions == 1:
                assert answer["late"] == sum(whole.late(t, before, level) for t, _, before in seen)
                assert answer["expired"] == sum(whole.expired(t, before, level) for t, _, before in seen)
        lifetime = {**figures([(t, v, False) for t, v, _ in seen], START_US), "late": 0}
        overall = {**ask(log, tag=tag)["overall"], "late": 0}
        lifetime.pop("slope_per_hour")  # of the kept windows only
        assert differences(overall, lifetime) == []


def test_each_of_several_values_is_summed_under_its_name_for_every_tag_once() -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0, values={"a": 2.0, "b": "NaN"}, tags=["t", "u", "t"]), metric(2, START_US, None, tags=["t"])])
    found = {(name, tag): ask(log, metric=name, tag=tag)["overall"] for name in ("loss", "loss.a", "loss.b") for tag in "tu"}
    assert {key: (figure["n"], figure["mean"], figure["non_finite"]["nan"]) for key, figure in found.items()} == {
        (name, tag): figure for name, figure in (("loss", (1, 1.0, 0)), ("loss.a", (1, 2.0, 0)), ("loss.b", (0, None, 1))) for tag in "tu"
    }
    assert ask(log, metric="loss", tag="v")["overall"]["n"] == 0


def test_late_values_count_once_in_the_status_however_many_tags_they_have() -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0), metric(2, START_US - 40 * DAY_US, 1.0, tags=["t", "u"])])
    counters = log.topics["training"][0].counters()
    assert (counters.late, counters.expired) == (1, 1)


# ---- the rings


def test_buckets_that_are_past_are_kept_packed_and_a_late_value_still_enters_them() -> None:
    fold = Windows()
    log = Log([fold])
    log.send(metric(i, START_US + i * 30_000_000, float(i)) for i in range(80))
    table = fold.ring(0)
    kept = log.topics["training"][0].space(table, "golden").values()
    assert [row.state.__class__ is bytes for row in kept] == [True] * 39 + [False]
    log.send([metric(80, START_US + 60_000_001, 1000.0)])
    shown = ask(log, window="1m")["buckets"]
    assert (len(shown), shown[1]["n"], shown[1]["max"]) == (40, 3, 1000.0)
    log.send([metric(81, START_US + 41 * 60_000_000, 1.0)])
    assert [row.state.__class__ is bytes for row in kept][-4:] == [False, True, True, False]  # what was asked for stays at hand, but the last two


def test_coarser_buckets_that_are_past_are_packed_too() -> None:
    fold = Windows()
    log = Log([fold])
    log.send(metric(i, START_US + i * 60_000_000, float(i)) for i in range(450))
    kept = log.topics["training"][0].space(fold.ring(1), "golden").values()
    assert [row.state.__class__ is bytes for row in kept] == [True] * (len(kept) - 1) + [False] and len(kept) > 15


def test_one_value_lies_in_exactly_one_bucket() -> None:
    values = wander(5, 900, 60.0)
    fold = Windows()
    log = Log([fold])
    log.send(metric(i, t, v) for i, (t, v) in enumerate(values))
    p = log.topics["training"][0]
    lying = sum(table.peek(row).n for table in fold.rings for row in p.space(table, "golden").values())
    rest = sum(row.state.sketch.n for row in p.space(fold.residue, "golden").values())
    finite = [v for _, v in values if not isinstance(v, str)]
    assert lying + rest == len(finite)
    assert rest > 0
    moments, sketch = fold.lifetime(log.reader(), ("loss", "m", "r"))
    assert (moments.n, sketch.n) == (len(finite), len(finite))
    assert moments.mean == pytest.approx(np.mean(finite))
    assert moments.std == pytest.approx(np.std(finite, ddof=1))


def test_rings_stay_bounded_however_long_a_series_runs() -> None:
    fold = Windows()
    log = Log([fold])
    log.send(metric(i, START_US + i * 7 * MINUTE_US, 1.0) for i in range(3000))
    p = log.topics["training"][0]
    minutes, fives, hours, days = (len(p.space(table, "golden")) for table in fold.rings)
    assert (minutes, fives, days) == (RINGS[0], RINGS[1], 0)
    assert 200 < hours < 350  # 3,000 values every 7 minutes last 350 h, of which finer rings hold 90


def test_a_ring_is_wide_enough_that_kept_buckets_never_meet() -> None:
    for span, ring in zip(SPANS, RINGS, strict=True):
        newest = 10_000
        kept = [i for i in range(newest + 1) if (i + 1) * span.size_us + span.kept_us > newest * span.size_us]
        assert len({i % ring for i in kept}) == len(kept)


def test_a_value_that_moves_the_watermark_is_neither_late_nor_expired() -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0), metric(2, START_US + 500 * DAY_US, 2.0)])
    for window in SIZES:
        answer = ask(log, window=window)
        assert (answer["late"], answer["expired"], [b["n"] for b in answer["buckets"]]) == (0, 0, [1])


@pytest.mark.parametrize(("seconds", "late"), [(11 * 60 - 1, 0), (11 * 60, 1)])
def test_a_value_is_late_from_ten_minutes_after_its_minute(seconds: int, late: int) -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US + seconds * 1_000_000, 1.0), metric(2, START_US + 59_000_000, 2.0)])
    answer = ask(log, window="1m")
    assert answer["late"] == late
    assert [b["late"] for b in answer["buckets"]] == [late, 0]
    assert ask(log, window="1d")["late"] == 0


@pytest.mark.parametrize(("microseconds", "shown"), [(-1, 2), (0, 1)])
def test_a_minute_is_kept_six_hours_after_its_end(microseconds: int, shown: int) -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0), metric(2, START_US + 361 * MINUTE_US + microseconds, 2.0)])
    assert len(ask(log, window="1m")["buckets"]) == shown
    assert ask(log, window="5m")["overall"]["n"] == 2


# ---- series


def test_each_of_several_values_is_a_series_of_its_own() -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0, values={"train": 2.0, "eval": "NaN"}), metric(2, START_US, None)])
    assert ask(log, window="1m")["overall"]["n"] == 1
    assert ask(log, metric="loss.train", window="1m")["overall"]["mean"] == 2.0
    bad = ask(log, metric="loss.eval", window="1m")["overall"]
    assert (bad["n"], bad["mean"], bad["non_finite"]) == (0, None, {"nan": 1, "pos_inf": 0, "neg_inf": 0})
    assert log.topics["training"][0].counters().folded == 2


def test_non_finite_values_leave_every_figure_finite() -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US + i, v) for i, v in enumerate([1.0, "NaN", "Infinity", 3.0, "-Infinity", "NaN"]))
    shown = ask(log, window="1m")["buckets"][0]
    assert (shown["n"], shown["mean"], shown["min"], shown["max"]) == (2, 2.0, 1.0, 3.0)
    assert shown["non_finite"] == {"nan": 2, "pos_inf": 1, "neg_inf": 1} == ask(log)["overall"]["non_finite"]


def test_learning_events_feed_four_series_with_the_task_as_model() -> None:
    log = Log([Windows()])
    data = {"task_type": "chess", "performance_score": 0.5, "learning_rate": 0.01, "episode_count": 7, "convergence_metric": 0.2}
    log.send([{"id": "l", "type": "learning.recorded.v1", "time": rfc3339(START_US), "tenant": "golden", "data": data}])
    for name in ("performance_score", "learning_rate", "episode_count", "convergence_metric"):
        answer = ask(log, metric=f"learning.{name}", model="chess", run="", window="1h")
        assert (answer["overall"]["n"], answer["overall"]["mean"]) == (1, data[name])
    assert ask(log, metric="learning.performance_score", model="go", window="1h")["overall"]["n"] == 0


def test_model_and_run_choose_among_series() -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US, float(i), model=m, run=r) for i, (m, r) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("a", None)]))
    asked: list[dict[str, str]] = [{}, {"model": "a"}, {"run": "x"}, {"model": "a", "run": "x"}, {"run": ""}]
    counts = [ask(log, window="1m", **q)["overall"]["n"] for q in asked]
    assert counts == [4, 3, 2, 1, 1]
    assert ask(log, window="1m", tenant="other")["overall"]["n"] == 0


def test_the_last_value_of_a_series_is_the_latest_by_time_and_then_by_place_in_the_log() -> None:
    fold = Windows()
    log = Log([fold])
    log.send([metric(1, START_US + 5, 1.0), metric(2, START_US + 9, 2.0), metric(3, START_US + 9, 3.0), metric(4, START_US + 7, 4.0)])
    log.send([metric(5, START_US + 11, "NaN")])
    (series,) = log.reader().rows(fold.series, ("loss", "m", "r"))
    assert (series.last_us, series.last) == (START_US + 9, 3.0)
    assert (series.oldest_us, series.newest_us) == (START_US + 5, START_US + 11)


def test_series_beyond_the_bound_keep_lifetime_sums_only() -> None:
    log = Log([Windows(WindowSettings(max_series=3))])
    log.send([metric(1, START_US, 1.0), metric(2, START_US, 1.0, values={"a": 1.0, "b": 2.0, "c": 3.0})])
    log.send([metric(3, START_US + 1, 5.0, metric_type="late"), metric(4, START_US + 2, 7.0, metric_type="late")])
    shown = {name: ask(log, metric=name, window="1m")["overall"]["n"] for name in ("loss", "loss.a", "loss.b", "loss.c", "late")}
    assert shown == {"loss": 2, "loss.a": 1, "loss.b": 1, "loss.c": 0, "late": 0}
    whole = ask(log, metric="late")["overall"]
    assert (whole["n"], whole["mean"], whole["p50"]) == (2, 6.0, None)
    assert log.topics["training"][0].counters().overflow == 2


# ---- parameters


def test_a_window_belongs_to_a_span_by_its_start_and_a_date_takes_in_its_day() -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US + i * 6 * HOUR_US, float(i)) for i in range(12))

    def starts(**q: Any) -> list[int]:
        return [round(b["mean"]) for b in ask(log, window="1h", **q)["buckets"]]

    assert starts() == list(range(12))
    assert starts(since="2026-03-03") == list(range(4, 12))
    assert starts(until="2026-03-03") == list(range(8))
    assert starts(since="2026-03-02T06:00:00Z", until="2026-03-02T12:00:00Z") == [1]
    assert starts(since="2026-03-02T06:30:00Z", until="2026-03-02T12:00:01Z") == [2]
    assert starts(since="2026-03-02T08:00:00+02:00", until="2026-03-02T12:00:00Z") == [1]
    assert starts(since="2026-04-01") == []
    assert ask(log, since="2026-03-03")["overall"]["n"] == 8


@pytest.mark.parametrize(
    ("parameter", "params"),
    [
        ("window", {"window": "90s"}),
        ("window", {"window": "0m"}),
        ("window", {"window": "hour"}),
        ("window", {"window": "500d"}),
        ("window", {"window": "7h", "slide": "1m"}),
        ("slide", {"window": "1h", "slide": "2h"}),
        ("slide", {"slide": "1h"}),
        ("tag", {"window": "1h", "tag": "x", "model": "m"}),
        ("tag", {"window": "1h", "tag": "x", "run": ""}),
        ("window", {"window": "5m", "tag": "x"}),
        ("since", {"window": "1h", "since": "yesterday"}),
        ("since", {"window": "1h", "since": "2026-03-02T00:00:00"}),
        ("until", {"window": "1h", "until": "2026-13-01"}),
        ("since", {"window": "1h", "since": "2026-03-02T00:00:00Z", "until": "2026-03-02T00:00:00Z"}),
    ],
)
def test_an_unusable_parameter_is_named(parameter: str, params: dict[str, str]) -> None:
    log = Log([Windows()])
    log.send([metric(1, START_US, 1.0)])
    with pytest.raises(BadParameter) as refused:
        ask(log, **params)
    assert refused.value.parameter == parameter


def test_nothing_recorded_is_an_answer_without_buckets() -> None:
    answer = ask(Log([Windows()]), window="1h")
    assert (answer["buckets"], answer["as_of"], answer["overall"]["n"], answer["overall"]["mean"]) == ([], None, 0, None)
    assert answer["overall"]["non_finite"] == NO_NON_FINITE


@pytest.mark.parametrize(("window", "least"), [("1m", 10), ("5m", 10), ("1h", 50), ("1d", 100), ("7d", 500)])
def test_enough_is_said_from_the_count_of_the_size(window: str, least: int) -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US + i, 1.0) for i in range(least - 1))
    assert [b["enough"] for b in ask(log, window=window)["buckets"]] == [False]
    log.send([metric(least, START_US, 1.0)])
    assert [b["enough"] for b in ask(log, window=window)["buckets"]] == [True]


def test_a_constant_series_has_slope_exactly_zero_over_merged_buckets() -> None:
    log = Log([Windows()])
    log.send(metric(i, START_US + i * 50_000_000, 0.3) for i in range(400))
    assert {b["slope_per_hour"] for b in ask(log, window="1h")["buckets"]} == {0.0}
    assert ask(log, window="1h")["overall"]["std"] == 0.0


# ---- laws


def rows_of(p: Partition) -> dict[bytes, tuple[int, bytes]]:
    """Every row as it would be on the wire."""
    found = {}
    for index, table in enumerate(p.schema.tables):
        for tenant, space in p.spaces[index].items():
            for key, row in space.items():
                found[(table.wire, tenant, key)] = (row.applied, table.dump(row))
    return found  # type: ignore[return-value]  # only compared


def restored(schema: Schema, rows: dict[bytes, bytes]) -> Partition:
    """A partition as a worker finds it after a crash."""
    p = Partition("training", 0, schema)
    for raw, value in rows.items():
        wire, tenant, key = parse_wire_key(raw)
        table = schema.by_wire[wire]
        applied, _ = HEAD.unpack_from(value)
        p.space(table, tenant)[key] = Row(tenant, key, applied, applied, value[HEAD.size :])
    p.restored()
    return p


def chain(start_us: int) -> list[Value]:
    """Values each of which waits in the slot that the one after it will need, and a last one that moves them all up."""
    hour = start_us + 402 * DAY_US
    five = hour + 722 * HOUR_US
    minute = five + 578 * 5 * MINUTE_US
    return [(start_us, 1.0), (hour, 2.0), (five, 3.0), (minute, 4.0), (minute + 362 * MINUTE_US, 5.0)]


def chained(start_us: int) -> list[tuple[str, int]]:
    """(run, time) of records that put the chain into day, hour, five-minute and minute ring and then pull it."""
    day, hour, five, minute, last = (t for t, _ in chain(start_us))
    moved = [day + 40 * DAY_US, day, hour + 3 * DAY_US, hour, five + 10 * HOUR_US, five, minute, minute, last]
    return [("r" if t in (day, hour, five) or i >= 7 else "s", t) for i, t in enumerate(moved)]


def eventful(seed: int = 9) -> list[dict[str, Any]]:
    """Few events that move much: rings turn, content rises through every size into the residue, series go over the bound."""
    rng = random.Random(seed)
    ahead = [0, 0, MINUTE_US, 362 * MINUTE_US, 578 * 5 * MINUTE_US, 722 * HOUR_US, 402 * DAY_US]
    behind = [0, 0, 0, 20 * MINUTE_US, 7 * HOUR_US, 3 * DAY_US, 45 * DAY_US, 500 * DAY_US]
    events = [metric(i, t, float(i), run=run, tags=[run]) for i, (run, t) in enumerate(chained(START_US - 900 * DAY_US))]
    now = START_US
    for i in range(len(events), 60):
        now += rng.choice(ahead)
        value = rng.choice([1.5, 2.5, -3.0, "NaN"])
        values = {rng.choice("abcdefgh"): 4.0, "z": 1.0} if rng.random() < 0.5 else {}
        more: dict[str, Any] = {"values": values} if values else {}
        if rng.random() < 0.7:
            more["tags"] = rng.choices(["r", "s", "t", "u"], k=2)
        events.append(metric(i, now - rng.choice(behind), value, run=rng.choice(["r", "s"]), **more))
    return events


def test_one_value_can_push_content_through_every_ring_into_the_residue() -> None:
    fold = Windows()
    log = Log([fold])
    events = [metric(i, t, float(i), run=run) for i, (run, t) in enumerate(chained(START_US))]
    p = log.topics["training"][0]

    def held() -> list[list[float]]:
        return [[table.peek(row).mean for (_, _, run, _), row in p.space(table, "golden").items() if run == "r"] for table in fold.rings]

    log.send(events[:-1])
    assert held() == [[7.0], [5.0], [3.0], [1.0]]
    assert p.space(fold.residue, "golden") == {}
    log.send(events[-1:])
    assert held() == [[8.0], [7.0], [5.0], [3.0]]
    assert [row.state.sketch.n for row in p.space(fold.residue, "golden").values()] == [1]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_crash_after_any_row_of_a_flush_changes_no_row(seed: int) -> None:
    log = Log([Windows(WindowSettings(max_series=8))])
    log.send(eventful(seed))
    schema, records = log.schema, log.records[("training", 0)]
    straight = Partition("training", 0, schema)
    straight.absorb(records)
    wanted = rows_of(straight)
    tables = {schema.tables[0].name, *(t.name for t in log.folds[0].tables)}
    assert {wire.split(".")[0] for wire, _, _ in wanted} >= tables  # every table takes part
    assert straight.counters().overflow > 0
    cuts = 0
    for first, second in pairwise([0, 7, 20, 21, 40, 60]):
        before = Partition("training", 0, schema)
        before.absorb(records[:first])
        saved = {key: value for key, value, _, _ in before.drain()}
        before.absorb(records[first:second])
        flush = [(key, value) for key, value, _, _ in before.drain()]
        for k in range(len(flush) + 1):
            p = restored(schema, {**saved, **dict(flush[:k])})
            assert p.next == (first if k < len(flush) else second)
            p.absorb(records[p.next :])
            assert rows_of(p) == wanted, f"records {first}-{second}, cut after {k} of {len(flush)} rows"
            cuts += 1
    assert cuts > 120


def test_folding_one_by_one_or_all_at_once_is_equal_to_the_bit() -> None:
    log = Log([Windows(WindowSettings(max_series=8))])
    log.send(eventful())
    at_once = Partition("training", 0, log.schema)
    at_once.absorb(log.records[("training", 0)])
    assert rows_of(at_once) == rows_of(log.topics["training"][0])


def test_a_bucket_moved_out_leaves_a_fresh_one_behind() -> None:
    bucket = Bucket(index=4)
    bucket.add(0.5, 3.0)
    moved = bucket.take()
    assert bucket == Bucket()
    assert (moved.index, moved.n, moved.mean, moved.sketch.n) == (4, 1, 3.0, 1)
    moved.add(0.6, 4.0)
    assert bucket == Bucket()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1e308, 1e308)), max_size=30), st.integers(0, 30))
def test_a_bucket_adds_and_merges_as_moments_and_pairs_do(values: list[tuple[float, float]], cut: int) -> None:
    left, right = Bucket(), Bucket()
    moments, other = Moments(), Moments()
    for i, (x, y) in enumerate(values):
        (left if i < cut else right).add(x, y)
        (moments if i < cut else other).add(y)
    assert (left.moments(), right.moments()) == (moments, other)
    pairs, others = left.pairs(), right.pairs()
    left.merge(right, 3.0)
    moments.merge(other)
    pairs.merge(others, 3.0)
    assert left.moments() == moments
    assert left.sketch == Sketch.of(y for _, y in values)
    assert (left.mean_x, left.m2_x) == (pytest.approx(pairs.mean_x), pytest.approx(pairs.m2_x))
    if moments.m2 < 1e300:
        assert left.cxy == pytest.approx(pairs.cxy, rel=1e-9)
    fitted = fit_pairs(left.pairs(), y_constant=moments.min == moments.max).slope
    assert fitted is None or isfinite(fitted)
