"""The archivist's answers while it is behind the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from aiokafka import TopicPartition

from agents import archivist, history
from agents.archivist import Archivist
from streams.client import Answer, Client
from streams.errors import PulsefoldError

from ..archive_feed import SETTINGS, Feed


class Ends:
    """A consumer of which only the log's ends are asked."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self.feed.log[(tp.topic, tp.partition)]) for tp in partitions}


def metric(n: int) -> dict[str, Any]:
    return {"id": f"e{n}", "type": "metric.recorded.v1", "time": "2026-03-02T00:00:00Z", "data": {"metric_type": "t", "value": n, "model": "m"}}


@pytest.mark.parametrize(("reads_s", "cursor", "there", "lag"), [(0.2, None, 30, 0), (0.2, "the last page's", 10, 20), (60.0, None, 10, 20)])
def test_a_log_to_be_folded_again_has_what_was_on_the_log_when_it_was_asked_for_or_says_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_s: float, cursor: str | None, there: int, lag: int
) -> None:
    monkeypatch.setattr(archivist, "READ_UP_S", 1.0)
    feed = Feed(tmp_path)
    feed.send(*(metric(n) for n in range(10)))
    feed.take()
    answers: list[dict[str, Any]] = []
    asked = Archivist(SETTINGS, answers.append)
    asked.keeper, asked.consumer, asked.problem = feed.keeper, Ends(feed), None
    asked.places = {TopicPartition(*place): place for place in feed.log}

    async def run() -> None:
        params = {"limit": 10, "format": "ndjson", "cursor": None}
        request = {"id": 1, "op": "log", "tenant": "default", "params": params}
        await asked.answer(request)
        feed.send(*(metric(n) for n in range(10, 30)))
        await asked._look_at_ends()
        going_on = answers.pop()["cursor"] if cursor else None
        later = asyncio.get_running_loop().call_later(reads_s, feed.take)
        await asked.answer({**request, "params": {**params, "limit": 100, "cursor": going_on}})
        later.cancel()

    asyncio.run(run())
    reply = answers[-1]
    before = 10 if cursor else 0
    assert (reply["status"], reply["count"] + before, reply["lag"]) == (200, there, lag)
    feed.keeper.close()


class Told:
    """A client whose worker's archive is so many records behind, one answer after the other."""

    def __init__(self, *behind: int) -> None:
        self.behind = list(behind)

    def event_log(self, topics: list[str], limit: int) -> Answer:
        return Answer(whole=True, lag=self.behind.pop(0) if len(self.behind) > 1 else self.behind[0])


def test_a_history_waits_for_an_archive_that_reads_on_and_not_for_one_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.history.time.sleep", lambda _: None)
    monkeypatch.setattr(history, "STILL_S", 0.05)
    assert history._read_up(cast("Client", Told(9, 5, 5, 2, 0)), ("costs",))
    with pytest.raises(PulsefoldError, match="has not read 5 records"):
        history._read_up(cast("Client", Told(9, 5)), ("costs",))
