"""On a real Kafka: nothing is lost or counted twice when chunks get lost, transactions abort, or a zombie wakes among the cleaner."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from streams.topics import MIN_LAG_MS

from ..workers import WorkerProcess
from .deployment import Deployment, stopped, until
from .truth import PARTITIONS, body, forecasts, load, produce, settle, verify

Deploy = Callable[..., Deployment]


@pytest.mark.timeout(240)
def test_every_seventh_chunk_lost_between_fetch_and_fold_loses_nothing(deploy: Deploy) -> None:
    deployed = deploy(PARTITIONS)
    worker = deployed.worker("drop:7")
    made = load(20_000, 11)
    produce(deployed.bootstrap, deployed.source(""), made, 12).join()  # on a busy machine a chunk is larger, and there are fewer
    verify([worker], made, deployed.settings)
    dropped = worker.log.read_text().count("a chunk was dropped on purpose")
    refused = sum(p["refused_chunks"] for p in worker.get("/status")["partitions"])
    assert dropped >= 5
    assert refused >= 3


def known(worker: WorkerProcess) -> dict[tuple[str, int], int]:
    """Ends of the source partitions as a worker knows them."""
    return {(p["topic"], p["partition"]): p["end"] for p in worker.get("/status")["partitions"]}


@pytest.mark.timeout(240)
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
    until(lambda: deployed.committed() == {tp: end for tp, end in ends.items() if end}, 30, "commits up to the end")
    for worker in workers:
        worker.until(lambda w=worker: w.get("/status")["lag"] == 0 and known(w) == ends)
    assert sum(n for (topic, _), n in ends.items() if topic == deployed.source("training")) > 50
    assert not any(p["gone_offsets"] for worker in workers for p in worker.get("/status")["partitions"]), "what was aborted is not gone"


@pytest.mark.timeout(240)
def test_a_transaction_left_open_holds_back_what_follows_and_alarms_nobody(deploy: Deploy) -> None:
    deployed = deploy(1)
    worker = deployed.worker(watchdog_s=2)
    slow = Producer({"bootstrap.servers": deployed.bootstrap, "transactional.id": deployed.settings["app_id"]})
    slow.init_transactions(30)
    slow.begin_transaction()
    slow.produce(deployed.source("judgments"), observation("slow"), b"default|model|m")
    assert slow.flush(30) == 0
    quick = Producer({"bootstrap.servers": deployed.bootstrap})
    for n in range(10):
        quick.produce(deployed.source("judgments"), observation(f"quick-{n}"), b"default|model|m")
    assert quick.flush(30) == 0
    time.sleep(5)
    worker.until(lambda: worker.get("/status")["counts"]["in"] == 0, 1)
    slow.commit_transaction(30)
    worker.until(lambda: worker.ask("/trust/model/m")[1].get("observations") == 11)


@pytest.mark.timeout(240)
def test_a_merged_alert_opens_once_and_resolves_once_though_a_worker_is_killed_while_it_opens(deploy: Deploy) -> None:
    variables = [f"v{n}" for n in range(200)]
    deployed = deploy(PARTITIONS)
    killed, survivor = deployed.worker(), deployed.worker()
    alerts = deployed.source("alerts")

    def open_alerts() -> set[str]:
        return {a["subject"] for a in survivor.get("/alerts", state="open", rule="drift.variable", limit=1000)["alerts"]}

    forecasts(deployed.bootstrap, deployed.source("forecasts"), range(40), variables, fragility=0.9)
    killed.until(lambda: killed.get("/status")["alerts"]["messages"] > 0)
    killed.kill()
    survivor.until(lambda: open_alerts() == set(variables))
    killed.start()
    forecasts(deployed.bootstrap, deployed.source("forecasts"), range(40, 300), variables, fragility=0.0)
    survivor.until(lambda: not open_alerts())
    messages = [message for _, message in deployed.on(alerts) if message["data"]["rule"] == "drift.variable"]
    distinct = {message["id"]: (message["type"], message["data"]["subject"]) for message in messages}
    assert sorted(distinct.values()) == sorted((kind, name) for kind in ("alert.opened.v1", "alert.resolved.v1") for name in variables)
    assert len(messages) - len(distinct) <= 1, "only a message in flight while its partition changes hands may have a twin"

    before, end = None, deployed.ends(alerts)
    while end != before:  # other rules may still tell of these variables
        time.sleep(2)
        before, end = end, deployed.ends(alerts)
    for worker in (killed, survivor):
        worker.kill()
        worker.start()
    assert deployed.replay()["equal"]
    survivor.until(survivor.absorbed)
    time.sleep(1)  # several looks of the rules
    assert deployed.ends(alerts) == end


@pytest.mark.timeout(180)
def test_rows_that_a_zombie_writes_among_a_busy_cleaner_are_repaired_before_they_win(deploy: Deploy) -> None:
    deployed = deploy(PARTITIONS, changelog_lag_ms=MIN_LAG_MS)
    changelog = deployed.changelog("judgments")
    deployed.alter(changelog, segment_bytes=str(1 << 20), segment_ms="200", min_cleanable_dirty_ratio="0.01", delete_retention_ms="100")
    zombie, other = deployed.worker("freeze:judgments"), deployed.worker()
    made = load(30_000, 15)
    publishing = produce(deployed.bootstrap, deployed.source(""), made, 12)
    time.sleep(3)
    zombie.signal(signal.SIGHUP)
    until(lambda: stopped(zombie), 30, "the freeze")
    other.until(lambda: all(p["owner"] and p["ready"] for p in other.get("/status")["partitions"]))
    publishing.join()
    settle(other, made)  # nothing is going to change these keys again: without a repair the old rows would stay the last ones
    zombie.signal(signal.SIGCONT)
    verify([zombie, other], made, deployed.settings)
    assert sum(p["stale_rows"] for p in other.get("/status")["partitions"]) > 10, "the zombie wrote nothing old"
    assert sum(p["repaired_rows"] for w in (zombie, other) for p in w.get("/status")["partitions"]) > 10

    before = deployed.size(changelog)
    deployed.alter(changelog, min_compaction_lag_ms="0")  # as if the hour had passed
    until(lambda: deployed.size(changelog) < before / 2, 60, "the compaction")
    deployed.alter(changelog, min_compaction_lag_ms=str(MIN_LAG_MS))
    verify([deployed.worker()], made, deployed.settings)


def observation(id: str) -> bytes:
    """That model m succeeded."""
    return body(id, "trust.observed.v1", "2026-03-02T00:00:00Z", {"kind": "model", "id": "m", "success": True})
