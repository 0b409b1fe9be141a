"""Dead letters inside a partition: how they are counted by minute, when their rate is an alert, what a redriven one is known by."""

from __future__ import annotations

import pytest

from agents.letters import judge
from agents.registry import folds
from tables.partition import COUNTERS, Counters
from tests.harness import Log

MINUTE_MS = 60_000


def letters(log: Log, minute: int, n: int, topic: str = "costs") -> None:
    log.send([b"{"] * n, topic, timestamp=minute * MINUTE_MS + 59_999)


def state(log: Log) -> Counters:
    return COUNTERS.load(log.topics["costs"][0].spaces[COUNTERS.index][""][()])


def test_letters_are_counted_by_the_minute_of_their_record_and_only_the_newest_minutes_are_kept() -> None:
    log = Log(folds())
    for minute, n in ((100, 2), (102, 3), (101, 1), (103, 4), (100, 1)):
        letters(log, minute, n)
    assert state(log).minutes == {101: 1, 102: 3, 103: 4}
    assert state(log).last_letter == (10, 100 * MINUTE_MS + 59_999)
    assert state(log).dead_lettered == 11


@pytest.mark.parametrize(
    ("minute", "limit", "level", "value"),
    [(100, 5, "warning", 6), (101, 5, "warning", 6), (102, 5, "ok", 3), (100, 6, "ok", 6), (99, 5, "ok", 0), (200, 1, "ok", 0)],
)
def test_the_rate_is_the_sum_over_partitions_of_this_minute_or_the_one_before_and_the_limit_itself_is_allowed(
    minute: int, limit: int, level: str, value: float
) -> None:
    states = [Counters(minutes={100: 2, 102: 3}, reasons={"not_json": 5}), Counters(minutes={100: 4}, reasons={"too_large": 4}), Counters()]
    verdict = judge("costs", states, minute, limit)
    assert (verdict.level, verdict.value, verdict.threshold) == (level, value, limit)
    assert ("not_json" in verdict.message) == (level == "warning")


def test_a_redriven_metric_is_known_by_its_letter_and_not_by_its_metric_id() -> None:
    log = Log(folds())
    metric = b'{"specversion":"1.0","id":"m","source":"t","type":"metric.recorded.v1","time":"2026-03-02T02:00:00Z","data":{"metric_id":"one","value":1.0}}'
    early, late = 1_772_409_600_000, 1_772_416_800_000
    log.append("training", None, metric, 0, early)
    for _ in range(2):
        log.append("training", None, metric, 0, late, [("redriven", b"training/0/0")])
    log.append("training", None, metric.replace(b'"m"', b'"n"'), 0, late)  # another event of that metric_id
    (p,) = log.topics["training"]
    found = COUNTERS.load(p.spaces[COUNTERS.index][""][()])
    assert (found.dead_lettered, found.folded, found.duplicate) == (1, 1, 2)
