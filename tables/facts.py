"""Facts remembered for a time by the thousand: an id's digest, when it was told, and a number.

The rules this file keeps: a tenant's facts of a partition lie in a fixed number of buckets by digest, so their rows stay few
and small however many ids come; a bucket holds at most `MOST` facts, beyond which the oldest gives way; what is past its
time is not found, whether it was swept out yet or not.
"""

from __future__ import annotations

from struct import Struct

import msgspec
from xxhash import xxh3_64_digest

from . import packed

FACT = Struct("<8sqI")
"""A fact: digest, event time in microseconds, value."""
MOST = 32
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

    Attributes:
        entries: the facts.
        oldest_us: no fact was told before; known, a full bucket is not looked through each time.

    Example:
        >>> facts = Facts()
        >>> facts.put(digest("a", "x1"), 5_000_000, 7, 0)
        >>> facts.find(digest("a", "x1"), 4_999_999), facts.find(digest("a", "x1"), 5_000_000), facts.find(digest("a", "x2"), 0)
        ((5000000, 7), None, None)
    """

    entries: bytearray = msgspec.field(default_factory=bytearray)
    oldest_us: int = -(2**62)

    def find(self, name: bytes, since_us: int) -> tuple[int, int] | None:
        """(time, value) of a digest told after `since_us`."""
        return self.told(self.place(name), since_us)

    def told(self, at: int, since_us: int) -> tuple[int, int] | None:
        """`find` by place."""
        if at < 0:
            return None
        _, time_us, value = _unpack(self.entries, at)
        return (time_us, value) if time_us > since_us else None

    def put(self, name: bytes, time_us: int, value: int, since_us: int, at: int | None = None) -> None:
        """Remember a fact in the place of an older one of that digest; in a full bucket those told before `since_us` go, else the oldest.

        Args:
            at: its place, where it was asked for already.
        """
        if at is None:
            at = self.place(name)
        entries = self.entries
        if time_us < self.oldest_us:
            self.oldest_us = time_us
        if at >= 0:
            FACT.pack_into(entries, at, name, time_us, value)
            return
        if len(entries) >= _FULL:
            if self.oldest_us <= since_us:
                self.oldest_us = min(time_us, *_all(entries)[1::3])
            if self.oldest_us > since_us:
                del entries[:_WIDTH]
            else:
                alive = b"".join(FACT.pack(*fact) for fact in FACT.iter_unpack(entries) if fact[1] > since_us)
                self.entries = entries = bytearray(alive[_WIDTH:] if len(alive) >= _FULL else alive)
        entries += FACT.pack(name, time_us, value)

    def place(self, name: bytes) -> int:
        """Where a digest's fact begins, -1 where there is none; until something is put."""
        return packed.find(self.entries, name, _WIDTH)
