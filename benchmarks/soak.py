"""Memory over millions of events: does what a worker holds grow with the keys it has seen, and with nothing else?

Run: ``python -m benchmarks.soak [--bootstrap HOST:PORT] [--events 5000000] [--new 0.01]`` against a real broker, or with ``--in-process`` through
the product's core and folds alone (no Kafka, no HTTP; faster). Two runs, one after the other, in worker processes of their own: one in which a share of
the events brings a key that nobody has seen (1 %), and one in which none does. The second shows that the rest is flat, the difference of both what a key costs.

Everything that is bounded has to be full before a slope means anything: dedupe windows, rings, windows of days. So
event time moves on 20 s an event (5 million are three years; the longest windows, 400 days, are full after a third, the rows of the rarest names after
three quarters), and slopes are taken of the last quarter.

The files beside this one are of a whole run with ``--in-process``; what they show is in docs/bounds.md.

Writes benchmarks/soak.csv (run, events, seconds, rss_mb, rows, new_keys) and benchmarks/soak.svg.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import linear_regression
from typing import Any

HERE = Path(__file__).parent
PARTITIONS = 4
T0 = 1_692_000_000
STEP_S = 20
"""Event time between two events."""
KEYS = 20
"""Names of each kind that both runs begin with: few, so that the windows of each are full long before the last quarter (of 100 they are not)."""
TASKS = 97
"""Names of tasks: what is remembered of each agent's tasks is full after a few hundred thousand events, too."""
AHEAD = 100_000
"""Records that may wait on the log: a worker that is far behind holds more of them in its hands."""
SAMPLES = 200
LIMIT_BYTES_PER_EVENT = 1.0
"""Slope of the run without new keys above which something leaks: 5 MB in 5 million events."""


@dataclass(frozen=True)
class Sample:
    """What a worker held after so many events.

    Attributes:
        run: share of the events that brought a new key.
        rows: of all tables.
        new_keys: brought so far.
    """

    run: float
    events: int
    seconds: float
    rss_mb: float
    rows: int
    new_keys: int


class Events:
    """An endless mixed stream, the same for the same share. Its values are steady: an alert is kept for thirty days of the clock, and three years of
    event time would otherwise bring all of their alerts within minutes.

    Args:
        new: share of the events that names something new.
    """

    def __init__(self, new: float) -> None:
        self.new = new
        self.rng = random.Random(1)
        self.n = 0
        self.n_new = 0

    def name(self, kind: str) -> str:
        """A name that is known, or now and then a new one."""
        if self.rng.random() < self.new:
            self.n_new += 1
            return f"{kind}-new-{self.n_new}"
        return f"{kind}-{self.rng.randrange(KEYS)}"

    def __iter__(self) -> Iterator[tuple[str, bytes, bytes]]:
        rng, name = self.rng, self.name
        judged = name("agent"), "t0"
        while True:
            i = self.n
            self.n += 1
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(T0 + i * STEP_S))
            dice, good = i % 20, 0.8 + rng.random() / 50
            if dice < 6:
                one = name("model")
                topic, type_, key = "judgments", "trust.observed", f"default|model|{one}"
                data = f'{{"kind":"model","id":"{one}","success":{"true" if rng.random() < 0.7 else "false"}}}'
            elif dice < 10:
                inputs = ",".join(f'"v{rng.randrange(KEYS)}":{rng.gauss(0, 1):.4f}' for _ in range(2))
                topic, type_, key = "forecasts", "forecast.issued", f"default|m{i % 7}"
                data = (
                    f'{{"forecast_id":"f{i % 5000}","model":"m{i % 7}","confidence":{rng.random():.4f},"fragility":0.3,'
                    f'"certified":true,"inputs":{{"{name("variable")}":{rng.gauss(0, 1):.4f},{inputs}}}}}'
                )
            elif dice < 14:
                one = name("run")
                topic, type_, key = "training", "metric.recorded", f"default|{one}"
                data = f'{{"metric_type":"loss","model":"m","run":"{one}","value":{good / 2:.5f},"step":{i}}}'
            elif dice < 16:
                topic, type_, key = "costs", "cost.incurred", "default"
                data = f'{{"cost":"0.00001","model":"m{i % 7}","run":"{name("run")}","api_calls":1,"token_usage":100}}'
            elif dice < 18:
                one = name("agent")
                topic, type_, key = "judgments", "task.completed", f"default|{one}"
                data = f'{{"task":"t{i % TASKS}","agent":"{one}","success":true,"quality":{good:.4f},"tokens":90,"duration_ms":{rng.randrange(900)}}}'
            elif dice < 19 and i % 40 < 20:
                one, task = judged = name("agent"), f"t{i % TASKS}"
                topic, type_, key = "judgments", "judgment.recorded", f"default|{one}"
                data = f'{{"task":"{task}","judge":"j{i % 5}","agent":"{one}","overall_confidence":0.9,"criteria":{{"a":{good:.4f}}},"evaluation_time_ms":12}}'
            elif dice < 19:
                one, task = judged  # or it would wait for its evaluation until 32 of them wait in each of 4,096 buckets
                topic, type_, key = "judgments", "evaluation.completed", f"default|{one}"
                data = f'{{"task":"{task}","agent":"{one}","passed":true,"score":{good:.4f}}}'
            else:
                one = name("task")
                topic, type_, key = "training", "learning.recorded", f"default|{one}"
                data = f'{{"task_type":"{one}","performance_score":{good:.4f},"learning_rate":0.01,"episode_count":{i % 99},"convergence_metric":0.2}}'
            text = f'{{"specversion":"1.0","id":"e{i}","source":"soak","type":"{type_}.v1","time":"{moment}","data":{data}}}'
            yield topic, key.encode(), text.encode()


