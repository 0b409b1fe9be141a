"""How many events a second one worker folds with all guarantees on, beside plain aiokafka on the same bytes.

Run: ``make bench`` or ``python -m benchmarks.throughput [--bootstrap HOST:PORT] [--events 1000000] [--repeat 3]``.
Each figure is the median of at least three runs in processes of their own, one after the other, on one broker.

  fetch      aiokafka getmany, nothing else
  fold       fetch + msgspec decode + a dictionary of [alpha, beta]
  worker     the product: decode, validate, dedupe, fold with history and alert rule, changelog acknowledged, commits
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from confluent_kafka import Producer

PARTITIONS = 8
T0 = 1_795_000_000


def trust(n: int, keys: int) -> list[tuple[str, bytes, bytes]]:
    """trust.observed over a number of keys."""
    rng = random.Random(1)
    out = []
    for i in range(n):
        name = f"v{rng.randrange(keys)}"
        value = (
            b'{"specversion":"1.0","id":"%b","source":"bench","type":"trust.observed.v1","time":"2026-11-01T00:%02d:%02d.%06dZ",'
            b'"data":{"kind":"variable","id":"%b","success":%b}}'
            % (
                uuid.UUID(int=rng.getrandbits(128)).hex[:20].encode(),
                i // 60 % 60,
                i % 60,
                i % 1_000_000,
                name.encode(),
                b"true" if rng.random() < 0.7 else b"false",
            )
        )
        out.append(("judgments", f"default|variable|{name}".encode(), value))
    return out


def one_each(n: int) -> list[tuple[str, bytes, bytes]]:
    """trust.observed, each of a key of its own."""
    start = b'{"specversion":"1.0","id":"%d","source":"bench","type":"trust.observed.v1","time":"2026-11-01T00:00:00Z","data":{"kind":"model",'
    return [("judgments", b"default|model|k%d" % i, start % i + b'"id":"k%d","success":true}}' % i) for i in range(n)]


def forecasts(n: int) -> list[tuple[str, bytes, bytes]]:
    """forecast.issued with five inputs, 200 models, 1,000 variables."""
    rng = random.Random(2)
    out = []
    for i in range(n):
        model = f"m{rng.randrange(200)}"
        body = {
            "specversion": "1.0",
            "id": f"f{i}",
            "source": "bench",
            "type": "forecast.issued.v1",
            "time": f"2026-11-01T00:{i // 60 % 60:02d}:{i % 60:02d}Z",
            "data": {
                "forecast_id": f"f{i}",
                "model": model,
                "confidence": round(rng.random(), 4),
                "fragility": round(rng.random(), 4),
                "certified": rng.random() < 0.8,
                "inputs": {f"x{rng.randrange(1000)}": round(rng.gauss(0, 1), 4) for _ in range(5)},
            },
        }
        out.append(("forecasts", f"default|{model}".encode(), json.dumps(body, separators=(",", ":")).encode()))
    return out


def metrics(n: int) -> list[tuple[str, bytes, bytes]]:
    """metric.recorded with windows, 100 runs."""
    rng = random.Random(3)
    out = []
    for i in range(n):
        run = f"r{rng.randrange(100)}"
        body = {
            "specversion": "1.0",
            "id": f"e{i}",
            "source": "bench",
            "type": "metric.recorded.v1",
            "time": f"2026-11-01T{i // 36000 % 24:02d}:{i // 600 % 60:02d}:{i // 10 % 60:02d}Z",
            "data": {"metric_type": "loss", "model": "m", "run": run, "value": round(rng.random(), 5), "step": i},
        }
        out.append(("training", f"default|{run}".encode(), json.dumps(body, separators=(",", ":")).encode()))
    return out


WORKLOADS: dict[str, Callable[[int], list[tuple[str, bytes, bytes]]]] = {
    "trust.observed, 1,000 keys": lambda n: trust(n, 1000),
    "trust.observed, 100,000 keys": lambda n: trust(n, 100_000),
    "forecast.issued, 5 inputs": lambda n: forecasts(n // 2),
    "metric.recorded, windows": lambda n: metrics(n // 2),
}


def fill(bootstrap: str, prefix: str, records: list[tuple[str, bytes, bytes]]) -> None:
    """Produce the records."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
            "compression.type": "none",
            "enable.idempotence": True,
        }
    )
    for topic, key, value in records:
        produce(producer, prefix + topic, key, value)
    producer.flush(60)


