"""Cost ledgers and budgets: the golden messages, an exact second count, and the refold after a crash."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.codec import decode
from streams.keys import encode_key, partition_for
from tables.budgets import CostSettings, level_of
from tables.costs import Costs
from tables.fold import BadParameter
from tables.partition import Partition, Schema
from tables.rows import Row
from tests.harness import VECTORS, Log, Rec, subset

OFF = {"budget_daily_usd": None, "budget_monthly_usd": None, "budget_total_usd": None}
ONLY_CUMULATIVE = CostSettings(**OFF)
NOW_US = 1_780_000_000_000_000
KAFKA_MS = 4_102_444_800_000


def fold_of(vector: dict[str, Any]) -> Costs:
    given_ = {k: v for k, v in vector.get("settings", {}).items() if k in CostSettings.__struct_fields__}
    return Costs(CostSettings(**given_))


def cost(id: str, time: str, usd: Any = None, **data: Any) -> dict[str, Any]:
    told = {} if usd is None else {"cost": usd}
    return {"id": id, "type": "cost.incurred.v1", "time": time, "tenant": "golden", "data": {**told, **data}}


def refund(id: str, time: str, usd: Any, **data: Any) -> dict[str, Any]:
    return {"id": id, "type": "cost.refunded.v1", "time": time, "tenant": "golden", "data": {"cost": usd, **data}}


def budget(id: str, time: str, scope: str, period: str, limits: dict[str, Any], **data: Any) -> dict[str, Any]:
    levels = [{"level": level, "at": at} for level, at in limits.items()]
    return {"id": id, "type": "budget.set.v1", "time": time, "tenant": "golden", "data": {"scope": scope, "period": period, "limits": levels, **data}}


def tick(id: str, until: str) -> dict[str, Any]:
    return {"id": id, "type": "clock.ticked.v1", "time": until, "tenant": "golden", "derivedfrom": "tick", "data": {"until": until}}


def story(log: Log, rule: str) -> list[tuple[Any, ...]]:
    """Messages of a rule as (what, previous, severity, period, value, reason)."""
    return [(m["type"].split(".")[1], m["previous"], m["severity"], m["period"], m["value"], m.get("reason")) for m in log.alerts(rule)]


def records(events: list[dict[str, Any]]) -> list[Rec]:
    raws = [json.dumps({"specversion": "1.0", "source": "t", **event}).encode() for event in events]
    return [Rec(n, KAFKA_MS, None, raw) for n, raw in enumerate(raws)]


def image(partition: Partition) -> dict[Any, Any]:
    """Every row's offset and bytes."""
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for table in partition.schema.tables
        for tenant, space in partition.spaces[table.index].items()
        for key, row in space.items()
    }


def copied(partition: Partition, *, flushes: list[list[Any]]) -> Partition:
    """A partition restored from what a changelog got."""
    fresh = Partition("costs", 0, partition.schema)
    for flush in flushes:
        for applied, tenant, key, data, index in flush:
            fresh.spaces[index].setdefault(tenant, {})[key] = Row(tenant, key, applied, applied, data)
    fresh.restored()
    return fresh


def flushed(partition: Partition) -> list[Any]:
    return [(row.applied, row.tenant, row.key, partition.schema.tables[i].dump(row), i) for _, _, row, i in partition.drain()]


# ---- golden


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", ["G7", "C1", "C2", "C3", "C4"])
def test_golden_answers_and_messages_come_out_however_often_delivered(name: str, partitions: int, twice: bool) -> None:
    vector = VECTORS[name]
    log = Log([fold_of(vector)], partitions)
    events = [event for event in vector["events"] for _ in range(2 if twice else 1)]
    log.send(events)
    for check in vector["checks"]:
        expected = dict(check["expect"])
        if check["path"] == "alerts":
            messages = log.alerts(expected["rule"])
            wanted = [{("derivedfrom" if k == "at_event" else k): v for k, v in m.items()} for m in expected["messages"]]
            assert len(messages) == len(wanted)
            for want, got in zip(wanted, messages, strict=True):
                assert subset(want, got) == []
                assert set(want) >= set(got) & {"late", "reason"}
        else:
            expected.pop("after_each", None)
            assert subset(expected, log.get(check["path"], **check.get("params", {}))) == []


def test_g7_the_status_follows_each_record_and_a_limit_is_inclusive() -> None:
    vector = VECTORS["G7"]
    log = Log([fold_of(vector)])
    seen = []
    for event in vector["events"]:
        log.send([event])
        status = log.get("/costs/status")
        seen.append([status["total_usd"], status["status"]])
    assert seen == vector["checks"][0]["expect"]["after_each"]


