"""Learning progress through the whole data flow in memory: golden vectors, scipy and numpy as oracles, laws of folds, the alert."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables.dedupe import IDS
from tables.fold import BadParameter
from tables.learning import Learning
from tables.learning_state import LearningSettings
from tables.partition import HEAD, Partition
from tables.rings import SEGMENT
from tables.rows import Row, parse_wire_key
from tables.times import rfc3339
from tests.harness import VECTORS, Log, subset

START_US = 1_772_409_600_000_000  # 2026-03-02
HOUR_US = 3_600_000_000
Event = dict[str, Any]
TREND_KEYS = {
    "task", "run", "n", "enough", "trend", "confidence", "recent_avg", "improvement_rate", "direction", "intercept", "stderr", "p",
    "slope_per_hour", "r2_time", "stderr_time", "p_time", "std", "median", "min", "max", "as_of",
}  # fmt: skip


def at(seconds: float) -> str:
    return rfc3339(START_US + round(seconds * 1e6))


def step(n: int, score: float = 0.5, metric: float = 0.5, seconds: float | None = None, tenant: str = "golden", **data: Any) -> Event:
    """The n-th learning event, n minutes after the start."""
    body = {"task_type": "task", "performance_score": score, "learning_rate": 0.01, "episode_count": n, "convergence_metric": metric}
    time = at(60 * n if seconds is None else seconds)
    return {"id": f"e{n}", "type": "learning.recorded.v1", "time": time, "tenant": tenant, "data": {**body, **data}}


def stream(seed: int, n: int) -> list[Event]:
    """Random events of two tasks in a few runs and in none; times out of order, some equal."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        data = {"task_type": rng.choice(["a", "b|%"]), "learning_rate": rng.uniform(0.001, 0.1)}
        if rng.random() < 0.7:
            data["run"] = rng.choice(["r1", "r1", "r1", "r2", "r|3"])
        found.append(step(i, rng.random(), rng.choice([0.001, 0.009, 0.01, 0.5]), rng.choice([i, i, i, rng.randrange(n)]), **data))
    return found


def rows(p: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row of the partition but the dedupe window's, as it would be on the changelog."""
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for table in p.schema.tables
        if table is not IDS
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
        if row.applied >= 0
    }


# ---- golden


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", ["G9", "G10", "G11", "G12", "L2", "L4", "L5", "L6", "L7", "L8"])
def test_golden_vector_holds_and_a_second_delivery_changes_nothing(name: str, partitions: int) -> None:
    log = Log([Learning()], partitions)
    for _ in range(2):
        log.send(VECTORS[name]["events"])
        for check in VECTORS[name]["checks"]:
            assert subset(check["expect"], log.get(check["path"], **check.get("params", {}))) == []
    assert sum(p.counters().duplicate for p in log.topics["training"]) == len(VECTORS[name]["events"])


def test_a_constant_series_has_a_trend_of_exactly_nothing() -> None:
    log = Log([Learning()])
    log.send(VECTORS["L6"]["events"])
    answer = log.get("/learning/trend", task="task")
    assert [answer[k] for k in ("trend", "confidence", "improvement_rate", "slope_per_hour", "r2_time", "std")] == [0.0] * 6
    assert (answer["recent_avg"], answer["p"], answer["p_time"], answer["direction"]) == (0.3, 1.0, 1.0, "stable")


def test_with_three_events_every_key_of_the_trend_is_there_and_unknown_ones_are_null() -> None:
    log = Log([Learning()])
    log.send(VECTORS["L5"]["events"])
    answer = log.get("/learning/trend", task="task")
    assert set(answer) == TREND_KEYS
    assert {k for k, v in answer.items() if v is None} == TREND_KEYS - {
        "task", "n", "enough", "trend", "confidence", "recent_avg", "improvement_rate", "direction", "as_of",
    }  # fmt: skip


# ---- oracles


