"""Event time: integers, microseconds since the epoch, UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 3600 * SECOND_US
DAY_US = 86_400 * SECOND_US
WHOLE = np.dtype([("head", ">u2"), ("s", ">u4")])
"""MessagePack's timestamp of 32 bits: seconds since the epoch."""
PARTS = np.dtype([("head", ">u2"), ("ns_s", ">u8")])
"""Its timestamp of 64 bits: nanoseconds in the upper 30, seconds in the others."""
MICROSECOND = timedelta(microseconds=1)
_pack = msgspec.msgpack.Encoder().encode


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch, exact."""
    return (moment - EPOCH) // MICROSECOND


def all_to_us(moments: Sequence[datetime]) -> list[int]:
    """`to_us` of many moments, at a fifth of the cost: packed as MessagePack and read as one array.

    Example:
        >>> all_to_us([datetime(2026, 3, 2, 0, 0, 0, 5, tzinfo=UTC)]), all_to_us([EPOCH, EPOCH.replace(microsecond=7)])
        ([1772409600000005], [0, 7])

    Source:
        The timestamp extension type of the MessagePack specification.
    """
    found = _read(moments)
    if found is not None:
        return found
    whole = _read([moment for moment in moments if not moment.microsecond])
    parts = _read([moment for moment in moments if moment.microsecond])
    if whole is None or parts is None:  # before 1970, or so late that it takes more bytes
        return [to_us(moment) for moment in moments]
    of_whole, of_parts = iter(whole), iter(parts)
    return [next(of_parts) if moment.microsecond else next(of_whole) for moment in moments]


def _read(moments: Sequence[datetime]) -> list[int] | None:
    """`to_us` of moments that all take one width of MessagePack's timestamp; None where they do not."""
    n = len(moments)
    if not n:
        return []
    packed, begin = _pack(moments), 1 if n < 16 else 3 if n < 2**16 else 5
    for kind, head, us in ((PARTS, 0xD7FF, _us_of_parts), (WHOLE, 0xD6FF, _us_of_whole)):
        if len(packed) == begin + n * kind.itemsize:
            stamps = np.frombuffer(packed, kind, offset=begin)
            if (stamps["head"] == head).all():
                found: list[int] = us(stamps).tolist()
                return found
    return None


def _us_of_whole(stamps: NDArray[Any]) -> NDArray[Any]:
    return stamps["s"].astype(np.int64) * SECOND_US


def _us_of_parts(stamps: NDArray[Any]) -> NDArray[Any]:
    ns_s = stamps["ns_s"].astype(np.uint64)
    return (ns_s & 0x3FFFFFFFF) * SECOND_US + (ns_s >> 34) // 1000


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
