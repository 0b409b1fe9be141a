"""The dedupe window: an id is a duplicate iff it occurred within the last W offsets of the same partition.

A pure function of the log, kept as rows: a segment of 64 offsets holds 17 bytes an id (place in the segment, 16-byte
digest; the highest bit of the place tells a metric_id). The segments are rows like any other, so every worker has them warm
and a failover reads nothing again.

Only an owner builds the look-up table: hash chains as in LZ77, kept in flat arrays and asked for a slice of records at once.
Nothing is ever removed from it: what lies behind the window is passed over, and its place is overwritten. It takes 16 to 24 bytes
an id, by the window's size, beside the rows, which have the whole digest; a dictionary of digests takes 130.

The digest is XXH3-128 with a seed made of the source topic's identity, so that ids which collide cannot be prepared by
somebody who only sees the HTTP interface; tenant and id both enter it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from streams.derive import sent_again
from streams.events import MetricRecorded

from . import packed
from .rows import Row, Table

if TYPE_CHECKING:
    from streams.events import Event

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
unpack = struct.Struct("=II8x").unpack

Offsets = NDArray[np.int64]
Marks = NDArray[np.int32]
Tags = NDArray[np.uint32]
Digests = NDArray[np.uint32]
"""A row of four numbers an id."""


class Segment(msgspec.Struct, array_like=True):
    """Ids that occurred in offsets ``number * 64`` up to the next segment."""

    number: int = -1
    ids: bytearray = msgspec.field(default_factory=bytearray)


IDS = Table("ids", Segment, rank=99, version=2)


class Chains:
    """Where the ids of the last W offsets occurred: hash chains over a ring of offsets.

    Args:
        window: W, in offsets.
        same: (offset, digest) -> whether the id entered there has that digest. Chains keep a part of each, and ask where that part is
            equal; never about what is being entered at the moment.

    Offsets are kept as marks of half their size, which count from 1 at `base`; it moves on before they become too great. 0 is none.

    Attributes:
        base: a multiple of the ring's size.
        heads: newest mark of each hash slot.
        before: by offset modulo the ring's size, the mark before it in the same slot.
        tags: a quarter of the digests, likewise. The ring is a slice longer than the window, so a slice overwrites nothing that one of
            its records may look for.
    """

    __slots__ = ("base", "before", "heads", "mask", "ring", "same", "tags", "window")

    def __init__(self, window: int, same: Callable[[int, bytes], bool]) -> None:
        self.window = window
        self.same = same
        self.ring = window + SLICE
        slots = 1 << (2 * window - 1).bit_length()
        self.mask = np.uint32(slots - 1)
        self.base = 0
        self.heads: Marks = np.zeros(slots, np.int32)  # pages that nobody touches take no memory
        self.before: Marks = np.zeros(self.ring, np.int32)
        self.tags: Tags = np.zeros(self.ring, np.uint32)

    def note(self, offsets: Offsets, digests: Digests) -> list[int]:
        """Enter ids; returns the indices of those that occurred within the window before.

        Args:
            offsets: rising, above all entered before.
            digests: one an offset.
        """
        found: list[int] = []
        for begin, suspects, marks in self._entered(offsets, digests):
            if len(suspects):
                found += self._occurred(suspects + begin, marks, offsets, digests)
        return found

    def enter(self, offsets: Offsets, digests: Digests) -> None:
        """As `note`, for who does not ask what occurred before."""
        for _ in self._entered(offsets, digests):
            pass

    def _entered(self, offsets: Offsets, digests: Digests) -> Iterator[tuple[int, Offsets, Marks]]:
        """Enter ids, a slice at a time: the index of its first, and what `_enter` says of it, counted from there."""
        begin = 0
        while begin < len(offsets):
            end = len(offsets) if offsets[-1] - offsets[begin] < SLICE else int(np.searchsorted(offsets, offsets[begin] + SLICE))
            if offsets[end - 1] - self.base >= FURTHEST:
                self._move_on(int(offsets[begin]))
            yield begin, *self._enter((offsets[begin:end] - self.base).astype(np.int32), digests[begin:end])
            begin = end

    def _move_on(self, offset: int) -> None:
        """Count from an offset before which nobody asks for anything any more; what is noted next is at this offset or after it."""
        base = (offset - self.window) // self.ring * self.ring
        for marks in (self.heads, self.before):
            marks[:] = np.maximum(marks.astype(np.int64) - (base - self.base), 0)
        self.base = base

    def note_one(self, offset: int, digest: bytes, fresh: Mapping[int, bytes]) -> bool:
        """Enter an id; whether it occurred within the window before.

        Args:
            fresh: digests by offset that `same` does not know yet.
        """
        first, tag = unpack(digest)
        if offset - self.base >= FURTHEST:
            self._move_on(offset)
        at = offset - self.base
        slot, place = first & int(self.mask), at % self.ring
        mark: int = self.heads.item(slot)
        self.heads[slot] = at + 1
        self.before[place] = mark
        self.tags[place] = tag
        floor = max(at + 1 - self.window, 1)
        while mark >= floor:
            place = (mark - 1) % self.ring
            if self.tags.item(place) == tag:
                known = fresh.get(self.base + mark - 1)
                if known == digest or (known is None and self.same(self.base + mark - 1, digest)):
                    return True
            mark = self.before.item(place)
        return False

    def _enter(self, offsets: Marks, digests: Digests) -> tuple[Offsets, Marks]:
        """Enter ids of offsets, counted from `base`, that span less than `SLICE`.

        Returns:
            Indices of those whose slot has somebody within their window, and the newest mark of each there.
        """
        slots = (digests[:, 0] & self.mask).astype(np.intp)
        marks = offsets + 1
        previous = self.heads[slots]
        self.heads[slots] = marks
        shared = np.flatnonzero(self.heads[slots] != marks)
        if len(shared):
            self._chain(slots, marks, previous, shared.tolist())
        first = int(offsets[0]) % self.ring
        tight = int(offsets[-1] - offsets[0]) + 1 == len(offsets) <= self.ring - first
        places = slice(first, first + len(offsets)) if tight else offsets % self.ring
        self.before[places] = previous
        self.tags[places] = digests[:, 1]
        suspects = np.flatnonzero(previous >= np.maximum(marks - self.window, 1))
        return suspects, previous[suspects]

    def _chain(self, slots: Offsets, marks: Marks, previous: Marks, shared: list[int]) -> None:
        """Put those in order that came into one slot together.

        Args:
            previous: what each found in its slot; each but the first finds the one before it instead.
            shared: indices of those whose mark another's has replaced.
        """
        groups: dict[int, list[int]] = {}
        for index in shared:
            groups.setdefault(int(slots[index]), []).append(index)
        for slot, group in groups.items():
            group.append(int(np.searchsorted(marks, self.heads[slot])))
            group.sort()  # which of several assignments to one place wins is not numpy's promise
            previous[group[1:]] = marks[group[:-1]]
            self.heads[slot] = marks[group[-1]]

    def _occurred(self, suspects: Offsets, marks: Marks, offsets: Offsets, digests: Digests) -> list[int]:
        """Those of the indices whose digest is in their chain: all chains are walked at once, a link a step.

        Args:
            marks: where each chain begins.
        """
        found: list[int] = []
        floors = np.maximum(offsets[suspects] - self.base + 1 - self.window, 1)
        tags = digests[suspects, 1]
        while len(suspects):
            places = (marks - 1) % self.ring
            on = self.before[places] >= floors
            alike = np.flatnonzero(self.tags[places] == tags)
            if len(alike):
                met = alike[self._same(suspects[alike], marks[alike].astype(np.int64) + (self.base - 1), offsets, digests)]
                found += suspects[met].tolist()
                on[met] = False
            suspects, marks, floors, tags = suspects[on], self.before[places][on], floors[on], tags[on]
        return sorted(found)

    def _same(self, indices: Offsets, there: Offsets, offsets: Offsets, digests: Digests) -> NDArray[np.bool_]:
        """Whether the digests of these indices are those of the ids entered at these offsets, one each."""
        same = np.empty(len(indices), np.bool_)
        now = there >= offsets[0]
        same[now] = (digests[np.searchsorted(offsets, there[now])] == digests[indices[now]]).all(axis=1)
        same[~now] = [self.same(offset, digests[index].tobytes()) for index, offset in zip(indices[~now].tolist(), there[~now].tolist(), strict=True)]
        return same


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
        digests = np.ascontiguousarray(entries[:, 1:]).view(np.uint32)
        of_metric = entries[:, 0] >= METRIC
        for chosen, chains in ((~of_metric, self.of_ids), (of_metric, self.of_metrics)):
            if chosen.any():
                chains().enter(offsets[chosen], digests[chosen])

    def forget(self) -> None:
        """Give the look-up table's memory back; the rows stay."""
        self.ids = self.metrics = None

    def of_ids(self) -> Chains:
        """Chains of the event ids."""
        if self.ids is None:
            self.ids = Chains(self.size, partial(self._is, 0))
        return self.ids

    def of_metrics(self) -> Chains:
        """Chains of the metric_ids."""
        if self.metrics is None:
            self.metrics = Chains(self.size, partial(self._is, METRIC))
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
        at, digests = offsets_of(offsets), digests_of(map(digest_of, names, repeat(seed)))
        found = {offsets[index] for index in self.of_ids().note(at, digests)} if offsets else set()
        places = (at & LAST).astype(np.uint8)
        if metrics:
            metric_at = np.array([offset for offset, _ in metrics], np.int64)
            metric_digests = digests_of([digest_of(name, seed) for _, name in metrics])
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
        seen = at if every is offsets and not metrics else offsets_of(every)
        for last in seen[np.append(np.flatnonzero(np.diff(seen >> SHIFT)), len(seen) - 1)].tolist():
            self._write(last >> SHIFT, last, written.get(last >> SHIFT, b""))
        return found

    def _note_few(self, offsets: Sequence[int], names: Sequence[str], metrics: Mapping[int, str], every: Sequence[int]) -> set[int]:
        """`note`, one by one."""
        seed, found = self.seed, set()
        ids = self.of_ids()
        fresh: dict[int, bytes] = {}
        fresh_metrics: dict[int, bytes] = {}
        written: dict[int, bytes] = {offset >> SHIFT: b"" for offset in every}
        for offset, name in zip(offsets, names, strict=True):
            digest = digest_of(name, seed)
            if ids.note_one(offset, digest, fresh):
                found.add(offset)
            fresh[offset] = digest
            entry = bytes((offset & LAST,)) + digest
            metric = metrics.get(offset)
            if metric is not None:
                digest = digest_of(metric, seed)
                if self.of_metrics().note_one(offset, digest, fresh_metrics):
                    found.add(offset)
                fresh_metrics[offset] = digest
                entry += bytes((offset & LAST | METRIC,)) + digest
            written[offset >> SHIFT] += entry
        last = {offset >> SHIFT: offset for offset in every}
        for number, entries in written.items():
            self._write(number, last[number], entries)
        return found

    def _is(self, kind: int, offset: int, digest: bytes) -> bool:
        """Whether the rows have this digest at an offset within the window.

        Args:
            kind: 0 or `METRIC`.
        """
        segment = IDS.load(self.partition.space(IDS, "")[(str((offset >> SHIFT) % (self.segments + 1)),)])
        assert segment.number == offset >> SHIFT, "the rows reach as far back as the window"
        entry = bytes((offset & LAST | kind,)) + digest
        return packed.find(segment.ids, entry, WIDTH) >= 0

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