@pytest.mark.parametrize("window", [2, 9, 10, 25, 50])
def test_the_trend_agrees_with_scipy_and_numpy_after_every_event(window: int) -> None:
    rng = np.random.default_rng(window)
    scores = np.clip(0.3 + 0.004 * np.arange(90) + rng.normal(scale=0.05, size=90), 0, 1)
    seconds = np.cumsum(rng.exponential(scale=600, size=90)).round(6)
    log = Log([Learning()])
    for n in range(1, 91):
        log.send([step(n, float(scores[n - 1]), seconds=float(seconds[n - 1]))])
        answer = log.get("/learning/trend", task="task", window=window)
        y = scores[:n][-window:]
        assert set(answer) == TREND_KEYS
        assert (answer["n"], answer["enough"]) == (len(y), len(y) >= 10)
        if len(y) < 10:
            assert (answer["trend"], answer["recent_avg"], answer["improvement_rate"], answer["direction"]) == (0.0, 0.0, 0.0, "stable")
            continue
        hours = (seconds[:n][-window:] - seconds[:n][-window:][0]) / 3600
        line, timed = stats.linregress(np.arange(len(y)), y), stats.linregress(hours, y)
        expected = {
            "trend": line.slope, "confidence": line.rvalue**2, "intercept": line.intercept, "stderr": line.stderr, "p": line.pvalue,
            "recent_avg": y[-10:].mean(), "improvement_rate": line.slope * len(y), "slope_per_hour": timed.slope,
            "r2_time": timed.rvalue**2, "stderr_time": timed.stderr, "p_time": timed.pvalue, "std": y.std(ddof=1),
            "median": np.median(y), "min": y.min(), "max": y.max(),
        }  # fmt: skip
        assert {k: answer[k] for k in expected} == {k: pytest.approx(float(v), rel=1e-6, abs=1e-9) for k, v in expected.items()}
        wanted = "stable" if line.pvalue >= 0.05 else "improving" if line.slope > 0 else "declining"
        assert answer["direction"] == wanted


