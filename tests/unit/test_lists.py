"""The service that tends the lists of a worker, and drops them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents import lists
from agents.app import build
from agents.lists import TendLists
from agents.registry import FOLD_SETTINGS
from streams.derive import event_bytes
from streams.settings import load
from tables import orders

from ..service import Service
from .test_orders import rows_fail_once


def observe(service: Service, n: int, turn: int) -> None:
    """An observation of each of so many models."""
    for i in range(n):
        data = {"kind": "model", "id": f"m{i}", "success": True}
        raw = event_bytes(type="trust.observed.v1", id=f"e{turn}-{i}", source="t", time_us=10**15 + i, tenant="default", data=data)
        service.append("judgments", b"k", raw, i % 2, 10**12)
    service.settle()


def alpha(service: Service) -> float:
    """Of the first model on the list."""
    (entry,) = json.loads(service.ask("/api/v1/trust?limit=1").body)["entries"]
    return float(entry["alpha"])


def test_changed_keys_are_looked_at_between_questions_and_after_a_swap_by_the_next_question(tmp_path: Path) -> None:
    service = Service(tmp_path)
    tending = TendLists(service.routes)
    assert tending.tend() == 0, "nobody has asked anything"
    observe(service, 300, 0)
    service.ask("/api/v1/trust")
    assert tending.tend() == 0
    observe(service, 200, 1)
    looked = 0
    while tended := tending.tend():
        assert tended <= lists.TURN
        looked += tended
    assert 200 - orders.FEW_DUE <= looked <= 200
    keeper = service.routes.keeper
    assert keeper is not None
    assert alpha(service) == 3.0
    observe(service, 200, 2)
    keeper.partitions = dict(keeper.partitions)  # as after a swap: not those that serve
    assert tending.tend() == 0
    assert alpha(service) == 4.0


def turns(tending: TendLists, monkeypatch: pytest.MonkeyPatch, took_s: list[float]) -> tuple[list[int], list[float]]:
    """What so many turns looked at, and the pauses after them.

    Args:
        took_s: how long each takes.
    """
    now, slept, looked = [0.0], list[float](), list[int]()

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 9))
        if len(slept) == len(took_s):
            tending._stopped.set()

    def turn() -> int:
        now[0] += took_s[len(looked)]
        looked.append(-1)
        looked[-1] = TendLists.tend(tending)
        return looked[-1]

    monkeypatch.setattr(tending, "sleep", sleep)
    monkeypatch.setattr(tending, "tend", turn)
    monkeypatch.setattr(lists, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asyncio.run(tending._tend.fun(tending))
    return looked, slept


def test_a_worker_gives_a_small_share_of_its_time_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(tmp_path)
    observe(service, 3000, 0)
    service.ask("/api/v1/trust")
    observe(service, 600, 1)
    looked, slept = turns(TendLists(service.routes), monkeypatch, [0.003] * 11 + [0.03] * 2)
    assert looked == [lists.TURN] * 9 + [0] * 4
    assert slept == [0.06] * 9 + [0.1] * 2 + [0.6] * 2


def test_a_bug_of_a_view_is_told_and_stops_neither_the_worker_nor_the_tending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(tmp_path)
    observe(service, 300, 0)
    service.ask("/api/v1/trust")
    observe(service, 200, 1)
    rows_fail_once(monkeypatch, 80)
    looked, slept = turns(TendLists(service.routes), monkeypatch, [0.003] * 4)
    assert looked == [lists.TURN, -1, 0, 0] and slept == [0.06, 0.1, 0.1, 0.1]
    assert "a bug while lists were brought up to date" in caplog.text and "ZeroDivisionError" in caplog.text
    assert alpha(service) == 3.0


def test_every_half_minute_lists_go_that_nobody_asked_for_lately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, slept = Service(tmp_path), list[float]()
    observe(service, 3, 0)
    service.ask("/api/v1/trust")
    tending, keeper = TendLists(service.routes), service.routes.keeper
    assert keeper is not None and keeper.n_kept == 3
    begun = keeper.clock()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert keeper.n_kept == (3 if sum(slept) <= orders.IDLE_S else 0)
        if sum(slept) > 2 * orders.IDLE_S:
            tending._stopped.set()

    monkeypatch.setattr(tending, "sleep", sleep)
    monkeypatch.setattr(keeper, "clock", lambda: begun + sum(slept))
    asyncio.run(tending._forget.fun(tending))
    assert set(slept) == {lists.LOOK_S}


def test_a_worker_tends_its_lists() -> None:
    app = build(load({"bootstrap": "127.0.0.1:1"}, {}, None, FOLD_SETTINGS))
    assert [type(part) for part in app.engine._children].count(TendLists) == 1
