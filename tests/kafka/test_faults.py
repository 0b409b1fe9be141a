"""On a real Kafka: nothing is lost or counted twice when chunks get lost, transactions abort, or a zombie wakes among the cleaner."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from ..workers import WorkerProcess
from .deployment import Deployment, until
from .truth import PARTITIONS, load, produce, verify

Deploy = Callable[..., Deployment]


@pytest.mark.timeout(120)
def test_every_seventh_chunk_lost_between_fetch_and_fold_loses_nothing(deploy: Deploy) -> None:
    deployed = deploy(PARTITIONS)
    worker = deployed.worker("drop:7")
    made = load(20_000, 11)
    produce(deployed.bootstrap, deployed.source(""), made, 6).join()
    verify([worker], made, deployed.settings)
    dropped = worker.log.read_text().count("a chunk was dropped on purpose")
    refused = sum(p["refused_chunks"] for p in worker.get("/status")["partitions"])
    assert dropped > 20
    assert refused > 10


def known(worker: WorkerProcess) -> dict[tuple[str, int], int]:
    """Ends of the source partitions as a worker knows them."""
    return {(p["topic"], p["partition"]): p["end"] for p in worker.get("/status")["partitions"]}


@pytest.mark.timeout(120)
def test_aborted_records_never_show_and_offsets_pass_the_control_records(deploy: Deploy) -> None:
    deployed = deploy(PARTITIONS)
    workers = [deployed.worker(start=False), deployed.worker(start=False)]
    for worker in workers:
        worker.start()
    made, aborted = load(4_000, 12), load(4_000, 13)  # both use the same ids: an aborted id must not count as seen
    producer = Producer({"bootstrap.servers": deployed.bootstrap, "partitioner": "murmur2_random", "transactional.id": deployed.settings["app_id"]})
    producer.init_transactions(30)

    def transaction(records: list[tuple[str, bytes, bytes]], commit: bool) -> None:
        producer.begin_transaction()
        for topic, key, value in records:
            producer.produce(deployed.source(topic), value, key)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.flush(30)
            producer.abort_transaction(30)

    for at in range(0, len(made.records), 200):
        transaction(aborted.records[at : at + 200], commit=False)
        transaction(made.records[at : at + 200], commit=True)
        if at % 800 == 0:
            transaction(aborted.records[at : at + 50], commit=False)
    nothing_but_aborted = [("training", f"default|r{n}".encode(), b"{}") for n in range(50)]
    transaction([*aborted.records[-200:], *nothing_but_aborted], commit=False)

    verify(workers, made, deployed.settings)
    ends = deployed.ends(*deployed.sources())
    until(lambda: deployed.committed() == {tp: end for tp, end in ends.items() if end}, 15, "commits up to the end")
    for worker in workers:
        worker.until(lambda w=worker: w.get("/status")["lag"] == 0 and known(w) == ends, 10)
    assert sum(n for (topic, _), n in ends.items() if topic == deployed.source("training")) > 50
