"""Record keys, home partitions and deterministic ids (contract §1, common.md §4 and §9)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from .events import (
    ClockTicked,
    CollectionChanged,
    CustomRecorded,
    Data,
    ForecastIssued,
    ForecastResolved,
    RlMetricsRecorded,
    RlMetricsRecordedV2,
    TenantCleared,
    TrustBatchObserved,
    TrustDecayed,
    TrustImported,
    TrustObserved,
)

if TYPE_CHECKING:
    from .events import Event


def _part(text: str) -> str:
    return text.replace("%", "%25").replace("|", "%7C") if "|" in text or "%" in text else text


def encode_key(*parts: str | None) -> bytes:
    """A record key: parts joined by ``|``, with ``|`` and ``%`` percent-encoded inside a part; absent parts are left out.

    Example:
        >>> encode_key("acme", None, "a|b")
        b'acme|a%7Cb'
    """
    return "|".join([_part(part) for part in parts if part is not None]).encode()


def record_key(event: Event) -> bytes:
    """The Kafka key of an event (contract §1): it decides the home partition."""
    tenant, data = event.tenant, event.data
    match data:
        case TrustObserved() | TrustImported():
            return encode_key(tenant, data.kind, data.id)
        case TrustBatchObserved():
            first = data.observations[0]
            return encode_key(tenant, first.kind, first.id)
        case TrustDecayed():
            return encode_key(tenant, data.kind, data.id) if data.id is not None else encode_key(tenant)
        case TenantCleared() | CollectionChanged() | ClockTicked():
            return encode_key(tenant)
        case ForecastIssued() | ForecastResolved():
            return encode_key(tenant, data.model)
        case RlMetricsRecorded() | RlMetricsRecordedV2():
            return encode_key(tenant, data.run if data.run is not None else data.agent)
        case CustomRecorded():
            return encode_key(tenant, data.agent if data.agent is not None else data.task)
    return _by_topic(tenant, data)


def _by_topic(tenant: str, data: Data) -> bytes:
    names: tuple[str, ...] = ()
    if data.TOPIC == "training":
        names = ("run", "task_type", "model")
    elif data.TOPIC == "judgments":
        names = ("agent", "task")
    elif data.TOPIC == "alerts":
        return str(getattr(data, "alert_id", "")).encode()
    elif data.TOPIC == "scores":
        kind = data.TYPE.split(".")[0]
        return encode_key(tenant, kind, getattr(data, "name", None) or getattr(data, "agent", None))
    for name in names:
        value = getattr(data, name, None)
        if value is not None:
            return encode_key(tenant, value)
    return encode_key(tenant)


def murmur2(data: bytes) -> int:
    """Kafka's default key hash: Murmur2, 32 bits, seed 0x9747b28c, unsigned.

    Source: Appleby, MurmurHash2; the seed is Kafka's.
    """
    length, m, mask = len(data), 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_for(key: bytes, count: int) -> int:
    """Home partition of a key among `count`, as the Java client's default partitioner."""
    return (murmur2(key) & 0x7FFFFFFF) % count


def derived_id(topic: str, tenant: str, source_id: str, type: str, suffix: str) -> str:
    """Id of an event that a worker publishes because of another (common.md §4).

    Args:
        topic: of the source record, without prefix.
        suffix: names the target, e.g. ``model|m1``.
    """
    return "d-" + hashlib.sha256("|".join((topic, tenant, source_id, type, suffix)).encode()).hexdigest()[:40]


def alert_id(tenant: str, rule: str, subject: str, period: str) -> str:
    """Id of an alert (common.md §9): first 32 hex digits of SHA-256 over the encoded parts.

    Args:
        subject: already in the form of a key (``kind|id``).
    """
    return hashlib.sha256(b"|".join((encode_key(tenant), encode_key(rule), encode_key(subject), encode_key(period)))).hexdigest()[:32]
