"""Goals through the whole data flow in memory: golden vectors, a second plain implementation, laws of folds, and the alerts."""

from __future__ import annotations

import math
import random
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables.dedupe import IDS
from tables.fold import BadParameter
from tables.goal_state import HISTORY, GoalBounds, GoalState
from tables.goals import Goals
from tables.partition import HEAD, Partition
from tables.rows import Row, parse_wire_key
from tables.times import rfc3339, to_us
from tests.harness import VECTORS, Log, Rec, subset

START_US = 1_772_409_600_000_000  # 2026-03-02
Event = dict[str, Any]


def at(seconds: float) -> str:
    return rfc3339(START_US + round(seconds * 1e6))


def goal(n: int, goal_id: str = "g", seconds: float = 0.0, tenant: str = "golden", **data: Any) -> Event:
    body = {"goal_id": goal_id, "target": 1.0, **data}
    return {"id": f"c{n}", "type": "goal.created.v1", "time": at(seconds), "tenant": tenant, "data": body}


def value(n: int, current: float, seconds: float | None = None, goal_id: str = "g", tenant: str = "golden", **data: Any) -> Event:
    time = at(n if seconds is None else seconds)
    body = {"goal_id": goal_id, "current": current, **data}
    return {"id": f"v{n}", "type": "goal.progressed.v1", "time": time, "tenant": tenant, "data": body}


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


def reasons(log: Log) -> list[str]:
    return [headers["reason"] for _, headers in log.dead_letters()]


# ---- golden


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", ["G12", "L2", "L4"])
def test_golden_vector_holds_and_a_second_delivery_changes_nothing(name: str, partitions: int) -> None:
    log = Log([Goals()], partitions)
    for _ in range(2):
        log.send(VECTORS[name]["events"])
        for check in VECTORS[name]["checks"]:
            assert subset(check["expect"], log.get(check["path"], **check.get("params", {}))) == []
    assert sum(p.counters().duplicate for p in log.topics["training"]) == len(VECTORS[name]["events"])


@pytest.mark.parametrize("partitions", [1, 8])
def test_l1_a_loss_goal_goes_from_its_first_value_completes_once_and_shows_the_regress(partitions: int) -> None:
    vector = VECTORS["L1"]
    expect = dict(vector["checks"][0]["expect"])
    wanted = expect.pop("percentage_after_each")
    log = Log([Goals()], partitions)
    log.send(vector["events"][:1])
    assert subset({"percentage": 0.0, "current": None, "start": None, "completed": False}, log.get("/goals/loss")) == []
    percentages = []
    for event in vector["events"][1:]:
        log.send([event])
        percentages.append(log.get("/goals/loss")["percentage"])
    assert percentages == pytest.approx(wanted, abs=1e-9)
    assert subset(expect, log.get("/goals/loss")) == []
    log.send(vector["events"])
    opened = [{"rule": a["rule"], "at_event": a["derivedfrom"]} for a in log.alerts() if a["type"] == "alert.opened.v1"]
    assert opened == vector["checks"][1]["expect"]["opened"]
    assert len(log.alerts()) == 2


def test_l3_the_estimate_of_completion_has_its_interval() -> None:
    log = Log([Goals()])
    log.send(VECTORS["L3"]["events"])
    answer, expect = log.get("/goals/eta"), VECTORS["L3"]["checks"][0]["expect"]
    last_us = to_us(datetime.fromisoformat(VECTORS["L3"]["events"][-1]["time"]))
    for name in ("eta", "eta_low", "eta_high"):
        ahead = (to_us(datetime.fromisoformat(answer[name])) - last_us) / 1e6
        assert ahead == pytest.approx(expect[f"{name}_seconds_from_last"], abs=1e-6)
    assert answer["slope_per_second"] == pytest.approx(expect["slope_per_second"], rel=1e-9)
    assert answer["stderr"] == pytest.approx(expect["stderr"], rel=1e-9)
    assert answer["model"] == "linear"


def test_l9_equal_content_is_no_change_other_content_a_conflict_and_an_unknown_goal_no_silence() -> None:
    log = Log([Goals()])
    for _ in range(2):
        log.send(VECTORS["L9"]["events"])
        assert log.get("/goals/d")["target"] == 1.0
        assert reasons(log) == [reason for _, reason in VECTORS["L9"]["checks"][1]["expect"]["reasons"]]
    assert [headers["error"].split(":")[0] for _, headers in log.dead_letters()] == ["target", "goal_id"]
    assert log.topics["training"][0].counters().skipped == {"goal_exists": 1}


