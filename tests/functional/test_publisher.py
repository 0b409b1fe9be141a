"""Publishers against the embedded broker: every event ends in exactly one figure, and none is lost silently."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams import events
from streams.broker import EmbeddedBroker
from streams.codec import InvalidEvent, decode
from streams.errors import ConfigError, PulsefoldError, TopicProblem
from streams.keys import encode_key, partition_for, record_key
from streams.publisher import DeliveryReport, Dropped, Publisher, SyncPublisher, Unspooled, new_id
from streams.spool import Spool

from .conftest import PARTITIONS, PREFIX

CHECKOUT = Path(__file__).resolve().parents[2]
NOBODY = "127.0.0.1:1"
PRODUCE, OUT_OF_ORDER = 0, 45
OnTopics = Callable[..., list[Any]]


def metric(value: float = 0.5) -> events.MetricRecorded:
    return events.MetricRecorded(metric_type="train", model="m1", run="r1", value=value)


def observed(id: str = "m1") -> events.TrustObserved:
    return events.TrustObserved(kind="model", id=id, success=True)


def adds_up(report: DeliveryReport) -> bool:
    return report.accepted + report.recovered == report.delivered + report.failed + report.dropped + report.waiting


def ids(messages: list[Any]) -> list[str]:
    return [decode(m.value()).id for m in messages]


def until(what: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_each_event_is_one_record_on_its_topic_with_its_key_on_its_home_partition(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap, tenant="acme", source="trainer-7") as publisher:
        sent = [publisher.publish(data) for data in (metric(), observed("a|b"), events.CostIncurred(cost="0.001234"))]  # type: ignore[arg-type]
    found = on_topics()
    assert sorted(ids(found)) == sorted(sent)
    for message in found:
        event = decode(message.value())
        assert message.topic() == PREFIX + event.data.TOPIC
        assert message.key() == record_key(event) and message.partition() == partition_for(message.key(), PARTITIONS)
        assert (event.tenant, event.source) == ("acme", "trainer-7") and event.time is not None
    assert {m.topic(): m.key() for m in found} == {PREFIX + "training": b"acme|r1", PREFIX + "judgments": b"acme|model|a%7Cb", PREFIX + "costs": b"acme"}


def test_records_are_compressed_with_zstd_and_defaults_stay_off_the_wire(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.publish(observed())
        assert publisher._config["compression.type"] == "zstd" and publisher._config["enable.idempotence"] is True
    assert set(json.loads(on_topics()[0].value())["data"]) == {"kind", "id", "success"}


def test_the_report_adds_up_and_flush_leaves_nothing(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.record_many([metric(i) for i in range(500)])
        assert adds_up(publisher.report())
        assert publisher.flush(10) == 0
        report = publisher.report()
        assert (report.accepted, report.delivered, report.waiting, report.failed, report.dropped) == (500, 500, 0, 0, 0)


def test_an_invalid_event_raises_at_once_names_the_field_and_is_not_sent(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        with pytest.raises(InvalidEvent, match="confidence"):
            publisher.publish(events.ForecastIssued(confidence=1.5))
        with pytest.raises(InvalidEvent, match="data"):
            publisher.publish({"type": "custom.recorded.v1", "data": {"name": "n", "fields": {"x": object()}}})
        with pytest.raises(InvalidEvent, match=r"data\.prediction"):
            publisher.publish(events.ForecastIssued(prediction=float("nan")))
        with pytest.raises(InvalidEvent, match="success"):
            publisher.record_many([observed(), events.TrustObserved(kind="model", id="m", success=1)])  # type: ignore[arg-type]
        assert publisher.report() == DeliveryReport()
    assert on_topics() == []


@pytest.mark.parametrize("envelope", [
    {"type": "clock.ticked.v1", "data": {"until": "2026-01-01T00:00:00Z"}},
    {"type": "trust.observed.v1", "derivedfrom": "e1", "data": {"kind": "model", "id": "m", "success": True}},
    {"type": "variable.scored.v1", "data": {"name": "v", "score": {}}},
])  # fmt: skip
def test_what_only_workers_publish_is_refused(embedded: EmbeddedBroker, envelope: dict[str, Any]) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher, pytest.raises(InvalidEvent) as refused:
        publisher.publish(envelope)
    assert refused.value.reason == "refused"


def test_diverged_and_numpy_values_arrive_as_the_contract_writes_them(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.publish(metric(float("nan")))
        publisher.publish(metric(np.float32(0.25)))  # type: ignore[arg-type]
        publisher.publish(events.MetricRecorded(run="r1", values={"loss": np.float64("inf"), "n": np.int64(3)}))  # type: ignore[dict-item]
    found = {json.dumps(json.loads(m.value())["data"].get("value", json.loads(m.value())["data"].get("values"))) for m in on_topics()}
    assert found == {'"NaN"', "0.25", '{"loss": "Infinity", "n": 3}'}


def test_the_caller_s_id_time_tenant_and_unknown_attributes_are_kept(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        data = {"kind": "model", "id": "m", "success": True, "note": "mine"}
        publisher.publish({"id": "e1", "time": "2026-01-01T00:00:00+02:00", "tenant": "acme", "type": "trust.observed.v1", "traceparent": "00-1", "data": data})
        publisher.publish(observed(), id="e2", tenant="beta")
        publisher.publish(decode(b'{"specversion":"1.0","id":"e3","source":"s","type":"cost.incurred.v1","data":{"cost":"1.000001"}}'))
    found = {decode(m.value()).id: json.loads(m.value()) for m in on_topics()}
    assert found["e1"]["time"] == "2026-01-01T00:00:00+02:00" and found["e1"]["tenant"] == "acme" and found["e1"]["traceparent"] == "00-1"
    assert found["e1"]["data"] == data and found["e2"]["tenant"] == "beta"
    assert found["e3"]["source"] == "s" and found["e3"]["data"] == {"cost": "1.000001"}


def test_ids_are_ordered_by_time_and_never_the_same() -> None:
    made = []
    for _ in range(20):
        made.append([new_id() for _ in range(50)])
        time.sleep(0.002)
    assert len({one for some in made for one in some}) == 1000
    assert all(max(a) < min(b) for a, b in itertools.pairwise(made))


def test_a_batch_of_observations_is_grouped_so_that_each_lies_on_its_home_partition(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap, max_block_ms=10_000) as publisher:
        publisher.observe_many([events.Observation(kind="variable", id=f"v{i}", success=i % 3 == 0, weight=1 + i) for i in range(100)])
    found = on_topics("judgments")
    assert 1 < len(found) <= PARTITIONS
    seen = {}
    for message in found:
        for one in decode(message.value()).data.observations:
            assert partition_for(encode_key("default", one.kind, one.id), PARTITIONS) == message.partition()
            seen[one.id] = (one.success, one.weight)
    assert seen == {f"v{i}": (i % 3 == 0, 1.0 + i) for i in range(100)}


def test_a_batch_beyond_what_one_event_may_hold_is_cut(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap, max_block_ms=10_000) as publisher:
        publisher.observe_many([events.Observation(kind="model", id="m1", success=True) for _ in range(10_001)])
        publisher.observe_many([events.Observation(kind="model", id="ü" * 250, success=True) for _ in range(2500)])
    sizes = [len(decode(m.value()).data.observations) for m in on_topics("judgments")]
    assert sum(sizes) == 12_501 and max(sizes) == 10_000 and len(sizes) >= 4


def test_without_a_broker_observations_go_one_by_one_and_publish_does_not_wait_beyond_its_bound() -> None:
    publisher = SyncPublisher(NOBODY, max_block_ms=50, max_queue=100)
    begun = time.perf_counter()
    publisher.observe_many([events.Observation(kind="model", id=f"m{i}", success=True) for i in range(5)])
    assert time.perf_counter() - begun < 25  # nobody is waited for
    assert publisher.report().accepted == publisher.report().waiting == 5
    with pytest.warns(Dropped, match="5 failed"):
        report = publisher.close(0.2)
    assert report.failed == 5 and report.errors == {"not acknowledged when the publisher was closed": 5} and adds_up(report)


def test_a_full_queue_drops_counts_and_warns_once_and_never_blocks_longer_than_stated() -> None:
    publisher = SyncPublisher(NOBODY, max_block_ms=40, max_queue=10)
    publisher.publish(metric())
    longest = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(15):
            begun = time.perf_counter()
            publisher.publish(metric(i))
            longest = max(longest, time.perf_counter() - begun)
    assert 0.03 < longest < 2
    report = publisher.report()
    assert (report.accepted, report.dropped, report.waiting) == (16, 6, 10) and report.errors == {"the queue was full": 6} and adds_up(report)
    assert [str(one.message) for one in caught if one.category is Dropped] == [
        f"the queue was full: events to {NOBODY} are dropped and counted in report().dropped"
    ]
    with pytest.warns(Dropped):
        publisher.close(0)


def test_a_broker_that_comes_back_gets_everything_that_was_queued(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        sent = [publisher.publish(metric())]
        assert publisher.flush(10) == 0
        embedded.down()
        sent += [publisher.publish(metric(i)) for i in range(20)]
        assert publisher.flush(0.3) == 20
        embedded.up()
        assert publisher.flush(15) == 0
    assert sorted(ids(on_topics())) == sorted(sent)


def test_an_unknown_topic_raises_with_the_command_that_creates_it_and_is_not_created(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap, prefix="other.", max_block_ms=10_000) as publisher:
        with pytest.raises(TopicProblem, match=r"other\.training: missing .* pulsefold topics create"):
            publisher.publish(metric())
        assert "other.training" not in (publisher._counts or {})
        embedded.create_topic("other.training", 2)  # now somebody runs the command
        until(lambda: _takes(publisher))
        assert publisher.flush(10) == 0


def _takes(publisher: SyncPublisher) -> bool:
    try:
        publisher.publish(metric())
        return True
    except TopicProblem:
        return False


def test_events_for_a_topic_that_turns_out_to_be_missing_are_reported_as_failed(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    published, learn = threading.Event(), SyncPublisher._learn
    monkeypatch.setattr(SyncPublisher, "_learn", lambda self: (published.wait(30), learn(self)))
    publisher = SyncPublisher(embedded.bootstrap, prefix="other.", max_block_ms=0)
    publisher.publish(metric())  # the broker has not answered yet
    published.set()
    until(lambda: publisher.report().failed == 1)
    assert list(publisher.report().errors) == ["the topic does not exist; create it with: pulsefold topics create"]
    with pytest.warns(Dropped):
        publisher.close()


def test_a_producer_that_breaks_for_good_is_replaced_and_nothing_is_lost(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        first = publisher._producer
        sent = [publisher.publish(metric())]
        assert publisher.flush(10) == 0
        embedded.fail(PRODUCE, OUT_OF_ORDER, OUT_OF_ORDER)
        sent += [publisher.publish(metric(i)) for i in range(30)]
        until(lambda: publisher.report().delivered == 31)
        assert publisher._producer is not first and publisher.report().resent >= 1
    assert set(ids(on_topics())) == set(sent)


def test_a_thread_that_comes_second_finds_nothing_to_take_back_to_the_spool(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    with SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool") as publisher:
        publisher._take_back()
        publisher.publish(metric())
        assert publisher.flush(10) == 0 and publisher.report().delivered == 1


def test_on_delivery_is_told_of_each_and_its_own_mistakes_stop_nothing(embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, BaseException | None]] = []

    def tell(name: str, error: BaseException | None) -> None:
        told.append((name, error))
        raise ZeroDivisionError("the caller's bug")

    with SyncPublisher(embedded.bootstrap) as publisher:
        sent = [publisher.publish(metric(i), on_delivery=tell) for i in range(10)]
        assert publisher.flush(10) == 0
    assert told == [(name, None) for name in sent]
    assert "the caller's bug" in caplog.text


def test_many_threads_share_one_publisher(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        threads = [threading.Thread(target=lambda: [publisher.publish(metric(i)) for i in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert publisher.flush(10) == 0 and publisher.report().delivered == 800
    assert len(set(ids(on_topics()))) == 800


def test_a_closed_publisher_and_one_made_before_a_fork_say_so(embedded: EmbeddedBroker) -> None:
    publisher = SyncPublisher(embedded.bootstrap)
    publisher._pid += 1  # as a child sees it
    with pytest.raises(PulsefoldError, match="make one in each process"):
        publisher.publish(metric())
    publisher._pid -= 1
    publisher.close()
    publisher.close()
    with pytest.raises(PulsefoldError, match="is closed"):
        publisher.publish(metric())


def test_exit_flushes_every_publisher_even_after_another_was_closed(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    program = (
        "import sys; from streams.publisher import SyncPublisher; from streams.events import CostIncurred\n"
        "def hidden(): SyncPublisher(sys.argv[1], linger_ms=5000).publish(CostIncurred(api_calls=1), id='hidden')\n"
        "a, b = SyncPublisher(sys.argv[1], linger_ms=5000), SyncPublisher(sys.argv[1], linger_ms=5000)\n"
        "a.publish(CostIncurred(api_calls=1), id='a'); b.publish(CostIncurred(api_calls=1), id='b'); hidden(); a.close()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program, embedded.bootstrap], cwd=CHECKOUT, timeout=40, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(ids(on_topics())) == ["a", "b", "hidden"]


# ---- with a spool


def test_a_spool_is_empty_once_everything_is_acknowledged(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    with SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool") as publisher:
        publisher.record_many([metric(i) for i in range(300)])
        assert publisher.flush(10) == 0
        until(lambda: publisher.report().spooled == 0)
        report = publisher.report()
    assert (report.delivered, report.spooled, report.resent) == (300, 0, 0)


def test_what_a_killed_process_left_in_the_spool_is_sent_by_the_next_with_the_same_ids(embedded: EmbeddedBroker, on_topics: OnTopics, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from streams.publisher import SyncPublisher; from streams.events import CostIncurred\n"
        "p = SyncPublisher(sys.argv[1], spool=sys.argv[2], max_block_ms=20)\n"
        "[p.publish(CostIncurred(api_calls=1), id=f'e{i}') for i in range(50)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, NOBODY, str(tmp_path / "spool")], cwd=CHECKOUT, timeout=30)
    assert done.returncode == -9
    with SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool") as publisher:
        publisher.publish(events.CostIncurred(api_calls=1), id="e50")
        assert publisher.flush(15) == 0
        until(lambda: publisher.report().spooled == 0)
        report = publisher.report()
    assert (report.recovered, report.resent, report.accepted, report.delivered, report.spooled) == (50, 50, 1, 51, 0) and adds_up(report)
    assert ids(on_topics("costs")) == [f"e{i}" for i in range(51)]


def test_a_full_queue_with_a_spool_drops_nothing_blocks_nobody_and_keeps_the_order(embedded: EmbeddedBroker, on_topics: OnTopics, tmp_path: Path) -> None:
    with SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool", max_queue=20, max_block_ms=50) as publisher:
        publisher.publish(metric(0), id="e000")
        assert publisher.flush(10) == 0
        embedded.down()
        took = []
        for i in range(1, 500):
            begun = time.perf_counter()
            publisher.publish(metric(i), id=f"e{i:03}")
            took.append(time.perf_counter() - begun)
        assert statistics.median(took) < 0.01, "a call waited for the queue (max_block_ms is 50) instead of writing to the spool"
        assert publisher.report().spooled == 499
        embedded.up()
        assert publisher.flush(30) == 0
        assert publisher.report().delivered == 500 and publisher.report().dropped == 0
    assert ids(on_topics("training")) == [f"e{i:03}" for i in range(500)]


def test_events_not_acknowledged_in_time_are_sent_again_from_the_spool(embedded: EmbeddedBroker, on_topics: OnTopics, tmp_path: Path) -> None:
    with SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool", delivery_timeout_ms=400, linger_ms=5) as publisher:
        sent = [publisher.publish(metric())]
        assert publisher.flush(10) == 0
        embedded.down()
        sent += [publisher.publish(metric(i)) for i in range(10)]
        until(lambda: publisher.report().errors.get("not acknowledged in time (delivery_timeout_ms)", 0) >= 10)
        embedded.up()
        assert publisher.flush(20) == 0
        until(lambda: publisher.report().spooled == 0)
        report = publisher.report()
        assert report.delivered == 11 and report.failed == 0 and report.resent >= 10 and report.spooled == 0
    assert set(ids(on_topics())) == set(sent)


def test_a_full_spool_drops_and_says_so(tmp_path: Path) -> None:
    publisher = SyncPublisher(NOBODY, spool=tmp_path / "spool", spool_max_bytes=2000, max_block_ms=10)
    with pytest.warns(Dropped, match="spool_max_bytes"):
        publisher.record_many([metric(i) for i in range(20)])
    report = publisher.report()
    assert 0 < report.spooled < 20 and report.dropped == 20 - report.spooled and adds_up(report)
    with pytest.warns(Dropped, match="wait in the spool"):
        publisher.close(0)


def test_a_policy_and_a_spool_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spool=PATH"):
        SyncPublisher(NOBODY, on_full="spool")
    with pytest.raises(ConfigError, match="exclude"):
        SyncPublisher(NOBODY, on_full="drop", spool=tmp_path / "spool")


# ---- asyncio


async def _acknowledged(bootstrap: str) -> tuple[list[str], DeliveryReport]:
    async with Publisher(bootstrap, linger_ms=5) as publisher:
        names = list(await asyncio.gather(*(publisher.publish(metric(i)) for i in range(100))))
        assert publisher.report().delivered == 100
        names.append(await publisher.send(observed()))
        names.append(await publisher.observe("model", "m2", False))
        names += await publisher.record_many([metric()])
        names += await publisher.observe_many([events.Observation(kind="model", id="m3", success=True)])
        assert await publisher.flush(10) == 0
        return names, publisher.report()


def test_the_async_publisher_returns_when_the_broker_has_acknowledged(embedded: EmbeddedBroker, on_topics: OnTopics) -> None:
    names, report = asyncio.run(_acknowledged(embedded.bootstrap))
    assert (report.accepted, report.delivered) == (104, 104)
    assert sorted(ids(on_topics())) == sorted(names)


async def heartbeat(laps: list[float]) -> None:
    """Note how long the loop takes for one millisecond, until cancelled."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        laps.append(time.perf_counter() - begun)


