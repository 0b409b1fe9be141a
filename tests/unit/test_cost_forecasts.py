"""What a month will cost, and calls that are too many: golden figures, a recount of every record, and each alert once."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.budgets import CostSettings
from tables.cost_rates import WINDOWS, Rates
from tables.costs import Costs
from tables.fold import NotFound
from tests.harness import VECTORS, Log, subset
from tests.unit.test_costs import OFF, budget, cost, refund, story, tick

QUIET = CostSettings(budget_cumulative_usd=None, budget_daily_usd=None, budget_total_usd=None)
UNLIMITED = CostSettings(budget_cumulative_usd=None, **OFF)


def at(day: int, hour: int = 12, month: int = 3) -> str:
    return f"2026-{month:02d}-{day:02d}T{hour:02d}:00:00Z"


# ---- forecasts


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_golden_forecast_is_made_of_the_seven_latest_days_with_data(partitions: int, twice: bool) -> None:
    vector = VECTORS["C5"]
    log = Log([Costs()], partitions)
    log.send([event for event in vector["events"] for _ in range(2 if twice else 1)])
    for check in vector["checks"]:
        if check["path"] == "/costs/forecast":
            assert subset(check["expect"], log.get("/costs/forecast", **check["params"])) == []


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_golden_forecast_alert_is_told_once_in_the_month(twice: bool) -> None:
    vector = VECTORS["C6"]
    log = Log([Costs(CostSettings(**{k: v for k, v in vector.get("settings", {}).items() if k in CostSettings.__struct_fields__}))])
    log.send([event for event in vector["events"] for _ in range(2 if twice else 1)])
    assert story(log, "cost.forecast") == [("opened", "ok", "warning", "2026-03", 120.0, None)]


def forecast_by_hand(spent: list[tuple[datetime, Fraction]], today: date) -> dict[str, Any]:
    """The figures of the view from all records, in fractions."""
    days: dict[date, Fraction] = {}
    for moment, amount in spent:
        days[moment.date()] = days.get(moment.date(), Fraction(0)) + amount
    past = [day for day in sorted(days, reverse=True) if today - timedelta(30) <= day < today][:7]
    mean = sum((days[day] for day in past), Fraction(0)) / len(past) if past else days.get(today, Fraction(0))
    to_date = sum((amount for day, amount in days.items() if (day.year, day.month) == (today.year, today.month) and day <= today), Fraction(0))
    first_of_next = (today.replace(day=1) + timedelta(32)).replace(day=1)
    remaining = (first_of_next - today).days - 1
    return {"used": len(past), "mean": mean, "to_date": to_date, "end": to_date + mean * remaining, "remaining": remaining, "total": sum(days.values())}


_MOMENTS = st.integers(0, 75 * 24).map(lambda hours: datetime(2026, 1, 20, tzinfo=UTC) + timedelta(hours=hours))
_AMOUNTS = st.integers(0, 12_000_000)


@given(st.lists(st.tuples(_MOMENTS, _AMOUNTS, st.booleans()), max_size=40), st.integers(0, 40))
@settings(deadline=None)
def test_the_forecast_view_is_that_of_fractions_over_all_records(steps: list[tuple[datetime, int, bool]], later: int) -> None:
    log = Log([Costs(QUIET)])
    latest = max((moment for moment, _, _ in steps), default=datetime(2026, 3, 1, tzinfo=UTC))
    spent = []
    for n, (moment, micro, back) in enumerate(steps):
        usd = f"{Fraction(micro, 10**6).numerator / Fraction(micro, 10**6).denominator:.6f}"
        log.send([refund(f"{n}", moment.isoformat(), usd) if back and micro else cost(f"{n}", moment.isoformat(), usd)])
        spent.append((moment, Fraction(micro, 10**6) * (-1 if back and micro else 1)))
    moment = latest + timedelta(days=later)
    want = forecast_by_hand(spent, moment.date())
    answer = log.get("/costs/forecast", at=moment.isoformat(), days=11)
    assert (answer["days_used"], answer["remaining_days"]) == (want["used"], want["remaining"])
    assert answer["daily_mean_usd"] == float(want["mean"])
    assert answer["month_end_usd"] == float(want["end"])
    assert answer["projected_usd"] == float(want["mean"] * 11)
    until = answer["days_until"]["monthly"]
    left = 100 - want["to_date"]
    assert until == (0.0 if left <= 0 else None if want["mean"] <= 0 else pytest.approx(float(left / want["mean"]), rel=1e-12))


@given(st.lists(st.tuples(_MOMENTS, _AMOUNTS, st.booleans()), max_size=60))
@settings(deadline=None)
def test_the_alert_is_a_recount_of_all_records_after_each(steps: list[tuple[datetime, int, bool]]) -> None:
    log = Log([Costs(QUIET)])
    spent: list[tuple[datetime, Fraction]] = []
    standing, told, today = "", "", date.min
    for n, (moment, micro, _late) in enumerate(sorted(steps, key=lambda step: step[0] + timedelta(days=40 * step[2]))):
        amount = Fraction(micro, 10**6)
        before = len(log.alerts("cost.forecast"))
        log.send([cost(f"{n}", moment.isoformat(), f"{micro // 10**6}.{micro % 10**6:06d}")])
        spent.append((moment, amount))
        today = max(today, moment.date())
        month = f"{today:%Y-%m}"
        expected = []
        if standing and standing != month:
            expected.append(("resolved", standing, "period_ended"))
            standing = ""
        want = forecast_by_hand(spent, today)
        if want["used"] >= 3:
            if standing and want["end"] <= 95:
                expected.append(("resolved", month, "below_limit"))
                standing = ""
            elif not standing and want["end"] > 100 and told != month:
                expected.append(("opened", month, None))
                standing = told = month
        got = [(m["type"].split(".")[1], m["period"], m.get("reason")) for m in log.alerts("cost.forecast")[before:]]
        assert got == expected
        if expected and expected[-1][2] != "period_ended":
            assert log.alerts("cost.forecast")[-1]["value"] == float(want["end"])


def test_a_forecast_alert_resolves_at_95_percent_and_does_not_come_again_in_that_month() -> None:
    log = Log([Costs(QUIET)])
    log.send([cost(f"{n}", at(n), 4) for n in (2, 3, 4)])
    log.send([cost("5", at(5), 4), cost("6", at(6, 1), "0.01"), refund("r0", at(6, 2), 21), refund("r", at(6, 2), "0.01"), cost("7", at(6, 3), 50)])
    assert [(m["type"].split(".")[1], m["value"], m.get("reason"), m["derivedfrom"]) for m in log.alerts("cost.forecast")] == [
        ("opened", 120.0, None, "5"),
        ("resolved", 95.0, "below_limit", "r"),
    ]
    log.send([cost(f"a{n}", at(n, month=4), 9) for n in (1, 2)])
    assert [m[3] for m in story(log, "cost.forecast")[2:]] == ["2026-04"]


def test_a_month_that_ends_resolves_the_forecast_by_a_record_of_another_model_or_a_tick() -> None:
    for end in (cost("e", at(1, month=4), 0, model="other"), tick("e", at(1, 0, month=4))):
        log = Log([Costs(QUIET)])
        log.send([budget("b", at(1), "model:m", "monthly", {"warning": 5, "shutdown": 10})])
        log.send([*(cost(f"{n}", at(n), 1, model="m") for n in (2, 3, 4, 5)), end], topic="costs")
        assert [(m["type"].split(".")[1], m["subject"], m["threshold"], m.get("reason")) for m in log.alerts("cost.forecast")] == [
            ("opened", "model:m", 10.0, None),
            ("resolved", "model:m", 10.0, "period_ended"),
        ]


def test_a_monthly_budget_is_judged_at_once_by_its_forecast_and_its_removal_resolves_it() -> None:
    log = Log([Costs(UNLIMITED)])
    log.send([cost(f"{n}", at(n), 1, run="r") for n in (2, 3, 4, 5)])
    log.send([budget("b1", at(5), "run:r", "monthly", {"shutdown": 20}), budget("b2", at(5), "run:r", "monthly", {})])
    assert story(log, "cost.forecast") == [
        ("opened", "ok", "warning", "2026-03", 30.0, None),
        ("resolved", "warning", "warning", "2026-03", 30.0, "budget_removed"),
    ]
    log.send([cost("6", at(6), 1, run="r"), budget("b3", at(6), "run:r", "monthly", {"shutdown": 2})])
    assert len(story(log, "cost.forecast")) == 2  # once a month


def test_a_forecast_that_is_off_tells_nothing_and_one_without_limits_counts_no_days_until() -> None:
    log = Log([Costs(CostSettings(cost_forecast=False))])
    log.send(VECTORS["C6"]["events"])
    assert log.alerts("cost.forecast") == []
    log = Log([Costs(UNLIMITED)])
    log.send(VECTORS["C5"]["events"])
    answer = log.get("/costs/forecast", at=at(13))
    assert (answer["days_until"], answer["days"], answer["projected_usd"]) == ({}, 30, pytest.approx(26 / 7 * 30))


def test_without_a_day_before_the_mean_is_todays_sum_and_an_unknown_scope_is_not_found() -> None:
    log = Log([Costs()])
    log.send([cost("1", at(31), 3, model="m")])
    answer = log.get("/costs/forecast", at=at(31), scope="model:m")
    assert (answer["days_used"], answer["daily_mean_usd"], answer["month_end_usd"], answer["annual_usd"]) == (0, 3.0, 3.0, 1095.0)
    assert log.get("/costs/forecast", at=at(1))["days_until"] == {"monthly": None, "total": None}
    assert log.get("/costs/forecast", scope="model:x")["status"] == NotFound("").members.get("status", 404)


# ---- rates


def rates_by_hand(calls: list[tuple[int, int]], end_us: int) -> list[int]:
    return [sum(n for time_us, n in calls if 0 <= end_us // unit - time_us // unit < buckets) for _, unit, buckets in WINDOWS]


_TIMES_US = st.integers(0, 3 * 86_400 * 1000).map(lambda ms: 1_772_409_600_000_000 + ms * 1000)


@given(st.lists(st.tuples(st.one_of(_TIMES_US, st.integers(0, 200_000).map(lambda ms: 1_772_600_000_000_000 + ms * 1000)), st.integers(0, 40)), max_size=60))
@settings(deadline=None)
def test_calls_of_each_window_are_a_recount_of_the_calls_that_found_their_bucket_kept(calls: list[tuple[int, int]]) -> None:
    rates, end = Rates(), -(2**62)
    for n, (time_us, count) in enumerate(calls):
        rates.advance(time_us)
        rates.add(time_us, count)
        end = max(end, time_us)
        assert rates.counts == rates_by_hand(calls[: n + 1], end)
        for later in (0, 30_000_000, 1_800_000_000, 86_400_000_000):
            assert rates.at(end + later) == rates_by_hand(calls[: n + 1], end + later)


def test_a_rate_is_exceeded_above_its_limit_and_resolves_at_90_percent_by_later_records_or_a_tick() -> None:
    for end in (cost("e", "2026-03-02T00:01:01Z", 1), tick("e", "2026-03-02T00:01:01Z")):
        log = Log([Costs(UNLIMITED)])
        log.send([cost("a", "2026-03-02T00:00:00Z", 0, api_calls=6), cost("b", "2026-03-02T00:00:02Z", 0, api_calls=54)])
        assert log.alerts("cost.rate") == []
        log.send([cost("c", "2026-03-02T00:00:59Z", 0, api_calls=1), cost("d", "2026-03-02T00:01:00Z", 0)])
        assert [(m["type"].split(".")[1], m["subject"], m["value"], m["threshold"], m["severity"]) for m in log.alerts("cost.rate")] == [
            ("opened", "minute", 61, 60, "warning")
        ]
        log.send(
            [
                {**end, "id": "e1"},
                {
                    **end,
                    "id": "e2",
                    "time": "2026-03-02T00:01:02Z",
                    "data": {**end["data"], **({"until": "2026-03-02T00:01:02Z"} if "until" in end["data"] else {})},
                },
            ],
            topic="costs",
        )
        assert [(m["type"].split(".")[1], m["value"], m.get("reason")) for m in log.alerts("cost.rate")[1:]] == [("resolved", 1, "below_limit")]
        assert log.alerts("cost.rate")[0]["alert_id"] == log.alerts("cost.rate")[1]["alert_id"]


def test_each_window_has_an_alert_of_its_own_and_a_limit_can_be_off() -> None:
    log = Log([Costs(CostSettings(budget_cumulative_usd=None, **OFF, rate_calls_per_minute=None, rate_calls_per_hour=10, rate_calls_per_day=20))])
    log.send([cost(f"{n}", f"2026-03-02T{n:02d}:00:00Z", 0, api_calls=n) for n in range(1, 12)])
    assert [(m["subject"], m["value"]) for m in log.alerts("cost.rate")] == [("day", 21), ("hour", 11)]
    assert [rate["per"] for rate in log.get("/costs/status")["rates"]] == ["hour", "day"]


def test_status_shows_the_rates_at_its_moment_and_a_check_refuses_calls_beyond_them() -> None:
    log = Log([Costs(UNLIMITED)])
    log.send([cost("a", "2026-03-02T00:00:00Z", 0, api_calls=40), cost("b", "2026-03-02T00:00:30Z", 0, api_calls=15)])
    shown = log.get("/costs/status", at="2026-03-02T00:00:59Z")["rates"]
    assert shown[0] == {"per": "minute", "calls": 55, "limit": 60, "exceeded": False}
    assert [rate["calls"] for rate in log.get("/costs/status", at="2026-03-02T00:01:00Z")["rates"]] == [15, 55, 55]
    assert [rate["calls"] for rate in log.get("/costs/status", at="2026-03-05T00:00:00Z")["rates"]] == [0, 0, 0]
    for calls, allowed in ((5, True), (6, False)):
        check = log.get("/costs/check", amount="0", calls=calls, at="2026-03-02T00:00:59Z")
        assert (check["allowed"], check["rates"][0]["after"], check["rates"][0]["exceeds"]) == (allowed, 55 + calls, not allowed)
    assert log.get("/costs/check", amount="0", calls=6, at="2026-03-02T00:01:00Z")["allowed"] is True
