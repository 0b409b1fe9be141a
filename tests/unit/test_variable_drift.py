"""Recent drift: the rules once more in numpy and scipy over the raw events, and the alert that looks once an hour."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from tables.drift import OUTCOMES, gathered
from tables.fold import BadParameter, Standing, Verdict
from tables.hours import Side
from tables.times import HOUR_US, rfc3339
from tables.variable_states import History, Partial, VariableSettings
from tables.variable_views import whole
from tables.variables import Variables
from tests.forecast_events import NAMES, START_US, Event, forecast, registration, stream
from tests.harness import VECTORS, Log, subset


def hour_of(event: Event) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp()) // 3600


def oracle(events: list[Event], hours: int = 24) -> tuple[dict[str, Any], int]:
    """Every variable's comparison, by scipy."""
    issued = [e for e in events if e["type"] == "forecast.issued.v1"]
    start = max(hour_of(e) for e in issued) - hours + 1
    found: dict[str, Any] = {}
    tests = []
    for name in sorted({name for e in issued for name in e["data"]["inputs"]}):
        mine = [(hour_of(e) >= start, e["data"]) for e in issued if name in e["data"]["inputs"]]
        sides = [[d for recent, d in mine if recent == side] for side in (False, True)]
        n1, n2 = map(len, sides)
        answer: dict[str, Any] = {"enough": n1 >= 30 and n2 >= 30, "n_before": n1, "n_recent": n2}
        for outcome in OUTCOMES:
            a, b = (np.array([float(d[outcome]) for d in side]) for side in sides)
            one: dict[str, Any] = {"before": float(a.mean()) if n1 else None, "recent": float(b.mean()) if n2 else None}
            one["effect"] = one["recent"] - one["before"] if n1 and n2 else None
            if answer["enough"]:
                if outcome == "certified":
                    pooled = (a.sum() + b.sum()) / (n1 + n2)
                    one["z"] = float((b.mean() - a.mean()) / np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2)))
                    one["p"] = float(2 * stats.norm.sf(abs(one["z"])))
                else:
                    t = stats.ttest_ind(b, a, equal_var=False)
                    one.update(t=float(t.statistic), df=float(t.df), p=float(t.pvalue))
                tests.append(one)
            answer[outcome] = one
        found[name] = answer
    for one, q in zip(tests, stats.false_discovery_control([one["p"] for one in tests]) if tests else [], strict=True):
        one["q"] = float(q)
        one["flagged"] = bool(q < 0.001 and abs(one["effect"]) >= 0.1)
    return found, len(tests)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    assert list(expected) == list(found)
    assert [set(one) for one in expected.values()] == [set(one) for one in found.values()]
    return subset(expected, found)


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_recent_drift_of_a_random_stream_equals_scipy_with_late_events_and_duplicates(seed: int, partitions: int) -> None:
    log = Log([Variables()], partitions)
    events = stream(seed, 500, models=9, hours=70)
    for done in range(0, 500, 125):
        log.send(events[done : done + 125])
        log.send(events[max(0, done - 20) : done])
        expected, tests = oracle(events[: done + 125])
        answer = log.get("/variables/drift", recent=True)
        assert differences(expected, answer["recent"]) == []
        assert answer["tests"] == tests
    assert tests == 3 * len(NAMES)
    newest = max(hour_of(e) for e in events if e["type"] == "forecast.issued.v1")
    assert answer["window_start"] == rfc3339((newest - 23) * HOUR_US)


@pytest.mark.parametrize("hours", [1, 6, 47])
def test_the_recent_hours_are_a_setting_up_to_one_less_than_are_kept(hours: int) -> None:
    log = Log([Variables(VariableSettings(drift_recent_hours=hours))], 3)
    events = stream(7, 400, hours=120)
    log.send(events)
    assert differences(oracle(events, hours)[0], log.get("/variables/drift", recent=True)["recent"]) == []
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"drift_recent_hours": 48}, VariableSettings)


