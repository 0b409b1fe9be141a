"""Our contact with Faust's inside: fails loudly when a new version moves what `agents.seam` overrides."""

from __future__ import annotations

import asyncio
import inspect

import aiokafka
import faust
import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecord
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.transport import consumer as base
from faust.transport import drivers
from faust.transport.drivers import aiokafka as stock

from agents import seam


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (seam.Thread, stock.AIOKafkaConsumerThread, ["_create_worker_consumer", "_fetch_records"]),
        (seam.Consumer, stock.Consumer, ["_new_consumer_thread", "getmany", "_add_gap", "ack", "_filter_committable_offsets", "_commit", "verify_event_path"]),
        (seam.Tables, TableManager, ["add", "_update_channels"]),
        (seam.Boot, BootStrategy, ["kafka_consumer"]),
        (seam.App, faust.App, ["on_webserver_init"]),
    ],
)
def test_what_is_overridden_is_there_and_takes_the_same_parameters(ours: type, theirs: type, names: list[str]) -> None:
    for name in names:
        original = getattr(theirs, name, None) or getattr(dict, name, None)
        assert name in vars(ours), f"{ours.__name__}.{name} is no override any more"
        assert original is not None, f"Faust has no {theirs.__name__}.{name} any more"
        if not inspect.isabstract(theirs) and inspect.isfunction(original):
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(inspect.signature(original).parameters), name


def test_the_private_parts_we_lean_on_are_there() -> None:
    assert {"seek_wait", "assignment", "commit", "_ensure_consumer"} <= set(dir(stock.AIOKafkaConsumerThread))
    assert {"_getmany", "_get_active_partitions"} <= set(dir(base.Consumer))
    assert {"has_valid_position", "position"} <= set(dir(TopicPartitionState))
    assert "aliases" in dir(drivers.TRANSPORTS)
    assert {"beginning_offsets", "end_offsets", "position", "getmany"} <= set(dir(aiokafka.AIOKafkaConsumer))
    assert list(inspect.signature(fetcher.PartitionRecords._consumer_record).parameters) == ["self", "tp", "record"]
    assert {"offset", "timestamp", "key", "value", "headers"} <= set(dir(DefaultRecord))
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
