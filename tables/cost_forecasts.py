"""Forecasts of what a UTC month will have cost at its end, and the alert ``cost.forecast`` when that is above its limit.

The rules this file keeps:
  * the daily mean is that of the 7 latest days before today that have data, at most 30 days back; days without data are no zeros;
  * sums stay whole micro-USD and comparisons are made between whole numbers: nothing is rounded before it is shown;
  * the alert needs `LEAST_DAYS` such days, opens at most once a month by a record that names the scope, and resolves at 95 % of the
    limit or when the month ends.

A scope's `Outlook` sums what it judges, so a record of the running day costs the same however long the month is. It reads the
months' rows when the day changes or a late record comes: always before that record enters them, and with the lower rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .alerting import emit
from .budgets import TENANT, Limits
from .fold import Absorbed
from .ledgers import CostTables, day_name, month_name, month_of, month_start, slot
from .money import MICRO, usd, usd_text
from .rows import Table, escape

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

RULE = "cost.forecast"
MOST_DAYS = 7
"""Days with data that the mean is taken of."""
DAYS_BACK = 30
"""How far back they are looked for."""
LEAST_DAYS = 3
"""Days with data from which the alert judges."""
CLEAR_PERCENT = 95
"""Share of the limit at which the alert resolves."""
NEVER = -(2**31)


class Projection(NamedTuple):
    """What the days so far say about the rest of the month; amounts in micro-USD.

    Attributes:
        past, used: sum and number of the days with data that the mean is taken of.
        today: sum of the running day.
        to_date: sum of the month up to now.
        remaining: whole days of the month after today.
    """

    past: int
    used: int
    today: int
    to_date: int
    remaining: int

    @property
    def mean(self) -> tuple[int, int]:
        """Daily mean as a fraction: (micro-USD, divisor); without any day before, today's sum."""
        return (self.past, self.used) if self.used else (self.today, 1)

    @property
    def month_end(self) -> tuple[int, int]:
        """Sum at the month's end as a fraction: (micro-USD, divisor)."""
        amount, divisor = self.mean
        return self.to_date * divisor + amount * self.remaining, divisor


def projection(days: Mapping[int, int], today: int) -> Projection:
    """Projection on a day.

    Args:
        days: UTC day (since the epoch) that has data -> its sum, micro-USD; days after `today` are not looked at.
        today: the day.

    Example:
        >>> found = projection({1: 3_000_000, 2: 5_000_000, 4: 1_000_000}, today=4)  # 1970-01-05
        >>> found.mean, found.to_date, found.remaining
        ((8000000, 2), 9000000, 26)
    """
    past = used = 0
    for day in range(today - 1, today - DAYS_BACK - 1, -1):
        micro = days.get(day)
        if micro is not None:
            past += micro
            used += 1
            if used == MOST_DAYS:
                break
    month = month_of(today)
    to_date = sum(days.get(day, 0) for day in range(month_start(month), today + 1))
    return Projection(past, used, days.get(today, 0), to_date, month_start(month + 1) - today - 1)


class Outlook(msgspec.Struct, array_like=True, gc=False):
    """A scope with a monthly budget, as its latest day sees it.

    Attributes:
        day: the day, days since the epoch; `NEVER`: to be counted anew.
        past, used, to_date: as in `Projection`.
        open: whether the alert stands.
        told: month for which it was told, counted from the year 0; -1: none.
    """

    day: int = NEVER
    past: int = 0
    used: int = 0
    to_date: int = 0
    open: bool = False
    told: int = -1

    def projection(self) -> Projection:
        """What it says about the month; today's sum is not kept."""
        return Projection(self.past, self.used, 0, self.to_date, month_start(month_of(self.day) + 1) - self.day - 1)


