"""Schedules in which workers are restarted with another setting, one after the other: tables are built beside those that serve, then swapped.

What is decided is the product's own (`agents.core`, `agents.beside`); what is simulated is the shell around it (`agents.engine`,
`agents.rebuild`, `agents.standings`): what is read at a start, who is told of a decision, what is told after a swap, which rows are ended.

Nothing is removed from the log here: a log without its start cannot be folded anew, and is refused. What an owner that slept through the
swap tells by the former setting when it wakes stands, and so does what an owner folds by the former rows when it gets a partition back from
one that has swapped and compared already, as docs/upgrades.md says; and of an alert that a builder had found further on than another compared,
when its rows landed after that, no message may come. The alerts of these are left out of what must hold.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import msgspec

from agents.core import AT, MARK, SCHEMA, SERVED, Core, Served, Shard, told_key
from tables.rows import parse_wire_key

from .broker import Told
from .folds import NEW, OLD
from .truth import Truth
from .world import Worker, World, Writing

MINE, FORMER = NEW.generation, OLD.generation


class Upgraded(World):
    """A schedule with a changed setting."""

    also: ClassVar = {"upgrade": 0.4, "build": 6, "judge": 4, "tell": 3, "end_rows": 1}
    healing = (*World.healing, "build", "judge", "tell", "end_rows")

    def __init__(self, seed: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(seed, *args, **kwargs)
        self.truth[MINE] = [Truth(n, self.parts, broker, NEW) for n, broker in enumerate(self.brokers)]
        self.told_from = [0] * self.parts
        self.compared = [False] * self.parts
        self.by_former = [0] * self.parts
        self.by_new = [0] * self.parts
        self.blurred: set[tuple[int, bytes | None]] = set()

    # ---- a start

    def do_upgrade(self) -> None:
        """A worker is stopped, in order or not, and started with the new setting."""
        worker = self.worker()
        if worker is not None and worker.schema is OLD and any(broker.changelog for broker in self.brokers):
            self.upgrade(worker)

    def upgrade(self, worker: Worker) -> None:
        """Start it with the new setting."""
        if self.rng.random() < 0.5:
            for n, owner in enumerate(self.group.owners):
                if owner is worker:
                    self.lose(worker, n)
        worker.schema = NEW
        worker.crash()
        self.group.left(worker)

    def booted(self, worker: Worker) -> None:
        """`Engine._settle`: everything on the changelogs is read, then it is decided which tables serve here."""
        if worker.schema is OLD:
            return
        core = worker.core
        core.gather = True
        for n, (shard, broker) in enumerate(zip(worker.shards, self.brokers, strict=True)):
            records, worker.position[n] = broker.read(0, 1 << 30)
            core.followed(shard, records, worker.position[n])
        found = {generation for shard in worker.shards for generation in shard.generations}
        served = core.served
        serving = served.generation if served is not None else MINE if MINE in found or not found else FORMER
        foreign = [(shard.foreign.get(serving, {}), shard.late.get(serving, {})) for shard in worker.shards]
        core.gathered()
        if serving == MINE or serving not in found:
            core.rebuild |= served is not None
            assert not any(core.differs(shard) for shard in worker.shards), "rows that nobody decided about"
            return
        core.rebuild = True
        if served is None or served.former is not None:
            self.decide([core], FORMER, None)
        former = worker.made(OLD)
        former.rebuild, former.served = True, core.served
        worker.core, worker.shards = former, list(former.shards.values())
        for shard, built, (rows, late) in zip(worker.shards, core.shards.values(), foreign, strict=True):
            shard.generations = dict(built.generations)
            former.followed(shard, chain(rows.items(), late.items()), built.followed)
        worker.beside = self.beside_type(core, MINE, FORMER, former)
        worker.beside.known = former.served

    def decide(self, cores: list[Core], generation: str, former: str | None) -> None:
        """`Engine.decide`."""
        known = cores[0].served
        served = Served(1 if known is None else known.n + 1, generation, former)
        self.brokers[0].append(SERVED, msgspec.json.encode(served))
        for core in cores:
            core.served = served

    # ---- as in every schedule, but with two cores

    def do_retain(self) -> None:
        """A log that is to be folded anew keeps its start."""

    def do_fetch(self) -> None:
        for worker in self.workers:
            for n, shard in enumerate(worker.shards):
                if self.held(worker, shard):
                    worker.fetch[n] = self.brokers[n].end  # it is not fetched now; it is sought when it may be
        super().do_fetch()

    def held(self, worker: Worker, shard: Shard) -> bool:
        """Nothing new is folded: the tables are being swapped, or what stands differently is told first."""
        swapping = worker.beside is not None and worker.beside.swapping and not worker.core.trails(shard)
        return swapping or worker.core.differing(shard)

    def do_deliver(self) -> None:
        for worker in self.workers:
            if worker.inbox and worker.beside is not None and worker.beside.swapping:
                worker.inbox = [item for item in worker.inbox if worker.core.trails(worker.shard(item[0]))]
        super().do_deliver()

    def follow(self, worker: Worker, n: int, most: int) -> None:
        position = worker.position[n]
        super().follow(worker, n, most)
        if worker.beside is not None:
            records, _ = self.brokers[n].read(position, most)
            worker.beside.building.followed(worker.beside.building.shards[("judgments", n)], records, worker.position[n])
        self.heed(worker, n)

    def heed(self, worker: Worker, n: int) -> None:
        """`Engine._heed`: somebody may have decided that other tables serve."""
        core, shard = worker.core, worker.shard(n)
        served = core.served
        if core.outdated and shard.ready and served is not None and served.generation == shard.partition.schema.generation:
            core.outdated = False
            self.brokers[0].append(SERVED, msgspec.json.encode(served))
        if worker.beside is not None:
            worker.beside.heed(served)
            assert not worker.beside.over, "it was decided for what nobody was started with"
        elif served is not None and served.generation == MINE and worker.schema is OLD and worker.name != "late":
            self.upgrade(worker)

    def gain(self, worker: Worker, n: int) -> None:
        super().gain(worker, n)
        if worker.beside is not None:
            end = self.brokers[n].changelog_end
            worker.beside.building.gained("judgments", n, committed=None, log_start=0, changelog_end=end, building=True)

    def check_commit(self, shard: Shard, offset: int) -> None:
        """What the former tables have told of an offset the new ones need not tell."""
        n = shard.partition.number
        if shard.partition.schema is NEW:
            self.truth_of(shard).check_durable(offset, alerts_from=1 << 60 if shard.told else self.told_from[n])
            self.by_new[n] = max(self.by_new[n], offset)
            return
        self.truth_of(shard).check_durable(offset, alerts_from=self.by_new[n])  # below it the new ones were told
        self.by_former[n] = max(self.by_former[n], offset)
        self.folded_on(n, offset)

    def folded_on(self, n: int, offset: int) -> None:
        """The former rows, or what is built beside them, were folded so far by an owner that changes over later; another may have compared before."""
        if self.compared[n] and offset > self.told_from[n]:
            for truth in (self.truth[MINE][n], self.truth[FORMER][n]):
                truth.advance(offset)
                self.blurred |= {(n, key) for at, topic, key, _ in truth.outputs if topic == "alerts" and self.told_from[n] <= at < offset}
            self.told_from[n] = offset

    def advance(self, writing: Writing) -> None:
        super().advance(writing)
        if self.compared[writing.n]:
            self.blur(writing.n)

    def blur(self, n: int) -> None:
        """What a builder kept of alerts of records behind the comparison was not compared, and its rows keep who folds them from telling it."""
        for _, key, value in self.brokers[n].changelog:
            if value is not None and key.startswith(told_key(MINE, b"")) and key != told_key(MINE, MARK):
                (at,) = AT.unpack_from(value)
                if at >= self.told_from[n]:
                    self.told_from[n] = at + 1
                    self.blurred.add((n, key.removeprefix(told_key(MINE, b""))))

    # ---- building

    def do_build(self) -> None:
        """`Rebuild._build`."""
        worker = self.worker()
        if worker is None or worker.beside is None:
            return
        for shard in worker.beside.building.shards.values():
            if shard.ready and shard.next < worker.beside.bound(shard):
                broker = self.brokers[shard.partition.number]
                records, end = broker.records(shard.next, 1 + self.below(20))
                worker.beside.fold(shard, shard.epoch, shard.next, end, records)
                self.folded_on(shard.partition.number, shard.next)
        for shard, key, value in worker.beside.unsaid():
            self.brokers[shard.partition.number].append(key, value)

    def do_judge(self) -> None:
        """`Rebuild._judge`, and `Engine.swap`."""
        worker = self.worker()
        if worker is None or worker.beside is None:
            return
        beside = worker.beside
        if not beside.swapping:
            beside.aim({("judgments", n): broker.committed or 0 for n, broker in enumerate(self.brokers)})
            if beside.built():
                self.decide([worker.core, beside.building], MINE, FORMER)
        elif beside.level():
            self.commit(worker)
            if beside.level() and not worker.core.committable():
                names = beside.swap()
                worker.core, worker.beside = beside.building, None
                worker.shards = list(worker.core.shards.values())
                for _, n in names:
                    self.folded_on(n, worker.shard(n).next)
                    self.seek(worker, n, worker.shard(n).next)

    # ---- after a swap

    def do_tell(self) -> None:
        """`Standings`: what stands differently by the new tables is told, then nothing is kept of it."""
        worker = self.worker()
        if worker is None or worker.beside is not None or worker.schema is OLD:
            return
        for n, shard in enumerate(worker.shards):
            if worker.core.differing(shard):
                self.tell(worker, n, shard)

    def tell(self, worker: Worker, n: int, shard: Shard) -> None:
        """Compare one partition's."""
        broker, told = self.brokers[n], dict(shard.told)
        if MARK in told:
            far = max((out.offset + 1 for out in broker.outputs if out.topic == "alerts" and out.offset < broker.end), default=0)
            if far > shard.next:
                shard.alerts_from = far
                self.seek(worker, n, shard.next)
                return
            # built further than what is to be folded next, by who has crashed: alerts of these records are compared, too
            self.told_from[n] = max(self.told_from[n], shard.next, *(at + 1 for at in shard.told_at.values()))
            self.compared[n] = True
            self.folded_on(n, self.by_former[n])  # committed, while who compares slept
            self.blur(n)
            board = standing(broker.outputs)
            broker.published.update((shard.told_at[name], "alerts", name, message) for name, message in told.items() if name != MARK)
            for name in sorted((told.keys() | board.keys()) - {MARK}):
                if board.get(name) != told.get(name):
                    broker.outputs.append(Told(max(0, shard.next - 1), "alerts", name, told.get(name), "", self.group.owners[n] is not worker))
        ending = worker.core.comparing(shard)
        whole = self.rng.random() < 0.7
        for key, value in ending if whole else ending[: self.below(len(ending)) + 1]:
            broker.append(key, value)
        if whole:
            worker.core.compared(shard)
            self.seek(worker, n, shard.next)

    def do_end_rows(self) -> None:
        """`Engine._forget`: tombstones for the rows of the former tables."""
        worker = self.worker()
        if worker is None or worker.beside is not None or worker.schema is OLD or worker.core.served is None or worker.core.served.former is None:
            return
        for shard, broker in zip(worker.shards, self.brokers, strict=True):
            if shard.ready and not shard.told and shard.generations.keys() - {MINE}:
                live: dict[bytes, None] = {}
                for _, key, value in broker.changelog:
                    table, tenant, _ = parse_wire_key(key)
                    if key != SERVED and (tenant if table == SCHEMA else table.rpartition(".")[2]) != MINE:
                        live.pop(key, None)
                        if value is not None:
                            live[key] = None
                ended = sorted(live, key=lambda key: key.startswith(SCHEMA.encode() + b"|"))
                whole = self.rng.random() < 0.7
                for key in ended if whole else ended[: self.below(len(ended) + 1)]:
                    broker.append(key, None)
                if whole:
                    shard.generations = {MINE: shard.generations[MINE]} if MINE in shard.generations else {}

    # ---- the end

    def heal(self) -> None:
        for worker in self.workers:
            worker.paused_until = -1
        self.asleep_until = -1
        if not any(broker.changelog for broker in self.brokers):
            super().heal()
            return
        for worker in self.workers:
            if worker.schema is OLD:
                self.upgrade(worker)
        super().heal()

    def quiet(self) -> bool:
        return super().quiet() and all(
            worker.beside is None and not any(shard.told or shard.generations.keys() - {MINE} for shard in worker.shards if shard.owned)
            for worker in self.workers
            if worker.schema is NEW
        )

    def check(self) -> None:
        if self.workers[0].schema is OLD:
            super().check()
            return
        for worker in self.workers:
            assert worker.beside is None, f"{worker.name} builds for ever"
        for n, (broker, owner) in enumerate(zip(self.brokers, self.group.owners, strict=True)):
            assert owner is not None
            shard, truth, former = owner.shard(n), self.truth[MINE][n], self.truth[FORMER][n]
            assert shard.next == broker.end, f"partition {n}: stuck at {shard.next} of {broker.end}"
            assert (broker.committed or 0) == broker.end, f"partition {n}: committed {broker.committed} of {broker.end}"
            for worker in self.workers:
                truth.check_end(worker.shard(n).partition, worker.name)
            truth.check_kept()
            marks = [value for _, key, value in broker.changelog if key == told_key(MINE, MARK)]
            assert not marks or marks[-1] is None or AT.unpack_from(marks[-1])[0] >= 0, f"partition {n}: who starts next compares again"
            former.advance(broker.end)
            false = broker.published - truth.known - former.known
            assert not false, f"partition {n}: outputs false {sorted(false)[:2]}"
            missing = {out for out in truth.known - broker.published if out[1] != "alerts" or out[0] >= self.told_from[n]}
            assert not missing, f"partition {n}: outputs missing {sorted(missing)[:2]}"
            after = self.told_from[n] if self.compared[n] else 1 << 60  # told by the former rows of an owner that had not changed over, after it was compared
            late = {out.key for out in broker.outputs if out.late or (out.generation == FORMER and out.offset >= after)} | {
                key for at, key in self.blurred if at == n
            }
            last = {out[2]: out[3] for out in truth.outputs if out[1] == "alerts"}
            told_at = {out[2] or b"": out[0] for out in truth.outputs if out[1] == "alerts"}
            late |= {name for name, at in told_at.items() if at <= truth.partition.cleared_at(name.split(b".")[0].decode())}  # it has ended with its tenant
            board = standing(broker.outputs)
            wrong = [name for name in sorted(last.keys() | board.keys()) if name not in late and last.get(name) != board.get(name)]
            assert not wrong, f"partition {n}: {wrong[0]!r} stands as {board.get(wrong[0])!r}, by the new tables it is {last.get(wrong[0])!r}"


def standing(outputs: list[Told]) -> dict[bytes | None, bytes | None]:
    """What stands of each alert: the message of the highest offset; of one offset what was told by comparison, later."""
    last: dict[bytes | None, tuple[int, bool, bytes | None]] = {}
    for out in outputs:
        if out.topic == "alerts" and (out.key not in last or (out.offset, not out.generation) >= last[out.key][:2]):
            last[out.key] = out.offset, not out.generation, out.value
    return {key: value for key, (_, _, value) in last.items()}
