"""The clock's ticks: when, for whom, under which id, and what they bring about."""

from __future__ import annotations

import json
from typing import Any

from agents.registry import folds
from streams.codec import decode
from streams.keys import derived_id
from tables.clock import ticks
from tests.harness import Log

from .test_goals import START_US, at, goal, value

MINUTE_US = 60_000_000


def tick_all(log: Log, now_us: int) -> list[dict[str, Any]]:
    """Publish what is due, as a worker would; returns the events."""
    found = []
    for p in log.topics["training"]:
        for tick in list(ticks(p, now_us)):
            found.append(json.loads(tick.value))
            log.append(p.topic, tick.key, tick.value, p.number, now_us // 1000)
    return found


def test_a_deadline_is_missed_by_the_clock_in_the_minute_after_it_and_the_tick_comes_once() -> None:
    log = Log(folds())
    log.send([goal(0, deadline=at(90)), goal(1, "far", deadline=at(9000)), value(2, 0.5, 30)])
    assert tick_all(log, START_US + 2 * MINUTE_US - 1) == []
    (tick,) = tick_all(log, START_US + 2 * MINUTE_US)
    assert (tick["data"], tick["time"], tick["derivedfrom"]) == ({"until": at(120)}, at(120), f"tick-{at(120)}")
    assert tick["id"] == derived_id("training", "golden", f"tick-{at(120)}", "clock.ticked.v1", "p0")
    assert [(a["rule"], a["time"]) for a in log.alerts()] == [("goal.missed", at(120))]
    assert tick_all(log, START_US + 100 * MINUTE_US) == []
    assert not log.dead_letters()


def test_a_deadline_on_the_full_minute_is_passed_by_a_later_tick_not_met_by_it() -> None:
    log = Log(folds())
    log.send([goal(0, deadline=at(120))])
    assert tick_all(log, START_US + 2 * MINUTE_US) == []
    assert [tick["data"]["until"] for tick in tick_all(log, START_US + 3 * MINUTE_US)] == [at(180)]
    assert len(log.alerts("goal.missed")) == 1


def test_several_deadlines_of_several_tenants_are_passed_one_tick_a_round() -> None:
    log = Log(folds(), 4)
    for n, tenant in enumerate(("a", "b")):
        log.send(goal(10 * n + i, f"g{i}", tenant=tenant, deadline=at(600 * i), task_type=f"t{i}") for i in range(1, 4))
    for _ in range(3):
        tick_all(log, START_US + 60 * MINUTE_US)
    assert len(log.alerts("goal.missed")) == 6
    assert tick_all(log, START_US + 60 * MINUTE_US) == []


def test_the_same_round_again_gives_the_same_bytes_and_ids_differ_by_partition() -> None:
    log = Log(folds(), 8)
    log.send(goal(n, deadline=at(90), task_type=f"t{n}") for n in range(20))
    first = [tick for p in log.topics["training"] for tick in ticks(p, START_US + 9 * MINUTE_US)]
    again = [tick for p in log.topics["training"] for tick in ticks(p, START_US + 99 * MINUTE_US)]
    assert first == again
    assert len({decode(tick.value).id for tick in first}) == len(first) > 1


def test_a_goal_whose_deadline_a_refused_record_passed_still_gets_its_tick() -> None:
    log = Log(folds())
    log.send([goal(0, deadline=at(90)), value(1, 0.5, 500, "unknown")])
    assert not log.alerts("goal.missed")
    assert len(tick_all(log, START_US + 60 * MINUTE_US)) == 1
    assert len(log.alerts("goal.missed")) == 1


def test_a_tick_for_a_moment_after_its_own_record_is_a_dead_letter_and_moves_nothing() -> None:
    log = Log(folds())
    log.send([goal(0, deadline=at(90))])
    until = at(100)
    tick = {"id": "t", "type": "clock.ticked.v1", "time": at(0), "tenant": "golden", "data": {"until": until}}
    log.send([tick], "training", timestamp=START_US // 1000 + 99_999)
    ((_, headers),) = log.dead_letters()
    assert headers["reason"] == "time_in_future" and "until" in headers["error"]
    assert not log.alerts()
    log.send([{**tick, "id": "u"}], "training", timestamp=START_US // 1000 + 100_000)
    assert [a["rule"] for a in log.alerts()] == ["goal.missed"]


def test_the_ends_of_a_day_and_a_month_with_open_alerts_are_waited_for_one_after_the_other() -> None:
    log = Log(folds())
    start = START_US // 86_400_000_000 * 86_400_000_000
    cost = {"id": "c", "type": "cost.incurred.v1", "time": at(0), "tenant": "golden", "data": {"cost": 75}}
    log.send([cost, {**cost, "id": "d", "tenant": "cheap", "data": {"cost": 1}}])
    (p,) = log.topics["costs"]
    waits = []
    for _ in range(3):
        due = [found for fold in p.schema.folds for found in fold.due(p)]
        waits += [(tenant, (moment - start) // 86_400_000_000) for tenant, moment in due]
        for tick in list(ticks(p, START_US + 10**14)):
            log.append("costs", tick.key, tick.value, 0, START_US // 1000 + 10**11)
    assert waits == [("golden", 1), ("golden", 30)]  # 3 March and 1 April, counted from 2 March
    assert [(a["rule"], a["reason"]) for a in log.alerts() if a["type"] == "alert.resolved.v1"] == [
        ("cost.daily", "period_ended"),
        ("cost.monthly", "period_ended"),
    ]
