"""Event time: integers, microseconds since the epoch, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 3600 * SECOND_US
DAY_US = 86_400 * SECOND_US


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch, exact."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def rfc3339(time_us: int) -> str:
    """RFC 3339 in UTC with microseconds and ``Z``.

    Example:
        >>> rfc3339(1_772_409_600_000_000)
        '2026-03-02T00:00:00.000000Z'
    """
    return (EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rfc3339_or_none(time_us: int | None) -> str | None:
    """As `rfc3339`; None stays None."""
    return None if time_us is None else rfc3339(time_us)


def day(time_us: int) -> str:
    """UTC day of a moment, ``2026-03-02``."""
    return rfc3339(time_us)[:10]
