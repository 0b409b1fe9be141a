"""Tables built beside those that serve, by the engine's core over a log and a changelog in memory: what is built, told, and begun with after a swap."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agents.core import SERVED, Core, Served, Shard, record_of, scores_key
from agents.generations import remade
from agents.rebuild import Rebuild
from agents.registry import FOLD_SETTINGS, schema
from agents.status import counts
from streams.settings import load
from tables.partition import Partition, Schema
from tests.harness import Log, Rec

from .test_log_starts import START


def made(**settings: Any) -> Schema:
    return schema(load(settings, {}, None, FOLD_SETTINGS).fold)


OLD, NEW = {"budget_daily_usd": "10"}, {"budget_daily_usd": "20"}


def log_of(amounts: list[float]) -> list[Rec]:
    """Costs of one day, and a bad record."""
    log = Log(made(**OLD).folds)
    log.send([{"id": f"c{n}", "type": "cost.incurred.v1", "time": START, "data": {"cost": amount, "model": f"m{n % 3}"}} for n, amount in enumerate(amounts)])
    found = log.records[("costs", 0)]
    return [*found, Rec(len(found), found[0].timestamp, b"k", b"no event")]


class World:
    """One partition of costs: its log, its changelog, and the cores of a worker that serves by `OLD` and builds by `NEW`."""

    def __init__(self, log: list[Rec]) -> None:
        self.log = log
        self.changelog: list[tuple[bytes, bytes | None]] = []
        self.outputs: list[tuple[str, bytes | None]] = []
        self.committed: int | None = None
        self.start()

    def start(self) -> None:
        """A worker that knows nothing but what is on the changelog."""
        self.serving = Core([Partition("costs", 0, made(**OLD))], rebuild=True)
        self.building = Core([Partition("costs", 0, made(**NEW))], rebuild=True)
        for core, building in ((self.serving, False), (self.building, True)):
            shard = core.shards[("costs", 0)]
            core.followed(shard, self.changelog, len(self.changelog))
            core.gained("costs", 0, committed=self.committed, log_start=0, changelog_end=len(self.changelog), building=building)
            assert shard.ready

    def shard(self, core: Core) -> Shard:
        return core.shards[("costs", 0)]

    def fold(self, core: Core, upto: int) -> None:
        shard = self.shard(core)
        if upto > shard.next:
            core.chunk(shard, shard.epoch, shard.next, upto, self.log[shard.next : upto])

    def flush(self, core: Core, *, cut: int | None = None) -> None:
        """Write what is folded; `cut`: only so many rows reach the changelog, and nobody hears of it."""
        shard = self.shard(core)
        flush = core.take(shard)
        if flush is not None:
            self.outputs += [(out.topic, out.value) for out in flush.outputs]
            self.changelog += flush.rows[:cut]
            if cut is None:
                core.acked(flush)
                for other in (self.serving, self.building):
                    other.followed(self.shard(other), flush.rows, len(self.changelog))

    def commit(self) -> None:
        for (topic, number), offset in self.serving.committable().items():
            self.serving.committed(topic, number, offset)
            self.committed = offset

    def build(self) -> None:
        """As far as what serves is durable."""
        self.fold(self.building, min(self.shard(self.serving).safe or 0, self.shard(self.building).next + 7))


def dumped(partition: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    return {
        (table.name, tenant, key): (row.applied, table.dump(row))
        for table in partition.schema.tables
        for tenant, space in partition.spaces[table.index].items()
        for key, row in space.items()
    }


def alone(log: list[Rec], **settings: Any) -> Partition:
    partition = Partition("costs", 0, made(**settings))
    partition.absorb(log)
    return partition


@pytest.mark.parametrize("seed", range(12))
def test_what_is_built_through_kills_at_any_moment_is_what_a_fold_from_the_start_gives_and_nothing_is_put_out(seed: int) -> None:
    rng = random.Random(seed)
    log = log_of([1.0] * 60)
    world = World(log)
    while world.shard(world.building).next < len(log) or world.shard(world.building).dirty():
        world.fold(world.serving, min(len(log), world.shard(world.serving).next + rng.randrange(9)))
        rng.choice([world.build, world.commit, lambda: world.flush(world.serving), lambda: world.flush(world.building)])()
        assert world.shard(world.building).next <= (world.shard(world.serving).safe or 0)
        assert not world.shard(world.building).partition.outputs
        if rng.random() < 0.06:
            world.flush(rng.choice([world.serving, world.building]), cut=rng.randrange(6))
            world.start()
    expected = alone(log, **NEW)
    assert dumped(world.shard(world.building).partition) == dumped(expected)
    if world.shard(world.serving).next == len(log):
        assert dumped(world.shard(world.serving).partition) == dumped(alone(log, **OLD))
    last = {out.key: out.value for out in expected.outputs if out.topic == "alerts"}
    told = world.shard(world.building).told
    assert told == {b"": b"{}", **last} and last
    ids = [json.loads(value)["id"] for topic, value in world.outputs if topic == "alerts" and value is not None]
    theirs = {json.loads(out.value or b"")["id"] for out in alone(log, **OLD).outputs if out.topic == "alerts"}
    assert set(ids) <= theirs, "nothing of the new settings was put out"


def test_after_the_swap_an_owner_begins_where_the_former_rows_stopped_and_folds_nothing_new_before_it_has_told() -> None:
    log = log_of([3.0] * 10)
    world = World(log)
    world.fold(world.serving, 6)
    world.flush(world.serving)
    with pytest.raises(ValueError, match="as far as"):
        world.building.serve(world.shard(world.building), world.shard(world.serving))
    world.build()
    world.flush(world.building)
    shard = world.shard(world.building)
    assert not world.building.differing(shard), "it is being built"
    world.building.serve(shard, world.shard(world.serving))
    assert world.building.differing(shard)
    shard.told = {}
    n = len(world.outputs)
    world.fold(world.building, len(log))
    world.flush(world.building)
    fresh = [(topic, value) for topic, value in world.outputs[n:]]
    assert fresh == [(out.topic, out.value) for out in alone(log, **NEW).outputs if out.offset >= 6]
    assert {topic for topic, _ in fresh} == {"alerts", "dead-letters"}


def test_an_heir_first_folds_what_is_on_the_log_then_tells_then_goes_on() -> None:
    log = log_of([3.0] * 10)
    world = World(log)
    world.fold(world.serving, 4)
    world.flush(world.serving)
    world.build()
    world.flush(world.building)
    heir = Core([Partition("costs", 0, made(**NEW))], rebuild=True)
    shard = heir.shards[("costs", 0)]
    heir.followed(shard, world.changelog, len(world.changelog))
    heir.gained("costs", 0, committed=7, log_start=0, changelog_end=len(world.changelog))
    assert (shard.next, heir.differing(shard)) == (4, False)
    heir.chunk(shard, shard.epoch, 4, 11, log[4:])
    assert (shard.next, heir.differing(shard), shard.partition.outputs) == (7, True, [])
    want = {out.key: out.value for out in alone(log[:7], **NEW).outputs if out.topic == "alerts"}
    assert want and {name: value for name, value in shard.told.items() if name} == want, "what it is to be compared with is as of there"
    shard.told = {}
    heir.chunk(shard, shard.epoch, 7, 11, log[7:])
    assert shard.next == 11 and shard.partition.outputs


def test_a_log_without_its_start_is_not_built() -> None:
    core = Core([Partition("costs", 0, made(**NEW))], rebuild=True)
    shard = core.gained("costs", 0, committed=None, log_start=5, changelog_end=0, building=True)
    assert shard.headless and not shard.ready


def test_after_a_swap_an_owner_knows_the_newest_message_of_each_alert_that_it_put_out() -> None:
    log = log_of([3.0] * 10)
    core = Core([Partition("costs", 0, made(**NEW))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, 5, log[:5])
    assert shard.n_alerts and shard.stands is None, "nobody asked for it"
    shard.stands = {}
    n, m = shard.n_alerts, len(shard.partition.outputs)
    core.chunk(shard, shard.epoch, 5, 11, log[5:])
    fresh = [out for out in shard.partition.outputs[m:] if out.topic == "alerts"]
    assert fresh and shard.stands == {out.key: out.value for out in fresh} and shard.n_alerts == n + len(fresh)
    core.lost("costs", 0)
    assert shard.stands is None, "it is another worker's now"


def test_the_mark_that_scores_are_due_comes_to_who_gets_the_partition_and_goes_with_its_tombstone() -> None:
    schema = made(**NEW)
    core = Core([Partition("costs", 0, schema)])
    shard = core.shards[("costs", 0)]
    core.followed(shard, [(scores_key(schema.generation), b"due")], 1)
    assert shard.scores_due and not shard.generations
    core.followed(shard, [(scores_key(schema.generation), None)], 2)
    assert not shard.scores_due
    core.gained("costs", 0, committed=None, log_start=0, changelog_end=2)
    shard.scores_due = True
    core.followed(shard, [(scores_key(schema.generation), None)], 3)
    assert shard.scores_due, "an owner knows better"


class Host:
    """What a build needs of the engine to be told of decisions."""

    def __init__(self) -> None:
        self.schema = made(**OLD)
        self.core = Core([Partition("costs", 0, self.schema)])
        self.config = SimpleNamespace(prefix="p.")
        self.told: list[dict[str, Any]] = []
        self.crashed: list[BaseException] = []

    def places(self, core: Core) -> dict[Any, Shard]:
        return {}

    def ended(self, told: dict[str, Any]) -> None:
        self.told.append(told)

    async def crash(self, reason: BaseException) -> None:
        self.crashed.append(reason)

    def add_future(self, work: Any) -> None:
        asyncio.run(work)


def test_a_worker_that_reads_that_its_build_cannot_be_done_serves_on_and_one_that_reads_of_other_tables_stops() -> None:
    for beside in (False, True):
        host = Host()
        schema = made(**NEW)
        build = Rebuild(host, schema, {}, Core([Partition("costs", 0, schema)]), host.schema.generation, record_of(host.schema), beside=beside)  # type: ignore[arg-type]
        build.plan.known = Served(1, host.schema.generation)
        build.heed(build.plan.known)
        build.heed(Served(2, host.schema.generation, schema.generation, "the log begins at 7"))
        assert build.plan.over
        if beside:
            assert not host.told and host.crashed, "its tables are not this code's"
        else:
            assert not host.crashed
            assert [(told["state"], told["error"], told["building"]) for told in host.told] == [("failed", "the log begins at 7", schema.generation)]
            assert any("budget_daily_usd" in one for one in host.told[0]["differs"])
    host = Host()
    build = Rebuild(host, schema, {}, Core([Partition("costs", 0, schema)]), host.schema.generation, record_of(host.schema), beside=False)  # type: ignore[arg-type]
    build.heed(Served(2, host.schema.generation, schema.generation))
    assert host.crashed and not host.told, "somebody has set the settings back"


def test_the_last_decision_wins_and_an_earlier_one_that_is_written_late_is_noticed() -> None:
    core = Core([Partition("costs", 0, made(**NEW))])
    shard = core.shards[("costs", 0)]

    def read(n: int, generation: str) -> None:
        core.followed(shard, [(SERVED, msgspec.json.encode(Served(n, generation)))], shard.followed + 1)

    read(1, "a")
    read(2, "b")
    assert core.served == Served(2, "b") and not core.outdated
    read(1, "a")
    assert core.served == Served(2, "b") and core.outdated
    read(2, "b")
    assert not core.outdated


def test_rows_of_another_generation_are_kept_where_they_are_asked_for_and_give_its_tables() -> None:
    log = log_of([1.0] * 30)
    world = World(log)
    for upto in range(0, 31, 3):
        world.fold(world.serving, upto)
        world.flush(world.serving)
    reader = Core([Partition("costs", 0, made(**NEW))])
    reader.gather = True
    shard = reader.shards[("costs", 0)]
    late = next(row for row in world.changelog if row[1] is not None and row[0].startswith(b"counters"))
    reader.followed(shard, [*world.changelog, late], len(world.changelog) + 1)
    (generation,) = shard.foreign
    former = Core([Partition("costs", 0, made(**OLD))])
    former.followed(former.shards[("costs", 0)], shard.foreign[generation].items(), 1)
    assert dumped(former.shards[("costs", 0)].partition) == dumped(alone(log[:30], **OLD))
    assert counts([former.shards[("costs", 0)]])["in"] == 30


def test_former_settings_are_made_again_from_what_the_changelog_says_and_others_are_this_workers_own() -> None:
    former = made(budget_daily_usd="20", dedupe_window=128, trust_half_life='{"model": 30}', drift_threshold="0.3", metric_z="4")
    mine = made(drift_threshold="0.4")
    found = remade(json.loads(record_of(former)), former.generation, mine)
    assert found is not None and (found.generation, found.made_of) == (former.generation, former.made_of)
    differ = {name for name in found.given if msgspec.json.encode(found.given[name]) != msgspec.json.encode(mine.given[name])}
    assert "budget_daily_usd" in differ and "drift_threshold" not in differ, "no row follows from it"
    record = json.loads(record_of(former))
    assert remade({**record, "tables": {**record["tables"], "trust": record["tables"]["trust"] + 1}}, former.generation, mine) is None, "other code made that"
    assert remade({name: record[name] for name in ("tables", "settings")}, former.generation, mine) is None