def test_c3_a_late_event_opens_and_ends_its_day_in_that_order_with_late_on_the_opening_only() -> None:
    log = Log([Costs()])
    log.send(VECTORS["C3"]["events"])
    late = [(m["type"], m.get("late")) for m in log.alerts("cost.daily") if m["derivedfrom"] == "c3-4"]
    assert late == [("alert.opened.v1", True), ("alert.resolved.v1", None)]


def test_c4_the_new_cumulative_period_is_named_by_its_first_day_and_counts_from_it() -> None:
    log = Log([fold_of(VECTORS["C4"])])
    log.send(VECTORS["C4"]["events"])
    log.send([cost("more", "2026-04-03T00:00:00Z", 9), cost("old", "2026-03-31T00:00:00Z", 50)])
    assert story(log, "cost.cumulative")[2:] == [("opened", "ok", "warning", "2026-04-01", 10.0, None)]
    status = log.get("/costs/status", at="2026-04-03T00:00:00Z")
    assert (status["cumulative_usd"], status["total_usd"]) == (10.0, 72.0)
    assert status["budgets"][0]["period"] == "2026-04-01"


@pytest.mark.parametrize("check", [c for c in VECTORS["C5"]["checks"] if c["path"] == "/costs/check"], ids=lambda c: c["params"]["amount"])
def test_c5_a_check_allows_reaching_a_limit_and_refuses_passing_it(check: dict[str, Any]) -> None:
    log = Log([Costs()])
    log.send(VECTORS["C5"]["events"])
    answer = log.get("/costs/check", **check["params"])
    at_shutdown = {limit["rule"]: limit for limit in answer["limits"] if limit["level"] == "shutdown"}
    for family, expected in check["expect"].items():
        assert subset(expected, at_shutdown[f"cost.{family}"]) == []
    assert answer["allowed"] is not check["expect"]["daily"]["exceeds"]


# ---- levels


def test_each_level_is_told_once_under_a_thousand_records_over_the_limit_and_none_on_replay() -> None:
    events = [cost(f"e{n}", f"2026-03-02T00:{n // 60:02d}:{n % 60:02d}Z", 1) for n in range(1000)]
    log = Log([Costs()])
    log.send(events)
    assert [m[2] for m in story(log, "cost.cumulative")] == ["warning", "critical", "shutdown"]
    assert [m[2] for m in story(log, "cost.daily")] == ["warning", "critical", "shutdown"]
    assert [m[4] for m in story(log, "cost.total")] == [700.0, 900.0, 1000.0]
    told = len(log.outputs)
    log.send(events)
    assert len(log.outputs) == told


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=40))
def test_the_messages_of_a_rule_are_a_chain_and_end_at_the_level_of_the_sum(steps: list[tuple[bool, int]]) -> None:
    log = Log([Costs(ONLY_CUMULATIVE)])
    total, level = 0, "ok"
    limits = [(2, 10), (3, 50), (4, 100)]
    names = {0: "ok", 2: "warning", 3: "critical", 4: "shutdown"}
    for n, (up, usd) in enumerate(steps):
        time = f"2026-03-02T00:{n:02d}:00Z"
        before = len(log.alerts())
        log.send([cost(f"e{n}", time, usd) if up else refund(f"e{n}", time, usd)])
        total += usd if up else -usd
        new = names[level_of(limits, total)]
        messages = log.alerts()[before:]
        assert [m["previous"] for m in messages] == ([level] if new != level else [])
        for message in messages:
            assert (message["value"], message["type"] == "alert.resolved.v1") == (float(total), new == "ok")
            assert message["severity"] == (new if new != "ok" else level)
        level = new


def test_a_period_ends_for_every_scope_of_the_tenant_by_a_record_of_another_scope_or_a_tick() -> None:
    start = [
        budget("b1", "2026-03-02T00:00:00Z", "model:a", "daily", {"warning": 1}),
        budget("b2", "2026-03-02T00:00:00Z", "tag:t", "monthly", {"shutdown": 1}),
        cost("c1", "2026-03-02T01:00:00Z", 2, model="a", tags=["t"]),
    ]
    tick_of_before = {**tick("c2", "2026-04-01T00:00:00Z"), "time": "2026-03-02T01:00:00Z"}
    for end in (cost("c2", "2026-04-02T00:00:00Z", "0.01", model="b"), tick("c2", "2026-04-01T00:00:00Z"), tick_of_before):
        log = Log([Costs(ONLY_CUMULATIVE)])
        log.send(start)
        log.send([end], topic="costs")
        assert story(log, "cost.daily")[1:] == [("resolved", "warning", "warning", "2026-03-02", 2.0, "period_ended")]
        assert story(log, "cost.monthly")[1:] == [("resolved", "shutdown", "shutdown", "2026-03", 2.0, "period_ended")]
        assert log.alerts("cost.daily")[1]["subject"] == "model:a"


