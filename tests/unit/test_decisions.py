"""Which tables a worker serves, as its engine decides it from what it has read, before it asks a broker for anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata
from faust.types import TP

from agents.core import AT, MARK, SERVED, Core, Served, record_of, scores_key, told_key
from agents.engine import AIM_S, Engine, EngineConfig, Stalled, since_boot
from agents.rebuild import Rebuild
from agents.rules import Rules
from agents.standings import Standings
from streams.errors import ConfigError
from tables.partition import HEAD, Partition
from tables.reader import PartitionReader
from tables.rows import wire_key
from tests.service import Service

from .test_upgrades import NEW, OLD, World, alone, dumped, log_of, made

OTHER = {"budget_daily_usd": "30"}


def written(**settings: str) -> tuple[bytes, bytes]:
    """What is on the changelog before the first row of a generation."""
    schema = made(**settings)
    return wire_key("schema", schema.generation, ()), record_of(schema)


def engine_of(*, rebuild: bool = False, folds: bool = True, **settings: str) -> Engine:
    changelogs = {"costs": "changelog-costs"}
    engine = Engine(None, EngineConfig("nowhere:1", "", changelogs, rebuild=rebuild, folds=folds), made(**settings))
    engine.prepare({"costs": 2}, {})
    return engine


def read(engine: Engine, number: int, *records: tuple[bytes, bytes | None]) -> None:
    engine.core.followed(engine.core.shards[("costs", number)], records, len(records))


def test_rows_of_two_settings_that_nobody_decided_about_are_refused_at_the_start_though_some_are_ours() -> None:
    engine = engine_of(**OLD)
    read(engine, 0, written(**OLD))
    read(engine, 1, written(**NEW))
    with pytest.raises(ConfigError, match="budget_daily_usd"):
        asyncio.run(engine._settle())


def test_a_chunk_that_was_fetched_before_a_swap_is_not_folded_before_what_stands_differently_was_told() -> None:
    log = log_of([1.0, 2.0, 3.0])
    core = Core([Partition("costs", 0, made(**NEW))])
    shard = core.shards[("costs", 0)]
    core.followed(shard, [(SERVED, msgspec.json.encode(Served(2, made(**NEW).generation, made(**OLD).generation)))], 1)
    core.gained("costs", 0, committed=None, log_start=0, changelog_end=1)
    assert core.differing(shard)
    assert core.chunk(shard, shard.epoch, 0, len(log), log) is None and shard.next == 0
    core.compared(shard)
    assert core.chunk(shard, shard.epoch, 0, len(log), log) == len(log)


def test_a_partition_of_which_a_former_owner_wrote_further_rows_is_folded_so_far_during_a_swap_since_others_wait_for_that() -> None:
    log = log_of([1.0, 2.0, 3.0])
    former, heir = (Core([Partition("costs", 0, made(**OLD))]) for _ in "ab")
    for core in (former, heir):
        core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    theirs, ours = former.shards[("costs", 0)], heir.shards[("costs", 0)]
    former.chunk(theirs, theirs.epoch, 0, len(log), log)
    late = former.take(theirs)
    assert late is not None and not heir.trails(ours)
    heir.followed(ours, late.rows, len(late.rows))
    assert heir.trails(ours)
    heir.chunk(ours, ours.epoch, 0, 2, log[:2])
    assert heir.trails(ours)
    heir.chunk(ours, ours.epoch, 2, len(log), log[2:])
    assert not heir.trails(ours)


def test_who_was_stopped_for_hours_while_it_read_a_changelog_reads_it_to_its_present_end_before_it_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would have read may be compacted into later rows: the reader of a row would be without what the row has already."""

    class Ends:
        async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
            return dict.fromkeys(tps, 9)

    engine = engine_of(**OLD)
    engine.follower = Ends()
    slow, done = engine.core.shards[("costs", 0)], engine.core.shards[("costs", 1)]
    for shard in (slow, done):
        engine._asked[("costs", shard.partition.number)] = since_boot()
        engine.core.gained("costs", shard.partition.number, committed=None, log_start=0, changelog_end=5)
    engine.core.followed(done, (), 5)
    asyncio.run(engine._ask_ends_again())
    assert (slow.goal, done.goal, done.ready) == (5, 5, True), "nothing is asked where it goes as it should"
    monkeypatch.setattr("agents.engine.since_boot", lambda: since_boot() + AIM_S + 1)
    asyncio.run(engine._ask_ends_again())
    assert (slow.goal, done.goal) == (9, 5)
    engine.core.followed(slow, (), 5)
    assert not slow.ready
    engine.core.followed(slow, (), 9)
    assert slow.ready


