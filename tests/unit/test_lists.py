"""The service that tends the lists of a worker, and drops them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents import lists
from agents.lists import Lists
from streams.derive import event_bytes
from tables import orders

from ..service import Service


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
    tending = Lists(service.routes)
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


def test_a_worker_gives_a_small_share_of_its_time_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(tmp_path)
    observe(service, 3000, 0)
    service.ask("/api/v1/trust")
    observe(service, 600, 1)
    tending = Lists(service.routes)
    now, slept, turns = [0.0], list[float](), list[int]()

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 9))
        if len(slept) == 14:
            tending._stopped.set()

    def turn() -> int:
        now[0] += 0.003
        turns.append(Lists.tend(tending))
        return turns[-1]

    monkeypatch.setattr(tending, "sleep", sleep)
    monkeypatch.setattr(tending, "tend", turn)
    monkeypatch.setattr(lists, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asyncio.run(tending._tend.fun(tending))
    assert turns == [lists.TURN] * 9 + [0] * 5
    assert slept == [0.06] * 9 + [0.1] * 5