async def _full_queue() -> float:
    publisher = Publisher(NOBODY, max_queue=1, max_block_ms=2000)
    await publisher.send(metric())
    laps: list[float] = []
    beating = asyncio.create_task(heartbeat(laps))
    with pytest.warns(Dropped), pytest.raises(PulsefoldError, match="queue was full"):
        await publisher.publish(metric())
    beating.cancel()
    with pytest.warns(Dropped):
        await publisher.close(0)
    return max(laps)


def test_a_full_queue_raises_from_the_async_publisher_and_never_blocks_the_loop() -> None:
    assert asyncio.run(_full_queue()) < 1


@pytest.mark.parametrize("held", ["_lock", "_order"])
def test_a_slow_spool_never_blocks_the_loop_of_the_async_publisher(embedded: EmbeddedBroker, on_topics: OnTopics, tmp_path: Path, held: str) -> None:
    async def slow() -> tuple[float, float, DeliveryReport]:
        publisher = Publisher(embedded.bootstrap, spool=tmp_path / "spool", max_block_ms=5000)
        await publisher.publish(metric(), id="first")
        lock = getattr(publisher._sync._spool if held == "_lock" else publisher._sync, held)
        letting_go, has = threading.Event(), threading.Event()

        def disk() -> None:
            with lock:  # as whoever waits for the disk has it
                has.set()
                letting_go.wait(30)

        thread = threading.Thread(target=disk)
        thread.start()
        has.wait()
        laps: list[float] = []
        beating = asyncio.create_task(heartbeat(laps))
        begun = time.perf_counter()
        with pytest.warns(Unspooled, match="slow"):
            await asyncio.gather(*(publisher.send(metric(), id=f"past-{n}") for n in range(20)))
        took = time.perf_counter() - begun
        sooner = asyncio.create_task(publisher.send(metric(), id="within"))
        await asyncio.sleep(0.05)
        letting_go.set()
        await sooner
        thread.join()
        beating.cancel()
        return max(laps), took, await publisher.close(20)

    longest, took, report = asyncio.run(slow())
    assert longest < 3 < 5 <= took, "the loop stood still while the spool was waited for"
    assert (report.unspooled, report.delivered, report.dropped, report.spooled) == (20, 22, 0, 0)
    assert sorted(ids(on_topics())) == sorted(["first", "within", *(f"past-{n}" for n in range(20))])