def test_a_day_does_not_end_for_another_tenant_nor_by_a_tick_before_midnight() -> None:
    log = Log([Costs()])
    log.send(
        [cost("c1", "2026-03-02T01:00:00Z", 8), tick("t", "2026-03-02T23:59:59Z"), {**cost("c2", "2026-03-09T00:00:00Z", 1), "tenant": "other"}], topic="costs"
    )
    assert [m[0] for m in story(log, "cost.daily")] == ["opened"]


def test_the_day_and_month_end_once_and_the_next_day_starts_at_zero() -> None:
    log = Log([Costs()])
    log.send([cost("c1", "2026-03-31T01:00:00Z", 100), cost("c2", "2026-04-01T00:00:00Z", 1), cost("c3", "2026-04-02T00:00:00Z", 1)])
    assert [m[0] for m in story(log, "cost.daily")] == ["opened", "resolved"]
    assert [m[0] for m in story(log, "cost.monthly")] == ["opened", "resolved"]
    budgets = {b["rule"]: b for b in log.get("/costs/status", at="2026-04-02T12:00:00Z")["budgets"]}
    assert (budgets["cost.daily"]["sum_usd"], budgets["cost.daily"]["level"], budgets["cost.daily"]["ends"]) == (1.0, "ok", "2026-04-03T00:00:00.000000Z")
    assert (budgets["cost.monthly"]["sum_usd"], budgets["cost.monthly"]["ends"]) == (2.0, "2026-05-01T00:00:00.000000Z")


def test_a_late_refund_into_an_ended_day_tells_nothing_and_a_told_level_is_not_told_again() -> None:
    log = Log([Costs()])
    log.send([cost("c1", "2026-03-02T01:00:00Z", 9), cost("c2", "2026-03-03T01:00:00Z", 1)])
    told = story(log, "cost.daily")
    log.send([refund("r", "2026-03-02T02:00:00Z", 5), cost("c3", "2026-03-02T03:00:00Z", 5)])
    assert story(log, "cost.daily") == told
    log.send([cost("c4", "2026-03-02T04:00:00Z", 1)])
    assert story(log, "cost.daily")[len(told) :] == [
        ("opened", "critical", "shutdown", "2026-03-02", 10.0, None),
        ("resolved", "shutdown", "shutdown", "2026-03-02", 10.0, "period_ended"),
    ]


def test_an_ended_month_tells_only_what_it_has_not_told_and_its_row_is_at_no_level() -> None:
    log = Log([Costs()])
    log.send([cost("c1", "2026-03-02T01:00:00Z", 90), cost("c2", "2026-04-03T01:00:00Z", 1), cost("c3", "2026-03-02T01:00:00Z", 9)])
    told = story(log, "cost.monthly")
    assert [(m[0], m[2]) for m in told] == [("opened", "critical"), ("resolved", "critical")]
    log.send([cost("c4", "2026-03-05T00:00:00Z", 1)])
    assert story(log, "cost.monthly")[2:] == [
        ("opened", "critical", "shutdown", "2026-03", 100.0, None),
        ("resolved", "shutdown", "shutdown", "2026-03", 100.0, "period_ended"),
    ]
    march = next(months[0] for _, months in log.reader().scan(log.folds[0].tables[1]) if months[0].month == 2026 * 12 + 2)
    assert (march.level, march.days[2].level, march.days[2].told) == (0, 0, 4)


def test_a_tag_named_twice_counts_once_even_where_its_record_ends_the_day_before() -> None:
    log = Log([Costs()])
    log.send(
        [
            budget("b", "2026-03-02T00:00:00Z", "tag:a", "daily", {"warning": 1}),
            cost("1", "2026-03-02T00:00:00Z", 1, tags=["a"]),
            cost("2", "2026-03-03T00:00:00Z", 1, tags=["a", "a"]),
        ]
    )
    assert log.get("/costs", scope="tag:a", by="day")["days"] == {"2026-03-02": 1.0, "2026-03-03": 1.0}


def test_a_scope_with_refunds_only_is_known_and_below_zero() -> None:
    log = Log([Costs()])
    log.send([refund("r", "2026-03-02T00:00:00Z", "2.5", model="m")])
    answer = log.get("/costs", scope="model:m")
    assert (answer["total_usd"], answer["refunded_micro_usd"], answer["refunds"], answer["events"]) == (-2.5, 2_500_000, 1, 0)
    assert log.get("/costs/status", scope="model:m")["total_usd"] == -2.5
    assert log.get("/costs", by="model")["models"] == {"m": -2.5}


