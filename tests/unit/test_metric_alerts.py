"""Alert rules on metrics: the golden ones, a recount of every value after each value, and the crash between two rows of a flush."""

from __future__ import annotations

import json
import random
from collections import deque
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.metric_alerts import MetricAlerts, MetricAlertSettings, mean_of
from tables.outliers import Running, score
from tables.partition import Partition
from tables.steps import within
from tables.times import rfc3339
from tests.harness import VECTORS, Log
from tests.unit.test_windows import START_US, restored, rows_of

Value = float | str


def metric(n: int, value: Value | None, name: str = "grad", **data: Any) -> dict[str, Any]:
    data = {"metric_type": name, "model": "m", "run": "r", **({} if value is None else {"value": value}), **data}
    return {"id": f"e{n}", "type": "metric.recorded.v1", "time": rfc3339(START_US + n * 1_000_000), "tenant": "golden", "data": data}


def told(log: Log, rule: str) -> list[tuple[str, str, str, str]]:
    """Messages of a rule as (event, what, previous, severity)."""
    return [(m["derivedfrom"], m["type"].split(".")[1], m["previous"], m["severity"]) for m in log.alerts(f"metric.{rule}")]


# ---- the second implementation: all values, from scratch


def z_of(values: list[float], x: float) -> float | None:
    """z by numpy."""
    return None if len(set(values)) == 1 else float((x - np.mean(values)) / np.std(values, ddof=1))


class Recount:
    """What the rules say of a series, by looking at every value again."""

    def __init__(self, values: list[Value], tags: list[bool], name: str, noise: float = 0.0) -> None:
        self.outliers: list[tuple[int, float | None]] = []
        self.anomaly: list[tuple[str, str, str, str]] = []
        self.nonfinite: list[tuple[str, str, str, str]] = []
        self.plateau: list[tuple[str, str, str, str]] = []
        self.degraded: list[tuple[str, str, str, str]] = []
        self.levels = dict.fromkeys(("anomaly", "nonfinite", "plateau", "degraded"), "ok")
        finite: list[float] = []
        judged: list[int] = []  # side of each judged value, 0 = no outlier
        kinds = ""  # of all values: "f" finite, "n" none
        base, frozen = None, 0.0
        means: list[float] = []  # of each 10 consecutive values
        for i, value in enumerate(values):
            if isinstance(value, str):
                kinds += "n"
                run = len(kinds) - len(kinds.rstrip("n"))
                self._to("nonfinite", i, "critical" if run >= 3 or self.levels["nonfinite"] == "critical" else "warning")
                continue
            kinds += "f"
            if kinds.endswith("f" * 10):
                self._to("nonfinite", i, "ok")
            window = finite[-100:]
            side, z = 0, None
            if len(window) >= 30:
                z = z_of(window, value)
                if (z is None and value != window[0]) or (z is not None and abs(z) > 3):
                    side = 1 if value > np.mean(window) else -1
                    self.outliers.append((i, z))
            judged.append(side)
            if side:
                far = abs(z or 0)
                row = judged[-3:]
                if far > 10:
                    self._to("anomaly", i, "critical")
                elif self.levels["anomaly"] == "ok" and (far > 6 or row in ([1, 1, 1], [-1, -1, -1])):
                    self._to("anomaly", i, "warning")
            elif len(judged) >= 20 and not any(judged[-20:]):
                self._to("anomaly", i, "ok")
            finite.append(value)
            if name in ("mse", "loss"):
                steps = [abs(Decimal(repr(b)) - Decimal(repr(a))) <= Decimal("0.001") for a, b in pairwise(finite[-5:])]
                if len(steps) == 4 and all(steps):
                    self._to("plateau", i, "info")
                elif steps and not steps[-1]:
                    self._to("plateau", i, "ok")
            if name in ("loss", "mse", "accuracy"):
                if tags[i]:
                    base = value
                means += [float(np.mean(finite[-10:]))] if len(finite) >= 10 else []
                if len(finite) >= 20:
                    best = (max if name == "accuracy" else min)(means[:-1])
                    baseline = frozen if self.levels["degraded"] != "ok" else best if base is None else base
                    if baseline > 0:
                        ratio = 2 - means[-1] / baseline if name == "accuracy" else means[-1] / baseline
                        now = self.levels["degraded"]
                        level = "critical" if ratio > 1.25 else "warning" if ratio > 1.1 or (now != "ok" and ratio > 1.05) else "ok"
                        if now == "ok":
                            frozen = baseline
                            worse = (means[-1] - baseline) * (-1 if name == "accuracy" else 1)
                            if noise and worse <= noise * np.std(finite[-101:-1], ddof=1) * np.sqrt(2 / 10):
                                level = "ok"
                        self._to("degraded", i, level)

    def _to(self, rule: str, i: int, level: str) -> None:
        levels = ["ok", "info", "warning", "critical"]
        now = self.levels[rule]
        if level == now:
            return
        up = levels.index(level) > levels.index(now)
        what = "opened" if now == "ok" else "resolved" if level == "ok" else "escalated" if up else "eased"
        getattr(self, rule).append((f"e{i}", what, now, now if level == "ok" else level))
        self.levels[rule] = level


