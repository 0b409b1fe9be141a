"""Our contact with Faust's inside: fails loudly when a new version moves what `agents.seam` overrides."""

from __future__ import annotations

import asyncio
import gc
import inspect
import random
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import google_crc32c
import pytest
from aiokafka import conn as aiokafka_conn
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState
from aiokafka.errors import CorruptRecordException, KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c as crc32c
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.transport import consumer as base
from faust.transport import drivers
from faust.transport.drivers import aiokafka as stock
from faust.types import TP
from mode.threads import ServiceThread

from agents import seam
from agents.access import security
from agents.app import build, load_settings
from streams.broker import EmbeddedBroker
from streams.settings import load


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (
            seam.Inline,
            stock.AIOKafkaConsumerThread,
            ["start", "stop", "close", "call_thread", "on_thread_stop", "_thread_keepalive", "_create_worker_consumer", "_fetch_records"],
        ),
        (seam.Consumer, stock.Consumer, ["_new_consumer_thread", "getmany", "_add_gap", "ack", "_filter_committable_offsets", "_commit", "verify_event_path"]),
        (seam.Tables, TableManager, ["add", "_update_channels"]),
        (seam.Boot, BootStrategy, ["kafka_consumer"]),
        (seam.App, faust.App, ["on_webserver_init"]),
        (seam.Worker, faust.Worker, ["_sentinel_task"]),
    ],
)
def test_what_is_overridden_is_there_and_takes_the_same_parameters(ours: type, theirs: type, names: list[str]) -> None:
    for name in names:
        original = getattr(theirs, name, None) or getattr(dict, name, None)
        assert name in vars(ours), f"{ours.__name__}.{name} is no override any more"
        assert original is not None, f"Faust has no {theirs.__name__}.{name} any more"
        if not inspect.isabstract(theirs) and inspect.isfunction(original):
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(inspect.signature(original).parameters), name


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_fausts_own_clients_reach_a_protected_broker_as_ours_do(protocol: str) -> None:
    words = {"kafka_security_protocol": protocol, "kafka_sasl_mechanism": "SCRAM-SHA-512", "kafka_sasl_username": "u", "kafka_sasl_password": "p"}
    ours, _ = security(load(words, {}))
    theirs = stock.credentials_to_aiokafka_auth(seam.credentials(ours))
    assert {name: value for name, value in theirs.items() if value is not None} == ours
    assert "'p'" not in repr(seam.credentials(ours)) and "=p" not in repr(seam.credentials(ours))


def test_the_private_parts_we_lean_on_are_there() -> None:
    assert {"seek_wait", "assignment", "commit", "_ensure_consumer"} <= set(dir(stock.AIOKafkaConsumerThread))
    assert {"_default_start", "_shutdown_thread", "_new_stopped_event"} <= set(dir(stock.AIOKafkaConsumerThread))
    assert "_thread_started = " in inspect.getsource(ServiceThread.__init__)
    assert {"_getmany", "_get_active_partitions"} <= set(dir(base.Consumer))
    assert {"has_valid_position", "position"} <= set(dir(TopicPartitionState))
    assert "aliases" in dir(drivers.TRANSPORTS)
    assert {"beginning_offsets", "end_offsets", "position", "getmany"} <= set(dir(aiokafka.AIOKafkaConsumer))
    assert list(inspect.signature(fetcher.PartitionRecords._consumer_record).parameters) == ["self", "tp", "record"]
    assert {"offset", "timestamp", "key", "value", "headers"} <= set(dir(DefaultRecord))
    assert "StreamReader(limit=READER_LIMIT" in inspect.getsource(AIOKafkaConnection.connect) and aiokafka_conn.READER_LIMIT == seam.READ_AHEAD
    assert "MemoryRecords(part_data[-1])" in inspect.getsource(fetcher.Fetcher)
    assert "self._fetch_max_wait_ms," in inspect.getsource(fetcher.Fetcher._get_actions_per_node)
    assert "self._records[tp] = FetchResult(" in inspect.getsource(fetcher.Fetcher) and "self._records = " not in inspect.getsource(
        fetcher.Fetcher._fetch_requests_routine
    )
    assert "_partition_records" in inspect.getsource(fetcher.FetchResult.__init__) and "_records" in inspect.getsource(fetcher.Fetcher.__init__)


