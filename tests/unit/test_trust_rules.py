"""Trust by rule: what follows from forecasts, tasks, evaluations and judgments, against the rules once more in plain Python."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.registry import FOLD_SETTINGS, folds
from streams.derive import event_bytes
from streams.errors import ConfigError
from streams.keys import derived_id
from streams.settings import load
from tables import remembered, trust_verdicts
from tables.partition import Partition
from tables.times import DAY_US, HOUR_US, rfc3339
from tables.trust import Trust
from tables.trust_rules import RULES, TrustByRule, TrustRuleSettings
from tests.harness import Log, Rec

START_US = 1_772_409_600_000_000  # 2026-03-02


def both(rules: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    given_ = {"": "on", "forecast_certified": "off", **(rules or {})}
    return [Trust(), TrustByRule(msgspec.convert({"trust_rule": given_}, TrustRuleSettings), **options)]


class Story:
    """Events with ascending ids, a second apart unless said otherwise."""

    def __init__(self, log: Log, tenant: str = "golden") -> None:
        self.log, self.tenant, self.n = log, tenant, 0

    def send(self, type_: str, at_us: int | None = None, **data: Any) -> str:
        self.n += 1
        time = rfc3339(START_US + self.n * 1_000_000 if at_us is None else at_us)
        self.log.send([{"id": f"e{self.n}", "type": f"{type_}.v1", "time": time, "tenant": self.tenant, "data": data}])
        return f"e{self.n}"

    def issued(self, id: str, *inputs: str, model: str | None = "m", at_us: int | None = None, **more: Any) -> str:
        return self.send("forecast.issued", at_us, forecast_id=id, model=model, inputs=dict.fromkeys(inputs, 1.0), **more)

    def resolved(self, id: str, success: bool = True, model: str | None = "m", at_us: int | None = None, **more: Any) -> str:
        return self.send("forecast.resolved", at_us, forecast_id=id, model=model, success=success, **more)

    def completed(self, agent: str, success: bool = True, execution: str | None = None, at_us: int | None = None) -> str:
        return self.send("task.completed", at_us, execution_id=execution, task="t", agent=agent, success=success)

    def evaluated(self, task: str, passed: bool, agent: str | None = "a", at_us: int | None = None) -> str:
        return self.send("evaluation.completed", at_us, task=task, agent=agent, passed=passed, score=0.5)

    def judged(self, task: str, verdict: bool | None, agent: str | None = "a", judge: str | None = "j", at_us: int | None = None, **criteria: float) -> str:
        return self.send(
            "judgment.recorded",
            at_us,
            task=task,
            agent=agent,
            judge=judge,
            overall_score=0.5,
            overall_confidence=0.5,
            all_criteria_pass=verdict,
            criteria=criteria,
            evaluation_time_ms=1,
        )


def evidence(log: Log, kind: str, id: str, tenant: str = "golden") -> tuple[float, float]:
    """Successes and failures of a key, without the prior."""
    found = log.get(f"/trust/{kind}/{id}", tenant=tenant)
    return (0.0, 0.0) if found.get("status") == 404 else (found["alpha"] - 1.0, found["beta"] - 1.0)


def counted(log: Log, rule: str) -> tuple[int, int, int]:
    """(derived, unjoined, repeated)"""
    one = next(one for one in log.get("/trust/rules")["rules"] if one["name"] == rule)
    return one["derived"], one["unjoined"], one["repeated"]


def derived(log: Log) -> list[dict[str, Any]]:
    return [json.loads(out.value or b"") for out in log.outputs if out.topic == "judgments"]


# ---- forecasts


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_resolution_without_inputs_speaks_of_those_of_the_issued_forecast(partitions: int) -> None:
    log = Log(both(), partitions)
    story = Story(log)
    story.issued("f", "x", "y|%")
    story.issued("f", "z", model="other")
    story.resolved("f", False)
    story.resolved("f", model="other")
    assert [evidence(log, "variable", name) for name in ("x", "y|%", "z")] == [(0, 1), (0, 1), (1, 0)]
    assert [evidence(log, "model", name) for name in ("m", "other")] == [(0, 1), (1, 0)]
    assert counted(log, "forecast_variables") == (3, 0, 0)


def test_inputs_of_the_resolution_win_over_those_of_the_forecast() -> None:
    log = Log(both())
    story = Story(log)
    story.issued("f", "x")
    story.resolved("f", inputs={"y": 1.0})
    assert (evidence(log, "variable", "x"), evidence(log, "variable", "y")) == ((0, 0), (1, 0))


def test_what_cannot_be_joined_is_counted_and_the_model_is_spoken_of_all_the_same() -> None:
    log = Log(both())
    story = Story(log)
    story.issued("unknown", "x")
    story.resolved("unknown")
    story.resolved("unknown")
    story.issued("f", "x", model=None)
    story.resolved("f")
    story.issued("g", "x")
    Story(log, "other").resolved("g")
    assert evidence(log, "variable", "x") == (0, 0)
    assert evidence(log, "model", "m") == (3, 0)
    assert counted(log, "forecast_variables") == (0, 3, 0)
    story.resolved("f", model=None)
    assert evidence(log, "variable", "x") == (1, 0)
    assert counted(log, "forecast_model") == (3, 0, 0)


def test_a_forecast_without_inputs_is_joined_and_speaks_of_none() -> None:
    log = Log(both())
    story = Story(log)
    story.issued("f")
    story.resolved("f")
    assert counted(log, "forecast_variables") == (0, 0, 0)


def test_a_forecast_is_resolved_once_within_thirty_days() -> None:
    log = Log(both())
    story = Story(log)
    story.issued("f", "x", at_us=START_US)
    story.resolved("f", True, at_us=START_US)
    story.resolved("f", False, at_us=START_US + 30 * DAY_US)
    story.resolved("never issued", True, inputs={"y": 1.0}, at_us=START_US)
    story.resolved("never issued", True, inputs={"y": 1.0}, at_us=START_US)
    assert (evidence(log, "variable", "x"), evidence(log, "variable", "y"), evidence(log, "model", "m")) == ((1, 0), (1, 0), (2, 0))
    assert counted(log, "forecast_model") == (2, 0, 2)
    story.issued("f", "x", at_us=START_US + 31 * DAY_US)
    story.resolved("f", False, at_us=START_US + 31 * DAY_US)
    assert evidence(log, "variable", "x") == (1, 1)


@pytest.mark.parametrize(("later_us", "joined"), [(30 * DAY_US, True), (30 * DAY_US + 1, False), (-30 * DAY_US, True), (-30 * DAY_US - 1, False)])
def test_an_issued_forecast_is_found_for_thirty_days_of_event_time(later_us: int, joined: bool) -> None:
    log = Log(both())
    story = Story(log)
    story.issued("f", "x", at_us=START_US + 40 * DAY_US)
    story.resolved("f", at_us=START_US + 40 * DAY_US + later_us)
    assert evidence(log, "variable", "x") == ((1, 0) if joined else (0, 0))
    assert counted(log, "forecast_variables") == ((1, 0, 0) if joined else (0, 1, 0))


def test_of_two_forecasts_of_one_id_the_newer_by_event_time_is_resolved() -> None:
    log = Log(both())
    story = Story(log)
    story.issued("f", "new", at_us=START_US + 10)
    story.issued("f", "old", at_us=START_US)
    story.resolved("f")
    story.issued("g", "first", at_us=START_US)
    story.issued("g", "second", at_us=START_US)
    story.resolved("g")
    assert [evidence(log, "variable", name) for name in ("new", "old", "first", "second")] == [(1, 0), (0, 0), (0, 0), (1, 0)]


def test_certified_speaks_only_where_it_is_switched_on() -> None:
    for rules, expected in (({}, (0.0, 0.0)), ({"forecast_certified": 0.25}, (0.25, 0.5))):
        log = Log(both(rules))
        story = Story(log)
        story.issued("f", "x", certified=True)
        for n in range(2):
            story.issued(f"g{n}", "x")
        assert evidence(log, "variable", "x") == expected


# ---- agents and judges


def test_only_the_first_completion_of_an_execution_within_a_day_counts() -> None:
    log = Log(both())
    story = Story(log)
    for agent, execution, hours in (("a", "x", 0), ("a", "x", 24), ("b", "x", 1), ("a", "y", 2), ("a", None, 3), ("a", None, 3), ("a", "x", 25), ("a", "x", 2)):
        story.completed(agent, execution=execution, at_us=START_US + hours * HOUR_US)
    assert (evidence(log, "agent", "a"), evidence(log, "agent", "b")) == ((5, 0), (1, 0))
    assert counted(log, "task") == (6, 0, 2)


@pytest.mark.parametrize("apart_us", [0, 7 * DAY_US, 7 * DAY_US + 1])
@pytest.mark.parametrize("first", ["judgment", "evaluation"])
@pytest.mark.parametrize("older", ["judgment", "evaluation"])
def test_a_judge_is_measured_by_the_evaluation_of_the_task_in_either_order_within_seven_days(first: str, older: str, apart_us: int) -> None:
    log = Log(both(), 8)
    story = Story(log)
    at_us = {older: START_US, "judgment" if older == "evaluation" else "evaluation": START_US + apart_us}
    for what in (first, "judgment" if first == "evaluation" else "evaluation"):
        if what == "judgment":
            story.judged("t", True, at_us=at_us[what])
        else:
            story.evaluated("t", False, at_us=at_us[what])
    joined = apart_us <= 7 * DAY_US
    assert evidence(log, "judge", "j") == ((0, 1) if joined else (0, 0))
    assert counted(log, "judge") == ((1, 0, 0) if joined else (0, 1, 0))


def test_the_id_and_time_of_what_is_said_of_a_judge_do_not_depend_on_the_order() -> None:
    found = []
    for order in (("judged", "evaluated"), ("evaluated", "judged")):
        log = Log(both())
        for what in order:
            log.send([judgment_event() if what == "judged" else evaluation_event()])
        found.append(next(one for one in derived(log) if one["data"]["kind"] == "judge"))
    assert found[0] == found[1]
    assert found[0]["derivedfrom"] == "the-judgment"
    assert found[0]["id"] == derived_id("judgments", "golden", "the-judgment", "trust.observed.v1", "judge|j")


def judgment_event() -> dict[str, Any]:
    data = {"task": "t", "judge": "j", "overall_confidence": 0.5, "all_criteria_pass": True, "overall_score": 0.5, "evaluation_time_ms": 1}
    return {"id": "the-judgment", "type": "judgment.recorded.v1", "time": rfc3339(START_US), "tenant": "golden", "data": data}


def evaluation_event() -> dict[str, Any]:
    data = {"task": "t", "passed": True, "score": 0.5}
    return {"id": "the-evaluation", "type": "evaluation.completed.v1", "time": rfc3339(START_US + 60_000_000), "tenant": "golden", "data": data}


def test_three_judgments_wait_for_one_evaluation_and_each_is_measured() -> None:
    log = Log(both(), 8)
    story = Story(log)
    story.judged("t", True, judge="j")
    story.judged("t", False, judge="j")
    story.judged("t", True, judge="k")
    assert counted(log, "judge") == (0, 3, 0)
    story.evaluated("t", True)
    assert (evidence(log, "judge", "j"), evidence(log, "judge", "k")) == ((1, 1), (1, 0))
    story.evaluated("t", False)
    story.judged("t", True, judge="k")
    assert (evidence(log, "judge", "j"), evidence(log, "judge", "k")) == ((1, 1), (1, 1))
    assert counted(log, "judge") == (4, 0, 0)
    assert evidence(log, "agent", "a") == (4, 2)  # three judgments and one after, two evaluations


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize(
    ("judged_agent", "evaluated_agent", "joined"), [("a", "a", True), (None, None, True), ("a", None, False), (None, "a", False), ("a", "b", False)]
)
def test_only_what_is_keyed_alike_is_joined(partitions: int, judged_agent: str | None, evaluated_agent: str | None, joined: bool) -> None:
    log = Log(both(), partitions)
    story = Story(log)
    story.judged("t", True, agent=judged_agent)
    story.evaluated("t", True, agent=evaluated_agent)
    assert counted(log, "judge") == ((1, 0, 0) if joined else (0, 1, 0))


@pytest.mark.parametrize(
    ("verdict", "criteria", "expected"),
    [
        (True, {"clarity": 0.1}, (1, 0)),
        (False, {"clarity": 0.9}, (0, 1)),
        (None, {"clarity": 0.7, "safety": 0.8}, (1, 0)),
        (None, {"clarity": 0.699}, (0, 1)),
        (None, {"clarity": 0.9, "safety": 0.799}, (0, 1)),
        (None, {}, (0, 0)),
    ],
)
def test_a_verdict_is_as_said_or_else_that_of_the_criteria(verdict: bool | None, criteria: dict[str, float], expected: tuple[int, int]) -> None:
    log = Log(both())
    story = Story(log)
    story.evaluated("t", True, agent="other")
    story.judged("t", verdict, **criteria)
    assert evidence(log, "agent", "a") == expected
    assert counted(log, "judge")[1] == sum(expected)


def test_a_late_evaluation_does_not_replace_the_newest() -> None:
    log = Log(both())
    story = Story(log)
    story.evaluated("t", True, at_us=START_US + 10)
    story.evaluated("t", False, at_us=START_US)
    story.judged("t", True)
    assert evidence(log, "judge", "j") == (1, 0)


def test_while_performance_is_not_collected_its_events_say_nothing() -> None:
    log = Log(both())
    story = Story(log)
    for enabled in (False, True):
        raw = {"specversion": "1.0", "source": "t", "id": f"c{enabled}", "derivedfrom": "c", "type": "collection.changed.v1", "tenant": "golden"}
        log.append("judgments", b"golden", json.dumps({**raw, "time": rfc3339(START_US), "data": {"enabled": enabled}}).encode(), 0, START_US // 1000)
        story.completed("a", execution="x")
        story.evaluated("t", True)
        story.judged("t", True)
        story.resolved("f" + str(enabled))
        assert evidence(log, "agent", "a") == ((3, 0) if enabled else (0, 0))
        assert evidence(log, "judge", "j") == ((1, 0) if enabled else (0, 0))
    assert evidence(log, "model", "m") == (2, 0)


# ---- switching


@pytest.mark.parametrize("rule", [name for name in RULES if name != "forecast_certified"])
@pytest.mark.parametrize(("value", "weight"), [("off", 0.0), (False, 0.0), (2.5, 2.5), (True, 1.0), (1, 1.0)])
def test_each_rule_is_switched_and_weighed_by_itself(rule: str, value: Any, weight: float) -> None:
    log = Log(both({rule: value}))
    story = Story(log)
    story.issued("f", "x")
    story.resolved("f")
    story.completed("completer")
    story.evaluated("t", True, agent="evaluated")
    story.judged("u", True, agent="judged", judge=None)
    story.evaluated("v", True, agent=None)
    story.judged("v", True, agent=None)
    keys = {
        "forecast_model": ("model", "m"),
        "forecast_variables": ("variable", "x"),
        "task": ("agent", "completer"),
        "evaluation": ("agent", "evaluated"),
        "judgment": ("agent", "judged"),
        "judge": ("judge", "j"),
    }
    assert {name: evidence(log, *key)[0] for name, key in keys.items()} == {name: weight if name == rule else 1.0 for name in keys}
    shown = {one["name"]: (one["on"], one["weight"]) for one in log.get("/trust/rules")["rules"]}
    assert shown == {name: (True, 1.0) if name != "forecast_certified" else (False, 0.0) for name in RULES} | {rule: (weight > 0, weight)}


def test_rules_are_set_by_name_in_the_environment_and_wrong_ones_are_refused() -> None:
    environment = {"PULSEFOLD_TRUST_RULE__task": "off", "PULSEFOLD_TRUST_RULE__judge": "0.5", "PULSEFOLD_TRUST_RULE__forecast_certified": "on"}
    found = next(fold for fold in folds(load({}, environment, None, FOLD_SETTINGS).fold) if isinstance(fold, TrustByRule))
    assert (found.task, found.judge, found.certified, found.model) == (0.0, 0.5, 1.0, 1.0)
    everything_off = load({}, {"PULSEFOLD_TRUST_RULE": "off", "PULSEFOLD_TRUST_RULE__judge": "2"}, None, FOLD_SETTINGS)
    found = next(fold for fold in folds(everything_off.fold) if isinstance(fold, TrustByRule))
    assert {name for name, weight in found.weights.items() if weight} == {"judge"}
    for wrong in ("-1", "maybe", "0"):
        with pytest.raises(ConfigError, match="trust_rule"):
            load({}, {"PULSEFOLD_TRUST_RULE__task": wrong}, None, FOLD_SETTINGS)
    with pytest.raises(ConfigError, match=r"trust_rule\.tasks: there is no such rule"):
        folds(load({}, {"PULSEFOLD_TRUST_RULE__tasks": "on"}, None, FOLD_SETTINGS).fold)


def test_weights_leave_the_rows_their_version_and_switches_do_not() -> None:
    plain = [table.wire for table in both()[1].tables]
    assert [table.wire for table in both({"task": 3.0})[1].tables] == plain
    assert not set(plain) & {table.wire for table in both({"task": "off"})[1].tables}


def test_a_derived_observation_is_an_envelope_like_any_other() -> None:
    log = Log(both(), 8)
    story = Story(log)
    id = story.resolved("f", inputs={'quo"te': 1.0})
    name = derived_id("forecasts", "golden", id, "trust.observed.v1", 'variable|quo"te')
    data = {"kind": "variable", "id": 'quo"te', "success": True, "weight": 1.0}
    expected = event_bytes(
        type="trust.observed.v1", id=name, source="pulsefold/pulsefold", time_us=START_US + 1_000_000, tenant="golden", data=data, derivedfrom=id
    )
    assert expected in [out.value for out in log.outputs]
    assert log.get('/trust/variable/quo"te/history')["points"] == [{"time": rfc3339(START_US + 1_000_000), "trust": 2 / 3}]


# ---- the oracle: the rules once more


def stream(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """Forecasts, tasks, evaluations and judgments over few names, and times that jump."""
    rng = random.Random(seed)
    for i in range(n):
        at_us = START_US + rng.choice((0, 1, 6, 8, 20, 31)) * DAY_US + rng.randrange(HOUR_US)
        agent = rng.choice(("a", "b", None))
        what = rng.choice(("issued", "resolved", "resolved", "completed", "evaluated", "judged", "judged"))
        data: dict[str, Any]
        if what in ("issued", "resolved"):
            data = {"forecast_id": rng.choice(("f", "g", "h", "unknown")), "model": rng.choice(("m", "n", None))}
            if what == "issued" or rng.random() < 0.3:
                data["inputs"] = dict.fromkeys(rng.sample("uvwxyz", rng.randrange(4)), 1.0)
            data |= {"certified": rng.random() < 0.5} if what == "issued" else {"success": rng.random() < 0.5}
        elif what == "completed":
            data = {"task": "t", "agent": agent or "c", "execution_id": rng.choice(("1", "2", None)), "success": rng.random() < 0.5}
        elif what == "evaluated":
            data = {"task": rng.choice("tu"), "agent": agent, "passed": rng.random() < 0.5, "score": 0.5}
        else:
            data = {"task": rng.choice("tu"), "agent": agent, "judge": rng.choice(("j", "k", None)), "overall_score": 0.5, "overall_confidence": 0.5}
            data |= {"all_criteria_pass": rng.choice((True, False, None)), "evaluation_time_ms": 1}
        type_ = {"issued": "forecast.issued", "resolved": "forecast.resolved", "completed": "task.completed"}.get(what) or {
            "evaluated": "evaluation.completed",
            "judged": "judgment.recorded",
        }[what]
        yield {"id": f"s{i}", "type": f"{type_}.v1", "time": rfc3339(at_us), "tenant": "golden", "data": data, "at_us": at_us}


class Plain:
    """The rules of trust.md §4 over a list of events, without any bound."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[int]] = {}
        self.unjoined = 0
        self.issues: dict[tuple[Any, str], tuple[int, list[str]]] = {}
        self.firsts: dict[tuple[Any, ...], int] = {}
        self.evaluations: dict[tuple[Any, str], tuple[int, bool]] = {}
        self.waiting: list[dict[str, Any]] = []

    def say(self, kind: str, id: str, success: bool) -> None:
        self.seen.setdefault((kind, id), [0, 0])[0 if success else 1] += 1

    def first(self, key: tuple[Any, ...], at_us: int, within_us: int) -> bool:
        if key in self.firsts and abs(at_us - self.firsts[key]) <= within_us:
            return False
        self.firsts[key] = at_us
        return True

    def read(self, event: dict[str, Any]) -> None:
        data, at_us = event["data"], event["at_us"]
        match event["type"]:
            case "forecast.issued.v1":
                key = data["model"], data["forecast_id"]
                for name in data["inputs"]:
                    self.say("variable", name, data["certified"])
                if key not in self.issues or at_us >= self.issues[key][0]:
                    self.issues[key] = at_us, list(data["inputs"])
            case "forecast.resolved.v1":
                key, named = (data["model"], data["forecast_id"]), data["forecast_id"] != "unknown"
                if named and not self.first(("resolved", *key), at_us, 30 * DAY_US):
                    return
                if data["model"]:
                    self.say("model", data["model"], data["success"])
                inputs = list(data.get("inputs") or ())
                if not inputs:
                    issued = self.issues.get(key) if named else None
                    if issued is None or abs(at_us - issued[0]) > 30 * DAY_US:
                        self.unjoined += 1
                        return
                    inputs = issued[1]
                for name in inputs:
                    self.say("variable", name, data["success"])
            case "task.completed.v1":
                if data["execution_id"] is None or self.first(("done", data["agent"], data["execution_id"]), at_us, DAY_US):
                    self.say("agent", data["agent"], data["success"])
            case "evaluation.completed.v1":
                task = data["agent"], data["task"]
                if data["agent"]:
                    self.say("agent", data["agent"], data["passed"])
                for one in list(self.waiting):
                    if one["task"] == task and abs(one["at_us"] - at_us) <= 7 * DAY_US:
                        self.say("judge", one["judge"], one["verdict"] == data["passed"])
                        self.waiting.remove(one)
                    elif one["task"] == task and one["at_us"] < at_us:
                        one["task"] = None
                if task not in self.evaluations or at_us >= self.evaluations[task][0]:
                    self.evaluations[task] = at_us, data["passed"]
            case "judgment.recorded.v1":
                task, verdict = (data["agent"], data["task"]), data["all_criteria_pass"]
                if verdict is None:
                    return
                if data["agent"]:
                    self.say("agent", data["agent"], verdict)
                if data["judge"] is None:
                    return
                evaluated = self.evaluations.get(task)
                if evaluated and abs(evaluated[0] - at_us) <= 7 * DAY_US:
                    self.say("judge", data["judge"], verdict == evaluated[1])
                else:
                    self.waiting.append({"task": task, "judge": data["judge"], "verdict": verdict, "at_us": at_us})