def test_who_was_stopped_for_hours_while_it_folded_folds_nothing_more_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of([1.0, 2.0])
    engine = engine_of(**OLD)
    shard = engine.core.shards[("costs", 0)]
    engine.core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    engine.short_names = {"costs": "costs"}
    engine.absorb(TP("costs", 0), (shard.epoch, 0, 1, log[:1]))
    assert shard.next == 1
    monkeypatch.setattr("agents.engine.since_boot", lambda: since_boot() + AIM_S + 1)
    with pytest.raises(Stalled, match="stopped for 30 minutes"):
        engine.absorb(TP("costs", 0), (shard.epoch, 1, 2, log[1:]))
    assert shard.next == 1 and not engine._dead
    now = [0.0]
    monkeypatch.setattr("agents.engine.since_boot", lambda: now[0])

    async def sleeps(_: float) -> None:
        now[0] += 1.0 if now[0] < 3 else AIM_S + 2

    monkeypatch.setattr(engine, "sleep", sleeps)
    ended: list[BaseException] = []

    async def crash(reason: BaseException) -> None:
        ended.append(reason)

    monkeypatch.setattr(engine, "crash", crash)
    asyncio.run(Engine._stay_awake.fun(engine))
    assert [type(reason) for reason in ended] == [Stalled] and now[0] > AIM_S


def test_who_was_stopped_for_hours_between_asking_for_a_changelogs_end_and_the_gain_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    now = [0.0]

    class Brokers:
        async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
            asked.append("end")
            return dict.fromkeys(tps, 4 + len(asked))

        async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
            now[0] += AIM_S + 1 if len(asked) == 1 else 1
            return dict.fromkeys(tps, 0)

        async def committed_offsets(self, tps: list[TP]) -> dict[TP, int]:
            return {}

        def assignment(self) -> set[TP]:
            return {TP("costs", 0)}

    async def gain() -> None:
        brokers = Brokers()
        engine.follower, engine.app = brokers, SimpleNamespace(consumer=SimpleNamespace(_thread=brokers, assignment=brokers.assignment))
        monkeypatch.setattr("agents.engine.since_boot", lambda: now[0])
        monkeypatch.setattr(engine, "_same_topics", same)
        await engine._gain([TP("costs", 0)])
        for _ in range(20):
            await asyncio.sleep(0)

    async def same() -> bool:
        return True

    engine = engine_of(**OLD)
    monkeypatch.setattr(engine, "add_future", lambda work: asyncio.get_running_loop().create_task(work))
    asyncio.run(gain())
    assert (asked, engine.core.shards[("costs", 0)].goal) == (["end", "end"], 6)


def test_a_partition_that_has_only_rows_that_are_built_beside_ours_is_folded_by_who_gains_it() -> None:
    core = Core([Partition("costs", 0, made(**OLD)), Partition("costs", 1, made(**OLD))])
    mine = made(**OLD).generation
    empty = core.shards[("costs", 1)]
    core.followed(core.shards[("costs", 0)], [written(**OLD), (SERVED, msgspec.json.encode(Served(1, mine)))], 2)
    core.followed(empty, [written(**NEW)], 1)
    assert core.gained("costs", 1, committed=None, log_start=0, changelog_end=1).ready
    core.served = Served(2, made(**NEW).generation, mine)
    assert not core.gained("costs", 1, committed=None, log_start=0, changelog_end=1).ready, "other rows serve"


@pytest.mark.parametrize("former", [made(**OLD).generation, made(**OTHER).generation])
def test_rows_that_are_being_ended_are_not_taken_for_rows_that_are_being_built_whichever_was_named(former: str) -> None:
    engine = engine_of(**OLD)
    served = Served(3, made(**NEW).generation, former)
    read(engine, 0, written(**OLD), written(**OTHER), written(**NEW), (SERVED, msgspec.json.encode(served)))
    with pytest.raises(ConfigError, match="budget_daily_usd"):
        asyncio.run(engine._settle())


def test_while_rows_are_being_ended_a_restart_with_rebuild_decides_nothing_anew() -> None:
    engine = engine_of(rebuild=True, **NEW)
    served = Served(3, made(**NEW).generation, made(**OLD).generation)
    read(engine, 0, written(**OLD), written(**OTHER), written(**NEW), (SERVED, msgspec.json.encode(served)))
    asyncio.run(engine._settle())  # it has no producer: writing would raise
    assert engine.core.served == served and engine.rebuild is None