def produce(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    """Hand over a record, when there is room for it."""
    while True:
        try:
            producer.produce(topic, value, key)
            return
        except BufferError:
            producer.poll(0.1)


class Data(msgspec.Struct):
    kind: str
    id: str
    success: bool
    weight: float = 1.0


class Envelope(msgspec.Struct):
    id: str
    data: Data
    tenant: str = "default"


async def plain(bootstrap: str, topic: str, total: int, fold: bool) -> dict[str, float]:
    """aiokafka alone, or with decode and a dictionary."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    decode = msgspec.json.Decoder(Envelope if "judgments" in topic else dict[str, Any]).decode
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, max_partition_fetch_bytes=1 << 20)
    await consumer.start()
    consumer.assign([TopicPartition(topic, n) for n in range(PARTITIONS)])
    await consumer.seek_to_beginning()
    state: dict[tuple[str, str, str], list[float]] = {}
    n, begun = 0, 0.0
    while n < total:
        for records in (await consumer.getmany(timeout_ms=200, max_records=4000)).values():
            begun = begun or time.perf_counter()
            n += len(records)
            if fold:
                for record in records:
                    event = decode(record.value)
                    if event.__class__ is Envelope:
                        data = event.data
                        row = state.get((event.tenant, data.kind, data.id))
                        if row is None:
                            row = state[(event.tenant, data.kind, data.id)] = [1.0, 1.0]
                        row[0 if data.success else 1] += data.weight
    took = time.perf_counter() - begun
    await consumer.stop()
    return {"per_s": total / took, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def worker(bootstrap: str, prefix: str, total: int, port: int, folder: str) -> dict[str, float]:
    """The product as a user runs it; timed by its own counters from the first record to the last acknowledged row.

    Args:
        folder: for what it keeps on disk.
    """
    words = [
        sys.executable,
        "-m",
        "agents.main",
        "worker",
        "--bootstrap",
        bootstrap,
        "--topic-prefix",
        prefix,
        "--app-id",
        f"bench-{uuid.uuid4().hex[:8]}",
        "--web-port",
        str(port),
        "--log-level",
        "warning",
        "--roles",
        "fold,serve",
        "--partitions",
        str(PARTITIONS),
        "--data-dir",
        folder,
    ]
    app_id = words[words.index("--app-id") + 1]
    subprocess.run([sys.executable, "-m", "benchmarks.topics", bootstrap, prefix, app_id, str(PARTITIONS)], check=True)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "PULSEFOLD_OUTPUTS": "on"})
    begun, first, pause = 0.0, 0, 0.1
    try:
        while True:
            time.sleep(pause)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    text = response.read().decode()
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("the worker stopped") from None
                continue
            records = value_of(text, "pulsefold_engine_records_total")
            if records and not begun:
                begun, first = time.perf_counter(), int(records)
            elif records > first:  # asked seldom until the end is near: an answer costs the worker some milliseconds
                pause = min(1.0, max(0.05, (total - records) / (records - first) * (time.perf_counter() - begun) * 0.7))
            if records >= total and value_of(text, "pulsefold_undurable_records") == 0:
                took = time.perf_counter() - begun
                break
        with open(f"/proc/{process.pid}/status") as status:
            rss = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
        return {"per_s": (total - first) / took, "rss_mb": rss}
    finally:
        process.terminate()
        process.wait(30)


def value_of(text: str, name: str) -> float:
    """A sample of the Prometheus text, 0 if absent."""
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " ")), 0.0)


def main() -> None:
    """Measure and print a table; ratios are to fetch + decode + fold of the same run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only")
    parser.add_argument("--role", choices=["fetch", "fold"])
    parser.add_argument("--topic")
    words = parser.parse_args()
    if words.role:
        print(json.dumps(asyncio.run(plain(words.bootstrap, words.topic, words.events, words.role == "fold"))))
        return
    from tests.kafka.broker import real_broker

    with real_broker(words.bootstrap) as bootstrap:
        print(f"{'workload':32} {'fetch/s':>9} {'+fold/s':>9} {'worker/s':>9} {'ratio':>6} {'worker MB':>9}")
        for index, (name, make) in enumerate(WORKLOADS.items()):
            if words.only and words.only not in name:
                continue
            prefix = f"bench{uuid.uuid4().hex[:8]}."
            subprocess.run([sys.executable, "-m", "benchmarks.topics", bootstrap, prefix, "unused", str(PARTITIONS)], check=True)
            records = make(words.events)
            topic = prefix + records[0][0]
            fill(bootstrap, prefix, records)
            found: dict[str, list[dict[str, float]]] = {"fetch": [], "fold": [], "worker": []}
            for turn in range(words.repeat):
                for role in ("fetch", "fold"):
                    out = subprocess.run(
                        [
                            sys.executable,
                            "-m",
                            "benchmarks.throughput",
                            "--role",
                            role,
                            "--bootstrap",
                            bootstrap,
                            "--topic",
                            topic,
                            "--events",
                            str(len(records)),
                        ],
                        check=True,
                        capture_output=True,
                    )
                    found[role].append(json.loads(out.stdout))
                with tempfile.TemporaryDirectory() as folder:
                    found["worker"].append(worker(bootstrap, prefix, len(records), 7100 + index * 10 + turn, folder))
            median = {role: statistics.median(one["per_s"] for one in ones) for role, ones in found.items()}
            rss = max(one["rss_mb"] for one in found["worker"])
            print(
                f"{name:32} {median['fetch']:9.0f} {median['fold']:9.0f} {median['worker']:9.0f} {median['worker'] / median['fold']:6.2f} {rss:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