# ---- the oracle: the rules once more, in plain Python


class Plain:
    """A goal by the table of the spec, from the list of its values."""

    def __init__(self, target: float, direction: str, start: float | None, values: list[tuple[float, float]]) -> None:
        def met(x: float) -> bool:
            return x >= target if direction == "at_least" else x <= target

        self.met = met
        seen = [x for _, x in values]
        latest = max(range(len(values)), key=lambda i: (values[i][0], i)) if values else None
        self.current = seen[latest] if latest is not None else None
        good = [t for t, x in values if met(x)]
        self.completed_at = at(min(good)) if good else None
        self.regressed = bool(good) and not met(self.current)
        ratio = direction == "at_least" and target > 0 and start is None
        self.start = None if ratio else start if start is not None else seen[0] if seen else None
        if self.current is None:
            self.percentage = 0.0
        elif met(self.current):
            self.percentage = 100.0
        elif ratio:
            self.percentage = min(max(self.current / target * 100, 0.0), 100.0)
        elif self.start == target or met(self.start):
            self.percentage = 0.0
        else:
            self.percentage = min(max((self.current - self.start) / (target - self.start) * 100, 0.0), 100.0)


figure = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.floats(-1e6, 1e6))


@settings(max_examples=150, deadline=None)
@given(
    target=figure,
    direction=st.sampled_from(["at_least", "at_most"]),
    start=st.none() | figure,
    values=st.lists(st.tuples(st.integers(0, 20).map(float), figure), max_size=12),
)
def test_a_goal_agrees_with_a_plain_implementation_after_every_value(
    target: float, direction: str, start: float | None, values: list[tuple[float, float]]
) -> None:
    log = Log([Goals()])
    log.send([goal(0, target=target, direction=direction, **({} if start is None else {"start": start}))])
    turns = 0
    before = False
    for n in range(len(values) + 1):
        if n:
            log.send([value(n, values[n - 1][1], values[n - 1][0])])
        answer, plain = log.get("/goals/g"), Plain(target, direction, start, values[:n])
        assert answer["percentage"] == pytest.approx(plain.percentage, abs=1e-9)
        assert (answer["current"], answer["start"]) == (plain.current, plain.start)
        assert (answer["completed"], answer["completed_at"]) == (plain.completed_at is not None, plain.completed_at)
        assert answer["regressed"] is plain.regressed
        turns += plain.regressed is not before
        before = plain.regressed
    assert len(log.alerts("goal.completed")) == (plain.completed_at is not None)
    assert len(log.alerts("goal.regressed")) == turns


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 150), direction=st.sampled_from([1.0, -1.0]))
def test_the_estimate_agrees_with_scipy_over_the_last_hundred_values(seed: int, n: int, direction: float) -> None:
    rng = random.Random(seed)
    moments = [float(i * 10 + rng.randrange(9)) for i in range(n)]
    values = [direction * (0.001 * t + rng.gauss(0, 0.05)) for t in moments]
    log = Log([Goals()])
    log.send([goal(0, target=direction * 1000.0, start=0.0, direction="at_least" if direction > 0 else "at_most")])
    log.send(value(i, x, t) for i, (t, x) in enumerate(zip(moments, values, strict=True)))
    answer = log.get("/goals/g")
    line = stats.linregress(moments[-HISTORY:], values[-HISTORY:])
    assert (answer["n"], answer["n_total"]) == (min(n, HISTORY), n)
    if line.slope * direction <= 0:
        assert [answer[k] for k in ("eta", "eta_low", "eta_high", "slope_per_second")] == [None] * 4
        return
    assert answer["slope_per_second"] == pytest.approx(line.slope, rel=1e-9)
    left = direction * 1000.0 - values[-1]
    half = stats.t.ppf(0.95, n_used - 2) * line.stderr * direction if (n_used := min(n, HISTORY)) > 2 else math.nan
    expected = {"eta": line.slope, "eta_low": line.slope + half, "eta_high": line.slope - half}
    for name, slope in expected.items():
        if math.isnan(slope) or slope * direction <= 0 or left / slope > 200_000_000_000:
            assert answer[name] is None
        else:
            seconds = (to_us(datetime.fromisoformat(answer[name])) - START_US) / 1e6 - moments[-1]
            assert seconds == pytest.approx(left / slope, rel=1e-6, abs=1e-5)


