"""All contact with Faust's inside, in one module (checked by tests/unit/test_seam.py against the installed version).

The chunk seam: a transport driver whose consumer hands out one message per (partition, fetched chunk), with the fetch
positions [start, end) that it covers. Everything per message that Faust does (four tasks, ack bookkeeping, sensors) is
then paid once a chunk; what may be committed is decided by the engine, which knows what is durable.

Overridden, each for a reason of design.md §4: the consumer's thread (it runs in the worker's loop) and creation (hard-coded isolation,
fetch wait and assignor), the fetch (positions), getmany (chunks, seeks inside it), ack/gap/committable (Faust acks what nobody folded),
the event-path watchdog (false alarms), aiokafka's view of fetched bytes (it does not give them back: checksums and the size of chunks
need them), the table manager (recovery of tables that are not Faust's), the boot order, the HTTP server's limits.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Protocol

import aiokafka
import aiokafka.conn as aiokafka_conn
import faust
import google_crc32c
from aiohttp import web
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.errors import ConsumerStoppedError, KafkaConnectionError, KafkaError
from aiokafka.record.memory_records import MemoryRecords
from faust.app.base import BootStrategy
from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.tables.manager import TableManager
from faust.transport import drivers
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as stock
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from faust.web.base import BlueprintManager
from mode import Service
from mode.utils.futures import maybe_async, notify

from tables.dedupe import SLICE

from .limits import HEAD_S, LINGER_S, MAX_FIELD, MAX_LINE, MOST_CONNECTIONS
from .spread import SpreadAssignor

CLOSE_S = 5.0
"""Longest time that closing the consumer may take."""
START_S = 0.5
"""Longest time that a consumer's start may take to its end when it is to stop."""
COMMIT_S = 5.0
"""Longest time that one commit may take."""
MOST_A_CHUNK, LEAST_A_CHUNK = 4096, 256
"""Records folded before anything else gets its turn: as many as take `CHUNK_S`, within these."""
CHUNK_S = 0.05
"""Seconds that folding a chunk should take at most: questions wait for it."""
HEAVIEST_CHUNK = 1 << 20
"""Their bytes, as far as whole batches can be told apart."""
FETCHED = 2 << 20
"""Bytes that a node may answer a fetch with, about: several batches of who sends them by the megabyte."""
EXPANDS = 8
"""How many bytes a compressed one is taken for."""
LENGTH_ENDS, CRC_ENDS = 12, 21
"""Where in a batch of records its length ends, of what follows, and its checksum, of what follows (Kafka's record format 2)."""
TURNS = 5
"""Turns of the loop in which aiokafka asks for more, once what it had is taken: a broker then gathers it while this is folded."""
READ_AHEAD = 1 << 20
"""Bytes of an answer that may wait to be put together; aiokafka's own number lets a connection be stopped and begun again every 128 KiB."""
NO_BYTES = memoryview(b"")
COMPILED = google_crc32c.implementation == "c"
"""Whether google-crc32c has its compiled part here; the other is slower than aiokafka's."""


class Pace:
    """How many records of a topic make a chunk, by what the last ones cost. (What a row holds does not depend on where chunks end.)

    Example:
        >>> pace = Pace()
        >>> pace.most("judgments")
        1024
        >>> pace.took("judgments", 1000, 0.16)  # 160 microseconds a record
        >>> pace.most("judgments")
        312
    """

    def __init__(self) -> None:
        self._record_s: dict[str, float] = {}

    def took(self, topic: str, records: int, seconds: float) -> None:
        """A chunk was folded."""
        if records:
            cost = seconds / records
            known = self._record_s.get(topic, cost)
            self._record_s[topic] = known + (cost - known) * min(1.0, records / SLICE)  # of few records it is mostly what a chunk costs

    def most(self, topic: str) -> int:
        """Records of the next chunk."""
        cost = self._record_s.get(topic)
        return SLICE if cost is None else max(LEAST_A_CHUNK, min(MOST_A_CHUNK, int(CHUNK_S / max(cost, 1e-9))))


