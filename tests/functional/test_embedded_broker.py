"""What the embedded broker does, and the limits that its users must know: a new librdkafka that moves one fails here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as Partition
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from streams.admin import check_topics, create_topics, is_embedded, partition_counts, topic_identities
from streams.broker import EmbeddedBroker
from streams.errors import BrokerUnavailable, TopicProblem
from streams.settings import Settings, load
from streams.topics import SOURCE_TOPICS, topic_specs

from .conftest import PARTITIONS

TOPIC = "pulsefold.judgments"


def settings(broker: EmbeddedBroker, **other: Any) -> Settings:
    return load({"bootstrap": broker.bootstrap, "partitions": PARTITIONS, **other}, {}, None)


def run(what: Any) -> Any:
    return asyncio.run(asyncio.wait_for(what, 40))


def test_it_starts_at_once_on_loopback_with_every_topic_of_every_app() -> None:
    begun = time.perf_counter()
    with EmbeddedBroker(partitions=3, prefix="x.", app_ids=("one", "two")) as broker:
        assert time.perf_counter() - begun < 20  # a JVM takes longer
        assert broker.bootstrap.startswith("127.0.0.1:")
        listed = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
    wanted = {spec.name: spec.partitions for app_id in ("one", "two") for spec in topic_specs("x.", app_id, 3)}
    assert {name: len(topic.partitions) for name, topic in listed.items()} == wanted


def test_two_at_once_have_ports_of_their_own_and_closing_twice_does_no_harm() -> None:
    with EmbeddedBroker(partitions=1) as one, EmbeddedBroker(partitions=1) as two:
        assert one.bootstrap != two.bootstrap
        two.close()
        assert is_embedded(one.bootstrap)
        with pytest.raises(BrokerUnavailable):
            is_embedded(two.bootstrap, timeout_s=0.5)


def test_three_nodes_answer_as_one() -> None:
    with EmbeddedBroker(partitions=6, brokers=3) as broker:
        assert len(broker.bootstrap.split(",")) == 3
        assert len(AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).brokers) == 3


def test_its_topics_are_reported_present_and_a_missing_one_or_a_wrong_count_is_said(embedded: EmbeddedBroker) -> None:
    found = settings(embedded)
    created, present = create_topics(found)
    assert created == [] and len(present) == len(topic_specs("pulsefold.", "pulsefold", PARTITIONS))
    assert check_topics(found) == []
    wrong = check_topics(settings(embedded, partitions=5))
    assert len(wrong) == 8 and all(f"has {PARTITIONS} partitions, the setting partitions says 5" in one for one in wrong)
    missing = check_topics(settings(embedded, topic_prefix="none."))
    assert len(missing) == 1 and missing[0].count("none.") == 12 and "pulsefold topics create" in missing[0]
    names = ["pulsefold." + topic for topic in SOURCE_TOPICS]
    assert partition_counts(embedded.bootstrap, names) == dict.fromkeys(names, PARTITIONS)
    assert topic_identities(embedded.bootstrap, names) == dict.fromkeys(names, 0)
    with pytest.raises(TopicProblem, match=r"nope: missing"):
        partition_counts(embedded.bootstrap, ["nope"])
    with pytest.raises(TopicProblem, match="changelog_lag_ms"):
        create_topics(settings(embedded, changelog_lag_ms=1000))


def test_a_broker_that_is_not_there_is_told_within_the_timeout() -> None:
    for ask in (lambda: partition_counts("127.0.0.1:1", ["x"], timeout_s=0.5), lambda: topic_identities("127.0.0.1:1", ["x"], timeout_s=0.5)):
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
            ask()
        assert time.monotonic() - begun < 15


def test_idempotent_zstd_records_of_librdkafka_are_read_by_aiokafka_and_back(embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap, "enable.idempotence": True, "compression.type": "zstd"})
    for number in range(50):
        producer.produce(TOPIC, b"from librdkafka %d" % number * 20, partition=0)
    assert producer.flush(10) == 0

    async def exchange() -> list[bytes]:
        async with AIOKafkaProducer(bootstrap_servers=embedded.bootstrap, enable_idempotence=True, compression_type="zstd") as theirs:
            await asyncio.gather(*[await theirs.send(TOPIC, b"from aiokafka %d" % number * 20, partition=1) for number in range(50)])
        async with AIOKafkaConsumer(bootstrap_servers=embedded.bootstrap, isolation_level="read_committed") as consumer:
            consumer.assign([Partition(TOPIC, 0), Partition(TOPIC, 1)])
            await consumer.seek_to_beginning()
            found: list[bytes] = []
            while len(found) < 100:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [record.value for record in records]
            return found

    found = run(exchange())
    assert sum(one.startswith(b"from librdkafka") for one in found) == sum(one.startswith(b"from aiokafka") for one in found) == 50


def test_a_group_of_one_aiokafka_member_joins_commits_and_comes_back_to_its_offsets(embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    for number in range(40):
        producer.produce(TOPIC, b"x", partition=number % PARTITIONS)
    assert producer.flush(10) == 0

    async def consume(wanted: int) -> tuple[int, float]:
        begun = time.monotonic()
        options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "session_timeout_ms": 6000}
        async with AIOKafkaConsumer(TOPIC, bootstrap_servers=embedded.bootstrap, group_id="g", **options) as consumer:
            joined = time.monotonic() - begun
            count = 0
            deadline = time.monotonic() + (10 if wanted else 1)
            while count < wanted or (not wanted and time.monotonic() < deadline):
                assert time.monotonic() < deadline + 1
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    count += len(records)
            await consumer.commit()
            return count, joined

    count, joined = run(consume(40))
    assert count == 40 and joined < 3
    assert run(consume(0))[0] == 0


def test_a_group_of_two_librdkafka_members_shares_the_partitions(embedded: EmbeddedBroker) -> None:
    both = [Consumer({"bootstrap.servers": embedded.bootstrap, "group.id": "g", "auto.offset.reset": "earliest", "session.timeout.ms": 6000}) for _ in range(2)]
    try:
        for one in both:
            one.subscribe([TOPIC])
        deadline = time.monotonic() + 60
        while [len(one.assignment()) for one in both] != [PARTITIONS // 2] * 2:
            assert time.monotonic() < deadline
            for one in both:
                one.poll(0.05)
    finally:
        for one in both:
            one.close()


def test_the_head_of_a_partition_is_dropped_beyond_five_mebibytes(embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap, "compression.type": "none", "message.max.bytes": 2 << 20})
    for _ in range(80):
        producer.produce(TOPIC, os.urandom(100_000), partition=2)
        assert producer.flush(10) == 0
    consumer = Consumer({"bootstrap.servers": embedded.bootstrap, "group.id": "look"})
    try:
        from confluent_kafka import TopicPartition

        low, high = consumer.get_watermark_offsets(TopicPartition(TOPIC, 2), timeout=10)
    finally:
        consumer.close()
    assert high == 80 and (high - low) * 100_000 <= 5 << 20 and low > 0


@pytest.mark.parametrize("fault", ["down", "slow", "fail"])
def test_its_faults_hold_a_producer_up_and_end(embedded: EmbeddedBroker, fault: str) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap, "linger.ms": 0, "log_level": 0, "reconnect.backoff.max.ms": 200})
    producer.produce(TOPIC, b"x")
    assert producer.flush(10) == 0
    starts: dict[str, Callable[[], None]] = {"down": embedded.down, "slow": lambda: embedded.slow(1500), "fail": lambda: embedded.fail(0, *[7] * 5)}
    starts[fault]()
    begun = time.monotonic()
    producer.produce(TOPIC, b"x")
    assert producer.flush(0.2) == 1
    if fault == "down":
        embedded.up()
    embedded.slow(0)
    assert producer.flush(15) == 0
    assert time.monotonic() - begun > 0.2
