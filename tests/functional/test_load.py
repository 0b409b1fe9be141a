"""A thousand callers at once: every event that was answered as accepted is folded, once."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from ..workers import WorkerProcess

CALLERS, EACH = 1000, 3


async def publish(port: int) -> list[int]:
    """Status of each caller's request; all wait at one gate and go at once."""
    gate = asyncio.Event()

    async def one(session: aiohttp.ClientSession, n: int) -> int:
        body: list[dict[str, Any]] = [
            {"id": f"{n}-{k}", "source": "load", "type": "trust.observed.v1", "data": {"kind": "model", "id": f"m{n % 50}", "success": True}}
            for k in range(EACH)
        ]
        await gate.wait()
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        async with session.post(f"http://127.0.0.1:{port}/api/v1/events", json=body, headers=headers) as response:
            answer = await response.json()
            return response.status if all(result["accepted"] for result in answer.get("results", [{"accepted": False}])) else -response.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)) as session:
        asked = [asyncio.create_task(one(session, n)) for n in range(CALLERS)]
        await asyncio.sleep(0.1)
        gate.set()
        return list(await asyncio.gather(*asked))


@pytest.mark.timeout(120)
def test_a_thousand_callers_at_once_lose_nothing(worker: WorkerProcess) -> None:
    found = asyncio.run(publish(worker.port))
    assert found == [200] * CALLERS
    worker.until(lambda: worker.absorbed(CALLERS * EACH))
    status = worker.get("/status")
    assert status["counts"]["folded"] == CALLERS * EACH and status["counts"]["duplicate"] == 0
    shown = worker.get("/trust", kind="model", ids=",".join(f"m{n}" for n in range(50)))
    assert {shown[f"m{n}"]["observations"] for n in range(50)} == {CALLERS * EACH // 50}
