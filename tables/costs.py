"""Costs: exact sums by scope and day, and budgets judged after every record.

A tenant's records all have one home partition, so budgets are judged in the log's order. One record, step by step:

  1. its calls enter the tenant's rates (`cost_rates`), and its amount the outlook of each scope it names (`cost_forecasts`);
  2. it may begin a later day: what is open for the day (and month) before is resolved, in every scope of the tenant;
  3. its amount enters the ledger of each scope it names, which judges the cumulative and the total budget;
  4. and the month's row of that scope, which judges the daily and the monthly one; an ended day is judged as late.

Each row judges what it sums and reads up the ranks only (see `ledgers`). A scope exists once it has a ledger; their number
never falls, so what was beyond the bound once stays beyond it, on every replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.events import BudgetSet, ClockTicked, CostIncurred, CostRefunded

from .alerting import LEVELS
from .budgets import TENANT, Budget, Budgets, CostSettings, Limits, end, judge, judge_late, level_of, rising
from .cost_forecasts import Outlooks
from .cost_rates import RateRows
from .cost_views import cost_views
from .fold import Absorbed, Fold, Refused
from .ledgers import EPOCH_DAY, SLOTS, CostTables, Day, Ledger, Month, Sums, day_name, month_name, month_of, month_start, slot, sum_from
from .money import micro_usd, priced
from .times import DAY_US, to_us

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.events import Event

    from .partition import Partition

Ended = dict[str, Month]
"""Months' rows that the period's end has opened for this record already, by scope (a row can be opened once a record)."""


class Costs(Fold):
    """Cost ledgers and budgets of the topic ``costs``.

    Args:
        settings: prices, default budgets, bounds.
    """

    topics = ("costs",)

    def __init__(self, settings: CostSettings | None = None) -> None:
        self.settings = settings or CostSettings()
        self.kept = kept = CostTables(self.settings)
        self.outlooks = Outlooks(kept)
        self.rates = RateRows(self.settings)
        self.tables = (kept.ledgers, kept.months, kept.budgets, kept.today, self.outlooks.table, self.rates.table)
        self.handlers = {CostIncurred: self._incurred, CostRefunded: self._refunded, BudgetSet: self._budget_set, ClockTicked: self._ticked}
        self.views = cost_views(kept, self.rates)

    def due(self, p: Partition) -> Iterator[tuple[str, int]]:
        """What waits for time: the ends of days and months for which an alert is open."""
        kept = self.kept
        for tenant, space in p.spaces[kept.today.index].items():
            months, budgets = p.space(kept.months, tenant), p.space(kept.budgets, tenant)
            for row in space.values():
                today = kept.today.load(row).day
                month = month_of(today)
                ends = []
                for scope in {TENANT, *(key[0] for key in budgets)}:
                    found = months.get((scope, slot(month)))
                    seen = None if found is None else kept.months.load(found)
                    if seen is None or seen.month != month:
                        continue
                    last = seen.days.get(today - month_start(month) + 1)
                    if last is not None and last.level:
                        ends.append(today + 1)
                    elif seen.level:
                        ends.append(month_start(month + 1))
                if ends:
                    yield tenant, min(ends) * DAY_US

    # ---- events

    def _incurred(self, event: Event, p: Partition) -> None:
        data: CostIncurred = event.data  # type: ignore[assignment]  # dispatched by type
        calls, tokens = data.api_calls, data.token_usage
        if data.cost is not None:
            sums = Sums(micro=micro_usd(data.cost), events=1, api_calls=calls, token_usage=tokens)
        else:
            prices = self.settings
            micro = priced(tokens, prices.usd_per_token) if tokens else priced(calls, prices.usd_per_call)
            sums = Sums(micro=micro, estimated=micro, events=1, estimated_events=1, api_calls=calls, token_usage=tokens)
        self.rates.enter(event, p, p.time_us, calls)
        self._enter(event, p, _scopes(data), sums)

    def _refunded(self, event: Event, p: Partition) -> None:
        data: CostRefunded = event.data  # type: ignore[assignment]  # dispatched by type
        micro = micro_usd(data.cost)
        self.rates.enter(event, p, p.time_us, 0)
        self._enter(event, p, _scopes(data), Sums(micro=-micro, refunded=micro, refunds=1))

    def _ticked(self, event: Event, p: Partition) -> None:
        data: ClockTicked = event.data  # type: ignore[assignment]  # dispatched by type
        until_us = max(p.time_us, to_us(data.until))
        self.rates.enter(event, p, until_us, 0)
        if p.read(self.kept.today, event.tenant, ()) is not None:
            self.outlooks.enter(event, p, until_us // DAY_US, (), None)
            self._reach(event, p, until_us // DAY_US)

    def _budget_set(self, event: Event, p: Partition) -> None:
        data: BudgetSet = event.data  # type: ignore[assignment]  # dispatched by type
        scope, kind = data.scope, data.period
        limits = sorted((LEVELS.index(limit.level), micro_usd(limit.at)) for limit in data.limits)
        if not rising(limits):
            raise Refused("invalid_field", "limits: must rise with the level, each level once")
        if not self._admits(p, event.tenant, scope):
            raise Refused("too_many_scopes", "scope: this tenant has as many scopes as max_cost_scopes allows")
        self.outlooks.enter(event, p, p.time_us // DAY_US, (scope,), None, limits if kind == "monthly" else None)
        starts = data.starts.toordinal() - EPOCH_DAY if data.starts is not None and kind == "cumulative" and limits else None
        ledger = p.open(self.kept.ledgers, event.tenant, (scope,))  # every budget has a ledger
        since = 0 if ledger is None or starts is None else self._sum_since(p, event.tenant, scope, ledger, starts)
        today, ended = self._reach(event, p, p.time_us // DAY_US)
        if ledger is not None and kind in ("cumulative", "total"):
            self._set_on_ledger(event, p, kind, scope, ledger, limits, starts, since)
        if kind in ("daily", "monthly"):
            self._set_on_month(event, p, kind, scope, limits, today, ended)
        budgets = p.open(self.kept.budgets, event.tenant, (scope,))
        if budgets is not None:
            budgets.periods[kind] = Budget(limits=limits, starts=starts, set_by=event.id, set_us=p.time_us)

    # ---- steps

    def _reach(self, event: Event, p: Partition, day: int) -> tuple[int, Ended]:
        """End the periods before `day`; returns the tenant's latest day and the rows that were opened for it."""
        kept, tenant = self.kept, event.tenant
        ended: Ended = {}
        known = p.read(kept.today, tenant, ())
        if known is not None and day <= known.day:
            return known.day, ended
        if known is not None:
            month = month_of(known.day)
            first = month_start(month)
            over = month_of(day) != month
            scopes = [TENANT, *(key[0] for key in p.keys(kept.budgets, tenant) if key[0] != TENANT)]
            for scope in scopes:
                seen = self._peek_month(p, tenant, scope, month)
                if seen is None or seen.month != month:
                    continue
                last = seen.days.get(known.day - first + 1)
                if not (last is not None and last.level) and not (over and seen.level):
                    continue
                row = p.open(kept.months, tenant, (scope, slot(month)))
                if row is None:
                    continue
                ended[scope] = row
                set_ones = p.read(kept.budgets, tenant, (scope,))
                if last is not None and last.level:
                    limits = kept.limits(scope, set_ones, "daily")
                    end(p, event, scope=scope, kind="daily", period=day_name(known.day), limits=limits, micro=last.micro, level=last.level)
                    last.level = 0
                if over and row.level:
                    limits = kept.limits(scope, set_ones, "monthly")
                    end(p, event, scope=scope, kind="monthly", period=month_name(month), limits=limits, micro=row.micro, level=row.level)
                    row.level = 0
        today = p.open(kept.today, tenant, ())
        if today is not None:
            today.day = day
        return day, ended

    def _enter(self, event: Event, p: Partition, scopes: list[str], sums: Sums) -> None:
        """Add a record's amount to every scope it names."""
        kept, tenant = self.kept, event.tenant
        time_us = p.time_us
        day = time_us // DAY_US
        self.outlooks.enter(event, p, day, scopes, sums.micro)
        today, ended = self._reach(event, p, day)
        month = month_of(day)
        number, place = day - month_start(month) + 1, slot(month)
        is_kept, is_kept_of_runs = day >= kept.horizon(TENANT, today), day >= kept.horizon("run:", today)
        ledgers, budgets = p.space(kept.ledgers, tenant), p.space(kept.budgets, tenant)
        overflow = False
        for scope in scopes:
            key = (scope,)
            if key not in ledgers and not self._admits(p, tenant, scope):
                overflow = True
                continue
            ledger = p.open(kept.ledgers, tenant, key)
            row: Month | None = None
            if is_kept_of_runs if scope.startswith("run:") else is_kept:
                row = self._open_month(p, tenant, scope, month, ended) if ended else p.open(kept.months, tenant, (scope, place))
                if row is not None and row.month != month:
                    row.begin(month)
            elif scope == TENANT:
                p.count_as(expired=1)
            set_ones = p.read(kept.budgets, tenant, key) if key in budgets else None  # where these limits are ahead, every ledger and month is
            limited = set_ones is not None or scope == TENANT  # else no budget, nothing to judge
            if ledger is not None:
                ledger.add(sums)
                if ledger.first_us is None or time_us < ledger.first_us:
                    ledger.first_us = time_us
                if ledger.last_us is None or time_us > ledger.last_us:
                    ledger.last_us = time_us
                if limited:
                    self._judge_ledger(event, p, ledger, scope, set_ones, sums, day)
            if row is not None:
                entry = row.days.get(number)
                if entry is None:
                    entry = row.days[number] = Day()
                entry.add(sums)
                if limited:
                    self._judge_month(event, p, row, entry, scope, set_ones, day, today)
        if overflow:
            p.count_as(overflow=1)

    def _judge_ledger(self, event: Event, p: Partition, ledger: Ledger, scope: str, set_ones: Budgets | None, sums: Sums, day: int) -> None:
        """Judge the cumulative and the total budget after an amount was added."""
        if ledger.starts is not None and day >= ledger.starts:
            ledger.since += sums.micro
        limits, micro, level = self.kept.limits(scope, set_ones, "cumulative"), ledger.cumulative, ledger.cumulative_level
        if level_of(limits, micro) != level:
            ledger.cumulative_level = judge(p, event, scope=scope, kind="cumulative", period=ledger.period, limits=limits, micro=micro, level=level)
        limits, micro, level = self.kept.limits(scope, set_ones, "total"), ledger.micro, ledger.total_level
        if level_of(limits, micro) != level:
            ledger.total_level = judge(p, event, scope=scope, kind="total", period="all", limits=limits, micro=micro, level=level)

    def _judge_month(self, event: Event, p: Partition, row: Month, entry: Day, scope: str, set_ones: Budgets | None, day: int, today: int) -> None:
        """Judge the daily and the monthly budget after an amount was added to a day."""
        kept, month = self.kept, row.month
        limits, micro, level = kept.limits(scope, set_ones, "daily"), entry.micro, entry.level
        if day != today:
            entry.told = judge_late(p, event, scope=scope, kind="daily", period=day_name(day), limits=limits, micro=micro, told=entry.told)
        elif level_of(limits, micro) != level:
            entry.level = judge(p, event, scope=scope, kind="daily", period=day_name(day), limits=limits, micro=micro, level=level)
            entry.told = max(entry.told, entry.level)
        limits = kept.limits(scope, set_ones, "monthly")
        if not limits:
            return
        micro, level = row.micro, row.level
        if month != month_of(today):
            row.told = judge_late(p, event, scope=scope, kind="monthly", period=month_name(month), limits=limits, micro=micro, told=row.told)
        elif level_of(limits, micro) != level:
            row.level = judge(p, event, scope=scope, kind="monthly", period=month_name(month), limits=limits, micro=micro, level=level)
            row.told = max(row.told, row.level)

    def _sum_since(self, p: Partition, tenant: str, scope: str, ledger: Ledger, starts: int) -> int:
        """Sum of the days from `starts` on, micro-USD; the months' rows are read before this record opens any."""
        if ledger.first_us is None:
            return 0
        if starts <= ledger.first_us // DAY_US:  # then the ledger knows it, even of days that are kept no longer
            return ledger.micro
        months = (p.read(self.kept.months, tenant, (scope, str(number))) for number in range(SLOTS))
        return sum_from((month for month in months if month is not None), starts)

    def _set_on_ledger(self, event: Event, p: Partition, kind: str, scope: str, ledger: Ledger, limits: Limits, starts: int | None, since: int) -> None:
        """Let new limits (and a new beginning) of the cumulative or total budget take effect."""
        old = self.kept.limits(scope, p.read(self.kept.budgets, event.tenant, (scope,)), kind)
        if kind == "cumulative":
            level, sum_before, period = ledger.cumulative_level, ledger.cumulative, ledger.period
            if not limits or ledger.starts != starts:
                reason = "period_ended" if limits else "budget_removed"
                end(p, event, scope=scope, kind=kind, period=period, limits=old, micro=sum_before, level=level, reason=reason)
                level = 0
            ledger.starts, ledger.since = starts, since
            ledger.cumulative_level = judge(p, event, scope=scope, kind=kind, period=ledger.period, limits=limits, micro=ledger.cumulative, level=level)
        else:
            level = ledger.total_level
            if not limits:
                end(p, event, scope=scope, kind=kind, period="all", limits=old, micro=ledger.micro, level=level, reason="budget_removed")
                level = 0
            ledger.total_level = judge(p, event, scope=scope, kind=kind, period="all", limits=limits, micro=ledger.micro, level=level)

    def _set_on_month(self, event: Event, p: Partition, kind: str, scope: str, limits: Limits, today: int, ended: Ended) -> None:
        """Judge the running day or month at once against new limits."""
        month = month_of(today)
        seen = ended.get(scope) or self._peek_month(p, event.tenant, scope, month)
        now = seen if seen is not None and seen.month == month else Month(month)
        number = today - month_start(month) + 1
        entry = now.days.get(number) or Day()
        micro, level = (entry.micro, entry.level) if kind == "daily" else (now.micro, now.level)
        if level_of(limits, micro) == level:
            return
        row = self._open_month(p, event.tenant, scope, month, ended)
        if row is None:
            return
        old = self.kept.limits(scope, p.read(self.kept.budgets, event.tenant, (scope,)), kind)
        period = day_name(today) if kind == "daily" else month_name(month)
        if not limits:
            end(p, event, scope=scope, kind=kind, period=period, limits=old, micro=micro, level=level, reason="budget_removed")
            level = 0
        level = judge(p, event, scope=scope, kind=kind, period=period, limits=limits, micro=micro, level=level)
        if kind == "daily":
            entry = row.days.setdefault(number, entry)
            entry.level = level
            entry.told = max(entry.told, level)
        else:
            row.level = level
            row.told = max(row.told, level)

    def _peek_month(self, p: Partition, tenant: str, scope: str, month: int) -> Month | None:
        """A month's row to decide whether to open it; None where there is none or it has absorbed this record before."""
        try:
            return p.read(self.kept.months, tenant, (scope, slot(month)))
        except Absorbed:
            return None  # this row only: other months' rows of the same flush may be behind

    def _open_month(self, p: Partition, tenant: str, scope: str, month: int, ended: Ended) -> Month | None:
        """A month's row to change, unless it has absorbed this record before."""
        opened = ended.get(scope)
        row = opened if opened is not None and slot(opened.month) == slot(month) else p.open(self.kept.months, tenant, (scope, slot(month)))
        if row is not None and row.month != month:
            row.begin(month)
        return row

    def _admits(self, p: Partition, tenant: str, scope: str) -> bool:
        """Whether the scope has a ledger or there is room for one."""
        ledgers = p.space(self.kept.ledgers, tenant)
        named = len(ledgers) - ((TENANT,) in ledgers)
        return scope == TENANT or (scope,) in ledgers or named < self.settings.max_cost_scopes


def _scopes(data: CostIncurred | CostRefunded) -> list[str]:
    """Scopes that a cost or refund belongs to: the tenant first, each once."""
    scopes = [TENANT]
    if data.model is not None:
        scopes.append("model:" + data.model)
    if data.run is not None:
        scopes.append("run:" + data.run)
    if data.agent is not None:
        scopes.append("agent:" + data.agent)
    if data.tags:
        scopes += ["tag:" + tag for tag in dict.fromkeys(data.tags)]
    return scopes