def stream(seed: int, n: int) -> list[Value]:
    """Values with drifts, jumps, flat stretches, runs of outliers and of values that are no numbers."""
    rng = random.Random(seed)
    values: list[Value] = []
    level, spread = 1.0, 0.05
    while len(values) < n:
        what = rng.random()
        if what < 0.55:
            values += [rng.gauss(level, spread) for _ in range(rng.randint(1, 40))]
        elif what < 0.7:
            values += [round(level, 3)] * rng.randint(1, 30)
        elif what < 0.8:
            values += [level + rng.choice([-1, 1]) * spread * rng.uniform(2, 15) for _ in range(rng.randint(1, 4))]
        elif what < 0.87:
            values += [rng.choice(["NaN", "Infinity", "-Infinity"])] * rng.randint(1, 4)
        elif what < 0.94:
            level *= rng.choice([0.7, 0.9, 1.1, 1.3])
        else:
            spread = rng.choice([1e-9, 0.001, 0.05, 0.5])
    return values[:n]


@pytest.mark.parametrize("name", ["loss", "accuracy", "mse", "grad"])
@pytest.mark.parametrize("seed", range(6))
def test_every_rule_says_what_a_recount_of_all_values_says(seed: int, name: str) -> None:
    values = stream(seed, 500)
    rng = random.Random(seed)
    tagged = [rng.random() < 0.01 for _ in values]
    log = Log([MetricAlerts()], 8)
    for i, value in enumerate(values):
        event = metric(i, value, name, tags=["baseline"] if tagged[i] else ["other"])
        log.send([event, event] if i % 7 == 0 else [event])
    want = Recount(values, tagged, name)
    for rule in ("anomaly", "nonfinite", "plateau", "degraded"):
        assert told(log, rule) == getattr(want, rule), rule
    shown = log.get("/metrics/watched", metric=name, model="m", run="r")["series"][0]
    assert shown["outliers"] == len(want.outliers)
    assert shown["alerts"] == want.levels
    finite = [v for v in values if not isinstance(v, str)]
    assert (shown["n"], shown["recent"]) == (len(finite), finite[-100:])


def test_the_streams_of_the_recount_open_every_rule_at_every_level() -> None:
    seen = set()
    for seed in range(6):
        for name in ("loss", "accuracy"):
            want = Recount(stream(seed, 500), [False] * 500, name)
            seen |= {(rule, what, severity) for rule in want.levels for _, what, _, severity in getattr(want, rule)}
    assert seen >= {
        ("anomaly", "opened", "warning"),
        ("anomaly", "opened", "critical"),
        ("anomaly", "resolved", "critical"),
        ("nonfinite", "escalated", "critical"),
        ("nonfinite", "resolved", "critical"),
        ("plateau", "opened", "info"),
        ("plateau", "resolved", "info"),
        ("degraded", "opened", "warning"),
        ("degraded", "escalated", "critical"),
        ("degraded", "eased", "warning"),
        ("degraded", "resolved", "warning"),
    }


# ---- golden


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", ["M4", "M5", "M6"])
def test_golden_alerts_open_at_their_event_and_nowhere_else(name: str, partitions: int, twice: bool) -> None:
    vector = VECTORS[name]
    log = Log([MetricAlerts()], partitions)
    log.send([event for event in vector["events"] for _ in range(2 if twice else 1)])
    want = vector["checks"][0]["expect"]["opened"]
    opened = [m for m in log.alerts(want[0]["rule"]) if m["type"] == "alert.opened.v1"]
    assert [m["derivedfrom"] for m in opened] == [one["at_event"] for one in want]
    for message, one in zip(opened, want, strict=True):
        assert message["subject"] == f"{vector['events'][0]['data']['metric_type']}|m|r"
        for field in ("value", "threshold"):
            assert message[field] == pytest.approx(one.get(field, message[field]), abs=1e-9)