class Driven(Protocol):
    """What the seam asks of the engine (`app.engine`)."""

    pace: Pace

    def is_source(self, topic: str) -> bool:
        """Whether this Kafka topic is one of ours."""
        ...

    def readable(self, tp: TP) -> bool:
        """Whether the partition may be fetched now: owned, restored, and not too far ahead of the writes."""
        ...

    def seeks(self) -> dict[TP, int]:
        """Positions to fetch from, for partitions that just became ready or whose chunk was refused; asked once each."""
        ...

    def epoch(self, tp: TP) -> int:
        """Number of the present ownership."""
        ...

    def committable(self) -> dict[TP, int]:
        """Offsets below which everything is durable."""
        ...

    def committed(self, offsets: Mapping[TP, int]) -> None:
        """The group's offsets are now these."""
        ...


class Chunk(ConsumerMessage):  # type: ignore[misc]  # faust is untyped here
    """One message for a fetched chunk: ``value`` is (epoch, start, end, records)."""


class Inline(stock.AIOKafkaConsumerThread):  # type: ignore[misc]  # faust is untyped here
    """What Faust runs in a thread of its own, in the worker's loop: the consumer, with our fetch positions.

    Two threads take turns under Python's lock, and each turn handed to the other processor costs: in one, a worker folds some 5 % more.
    Folding gives way to the loop after each chunk, so heartbeats are sent in time; where something else holds the loop, `agents.pulse` sends them.
    """

    def __init__(self, consumer: Any, *, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, **kwargs)

    _starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._thread_started.set()
        self._starting = asyncio.ensure_future(self._default_start())
        await self._starting

    async def stop(self) -> None:
        if self._starting is None or self._stopped.is_set():
            return
        self._stopped.set()
        if not self._starting.done():  # aiokafka's consumer would go on with its start after its stop
            await asyncio.wait([self._starting], timeout=START_S)
            self._starting.cancel()  # if it waits for a broker; a connection that is being made is then left open
            await asyncio.wait([self._starting])
        await self._shutdown_thread()

    def close(self) -> None:
        """Faust closes half of the consumer when it is stopped in a rebalance, and the other half would join the group again; `stop` closes it in order."""

    @Service.task
    async def _thread_keepalive(self) -> None:
        """Faust's thread would go to sleep without."""

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await maybe_async(fun(*args, **kwargs))

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = SpreadAssignor
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=stock.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[SpreadAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_bytes=FETCHED,
            fetch_max_wait_ms=self.app.engine.fetch_wait_ms,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_committed",
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **self.app.kafka_security,
        )

    async def _fetch_records(self, consumer: Any, active_partitions: set[TP], timeout: float | None = None, max_records: int | None = None) -> dict[TP, Packed]:
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError()
        wanted = [aiokafka.TopicPartition(tp.topic, tp.partition) for tp in active_partitions]
        packed(fetcher)
        wait_at_most(fetcher, self.app.engine.fetch_wait_ms)
        problem: BaseException | None = None
        with fetcher._subscriptions.fetch_context():  # counts who is within, and forgets to count down where it is left by an exception
            try:
                got = await fetcher.fetched_records(wanted, timeout or 0.0, max_records=max_records)
            except BaseException as exc:
                problem = exc
        if problem is not None:
            raise problem
        # its own start, not the position before the wait: out of range, the client goes to the log's start by itself, and what it passes over was not fetched
        return {ensure_TP(tp): taken for tp, taken in got.items()}

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """aiokafka tries for ever, and Faust swallows the cancelling of who waits for it: whatever stops would wait for a dead broker."""
        try:
            async with asyncio.timeout(COMMIT_S):
                return bool(await super()._commit(offsets))
        except TimeoutError:
            return False  # committed next time, or folded again

    async def on_thread_stop(self) -> None:
        """aiokafka's fetcher lets its own cancelling out if it is closed while it waits for a broker: Faust would wait for ever."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await super().on_thread_stop()
        except (asyncio.CancelledError, TimeoutError):
            self.log.warning("the consumer could not be closed in order")
            if self._consumer is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await self._consumer._client.close()

    async def committed_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        """The group's committed offsets, of partitions that have one; they may be anybody's."""
        asked = [aiokafka.TopicPartition(tp.topic, tp.partition) for tp in tps]
        found = await self._ensure_consumer()._coordinator.fetch_committed_offsets(asked)
        return {ensure_TP(tp): int(at.offset) for tp, at in found.items() if at.offset >= 0}

    def member(self) -> tuple[int, str] | None:
        """Generation and name of the group's member that this consumer is, None while it is none."""
        coordinator = self._consumer and self._consumer._coordinator
        return (coordinator.generation, coordinator.member_id) if coordinator and coordinator.generation > 0 else None

    def complaint(self) -> BaseException | None:
        """What aiokafka's coordination stopped with and waits to tell; it goes on once it is told."""
        if self._consumer is None or self._consumer._coordinator is None:  # before it has started
            return None
        try:
            self._consumer._coordinator.check_errors()
        except KafkaError as exc:
            return exc
        return None


