"""Flushes: which partitions are written together, and what is left when that ends early."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from agents import engine as module
from agents.core import Flush, Shard
from agents.engine import Engine

from ..harness import Rec
from ..service import Service

N = 4
Told = tuple[str, int]


@pytest.fixture(autouse=True)
def no_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that run out are no part of a test that does not set them."""
    monkeypatch.setattr(module, "TURN_S", 600.0)


class Scene:
    """An engine that owns four partitions with a record each; its rows are taken by a broker that answers when it is told to.

    Attributes:
        log: what the broker saw and did.
        slow: partitions that it does not answer until `go`.
        gone: partitions that have no leader.
        first, last: the first partition is being written; the last is written.
    """

    def __init__(self, folder: Path, late: bool) -> None:
        self.engine: Engine = Service(folder, N).engine
        self.shards = [self.engine.core.shards[("judgments", n)] for n in range(N)]
        self.log: list[Told] = []
        self.slow: set[int] = set()
        self.gone: set[int] = set()
        self.go, self.first, self.last = asyncio.Event(), asyncio.Event(), asyncio.Event()
        event = {"id": "a", "source": "t", "type": "trust.observed.v1", "data": {"kind": "model", "id": "m", "success": True}}
        for shard in self.engine.core.shards.values():
            shard.owned, shard.ready, shard.next = True, True, 0
        for shard in self.shards:
            assert self.engine.core.chunk(shard, shard.epoch, 0, 1, [Rec(0, 1_700_000_000_000, b"k", json.dumps(event).encode())]) == 1
        engine: Any = self.engine
        self.patient(600.0)
        engine._catching_up = late
        engine.lag = lambda shard: 50_000 if late else 0
        engine._append = self.append
        engine.crash = self.crash
        engine.app = SimpleNamespace(consumer=SimpleNamespace(commit=self.commit))

    def patient(self, seconds: float) -> None:
        """Partitions that are taken from now on are tried again for so long."""
        self.engine.config = dataclasses.replace(self.engine.config, retry_s=seconds, shutdown_s=seconds)

    async def append(self, flush: Flush) -> None:
        number = flush.shard.name[1]
        self.log.append(("begun", number))
        self.first.set()
        if number in self.gone:
            raise KafkaConnectionError("no leader")
        await asyncio.sleep(0.005)
        if number in self.slow:
            await self.go.wait()
        self.log.append(("done", number))
        if number == N - 1:
            self.last.set()

    async def crash(self, reason: BaseException) -> None:
        self.engine._dead = True
        self.log.append(("crashed", -1))

    async def commit(self) -> None:
        self.log.append(("committed", -1))

    def begun(self) -> list[int]:
        return [number for what, number in self.log if what == "begun"]

    def in_flight(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.flushing is not None]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


ONE_BY_ONE = [(what, number) for number in range(N) for what in ("begun", "done")]


def test_late_partitions_are_written_one_after_the_other_and_others_at_once(tmp_path: Path) -> None:
    async def look() -> None:
        late, live, building = Scene(tmp_path, late=True), Scene(tmp_path, late=False), Scene(tmp_path, late=True)
        building.engine.rebuild = SimpleNamespace(core=SimpleNamespace(shards={}))  # type: ignore[assignment]  # as much of it as is asked
        for scene in (late, live, building):
            rows = await scene.engine._flush_all()
            assert rows == sum(shard.n_rows for shard in scene.shards) > 0
            assert [shard.safe for shard in scene.shards] == [1] * N
        assert late.log == ONE_BY_ONE
        assert live.begun() == building.begun() == list(range(N))
        assert {what for what, _ in live.log[:N]} == {what for what, _ in building.log[:N]} == {"begun"}

    run(look())


def test_nobody_waits_long_for_a_partition_that_no_broker_answers_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.02)

    async def look() -> None:
        scene = Scene(tmp_path, late=True)
        scene.slow = {0}
        task = asyncio.create_task(scene.engine._flush_all())
        await asyncio.wait_for(scene.last.wait(), 5)
        await asyncio.sleep(0)
        assert [number for what, number in scene.log if what == "done"] == [1, 2, 3] and not task.done()
        scene.go.set()
        await task
        assert [shard.safe for shard in scene.shards] == [1] * N

    run(look())


def test_after_a_crash_between_two_partitions_nothing_more_is_written(tmp_path: Path) -> None:
    async def look() -> None:
        scene = Scene(tmp_path, late=True)
        scene.gone = {1}
        scene.engine.on_changed.append(lambda shard, _: scene.patient(0.1 if shard.name[1] == 1 else 600.0))
        await scene.engine._flush_all()
        assert set(scene.begun()) == {0, 1} and scene.log[-1] == ("crashed", -1)
        assert [shard.safe == 1 for shard in scene.shards] == [True, False, False, False]

    run(look())


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("turns", range(12))
def test_who_is_cancelled_leaves_nothing_in_flight(turns: int, late: bool, tmp_path: Path) -> None:
    async def look() -> None:
        scene = Scene(tmp_path, late)
        scene.slow = {2}
        task = asyncio.create_task(scene.engine._flush_all())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not scene.in_flight()
        scene.slow = set()
        await scene.engine._flush_all()
        assert [shard.safe for shard in scene.shards] == [1] * N

    run(look())