def test_a_budget_from_before_the_first_cost_counts_the_days_that_are_kept_no_longer() -> None:
    log = Log([Costs(ONLY_CUMULATIVE)])
    log.send(
        [
            cost("c1", "2024-11-02T00:00:00Z", 4),
            cost("c2", "2026-03-01T00:00:00Z", 2),  # 16 months later: the same slot
            budget("b", "2026-03-01T00:00:00Z", "tenant", "cumulative", {"warning": 6}, starts="2024-11-02"),
        ]
    )
    assert log.get("/costs/status")["cumulative_usd"] == 6.0


def test_sixteen_silent_months_end_the_old_month_and_keep_the_new_amount() -> None:
    log = Log([Costs()])
    log.send([cost("c1", "2026-03-31T01:00:00Z", 80), cost("c2", "2027-07-31T01:00:00Z", 3)])
    assert [m[0] for m in story(log, "cost.monthly")] == ["opened", "resolved"]
    assert log.get("/costs", by="month")["months"] == {"2027-07": 3.0}
    assert log.get("/costs")["total_usd"] == 83.0


# ---- budget.set


@pytest.mark.parametrize("period", ["cumulative", "daily", "monthly", "total"])
def test_a_budget_is_judged_at_once_replaced_eased_and_removed(period: str) -> None:
    log = Log([Costs(CostSettings(budget_cumulative_usd=None, **OFF))])
    day = "2026-03-02T01:00:00Z"
    log.send(
        [
            cost("c", day, 6, agent="x"),
            budget("b1", day, "agent:x", period, {"critical": 5, "warning": 2, "shutdown": 9}),
            budget("b2", day, "agent:x", period, {"warning": 6}),
            budget("b3", day, "agent:x", period, {"warning": 7}),
            budget("b4", day, "agent:x", period, {"warning": "0.5"}),
            budget("b5", day, "agent:x", period, {}),
            cost("c2", day, 60, agent="x"),
        ]
    )
    assert [(m[0], m[1], m[2], m[5]) for m in story(log, f"cost.{period}")] == [
        ("opened", "ok", "critical", None),
        ("eased", "critical", "warning", None),
        ("resolved", "warning", "warning", "below_limit"),
        ("opened", "ok", "warning", None),
        ("resolved", "warning", "warning", "budget_removed"),
    ]
    assert [m["threshold"] for m in log.alerts(f"cost.{period}")] == [5.0, 6.0, 7.0, 0.5, 0.5]
    assert log.get("/budgets")["budgets"] == []


def test_empty_limits_switch_the_default_off_and_budgets_name_the_event_that_set_them() -> None:
    log = Log([Costs()])
    log.send([budget("b1", "2026-03-02T00:00:00Z", "tenant", "daily", {}), budget("b2", "2026-03-02T00:00:00Z", "tenant", "total", {"shutdown": "2.5"})])
    shown = {b["period"]: (b["set_by"], b["set_at"], [limit["at_usd"] for limit in b["limits"]]) for b in log.get("/budgets")["budgets"]}
    assert shown == {
        "cumulative": ("default", None, [10.0, 50.0, 100.0]),
        "monthly": ("default", None, [70.0, 90.0, 100.0]),
        "total": ("b2", "2026-03-02T00:00:00.000000Z", [2.5]),
    }
    assert log.get("/budgets", scope="model:none")["budgets"] == []


def test_a_budget_from_a_date_counts_kept_days_and_without_one_goes_back_to_all_time() -> None:
    log = Log([Costs(ONLY_CUMULATIVE)])
    log.send([cost("c1", "2026-01-31T00:00:00Z", 4), cost("c2", "2026-02-01T00:00:00Z", 2), cost("c3", "2026-03-01T00:00:00Z", 1)])
    for starts, expected in [("2026-02-01", 3.0), ("2026-01-01", 7.0), ("2026-03-02", 0.0), ("2026-02-02", 1.0)]:
        log.send([budget(starts, "2026-03-01T00:00:00Z", "tenant", "cumulative", {"warning": 3}, starts=starts)])
        assert log.get("/costs/status")["cumulative_usd"] == expected
    log.send([budget("all", "2026-03-01T00:00:00Z", "tenant", "cumulative", {"warning": 3})])
    assert log.get("/costs/status")["cumulative_usd"] == 7.0
    assert [(m[0], m[3], m[5]) for m in story(log, "cost.cumulative")] == [
        ("opened", "2026-02-01", None),
        ("resolved", "2026-02-01", "period_ended"),
        ("opened", "2026-01-01", None),
        ("resolved", "2026-01-01", "period_ended"),
        ("opened", "all", None),
    ]