def offsets_of(offsets: Sequence[int]) -> Offsets:
    """Rising offsets as an array; where none is missing, made without looking at each."""
    if offsets and offsets[-1] - offsets[0] + 1 == len(offsets):
        return np.arange(offsets[0], offsets[-1] + 1, dtype=np.int64)
    return np.array(offsets, np.int64)


def digests_of(digests: Iterable[bytes]) -> Digests:
    """Digests as an array."""
    return np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 4)


def known_by(event: Event, record: Record) -> str:
    """What the window knows a record by: its event's id, or where it comes from if it was redriven."""
    place = sent_again(record.headers) if record.headers else None
    return f"{event.tenant}\0{event.id}" if place is None else redriven(place)


def metric_known_by(event: Event, record: Record) -> str | None:
    """What the window knows a metric by besides; None of what is no metric, or was redriven."""
    if event.data.__class__ is not MetricRecorded or (record.headers and sent_again(record.headers) is not None):
        return None
    return f"{event.tenant}\0{event.data.metric_id or event.id}"


def redriven(place: str) -> str:
    """What a redriven dead letter is known by instead of its id (contract §2): no tenant is called so.

    Args:
        place: of the letter's record, ``TOPIC/PARTITION/OFFSET``.
    """
    return f"\0redriven\0{place}"