@pytest.mark.parametrize(
    "then, over",
    [(lambda old, new, other: Served(4, old, other), False), (lambda old, new, other: Served(5, old, new), True), (lambda *_: Served(5, "x"), True)],
)
def test_a_rebuild_beside_tables_that_were_themselves_swapped_in_goes_on_until_something_else_is_decided(then: Callable[..., Served], over: bool) -> None:
    engine = engine_of(rebuild=True, folds=False, **NEW)
    old, new, other = (made(**one).generation for one in (OLD, NEW, OTHER))
    read(engine, 0, written(**OLD), (SERVED, msgspec.json.encode(Served(4, old, other))))

    async def heeded() -> bool:
        rebuild = Rebuild(engine, engine.schema, engine.partitions, engine.core, old, written(**OLD)[1], beside=False)
        rebuild.begin()
        engine.refused, engine.on_refused = None, lambda: None
        rebuild.heed(then(old, new, other))
        found = rebuild.plan.over
        rebuild.plan.over = True
        return found

    assert asyncio.run(heeded()) is over


def test_what_came_late_over_a_newer_row_of_other_settings_is_written_again_by_who_serves_them() -> None:
    world = World(log_of([1.0] * 6))
    for upto in (2, 6):
        world.fold(world.serving, upto)
        world.flush(world.serving)
    counters = [(key, value) for key, value in world.changelog if key.startswith(b"counters")]
    watermark = next(key for key, _ in world.changelog if key.startswith(b"watermark"))
    assert len(counters) == 2 and HEAD.size < len(counters[0][1] or b"")
    changelog = [*world.changelog, counters[0], (watermark, None)]
    reader = Core([Partition("costs", 0, made(**NEW))])
    reader.gather = True
    reader.followed(reader.shards[("costs", 0)], changelog, len(changelog))
    held = reader.shards[("costs", 0)]
    (generation,) = held.foreign
    heir = Core([Partition("costs", 0, made(**OLD))])
    shard = heir.shards[("costs", 0)]
    heir.followed(shard, [*held.foreign[generation].items(), *held.late[generation].items()], len(changelog))
    assert dumped(shard.partition) == dumped(world.shard(world.serving).partition), "no row is lost to it"
    heir.gained("costs", 0, committed=None, log_start=0, changelog_end=len(changelog))
    flush = heir.take(shard)
    assert flush is not None and {key for key, _ in flush.rows} >= {counters[0][0], watermark}
    assert dict(flush.rows)[counters[0][0]] == counters[1][1]


class Follower:
    """A client that is behind: two alerts are on the topic, and it has one."""

    def __init__(self) -> None:
        self.at = 1
        self.end = 0

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: 2 if place.topic == "alerts" else self.end for place in places}

    async def position(self, place: TopicPartition) -> int:
        return self.at


def test_what_stands_is_compared_when_the_board_knows_all_that_is_on_the_topic() -> None:
    engine = engine_of(**NEW)
    engine.follower = follower = Follower()
    engine.alert_partitions = [TopicPartition("alerts", 0)]

    async def waited() -> None:
        waiting = asyncio.create_task(engine.alerts_read())
        await asyncio.sleep(0.05)
        engine._turns += 1
        assert not waiting.done(), "the last alert is not fetched"
        follower.at = 2
        await asyncio.sleep(0.05)
        assert not waiting.done(), "it is fetched, and the board has not been told"
        engine._turns += 1
        await asyncio.wait_for(waiting, 5)

    asyncio.run(waited())