def test_setting_the_same_start_again_keeps_the_period_running() -> None:
    log = Log([Costs(ONLY_CUMULATIVE)])
    log.send(
        [
            cost("c1", "2026-03-01T00:00:00Z", 4),
            budget("b1", "2026-03-01T00:00:00Z", "tenant", "cumulative", {"warning": 3}, starts="2026-03-01"),
            budget("b2", "2026-03-01T00:00:00Z", "tenant", "cumulative", {"warning": 3, "critical": 4}, starts="2026-03-01"),
        ]
    )
    assert [m[0] for m in story(log, "cost.cumulative")] == ["opened", "escalated"]


def test_a_budget_whose_record_begins_a_day_ends_the_day_before_and_still_sums_from_its_start() -> None:
    log = Log([Costs()])
    log.send(
        [
            cost("c1", "2026-03-30T00:00:00Z", 5),
            cost("c2", "2026-03-31T00:00:00Z", 8),
            budget("b1", "2026-04-01T00:00:00Z", "tenant", "cumulative", {"warning": 8}, starts="2026-03-31"),
            budget("b2", "2026-04-02T00:00:00Z", "tenant", "daily", {"warning": 1}),
        ]
    )
    assert [m[0] for m in story(log, "cost.daily")] == ["opened", "resolved"]
    assert story(log, "cost.cumulative")[-1] == ("opened", "ok", "warning", "2026-03-31", 8.0, None)


def test_limits_that_do_not_rise_in_micro_dollars_are_a_dead_letter_and_change_nothing() -> None:
    log = Log([Costs()])
    log.send([budget("b", "2026-03-02T00:00:00Z", "model:m", "daily", {"warning": "1.0000001", "critical": "1.0000002"})])
    assert [headers["reason"] for _, headers in log.dead_letters()] == ["invalid_field"]
    assert log.get("/budgets", scope="model:m")["budgets"] == []


@pytest.mark.parametrize(
    "wrong",
    [{"budget_cumulative_usd": (10, 10, 100)}, {"budget_percent": (70, 90)}, {"cost_days": 451}, {"budget_percent": (90, 70, 100)}, {"cost_run_days": 401}],
)
def test_settings_that_cannot_work_are_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"budget|cost_"):
        Costs(CostSettings(**wrong))


# ---- bounds


def test_beyond_the_bound_of_scopes_only_the_tenant_counts_and_a_known_scope_goes_on() -> None:
    log = Log([Costs(CostSettings(max_cost_scopes=2))])
    day = "2026-03-02T00:00:00Z"
    log.send(
        [
            cost("1", day, 1, model="a"),
            cost("2", day, 1, model="b"),
            cost("3", day, 1, model="c", run="r", tags=["t"]),
            cost("4", day, 1, model="a"),
            budget("5", day, "model:c", "daily", {"warning": 1}),
        ]
    )
    assert log.get("/costs", by="model")["models"] == {"a": 2.0, "b": 1.0}
    assert log.get("/costs")["total_usd"] == 4.0
    assert log.get("/costs", scope="model:c")["status"] == 404
    assert log.topics["costs"][0].counters().overflow == 1
    assert [headers["reason"] for _, headers in log.dead_letters()] == ["too_many_scopes"]


def test_days_are_kept_for_400_days_and_those_of_runs_for_90_while_totals_stay() -> None:
    log = Log([Costs()])
    first = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(450):
        log.send([cost(f"e{n}", (first + timedelta(days=n)).isoformat(), "0.01", run="r")])
    log.send([cost("gone", first.isoformat(), "0.01", run="r")])
    days = log.get("/costs", by="day")["days"]
    assert list(days) == [(first + timedelta(days=n)).date().isoformat() for n in range(50, 450)]
    assert set(days.values()) == {0.01}
    assert log.topics["costs"][0].counters().expired == 1
    assert len(log.get("/costs", scope="run:r", by="day")["days"]) == 90
    assert log.get("/costs", by="run", since="2026-01-01")["runs"] == {"r": 0.9}
    assert log.get("/costs", scope="run:r")["events"] == log.get("/costs")["events"] == 451
    months = log.topics["costs"][0].space(log.folds[0].tables[1], "golden")
    assert len(months) <= 32


