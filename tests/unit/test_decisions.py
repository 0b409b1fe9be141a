"""Which tables a worker serves, as its engine decides it from what it has read, before it asks a broker for anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from aiokafka import TopicPartition

from agents.core import SERVED, Core, Served, record_of
from agents.engine import Engine, EngineConfig
from agents.rebuild import Rebuild
from streams.errors import ConfigError
from tables.partition import HEAD, Partition
from tables.rows import wire_key

from .test_upgrades import NEW, OLD, World, dumped, log_of, made

OTHER = {"budget_daily_usd": "30"}


def written(**settings: str) -> tuple[bytes, bytes]:
    """What is on the changelog before the first row of a generation."""
    schema = made(**settings)
    return wire_key("schema", schema.generation, ()), record_of(schema)


def engine_of(*, rebuild: bool = False, folds: bool = True, **settings: str) -> Engine:
    changelogs = {"costs": "changelog-costs"}
    engine = Engine(None, EngineConfig("nowhere:1", "", changelogs, rebuild=rebuild, folds=folds), made(**settings), lambda: ({}, {}, False))
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
        found = rebuild.over
        rebuild.over = True
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

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 2)

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