@pytest.mark.parametrize("partitions", [1, 8])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100_000), again=st.booleans())
def test_a_stream_gives_what_the_plain_rules_give(partitions: int, seed: int, again: bool) -> None:
    log, plain = Log(both({"forecast_certified": "on"}), partitions), Plain()
    for event in stream(seed, 120):
        plain.read(event)
        for _ in range(2 if again else 1):
            log.send([{name: value for name, value in event.items() if name != "at_us"}])
    found = {(e["kind"], e["id"]): [e["alpha"] - 1, e["beta"] - 1] for e in log.get("/trust", limit=1000)["entries"]}
    assert found == plain.seen
    assert counted(log, "forecast_variables")[1] == plain.unjoined
    assert counted(log, "judge")[1] == len(plain.waiting)
    assert sum(counted(log, rule)[0] for rule in RULES) == sum(map(sum, plain.seen.values()))


# ---- laws of folds


def rows(p: Partition) -> dict[Any, tuple[int, bytes]]:
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for table in p.schema.tables
        if table.name.startswith("trust")
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
    }


@pytest.mark.parametrize("topic", ["forecasts", "judgments"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000), cut=st.integers(1, 60), arrived=st.floats(0, 1))
def test_a_crash_between_the_rows_of_a_flush_changes_nothing_and_loses_no_observation(topic: str, seed: int, cut: int, arrived: float) -> None:
    log = Log(both({"forecast_certified": 0.5}, most_forecasts=5))
    log.send({name: value for name, value in event.items() if name != "at_us"} for event in stream(seed, 100))
    records: list[Rec] = log.records[(topic, 0)]
    rng = random.Random(seed)
    older, newer, whole = (Log(both({"forecast_certified": 0.5}, most_forecasts=5)).topics[topic][0] for _ in range(3))
    whole.absorb(records)
    start = max(0, cut - 15)
    older.absorb(records[:start])
    newer.absorb(records[:cut])
    sent = [out for out in newer.outputs if out.offset < start] + [out for out in newer.outputs if out.offset >= start]  # before the rows
    tables = [newer.schema.tables[i] for i in newer.schema.flush_order if newer.schema.tables[i].name.startswith(("counters", "trust"))]
    n = round(arrived * len(tables))
    for place, table in enumerate(tables[: n + 1]):
        for tenant, space in newer.spaces[table.index].items():
            for key, row in space.items():
                if place < n or rng.random() < 0.5:
                    older.space(table, tenant)[key] = row
    older.outputs.clear()
    older.absorb(records[start:])
    assert rows(older) == rows(whole)
    on_the_log = {(out.topic, out.value) for out in [*sent, *older.outputs]}
    assert on_the_log == {(out.topic, out.value) for out in whole.outputs}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100_000), cuts=st.lists(st.integers(0, 100), max_size=5))