def test_a_bad_last_day_shows_though_the_lifetime_average_hides_it() -> None:
    log = Log([Variables()], 4)
    log.send(forecast(i, {"a": 1.0}, START_US + i * HOUR_US // 4, confidence=0.8, certified=True, fragility=0.1, model=f"m{i % 9}") for i in range(1000))
    late = START_US + 300 * HOUR_US
    log.send(forecast(2000 + i, {"a": 1.0}, late + i * HOUR_US // 4, confidence=0.5, certified=i % 2 > 0, fragility=0.4, model="m") for i in range(40))
    answer = log.get("/variables/drift", recent=True)
    assert answer["flagged"] == []
    assert [answer["recent"]["a"][outcome]["flagged"] for outcome in OUTCOMES] == [True] * 3
    assert answer["recent"]["a"]["confidence"]["effect"] == pytest.approx(-0.3)


def test_outcomes_that_never_vary_are_equal_or_different_and_no_division_by_nought() -> None:
    log = Log([Variables()], 8)
    for day, (confidence, n) in enumerate(((0.1, 500), (0.1, 40))):
        log.send(
            forecast(1000 * day + i, {"same": 1.0}, START_US + (day * 60 + i % 24) * HOUR_US, confidence=confidence, certified=True, model=f"m{i % 20}")
            for i in range(n)
        )
    same = log.get("/variables/drift", recent=True)["recent"]["same"]
    assert (same["confidence"]["t"], same["confidence"]["df"], same["confidence"]["p"]) == (0.0, None, 1.0)
    assert (same["certified"]["z"], same["certified"]["p"], same["certified"]["flagged"]) == (0.0, 1.0, False)
    log.send(forecast(5000 + i, {"same": 1.0}, START_US + 500 * HOUR_US, confidence=0.3, certified=True, model=f"m{i % 20}") for i in range(40))
    other = log.get("/variables/drift", recent=True)["recent"]["same"]
    assert (other["n_before"], other["fragility"]["p"]) == (540, 1.0)
    assert (other["confidence"]["t"], other["confidence"]["p"], other["confidence"]["flagged"]) == (None, 0.0, True)


def test_too_few_forecasts_on_a_side_give_no_p_and_take_no_part_in_the_adjustment() -> None:
    log = Log([Variables()])
    log.send(forecast(i, {"few": 1.0, "many": 1.0}, START_US + i * 60_000_000, confidence=i % 3 / 3) for i in range(60))
    log.send(forecast(100 + i, {"few": 1.0} if i < 29 else {"many": 1.0}, START_US + 90 * HOUR_US, confidence=i % 4 / 4) for i in range(59))
    answer = log.get("/variables/drift", recent=True)
    few = answer["recent"]["few"]
    assert (few["enough"], few["n_recent"], answer["tests"]) == (False, 29, 3)
    assert set(few["confidence"]) == {"before", "recent", "effect"} and few["confidence"]["effect"] is not None
    assert answer["recent"]["many"]["enough"] is True
    assert list(log.get("/variables/drift", recent=True, min_count=90)["recent"]) == ["many"]


def test_no_forecasts_give_an_empty_comparison_and_a_bad_threshold_is_named_all_the_same() -> None:
    log = Log([Variables()])
    answer = log.get("/variables/drift", recent=True)
    assert (answer["recent"], answer["tests"], answer["window_start"], answer["flagged"]) == ({}, 0, None, [])
    with pytest.raises(BadParameter):
        log.get("/variables/drift", recent=True, threshold=1.0)


def test_in_strict_mode_only_registered_variables_are_compared() -> None:
    log = Log([Variables(VariableSettings(variables_strict=True))], 4)
    events = stream(3, 300)
    log.send([e for e in events if e["type"] == "forecast.issued.v1"])
    assert log.get("/variables/drift", recent=True)["recent"] == {}
    log.send([registration(900, "a")])
    assert list(log.get("/variables/drift", recent=True)["recent"]) == ["a"]


def test_an_hour_whose_row_a_follower_sees_too_late_is_counted_once() -> None:
    state, history = Partial(home=3), History(home=3)
    for i in range(5):
        state.hour = 10
        state.add(float(i), 0.5, 0.5, True, None)
    stale = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Partial)
    closed = state.turn(11)
    assert closed is not None
    history.past.merge(closed)
    history.hours.close(10, closed.side(), 11)
    assert whole([stale], [history]).n == whole([state], [history]).n == 5
    assert (state.count, stale.count) == (5, 5)


# ---- the alert


def judge(log: Log, name: str, level: str = "ok", told: frozenset[str] = frozenset()) -> Verdict | None:
    fold: Any = log.folds[0]
    rule = next(rule for rule in fold.rules if rule.name == "drift.recent")
    verdict: Verdict | None = rule.judge(log.reader(), (name,), Standing(level, None, told))
    return verdict


def day_of(log: Log, day: int, names: dict[str, str], bad: bool, n: int = 48, start: int = 0) -> None:
    """A day of forecasts, each of one variable and its model; bad ones are less confident and seldom certified."""
    log.send(
        forecast(
            day * 100_000 + start + i * len(names) + j,
            {name: 1.0},
            START_US + day * 24 * HOUR_US + i * 24 * HOUR_US // n,
            model=model,
            confidence=(0.5 if bad else 0.8) + i % 5 / 100,
            certified=i % 4 == 0 if bad else i % 10 > 0,
            fragility=0.1,
        )
        for i in range(n)
        for j, (name, model) in enumerate(names.items())
    )


def test_the_alert_opens_with_the_hour_that_is_over_and_resolves_at_a_calm_look() -> None:
    log = Log([Variables()], 8)
    assert judge(log, "x") is None
    names = {"x": "m1", "y": "m2"}
    for day in range(3):
        day_of(log, day, names, False)
    assert judge(log, "x") is None
    day_of(log, 3, {"x": "m1"}, True)
    day_of(log, 3, {"y": "m2"}, False, start=1000)
    opened = judge(log, "x")
    assert opened is not None and opened.level == "critical" and opened.value is not None and opened.value < 0.001
    assert "x" in opened.message and "certified" in opened.message and opened.message.endswith(".")
    assert judge(log, "y") is None
    assert judge(log, "x", "critical") is None
    eased = judge(log, "x", "shutdown")
    assert eased is not None and eased.level == "critical"
    for day in range(4, 18):  # until the bad day does not matter among all before
        day_of(log, day, names, False)
    resolved = judge(log, "x", "critical")
    assert resolved is not None and resolved.level == "ok"
    assert judge(log, "x") is None


def test_a_variable_that_is_used_no_more_does_not_stay_open_for_ever() -> None:
    log = Log([Variables()])
    for day in range(3):
        day_of(log, day, {"x": "m1"}, False)
    day_of(log, 3, {"x": "m1"}, True)
    log.send([forecast(999_000, {"z": 1.0}, START_US + 96 * HOUR_US)])
    assert judge(log, "x") is not None
    log.send([forecast(999_001, {"z": 1.0}, START_US + 150 * HOUR_US)])
    ended = judge(log, "x", "critical")
    assert ended is not None and ended.level == "ok"


def test_one_bad_model_is_one_message_that_names_its_variables_and_others_get_their_own() -> None:
    log = Log([Variables()], 4)
    names = {"a": "bad", "b": "bad", "c|%": "bad", "d": "other", "e": "fine"}
    for day in range(3):
        day_of(log, day, names, False)
    day_of(log, 3, {k: v for k, v in names.items() if v != "fine"}, True)
    day_of(log, 3, {"e": "fine"}, False, start=1000)
    log.send([forecast(999_000, {"z": 1.0}, START_US + 96 * HOUR_US)])
    opened = {name: judge(log, name) for name in names}
    found = {name: verdict.related for name, verdict in opened.items() if verdict is not None}
    lead = next(name for name in found if name != "d")
    assert found == {lead: sorted({"a", "b", "c%7C%25"} - {lead.replace("|", "%7C").replace("%", "%25") if "|" in lead else lead}), "d": None}
    told = frozenset({"a", "b", "c%7C%25", "d"})
    assert [judge(log, name, told=told) for name in names] == [None] * 5
    assert judge(log, lead, "critical", told) is None
    # the one that told them resolved, two of them still stand: the worse one opens and names the other
    rest = [name for name in ("a", "b", "c|%") if name != lead]
    again = [judge(log, name, told=frozenset({"d", lead})) for name in rest]
    assert sorted(verdict is None for verdict in again) == [False, True]


def test_groups_hang_together_over_shared_models_and_the_worst_comes_first() -> None:
    from tables.drift import Change, Test

    def change(q: float, fall: float = 0.0) -> Change:
        return Change(99, 99, {"certified": Test(1.0, 1.0 - fall, q=q if fall else 1.0), "confidence": Test(0.9, 0.5, q=q), "fragility": Test(0.1, 0.1, q=1.0)})

    flagged = {"a": change(1e-9), "b": change(1e-20), "c": change(1e-5, 0.4), "d": change(1e-30), "e": change(1e-9)}
    groups = gathered(flagged, iter([["a", "x"], ["b", "a"], ["y", "b", "c"], ["d"], ["e", "d"]]))
    assert groups["a"] == groups["b"] == groups["c"] == ["c", "b", "a"]
    assert groups["d"] == groups["e"] == ["d", "e"]


def test_looks_are_taken_once_an_hour_and_of_so_many_tenants_only() -> None:
    fold = Variables()
    log = Log([fold])
    log.send(VECTORS["V5"]["events"])
    rule: Any = next(rule for rule in fold.rules if rule.name == "drift.recent")
    drift = rule.judge.__self__
    first = drift.look(log.reader())
    assert drift.look(log.reader()) is first
    assert first.hour == hour_of(VECTORS["V5"]["events"][-1]) - 1
    log.send([forecast(1, {"x": 1.0}, (first.hour + 2) * HOUR_US)])
    assert drift.look(log.reader()).hour == first.hour + 1
    for tenant in range(300):
        log.send([forecast(2, {"x": 1.0}, tenant=f"t{tenant}")])
        drift.look(log.reader(f"t{tenant}"))
    assert len(drift.looks) == 256


def test_a_new_hour_makes_every_variable_and_tag_of_the_tenant_due() -> None:
    fold = Variables()
    log = Log([fold])
    p = log.topics["forecasts"][0]
    beating = {rule.name: rule.beat for rule in fold.rules if rule.beat is not None}
    assert set(beating) == {"drift.recent", "volatility.flip"}
    changed = []
    for i, at in enumerate((0, 1, 3599, 3600, 10, 7300)):
        list(p.drain())
        log.send([forecast(i, {"x": 1.0}, START_US + at * 1_000_000)])
        changed.append(bool(p.dirty[beating["drift.recent"].index]))
    assert changed == [True, False, False, True, False, True]


def test_simulated_with_nothing_wrong_hardly_anything_is_flagged() -> None:
    rng = random.Random(5)
    log = Log([Variables()], 2)
    names = [f"v{i}" for i in range(40)]
    log.send(
        forecast(
            i,
            {name: rng.random() for name in rng.sample(names, 8)},
            START_US + i * HOUR_US // 20,
            model=f"m{i % 5}",
            confidence=rng.betavariate(8, 3),
            fragility=rng.betavariate(2, 8),
            certified=rng.random() < 0.8,
        )
        for i in range(2000)
    )
    answer = log.get("/variables/drift", recent=True)
    assert answer["tests"] == 120
    assert not any(one[outcome]["flagged"] for one in answer["recent"].values() for outcome in OUTCOMES)


def test_merging_sides_of_any_split_gives_the_whole() -> None:
    rng = random.Random(2)
    outcomes = [(rng.random(), rng.random(), rng.random() < 0.5) for _ in range(50)]
    whole_side, parts = Side(), [Side() for _ in range(7)]
    for outcome in outcomes:
        whole_side.add(*outcome)
        parts[rng.randrange(7)].add(*outcome)
    merged = Side()
    for part in [Side(), *parts]:
        merged.merge(part)
    assert msgspec.structs.asdict(merged) == pytest.approx(msgspec.structs.asdict(whole_side), rel=1e-12)
