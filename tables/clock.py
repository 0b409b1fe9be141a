"""The clock for tenants that have fallen silent: what waits for time in a partition, and the tick that brings it about.

The rules this file keeps: a tick moves the watermark only as far as somebody waits for it, to the end of that minute, so
events that come later are not late without need; and its id follows from that moment, so two workers, or one that starts
again, give one tick.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streams.derive import event_bytes, time_text
from streams.events import ClockTicked
from streams.keys import derived_id, encode_key

from .partition import Partition
from .times import MINUTE_US


class Tick(NamedTuple):
    """A ``clock.ticked`` to publish to the partition it was asked for: the tenant, the moment (microseconds), record key and value."""

    tenant: str
    until_us: int
    key: bytes
    value: bytes


def ticks(p: Partition, now_us: int) -> Iterator[Tick]:
    """At most one tick a tenant: for the first moment that the folds wait for there, once the clock has passed it.

    Whether the tenant has been silent for long enough is for the caller to know: rows have no clock.

    Args:
        now_us: the clock, microseconds since the epoch.
    """
    first: dict[str, int] = {}
    for fold in p.schema.folds:
        for tenant, at_us in fold.due(p):
            first[tenant] = min(at_us, first.get(tenant, at_us))
    for tenant, at_us in sorted(first.items()):
        until_us = (at_us // MINUTE_US + 1) * MINUTE_US
        if until_us > now_us:
            continue
        until = time_text(until_us)
        source = f"tick-{until}"
        name = derived_id(p.topic, tenant, source, ClockTicked.TYPE, f"p{p.number}")
        value = event_bytes(type=ClockTicked.TYPE, id=name, source=p.source, time_us=until_us, tenant=tenant, data={"until": until}, derivedfrom=source)
        yield Tick(tenant, until_us, encode_key(tenant), value)
