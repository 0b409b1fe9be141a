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

from ..archive_feed import SETTINGS, Feed, metric


class Ends:
    """A consumer of which only the log's ends are asked."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self.feed.log[(tp.topic, tp.partition)]) for tp in partitions}


def archivist_over(feed: Feed, consumer: Ends) -> tuple[Archivist, list[dict[str, Any]]]:
    """One that has read what the feed took, and what it answers."""
    answers: list[dict[str, Any]] = []
    made = Archivist(SETTINGS, answers.append)
    made.keeper, made.consumer, made.problem = feed.keeper, cast("Any", consumer), None
    made.places = {TopicPartition(*place): place for place in feed.log}
    return made, answers


@pytest.mark.parametrize(("reads_s", "cursor", "there", "lag"), [(0.2, None, 30, 0), (0.2, "the last page's", 10, 20), (60.0, None, 10, 20)])
def test_a_log_to_be_folded_again_has_what_was_on_the_log_when_it_was_asked_for_or_says_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_s: float, cursor: str | None, there: int, lag: int
) -> None:
    monkeypatch.setattr(archivist, "READ_UP_S", 1.0)
    feed = Feed(tmp_path)
    feed.send(*(metric(n) for n in range(10)))
    feed.take()
    asked, answers = archivist_over(feed, Ends(feed))

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


class Aborted(Ends):
    """What is left on the log after ten records is an aborted transaction: it comes to nobody, and the position passes it."""

    n = 0

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0.01)
        return {}

    async def position(self, tp: TopicPartition) -> int:
        return len(self.feed.log[(tp.topic, tp.partition)])

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.n)


@pytest.mark.parametrize("removed", [0, 25])
def test_what_comes_to_nobody_at_the_end_of_a_log_is_passed_and_what_retention_removed_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, removed: int
) -> None:
    feed = Feed(tmp_path, partitions=1)
    feed.send(*(metric(n) for n in range(10)))
    feed.take()
    feed.send(*(metric(n) for n in range(10, 30)))
    asked = Archivist(SETTINGS, lambda value: None)
    consumer = Aborted(feed)
    consumer.n = removed
    asked.keeper, asked.consumer, asked.problem = feed.keeper, consumer, None
    asked.places = {TopicPartition(*place): place for place in feed.log}

    async def run() -> int:
        await asked._look_at_ends()
        following = asyncio.create_task(asked._follow())
        try:
            return await asked._read_up(feed.keeper, ["training"])
        finally:
            following.cancel()

    assert asyncio.run(run()) == 0
    asked.writer.shutdown()  # it may be in the middle of something
    assert feed.keeper.tails["training"].ends == [30]
    assert ("no longer have offsets 10 to 24" in caplog.text) == bool(removed)
    feed.keeper.close()


class Gone(Ends):
    """Brokers that tell nothing."""

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        await asyncio.sleep(3600)
        return {}


@pytest.mark.parametrize(("op", "status"), [("log", 200), ("past", 503)])
def test_without_kafka_the_log_is_answered_from_files_with_the_lag_last_known_and_the_past_is_not_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, status: int
) -> None:
    monkeypatch.setattr(archivist, "READ_UP_S", 0.3)
    feed = Feed(tmp_path)
    feed.send(*(metric(n) for n in range(10)))
    feed.take()
    asked, answers = archivist_over(feed, Gone(feed))
    asked.ends = {("training", 0): 1000}
    params = {"limit": 100, "format": "ndjson", "cursor": None}
    asyncio.run(asyncio.wait_for(asked.answer({"id": 1, "op": op, "tenant": "default", "params": params}), 10))
    assert answers[0]["status"] == status and "bug" not in str(answers[0].get("detail"))
    if status == 200:
        assert answers[0]["count"] == 10 and answers[0]["lag"] > 900
    feed.keeper.close()


def test_who_asks_while_the_archive_begins_anew_is_told_to_ask_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    asked, answers = archivist_over(feed, Ends(feed))

    async def run() -> None:
        asking = asyncio.create_task(asked.answer({"id": 1, "op": "log", "tenant": "default", "params": {"limit": 9, "format": "json", "cursor": None}}))
        await asyncio.sleep(0)
        asked.keeper = None
        feed.keeper.close()
        await asking

    asyncio.run(run())
    assert answers[0]["status"] == 503 and "ask again" in answers[0]["detail"]


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
