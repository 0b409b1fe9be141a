"""Streams of events that are healthy, or change at a known place: one case a rule and kind of data.

A case makes streams; a stream gives the events of its i-th value and the figure in them that its rule looks at. i = -1 is the time
before: what has to be there first (a goal, a budget).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp
from random import Random
from typing import Any

from tables.times import rfc3339

from .made import START_US

Events = list[tuple[str, dict[str, Any]]]
Stream = Callable[[int], tuple[Events, float | None]]


@dataclass(frozen=True)
class Case:
    """Streams for a rule.

    Attributes:
        rule: its name.
        healthy, what: the data before, and the change, in words; an empty change: healthy streams only.
        make: (name of the stream, chance, whether it changes) -> the stream.
        n, change: values, and the one from which they are changed.
        every_s: between two values.
        tenants: a stream is a tenant, not a subject.
    """

    rule: str
    healthy: str
    what: str
    make: Callable[[str, Random, bool], Stream]
    n: int = 1000
    change: int = 500
    every_s: float = 60.0
    tenants: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    seed: int = 1


Value = Callable[[int, Random], float]
"""(place, chance) -> a value."""


def plain(kind: str, data: Callable[[str, int, float], dict[str, Any]], before: Value, after: Value | None = None, change: int = 500) -> Any:
    """Streams of one event a value."""

    def make(name: str, rng: Random, changed: bool) -> Stream:
        def at(i: int) -> tuple[Events, float | None]:
            if i < 0:
                return [], None
            x = (after if changed and after is not None and i >= change else before)(i, rng)
            return [(kind, data(name, i, x))], x

        return at

    return make


def unit(x: float) -> float:
    """Cut to 0…1."""
    return min(1.0, max(0.0, x))


def normal(mean: float, std: float) -> Value:
    """Independent normal values, cut to 0…1."""
    return lambda i, rng: unit(rng.gauss(mean, std))


def chance(p: float) -> Value:
    """1 with a probability, else 0."""
    return lambda i, rng: float(rng.random() < p)


# ---- trust


def trust(rule: str, healthy: str, what: str, before: Value, after: Value | None, **more: Any) -> Case:
    change = more.get("change", 500)
    data = lambda name, i, x: {"kind": "model", "id": name, "success": x > 0}  # noqa: E731
    return Case(rule, healthy, what, plain("trust.observed.v1", data, before, after, change), **more)


# ---- variables


def forecast(rule: str, healthy: str, what: str, before: dict[str, float], after: dict[str, float] | None, figure: str, **more: Any) -> Case:
    """Forecasts with one variable and tag each; `before` and `after`: fragility, confidence, certified (a probability)."""
    change = more.get("change", 500)

    def make(name: str, rng: Random, changed: bool) -> Stream:
        def at(i: int) -> tuple[Events, float | None]:
            if i < 0:
                return [], None
            of = after if changed and after is not None and i >= change else before
            data: dict[str, Any] = {
                "forecast_id": f"{name}-{i}",
                "model": f"m-{name}",
                "confidence": unit(rng.gauss(of["confidence"], 0.1)),
                "fragility": unit(rng.gauss(of["fragility"], 0.1)),
                "certified": rng.random() < of["certified"],
                "symbolic_tag": f"t-{name}",
                "inputs": {f"x-{name}": rng.gauss(0, 1)},
            }
            return [("forecast.issued.v1", data)], float(data[figure])

        return at

    return Case(rule, healthy, what, make, **more)


GOOD = {"confidence": 0.75, "fragility": 0.15, "certified": 0.9}
BAD = {"confidence": 0.35, "fragility": 0.5, "certified": 0.5}
WORSE = {"confidence": 0.2, "fragility": 0.8, "certified": 0.1}
EDGE = {"confidence": 0.7, "fragility": 0.23, "certified": 0.79}


def resolved(name: str, rng: Random, changed: bool) -> Stream:
    """Calibrated chances; from the change on they say nothing."""

    def at(i: int) -> tuple[Events, float | None]:
        if i < 0:
            return [], None
        p = rng.random()
        success = rng.random() < (0.5 if changed and i >= 500 else p)
        return [("forecast.resolved.v1", {"forecast_id": f"{name}-{i}", "model": name, "success": success, "probability": p})], (p - success) ** 2

    return at


# ---- metrics


def metric(rule: str, healthy: str, what: str, before: Value, after: Value | None, kind: str = "loss", **more: Any) -> Case:
    change = more.get("change", 500)
    data = lambda name, i, x: {"metric_type": kind, "model": "m", "run": name, "value": x if x == x else "NaN", "step": i}  # noqa: E731
    return Case(rule, healthy, what, plain("metric.recorded.v1", data, before, after, change), **more)


def falling(noise: float, floor: float = 0.3, scale: float = 150.0) -> Value:
    """A loss that falls from 2.3 to its floor, times log-normal noise."""
    return lambda i, rng: (floor + (2.3 - floor) * exp(-i / scale)) * rng.lognormvariate(0, noise)


def rising(noise: float) -> Value:
    """An accuracy that rises from 0.1 to 0.9."""
    return lambda i, rng: unit(0.9 - 0.8 * exp(-i / 150) + rng.gauss(0, noise))


def worse(before: Value, by: float) -> Value:
    """The same, times a factor."""
    return lambda i, rng: before(i, rng) * by


def gauss(mean: float, std: float) -> Value:
    """Independent normal values."""
    return lambda i, rng: rng.gauss(mean, std)


def spike(i: int, rng: Random) -> float:
    """Normal values with one at place 500 that is 8 standard deviations off."""
    return rng.gauss(0, 1) + (8.0 if i == 500 else 0.0)


# ---- learning and goals


def learning(rule: str, healthy: str, what: str, score: Value | None, other: Value | None, field_name: str = "performance_score", **more: Any) -> Case:
    change = more.get("change", 500)

    def data(name: str, i: int, x: float) -> dict[str, Any]:
        figures = {"performance_score": 0.7, "convergence_metric": 0.5, "learning_rate": 0.01, "episode_count": i}
        return {"task_type": "t", "run": name, **figures, field_name: x}

    assert score is not None
    return Case(rule, healthy, what, plain("learning.recorded.v1", data, score, other, change), **more)


def declining(i: int, rng: Random) -> float:
    """A score that falls by 0.002 a value from 500 on."""
    return unit(0.7 - 0.002 * (i - 500) + rng.gauss(0, 0.05))


def dependent(mean: float, std: float, again: float) -> Callable[[str, Random, bool], Stream]:
    """Scores each of which keeps a share of the deviation of the one before."""

    def make(name: str, rng: Random, changed: bool) -> Stream:
        at = 0.0

        def one(i: int) -> tuple[Events, float | None]:
            nonlocal at
            if i < 0:
                return [], None
            at = again * at + rng.gauss(0, std * (1 - again * again) ** 0.5)
            x = unit(mean + at)
            data = {"task_type": "t", "run": name, "performance_score": x, "convergence_metric": 0.5, "learning_rate": 0.01, "episode_count": i}
            return [("learning.recorded.v1", data)], x

        return one

    return make


def goal(rule: str, healthy: str, what: str, slope: float, later: float, **more: Any) -> Case:
    """A goal of 1000 by value 1000, that progresses by a slope and from the change on by another."""
    change, n = more.get("change", 500), 1000

    def make(name: str, rng: Random, changed: bool) -> Stream:
        def at(i: int) -> tuple[Events, float | None]:
            if i < 0:
                deadline = rfc3339(START_US + n * 60_000_000)
                return [("goal.created.v1", {"goal_id": name, "target": 1000.0, "start": 0.0, "deadline": deadline, "task_type": name})], None
            x = slope * i if not changed or i < change else slope * change + later * (i - change)
            return [("goal.progressed.v1", {"goal_id": name, "current": x + rng.gauss(0, 5), "task_type": name})], None

        return at

    return Case(rule, healthy, what, make, **more)


# ---- costs


def cost(rule: str, healthy: str, what: str, mean: float, later: float, **more: Any) -> Case:
    """One event an hour of an exponential amount; a tenant a stream."""
    change = more.get("change", 500)
    before, after = (lambda i, rng: rng.expovariate(1 / mean)), (lambda i, rng: rng.expovariate(1 / later))
    make = plain("cost.incurred.v1", lambda name, i, x: {"cost": round(x, 6)}, before, after, change)
    return Case(rule, healthy, what, make, every_s=3600.0, tenants=True, **more)


def calls(name: str, rng: Random, changed: bool) -> Stream:
    """Calls a minute, 2 a call on average and later 20; limits 60 a minute, 500 an hour, 5000 a day."""

    def at(i: int) -> tuple[Events, float | None]:
        if i < 0:
            return [], None
        n = sum(rng.random() < (0.2 if changed and i >= 500 else 0.02) for _ in range(100))
        return [("cost.incurred.v1", {"cost": 0, "api_calls": n})], float(n)

    return at


# ---- agents


def agent(rule: str, healthy: str, what: str, before: Value, after: Value | None, field_name: str, **more: Any) -> Case:
    """Completions with one figure of interest."""
    change = more.get("change", 500)

    def data(name: str, i: int, x: float) -> dict[str, Any]:
        found: dict[str, Any] = {"task": f"{name}-{i}", "agent": name, "task_type": "t", "success": True}
        found[field_name] = x > 0 if field_name == "success" else x
        return found

    return Case(rule, healthy, what, plain("task.completed.v1", data, before, after, change), **more)


def lognormal(median_ms: float, sigma: float) -> Value:
    """Durations, ms."""
    return lambda i, rng: median_ms * rng.lognormvariate(0, sigma)


def judgments(healthy: str, what: str, before: Value, after: Value | None) -> Case:
    data = lambda name, i, x: {  # noqa: E731
        "task": f"{name}-{i}", "agent": name, "judge": "j", "overall_score": x, "overall_confidence": 0.8, "criteria": {}, "evaluation_time_ms": 5
    }  # fmt: skip
    return Case("agent.judgment", healthy, what, plain("judgment.recorded.v1", data, before, after))


def budgets(healthy: str, what: str, before: Value, after: Value | None) -> Case:
    data = lambda name, i, x: {"task": f"{name}-{i}", "agent": name, "tokens_used": int(1000 * x), "tokens_allocated": 1000}  # noqa: E731
    return Case("agent.budget", healthy, what, plain("thinking_budget.used.v1", data, before, after))


def validations(healthy: str, what: str, before: Value, after: Value | None) -> Case:
    data = lambda name, i, x: {  # noqa: E731
        "task": f"{name}-{i}", "agent": name, "valid": x > 0, "violations": [], "compliance_score": x, "processing_time_ms": 5, "rule_count": 3
    }  # fmt: skip
    return Case("agent.compliance", healthy, what, plain("validation.completed.v1", data, before, after))


def judge(before: float, after: float) -> Callable[[str, Random, bool], Stream]:
    """A judge that agrees with the evaluation of the same task, more or less often."""

    def make(name: str, rng: Random, changed: bool) -> Stream:
        def at(i: int) -> tuple[Events, float | None]:
            if i < 0:
                return [], None
            passed, agrees = rng.random() < 0.6, rng.random() < (after if changed and i >= 500 else before)
            task = {"task": f"{name}-{i}", "agent": f"a-{name}"}
            verdict = {"judge": name, "overall_score": 0.8, "overall_confidence": 0.8, "criteria": {}, "evaluation_time_ms": 5}
            verdict["all_criteria_pass"] = passed == agrees
            return [
                ("evaluation.completed.v1", {**task, "passed": passed, "score": 0.8}),
                ("judgment.recorded.v1", {**task, **verdict}),
            ], float(agrees)

        return at

    return make


NAN = float("nan")
HOLD = {"convergence_hold": "10"}
NOISE = {"degraded_noise": "5"}
HALF_LIFE = {"trust_half_life": "6000"}
CASES: list[Case] = [
    trust("trust.low", "70 % succeed", "10 %", chance(0.7), chance(0.1), change=200),
    trust("trust.low", "70 % succeed, half-life of 100 observations", "10 %", chance(0.7), chance(0.1), settings=HALF_LIFE),
    trust("trust.low", "45 % succeed (limit 40 %)", "", chance(0.45), None),
    trust("trust.low", "45 % succeed, half-life of 100 observations", "", chance(0.45), None, settings=HALF_LIFE),
    forecast("drift.variable", "fragility 0.15, 90 % certified", "0.5, 50 %", GOOD, BAD, "fragility"),
    forecast("drift.variable", "fragility 0.23, 79 % certified (limits 0.25, 75 %)", "", EDGE, None, "fragility"),
    forecast("drift.recent", "the same, 10 an hour", "0.5, 50 %", GOOD, BAD, "fragility", every_s=360),
    forecast("drift.recent", "the same, 10 an hour", "fragility 0.3 alone", GOOD, {**GOOD, "fragility": 0.3}, "fragility", every_s=360),
    forecast("volatility.variable", "fragility 0.15, 90 % certified", "0.8, 10 %", GOOD, WORSE, "fragility", change=300),
    forecast("volatility.flip", "confidence 0.75, 10 an hour", "0.2", GOOD, WORSE, "confidence", every_s=360),
    Case("forecast.calibration", "calibrated, chances uniform", "chances say nothing", resolved),
    metric("metric.nonfinite", "finite", "NaN", gauss(1, 0.1), lambda i, rng: NAN),
    metric("metric.plateau", "mini-batch loss, noise 20 %", "stuck at 0.3 ± 0.0002", falling(0.2), gauss(0.3, 0.0002)),
    metric("metric.plateau", "epoch loss, noise 1 %, on its floor from value 700 on", "", falling(0.01), None),
    metric("metric.degraded", "mini-batch loss, noise 30 %", "× 2", falling(0.3), worse(falling(0.3), 2)),
    metric("metric.degraded", "mini-batch loss, noise 10 %", "× 2", falling(0.1), worse(falling(0.1), 2)),
    metric("metric.degraded", "mini-batch loss, noise 30 %, `degraded_noise` = 5", "× 2", falling(0.3), worse(falling(0.3), 2), settings=NOISE),
    metric("metric.degraded", "mini-batch loss, noise 10 %, `degraded_noise` = 5", "× 2", falling(0.1), worse(falling(0.1), 2), settings=NOISE),
    metric("metric.degraded", "epoch loss, noise 2 %", "× 1.3", falling(0.02), worse(falling(0.02), 1.3)),
    metric("metric.degraded", "mini-batch accuracy, noise 0.1", "× 0.7", rising(0.1), worse(rising(0.1), 0.7), "accuracy"),
    metric("metric.degraded", "the same, `degraded_noise` = 5", "× 0.7", rising(0.1), worse(rising(0.1), 0.7), "accuracy", settings=NOISE),
    metric("metric.degraded", "epoch loss, noise 2 %, `degraded_noise` = 5", "× 1.3", falling(0.02), worse(falling(0.02), 1.3), settings=NOISE),
    metric("metric.anomaly", "normal values", "mean up by 4 sigma", gauss(0, 1), gauss(4, 1), "x"),
    metric("metric.anomaly", "normal values", "one of 8 sigma", gauss(0, 1), spike, "x"),
    metric("metric.anomaly", "log-normal values, sigma 0.5", "× 5", falling(0.5, 1, 1e-9), worse(falling(0.5, 1, 1e-9), 5), "x"),
    learning("learning.converged", "metric 0.05 ± 0.01", "0.005 ± 0.001", normal(0.05, 0.01), normal(0.005, 0.001), "convergence_metric"),
    learning("learning.converged", "metric 0.012 ± 0.001 (limit 0.01)", "", normal(0.012, 0.001), None, "convergence_metric"),
    learning("learning.converged", "the same, `convergence_hold` = 10", "", normal(0.012, 0.001), None, "convergence_metric", settings=HOLD),
    learning("learning.declining", "score 0.7 ± 0.05", "falls by 0.002 a value", normal(0.7, 0.05), declining),
    Case("learning.declining", "score 0.7 ± 0.05, each keeps 80 % of the deviation before it", "", dependent(0.7, 0.05, 0.8)),
    goal("goal.at_risk", "on its way to be early by a quarter", "a fifth of the pace", 1.25, 0.25, n=780, change=300),
    cost("cost.daily", "4 USD a day (limits 7, 9, 10)", "24 USD", 4 / 24, 1.0),
    cost("cost.forecast", "2 USD a day (100 a month)", "12 USD", 2 / 24, 0.5, n=720, change=360),
    Case("cost.rate", "2 calls a minute", "20 a minute (500 an hour)", calls, tenants=True),
    agent("agent.latency", "log-normal, sigma 0.5, median 1 s", "× 3", lognormal(1000, 0.5), lognormal(3000, 0.5), "duration_ms"),
    agent("agent.latency", "log-normal, sigma 1.2, median 1 s", "× 5", lognormal(1000, 1.2), lognormal(5000, 1.2), "duration_ms"),
    agent("agent.quality", "0.8 ± 0.1", "0.55 ± 0.1", normal(0.8, 0.1), normal(0.55, 0.1), "quality"),
    agent("agent.errors", "2 % fail", "30 %", chance(0.98), chance(0.7), "success"),
    agent("agent.errors", "10 % fail", "40 %", chance(0.9), chance(0.6), "success"),
    agent("agent.errors", "30 % fail", "70 %", chance(0.7), chance(0.3), "success"),
    agent("agent.success_rate", "90 % succeed", "50 %", chance(0.9), chance(0.5), "success"),
    agent("agent.success_rate", "78 % succeed (limit 70 %)", "", chance(0.78), None, "success"),
    judgments("0.8 ± 0.1", "0.6 ± 0.1", normal(0.8, 0.1), normal(0.6, 0.1)),
    budgets("70 % ± 20 %", "98 % ± 5 %", normal(0.7, 0.2), normal(0.98, 0.05)),
    validations("95 % valid", "60 %", chance(0.95), chance(0.6)),
    Case("judge.agreement", "agrees in 85 %", "30 %", judge(0.85, 0.3)),
]  # fmt: skip
