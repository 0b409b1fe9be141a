"""A small world around the core: broker, workers and faults, all drawn from one seed.

The core under test is the product's own (`agents.core`), and so is the fold machinery (`tables.partition`). Simulated are the
broker (source log with control records, compacted changelog, outputs, group offsets), the workers' I/O (partial writes, late
and lost acks, dropped chunks, seeks) and what befalls them (crash, pause beyond the session, rebalance, compaction).

At the end the world heals, everybody catches up, and the invariants are checked:
  * every worker's rows equal the pure fold of the log;
  * the outputs on the log are those of the pure fold, none missing, none false (twins allowed);
  * the committed offset was never ahead of the durable rows and outputs;
  * who was ready had read every row that was on the changelog when it became the owner;
  * what was cleared has nothing but tombstones on the changelog.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import msgspec

from agents.core import Core, Flush, Refusal, Shard
from streams.events import TrustObserved
from tables.dedupe import IDS
from tables.fold import Fold, Refused
from tables.partition import HEAD, Bounds, Output, Partition, Schema
from tables.rows import Row, Table, parse_wire_key, wire_key

T = TypeVar("T")
MOST_TRIES = 1000
"""Schedules that are run to shrink one."""


class InOrder(set[Row]):
    """A set that is gone through in the order of what was put in, so that a seed always gives the same schedule."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[Row, None] = {}

    def add(self, row: Row) -> None:
        super().add(row)
        self._order[row] = None

    def discard(self, row: Row) -> None:
        super().discard(row)
        self._order.pop(row, None)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._order)


class Ordered(Partition):
    """A partition whose changed rows are written in the order in which they changed."""

    marks = InOrder


class Last(msgspec.Struct, array_like=True):
    """The source row: what was seen last."""

    n: int = 0
    name: str = ""


class Chain(msgspec.Struct, array_like=True):
    """The reader row: a digest over everything it saw of the source row, so any error shows for ever."""

    n: int = 0
    digest: int = 0


CHAIN = Table("sim_chain", Chain, rank=20)
LAST = Table("sim_last", Last, rank=30)
KEYS = Table("sim_keys", Chain, rank=25)


class Chained(Fold):
    """Two dependent rows, one independent row a key, outputs, and refusals that depend on state."""

    tables = (CHAIN, KEYS, LAST)
    topics = ("judgments",)

    def __init__(self) -> None:
        self.handlers = {TrustObserved: self.observed}

    def observed(self, event: Any, p: Partition) -> None:
        data = event.data
        last = p.read(LAST, event.tenant, ())
        name, n = (last.name, last.n) if last is not None else ("", 0)
        if data.id == name and not data.success:
            raise Refused("goal_conflict", "data.id: the same again")
        chain = p.open(CHAIN, event.tenant, ())
        if chain is not None:
            chain.digest = (chain.digest * 1_000_003 + hash_of(name) + p.offset + n) % (1 << 61)
            chain.n += 1
        row = p.open(KEYS, event.tenant, (data.id,))
        if row is not None:
            row.digest = (row.digest * 31 + p.offset + 1) % (1 << 61)
            row.n += 1
            if row.n % 3 == 0:
                p.publish("alerts", data.id.encode(), f"{data.id}:{row.n}:{p.offset}".encode())
        source = p.open(LAST, event.tenant, ())
        if source is not None:
            source.n += 1
            source.name = data.id


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    value = 0
    for char in text.encode():
        value = value * 131 + char
    return value


TENANTS = ("a", "a", "a", "b")
SCHEMA = Schema([Chained()])
BOUNDS = Bounds(dedupe_window=128)