def test_golden_outliers_are_counted_with_their_z_though_no_alert_opens() -> None:
    vector = VECTORS["M6"]
    values = [event["data"]["value"] for event in vector["events"]]
    log = Log([MetricAlerts()])
    found = []
    for i, event in enumerate(vector["events"]):
        before = log.get("/metrics/watched")["series"][0]["outliers"] if i else 0
        log.send([event])
        if log.get("/metrics/watched")["series"][0]["outliers"] > before:
            found.append({"at_event": event["id"], "z": pytest.approx(score(values[max(0, i - 100) : i], values[i])[0], rel=1e-12)})
    assert vector["checks"][0]["expect"]["outliers"] == found
    assert told(log, "anomaly") == [("m6-64", "opened", "ok", "warning"), ("m6-66", "escalated", "warning", "critical")]


# ---- outliers


_NUMBERS = st.one_of(
    st.floats(-1e3, 1e3), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1.0, -1.0, 1e9, 1e9 + 1e-6, 5e-324, 1e-160, 1.7e308])
)


@given(st.lists(_NUMBERS, min_size=2, max_size=100), _NUMBERS)
@settings(max_examples=300, deadline=None)
def test_a_score_is_that_of_fractions(values: list[float], x: float) -> None:
    z, mean, _ = score(values, x)
    assert mean == pytest.approx(float(sum(map(Fraction, values)) / len(values)), rel=1e-12, abs=max(map(abs, values)) * 1e-15)
    some = [Fraction(v) for v in values]
    exact = sum(some) / len(some)
    m2 = sum((v - exact) ** 2 for v in some)
    spread = max(abs(v - exact) for v in some)
    if m2 == 0:
        assert z is None
    elif spread > abs(exact) / 10**6:  # else doubles cannot tell the values from their mean
        assert z is not None
        ratio = (Fraction(x) - exact) ** 2 * (len(some) - 1) / m2
        if ratio > 10**300:
            assert abs(z) > 1e149
            return
        squared = float(ratio)
        assert z * z == pytest.approx(squared, rel=1e-6, abs=1e-12)
        assert squared < 1e-12 or (z > 0) == (Fraction(x) > exact)


@given(st.integers(0, 10**9), st.sampled_from([1.0, 1e-3, 1e6, 1e-9]), st.sampled_from([0.0, 1.0, -5e4, 1e9]))
@settings(max_examples=60, deadline=None)
def test_running_sums_never_call_an_outlier_certainly_inside(seed: int, spread: float, level: float) -> None:
    rng = random.Random(seed)
    window: deque[float] = deque(maxlen=100)
    running, sure = Running(), 0
    for _ in range(400):
        x = level + spread * rng.choice([rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1), rng.uniform(-4, 4), rng.choice([1e3, -1e6, 1e9])])
        if len(window) >= 30:
            z, mean, m2 = score(list(window), x)
            if running.certainly_inside(x, len(window), 9.0):
                sure += 1
                assert z is not None
                assert abs(z) <= 3
            else:
                running.restart(mean, m2)
            running.enter(x, window[0] if len(window) == 100 else None)
        window.append(x)
    assert sure >= 0


def test_most_values_of_a_calm_series_need_no_exact_sums() -> None:
    rng = random.Random(4)
    window: deque[float] = deque(maxlen=100)
    running, sure = Running(), 0
    for _ in range(5000):
        x = rng.gauss(7, 2)
        if len(window) >= 30:
            if running.certainly_inside(x, len(window), 9.0):
                sure += 1
            else:
                _, mean, m2 = score(list(window), x)
                running.restart(mean, m2)
            running.enter(x, window[0] if len(window) == 100 else None)
        window.append(x)
    assert sure > 4800


def test_after_equal_values_any_other_is_an_outlier_without_z_and_three_on_one_side_open() -> None:
    log = Log([MetricAlerts()])
    log.send([metric(i, 0.1) for i in range(40)])
    log.send([metric(40, 0.1), metric(41, 0.2)])
    assert log.alerts() == []
    assert log.get("/metrics/watched")["series"][0]["outliers"] == 1
    log = Log([MetricAlerts(MetricAlertSettings(metric_z_row=1))])
    log.send([metric(i, 0.1) for i in range(30)] + [metric(30, 0.09)])
    message = log.alerts()[0]
    assert (message["value"], message["threshold"], message["severity"]) == (None, 3.0, "warning")


def test_outliers_on_alternating_sides_open_nothing() -> None:
    log = Log([MetricAlerts()])
    rng = random.Random(1)
    log.send([metric(i, rng.gauss(0, 1)) for i in range(100)])
    log.send([metric(100 + i, (-1) ** i * (4.4 + i)) for i in range(4)])
    assert log.alerts("metric.anomaly") == []
    assert log.get("/metrics/watched")["series"][0]["outliers"] >= 4


