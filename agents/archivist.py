"""The archive role in a process of its own: reads the source topics, keeps the files, answers raw queries.

Started by the worker (`agents.archive`), which sends the settings and then requests over stdin and gets answers and its state
over stdout; it ends when stdin does. Apart from the worker, because reading, compressing and answering would otherwise take
turns with folding, and because a query must never be able to stop a fold.

The rules this file keeps: reading pauses before memory grows; whatever fails is told and tried again; one thread writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError

from streams.errors import PulsefoldError

from . import scratch
from .access import discover_partitions, folder_of, security
from .archive_files import Place, Unusable
from .archive_keeper import Keeper, line_of
from .pipe import frame, read_frame
from .repeats import condense

if TYPE_CHECKING:
    from .past import Past

log = logging.getLogger("pulsefold.archive")

RETRY_S = 2.0
SLOW = frozenset(("sql", "past"))
"""Requests that may take long."""
MOST_WAITING = 4
READ_UP_S = 5.0
"""Longest wait for reading what is on the log already, for an answer that must not lack any of it."""
S = TypeVar("S", bound=msgspec.Struct)


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
        self.slow = {op: ThreadPoolExecutor(1, f"archive-{op}") for op in SLOW}  # apart, so that somebody's long query makes nobody else wait
        self.n_slow = dict.fromkeys(SLOW, 0)
        self.past: Past | None = None
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
                self._trouble(f"the archive waits: {line_of(problem)}")
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
        self.past = None  # its folds are of the log as it was
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
        if given is None and embedded:  # it keeps nothing, nor do we
            self.temporary = self.temporary or tempfile.mkdtemp(prefix="archive-", dir=scratch.home())
            return Path(self.temporary)
        return folder_of(self.settings, identities)

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
            behind_gap = {tp: records[0].offset for tp, records in got.items() if records[0].offset > keeper.end(self.places[tp])}
            for tp, place in self.places.items():  # what is aborted, and control records, come to nobody
                read_to = keeper.end(place)
                if tp not in got and read_to < self.ends.get(place, 0) and place not in self.checks and (at := await consumer.position(tp)) > read_to:
                    got[tp], behind_gap[tp] = [], at
            starts = await consumer.beginning_offsets(list(behind_gap)) if behind_gap else {}  # it may be control records alone
            for tp, first in behind_gap.items():
                keeper.pass_over(self.places[tp], min(starts[tp], first))
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
        keeper = self.keeper
        if keeper is None or self.problem is not None:
            reply = self._away()
        else:
            try:
                reply = await self._answer(keeper, request)
                reply.setdefault("lag", keeper.lag(self.ends))
            except (KafkaError, ConsumerStoppedError, TimeoutError) as failed:
                reply = {"status": 503, "detail": f"the archive waits: {line_of(failed)}; ask again in a moment"}
            except Exception:
                if keeper is not self.keeper:  # it was closed under the query
                    reply = self._away()
                else:
                    log.exception("archive: a bug while answering %s", request.get("op"))
                    reply = {"status": 500, "detail": "the archive could not answer; its log says why"}
        self.send({"id": request["id"], **reply})

    def _away(self) -> dict[str, Any]:
        return {"status": 503, "detail": f"the archive cannot be read at the moment: {self.problem or 'it begins anew'}; ask again in a moment"}

    async def _answer(self, keeper: Keeper, request: Mapping[str, Any]) -> dict[str, Any]:
        from .raw_answers import answer

        loop = asyncio.get_running_loop()
        op, params = request["op"], request["params"]
        work: Callable[[], dict[str, Any]] = partial(answer, keeper, self.settings, op, request["tenant"], params)
        if op not in SLOW:
            behind: int | None = None
            if op == "log" and params.get("cursor") is None:
                with contextlib.suppress(KafkaError, ConsumerStoppedError, TimeoutError):  # files can be read without Kafka; the lag is then as last known
                    behind = await self._read_up(keeper, params.get("topics") or tuple(keeper.counts))
                if keeper is not self.keeper:
                    return self._away()
            reply = await loop.run_in_executor(self.readers, work)
            return reply if behind is None else {**reply, "lag": behind}
        if self.n_slow[op] >= MOST_WAITING:
            return {"status": 503, "detail": "too many long queries are waiting; ask again later"}
        self.n_slow[op] += 1
        try:
            if op == "past":
                work = partial(self._of_the_past, keeper, request["tenant"], params)
                if await self._read_up(keeper, tuple(keeper.counts)):
                    return {"status": 503, "detail": "the archive is still reading what is on the log; ask again in a moment"}
                if keeper is not self.keeper:
                    return self._away()
            return await loop.run_in_executor(self.slow[op], work)
        finally:
            self.n_slow[op] -= 1

    async def _read_up(self, keeper: Keeper, topics: Collection[str]) -> int:
        """Read what is on the log of these topics now, for a bounded time; returns how many records of it are still to be read.

        Raises:
            KafkaError, ConsumerStoppedError, TimeoutError: nobody tells where the log ends.
        """
        deadline = time.monotonic() + READ_UP_S
        wanted = [tp for tp, place in self.places.items() if place[0] in topics]
        found = await asyncio.wait_for(self.consumer.end_offsets(wanted), READ_UP_S)
        ends = {self.places[tp]: end for tp, end in found.items()}
        while keeper.lag(ends) and time.monotonic() < deadline and keeper is self.keeper:  # noqa: ASYNC110 - reading goes on in the other task
            await asyncio.sleep(0.05)
        return keeper.lag(ends)

    def _of_the_past(self, keeper: Keeper, tenant: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A folded view as it stood at a moment."""
        if self.past is None:
            from .past import Past
            from .past_log import Log

            self.past = Past(self.settings, keeper.counts, Log(self.settings))
        return self.past.answer(keeper, tenant, params)


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

    def fold(self, struct: type[S]) -> S:
        """The settings that a fold declared, as its struct."""
        return msgspec.convert({name: self.values[name] for name in struct.__struct_fields__}, struct)


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
    condense("aiokafka")
    asyncio.run(main())
