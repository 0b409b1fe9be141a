"""Rates: API calls of a tenant in the sliding minute, hour and day, and the alert ``cost.rate`` when they are too many.

The rule this file keeps: calls are counted by event time in 60 buckets of a second, 60 of a minute and 24 of an hour; a window
ends with the bucket of the greatest event time, so a late call counts only where its bucket is still in the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .alerting import emit
from .budgets import CostSettings
from .rows import Table
from .times import HOUR_US, MINUTE_US, SECOND_US, day

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

RULE = "cost.rate"
CLEAR_PERCENT = 90
"""Share of the limit at which the alert resolves."""
NEVER = -(2**62)


class Window(NamedTuple):
    """A sliding window: its name, and its buckets."""

    name: str
    bucket_us: int
    buckets: int


WINDOWS = (Window("minute", SECOND_US, 60), Window("hour", MINUTE_US, 60), Window("day", HOUR_US, 24))


class Rates(msgspec.Struct, array_like=True, gc=False):
    """API calls of a tenant.

    Attributes:
        at_us: end of the windows: the greatest event time, microseconds.
        rings: calls by bucket, one ring a window of `WINDOWS`; a bucket's place is its number modulo their count.
        counts: sum of each ring.
        since_us: event time of the record that opened the alert of each window; `NEVER` while it does not stand.
    """

    at_us: int = NEVER
    rings: list[list[int]] = msgspec.field(default_factory=lambda: [[0] * window.buckets for window in WINDOWS])
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(WINDOWS))
    since_us: list[int] = msgspec.field(default_factory=lambda: [NEVER] * len(WINDOWS))

    def advance(self, time_us: int) -> None:
        """Move the windows' end on; buckets that fall out are emptied."""
        before = self.at_us
        if time_us <= before:
            return
        self.at_us = time_us
        if time_us // SECOND_US == before // SECOND_US:  # no bucket of any window begins
            return
        for which, (_, bucket_us, buckets) in enumerate(WINDOWS):
            last, new = before // bucket_us, time_us // bucket_us
            if last == new:
                break  # nor does one of the longer buckets
            ring = self.rings[which]
            for number in range(max(last, new - buckets) + 1, new + 1):
                place = number % buckets
                if ring[place]:
                    self.counts[which] -= ring[place]
                    ring[place] = 0

    def add(self, time_us: int, calls: int) -> None:
        """Count calls at a time that the windows' end has reached."""
        for which, (_, bucket_us, buckets) in enumerate(WINDOWS):
            number = time_us // bucket_us
            if self.at_us // bucket_us - number < buckets:
                self.rings[which][number % buckets] += calls
                self.counts[which] += calls

    def at(self, time_us: int) -> list[int]:
        """Calls of each window as it would end at another time; before `at_us` only what is still kept."""
        found = []
        for ring, (_, bucket_us, buckets) in zip(self.rings, WINDOWS, strict=True):
            newest, end = self.at_us // bucket_us, time_us // bucket_us
            found.append(sum(ring[n % buckets] for n in range(max(newest, end) - buckets + 1, min(newest, end) + 1)))
        return found


class RateRows:
    """The rows of `Rates` and how records enter them.

    Args:
        settings: limits.
    """

    def __init__(self, settings: CostSettings) -> None:
        self.limits = (settings.rate_calls_per_minute, settings.rate_calls_per_hour, settings.rate_calls_per_day)
        self.table = Table("cost_rates", Rates, rank=33, settings=settings)

    def enter(self, event: Event, p: Partition, time_us: int, calls: int) -> None:
        """Count a record's calls and judge the windows.

        Args:
            time_us: what the record reaches.
            calls: 0 and up; such a record moves the windows of a tenant that has made calls.
        """
        tenant = event.tenant
        if not calls and () not in p.space(self.table, tenant):
            return
        rates = p.open(self.table, tenant, ())
        if rates is None:
            return
        rates.advance(time_us)
        if calls:
            rates.add(time_us, calls)
        counts, standing = rates.counts, rates.since_us
        for which, limit in enumerate(self.limits):
            count, since_us = counts[which], standing[which]
            if since_us == NEVER:
                if limit is not None and count > limit:
                    rates.since_us[which] = p.time_us
                    self._tell(event, p, which, p.time_us, count, limit, True)
            elif limit is None or count * 100 <= limit * CLEAR_PERCENT:
                rates.since_us[which] = NEVER
                self._tell(event, p, which, since_us, count, limit, False)

    def _tell(self, event: Event, p: Partition, which: int, since_us: int, count: int, limit: int | None, opened: bool) -> None:
        name = WINDOWS[which].name
        calls = f"The tenant made {count} API calls in the last {name}"
        act = "slow down, or raise the limit" if opened else "calls may go on"
        emit(
            p,
            event,
            rule=RULE,
            subject=name,
            period=day(since_us),
            previous="ok" if opened else "warning",
            level="warning" if opened else "ok",
            value=count,
            threshold=limit,
            reason=None if opened else "below_limit",
            message=f"{calls}, {'above' if opened else 'well below'} the limit of {limit}: {act}.",
        )
