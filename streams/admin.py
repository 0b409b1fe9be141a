"""Topics on the broker: create what is missing, say what differs. Nothing is created by accident."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from .errors import BrokerUnavailable, TopicProblem
from .topics import MIN_LAG_MS, TopicSpec, topic_specs


class _Gets(Protocol):
    def get(self, name: str) -> Any: ...


def specs(settings: _Gets) -> list[TopicSpec]:
    """The topics that these settings ask for."""
    return topic_specs(
        settings.get("topic_prefix"),
        settings.get("app_id"),
        settings.get("partitions"),
        retention_days=settings.get("topic_retention_days"),
        changelog_lag_ms=settings.get("changelog_lag_ms"),
        replication=settings.get("replication"),
    )


def _client(bootstrap: str, security: Mapping[str, Any] | None) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.connection.setup.timeout.ms": 5000, **(security or {})}, logger=_SILENT)


class _Silent:
    """librdkafka's own log lines; what matters comes back as errors."""

    def log(self, *words: object) -> None: ...

    debug = info = warning = error = critical = log


_SILENT: Any = _Silent()


def partition_counts(bootstrap: str, topics: Sequence[str], *, security: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> dict[str, int]:
    """Full topic name -> number of partitions on the broker.

    Raises:
        BrokerUnavailable: nobody answers.
        TopicProblem: a topic does not exist.
    """
    client = _client(bootstrap, security)
    found = _topics(client, bootstrap, timeout_s)
    missing = [topic for topic in topics if topic not in found]
    if missing:
        raise TopicProblem(f"{', '.join(missing)}: missing on {bootstrap}; create with: pulsefold topics create --bootstrap {bootstrap}")
    return {topic: found[topic] for topic in topics}


def _topics(client: AdminClient, bootstrap: str, timeout_s: float) -> dict[str, int]:
    try:
        listed = client.list_topics(timeout=timeout_s).topics
    except KafkaException as exc:
        raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {bootstrap} within {timeout_s:.0f} s ({exc.args[0].name()})") from None
    return {name: len(topic.partitions) for name, topic in listed.items() if topic.error is None}


def topic_identities(bootstrap: str, topics: Sequence[str], *, security: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> dict[str, int]:
    """Full topic name -> 32 bits of its Kafka topic id; 0 where the broker gives none."""
    if is_embedded(bootstrap, security=security, timeout_s=timeout_s):
        return dict.fromkeys(topics, 0)
    client = _client(bootstrap, security)
    identities = {}
    for topic, future in client.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s).items():
        try:
            text = str(future.result(timeout_s).topic_id)
        except KafkaException:
            text = ""
        identities[topic] = zlib.crc32(text.encode()) if text.strip("A=") else 0
    return identities


def is_embedded(bootstrap: str, *, security: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> bool:
    """Whether this is librdkafka's mock cluster: it keeps nothing and cannot be asked for a configuration."""
    client = _client(bootstrap, security)
    try:
        return bool(str(client.list_topics(timeout=timeout_s).cluster_id or "").startswith("mockCluster"))
    except KafkaException as exc:
        raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {bootstrap} within {timeout_s:.0f} s ({exc.args[0].name()})") from None


def create_topics(settings: _Gets, *, security: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> tuple[list[str], list[str]]:
    """Create what is missing; returns (created, already present).

    Raises:
        BrokerUnavailable: nobody answers.
        TopicProblem: the broker refuses one.
    """
    bootstrap = settings.get("bootstrap")
    _check_lag(settings)
    client = _client(bootstrap, security)
    there = _topics(client, bootstrap, timeout_s)
    wanted = [spec for spec in specs(settings) if spec.name not in there]
    created = []
    futures = (
        client.create_topics([NewTopic(s.name, num_partitions=s.partitions, replication_factor=s.replication, config=s.config) for s in wanted])
        if wanted
        else {}
    )
    for name, future in futures.items():
        try:
            future.result(timeout_s)
        except KafkaException as exc:
            raise TopicProblem(f"{name}: the broker does not create it: {exc.args[0].str()}") from None
        created.append(name)
    if created:
        _known_to_all(client, created, security, timeout_s)
    return created, [spec.name for spec in specs(settings) if spec.name in there]


def _known_to_all(client: AdminClient, names: Sequence[str], security: Mapping[str, Any] | None, timeout_s: float) -> None:
    """Wait until every node that answers knows the topics: whoever asks another one than created them would find them missing for a moment.

    Raises:
        TopicProblem: a node does not hear of them.
    """
    deadline = time.monotonic() + timeout_s
    try:
        nodes = client.list_topics(timeout=timeout_s).brokers.values()
    except KafkaException as exc:
        raise TopicProblem(f"{', '.join(names)}: created, but then nobody told which nodes there are ({exc.args[0].name()})") from None
    for node in nodes:
        address = f"{node.host}:{node.port}"
        one = _client(address, security)
        with suppress(BrokerUnavailable):  # a node that is not there misleads nobody
            while missing := set(names).difference(_topics(one, address, 5)):
                if time.monotonic() > deadline:
                    raise TopicProblem(f"{', '.join(sorted(missing))}: created, but after {timeout_s:.0f} s still unknown to {address}")
                time.sleep(0.05)


def _check_lag(settings: _Gets) -> None:
    if settings.get("changelog_lag_ms") < MIN_LAG_MS:
        raise TopicProblem(f"changelog_lag_ms: at least {MIN_LAG_MS} (one hour); below it compaction can lose updates before they are repaired")


def check_topics(settings: _Gets, *, security: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> list[str]:
    """What is wrong with the topics, a sentence each with the way out; empty = all well.

    Raises:
        BrokerUnavailable: nobody answers.
    """
    bootstrap = settings.get("bootstrap")
    client = _client(bootstrap, security)
    there = _topics(client, bootstrap, timeout_s)
    problems: list[str] = []
    missing: list[str] = []
    present = []
    for spec in specs(settings):
        if spec.name not in there:
            missing.append(spec.name)
        else:
            present.append(spec)
            if spec.counted and there[spec.name] != spec.partitions:
                way_out = f"set partitions to {there[spec.name]}, or use another topic_prefix (a topic with events must keep its number)"
                if spec.of is not None and there.get(spec.of) == spec.partitions:
                    way_out = "delete it and run pulsefold topics create; the tables are then rebuilt from the log"
                problems.append(f"{spec.name}: has {there[spec.name]} partitions, the setting partitions says {spec.partitions}; {way_out}")
    if missing:
        prefix = settings.get("topic_prefix")
        flags = f"--bootstrap {bootstrap}" + ("" if prefix == "pulsefold." else f" --topic-prefix {prefix}")
        problems.insert(0, f"{', '.join(missing)}: missing on {bootstrap}; create with: pulsefold topics create {flags}")
    if is_embedded(bootstrap, security=security):
        return problems
    futures = client.describe_configs([ConfigResource(ResourceType.TOPIC, spec.name) for spec in present]) if present else {}
    by_name = {resource.name: future for resource, future in futures.items()}
    for spec in present:
        try:
            config = by_name[spec.name].result(timeout_s)
        except KafkaException as exc:
            problems.append(f"{spec.name}: its configuration cannot be read: {exc.args[0].str()}")
            continue
        for name, wanted in spec.config.items():
            actual = config[name].value if name in config else None
            if name == "cleanup.policy" and actual != wanted:
                problems.append(f"{spec.name}: cleanup.policy is {actual}, needed is {wanted}; change it with kafka-configs")
            if name == "min.compaction.lag.ms" and int(actual or 0) < MIN_LAG_MS:
                problems.append(
                    f"{spec.name}: min.compaction.lag.ms is {actual}, needed are at least {MIN_LAG_MS} (one hour): compaction before the repair of stale rows "
                    f"loses updates; change it with kafka-configs --alter --add-config min.compaction.lag.ms={wanted}"
                )
    return problems
