"""Views of the cost ledgers: what was spent, where the budgets stand, whether an operation would still fit, and what is to come.

The rule this file keeps: a view judges by the limits and sums it reads at ``at``, so that it says ``ok`` on a new day though
no record has come since. Amounts leave as USD numbers (and ``*_micro_usd`` integers); shares as 0..100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from .alerting import LEVELS
from .budgets import RULES, SHUTDOWN, TENANT, Budgets, Limits, level_of
from .cost_forecasts import DAYS_BACK, projection
from .cost_rates import WINDOWS, RateRows
from .fold import BadParameter, NotFound, Reader, View
from .ledgers import SLOTS, CostTables, Ledger, Month, Sums, day_name, month_name, month_of, month_start, slot
from .money import MAX_USD, MICRO, micro_usd, usd
from .orders import Key, Order, Place, states_of
from .times import DAY_US, rfc3339, rfc3339_or_none, to_us

Scope = Annotated[str, msgspec.Meta(pattern=r"^(tenant|(model|run|agent|tag):[\s\S]{1,256})$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]

GROUPS = {"day": "days", "month": "months", "model": "models", "agent": "agents", "run": "runs", "tag": "tags"}
LAST_DAY = month_start(9998 * 12)


class CostsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/costs``: a scope, how to split it, and UTC days (``until``: a bare date is included)."""

    scope: Scope = TENANT
    by: Literal["day", "month", "model", "agent", "run", "tag"] | None = None
    since: str | None = None
    until: str | None = None


class StatusParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/costs/status``: the day and month are those of `at`, by default now."""

    scope: Scope = TENANT
    at: Moment | None = None


class CheckParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/costs/check``: `amount` in USD as decimal text, read exactly; `calls` is the number of API calls."""

    amount: str
    calls: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    scope: Scope = TENANT
    at: Moment | None = None


class ForecastParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/costs/forecast``: `days` to project over, counted from the day of `at`, by default today."""

    days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 30
    scope: Scope = TENANT
    at: Moment | None = None


class BudgetsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/budgets``: one scope, or all of them."""

    scope: Scope | None = None


def cost_views(kept: CostTables, rates: RateRows) -> tuple[View, ...]:
    """The views of one fold's tables."""
    views = _Views(kept, rates)
    costs = ("costs",)
    return (
        View("/costs", CostsParams, views.costs, costs, "What a scope has cost, in all or by day, month, model, agent, run or tag"),
        View("/costs/status", StatusParams, views.status, costs, "Where the budgets of a scope stand"),
        View("/costs/check", CheckParams, views.check, costs, "Whether an amount would still fit the budgets"),
        View("/costs/forecast", ForecastParams, views.forecast, costs, "What the month and the days ahead will cost at the mean of the last days"),
        View("/budgets", BudgetsParams, views.budgets, costs, "The budgets in force and the events that set them"),
    )


