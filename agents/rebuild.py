"""Tables that are built beside those that serve: folded from the log's start by this worker's settings and versions, then swapped.

The rules this file keeps:
  * what serves goes on: its rows are folded, asked and put out as before, by the settings that they were made with. Where only other
    code can do that (a changed version of a table), the workers with that code do; this one stands **beside** them, in no group, and
    answers nothing yet;
  * when each partition is built as far as the group has committed, one record says that the new generation serves. Each worker that
    reads it folds nothing more into the former rows, lets the new ones come as far, and swaps all of its tables at once;
  * then an owner tells which alerts stand differently, and ends the former rows;
  * what the log has no longer is read from the archive, where that has all of it. Where neither has it, building ends, which is said and
    recorded, and what serves goes on.

How far may be built, and when it may serve, is decided in `agents.beside`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.derive import time_text
from streams.errors import ConfigError, PulsefoldError, TopicProblem
from tables.partition import Partition, Record, Schema

from .beside import Beside
from .core import Core, Refusal, Served, Shard
from .generations import differences
from .head_reader import HeadReader
from .seam import packed, positions

if TYPE_CHECKING:
    from .engine import Engine

MOST_AT_ONCE = 1000
"""Records that are folded without letting anything else come to its turn."""
MOST_UNWRITTEN = 50_000
"""Records a partition may be built ahead of its writes."""
RATE_S = 10.0
"""Seconds over which the rate is measured."""
log = logging.getLogger("pulsefold.rebuild")


class Rebuild:
    """A generation that is built beside the one that serves.

    Args:
        engine: what serves, and the means to read and write.
        schema, partitions, core: what is built.
        serving: the generation that serves.
        made_of: what that one is made of, JSON.
        beside: it is served by other workers, whose code made it.

    Attributes:
        plan: what is decided of it.
    """

    def __init__(
        self, engine: Engine, schema: Schema, partitions: dict[str, list[Partition]], core: Core, serving: str, made_of: bytes, *, beside: bool
    ) -> None:
        self.engine = engine
        self.schema = schema
        self.partitions = partitions
        self.core = core
        self.beside = beside
        self.plan = Beside(core, schema.generation, serving, None)
        self.names, self.differs = differences(schema.made_of, json.loads(made_of))
        self.by_changelog = engine.places(core)
        self.begun_at = time.time()
        self.starts: dict[tuple[str, int], int] = {}
        self.log_starts: dict[tuple[str, int], int] = {}
        self.head: HeadReader | None = None
        self._marks: deque[tuple[float, int]] = deque()

    # ---- what the engine tells

    async def check_starts(self) -> None:
        """Whether the log still has what is to be folded.

        Raises:
            TopicProblem: it has not.
        """
        engine = self.engine
        sources = {engine._source(shard): shard for shard in self.core.shards.values()}
        starts = await engine.insist(lambda: engine.follower.beginning_offsets(list(sources)), "the topics' starts could not be read")
        found = {name: starts[engine._source(shard)] for name, shard in self.core.shards.items()}
        self.starts = await self.begins(found)
        for name, shard in self.core.shards.items():
            if self.starts[name] > shard.absorbed():
                raise await self.headless(shard, shard.absorbed())

    async def begins(self, log_starts: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Offset from which on each partition can be folded, given where the brokers' logs begin."""
        self.log_starts.update(log_starts)
        found = dict(log_starts)
        if self.engine.archive is None or not any(found.values()):
            return found
        if self.head is None:
            self.head = HeadReader(self.engine.archive, prefix=self.engine.config.prefix, identities=self.engine.identities)
        return {**found, **await self.head.begins({place: start for place, start in found.items() if start})}

    async def headless(self, shard: Shard, at: int) -> TopicProblem:
        """The sentence for a log that cannot be folded from an offset on."""
        place = shard.name
        start = self.log_starts[place]
        begin, end, why = (at, start, "there is no archive") if self.head is None else await self.head.gap(place, at, start)
        return TopicProblem(
            f"{self.engine.full_names[place[0]]}/{place[1]}: the log begins at offset {start}, what was before was removed (retention), and of offsets "
            f"{begin} to {end - 1}: {why}; so tables cannot be rebuilt from offset {at}. The present ones are whole and stay as they are: set "
            f"{', '.join(self.names)} back; or start with a new app_id, whose tables begin with what the log still has"
        )

    def begin(self) -> None:
        """Build."""
        engine = self.engine
        self.plan.known = engine.core.served
        self.plan.former = None if self.beside else engine.core
        if self.beside and engine.config.folds:
            for (topic, number), shard in self.core.shards.items():
                self.gained(topic, number, self.starts[(topic, number)], shard.followed)
        engine.log.warning("%s: the tables are being rebuilt beside those that serve", "; ".join(self.differs))
        if engine.config.folds:
            engine.add_future(self._build())
        engine.add_future(self._judge())

    def gained(self, topic: str, number: int, log_start: int, changelog_end: int) -> None:
        """A partition is ours: build it too.

        Args:
            log_start: offset from which on it can be folded, as `begins` says.
        """
        self.core.gained(topic, number, committed=None, log_start=log_start, changelog_end=changelog_end, building=True)

    def followed(self, tp: TopicPartition, records: Iterable[tuple[bytes, bytes | None]], position: int) -> None:
        """Rows were read from the changelog."""
        if not (self.beside and self.core is self.engine.core):  # else the engine has told its core
            self.core.followed(self.by_changelog[tp], records, position)

    def heed(self, served: Served | None) -> None:
        """Which generation serves, as it was decided last."""
        if not self.plan.heed(served):
            return
        if self.plan.swapping:
            self.engine.held = not self.beside
        elif not self.beside and served is not None and (served.generation, served.former) == (self.plan.serving, self.schema.generation) and served.ended:
            self.end(served.ended)
        else:
            problem = ConfigError(", ".join(self.names), "another worker was started to serve other tables, so those of these settings are not built any more")
            self.engine.add_future(self.engine.crash(problem))

    async def give_up(self, why: TopicProblem) -> None:
        """What is to be folded is nowhere any more: end the build, for every worker, and serve on by the former tables.

        Only the workers whose code made those can; and once others serve, they cannot be taken back.
        """
        if self.beside or self.plan.swapping:
            await self.engine.crash(why)
            return
        self.plan.over = True
        if self.engine.rebuild is not self:
            return
        try:
            await self.engine.decide(self.plan.serving, former=self.schema.generation, ended=str(why))
        except Exception as failed:  # no broker takes it
            await self.engine.crash(failed)
        else:
            self.end(str(why))

    def end(self, why: str) -> None:
        """It is recorded that the build is over: go on without it. The rows that it made get tombstones."""
        self.plan.over = True
        self.engine.ended(self.told(why))
        self.close()

    def close(self) -> None:
        """Nothing is read any more."""
        if self.head is not None:
            self.head.close()

    def told(self, why: str) -> dict[str, Any]:
        """What is told of a build that ended before it was done."""
        found = {name: value for name, value in self.progress().items() if name in ("serving", "building", "differs", "since", "folded", "to_fold")}
        return {"state": "failed", **found, "error": why, "ended": time_text(int(time.time() * 1e6))}

    # ---- building

    async def _build(self) -> None:
        engine = self.engine
        tps = {engine._source(shard): shard for shard in self.core.shards.values()}
        consumer = AIOKafkaConsumer(
            bootstrap_servers=engine.config.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=min(100, engine.fetch_wait_ms),
            max_partition_fetch_bytes=1 << 18,
            max_poll_records=MOST_AT_ONCE,
            **engine.config.security,
        )
        await consumer.start()
        try:
            consumer.assign(list(tps))
            consumer.pause(*tps)
            while not (self.plan.over or engine.should_stop or engine._dead or engine.rebuild is not self):
                headless = next((shard for shard in self.core.shards.values() if shard.headless), None)
                if headless is not None:
                    raise await self.headless(headless, headless.next)
                wanted = {
                    tp: shard
                    for tp, shard in tps.items()
                    if shard.ready and shard.next < self.plan.bound(shard) and shard.next - (shard.safe if shard.safe is not None else 0) < MOST_UNWRITTEN
                }
                from_archive = [shard for shard in wanted.values() if shard.next < self._log_start(shard)]
                wanted = {tp: shard for tp, shard in wanted.items() if shard not in from_archive}
                consumer.pause(*(tps.keys() - wanted.keys()))
                consumer.resume(*wanted)
                for shard in from_archive:
                    await self._read(shard)
                if wanted:
                    await self._fetch(consumer, wanted)
                elif not from_archive:
                    if any(shard.dirty() for shard in self.core.shards.values()):
                        engine._wake.set()
                    await self._say_built()
                    await asyncio.sleep(0.02)
        except TopicProblem as exc:
            await self.give_up(exc)
        except KafkaError as exc:
            await engine.crash(exc)
        except PulsefoldError as exc:
            await engine.crash(exc)
        except Exception as bug:  # rows may be half changed
            await engine.crash(bug)
        finally:
            await consumer.stop()

    def _log_start(self, shard: Shard) -> int:
        return self.log_starts.get(shard.name, 0)

    async def _read(self, shard: Shard) -> None:
        """Fold what the archive has of a partition's head: some thousand records."""
        place, epoch, start = shard.name, shard.epoch, shard.next
        head = self.head
        if head is None:
            raise await self.headless(shard, start)
        records, end = await head.read(place, start)
        end = min(end, self._log_start(shard), self.plan.bound(shard))
        records = [record for record in records if record.offset < end]
        for at in range(0, len(records), MOST_AT_ONCE) or (0,):
            part = records[at : at + MOST_AT_ONCE]
            upto = part[-1].offset + 1 if at + MOST_AT_ONCE < len(records) else end
            if shard.epoch != epoch or shard.next != start or upto <= start:
                return  # it is read again, from where it is built
            await self._absorb(shard, epoch, start, upto, part)
            start = upto

    async def _absorb(self, shard: Shard, epoch: int, start: int, end: int, records: Iterable[Record]) -> None:
        begun = time.monotonic()
        found = self.plan.fold(shard, epoch, start, end, records)
        if found is not None and not isinstance(found, Refusal):  # else it is fetched again, from where it is built
            self.engine._wake.set()
            if self.beside:
                self.engine._absorbed_at = time.monotonic()
        await asyncio.sleep(min(0.05, time.monotonic() - begun))  # what serves has at least half of the time

    async def _passed(self, shard: Shard, log_start: int) -> None:
        """The log begins behind what is to be folded next.

        Raises:
            TopicProblem: nor has the archive what is missing.
        """
        place = shard.name
        begins = await self.begins({place: log_start})
        if begins[place] > shard.next:
            raise await self.headless(shard, shard.next)
        log.warning("%s/%s: the log begins at offset %s now; what is before is read from the archive", self.engine.full_names[place[0]], place[1], log_start)

    async def _fetch(self, consumer: AIOKafkaConsumer, wanted: dict[TopicPartition, Shard]) -> None:
        at = positions(consumer, wanted)
        for tp, shard in wanted.items():
            if at.get(tp) != shard.next:
                consumer.seek(tp, shard.next)
        epochs = {tp: shard.epoch for tp, shard in wanted.items()}
        packed(consumer._fetcher)
        got = await consumer.getmany(*wanted, timeout_ms=100)
        at = positions(consumer, wanted)
        for tp, shard in wanted.items():
            taken = got.get(tp)
            start = at.get(tp, shard.next) if taken is None else taken.start
            if start > shard.next and shard.next < (first := (await consumer.beginning_offsets([tp]))[tp]):
                await self._passed(shard, first)
            elif taken is not None:
                await self._absorb(shard, epochs[tp], start, taken.end, taken)

    async def _say_built(self) -> None:
        """Where the last records of the log are none of ours (control records), no row tells that it is built to its end."""
        engine = self.engine
        for shard, key, value in self.plan.unsaid():
            await engine.send(engine.config.changelogs[shard.partition.topic], value, key=key, partition=shard.partition.number)

    # ---- progress, and the swap

    async def _judge(self) -> None:
        """Look how far it is; decide; swap."""
        engine = self.engine
        try:
            asked = 0.0
            while not (self.plan.over or engine.should_stop or engine._dead or engine.rebuild is not self):
                plan = self.plan
                if time.monotonic() >= asked + 0.5 and (not plan.swapping or self.beside):
                    asked = time.monotonic()
                    await self._aim()
                    if not plan.swapping and engine.config.folds and plan.built():
                        await engine.decide(plan.generation, former=plan.serving)
                        asked += 2.0
                if plan.swapping and plan.level():
                    if not self.beside and engine.config.folds:
                        await engine.app.consumer.commit()
                    if plan.level() and (self.beside or not engine.core.committable()):  # else what is put out would be compared with what was told before it
                        await engine.swap()
                        return
                await asyncio.sleep(0.02)
        except PulsefoldError as exc:
            await engine.crash(exc)

    async def _aim(self) -> None:
        """Learn what the group has committed: so far it is to be built."""
        engine = self.engine
        try:
            found = await engine._committed([engine._source(shard) for shard in self.core.shards.values()])
        except (TimeoutError, KafkaError) as exc:
            engine.log.warning("how far the tables must be rebuilt is not known at the moment: %r", exc)
            return
        self.plan.aim({name: found.get(engine._source(shard), 0) for name, shard in self.core.shards.items()})
        now = time.monotonic()
        self._marks.append((now, sum(shard.absorbed() for shard in self.core.shards.values())))
        while self._marks[0][0] < now - RATE_S and len(self._marks) > 2:
            self._marks.popleft()

    def progress(self) -> dict[str, Any]:
        """How far it is: records folded of those to fold, records a second, and when it will be done."""
        engine = self.engine
        partitions: list[dict[str, Any]] = []
        tables: list[dict[str, Any]] = []
        for (topic, number), shard in self.core.shards.items():
            start = self.starts.get((topic, number), 0)
            goal = max(self.plan.goal.get((topic, number), 0), start)
            folded = min(max(shard.absorbed(), start), goal) - start
            one = {"topic": engine.config.prefix + topic, "partition": number, "folded": folded, "to_fold": goal - start, "builder": shard.owned}
            partitions.append(one)
        serving = {table.name: table for table in engine.schema.tables} if not self.beside else {}
        for table in self.schema.tables:
            keys = sum(len(space) for shard in self.core.shards.values() for space in shard.partition.spaces[table.index].values())
            former = serving.get(table.name)
            held = None if former is None else sum(len(space) for s in engine.core.shards.values() for space in s.partition.spaces[former.index].values())
            tables.append({"name": table.name, "version": table.version, "keys": keys, "serving_keys": held})
        folded, total = sum(one["folded"] for one in partitions), sum(one["to_fold"] for one in partitions)
        now, so_far = time.monotonic(), sum(shard.absorbed() for shard in self.core.shards.values())
        first_at, first = self._marks[0] if self._marks else (now, so_far)
        per_s = (so_far - first) / (now - first_at) if now > first_at else None
        left = 0.0 if folded >= total else (total - folded) / per_s if per_s else None
        return {
            "state": "swapping" if self.plan.swapping else "building",
            "served_by": "other workers" if self.beside else "this worker",
            "serving": self.plan.serving,
            "building": self.schema.generation,
            "differs": self.differs,
            "since": time_text(int(self.begun_at * 1e6)),
            "folded": folded,
            "to_fold": total,
            "per_s": None if per_s is None else round(per_s, 1),
            "seconds_left": None if left is None else round(left, 1),
            "estimated_end": None if left is None else time_text(int((time.time() + left) * 1e6)),
            "partitions": partitions,
            "tables": tables,
        }

    def ended(self) -> dict[str, Any]:
        """What is told of it afterwards."""
        found = {name: value for name, value in self.progress().items() if name in ("serving", "building", "differs", "since", "folded", "to_fold")}
        return {"state": "swapped", **found, "former": found["serving"], "serving": found["building"], "swapped": time_text(int(time.time() * 1e6))}