def test_replay_in_any_chunks_with_rows_that_went_over_the_wire_gives_the_same(seed: int, cuts: list[int]) -> None:
    log = Log(both(most_forecasts=5), 2)
    log.send({name: value for name, value in event.items() if name != "at_us"} for event in stream(seed, 100))
    for topic in ("forecasts", "judgments"):
        for number in range(2):
            records = log.records[(topic, number)]
            again = Log(both(most_forecasts=5), 2).topics[topic][number]
            for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(records)], strict=True):
                again.absorb(records[begin:end])
                for table in again.schema.tables:
                    for space in again.spaces[table.index].values():
                        for row in space.values():
                            row.state = table.dump(row)
                again.window.restore()
            assert rows(again) == rows(log.topics[topic][number])


# ---- bounds


def test_the_oldest_forecasts_are_forgotten_first() -> None:
    log = Log(both(most_forecasts=20))
    story = Story(log)
    for n in range(50):
        story.issued(f"f{n}", f"v{n}")
    for n in range(50):
        story.resolved(f"f{n}")
    assert [n for n in range(50) if evidence(log, "variable", f"v{n}") == (1, 0)] == list(range(30, 50))
    assert counted(log, "forecast_variables") == (20, 30, 0)
    p = log.topics["forecasts"][0]
    assert len(p.keys(log.folds[1].issues.pieces, "golden")) == 3


