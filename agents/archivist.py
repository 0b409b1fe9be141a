"""The archive role in a process of its own: reads the source topics, keeps the files, answers raw queries.

Started by the worker (`agents.archive`), which sends the settings and then requests over stdin and gets answers and its state
over stdout; it ends when stdin does. Apart from the worker, because reading, compressing and answering would otherwise take
turns with folding, and because a query must never be able to stop a fold.

The rules this file keeps: nothing is lost, for what could not be written is still in memory and on the log; reading pauses
before memory grows; one thread writes, so files, tail and positions never disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.errors import PulsefoldError
from tables.times import DAY_US, rfc3339_or_none

from .access import discover_partitions, security
from .archive_files import CHUNK, Folder, Piece, Place, Unusable, total
from .archive_read import Snapshot
from .archive_rows import MADE, TABLE, Batch, Rows
from .pipe import frame, read_frame

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
RETRY_S = 2.0


@dataclass
class Tail:
    """A topic's rows that are in no file yet.

    Attributes:
        table: in the database; a new one after each write.
        ends: by partition, offset up to which (exclusive) records have been read.
        covered: by partition, offset up to which (inclusive) files have everything.
        written_at, took_s: of the last write.
    """

    table: str = ""
    rows: int = 0
    json_bytes: int = 0
    ends: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    cleared: dict[int, dict[str, int]] = field(default_factory=dict)
    written_at: float = 0.0
    took_s: float = 0.0


class Keeper:
    """Files and tail: everything but Kafka and pipes. Its methods are called by one thread, but for those of `Store`.

    Args:
        path: the archive's folder.
        counts: source topic (without prefix) -> partitions.
        window, max_future_us: as the folds have them.
        days: `archive_days`.
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
        days: float = 90.0,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.scratch = tempfile.mkdtemp(prefix="pulsefold-scratch-")
        self.database = duckdb.connect(
            ":memory:",
            config={
                "threads": 2, "memory_limit": "512MB", "temp_directory": self.scratch, "autoinstall_known_extensions": False,
                "autoload_known_extensions": False, "enable_external_file_cache": False, "preserve_insertion_order": True,
            },
        )  # fmt: skip
        self.folder = Folder(path, self.database, prefix=prefix, identities=identities or dict.fromkeys(counts, 0), chunk=chunk)
        self.counts = dict(counts)
        self.window, self.max_future_us, self.days, self.clock = window, max_future_us, days, clock
        self.rows: dict[Place, Rows] = {}
        self.tails = {topic: Tail(ends=[0] * n, covered=[-1] * n) for topic, n in counts.items()}
        self.newest: dict[str, int] = {}
        self.error: str | None = None
        self.removed = 0
        self._generation = 0
        self._snapshots: dict[str, Snapshot] = {}
        self._files: dict[str, tuple[Any, tuple[Piece, ...]]] = {}
        self._tidied_at = 0.0
        self._untidy = False
        self._scanning = threading.Lock()

    def close(self) -> None:
        """Give back what is only of this process."""
        self.database.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- beginning

    def open(self, log_starts: Mapping[Place, int]) -> dict[Place, int]:
        """Find the files; returns the offset to read next of each partition.

        Raises:
            OSError: the folder cannot be used at the moment.
            Unusable: nor ever, as it is.
        """
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
            end = self.tails[topic].ends[number]
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
        tail.ends[number] = max(tail.ends[number], end)
        self._snap(topic)

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
        tail.touched, tail.cleared = set(), {}
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
        try:
            for number in sorted(tail.touched):
                self._write(topic, number)
        except (OSError, duckdb.Error) as failed:
            self._failed(f"{self.folder.path} cannot be written: {_line(failed)}")
            tail.written_at = time.monotonic()
            self._snap(topic)
            return False
        self._well()
        old = tail.table
        self._fresh(topic)
        self._snap(topic)
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
            piece = self.folder.write((topic, number), first, last, tail.table, tail.cleared.get(number, {}))
            tail.covered[number] = piece.last
            tail.ends[number] = max(tail.ends[number], piece.last + 1)

    def _failed(self, text: str) -> None:
        if self.error != text:
            log.error("archive: %s; nothing is lost, it is tried again", text)
        self.error = text

    def _well(self) -> None:
        if self.error is not None:
            log.warning("archive: written again")
        self.error = None

    def tidy(self, now: float) -> None:
        """Remove what is past its time or cleared, now and then."""
        if now - self._tidied_at < (SOON_S if self._untidy else TIDY_S):
            return
        if self._untidy and any(tail.cleared for tail in self.tails.values()):
            return  # the clearing itself is not in a file yet
        self._tidied_at, self._untidy = now, False
        try:
            self.removed += self.folder.tidy({tenant: self.keep_from_us(tenant) for tenant in self.newest}, int(self.clock() * 1e6), self.days)
        except (OSError, duckdb.Error) as failed:
            self._untidy = True
            self._failed(f"{self.folder.path} cannot be tidied: {_line(failed)}")
        for topic in self.tails:
            self._snap(topic)

    # ---- reading (any thread)

    def snapshot(self, topic: str) -> Snapshot:
        """Where a topic's rows are now."""
        return self._snapshots[topic]

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for the calling thread."""
        return self.database.cursor()

    def refresh(self) -> None:
        """Another archiver of the same folder has replaced files."""
        with self._scanning:
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

    def newest_us(self, tenant: str) -> int | None:
        """Greatest event time of the tenant."""
        return self.newest.get(tenant)

    def keep_from_us(self, tenant: str) -> int:
        """Event time before which the tenant's rows are past their time: `archive_days` before its newest event."""
        newest = self.newest.get(tenant)
        now_us = int(self.clock() * 1e6)
        return (now_us if newest is None else min(newest, now_us)) - int(self.days * DAY_US)

    def lag(self, ends: Mapping[Place, int]) -> int:
        """Records on the log that are not read yet."""
        return sum(max(0, end - self.tails[topic].ends[number]) for (topic, number), end in ends.items())

    def state(self, ends: Mapping[Place, int]) -> dict[str, Any]:
        """For /status."""
        pieces = self.folder.all()
        return {
            "dir": str(self.folder.path),
            "days": self.days,
            "error": self.error,
            "broken_files": list(self.folder.broken),
            **total(pieces),
            "tail_rows": sum(tail.rows for tail in self.tails.values()),
            "tail_bytes": sum(tail.json_bytes for tail in self.tails.values()),
            "removed_rows": self.removed,
            "lag": self.lag(ends),
            "oldest": rfc3339_or_none(min((piece.min_us for piece in pieces if piece.min_us is not None), default=None)),
            "newest": rfc3339_or_none(max((piece.max_us for piece in pieces if piece.max_us is not None), default=None)),
        }