class Outlooks:
    """The rows of `Outlook` and how records enter them.

    Args:
        kept: tables of the cost fold, which these rows read.
    """

    def __init__(self, kept: CostTables) -> None:
        self.kept = kept
        self.on = kept.settings.cost_forecast
        self.table = Table("cost_outlooks", Outlook, rank=32, settings=kept.settings)

    def enter(self, event: Event, p: Partition, day: int, scopes: Sequence[str], micro: int | None, new_limits: Limits | None = None) -> None:
        """Judge the scopes of a record, and every scope where it begins a later day. To be called before any other row is opened.

        Args:
            day: UTC day that the record reaches; its amount belongs to this day.
            scopes: scopes that the record names.
            micro: its amount, micro-USD; None: it has none.
            new_limits: of a record that sets them, for the scope it names.
        """
        if self.on:
            try:  # noqa: SIM105 - a context manager would cost more
                self._enter(event, p, day, scopes, micro, new_limits)
            except Absorbed:
                pass  # what is read has this record, so every outlook has it; what ranks above may not

    def _enter(self, event: Event, p: Partition, day: int, scopes: Sequence[str], micro: int | None, new_limits: Limits | None) -> None:
        kept, tenant = self.kept, event.tenant
        known = p.read(kept.today, tenant, ())
        today = day if known is None or day > known.day else known.day
        limited = p.space(kept.budgets, tenant)
        for scope in scopes:
            if scope == TENANT or (scope,) in limited or new_limits is not None:  # else no budget was ever set
                self._judge(event, p, scope, new_limits, today, day, micro)
        if known is not None and today > known.day:
            for scope in (TENANT, *(key[0] for key in p.keys(kept.budgets, tenant) if key[0] != TENANT)):
                if scope not in scopes:
                    self._judge(event, p, scope, None, today, day, None)

    def _judge(self, event: Event, p: Partition, scope: str, new_limits: Limits | None, today: int, day: int, micro: int | None) -> None:
        tenant, key = event.tenant, (scope,)
        old = self.kept.limits(scope, p.read(self.kept.budgets, tenant, key), "monthly")
        limits = old if new_limits is None else new_limits
        if not limits:
            row = p.space(self.table, tenant).get(key)
            if row is None or self.table.load(row).day == NEVER:
                return  # no budget, nothing to judge
        outlook = p.open(self.table, tenant, key)
        if outlook is None:
            return
        if outlook.open and (not limits or month_of(outlook.day) != month_of(today)):
            outlook.open = False
            reason = "budget_removed" if month_of(outlook.day) == month_of(today) else "period_ended"
            self._tell(event, p, scope, outlook, old, False, reason)
        if not limits:
            outlook.day = NEVER
            return
        if outlook.day != today or day != today:
            days = self._days(p, tenant, scope, today)
            if micro is not None and day >= self.kept.horizon(scope, today):
                days[day] = days.get(day, 0) + micro
            found = projection(days, today)
            outlook.day, outlook.past, outlook.used, outlook.to_date = today, found.past, found.used, found.to_date
        elif micro is not None:
            outlook.to_date += micro
        if outlook.used < LEAST_DAYS:
            return
        amount, divisor = outlook.projection().month_end
        limit = limits[-1][1] * divisor
        if outlook.open:
            if amount * 100 <= limit * CLEAR_PERCENT:
                outlook.open = False
                self._tell(event, p, scope, outlook, limits, False, "below_limit")
        elif amount > limit and outlook.told != month_of(today) and (micro is not None or new_limits is not None):
            outlook.open = True
            outlook.told = month_of(today)
            self._tell(event, p, scope, outlook, limits, True, None)

    def _days(self, p: Partition, tenant: str, scope: str, today: int) -> dict[int, int]:
        """Days with data that a projection looks at, without the current record."""
        days: dict[int, int] = {}
        for number in range(month_of(today - DAYS_BACK), month_of(today) + 1):
            month = p.read(self.kept.months, tenant, (scope, slot(number)))
            if month is not None and month.month == number:
                before = month_start(number) - 1
                days.update((before + n, day.micro) for n, day in month.days.items() if day.events or day.refunds)
        return days

    def _tell(self, event: Event, p: Partition, scope: str, outlook: Outlook, limits: Limits, opened: bool, reason: str | None) -> None:
        amount, divisor = outlook.projection().month_end
        month = month_name(month_of(outlook.day))
        limit = limits[-1][1]
        emit(
            p,
            event,
            rule=RULE,
            subject=escape(scope),
            period=month,
            previous="ok" if opened else "warning",
            level="warning" if opened else "ok",
            value=amount / (divisor * MICRO),
            threshold=usd(limit),
            reason=reason,
            message=_message(scope, month, day_name(outlook.day), amount // divisor, limit, reason),
        )


def _message(scope: str, month: str, day: str, micro: int, limit: int, reason: str | None) -> str:
    kind, _, name = scope.partition(":")
    who = f"{kind.capitalize()} {name}" if name else "The tenant"
    at_this_rate = f"{who} was on the way to {usd_text(micro)} USD in {month}, as of {day}"
    if reason == "period_ended":
        return f"{at_this_rate}; that month has ended, so look at its sum instead."
    if reason == "budget_removed":
        return f"{at_this_rate}; its monthly budget was removed, so nothing limits it any more: set another if that was not meant."
    if reason is not None:
        return f"{at_this_rate}, which leaves room below its monthly limit of {usd_text(limit)} USD again: spending may go on like this."
    return f"{at_this_rate}, above its monthly limit of {usd_text(limit)} USD: spend less a day or raise the budget."
