"""A small world around the core: brokers, workers and faults, all drawn from one seed.

The core under test is the product's own (`agents.core`, and `agents.beside` for a rebuild), and so is the fold machinery
(`tables.partition`). Simulated are the brokers (`broker`: source log with control records, compacted changelog, outputs, group
offsets), the workers' I/O (partial writes, late and lost acks, dropped chunks, seeks), the group (`group`: eager and cooperative
rebalances, static members) and what befalls them (crash, pause beyond the session, compaction, retention). In some schedules the
workers are restarted with another setting (`upgrade`), in some the source topic is deleted and made again (`recreate`).

`truth` is compared at every step: a row or an output that is written must be that of the pure fold at its version; what is below a
committed offset must be durable; who is ready must have read all that it must; what is counted as gone must be gone. At the end the
world heals, everybody catches up, and every worker's rows are those of the pure fold of the log, with nothing missing and nothing false.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, TypeVar

import msgspec

from agents.beside import Beside
from agents.core import Core, Flush, Refusal, Shard
from tables.partition import Output, Schema

from .broker import UNVERSIONED, Broker, Rec, Told
from .folds import BOUNDS, OLD, TENANTS, Ordered
from .group import Group
from .truth import Truth

T = TypeVar("T")
MASK = (1 << 64) - 1
START_MS = 1_772_409_600_000
encoded = msgspec.json.Encoder().encode


@dataclass(eq=False)
class Writing:
    """A flush on its way: what is still to be appended, and whether its ack will come."""

    flush: Flush
    worker: Worker
    n: int
    outputs: list[Output]
    rows: list[tuple[bytes, bytes | None]]
    lost_ack: bool = False


class Draws:
    """Random numbers, anew for each act: what is left out of a schedule does not change what the others draw.

    A linear congruential generator, begun by the mixing of SplitMix64 (Steele, Lea and Flood 2014).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed + 1
        self.begin(-1)

    def begin(self, act: int) -> None:
        """The numbers of an act."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + act * 0xD1B54A32D192ED03) & MASK
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & MASK
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & MASK
        self.state = mixed ^ mixed >> 31

    def random(self) -> float:
        """The next one, from 0 up to and without 1."""
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return (self.state >> 11) * 2.0**-53


class Worker:
    """One worker's memory and I/O.

    Attributes:
        core: that serves.
        beside: what it builds beside, if it does.
        schema: what it was started to serve.
        position: next changelog offset to follow, by partition.
        read: the changelog's end when it had read all of it last, or when it started.
        fetch: next source offset to fetch.
        owed: the changelog's end at the last gain.
        gone: what was told to be gone before the last gain.
        paused_until: the step at which it wakes.
        overslept: the changelog was compacted beyond what it has read: it is stopped for longer than the lag.
        overslept_once: it was, since it was started.
        stopped: why it has stopped for good; a person must mend that.
    """

    def __init__(self, world: World, name: str, schema: Schema = OLD) -> None:
        self.world = world
        self.name = name
        self.schema = schema
        self.boot()

    def boot(self) -> None:
        """Start with empty memory."""
        self.core = self.made(self.schema)
        self.shards = list(self.core.shards.values())
        self.beside: Beside | None = None
        self.position = [0] * self.world.parts
        self.read = [broker.changelog_end for broker in self.world.brokers]
        self.fetch = [0] * self.world.parts
        self.owed = [0] * self.world.parts
        self.gone = [0] * self.world.parts
        self.writing: list[Writing] = []
        self.paused_until = -1
        self.overslept = self.overslept_once = False
        self.stopped: Exception | None = None
        self.inbox: list[tuple[int, int, int, int, list[Rec]]] = []
        self.world.booted(self)

    def made(self, schema: Schema) -> Core:
        """A core with empty partitions."""
        brokers = self.world.brokers
        partitions = [Ordered("judgments", n, schema, count=len(brokers), bounds=BOUNDS, identity=broker.identity) for n, broker in enumerate(brokers)]
        return self.world.core_type(partitions)

    def shard(self, n: int) -> Shard:
        """Bookkeeping of a partition."""
        return self.shards[n]

    def folded(self) -> list[Shard]:
        """Of everything that is folded: what serves, and what is built beside it."""
        return self.shards if self.beside is None else [*self.shards, *self.beside.building.shards.values()]

    def lost(self, n: int) -> None:
        """It learns that a partition is not its own any more."""
        self.core.lost("judgments", n)
        if self.beside is not None:
            self.beside.building.lost("judgments", n)

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
            "oversleep": 0.4,
            "rebalance": 0.5,
            "assign": 3,
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


class World:
    """One schedule.

    Args:
        seed: everything follows from it.
        core_type: the core, or a planted bug.
        broken_seek: planted bug of the I/O: seeks do nothing.
        no_lag: planted bug of the brokers: they compact what is younger than the lag.
        folds_on: planted bug of the engine: a process that was stopped for longer than the lag goes on.
        beside_type: what decides of a rebuild, or a planted bug.
        skipped: places in the schedule at which nothing happens.

    Attributes:
        acts: how much happens: most bugs show in short schedules as soon, and take less time there; some need long ones.
    """

    also: ClassVar[Mapping[str, float]] = {}
    """What else happens, and how likely."""
    healing = ("fetch", "deliver", "deliver", "take", "write", "write", "write", "ack", "commit", "idle")
    """What is done at the end until nothing is left to do."""
    oversleeps: ClassVar = True
    """Compaction does not always wait for who is stopped."""

    def __init__(
        self,
        seed: int,
        core_type: Callable[..., Core] = Core,
        *,
        broken_seek: bool = False,
        no_lag: bool = False,
        folds_on: bool = False,
        beside_type: type[Beside] = Beside,
        profile: Profile | None = None,
        parts: int = 2,
        skipped: Set[int] = frozenset(),
    ) -> None:
        self.seed = seed
        self.rng = Draws(seed)
        self.core_type = core_type
        self.broken_seek = broken_seek
        self.no_lag = no_lag
        self.folds_on = folds_on
        self.beside_type = beside_type
        self.profile = profile or Profile()
        self.parts = parts
        self.step = 0
        self.brokers = [Broker() for _ in range(parts)]
        self.orphans: list[Writing] = []
        self.asleep_until = -1
        self.workers = [Worker(self, name) for name in ("a", "b", "c")[: self.pick((2, 2, 2, 3))]]
        self.group = Group(self)
        self.produced = 0
        self.clears = self.pick((0, 0.05, 0.2))
        self.acts = int(3 * self.profile.steps * self.pick((0.25, 0.5, 1)))
        self.truth = {OLD.generation: [Truth(n, parts, broker, OLD) for n, broker in enumerate(self.brokers)]}
        self.skipped = skipped
        self.begun: list[str] = []

    # ---- the run

    def run(self) -> None:
        """Run the schedule, heal, check.

        Raises:
            AssertionError: what does not hold; `begun` has what was done.
        """
        self.group.rebalance(self.workers)
        self.group.assign()
        weights = self.profile.weights | self.also
        names = list(weights)
        acts = {name: getattr(self, "do_" + name) for name in names}
        drawn = random.Random(self.seed).choices(names, cum_weights=list(accumulate(weights.values())), k=self.acts)
        for at, name in enumerate(drawn):
            if at not in self.skipped:
                self.step = at // 3
                self.begun.append(name)
                self.rng.begin(at)
                acts[name]()
        self.rng.begin(self.acts)
        self.heal()
        self.check()

    def booted(self, worker: Worker) -> None:
        """A worker has started, with nothing in memory."""

    def truth_of(self, shard: Shard) -> Truth:
        """What must be of what this shard writes."""
        return self.truth[shard.partition.schema.generation][shard.partition.number]

    def below(self, n: int) -> int:
        """A number from 0 to n - 1; a third of the time that `randrange` takes."""
        return int(self.rng.random() * n)

    def pick(self, found: Sequence[T]) -> T:
        """One of them."""
        return found[int(self.rng.random() * len(found))]

    def awake(self) -> list[Worker]:
        """Workers that are not paused."""
        return self.workers if self.asleep_until < self.step else [w for w in self.workers if w.paused_until < self.step]

    def worker(self) -> Worker | None:
        """A worker that is not paused."""
        alive = self.workers if self.asleep_until < self.step else self.awake()
        if not alive:
            return None
        found = alive[int(self.rng.random() * len(alive))]
        if found.overslept:
            self.woken(found)
        return found

    def woken(self, worker: Worker) -> None:
        """Who was stopped for long while it folded ends and is started anew; who was on its way there asks for the changelogs' ends again."""
        worker.overslept = False
        if any(shard.ready for shard in worker.shards) and not self.folds_on:
            worker.crash()
            self.group.left(worker)
            return
        for shard, broker in zip(worker.shards, self.brokers, strict=True):
            worker.core.follow_to(shard, broker.changelog_end)
            if worker.beside is not None:
                worker.beside.building.follow_to(worker.beside.building.shards[shard.name], broker.changelog_end)

    # ---- what is on the log

    def now(self) -> int:
        """Kafka timestamp of the next record, milliseconds: by its producer's clock, and those run apart."""
        return START_MS + self.produced + self.below(30_000)

    def do_produce(self) -> None:
        if self.produced >= self.profile.events:
            return
        broker = self.brokers[self.below(self.parts)]
        name = f"k{self.below(5)}"
        if self.rng.random() < 0.1 and broker.log:
            raw = self.pick(broker.log).value  # delivered twice
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
        broker.produce(self.now(), None, raw)
        self.produced += 1

    def do_control(self) -> None:
        self.brokers[self.below(self.parts)].end += 1  # a transaction's marker: an offset without a record

    def do_redrive(self) -> None:
        """A dead letter is sent again, perhaps for the second time, perhaps repaired by nothing but what came since."""
        n = self.below(self.parts)
        letters = [out for out in self.brokers[n].outputs if out.topic == "dead-letters"]
        if letters and self.produced < self.profile.events:
            letter = self.pick(letters)
            self.brokers[n].produce(self.now(), letter.key, letter.value, [("redriven", b"judgments/%d/%d" % (n, letter.offset))])
            self.produced += 1

    def do_retain(self) -> None:
        """Retention removes the log's head: mostly what the group has committed; now and then what nobody has folded."""
        n = self.below(self.parts)
        broker = self.brokers[n]
        if self.rng.random() < 0.2 and self.untouched(n):
            until = broker.end - self.below(broker.end - max(broker.start, broker.highest + 1))
            if until > broker.start:
                folded = max(broker.start, broker.highest + 1, broker.committed or 0)
                if until > folded:
                    broker.gone.append((folded, until))
                broker.start = until
        else:
            broker.start += self.below(max(0, (broker.committed or 0) - broker.start) + 1)

    def untouched(self, n: int) -> bool:
        """Whether what is behind the newest row that was written was not folded by anybody, nor fetched."""
        highest = self.brokers[n].highest
        return (
            not any(writing.n == n for writing in self.orphans)
            and self.brokers[n].end > max(highest + 1, self.brokers[n].start)
            and self.brokers[n].whole == highest
            and all(
                worker.shard(n).partition.next <= highest + 1
                and not any(item[0] == n for item in worker.inbox)
                and not any(writing.n == n for writing in worker.writing)
                for worker in self.workers
            )
        )

    def do_compact(self) -> None:
        n = self.below(self.parts)
        broker = self.brokers[n]
        if self.no_lag:
            broker.compact()
            return
        heeded = self.workers
        if self.oversleeps and self.asleep_until >= self.step and self.rng.random() < 0.8:
            heeded = self.awake()
            for worker in self.workers:
                if worker not in heeded:
                    worker.overslept = worker.overslept_once = True
        broker.compact(min((worker.read[n] for worker in heeded), default=broker.changelog_end))

    # ---- what workers do

    def do_fetch(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for n, shard in enumerate(worker.shards):
            if not shard.ready or any(item[0] == n for item in worker.inbox):
                continue
            broker = self.brokers[n]
            start = worker.fetch[n] = max(worker.fetch[n], broker.start)  # out of range: the client goes to the earliest
            records, end = broker.records(start, 1 + self.below(11))
            if end > start:
                worker.fetch[n] = end
                worker.inbox.append((n, shard.epoch, start, end, records))

    def do_deliver(self) -> None:
        worker = self.worker()
        if worker is None or not worker.inbox:
            return
        n, epoch, start, end, records = worker.inbox.pop(0)
        found = worker.core.chunk(worker.shard(n), epoch, start, end, records)
        if found.__class__ is Refusal:
            self.refused(worker, n, found)

    def refused(self, worker: Worker, n: int, refusal: Refusal) -> None:
        """Fetch again, or go on behind what retention has removed."""
        if worker.core.beheaded(worker.shard(n), self.brokers[n].start):
            self.gain(worker, n)
        else:
            self.seek(worker, n, refusal.seek)

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
            for n, shard in enumerate(worker.shards):
                found = worker.core.idle(shard, worker.fetch[n])
                if found is not None:
                    self.refused(worker, n, found)

    def do_take(self) -> None:
        worker = self.worker()
        if worker is None:
            return
        for shard in worker.folded():
            flush = worker.core.take(shard)
            if flush is not None:
                lost_ack = self.rng.random() < 0.05
                worker.writing.append(Writing(flush, worker, shard.partition.number, list(flush.outputs), list(flush.rows), lost_ack))

    def do_write(self) -> None:
        worker = self.worker()
        if worker is not None and worker.writing:
            self.advance(self.pick(worker.writing))

    def advance(self, writing: Writing) -> None:
        """Append a part of a flush, outputs first."""
        broker, shard = self.brokers[writing.n], writing.flush.shard
        truth = self.truth_of(shard)
        if writing.outputs:
            k = 1 + self.below(len(writing.outputs))
            part, writing.outputs = writing.outputs[:k], writing.outputs[k:]
            for o in part:
                truth.check_output(o.offset, o.topic, o.key, o.value)
                late = self.group.owners[writing.n] is not writing.worker
                broker.outputs.append(Told(o.offset, o.topic, o.key, o.value, shard.partition.schema.generation, late))
                broker.published.add((o.offset, o.topic, o.key, o.value))
                broker.highest = max(broker.highest, o.offset)
        elif writing.rows:
            k = 1 + self.below(len(writing.rows))
            rows, writing.rows = writing.rows[:k], writing.rows[k:]
            for key, value in rows:
                if value is not None and not key.startswith(UNVERSIONED):
                    truth.check_row(key, value)
                broker.append(key, value)

    def do_ack(self) -> None:
        worker = self.worker()
        if worker is None or not worker.writing:
            return
        done = [w for w in worker.writing if not w.outputs and not w.rows]
        for writing in done:
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
            self.follow(worker, self.below(self.parts), 1 + self.below(29 if self.rng.random() < 0.6 else 4))

    def follow(self, worker: Worker, n: int, most: int) -> None:
        """Read on in a changelog partition."""
        broker = self.brokers[n]
        records, worker.position[n] = broker.read(worker.position[n], most)
        if worker.position[n] == broker.changelog_end:
            worker.read[n] = broker.changelog_end
        shard = worker.shard(n)
        was = shard.ready
        if not records and shard.followed == worker.position[n] and (was or not shard.owned):
            return
        worker.core.followed(shard, records, worker.position[n])
        if shard.ready and not was:
            self.begin(worker, n)

    def begin(self, worker: Worker, n: int) -> None:
        """An owner says that it is ready to fold."""
        read, owed = worker.position[n], worker.owed[n]
        assert read >= owed, f"partition {n}: {worker.name} is ready, but has read the changelog to {read} of {owed} only"
        shard = worker.shard(n)
        since, told = max(shard.partition.window.done + 1, shard.committed or 0), shard.n_gone - worker.gone[n]
        gone = self.truth_of(shard).lost(since, shard.next) if since else 0  # where nothing was folded yet, it is a new deployment
        assert told == gone, f"partition {n}: {worker.name} tells that {told} offsets are gone before they were folded, {gone} are"
        if worker.overslept_once:
            self.truth_of(shard).check_read(shard.partition, shard.next, worker.name)
        self.seek(worker, n, shard.next)

    def do_commit(self) -> None:
        worker = self.worker()
        if worker is not None:
            self.commit(worker)

    def commit(self, worker: Worker) -> None:
        """Commit what may be; the group refuses it of who is no owner any more."""
        for (_, n), offset in worker.core.committable().items():
            if self.group.owners[n] is worker:
                self.check_commit(worker.shard(n), offset)
                self.brokers[n].committed = offset
                worker.core.committed("judgments", n, offset)

    def check_commit(self, shard: Shard, offset: int) -> None:
        """An offset is about to be committed."""
        self.truth_of(shard).check_durable(offset)

    # ---- what befalls them

    def do_crash(self) -> None:
        worker = self.pick(self.workers)
        worker.crash()
        self.group.left(worker)

    def do_pause(self) -> None:
        """A worker stops beyond its session, the others take over; it wakes with its writes still under way."""
        worker = self.worker()
        if worker is not None:
            self.pause(worker)

    def do_oversleep(self) -> None:
        """The same befalls a worker on its way through the changelog of a partition that it was given."""
        reading = [w for w in self.awake() if any(shard.goal is not None for shard in w.shards)]
        if reading:
            self.pause(self.pick(reading))

    def pause(self, worker: Worker) -> None:
        """Stop a worker for 5 to 60 steps."""
        worker.paused_until = self.step + 5 + self.below(55)
        self.asleep_until = max(self.asleep_until, worker.paused_until)
        self.group.rebalance([w for w in self.awake() if w is not worker])

    def do_rebalance(self) -> None:
        self.group.rebalance(self.awake())

    def do_assign(self) -> None:
        self.group.assign()

    def do_learn(self) -> None:
        """A worker learns that it is no owner any more."""
        worker = self.worker()
        if worker is not None:
            for n in range(self.parts):
                if self.group.owners[n] is not worker:
                    worker.lost(n)

    def gain(self, worker: Worker, n: int) -> None:
        """A paused worker that wakes learns of its losses before it gains."""
        broker, shard = self.brokers[n], worker.shard(n)
        worker.owed[n] = broker.changelog_end
        worker.gone[n] = shard.n_gone
        worker.inbox = [item for item in worker.inbox if item[0] != n]
        worker.fetch[n] = broker.committed or 0
        worker.core.gained("judgments", n, committed=broker.committed, log_start=broker.start, changelog_end=broker.changelog_end)
        if shard.ready:
            self.begin(worker, n)

    def lose(self, worker: Worker, n: int) -> None:
        """A partition is revoked: mostly there is time to write and commit what is folded."""
        shard = worker.shard(n)
        if self.rng.random() < 0.5:
            for writing in [w for w in worker.writing if w.n == n]:
                while writing.outputs or writing.rows:
                    self.advance(writing)
                worker.writing.remove(writing)
                worker.core.acked(writing.flush)
            self.commit(worker)
        worker.lost(n)
        assert not shard.ready

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
            if worker.overslept:
                self.woken(worker)
        self.asleep_until = -1
        for writing in self.orphans:
            while writing.outputs or writing.rows:
                self.advance(writing)
        self.orphans = []
        for n in range(self.parts):
            for worker in self.workers:
                if self.group.owners[n] is not worker:
                    worker.lost(n)
        self.group.rebalance(self.workers)
        self.group.assign()
        self.catch_up()
        late = Worker(self, "late", self.workers[0].schema)
        for n, broker in enumerate(self.brokers):
            broker.compact()
            self.follow(late, n, 1 << 30)
        self.workers.append(late)

    def catch_up(self) -> None:
        """Nothing befalls anybody until nothing is left to do."""
        acts = [getattr(self, "do_" + name) for name in self.healing for _ in "ab"]
        for _ in range(400):
            self.step += 1
            for worker in self.workers:
                for n in range(self.parts):
                    self.follow(worker, n, 1 << 30)
            for act in acts:
                act()
            if self.quiet():
                break

    def quiet(self) -> bool:
        """Nothing is left to do."""
        for broker, owner, n in zip(self.brokers, self.group.owners, range(self.parts), strict=True):
            if owner is None:
                return False
            shard = owner.shard(n)
            if not shard.ready or shard.next != broker.end or shard.dirty() or shard.partition.graves or shard.flushing is not None:
                return False
            if (broker.committed or 0) != broker.end or any(worker.position[n] != broker.changelog_end for worker in self.workers):
                return False
        return True

    def check(self) -> None:
        """All invariants."""
        for n, (broker, owner) in enumerate(zip(self.brokers, self.group.owners, strict=True)):
            assert owner is not None
            shard, truth = owner.shard(n), self.truth_of(owner.shard(n))
            assert shard.next == broker.end, f"partition {n}: stuck at {shard.next} of {broker.end}"
            assert (broker.committed or 0) == broker.end, f"partition {n}: committed {broker.committed} of {broker.end}"
            truth.check_durable(broker.end)
            for worker in self.workers:
                truth.check_end(worker.shard(n).partition, worker.name)
            truth.check_kept()
            false = broker.published - truth.known
            assert not false, f"partition {n}: outputs false {sorted(false)[:2]}"