def test_a_connection_that_uvloop_finds_closed_is_told_as_broken() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def write_to_a_closed_connection() -> None:
        async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            connection = AIOKafkaConnection("127.0.0.1", port)
            _, connection._writer = await asyncio.open_connection("127.0.0.1", port)
            connection._versions = {MetadataRequest.API_KEY: (0, 5)}
            connection._writer.transport.abort()
            await asyncio.sleep(0.05)
            with pytest.raises(RuntimeError, match="closed"):
                connection._writer.write(b"x")
            with pytest.raises(KafkaConnectionError, match="broken"):
                connection.send(MetadataRequest([]))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_to_a_closed_connection())


def fetched_bytes(rng: random.Random) -> tuple[bytes, list[tuple[int, int]], int]:
    """What a broker answers a fetch with: batches with gaps, some aborted, with markers; the aborted transactions; the position asked for."""
    raw, aborted, offset, asked = b"", [], 0, None
    for _ in range(rng.randrange(1, 8)):
        producer = rng.randrange(3)
        transactional = rng.random() < 0.4
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=rng.choice((0, 1)),
            is_transactional=transactional,
            producer_id=producer,
            producer_epoch=0,
            base_sequence=0,
            batch_size=1 << 20,
        )
        size = rng.randrange(1, 9)
        for n in sorted({size - 1, *rng.sample(range(size), rng.randrange(size))} if rng.random() < 0.4 else range(size)):  # compaction leaves gaps
            builder.append(n, timestamp=n, key=b"k%d" % n, value=b"v%d" % (offset + n), headers=[])
        raw += offset.to_bytes(8, "big") + bytes(builder.build())[8:]
        if asked is None:
            asked = rng.randrange(size)  # inside the first batch: a broker sends whole ones
        first, offset = offset, offset + size + rng.randrange(3)
        if transactional:
            marker = DefaultRecordBatchBuilder(
                magic=2, compression_type=0, is_transactional=True, producer_id=producer, producer_epoch=0, base_sequence=0, batch_size=1 << 20
            )
            abort = rng.random() < 0.5
            marker.append(0, timestamp=0, key=b"\0\0\0\0" if abort else b"\0\0\0\1", value=b"\0\0\0\0\0\0", headers=[])
            control = bytearray(marker.build())
            control[:8] = offset.to_bytes(8, "big")
            control[22] |= 0x20  # a control batch
            control[17:21] = crc32c(bytes(control[21:])).to_bytes(4, "big")
            raw += bytes(control)
            offset += 1
            if abort:
                aborted.append((producer, first))
    return raw, aborted, asked or 0


class Assigned:
    """As much of an assignment as a fetch result asks."""

    def __init__(self, position: int) -> None:
        self.active = True
        self.paused = False
        self.position = position

    def state_value(self, tp: object) -> Assigned:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def result_of(raw: bytes, aborted: list[tuple[int, int]], assigned: Assigned) -> tuple[aiokafka.TopicPartition, fetcher.FetchResult]:
    """What aiokafka makes of such an answer."""
    tp = aiokafka.TopicPartition("t", 0)
    found = fetcher.PartitionRecords(tp, fetcher.MemoryRecords(raw), list(aborted), assigned.position, None, None, True, fetcher.READ_COMMITTED)
    return tp, fetcher.FetchResult(tp, assignment=assigned, partition_records=found, backoff=0)


def plainly(records: Iterable[Any]) -> list[tuple[int, int, bytes, bytes]]:
    """What is read of records."""
    return [(record.offset, record.timestamp, record.key, record.value) for record in records]


