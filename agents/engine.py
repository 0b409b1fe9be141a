"""The I/O shell around the core: fetch, fold, publish, write rows, commit, follow.

Thin on purpose: what is decided is decided in `agents.core`; this file moves bytes, retries for a bounded time, and stops
the worker where going on would hide something.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import InvalidRequestError, InvalidSessionTimeoutError, KafkaConnectionError, KafkaError
from faust.types import TP
from mode import Service

from streams.errors import BrokerUnavailable, ConfigError, PulsefoldError, TopicProblem
from streams.topics import MIN_LAG_MS
from tables.dedupe import IDS
from tables.partition import GRAVE, Output, Partition, Schema, partitions_of
from tables.rows import Row, parse_wire_key

from .board import Board
from .core import SCHEMA, SERVED, Core, Flush, Refusal, Served, Shard, WrongIdentity
from .generations import other_tables, remade
from .metadata import Described, described
from .rebuild import Rebuild
from .seam import Pace, packed, wait_at_most

R = TypeVar("R")
DOUBT_S = 2.0
"""Longest time by which a record of one changelog partition may be read before an earlier one of another."""
CLOSE_S = 2.0
"""Longest time that closing a Kafka client may take: there is nothing in it that anybody relies on."""
IDENTITY_S = 5.0
"""Seconds between two looks at whether the source topics are still the same."""
MAX_BEHIND = 200_000
"""Records a partition may be folded ahead of its writes before fetching pauses."""
AIM_S = MIN_LAG_MS / 2000
"""Seconds after which the end of a changelog that is not followed up to it yet is asked again. What is younger than the lag, brokers do not compact."""
EAGER_MS, IDLE_MS, IDLE_S = 3, 25, 1.0
"""Milliseconds that the embedded broker may wait before it answers a fetch; the longer where nothing was read for so many seconds."""
ENDS_S = 5.0
"""Longest time that the ends of the source topics are asked for: what is not answered by then is not known at the moment."""
LEAST_PAUSE_S = 0.002
"""Shortest time after which a flush is followed by the next, unless it was of one record alone: that has nothing to share with another."""
BEHIND, BEHIND_FLUSHES = 20_000, 6
"""Records waiting from which a worker catches up, and how many times longer its flushes may then be apart."""
MOST_A_FLUSH, LOOK_S = 200_000, 0.01
"""Records folded since a flush from which a worker that catches up waits no longer than others, and seconds between two looks at that.

