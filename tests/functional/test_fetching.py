"""How a worker fetches: what aiokafka does with what the seam takes from it, on a broker."""

from __future__ import annotations

import asyncio

import aiokafka
from confluent_kafka import Producer
from faust.types import TP

from agents import seam
from streams.broker import EmbeddedBroker

TOPIC = "pulsefold.judgments"


def test_more_is_asked_for_before_what_was_fetched_is_folded(embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    for n in range(100):
        producer.produce(TOPIC, b"%d" % n, partition=0)
    assert producer.flush(20) == 0

    async def fetched() -> tuple[int, list[bool]]:
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=embedded.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
        await consumer.start()
        try:
            place = aiokafka.TopicPartition(TOPIC, 0)
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            fetcher = consumer._fetcher
            seam.packed(fetcher)
            seam.wait_at_most(fetcher, 5000)  # the next answer is long in coming
            taken: dict[TP, seam.Packed] = {}
            while not taken:
                taken = await fetcher.fetched_records([place], 10.0, max_records=8192)
            under_way = []
            for _ in range(seam.TURNS):
                under_way.append(any(connection._requests for connection in consumer._client._conns.values()))
                await asyncio.sleep(0)
            under_way.append(any(connection._requests for connection in consumer._client._conns.values()))
            return sum(map(len, taken.values())), under_way
        finally:
            await consumer.stop()

    n, under_way = asyncio.run(asyncio.wait_for(fetched(), 40))
    assert n == 100 and not under_way[0] and under_way[-1]
