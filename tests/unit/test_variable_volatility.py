"""Symbolic volatility against a plain walk over the raw events, and its two alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest

from tables.fold import Standing, Verdict
from tables.times import HOUR_US
from tables.variable_states import MAX_TAGS, VariableSettings
from tables.variables import Variables
from tests.forecast_events import NAMES, START_US, Event, forecast, registration, stream
from tests.harness import Log, subset


def hour_of(event: Event) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp()) // 3600


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def oracle(events: list[Event]) -> dict[str, Any]:
    issued = [e for e in events if e["type"] == "forecast.issued.v1"]
    found: dict[str, Any] = {"tag_change": {}, "arc_change": {}}
    for answer, field in (("tag_change", "symbolic_tag"), ("arc_change", "arc_label")):
        last: dict[Any, str] = {}
        counts = {name: [0, 0] for e in issued for name in e["data"]["inputs"]}
        for e in issued:
            model, label = e["data"].get("model"), e["data"].get(field)
            if label is None:
                continue
            if model in last:
                for name in e["data"]["inputs"]:
                    counts[name][0] += 1
                    counts[name][1] += label != last[model]
            last[model] = label
        found[answer] = {n: {"transitions": t, "changes": c, "rate": c / t if t else None} for n, (t, c) in counts.items()}
    start = max(hour_of(e) for e in issued) - 23
    tags = sorted({e["data"]["symbolic_tag"] for e in issued if e["data"].get("symbolic_tag")})
    found["tags"], found["tag_means"], found["flips"], apart = {}, {}, [], []
    for tag in tags:
        mine = [(hour_of(e) >= start, e["data"]["confidence"]) for e in issued if e["data"].get("symbolic_tag") == tag]
        sides = [[c for recent, c in mine if recent == side] for side in (False, True)]
        before, recent = map(mean, sides)
        both = sides[0] + sides[1]
        found["tags"][tag] = {"n": len(both), "avg_confidence": mean(both), "std_confidence": float(np.std(both, ddof=1)) if len(both) > 1 else None}
        found["tag_means"][tag] = [before, recent]
        if min(map(len, sides)) >= 5 and before is not None and recent is not None and before > 0.6 and recent < 0.4:
            found["flips"].append(tag)
        apart.append(abs((0.5 if recent is None else recent) - (0.5 if before is None else before)))
    found["symbolic_drift"] = mean(apart)
    return found


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_changes_means_and_flips_of_a_random_stream_are_those_of_the_raw_events(seed: int, partitions: int) -> None:
    log = Log([Variables()], partitions)
    events = stream(seed, 400, models=9)
    for i, event in enumerate(events):
        if event["data"].get("symbolic_tag") == "rage":  # so that one tag flips
            event["data"]["confidence"] = 0.95 if hour_of(event) < START_US // HOUR_US + 57 else 0.02 + i / 10_000
    for done in range(0, 400, 100):
        log.send(events[done : done + 100])
        log.send(events[done : done + 30])
        answer = log.get("/variables/volatility")
        expected = oracle(events[: done + 100])
        assert subset(expected, answer) == []
        assert [list(answer[k]) for k in ("tags", "tag_change")] == [list(expected["tags"]), sorted(expected["tag_change"])]
    assert answer["flips"] == ["rage"]
    assert [v["name"] for v in answer["variables"]] == sorted(NAMES)


def test_a_missing_tag_is_no_change_and_models_do_not_disturb_one_another() -> None:
    log = Log([Variables()])
    tags = [("m", "x"), ("m", None), ("n", "y"), ("m", "x"), (None, "z"), ("m", "y"), (None, "z"), ("n", None)]
    log.send(forecast(i, {"a": 1.0}, **{k: v for k, v in (("model", model), ("symbolic_tag", tag)) if v}) for i, (model, tag) in enumerate(tags))
    assert log.get("/variables/volatility")["tag_change"]["a"] == {"transitions": 3, "changes": 1, "rate": pytest.approx(1 / 3)}


def test_a_cluster_is_the_mean_of_its_members_and_null_for_want_of_data() -> None:
    log = Log([Variables()])
    log.send([forecast(1, {"a": 1.0, "b": 1.0}, fragility=0.2, certified=True), forecast(2, {"b": 1.0}, fragility=0.9)])
    answer = log.get("/variables/volatility", names="b,a,nobody", threshold=0.3)
    assert answer["variables"] == [
        {"name": "a", "volatility": 0.1, "above": False},
        {"name": "b", "volatility": 0.525, "above": True},
        {"name": "nobody", "volatility": None, "above": False},
    ]
    assert answer["cluster"] == 0.3125
    assert list(answer["tag_change"]) == ["a", "b", "nobody"] and answer["arc_change"]["nobody"]["rate"] is None
    assert log.get("/variables/volatility", names="nobody")["cluster"] is None
    assert log.get("/variables/volatility")["cluster"] is None
    empty = Log([Variables()]).get("/variables/volatility")
    assert (empty["variables"], empty["cluster"], empty["tags"], empty["flips"], empty["symbolic_drift"]) == ([], None, {}, [], None)


def test_above_is_strict_and_compares_the_figure_shown() -> None:
    log = Log([Variables()])
    log.send([forecast(1, {"a": 1.0}, fragility=0.6, certified=True)])
    assert [log.get("/variables/volatility", threshold=t)["variables"][0]["above"] for t in (0.3, 0.2999)] == [False, True]


def test_in_strict_mode_unregistered_variables_are_not_in_volatility() -> None:
    log = Log([Variables(VariableSettings(variables_strict=True))])
    log.send([registration(0, "b"), forecast(1, {"a": 1.0, "b": 1.0}, fragility=0.2)])
    assert [v["name"] for v in log.get("/variables/volatility")["variables"]] == ["b"]
    assert log.get("/variables/volatility", names="a")["variables"] == [{"name": "a", "volatility": None, "above": False}]


def test_tags_are_bounded_and_further_ones_count_as_overflow() -> None:
    log = Log([Variables()])
    log.send(forecast(i, symbolic_tag=f"t{i}") for i in range(MAX_TAGS + 5))
    log.send([forecast(9999, symbolic_tag="t3")])
    answer = log.get("/variables/volatility")
    assert (len(answer["tags"]), answer["tags"]["t3"]["n"], log.get("/variables")["overflow"]) == (MAX_TAGS, 2, 5)


# ---- the alerts


def judge(log: Log, rule_name: str, name: str, level: str = "ok") -> Verdict | None:
    fold: Any = log.folds[0]
    rule = next(rule for rule in fold.rules if rule.name == rule_name)
    verdict: Verdict | None = rule.judge(log.reader(), (name,), Standing(level))
    return verdict


def test_volatility_opens_above_a_half_with_twenty_forecasts_and_resolves_at_point_forty_five() -> None:
    log = Log([Variables()], 4)
    assert judge(log, "volatility.variable", "a") is None
    log.send(forecast(i, {"a": 1.0}, fragility=0.5, certified=i % 2 > 0, model=f"m{i}") for i in range(20))
    assert judge(log, "volatility.variable", "a") is None  # exactly .5
    log.send([forecast(20, {"a": 1.0}, fragility=0.6)])
    opened = judge(log, "volatility.variable", "a")
    assert opened is not None and (opened.level, opened.value, opened.threshold) == ("warning", 0.5143, 0.5)
    assert "Variable a" in opened.message and opened.message.endswith(".")
    log.send([forecast(21, {"a": 1.0}, fragility=0.2, certified=True)])
    assert (judge(log, "volatility.variable", "a"), judge(log, "volatility.variable", "a", "warning")) == (None, None)
    log.send(forecast(30 + i, {"a": 1.0}, fragility=0.2, certified=True) for i in range(4))
    resolved = judge(log, "volatility.variable", "a", "warning")
    assert resolved is not None and (resolved.level, resolved.value) == ("ok", 0.4346)
    few = Log([Variables()])
    few.send(forecast(i, {"a": 1.0}, fragility=1.0) for i in range(19))
    assert judge(few, "volatility.variable", "a") is None
    few.send([forecast(19, {"a": 1.0}, fragility=1.0)])
    assert judge(few, "volatility.variable", "a") is not None


def test_in_strict_mode_an_open_volatility_alert_of_an_unregistered_variable_ends() -> None:
    log = Log([Variables(VariableSettings(variables_strict=True))])
    log.send(forecast(i, {"a": 1.0}, fragility=1.0) for i in range(30))
    assert judge(log, "volatility.variable", "a") is None
    ended = judge(log, "volatility.variable", "a", "warning")
    assert ended is not None and (ended.level, ended.reason) == ("ok", "settings_changed")


def test_a_flip_opens_with_five_on_each_side_and_resolves_over_its_limit_or_when_nothing_is_recent() -> None:
    log = Log([Variables()], 4)
    assert judge(log, "volatility.flip", "t") is None
    log.send(forecast(i, symbolic_tag="t", confidence=0.7, model=f"m{i}") for i in range(5))
    late = START_US + 50 * HOUR_US
    log.send(forecast(10 + i, None, late, symbolic_tag="t", confidence=0.3, model=f"m{i}") for i in range(4))
    assert judge(log, "volatility.flip", "t") is None
    log.send([forecast(14, None, late, symbolic_tag="t", confidence=0.3)])
    opened = judge(log, "volatility.flip", "t")
    assert opened is not None and (opened.level, opened.threshold) == ("warning", 0.4)
    assert opened.value == pytest.approx(0.3)
    assert judge(log, "volatility.flip", "t", "warning") is None
    log.send([forecast(15, None, late, symbolic_tag="t", confidence=1.0)])  # 2.5 / 6
    assert (judge(log, "volatility.flip", "t"), judge(log, "volatility.flip", "t", "warning")) == (None, None)
    log.send([forecast(16, None, late, symbolic_tag="t", confidence=0.7)])  # 3.2 / 7
    resolved = judge(log, "volatility.flip", "t", "warning")
    assert resolved is not None and resolved.level == "ok" and resolved.value == pytest.approx(3.2 / 7)
    log.send([forecast(99, None, late + 24 * HOUR_US)])
    gone = judge(log, "volatility.flip", "t", "warning")
    assert gone is not None and (gone.level, gone.value, gone.reason) == ("ok", None, "nothing_recent")


@pytest.mark.parametrize(("before", "recent", "flips"), [(0.6, 0.3, False), (0.61, 0.4, False), (0.61, 0.39, True), (0.5, 0.1, False)])
def test_limits_of_a_flip_are_strict(before: float, recent: float, flips: bool) -> None:
    log = Log([Variables()])
    log.send(forecast(i, symbolic_tag="t", confidence=before) for i in range(6))
    log.send(forecast(10 + i, None, START_US + 50 * HOUR_US, symbolic_tag="t", confidence=recent) for i in range(6))
    assert log.get("/variables/volatility")["flips"] == (["t"] if flips else [])
