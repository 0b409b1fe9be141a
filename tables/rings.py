"""Rings: the last entries of a key, packed, in segment rows of which a record touches one.

The rule this file keeps: the ring is the source of what is judged by it. A row that reads the ring (a stream, a goal) has the
lower rank and is opened first; the ring's rows are made from the record alone. So after a crash a reader is ahead of its
ring, never behind, and sees again what it saw first.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from struct import Struct
from typing import TYPE_CHECKING

import msgspec

from .fold import Reader
from .rows import Table

if TYPE_CHECKING:
    from .partition import Partition

SEGMENT = 32
"""Entries a row; a full segment is closed."""
LONG_AGO = -(2**62)

Key = tuple[str, ...]


class OpenSegment(msgspec.Struct, array_like=True, gc=False):
    """The segment that is being filled: its number, counted from 0, and its packed entries in log order."""

    number: int = 0
    entries: bytearray = msgspec.field(default_factory=bytearray)


class ClosedSegment(msgspec.Struct, array_like=True, gc=False):
    """A full segment: its number, its greatest event time (microseconds), its packed entries in log order."""

    number: int = -1
    newest_us: int = LONG_AGO
    entries: bytes = b""


class Ring:
    """The last `size` entries of each key.

    Args:
        name: of its tables: ``NAME`` holds the open segments, ``NAME_closed`` the full ones.
        entry: how an entry is packed; its first field is the event time, microseconds.
        size: entries kept of a key, at least 2.
        rank: of the closed segments; the open ones have the next. What reads the ring needs a lower one.
        settings: as of `Table`.
    """

    def __init__(self, name: str, entry: Struct, size: int, *, rank: int, settings: msgspec.Struct | None) -> None:
        self.entry = entry
        self.size = size
        self.slots = -(-size // SEGMENT)
        self.width = entry.size
        self.full = SEGMENT * entry.size
        self.closed = Table(f"{name}_closed", ClosedSegment, rank=rank, settings=settings)
        self.open = Table(name, OpenSegment, rank=rank + 1, settings=settings)
        self.tables = (self.closed, self.open)

    def append(self, p: Partition, tenant: str, key: Key, packed: bytes) -> None:
        """Put an entry of the current record in, over the oldest."""
        segment = p.open(self.open, tenant, key)
        if segment is None:
            return
        entries = segment.entries
        entries += packed
        if len(entries) == self.full:
            closed = p.open(self.closed, tenant, (*key, str(segment.number % self.slots)))
            if closed is not None:
                closed.number = segment.number
                closed.entries = bytes(entries)
                closed.newest_us = max(entry[0] for entry in self.entry.iter_unpack(entries))
            segment.number += 1
            segment.entries = bytearray()

    def before(self, p: Partition, tenant: str, key: Key) -> Iterator[tuple[float, bytes | bytearray]]:
        """What the ring will hold beside the current record: as `blocks`. The row that rests on it must have been opened."""
        segment = p.read(self.open, tenant, key)
        if segment is None:
            return
        entries = segment.entries
        left = self.size - 1
        yield inf, entries[-left * self.width :]
        left -= len(entries) // self.width
        number = segment.number
        while left > 0 and number > 0:
            number -= 1
            closed = p.read(self.closed, tenant, (*key, str(number % self.slots)))
            if closed is None or closed.number != number:
                return
            yield closed.newest_us, closed.entries[-left * self.width :]
            left -= SEGMENT

    def blocks(self, reader: Reader, key: Key, home: int) -> Iterator[tuple[float, bytes | bytearray]]:
        """Packed entries of a key in a partition, segments from new to old: (greatest event time, or infinity of the open one; entries)."""
        for place, segment in reader.placed(self.open, key):
            if place != home:
                continue
            yield inf, segment.entries[-self.size * self.width :]
            left = self.size - len(segment.entries) // self.width
            for number in range(segment.number - 1, max(-1, segment.number - 1 - self.slots), -1):
                if left <= 0:
                    return
                for there, closed in reader.placed(self.closed, (*key, str(number % self.slots))):
                    if there == home and closed.number == number:
                        yield closed.newest_us, closed.entries[-left * self.width :]
                left -= SEGMENT
