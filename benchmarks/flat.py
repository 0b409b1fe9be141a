"""Whether folding an event costs the same at a million events as at ten thousand, for every event type.

Run: ``python -m benchmarks.flat [--events 1000000] [--only TYPE] [--write]``. No broker is needed. One partition folds so many records; then
it and a young one, which has folded 10,000, take turns chunk by chunk, so that other work on the machine meets both alike. The figure
is the median ratio of the CPU times of such a pair; the goal is at most 1.2. Beside it stands the same with the encoding of the rows
that the chunk has changed, and how the number of bytecode instructions of an event has grown, which does not depend on the machine:
where that is 1.0 and the time is not, it is caches that memory outgrew.

`--write` puts the rows of the types measured into benchmarks/flat.md and leaves the others there as they are. A type that has 20 or 8 events
to a record needs fewer records for as many events: see `FEWER`.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from statistics import median
from time import process_time
from types import FrameType
from typing import Any, NamedTuple

from .workloads import WORKLOADS, Feed, Workload

YOUNG = 10_000
CHUNK = 1000
PAIRS = 30
GOAL = 1.2
FEWER = {"trust.batch_observed, 20 each": 20, "variable.registered": 8, "forecast.issued and .resolved": 4}
"""Events to a record (observations in a batch, copies, what is derived) of the types that come to as many events by so many times fewer records."""
HERE = Path(__file__).with_suffix(".md")
HEAD = """# Fold time per event at a million events

`python -m benchmarks.flat --write`; a type at a time with `--only`. Microseconds of CPU a record (decoding, dedupe, every fold and
rule, and what it derives), the median of {pairs} chunks of {chunk}; *ratio*: median over pairs of chunks that were folded one after the other.
Goal: at most {goal}. *With rows*: the ratio of folding and of encoding the rows that it changed in its own partition, a row once a chunk;
*bytes*: of those rows, a record. They grow while the buckets of what waits and of what is remembered fill up (docs/bounds.md), most where a
million tasks are started and none ends.
*Work*: the same ratio of the bytecode instructions executed in folding, which the caches of the machine do not enter:
where it is near 1 and the time is not, memory has outgrown them (half a megabyte a core here, shared with other work).
*Old at*: records folded before, and what they come to with the events in them and those they derive.

| type | keys | old at | events | µs at {young} | µs then | ratio | with rows | bytes at {young} | bytes then | work | rows young | rows old |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


class Cost(NamedTuple):
    """Of a record: microseconds of CPU for folding it and for encoding its rows, and their bytes."""

    fold: float
    rows: float
    size: float


def timed(feed: Feed) -> Cost:
    """Cost of the next chunk."""
    records = feed.chunk(CHUNK)
    begun = process_time()
    feed.absorb(records)
    folded = process_time()
    size = 0
    for key, value, _, _ in feed.p.drain():
        size += len(key) + len(value)
    written = process_time()
    feed.settle()
    return Cost((folded - begun) / CHUNK * 1e6, (written - folded) / CHUNK * 1e6, size / CHUNK)


def steps(feed: Feed) -> int:
    """Bytecode instructions that the next chunk takes."""
    records = feed.chunk(CHUNK)
    n = 0

    def trace(frame: FrameType, kind: str, _: Any) -> Any:
        nonlocal n
        if kind == "opcode":
            n += 1
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return trace

    sys.settrace(trace)
    try:
        feed.absorb(records)
    finally:
        sys.settrace(None)
    feed.settle()
    return n


def rows(feed: Feed) -> int:
    """Rows in all tables."""
    return sum(len(space) for spaces in feed.p.spaces for space in spaces.values())


def measure(name: str, of: Workload, events: int) -> str:
    """A row of the table."""
    old = Feed(of)
    while old.n < events // FEWER.get(name, 1):
        old.absorb(old.chunk(CHUNK))
        old.settle()
    n, whole = old.n, old.n * of.carried + old.derived
    young = Feed(of)
    while young.n < YOUNG:
        young.absorb(young.chunk(CHUNK))
        young.settle()
    gc.collect()
    gc.freeze()
    found = []
    sizes = rows(young), rows(old)
    for turn in range(PAIRS):
        if turn % 2:
            one = timed(young)
            found.append((one, timed(old)))
        else:
            other = timed(old)
            found.append((timed(young), other))
    work = steps(old) / steps(young)
    young.check()
    old.check()
    before, after = median(a.fold for a, _ in found), median(b.fold for _, b in found)
    ratio, with_rows = median(b.fold / a.fold for a, b in found), median((b.fold + b.rows) / (a.fold + a.rows) for a, b in found)
    bytes_young, bytes_old = median(a.size for a, _ in found), median(b.size for _, b in found)
    note = "" if ratio <= GOAL else " **above the goal**"
    figures = f"{before:.1f} | {after:.1f} | {ratio:.2f}{note} | {with_rows:.2f} | {bytes_young:,.0f} | {bytes_old:,.0f} | {work:.2f}"
    return f"| {name} | {of.keys} | {n:,} | {whole:,} | {figures} | {sizes[0]:,} | {sizes[1]:,} |"


def write(found: dict[str, str]) -> None:
    """Put rows into the table, in the order of `WORKLOADS`."""
    cells = HEAD.rstrip().splitlines()[-1].count("|")
    lines = HERE.read_text().splitlines() if HERE.exists() else []
    there = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ") and line.count("|") == cells}
    there.update(found)
    head = HEAD.format(pairs=PAIRS, chunk=CHUNK, goal=GOAL, young=f"{YOUNG:,}")
    HERE.write_text(head + "".join(there[name] + "\n" for name in WORKLOADS if name in there))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    gc.set_threshold(50_000, 20, 100)  # as a worker has it
    for name, of in WORKLOADS.items():
        if words.only == name or (words.only in name and words.only not in WORKLOADS):
            line = measure(name, of, words.events)
            print(line, flush=True)
            if words.write:
                write({name: line})


if __name__ == "__main__":
    main()