@pytest.mark.parametrize("when", ["at once", "later", "not all"])
@pytest.mark.parametrize("seed", range(200))
def test_packed_records_are_those_that_aiokafka_takes_one_by_one(seed: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(seam, "SLICE", rng.choice((1, 2, 3, 1024)))
    heaviest = rng.choice((1, 200, 1 << 20))
    monkeypatch.setattr(seam, "HEAVIEST_CHUNK", heaviest)
    raw, aborted, position = fetched_bytes(rng)
    theirs = Assigned(position)
    _, result = result_of(raw, aborted, theirs)
    expected = plainly(result.getall())
    assigned = Assigned(position)
    tp, result = result_of(raw, aborted, assigned)
    seam.packed(SimpleNamespace(_records={tp: result}))
    most = rng.choice((1, 2, 3, 4096))
    spans: list[seam.Packed] = []
    found = []
    while result.has_more():
        limit, before = rng.choice((None, 1, 2, 3, 5, 8)), assigned.position
        taken = result.getall(limit)
        assert (taken.start, taken.end) == (before, assigned.position) and bool(taken) == (taken.end > taken.start)
        assert limit is None or len(taken) <= limit
        if when == "not all" and rng.random() < 0.3:  # refused, or of an ownership that has ended
            expected = [record for record in expected if not taken.start <= record[0] < taken.end]
            continue
        parts = list(taken.cut(most))
        assert (parts[0].start, parts[-1].end) == (taken.start, taken.end)
        assert all(before.end == part.start for before, part in pairwise(parts)) and all(len(part) <= most for part in parts)
        for part in parts:
            of = list(part._parts or ())
            assert len(part) == sum(end - begin for _, begin, end in of)
            assert len(of) == 1 or sum(batch.weight for batch, _, _ in of) <= heaviest
            assert of or (len(parts) == 1 and not len(taken)), "a chunk of nothing is a fetch of nothing"
        spans += parts
        if when == "at once":
            found += map(plainly, parts)
    if when != "at once":
        found = [plainly(taken) for taken in spans]
    assert assigned.position == theirs.position
    assert [record for one in found for record in one] == expected
    for taken, records in zip(spans, found, strict=True):
        assert all(taken.start <= record[0] < taken.end for record in records) and len(records) <= len(taken)
        with pytest.raises(RuntimeError, match="once"):
            list(taken)
    assert expected or aborted or position or when == "not all"


def test_compressed_batches_weigh_what_they_may_become_and_few_of_them_are_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(compression: int, first: int) -> bytes:
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=compression, is_transactional=False, producer_id=0, producer_epoch=0, base_sequence=0, batch_size=1 << 20
        )
        for n in range(100):
            builder.append(n, timestamp=n, key=None, value=random.Random(first + n).randbytes(1000), headers=[])
        return first.to_bytes(8, "big") + bytes(builder.build())[8:]

    for compression, chunks in ((0, [1000, 200]), (1, [100] * 12)):
        tp, result = result_of(b"".join(batch(compression, 100 * n) for n in range(12)), [], Assigned(0))
        seam.packed(SimpleNamespace(_records={tp: result}))
        assert [len(list(part)) for part in result.getall().cut(4096)] == chunks
    monkeypatch.setattr(seam, "HEAVIEST_CHUNK", 250_000)
    tp, result = result_of(b"".join(batch(0, 100 * n) for n in range(3)), [], Assigned(0))
    seam.packed(SimpleNamespace(_records={tp: result}))
    assert [len(list(part)) for part in result.getall().cut(150)] == [150, 150], "a chunk begins with no weight, by whatever the last one ended"


def batches_of(raw: bytes) -> list[bytes]:
    """The batches that a broker's answer is made of."""
    found = []
    while raw:
        end = 12 + int.from_bytes(raw[8:12], "big")
        found.append(raw[:end])
        raw = raw[end:]
    return found


@pytest.mark.parametrize("by", ["google-crc32c", "aiokafka"])
@pytest.mark.parametrize("seed", range(40))
def test_a_changed_byte_is_noticed_and_what_lies_before_its_batch_is_taken(seed: int, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "COMPILED", by == "google-crc32c")
    if by == "aiokafka":
        monkeypatch.setattr(google_crc32c, "value", None)
    rng = random.Random(seed)
    raw, aborted, position = fetched_bytes(rng)
    expected = plainly(result_of(raw, aborted, Assigned(position))[1].getall())
    batches = batches_of(raw)
    hit = rng.randrange(len(batches))
    at = rng.randrange(17, len(batches[hit]))  # the checksum itself, or behind it
    broken = bytearray(batches[hit])
    broken[at] ^= 1 << rng.randrange(8)
    tp, result = result_of(b"".join([*batches[:hit], broken, *batches[hit + 1 :]]), aborted, Assigned(position))
    seam.packed(SimpleNamespace(_records={tp: result}))
    found = []
    with pytest.raises(CorruptRecordException, match="Invalid CRC"):
        while result.has_more():
            found += plainly(result.getall(1))
    assert found == [record for record in expected if record[0] < int.from_bytes(batches[hit][:8], "big")]


