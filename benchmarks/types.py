"""How many events of each type one process folds a second of CPU time: decoding, dedupe, every fold and rule.

Run: ``python -m benchmarks.types [--events 40000] [--only TYPE] [--write]``. No broker is needed: records lie in memory and come in chunks of
2,000; *with rows* adds the encoding of the changed rows after each chunk. Each figure is of the quickest quarter of the chunks after the first
10,000 events, since other work on the machine only ever adds; `reference` tells how fast the machine is. A record that carries events or derives
some (trust by rule, goals, costs of metrics) is rated by all of them, and the folding of the derived ones is in its time. `--write` puts the
table into benchmarks/types.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from statistics import fmean
from time import process_time

from .workloads import WORKLOADS, Feed, Workload

CHUNK = 2000
WARM = 10_000
GOAL = 30_000
"""Events a second that every type should reach."""


def quick(times: list[float]) -> float:
    """Mean of the quickest quarter."""
    times = sorted(times)
    return fmean(times[: max(1, len(times) // 4)])


def measure(of: Workload, events: int) -> tuple[float, float, float]:
    """(microseconds of CPU a record, the same with rows encoded, events that a record stands for)."""
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
    gc.set_threshold(50_000, 20, 100)  # as a worker has it
    lines = [
        f"`python -m benchmarks.types {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        "| type | µs a record | with rows | events a record | events/s | with rows |",
        "|---|---|---|---|---|---|",
    ]
    lines[1:1] = [
        "",
        f"A dictionary lookup in a loop took {reference():.0f} ns of CPU when this began: figures of two machines, or hours, compare by that.",
        "What is below the goal touches 10 to 25 rows an event (five series with windows for a task, a variable and its history for each input of",
        "a forecast, summary, alerts and windows for each value of a metric), which is what the time goes into.",
    ]
    print("\n".join(lines), flush=True)
    for name, of in WORKLOADS.items():
        if words.only in name:
            fold, whole, events = measure(of, words.events)
            note = "" if events / fold * 1e6 >= GOAL else " **below the goal**"
            lines.append(f"| {name} | {fold:.1f} | {whole:.1f} | {events:.2f} | {events / fold * 1e6:,.0f}{note} | {events / whole * 1e6:,.0f} |")
            print(lines[-1], flush=True)
    if words.write:
        Path(__file__).with_suffix(".md").write_text("# Throughput by event type\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
