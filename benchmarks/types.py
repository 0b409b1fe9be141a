"""How many events of each type are folded a second of CPU time, by one process and by two: decoding, dedupe, every fold and rule, and the rows.

Run: ``python -m benchmarks.types [--events 40000] [--only TYPE] [--write]``. No broker is needed: records lie in memory and come in chunks of
2,000; *with rows* adds the encoding of the changed rows after each chunk. Two processes fold at the same time, each a partition of its own as two
workers do, and *on 2 cores* is what both together do, with rows. Each figure is of the quickest quarter of the chunks after the first
10,000 events, since other work on the machine only ever adds; `reference` tells how fast the machine is. A record that carries events (a batch of
observations, a metric of several values) or derives some (trust by rule, goals, costs of metrics) is rated by all of them, and the folding of the
derived ones is in its time. `--write` puts the table into benchmarks/types.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from time import process_time

from .workloads import WORKLOADS, Feed

CHUNK = 2000
WARM = 10_000
CORES = 2
GOAL = 30_000
"""Events a second that every type should reach on two cores."""
HEAD = """A dictionary lookup in a loop took {reference:.0f} ns of CPU when this began: figures of two machines, or hours, compare by that.
*on 2 cores*: two processes at the same time, with rows; the goal is {goal:,} events/s there. What a worker does besides (fetching, publishing,
committing) is not in it: benchmarks/throughput.py measures that with a broker. What is below the goal touches 10 to 25 rows an event (five series
with windows for a task, a variable and its history for each input of a forecast), which is what the time goes into.

| type | µs a record | with rows | events a record | events/s | with rows | on 2 cores |
|---|---|---|---|---|---|---|
"""


def quick(times: list[float]) -> float:
    """Mean of the quickest quarter."""
    times = sorted(times)
    return fmean(times[: max(1, len(times) // 4)])


def measure(name: str, events: int) -> tuple[float, float, float]:
    """(microseconds of CPU a record, the same with rows encoded, events that a record stands for)."""
    gc.set_threshold(50_000, 20, 100)  # as a worker has it
    gc.unfreeze()
    of = WORKLOADS[name]
    feed = Feed(of)
    gc.collect()
    gc.freeze()
    fold, whole = [], []
    while feed.n < WARM + events:
        records = feed.chunk(CHUNK)
        begun = process_time()
        feed.absorb(records)
        folded = process_time()
        feed.drain()
        done = process_time()
        feed.settle()
        if feed.n > WARM:
            fold.append((folded - begun) / CHUNK)
            whole.append((done - begun) / CHUNK)
    feed.check()
    return quick(fold) * 1e6, quick(whole) * 1e6, of.carried + feed.derived / feed.n


def reference() -> float:
    """Nanoseconds of CPU that a dictionary lookup in a loop takes here and now: what the figures of two machines are compared by."""
    found = dict.fromkeys(range(1000))
    times = []
    for _ in range(200):
        begun = process_time()
        for i in range(1000):
            found.get(i)
        times.append((process_time() - begun) * 1e6)
    return quick(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    lines = [f"`python -m benchmarks.types {' '.join(sys.argv[1:])}`".replace(" `", "`"), "", HEAD.format(reference=reference(), goal=GOAL).rstrip()]
    print("\n".join(lines), flush=True)
    with get_context("spawn").Pool(CORES) as pool:
        for name in WORKLOADS:
            if words.only in name:
                lines.append(row(name, pool.starmap, words.events))
                print(lines[-1], flush=True)
    if words.write:
        Path(__file__).with_suffix(".md").write_text("# Throughput by event type\n\n" + "\n".join(lines) + "\n")


def row(name: str, starmap: Callable[..., list[tuple[float, float, float]]], events: int) -> str:
    """A row of the table, measured by as many processes as there are cores."""
    found = starmap(measure, [(name, events)] * CORES, 1)
    fold, whole, per = (fmean(figures) for figures in zip(*found, strict=True))
    together = sum(per / figures[1] * 1e6 for figures in found)
    note = "" if together >= GOAL else " **below the goal**"
    return f"| {name} | {fold:.1f} | {whole:.1f} | {per:.2f} | {per / fold * 1e6:,.0f} | {per / whole * 1e6:,.0f} | {together:,.0f}{note} |"


if __name__ == "__main__":
    main()
