"""Metrics, windows, costs and budgets against an oracle in numpy and pandas: 20,000 events over several partitions, every view at ten moments."""

from __future__ import annotations

import random
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from math import ceil, floor
from math import log as ln
from typing import Any

import numpy as np
import pandas as pd

from tables.costs import Costs
from tables.fold import Fold
from tables.metric_costs import MetricCosts
from tables.metric_summary import MetricSummary
from tables.windows import Windows
from tests.oracles import DAY_US, HOUR_US, MINUTE_US, MOMENTS, SECOND_US, Event, envelope, moments, text, times, unequal

MODELS, RUNS, TAGS = ("m0", "m1", "m|2", None), ("r0", "r1", None), ("x", "y", "z%")
SIZES = {"1m": (MINUTE_US, HOUR_US * 6), "5m": (5 * MINUTE_US, 2 * DAY_US), "1h": (HOUR_US, 30 * DAY_US), "1d": (DAY_US, 400 * DAY_US)}
"""Length of a window and how long it is kept (common rules §7)."""
GAMMA = 1.01 / 0.99
LEVELS = ("ok", "info", "warning", "critical", "shutdown")
LEARNED = ("performance_score", "learning_rate", "convergence_metric", "episode_count")
DEFAULTS = {
    "cumulative": [("warning", 10), ("critical", 50), ("shutdown", 100)], "daily": [("warning", 7), ("critical", 9), ("shutdown", 10)],
    "monthly": [("warning", 70), ("critical", 90), ("shutdown", 100)], "total": [("warning", 700), ("critical", 900), ("shutdown", 1000)],
}  # fmt: skip


def stream(seed: int) -> list[Event]:
    """Metrics of some series, learning events, costs with and without an amount, refunds and budgets, over twelve days from February into March."""
    rng = random.Random(seed)
    found: list[Event] = []
    for n, at in enumerate(times(rng, MOMENTS[-1], 12 * DAY_US)):
        at -= 5 * DAY_US
        dice, model, run, tags = rng.random(), rng.choice(MODELS), rng.choice(RUNS), rng.sample(TAGS, rng.randrange(3)) or None
        if dice < 0.6:
            value: Any = rng.choice([rng.lognormvariate(0, 2), -rng.random(), 0.0, rng.gauss(100, 1)])
            value = rng.choice([value] * 30 + [None, "NaN", "Infinity", "-Infinity"])
            values = rng.choice([None, None, {"loss": rng.random(), "acc": rng.choice([0.5, "NaN"])}])
            spent = rng.choice([{}, {}, {}, {"cost": round(rng.random() / 100, 7)}, {"token_usage": rng.randrange(500)}, {"api_calls": rng.randrange(3)}])
            kind = rng.choice(["train", "valid", None])
            found.append(envelope(n, "metric.recorded", at, metric_type=kind, model=model, run=run, value=value, values=values, tags=tags, **spent))
        elif dice < 0.68:
            figures = {"performance_score": rng.random(), "learning_rate": 0.1, "convergence_metric": rng.random(), "episode_count": n}
            found.append(envelope(n, "learning.recorded", at, task_type=rng.choice(["code", "doc"]), run=run, **figures))
        elif dice < 0.975:
            cost = rng.choice([round(rng.random() / 20, 8), f"{rng.random() / 30:.9f}", None, 0])
            calls, tokens = rng.choice([0, 1, 3]), rng.choice([0, rng.randrange(20_000)])
            whose = {"model": model, "run": run, "agent": rng.choice(["a", None]), "tags": tags}
            found.append(envelope(n, "cost.incurred", at, cost=cost, api_calls=calls, token_usage=tokens, **whose))
        elif dice < 0.995:
            found.append(envelope(n, "cost.refunded", at, cost=round(rng.random() / 10 + 1e-6, 6), model=model, tags=tags))
        else:
            period, low = rng.choice(["cumulative", "daily", "monthly", "total"]), rng.randrange(1, 60)
            limits = [
                {"level": level, "at": low * (k + 1)} for k, level in enumerate(rng.choice([("warning", "shutdown"), ("info", "critical"), ("shutdown",)]))
            ]
            starts = rng.choice([None, text(at - 2 * DAY_US)[:10]]) if period == "cumulative" else None
            scope = rng.choice(["tenant", "tenant", "model:m0", "tag:x"])
            found.append(envelope(n, "budget.set", at, scope=scope, period=period, limits=limits, starts=starts))
    return found