# ---- laws of folds


def stream(seed: int, n: int) -> list[Event]:
    """Creations, equal and not, and values of a few goals, also before they are created; times out of order."""
    rng = random.Random(seed)
    found: list[Event] = []
    for i in range(n):
        seconds = rng.randrange(500)
        name = rng.choice("aaaaaabcdefg")
        task = rng.choice([{}, {}, {"task_type": "t|%"}]) if name != "a" else {}
        if rng.random() < 0.15:
            found.append(goal(i, name, seconds, target=rng.choice([1.0, 1.0, 2.0]), direction=rng.choice(["at_least", "at_most"]), **task))
        else:
            found.append(value(i, rng.uniform(0, 3), seconds, name, **task))
    return found


@pytest.mark.parametrize("bound", [3, 10_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_after_any_row_of_a_flush_changes_nothing(seed: int, bound: int) -> None:
    def fresh() -> Partition:
        return Log([Goals(GoalBounds(bound))]).topics["training"][0]

    log = Log([Goals(GoalBounds(bound))])
    log.send(stream(seed, 330))
    records = log.records[("training", 0)]
    for flushed, crash in ((0, 40), (30, 120), (70, 330), (200, 290)):
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
    log, again = Log([Goals()], partitions), Log([Goals()], partitions)
    log.send(stream(3, 400))
    for number, p in enumerate(again.topics["training"]):
        p.absorb(log.records[("training", number)])
        assert rows(p) == rows(log.topics["training"][number])
    told = [(o.topic, o.key, o.value) for p in again.topics["training"] for o in p.outputs]
    assert sorted(told, key=str) == sorted([(o.topic, o.key, o.value) for o in log.outputs], key=str)
    assert log.alerts("goal.completed") and log.alerts("goal.regressed") and log.dead_letters()


def test_a_refused_record_is_refused_again_where_the_goal_is_ahead_of_the_log() -> None:
    log = Log([Goals()])
    log.send([value(0, 0.5, 900), goal(1, seconds=1), value(2, 0.7, 2)])
    source = log.topics["training"][0]
    kept = {k: v for k, v, _, _ in source.drain() if k.startswith((b"counters", b"goal"))}
    p = Log([Goals()]).topics["training"][0]
    for key, raw in kept.items():
        wire, tenant, parts = parse_wire_key(key)
        applied, _ = HEAD.unpack_from(raw)
        p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, raw[HEAD.size :])
    p.restored()
    p.absorb(log.records[("training", 0)])
    assert rows(p) == rows(source)  # the watermark too: a refused record does not move it


def test_a_refusal_leaves_every_row_as_it_was() -> None:
    log = Log([Goals()])
    log.send([goal(0), value(1, 0.5)])
    p = log.topics["training"][0]
    goals = {key: row for key, row in rows(p).items() if key[0].startswith("goal")}
    log.send([goal(2, target=2.0), value(3, 0.7, goal_id="h"), value(4, 0.7, task_type="t")])
    assert {key: row for key, row in rows(p).items() if key[0].startswith("goal")} == goals
    assert reasons(log) == ["goal_conflict", "unknown_goal", "unknown_goal"]


# ---- rules one by one


@pytest.mark.parametrize(
    ("field", "other"),
    [("description", "x"), ("target", 2), ("direction", "at_most"), ("start", 0), ("metric", "loss"), ("deadline", "2026-05-01T00:00:00Z")],
)
def test_a_second_creation_with_one_field_changed_is_a_conflict_that_names_it(field: str, other: object) -> None:
    log = Log([Goals()])
    log.send([goal(0), goal(1, **{field: other}), goal(2)])
    assert reasons(log) == ["goal_conflict"]
    assert log.dead_letters()[0][1]["error"].startswith(f"{field}: ")


def test_creating_a_goal_again_wipes_nothing_and_numbers_and_times_are_compared_as_such() -> None:
    log = Log([Goals()])
    first = {"target": 1, "start": 0, "deadline": "2026-03-03T01:00:00+01:00"}
    log.send([goal(0, **first), value(1, 2.0), value(2, 0.5)])
    before = log.get("/goals/g")
    log.send([goal(3, seconds=2.0, target=1.0, start=0.0, deadline="2026-03-03T00:00:00Z")])
    assert log.get("/goals/g") == before
    assert (before["completed"], before["regressed"], before["percentage"]) == (True, True, 50.0)
    assert before["deadline"] == "2026-03-03T00:00:00.000000Z"


def test_a_late_met_value_moves_the_completion_back_and_a_late_miss_replaces_nothing() -> None:
    log = Log([Goals()])
    log.send([goal(0), value(1, 1.5, 100), value(2, 1.0, 40), value(3, 0.2, 60)])
    answer = log.get("/goals/g")
    assert (answer["completed_at"], answer["current"], answer["regressed"]) == (at(40), 1.5, False)
    assert len(log.alerts()) == 1


def test_the_regress_opens_and_resolves_under_one_id_and_the_notice_comes_once() -> None:
    log = Log([Goals()])
    day = 86_400
    log.send([goal(0, task_type="t|x"), *(value(i, c, day * i, task_type="t|x") for i, c in enumerate((1.0, 0.5, 0.4, 1.2, 0.1), 1))])
    fields = ("rule", "type", "severity", "previous", "period", "value", "threshold")
    told = [tuple(a[name] for name in fields) for a in log.alerts()]
    assert told == [
        ("goal.completed", "alert.opened.v1", "info", "ok", "2026-03-03", 1.0, 1.0),
        ("goal.regressed", "alert.opened.v1", "warning", "ok", "2026-03-04", 0.5, 1.0),
        ("goal.regressed", "alert.resolved.v1", "warning", "warning", "2026-03-04", 1.2, 1.0),
        ("goal.regressed", "alert.opened.v1", "warning", "ok", "2026-03-07", 0.1, 1.0),
    ]
    assert [a.get("notice", False) for a in log.alerts()] == [True, False, False, False]
    assert {a["subject"] for a in log.alerts()} == {"t%7Cx|g"}
    assert log.alerts()[1]["alert_id"] == log.alerts()[2]["alert_id"] != log.alerts()[3]["alert_id"]


def test_one_goal_id_under_two_task_types_is_two_goals_and_must_be_named() -> None:
    log = Log([Goals()], 8)
    log.send([goal(0), goal(1, task_type="t", target=4), value(2, 1.0, task_type="t"), value(3, 0.5)])
    with pytest.raises(BadParameter) as refused:
        log.get("/goals/g")
    assert refused.value.parameter == "task_type"
    assert (log.get("/goals/g", task_type="t")["percentage"], log.get("/goals/g", task_type="")["percentage"]) == (25.0, 50.0)
    assert log.get("/goals/g", task_type="u")["status"] == 404
    assert log.get("/goals/nobody") == {"status": 404, "goal_id": "nobody", "task_type": None}
    assert log.get("/goals/g", tenant="other")["status"] == 404


def test_the_summary_counts_all_and_lists_those_of_the_state_asked_for() -> None:
    log = Log([Goals()], 8)
    empty = log.get("/learning/goals")
    assert (empty["total_goals"], empty["completion_rate"], empty["avg_completion_time_s"], empty["goals"]) == (0, 0.0, None, [])
    log.send([goal(i, name, task_type=task) for i, (name, task) in enumerate([("a", "t"), ("b", "t"), ("c", "u"), ("d", "t")])])
    log.send([value(10, 1.0, 10, "a", task_type="t"), value(11, 1.0, 30, "c", task_type="u"), value(12, 0.0, 40, "c", task_type="u")])
    answer = log.get("/learning/goals")
    assert {k: v for k, v in answer.items() if k != "goals"} == {
        "total_goals": 4, "completed_goals": 2, "active_goals": 2, "completion_rate": 0.5, "avg_completion_time_s": 20.0,
        "cursor": None, "as_of": at(40),
    }  # fmt: skip
    assert answer["goals"] == [{k: v for k, v in log.get(f"/goals/{name}").items() if k != "as_of"} for name in "abcd"]
    states = ("active", "completed", "regressed")
    listed = {state: [g["goal_id"] for g in log.get("/learning/goals", state=state)["goals"]] for state in states}
    assert listed == {"active": ["b", "d"], "completed": ["a", "c"], "regressed": ["c"]}
    of_t = log.get("/learning/goals", task_type="t", state="active")
    assert (of_t["total_goals"], of_t["completed_goals"], [g["goal_id"] for g in of_t["goals"]]) == (3, 1, ["b", "d"])
    first = log.get("/learning/goals", limit=3)
    assert [g["goal_id"] for g in log.get("/learning/goals", limit=3, cursor=first["cursor"])["goals"]] == ["d"]


def test_beyond_the_bound_a_goal_is_counted_and_its_progress_refused_while_the_kept_ones_go_on() -> None:
    log = Log([Goals(GoalBounds(2))])
    log.send([goal(0, "a"), goal(1, "b"), goal(2, "c"), value(3, 1.0, goal_id="c"), value(4, 1.0, goal_id="b"), goal(5, "a")])
    assert [g["goal_id"] for g in log.get("/learning/goals")["goals"]] == ["a", "b"]
    assert (log.topics["training"][0].counters().overflow, reasons(log)) == (1, ["unknown_goal"])
    assert log.get("/goals/b")["completed"] is True


def test_after_twenty_thousand_values_a_goal_holds_no_more_than_its_ring() -> None:
    fold = Goals()
    log = Log([fold])
    log.send([goal(0, target=1e9)])
    log.send(value(i, float(i), i) for i in range(1, 20_001))
    answer = log.get("/goals/g")
    assert (answer["n"], answer["n_total"], answer["current"]) == (HISTORY, 20_000, 20_000.0)
    state = log.reader().rows(fold.rows, ("", "g"))[0]
    assert [x for _, x in fold.asked.points(log.reader(), ("", "g"), state)] == [float(i) for i in range(19_901, 20_001)]
    spaces = log.topics["training"][0].spaces
    assert len(spaces[fold.ring.closed.index]["golden"]) == fold.ring.slots
    assert max(len(row[1]) for key, row in rows(log.topics["training"][0]).items() if key[0].startswith("goal")) < 2048


@pytest.mark.parametrize("current", [1e308, -1e308, 0.0])
@pytest.mark.parametrize("at_most", [False, True])
def test_the_largest_numbers_give_a_percentage_and_no_trouble(current: float, at_most: bool) -> None:
    for start, target in ((-1.7e308, 1.7e308), (1.7e308, -1.7e308), (None, 5e-324), (5e-324, 0.0)):
        state = GoalState(target=target, start=start, at_most=at_most, n=1, first=current, current=current, current_us=0)
        assert 0.0 <= state.percentage() <= 100.0
    half = GoalState(target=1.6e308, start=-1.6e308, n=1, first=0.0, current=0.0, current_us=0)
    assert half.percentage() == pytest.approx(50.0)


def test_a_flat_or_endless_way_has_no_moment_of_arrival() -> None:
    log = Log([Goals()])
    log.send([goal(0, "flat"), *(value(i, 0.3, i, "flat") for i in range(9))])
    log.send([goal(20, "endless", target=1e300), *(value(20 + i, float(i), i, "endless") for i in range(9))])
    flat, endless = log.get("/goals/flat"), log.get("/goals/endless")
    assert [flat[k] for k in ("eta", "eta_low", "eta_high", "slope_per_second")] == [None] * 4
    assert (endless["eta"], endless["slope_per_second"]) == (None, pytest.approx(1.0))


def test_a_value_that_is_no_number_is_a_dead_letter_and_moves_no_goal() -> None:
    log = Log([Goals()])
    log.send([goal(0), value(1, 0.5)])
    raw = b'{"specversion":"1.0","source":"t","id":"x","type":"goal.progressed.v1","tenant":"golden","data":{"goal_id":"g","current":NaN}}'
    log.send([raw], topic="training")
    log.send([value(2, 0.6)])
    assert len(log.dead_letters()) == 1 and log.get("/goals/g")["n_total"] == 2


def test_records_absorbed_twice_without_the_dedupe_window_change_nothing() -> None:
    log = Log([Goals()])
    log.send(stream(9, 200))
    done = log.topics["training"][0]
    before = rows(done)
    again = Log([Goals()]).topics["training"][0]
    for table in again.schema.tables:
        if table is not IDS:
            again.spaces[table.index] = done.spaces[table.index]
    records: list[Rec] = log.records[("training", 0)]
    again.absorb(records[:150])
    assert rows(done) == before and again.outputs == []