# ---- values that are no numbers


def test_a_loss_of_nan_is_told_at_once_critical_at_three_in_a_row_and_over_after_ten_numbers() -> None:
    log = Log([MetricAlerts()])
    values: list[Value] = ["NaN", 1.0, "Infinity", "NaN", "-Infinity", "NaN", *[1.0] * 9, "NaN", *[2.0] * 10, "NaN"]
    log.send([metric(i, v, "loss") for i, v in enumerate(values)])
    assert told(log, "nonfinite") == [
        ("e0", "opened", "ok", "warning"),
        ("e4", "escalated", "warning", "critical"),
        ("e25", "resolved", "critical", "critical"),
        ("e26", "opened", "ok", "warning"),
    ]
    first = log.alerts("metric.nonfinite")[0]
    assert (first["subject"], first["value"], first["threshold"], first["period"]) == ("loss|m|r", 1, 1, "2026-03-02")
    shown = log.get("/metrics/watched")["series"][0]
    assert (shown["n"], isfinite(shown["recent"][-1])) == (20, True)


# ---- plateaus and degradation


@pytest.mark.parametrize(("values", "n"), [([0.5, 0.501, 0.5, 0.501, 0.502], 1), ([0.3, 0.299, 0.298, 0.297, 0.296], 1), ([0.5, 0.501, 0.5, 0.501, 0.5021], 0)])
def test_a_step_of_exactly_a_thousandth_still_is_a_plateau(values: list[float], n: int) -> None:
    log = Log([MetricAlerts()])
    log.send([metric(i, v, "train", values={"x.rmse": v}) for i, v in enumerate(values)])
    assert [m["subject"] for m in log.alerts("metric.plateau")] == ["train.x.rmse|m|r"] * n


@given(st.decimals(-10, 10, places=4), st.decimals(-2, 2, places=4), st.decimals(0, 1, places=3))
def test_two_numbers_are_within_a_limit_as_they_are_written(a: Decimal, step: Decimal, limit: Decimal) -> None:
    assert within(float(a), float(a + step), float(limit)) == (abs(step) <= limit)
    assert within(float(a), float(a + limit), float(limit))


def test_a_baseline_tag_replaces_the_best_mean_late_ones_do_not_and_an_open_alert_keeps_its_baseline() -> None:
    log = Log([MetricAlerts()])
    events = [metric(i, 1.0, "loss") for i in range(20)]
    events += [metric(20, 0.5, "loss", tags=["baseline"])]  # mean 0.95 against 0.5: far worse
    events += [{**metric(21, 9.0, "loss", tags=["baseline"]), "time": rfc3339(START_US)}]  # late: no baseline
    log.send(events)
    opened = log.alerts("metric.degraded")[0]
    assert (opened["derivedfrom"], opened["severity"], opened["value"], opened["threshold"]) == ("e20", "critical", pytest.approx(0.95), 0.625)
    log.send([metric(22, 2.0, "loss", tags=["baseline"])])
    assert log.get("/metrics/watched")["series"][0]["baseline"] == 0.5
    log.send([metric(30 + i, 0.525, "loss") for i in range(10)])
    assert [m[1] for m in told(log, "degraded")][-1] == "resolved"
    assert log.get("/metrics/watched")["series"][0]["baseline"] == 2.0


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_with_a_noise_limit_healthy_batches_open_nothing_and_a_doubled_loss_is_told_within_ten_values(name: str) -> None:
    rng = random.Random(5)
    better, worse = (0.3, 0.6) if name == "loss" else (0.8, 0.4)
    values: list[Value] = [(better if i < 600 else worse) * rng.lognormvariate(0, 0.25) for i in range(800)]
    events = [metric(i, x, name) for i, x in enumerate(values)]
    loud, quiet = Log([MetricAlerts()]), Log([MetricAlerts(MetricAlertSettings(degraded_noise=5.0))])
    loud.send(events)
    quiet.send(events)
    assert sum(what == "opened" for _, what, _, _ in told(loud, "degraded")) > 3
    assert told(quiet, "degraded") == Recount(values, [False] * len(values), name, 5.0).degraded
    assert next(m["derivedfrom"] for m in quiet.alerts("metric.degraded")) in {f"e{i}" for i in range(600, 610)}


def test_a_baseline_of_zero_or_less_is_not_judged_and_nineteen_values_are_too_few() -> None:
    log = Log([MetricAlerts()])
    log.send([metric(i, -1.0 if i < 15 else 5.0, "loss") for i in range(40)])
    log.send([metric(100 + i, 1.0 if i < 10 else 9.0, "mae") for i in range(19)])
    assert log.alerts("metric.degraded") == []
    log.send([metric(119, 9.0, "mae")])
    assert told(log, "degraded") == [("e119", "opened", "ok", "critical")]


