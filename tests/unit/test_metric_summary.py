"""Summary of metrics: equal to counting every distinct event, over partitions, repeats, bounds and crashes."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from tables.costs import Costs
from tables.metric_costs import MetricCosts
from tables.metric_summary import MetricSummary, SummarySettings
from tables.partition import Partition
from tables.times import DAY_US, rfc3339
from tests.harness import VECTORS, Log, subset
from tests.unit.test_windows import START_US, restored, rows_of


def events(seed: int, n: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for i in range(n):
        data: dict[str, Any] = {"tags": rng.choices("uvwxyz", k=rng.randint(0, 4))}
        if rng.random() < 0.8:
            data["metric_type"] = rng.choice(["loss", "acc", "a|b%"])
        if rng.random() < 0.8:
            data["model"] = rng.choice(["m1", "m2", "m3"])
        if rng.random() < 0.8:
            data["run"] = f"r{rng.randint(0, 5)}"
        if rng.random() < 0.5:
            data["value"] = rng.choice([1.0, "NaN"])
        time_us = START_US + rng.randint(-30, 30) * DAY_US + rng.randint(0, DAY_US)
        found.append({"id": f"e{i}", "type": "metric.recorded.v1", "time": rfc3339(time_us), "tenant": "golden", "data": data})
    return found


def counted(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of distinct events by plain counting."""
    data = [event["data"] for event in found]
    return {
        "total_metrics": len(found),
        "by_type": dict(Counter(d.get("metric_type", "unknown") for d in data)),
        "by_model": dict(Counter(d.get("model", "unknown") for d in data)),
        "by_tag": dict(Counter(tag for d in data for tag in set(d["tags"]))),
        "by_day": dict(Counter(event["time"][:10] for event in found)),
        "first": min((event["time"] for event in found), default=None),
        "last": max((event["time"] for event in found), default=None),
    }


@pytest.mark.parametrize("partitions", [1, 8])
def test_the_summary_is_a_count_of_distinct_events_and_says_how_many_came_again(partitions: int) -> None:
    found = events(1, 400)
    log = Log([MetricSummary()], partitions)
    rng = random.Random(2)
    again = 0
    for i, event in enumerate(found):
        log.send([event])
        if rng.random() < 0.3:
            log.send([found[rng.randint(0, i)]])
            again += 1
    answer = log.get("/metrics/summary")
    want = counted(found)
    assert {key: answer[key] for key in want} == want
    assert (answer["duplicates"], answer["overflow"]) == (again, {"types": 0, "models": 0, "tags": 0})
    assert list(answer["by_day"]) == sorted(answer["by_day"])
    assert log.get("/metrics/summary", tenant="other")["total_metrics"] == 0


@pytest.mark.parametrize("partitions", [1, 8])
def test_golden_summary_counts_equal_metrics_apart_and_the_same_id_once(partitions: int) -> None:
    log = Log([MetricSummary()], partitions)
    log.send(VECTORS["M3"]["events"])
    check = VECTORS["M3"]["checks"][0]
    assert subset(check["expect"], log.get(check["path"])) == []
    assert log.get(check["path"])["by_day"] == {"2026-03-02": 3, "2026-03-03": 1, "2026-03-04": 1}


def test_another_event_with_a_metric_id_that_was_there_is_a_duplicate() -> None:
    log = Log([MetricSummary()])
    one, other = events(1, 2)
    one["data"]["metric_id"] = other["data"]["metric_id"] = "x"
    log.send([one, other])
    assert (log.get("/metrics/summary")["total_metrics"], log.get("/metrics/summary")["duplicates"]) == (1, 1)


def test_names_beyond_the_bound_are_overflow_and_those_that_are_there_go_on_counting() -> None:
    log = Log([MetricSummary(SummarySettings(summary_names=2))])
    made = [
        {
            "id": f"e{i}",
            "type": "metric.recorded.v1",
            "time": rfc3339(START_US),
            "tenant": "golden",
            "data": {"metric_type": f"t{i % 4}", "tags": ["a", f"b{i}"]},
        }
        for i in range(8)
    ]
    log.send(made)
    answer = log.get("/metrics/summary")
    assert answer["by_type"] == {"t0": 2, "t1": 2}
    assert answer["by_tag"] == {"a": 8, "b0": 1}
    assert answer["overflow"] == {"types": 4, "models": 0, "tags": 7}
    assert answer["total_metrics"] == 8
    assert log.topics["training"][0].counters().overflow == 7  # once an event


def test_days_are_kept_for_400_days_before_the_latest_in_a_bounded_number_of_rows() -> None:
    fold = MetricSummary()
    log = Log([fold])
    days = list(range(0, 1500, 7))
    random.Random(1).shuffle(days)
    sent = [
        {"id": f"e{d}", "type": "metric.recorded.v1", "time": rfc3339(START_US + d * DAY_US), "tenant": "golden", "data": {}}
        for d in [*sorted(days), *days[:40]]
    ]
    for i, event in enumerate(sent):
        log.send([{**event, "id": f"{i}"}])
    latest = START_US + max(days) * DAY_US
    want = Counter(event["time"][:10] for event in sent if datetime.fromisoformat(event["time"]) > datetime.fromtimestamp((latest - 400 * DAY_US) / 1e6, UTC))
    answer = log.get("/metrics/summary")
    assert answer["by_day"] == dict(want)
    assert answer["total_metrics"] == len(sent)
    assert len(log.topics["training"][0].space(fold.months, "golden")) == 16


def test_cost_tracking_is_that_of_the_one_ledger() -> None:
    costs = Costs()
    log = Log([MetricSummary(ledgers=costs.kept.ledgers), MetricCosts(), costs])
    assert log.get("/metrics/summary")["cost_tracking"] == {"total_usd": 0.0, "api_calls": 0, "token_usage": 0}
    metric = {
        "id": "m",
        "type": "metric.recorded.v1",
        "time": rfc3339(START_US),
        "tenant": "golden",
        "data": {"cost": "0.25", "api_calls": 3, "token_usage": 7},
    }
    log.send([metric, metric])
    log.send([{"id": "c", "type": "cost.incurred.v1", "time": rfc3339(START_US), "tenant": "golden", "data": {"cost": 1}}])
    assert log.get("/metrics/summary")["cost_tracking"] == {"total_usd": 1.25, "api_calls": 3, "token_usage": 7}


def test_a_crash_after_any_row_of_a_flush_changes_no_row() -> None:
    log = Log([MetricSummary(SummarySettings(summary_names=3))])
    found = events(5, 60)
    log.send([event for i, event in enumerate(found) for event in ([event, found[i // 2]] if i % 5 == 0 else [event])])
    schema, records = log.schema, log.records[("training", 0)]
    straight = Partition("training", 0, schema)
    straight.absorb(records)
    wanted = rows_of(straight)
    for first, second in pairwise([0, 5, 6, 30, len(records)]):
        before = Partition("training", 0, schema)
        before.absorb(records[:first])
        saved = {key: value for key, value, _, _ in before.drain()}
        before.absorb(records[first:second])
        flush = [(key, value) for key, value, _, _ in before.drain()]
        for k in range(len(flush) + 1):
            p = restored(schema, {**saved, **dict(flush[:k])})
            p.absorb(records[p.next :])
            assert rows_of(p) == wanted, f"records {first}-{second}, cut after {k} of {len(flush)} rows"