@pytest.mark.parametrize("compression", [0, 1])
@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_kafkas_first_formats_are_taken_and_summed_as_aiokafka_does(magic: int, compression: int) -> None:
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=compression, batch_size=1 << 20)
    for n in range(5):
        builder.append(n, timestamp=10 + n, key=b"k%d" % n, value=b"v%d" % n)
    raw = bytes(builder.build())
    if compression:
        raw = (4).to_bytes(8, "big") + raw[8:]  # a broker gives what wraps the others the offset of the last

    def found(raw: bytes, packed: bool) -> list[tuple[int, int, bytes, bytes]]:
        tp, result = result_of(raw, [], Assigned(0))
        if packed:
            seam.packed(SimpleNamespace(_records={tp: result}))
        return plainly(result.getall())

    assert found(raw, True) == found(raw, False) and len(found(raw, True)) == 5
    broken = raw[:-1] + bytes([raw[-1] ^ 1])
    for packed in (True, False):
        with pytest.raises(CorruptRecordException):
            found(broken, packed)


def test_a_checksum_is_made_of_all_behind_it_and_a_batch_that_was_begun_holds_no_fetched_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seam.COMPILED
    summed: list[int] = []
    monkeypatch.setattr(google_crc32c, "value", lambda raw: summed.append(len(raw)) or crc32c(raw))  # type: ignore[func-returns-value]
    raw, aborted, position = fetched_bytes(random.Random(1))
    tp, result = result_of(raw, aborted, Assigned(position))
    seam.packed(SimpleNamespace(_records={tp: result}))
    taken = result.getall()
    batches = len(summed)
    assert batches > 1 and sum(summed) == len(raw) - batches * 21
    assert all(not batch._summed for batch, _, _ in taken._parts)


def test_what_a_client_passes_over_that_is_out_of_range_is_not_taken_for_fetched() -> None:
    tp = aiokafka.TopicPartition("t", 0)
    assigned = Assigned(100)
    assigned.has_valid_position = True  # type: ignore[attr-defined]
    raw, _, _ = fetched_bytes(random.Random(1))

    class Fetcher:
        def __init__(self) -> None:
            self._closed = False
            self._records: dict[object, object] = {}
            self._subscriptions = SimpleNamespace(fetch_context=nullcontext)
            self.n = 0

        async def fetched_records(self, wanted: list[object], timeout: float, max_records: int | None) -> dict[object, Any]:
            self.n += 1
            assigned.position = 0 if self.n == 1 else assigned.position  # out of range: it goes to the log's start, which may be anywhere
            if self.n == 2:
                return {}
            self._records[tp] = result = result_of(raw, [], assigned)[1]
            return {tp: result.getall(1)}

    consumer = SimpleNamespace(_closed=False, _fetcher=Fetcher(), _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assigned)))
    consumers = SimpleNamespace(consumer=SimpleNamespace(flow_active=True), app=SimpleNamespace(engine=SimpleNamespace(fetch_wait_ms=200)))

    def fetch() -> dict[TP, seam.Packed]:
        return asyncio.run(seam.Inline._fetch_records(consumers, consumer, {TP("t", 0)}))

    (taken,) = fetch().values()
    assert (taken.start, taken.end, len(list(taken))) == (0, assigned.position, 1) and taken.start < 100, "not from where the client had been"
    assigned.position = 700
    assert fetch() == {}, "and nothing was taken from there"


def test_a_fetch_that_fails_or_is_given_up_is_not_counted_as_one_that_goes_on() -> None:
    async def fetch(problem: BaseException) -> int:
        subscriptions = SubscriptionState()

        async def fetched_records(wanted: list[object], timeout: float, max_records: int | None) -> dict[object, Any]:
            assert subscriptions._fetch_count == 1
            raise problem

        fetcher = SimpleNamespace(_closed=False, _records={}, _subscriptions=subscriptions, fetched_records=fetched_records)
        consumers = SimpleNamespace(consumer=SimpleNamespace(flow_active=True), app=SimpleNamespace(engine=SimpleNamespace(fetch_wait_ms=200)))
        with pytest.raises(type(problem)):
            await seam.Inline._fetch_records(consumers, SimpleNamespace(_closed=False, _fetcher=fetcher), {TP("t", 0)})
        return int(subscriptions._fetch_count)

    for problem in (KafkaConnectionError("gone"), asyncio.CancelledError()):
        assert asyncio.run(fetch(problem)) == 0


