"""How long recent drift takes where every variable has enough forecasts for its tests, and many closed hours.

Run: ``python -m benchmarks.recent_drift [--keys 100000] [--hours 30] [--changed 1000]``. No broker is needed; the rows are made, not folded. Timed is the CPU
of `/variables/drift?recent=true` and its JSON: the first question, the next one, and one after so many variables changed.
"""

from __future__ import annotations

import argparse
import gc
import random
from time import process_time

import msgspec
import orjson

from tables.hours import Hours, Side
from tables.orders import ListKeeper
from tables.partition import WATERMARK, Partition, Schema
from tables.reader import PartitionReader
from tables.rows import Row
from tables.times import HOUR_US
from tables.variable_states import TOPIC, History, Partial
from tables.variables import Variables

PARTITIONS = 2
NOW = 500_000
"""The newest hour, since the epoch."""


def fill(homes: list[Partition], fold: Variables, keys: int, hours: int) -> None:
    """Rows of variables, each on one partition."""
    rng = random.Random(0)
    for i in range(keys):
        p = homes[i % len(homes)]
        closed, total = Hours(), Side()
        for hour in range(NOW - hours, NOW):
            side = Side()
            for _ in range(3):
                side.add(rng.random(), rng.random(), rng.random() < 0.7)
            side.n, side.certified = 30, rng.randrange(31)
            closed.close(hour, side, hour)
            total.merge(side)
        state = Partial(home=p.number, hour=NOW, open=(2, 1, 0.0, 0.0, 0.0, 0.5, 0.1, 0.0, 0.5, 0.1, 0.0, 0.0), first_us=0, last_us=NOW * HOUR_US)
        state.past_n, state.past_certified = total.n, total.certified
        state.past_confidence, state.past_fragility = total.n * total.confidence, total.n * total.fragility
        state.lows, state.highs = [0.0], [0.0]
        key = (f"x{i:06}",)
        p.space(fold.kept.partials, "default")[key] = Row("default", key, i, -1, state)
        p.space(fold.kept.histories, "default")[key] = Row("default", key, i, -1, History(home=p.number, hours=closed))
    for p in homes:
        p.space(WATERMARK, "default")[()] = Row("default", (), keys, -1, WATERMARK.type(NOW * HOUR_US))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--hours", type=int, default=30)
    parser.add_argument("--changed", type=int, default=1_000)
    words = parser.parse_args()
    gc.set_threshold(50_000, 20, 100)  # as a worker has it, which is frozen at its start too
    fold = Variables()
    schema = Schema([fold])
    topics = {TOPIC: [Partition(TOPIC, number, schema, count=PARTITIONS) for number in range(PARTITIONS)]}
    fill(topics[TOPIC], fold, words.keys, words.hours)
    gc.collect()
    gc.freeze()
    view = next(view for view in fold.views if view.path == "/variables/drift")
    asked = msgspec.convert({"recent": True}, view.params)
    keeper = ListKeeper(topics, {})
    rng = random.Random(1)
    table = fold.kept.partials
    for what in ("first", "again", "changing", "changing"):
        for _ in range(words.changed if what == "changing" else 0):
            i = rng.randrange(words.keys)
            row = topics[TOPIC][i % PARTITIONS].space(table, "default")[(f"x{i:06}",)]
            row.applied += 1
            topics[TOPIC][i % PARTITIONS].dirty[table.index].add(row)
        begun = process_time()
        answer = view.answer(PartitionReader(topics, {}, "default", 0, keeper), asked)
        size = len(orjson.dumps(answer))
        told = f"{answer['tests']:,} tests, {len(answer['recent_flagged']):,} variables flagged, {size / 1e3:,.0f} kB"
        print(f"{what}: {(process_time() - begun) * 1e3:.1f} ms of CPU, {told}", flush=True)


if __name__ == "__main__":
    main()
