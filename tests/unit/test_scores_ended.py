"""Ending what the topic ``scores`` says of a cleared tenant, while there is no broker: seldom, and told once."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import scores
from tests.service import Service


async def _without_a_broker(service: Service) -> int:
    """Two seconds of what tells scores, with somebody at the broker's address who hangs up; returns how often it was called."""
    n = 0

    async def hang_up(_: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal n
        n += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    service.engine.config = replace(service.engine.config, bootstrap=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    service.engine.publishes = True
    found = [one for fold in service.schema.folds for one in fold.scored]
    telling = scores.Scores(service.engine, found, service.routes.reader, "pulsefold.scores")
    await telling.start()
    await asyncio.sleep(2)
    await telling.stop()
    server.close()
    return n


def test_without_a_broker_scores_are_ended_less_and_less_often_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scores, "INTERVAL_S", 0.02)
    service = Service(tmp_path)
    service.send([{"id": "clear", "type": "tenant.cleared.v1", "time": "2026-03-02T00:00:00Z", "tenant": "gone", "data": {"scope": "all"}}])
    with caplog.at_level(logging.WARNING):
        n = asyncio.run(_without_a_broker(service))
    assert 2 <= n <= 10, "0.02 s, then 0.04, 0.08 …: eight times at most, and twice at least"
    assert len([one for one in caplog.records if "scores of what was cleared" in one.getMessage()]) == 1
    assert not [one for one in caplog.records if "Unclosed" in one.getMessage()]
