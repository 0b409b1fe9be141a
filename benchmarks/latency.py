"""How long from an event to what people see, on a real broker, with two workers and steady load.

Run: ``python -m benchmarks.latency [--bootstrap HOST:PORT] [--rate 200] [--seconds 60]``. Trust observations of 100 keys are published at the
rate. For every fourth, ``/trust/{kind}/{id}`` is asked once of the worker that owns its partition and once of the other one, at a random
moment up to a tenth of a second later. *p95* is the moment from which on 95 % of the answers held the event. Asking again and again until
an event is there would keep the workers busy with answers, and measure that.

Before anything is measured, four times the rate goes through everything for half a minute: a broker that was just started compiles its own
code meanwhile, on the cores that the workers need. Last, without workers, the same rate is read by a plain consumer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer

from streams.derive import event_bytes
from streams.keys import encode_key, partition_for
from tests.kafka.broker import real_broker
from tests.workers import WorkerProcess, fresh

PARTITIONS = 8
KEYS = 100
SOONEST, LATEST = 0.001, 0.1
"""Seconds after the event between which is asked, evenly on a logarithmic scale."""
WARM_RATE, WARM_S = 4, 30.0
"""How many times the rate, and for how many seconds, before anything is measured."""


async def count(session: aiohttp.ClientSession, port: int, name: str) -> int:
    """Observations of a key that a worker knows."""
    async with session.get(f"http://127.0.0.1:{port}/api/v1/trust/model/{name}") as response:
        found: dict[str, Any] = msgspec.json.decode(await response.read())
        return int(found.get("observations", 0)) if response.status == 200 else 0


def quantile(asked: list[tuple[float, bool]], share: float) -> float:
    """The earliest moment from which on this share of the answers holds the event.

    The share seen is taken to grow with the time that went by (isotonic regression: neighbours that contradict are averaged).

    Args:
        asked: milliseconds from the event to the answer, and whether the event was in it; in any order.

    Returns:
        Milliseconds; infinity where no such moment was asked.

    Example:
        >>> quantile([(1.0, False), (2.0, True), (3.0, False), (4.0, True)], 0.5), quantile([(1.0, False)], 0.5)
        (2.0, inf)
    """
    blocks: list[tuple[float, int, float]] = []  # seen, asked, first moment
    for moment, there in sorted(asked):
        seen, n, first = float(there), 1, moment
        while blocks and blocks[-1][0] / blocks[-1][1] >= seen / n:
            before = blocks.pop()
            seen, n, first = seen + before[0], n + before[1], before[2]
        blocks.append((seen, n, first))
    return next((first for seen, n, first in blocks if seen / n >= share), float("inf"))


async def plain(bootstrap: str, topic: str, seconds: float) -> list[float]:
    """Milliseconds from event to consumer, of all records that come in that time."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, fetch_max_wait_ms=100)
    await consumer.start()
    found = []
    try:
        consumer.assign([TopicPartition(topic, n) for n in range(PARTITIONS)])
        await consumer.seek_to_end()
        print("ready", flush=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                now = time.time() * 1000
                found += [now - datetime.fromisoformat(msgspec.json.decode(record.value)["time"]).timestamp() * 1000 for record in records]
    finally:
        await consumer.stop()
    return found


async def measure(
    producer: Producer, prefix: str, ports: tuple[int, int] | None, owned: set[int], rate: float, seconds: float, sent: list[int]
) -> tuple[dict[str, list[float]], dict[str, list[tuple[float, bool]]]]:
    """Publish at the rate; ask each worker once for every fourth event, at a random moment after it.

    Args:
        ports: of the workers; None: nobody is asked.
        owned: partitions of the first port's worker.
        sent: observations so far, by key; counted on.

    Returns:
        Milliseconds of acknowledgements and of answers by themselves; and, by worker, when an answer came and whether it held the event.
    """
    took: dict[str, list[float]] = {"ack": [], "answer": []}
    seen: dict[str, list[tuple[float, bool]]] = {"owner": [], "other": []}
    following: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    draw = random.Random(7)
    async with aiohttp.ClientSession() as session:

        async def ask(port: int, who: str, name: str, wanted: int, begun: float, after: float) -> None:
            await asyncio.sleep(begun + after - time.perf_counter())
            asked = time.perf_counter()
            there = await count(session, port, name) >= wanted
            answered = time.perf_counter()
            seen[who].append(((answered - begun) * 1000, there))
            took["answer"].append((answered - asked) * 1000)

        begun_all = time.perf_counter()
        n = 0
        while time.perf_counter() - begun_all < seconds:
            key = n % KEYS
            sent[key] += 1
            name = f"m{key}"
            data = {"kind": "model", "id": name, "success": n % 3 > 0}
            value = event_bytes(type="trust.observed.v1", id=f"{key}-{sent[key]}", source="bench", time_us=time.time_ns() // 1000, tenant="default", data=data)
            begun = time.perf_counter()

            def acked(error: Any, message: Any, begun: float = begun) -> None:
                if error is None:
                    ms = (time.perf_counter() - begun) * 1000
                    loop.call_soon_threadsafe(took["ack"].append, ms)

            producer.produce(prefix + "judgments", value, encode_key("default", "model", name), on_delivery=acked)
            producer.poll(0)
            if ports is not None and n % 4 == 3:
                mine, other = ports if partition_for(encode_key("default", "model", name), PARTITIONS) in owned else ports[::-1]
                for port, who in ((mine, "owner"), (other, "other")):
                    task = asyncio.create_task(ask(port, who, name, sent[key], begun, math.exp(draw.uniform(math.log(SOONEST), math.log(LATEST)))))
                    following.add(task)
                    task.add_done_callback(following.discard)
            n += 1
            while (left := begun_all + n / rate - time.perf_counter()) > 0:
                producer.poll(0)
                await asyncio.sleep(min(left, 0.001))
        await asyncio.gather(*following)
        producer.flush(10)
        await asyncio.sleep(0)
    return took, seen


def show(label: str, values: list[float]) -> None:
    """A line of the table."""
    cut = statistics.quantiles(values, n=100)
    print(f"{label:34} {cut[49]:7.2f} {cut[94]:7.2f} {cut[98]:7.2f} {len(values):6}", flush=True)


def main() -> None:
    """Measure and print p50, p95, p99 in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--plain", metavar="TOPIC", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.plain:
        print(json.dumps(asyncio.run(plain(words.bootstrap, words.plain, words.seconds))))
        return
    with real_broker(words.bootstrap) as bootstrap, tempfile.TemporaryDirectory() as folder:
        settings = fresh(bootstrap, PARTITIONS)
        producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 0, "acks": "all", "enable.idempotence": True})
        sent = [0] * KEYS
        print(f"{'milliseconds':34} {'p50':>7} {'p95':>7} {'p99':>7} {'n':>6}")
        workers = [WorkerProcess(**settings, folder=Path(folder)).start() for _ in range(2)]
        try:
            first, second = workers
            time.sleep(5)  # the group may settle in two steps
            for worker in workers:  # each has its half
                worker.until(lambda worker=worker: sum(p["ready"] for p in worker.get("/status")["partitions"]) == 2 * PARTITIONS, 60)
            owned = {p["partition"] for p in first.get("/status")["partitions"] if p["topic"].endswith("judgments") and p["owner"]}
            ports = (first.port, second.port)
            asyncio.run(measure(producer, settings["topic_prefix"], ports, owned, WARM_RATE * words.rate, WARM_S, sent))
            took, seen = asyncio.run(measure(producer, settings["topic_prefix"], ports, owned, words.rate, words.seconds, sent))
            show("producer acknowledgement", took["ack"])
            show("one answer by itself", took["answer"])
            for name, label in (("owner", "event to view, owner"), ("other", "event to view, other worker")):
                half, most, nearly = (quantile(seen[name], share) for share in (0.5, 0.95, 0.99))
                print(f"{label:34} {half:7.2f} {most:7.2f} {nearly:7.2f} {len(seen[name]):6}")
        finally:
            for worker in workers:
                worker.stop()
        topic = settings["topic_prefix"] + "judgments"
        command = [sys.executable, "-m", "benchmarks.latency", "--bootstrap", bootstrap, "--plain", topic, "--seconds", str(words.seconds / 3)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reference:
            assert reference.stdout is not None
            reference.stdout.readline()
            asyncio.run(measure(producer, settings["topic_prefix"], None, set(), words.rate, words.seconds / 3, sent))
            show("event to a plain consumer", json.loads(reference.stdout.readline()))


if __name__ == "__main__":
    main()
