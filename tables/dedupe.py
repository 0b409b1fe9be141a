"""The dedupe window: an id is a duplicate iff it occurred within the last W offsets of the same partition.

A pure function of the log, kept as rows: a segment of 64 offsets holds 17 bytes an id (place in the segment, 16-byte
digest). The segments are rows like any other, so every worker has them warm and a failover reads nothing again. Only an
owner builds the look-up table, a dictionary from digest to segment number.

The digest is XXH3-128 with a seed made of the source topic's identity, so that ids which collide cannot be prepared by
somebody who only sees the HTTP interface; tenant and id both enter it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_128_digest

from .rows import Row, Table

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition, Record

SEGMENT = 64
SHIFT = 6
LAST = SEGMENT - 1
PLACES = [bytes([place]) for place in range(SEGMENT)]
_WIDTH = 17
digest_of = xxh3_128_digest


class Segment(msgspec.Struct, array_like=True):
    """Ids that occurred in offsets ``number * 64`` up to the next segment."""

    number: int = -1
    ids: bytearray = msgspec.field(default_factory=bytearray)


IDS = Table("ids", Segment, rank=99)


class Window:
    """The look-up side of a partition's dedupe window.

    Attributes:
        done: offset up to which every row of the partition has absorbed everything.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.segments = partition.bounds.dedupe_window // SEGMENT
        self.seed = partition.identity * 0x9E3779B97F4A7C15 % 2**64
        self.seen: dict[bytes, int] = {}
        self.done = -1
        self._number = -1
        self._row: Row | None = None
        self._ids = bytearray()

    def restore(self) -> None:
        """Build the look-up table from the rows."""
        self.seen = {}
        self.done = -1
        self._row = None
        self._number = -1
        rows = self.partition.space(IDS, "").values()
        for row in sorted(rows, key=lambda row: row.applied):
            segment = IDS.load(row)
            self.done = max(self.done, row.applied)
            ids, number = segment.ids, segment.number
            for at in range(1, len(ids), _WIDTH):
                self.seen[bytes(ids[at : at + 16])] = number

    def forget(self) -> None:
        """Give the look-up table's memory back; the rows stay."""
        self.seen = {}
        self._row = None
        self._number = -1

    def holds(self, found: int, digest: bytes, offset: int) -> bool:
        """Whether an id last seen in segment `found` is still in the window of this offset."""
        return found > (offset >> SHIFT) - self.segments or self._within(found, digest, offset)

    def metric_repeated(self, event: Event, offset: int) -> bool:
        """A metric is also known by its metric_id; notes this occurrence."""
        digest = digest_of(f"metric\0{event.tenant}\0{event.data.metric_id or event.id}", self.seed)
        found = self.seen.get(digest)
        self.seen[digest] = offset >> SHIFT
        self._ids += PLACES[offset & LAST] + digest
        return found is not None and self.holds(found, digest, offset)

    def enter(self, offset: int, last: int) -> bytearray:
        """Open the segment of an offset for the ids of its records; `last` is the offset absorbed before it."""
        if self._row is not None:
            self.settle(last)
        if offset >> SHIFT != self._number or self._row is None:
            self._enter(offset >> SHIFT)
        return self._ids

    def settle(self, offset: int) -> None:
        """Every record up to this offset is absorbed."""
        row = self._row
        if row is not None and offset > row.applied:
            row.applied = offset
            self.partition.dirty[IDS.index].add(row)

    def _within(self, found: int, digest: bytes, offset: int) -> bool:
        """Exact answer for the segment that the window's edge cuts."""
        if found < number_of(offset) - self.segments:
            return False
        row = self.partition.space(IDS, "").get((str(found % (self.segments + 1)),))
        if row is None:
            return False
        segment = IDS.load(row)
        if segment.number != found:
            return False
        ids = segment.ids
        last = -1
        for at in range(0, len(ids), _WIDTH):
            if ids[at + 1 : at + _WIDTH] == digest:
                last = (found << SHIFT) + ids[at]
        return last >= offset - self.segments * SEGMENT

    def _enter(self, number: int) -> None:
        """Open the segment of an offset; its slot's former ids leave the window."""
        space = self.partition.space(IDS, "")
        slots = self.segments + 1
        key = (str(number % slots),)
        row = space.get(key)
        if row is None:
            row = space[key] = Row("", key, -1, -1, Segment(number))
        segment = IDS.load(row)
        if segment.number != number:
            self._drop(segment)
            segment.number = number
            segment.ids = bytearray()
        self._row = row
        self._ids = segment.ids
        # A jump over whole segments (control records, an emptied log) leaves old slots behind.
        for skipped in range(max(self._number + 1, number - slots), number) if self._number >= 0 else ():
            old = space.get((str(skipped % slots),))
            if old is not None:
                stale = IDS.load(old)
                if stale.number < number - self.segments:
                    self._drop(stale)
        self._number = number

    def _drop(self, segment: Segment) -> None:
        seen, ids, number = self.seen, segment.ids, segment.number
        for at in range(1, len(ids), _WIDTH):
            digest = bytes(ids[at : at + 16])
            if seen.get(digest) == number:
                del seen[digest]


def redriven(record: Record) -> str | None:
    """What a redriven dead letter is known by instead of its id (contract §2); None for any other record."""
    for name, value in record.headers:
        if name == "redriven":
            return "redriven\0" + value.decode("utf-8", "replace")
    return None


def number_of(offset: int) -> int:
    """Segment of an offset."""
    return offset >> SHIFT