def _line(failed: BaseException) -> str:
    if isinstance(failed, OSError) and failed.strerror:
        return failed.strerror
    return str(failed).splitlines()[0] if str(failed) else type(failed).__name__


# ---- the process


class Archivist:
    """Reads the log into a `Keeper` and answers requests.

    Args:
        settings: the worker's.
        send: writes a value to the worker.
    """

    def __init__(self, settings: Given, send: Callable[[Any], None]) -> None:
        self.settings = settings
        self.send = send
        self.keeper: Keeper | None = None
        self.consumer: Any = None
        self.temporary: str | None = None
        self.ends: dict[Place, int] = {}
        self.problem: str | None = "starting"
        self.writer = ThreadPoolExecutor(1, "archive-writer")
        self.readers = ThreadPoolExecutor(2, "archive-reader")
        self.checks: dict[Place, tuple[int, bytes]] = {}
        self.places: dict[Any, Place] = {}
        self.read_to: dict[Any, int] = {}

    async def run(self) -> None:
        """Until cancelled; whatever fails is tried again."""
        while True:
            try:
                await self._begin()
                self.problem = None
                await self._follow()
            except Unusable as problem:
                self._trouble(str(problem))
            except (OSError, KafkaError, PulsefoldError, duckdb.Error) as problem:
                self._trouble(f"the archive waits: {_line(problem)}")
            finally:
                await self._end()
            await asyncio.sleep(RETRY_S)

    def _trouble(self, text: str) -> None:
        if self.problem != text:
            log.error("archive: %s", text)
        self.problem = text
        self.tell()

    async def _begin(self) -> None:
        get = self.settings.get
        ours, theirs = security(self.settings)
        counts, identities, embedded = await asyncio.to_thread(discover_partitions, self.settings, theirs)
        path = self._path(get("archive_dir"), identities, embedded)
        self.keeper = Keeper(
            path,
            counts,
            prefix=get("topic_prefix"),
            identities=identities,
            window=get("dedupe_window"),
            max_future_us=int(get("max_future_s") * 1e6),
            days=get("archive_days"),
        )
        self.consumer = AIOKafkaConsumer(
            bootstrap_servers=get("bootstrap"),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=50 if embedded else 500,  # the embedded broker answers a waiting fetch at its end only
            max_partition_fetch_bytes=1 << 20,
            max_poll_records=5000,
            **ours,
        )
        await self.consumer.start()
        self.places = {TopicPartition(get("topic_prefix") + topic, n): (topic, n) for topic, count in counts.items() for n in range(count)}
        self.consumer.assign(list(self.places))
        starts = {self.places[tp]: at for tp, at in (await self.consumer.beginning_offsets(list(self.places))).items()}
        await self._look_at_ends()
        at = await self._write_thread(self.keeper.open, starts)
        for tp, place in self.places.items():
            if at[place] > self.ends[place]:
                raise Unusable(f"{path} is the archive of a longer log than {tp.topic} is; set archive_dir to another folder, or move this one away")
            begin = at[place]
            known = self.keeper.last_digest(place) if not identities.get(place[0]) else None
            if known is not None and known[0] >= starts[place]:
                self.checks[place], begin = known, min(begin, known[0])
            self.consumer.seek(tp, begin)

    def _path(self, given: str | None, identities: Mapping[str, int], embedded: bool) -> Path:
        """The archive's folder."""
        if given is not None:
            return Path(given).expanduser()
        if embedded:  # it keeps nothing, nor do we
            self.temporary = self.temporary or tempfile.mkdtemp(prefix="pulsefold-archive-")
            return Path(self.temporary)
        get = self.settings.get
        base = get("data_dir") or Path(tempfile.gettempdir()) / f"pulsefold-{get('app_id')}"
        log_name = zlib.crc32(repr((get("topic_prefix"), sorted(identities.items()))).encode())
        return Path(base) / f"archive-{log_name:08x}"

    async def _write_thread(self, work: Callable[..., Any], *words: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.writer, work, *words)

    async def _look_at_ends(self) -> None:
        found = await self.consumer.end_offsets(list(self.places))
        self.ends = {self.places[tp]: end for tp, end in found.items()}

    async def _follow(self) -> None:
        keeper, consumer = self.keeper, self.consumer
        assert keeper is not None
        told = looked = 0.0
        while True:
            begun = time.monotonic()
            if keeper.full():
                got: dict[Any, Any] = {}
                await asyncio.sleep(0.5)
            else:
                got = await consumer.getmany(timeout_ms=500)
            n = 0
            for tp, records in got.items():
                place = self.places[tp]
                n += len(records)
                if place in self.checks:
                    records = self._checked(place, records)
                self.read_to[tp] = await consumer.position(tp)
                await self._write_thread(keeper.take, place, records, self.read_to[tp])
            now = time.monotonic()
            for topic in keeper.due(now):
                if await self._write_thread(keeper.write, topic):
                    self._skip_what_is_there(topic)
            await self._write_thread(keeper.tidy, now)
            if now - looked >= 1.0:
                looked = now
                await self._look_at_ends()
            if now - told >= 0.5:
                told = now
                self.tell()
            if n < 2000:  # little at a time costs more than it is worth
                await asyncio.sleep(max(0.0, 0.2 - (time.monotonic() - begun)))

    def _skip_what_is_there(self, topic: str) -> None:
        """Go on behind files that somebody else wrote, or that come after one that was made again."""
        assert self.keeper is not None
        tail = self.keeper.tails[topic]
        for tp, (name, number) in self.places.items():
            if name == topic:
                at = self.keeper.folder.resume((topic, number), tail.covered[number] + 1)
                if at > self.read_to.get(tp, at):
                    tail.ends[number], tail.covered[number] = at, at - 1
                    self.keeper.rows.pop((topic, number), None)  # the ids of what is passed over have to be known
                    self.consumer.seek(tp, at)
                    self.read_to[tp] = at

    def _checked(self, place: Place, records: Sequence[Any]) -> Sequence[Any]:
        """The log's record at the place of the last archived one must be that one."""
        import hashlib

        offset, digest = self.checks.pop(place)
        for record in records:
            if record.offset == offset and hashlib.sha256(record.value or b"").digest() != digest:
                assert self.keeper is not None
                path = self.keeper.folder.path
                raise Unusable(f"{path} is the archive of another log: {place[0]}/{place[1]} differs at offset {offset}; set archive_dir to another folder")
        return records

    async def _end(self) -> None:
        keeper, consumer = self.keeper, self.consumer
        self.keeper = self.consumer = None
        self.checks = {}
        if consumer is not None:
            with contextlib.suppress(Exception):
                await consumer.stop()
        if keeper is not None:
            await asyncio.shield(self._write_thread(_last_words, keeper))

    def tell(self) -> None:
        """Send the state."""
        state = {"ready": self.problem is None, "problem": self.problem}
        if self.keeper is not None and self.problem is None:
            state |= self.keeper.state(self.ends)
        self.send({"state": state})

    async def answer(self, request: Mapping[str, Any]) -> None:
        """Answer one request; never without an answer."""
        from .raw_answers import answer

        loop = asyncio.get_running_loop()
        keeper = self.keeper
        if keeper is None or self.problem is not None:
            reply: dict[str, Any] = {"status": 503, "detail": f"the archive cannot be read at the moment: {self.problem}"}
        else:
            try:
                reply = await loop.run_in_executor(self.readers, answer, keeper, self.settings, request["op"], request["tenant"], request["params"])
                reply.setdefault("lag", keeper.lag(self.ends))
            except Exception:
                log.exception("archive: a bug while answering %s", request.get("op"))
                reply = {"status": 500, "detail": "the archive could not answer; its log says why"}
        self.send({"id": request["id"], **reply})


def _last_words(keeper: Keeper) -> None:
    """Write what is not written yet, then close."""
    for topic, tail in keeper.tails.items():
        if tail.rows and tail.table:
            keeper.write(topic)
    keeper.close()


@dataclass(frozen=True)
class Given:
    """The worker's settings as they were sent: plain values by name."""

    values: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Value of a setting; decimals are text."""
        return self.values[name]


async def main() -> None:
    """Until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not break the frames
    sending = ThreadPoolExecutor(1, "archive-pipe")

    def send(value: Any) -> None:
        sending.submit(_write_all, out, frame(value))

    first = await read_frame(reader)
    if first is None:
        return
    archivist = Archivist(Given(first["settings"]), send)
    work = asyncio.create_task(archivist.run())
    asking: set[asyncio.Task[None]] = set()
    while (request := await read_frame(reader)) is not None:
        task = asyncio.create_task(archivist.answer(request))
        asking.add(task)
        task.add_done_callback(asking.discard)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    if archivist.temporary is not None:
        shutil.rmtree(archivist.temporary, ignore_errors=True)


def _write_all(out: Any, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):  # the worker has gone; stdin tells so too
        while view:
            view = view[out.write(view) :]


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the worker, which closes stdin
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
