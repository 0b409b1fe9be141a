"""A thousand callers at once: every event that was answered as accepted is folded, once."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from ..workers import WorkerProcess

CALLERS, EACH = 1000, 3


async def publish(port: int) -> tuple[list[int], int]:
    """Status of each caller's request, and how many were sent again; all wait at one gate and go at once."""
    gate = asyncio.Event()
    again = 0

    async def one(session: aiohttp.ClientSession, n: int) -> int:
        body: list[dict[str, Any]] = [
            {"id": f"{n}-{k}", "source": "load", "type": "trust.observed.v1", "data": {"kind": "model", "id": f"m{n % 50}", "success": True}}
            for k in range(EACH)
        ]
        nonlocal again
        await gate.wait()
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        while True:
            async with session.post(f"http://127.0.0.1:{port}/api/v1/events", json=body, headers=headers) as response:
                answer = await response.json()
                if response.status == 503 and again < CALLERS:  # not acknowledged in time: "send it again with the same id"
                    again += 1
                    continue
                return response.status if all(result["accepted"] for result in answer.get("results", [{"accepted": False}])) else -response.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(100)) as session:
        asked = [asyncio.create_task(one(session, n)) for n in range(CALLERS)]
        await asyncio.sleep(0.1)
        gate.set()
        return list(await asyncio.gather(*asked)), again


@pytest.mark.timeout(120)
def test_a_thousand_callers_at_once_lose_nothing(worker: WorkerProcess) -> None:
    found, again = asyncio.run(publish(worker.port))
    assert found == [200] * CALLERS
    worker.until(lambda: worker.absorbed() and worker.get("/status")["counts"]["folded"] >= CALLERS * EACH)
    counts = worker.get("/status")["counts"]
    assert counts["folded"] == CALLERS * EACH and counts["duplicate"] <= again * EACH
    shown = worker.get("/trust", kind="model", ids=",".join(f"m{n}" for n in range(50)))
    assert {shown[f"m{n}"]["observations"] for n in range(50)} == {CALLERS * EACH // 50}