def test_a_tag_named_twice_counts_once_and_each_tag_gets_the_whole_amount() -> None:
    log = Log([Costs()])
    log.send([cost("1", "2026-03-02T00:00:00Z", 3, tags=["a", "b", "a"], model="m", agent="g")])
    assert log.get("/costs", by="tag")["tags"] == {"a": 3.0, "b": 3.0}
    assert log.get("/costs", by="agent")["agents"] == {"g": 3.0}
    assert log.get("/costs", scope="tag:a", by="month")["months"] == {"2026-03": 3.0}


# ---- views


def test_a_scope_nobody_spent_in_is_404_and_the_tenant_never() -> None:
    log = Log([Costs()])
    for path, more in (("/costs", {}), ("/costs/status", {}), ("/costs/check", {"amount": "1"})):
        assert log.get(path, scope="model:nobody", **more) == {"status": 404, "scope": "model:nobody"}
    zeros = log.get("/costs")
    assert (zeros["total_micro_usd"], zeros["events"], zeros["first"], zeros["as_of"]) == (0, 0, None, None)
    assert log.get("/costs/status")["status"] == "ok"


@pytest.mark.parametrize("amount", ["-1", "-0.0000001", "NaN", "Infinity", "x", "", "1e999999", "1000000000.1"])
def test_a_check_of_no_amount_is_a_bad_parameter(amount: str) -> None:
    with pytest.raises(BadParameter) as bad:
        Log([Costs()]).get("/costs/check", amount=amount)
    assert bad.value.parameter == "amount"


@pytest.mark.parametrize("wrong", [{"scope": "model:"}, {"scope": "team:x"}, {"by": "hour"}])
def test_parameters_out_of_bounds_do_not_convert(wrong: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        Log([Costs()]).get("/costs", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": "2026-03-02T10:00:00Z"},
        {"until": "soon"},
        {"since": "2026-03-03", "until": "2026-03-02"},
        {"since": "2026-03-02T00:00:00"},
        {"until": "9999-12-31T00:00:00-23:00"},
    ],
)
def test_days_that_cannot_be_answered_are_bad_parameters(wrong: dict[str, str]) -> None:
    with pytest.raises(BadParameter):
        Log([Costs()]).get("/costs", **wrong)


def test_since_is_inclusive_a_bare_until_takes_its_day_in_and_an_instant_does_not() -> None:
    log = Log([Costs()])
    log.send([cost(f"{d}", f"2026-03-0{d}T12:00:00Z", d, model=f"m{d}") for d in (2, 1, 3)])
    whole = log.get("/costs")
    assert (whole["first"], whole["last"]) == ("2026-03-01T12:00:00.000000Z", "2026-03-03T12:00:00.000000Z")
    assert log.get("/costs", since="2026-03-02", until="2026-03-02", by="day")["days"] == {"2026-03-02": 2.0}
    assert log.get("/costs", since="2026-03-02", until="2026-03-03T00:00:00Z")["total_usd"] == 2.0
    assert log.get("/costs", since="2026-03-03T02:00:00+02:00", by="model")["models"] == {"m3": 3.0}
    assert log.get("/costs", until="2026-03-02", by="model")["models"] == {"m1": 1.0, "m2": 2.0}
    assert log.get("/costs", since="2026-03-04")["total_micro_usd"] == 0


def test_a_check_of_a_scope_minds_the_tenants_budgets_too_and_shutdown_allows_nothing_more() -> None:
    log = Log([Costs()])
    log.send(
        [
            budget("b", "2026-03-02T00:00:00Z", "model:m", "daily", {"shutdown": 2}),
            cost("c", "2026-03-02T00:00:00Z", 1, model="m"),
            cost("d", "2026-03-02T00:00:00Z", "6.5", model="n"),
        ]
    )

    def ask(amount: str, **more: str) -> dict[str, Any]:
        return log.get("/costs/check", amount=amount, at="2026-03-02T12:00:00Z", **more)

    assert [ask(a, scope="model:m")["allowed"] for a in ("1", "1.000001")] == [True, False]
    assert [ask(a, scope="model:n")["allowed"] for a in ("2.5", "2.500001")] == [True, False]
    log.send([cost("e", "2026-03-02T00:00:00Z", 1, model="m")])
    blocked = ask("0", scope="model:m")
    assert (blocked["allowed"], blocked["status"], ask("0")["allowed"]) == (False, "shutdown", True)
    assert ask("0", scope="model:m")["limits"][0]["exceeds"] is False


