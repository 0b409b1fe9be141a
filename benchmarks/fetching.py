"""What fetching costs a worker's processor, by who sums the fetched bytes and how many copies of records are made.

Run: ``python -m benchmarks.fetching [--bootstrap HOST:PORT] [--events 1000000] [--repeat 5]``. One broker, the same bytes (`benchmarks.throughput`'s trust
observations, not compressed), one after the other in turn; microseconds of CPU a record, medians.

  aiokafka     getmany: each record is made, and copied
  packed       what a worker does: batches are taken whole (`agents.seam.Packed`), aiokafka sums them
  summed       the same with the checksum by google-crc32c, as a worker has it
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import uuid
from statistics import median

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents import seam

from .throughput import PARTITIONS, fill, trust


async def fetch(bootstrap: str, topic: str, total: int, kind: str) -> float:
    """CPU of this process a record, microseconds."""
    seam.COMPILED = kind == "summed"
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed", auto_offset_reset="earliest")
    await consumer.start()
    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(places)
    if kind != "aiokafka":
        seam.packed(consumer._fetcher)
    n, begun = 0, resource.getrusage(resource.RUSAGE_SELF)
    while n < total:
        taken = await (consumer.getmany(timeout_ms=200) if kind == "aiokafka" else consumer._fetcher.fetched_records(places, 0.2, max_records=8192))
        n += sum(len(records) for records in taken.values())
    done = resource.getrusage(resource.RUSAGE_SELF)
    await consumer.stop()
    return (done.ru_utime + done.ru_stime - begun.ru_utime - begun.ru_stime) / total * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    words = parser.parse_args()
    from tests.kafka.broker import real_broker

    kinds = ("aiokafka", "packed", "summed")
    with real_broker(words.bootstrap) as bootstrap:
        prefix = f"bench{uuid.uuid4().hex[:8]}."
        subprocess.run([sys.executable, "-m", "benchmarks.topics", bootstrap, prefix, "unused", str(PARTITIONS)], check=True)
        fill(bootstrap, prefix, trust(words.events, 1000))
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(words.repeat):
            for kind in kinds:
                found[kind].append(uvloop.run(fetch(bootstrap, prefix + "judgments", words.events, kind)))
    for kind in kinds:
        print(f"{kind:10} {median(found[kind]):6.3f} us of CPU a record")


if __name__ == "__main__":
    main()