def packed(fetcher: Any) -> None:
    """Let what is fetched come as `Packed` records: to be called before anything is taken of a consumer's fetcher."""
    if fetcher._records.__class__ is not _Fetched:
        fetcher._records = _Fetched(fetcher._records)


def wait_at_most(fetcher: Any, wait_ms: int) -> None:
    """How long a broker may wait for something to answer with, from the next request on; aiokafka lets it be chosen at the start only."""
    fetcher._fetch_max_wait_ms = wait_ms


class Packed:
    """What was taken of a fetched partition: the records of the positions [start, end), unpacked while they are asked for, once.

    They have offset, timestamp, key, value and headers, and no topic and partition: without the copy of each that aiokafka makes,
    fetching costs half. And what waits to be folded waits as bytes; a record is made when its turn has come, is folded while the
    processor still has it at hand, and its place is taken by the next.

    Args:
        start, end: positions of the fetch before and after it.
        parts: batches, and which of the positions of each.
        most: records there may be.
    """

    __slots__ = ("_most", "_parts", "end", "start")

    def __init__(self, start: int, end: int, parts: list[tuple[_Batch, int, int]], most: int) -> None:
        self.start = start
        self.end = end
        self._parts: list[tuple[_Batch, int, int]] | None = parts
        self._most = most

    def __bool__(self) -> bool:
        return self.end > self.start

    def __len__(self) -> int:
        """Records there may be: offsets of which none is known to be missing."""
        return self._most

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._pieces())

    def cut(self, most: int) -> Iterator[Packed]:
        """The same in its place, so many records at a time, and batches of so many bytes; to be unpacked in their order."""
        start, parts, n, weight = self.start, list[tuple[_Batch, int, int]](), 0, 0
        for batch, begin, end in self._parts or ():
            if parts and weight + batch.weight > HEAVIEST_CHUNK:
                yield Packed(start, begin, parts, n)
                start, parts, n, weight = begin, [], 0, 0
            while n + end - begin > most:
                at = begin + most - n
                if at > begin:
                    parts.append((batch, begin, at))
                yield Packed(start, at, parts, most)
                start, parts, n, weight, begin = at, [], 0, 0, at
            parts.append((batch, begin, end))
            n += end - begin
            weight += batch.weight
        yield Packed(start, self.end, parts, n)

    def _pieces(self) -> Iterator[list[Any]]:
        parts, self._parts = self._parts, None
        if parts is None:
            raise RuntimeError("packed records are unpacked once")
        for batch, start, end in parts:
            yield from batch.pieces(start, end)


class _Fetched(dict[Any, Any]):
    """aiokafka's fetched results by partition, each made to give packed records as it comes in: before a record is taken from it."""

    def __init__(self, results: Mapping[Any, Any]) -> None:
        super().__init__()
        for tp, result in results.items():
            self[tp] = result

    def __setitem__(self, tp: Any, result: Any) -> None:
        found = getattr(result, "_partition_records", None)
        if found is not None:
            found._records = _Batches(found._records)
            found._consumer_record = _whole
            result.begun = None
            result.getall = partial(_taken, result)
        super().__setitem__(tp, result)


class _KeptBytes(MemoryRecords):  # type: ignore[misc]  # aiokafka is untyped here
    """aiokafka's view of fetched bytes, with the bytes, which its own does not give back."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.raw = raw


aiokafka_fetcher.MemoryRecords = _KeptBytes


class _Batches:
    """aiokafka's view of fetched bytes whose batches are taken whole."""

    __slots__ = ("_all", "_at", "_raw", "has_next")

    def __init__(self, batches: Any) -> None:
        self._all = batches
        self._raw: bytes = batches.raw
        self._at = 0
        self.has_next = batches.has_next

    def next_batch(self) -> _Batch:
        at = self._at
        self._at += LENGTH_ENDS + int.from_bytes(self._raw[at + LENGTH_ENDS - 4 : at + LENGTH_ENDS], "big")
        return _Batch(self._all.next_batch(), memoryview(self._raw)[at + CRC_ENDS : self._at])