def test_percent_used_is_the_share_of_the_highest_limit_from_0_to_100() -> None:
    log = Log([Costs()])

    def used() -> float:
        return next(b["percent_used"] for b in log.get("/costs/status")["budgets"] if b["rule"] == "cost.cumulative")

    seen = []
    for event in (refund("r", "2026-03-02T00:00:00Z", 1), cost("a", "2026-03-02T00:00:00Z", 26), cost("b", "2026-03-02T00:00:00Z", 900)):
        log.send([event])
        seen.append(used())
    assert seen == [0.0, 25.0, 100.0]


def test_status_by_default_is_of_now_and_never_before_what_was_absorbed() -> None:
    log = Log([Costs()])
    log.send([cost("c", "2026-03-02T12:00:00Z", 8)])
    assert log.get("/costs/status", now_us=0)["at"] == "2026-03-02T12:00:00.000000Z"
    assert log.get("/costs/status", now_us=0)["status"] == "warning"
    assert log.get("/costs/status", now_us=NOW_US)["status"] == "ok"
    assert log.get("/costs/status", at="2026-03-02T23:59:59Z")["status"] == "warning"
    with pytest.raises(BadParameter):
        log.get("/costs/status", at="9999-12-31T00:00:00Z")


# ---- laws

_SCOPES = st.fixed_dictionaries(
    {}, optional={"model": st.sampled_from(["a", "b|c"]), "run": st.just("r"), "tags": st.lists(st.sampled_from(["x", "y", "z%"]), max_size=3)}
)
_TIMES = st.sampled_from(
    [
        "2026-02-28T23:59:59.999999Z",
        "2026-03-01T00:00:00Z",
        "2026-03-01T01:30:00+02:00",
        "2026-03-02T12:00:00Z",
        "2026-03-02T13:00:00Z",
        "2026-03-03T00:00:00Z",
        "2026-03-04T00:00:00Z",
        "2026-03-05T00:00:00Z",
        "2026-03-31T00:00:00Z",
        "2026-04-01T00:00:00Z",
        "2027-08-01T00:00:00Z",
    ]
)
_USD = st.decimals(0, 60, places=8).map(str)
_SPENT = st.tuples(st.just("cost"), _TIMES, st.one_of(st.none(), _USD), st.integers(0, 90), st.integers(0, 3000), _SCOPES)
_BACK = st.tuples(st.just("refund"), _TIMES, st.decimals("0.00000051", 40, places=8).map(str), st.just(0), st.just(0), _SCOPES)
_LIMITS = st.sampled_from([{}, {"warning": 5}, {"warning": 3, "critical": 20}, {"critical": "7.5", "shutdown": 30}])
_SET = st.tuples(
    st.just("budget"),
    _TIMES,
    st.sampled_from(["tenant", "model:a", "model:b|c", "tag:x"]),
    st.sampled_from(["cumulative", "daily", "monthly", "total"]),
    _LIMITS,
    st.sampled_from([None, "2026-03-01", "2026-03-31"]),
)
_TICK = st.tuples(st.just("tick"), _TIMES)


def events_of(steps: list[Any]) -> list[dict[str, Any]]:
    events = []
    for n, step in enumerate(steps):
        if step[0] == "cost":
            events.append(cost(f"e{n}", step[1], step[2], api_calls=step[3], token_usage=step[4], **step[5]))
        elif step[0] == "refund":
            events.append(refund(f"e{n}", step[1], step[2], **step[5]))
        elif step[0] == "budget":
            starts = {"starts": step[5]} if step[5] and step[3] == "cumulative" else {}
            events.append(budget(f"e{n}", step[1], step[2], step[3], step[4], **starts))
        else:
            events.append(tick(f"e{n}", step[1]))
    return events


def exact(text: Any) -> Decimal:
    return Decimal(text).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)


