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

from streams.events import MetricRecorded

from .rows import Row, Table

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition, Record

SEGMENT = 64
_SHIFT = 6
_WIDTH = 17


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

    def repeated(self, event: Event, record: Record, offset: int) -> bool:
        """Whether the event occurred in the window before; notes this occurrence."""
        name = event.tenant + "\0" + event.id
        if record.headers:
            for header, value in record.headers:
                if header == "redriven":
                    name = "redriven\0" + value.decode("utf-8", "replace")
        digest = xxh3_128_digest(name.encode(), self.seed)
        number = offset >> _SHIFT
        if number != self._number:
            self._enter(number)
        ids = self._ids
        found = self.seen.get(digest)
        again = found is not None and (found > number - self.segments or self._within(found, digest, offset))
        self.seen[digest] = number
        ids.append(offset & 63)
        ids += digest
        row = self._row
        row.applied = offset  # type: ignore[union-attr]  # set by _enter
        self.partition.dirty[IDS.index].add(row)  # type: ignore[arg-type]  # set by _enter
        data = event.data
        if data.__class__ is MetricRecorded and not again:
            metric = data.metric_id or event.id
            digest = xxh3_128_digest(f"metric\0{event.tenant}\0{metric}".encode(), self.seed)
            found = self.seen.get(digest)
            again = found is not None and (found > number - self.segments or self._within(found, digest, offset))
            self.seen[digest] = number
            ids.append(offset & 63)
            ids += digest
        return again

    def pass_over(self, offset: int) -> None:
        """The record at this offset has no id; note that it was absorbed."""
        number = offset >> _SHIFT
        if number != self._number:
            self._enter(number)
        self._row.applied = offset  # type: ignore[union-attr]  # set by _enter
        self.partition.dirty[IDS.index].add(self._row)  # type: ignore[arg-type]  # set by _enter

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
                last = (found << _SHIFT) + ids[at]
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


def number_of(offset: int) -> int:
    """Segment of an offset."""
    return offset >> _SHIFT
