"""Alerts on agents against a brute-force oracle over all completions, the golden vector, false alarms, and the ends of each rule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.harness import VECTORS, Log
from tests.unit.performance_stream import START_US, completed, event, folds

Step = tuple[bool, float | None, float | None]
Message = tuple[str, str, str, float | None, float | None, str | None]


def regime(seed: int, n: int) -> list[Step]:
    """Completions of an agent whose failures, quality and speed change now and then; some carry no figure."""
    rng = random.Random(seed)
    found: list[Step] = []
    fail, quality, ms, has, spread = 0.1, 0.8, 300.0, 1.0, 0.02
    for i in range(n):
        if i % 150 == 149:
            fail, quality = rng.choice([0.02, 0.1, 0.4, 0.8]), rng.choice([0.85, 0.8, 0.6, 0.4])
            ms, has = rng.choice([300.0, 300.0, 1500.0, 9000.0]), rng.choice([1.0, 1.0, 0.7, 0.3])
            spread = rng.choice([0.3, 0.3, 0.02])
        q = min(1.0, max(0.0, rng.gauss(quality, 0.08))) if rng.random() < has else None
        d = rng.lognormvariate(np.log(ms), spread) if rng.random() < has else None
        found.append((rng.random() >= fail, q, d))
    return found


class Oracle:
    """The rules as they are written, with every figure taken anew from all completions at every step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.open: dict[str, tuple[str, float, int]] = {}
        self.messages: list[Message] = []

    def tell(self, rule: str, level: str, value: float | None, threshold: float | None, base: float, reason: str | None = None) -> None:
        previous, _, at = self.open.get(rule, ("ok", 0.0, len(self.steps)))
        if level == previous:
            return
        order = ["ok", "warning", "critical"]
        up = order.index(level) > order.index(previous)
        kind = "opened" if previous == "ok" else "resolved" if level == "ok" else "escalated" if up else "eased"
        self.messages.append((kind, rule, previous if level == "ok" else level, value, threshold, reason))
        if level == "ok":
            del self.open[rule]
        else:
            self.open[rule] = (level, base, at)

    def add(self, step: Step) -> None:
        self.steps.append(step)
        n = len(self.steps)
        w, b = self.steps[max(0, n - 20) :], self.steps[max(0, n - 220) : max(0, n - 20)]
        self.errors(w, b)
        if n >= 20:
            last = [s for s, _, _ in self.steps[-50:]]
            rate = sum(last) / len(last)
            now = self.open.get("agent.success_rate", ("ok", 0.0, 0))[0]
            level = "critical" if rate < 0.5 else "warning" if rate < 0.7 or (rate < 0.75 and now != "ok") else "ok"
            self.tell("agent.success_rate", level, rate, 0.5 if level == "critical" else 0.7, 0.0)
        self.quality(w, b)
        self.latency(w, b)

    def against(self, rule: str, level: str, value: float | None, threshold: float) -> None:
        _, base, at = self.open[rule]
        if level != "ok" and len(self.steps) - at >= 500:
            self.tell(rule, "ok", value, threshold, base, "new_normal")
        else:
            self.tell(rule, level, value, threshold, base)

    def errors(self, w: list[Step], b: list[Step]) -> None:
        rule, rate = "agent.errors", sum(not s for s, _, _ in w) / 20
        if rule in self.open:
            rise = rate - self.open[rule][1]
            self.against(rule, "ok" if rise < 0.02 else "critical" if rise > 0.2 else "warning", rate, self.open[rule][1] + 0.1)
        elif len(b) >= 50:
            base = sum(not s for s, _, _ in b) / len(b)
            k = sum(not s for s, _, _ in w)
            if rate - base > 0.1 and stats.binom.sf(k - 1, 20, max(base, 0.005)) < 0.001:
                self.tell(rule, "critical" if rate - base > 0.2 else "warning", rate, base + 0.1, base)

    def quality(self, w: list[Step], b: list[Step]) -> None:
        rule = "agent.quality"
        mine, before = [q for _, q, _ in w if q is not None], [q for _, q, _ in b if q is not None]
        if rule in self.open:
            base, now = self.open[rule][1], self.open[rule][0]
            if len(mine) < 10:
                self.against(rule, now, None, base - 0.15)
            else:
                fall = base - np.mean(mine)
                self.against(rule, "ok" if fall < 0.05 else "critical" if fall > 0.2 else "warning", float(np.mean(mine)), base - 0.15)
        elif len(mine) >= 10 and len(before) >= 50:
            fall = np.mean(before) - np.mean(mine)
            if fall > 0.15 and stats.ttest_ind(before, mine, equal_var=False, alternative="greater").pvalue < 0.001:
                self.tell(rule, "critical" if fall > 0.2 else "warning", float(np.mean(mine)), float(np.mean(before)) - 0.15, float(np.mean(before)))

    def latency(self, w: list[Step], b: list[Step]) -> None:
        def p95(values: list[float]) -> float:
            return sorted(values)[int(np.floor(0.95 * (len(values) - 1) + 1e-9))]

        rule = "agent.latency"
        mine, before = [d for _, _, d in w if d is not None], [d for _, _, d in b if d is not None]
        if rule in self.open:
            base, now = self.open[rule][1], self.open[rule][0]
            if len(mine) < 10:
                self.against(rule, now, None, 2 * base)
            else:
                high = p95(mine)
                self.against(rule, "ok" if high <= 1.2 * base else "critical" if high > 5000 else "warning", high, 2 * base)
        elif len(mine) >= 10 and len(before) >= 50:
            high, base = p95(mine), p95(before)
            if high > 2 * base and stats.binom.sf(sum(d > base for d in mine) - 1, len(mine), 0.05) < 0.001:
                self.tell(rule, "critical" if high > 5000 else "warning", high, 2 * base, base)


