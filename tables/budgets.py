"""Budgets: the levels of a sum, and the messages when the level changes.

The rules this file keeps:
  * level = the highest whose limit is **at or below** the sum, in micro-USD;
  * every change of level is one message, however many levels it passes; nothing is told while the level stays;
  * in a period that has ended only a level above every level told there is told (late), and it ends at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec

from .alerting import LEVELS, OPENED, RESOLVED, emit
from .money import micro_usd, share, usd, usd_text
from .rows import escape

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TENANT = "tenant"
"""The scope that every cost belongs to."""

RULES = {"cumulative": "cost.cumulative", "daily": "cost.daily", "monthly": "cost.monthly", "total": "cost.total"}
"""Budget period -> alert rule, in the order in which they are judged and shown."""

WARNING, CRITICAL, SHUTDOWN = LEVELS.index("warning"), LEVELS.index("critical"), LEVELS.index("shutdown")

Calls = Annotated[int, msgspec.Meta(ge=1)]

Limits = Sequence[tuple[int, int]]
"""(level's place in LEVELS, limit in micro-USD), rising in both."""


class CostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost fold reads of the settings; a change rebuilds its tables.

    Attributes:
        budget_cumulative_usd: warning, critical and shutdown limit of all a tenant ever spent, USD; None: no such budget.
        budget_daily_usd: what a tenant may spend in a UTC day, USD; None: no such budget.
        budget_monthly_usd: the same for a UTC month, USD.
        budget_total_usd: the same for all time, USD.
        budget_percent: shares of those three at which warning, critical and shutdown are reached, 0..100 and up.
        usd_per_token: price of a token where an event tells no cost, USD.
        usd_per_call: price of a call where an event tells neither cost nor tokens, USD.
        max_cost_scopes: models, runs, agents and tags a tenant may have, all together.
        cost_forecast: whether ``cost.forecast`` tells that a month will end above its budget.
        rate_calls_per_minute: API calls a tenant may make in a sliding minute before ``cost.rate`` opens; None: no limit.
        rate_calls_per_hour: the same in a sliding hour.
        rate_calls_per_day: the same in sliding 24 hours.
        cost_days: UTC days kept, counted back from the latest; at most 450.
        cost_run_days: the same for scopes ``run:NAME``.
    """

    budget_cumulative_usd: tuple[Decimal | int, ...] | None = (10, 50, 100)
    budget_daily_usd: Decimal | int | None = 10
    budget_monthly_usd: Decimal | int | None = 100
    budget_total_usd: Decimal | int | None = 1000
    budget_percent: tuple[Decimal | int, ...] = (70, 90, 100)
    usd_per_token: Decimal = Decimal("0.000002")
    usd_per_call: Decimal = Decimal("0.001")
    max_cost_scopes: int = 50_000
    cost_forecast: bool = True
    rate_calls_per_minute: Calls | None = 60
    rate_calls_per_hour: Calls | None = 500
    rate_calls_per_day: Calls | None = 5000
    cost_days: int = 400
    cost_run_days: int = 90


class Budget(msgspec.Struct, array_like=True):
    """One budget as ``budget.set`` left it.

    Attributes:
        limits: empty: removed.
        starts: first UTC day that counts, days since the epoch; cumulative only.
        set_by: id of the event.
        set_us: its time, microseconds since the epoch.
    """

    limits: list[tuple[int, int]] = []
    starts: int | None = None
    set_by: str = ""
    set_us: int = 0


class Budgets(msgspec.Struct, array_like=True):
    """What ``budget.set`` said about one scope: period -> budget."""

    periods: dict[str, Budget] = {}


def default_budgets(settings: CostSettings) -> dict[str, Limits]:
    """Limits of the tenant scope where no event has set others.

    Raises:
        ValueError: the operator's fault: limits or percentages that are not three rising numbers.
    """
    levels = (WARNING, CRITICAL, SHUTDOWN)
    found: dict[str, Limits] = {}
    if settings.budget_cumulative_usd is not None:
        found["cumulative"] = list(zip(levels, map(micro_usd, settings.budget_cumulative_usd), strict=False))
    parts = {"daily": settings.budget_daily_usd, "monthly": settings.budget_monthly_usd, "total": settings.budget_total_usd}
    for period, whole in parts.items():
        if whole is not None:
            found[period] = [(level, share(micro_usd(whole), part)) for level, part in zip(levels, settings.budget_percent, strict=False)]
    for period, limits in found.items():
        if len(limits) != len(levels) or not rising(limits):
            name = "budget_cumulative_usd" if period == "cumulative" else f"budget_{period}_usd with budget_percent"
            raise ValueError(f"{name}: needs three amounts for warning, critical and shutdown, each above the one before")
    return found


def rising(limits: Limits) -> bool:
    """Whether each limit has a higher level and a higher amount than the one before."""
    return all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(limits))


def level_of(limits: Limits, micro: int) -> int:
    """Level of a sum: the highest whose limit it has reached, 0 (ok) below all.

    Example:
        >>> [level_of([(2, 10), (4, 100)], sum) for sum in (9, 10, 99, 100)]
        [0, 2, 2, 4]
    """
    reached = 0
    for level, at in limits:
        if at > micro:
            break
        reached = level
    return reached


def limit_of(limits: Limits, level: int) -> int | None:
    """Limit of a level, micro-USD; of level 0 (ok) the lowest limit there is."""
    for each, at in limits:
        if level in (0, each):
            return at
    return None


def judge(p: Partition, event: Event, *, scope: str, kind: str, period: str, limits: Limits, micro: int, level: int) -> int:
    """Tell the change of level of a period that has not ended; returns the level now.

    Args:
        kind: cumulative, daily, monthly or total.
        period: its name, such as ``2026-03`` or ``all``.
        micro: the sum, micro-USD, this event included.
        level: the level before.
    """
    reached = level_of(limits, micro)
    if reached != level:
        threshold = limit_of(limits, reached)
        _tell(
            p,
            event,
            scope=scope,
            kind=kind,
            period=period,
            micro=micro,
            previous=level,
            level=reached,
            threshold=threshold,
            reason=None if reached else "below_limit",
        )
    return reached


def judge_late(p: Partition, event: Event, *, scope: str, kind: str, period: str, limits: Limits, micro: int, told: int) -> int:
    """As `judge` for a period that has ended; returns the highest level told for it."""
    reached = level_of(limits, micro)
    if reached <= told:
        return told
    threshold = limit_of(limits, reached)
    _tell(p, event, scope=scope, kind=kind, period=period, micro=micro, previous=told, level=reached, threshold=threshold, late=True)
    end(p, event, scope=scope, kind=kind, period=period, limits=limits, micro=micro, level=reached)
    return reached


def end(
    p: Partition,
    event: Event,
    *,
    scope: str,
    kind: str,
    period: str,
    limits: Limits,
    micro: int,
    level: int,
    reason: str = "period_ended",
) -> None:
    """Resolve what is open at `level` because its period ended or its budget was removed."""
    if level:
        _tell(p, event, scope=scope, kind=kind, period=period, micro=micro, previous=level, level=0, threshold=limit_of(limits, level), reason=reason)


def _tell(
    p: Partition,
    event: Event,
    *,
    scope: str,
    kind: str,
    period: str,
    micro: int,
    previous: int,
    level: int,
    threshold: int | None,
    reason: str | None = None,
    late: bool = False,
) -> None:
    emit(
        p,
        event,
        rule=RULES[kind],
        subject=escape(scope),
        period=period,
        previous=LEVELS[previous],
        level=LEVELS[level],
        value=usd(micro),
        threshold=None if threshold is None else usd(threshold),
        reason=reason,
        late=late,
        type=OPENED if late else RESOLVED if reason else None,
        message=_message(scope, kind, period, micro, previous, level, threshold, reason, late),
    )


def _message(scope: str, kind: str, period: str, micro: int, previous: int, level: int, threshold: int | None, reason: str | None, late: bool) -> str:
    """One sentence a person can act on."""
    kind_of_scope, _, name = scope.partition(":")
    who = f"{kind_of_scope.capitalize()} {name}" if name else "The tenant"
    when = {"daily": f"on {period}", "monthly": f"in {period}", "total": "in all"}.get(kind, "in all" if period == "all" else f"since {period}")
    spent = f"{who} spent {usd_text(micro)} USD {when}"
    limit = "" if threshold is None else f"{usd_text(threshold)} USD"
    if reason == "period_ended":
        return f"{spent}; that {kind} period has ended at level {LEVELS[previous]}, the next one starts at its own sum."
    if reason == "budget_removed":
        return f"{spent}; its {kind} budget was removed, so nothing limits it any more: set another if that was not meant."
    if reason is not None:
        return f"{spent}, below the lowest {kind} limit of {limit}: spending may go on."
    if late:
        return f"{spent} after a late cost, which reaches the {LEVELS[level]} limit of {limit} of that ended period: check what came late."
    if level < previous:
        return f"{spent}, back from {LEVELS[previous]} to the {LEVELS[level]} limit of {limit} of its {kind} budget: keep an eye on it."
    act = "stop spending or raise the budget" if level == SHUTDOWN else "slow down or raise the budget"
    return f"{spent} and reached the {LEVELS[level]} limit of {limit} of its {kind} budget: {act}."
