"""What a caller may ask of a worker, and how long it may take: numbers, the quota of published events, and the file of TLS.

The rule this file keeps: whatever comes in by HTTP ends, in memory and in time, at a bound that is written down here.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from streams.errors import ConfigError
from streams.settings import Gets, no_password

MAX_BODY = 8 << 20
"""Bytes of a request's body."""
MAX_BATCH = 10_000
"""Events of a batch."""
MAX_LINE = 16 << 10
"""Bytes of a request's first line; a query of SQL, percent-encoded, has to fit."""
MAX_FIELD = 8190
"""Bytes of one header."""
HEAD_S = 20.0
"""Longest time until a request's head is there, and that a connection may be idle."""
BODY_S = 30.0
"""Longest time until a request's body is there."""
ACK_S = 10.0
"""Longest wait for the broker to acknowledge what was posted."""
SEND_S = 60.0
"""Longest time that an answer may take to go out."""
EVENT_S = 20.0
"""The same for one message of a stream."""
LINGER_S = 2.0
"""How long what still comes in is read after an early answer, so that the caller can read that."""
TELL_S = 5.0
"""Longest time between two messages of the status stream, and between two looks whether its token still holds."""
MOST_CONNECTIONS = 2000
MOST_STREAMS = 1000
MOST_STREAMS_OF_ONE = 100
"""Streams of one tenant."""
MOST_RAW_OF_ONE = 16
"""Raw queries of one tenant that wait for the archive at the same time."""
MOST_TENANTS = 10_000
"""Tenants whose quota is remembered."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(slots=True)
class Bucket:
    """What a tenant has left: `n` events at the moment `at`, of at most `most`."""

    n: float
    at: float
    most: float


class Quota:
    """Events a tenant may publish, or requests a token may make, in a second, on the average (a token bucket that holds a second's worth).

    A batch is taken whole or not at all. One that is larger than the bucket is refused until as much has gathered as it needs,
    so that a caller that waits as long as it is told gets through.

    Args:
        per_s: events a second; None = no quota.
        clock: seconds, monotonic.
    """

    def __init__(self, per_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.clock = clock
        self.buckets: dict[str, Bucket] = {}

    def take(self, tenant: str, n: int) -> int:
        """Take `n` events out of a tenant's quota, or requests out of a token's.

        Returns:
            0 where they were there; else the seconds to wait, and nothing was taken.
        """
        if self.per_s is None or n == 0:
            return 0
        now, size = self.clock(), max(1.0, self.per_s)
        bucket = self.buckets.get(tenant)
        if bucket is None:
            if len(self.buckets) >= MOST_TENANTS:
                self._forget(now, size)
            bucket = self.buckets[tenant] = Bucket(size, now, size)
        bucket.n = min(bucket.most, bucket.n + (now - bucket.at) * self.per_s)
        bucket.at = now
        if bucket.n >= n:
            bucket.n -= n
            bucket.most = size
            return 0
        bucket.most = max(size, float(n))
        return max(1, math.ceil((n - bucket.n) / self.per_s))

    def _forget(self, now: float, size: float) -> None:
        """Drop whoever has a full bucket again, and if that is nobody the one that was asked for longest ago."""
        full = [name for name, one in self.buckets.items() if one.n + (now - one.at) * (self.per_s or 0) >= size]
        for name in full or [min(self.buckets, key=lambda name: self.buckets[name].at)]:
            del self.buckets[name]


def tls(settings: Gets) -> ssl.SSLContext | None:
    """What HTTP is served with: None = plain.

    Raises:
        ConfigError: certificate or key is missing or unusable.
    """
    cert, key, authority = settings.get("web_tls_cert"), settings.get("web_tls_key"), settings.get("web_tls_client_ca")
    if cert is None and key is None and authority is None:
        return None
    if cert is None:
        raise ConfigError("web_tls_cert", f"is needed beside {'web_tls_key' if authority is None else 'web_tls_client_ca'}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except (OSError, ssl.SSLError, ValueError) as bad:
        name = "web_tls_cert" if key is None else "web_tls_key"
        raise ConfigError(
            name, f"{cert}{'' if key is None else f' and {key}'} are no certificate and its key ({getattr(bad, 'strerror', None) or bad})"
        ) from None
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as bad:
            raise ConfigError("web_tls_client_ca", f"{authority} holds no certificates that can be read ({bad.strerror or bad})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
