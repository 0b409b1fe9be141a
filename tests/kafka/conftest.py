"""Real Kafka for the tests of this folder: skipped at home where none can be had, a failure in CI."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.kafka.broker import KafkaCluster, NoKafka, real_broker


def _missing(why: NoKafka) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs a real Kafka: {why}")
    pytest.skip(str(why))


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """``HOST:PORT`` of one real Kafka that all tests of the session share."""
    broker = real_broker()
    try:
        bootstrap = broker.__enter__()
    except NoKafka as why:
        _missing(why)
    try:
        yield bootstrap
    finally:
        broker.__exit__(None, None, None)


@pytest.fixture
def prefix() -> str:
    """A topic prefix that no other test has."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def kafka_cluster() -> Iterator[Callable[..., KafkaCluster]]:
    """Starts clusters of the test's own (``kafka_cluster(nodes=3)``), which it may kill, pause and restart."""
    started: list[KafkaCluster] = []

    def start(nodes: int = 1, **options: object) -> KafkaCluster:
        cluster = KafkaCluster(nodes, **options)  # type: ignore[arg-type]  # handed through
        started.append(cluster)
        try:
            cluster.start()
        except NoKafka as why:
            _missing(why)
        return cluster

    yield start
    for cluster in started:
        cluster.stop()
