"""Trends of agents' figures against numpy and scipy, their directions, series of RL metrics and generic events, bad parameters."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tables.fold import BadParameter
from tables.partition import COUNTERS, OWN
from tables.performance_series import RL_FIELDS, direction
from tables.regression import fit
from tables.times import HOUR_US, rfc3339
from tables.windows import Windows
from tests.harness import Log, subset
from tests.unit.performance_stream import START_US, completed, event, folds

MINUTE_US = HOUR_US // 60


def log_of(seed: int, partitions: int) -> tuple[Log, list[dict[str, Any]]]:
    rng = random.Random(seed)
    events = []
    for i in range(600):
        at_us = START_US + int(i * 3 * MINUTE_US + rng.random() * MINUTE_US)
        figures = {"quality": min(1.0, 0.4 + i / 2000 + rng.random() / 5), "duration_ms": 500 + i * rng.random(), "tokens": rng.randrange(100)}
        types = {"task_type": rng.choice(["code", "doc"])}
        events.append(completed(i, rng.random() < 0.5 + i / 2000, agent=rng.choice(["a", "b"]), at_us=at_us, **figures, **types))
    log = Log(folds(), partitions)
    log.send(events)
    return log, events


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("metric", ["success", "quality", "duration_ms", "tokens"])
def test_a_trend_is_the_line_through_the_last_windows_means(metric: str, partitions: int) -> None:
    log, events = log_of(1, partitions)
    for agent, task_type, hours, points in ((None, None, 1, 20), ("a", None, 1, 5), ("b", "code", 2, 20), ("nobody", None, 1, 20)):
        values: dict[int, list[float]] = {}
        for e in events:
            data = e["data"]
            if (agent is None or data["agent"] == agent) and (task_type is None or data["task_type"] == task_type):
                at = np.datetime64(e["time"].rstrip("Z")).astype("datetime64[us]").astype(int)
                values.setdefault(int(at) // (hours * HOUR_US), []).append(float(data[metric]))
        last = sorted(values.items())[-points:]
        asked = {k: v for k, v in (("agent", agent), ("task_type", task_type)) if v is not None}
        answer = log.get("/performance/trends", metric=metric, window=f"{hours}h", points=points, **asked)
        means = [float(np.mean(v)) for _, v in last]
        expected = [{"start": rfc3339(i * hours * HOUR_US), "mean": m, "n": len(v)} for (i, v), m in zip(last, means, strict=True)]
        assert subset(expected, answer["points"]) == [] and answer["n"] == len(last)
        if not last:
            assert (answer["slope_per_hour"], answer["direction"], answer["significant"], answer["enough"]) == (None, "stable", False, False)
            continue
        x = [(i - last[0][0]) * hours for i, _ in last]
        line = stats.linregress(x, means)
        assert answer["slope_per_hour"] == pytest.approx(line.slope)
        assert (answer["r2"], answer["confidence"]) == (pytest.approx(line.rvalue**2), pytest.approx(abs(line.rvalue)))
        assert (answer["stderr"], answer["p"]) == (pytest.approx(line.stderr), pytest.approx(line.pvalue, rel=1e-6))
        assert answer["significant"] == (line.pvalue < 0.05) and answer["enough"] is True


@pytest.mark.parametrize(
    ("series", "means", "expected"),
    [
        ("perf.quality", [0.5, 0.6, 0.7], "improving"),
        ("perf.quality", [0.7, 0.6, 0.5], "declining"),
        ("perf.quality", [0.5, 0.5005, 0.501], "stable"),
        ("perf.quality", [0.5, 0.9], "stable"),
        ("perf.duration_ms", [100, 200, 300], "declining"),
        ("perf.duration_ms", [100_000, 100_050, 100_100], "stable"),
        ("perf.tokens", [300, 200, 100], "improving"),
        ("perf.utilisation", [0.5, 0.6, 0.7], "declining"),
        ("rl.average_reward", [-10, -5, -1], "improving"),
        ("custom.a.b", [0, 0, 0], "stable"),
    ],
)
def test_the_direction_says_whether_it_gets_better(series: str, means: list[float], expected: str) -> None:
    assert direction(series, fit(range(len(means)), means), means) == expected


@pytest.mark.parametrize("partitions", [1, 3])
def test_rl_metrics_are_series_by_agent_or_run(partitions: int) -> None:
    log = Log(folds(), partitions)
    for i in range(6):
        figures = dict.fromkeys(("average_reward", "policy_loss", "value_loss", "kl_divergence", "training_time_ms"), float(i))
        for name, of in (("r", {"run": "r1"}), ("a", {"agent": "a"}), ("b", {"run": "r2", "agent": "b"})):
            log.send([event(f"{name}{i}", "rl_metrics.recorded", START_US + i * HOUR_US, trajectories_processed=i, **figures, **of)])
    for series in (*RL_FIELDS.values(), "rl.policy_loss", "rl.value_loss"):
        for name in ("r1", "a", "r2", "b"):
            answer = log.get("/performance/trends", metric=series, agent=name)
            assert (answer["n"], answer["slope_per_hour"]) == (6, pytest.approx(1.0))
        assert log.get("/performance/trends", metric=series)["points"][0]["n"] == 3
    with pytest.raises(BadParameter):
        log.get("/performance/trends", metric="rl.policy_loss", task_type="code")


def test_both_versions_of_rl_metrics_mixed_on_one_topic_give_the_rows_that_either_alone_would() -> None:
    def told(i: int, version: int) -> dict[str, Any]:
        common = {"agent": "a", "trajectories_processed": i, "average_reward": -i, "kl_divergence": i / 8, "training_time_ms": 2.5 * i}
        losses = {"policy_loss": 1 / (i + 1), "value_loss": i / 3}
        named = losses if version == 1 else {"losses": {name.removesuffix("_loss"): value for name, value in losses.items()}}
        return {**event(f"r{i}", "rl_metrics.recorded", START_US + i * HOUR_US, **common, **named), "type": f"rl_metrics.recorded.v{version}"}

    logs = [Log(folds(), 2) for _ in range(3)]
    for i in range(9):
        for log, version in zip(logs, (1, 2, 1 + i % 2), strict=True):
            log.send([told(i, version), told(i, version)])  # the second is a duplicate
    rows = [
        [(t.name, p.number, tenant, key, row.applied, t.dump(row)) for p in log.topics["training"] for t in log.schema.tables if t not in OWN
         for tenant, space in p.spaces[t.index].items() for key, row in space.items()]
        for log in logs
    ]  # fmt: skip
    assert rows[0] and rows[0] == rows[1] == rows[2]
    counted = [COUNTERS.load(p.spaces[COUNTERS.index][""][()]) for p in logs[2].topics["training"] if "" in p.spaces[COUNTERS.index]]
    assert sum(c.types.get("rl_metrics.recorded.v1", 0) for c in counted) == 5, "what is still sent in the first version can be seen"
    assert sum(c.duplicate for c in counted) == 9


def test_a_loss_of_any_name_is_a_series_and_one_that_diverged_spoils_no_mean() -> None:
    log = Log(folds())
    for i, loss in enumerate((0.5, "NaN", 0.25)):
        told = event(
            i, "rl_metrics.recorded", START_US + i, agent="a", trajectories_processed=1, average_reward="-Infinity", losses={"q1": loss}, training_time_ms=1
        )
        log.send([{**told, "type": "rl_metrics.recorded.v2"}])
    assert not log.dead_letters()
    point = log.get("/performance/trends", metric="rl.q1_loss", agent="a")["points"][0]
    assert (point["n"], point["mean"]) == (2, 0.375)
    assert log.get("/performance/trends", metric="rl.kl_divergence")["n"] == 0, "not told"


def test_numbers_of_generic_events_are_series_and_nothing_else_is() -> None:
    log = Log(folds())
    fields = {"ms": 5, "share": 0.5, "ok": True, "who": "x", "deep": {"n": 1}, "huge": 1e301}
    log.send([event(1, "custom.recorded", START_US, name="deploy", agent="a", fields=fields)])
    found = {f: log.get("/performance/trends", metric=f"custom.deploy.{f}", agent="a")["n"] for f in fields}
    assert found == {"ms": 1, "share": 1, "ok": 0, "who": 0, "deep": 0, "huge": 0}


def test_every_kind_of_check_has_its_series() -> None:
    log = Log(folds())
    at = START_US
    log.send(
        [
            event(1, "evaluation.completed", at, task="t", agent="a", passed=True, score=0.1),
            event(2, "judgment.recorded", at, task="t", agent="a", overall_score=0.2, overall_confidence=1, evaluation_time_ms=1),
            event(3, "validation.completed", at, task="t", agent="a", valid=True, violations=[], compliance_score=0.3, processing_time_ms=1, rule_count=1),
            event(4, "minimality.evaluated", at, task="t", agent="a", factor=0.4, ast_similarity=1, scaffolding_penalty=1, lines_changed=1, quality="q"),
            event(5, "thinking_budget.used", at, task="t", agent="a", tokens_used=1, tokens_allocated=2),
            completed(6, efficiency=0.6, at_us=at),
        ]
    )
    means = {m: log.get("/performance/trends", metric=m)["points"][0]["mean"] for m in ("evaluation", "judgment", "compliance", "minimality", "utilisation")}
    assert means == {"evaluation": 0.1, "judgment": 0.2, "compliance": 0.3, "minimality": 0.4, "utilisation": 0.5}
    assert log.get("/performance/trends", metric="efficiency", task_type="unknown")["points"][0]["mean"] == 0.6


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ({"metric": "beauty"}, "metric"),
        ({"metric": "custom.x"}, "metric"),
        ({"metric": "quality", "window": "90s"}, "window"),
        ({"metric": "quality", "window": "31d"}, None),
        ({"metric": "quality", "window": "7h"}, None),
        ({"metric": "quality", "window": "800h"}, "window"),
        ({"metric": "quality", "since": "yesterday"}, "since"),
        ({"metric": "quality", "since": "2026-03-03T00:00:00Z", "until": "2026-03-02T00:00:00Z"}, "since"),
    ],
)
def test_bad_parameters_are_named(asked: dict[str, str], parameter: str | None) -> None:
    log, _ = log_of(2, 1)
    if parameter is None:
        assert log.get("/performance/trends", **asked)["n"] > 0
        return
    with pytest.raises(BadParameter) as bad:
        log.get("/performance/trends", **asked)
    assert bad.value.parameter == parameter


def test_since_and_until_choose_the_windows() -> None:
    log, _ = log_of(3, 2)
    all_of_them = log.get("/performance/trends", metric="quality", points=100)["points"]
    asked = {"since": all_of_them[3]["start"], "until": all_of_them[9]["start"]}
    assert log.get("/performance/trends", metric="quality", points=100, **asked)["points"] == all_of_them[3:9]


def test_series_of_agents_and_of_training_metrics_are_apart() -> None:
    performance, rl = folds()
    log = Log([performance, rl, Windows()])
    log.send([completed(1, quality=0.5)])
    log.send([{"id": "m", "type": "metric.recorded.v1", "time": rfc3339(START_US), "tenant": "golden", "data": {"metric_type": "perf.quality", "value": 9}}])
    assert log.get("/performance/trends", metric="quality")["points"][0]["n"] == 1
    assert log.get("/metrics/aggregate", metric="perf.quality")["overall"]["n"] == 1