Its memory follows them, and is not to be more on a faster machine.
"""
LATE, TURN_S = 2_000, 0.2
"""Records waiting in a partition from which nobody sees when its rows are written, and longest time for which the next one waits for that then."""


@dataclass(frozen=True)
class EngineConfig:
    """What the engine needs to know of the deployment.

    Attributes:
        prefix: of all topic names.
        changelogs: source topic (without prefix) -> full name of its changelog.
        flush_max_s: longest time between two flushes under load; of a worker that catches up, see `BEHIND_FLUSHES` and `Engine._flush_all`.
        retry_s: how long a failing write is tried again before the worker stops.
        watchdog_s: with lag and nothing absorbed for this long, the worker stops.
        shutdown_s: bound on the last flush when a partition or the worker goes.
        folds: False for a worker that only follows: it joins no group and publishes nothing.
        rebuild: fold anew where the tables on the changelog were made with other settings or versions.
        publishes: publish outputs, whoever is recorded as the app that does.
        archive: the archive's folder, given the identities of the source topics and whether the broker is the embedded one; None where it has none.
    """

    bootstrap: str
    prefix: str
    changelogs: Mapping[str, str]
    app_id: str = "pulsefold"
    flush_max_s: float = 0.1
    retry_s: float = 60.0
    watchdog_s: float = 60.0
    shutdown_s: float = 10.0
    publishes: bool = True
    folds: bool = True
    rebuild: bool = False
    archive: Callable[[Mapping[str, int], bool], Path | None] = lambda identities, embedded: None
    security: Mapping[str, Any] = field(default_factory=dict)


class Stalled(RuntimeError):
    """There are records to fold and nothing was folded for too long; or this process was stopped for too long."""


class Unwritable(RuntimeError):
    """The brokers took nothing for too long."""


class Engine(Service):  # type: ignore[misc]  # mode is untyped here
    """Folds what the worker owns, follows what everybody writes, and knows what is durable.

    Attributes:
        restored: the tables are restored up to what was on the changelog at the start.
        ready: the same, and there are tables to be asked.
        rebuild: the tables that are being built beside those that serve; None otherwise.
        rebuilt: what the last one came to.
        archive: folder of the archive; None where there is none.
        held: nothing new is folded, because the tables are being swapped or this worker gives way.
        on_schema: told of the schema of other tables that serve from now on.
        board: the alerts.
        publishes: False in an app that only reads: its outputs are dropped.
        publisher: the app that is recorded as the one that publishes outputs; None where nobody asked.
        elect: tells that app, after recording this one if nobody was.
        refused: what a person must mend before this worker can go on.
        on_refused: stops the worker in order when there is such a thing; None = it counts as a crash.
        on_changed: told of rows that changed, (shard, [(table index, row)]).
        on_alert: told of alert messages that the topic has and the board had not.
    """

    def __init__(self, app: Any, config: EngineConfig, schema: Schema, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.app = app
        self.config = config
        self.schema = schema
        self.publishes = config.publishes
        self.publisher: str | None = None
        self.elect: Callable[[], str] | None = None
        self.embedded = False
        self.stirred_at = time.monotonic()
        self.partitions: dict[str, list[Partition]] = {}
        self.core = Core(())
        self.follower: Any = None
        self.producer: Any = None
        self.board = Board()
        self.full_names = {topic: config.prefix + topic for topic in config.changelogs}
        self.short_names = {full: topic for topic, full in self.full_names.items()}
        self.counts: dict[str, int] = {}
        self.identities: dict[str, int] = {}
        self.by_changelog: dict[TopicPartition, Shard] = {}
        self.alert_partitions: list[TopicPartition] = []
        self.alerts_topic = config.prefix + "alerts"
        self.restored = False
        self.ready = False
        self.rebuild: Rebuild | None = None
        self.rebuilt: dict[str, Any] | None = None
        self.archive: Path | None = None
        self.held = False
        self.on_schema: list[Callable[[Schema], None]] = []
        self._heeded: Served | None = None
        self._doubted: set[Shard] = set()
        self._turns = 0
        self.started_at = time.time()
        self.restored_s: float | None = None
        self.restore_goal: dict[TopicPartition, int] = {}
        self.restore_start: dict[TopicPartition, int] = {}
        self.on_changed: list[Callable[[Shard, Iterable[tuple[int, Row]]], None]] = []
        self.on_alert: list[Callable[[dict[str, Any]], None]] = []
        self.ends: dict[tuple[str, int], int] = {}
        self.pace = Pace()
        self.n = {"chunks": 0, "records": 0, "flushes": 0, "rows": 0, "outputs": 0, "flush_failures": 0, "discarded_chunks": 0, "ended_rows": 0}
        self._seeks: dict[TP, int] = {}
        self._refused: set[Shard] = set()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._absorbed_at = time.monotonic()
        self._dead = False
        self.refused: PulsefoldError | None = None
        self.on_refused: Callable[[], None] | None = None
        self.log_starts: dict[tuple[str, int], int] = {}
        self._admin: Any = None
        self._asked: dict[tuple[str, int], float] = {}
        self._restore_asked = 0.0
        self._awake_at = since_boot()
        self._promised: dict[Shard, tuple[int, int]] = {}
        self._passed: dict[Shard, int] = {}
        self._catching_up = False  # since the last flush

    # ---- life

    def prepare(self, counts: Mapping[str, int], identities: Mapping[str, int]) -> None:
        """Make the partitions.

        Args:
            counts: source topic (without prefix) -> number of partitions on the broker.
            identities: source topic -> 32 bits of its Kafka topic id, 0 where the broker has none.
        """
        self.counts, self.identities = dict(counts), dict(identities)
        self.partitions, self.core = self.made(self.schema)
        self.core.gather = True
        self.by_changelog = self.places(self.core)

    def made(self, schema: Schema) -> tuple[dict[str, list[Partition]], Core]:
        """Empty partitions of a schema, and their core."""
        source = f"pulsefold/{self.config.app_id}"
        made = {topic: partitions_of(topic, count, schema, identity=self.identities.get(topic, 0), source=source) for topic, count in self.counts.items()}
        return made, Core((p for ps in made.values() for p in ps), rebuild=self.config.rebuild)

    def places(self, core: Core) -> dict[TopicPartition, Shard]:
        """A core's shards by the partition of the changelog that has their rows."""
        return {TopicPartition(self.config.changelogs[topic], n): shard for (topic, n), shard in core.shards.items()}

    async def on_start(self) -> None:
        """Connect, and begin to follow every changelog partition from its start."""
        gc.collect()
        gc.freeze()  # modules and the like: looked through again and again they cost half of the time
        gc.set_threshold(50_000, 20, 100)
        try:
            await self._connect_follower()
            if not self.partitions and not self.should_stop:
                counts, identities, self.embedded = await self._described(again=lambda: not self.should_stop)
                self.prepare(counts, identities)
                self.archive = self.config.archive(identities, self.embedded)
            if self.elect is not None and not self.should_stop:
                self.publisher = await asyncio.to_thread(self.elect)
                self.publishes = self.config.publishes or self.publisher == self.config.app_id
        except PulsefoldError as exc:
            if self.should_stop:
                return
            self.refused = exc  # the start ends here; this is what is told of it
            raise
        if self.should_stop:  # the clients are closed by now
            return
        await self._connect_producer()
        wait_at_most(self.follower._fetcher, min(100, self.fetch_wait_ms))
        await self.follower._client.force_metadata_update()
        alerts = await self._partitions_of(self.alerts_topic)
        self.alert_partitions = [TopicPartition(self.alerts_topic, n) for n in range(alerts)]
        followed = [*self.by_changelog, *self.alert_partitions]
        self.follower.assign(followed)
        await self.follower.seek_to_beginning(*followed)
        self.restore_start = dict(await self.follower.beginning_offsets(followed))
        self._restore_asked = since_boot()
        self.restore_goal = dict(await self.follower.end_offsets(followed))

    async def _connect_follower(self) -> None:
        self.follower = AIOKafkaConsumer(
            bootstrap_servers=self.config.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",  # ends are those of finished transactions: what is open cannot be folded yet, and is no lag
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=1 << 20,
            max_poll_records=5000,
            **self.config.security,
        )
        try:
            await self.follower.start()
        except KafkaConnectionError as exc:
            raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {self.config.bootstrap} ({exc})") from None

    async def _described(self, again: Callable[[], bool]) -> Described:
        """The source topics, by their names without prefix, as a broker knows them now; see `agents.metadata.described`."""
        found = await described(self.follower._client, list(self.short_names), bootstrap=self.config.bootstrap, again=again)
        counts, identities = ({self.short_names[full]: value for full, value in one.items()} for one in (found.counts, found.identities))
        return Described(counts, identities, found.embedded)

    async def _partitions_of(self, topic: str) -> int:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            await self.follower._client.add_topic(topic)
            found = self.follower.partitions_for_topic(topic)
            if found:
                return len(found)
            await asyncio.sleep(0.1)
        raise RuntimeError(f"topic {topic} does not exist; create it with: pulsefold topics create")

    async def _connect_producer(self) -> None:
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.config.bootstrap,
            acks="all",
            enable_idempotence=True,
            max_batch_size=500_000,
            max_request_size=6 << 20,
            request_timeout_ms=30_000,
            **self.config.security,
        )
        await self.producer.start()

    async def on_stop(self) -> None:
        """Close the clients; the last flush was made when the partitions were given up."""
        if self.rebuild is not None:
            self.rebuild.close()
        closing = [client.stop for client in (self.follower, self.producer) if client is not None]
        if self._admin is not None:
            closing.append(self._admin.close)
        for close in closing:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await close()
            except TimeoutError:  # it would go on delivering what a dead broker does not take
                self.log.warning("a Kafka client could not be closed in time; what it had not delivered is folded again")

    async def crash(self, reason: BaseException) -> None:
        """A bug or a lasting failure: nothing is written any more, the worker exits non-zero."""
        self._dead = True
        if self.on_refused is None or not isinstance(reason, PulsefoldError):
            await super().crash(reason)
        elif self.refused is None:
            self.refused = reason
            self.on_refused()

    # ---- asked by the seam

    @property
    def fetch_wait_ms(self) -> int:
        """How long a broker may wait for something to answer a fetch with.

        The embedded one waits to the end, even if something comes: short, and a little longer where nothing has come for a while.
        """
        if not self.embedded:
            return 200
        return EAGER_MS if time.monotonic() - self.stirred_at < IDLE_S else IDLE_MS

    def is_source(self, topic: str) -> bool:
        """Whether this Kafka topic is one of ours."""
        return topic in self.short_names

    def shard(self, tp: TP) -> Shard | None:
        """Bookkeeping of a source partition by its Kafka name."""
        return self.core.shards.get((self.short_names.get(tp.topic, ""), tp.partition))

    def readable(self, tp: TP) -> bool:
        """Whether the partition may be fetched now."""
        shard = self.shard(tp)
        if shard is None:
            return True
        if self._holds(shard) or self.core.differing(shard):
            return False
        return shard.ready and not self._dead and (shard.safe is None or shard.next - shard.safe < MAX_BEHIND)

    def _holds(self, shard: Shard) -> bool:
        """Whether nothing new of it is folded; during a swap as far as its rows are it is: whoever only follows them waits for what is built to be so far."""
        return self.held and not (self.rebuild is not None and self.rebuild.plan.swapping and self.core.trails(shard))

    def seeks(self) -> dict[TP, int]:
        """Positions to fetch from, asked once each."""
        wanted, self._seeks = self._seeks, {}
        return wanted

    def epoch(self, tp: TP) -> int:
        """Number of the present ownership."""
        shard = self.shard(tp)
        return -1 if shard is None else shard.epoch

    def committable(self) -> dict[TP, int]:
        """Offsets below which everything is durable."""
        if self._dead:
            return {}
        return {TP(self.full_names[topic], n): offset for (topic, n), offset in self.core.committable().items()}

    def committed(self, offsets: Mapping[TP, int]) -> None:
        """The group's offsets are now these."""
        for tp, offset in offsets.items():
            if tp.topic in self.short_names:
                self.core.committed(self.short_names[tp.topic], tp.partition, offset)

    # ---- ownership

    async def gained(self, tps: Iterable[TP]) -> None:
        """Partitions were assigned: restore each, then fold it."""
        ours = [tp for tp in tps if self.is_source(tp.topic)]
        if ours:
            self.add_future(self._gain(ours))

    async def _gain(self, tps: Sequence[TP]) -> None:
        shards = [shard for tp in tps if (shard := self.shard(tp)) is not None]
        epochs = [shard.epoch for shard in shards]
        if not await self._same_topics():
            return
        asked = since_boot()
        changelog = {shard: TopicPartition(self.config.changelogs[shard.partition.topic], shard.partition.number) for shard in shards}
        sources = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        ends = await self.insist(lambda: self.follower.end_offsets(list(changelog.values())), "the changelogs' ends could not be read")
        starts = await self.insist(lambda: self.follower.beginning_offsets(sources), "the topics' starts could not be read")
        gone: dict[Shard, int] = {}
        rebuild = self.rebuild
        names = {tp: shard.name for tp, shard in zip(sources, shards, strict=True)}
        begins = {names[tp]: start for tp, start in starts.items()}
        if rebuild is not None:
            with suppress(TopicProblem):  # the archive cannot be asked: where that matters, building tells
                begins = await rebuild.begins(begins)
        offsets = await self.app.consumer._thread.committed_offsets(tps)
        for tp, shard, epoch in zip(tps, shards, epochs, strict=True):
            committed = offsets.get(tp)
            if self.shard(tp) is not shard and tp in self.app.consumer.assignment():
                self.add_future(self._gain([tp]))  # the tables were swapped meanwhile; it waits for them itself
                continue
            if shard.epoch != epoch or self.shard(tp) is not shard:
                continue  # lost again meanwhile
            if since_boot() - asked > AIM_S:
                self.add_future(self._gain([tp]))  # stopped for so long: what was read meanwhile may be compacted into later rows than those
                continue
            name = shard.name
            self.log_starts[name] = starts[TopicPartition(tp.topic, tp.partition)]
            gone[shard] = shard.n_gone
            self._asked[name] = asked
            self.core.gained(*name, committed=committed, log_start=self.log_starts[name], changelog_end=ends[changelog[shard]])
            if self.rebuild is not None and self.rebuild is rebuild and shard is self.core.shards[name]:
                self.rebuild.gained(*name, begins[name], ends[changelog[shard]])
        for tp, shard in zip(tps, shards, strict=True):
            if shard in gone:
                self.add_future(self._await_ready(tp, shard, shard.epoch, gone[shard]))

    async def _await_ready(self, tp: TP, shard: Shard, epoch: int, gone: int) -> None:
        while shard.epoch == epoch and not shard.ready:
            self._moved.clear()
            await self._moved.wait()
        if shard.epoch == epoch:
            if shard.n_gone > gone:
                self._tell_gone(shard, shard.n_gone - gone)
            self._seeks[tp] = shard.next
            self._absorbed_at = time.monotonic()
            self._wake.set()

    async def lost(self, tps: Iterable[TP]) -> None:
        """Partitions are being revoked: write and commit what is folded, in bounded time, then stop writing."""
        ours = [tp for tp in tps if self.is_source(tp.topic)]
        if not ours:
            return
        if not self._dead:
            try:
                async with asyncio.timeout(self.config.shutdown_s):
                    while any(shard.ready and (shard.dirty() or shard.flushing) for tp in ours for shard in self._shards(tp)):
                        await self._flush_all()
                    await self.app.consumer.commit()
            except (TimeoutError, KafkaError) as exc:
                self.log.warning("the last flush did not end in time; the next owner folds it again: %r", exc)
        for tp in ours:
            shard = self.shard(tp)
            if shard is not None:
                self.core.lost(*shard.name)
                self._seeks.pop(tp, None)
                if self.rebuild is not None:
                    self.rebuild.core.lost(*shard.name)

    def _shards(self, tp: TP) -> list[Shard]:
        """What is folded of a source partition: the rows that serve, and those that are built beside them."""
        name = self.short_names.get(tp.topic, ""), tp.partition
        cores = [self.core] if self.rebuild is None else [self.core, self.rebuild.core]
        return [core.shards[name] for core in cores if name in core.shards]

    # ---- fold

    def absorb(self, tp: TP, chunk: tuple[int, int, int, Iterable[Any]]) -> None:
        """Fold one fetched chunk."""
        shard = self.shard(tp)
        if shard is None or self._dead or self._holds(shard):
            return  # what is dropped is fetched again
        if (slept := self._slept()) is not None:
            raise slept
        epoch, start, end, records = chunk
        begun = time.perf_counter()
        done = self.core.chunk(shard, epoch, start, end, records)
        self.n["chunks"] += 1
        if done is None:
            self.n["discarded_chunks"] += 1
        elif isinstance(done, Refusal):
            self._seeks[tp] = done.seek
            self._refused.add(shard)
            self.log.warning("%s/%s: fetched from %s, folded up to %s: fetching again", tp.topic, tp.partition, start, done.seek)
        else:
            self._absorbed_at = self.stirred_at = time.monotonic()
            self.pace.took(tp.topic, done, time.perf_counter() - begun)
            self.n["records"] += done
            if not self.publishes:
                shard.partition.outputs.clear()
            self._wake.set()

    # ---- flush

    @Service.task
    async def _flusher(self) -> None:
        records = 0
        while not self.should_stop:
            await self._wake.wait()
            self._wake.clear()
            begun = time.monotonic()
            rows = await self._flush_all()
            pause = min(self.config.flush_max_s, rows / 10_000)
            least = LEAST_PAUSE_S if self.n["records"] - records > 1 else 0.0
            records = self.n["records"]
            await asyncio.sleep(max(least, pause - (time.monotonic() - begun)))
            for _ in range(BEHIND_FLUSHES - 1):
                self._catching_up = rows > 0 and self._behind()
                if not self._catching_up:
                    break
                await self._folded(records + MOST_A_FLUSH, pause)

    async def _folded(self, records: int, longest_s: float) -> None:
        """Wait until so many records were folded since the start, or half of what a partition may be folded ahead of its writes; at most so long."""
        until = time.monotonic() + longest_s
        while self.n["records"] < records and self._ahead() < MAX_BEHIND // 2 and (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(min(LOOK_S, left))

    def _ahead(self) -> int:
        """How many records a partition is folded ahead of its writes, at most."""
        return max((shard.next - shard.safe for shard in self.core.shards.values() if shard.ready and shard.safe is not None), default=0)

    def _behind(self) -> bool:
        """Whether so much waits that nobody sees how late a row is: written less often, a row takes in more records."""
        return sum(self.lag(shard) for shard in self.core.shards.values() if shard.ready) > BEHIND

    async def _flush_all(self) -> int:
        """Write what is dirty; returns the number of rows.

        All partitions at a time, which waits for the broker once. But of a worker that catches up those that are late one after the other,
        as far as the broker answers within `TURN_S`: rows are in memory several times over until the broker has them and the follower has
        read them. (While other tables are built, all at a time: they may change over meanwhile.)
        """
        late = self.rebuild is None and self._catching_up
        writing: list[asyncio.Task[None]] = []
        rows, taken = 0, False
        try:
            for core in [self.core] if self.rebuild is None else [self.core, self.rebuild.core]:
                for shard in core.shards.values():
                    flush = None if self._dead else core.take(shard)
                    if flush is None:
                        continue
                    rows, taken = rows + len(flush.rows), True
                    for told in self.on_changed if not shard.building else ():
                        told(shard, [(index, row) for index, row, _ in flush.marks if row.state is not GRAVE])
                    writing.append(asyncio.create_task(self._write(flush)))  # begins before this is resumed, so it puts back what it is cancelled with
                    if late and self.lag(shard) > LATE:
                        await asyncio.wait(writing[-1:], timeout=TURN_S)
                    else:
                        await asyncio.sleep(0)
            await asyncio.gather(*writing)
        except BaseException:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
            raise
        if taken:
            self.n["flushes"] += 1
        else:
            await asyncio.sleep(0.001)
        return rows

    async def _write(self, flush: Flush) -> None:
        """Write a flush, trying again for `retry_s`; the producer itself tries for ever, so the limit is kept here."""
        shard = flush.shard
        try:
            async with asyncio.timeout(self.config.retry_s):
                while True:
                    try:
                        await self._publish(flush.outputs)
                        await self._append(flush)
                    except KafkaError as exc:
                        self.n["flush_failures"] += 1
                        self.core.failed(flush)
                        self._wake.set()
                        self.log.warning("%s/%s: rows could not be written, trying again: %r", shard.partition.topic, shard.partition.number, exc)
                        await asyncio.sleep(0.5)
                        again = self.core.take(shard)
                        if again is None:
                            return
                        flush = again
                    else:
                        break
        except TimeoutError:
            await self.crash(Unwritable(f"{shard.partition.topic}/{shard.partition.number}: rows could not be written for {self.config.retry_s:g} s"))
        except BaseException:
            self.core.failed(flush)
            raise
        else:
            self.core.acked(flush)
            self.n["rows"] += len(flush.rows)
            self.n["outputs"] += len(flush.outputs)
            if shard.partition.graves and self.core.overdue(shard):
                self._wake.set()

    async def send(self, topic: str, value: bytes | None, *, key: bytes, partition: int | None = None) -> Any:
        """Publish one record under its full topic name, trying again for `retry_s`; its id must be deterministic, it may come twice.

        Raises:
            Unwritable: no broker took it.
        """
        return await self.insist(lambda: self.producer.send_and_wait(topic, value, key=key, partition=partition), f"{topic}: a record could not be written")

    async def insist(self, work: Callable[[], Awaitable[R]], failed: str) -> R:
        """Do what needs a broker, trying again for `retry_s`.

        Args:
            work: may be done twice, or in part and again.
            failed: what to say where it is not done, such as ``scores could not be written``.

        Raises:
            Unwritable: no broker did it.
        """
        try:
            async with asyncio.timeout(self.config.retry_s):
                while True:
                    try:
                        return await work()
                    except KafkaError as exc:
                        if self.should_stop:  # the clients are closed: what is not done is found again by who comes next
                            raise asyncio.CancelledError from exc
                        self.log.warning("%s, trying again: %r", failed, exc)
                        await asyncio.sleep(0.5)
        except TimeoutError:
            raise Unwritable(f"{failed} for {self.config.retry_s:g} s") from None

    async def _publish(self, outputs: Sequence[Output]) -> None:
        prefix = self.config.prefix
        sent = [await self.producer.send(prefix + o.topic, o.value, key=o.key, partition=o.partition, headers=o.headers) for o in outputs]
        if sent:
            await asyncio.gather(*sent)

    async def _append(self, flush: Flush) -> None:
        if not flush.rows:
            return
        topic = self.config.changelogs[flush.shard.partition.topic]
        batches = []
        batch = self.producer.create_batch()
        for key, value in flush.rows:
            if batch.append(key=key, value=value, timestamp=None) is None:
                batches.append(batch)
                batch = self.producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None) is None:
                    raise RuntimeError(f"a row of {len(value or b'')} bytes does not fit into a batch: {key[:200]!r}")
        batches.append(batch)
        acks = []
        for full in batches:
            full.close()
            acks.append(await self.producer.send_batch(full, topic, partition=flush.shard.partition.number))
        await asyncio.gather(*acks)

    # ---- follow

    @Service.task
    async def _follow(self) -> None:
        follower = self.follower
        begun = time.monotonic()
        positions = dict(self.restore_start)
        while not self.should_stop:
            packed(follower._fetcher)
            wait_at_most(follower._fetcher, min(100, self.fetch_wait_ms))
            got = await follower.getmany(timeout_ms=200)
            if got:
                self.stirred_at = time.monotonic()
            await self._ask_ends_again()
            for tp, taken in got.items():
                records = list(taken)
                positions[tp] = taken.end
                shard = self.by_changelog.get(tp)
                if shard is None:
                    for record in records:
                        message = self.board.read(record.key, record.value, (tp.partition, record.offset), record.timestamp)
                        if message is not None:
                            for heard in self.on_alert:
                                heard(message)
                    continue
                try:
                    changed = self.core.followed(shard, [(r.key, r.value) for r in records], positions[tp])
                    if self.rebuild is not None:
                        self.rebuild.followed(tp, [(r.key, r.value) for r in records], positions[tp])
                except WrongIdentity as exc:
                    await self.crash(self._told(exc))
                    return
                if changed:
                    for told in self.on_changed:
                        told(shard, changed)
                if self.restored:
                    self._heed(shard)
                await asyncio.sleep(0)
            if not self.restored or self.rebuild is not None or any(s.owned and not s.ready for s in self.core.shards.values()):
                await self._catch_up(positions)
                if not self.restored and all(positions.get(tp, 0) >= end for tp, end in self.restore_goal.items()):
                    try:
                        await self._settle()
                    except PulsefoldError as exc:
                        await self.crash(exc)
                        return
                    await self._look_at_ends()  # else who is ready has no lag, whatever waits to be folded
                    self.restored = True
                    self.restored_s = time.monotonic() - begun
                    self.ready = self.rebuild is None or not self.rebuild.beside
            self._turns += 1
            self._moved.set()

    async def alerts_read(self) -> None:
        """Wait until the board knows every alert message that is on the topic now.

        Raises:
            Unwritable: no broker tells where the topic ends.
        """
        ends = await self.insist(lambda: self.follower.end_offsets(self.alert_partitions), "the end of the alerts could not be read")
        for tp, end in ends.items():
            while not self.should_stop and await self.follower.position(tp) < end:
                await self.sleep(0.01)
        turn = self._turns  # the follower's position moves before the board is told
        while not self.should_stop and self._turns == turn:
            await self.sleep(0.01)

    async def joinable(self) -> None:
        """Wait until this worker may join the group: until its tables are restored, or it is to stop."""
        while not (self.ready or self._dead or self.should_stop):
            self._moved.clear()
            await self._moved.wait()
        if self.refused is not None:
            raise self.refused

    # ---- which tables serve

    async def _settle(self) -> None:
        """Everything on the changelogs is read: decide which tables serve, and whether others are to be built beside them.

        Raises:
            PulsefoldError: other tables serve, and this worker may not rebuild; or what it must fold is gone.
        """
        mine, found = self.schema.generation, self._found()
        served = self.core.served
        serving = served.generation if served is not None else mine if mine in found or not found else next(reversed(found))
        foreign = {place: (shard.foreign.get(serving, {}), shard.late.get(serving, {})) for place, shard in self.by_changelog.items()}
        self.core.gathered()
        if serving == mine or serving not in found:
            self.core.rebuild |= served is not None
            other = next((shard for shard in self.core.shards.values() if self.core.differs(shard)), None)
            if other is not None:  # of rows that nobody decided about, some are ours
                raise other_tables(other)
            ending = served is not None and served.former is not None
            if self.config.rebuild and self.config.folds and found.keys() - {mine} and not ending:
                await self.decide(mine, former=next(iter(found.keys() - {mine})))  # a rebuild that was given up
            return
        given_up = served is not None and served.former is not None  # rows of all that do not serve are being ended
        ended = served.ended if served is not None and served.former == mine else None  # they were these
        if not self.config.rebuild and ended is None and (mine not in found or given_up):
            raise other_tables(next(iter(self.core.shards.values())), found[serving])
        begun = mine in found and not given_up
        if given_up and mine in found and self.config.folds:
            for shard in self.core.shards.values():
                await self._end_rows(shard, lambda generation: generation == mine)
            half = self.core
            self.partitions, self.core = self.made(self.schema)
            self.core.served = served
            for name, shard in self.core.shards.items():
                shard.followed = half.shards[name].followed
                shard.generations = {generation: what for generation, what in half.shards[name].generations.items() if generation != mine}
        self.core.rebuild = True
        former = remade(json.loads(found[serving]), serving, self.schema)
        rebuild = Rebuild(self, self.schema, self.partitions, self.core, serving, found[serving], beside=former is None)
        failed = None
        try:
            if ended is not None and not self.config.rebuild:
                raise TopicProblem(ended)
            await rebuild.check_starts()
        except TopicProblem as problem:
            if former is None or not (begun or ended):
                raise  # it has not begun: whoever starts it is told at once
            failed = str(problem)
        if self.config.folds and failed is not None and ended is None:
            await self.decide(serving, former=mine, ended=failed)
        elif self.config.folds and failed is None and (served is None or served.former is not None):
            await self.decide(serving)
        if former is not None:
            self.partitions, self.core = self.made(former)
            self.core.rebuild, self.core.served = True, rebuild.core.served
            for place, shard in self.places(self.core).items():
                shard.generations = dict(rebuild.by_changelog[place].generations)
                rows, late = foreign.pop(place)
                self.core.followed(shard, chain(rows.items(), late.items()), rebuild.by_changelog[place].followed)
                rows.clear()
            self.use(former)
        self.by_changelog = self.places(self.core)
        if failed is not None:
            rebuild.end(failed)
            return
        self.rebuild = rebuild
        rebuild.begin()

    def _found(self) -> dict[str, bytes]:
        """Generations on the changelogs, and what each is made of."""
        return {generation: made_of for shard in self.core.shards.values() for generation, made_of in shard.generations.items()}

    def use(self, schema: Schema) -> None:
        """Serve by this schema from now on."""
        self.schema = schema
        for told in self.on_schema:
            told(schema)

    def ended(self, told: dict[str, Any]) -> None:
        """Tables that were being built beside those that serve cannot be: go on without them."""
        self.rebuild, self.rebuilt, self.held = None, told, False
        self.log.error("%s; the tables of %s are not built any more, the former ones go on serving", told["error"], "; ".join(told["differs"]))

    async def decide(self, generation: str, former: str | None = None, ended: str | None = None) -> None:
        """Write which tables serve; everybody who follows reads it, this worker too."""
        known = self.core.served
        decided = Served(1 if known is None else known.n + 1, generation, former, ended)
        topic = next(iter(self.config.changelogs))
        await self.send(self.config.changelogs[topic], msgspec.json.encode(decided), key=SERVED, partition=0)
        for core in [self.core] if self.rebuild is None else [self.core, self.rebuild.core]:
            core.served = decided

    def _heed(self, shard: Shard) -> None:
        """Somebody may have decided that other tables serve."""
        served = self.core.served
        if self.core.outdated and shard.ready and served is not None and served.generation == self.schema.generation:
            self.core.outdated = False
            self.add_future(self.send(self.config.changelogs[shard.partition.topic], msgspec.json.encode(served), key=SERVED, partition=0))
        if self.rebuild is not None:
            self.rebuild.heed(served)
        elif served is None:
            if self.core.differs(shard) and shard not in self._doubted:
                self._doubted.add(shard)
                self.add_future(self._doubt(shard))
        elif served.generation != self.schema.generation and served != self._heeded:
            self._heeded = served
            self.add_future(self.give_way(served.generation))

    async def _doubt(self, shard: Shard) -> None:
        """Rows of other tables where there are none of ours: the decision that ours serve was written before them, but may be read after them."""
        await self.sleep(DOUBT_S)
        self._doubted.discard(shard)
        if self.core.served is None and self.core.differs(shard):
            await self.crash(other_tables(shard))

    async def give_way(self, generation: str) -> None:
        """Other tables serve: write what is folded, then stop."""
        self.held = True
        made_of = self._found().get(generation)
        tps = [TP(self.full_names[topic], n) for (topic, n), shard in self.core.shards.items() if shard.owned]
        if self.config.folds and tps:
            await self.lost(tps)
        await self.crash(other_tables(next(iter(self.core.shards.values())), made_of))

    async def swap(self) -> None:
        """Serve by the tables that were built beside: all at once, where all are as far as those that served so far."""
        rebuild = self.rebuild
        if rebuild is None:
            return
        going_on = rebuild.plan.swap()
        self.partitions, self.core, self.by_changelog = rebuild.partitions, rebuild.core, rebuild.by_changelog
        self.rebuild, self.rebuilt = None, rebuild.ended()
        rebuild.close()
        self._refused, self._promised, self._passed = set(), {}, {}
        self.use(rebuild.schema)
        for topic, n in going_on:
            self._seeks[TP(self.full_names[topic], n)] = self.core.shards[(topic, n)].next
        self._absorbed_at = time.monotonic()
        self.held, self.ready = False, True
        self._moved.set()
        self._wake.set()

    def _source(self, shard: Shard) -> TopicPartition:
        return TopicPartition(self.full_names[shard.partition.topic], shard.partition.number)

    async def _committed(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's offsets, asked without being in it."""
        async with asyncio.timeout(10):
            if self._admin is None:
                self._admin = AIOKafkaAdminClient(bootstrap_servers=self.config.bootstrap, **self.config.security)
            await self._admin.start()  # each time: it does nothing once a broker has answered, and is not done before
            found = await self._admin.list_consumer_group_offsets(self.config.app_id, partitions=list(sources))
        return {TopicPartition(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}

    # ---- after a rebuild

    @Service.task
    async def _forget(self) -> None:
        """When the tables are swapped, end the rows of other generations with tombstones."""
        while not self.should_stop:
            await self.sleep(1.0)
            served, mine = self.core.served, self.schema.generation
            if not self.ready or self.rebuild is not None or served is None or served.former is None or served.generation != mine:
                continue
            for shard in list(self.core.shards.values()):
                if shard.generations.keys() - {mine} and shard.ready and not shard.told:
                    try:
                        await self._end_rows(shard, lambda generation: generation != mine)  # noqa: B023 - it is asked at once
                    except (TimeoutError, KafkaError) as exc:
                        self.log.warning("rows of other settings cannot be ended at the moment: %r", exc)

    async def _end_rows(self, shard: Shard, over: Callable[[str], bool]) -> None:
        """Tombstones for all rows of the generations that are over."""
        place = TopicPartition(self.config.changelogs[shard.partition.topic], shard.partition.number)
        core, epoch = self.core, shard.epoch
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.config.bootstrap, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", **self.config.security
        )
        live: dict[bytes, None] = {}
        await consumer.start()
        try:
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end and not self.should_stop:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        table, generation, _ = parse_wire_key(record.key)
                        if record.key == SERVED or not over(generation if table == SCHEMA else table.rpartition(".")[2]):
                            continue
                        live.pop(record.key, None)
                        if record.value is not None:
                            live[record.key] = None
        finally:
            await consumer.stop()
        acks = []
        for key in sorted(live, key=lambda key: key.startswith(SCHEMA.encode() + b"|")):  # what they are made of comes last
            if shard.epoch != epoch or core is not self.core or core.served is None or core.served.former is None:
                return  # it is somebody else's, or rows are wanted again
            acks.append(await self.producer.send(place.topic, None, key=key, partition=place.partition))
        for ack in acks:
            await ack
        for generation in [found for found in shard.generations if over(found)]:
            del shard.generations[generation]
        self.n["ended_rows"] += len(acks)

    async def _ask_ends_again(self) -> None:
        """Where following to an end takes longer than half of the least lag, ask for the end as it is now.

        Who was stopped for hours on its way there would miss rows that are compacted into later ones.
        """
        now = since_boot()
        late = {tp: shard for tp, shard in self.by_changelog.items() if shard.owned and not shard.ready and now - self._asked.get(shard.name, now) > AIM_S}
        if late:
            ends = await self.insist(lambda: self.follower.end_offsets(list(late)), "the changelogs' ends could not be read")
            for tp, shard in late.items():
                self._asked[shard.name] = now
                self.core.follow_to(shard, ends[tp])
                if self.rebuild is not None:
                    self.rebuild.core.follow_to(self.rebuild.core.shards[shard.name], ends[tp])
        if not self.restored and now - self._restore_asked > AIM_S:
            self._restore_asked = now
            self.restore_goal = dict(await self.insist(lambda: self.follower.end_offsets(list(self.restore_goal)), "the changelogs' ends could not be read"))

    async def _catch_up(self, positions: dict[TopicPartition, int]) -> None:
        """Let positions pass what is no record: control batches, compacted tails."""
        for tp, shard in list(self.by_changelog.items()):
            at = await self.follower.position(tp)
            if at > positions.get(tp, 0) or at > shard.followed or (shard.owned and not shard.ready):
                positions[tp] = at
                self.core.followed(shard, (), at)
            if self.rebuild is not None:
                self.rebuild.followed(tp, (), at)
        for tp in self.alert_partitions:
            positions[tp] = await self.follower.position(tp)

    def progress(self) -> tuple[int, int]:
        """Changelog records followed and to follow of the first restore."""
        followed = sum(
            min(self.by_changelog[tp].followed, end) - self.restore_start.get(tp, 0) for tp, end in self.restore_goal.items() if tp in self.by_changelog
        )
        total = sum(end - self.restore_start.get(tp, 0) for tp, end in self.restore_goal.items() if tp in self.by_changelog)
        return max(0, followed), total

    # ---- watch

    @Service.task
    async def _stay_awake(self) -> None:
        """See whether this process was stopped, or the machine slept, for longer than half of the least lag.

        What it has read of the changelogs may have been compacted into later rows by then, and others fold what it believes its own: it folds
        nothing more (what it had folded before may still be written) and ends. Whoever supervises it starts it anew.
        """
        self._awake_at = since_boot()
        while not self.should_stop:
            if (slept := self._slept()) is not None:
                await self.crash(slept)
                return
            self._awake_at = since_boot()
            await self.sleep(1.0)

    def _slept(self) -> Stalled | None:
        """Why it must end, if it was stopped for too long; the embedded broker compacts nothing and has one worker."""
        seconds = since_boot() - self._awake_at
        if seconds <= AIM_S or self.embedded:
            return None
        return Stalled(
            f"this process was stopped for {seconds / 60:.0f} minutes; its tables may lack what was compacted meanwhile, so it ends, to be started anew"
        )

    @Service.task
    async def _identify(self) -> None:
        """Look now and then whether a source topic was deleted and created again."""
        while not self.should_stop:
            await self.sleep(IDENTITY_S)
            if not self.should_stop and not await self._same_topics():
                return

    async def _same_topics(self) -> bool:
        """Whether the source topics are those that the tables are made from, as far as the broker tells; if not, the worker stops.

        Only asked of the broker: offsets alone do not tell, because a new topic of the same name soon has the old offsets too.
        """
        try:
            identities = (await self._described(again=lambda: False)).identities
        except PulsefoldError as exc:
            if not self.should_stop:
                self.log.warning("the source topics cannot be looked at at the moment: %r", exc)
            return True
        for topic, identity in identities.items():
            if identity and any(partition.identity not in (0, identity) for partition in self.partitions[topic]):
                await self.crash(self._told(WrongIdentity(topic)))
                return False
        return True

    def _told(self, wrong: WrongIdentity) -> TopicProblem:
        return wrong.told(self.full_names[wrong.topic], self.config.changelogs[wrong.topic])

    @Service.task
    async def _watch(self) -> None:
        """Ends of the source partitions, for lag; what the group complains of; and the watchdog."""
        while not self.should_stop:
            complaint = self.app.consumer._thread.complaint() if self.config.folds else None
            if isinstance(complaint, InvalidSessionTimeoutError):
                await self.crash(
                    ConfigError(
                        "session_timeout_s",
                        f"the broker refuses {self.app.conf.broker_session_timeout:g} s; choose one between its "
                        "group.min.session.timeout.ms and group.max.session.timeout.ms",
                    )
                )
                return
            mocked = self.embedded and InvalidRequestError.__name__ in repr(complaint)  # its groups of two: see `streams.broker`; aiokafka wraps it
            if complaint is not None and (mocked or getattr(complaint, "retriable", False)):
                self.log.warning("the consumer group could not go on for a moment: %r", complaint)
            elif complaint is not None:
                await self.crash(complaint)
                return
            await self._look_at_ends()
            for source, at in self.app.consumer.fetch_positions().items() if self.config.folds else ():
                owned = self.shard(source)
                lost = self.core.idle(owned, at) if owned is not None and source not in self._seeks else None
                if lost is not None and owned is not None:
                    self._seeks[source] = lost.seek
                    self._refused.add(owned)
            if self._refused:
                await self._pass_what_is_gone()
            lagging = [s for s in self.core.shards.values() if s.owned and self.lag(s) > 0]
            if not lagging:
                self._absorbed_at = time.monotonic()
            elif time.monotonic() - self._absorbed_at > self.config.watchdog_s:
                names = ", ".join(f"{s.partition.topic}/{s.partition.number}" for s in lagging[:5])
                await self.crash(Stalled(f"nothing was folded for {self.config.watchdog_s:.0f} s although records wait in {names}"))
                return
            await self.sleep(1.0)

    async def _look_at_ends(self) -> None:
        """Ask where the source topics end; where no broker tells in bounded time, what was known stays."""
        sources = [TopicPartition(self.full_names[t], n) for t, count in self.counts.items() for n in range(count)]
        try:
            async with asyncio.timeout(ENDS_S):
                ends = await self.follower.end_offsets(sources)
        except (TimeoutError, KafkaError) as exc:
            self.log.warning("end offsets are not known at the moment: %r", exc)
            return
        for tp, end in ends.items():
            self.ends[(self.short_names[tp.topic], tp.partition)] = end

    @Service.task
    async def _heed_commits(self) -> None:
        """Beside `_watch`, which must not wait for it: what has no answer here is no reason to know nothing of lag."""
        while not self.should_stop:
            await self._follow_commits()
            await self.sleep(1.0)

    async def _pass_what_is_gone(self) -> None:
        """Where a chunk did not continue, retention may have removed what lies between."""
        self._refused = {shard for shard in self._refused if shard.ready}
        refused = {self._source(shard): shard for shard in self._refused}
        try:
            async with asyncio.timeout(5):
                starts = await self.follower.beginning_offsets(list(refused))
        except (TimeoutError, KafkaError) as exc:
            self.log.warning("where the source topics begin is not known at the moment: %r", exc)
            return
        self._refused.clear()
        for source, shard in refused.items():
            if self.core.beheaded(shard, starts[source]):
                self.add_future(self._gain([TP(source.topic, source.partition)]))

    def _tell_gone(self, shard: Shard, n: int) -> None:
        self.log.error(
            "%s/%s: the brokers no longer have %s offsets that were never folded (retention removed them first); folding goes on at %s, without them",
            self.full_names[shard.partition.topic], shard.partition.number, n, shard.next,
        )  # fmt: skip

    async def _follow_commits(self) -> None:
        """Learn what the owner has passed over without changing a row: control records, which no row of ours can tell.

        The rows of what is committed are on the changelog, so once its end, asked for after the commit, is followed here,
        these tables have absorbed all that is committed.
        """
        for shard, (committed, end) in list(self._promised.items()):
            if shard.followed >= end:
                self._passed[shard] = committed
                del self._promised[shard]
        behind = [s for s in self.core.shards.values() if not s.owned and s not in self._promised and self.lag(s) > 0]
        if not behind:
            return
        changelog = {s: TopicPartition(self.config.changelogs[s.partition.topic], s.partition.number) for s in behind}
        sources = {s: self._source(s) for s in behind}
        try:
            async with asyncio.timeout(5):
                found = await self._committed(list(sources.values()))
                ends = await self.follower.end_offsets(list(changelog.values()))
        except (TimeoutError, KafkaError) as exc:
            self.log.warning("what other workers have committed is not known at the moment: %r", exc)
            return
        for shard in behind:
            committed = found.get(sources[shard], 0)
            if committed > self.absorbed(shard):
                self._promised[shard] = committed, ends[changelog[shard]]

    def lag(self, shard: Shard) -> int:
        """Records on the log that this worker's tables have not absorbed yet."""
        return max(0, self.ends.get(shard.name, 0) - self.absorbed(shard))

    def absorbed(self, shard: Shard) -> int:
        """Offset up to which (exclusive) this worker's tables have absorbed the partition."""
        if shard.ready:
            return shard.next
        rows = shard.partition.spaces[IDS.index].get("", {}).values()
        return max(max((row.applied for row in rows), default=-1) + 1, self._passed.get(shard, 0))


def since_boot() -> float:
    """Seconds by a clock that goes on while a process is stopped, or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