def test_what_nobody_may_read_now_is_not_fetched_and_what_may_be_read_again_is() -> None:
    tps = {TP("t", n) for n in range(3)}
    paused: set[aiokafka.TopicPartition] = set()
    client = SimpleNamespace(paused=lambda: paused, pause=lambda *tps: paused.update(tps), resume=lambda *tps: paused.difference_update(tps))
    consumer: Any = SimpleNamespace(assignment=lambda: tps, _thread=SimpleNamespace(_ensure_consumer=lambda: client))
    for active in ([0], [0, 1, 2], [], [1, 2]):
        seam.Consumer._read_only(consumer, {TP("t", n) for n in active})
        assert {tp.partition for tp in paused} == {0, 1, 2} - set(active)
    seam.Consumer._read_only(consumer, {TP("t", 0), TP("gone", 0)})
    assert {tp.partition for tp in paused} == {1, 2}


def test_a_consumer_that_is_stopped_while_it_starts_leaves_nothing_that_goes_on() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def begin_and_stop() -> set[str]:
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            app = build(load_settings({"bootstrap": f"127.0.0.1:{port}"}, None))
            inline = app.consumer._thread
            before = asyncio.all_tasks()
            starting = asyncio.create_task(inline.start())
            await asyncio.sleep(0.3)
            assert not starting.done()
            await inline.stop()
            await inline.stop()
            await asyncio.wait([starting])
            assert starting.cancelled()
            return {str(task.get_coro()) for task in asyncio.all_tasks() - before if "silent" not in str(task.get_coro())}

    assert asyncio.run(asyncio.wait_for(begin_and_stop(), 30)) == set()


def test_a_consumer_that_is_stopped_while_it_connects_leaves_no_connection_open() -> None:
    told: list[str] = []

    async def begin_and_stop(bootstrap: str, turns: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        inline = build(load_settings({"bootstrap": bootstrap}, None)).consumer._thread
        starting = asyncio.create_task(inline.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        under_way = not starting.done()
        await inline.stop()
        await asyncio.wait([starting])
        assert starting.exception() is None
        gc.collect()
        return under_way

    with EmbeddedBroker(partitions=1) as broker:
        assert any([asyncio.run(asyncio.wait_for(begin_and_stop(broker.bootstrap, turns), 30)) for turns in range(2, 12)])
    assert told == []


@pytest.mark.parametrize(
    ("asked", "crashed", "code", "told"), [(True, None, 0, "everything has stopped"), (False, None, 1, "could not be stopped"), (True, "x", 1, "")]
)
def test_a_loop_that_cannot_be_closed_is_told_and_fails_only_who_had_not_stopped(
    asked: bool, crashed: str | None, code: int, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    app = faust.App("stops", broker="kafka://127.0.0.1:1", loop=loop)
    worker = seam.Worker(app, loop=loop, quiet=True, redirect_stdouts=False)

    async def start() -> None:
        return None

    def close() -> None:
        raise RuntimeError("Event loop stopped before Future completed.")

    async def stop() -> None:
        return None

    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(worker, "stop", stop)
    monkeypatch.setattr(worker, "_shutdown_loop", close)
    if asked:
        worker._signal_stop_future = loop.create_future()
        worker._signal_stop_future.set_result(None)
        worker._stopped.set()
    monkeypatch.setattr(worker, "_crash_reason" if hasattr(worker, "_crash_reason") else "crash_reason", crashed, raising=False)
    with pytest.raises(SystemExit) as left:
        worker.execute_from_commandline()
    loop.close()
    assert int(left.value.code or 0) == code
    assert told in caplog.text


def test_a_chunk_is_as_long_as_its_time_allows() -> None:
    pace = seam.Pace()
    assert pace.most("costs") == seam.SLICE, "nothing is known yet"
    for record_s, most in ((2e-6, seam.MOST_A_CHUNK), (20e-6, 2500), (200e-6, seam.LEAST_A_CHUNK), (0.01, seam.LEAST_A_CHUNK), (0.0, seam.MOST_A_CHUNK)):
        pace.took("costs", 2000, 2000 * record_s)
        assert pace.most("costs") == pytest.approx(most, abs=1)
    pace.took("costs", 2000, 2000 * 20e-6)
    pace.took("costs", 1, 0.01)  # a single record tells little
    assert 1000 < pace.most("costs") < 2500
    pace.took("costs", 0, 1.0)
    assert pace.most("costs") > 1000 and pace.most("judgments") == seam.SLICE
