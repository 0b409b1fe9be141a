"""Ledgers: what one scope of a tenant has cost, in all and by UTC day.

The rule this file keeps: **each row judges what it sums**. The ledger of a scope holds the sums of all time and stands at a
level of the cumulative and the total budget; a month's row holds that month's days and stands at the levels of the daily
budgets and of the monthly one. So no level needs another row's sum of the same record, and a refold after a crash is exact.

Reading goes up the ranks only: ledger (30) -> months (35) -> budgets (40) -> today (45).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import lru_cache

import msgspec

from .budgets import TENANT, Budgets, CostSettings, Limits, default_budgets
from .rows import Table

SLOTS = 16
"""Month rows a scope: a ring, so that the months of `CostSettings.cost_days` never meet in a slot."""
MAX_DAYS = 450

EPOCH_DAY = date(1970, 1, 1).toordinal()
"""1970-01-01 as Python counts days."""


class Sums(msgspec.Struct, array_like=True):
    """Costs added up.

    Attributes:
        micro: cost less refunds, micro-USD; may be negative.
        estimated: the part of all costs that was estimated, micro-USD.
        refunded: refunds, micro-USD.
        events: costs, estimated or told.
        estimated_events: costs that were estimated.
        refunds: number of refunds.
        api_calls, token_usage: as the costs told them.
    """

    micro: int = 0
    estimated: int = 0
    refunded: int = 0
    events: int = 0
    estimated_events: int = 0
    refunds: int = 0
    api_calls: int = 0
    token_usage: int = 0

    def add(self, more: Sums) -> None:
        """Add other sums to these, in place. (Assigning costs more than looking: what is 0 is passed over.)"""
        self.micro += more.micro
        if more.events:
            self.events += more.events
            if more.api_calls:
                self.api_calls += more.api_calls
            if more.token_usage:
                self.token_usage += more.token_usage
            if more.estimated_events:
                self.estimated += more.estimated
                self.estimated_events += more.estimated_events
        if more.refunds:
            self.refunded += more.refunded
            self.refunds += more.refunds


class Ledger(Sums, array_like=True):
    """A scope's sums of all time, and where it stands with the budgets over them.

    Attributes:
        first_us, last_us: least and greatest event time, microseconds since the epoch; None before the first.
        starts: first UTC day of the running cumulative period, days since the epoch; None: all time.
        since: sum of the days from `starts` on, micro-USD; without `starts` not kept.
        cumulative_level, total_level: places in LEVELS that were told last.
    """

    first_us: int | None = None
    last_us: int | None = None
    starts: int | None = None
    since: int = 0
    cumulative_level: int = 0
    total_level: int = 0

    @property
    def cumulative(self) -> int:
        """Sum of the running cumulative period, micro-USD."""
        return self.micro if self.starts is None else self.since

    @property
    def period(self) -> str:
        """Name of the running cumulative period: ``all`` or its first day."""
        return "all" if self.starts is None else day_name(self.starts)


class Day(Sums, array_like=True):
    """One UTC day of a scope.

    Attributes:
        level: of the daily budget, open now; 0 once the day has ended.
        told: the highest level ever told for this day.
    """

    level: int = 0
    told: int = 0


class Month(msgspec.Struct, array_like=True):
    """One UTC month of a scope.

    Attributes:
        month: counted from January of the year 0; -1: nothing yet.
        days: day of the month -> its sums.
        level, told: as in `Day`, of the monthly budget.
    """

    month: int = -1
    days: dict[int, Day] = {}
    level: int = 0
    told: int = 0

    @property
    def micro(self) -> int:
        """Sum of the month's days, micro-USD."""
        return sum([day.micro for day in self.days.values()])

    def begin(self, month: int) -> None:
        """Take the slot for another month; the one before is out of the kept days."""
        self.month = month
        self.days = {}
        self.level = self.told = 0


class Today(msgspec.Struct, array_like=True):
    """Latest UTC day a tenant's costs, refunds, budgets or ticks have reached, days since the epoch."""

    day: int = -(2**31)


class CostTables:
    """The tables of the cost fold and what of the settings they rest on.

    Raises:
        ValueError: the operator's fault: default budgets that do not rise, or more days than the months' rows can hold.
    """

    def __init__(self, settings: CostSettings) -> None:
        if not 1 <= settings.cost_run_days <= settings.cost_days <= MAX_DAYS:
            raise ValueError(f"cost_run_days, cost_days: need 1 <= cost_run_days <= cost_days <= {MAX_DAYS}")
        self.settings = settings
        self.defaults: dict[str, Limits] = default_budgets(settings)
        self.ledgers = Table("cost_ledgers", Ledger, rank=30, settings=settings)
        self.months = Table("cost_months", Month, rank=35, settings=settings)
        self.budgets = Table("cost_budgets", Budgets, rank=40, settings=settings)
        self.today = Table("cost_today", Today, rank=45, settings=settings)

    def limits(self, scope: str, set_ones: Budgets | None, period: str) -> Limits:
        """Limits in force: those of ``budget.set``, else the defaults of the tenant scope, else none."""
        if set_ones is not None:
            budget = set_ones.periods.get(period)
            if budget is not None:
                return budget.limits
        return self.defaults.get(period, ()) if scope == TENANT else ()

    def horizon(self, scope: str, today: int) -> int:
        """First UTC day kept, days since the epoch."""
        return today + 1 - (self.settings.cost_run_days if scope.startswith("run:") else self.settings.cost_days)


def sum_from(months: Iterable[Month], first: int) -> int:
    """Sum of the days from `first` (days since the epoch) on, micro-USD."""
    total = 0
    for month in months:
        if month.month >= 0:
            start = month_start(month.month) - 1
            total += sum(day.micro for n, day in month.days.items() if start + n >= first)
    return total


def slot(month: int) -> str:
    """Place of a month in a scope's ring."""
    return str(month % SLOTS)


@lru_cache(maxsize=1024)
def day_name(day: int) -> str:
    """UTC day, such as ``2026-03-02``; `day` counts from 1970-01-01."""
    return date.fromordinal(day + EPOCH_DAY).isoformat()


@lru_cache(maxsize=1024)
def month_of(day: int) -> int:
    """Month of a UTC day, counted from January of the year 0."""
    when = date.fromordinal(day + EPOCH_DAY)
    return when.year * 12 + when.month - 1


@lru_cache(maxsize=1024)
def month_start(month: int) -> int:
    """First day of a month, days since 1970-01-01."""
    return date(month // 12, month % 12 + 1, 1).toordinal() - EPOCH_DAY


def month_name(month: int) -> str:
    """UTC month, such as ``2026-03``."""
    return f"{month // 12:04d}-{month % 12 + 1:02d}"
