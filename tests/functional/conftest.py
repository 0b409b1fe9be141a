"""The embedded broker for the tests of this folder: the product's own, on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.broker import EmbeddedBroker
from streams.topics import SOURCE_TOPICS

PARTITIONS = 4
PREFIX = "pulsefold."


@pytest.fixture
def embedded() -> Iterator[EmbeddedBroker]:
    """An embedded broker of the test's own, with all topics and four partitions."""
    with EmbeddedBroker(partitions=PARTITIONS, prefix=PREFIX) as broker:
        yield broker


@pytest.fixture
def on_topics(embedded: EmbeddedBroker) -> Callable[..., list[Any]]:
    """Reads everything on the source topics (or the one named) now: confluent messages, in partition order."""

    def read(*topics: str) -> list[Any]:
        consumer = Consumer({"bootstrap.servers": embedded.bootstrap, "group.id": "reader", "enable.partition.eof": True, "log_level": 0})
        try:
            parts = [TopicPartition(PREFIX + t, n, 0) for t in topics or SOURCE_TOPICS for n in range(PARTITIONS)]
            consumer.assign(parts)
            found, open_ = [], len(parts)
            while open_:
                message = consumer.poll(10)
                assert message is not None, "the embedded broker does not answer"
                if message.error() is None:
                    found.append(message)
                else:
                    open_ -= 1
            return found
        finally:
            consumer.close()

    return read