class Plain:
    """Everything about a list of learning events, from the list."""

    def __init__(self, log: Log, events: list[Event]) -> None:
        self.events = []
        offsets: Counter[int] = Counter()
        for (topic, number), records in log.records.items():
            for record in records if topic == "training" else ():
                event = json.loads(record.value or b"")
                self.events.append(((event["time"], number, record.offset), event["data"]))
                offsets[number] += 1
        assert len(self.events) == len(events)
        self.events.sort(key=lambda item: item[0])

    def chosen(self, task: str | None = None, run: str | None = None) -> list[tuple[tuple[str, int, int], dict[str, Any]]]:
        return [(k, d) for k, d in self.events if (task is None or d["task_type"] == task) and (run is None or d.get("run", "") == run)]

    def transitions(self, hold: int) -> tuple[int, int, bool]:
        """entered, left, converged over all streams."""
        entered = left = 0
        inside: dict[tuple[str, str], bool] = {}
        streams: dict[tuple[str, str], list[tuple[tuple[str, int, int], dict[str, Any]]]] = {}
        for k, d in sorted(self.events, key=lambda item: item[0][1:]):  # log order
            streams.setdefault((d["task_type"], d.get("run", "")), []).append((k, d))
        for name, mine in streams.items():
            newest, state, row = "", False, 0
            for (time, _, _), d in mine:
                if time < newest:
                    continue
                newest = time
                row = row + 1 if (d["convergence_metric"] < 0.01) is not state else 0
                if row == hold:
                    state, row = not state, 0
                    entered, left = entered + state, left + (not state)
            inside[name] = state
        return entered, left, any(inside.values())


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("hold", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_answer_over_a_random_stream_agrees_with_a_plain_implementation(seed: int, hold: int, partitions: int) -> None:
    log = Log([Learning(LearningSettings(convergence_hold=hold))], partitions)
    events = stream(seed, 300)
    log.send(events)
    plain = Plain(log, events)
    for task, run in ((None, None), ("a", None), ("b|%", "r1"), ("a", ""), (None, "r|3")):
        chosen = plain.chosen(task, run)
        live = log.get("/learning/metrics", **{k: v for k, v in (("task", task), ("run", run)) if v is not None})
        scores = [d["performance_score"] for _, d in chosen]
        assert (live["total_learning_events"], live["last_update"]) == (len(chosen), chosen[-1][0][0])
        assert (live["current_performance"], live["current_learning_rate"]) == (scores[-1], chosen[-1][1]["learning_rate"])
        assert live["recent_avg_performance"] == pytest.approx(np.mean(scores[-10:]))
        assert live["performance_trend"] == ("improving" if scores[-1] > scores[-2] else "declining")
        assert live["lifetime_avg_performance"] == pytest.approx(np.mean(scores))
        now_us = START_US + 10 * HOUR_US
        found = log.get("/learning/convergence", now_us=now_us, **{k: v for k, v in (("task", task), ("run", run)) if v is not None})
        below = [(k, d) for k, d in chosen if d["convergence_metric"] < 0.01]
        assert found["total_convergences"] == len(below)
        assert found["avg_convergence_metric"] == pytest.approx(np.mean([d["convergence_metric"] for _, d in below]))
        assert found["recent_convergences"] == [[k[0], d["task_type"], d["convergence_metric"]] for k, d in below[-10:]]
        assert found["last_convergence"] == below[-1][0][0]
        assert {t: s["count"] for t, s in found["task_statistics"].items()} == Counter(
            {d["task_type"]: 0 for _, d in chosen} | Counter(d["task_type"] for _, d in below)
        )
        if task is not None:
            given_ = {} if run is None else {"run": run}
            for window in (1, 10, 100, 1000):
                points = log.get("/learning/curve", task=task, window=window, **given_)["points"]
                assert [(p["time"], p["score"], p["episode_count"]) for p in points] == [
                    (k[0], d["performance_score"], d["episode_count"]) for k, d in chosen[-window:]
                ]
            assert log.get("/learning/trend", task=task, window=1000, **given_)["trend"] == pytest.approx(
                stats.linregress(range(len(scores)), scores).slope, abs=1e-12
            )
    everything = log.get("/learning/convergence")
    assert (everything["entered"], everything["left"], everything["converged"]) == plain.transitions(hold)
    report = log.get("/learning/report", limit=200)
    last = plain.events[-200:]
    scores = [d["performance_score"] for _, d in last]
    assert (report["total_learning_events"], report["recent_events_analyzed"]) == (300, 200)
    assert report["overall_performance"] == pytest.approx(
        {"average": np.mean(scores), "std_deviation": np.std(scores), "min": min(scores), "max": max(scores), "median": np.median(scores)}
    )
    for task in ("a", "b|%"):
        mine = [d["performance_score"] for _, d in last if d["task_type"] == task]
        assert subset(
            {"event_count": len(mine), "avg_performance": float(np.mean(mine)), "latest_score": mine[-1],
             "total_events": len(plain.chosen(task)), "performance_trend": "improving" if mine[-1] > mine[-2] else "declining"},
            report["task_analysis"][task],
        ) == []  # fmt: skip


def test_points_of_one_moment_are_told_apart_by_partition_and_offset() -> None:
    log = Log([Learning()], 8)
    events = [step(i, seconds=0, run=f"r{i % 6}") for i in range(6 * (SEGMENT + 8))]
    log.send(events)
    wanted = [d["episode_count"] for _, d in Plain(log, events).chosen()]
    for window in (1, 10, 39, 45, 100):
        points = log.get("/learning/curve", task="task", window=window)["points"]
        assert [p["episode_count"] for p in points] == wanted[-window:]


def test_a_stream_that_a_producer_spread_over_partitions_is_read_whole() -> None:
    log = Log([Learning()], 3)
    for i in range(300):
        event = {"specversion": "1.0", "source": "t", **step(i, metric=0.001)}
        log.append("training", b"astray", json.dumps(event).encode(), i % 3, 4_102_444_800_000)
    points = log.get("/learning/curve", task="task", run="", window=1000)["points"]
    assert [p["episode_count"] for p in points] == list(range(300))
    found = log.get("/learning/convergence", task="task")
    assert (found["total_convergences"], found["entered"], found["since"]) == (300, 3, at(0))


# ---- laws of folds


@pytest.mark.parametrize("ring", [SEGMENT, 70])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_after_any_row_of_a_flush_changes_nothing(seed: int, ring: int) -> None:
    def fresh() -> Partition:
        return Log([Learning(LearningSettings(learning_ring=ring))]).topics["training"][0]

    log = Log([Learning(LearningSettings(learning_ring=ring))])
    log.send(stream(seed, 600))
    records = log.records[("training", 0)]
    for flushed, crash in ((0, 40), (35, 300), (100, 600), (400, 440)):
        source = fresh()
        source.absorb(records[:flushed])
        kept = [(k, v) for k, v, _, _ in source.drain()]
        source.absorb(records[flushed:crash])
        flush = [(k, v) for k, v, _, _ in source.drain()]
        for k in range(len(flush) + 1):
            p = fresh()
            for key, raw in [*kept, *flush[:k]]:
                wire, tenant, parts = parse_wire_key(key)
                applied, _ = HEAD.unpack_from(raw)
                p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, raw[HEAD.size :])
            p.restored()
            p.absorb(records[max(0, flushed - 5) :])
            assert rows(p) == rows(log.topics["training"][0]), (flushed, crash, k)