def micro(usd: Any) -> int:
    """Whole micro-USD of a number's decimal text, half to even."""
    return int((Decimal(str(usd)) * 1_000_000).quantize(Decimal(1), ROUND_HALF_EVEN))


class Figures:
    """Every figure of a training run as a row: series, time, value."""

    def __init__(self, events: list[Event]) -> None:
        rows = []
        for e in events:
            data, at = e["data"], e["time_us"]
            if e["type"] == "metric.recorded.v1":
                kind, model, run = data.get("metric_type", "unknown"), data.get("model", "unknown"), data.get("run", "")
                parts = [(kind, data["value"])] if "value" in data else []
                parts += [(f"{kind}.{name}", value) for name, value in data.get("values", {}).items()]
                rows += [(name, model, run, at, float(value), tuple(data.get("tags", ()))) for name, value in parts]
            elif e["type"] == "learning.recorded.v1":
                rows += [(f"learning.{name}", data["task_type"], data.get("run", ""), at, float(data[name]), ()) for name in LEARNED]
        self.all = pd.DataFrame(rows, columns=["metric", "model", "run", "t", "value", "tags"])
        self.as_of = max((e["time_us"] for e in events if e["type"] in ("metric.recorded.v1", "learning.recorded.v1")), default=0)

    def of(self, metric: str, model: str | None = None, run: str | None = None, tag: str | None = None) -> Any:
        found = self.all[self.all["metric"] == metric]
        found = found if model is None else found[found["model"] == model]
        found = found if run is None else found[found["run"] == run]
        return found if tag is None else found[[tag in tags for tags in found["tags"]]]

    def buckets(self, mine: Any, base: str, width: int = 1, step: int = 1) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Windows of `width` base windows, one every `step`, and all that they hold."""
        size, kept = SIZES[base]
        low = -(-((self.as_of - kept) // size) // step) * step
        mine = mine[mine["t"] >= low * size].sort_values("t")
        t, value = mine["t"].to_numpy(), mine["value"].to_numpy()
        index = t // size
        starts = sorted({start for i in set(index.tolist()) for start in range(i // step * step, max(low, i - width + 1) - 1, -step)})
        cuts = zip(starts, np.searchsorted(index, starts), np.searchsorted(index, np.array(starts) + width), strict=True)
        shown = [{"start": text(s * size), "end": text((s + width) * size), **summed(t[a:b], value[a:b], width * size)} for s, a, b in cuts]
        return shown, summed(t, value, width * size)

    def series(self) -> list[dict[str, Any]]:
        """Lifetime figures of every series."""
        found = []
        for (metric, model, run), mine in self.all.groupby(["metric", "model", "run"]):
            finite = mine[np.isfinite(mine["value"])]
            value, n = finite["value"], len(finite)
            one = {"metric": metric, "model": model, "run": run or None, "n": n, "windowed": True}
            if n:
                last = finite.loc[finite["t"].idxmax()]
                one |= {"mean": value.mean(), "min": value.min(), "max": value.max(), "last": last["value"], "last_at": text(last["t"])}
            found.append(one)
        return found


def summed(at: Any, every: Any, size_us: int) -> dict[str, Any]:
    """Figures of a window: event times and values."""
    finite = np.isfinite(every)
    x, t = every[finite], at[finite]
    n, ordered = len(x), np.sort(x)
    slope = None
    if n > 1:
        hours = (t - t[0]) / HOUR_US
        hours = hours - hours.mean()
        slope = 0.0 if ordered[0] == ordered[-1] else float(hours @ (x - x.mean()) / (hours @ hours))
    return {
        "n": n, "mean": x.mean() if n else None, "std": x.std(ddof=1) if n > 1 else None, "min": ordered[0] if n else None, "max": ordered[-1] if n else None,
        **{f"p{q}": quantile(ordered, q / 100) for q in (50, 95, 99)}, "sum": x.sum() if n else None, "slope_per_hour": slope,
        "non_finite": {"nan": int(np.isnan(every).sum()), "pos_inf": int((every == np.inf).sum()), "neg_inf": int((every == -np.inf).sum())},
        "enough": n >= (10 if size_us < HOUR_US else 50 if size_us < DAY_US else 100),
    }  # fmt: skip


def quantile(ordered: Any, q: float) -> float | None:
    """The exact value's bucket of relative width 2 %, clamped to what there is."""
    if not len(ordered):
        return None
    x = float(ordered[floor(q * (len(ordered) - 1))])
    if abs(x) >= 1e-12:
        middle = 2 * GAMMA ** ceil(ln(abs(x)) / ln(GAMMA)) / (GAMMA + 1)
        assert abs(middle - abs(x)) <= 0.01 * abs(x) * (1 + 1e-9)
        x = middle if x > 0 else -middle
    else:
        x = 0.0
    return min(max(x, float(ordered[0])), float(ordered[-1]))