class _Views:
    def __init__(self, kept: CostTables, rates: RateRows) -> None:
        self.kept = kept
        self.rates = rates
        self.ledgers = states_of(kept.ledgers)

    # ---- /costs

    def costs(self, reader: Reader, asked: CostsParams) -> dict[str, Any]:
        since = _first_day("since", asked.since)
        until = _first_day("until", asked.until, through=True)
        if since is not None and until is not None and since >= until:
            raise BadParameter("until", "until: must be after since")
        ledger = self._ledger(reader, asked.scope)
        if asked.scope != TENANT and not (ledger.events or ledger.refunds):
            raise NotFound("nothing was spent in this scope", scope=asked.scope)
        whole = since is None and until is None
        days = self._days(reader, asked.scope, since, until) if not whole or asked.by in ("day", "month") else {}
        sums: Sums = ledger if whole else _total(days.values())
        answer: dict[str, Any] = {
            "scope": asked.scope,
            "total_micro_usd": sums.micro,
            "total_usd": usd(sums.micro),
            "estimated_micro_usd": sums.estimated,
            "estimated_events": sums.estimated_events,
            "refunded_micro_usd": sums.refunded,
            "refunds": sums.refunds,
            "api_calls": sums.api_calls,
            "token_usage": sums.token_usage,
            "events": sums.events,
            "first": rfc3339_or_none(ledger.first_us),
            "last": rfc3339_or_none(ledger.last_us),
        }
        if asked.by == "day":
            answer["days"] = {day_name(day): usd(days[day].micro) for day in sorted(days)}
        elif asked.by == "month":
            months: dict[int, int] = {}
            for day, spent in days.items():
                months[month_of(day)] = months.get(month_of(day), 0) + spent.micro
            answer["months"] = {month_name(month): usd(months[month]) for month in sorted(months)}
        elif asked.by is not None:
            answer[GROUPS[asked.by]] = self._named(reader, asked, since, until)
        return {**answer, "as_of": rfc3339_or_none(reader.as_of())}

    def _named(self, reader: Reader, asked: CostsParams, since: int | None, until: int | None) -> dict[str, float]:
        """Cost of each model, agent, run or tag of the tenant, USD, by name."""
        if asked.scope != TENANT:
            raise BadParameter("by", "by: a named scope is split by day or month only")
        prefix = f"{asked.by}:"
        if since is None and until is None:
            return dict(reader.lists(self.ledgers, {prefix: lambda: Order(partial(_spent, prefix))})[prefix])
        found: dict[str, int] = {}
        for key, months in reader.scan(self.kept.months):
            if key[0].startswith(prefix):
                name = key[0][len(prefix) :]
                for day in _kept_days(months, self._since(reader, key[0], since), until).values():
                    found[name] = found.get(name, 0) + day.micro
        return {name: usd(found[name]) for name in sorted(found)}

    # ---- /costs/status, /costs/check

    def status(self, reader: Reader, asked: StatusParams) -> dict[str, Any]:
        ledger, at_us = self._known(reader, asked.scope, asked.at)
        standing = self._standing(reader, asked.scope, ledger, at_us // DAY_US)
        return {
            "scope": asked.scope,
            "status": _worst(standing),
            "total_usd": usd(ledger.micro),
            "cumulative_usd": usd(ledger.cumulative),
            "budgets": [
                {
                    "rule": RULES[kind],
                    "period": period,
                    "sum_usd": usd(micro),
                    "limits": _shown(limits),
                    "level": LEVELS[level_of(limits, micro)],
                    "percent_used": _percent_used(micro, limits),
                    "ends": ends,
                }
                for kind, period, ends, micro, limits in standing
            ],
            "rates": [{**rate, "exceeded": rate["calls"] > rate["limit"]} for rate in self._rates(reader, at_us)],
            "at": rfc3339(at_us),
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def check(self, reader: Reader, asked: CheckParams) -> dict[str, Any]:
        amount = _amount(asked.amount)
        ledger, at_us = self._known(reader, asked.scope, asked.at)
        standing = [(asked.scope, *each) for each in self._standing(reader, asked.scope, ledger, at_us // DAY_US)]
        if asked.scope != TENANT:  # what a scope spends, its tenant spends
            whole = self._ledger(reader, TENANT)
            standing += [(TENANT, *each) for each in self._standing(reader, TENANT, whole, at_us // DAY_US)]
        limits = [
            {
                "scope": scope,
                "rule": RULES[kind],
                "period": period,
                "level": LEVELS[level],
                "at_usd": usd(at),
                "current_usd": usd(micro),
                "after_usd": usd(micro + amount),
                "exceeds": micro + amount > at,
            }
            for scope, kind, period, _, micro, levels in standing
            for level, at in levels
        ]
        status = _worst([each[1:] for each in standing])
        rates = [{**rate, "after": rate["calls"] + asked.calls, "exceeds": rate["calls"] + asked.calls > rate["limit"]} for rate in self._rates(reader, at_us)]
        stopped = status == LEVELS[SHUTDOWN] or any(limit["exceeds"] and limit["level"] == LEVELS[SHUTDOWN] for limit in limits)
        return {
            "scope": asked.scope,
            "amount_usd": usd(amount),
            "calls": asked.calls,
            "allowed": not stopped and not any(rate["exceeds"] for rate in rates),
            "status": status,
            "limits": limits,
            "rates": rates,
            "at": rfc3339(at_us),
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def _rates(self, reader: Reader, at_us: int) -> list[dict[str, Any]]:
        """Calls of the tenant in each window that has a limit."""
        counts = [0] * len(WINDOWS)
        for rates in reader.rows(self.rates.table, ()):
            counts = [a + b for a, b in zip(counts, rates.at(at_us), strict=True)]
        return [
            {"per": window.name, "calls": count, "limit": limit}
            for window, count, limit in zip(WINDOWS, counts, self.rates.limits, strict=True)
            if limit is not None
        ]

    # ---- /costs/forecast

    def forecast(self, reader: Reader, asked: ForecastParams) -> dict[str, Any]:
        ledger, at_us = self._known(reader, asked.scope, asked.at)
        today = at_us // DAY_US
        month = month_of(today)
        days = self._days(reader, asked.scope, min(today - DAYS_BACK, month_start(month)), today + 1)
        found = projection({day: sums.micro for day, sums in days.items() if sums.events or sums.refunds}, today)
        amount, divisor = found.mean
        end, end_divisor = found.month_end
        sums = {"monthly": found.to_date, "total": ledger.micro}
        days_until: dict[str, float | None] = {}
        for kind, micro in sums.items():
            limit = next((at for level, at in self.kept.limits(asked.scope, self._set_ones(reader, asked.scope), kind) if level == SHUTDOWN), None)
            if limit is not None:
                days_until[kind] = 0.0 if micro >= limit else (limit - micro) * divisor / amount if amount > 0 else None
        return {
            "scope": asked.scope,
            "as_of_day": day_name(today),
            "days": asked.days,
            "days_used": found.used,
            "daily_mean_usd": amount / (divisor * MICRO),
            "month_to_date_usd": usd(found.to_date),
            "remaining_days": found.remaining,
            "month_end_usd": end / (end_divisor * MICRO),
            "projected_usd": amount * asked.days / (divisor * MICRO),
            "monthly_usd": amount * 30 / (divisor * MICRO),
            "annual_usd": amount * 365 / (divisor * MICRO),
            "days_until": days_until,
            "at": rfc3339(at_us),
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def _known(self, reader: Reader, scope: str, at: datetime | None) -> tuple[Ledger, int]:
        """Ledger of a scope that has costs or a budget, and the moment asked for (microseconds since the epoch).

        Raises:
            NotFound: neither a cost nor a budget has named the scope.
            BadParameter: `at` lies at the end of time.
        """
        ledger = self._ledger(reader, scope)
        if scope != TENANT and not (ledger.events or ledger.refunds or self._set_ones(reader, scope).periods):
            raise NotFound("nothing was spent in this scope", scope=scope)
        at_us = to_us(at) if at is not None else max(reader.now_us, reader.as_of() or reader.now_us)
        if at_us // DAY_US >= LAST_DAY:
            raise BadParameter("at", "at: must be before the year 9998")
        return ledger, at_us

    def _standing(self, reader: Reader, scope: str, ledger: Ledger, today: int) -> list[tuple[str, str, str | None, int, Limits]]:
        """Budgets in force as (kind, period, its end, sum in micro-USD, limits)."""
        set_ones = self._set_ones(reader, scope)
        month = month_of(today)
        sums = {"cumulative": ledger.cumulative, "total": ledger.micro, "daily": 0, "monthly": 0}
        for row in reader.rows(self.kept.months, (scope, slot(month))):
            if row.month == month:
                day = row.days.get(today - month_start(month) + 1)
                sums["daily"] += day.micro if day is not None else 0
                sums["monthly"] += row.micro
        names = {"cumulative": ledger.period, "daily": day_name(today), "monthly": month_name(month), "total": "all"}
        ends = {"daily": rfc3339((today + 1) * DAY_US), "monthly": rfc3339(month_start(month + 1) * DAY_US)}
        found = []
        for kind in RULES:
            limits = self.kept.limits(scope, set_ones, kind)
            if limits:
                found.append((kind, names[kind], ends.get(kind), sums[kind], limits))
        return found

    # ---- /budgets

    def budgets(self, reader: Reader, asked: BudgetsParams) -> dict[str, Any]:
        scopes = {key[0]: states[-1] for key, states in reader.scan(self.kept.budgets)}
        scopes.setdefault(TENANT, Budgets())
        found = []
        for scope in sorted(scopes, key=lambda scope: (scope != TENANT, scope)):
            if asked.scope not in (None, scope):
                continue
            for kind, rule in RULES.items():
                limits = self.kept.limits(scope, scopes[scope], kind)
                if limits:
                    budget = scopes[scope].periods.get(kind)
                    starts = budget.starts if budget is not None else None
                    found.append(
                        {
                            "scope": scope,
                            "period": kind,
                            "rule": rule,
                            "limits": _shown(limits),
                            "starts": None if starts is None else day_name(starts),
                            "set_by": "default" if budget is None else budget.set_by,
                            "set_at": None if budget is None else rfc3339(budget.set_us),
                        }
                    )
        return {"budgets": found, "count": len(found), "as_of": rfc3339_or_none(reader.as_of())}

    # ---- rows

    def _ledger(self, reader: Reader, scope: str) -> Ledger:
        """A scope's ledger; over several partitions (a producer with keys of its own) their sum."""
        whole = Ledger()
        for ledger in reader.rows(self.kept.ledgers, (scope,)):
            since = whole.since + ledger.cumulative if ledger.starts is not None else whole.since
            whole.add(ledger)
            whole.since = since
            whole.starts = ledger.starts if whole.starts is None else whole.starts
            whole.first_us = _of(min, whole.first_us, ledger.first_us)
            whole.last_us = _of(max, whole.last_us, ledger.last_us)
        return whole

    def _set_ones(self, reader: Reader, scope: str) -> Budgets:
        found = reader.rows(self.kept.budgets, (scope,))
        return found[-1] if found else Budgets()

    def _days(self, reader: Reader, scope: str, since: int | None, until: int | None) -> dict[int, Sums]:
        """Kept days of a scope in ``[since, until)``, each with its sums."""
        months = (month for n in range(SLOTS) for month in reader.rows(self.kept.months, (scope, str(n))))
        return _kept_days(months, self._since(reader, scope, since), until)

    def _since(self, reader: Reader, scope: str, since: int | None) -> int | None:
        """First day to show: days that are kept no longer go from the rows only when a later month takes their slot."""
        today = max((state.day for state in reader.rows(self.kept.today, ())), default=None)
        if today is None:
            return since
        horizon = self.kept.horizon(scope, today)
        return horizon if since is None else max(since, horizon)


def _spent(prefix: str, reader: Reader, key: Key, ledgers: list[Ledger]) -> Place | None:
    """Name of what was spent on, and the cost, USD; None of other scopes."""
    if not key[0].startswith(prefix) or not any(ledger.events or ledger.refunds for ledger in ledgers):
        return None
    return key[0][len(prefix) :], usd(sum(ledger.micro for ledger in ledgers))


def _kept_days(months: Iterable[Month], since: int | None, until: int | None) -> dict[int, Sums]:
    found: dict[int, Sums] = {}
    for month in months:
        if month.month < 0:
            continue
        before = month_start(month.month) - 1
        for number, spent in month.days.items():
            day = before + number
            if (since is None or day >= since) and (until is None or day < until):
                found.setdefault(day, Sums()).add(spent)
    return found


def _total(days: Iterable[Sums]) -> Sums:
    total = Sums()
    for day in days:
        total.add(day)
    return total


def _of(choose: Any, a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else choose(a, b)


def _worst(standing: Sequence[tuple[str, str, str | None, int, Limits]]) -> str:
    return LEVELS[max((level_of(limits, micro) for *_, micro, limits in standing), default=0)]


def _shown(limits: Limits) -> list[dict[str, Any]]:
    return [{"level": LEVELS[level], "at_usd": usd(at)} for level, at in limits]


def _percent_used(micro: int, limits: Limits) -> float:
    """Share of the highest limit that is spent, 0..100; what is over the limit is read from the sum."""
    whole = limits[-1][1]
    return 100.0 if micro >= whole else max(0.0, 100 * micro / whole)


def _amount(text: str) -> int:
    """Amount of USD asked for, micro-USD.

    Raises:
        BadParameter: negative, above `MAX_USD`, or no decimal number.
    """
    try:
        amount = Decimal(text)
        micro = micro_usd(amount)
    except (ArithmeticError, ValueError):
        raise BadParameter("amount", "amount: must be USD as a decimal number, such as 8.75") from None
    if amount < 0 or amount > MAX_USD:
        raise BadParameter("amount", f"amount: must be from 0 to {MAX_USD} USD")
    return micro


def _first_day(name: str, text: str | None, *, through: bool = False) -> int | None:
    """UTC day that a parameter names, days since the epoch; with `through` a bare date means the day after it.

    Raises:
        BadParameter: no date, or a moment inside a day: costs are kept by whole UTC days.
    """
    if text is None:
        return None
    try:
        if len(text) == 10:
            return to_us(datetime.fromisoformat(f"{date.fromisoformat(text).isoformat()}T00:00:00+00:00")) // DAY_US + through
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        day, rest = divmod(to_us(moment), DAY_US)
    except (ValueError, OverflowError):
        raise BadParameter(name, f"{name}: must be a date such as 2026-03-02, or midnight UTC in RFC 3339") from None
    if rest:
        raise BadParameter(name, f"{name}: costs are kept by UTC day; give a date or midnight UTC")
    return day