def test_a_partition_that_is_lost_while_another_is_written_is_written_once_and_committed(tmp_path: Path) -> None:
    async def look() -> None:
        scene = Scene(tmp_path, late=True)
        task = asyncio.create_task(scene.engine._flush_all())
        await scene.first.wait()
        await scene.engine.lost([TP(scene.engine.full_names["judgments"], 2)])
        assert ("done", 2) in scene.log and scene.log.index(("done", 2)) < scene.log.index(("committed", -1))
        assert not scene.shards[2].ready
        await task
        assert sorted(scene.begun()) == list(range(N))

    run(look())


class Enough(Exception):
    """As many flushes as are looked at."""


class Pauses:
    """A flusher whose flushes write some rows and take no time, and whose sleeps are a clock that counts on; records are folded at a steady rate.

    Args:
        rows: that each flush writes.
        rate: records a second.
        waiting: records on the log that are not folded yet.
        partitions: that they are of, evenly.
    """

    def __init__(self, folder: Path, *, rows: int, rate: float, waiting: int, partitions: int = 8) -> None:
        self.engine: Any = Service(folder, 1).engine
        self.shard = self.engine.core.shards["judgments", 0]
        self.shard.ready, self.shard.safe, self.shard.next, self.partitions = True, 0, 0, partitions
        self.engine.lag = lambda shard: waiting if shard.name == ("judgments", 0) else 0
        self.engine._flush_all = self.flush
        self.rows, self.rate, self.now, self.at, self.n = rows, rate, 0.0, [], []

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.engine.n["records"] = int(self.now * self.rate)
        self.shard.next = self.engine.n["records"] // self.partitions
        self.engine._wake.set()

    async def flush(self) -> int:
        self.shard.safe = self.shard.next
        self.at.append(self.now)
        self.n.append(self.engine.n["records"])
        if len(self.at) == 6:
            raise Enough
        return self.rows

    def apart(self) -> tuple[list[float], list[int]]:
        """Seconds and records between two flushes."""

        async def go() -> None:
            self.engine.n["records"] = 2
            self.engine._wake.set()
            with pytest.raises(Enough):
                await Engine._flusher.fun(self.engine)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
            patch.setattr(module, "asyncio", SimpleNamespace(sleep=self.sleep))
            run(go())
        return [round(b - a, 6) for a, b in pairwise(self.at)], [b - a for a, b in pairwise(self.n)]


def test_flushes_are_apart_as_their_rows_ask_for_and_further_where_a_worker_catches_up(tmp_path: Path) -> None:
    def apart(rows: int, rate: float, waiting: int) -> tuple[list[float], list[int]]:
        return Pauses(tmp_path, rows=rows, rate=rate, waiting=waiting).apart()

    assert apart(500, 10_000, 0)[0] == [0.05] * 5
    assert apart(50_000, 10_000, 0)[0] == [0.1] * 5, "flush_max_ms"
    assert apart(0, 10_000, 0)[0] == [module.LEAST_PAUSE_S] * 5
    assert apart(0, 1 / module.LEAST_PAUSE_S, 0)[0][1:] == [0.0] * 4, "a record alone has nothing to share with the next"
    assert apart(50_000, 10_000, module.BEHIND)[0] == [0.1] * 5
    assert apart(50_000, 10_000, module.BEHIND + 1)[0] == [0.6] * 5


def test_a_fast_worker_that_catches_up_folds_no_more_between_two_flushes_than_its_memory_is_meant_for(tmp_path: Path) -> None:
    for rate in (500_000.0, 900_000.0):
        seconds, records = Pauses(tmp_path, rows=50_000, rate=rate, waiting=10_000_000).apart()
        assert max(seconds) < 0.6 and min(records) >= module.MOST_A_FLUSH and max(records) <= module.MOST_A_FLUSH + rate * module.LOOK_S * 1.01
    seconds, records = Pauses(tmp_path, rows=50_000, rate=500_000, waiting=10_000_000, partitions=1).apart()
    assert max(seconds) < 0.6 and max(records) < module.MAX_BEHIND * 3 // 4, "fetching of a partition alone would pause"
    seconds, records = Pauses(tmp_path, rows=50_000, rate=4_000_000, waiting=10_000_000).apart()
    assert seconds == [0.1] * 5, "never more often than without anything waiting"