@given(st.lists(st.one_of(_SPENT, _BACK), max_size=30))
@settings(deadline=None)
def test_sums_by_scope_day_and_month_are_those_of_decimal_arithmetic(steps: list[Any]) -> None:
    fold = Costs(CostSettings(cost_days=450, cost_run_days=450))
    log = Log([fold], 8)
    log.send(events_of(steps))
    latest = datetime.min.replace(tzinfo=UTC)
    total: dict[str, Decimal] = {"tenant": Decimal(0)}
    by_day: dict[tuple[str, str], Decimal] = {}
    estimated = Decimal(0)
    for step in steps:
        time = datetime.fromisoformat(step[1]).astimezone(UTC)
        latest = max(latest, time)
        if step[2] is not None:
            amount = exact(step[2])
        else:
            amount = exact(step[4] * Decimal("0.000002") if step[4] else step[3] * Decimal("0.001"))
            estimated += amount
        sign = 1 if step[0] == "cost" else -1
        named = step[5]
        scopes = {"tenant", *(f"{k}:{named[k]}" for k in ("model", "run") if k in named), *(f"tag:{t}" for t in named.get("tags", []))}
        for scope in scopes:
            total[scope] = total.get(scope, Decimal(0)) + sign * amount
            day = (scope, time.date().isoformat())
            if time.date() >= latest.date() - timedelta(days=449):
                by_day[day] = by_day.get(day, Decimal(0)) + sign * amount
    kept_from = (latest.date() - timedelta(days=449)).isoformat() if steps else ""
    for scope, expected in total.items():
        answer = log.get("/costs", scope=scope)
        assert answer["total_micro_usd"] == int(expected * 1_000_000)
        days = {day: usd for day, usd in log.get("/costs", scope=scope, by="day")["days"].items() if day >= kept_from}
        wanted = {day: float(usd) for (of, day), usd in by_day.items() if of == scope and day >= kept_from}
        assert days == wanted
        months: dict[str, Decimal] = {}
        for (of, day), usd in by_day.items():
            if of == scope and day >= kept_from:
                months[day[:7]] = months.get(day[:7], Decimal(0)) + usd
        assert {m: u for m, u in log.get("/costs", scope=scope, by="month")["months"].items() if m in months} == {m: float(u) for m, u in months.items()}
    assert log.get("/costs")["estimated_micro_usd"] == int(estimated * 1_000_000)


@given(st.lists(st.one_of(_SPENT, _BACK, _SET, _TICK), max_size=25), st.lists(st.integers(1, 7), max_size=25))
@settings(deadline=None)
def test_any_chunking_gives_the_same_rows_and_the_same_messages(steps: list[Any], sizes: list[int]) -> None:
    log = records(events_of(steps))
    schema = Schema([Costs()])
    one, many = Partition("costs", 0, schema), Partition("costs", 0, schema)
    one.absorb(log)
    at = 0
    for size in [*sizes, len(log)]:
        many.absorb(log[at : at + size])
        flushed(many)
        at += size
    assert image(one) == image(many)
    assert one.outputs == many.outputs


@given(st.lists(st.one_of(_SPENT, _BACK, _SET, _TICK), min_size=1, max_size=18), st.integers(0, 18), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_a_refold_after_a_crash_at_any_point_of_a_flush_is_the_straight_fold(steps: list[Any], split: int, order: Any) -> None:
    log = records(events_of(steps))
    schema = Schema([Costs(CostSettings(max_cost_scopes=4))])
    straight = Partition("costs", 0, schema)
    straight.absorb(log)
    first = Partition("costs", 0, schema)
    first.absorb(log[:split])
    before = flushed(first)
    told = list(first.outputs)
    first.absorb(log[split:])
    last = flushed(first)
    ranks = [schema.tables[entry[4]].rank for entry in last]
    by_rank = [[entry for entry in last if schema.tables[entry[4]].rank == rank] for rank in sorted(set(ranks))]
    last = [entry for group in by_rank for entry in order.sample(group, len(group))]
    for cut in range(len(last) + 1):
        again = copied(first, flushes=[before, last[:cut]])
        again.absorb(log)
        assert image(again) == image(straight), cut
        repeated = [out.value for out in told + again.outputs]
        assert set(repeated) <= {out.value for out in straight.outputs}


def test_the_readers_rank_below_what_they_read() -> None:
    ledgers, months, budgets, today, outlooks, rates = Costs().tables
    assert max(outlooks.rank, rates.rank) < months.rank
    assert ledgers.rank < months.rank < budgets.rank < today.rank < 90


def test_other_settings_are_other_rows() -> None:
    assert Costs().tables[0].wire != Costs(CostSettings(budget_daily_usd=11)).tables[0].wire
    assert Costs().tables[0].wire == Costs(CostSettings()).tables[0].wire


def test_the_home_of_every_cost_event_is_the_tenants_partition() -> None:
    log = Log([Costs()], 8)
    log.send([cost(f"{n}", "2026-03-02T00:00:00Z", 1, model=f"m{n}", run=f"r{n}") for n in range(20)])
    home = partition_for(encode_key("golden"), 8)
    assert [len(log.records[("costs", n)]) for n in range(8)] == [20 if n == home else 0 for n in range(8)]
    assert decode(log.records[("costs", home)][0].value).tenant == "golden"


def test_every_message_is_one_sentence_that_names_the_scope_the_sum_and_the_period() -> None:
    log = Log([Costs()])
    log.send(VECTORS["C3"]["events"])
    for message in log.alerts("cost.daily"):
        text = message["message"]
        assert text.startswith("The tenant spent ") and text.endswith(".") and message["period"] in text
        assert f"{message['value']:.2f} USD" in text