def test_a_forecast_with_very_many_long_names_is_kept_in_small_rows_and_comes_back_whole() -> None:
    log = Log(both())
    story = Story(log)
    names = [f"{n}-" + "ä" * 240 for n in range(650)]
    story.issued("before", "x")
    story.issued("f", *names)
    story.issued("after", "y")
    p = log.topics["forecasts"][0]
    fold = log.folds[1]
    p.offset += 1  # asked by the next record
    words = [fold.issues.recall(p, "golden", remembered.digest_of("m", id)) for id in ("before", "f", "after")]
    assert words == [["x"], names, ["y"]]
    assert max(len(state) for _, state in rows(p).values()) <= 64 << 10


def test_rows_of_names_of_the_greatest_length_stay_under_64_kib() -> None:
    log = Log(both())
    story = Story(log)
    wide = "\U0001f40d" * 250
    same = {}
    for n in range(200_000):  # tasks that share a bucket
        digest = remembered.digest_of("", f"t{n}")
        same.setdefault(remembered.bucket_of(digest), []).append(f"t{n}")
        if len(same[remembered.bucket_of(digest)]) == 40:
            break
    tasks = next(found for found in same.values() if len(found) == 40)
    for n, task in enumerate(tasks):
        for i in range(3):
            story.judged(task, True, agent=None, judge=f"{n}-{i}{wide}")
    bucket = log.folds[1].verdicts.table
    states = [bucket.peek(row) for row in log.topics["judgments"][0].spaces[bucket.index]["golden"].values()]
    assert len(states) == 1 and len(states[0].names) == trust_verdicts.WAITING_A_BUCKET
    assert [sum(len(states[0].of_task(remembered.digest_of("", task))) for task in found) for found in (tasks[:-16], tasks[-16:])] == [0, 30]
    assert max(len(state) for _, state in rows(log.topics["judgments"][0]).values()) <= 64 << 10
    story.evaluated(tasks[-1], True, agent=None)
    story.evaluated(tasks[0], True, agent=None)
    assert counted(log, "judge") == (3, 117, 0)


def test_a_full_bucket_of_completions_forgets_the_oldest() -> None:
    log = Log(both())
    story = Story(log)
    found: dict[Any, list[str]] = {}
    for n in range(1_000_000):
        key = remembered.bucket_of(remembered.digest_of("a", str(n)))
        found.setdefault(key, []).append(str(n))
        if len(found[key]) == remembered.SEEN_A_BUCKET + 1:
            break
    ids = found[key]
    for id in ids:
        story.completed("a", execution=id)
    story.completed("a", execution=ids[-1])
    n = remembered.SEEN_A_BUCKET + 1
    assert counted(log, "task") == (n, 0, 1)
    story.completed("a", execution=ids[0])
    assert counted(log, "task") == (n + 1, 0, 1)
    assert max(len(state) for _, state in rows(log.topics["judgments"][0]).values()) < 2 << 10
