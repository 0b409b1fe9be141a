"""What the archivist keeps: files, and the tail of each topic that is in no file yet. Everything but Kafka and pipes.

The rules this file keeps: nothing is lost, for what could not be written is still in memory and on the log; one thread writes,
so files, tail and positions never disagree; readers see what was true at one moment.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tables.times import DAY_US, rfc3339_or_none

from . import scratch
from .archive_files import CHUNK, Folder, Piece, Place, total
from .archive_read import Snapshot
from .archive_rows import MADE, TABLE, Batch, Rows

log = logging.getLogger("pulsefold.archive")

MOST_TAIL_BYTES = 64 << 20
"""Bytes of JSON that are kept in memory before reading pauses."""
WRITE_BYTES = 8 << 20
"""Bytes of JSON of a topic at which its tail is written."""
SOON_S, LATE_S = 2.0, 300.0
"""Least and longest time between two writes of a topic."""
SHARE = 50
"""A write may take one in this many seconds: the open file of a partition is written again each time."""
TIDY_S = 600.0
"""Seconds between two looks at what has to go."""


@dataclass
class Tail:
    """A topic's rows that are in no file yet.

    Attributes:
        table: in the database; a new one after each write.
        ends: by partition, offset up to which (exclusive) records have been read.
        covered: by partition, offset up to which (inclusive) files have everything.
        passed: by partition, ranges of offsets that the log no longer had when they were to be read.
        written_at, took_s: of the last write.
    """

    table: str = ""
    rows: int = 0
    json_bytes: int = 0
    ends: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    cleared: dict[int, dict[str, int]] = field(default_factory=dict)
    passed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    written_at: float = 0.0
    took_s: float = 0.0


class Keeper:
    """Files and tail: everything but Kafka and pipes. Its methods are called by one thread, but for those of `Store`.

    Args:
        path: the archive's folder.
        counts: source topic (without prefix) -> partitions.
        window, max_future_us: as the folds have them.
        days: `archive_days`: by tenant, ``""`` for every other one; or one number for all.
    """

    def __init__(
        self,
        path: Path,
        counts: Mapping[str, int],
        *,
        prefix: str = "pulsefold.",
        identities: Mapping[str, int] | None = None,
        window: int = 65_536,
        max_future_us: int = 3_600_000_000,
        days: Mapping[str, float] | float = 90.0,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.scratch = tempfile.mkdtemp(prefix="spilled-", dir=scratch.home())
        self.database = duckdb.connect(
            ":memory:",
            config={
                "threads": 2, "memory_limit": "512MB", "temp_directory": self.scratch, "autoinstall_known_extensions": False,
                "autoload_known_extensions": False, "enable_external_file_cache": False, "preserve_insertion_order": True,
            },
        )  # fmt: skip
        self.folder = Folder(path, self.database, prefix=prefix, identities=identities or dict.fromkeys(counts, 0), chunk=chunk)
        self.counts = dict(counts)
        self.window, self.max_future_us, self.clock = window, max_future_us, clock
        self.days: Mapping[str, float] = days if isinstance(days, Mapping) else {"": days}
        self.rows: dict[Place, Rows] = {}
        self.tails = {topic: Tail(ends=[0] * n, covered=[-1] * n) for topic, n in counts.items()}
        self.newest: dict[str, int] = {}
        self.error: str | None = None
        self.undeleted: str | None = None
        self.removed = 0
        self.opened_us = int(clock() * 1e6)
        self._cleared_us: dict[tuple[Place, str, int], int] = {}
        self._generation = 0
        self._snapshots: dict[str, Snapshot] = {}
        self._files: dict[str, tuple[Any, tuple[Piece, ...]]] = {}
        self._tidied_at = 0.0
        self._untidy = False
        self._changing = threading.RLock()

    def close(self) -> None:
        """Give back what is only of this process."""
        self.database.close()
        self._forget(last=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- beginning

    def open(self, log_starts: Mapping[Place, int]) -> dict[Place, int]:
        """Find the files; returns the offset to read next of each partition.

        Raises:
            OSError: the folder cannot be used at the moment.
            Unusable: nor ever, as it is.
        """
        with self._changing:
            return self._open(log_starts)

    def _open(self, log_starts: Mapping[Place, int]) -> dict[Place, int]:
        self.folder.open()
        for piece in self.folder.all():
            for tenant, (_, _, high) in (piece.tenants or {}).items():
                self.newest[tenant] = max(self.newest.get(tenant, high), high)
        found = {}
        for topic, n in self.counts.items():
            self._fresh(topic)
            for number in range(n):
                at = self.folder.resume((topic, number), log_starts.get((topic, number), 0))
                self.tails[topic].covered[number] = at - 1
                self.tails[topic].ends[number] = at
                found[(topic, number)] = at
            self._snap(topic)
        return found

    def last_digest(self, place: Place) -> tuple[int, bytes] | None:
        """Offset and digest of the last archived record of a partition, to compare with the log."""
        pieces = [piece for piece in self.folder.of(place[0]) if piece.partition == place[1] and piece.rows]
        if not pieces:
            return None
        newest = max(pieces, key=lambda piece: piece.first)
        asked = 'SELECT "offset", digest FROM read_parquet($paths) ORDER BY "offset" DESC LIMIT 1'
        with self.database.cursor() as cursor:
            offset, digest = cursor.execute(asked, {"paths": [newest.path]}).fetchall()[0]
        return offset, bytes(digest)

    def _maker(self, place: Place) -> Rows:
        """What makes a partition's rows, with the ids that came before."""
        found = self.rows.get(place)
        if found is None:
            topic, number = place
            found = Rows(topic, number, window=self.window, max_future_us=self.max_future_us)
            end = self.end(place)
            since = end - self.window
            paths = [piece.path for piece in self.folder.of(topic) if piece.partition == number and since <= piece.last and piece.first < end]
            if paths:
                asked = (
                    'SELECT "offset", tenant, id, redriven, metric_id FROM read_parquet($paths) '
                    'WHERE "offset" >= $since AND "offset" < $end AND id IS NOT NULL ORDER BY "offset"'
                )
                with self.database.cursor() as cursor:
                    found.remember(cursor.execute(asked, {"paths": paths, "since": since, "end": end}).fetchall())
            self.rows[place] = found
        return found

    # ---- taking in

    def end(self, place: Place) -> int:
        """Offset up to which (exclusive) a partition has been read."""
        return self.tails[place[0]].ends[place[1]]

    def take(self, place: Place, records: Sequence[Any], end: int) -> None:
        """Enter the next records of a partition into the tail.

        Args:
            end: fetch position after them.
        """
        topic, number = place
        tail = self.tails[topic]
        fresh = [record for record in records if record.offset >= tail.ends[number]]
        if fresh:
            batch = self._maker(place).make(fresh)
            self._insert(tail.table, batch)
            tail.rows += batch.rows
            tail.json_bytes += batch.json_bytes
            tail.touched.add(number)
            for tenant, time_us in batch.newest.items():
                self.newest[tenant] = max(self.newest.get(tenant, time_us), time_us)
            for tenant, offset in batch.cleared.items():
                tail.cleared.setdefault(number, {})[tenant] = offset
                self._untidy = True
                self._cleared_us[(place, tenant, offset)] = next(record.timestamp * 1000 for record in fresh if record.offset == offset)
        with self._changing:
            tail.ends[number] = max(tail.ends[number], end)
            self._snap(topic)

    def pass_over(self, place: Place, start: int) -> None:
        """The log begins at an offset behind what was to be read next: what is between was removed first."""
        topic, number = place
        tail = self.tails[topic]
        if start > tail.ends[number]:
            tail.passed.setdefault(number, []).append((tail.ends[number], start))
            log.error("archive: the brokers no longer have offsets %s to %s of %s/%s (retention removed them first)", tail.ends[number], start - 1, *place)

    def _insert(self, table: str, batch: Batch) -> None:
        with self.database.cursor() as cursor:
            cursor.register("batch", batch.columns)
            cursor.execute(f"INSERT INTO {table} SELECT {MADE} FROM batch")
            cursor.unregister("batch")

    def _fresh(self, topic: str) -> None:
        """A new, empty tail."""
        self._generation += 1
        tail = self.tails[topic]
        tail.table, tail.rows, tail.json_bytes = f"tail_{topic}_{self._generation}", 0, 0
        tail.touched, tail.cleared, tail.passed = set(), {}, {}
        with self.database.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {tail.table} ({TABLE})")

    def _snap(self, topic: str) -> None:
        tail, files = self.tails[topic], self.folder.pieces
        if self._files.get(topic, (None,))[0] is not files:
            self._files[topic] = files, tuple(self.folder.of(topic))
        self._snapshots[topic] = Snapshot(self._files[topic][1], tail.table, tuple(tail.covered), tuple(tail.ends))

    # ---- writing

    def due(self, now: float) -> list[str]:
        """Topics whose tail should be written now."""
        return [
            topic
            for topic, tail in self.tails.items()
            if tail.rows and (tail.json_bytes >= WRITE_BYTES or now - tail.written_at >= min(LATE_S, max(SOON_S, SHARE * tail.took_s)))
        ]

    def full(self) -> bool:
        """Whether reading has to wait for writing."""
        return sum(tail.json_bytes for tail in self.tails.values()) >= MOST_TAIL_BYTES

    def write(self, topic: str) -> bool:
        """Write a topic's tail into files; returns whether it is written. What could not be written stays in the tail."""
        tail = self.tails[topic]
        began = time.monotonic()
        with self._changing:
            try:
                for number in sorted(tail.touched):
                    self._write(topic, number)
            except (OSError, duckdb.Error) as failed:
                self._failed(f"{self.folder.path} cannot be written: {line_of(failed)}")
                tail.written_at = time.monotonic()
                self._snap(topic)
                return False
            self._well()
            old = tail.table
            self._fresh(topic)
            self._snap(topic)
            self._forget()
        with self.database.cursor() as cursor:
            cursor.execute(f"DROP TABLE {old}")
        tail.written_at = time.monotonic()
        tail.took_s = tail.written_at - began
        return True

    def _write(self, topic: str, number: int) -> None:
        tail, chunk = self.tails[topic], self.folder.chunk
        while tail.covered[number] + 1 < tail.ends[number]:
            first = (tail.covered[number] + 1) // chunk * chunk
            last = min(first + chunk, tail.ends[number]) - 1
            piece = self.folder.write(
                (topic, number), first, last, tail.table, tail.cleared.get(number, {}), tail.covered[number] + 1, tail.passed.get(number, ())
            )
            tail.covered[number] = piece.last
            tail.ends[number] = max(tail.ends[number], piece.last + 1)

    def _failed(self, text: str) -> None:
        if self.error is None:
            log.error("archive: %s; nothing is lost, it is tried again", text)
        self.error = text

    def _well(self) -> None:
        if self.error is not None:
            log.warning("archive: written again")
        self.error = None

    def tidy(self, now: float) -> None:
        """Remove what is past its time or cleared, now and then, and at any time what was replaced and is no longer read."""
        with self._changing:
            if self.folder.retired:
                self._forget()
            if now - self._tidied_at < (SOON_S if self._untidy else TIDY_S):
                return
            if self._untidy and any(tail.cleared for tail in self.tails.values()):
                return  # the clearing itself is not in a file yet
            self._tidied_at, self._untidy = now, False
            try:
                now_us = int(self.clock() * 1e6)
                floors = {tenant: now_us - int(days * DAY_US) for tenant, days in self.days.items()}
                slack_us = int(min(1.0, min(self.days.values()) / 10) * DAY_US)
                self.removed += self.folder.tidy({tenant: self.keep_from_us(tenant) for tenant in self.newest}, floors, slack_us)
            except (OSError, duckdb.Error) as failed:
                self._untidy = True
                self._failed(f"{self.folder.path} cannot be tidied: {line_of(failed)}")
            for topic in self.tails:
                self._snap(topic)
            self._forget()

    def _forget(self, *, last: bool = False) -> None:
        """Delete what was replaced; told once for as long as it cannot be."""
        before, self.undeleted = self.undeleted, None
        try:
            (self.folder.close if last else self.folder.forget)()
        except OSError as failed:
            self.undeleted = f"files in {self.folder.path} that were replaced cannot be deleted: {line_of(failed)}"
            if before is None:
                log.error("archive: %s; it is tried again", self.undeleted)

    # ---- reading (any thread)

    def snapshot(self, topic: str) -> Snapshot:
        """Where a topic's rows are now."""
        return self._snapshots[topic]

    def reading(self) -> AbstractContextManager[None]:
        """While it is open, files that are known stay where they are, unless another archiver of the folder replaces them."""
        return self.folder.reading()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for the calling thread."""
        return self.database.cursor()

    def refresh(self) -> None:
        """Another archiver of the same folder has replaced files."""
        with self._changing:
            self.folder.scan()
            for topic in self.tails:
                self._snap(topic)

    def erased(self, topic: str, tenant: str) -> dict[int, int]:
        """Partition -> offset up to which the tenant's rows are erased."""
        found = self.folder.cleared(topic, tenant)
        for number, cleared in list(self.tails[topic].cleared.items()):
            if tenant in cleared:
                found[number] = max(found.get(number, -1), cleared[tenant])
        return found

    def known_from_us(self, topic: str, tenant: str) -> int | None:
        """Kafka time from which on the tenant's rows of a topic are all here, microseconds; None = from the first record on.

        Before that they were erased. Of an erasure whose time nobody noted only its latest possible time is known.
        """
        noted: dict[int, int] = {}
        for piece in self.folder.of(topic):
            if tenant in piece.cleared_us:
                noted[piece.partition] = max(noted.get(piece.partition, 0), piece.cleared_us[tenant])
        found = []
        for number, offset in self.erased(topic, tenant).items():
            seen = self._cleared_us.get(((topic, number), tenant, offset))
            found.append(noted.get(number, self.opened_us) if seen is None else seen)
        return max(found, default=None)

    def lacks(self, topic: str, tenant: str) -> bool:
        """Whether some of the tenant's rows of a topic may have gone because they were past their time, or were on the log before it was read."""
        erased = self.erased(topic, tenant)
        for number, covered in enumerate(self.tails[topic].covered):
            at = erased.get(number, -1) + 1
            for piece in sorted((piece for piece in self.folder.of(topic) if piece.partition == number), key=lambda piece: piece.first):
                if piece.last >= at and (piece.first > at or piece.past.get(tenant, 0)):
                    return True
                at = max(at, piece.last + 1)
            if at <= covered:
                return True
        return False

    def newest_us(self, tenant: str) -> int | None:
        """Greatest event time of the tenant."""
        return self.newest.get(tenant)

    def keep_from_us(self, tenant: str) -> int:
        """Event time before which the tenant's rows are past their time: `archive_days` before its newest event."""
        newest = self.newest.get(tenant)
        now_us = int(self.clock() * 1e6)
        return (now_us if newest is None else min(newest, now_us)) - int(self.days.get(tenant, self.days[""]) * DAY_US)

    def lag(self, ends: Mapping[Place, int]) -> int:
        """Records on the log that are not read yet."""
        return sum(max(0, end - self.end(place)) for place, end in ends.items())

    def state(self, ends: Mapping[Place, int]) -> dict[str, Any]:
        """For /status."""
        pieces = self.folder.all()
        return {
            "dir": str(self.folder.path),
            "days": self.days[""],
            "days_of": {tenant: days for tenant, days in sorted(self.days.items()) if tenant},
            "error": self.error or self.undeleted,
            "broken_files": list(self.folder.broken),
            **total(pieces),
            "tail_rows": sum(tail.rows for tail in self.tails.values()),
            "tail_bytes": sum(tail.json_bytes for tail in self.tails.values()),
            "removed_rows": self.removed,
            "lag": self.lag(ends),
            "oldest": rfc3339_or_none(min((piece.min_us for piece in pieces if piece.min_us is not None), default=None)),
            "newest": rfc3339_or_none(max((piece.max_us for piece in pieces if piece.max_us is not None), default=None)),
        }


def line_of(failed: BaseException) -> str:
    if isinstance(failed, OSError) and failed.strerror:
        return failed.strerror
    return str(failed).splitlines()[0] if str(failed) else type(failed).__name__