class _Batch:
    """A batch as aiokafka knows it, that gives itself as its one record, with the offset of its last.

    Its records are read in order, by one reader after the other; what one has read too far the next finds.

    Args:
        summed: the bytes that its checksum is of.

    Attributes:
        weight: how much there is to unpack, bytes, about. (Batches of Kafka's first formats do not tell whether they are compressed.)
    """

    __slots__ = ("_ahead", "_batch", "_passed", "_records", "_summed", "offset", "weight")

    def __init__(self, batch: Any, summed: memoryview) -> None:
        self._batch = batch
        self._summed = summed
        self.weight = len(summed) * (EXPANDS if getattr(batch, "compression_type", 0) else 1)
        self._ahead: list[Any] = []
        self._passed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def validate_crc(self) -> bool:
        """Whether the bytes are those that were sent: by google-crc32c, since aiokafka's sum costs a third to a half of a fetch (`benchmarks.fetching`)."""
        if not COMPILED or getattr(self._batch, "magic", 0) < 2:  # Kafka's first formats, whose batches do not tell theirs, have another sum
            return bool(self._batch.validate_crc())
        return bool(google_crc32c.value(bytes(self._summed)) == self._batch.crc)

    def __iter__(self) -> Iterator[_Batch]:
        self._summed = NO_BYTES  # else it would keep all that was fetched with it
        self._records = islice(self._batch, None)  # uncompressed here; begun once, since aiokafka's batch refuses a second `iter`
        self.offset = self._batch.next_offset - 1
        yield self

    def pieces(self, start: int, end: int) -> Iterator[list[Any]]:
        """The records of these positions, as many at a time as are folded at once."""
        if start < self._passed:
            raise RuntimeError(f"what lies before {self._passed} was passed over, asked is for {start}")
        self._passed = end
        while True:
            piece = self._ahead or list(islice(self._records, SLICE))
            if not piece:
                return
            self._ahead = []
            if piece[-1].offset >= end:
                cut = bisect_left(piece, end, key=_offset)
                piece, self._ahead = piece[:cut], piece[cut:]
            if piece and piece[0].offset < start:  # a fetch may begin inside a batch, and what nobody asked for is passed over
                piece = piece[bisect_left(piece, start, key=_offset) :]
            if piece:
                yield piece
                if piece[-1].offset >= end - 1:
                    return
            elif self._ahead:
                return


_offset = attrgetter("offset")


def _whole(tp: Any, batch: _Batch) -> _Batch:
    return batch


def _taken(fetched: Any, max_records: int | None = None) -> Packed | None:
    """aiokafka's `getall`, by batches. What is cut off a batch waits for the next call; the position is behind what was taken."""
    if not fetched.check_assignment(fetched._topic_partition) or not fetched.has_more():
        return None
    found = fetched._partition_records
    start = position = found.next_fetch_offset
    parts: list[tuple[_Batch, int, int]] = []
    most, more = 0, True
    while more and (max_records is None or most < max_records):
        batch = fetched.begun or next(found, None)
        if batch is None:
            position, more = found.next_fetch_offset, False
            continue
        begin, behind = max(position, getattr(batch, "base_offset", 0)), batch.offset + 1  # batches of Kafka's first formats do not tell
        position = behind if max_records is None else min(behind, begin + max_records - most)
        fetched.begun = batch if position < behind else None
        parts.append((batch, begin, position))
        most += position - begin
    found.next_fetch_offset = position
    fetched._update_position()
    if not more:
        fetched._partition_records = None
        del fetched.getall  # which refers to it: its memory would wait for the collector
    return Packed(start, position, parts, most)


def positions(consumer: Any, tps: Iterable[Any]) -> dict[Any, int]:
    """Fetch positions of partitions that have one."""
    subscription = consumer._subscription.subscription
    assignment = subscription and subscription.assignment
    found = {}
    for tp in tps:
        state = assignment and assignment.state_value(tp)
        if state is not None and state.has_valid_position:
            found[tp] = state.position
    return found


