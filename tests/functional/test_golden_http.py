"""Every golden vector through the embedded broker, a worker process and HTTP; with one partition, and with eight and every
record delivered twice. Each vector is a tenant of its own, so that one worker answers many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.broker import EmbeddedBroker
from streams.codec import decode
from streams.keys import record_key

from ..golden_checks import ONE_PARTITION, VECTORS_HERE, check_vector, environment
from ..harness import VECTORS
from ..workers import WorkerProcess

GROUPS: dict[str, list[str]] = {}
for _name in VECTORS_HERE:
    if _name != "A1":  # ids of the tenant `golden`, checked without a service
        GROUPS.setdefault(json.dumps(environment(VECTORS[_name]), sort_keys=True), []).append(_name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("partitions", "copies"), [(1, 1), (8, 2)], ids=["one-partition", "eight-doubled"])
@pytest.mark.parametrize("settings", GROUPS)
def test_vectors_through_the_service(settings: str, partitions: int, copies: int, tmp_path: Path) -> None:
    # P1 and P3 are figures of a partition, M3 counts its own duplicates
    names = [name for name in GROUPS[settings] if (partitions == 1 or name not in ONE_PARTITION) and (copies == 1 or name != "M3")]
    with EmbeddedBroker(partitions=partitions) as broker:
        worker = WorkerProcess(broker.bootstrap, tmp_path, environment=json.loads(settings), partitions=partitions).start()
        try:
            sent = publish(broker.bootstrap, names, copies)
            worker.until(lambda: worker.absorbed(sent))
            worker.until(lambda: quiet(worker))
            messages = read(broker.bootstrap, "pulsefold.alerts")
            dead = read(broker.bootstrap, "pulsefold.dead-letters")
            differences = {}
            for name in names:
                tenant = tenant_of(name)
                mine = [{"type": m["type"], "derivedfrom": m.get("derivedfrom"), **m["data"]} for m, _ in messages if m["tenant"] == tenant]
                letters = [(json.dumps(m).encode(), headers) for m, headers in dead if m["tenant"] == tenant]

                def ask(path: str, params: dict[str, Any], tenant: str = tenant) -> dict[str, Any]:
                    status, body = worker.ask(path, headers={"X-Tenant": tenant}, **params)
                    return {"status": status, **body} if status != 200 else body

                found = check_vector(json.loads(json.dumps(VECTORS[name])), ask, lambda mine=mine: mine, lambda letters=letters: letters)
                if found:
                    differences[name] = found
            assert not differences, differences
        finally:
            worker.stop()


def tenant_of(name: str) -> str:
    return f"golden-{name.lower()}"


def publish(bootstrap: str, names: list[str], copies: int) -> int:
    """In the order of each vector; returns the number of records."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True})
    n = 0
    for name in names:
        for event in VECTORS[name]["events"]:
            raw = json.dumps({"specversion": "1.0", "source": "golden", **event, "tenant": tenant_of(name)}).encode()
            decoded = decode(raw)
            for _ in range(copies):
                producer.produce("pulsefold." + decoded.data.TOPIC, raw, record_key(decoded))
                n += 1
            producer.poll(0)
    assert producer.flush(30) == 0
    return n


def quiet(worker: WorkerProcess) -> bool:
    """Derived events were folded too: nothing waits over more than one look at the log's ends."""
    import time

    before = worker.get("/status")["counts"]["in"]
    time.sleep(1.2)
    return worker.absorbed() and worker.get("/status")["counts"]["in"] == before


def read(bootstrap: str, topic: str) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Everything on a topic with one partition, but tombstones."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"read-{topic}", "enable.partition.eof": True, "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = []
    while True:
        message = consumer.poll(10)
        assert message is not None, f"{topic} does not answer"
        if message.error():
            break
        headers = {name: (value or b"").decode() for name, value in message.headers() or []}
        if message.value() is not None:
            found.append((json.loads(message.value()), headers))
    consumer.close()
    return found