class Producer:
    """A client that takes everything at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None]] = []

    async def send_and_wait(self, topic: str, value: bytes | None, *, key: bytes, partition: int | None = None) -> RecordMetadata:
        self.sent.append((topic, key, value))
        return RecordMetadata(topic, 0, TopicPartition(topic, 0), 100, None, 0, 0)

    async def send(self, topic: str, value: bytes | None, *, key: bytes, partition: int | None = None) -> asyncio.Future[None]:
        self.sent.append((topic, key, value))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.mark.parametrize("marked", [True, False])
def test_what_a_kill_left_of_what_was_kept_is_ended_and_is_no_ground_to_resolve_what_stands(marked: bool) -> None:
    log = log_of([3.0] * 10)
    alerts = {out.key or b"": out.value for out in alone(log, **OLD).outputs if out.topic == "alerts"}
    assert alerts
    engine = engine_of(**NEW)
    engine.producer, engine.follower, engine.ready = Producer(), Follower(), True
    engine.follower.at = 2
    for n, (key, value) in enumerate(alerts.items()):
        engine.board.read(key, value, (0, n))
    shard = engine.core.shards[("costs", 0)]
    kept = [(told_key(engine.schema.generation, b"gone"), AT.pack(0) + b'{"data":{"notice":true},"tenant":"t"}')]
    if marked:
        kept.append((told_key(engine.schema.generation, MARK), AT.pack(-1) + b"{}"))
    read(engine, 0, written(**NEW), *kept)
    engine.core.gained("costs", 0, committed=0, log_start=0, changelog_end=2)
    assert engine.core.differing(shard)
    rules = Rules(engine, [], lambda tenant: PartitionReader({}, {}, tenant, 0))

    async def compared() -> None:
        comparing = asyncio.create_task(Standings(engine, rules)._compare([shard]))
        while not comparing.done():
            engine._turns += 1
            await asyncio.sleep(0.005)
        await comparing

    asyncio.run(asyncio.wait_for(compared(), 20))
    told = [json.loads(value or b"") for topic, _, value in engine.producer.sent if topic == "alerts"]
    assert {one["data"]["reason"] for one in told} == ({"settings_changed"} if marked else set())
    ended = [(key, value) for topic, key, value in engine.producer.sent if topic != "alerts"]
    done = told_key(engine.schema.generation, MARK), AT.pack(0) + b"{}"
    due = [(scores_key(engine.schema.generation), b"due")] if marked else []
    assert ended == [*due, done, (told_key(engine.schema.generation, b"gone"), None)], "that it is done goes before what it ends"
    assert not shard.told
    engine.core.followed(shard, [*ended, *kept], 4)
    assert not shard.told and shard.untold == ({MARK} if marked else set()), "what a late write brings back is not compared again; the mark is repaired"


def test_an_alert_that_the_former_rows_told_of_records_that_were_not_committed_stands_as_the_new_rows_say() -> None:
    log = log_of([3.0] * 10)
    engine = engine_of(**NEW)
    engine.producer, engine.follower, engine.ready = Producer(), Follower(), True
    engine.follower.at, engine.follower.end = 2, len(log)
    former, mine = (alone(log, **one).outputs for one in (OLD, NEW))
    for n, out in enumerate(out for out in former if out.topic == "alerts"):
        engine.board.read(out.key, out.value, (0, n))
    standing = {out.key: json.loads(out.value or b"")["data"]["severity"] for out in mine if out.topic == "alerts"}
    last = max(json.loads(out.value or b"")["data"]["evidence"]["offset"] for out in former if out.topic == "alerts")
    shard = engine.core.shards[("costs", 0)]
    read(engine, 0, written(**NEW), (told_key(engine.schema.generation, MARK), AT.pack(-1) + b"{}"))
    engine.core.gained("costs", 0, committed=2, log_start=0, changelog_end=2)  # the rest was put out, and the owner killed
    rules = Rules(engine, [], lambda tenant: PartitionReader({}, {}, tenant, 0))
    standings = Standings(engine, rules)
    outputs = []

    async def went_on() -> None:
        while shard.next < len(log):
            if engine.core.differing(shard):
                comparing = asyncio.create_task(standings._compare([shard]))
                while not comparing.done():
                    engine._turns += 1
                    await asyncio.sleep(0.005)
                await comparing
            else:
                engine.core.chunk(shard, shard.epoch, shard.next, len(log), log[shard.next :])
                outputs.extend(shard.partition.outputs)
                shard.partition.outputs.clear()

    asyncio.run(asyncio.wait_for(went_on(), 20))
    assert not shard.told and last > 2
    for n, out in enumerate(out for out in outputs if out.topic == "alerts"):
        engine.board.read(out.key, out.value, (0, 200 + n))
    assert {name.encode(): entry.message["data"]["severity"] for name, entry in engine.board.entries.items() if entry.open} == standing
    assert [out.offset for out in outputs if out.topic != "alerts"] == [out.offset for out in mine if out.topic != "alerts" and out.offset >= 2]


def test_a_worker_beside_others_answers_nothing_of_events_until_the_swap_neither_views_nor_the_archive_nor_the_past(tmp_path: Path) -> None:
    service = Service(tmp_path)
    event = {"id": "m", "type": "metric.recorded.v1", "tenant": "default", "time": "2026-03-02T00:00:00Z", "data": {"value": 1, "model": "a"}}
    service.send([event], timestamp=1_772_409_600_000)
    service.settle()
    paths = ["/metrics/summary", "/metrics?models=a", "/metrics/m", "/sql?query=SELECT+1", "/metrics/summary?as_of=2026-03-03T00:00:00Z"]
    assert [service.ask("/api/v1" + path).status for path in paths] == [200] * 5
    engine = service.engine
    engine.rebuild = Rebuild(engine, engine.schema, engine.partitions, engine.core, "former", written(**OLD)[1], beside=True)
    told = [service.ask("/api/v1" + path) for path in paths]
    assert [one.status for one in told] == [503] * 5
    assert all("former version" in one.json()["detail"] and "Retry-After" in one.headers for one in told)
    engine.rebuild.beside = False
    assert [service.ask("/api/v1" + path).status for path in paths] == [200] * 5