@pytest.mark.parametrize("partitions", [1, 8])
def test_replay_from_offset_zero_gives_the_same_rows_and_the_same_alerts(partitions: int) -> None:
    log, again = Log([Learning()], partitions), Log([Learning()], partitions)
    log.send(stream(3, 400))
    for number, p in enumerate(again.topics["training"]):
        p.absorb(log.records[("training", number)])
        assert rows(p) == rows(log.topics["training"][number])
    told = [(o.topic, o.key, o.value) for p in again.topics["training"] for o in p.outputs]
    assert sorted(told, key=str) == sorted([(o.topic, o.key, o.value) for o in log.outputs], key=str)
    found = log.get("/learning/convergence")
    types = Counter(a["type"] for a in log.alerts("learning.converged"))
    assert types == {"alert.opened.v1": found["entered"], "alert.resolved.v1": found["left"]}
    assert found["left"] > 5


def test_one_partition_or_eight_give_the_same_answers() -> None:
    whole, split = Log([Learning()], 1), Log([Learning()], 8)
    events = [{**event, "time": at(i)} for i, event in enumerate(stream(4, 300))]
    for log in (whole, split):
        log.send(events)
    for path, asked in (
        ("/learning/metrics", {}), ("/learning/report", {}), ("/learning/convergence", {}), ("/learning/trend", {"tasks": ["a", "b|%"]}),
        ("/learning/curve", {"task": "a", "window": 1000}),
    ):  # fmt: skip
        assert subset(whole.get(path, **asked), split.get(path, **asked)) == []


