"""What a Kafka broker tells of topics: how many partitions, and under which id, by which a topic is told from another of the same name.

aiokafka asks for metadata without ids (versions up to 5). This asks over a connection that a worker has anyway for version 11, which brokers
know since they have ids (Kafka 2.8), or else for version 5: so the worker needs neither a second client library in memory nor its
connections, every few seconds.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError, NodeNotReadyError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from streams.errors import BrokerUnavailable, TopicProblem

ANSWER_S = 2.0
"""Longest time that one node is waited for."""
AGAIN_S = 0.1
"""Seconds until a broker that could not answer at the moment is asked again."""


class Uuid(AbstractType[bytes]):
    """16 bytes, as Kafka sends ids."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Answer(Response):
    """Version 11 of Kafka's answer about metadata."""

    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", CompactString("utf-8")), ("port", Int32), ("rack", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _Answer
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Asked(Request[MetadataRequest_v5 | _Question]):
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics

    def build(self, request_struct_class: type[Any]) -> Any:
        if request_struct_class is _Question:
            return _Question([(bytes(16), topic, {}) for topic in self.topics], False, False, {})
        return request_struct_class(list(self.topics), False)


class Described(NamedTuple):
    """Topics as a broker knows them.

    Attributes:
        counts: full topic name -> number of partitions.
        identities: full topic name -> 32 bits of its Kafka topic id; 0 where the broker gives none.
        embedded: it is librdkafka's mock cluster, which keeps nothing.
    """

    counts: dict[str, int]
    identities: dict[str, int]
    embedded: bool


def identity(topic_id: bytes) -> int:
    """32 bits of a Kafka topic id, the same as `streams.admin.topic_identities` makes; 0 of none.

    Example:
        >>> identity(bytes(16)), identity(bytes(range(16)))
        (0, 1397443882)
    """
    return zlib.crc32(base64.b64encode(topic_id).rstrip(b"=")) if any(topic_id) else 0


async def described(client: Any, topics: Sequence[str], *, bootstrap: str, again: Callable[[], bool], timeout_s: float = 10.0) -> Described:
    """Ask brokers about these topics, those first that are connected.

    Args:
        client: aiokafka's, connected.
        bootstrap: how people call the broker.
        again: whether to go on when none of them could answer; a client that was closed meanwhile would only connect anew.

    Raises:
        BrokerUnavailable: nobody answers in time.
        TopicProblem: a topic does not exist, or may not be looked at.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        problem: Exception = NodeNotReadyError("no node is known")
        for node in _nodes(client):
            try:
                async with asyncio.timeout(max(0.0, min(ANSWER_S, deadline - time.monotonic()))):
                    return _read(await client.send(node, _Asked(topics)), topics, bootstrap)
            except (KafkaError, TimeoutError) as exc:
                problem = exc
        if not again() or time.monotonic() + AGAIN_S > deadline:
            raise BrokerUnavailable(f"bootstrap: no Kafka broker at {bootstrap} tells of its topics ({problem!r})")
        await asyncio.sleep(AGAIN_S)


def _nodes(client: Any) -> list[int]:
    """All nodes, in any order, but connected ones first: whoever waits for one that is dead holds up who wants another."""
    nodes = [node.nodeId for node in client.cluster.brokers()]
    random.shuffle(nodes)
    connected = {node for (node, _), connection in client._conns.items() if connection.connected()}
    return sorted(nodes, key=lambda node: node not in connected)


def _read(answer: Any, topics: Sequence[str], bootstrap: str) -> Described:
    embedded = str(answer.cluster_id or "").startswith("mockCluster")
    counts: dict[str, int] = {}
    identities: dict[str, int] = {}
    for topic in answer.topics:
        if answer.API_VERSION == _Answer.API_VERSION:
            code, name, topic_id, _, partitions, *_ = topic
        else:
            (code, name, _, partitions), topic_id = topic, bytes(16)
        problem = for_code(code)
        if problem is UnknownTopicOrPartitionError:
            continue
        if problem.retriable:
            raise problem(f"topic {name}")
        if code:
            raise TopicProblem(f"{name}: {bootstrap} does not tell of it: {problem.description or problem.message}")
        counts[name] = len(partitions)
        identities[name] = 0 if embedded else identity(topic_id)
    missing = [topic for topic in topics if topic not in counts]
    if missing:
        raise TopicProblem(f"{', '.join(missing)}: missing on {bootstrap}; create with: pulsefold topics create --bootstrap {bootstrap}")
    return Described(counts, identities, embedded)