def rss_mb(pid: int | str) -> float:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def in_process(n: int, new: float, told: Callable[[Sample], None]) -> None:
    """The core and the folds in this process: what is flushed comes back as from the changelog, and is dropped."""
    from agents.core import Core
    from agents.registry import folds
    from streams.keys import partition_for
    from streams.topics import SOURCE_TOPICS
    from tables.partition import Partition, Schema
    from tests.harness import Rec

    gc.freeze()
    schema = Schema(folds())
    core = Core(Partition(topic, p, schema, count=PARTITIONS) for topic in SOURCE_TOPICS for p in range(PARTITIONS))
    for topic, p in core.shards:
        core.gained(topic, p, committed=None, log_start=0, changelog_end=0)
    waiting: dict[tuple[str, int], list[Rec]] = {place: [] for place in core.shards}
    ends = dict.fromkeys(core.shards, 0)
    offsets = dict.fromkeys(core.shards, 0)
    homes: dict[bytes, int] = {}
    events, begun = Events(new), time.monotonic()
    stamp = (T0 + n * STEP_S + 3600) * 1000

    def fold(place: tuple[str, int]) -> None:
        shard, records = core.shards[place], waiting[place]
        core.chunk(shard, shard.epoch, shard.next, ends[place], records)
        waiting[place] = []
        flush = core.take(shard)
        if flush is not None:
            for out in flush.outputs:
                if out.topic in SOURCE_TOPICS:
                    put(out.topic, out.partition if out.partition is not None else partition_for(out.key or b"", PARTITIONS), out.key, out.value or b"")
            core.acked(flush)
            offsets[place] += len(flush.rows)
            core.followed(shard, flush.rows, offsets[place])
        safe = core.committable().get(place)
        if safe is not None:
            core.committed(*place, safe)

    def put(topic: str, number: int, key: bytes | None, value: bytes) -> None:
        place = topic, number
        waiting[place].append(Rec(ends[place], stamp, key, value))
        ends[place] += 1

    for topic, key, value in events:
        number = homes.get(key)
        if number is None:
            number = partition_for(key, PARTITIONS)
            if len(homes) < 5000:
                homes[key] = number
        put(topic, number, key, value)
        if len(waiting[(topic, number)]) >= 2000:
            fold((topic, number))
        if events.n % (n // SAMPLES) == 0:
            rows = sum(len(space) for shard in core.shards.values() for spaces in shard.partition.spaces for space in spaces.values())
            told(Sample(new, events.n, round(time.monotonic() - begun, 1), round(rss_mb("self"), 1), rows, events.n_new))
        if events.n == n:
            refused = sum(shard.partition.counters().dead_lettered for shard in core.shards.values())
            if refused:
                raise RuntimeError(f"{refused} of the stream's own events were no events of the contract")
            return


def by_broker(bootstrap: str, n: int, new: float, told: Callable[[Sample], None], port: int) -> None:
    """A worker as a user runs it; its rows and records are what it says, its memory what the system says."""
    from confluent_kafka import Producer

    from .throughput import produce, value_of

    prefix = f"soak{uuid.uuid4().hex[:8]}."
    subprocess.run([sys.executable, "-m", "benchmarks.topics", bootstrap, prefix, "soak", str(PARTITIONS)], check=True)
    words = {"bootstrap": bootstrap, "topic-prefix": prefix, "app-id": "soak", "partitions": PARTITIONS, "web-port": port, "roles": "fold,serve"}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, "-m", "agents.main", "worker", "--log-level", "error", *flags], env={**os.environ, "PULSEFOLD_OUTPUTS": "on"})
    producer = Producer(
        {
            "bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 20, "compression.type": "zstd",
            "queue.buffering.max.messages": 200_000, "enable.idempotence": True,
        }
    )  # fmt: skip

    def ask(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return str(response.read().decode())

    def folded() -> float:
        return value_of(ask("/metrics"), "pulsefold_engine_records_total")

    try:
        while True:
            try:
                if json.loads(ask("/readyz"))["ready"]:
                    break
            except OSError:
                pass
            if process.poll() is not None:
                raise RuntimeError("the worker stopped")
            time.sleep(0.5)
        events, begun, step = Events(new), time.monotonic(), n // SAMPLES
        for topic, key, value in events:
            produce(producer, prefix + topic, key, value)
            if events.n % 10_000 == 0:
                producer.poll(0)
                while events.n - folded() > AHEAD:
                    time.sleep(0.5)
            if events.n % step == 0:
                producer.flush(60)
                while folded() < events.n:
                    time.sleep(0.3)
                rows = sum(float(line.rsplit(" ", 1)[1]) for line in ask("/metrics").splitlines() if line.startswith("pulsefold_table_keys{"))
                told(Sample(new, events.n, round(time.monotonic() - begun, 1), round(rss_mb(process.pid), 1), int(rows), events.n_new))
            if events.n == n:
                return
    finally:
        process.terminate()
        process.wait(60)


def at_the_end(samples: list[Sample]) -> list[Sample]:
    """Those of the last quarter."""
    return [one for one in samples if one.events > samples[-1].events * 0.75]


def slopes(samples: list[Sample]) -> tuple[float, float]:
    """Bytes of memory an event, and rows an event, at the end."""
    late = at_the_end(samples)
    x = [float(one.events) for one in late]
    return linear_regression(x, [one.rss_mb * 2**20 for one in late]).slope, linear_regression(x, [float(one.rows) for one in late]).slope


def conclude(runs: dict[float, list[Sample]]) -> tuple[str, bool]:
    """What the samples say, in a few lines, and whether the run without new keys is flat."""
    lines, flat = [], True
    found = {new: slopes(samples) for new, samples in runs.items()}
    for new, samples in runs.items():
        memory, rows = found[new]
        lines.append(
            f"{new:.0%} new keys: {samples[-1].events:,} events, {samples[-1].rss_mb:.0f} MB and {samples[-1].rows:,} rows at the end; "
            f"last quarter {memory:+.2f} bytes and {rows:+.5f} rows an event"
        )
    if 0.0 in found and len(found) > 1:
        new = max(found)
        flat = found[0.0][0] <= LIMIT_BYTES_PER_EVENT
        late = at_the_end(runs[new])
        a_key = (late[-1].new_keys - late[0].new_keys) / (late[-1].events - late[0].events)
        lines.append(f"a new key: {(found[new][0] - found[0.0][0]) / a_key:,.0f} bytes in {(found[new][1] - found[0.0][1]) / a_key:.1f} rows")
        lines.append(f"the rest: {'flat' if flat else 'GROWS'} ({found[0.0][0] * 1e6 / 2**20:+.2f} MB a million events)")
    return "\n".join(lines), flat


def picture(runs: dict[float, list[Sample]]) -> str:
    """Memory and rows over events, as SVG."""
    width, height, left, bottom = 860, 420, 70, 50
    most_x = max(samples[-1].events for samples in runs.values())
    most_mb = max(one.rss_mb for samples in runs.values() for one in samples) * 1.1
    most_rows = max(max(one.rows for samples in runs.values() for one in samples) * 1.1, 1)
    x = lambda n: left + n / most_x * (width - 2 * left)  # noqa: E731 - two scales
    y = lambda share: height - bottom - share * (height - bottom - 60)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="22" font-size="14">A worker\'s memory and rows over {most_x:,} events</text>',
    ]
    for i in range(6):
        parts.append(f'<line x1="{left}" x2="{width - left}" y1="{y(i / 5):.1f}" y2="{y(i / 5):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(i / 5) + 4:.1f}" text-anchor="end">{most_mb * i / 5:.0f}</text>')
        parts.append(f'<text x="{width - left + 6}" y="{y(i / 5) + 4:.1f}">{most_rows * i / 5 / 1000:.0f}k</text>')
        parts.append(f'<text x="{x(most_x * i / 5):.1f}" y="{height - bottom + 18}" text-anchor="middle">{most_x * i / 5 / 1e6:g} M</text>')
    parts.append(f'<text x="{left}" y="{height - 12}">events</text><text x="{left - 50}" y="46">MB</text><text x="{width - left + 6}" y="46">rows</text>')
    for (new, samples), colour in zip(sorted(runs.items()), ("#1668a8", "#b4431a"), strict=False):
        memory = " ".join(f"{x(one.events):.1f},{y(one.rss_mb / most_mb):.1f}" for one in samples)
        rows = " ".join(f"{x(one.events):.1f},{y(one.rows / most_rows):.1f}" for one in samples)
        parts.append(f'<polyline points="{memory}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<polyline points="{rows}" fill="none" stroke="{colour}" stroke-width="1" stroke-dasharray="4 3"/>')
        last = samples[-1]
        place = f'x="{width - left - 8}" y="{y(last.rss_mb / most_mb) - 6:.1f}"'
        parts.append(f'<text {place} text-anchor="end" fill="{colour}">{new:.0%} new keys: {last.rss_mb:.0f} MB</text>')
    parts.append(f'<text x="{width - left}" y="{height - 12}" text-anchor="end">lines: resident memory; dashed: rows; slopes are of the last quarter</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> int:
    """Run both, write the files, say what they say; exit 1 where memory grows without new keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--new", type=float, default=0.01)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--one", type=float, help="one run alone, its samples as JSON lines")
    parser.add_argument("--out", type=Path, default=HERE)
    words = parser.parse_args()
    if words.one is not None:
        in_process(words.events, words.one, lambda one: print(json.dumps(astuple(one)), flush=True))
        return 0
    runs: dict[float, list[Sample]] = {words.new: [], 0.0: []}

    def told(one: Sample) -> None:
        runs[one.run].append(one)
        print(*astuple(one), sep="\t", flush=True)

    if words.in_process:
        for new in runs:
            command = [sys.executable, "-m", "benchmarks.soak", "--one", str(new), "--events", str(words.events)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    told(Sample(*json.loads(line)))
            if process.returncode:
                return process.returncode
    else:
        from tests.kafka.broker import free_ports, real_broker

        with real_broker(words.bootstrap) as bootstrap:
            for new in runs:
                by_broker(bootstrap, words.events, new, told, free_ports(1)[0])
    with (words.out / "soak.csv").open("w", newline="") as out:
        rows: Any = csv.writer(out, lineterminator="\n")
        rows.writerow([field.name for field in fields(Sample)])
        rows.writerows(astuple(one) for samples in runs.values() for one in samples)
    (words.out / "soak.svg").write_text(picture(runs))
    text, flat = conclude(runs)
    print(text)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