@pytest.mark.parametrize("held", ["_lock", "_order"])
def test_flush_and_close_keep_to_their_timeout_while_the_spools_disk_is_slow(embedded: EmbeddedBroker, tmp_path: Path, held: str) -> None:
    publisher = SyncPublisher(embedded.bootstrap, spool=tmp_path / "spool")
    publisher._settle_at = time.monotonic() + 3600  # nothing leaves the spool by itself
    publisher.publish(metric(), id="e1")
    until(lambda: publisher.report().delivered == 1)
    letting_go, has = threading.Event(), threading.Event()

    def disk() -> None:
        with getattr(publisher._spool if held == "_lock" else publisher, held):
            has.set()
            letting_go.wait(60)

    thread = threading.Thread(target=disk)
    thread.start()
    has.wait()
    begun = time.monotonic()
    assert publisher.flush(0.5) == 0  # it is acknowledged, and only not taken out yet
    assert time.monotonic() - begun < 30
    begun = time.monotonic()
    if held == "_lock":
        with pytest.warns(Unspooled, match="not closed in time"):
            report = publisher.close(0.5)
    else:
        report = publisher.close(0.5)
    assert time.monotonic() - begun < 30
    assert (report.delivered, report.spooled) == (1, 1)
    letting_go.set()
    thread.join()
    until(lambda: freed(tmp_path / "spool"))  # whoever had it lets go in the end


def freed(path: Path) -> bool:
    try:
        Spool(path).close()
    except ConfigError:
        return False
    return True


def test_publishing_costs_a_training_step_little(embedded: EmbeddedBroker) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.publish(metric())
        begun = time.thread_time()  # of this thread alone, so that a busy machine is no matter
        for i in range(2000):
            publisher.publish(metric(i))
        assert (time.thread_time() - begun) / 2000 < 0.001
        assert publisher.flush(20) == 0
    assert os.getpid() == publisher._pid
