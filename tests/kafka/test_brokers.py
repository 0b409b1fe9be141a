"""On Kafka nodes of the test's own: exact though a leader and coordinator is killed, or the only node is gone for a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from streams.admin import check_topics
from streams.settings import load as settings_of

from ..workers import WorkerProcess
from .broker import KafkaCluster, NoBroker
from .deployment import Deployment, coordinator, in_sync, leaders, stopped, until
from .truth import PARTITIONS, forecasts, load, produce, verify


def cluster(nodes: int) -> Iterator[KafkaCluster]:
    """Started nodes; stopped at the end."""
    try:
        made = KafkaCluster(nodes)
    except NoBroker as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs a real Kafka: {missing}")
        pytest.skip(str(missing))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def three_nodes() -> Iterator[KafkaCluster]:
    yield from cluster(3)


@pytest.fixture(scope="module")
def one_node() -> Iterator[KafkaCluster]:
    yield from cluster(1)


@pytest.mark.timeout(300)
def test_of_three_nodes_the_coordinator_that_also_leads_is_killed_while_events_flow(three_nodes: KafkaCluster, tmp_path: Path) -> None:
    deployed = Deployment(three_nodes.bootstrap, tmp_path, PARTITIONS, replication=3)
    assert minimum_in_sync(deployed) == {"2"}
    made = load(12_000, 16)
    try:
        workers = [deployed.worker(), deployed.worker()]
        publishing = produce(three_nodes.bootstrap, deployed.source(""), made, 16)
        time.sleep(2)
        killed = coordinator(deployed)
        assert killed in leaders(deployed)
        three_nodes.kill(killed - 1)
        until(lambda: not {killed, -1} & {*leaders(deployed), coordinator(deployed)}, 40, "another leader and coordinator")
        time.sleep(2)
        three_nodes.start(killed - 1)
        until(lambda: in_sync(deployed) == 3, 40, "the node's return")
        publishing.join()
        verify(workers, made, deployed.settings)
    finally:
        deployed.stop()


def minimum_in_sync(deployed: Deployment) -> set[str]:
    """min.insync.replicas of all topics of the deployment."""
    assert check_topics(settings_of(deployed.settings, {})) == []
    names = [name for name in deployed.admin.list_topics(timeout=10).topics if name.startswith(deployed.source(""))]
    found = deployed.admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    return {future.result(10)["min.insync.replicas"].value for future in found.values()}


@pytest.mark.timeout(300)
def test_workers_wait_for_a_dead_broker_and_go_on_when_it_is_back(one_node: KafkaCluster, tmp_path: Path) -> None:
    deployed = Deployment(one_node.bootstrap, tmp_path, PARTITIONS)
    made, variables = load(12_000, 17), [f"v{n}" for n in range(20)]
    try:
        made.others = 40
        workers = [deployed.worker("hasty:60", alert_interval_s=2) for _ in range(2)]
        publishing = produce(one_node.bootstrap, deployed.source(""), made, 6)
        time.sleep(2)
        forecasts(one_node.bootstrap, deployed.source("forecasts"), range(40), variables, fragility=0.9)
        time.sleep(0.5)
        one_node.kill(0)  # with rows on their way, and alerts that want to be published
        time.sleep(7)
        for worker in workers:
            assert worker.get("/trust", kind="model", limit=1), "a worker without a broker does not answer"
            assert 0 < len(worker.log.read_text().splitlines()) < 60, "it says the same again and again"
        one_node.start(0)
        publishing.join()
        workers[0].until(lambda: drifting(workers[0]) == set(variables))
        verify(workers, made, deployed.settings)
    finally:
        deployed.stop()


def drifting(worker: WorkerProcess) -> set[str]:
    """Variables with an open alert."""
    return {a["subject"] for a in worker.get("/alerts", state="open", rule="drift.variable", limit=1000)["alerts"]}


@pytest.mark.timeout(300)
def test_a_worker_that_cannot_write_gives_up_after_a_while_and_one_that_is_told_to_stop_stops(one_node: KafkaCluster, tmp_path: Path) -> None:
    deployed = Deployment(one_node.bootstrap, tmp_path, PARTITIONS)
    made = load(6_000, 18)
    try:
        writing, told = deployed.worker("freeze:judgments,hasty:3"), deployed.worker()
        publishing = produce(one_node.bootstrap, deployed.source(""), made, 3)
        writing.signal(signal.SIGHUP)
        until(lambda: stopped(writing), 30, "the freeze with rows to write")
        one_node.kill(0)
        writing.signal(signal.SIGCONT)
        assert writing.process is not None
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(writing.process.wait, 40)
            assert told.stop() in (0, -15)
            assert ended.result() == 1
        one_node.start(0)
        for worker in (writing, told):
            worker.start()
        publishing.join()
        verify([writing, told], made, deployed.settings)
    finally:
        deployed.stop()