@dataclass(slots=True)
class Rec:
    """A record of the source log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class Broker:
    """What survives: the logs and the group's offsets."""

    log: list[list[Rec]]
    starts: list[int]
    ends: list[int]
    changelog: list[list[tuple[int, bytes, bytes | None, int]]]
    changelog_end: list[int]
    outputs: list[list[tuple[int, str, bytes | None, bytes | None]]]
    committed: list[int | None]
    durable: list[int]
    step: int = 0
    buried: dict[tuple[int, str], int] = field(default_factory=dict)

    def append_rows(self, n: int, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Append to a changelog partition."""
        for key, value in rows:
            if value is not None and len(value) == HEAD.size:
                place = n, parse_wire_key(key)[1]
                self.buried[place] = max(HEAD.unpack(value)[0], self.buried.get(place, -1))
            self.changelog[n].append((self.changelog_end[n], key, value, self.step))
            self.changelog_end[n] += 1

    def compact(self, n: int, lag: int) -> None:
        """Keep the last record of each key, but touch nothing younger than `lag` steps."""
        newest = {key: offset for offset, key, _, _ in self.changelog[n]}
        self.changelog[n] = [r for r in self.changelog[n] if newest[r[1]] == r[0] or r[3] > self.step - lag]


@dataclass
class Writing:
    """A flush on its way: what is still to be appended, and whether its ack will come."""

    flush: Flush
    n: int
    outputs: list[Output]
    rows: list[tuple[bytes, bytes | None]]
    lost_ack: bool = False


class Worker:
    """One worker's memory and I/O."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.boot()

    def boot(self) -> None:
        """Start with empty memory."""
        self.core: Core = self.world.core_type(Ordered("judgments", n, SCHEMA, count=self.world.parts, bounds=BOUNDS) for n in range(self.world.parts))
        self.position = [0] * self.world.parts
        self.fetch = [0] * self.world.parts
        self.owed = [0] * self.world.parts
        self.writing: list[Writing] = []
        self.paused_until = -1
        self.inbox: list[tuple[int, int, int, int, list[Rec]]] = []

    def shard(self, n: int) -> Shard:
        """Bookkeeping of a partition."""
        return self.core.shards[("judgments", n)]

    def crash(self) -> None:
        """Lose all memory. What was handed to the network may still arrive."""
        for writing in self.writing:
            if self.world.rng.random() < 0.5:
                self.world.orphans.append(writing)
        self.boot()


@dataclass
class Profile:
    """How likely each step is."""

    weights: dict[str, float] = field(
        default_factory=lambda: {
            "produce": 6,
            "fetch": 8,
            "deliver": 8,
            "take": 6,
            "write": 10,
            "ack": 6,
            "fail": 0.6,
            "follow": 9,
            "commit": 3,
            "crash": 0.35,
            "pause": 0.4,
            "rebalance": 0.5,
            "compact": 0.6,
            "drop": 0.7,
            "orphan": 1,
            "control": 0.7,
            "idle": 1,
            "learn": 1,
            "redrive": 0.5,
            "retain": 0.5,
        }
    )
    events: int = 60
    steps: int = 260
    lag_steps: int = 400


class World:
    """One schedule.

    Args:
        seed: everything follows from it.
        core_type: the core, or a planted bug.
        broken_seek: planted bug of the I/O: seeks do nothing.
        skipped: places in the schedule at which nothing happens.
    """

    def __init__(
        self,
        seed: int,
        core_type: Callable[..., Core] = Core,
        *,
        broken_seek: bool = False,
        profile: Profile | None = None,
        parts: int = 2,
        skipped: Set[int] = frozenset(),
    ) -> None:
        self.rng = random.Random(seed)
        self.core_type = core_type
        self.broken_seek = broken_seek
        self.profile = profile or Profile()
        self.parts = parts
        self.broker = Broker(
            [[] for _ in range(parts)],
            [0] * parts,
            [0] * parts,
            [[] for _ in range(parts)],
            [0] * parts,
            [[] for _ in range(parts)],
            [None] * parts,
            [0] * parts,
        )
        self.orphans: list[Writing] = []
        self.workers = [Worker(self, name) for name in ("a", "b")]
        self.owners: list[Worker | None] = [None] * parts
        self.produced = 0
        self.clears = self.pick((0, 0.05, 0.2))
        self.told = [Ordered("judgments", n, SCHEMA, count=parts, bounds=BOUNDS) for n in range(parts)]
        self.seen: list[dict[bytes, int]] = [{} for _ in range(parts)]
        self.read = [0] * parts
        self.gone: list[list[Output]] = [[] for _ in range(parts)]
        self.skipped = skipped
        self.begun: list[str] = []

    # ---- the run

    def run(self) -> None:
        """Run the schedule, heal, check.

        Raises:
            AssertionError: what does not hold; `begun` has what was done.
        """
        self.rebalance(self.workers)
        actions = [getattr(self, "do_" + kind) for kind in self.profile.weights]
        weights = list(accumulate(self.profile.weights.values()))
        for step in range(self.profile.steps):
            self.broker.step = step
            for at, act in enumerate(self.rng.choices(actions, cum_weights=weights, k=3), 3 * step):
                if at not in self.skipped:
                    self.begun.append(act.__name__.removeprefix("do_"))
                    act()
        self.heal()
        self.check()

    def below(self, n: int) -> int:
        """A number from 0 to n - 1; a third of the time that `randrange` takes."""
        return int(self.rng.random() * n)

    def pick(self, found: Sequence[T]) -> T:
        """One of them."""
        return found[int(self.rng.random() * len(found))]

    def worker(self) -> Worker | None:
        """A worker that is not paused."""
        alive = [w for w in self.workers if w.paused_until < self.broker.step]
        return self.pick(alive) if alive else None

    def do_produce(self) -> None:
        if self.produced >= self.profile.events:
            return
        n = self.below(self.parts)
        name = f"k{self.below(5)}"
        if self.rng.random() < 0.1 and self.broker.log[n]:
            raw = self.pick(self.broker.log[n]).value  # delivered twice
        elif self.rng.random() < 0.05:
            raw = b"{not json"
        elif self.rng.random() < self.clears:
            event = {"specversion": "1.0", "id": f"c{self.produced}", "source": "sim", "type": "tenant.cleared.v1", "time": "2026-03-02T00:00:30Z"}
            raw = encoded({**event, "tenant": self.pick(TENANTS), "derivedfrom": "x", "data": {"scope": "all"}})
        else:
            event = {
                "specversion": "1.0",
                "id": f"e{self.produced}",
                "source": "sim",
                "type": "trust.observed.v1",
                "time": f"2026-03-02T00:00:{self.below(60):02d}Z",
                "tenant": self.pick(TENANTS),
                "data": {"kind": "model", "id": name, "success": self.rng.random() < 0.7},
            }
            raw = encoded(event)
        self.broker.log[n].append(Rec(self.broker.ends[n], 1_772_409_600_000 + self.produced, None, raw))
        self.broker.ends[n] += 1
        self.produced += 1

    def do_control(self) -> None:
        self.broker.ends[self.below(self.parts)] += 1  # a transaction's marker: an offset without a record

    def do_redrive(self) -> None:
        """A dead letter is sent again, perhaps for the second time, perhaps repaired by nothing but what came since."""
        n = self.below(self.parts)
        letters = [out for out in self.broker.outputs[n] if out[1] == "dead-letters"]
        if letters and self.produced < self.profile.events:
            offset, _, key, value = self.pick(letters)
            self.broker.log[n].append(Rec(self.broker.ends[n], 1_772_409_600_000 + self.produced, key, value, [("redriven", b"judgments/%d/%d" % (n, offset))]))
            self.broker.ends[n] += 1
            self.produced += 1

    def do_retain(self) -> None:
        """Retention removes the log's head, as far as the group has committed."""
        n = self.below(self.parts)
        start = self.broker.starts[n]
        self.broker.starts[n] = start + self.below(max(0, (self.broker.committed[n] or 0) - start) + 1)

    def do_fetch(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for n in range(self.parts):
            shard = worker.shard(n)
            if self.owners[n] is not worker or not shard.ready or any(item[0] == n for item in worker.inbox):
                continue
            start = worker.fetch[n] = max(worker.fetch[n], self.broker.starts[n])  # out of range: the client goes to the earliest
            most = 1 + self.below(11)
            log = self.broker.log[n]
            first = bisect_left(log, start, key=attrgetter("offset"))
            records = log[first : first + most]
            end = log[first + most].offset if first + most < len(log) else self.broker.ends[n]
            if end > start:
                worker.fetch[n] = end
                worker.inbox.append((n, shard.epoch, start, end, records))

    def do_deliver(self) -> None:
        worker = self.worker()
        if worker is None or not worker.inbox:
            return
        n, epoch, start, end, records = worker.inbox.pop(0)
        found = worker.core.chunk(worker.shard(n), epoch, start, end, records)
        if isinstance(found, Refusal):
            self.refused(worker, n, found)

    def refused(self, worker: Worker, n: int, refusal: Refusal) -> None:
        """Fetch again, or go on behind what retention has removed."""
        gone = worker.core.beheaded(worker.shard(n), self.broker.starts[n])
        self.seek(worker, n, worker.shard(n).next if gone else refusal.seek)

    def seek(self, worker: Worker, n: int, offset: int) -> None:
        """Move the fetch position."""
        if not self.broken_seek:
            worker.fetch[n] = offset

    def do_drop(self) -> None:
        worker = self.worker()
        if worker is not None and worker.inbox:
            worker.inbox.pop(self.below(len(worker.inbox)))

    def do_idle(self) -> None:
        worker = self.worker()
        if worker is not None:
            for n in range(self.parts):
                found = worker.core.idle(worker.shard(n), worker.fetch[n])
                if found is not None and self.owners[n] is worker:
                    self.refused(worker, n, found)

    def do_learn(self) -> None:
        """A worker learns that it is no owner any more."""
        worker = self.worker()
        if worker is not None:
            for n in range(self.parts):
                if self.owners[n] is not worker:
                    worker.core.lost("judgments", n)

    def do_take(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for n in range(self.parts):
            flush = worker.core.take(worker.shard(n))
            if flush is not None:
                worker.writing.append(Writing(flush, n, list(flush.outputs), list(flush.rows), self.rng.random() < 0.05))

    def do_write(self) -> None:
        worker = self.worker()
        if worker is not None and worker.writing:
            self.advance(self.pick(worker.writing))

    def advance(self, writing: Writing) -> None:
        """Append a part of a flush, outputs first."""
        if writing.outputs:
            k = 1 + self.below(len(writing.outputs))
            part, writing.outputs = writing.outputs[:k], writing.outputs[k:]
            self.broker.outputs[writing.n].extend((o.offset, o.topic, o.key, o.value) for o in part)
        elif writing.rows:
            k = 1 + self.below(len(writing.rows))
            part_rows, writing.rows = writing.rows[:k], writing.rows[k:]
            self.broker.append_rows(writing.n, part_rows)

    def do_ack(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for writing in [w for w in worker.writing if not w.outputs and not w.rows]:
            worker.writing.remove(writing)
            if writing.lost_ack:
                worker.core.failed(writing.flush)
            else:
                worker.core.acked(writing.flush)

    def do_fail(self) -> None:
        worker = self.worker()
        if worker is not None and worker.writing:
            writing = worker.writing.pop(self.below(len(worker.writing)))
            worker.core.failed(writing.flush)

    def do_follow(self) -> None:
        worker = self.worker()
        if worker is not None:
            n = self.below(self.parts)
            self.follow(worker, n, 1 + self.below(29))

    def follow(self, worker: Worker, n: int, most: int) -> None:
        """Read on in a changelog partition."""
        first = bisect_left(self.broker.changelog[n], worker.position[n], key=itemgetter(0))
        records = self.broker.changelog[n][first : first + most]
        position = records[-1][0] + 1 if len(records) == most else self.broker.changelog_end[n]
        worker.position[n] = position
        was = worker.shard(n).ready
        worker.core.followed(worker.shard(n), [(r[1], r[2]) for r in records], position)
        if worker.shard(n).ready and not was:
            self.begin(worker, n)

    def do_commit(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for (_, n), offset in worker.core.committable().items():
            if self.owners[n] is not worker:
                continue  # the group refuses a commit of an old generation
            self.check_commit(n, offset)
            self.broker.committed[n] = offset
            worker.core.committed("judgments", n, offset)

    def do_crash(self) -> None:
        worker = self.pick(self.workers)
        worker.crash()
        self.rebalance([w for w in self.workers if w is not worker] if self.rng.random() < 0.5 else self.workers)

    def do_pause(self) -> None:
        """A worker stops beyond its session, the other takes over; it wakes with its writes still under way."""
        worker = self.worker()
        if worker is not None:
            worker.paused_until = self.broker.step + 5 + self.below(55)
            self.rebalance([w for w in self.workers if w is not worker])

    def do_rebalance(self) -> None:
        self.rebalance([w for w in self.workers if w.paused_until < self.broker.step])

    def rebalance(self, members: Sequence[Worker]) -> None:
        """Assign every partition anew over the members."""
        for n in range(self.parts):
            owner = self.pick(members) if members else None
            old = self.owners[n]
            if owner is old and owner is not None and owner.shard(n).owned:
                continue
            if old is not None and old.paused_until < self.broker.step:
                old.core.lost("judgments", n)
            self.owners[n] = owner
            if owner is not None:
                self.gain(owner, n)

    def gain(self, owner: Worker, n: int) -> None:
        """A paused worker that wakes learns of its losses before it gains."""
        committed = self.broker.committed[n]
        owner.owed[n] = self.broker.changelog_end[n]
        owner.core.gained("judgments", n, committed=committed, log_start=self.broker.starts[n], changelog_end=self.broker.changelog_end[n])
        owner.inbox = [item for item in owner.inbox if item[0] != n]
        owner.fetch[n] = committed or 0
        if owner.shard(n).ready:
            self.begin(owner, n)

    def begin(self, owner: Worker, n: int) -> None:
        """An owner says that it is ready to fold."""
        read, owed = owner.position[n], owner.owed[n]
        assert read >= owed, f"partition {n}: {owner.name} is ready, but has read the changelog to {read} of {owed} only"
        self.seek(owner, n, owner.shard(n).next)

    def do_compact(self) -> None:
        self.broker.compact(self.below(self.parts), self.profile.lag_steps)

    def do_orphan(self) -> None:
        if self.orphans:
            writing = self.pick(self.orphans)
            self.advance(writing)
            if not writing.rows or self.rng.random() < 0.2:
                self.orphans.remove(writing)

    # ---- the end

    def heal(self) -> None:
        """Everybody awake, zombies' writes land, one stable assignment; run until nothing moves."""
        for worker in self.workers:
            worker.paused_until = -1
        for n in range(self.parts):
            for worker in self.workers:
                if self.owners[n] is not worker:
                    worker.core.lost("judgments", n)
        for writing in self.orphans:
            while writing.rows:
                self.advance(writing)
        self.orphans = []
        self.rebalance(self.workers)
        for _ in range(400):
            self.broker.step += 1
            for worker in self.workers:
                for n in range(self.parts):
                    self.follow(worker, n, 1 << 30)
            for kind in ("fetch", "deliver", "deliver", "take", "write", "write", "write", "ack", "commit", "idle"):
                for _ in range(2):
                    getattr(self, "do_" + kind)()
            if self.quiet():
                break
        for n in range(self.parts):
            self.broker.compact(n, 0)
        late = Worker(self, "late")
        for n in range(self.parts):
            self.follow(late, n, 1 << 30)
        self.workers.append(late)

    def quiet(self) -> bool:
        """Nothing is left to do."""
        return all(
            owner is not None
            and owner.shard(n).ready
            and owner.shard(n).next == self.broker.ends[n]
            and not owner.shard(n).dirty()
            and not owner.shard(n).partition.graves
            and owner.shard(n).flushing is None
            and owner.position[n] == self.broker.changelog_end[n]
            and (self.broker.committed[n] or 0) == self.broker.ends[n]
            and all(w.position[n] == self.broker.changelog_end[n] for w in self.workers)
            for n, owner in enumerate(self.owners)
        )

    def check_commit(self, n: int, offset: int) -> None:
        """Offsets never ahead of rows and outputs. What an earlier commit was checked for is not looked at again: logs only grow."""
        expected, newest = self.told[n], self.seen[n]
        expected.absorb([r for r in self.broker.log[n] if expected.next <= r.offset < offset])
        changelog = self.broker.changelog[n]
        for _, key, value, _ in changelog[bisect_left(changelog, self.read[n], key=itemgetter(0)) :]:
            if value is not None:
                newest[key] = max(newest.get(key, -1), int.from_bytes(value[:8], "big", signed=True))
        self.read[n] = self.broker.changelog_end[n]
        for key, value, row, _ in expected.drain():
            if row.applied <= self.broker.buried.get((n, row.tenant), -1):
                continue  # it is cleared with what is in its grave already
            assert newest.get(key, -1) >= row.applied, (
                f"partition {n}: committed {offset}, but {key!r} at {row.applied} is not on the changelog ({value[:0]!r})"
            )
        out = {(o, t, k) for o, t, k, _ in self.broker.outputs[n]} if expected.outputs else set()
        for o in expected.outputs:
            assert (o.offset, o.topic, o.key) in out, f"partition {n}: committed {offset}, but the output of {o.offset} is not on the log"
        self.gone[n] += expected.outputs
        expected.outputs.clear()

    def check(self) -> None:
        """All invariants."""
        for n in range(self.parts):
            owner = self.owners[n]
            assert owner is not None
            shard = owner.shard(n)
            assert shard.next == self.broker.ends[n], f"partition {n}: stuck at {shard.next} of {self.broker.ends[n]}"
            assert (self.broker.committed[n] or 0) == self.broker.ends[n], f"partition {n}: committed {self.broker.committed[n]} of {self.broker.ends[n]}"
            expected = self.told[n]
            expected.absorb([r for r in self.broker.log[n] if r.offset >= expected.next])
            wanted = rows_of(expected)
            live = {wire_key(*key) for key in wanted}
            kept = {key for _, key, value, _ in self.broker.changelog[n] if value is not None and not key.startswith(b"schema|")}
            assert kept <= live, f"partition {n}: still on the changelog {sorted(kept - live)[:3]}"
            for worker in self.workers:
                found = rows_of(worker.shard(n).partition)
                assert found == wanted, f"partition {n}: worker {worker.name} differs in {[k for k in wanted if found.get(k) != wanted[k]][:3]}"
            have = {(o, t, k, v) for o, t, k, v in self.broker.outputs[n]}
            want = {(o.offset, o.topic, o.key, o.value) for o in (*self.gone[n], *expected.outputs)}
            assert have == want, f"partition {n}: outputs missing {sorted(want - have)[:2]}, false {sorted(have - want)[:2]}"


encoded = msgspec.json.Encoder().encode


def rows_of(partition: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row with its version and bytes."""
    found = {}
    for table in partition.schema.tables:
        for tenant, space in partition.spaces[table.index].items():
            for key, row in space.items():
                if table is IDS or row.applied >= 0:
                    found[(partition.schema.wires[table.index], tenant, key)] = (row.applied, bytes(table.dump(row)))
    return found


def shrunk(seed: int, core_type: Callable[..., Core] = Core, *, broken_seek: bool = False) -> World:
    """The world of a seed that fails, with as little happening in it as still makes it fail.

    Halves, quarters and so on of the schedule are left out as long as it fails, in whatever way; at most `MOST_TRIES` are made.
    """

    def failing(skipped: Set[int]) -> World | None:
        world = World(seed, core_type, broken_seek=broken_seek, skipped=skipped)
        try:
            world.run()
        except Exception:  # whatever it raises is a failure
            return world
        return None

    world = failing(frozenset())
    assert world is not None, f"seed {seed} does not fail"
    every = frozenset(range(3 * world.profile.steps))
    kept, size, tries = sorted(every), len(every) // 2, MOST_TRIES
    while size and tries:
        begin = 0
        while begin < len(kept) and tries:
            tries -= 1
            fewer = kept[:begin] + kept[begin + size :]
            found = failing(every.difference(fewer))
            if found is not None:
                world, kept = found, fewer
            else:
                begin += size
        size //= 2
    return world