@settings(max_examples=30, deadline=None)
@given(metrics=st.lists(st.sampled_from([0.0, 0.009, 0.01, 0.5]), max_size=25), hold=st.integers(1, 4))
def test_alerts_open_on_entering_and_resolve_on_leaving_and_the_latest_message_is_the_state(metrics: list[float], hold: int) -> None:
    log = Log([Learning(LearningSettings(convergence_hold=hold))])
    log.send(step(i, metric=metric, run="r|1") for i, metric in enumerate(metrics))
    told = log.alerts("learning.converged")
    assert [a["type"] for a in told] == ["alert.opened.v1", "alert.resolved.v1"] * (len(told) // 2) + ["alert.opened.v1"] * (len(told) % 2)
    state = log.get("/learning/convergence", task="task")
    assert (state["entered"] + state["left"], state["converged"]) == (len(told), len(told) % 2 == 1)
    assert {a["subject"] for a in told} <= {"task|r%7C1"}


# ---- rules one by one


def test_entering_and_leaving_on_different_days_is_one_alert_of_the_day_it_opened() -> None:
    log = Log([Learning()])
    day = 86_400
    log.send([step(0), step(1, metric=0.001, seconds=day), step(2, metric=0.002, seconds=2 * day), step(3, metric=0.02, seconds=3 * day)])
    opened, resolved = log.alerts()
    assert (opened["severity"], opened["previous"], opened["period"], opened["value"]) == ("info", "ok", "2026-03-03", 0.001)
    assert (resolved["severity"], resolved["previous"], resolved["value"], resolved["threshold"]) == ("info", "info", 0.02, 0.01)
    assert opened["alert_id"] == resolved["alert_id"] and opened["subject"] == "task"
    assert (opened["derivedfrom"], resolved["derivedfrom"]) == ("e1", "e3")
    log.send([step(1, metric=0.001), step(3, metric=0.02)])
    assert len(log.alerts()) == 2


def test_a_late_event_counts_as_a_convergence_but_moves_no_state() -> None:
    log = Log([Learning()])
    log.send([step(5), step(1, metric=0.001), step(5, metric=0.5), step(6, metric=0.005), step(2, metric=0.5)])
    found = log.get("/learning/convergence", task="task", now_us=START_US + HOUR_US)
    assert (found["total_convergences"], found["entered"], found["left"], found["converged"], found["late"]) == (2, 1, 0, True, 2)
    assert (found["since"], found["last_convergence"]) == (at(360), at(360))
    assert found["convergence_rate"] == pytest.approx(2 / (59 / 60))


def test_an_event_of_the_same_moment_as_the_newest_is_not_late() -> None:
    log = Log([Learning()])
    log.send([step(0, seconds=0), step(1, metric=0.001, seconds=0)])
    assert log.get("/learning/convergence")["entered"] == 1


def test_the_rate_is_over_the_hours_since_the_first_and_undefined_without_a_span() -> None:
    log = Log([Learning()])
    log.send([step(0, metric=0.001, seconds=0), step(1, metric=0.003, seconds=1800)])
    asked = {n: log.get("/learning/convergence", at=at(n)) for n in (0, 1800, 7200)}
    assert [(a["convergence_rate"], a["rate_defined"]) for a in asked.values()] == [(0.0, False), (4.0, True), (1.0, True)]
    assert asked[7200]["at"] == at(7200)
    early = log.get("/learning/convergence", now_us=START_US - HOUR_US)
    assert early["at"] == at(1800)  # never before what was absorbed


def test_where_nothing_was_recorded_every_key_is_there_with_zeros_and_nulls() -> None:
    log = Log([Learning()], 8)
    found = log.get("/learning/convergence", task="nobody")
    counts = ("total_convergences", "avg_convergence_metric", "convergence_rate", "rate_defined")
    assert [found[name] for name in counts] == [0, 0.0, 0.0, False]
    assert (found["recent_convergences"], found["last_convergence"], found["since"], found["task_statistics"]) == ([], None, None, {})
    live = log.get("/learning/metrics")
    assert (live["total_learning_events"], live["active_goals_count"]) == (0, 0)
    assert {v for k, v in live.items() if not k.endswith(("events", "count"))} == {None}
    report = log.get("/learning/report")
    assert (report["total_learning_events"], report["recent_events_analyzed"]) == (0, 0)
    assert (report["time_span_hours"], report["task_analysis"]) == (None, {})
    assert set(report["overall_performance"].values()) == {None}
    log.send(VECTORS["L8"]["events"])
    assert list(log.get("/learning/report")) == list(report)


def test_curve_and_trend_of_a_task_never_seen_are_not_found() -> None:
    log = Log([Learning()])
    log.send([step(0), step(1, tenant="other", task_type="theirs")])
    for path in ("/learning/curve", "/learning/trend"):
        assert log.get(path, task="nobody")["status"] == 404
        assert log.get(path, task="theirs")["status"] == 404
        assert log.get(path, task="task", run="r")["status"] == 404
    several = log.get("/learning/trend", tasks=["task,nobody"])["tasks"]
    assert [(name, one["n"]) for name, one in several.items()] == [("task", 1), ("nobody", 0)]
    assert set(several["nobody"]) == TREND_KEYS - {"as_of"}


def test_parameters_out_of_range_are_refused() -> None:
    log = Log([Learning()])
    for path, asked in (
        ("/learning/trend", {"task": "t", "window": 1}), ("/learning/trend", {"task": "t", "window": 1001}),
        ("/learning/curve", {"task": "t", "window": 0}), ("/learning/curve", {"task": "t", "window": 1001}), ("/learning/curve", {}),
        ("/learning/report", {"limit": 0}), ("/learning/report", {"limit": 1001}), ("/learning/convergence", {"at": "2026-03-02T00:00:00"}),
        ("/learning/goals", {"state": "lost"}),
    ):  # fmt: skip
        with pytest.raises(msgspec.ValidationError):
            log.get(path, **asked)
    log.send([step(0)])
    for asked, name in (({}, "task"), ({"task": "task", "tasks": ["a"]}, "tasks"), ({"tasks": [","]}, "tasks")):
        with pytest.raises(BadParameter) as refused:
            log.get("/learning/trend", **asked)
        assert refused.value.parameter == name
    with pytest.raises(BadParameter) as refused:
        log.get("/learning/curve", task="task", fields=["score", "loss"])
    assert refused.value.parameter == "fields"


def test_the_curve_begins_at_since_and_shows_the_fields_asked_for() -> None:
    log = Log([Learning()])
    log.send(step(i, i / 100) for i in range(60))
    points = log.get("/learning/curve", task="task", since=at(57 * 60), fields=["time,score"])["points"]
    assert points == [{"time": at(60 * i), "score": i / 100} for i in (57, 58, 59)]
    assert list(log.get("/learning/curve", task="task", window=1)["points"][0]) == [
        "time", "score", "learning_rate", "episode_count", "convergence_metric",
    ]  # fmt: skip


def test_time_between_events_matters_by_the_hour_and_not_by_the_event() -> None:
    slow, fast, still = Log([Learning()]), Log([Learning()]), Log([Learning()])
    for log, gap in ((slow, 3600), (fast, 60), (still, 0)):
        log.send(step(i, [0.1, 0.4, 0.3][i % 3] + i / 50, seconds=i * gap) for i in range(20))
    a, b, c = (log.get("/learning/trend", task="task") for log in (slow, fast, still))
    assert a["trend"] == b["trend"] == c["trend"] != 0
    assert b["slope_per_hour"] == pytest.approx(60 * a["slope_per_hour"], rel=1e-9)
    assert [c[k] for k in ("slope_per_hour", "r2_time", "stderr_time", "p_time")] == [None] * 4


def test_a_threshold_of_a_task_overrules_the_general_one() -> None:
    log = Log([Learning(LearningSettings(convergence_threshold={"": 0.01, "loose": 0.1}))])
    log.send([step(0, metric=0.05), step(1, metric=0.05, task_type="loose"), step(2, metric=0.1, task_type="loose")])
    counts = {task: s["count"] for task, s in log.get("/learning/convergence")["task_statistics"].items()}
    assert counts == {"task": 0, "loose": 1}
    only = Log([Learning(LearningSettings(convergence_threshold={"loose": 0.1}))])
    only.send([step(0, metric=0.009)])
    assert only.get("/learning/convergence")["total_convergences"] == 1


def test_other_settings_are_other_rows() -> None:
    names = {tuple(t.wire for t in Learning(s).tables) for s in (
        LearningSettings(), LearningSettings(learning_ring=999), LearningSettings(convergence_hold=2),
        LearningSettings(convergence_threshold={"": 0.02}), LearningSettings(max_goals=9),
    )}  # fmt: skip
    assert len(names) == 5


def test_goals_of_the_task_are_counted_as_active_until_they_are_completed() -> None:
    log = Log([Learning()], 8)
    log.send([step(0)])
    for n, (task, target) in enumerate((("task", 1), ("task", 2), ("other", 1))):
        data = {"goal_id": f"g{n}", "task_type": task, "target": target}
        log.send([{"id": f"g{n}", "type": "goal.created.v1", "time": at(n), "tenant": "golden", "data": data}])
    data = {"goal_id": "g0", "task_type": "task", "current": 1.0}
    log.send([{"id": "p", "type": "goal.progressed.v1", "time": at(9), "tenant": "golden", "data": data}])
    assert log.get("/learning/metrics")["active_goals_count"] == 2
    assert log.get("/learning/metrics", task="task")["active_goals_count"] == 1
    assert log.get("/learning/report")["goal_summary"]["total_goals"] == 3


@pytest.mark.parametrize("ring", [1000, 100])
def test_after_twenty_thousand_events_no_answer_holds_more_than_the_ring_and_the_total_says_so(ring: int) -> None:
    fold = Learning(LearningSettings(learning_ring=ring))
    log = Log([fold])
    log.send(step(i, (i % 100) / 100) for i in range(20_000))
    points = log.get("/learning/curve", task="task", window=1000)["points"]
    assert [p["episode_count"] for p in points] == list(range(20_000 - ring, 20_000))
    assert log.get("/learning/trend", task="task", window=1000)["n"] == ring
    report = log.get("/learning/report", limit=1000)
    assert (report["total_learning_events"], report["recent_events_analyzed"]) == (20_000, ring)
    assert log.get("/learning/metrics")["total_learning_events"] == 20_000
    p = log.topics["training"][0]
    assert len(p.spaces[fold.ring.closed.index]["golden"]) == -(-ring // SEGMENT)
    assert max(len(value) for key, (_, value) in rows(p).items() if key[0].startswith("learning")) < 2048


@pytest.mark.parametrize(
    ("field", "bad"),
    [("performance_score", 1.2), ("performance_score", "NaN"), ("learning_rate", 0), ("convergence_metric", -0.1), ("episode_count", -1)],
)
def test_a_field_out_of_range_is_a_dead_letter_that_names_it_and_the_next_event_is_folded(field: str, bad: object) -> None:
    log = Log([Learning()])
    event = step(0)
    event["data"][field] = bad
    log.send([json.dumps({"specversion": "1.0", "source": "t", **event}).encode(), step(1)], topic="training")
    assert field in log.dead_letters()[0][1]["error"]
    assert log.get("/learning/metrics")["total_learning_events"] == 1


def test_huge_learning_rates_break_no_answer() -> None:
    log = Log([Learning()])
    log.send(step(i, learning_rate=1.7e308 - i * 1e300) for i in range(12))
    live, report = log.get("/learning/metrics"), log.get("/learning/report")
    assert live["lifetime_avg_learning_rate"] is None
    assert report["learning_dynamics"]["average_learning_rate"] == pytest.approx(1.7e308)


def test_the_message_names_task_run_and_metric() -> None:
    log = Log([Learning()])
    log.send([step(0, metric=0.001, run="r1"), step(1, metric=0.25, run="r1")])
    assert [a["message"] for a in log.alerts()] == [
        "task in run r1 has converged: its metric is 0.001, below 0.01.",
        "task in run r1 has left convergence: its metric is 0.25, 0.01 or above.",
    ]
