"""Facts remembered for a time by the thousand: an id's digest, when it was told, and a number.

The rules this file keeps: a tenant's facts of a partition lie in a fixed number of buckets by digest, so their rows stay few
and small however many ids come; a bucket holds at most `MOST` facts, beyond which the oldest gives way; what is past its
time is not found, whether it was swept out yet or not.
"""

from __future__ import annotations

from struct import Struct

import msgspec
from xxhash import xxh3_64_digest

FACT = Struct("<8sqI")
"""A fact: digest, event time in microseconds, value."""
MOST = 64
"""Facts a bucket."""

_WIDTH = FACT.size
_FULL = MOST * _WIDTH
_unpack = FACT.unpack_from
_all = Struct("<" + "8sqI" * MOST).unpack


def digest(*parts: str) -> bytes:
    """64 bits that stand for these names, in this order. A million of them collide once in some 30 million tenants.

    Source:
        XXH3, Y. Collet.
    """
    return xxh3_64_digest("\x1f".join(parts))


def bucket(name: bytes, count: int) -> int:
    """Bucket of a digest among `count`, a power of two up to 65,536."""
    return (name[0] | name[1] << 8) & (count - 1)


class Facts(msgspec.Struct, array_like=True, gc=False):
    """One bucket: packed `FACT`s, oldest record first, each digest once.

    Example:
        >>> facts = Facts()
        >>> facts.put(digest("a", "x1"), 5_000_000, 7, 0)
        >>> facts.find(digest("a", "x1"), 4_999_999), facts.find(digest("a", "x1"), 5_000_000), facts.find(digest("a", "x2"), 0)
        ((5000000, 7), None, None)
    """

    entries: bytearray = msgspec.field(default_factory=bytearray)

    def find(self, name: bytes, since_us: int) -> tuple[int, int] | None:
        """(time, value) of a digest told after `since_us`."""
        at = self._at(name)
        if at < 0:
            return None
        _, time_us, value = _unpack(self.entries, at)
        return (time_us, value) if time_us > since_us else None

    def put(self, name: bytes, time_us: int, value: int, since_us: int) -> None:
        """Remember a fact in the place of an older one of that digest; in a full bucket those told before `since_us` go, else the oldest."""
        entries = self.entries
        at = self._at(name)
        if at >= 0:
            FACT.pack_into(entries, at, name, time_us, value)
            return
        if len(entries) == _FULL and min(_all(entries)[1::3]) > since_us:  # the common case of what follows
            del entries[:_WIDTH]
        elif len(entries) >= _FULL:
            alive = b"".join(FACT.pack(*fact) for fact in FACT.iter_unpack(entries) if fact[1] > since_us)
            self.entries = entries = bytearray(alive[_WIDTH:] if len(alive) >= _FULL else alive)
        entries += FACT.pack(name, time_us, value)

    def _at(self, name: bytes) -> int:
        entries = self.entries
        at = entries.find(name)
        while at >= 0 and at % _WIDTH:  # the same eight bytes across two fields
            at = entries.find(name, at + 1)
        return at
