"""How fast a worker restores its tables, beside a plain read of the same changelog bytes.

Run: ``python -m benchmarks.restore [--bootstrap HOST:PORT] [--rows 1000000]``. One worker folds an observation of each of so many keys; then it is
started again over the same changelog, three times, and says how long its tables took.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.topics import changelog_name
from tests.kafka.broker import real_broker
from tests.workers import WorkerProcess, fresh

from .throughput import PARTITIONS, fill, one_each


async def plain(bootstrap: str, topic: str) -> tuple[int, float]:
    """(records, seconds) of reading a topic with aiokafka."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    tps = [TopicPartition(topic, n) for n in range(PARTITIONS)]
    consumer.assign(tps)
    total = sum((await consumer.end_offsets(tps)).values())
    await consumer.seek_to_beginning()
    n, begun = 0, time.perf_counter()
    while n < total:
        n += sum(map(len, (await consumer.getmany(timeout_ms=200, max_records=5000)).values()))
    took = time.perf_counter() - begun
    await consumer.stop()
    return n, took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--rows", type=int, default=1_000_000)
    words = parser.parse_args()
    with real_broker(words.bootstrap) as bootstrap, tempfile.TemporaryDirectory() as folder:
        settings = fresh(bootstrap, PARTITIONS)
        fill(bootstrap, settings["topic_prefix"], one_each(words.rows))
        worker = WorkerProcess(**settings, folder=Path(folder)).start()
        worker.until(lambda: worker.absorbed(words.rows), 550)
        worker.stop()
        n, took = asyncio.run(plain(bootstrap, changelog_name(settings["topic_prefix"], settings["app_id"], "judgments")))
        print(f"{'plain aiokafka':28} {n:9} records {took:6.2f} s {n / took:9.0f} records/s", flush=True)
        rates = []
        for _ in range(3):
            begun = time.perf_counter()
            worker.start()
            up = time.perf_counter() - begun
            status = worker.get("/status")
            keys = sum(table["keys"] for table in status["tables"])
            rates.append(n / status["restored_s"])
            assert worker.process is not None
            memory = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
            rss = next(int(line.split()[1]) for line in memory if line.startswith("VmHWM")) / 1024
            print(
                f"{'worker':28} {n:9} records {status['restored_s']:6.2f} s {rates[-1]:9.0f} records/s; {keys} rows, up in {up:.1f} s, {rss:.0f} MB", flush=True
            )
            worker.stop()
        print(f"{'ratio of the medians':28} {statistics.median(rates) * took / n:9.2f}")


if __name__ == "__main__":
    main()
