"""The dedupe window: an id is a duplicate iff it occurred within the last W offsets of the same partition.

A pure function of the log, kept as rows: a segment of 64 offsets holds 17 bytes an id (place in the segment, 16-byte
digest; the highest bit of the place tells a metric_id). The segments are rows like any other, so every worker has them warm
and a failover reads nothing again.

Only an owner builds the look-up table: hash chains as in LZ77, kept in flat arrays and asked for a slice of records at once.
Nothing is ever removed from it: what lies behind the window is passed over, and its place is overwritten. It takes about 28
bytes an id; a dictionary of digests takes 130.

The digest is XXH3-128 with a seed made of the source topic's identity, so that ids which collide cannot be prepared by
somebody who only sees the HTTP interface; tenant and id both enter it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from .rows import Row, Table

if TYPE_CHECKING:
    from .partition import Partition, Record

SEGMENT = 64
SHIFT = 6
LAST = SEGMENT - 1
SLICE = 1024
"""Offsets that are looked up at once, at most; more of them are not quicker, and take more memory at a time."""
FEW = 24
"""Records up to which one by one is quicker than all at once."""
FURTHEST = 2**31 - 1
"""Greatest mark that chains can hold."""
METRIC = 0x80
WIDTH = 17
digest_of = xxh3_128_digest
unpack = struct.Struct("=QQ").unpack

Offsets = NDArray[np.int64]
Marks = NDArray[np.int32]
Digests = NDArray[np.uint64]
"""A row of two numbers an id."""


class Segment(msgspec.Struct, array_like=True):
    """Ids that occurred in offsets ``number * 64`` up to the next segment."""

    number: int = -1
    ids: bytearray = msgspec.field(default_factory=bytearray)


IDS = Table("ids", Segment, rank=99)


class Chains:
    """Where the ids of the last W offsets occurred: hash chains over a ring of offsets.

    Args:
        window: W, in offsets.

    Offsets are kept as marks of half their size, which count from 1 at `base`; it moves on before they become too great. 0 is none.

    Attributes:
        base: a multiple of the ring's size.
        heads: newest mark of each hash slot.
        before: by offset modulo the ring's size, the mark before it in the same slot.
        digests: of the ids, likewise. The ring is a slice longer than the window, so a slice overwrites nothing that one of
            its records may look for.
    """

    __slots__ = ("base", "before", "digests", "heads", "mask", "ring", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.ring = window + SLICE
        slots = 1 << (2 * window - 1).bit_length()
        self.mask = np.uint64(slots - 1)
        self.base = 0
        self.heads: Marks = np.zeros(slots, np.int32)  # pages that nobody touches take no memory
        self.before: Marks = np.zeros(self.ring, np.int32)
        self.digests: Digests = np.zeros((self.ring, 2), np.uint64)

    def note(self, offsets: Offsets, digests: Digests) -> list[int]:
        """Enter ids; returns the indices of those that occurred within the window before.

        Args:
            offsets: rising, above all entered before.
            digests: one an offset.
        """
        found = []
        begin = 0
        while begin < len(offsets):
            end = int(np.searchsorted(offsets, offsets[begin] + SLICE))
            if offsets[end - 1] - self.base >= FURTHEST:
                self._move_on(int(offsets[begin]))
            found += [begin + index for index in self._note(offsets[begin:end] - self.base, digests[begin:end])]
            begin = end
        return found

    def _move_on(self, offset: int) -> None:
        """Count from an offset before which nobody asks for anything any more; what is noted next is at this offset or after it."""
        base = (offset - self.window) // self.ring * self.ring
        for marks in (self.heads, self.before):
            marks[:] = np.maximum(marks.astype(np.int64) - (base - self.base), 0)
        self.base = base

    def note_one(self, offset: int, digest: bytes) -> bool:
        """Enter an id; whether it occurred within the window before."""
        first, second = unpack(digest)
        if offset - self.base >= FURTHEST:
            self._move_on(offset)
        at = offset - self.base
        slot, place = first & int(self.mask), at % self.ring
        mark: int = self.heads.item(slot)
        self.heads[slot] = at + 1
        self.before[place] = mark
        self.digests[place, 0] = first
        self.digests[place, 1] = second
        floor = max(at + 1 - self.window, 1)
        while mark >= floor:
            place = (mark - 1) % self.ring
            if self.digests.item(place, 0) == first and self.digests.item(place, 1) == second:
                return True
            mark = self.before.item(place)
        return False

    def _note(self, offsets: Offsets, digests: Digests) -> list[int]:
        """`note` for offsets, counted from `base`, that span less than `SLICE`."""
        slots = (digests[:, 0] & self.mask).astype(np.intp)
        marks = offsets + 1
        previous = self.heads[slots]
        if len(offsets) > 1:
            order = np.argsort(slots, kind="stable")
            sorted_slots = slots[order]
            same = np.flatnonzero(sorted_slots[1:] == sorted_slots[:-1])
            if len(same):
                previous[order[same + 1]] = marks[order[same]]
        places = offsets % self.ring
        self.before[places] = previous
        self.digests[places] = digests
        self.heads[slots] = marks
        floors = marks - self.window
        np.maximum(floors, 1, out=floors)
        suspects = np.flatnonzero(previous >= floors)
        if not len(suspects):
            return []
        return self._occurred(suspects, previous[suspects], floors[suspects], digests[suspects])

    def _occurred(self, suspects: Offsets, marks: Marks, floors: Offsets, digests: Digests) -> list[int]:
        """Those of the indices whose digest is in their chain: all chains are walked at once, a link a step.

        Args:
            marks: where each chain begins.
            floors: marks below these are not in the window.
        """
        found: list[int] = []
        while len(suspects):
            places = (marks - 1) % self.ring
            same = self.digests[places] == digests
            met = same[:, 0] & same[:, 1]
            if met.any():
                found += suspects[met].tolist()
            marks = self.before[places]
            on = np.flatnonzero((marks >= floors) & ~met)
            suspects, marks, floors, digests = suspects[on], marks[on], floors[on], digests[on]
        return sorted(found)


class Window:
    """The look-up side of a partition's dedupe window.

    Attributes:
        done: offset up to which every row of the partition has absorbed everything.
        ids: by event id; None while the partition is not owned.
        metrics: by metric_id; None until there is a metric.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.size = partition.bounds.dedupe_window
        self.segments = self.size // SEGMENT
        self.seed = partition.identity * 0x9E3779B97F4A7C15 % 2**64
        self.ids: Chains | None = None
        self.metrics: Chains | None = None
        self.done = -1

    def restore(self) -> None:
        """Build the look-up table from the rows."""
        self.forget()
        self.done = -1
        segments = []
        for row in self.partition.space(IDS, "").values():
            segments.append(IDS.load(row))
            self.done = max(self.done, row.applied)
        if not segments:
            return
        segments.sort(key=lambda segment: segment.number)
        entries = np.frombuffer(b"".join(segment.ids for segment in segments), np.uint8).reshape(-1, WIDTH)
        first = np.repeat([segment.number << SHIFT for segment in segments], [len(segment.ids) // WIDTH for segment in segments])
        offsets = first + (entries[:, 0] & LAST)
        digests = np.ascontiguousarray(entries[:, 1:]).view(np.uint64)
        of_metric = entries[:, 0] >= METRIC
        for chosen, chains in ((~of_metric, self.of_ids), (of_metric, self.of_metrics)):
            if chosen.any():
                chains().note(offsets[chosen], digests[chosen])

    def forget(self) -> None:
        """Give the look-up table's memory back; the rows stay."""
        self.ids = self.metrics = None

    def of_ids(self) -> Chains:
        """Chains of the event ids."""
        if self.ids is None:
            self.ids = Chains(self.size)
        return self.ids

    def of_metrics(self) -> Chains:
        """Chains of the metric_ids."""
        if self.metrics is None:
            self.metrics = Chains(self.size)
        return self.metrics

    def note(self, offsets: Sequence[int], names: Sequence[str], metrics: Sequence[tuple[int, str]], every: Sequence[int]) -> set[int]:
        """Enter what a slice of records is known by, and write it into the segments.

        Args:
            offsets, names: of the records that are events: what each is known by, tenant included.
            metrics: (offset, what the metric is known by) of those that are metrics.
            every: offsets of all records of the slice, events or not: a segment's row absorbs the last of them that it covers,
                so that it is the same wherever a chunk ends.

        Returns:
            Offsets of the duplicates.
        """
        if len(every) <= FEW:
            return self._note_few(offsets, names, dict(metrics), every)
        seed = self.seed
        at, digests = _numbers(offsets), _digests([digest_of(name, seed) for name in names])
        found = {offsets[index] for index in self.of_ids().note(at, digests)} if offsets else set()
        places = (at & LAST).astype(np.uint8)
        if metrics:
            metric_at = np.array([offset for offset, _ in metrics], np.int64)
            metric_digests = _digests([digest_of(name, seed) for _, name in metrics])
            found.update(int(metric_at[index]) for index in self.of_metrics().note(metric_at, metric_digests))
            order = np.argsort(np.concatenate((at, metric_at)), kind="stable")
            at = np.concatenate((at, metric_at))[order]
            digests = np.concatenate((digests, metric_digests))[order]
            places = np.concatenate((places, (metric_at & LAST).astype(np.uint8) | METRIC))[order]
        entries = np.empty((len(at), WIDTH), np.uint8)
        entries[:, 0] = places
        entries[:, 1:] = digests.view(np.uint8)
        bounds: list[int] = (np.flatnonzero(np.diff(at >> SHIFT)) + 1).tolist() if len(at) else []
        begin = 0
        written: dict[int, bytes] = {}
        for end in [*bounds, len(at)]:
            if end > begin:
                written[int(at[begin]) >> SHIFT] = entries[begin:end].tobytes()
            begin = end
        seen = at if every is offsets and not metrics else _numbers(every)
        for last in seen[np.append(np.flatnonzero(np.diff(seen >> SHIFT)), len(seen) - 1)].tolist():
            self._write(last >> SHIFT, last, written.get(last >> SHIFT, b""))
        return found

    def _note_few(self, offsets: Sequence[int], names: Sequence[str], metrics: Mapping[int, str], every: Sequence[int]) -> set[int]:
        """`note`, one by one."""
        seed, found = self.seed, set()
        ids = self.of_ids()
        written: dict[int, bytes] = {offset >> SHIFT: b"" for offset in every}
        for offset, name in zip(offsets, names, strict=True):
            digest = digest_of(name, seed)
            if ids.note_one(offset, digest):
                found.add(offset)
            entry = bytes((offset & LAST,)) + digest
            metric = metrics.get(offset)
            if metric is not None:
                digest = digest_of(metric, seed)
                if self.of_metrics().note_one(offset, digest):
                    found.add(offset)
                entry += bytes((offset & LAST | METRIC,)) + digest
            written[offset >> SHIFT] += entry
        last = {offset >> SHIFT: offset for offset in every}
        for number, entries in written.items():
            self._write(number, last[number], entries)
        return found

    def _write(self, number: int, offset: int, entries: bytes) -> None:
        """Add entries to a segment, which has absorbed everything up to the offset; its slot's former ids have left the window."""
        space = self.partition.space(IDS, "")
        key = (str(number % (self.segments + 1)),)
        row = space.get(key)
        if row is None:
            row = space[key] = Row("", key, -1, -1, Segment(number))
        segment = IDS.load(row)
        if segment.number != number:
            segment.number = number
            segment.ids = bytearray()
        segment.ids += entries
        if offset > row.applied:
            row.applied = offset
            self.partition.dirty[IDS.index].add(row)


def _numbers(offsets: Sequence[int]) -> Offsets:
    """Rising offsets as an array; where none is missing, made without looking at each."""
    if offsets and offsets[-1] - offsets[0] + 1 == len(offsets):
        return np.arange(offsets[0], offsets[-1] + 1, dtype=np.int64)
    return np.array(offsets, np.int64)


def _digests(digests: list[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def redriven(record: Record) -> str | None:
    """What a redriven dead letter is known by instead of its id (contract §2); None for any other record."""
    for name, value in record.headers:
        if name == "redriven":
            return "redriven\0" + value.decode("utf-8", "replace")
    return None
