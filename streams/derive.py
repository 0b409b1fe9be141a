"""Bytes that workers publish: derived events, alerts, dead letters' headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
REDRIVEN = "redriven"
"""Header of a dead letter that is sent again."""
_NAME = re.compile(rb"[A-Za-z0-9._-]{1,249}/[0-9]{1,10}/[0-9]{1,19}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=256)  # events of one second come together
def _second_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:-6]


def time_text(time_us: int) -> str:
    """RFC 3339 in UTC with microseconds and ``Z``.

    Example:
        >>> time_text(1_772_409_600_000_001), time_text(-1)
        ('2026-03-02T00:00:00.000001Z', '1969-12-31T23:59:59.999999Z')
    """
    second = time_us // 1_000_000
    return f"{_second_text(second)}.{time_us - second * 1_000_000:06d}Z"


def event_bytes(
    *, type: str, id: str, source: str, time_us: int, tenant: str, data: msgspec.Struct | Mapping[str, Any], derivedfrom: str | None = None
) -> bytes:
    """A CloudEvents 1.0 record.

    Args:
        time_us: event time, microseconds since the epoch.
        derivedfrom: id of the event that caused this one.
    """
    body: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source, "type": type, "time": time_text(time_us), "tenant": tenant}
    if derivedfrom is not None:
        body["derivedfrom"] = derivedfrom
    body["data"] = data
    return _encode(body)


def sent_again(headers: Iterable[tuple[str, Any]]) -> str | None:
    """Name of the dead letter's record that this one is sent again for, ``TOPIC/PARTITION/OFFSET`` in its header `REDRIVEN`; None of any other record.

    Args:
        headers: as they were sent, by whomever: a value may be None, or anything.
    """
    for name, value in headers:
        if name == REDRIVEN and isinstance(value, bytes) and _NAME.fullmatch(value):
            return value.decode()
    return None


def dead_letter_headers(reason: str, error: str, topic: str, partition: int, offset: int, timestamp_ms: int) -> list[tuple[str, bytes]]:
    """Kafka headers of a dead letter (contract §2).

    Args:
        topic: without prefix.
        timestamp_ms: Kafka timestamp of the record.
    """
    return [
        ("reason", reason.encode()),
        ("error", error.encode("utf-8", "replace")),
        ("topic", topic.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(offset).encode()),
        ("time", time_text(timestamp_ms * 1000).encode()),
    ]
