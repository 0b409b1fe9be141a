"""What a worker asks a broker before and while it folds: without librdkafka in its own memory, and with the answers that librdkafka gives."""

from __future__ import annotations

import asyncio
import sys
import time
from ctypes import c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NodeNotReadyError

from agents import aside, metadata
from agents.app import load_settings
from agents.metadata import Described, described
from streams import admin
from streams.broker import EmbeddedBroker
from streams.errors import BrokerUnavailable, PulsefoldError, TopicProblem
from streams.topics import SOURCE_TOPICS

from ..workers import WorkerProcess
from .conftest import PARTITIONS

NAMES = ["pulsefold." + topic for topic in SOURCE_TOPICS]


def ask(bootstrap: str, topics: list[str], *, versions: tuple[int, int] | None = None, timeout_s: float = 10.0) -> Described:
    """What `described` says; of a broker that knows no other versions than these."""

    async def asked() -> Described:
        client = AIOKafkaClient(bootstrap_servers=bootstrap)
        await client.bootstrap()
        try:
            for node in client.cluster.brokers():
                assert await client.ready(node.nodeId)
            if versions is not None:
                for connection in client._conns.values():
                    connection._versions[3] = versions
            found = await described(client, topics, bootstrap=bootstrap, timeout_s=timeout_s, again=lambda: True)
            assert versions is None or all(connection._versions[3] == versions for connection in client._conns.values())
            return found
        finally:
            await client.close()

    return asyncio.run(asked())


@pytest.mark.parametrize("versions", [None, (0, 11), (0, 5)])
def test_topics_are_described_as_librdkafka_does(embedded: EmbeddedBroker, versions: tuple[int, int] | None) -> None:
    assert ask(embedded.bootstrap, NAMES, versions=versions) == (
        admin.partition_counts(embedded.bootstrap, NAMES),
        admin.topic_identities(embedded.bootstrap, NAMES),
        True,
    )
    with pytest.raises(TopicProblem, match=r"^nope: missing on .* create with"):
        ask(embedded.bootstrap, [*NAMES, "nope"], versions=versions)


def test_a_broker_that_goes_is_told_within_the_time() -> None:
    async def asked() -> float:
        with EmbeddedBroker(partitions=1) as broker:
            client = AIOKafkaClient(bootstrap_servers=broker.bootstrap)
            await client.bootstrap()
        begun = time.monotonic()
        try:
            with pytest.raises(BrokerUnavailable, match=r"no Kafka broker at 127\.0\.0\.1:1 tells of its topics \("):
                await described(client, NAMES, bootstrap="127.0.0.1:1", timeout_s=1.0, again=lambda: True)
        finally:
            await client.close()
        return time.monotonic() - begun

    assert asyncio.run(asked()) < 5


class Hesitating:
    """A client of nodes of which one answers, about a topic that has this error the first times it is asked for.

    Args:
        times, code: how often, and which.
        dead: nodes that are not there; one of them is not reached before anybody gives up.
    """

    def __init__(self, times: int, code: int = 5, dead: tuple[int, ...] = ()) -> None:
        self.times, self.code, self.dead = times, code, dead
        self.asked: list[int] = []
        self.cluster = SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=node) for node in (1, *dead)])
        self._conns = {(1, 0): SimpleNamespace(connected=lambda: not dead), (2, 0): SimpleNamespace(connected=lambda: False)}

    async def send(self, node: int, request: Any) -> Any:
        self.asked.append(node)
        if node in self.dead:
            await asyncio.sleep(3600 if node == 2 else 0)
            raise NodeNotReadyError
        self.times -= 1
        topic = (self.code if self.times >= 0 else 0, "t", bytes(range(16)), False, [(0, 0, 1, 0, [1], [1], [], {})], 0, {})
        return metadata._Answer(0, [(1, "h", 1, None, {})], "c", 1, [topic], {})


def test_a_topic_whose_leader_is_not_chosen_yet_is_asked_for_again() -> None:
    hesitating = Hesitating(2)
    found = asyncio.run(described(hesitating, ["t"], bootstrap="b", again=lambda: True))
    assert found == ({"t": 1}, {"t": metadata.identity(bytes(range(16)))}, False) and hesitating.times == -1
    once = Hesitating(1000)
    with pytest.raises(BrokerUnavailable, match="LeaderNotAvailable"):
        asyncio.run(described(once, ["t"], bootstrap="b", again=lambda: False))
    assert once.times == 999
    with pytest.raises(BrokerUnavailable, match="LeaderNotAvailable"):
        asyncio.run(described(Hesitating(1000), ["t"], bootstrap="b", timeout_s=0.3, again=lambda: True))
    with pytest.raises(TopicProblem, match=r"^t: b does not tell of it: .*not authorized"):
        asyncio.run(described(Hesitating(1000, code=29), ["t"], bootstrap="b", again=lambda: True))


def test_nodes_that_are_not_there_are_passed_over_and_connected_ones_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "ANSWER_S", 0.05)
    for _ in range(8):
        some = Hesitating(0, dead=(2, 3))
        assert asyncio.run(described(some, ["t"], bootstrap="b", again=lambda: False)).counts == {"t": 1}
        assert some.asked[-1] == 1
        some._conns[1, 0] = SimpleNamespace(connected=lambda: True)
        some.asked.clear()
        asyncio.run(described(some, ["t"], bootstrap="b", again=lambda: False))
        assert some.asked == [1]


def test_answers_of_the_process_aside_are_those_of_librdkafka(embedded: EmbeddedBroker, capfd: pytest.CaptureFixture[str]) -> None:
    def settings(**flags: object) -> Any:
        return load_settings({"bootstrap": embedded.bootstrap, "partitions": PARTITIONS, **flags})

    for flags in ({}, {"partitions": 5}, {"topic_prefix": "none."}):
        assert aside.check_topics(settings(**flags)) == admin.check_topics(settings(**flags))
    assert aside.check_topics(settings()) == []
    assert aside.publishing_app(settings(app_id="me")) == "me" == aside.publishing_app(settings(app_id="you"))
    odd = settings(partitions=10**30, data_dir="/tmp/\udcff")
    assert aside.check_topics(odd) == admin.check_topics(odd) != []
    broken = settings()
    del broken.values["replication"]
    assert capfd.readouterr().err == ""
    with pytest.raises(PulsefoldError, match="check_topics: the process that asks the broker ended with 1"):
        aside.check_topics(broken)
    assert "KeyError: 'replication'" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is told by Linux")
def test_a_worker_has_no_librdkafka_in_memory(worker: WorkerProcess) -> None:
    assert worker.process is not None
    loaded = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "numpy" in loaded and "rdkafka" not in loaded


@pytest.mark.timeout(120)
def test_a_worker_that_asks_to_join_and_is_never_answered_asks_again(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    join_group, never_ms = 11, 3_600_000
    embedded._lib.rd_kafka_mock_broker_push_request_error_rtts(c_void_p(embedded._cluster), 1, join_group, 1, 0, never_ms)
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=PARTITIONS)
    begun = time.monotonic()
    try:
        worker.start().until(lambda: all(p["owner"] for p in worker.get("/status")["partitions"]))
        assert 25 < time.monotonic() - begun < 60, "it waits for as long as others may take to join, and no longer"
    finally:
        worker.stop()
