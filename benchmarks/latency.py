"""How long from an event to what people see, on a real broker, with two workers and steady load.

Run: ``python -m benchmarks.latency [--bootstrap HOST:PORT] [--rate 200] [--seconds 20]``. Trust observations of 100 keys are published at the
rate; every 20th is followed with a stopwatch: the producer's acknowledgement, and the answer of ``/trust/{kind}/{id}`` on the worker that
owns its partition and on the other one, asked again and again until the observation is counted. The last figure includes the asking.
Whether a worker has absorbed the record ("fold") is read from the owner's answer minus what an answer takes by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from confluent_kafka import Producer

from streams.derive import event_bytes
from streams.keys import encode_key, partition_for
from tests.kafka.broker import real_broker
from tests.workers import WorkerProcess, fresh

PARTITIONS = 8
KEYS = 100


async def count(session: aiohttp.ClientSession, port: int, name: str) -> int:
    """Observations of a key that a worker knows."""
    async with session.get(f"http://127.0.0.1:{port}/api/v1/trust/model/{name}") as response:
        found: dict[str, Any] = msgspec.json.decode(await response.read())
        return int(found.get("observations", 0)) if response.status == 200 else 0


async def until(session: aiohttp.ClientSession, port: int, name: str, wanted: int, begun: float) -> float:
    """Milliseconds from `begun` until a worker counts so many observations."""
    while await count(session, port, name) < wanted:
        if time.perf_counter() - begun > 10:
            raise TimeoutError(f"{name} is not seen on port {port}")
        await asyncio.sleep(0.0005)
    return (time.perf_counter() - begun) * 1000


async def measure(
    producer: Producer, prefix: str, ports: tuple[int, int], owned: set[int], rate: float, seconds: float, sent: list[int]
) -> dict[str, list[float]]:
    """Publish at the rate and follow every 20th event.

    Args:
        owned: partitions of the first port's worker.
        sent: observations so far, by key; counted on.
    """
    found: dict[str, list[float]] = {"ack": [], "answer": [], "owner": [], "other": []}
    following: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:

        async def follow(key: int, wanted: int, begun: float) -> None:
            name = f"m{key}"
            first = partition_for(encode_key("default", "model", name), PARTITIONS) in owned
            mine, other = ports if first else ports[::-1]
            a, b = await asyncio.gather(until(session, mine, name, wanted, begun), until(session, other, name, wanted, begun))
            found["owner"].append(a)
            found["other"].append(b)
            asked = time.perf_counter()
            await count(session, mine, name)
            found["answer"].append((time.perf_counter() - asked) * 1000)

        begun_all = time.perf_counter()
        n = 0
        while time.perf_counter() - begun_all < seconds:
            key = n % KEYS
            sent[key] += 1
            data = {"kind": "model", "id": f"m{key}", "success": n % 3 > 0}
            value = event_bytes(type="trust.observed.v1", id=f"{key}-{sent[key]}", source="bench", time_us=time.time_ns() // 1000, tenant="default", data=data)
            begun = time.perf_counter()

            def acked(error: Any, message: Any, begun: float = begun) -> None:
                if error is None:
                    took = (time.perf_counter() - begun) * 1000
                    loop.call_soon_threadsafe(found["ack"].append, took)

            producer.produce(prefix + "judgments", value, encode_key("default", "model", f"m{key}"), on_delivery=acked)
            producer.poll(0)
            if n % 20 == 7:
                task = asyncio.create_task(follow(key, sent[key], begun))
                following.add(task)
                task.add_done_callback(following.discard)
            n += 1
            while (left := begun_all + n / rate - time.perf_counter()) > 0:
                producer.poll(0)
                await asyncio.sleep(min(left, 0.001))
        await asyncio.gather(*following)
        producer.flush(10)
        await asyncio.sleep(0)
    return found


def main() -> None:
    """Measure and print p50, p95, p99 in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    words = parser.parse_args()
    with real_broker(words.bootstrap) as bootstrap, tempfile.TemporaryDirectory() as folder:
        settings = fresh(bootstrap, PARTITIONS)
        workers = [WorkerProcess(**settings, folder=Path(folder)).start() for _ in range(2)]
        try:
            first, second = workers
            time.sleep(5)  # the group may settle in two steps
            for worker in workers:  # each has its half
                worker.until(lambda worker=worker: sum(p["ready"] for p in worker.get("/status")["partitions"]) == 2 * PARTITIONS, 60)
            owned = {p["partition"] for p in first.get("/status")["partitions"] if p["topic"].endswith("judgments") and p["owner"]}
            producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 0, "acks": "all", "enable.idempotence": True})
            ports, sent = (first.port, second.port), [0] * KEYS
            asyncio.run(measure(producer, settings["topic_prefix"], ports, owned, words.rate, 3, sent))  # warm
            found = asyncio.run(measure(producer, settings["topic_prefix"], ports, owned, words.rate, words.seconds, sent))
            print(f"{'milliseconds':34} {'p50':>7} {'p95':>7} {'p99':>7} {'n':>6}")
            for name, label in (
                ("ack", "producer acknowledgement"),
                ("owner", "event to view, owner"),
                ("other", "event to view, other worker"),
                ("answer", "one answer by itself"),
            ):
                values = sorted(found[name])
                cut = statistics.quantiles(values, n=100)
                print(f"{label:34} {cut[49]:7.2f} {cut[94]:7.2f} {cut[98]:7.2f} {len(values):6}")
        finally:
            for worker in workers:
                worker.stop()


if __name__ == "__main__":
    main()
