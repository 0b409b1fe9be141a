"""Summary of a tenant's metrics: how many by type, model, tag and UTC day, and when.

The rules this file keeps:
  * counts are of distinct events; what was delivered again is counted apart and changes nothing else;
  * a name has a row of its own, and names never go: what was beyond `summary_names` once stays beyond it, on every replay;
  * days are kept by month in a ring of rows; a month that a newer one displaced is more than 400 days old.

Every partition keeps its own part; an answer adds them up. The head reads whether there is room for a name, so it ranks below them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from streams.events import MetricRecorded

from .fold import Fold, Reader, View
from .ledgers import Ledger, day_name, month_of, month_start
from .money import usd
from .rows import Table
from .times import DAY_US, rfc3339_or_none

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
MONTHS = 16
"""Month rows a tenant."""
KEPT_DAYS = 400
KINDS = ("types", "models", "tags")


class SummarySettings(msgspec.Struct, frozen=True):
    """Settings of the summary of metrics.

    Attributes:
        summary_names: metric types of a tenant in a partition that are counted by name (models and tags likewise); the rest is overflow.
    """

    summary_names: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000


class Head(msgspec.Struct, array_like=True, gc=False):
    """All metrics of a tenant.

    Attributes:
        n: how many.
        duplicates: deliveries of metrics that were there already.
        first_us, last_us: least and greatest event time, microseconds; None before the first.
        types, models, tags: mentions of names beyond the bound.
    """

    n: int = 0
    duplicates: int = 0
    first_us: int | None = None
    last_us: int | None = None
    types: int = 0
    models: int = 0
    tags: int = 0


class Count(msgspec.Struct, array_like=True, gc=False):
    """Metrics of one name."""

    n: int = 0


class Days(msgspec.Struct, array_like=True, gc=False):
    """Metrics by day of one month: the month counted from the year 0, -1 before the first; UTC day of the month -> how many."""

    month: int = -1
    days: dict[int, int] = {}


class MetricSummary(Fold):
    """Counts metrics.

    Args:
        settings: bounds.
        ledgers: where the tenant's costs are, keyed (scope,); None: the summary shows none.
    """

    topics = (TOPIC,)

    def __init__(self, settings: SummarySettings | None = None, ledgers: Table[Ledger] | None = None) -> None:
        self.settings = bounds = settings or SummarySettings()
        self.ledgers = ledgers
        self.head = Table("metric_summary", Head, rank=50, settings=bounds)
        self.names = tuple(Table(f"metric_{kind}", Count, rank=51, settings=bounds) for kind in KINDS)
        self.months = Table("metric_days", Days, rank=51, settings=bounds)
        self.tables = (self.head, *self.names, self.months)
        self.handlers = {MetricRecorded: self.recorded}
        self.repeats = {MetricRecorded: self.repeated}
        self.views = (View("/metrics/summary", SummaryParams, self.summary, (TOPIC, "costs"), "How many metrics there are, by type, model, tag and day"),)

    # ---- absorbing

    def recorded(self, e: Event, p: Partition) -> None:
        """A metric is counted."""
        data: MetricRecorded = e.data  # type: ignore[assignment]  # dispatched by type
        tenant, time_us = e.tenant, p.time_us
        types, models, tags = self.names
        no_type = self._count(p, types, tenant, data.metric_type)
        no_model = self._count(p, models, tenant, data.model)
        no_tag = 0
        if data.tags:
            for tag in dict.fromkeys(data.tags):
                no_tag += self._count(p, tags, tenant, tag)
        head = p.open(self.head, tenant, ())
        if head is not None:
            head.n += 1
            if head.first_us is None or time_us < head.first_us:
                head.first_us = time_us
            if head.last_us is None or time_us > head.last_us:
                head.last_us = time_us
            if no_type or no_model or no_tag:
                head.types += no_type
                head.models += no_model
                head.tags += no_tag
                p.count_as(overflow=1)
        day = time_us // DAY_US
        month = month_of(day)
        row = p.open(self.months, tenant, (str(month % MONTHS),))
        if row is None or row.month > month:  # a newer month has the slot: more than 400 days later
            return
        if row.month < month:
            row.month = month
            row.days = {}
        number = day - month_start(month) + 1
        row.days[number] = row.days.get(number, 0) + 1

    def repeated(self, e: Event, p: Partition) -> None:
        """A metric came again."""
        head = p.open(self.head, e.tenant, ())
        if head is not None:
            head.duplicates += 1

    def _count(self, p: Partition, table: Table[Count], tenant: str, name: str) -> int:
        """Count a name; returns 1 if there is no room for it."""
        space = p.space(table, tenant)
        key = (name,)
        if len(space) >= self.settings.summary_names and key not in space:
            return 1
        count = p.open(table, tenant, key)
        if count is not None:
            count.n += 1
        return 0

    # ---- reading

    def summary(self, reader: Reader, asked: SummaryParams) -> dict[str, Any]:
        """Body of ``/metrics/summary``."""
        heads = reader.rows(self.head, ())
        by_name = [{key[0]: sum(count.n for count in counts) for key, counts in reader.scan(table)} for table in self.names]
        days: dict[int, int] = {}
        for slot in range(MONTHS):
            for month in reader.rows(self.months, (str(slot),)):
                if month.month >= 0:
                    before = month_start(month.month) - 1
                    for number, n in month.days.items():
                        days[before + number] = days.get(before + number, 0) + n
        last_us = max((head.last_us for head in heads if head.last_us is not None), default=None)
        horizon = 0 if last_us is None else last_us // DAY_US - KEPT_DAYS
        answer: dict[str, Any] = {
            "total_metrics": sum(head.n for head in heads),
            **{f"by_{kind[:-1]}": dict(sorted(counts.items())) for kind, counts in zip(KINDS, by_name, strict=True)},
            "by_day": {day_name(day): days[day] for day in sorted(days) if day > horizon},
            "first": rfc3339_or_none(min((head.first_us for head in heads if head.first_us is not None), default=None)),
            "last": rfc3339_or_none(last_us),
            "duplicates": sum(head.duplicates for head in heads),
            "overflow": {kind: sum(getattr(head, kind) for head in heads) for kind in KINDS},
        }
        if self.ledgers is not None:
            ledgers = reader.rows(self.ledgers, ("tenant",))
            answer["cost_tracking"] = {
                "total_usd": usd(sum(ledger.micro for ledger in ledgers)),
                "api_calls": sum(ledger.api_calls for ledger in ledgers),
                "token_usage": sum(ledger.token_usage for ledger in ledgers),
            }
        return {**answer, "as_of": rfc3339_or_none(reader.as_of())}


class SummaryParams(msgspec.Struct, frozen=True):
    """``/metrics/summary`` takes no parameters."""