class Consumer(stock.Consumer):  # type: ignore[misc]  # faust is untyped here
    """Hands out chunks. getmany is the only reader and runs one at a time; every seek outside a rebalance happens in it."""

    def _new_consumer_thread(self) -> Inline:
        return Inline(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        engine: Driven = self.app.engine
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        generation = self.app.consumer_generation_id
        wanted = {tp: offset for tp, offset in engine.seeks().items() if tp in self.assignment()}
        if wanted:
            await self._thread.seek_wait(wanted)
        active = {tp for tp in self._get_active_partitions() if engine.readable(tp)}
        self._read_only(active)
        if not active:
            await self.sleep(0.01)
            return
        epochs = {tp: engine.epoch(tp) for tp in active}
        spans = await self._getmany(active_partitions=active, timeout=min(timeout, 0.2))
        if self.should_stop or not spans or not self.flow_active or self.app.consumer_generation_id != generation:
            return  # whatever was fetched and is dropped here is refused by the chain check and fetched again
        if sum(map(len, spans.values())) >= SLICE:
            for _ in range(TURNS):
                await asyncio.sleep(0)
        for tp, taken in spans.items():
            for part in taken.cut(engine.pace.most(tp.topic)):
                if not self.flow_active or self.app.consumer_generation_id != generation:
                    return
                self._read_offset[tp] = None  # Faust would drop what it takes for a repetition
                value = epochs[tp], part.start, part.end, part
                yield tp, Chunk(tp.topic, tp.partition, part.end - 1, 0.0, 0, [], None, value, None, 0, 0, tp, generation_id=generation)

    def _read_only(self, active: set[TP]) -> None:
        """Fetch nothing of other partitions: what nobody may read would wait in memory, a fetch of each."""
        consumer = self._thread._ensure_consumer()
        paused = {ensure_TP(tp) for tp in consumer.paused()}
        assigned = self.assignment()
        if wrong := (assigned - active) - paused:
            consumer.pause(*(aiokafka.TopicPartition(tp.topic, tp.partition) for tp in wrong))
        if wrong := active & assigned & paused:
            consumer.resume(*(aiokafka.TopicPartition(tp.topic, tp.partition) for tp in wrong))

    def fetch_positions(self) -> dict[TP, int]:
        """Where the next fetch of each assigned partition begins."""
        consumer = self._thread._consumer
        if consumer is None:
            return {}
        found = positions(consumer, [aiokafka.TopicPartition(tp.topic, tp.partition) for tp in self.assignment()])
        return {ensure_TP(tp): at for tp, at in found.items()}

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if not self.app.engine.is_source(tp.topic):
            await super()._add_gap(tp, offset_from, offset_to)

    def ack(self, message: Any) -> bool:
        if type(message) is not Chunk:
            return bool(super().ack(message))
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    def _filter_committable_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        engine: Driven = self.app.engine
        found: dict[TP, int] = super()._filter_committable_offsets(tp for tp in tps if not engine.is_source(tp.topic))
        found.update(engine.committable())
        return found

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        done = bool(await super()._commit(offsets))
        if done:
            self.app.engine.committed(offsets)
        return done

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's watchdog looks at its own acks; the engine has its own."""


class Transport(stock.Transport):  # type: ignore[misc]  # faust is untyped here
    """Driver ``chunk://``."""

    Consumer = Consumer


_send = aiokafka_conn.AIOKafkaConnection.send


def _send_or_tell(self: Any, request: Any, expect_response: bool = True) -> Any:
    """aiokafka expects an OSError of a closed connection; uvloop gives a RuntimeError, and a dead broker would look like a bug of ours."""
    try:
        return _send(self, request, expect_response)
    except RuntimeError as closed:
        if self._writer is None or not self._writer.is_closing():
            raise
        self.close(reason=aiokafka_conn.CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {closed}") from closed


aiokafka_conn.AIOKafkaConnection.send = _send_or_tell
aiokafka_conn.READER_LIMIT = READ_AHEAD


def credentials(security: Mapping[str, Any]) -> Credentials | None:
    """The same words for Faust, whose own producer connects too.

    Args:
        security: keyword arguments of aiokafka clients.
    """
    context = security.get("ssl_context")
    if "sasl_mechanism" in security:
        return SASLCredentials(
            username=security["sasl_plain_username"], password=security["sasl_plain_password"], mechanism=security["sasl_mechanism"], ssl_context=context
        )
    return None if context is None else SSLCredentials(context)


def register() -> None:
    """Make ``broker='chunk://…'`` known to Faust."""
    drivers.TRANSPORTS.aliases["chunk"] = "agents.seam:Transport"


class Rows(faust.Table):  # type: ignore[misc]  # faust is untyped here
    """Read-only face of one of our tables, so that ``faust tables`` lists it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("rows are written by the engine only")


class Tables(TableManager):  # type: ignore[misc]  # faust is untyped here
    """Lists read-only tables without recovering them: recovery, assignor and subscription never see them."""

    def __bool__(self) -> bool:
        return bool(self._changelogs)

    def add(self, table: Any) -> Any:
        if not isinstance(table, Rows):
            return super().add(table)
        self[table.name] = table
        return table

    async def _update_channels(self) -> None:
        ours = {name: self.pop(name) for name in [n for n, table in self.items() if isinstance(table, Rows)]}
        try:
            await super()._update_channels()
        finally:
            self.update(ours)


class Gate(Service):  # type: ignore[misc]  # mode is untyped here
    """Lets the consumer join its group only when the tables are restored, so that no partition waits for a cold worker."""

    def __init__(self, engine: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine

    async def on_start(self) -> None:
        """Wait for the engine."""
        await self.engine.joinable()


class Boot(BootStrategy):  # type: ignore[misc]  # faust is untyped here
    """The engine starts before the consumer and stops after it; a worker that does not fold has no consumer."""

    def kafka_consumer(self) -> Iterable[Any]:
        engine = self.app.engine
        return [engine, Gate(engine, loop=self.app.loop, beacon=self.app.beacon), *super().kafka_consumer()] if engine.config.folds else [engine]

    def agents(self) -> Iterable[Any]:
        return super().agents() if self.app.engine.config.folds else []

    def kafka_conductor(self) -> Iterable[Any]:
        return super().kafka_conductor() if self.app.engine.config.folds else []

    def tables(self) -> Iterable[Any]:
        return super().tables() if self.app.engine.config.folds else []


class Runner(web.AppRunner):
    """aiohttp's server behind our limits: who does not come to the point is let go, and so is one connection too many.

    aiohttp's own patience with a head that does not end is an hour, and its number of connections is that of the files it may open.
    """

    def __init__(self, application: web.Application) -> None:
        super().__init__(
            application,
            access_log=None,  # a token or a name in an address would be in it
            keepalive_timeout=HEAD_S,  # counts from the connection's first moment, and what trickles in does not wind it up again
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            lingering_time=LINGER_S,
            shutdown_timeout=CLOSE_S,
        )

    async def _make_server(self) -> Any:
        server: Any = await super()._make_server()
        made = server.connection_made

        def connection_made(handler: Any, transport: Any) -> None:
            made(handler, transport)
            if len(server.connections) > MOST_CONNECTIONS:
                # once the handler has begun: aiohttp would tell of a bug, with a traceback for every one of a flood
                asyncio.get_running_loop().call_soon(transport.abort)

        server.connection_made = connection_made
        return server


class Worker(faust.Worker):  # type: ignore[misc]  # faust is untyped here
    """Runs the app until it is told to stop."""

    async def _sentinel_task(self) -> None:
        """Faust sleeps a second before it closes its loop; what is left there was cancelled, and needs a turn."""
        await asyncio.sleep(0.05)

    def stop_and_shutdown(self) -> None:
        """Stop, then close the loop. Whatever goes wrong is told: Faust would exit with 1 and not say why."""
        try:
            super().stop_and_shutdown()
        except Exception as problem:
            if self.crash_reason is not None:
                raise  # told where it came from
            asked = self._signal_stop_future
            if asked is None or not asked.done() or asked.cancelled() or asked.exception() is not None:
                self.log.error("it could not be stopped in order: %r", problem)
                raise
            self.log.warning("everything has stopped in order, but the event loop has not: %r", problem)


class App(faust.App):  # type: ignore[misc]  # faust is untyped here
    """A Faust app with an engine.

    Attributes:
        engine: set before the worker starts.
        kafka_security: keyword arguments of aiokafka clients.
    """

    BootStrategy = Boot
    engine: Any = None
    kafka_security: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def on_webserver_init(self, web: Any) -> None:
        """Our routes in place of Faust's pages, behind our limits."""
        super().on_webserver_init(web)
        if self.install_routes is not None:  # Faust asks twice when a command runs beside a worker
            self.install_routes(web.web_app)
            self.install_routes = None
            web._runner = Runner(web.web_app)

    install_routes: Any = None

    def without_faust_pages(self) -> None:
        """Faust's own pages (router, tables, statistics) are not served: they know no tenants."""
        self.web.blueprints = BlueprintManager([])