def test_the_mean_of_huge_values_is_a_number() -> None:
    assert mean_of([1.7e308] * 10) == pytest.approx(1.7e308)
    log = Log([MetricAlerts()])
    log.send([metric(i, (-1) ** i * 1.7e308, "loss") for i in range(140)])
    log.send([metric(140 + i, 5e-324 * (i % 3), "loss") for i in range(140)])
    assert log.get("/metrics/watched")["series"][0]["n"] == 280


# ---- series, bounds, laws


def test_series_are_told_apart_and_named_and_paged() -> None:
    log = Log([MetricAlerts()])
    log.send([metric(1, 1.0), metric(2, 1.0, model="a|b"), metric(3, None), metric(4, 2.0, values={"x": "NaN"})])
    bare = metric(5, "NaN", "top")
    del bare["data"]["run"]
    log.send([bare])
    assert {m["subject"] for m in log.alerts("metric.nonfinite")} == {"grad.x|m|r", "top|m"}
    first = log.get("/metrics/watched", limit=2)
    rest = log.get("/metrics/watched", limit=2, cursor=first["cursor"])
    found = [(s["metric"], s["model"], s["run"], s["n"]) for s in first["series"] + rest["series"]]
    assert found == [("grad", "a|b", "r", 1), ("grad", "m", "r", 2), ("grad.x", "m", "r", 0), ("top", "m", None, 0)]
    assert [s["model"] for s in log.get("/metrics/watched", model="a|b")["series"]] == ["a|b"]
    assert log.get("/metrics/watched", metric="top", model="m", run="")["count"] == 1


def test_series_beyond_the_bound_are_not_watched() -> None:
    log = Log([MetricAlerts(max_series=2)])
    log.send([metric(i, "NaN", f"s{i % 3}") for i in range(9)])
    assert {m["subject"] for m in log.alerts()} == {"s0|m|r", "s1|m|r"}


def mixed(seed: int) -> list[dict[str, Any]]:
    """Events over a few series, several a record, that fill and turn the segments."""
    rng = random.Random(seed)
    values = stream(seed, 400)
    return [
        metric(
            i, v, rng.choice(["loss", "loss", "loss", "accuracy"]), values={"f1": values[-1 - i], rng.choice("ab"): 1.0}, tags=rng.choice([["baseline"], []])
        )
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_after_any_row_of_a_flush_changes_no_row_and_tells_nothing_new(seed: int) -> None:
    log = Log([MetricAlerts(max_series=5)])
    log.send(mixed(seed))
    schema, records = log.schema, log.records[("training", 0)]
    straight = Partition("training", 0, schema)
    straight.absorb(records)
    wanted, messages = rows_of(straight), {out.value for out in straight.outputs}
    assert len(messages) > 10
    for first, second in pairwise([0, 3, 49, 52, 101, 260, 400]):
        before = Partition("training", 0, schema)
        before.absorb(records[:first])
        saved = {key: value for key, value, _, _ in before.drain()}
        before.absorb(records[first:second])
        flush = [(key, value) for key, value, _, _ in before.drain()]
        for k in range(len(flush) + 1):
            p = restored(schema, {**saved, **dict(flush[:k])})
            p.absorb(records[p.next : second])
            assert {out.value for out in p.outputs} <= messages
            p.absorb(records[second:])
            assert rows_of(p) == wanted, f"records {first}-{second}, cut after {k} of {len(flush)} rows"


def test_folding_one_by_one_or_all_at_once_is_equal_to_the_bit_and_rows_stay_small() -> None:
    log = Log([MetricAlerts()])
    log.send(mixed(3))
    at_once = Partition("training", 0, log.schema)
    at_once.absorb(log.records[("training", 0)])
    assert rows_of(at_once) == rows_of(log.topics["training"][0])
    assert [out.value for out in at_once.outputs] == [out.value for out in log.outputs]
    assert max(len(raw) for (wire, _, _), (_, raw) in rows_of(at_once).items() if wire.startswith("metric_")) < 600


def test_every_message_is_one_sentence_that_names_its_series() -> None:
    log = Log([MetricAlerts()])
    log.send([metric(i, v, "loss") for i, v in enumerate(stream(2, 500))])
    for message in log.alerts():
        assert message["message"].startswith("loss of model m, run r, ")
        assert message["message"].endswith(".")
        json.dumps(message, allow_nan=False)
