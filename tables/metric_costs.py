"""Costs told on metrics: one ledger.

The rule this file keeps: a metric with a cost, calls or tokens puts out one derived ``cost.incurred`` for the topic ``costs``, with
an id made of its own, so that redelivery, restart and replay never charge twice. There are no rows here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streams.derive import event_bytes
from streams.events import CostIncurred, MetricRecorded
from streams.keys import derived_id, encode_key

from .fold import Fold

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition


class MetricCostSettings(msgspec.Struct, frozen=True):
    """Settings of costs on metrics.

    Attributes:
        costs_from_metrics: whether a metric's cost, calls and tokens enter the cost ledgers.
    """

    costs_from_metrics: bool = True


class MetricCosts(Fold):
    """Derives costs from metrics.

    Args:
        settings: whether it does.
    """

    topics = ("training",)

    def __init__(self, settings: MetricCostSettings | None = None) -> None:
        self.settings = settings or MetricCostSettings()
        self.handlers = {MetricRecorded: self._recorded} if self.settings.costs_from_metrics else {}

    def _recorded(self, event: Event, p: Partition) -> None:
        data: MetricRecorded = event.data  # type: ignore[assignment]  # dispatched by type
        if not (data.cost or data.api_calls or data.token_usage):
            return
        body: dict[str, Any] = {"api_calls": data.api_calls or 0, "token_usage": data.token_usage or 0, "model": data.model}
        if data.cost is not None:  # as decimal text; none: estimated from tokens or calls by the ledger
            body["cost"] = data.cost
        if data.run is not None:
            body["run"] = data.run
        if data.tags:
            body["tags"] = data.tags
        tenant = event.tenant
        name = derived_id(p.topic, tenant, event.id, CostIncurred.TYPE, "cost")
        value = event_bytes(type=CostIncurred.TYPE, id=name, source=p.source, time_us=p.time_us, tenant=tenant, data=body, derivedfrom=event.id)
        p.publish(CostIncurred.TOPIC, encode_key(tenant), value)