def told(log: Log) -> list[Message]:
    return [(a["type"].split(".")[1], a["rule"], a["severity"], a["value"], a["threshold"], a.get("reason")) for a in log.alerts()]


@pytest.mark.parametrize("seed", range(6))
def test_every_message_is_that_of_the_brute_force_oracle(seed: int) -> None:
    log, oracle = Log(folds()), Oracle()
    steps = regime(seed, 1500)
    rules: set[str] = set()
    for i, (success, quality, duration_ms) in enumerate(steps):
        log.send([completed(i, success, quality=quality, duration_ms=duration_ms)])
        oracle.add((success, quality, duration_ms))
        rules.update(m[1] for m in oracle.messages)
    found = told(log)
    assert [m[:3] + m[5:] for m in found] == [m[:3] + m[5:] for m in oracle.messages]
    for have, want in zip(found, oracle.messages, strict=True):
        assert have[3:5] == (pytest.approx(want[3]), pytest.approx(want[4]))
    assert len(found) >= 8 and rules == {"agent.errors", "agent.success_rate", "agent.quality", "agent.latency"}


def test_an_agent_that_stays_worse_is_the_new_normal_after_500_completions() -> None:
    log = Log(folds())
    log.send(completed(i, (i >= 100 and i % 2 == 0) or (i < 100 and i % 20 != 0), duration_ms=100.0 if i < 100 else 6000.0) for i in range(800))
    for rule in ("agent.errors", "agent.latency"):
        messages = log.alerts(rule)
        assert [(m["type"], m.get("reason")) for m in messages] == [("alert.opened.v1", None), ("alert.resolved.v1", "new_normal")]
        opened, resolved = (int(m["derivedfrom"][1:]) for m in messages)
        assert resolved - opened == 500
        assert messages[1]["alert_id"] == messages[0]["alert_id"] and messages[1]["previous"] == messages[0]["severity"]


def test_the_golden_alert_has_its_baseline_and_tail() -> None:
    log = Log(folds())
    log.send(VECTORS["P6"]["events"])
    (opened,) = log.alerts("agent.errors")[:1]
    assert opened["derivedfrom"] == "p6-121" and opened["evidence"]["offset"] == 120
    assert (opened["baseline"], opened["tail"]) == (pytest.approx(10 / 101), pytest.approx(stats.binom.sf(7, 20, 10 / 101)))


def test_a_healthy_agent_raises_next_to_no_alarm() -> None:
    """A rate of 0.1 all the time: the rise of 10 points alone would open some 160 times in 20,000 completions."""
    rng = random.Random(1)
    log = Log(folds())
    log.send(completed(i, rng.random() >= 0.1, duration_ms=rng.lognormvariate(6, 0.5), quality=rng.betavariate(8, 2)) for i in range(20_000))
    assert sum(m["type"] == "alert.opened.v1" for m in log.alerts()) <= 12


