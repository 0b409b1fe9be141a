"""What a fold remembers of earlier records and finds by key: the older half of a join, and what came before.

The rules this file keeps:
  * rows are never deleted, so no key has a row of its own: keys share `BUCKETS` rows by their digest, and each is bounded;
  * what is kept is found by event time alone (within so long before or after), so it does not depend on who else shares the
    partition, as long as the bounds are not reached; then the oldest by log order goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_128_digest

from . import packed
from .fold import Absorbed
from .rows import Table

if TYPE_CHECKING:
    from .partition import Partition

BUCKETS = 8192
BUCKET_KEYS = tuple((str(number),) for number in range(BUCKETS))
SEEN_A_BUCKET = 32
TEXTS_A_BUCKET = 512
SEGMENT = 16
"""Pieces a row of texts."""
PIECE_BYTES = 3500
"""A row of `SEGMENT` pieces stays under 64 KiB."""

_SEEN = Struct("<16sq")
_PLACE = Struct("<16sqqi")


def digest_of(*parts: str) -> bytes:
    """16 bytes that stand for names (none holds a NUL)."""
    return xxh3_128_digest("\0".join(parts).encode())


def bucket_of(digest: bytes) -> tuple[str]:
    """Key of the row that a digest shares with others."""
    return BUCKET_KEYS[digest[0] << 5 | digest[1] >> 3]


class SeenBucket(msgspec.Struct, array_like=True, gc=False):
    """Digests and event times (microseconds), packed, in log order."""

    entries: bytearray = msgspec.field(default_factory=bytearray)


class Seen:
    """Which keys came lately: at most `SEEN_A_BUCKET` times `BUCKETS` of a tenant in a partition.

    Args:
        within_us: how far in event time from its first coming a key is known again, microseconds.
        rank: higher than that of every row which depends on the answer.
        settings: what of the settings decides which keys come here.
    """

    def __init__(self, name: str, *, within_us: int, rank: int, settings: msgspec.Struct | None = None) -> None:
        self.table = Table(name, SeenBucket, rank=rank, version=2, settings=settings)
        self.within_us = within_us

    def first(self, p: Partition, tenant: str, digest: bytes) -> bool:
        """Whether the key comes for the first time; it is known from now on.

        Raises:
            Absorbed: the row has the record already, and so has all that depends on it.
        """
        bucket = p.open(self.table, tenant, bucket_of(digest))
        if bucket is None:
            raise Absorbed
        entries, time_us = bucket.entries, p.time_us
        at = packed.find(entries, digest, _SEEN.size)
        if at >= 0:
            if abs(time_us - _SEEN.unpack_from(entries, at)[1]) <= self.within_us:
                return False
            del entries[at : at + _SEEN.size]
        elif len(entries) >= SEEN_A_BUCKET * _SEEN.size:
            del entries[: _SEEN.size]
        entries += _SEEN.pack(digest, time_us)
        return True


class Head(msgspec.Struct, array_like=True, gc=False):
    """How many pieces were ever kept; the next gets this number."""

    n: int = 0


class Index(msgspec.Struct, array_like=True, gc=False):
    """Digest, number of its first piece, event time (microseconds) and number of pieces, packed, in log order."""

    entries: bytearray = msgspec.field(default_factory=bytearray)


class Pieces(msgspec.Struct, array_like=True, gc=False):
    """Pieces `number` * `SEGMENT` and following; words joined by NUL."""

    number: int = -1
    texts: list[str] = []


class Texts:
    """Lists of words by key, the last ones of a tenant in a partition.

    A ring of pieces; a list takes one, or more where it is long. Pieces and index are made from the head, and written before it.

    Args:
        most: pieces kept.
        within_us: how far in event time from its keeping a list is found, microseconds.
        rank: of the pieces; the index has the next one, the head the one after. Higher than that of rows made from an answer.
        settings: what of the settings decides which lists come here.
    """

    def __init__(self, name: str, *, most: int, within_us: int, rank: int, settings: msgspec.Struct | None = None) -> None:
        self.pieces = Table(name, Pieces, rank=rank, settings=settings)
        self.index = Table(f"{name}_index", Index, rank=rank + 1, version=2, settings=settings)
        self.heads = Table(f"{name}_head", Head, rank=rank + 2, settings=settings)
        self.tables = (self.pieces, self.index, self.heads)
        self.most = most
        self.slots = -(-most // SEGMENT) + 1
        self.within_us = within_us

    def keep(self, p: Partition, tenant: str, digest: bytes, words: Iterable[str]) -> None:
        """Keep a list, in the place of what has this key unless that is newer by event time."""
        seen = p.read(self.heads, tenant, ())
        first = 0 if seen is None else seen.n
        text = "\0".join(words)
        texts = [text] if 4 * len(text) <= PIECE_BYTES else split(text)
        number, begin = divmod(first, SEGMENT)
        rest = texts
        while rest:
            row = p.open(self.pieces, tenant, (str(number % self.slots),))
            room = SEGMENT - begin
            if row is not None:
                if row.number != number:
                    row.number, row.texts = number, []
                row.texts.extend(rest[:room])
            rest = rest[room:]
            number, begin = number + 1, 0
        n = first + len(texts)
        bucket = p.open(self.index, tenant, bucket_of(digest))
        if bucket is not None:
            self._enter(bucket.entries, digest, first, p.time_us, len(texts), n - self.most)
        head = p.open(self.heads, tenant, ())
        if head is not None:
            head.n = n

    def _enter(self, entries: bytearray, digest: bytes, first: int, time_us: int, n: int, oldest: int) -> None:
        width = _PLACE.size
        while entries and (_PLACE.unpack_from(entries)[1] < oldest or len(entries) >= TEXTS_A_BUCKET * width):
            del entries[:width]
        at = packed.find(entries, digest, width)
        if at >= 0:
            if _PLACE.unpack_from(entries, at)[2] > time_us:
                return
            del entries[at : at + width]
        entries += _PLACE.pack(digest, first, time_us, n)

    def recall(self, p: Partition, tenant: str, digest: bytes) -> list[str] | None:
        """The list kept under a key, or None.

        Raises:
            Absorbed: as `Partition.read`.
        """
        head = p.read(self.heads, tenant, ())
        bucket = p.read(self.index, tenant, bucket_of(digest))
        if head is None or bucket is None:
            return None
        at = packed.find(bucket.entries, digest, _PLACE.size)
        if at < 0:
            return None
        _, first, time_us, n = _PLACE.unpack_from(bucket.entries, at)
        if first < head.n - self.most or abs(p.time_us - time_us) > self.within_us:
            return None
        words: list[str] = []
        number, begin = divmod(first, SEGMENT)
        while n > 0:
            row = p.read(self.pieces, tenant, (str(number % self.slots),))
            if row is None or row.number != number:
                return None
            for text in row.texts[begin : begin + n]:
                words += text.split("\0") if text else ()
            n -= SEGMENT - begin
            number, begin = number + 1, 0
        return words


def split(text: str) -> list[str]:
    """Words joined by NUL in pieces of at most `PIECE_BYTES` of UTF-8 each."""
    pieces: list[list[str]] = [[]]
    size = 0
    for word in text.split("\0"):
        length = len(word.encode()) + 1
        if pieces[-1] and size + length > PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(word)
        size += length
    return ["\0".join(words) for words in pieces]
