"""What survives every worker: the logs, the group's offsets, and which of the log's records are gone for good."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import NamedTuple

from agents.core import AT, BUILT, SCHEMA, SERVED, TOLD
from tables.partition import HEAD

KEPT = TOLD.encode() + b"."
"""Beginning of changelog keys of what is told of alerts: an older one that comes late is put right by whoever reads it, as a row is."""
UNVERSIONED = (SCHEMA.encode() + b"|", SERVED, KEPT, BUILT.encode() + b".")
"""Beginnings of changelog keys that are no rows."""
first_of = itemgetter(0)
offset_of = attrgetter("offset")


def buried_of(key: bytes) -> tuple[bytes, bytes]:
    """Generation and tenant of a row by its changelog key."""
    wire, tenant, *_ = key.split(b"|", 2)
    return wire.rpartition(b".")[2], tenant


@dataclass(slots=True)
class Rec:
    """A record of the source log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Told(NamedTuple):
    """An output on its topic.

    Attributes:
        offset: of the record that it follows from.
        generation: by whose tables; empty where it was told after a swap, by comparison.
        late: it was written by a worker that was no owner any more.
    """

    offset: int
    topic: str
    key: bytes | None
    value: bytes | None
    generation: str
    late: bool


@dataclass
class Broker:
    """All of one source partition.

    Attributes:
        identity: of the source topic.
        log: records; what retention removed is still here, below `start`.
        gone: [start, end) of what was removed before anybody had folded it.
        changelog: (offset, key, value).
        newest, graves: changelog key -> highest version that was ever appended, of any row and of graves; of what is told of alerts its offset, since
            that was ended last.
        buried: (generation, tenant) -> highest version of a grave.
        highest, whole: version of the newest row or output, and of the newest of the rows that are written last: below it everything is durable.
        committed: the group's offset.
    """

    identity: int = 7
    log: list[Rec] = field(default_factory=list)
    start: int = 0
    end: int = 0
    gone: list[tuple[int, int]] = field(default_factory=list)
    changelog: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    changelog_end: int = 0
    newest: dict[bytes, int] = field(default_factory=dict)
    graves: dict[bytes, int] = field(default_factory=dict)
    buried: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    highest: int = -1
    whole: int = -1
    outputs: list[Told] = field(default_factory=list)
    published: set[tuple[int, str, bytes | None, bytes | None]] = field(default_factory=set)
    committed: int | None = None

    def produce(self, timestamp: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Append to the source log."""
        self.log.append(Rec(self.end, timestamp, key, value, headers))
        self.end += 1

    def records(self, start: int, most: int) -> tuple[list[Rec], int]:
        """Records from an offset on, and the position behind them; control records at the end are passed."""
        first = bisect_left(self.log, start, key=offset_of)
        records = self.log[first : first + most]
        return records, self.log[first + most].offset if first + most < len(self.log) else self.end

    def append(self, key: bytes, value: bytes | None) -> None:
        """Append to the changelog."""
        if value is not None and len(value) >= HEAD.size and not key.startswith(UNVERSIONED):
            version = HEAD.unpack_from(value)[0]
            if version > self.newest.get(key, -1):
                self.newest[key] = version
            if version > self.highest:
                self.highest = version
            if key.startswith(b"ids."):
                self.whole = max(version, self.whole)
            if len(value) == HEAD.size:
                place = buried_of(key)
                self.buried[place] = max(version, self.buried.get(place, -1))
                self.graves[key] = max(version, self.graves.get(key, -1))
        elif key.startswith(KEPT):
            if value is None:
                self.newest.pop(key, None)
            else:
                self.newest[key] = max(AT.unpack_from(value)[0], self.newest.get(key, -1))
        self.changelog.append((self.changelog_end, key, value))
        self.changelog_end += 1

    def read(self, position: int, most: int) -> tuple[list[tuple[bytes, bytes | None]], int]:
        """Changelog records from a position on, and the position behind them."""
        if position == self.changelog_end:
            return [], position
        first = bisect_left(self.changelog, position, key=first_of)
        records = self.changelog[first : first + most]
        return [(r[1], r[2]) for r in records], records[-1][0] + 1 if len(records) == most else self.changelog_end

    def compact(self, upto: int | None = None) -> None:
        """Of the changelog below an offset keep the last record of each key; all of a key whose last of all is not its newest.

        A changelog's lag is so long: nobody takes longer to repair what a zombie wrote, or to read what was there when it began.

        Args:
            upto: offset; None: the last record of every key is kept, and nothing else.
        """
        below = len(self.changelog) if upto is None else bisect_left(self.changelog, upto, key=first_of)
        head = self.changelog[:below]
        last = {record[1]: record for record in head}
        kept: set[bytes] = set()
        if upto is not None:
            kept = {record[1] for record in {record[1]: record for record in self.changelog}.values() if not self.is_newest(record[1], record[2])}
        self.changelog[:below] = [record for record in head if record[1] in kept or last[record[1]] is record]

    def is_newest(self, key: bytes, value: bytes | None) -> bool:
        """Whether a value is the row of the highest version that was ever appended, or the tombstone of its grave; of what is told, nothing older."""
        if key.startswith(KEPT):
            return value is None or AT.unpack_from(value)[0] == self.newest[key]
        if key.startswith(UNVERSIONED):
            return True
        if value is None:
            return self.graves.get(key, -1) == self.newest.get(key, -1)
        return HEAD.unpack_from(value)[0] == self.newest[key]

    def recreate(self) -> None:
        """The source topic is deleted and made again: nothing is on its log, and the group has no offset of it any more."""
        self.identity += 1
        self.log, self.start, self.end, self.gone, self.committed = [], 0, 0, [], None
