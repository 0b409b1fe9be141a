"""Events as bytes, and records of a log in memory: what the benchmarks without a broker feed the folds with."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from streams.derive import time_text

START_US = 1_772_409_600_000_000
"""2026-03-02, a Monday."""
_encode = msgspec.json.Encoder().encode


class Record(NamedTuple):
    """A Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def event(name: str, kind: str, at_us: int, data: dict[str, Any], tenant: str = "default") -> bytes:
    """A CloudEvent.

    Args:
        name: its id.
        kind: type with version.
        at_us: event time, microseconds since the epoch.
    """
    body = {"specversion": "1.0", "id": name, "source": "bench", "type": kind, "time": time_text(at_us), "tenant": tenant, "data": data}
    return _encode(body)