def test_the_success_rate_opens_below_seventy_percent_of_at_least_twenty() -> None:
    for failed, opened in ((6, []), (7, ["e19"])):  # 14 and 13 of 20
        log = Log(folds())
        log.send(completed(i, i >= failed) for i in range(20))
        assert [m["derivedfrom"] for m in log.alerts("agent.success_rate")] == opened
    log = Log(folds())
    log.send(completed(i, False) for i in range(19))
    assert log.alerts() == []


def judgment(n: int, score: float, agent: str = "a") -> dict[str, Any]:
    data = {"task": f"t{n}", "judge": "j", "agent": agent, "overall_score": score, "overall_confidence": 0.5, "evaluation_time_ms": 1}
    return event(n, "judgment.recorded", START_US + n, **data)


def test_judgments_open_ease_and_resolve_by_the_mean_of_the_last_twenty() -> None:
    log = Log(folds())
    scores = [0.1] * 19 + [0.1] + [0.9] * 40
    log.send(judgment(n, score) for n, score in enumerate(scores))
    found = [(m["type"], m["severity"], m["previous"], round(m["value"], 3), m["threshold"], m["derivedfrom"]) for m in log.alerts("agent.judgment")]
    assert found == [
        ("alert.opened.v1", "critical", "ok", 0.1, 0.5, "e19"),
        ("alert.eased.v1", "warning", "critical", 0.5, 0.7, "e29"),
        ("alert.resolved.v1", "warning", "warning", 0.78, 0.7, "e36"),
    ]


def test_budgets_open_above_ninety_percent_and_resolve_below_eighty_five() -> None:
    def use(n: int, used: int) -> dict[str, Any]:
        return event(n, "thinking_budget.used", START_US + n, task=f"t{n}", agent="a", tokens_used=used, tokens_allocated=1000)

    log = Log(folds())
    log.send(use(n, used) for n, used in enumerate([900] * 20))
    assert log.alerts("agent.budget") == []  # exactly 0.90
    log.send(use(20 + n, used) for n, used in enumerate([1200] * 20 + [500] * 20))
    found = [(m["type"], m["severity"]) for m in log.alerts("agent.budget")]
    assert found[0] == ("alert.opened.v1", "warning") and found[1] == ("alert.escalated.v1", "critical")
    assert found[-1] == ("alert.resolved.v1", "warning") and len(found) == 4


def validation(n: int, valid: bool, severity: str | None = None) -> dict[str, Any]:
    violations = [{"severity": severity, "message": "m"}] if severity else []
    data = {"task": f"t{n}", "agent": "a", "valid": valid, "violations": violations, "compliance_score": 0.5, "processing_time_ms": 1, "rule_count": 1}
    return event(n, "validation.completed", START_US + n, **data)


def test_a_critical_violation_opens_at_once_and_twenty_good_validations_resolve() -> None:
    log = Log(folds())
    log.send([validation(0, False, "critical"), *(validation(n, True, "low") for n in range(1, 21))])
    found = [(m["type"], m["severity"], m["derivedfrom"]) for m in log.alerts("agent.compliance")]
    assert found == [("alert.opened.v1", "critical", "e0"), ("alert.resolved.v1", "critical", "e20")]


def test_too_few_valid_ones_of_twenty_warn_until_nine_of_ten_are() -> None:
    log = Log(folds())
    log.send(validation(n, n % 4 != 0) for n in range(20))  # 15 of 20
    log.send(validation(20 + n, True) for n in range(20))
    found = [(m["type"], m["severity"], m["value"], m["threshold"]) for m in log.alerts("agent.compliance")]
    assert found == [("alert.opened.v1", "warning", 0.75, 0.8), ("alert.resolved.v1", "warning", 0.9, 0.8)]


def test_agents_do_not_mix_and_each_has_its_own_subject() -> None:
    log = Log(folds(), 4)
    for i in range(200):
        log.send([completed(2 * i, i < 150, agent="a|b"), completed(2 * i + 1, True, agent="fine")])
    assert {m["subject"] for m in log.alerts()} == {"a%7Cb"}