@cache
def month_of(day: int) -> str:
    """Year and month of a day since the epoch."""
    return text(day * DAY_US)[:7]


class Money:
    """Every cost as a row, in whole micro-USD."""

    def __init__(self, events: list[Event]) -> None:
        rows, self.budgets = [], {}
        self.as_of = 0
        for e in events:
            data, at = e["data"], e["time_us"]
            if e["type"] == "budget.set.v1":
                self.budgets[data["scope"], data["period"]] = data, e
            spends = e["type"].startswith("cost.")
            if e["type"] == "metric.recorded.v1":
                spends = (
                    micro(data.get("cost", 0)) > 0 or Decimal(str(data.get("cost", 0))) > 0 or data.get("api_calls", 0) > 0 or data.get("token_usage", 0) > 0
                )
            if spends or e["type"] == "budget.set.v1":
                self.as_of = max(self.as_of, at)
            if not spends:
                continue
            refund, calls, tokens, cost = e["type"] == "cost.refunded.v1", data.get("api_calls", 0), data.get("token_usage", 0), data.get("cost")
            amount = micro(cost) if cost is not None else tokens * 2 if tokens else calls * 1000
            names = {f"{kind}:{data[kind]}" for kind in ("model", "run", "agent") if kind in data} | {f"tag:{tag}" for tag in data.get("tags", ())}
            if e["type"] == "metric.recorded.v1" and "model" not in data:
                names.add("model:unknown")
            rows.append((at, -amount if refund else amount, refund, cost is None, calls, tokens, names | {"tenant"}))
        self.all = pd.DataFrame(rows, columns=["t", "micro", "refund", "estimated", "calls", "tokens", "scopes"])
        self.all["day"] = self.all["t"] // DAY_US
        self.all["month"] = [month_of(day) for day in self.all["day"]]
        self.parts: dict[str, Any] = {}

    def of(self, scope: str) -> Any:
        if scope not in self.parts:
            self.parts[scope] = self.all[[scope in names for names in self.all["scopes"]]]
        return self.parts[scope]

    def names(self, kind: str) -> list[str]:
        return sorted({name for names in self.all["scopes"] for name in names if name.startswith(kind + ":")})

    def total(self, mine: Any) -> dict[str, Any]:
        spent, back, guessed = mine[~mine["refund"]], mine[mine["refund"]], mine[mine["estimated"]]
        return {
            "total_micro_usd": int(mine["micro"].sum()), "total_usd": mine["micro"].sum() / 1e6, "estimated_micro_usd": int(guessed["micro"].sum()),
            "estimated_events": len(guessed), "refunded_micro_usd": int(-back["micro"].sum()), "refunds": len(back), "events": len(spent),
            "api_calls": int(mine["calls"].sum()), "token_usage": int(mine["tokens"].sum()),
        }  # fmt: skip

    def limits(self, scope: str, period: str) -> list[tuple[str, float]]:
        if (scope, period) in self.budgets:
            return [(one["level"], one["at"]) for one in self.budgets[scope, period][0]["limits"]]
        return DEFAULTS[period] if scope == "tenant" else []

    def spent(self, scope: str, period: str, day: int) -> int:
        """What counts against a budget."""
        mine = self.of(scope)
        if period == "daily":
            mine = mine[mine["day"] == day]
        elif period == "monthly":
            mine = mine[mine["month"] == month_of(day)]
        elif period == "cumulative":
            starts = self.budgets.get((scope, period), ({}, None))[0].get("starts")
            if starts is not None:
                mine = mine[mine["day"] >= date.fromisoformat(starts).toordinal() - date(1970, 1, 1).toordinal()]
        return int(mine["micro"].sum())

    def standing(self, scope: str, day: int) -> dict[str, dict[str, Any]]:
        """Budgets of a scope by rule."""
        found = {}
        for period in ("cumulative", "daily", "monthly", "total"):
            limits = self.limits(scope, period)
            if limits:
                spent = self.spent(scope, period, day)
                level = next((level for level, at in reversed(limits) if spent >= at * 1_000_000), "ok")
                used = min(100.0, max(0.0, spent / 1e6 / limits[-1][1] * 100))
                found[f"cost.{period}"] = {
                    "rule": f"cost.{period}", "sum_usd": spent / 1e6, "level": level, "percent_used": used,
                    "limits": [{"level": level_, "at_usd": float(at)} for level_, at in limits],
                }  # fmt: skip
        return found

    def calls(self, at_us: int) -> list[tuple[str, int, int]]:
        """Calls in the sliding minute, hour and day."""
        t, calls = self.all["t"].to_numpy(), self.all["calls"].to_numpy()
        each = (("minute", SECOND_US, 60, 60), ("hour", MINUTE_US, 60, 500), ("day", HOUR_US, 24, 5000))
        return [(per, int(calls[(t // unit > at_us // unit - units) & (t // unit <= at_us // unit)].sum()), limit) for per, unit, units, limit in each]

    def check(self, scope: str, amount: float, calls: int, at_us: int) -> dict[str, Any]:
        day = at_us // DAY_US
        scopes = [scope] if scope == "tenant" else [scope, "tenant"]
        standing = [(s, rule, one) for s in scopes for rule, one in self.standing(s, day).items()]
        limits = {
            (s, rule, limit["level"]): (one["sum_usd"] + amount, one["sum_usd"] + amount > limit["at_usd"] + 1e-9)
            for s, rule, one in standing
            for limit in one["limits"]
        }
        status = max((one["level"] for *_, one in standing), key=LEVELS.index, default="ok")
        over = any(beyond for (*_, level), (_, beyond) in limits.items() if level == "shutdown")
        return {"allowed": not over and status != "shutdown" and all(n + calls <= most for _, n, most in self.calls(at_us)), "status": status, "after": limits}

    def forecast(self, scope: str, at_us: int, ahead: int) -> dict[str, Any]:
        today = at_us // DAY_US
        mine = self.of(scope)
        by_day = mine.groupby("day")["micro"].sum() / 1e6
        before = by_day[(by_day.index < today) & (by_day.index >= today - 30)].sort_index().tail(7)
        mean = float(before.mean()) if len(before) else float(by_day.get(today, 0.0))
        to_date = self.spent(scope, "monthly", today) / 1e6
        end = pd.Period(text(today * DAY_US)[:7], "M").days_in_month - int(text(today * DAY_US)[8:10])
        until = {}
        for period, spent in (("monthly", to_date), ("total", mine["micro"].sum() / 1e6)):
            stop = dict(self.limits(scope, period)).get("shutdown")
            if stop is not None:
                until[period] = 0.0 if spent >= stop else (stop - spent) / mean if mean > 0 else None
        return {
            "as_of_day": text(today * DAY_US)[:10], "days_used": len(before), "daily_mean_usd": mean, "month_to_date_usd": to_date, "remaining_days": end,
            "month_end_usd": to_date + mean * end, "projected_usd": mean * ahead, "monthly_usd": mean * 30, "annual_usd": mean * 365, "days_until": until,
        }  # fmt: skip


WINDOWS = (("1m", "1m", 1, 1), ("5m", "5m", 1, 1), ("1h", "1h", 1, 1), ("1d", "1d", 1, 1), ("3h", "1h", 3, 3), ("15m", "5m", 3, 3))


def check_windows(log: Any, figures: Figures, turn: int) -> None:
    loose = {"slope_per_hour": 1e-6, "std": 1e-8}
    asked_for = (("train", None, None), ("train", "m0", None), ("valid.loss", "m|2", ""), ("learning.performance_score", "code", None))
    for at, (metric, model, run) in enumerate(asked_for):
        mine = figures.of(metric, model, run)
        if not len(mine):
            continue
        asked = {"metric": metric, **({} if model is None else {"model": model}), **({} if run is None else {"run": run})}
        for window, base, width, step in (WINDOWS[(turn + at) % 6], WINDOWS[(turn + at + 3) % 6]):  # each in its turn: reading many series is what costs
            buckets, overall = figures.buckets(mine, base, width, step)
            found = log.get("/metrics/aggregate", window=window, **asked)
            assert unequal({"buckets": buckets, "overall": overall}, found, loose=loose) == [], (asked, window)
        if at == turn % 4:
            sliding = log.get("/metrics/aggregate", window="15m", slide="5m", **asked)
            assert unequal(figures.buckets(mine, "5m", 3, 1)[0], sliding["buckets"], loose=loose) == []
        whole = summed(mine["t"].to_numpy(), mine["value"].to_numpy(), DAY_US)
        assert unequal(whole, log.get("/metrics/aggregate", **asked)["overall"], loose=loose) == []
        day = text(figures.as_of)[:10]
        today = mine[mine["t"] // DAY_US == figures.as_of // DAY_US]
        found = log.get("/metrics/aggregate", window="1h", since=day, until=day, **asked)
        assert unequal(figures.buckets(today, "1h")[0], found["buckets"], loose=loose) == []
    tagged = figures.of("train", tag="x")
    assert unequal(figures.buckets(tagged, "1h")[0], log.get("/metrics/aggregate", metric="train", tag="x", window="1h")["buckets"], loose=loose) == []
    assert unequal(figures.series(), log.get("/metrics/series", limit=1000)["series"]) == []


def check_summary(log: Any, events: list[Event], money: Money) -> None:
    metrics = [e for e in events if e["type"] == "metric.recorded.v1"]
    tracked = money.total(money.of("tenant"))

    def counted(names: Any) -> dict[str, int]:
        return {name: int(n) for name, n in pd.Series(list(names), dtype=object).value_counts().items()}

    expected = {
        "total_metrics": len(metrics),
        "by_type": counted(e["data"].get("metric_type", "unknown") for e in metrics), "by_model": counted(e["data"].get("model", "unknown") for e in metrics),
        "by_tag": counted(tag for e in metrics for tag in e["data"].get("tags", ())), "by_day": counted(e["time"][:10] for e in metrics),
        "first": min(e["time"] for e in metrics), "last": max(e["time"] for e in metrics),
        "cost_tracking": {name: tracked[name] for name in ("total_usd", "api_calls", "token_usage")},
    }  # fmt: skip
    found = log.get("/metrics/summary")
    assert unequal(expected, found) == [] and found["overflow"] == {"types": 0, "models": 0, "tags": 0}
    assert [list(found[name].keys() - expected[name].keys()) for name in ("by_type", "by_model", "by_tag", "by_day")] == [[], [], [], []]


def check_costs(log: Any, money: Money) -> None:
    at_us = money.as_of + 20 * SECOND_US
    day = at_us // DAY_US
    for scope in ("tenant", "model:m0", "run:r1", "agent:a", "tag:x", "model:unknown"):
        mine = money.of(scope)
        if not len(mine):
            continue
        total = {**money.total(mine), "first": text(mine["t"].min()), "last": text(mine["t"].max()), "as_of": text(money.as_of)}
        assert unequal(total, log.get("/costs", scope=scope)) == []
        days = {text(d * DAY_US)[:10]: usd for d, usd in (mine.groupby("day")["micro"].sum() / 1e6).items()}
        found = log.get("/costs", scope=scope, by="day")["days"]
        assert unequal(days, found) == [] and len(days) == len(found)
        months = mine.groupby("month")["micro"].sum() / 1e6
        assert unequal(dict(months), log.get("/costs", scope=scope, by="month")["months"]) == []
        some = mine[mine["day"] >= day - 2]
        assert unequal(money.total(some), log.get("/costs", scope=scope, since=text((day - 2) * DAY_US)[:10])) == []
        standing, found = money.standing(scope, day), log.get("/costs/status", scope=scope, now_us=at_us)
        assert unequal(standing, {one["rule"]: one for one in found["budgets"]}) == [] and len(standing) == len(found["budgets"])
        assert found["status"] == max((one["level"] for one in standing.values()), key=LEVELS.index, default="ok")
        rates = [{"per": per, "calls": n, "limit": most, "exceeded": n > most} for per, n, most in money.calls(at_us)]
        assert unequal({"rates": rates, "total_usd": total["total_usd"], "cumulative_usd": money.spent(scope, "cumulative", day) / 1e6}, found) == []
        for amount, calls in ((0.001, 0), (9.5, 40)):
            expected, answer = money.check(scope, amount, calls, at_us), log.get("/costs/check", scope=scope, amount=str(amount), calls=calls, now_us=at_us)
            assert (answer["allowed"], answer["status"]) == (expected["allowed"], expected["status"])
            after = {(one["scope"], one["rule"], one["level"]): (one["after_usd"], one["exceeds"]) for one in answer["limits"]}
            assert after.keys() == expected["after"].keys() and all(unequal(expected["after"][key], after[key]) == [] for key in after)
        assert unequal(money.forecast(scope, at_us, 45), log.get("/costs/forecast", scope=scope, days=45, now_us=at_us)) == []
    for kind in ("model", "agent", "run", "tag"):
        expected = {name.removeprefix(kind + ":"): money.of(name)["micro"].sum() / 1e6 for name in money.names(kind)}
        found = log.get("/costs", by=kind)[kind + "s"]
        assert unequal(expected, found) == [] and len(expected) == len(found)
    shown = {(one["scope"], one["period"]): one for one in log.get("/budgets")["budgets"]}
    for key, (data, event) in money.budgets.items():
        assert (shown[key]["set_by"], shown[key]["set_at"], shown[key]["starts"]) == (event["id"], event["time"], data.get("starts"))
    assert {key for key, one in shown.items() if one["set_by"] == "default"} == {("tenant", period) for period in DEFAULTS} - money.budgets.keys()


def test_every_view_of_metrics_and_costs_is_what_numpy_and_pandas_make_of_the_events() -> None:
    events = stream(3)
    costs = Costs()
    folds: list[Fold] = [costs, Windows(), MetricSummary(None, costs.kept.ledgers), MetricCosts()]
    for turn, (log, moment) in enumerate(moments(folds, events, partitions=4)):
        money = Money(events[:moment])
        check_windows(log, Figures(events[:moment]), turn)
        check_summary(log, events[:moment], money)
        check_costs(log, money)
