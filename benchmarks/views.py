"""How long every view takes with 100,000 keys, and every archive query over a million metrics.

Run: ``python -m benchmarks.views [--keys 100000] [--changed 1000] [--metrics 1000000] [--times 40] [--only PATH] [--write]``. No broker is needed: the rows are
the product's folds of that many keys over two partitions (fewer keys where a bound of the product is lower, as the table says), the files
those of its archive. Timed: the answer and its JSON, in one process, as a worker answers the second and later questions (it keeps lists between them,
the first is a column of its own); then the same with rows of CHANGED keys changed before each question, which is not in the time: all at once, and
little by little, with what a worker does for its lists between questions (`agents.lists`), the last tenth apart.
Goals: p95 of 20 ms for a view, 100 ms for an archive query.
`--write` puts the table into benchmarks/views.md.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import msgspec
import orjson

from agents.archive_keeper import Keeper
from agents.archivist import Given
from agents.lists import SHARE, TURN
from agents.raw_answers import answer
from agents.registry import FOLD_SETTINGS, schema
from streams.events import EVENT_TYPES
from streams.settings import load
from streams.topics import SOURCE_TOPICS
from tables.orders import ListKeeper
from tables.partition import Partition
from tables.reader import PartitionReader

from .made import START_US, Record, event

PARTITIONS = 2
CHUNK = 2000
GOAL_MS, ARCHIVE_GOAL_MS = 20.0, 100.0
DATA = dict[str, Any]
Made = Iterator[tuple[int, str, DATA]]


def filling(keys: int) -> dict[str, tuple[int, Callable[[int], Made]]]:
    """What fills the tables: (how many keys, the events as (partition, type, data))."""

    def trust(n: int) -> Made:
        for i in range(n):
            yield i, "trust.observed.v1", {"kind": "model", "id": f"k{i:06}", "success": i % 3 > 0}

    def variables(n: int) -> Made:
        for i in range(2 * n // 100):
            inputs = {f"x{j:06}": float(j) for j in range(i // 2 * 100, i // 2 * 100 + 100)}
            figures = {"confidence": i % 10 / 10, "fragility": i % 7 / 10, "certified": i % 5 > 0}
            yield i, "forecast.issued.v1", {"forecast_id": f"f{i}", "model": f"m{i % 100}", "symbolic_tag": f"t{i % 50}", **figures, "inputs": inputs}
            yield i, "forecast.resolved.v1", {"forecast_id": f"f{i}", "model": f"m{i % 100}", "success": i % 2 > 0, "inputs": {}}

    def series(n: int) -> Made:
        for i in range(2 * n):
            yield i % n, "metric.recorded.v1", {"metric_type": "loss", "model": f"m{i % 100}", "run": f"r{i % n:06}", "value": i % 97 / 97, "step": i}

    def agents(n: int) -> Made:
        for i in range(n):
            data = {"task": f"t{i}", "agent": f"a{i:06}", "task_type": f"k{i % 20}", "success": i % 4 > 0, "quality": 0.8, "duration_ms": 100.0 + i % 900}
            yield i, "task.completed.v1", data
            if i % 10 == 0:
                verdict = {"overall_score": 0.8, "overall_confidence": 0.9, "criteria": {"style": 0.9}, "evaluation_time_ms": 5}
                yield i, "judgment.recorded.v1", {"task": f"t{i}", "agent": f"a{i:06}", "judge": f"j{i // 10 % 1000}", **verdict}

    def costs(n: int) -> Made:
        for i in range(n):
            yield 0, "cost.incurred.v1", {"cost": 0.001, "token_usage": 5, "model": f"m{i:06}"}

    def streams(n: int) -> Made:
        figures = {"performance_score": 0.5, "learning_rate": 0.01, "convergence_metric": 0.005, "episode_count": 1}
        for i in range(n):
            yield i, "learning.recorded.v1", {"task_type": f"k{i % 100}", "run": f"r{i:06}", **figures}

    def goals(n: int) -> Made:
        for i in range(n):
            yield i, "goal.created.v1", {"goal_id": f"g{i:06}", "target": 1.0, "task_type": f"k{i % 100}"}
            yield i, "goal.progressed.v1", {"goal_id": f"g{i:06}", "current": 0.5, "task_type": f"k{i % 100}"}

    return {
        "trust keys": (keys, trust),
        "variables": (keys, variables),
        "series": (min(keys, 40_000), series),
        "agents": (min(keys, 50_000), agents),
        "scopes of costs": (min(keys, 49_000), costs),
        "learning streams": (keys, streams),
        "goals": (min(keys, 20_000), goals),
    }


VIEWS: tuple[tuple[str, str, DATA], ...] = (
    ("trust keys", "/trust/{kind}/{id}", {"kind": "model", "id": "k000077"}),
    ("trust keys", "/trust", {"kind": "model"}),
    ("trust keys", "/trust", {"kind": "model", "sort": "trust", "order": "desc"}),
    ("trust keys", "/trust", {"sort": "effective_n"}),
    ("trust keys", "/trust", {"sort": "last_update", "order": "desc"}),
    ("trust keys", "/trust", {"kind": "model", "ids": [f"k{i:06}" for i in range(100)]}),
    ("trust keys", "/trust/{kind}/{id}/history", {"kind": "model", "id": "k000077"}),
    ("trust keys", "/trust/report", {"min_sample": 0}),
    ("variables", "/variables/{name}", {"name": "x000077"}),
    ("variables", "/variables", {}),
    ("variables", "/variables", {"min_count": 2}),
    ("variables", "/variables/rank", {}),
    ("variables", "/variables/rank", {"key": "trust_weight", "order": "asc"}),
    ("variables", "/variables/drift", {}),
    ("variables", "/variables/drift", {"recent": True}),
    ("variables", "/variables/volatility", {}),
    ("variables", "/variables/volatility", {"names": ["x000001", "x000002"]}),
    ("variables", "/variables/{name}/influence", {"name": "x000077"}),
    ("variables", "/forecasts/calibration", {}),
    ("series", "/metrics/aggregate", {"metric": "loss", "model": "m7", "run": "r000007", "window": "5m"}),
    ("series", "/metrics/aggregate", {"metric": "loss", "model": "m7", "window": "1h"}),
    ("series", "/metrics/summary", {}),
    ("series", "/metrics/series", {}),
    ("series", "/metrics/series", {"model": "m7"}),
    ("series", "/metrics/watched", {}),
    ("scopes of costs", "/costs", {}),
    ("scopes of costs", "/costs", {"by": "model"}),
    ("scopes of costs", "/costs/status", {}),
    ("scopes of costs", "/costs/check", {"amount": "2.5"}),
    ("scopes of costs", "/costs/forecast", {}),
    ("scopes of costs", "/budgets", {}),
    ("learning streams", "/learning/metrics", {}),
    ("learning streams", "/learning/report", {}),
    ("learning streams", "/learning/curve", {"task": "k7"}),
    ("learning streams", "/learning/streams", {}),
    ("learning streams", "/learning/streams", {"task": "k7"}),
    ("learning streams", "/learning/panels/{panel}", {"panel": "curves"}),
    ("learning streams", "/learning/trend", {"task": "k7"}),
    ("learning streams", "/learning/convergence", {}),
    ("goals", "/learning/goals", {}),
    ("goals", "/learning/goals", {"state": "active"}),
    ("goals", "/learning/panels/{panel}", {"panel": "goals"}),
    ("goals", "/goals/{id}", {"id": "g000077", "task_type": "k77"}),
    ("agents", "/performance/stats", {}),
    ("agents", "/performance/stats", {"agent": "a000077"}),
    ("agents", "/performance/trends", {"metric": "success", "agent": "a000077"}),
    ("agents", "/agents", {}),
    ("agents", "/agents", {"sort": "success_rate"}),
    ("agents", "/agents", {"sort": "latency", "task_type": "k7"}),
    ("agents", "/agents/{id}", {"id": "a000077"}),
    ("agents", "/judgments/summary", {}),
    ("agents", "/predict", {"agents": [f"a{i:06}" for i in range(100)], "task_type": "k7"}),
)
"""Exports hold everything and are no lists of 100; they are not here."""

WHOLE = {("/costs", "by"), ("/budgets",), ("/metrics/summary",)}
"""(path, parameters) of answers that name every key there is, without pages: no goal."""

QUERIES: tuple[tuple[str, DATA], ...] = (
    ("/metrics/{id}", {"op": "metric"}),
    ("/metrics", {"op": "metrics"}),
    ("/metrics?types=loss&runs=r7", {"op": "metrics", "types": ["loss"], "runs": ["r7"]}),
    ("/metrics?tags=b", {"op": "metrics", "tags": ["b"]}),
    ("/metrics?since=…&until=… (an hour)", {"op": "metrics", "since_us": START_US + 36_000_000_000, "until_us": START_US + 39_600_000_000}),
)


HEAD = """# Views and queries

`python -m benchmarks.views --write`

Lists are kept between questions (`tables.orders`): the first question looks at every key, a later one at the keys that changed since, of which a worker
looks at most before it comes (`agents.lists`). Lists by trust or evidence of a kind with a half-life are made anew each time, since their order depends on
the moment. Of drift, here every variable but a few is beyond the limits, so `flagged` is nearly all of an answer. With two forecasts each these variables
have too few for a test of recent drift: `python -m benchmarks.recent_drift` has 100,000 of 30 closed hours each. Two cores, nothing else beside.

"""
STEPS = 10
"""Parts in which rows change little by little: those of a second, as a worker looks ten times a second."""


class Found(NamedTuple):
    """What was measured of a question, ms: median, p95, p95 of the CPU time, CPU time of the first answer, bytes of an answer."""

    median: float
    p95: float
    busy: float
    first: float
    size: int


def timed(ask: Callable[[], Any], times: int, before: Callable[[], None] = lambda: None) -> Found:
    """Ask again and again.

    Args:
        before: done before each question, and not measured.
    """
    cpu = process_time()
    size = len(ask())
    first = (process_time() - cpu) * 1e3
    took, busy = [], []
    for _ in range(times):
        before()
        begun, cpu = perf_counter(), process_time()
        ask()
        took.append((perf_counter() - begun) * 1e3)
        busy.append((process_time() - cpu) * 1e3)
    took.sort()
    busy.sort()
    return Found(took[times // 2], took[95 * (times - 1) // 100], busy[95 * (times - 1) // 100], first, size)


def row(name: str, keys: str, still: Found, moving: Found | None, goal: float | None, tended: Found | None = None, turn: float = 0.0) -> str:
    """A row of the table; judged by CPU time, which other work on the machine does not stretch."""

    def judged(found: Found) -> str:
        return f"{found.busy:.2f}{'' if goal is None or found.busy <= goal else ' **above the goal**'}"

    changing = f"| {judged(moving)} | {judged(tended)} | {turn:.2f}" if moving is not None and tended is not None else "| | |"
    return f"| {name} | {keys} | {still.size / 1e3:,.0f} | {still.first:.1f} | {still.median:.2f} | {still.p95:.2f} | {judged(still)} {changing} |"


def views(keys: int, changed: int, times: int, only: str) -> Iterator[str]:
    """Rows of the folded views."""
    found = schema()
    paths = {view.path: view for fold in reversed(found.folds) for view in fold.views}
    for what, (n, make) in filling(keys).items():
        wanted = [(path, params) for of, path, params in VIEWS if of == what and only in path]
        if not wanted:
            continue
        topics = {topic: [Partition(topic, number, found, count=PARTITIONS) for number in range(PARTITIONS)] for topic in SOURCE_TOPICS}
        n_events = 0

        def fold(made: Made, topics: Any = topics) -> None:
            nonlocal n_events
            waiting: dict[tuple[str, int], list[Record]] = {}
            for place, kind, data in made:
                n_events += 1
                at_us = START_US + n_events * 10_000
                p = topics[EVENT_TYPES[kind].topic][place % PARTITIONS]
                records = waiting.setdefault((p.topic, p.number), [])
                records.append(Record(p.next + len(records), at_us // 1000, None, event(f"{kind}{n_events}", kind, at_us, data)))
                if len(records) >= CHUNK:
                    absorb(p, records)
            for (topic, number), records in waiting.items():
                absorb(topics[topic][number], records)

        fold(make(n))
        homes = {table.wire: fold.topics for fold in found.folds for table in fold.tables if fold.topics}
        gc.collect()
        gc.freeze()
        for path, params in wanted:
            view = paths[path]
            asked = msgspec.convert(params, view.params, strict=False)

            keeper = ListKeeper(topics, homes)  # a new one each, so that the first answer is told
            more = changing(what, n, changed)

            def ask(view: Any = view, asked: Any = asked, keeper: ListKeeper = keeper) -> bytes:
                return orjson.dumps(view.answer(PartitionReader(topics, homes, "default", START_US, keeper), asked))  # noqa: B023 - asked at once

            shown = "&".join(f"{name}={value if not isinstance(value, list) else len(value)}" for name, value in params.items() if f"{{{name}}}" not in path)
            goal = None if (path, *params) in WHOLE else GOAL_MS
            often = 1 if goal is None else times
            still = timed(ask, often)
            moving = timed(ask, often, lambda: fold(next(more)))  # noqa: B023
            turns: list[float] = []
            little_by_little = tending(keeper, partial(PartitionReader, topics, homes), fold, changing(what, n, changed // STEPS), turns)
            tended = timed(ask, often, little_by_little)
            turns.sort()
            yield row(f"`{path}{'?' + shown if shown else ''}`", f"{n:,} {what}", still, moving, goal, tended, turns[95 * (len(turns) - 1) // 100])


def tending(
    keeper: ListKeeper, reader: Callable[..., PartitionReader], fold: Callable[[Made], None], more: Iterator[Made], turns: list[float]
) -> Callable[[], None]:
    """What happens in a second before a question: rows change ten times, and nine times the lists are tended for as long as a worker has for that.

    Args:
        turns: gets the CPU time of each turn, ms.
    """
    share_ms = SHARE * 1e3 / STEPS

    def second() -> None:
        for _ in range(STEPS - 1):
            fold(next(more))
            spent, tended = 0.0, 1
            while tended and spent < share_ms:
                cpu = process_time()
                tended = keeper.tend(lambda tenant: reader(tenant, START_US), TURN)
                turns.append((process_time() - cpu) * 1e3)
                spent += turns[-1]
        fold(next(more))

    return second


def absorb(p: Partition, records: list[Record]) -> None:
    """Fold them and drop what they put out."""
    p.absorb(records)
    p.outputs = []
    for index, dirty in enumerate(p.dirty):
        if dirty:
            p.mark(index, dirty)  # as when it is written
            p.dirty[index] = set()
    records.clear()


def changing(what: str, n: int, changed: int) -> Iterator[Made]:
    """Again and again, events that change so many keys; one in a hundred of them is new, where the bounds have room."""
    chance = random.Random(0)

    def trust(keys: list[int]) -> Made:
        for i in keys:
            yield i, "trust.observed.v1", {"kind": "model", "id": f"k{i:06}", "success": chance.random() < 0.5}

    def variables(keys: list[int]) -> Made:
        for begin in range(0, len(keys), 100):
            inputs = {f"x{j % n:06}": chance.random() for j in keys[begin : begin + 100]}
            figures = {"confidence": chance.random(), "fragility": chance.random(), "certified": chance.random() < 0.8}
            yield begin // 100, "forecast.issued.v1", {"forecast_id": f"g{chance.random()}", "model": f"m{chance.randrange(100)}", **figures, "inputs": inputs}

    def series(keys: list[int]) -> Made:
        for i in keys:
            yield i, "metric.recorded.v1", {"metric_type": "loss", "model": f"m{i % 100}", "run": f"r{i:06}", "value": chance.random()}

    def agents(keys: list[int]) -> Made:
        for i in keys:
            data = {"task": f"n{chance.random()}", "agent": f"a{i % n:06}", "task_type": f"k{i % 20}", "success": chance.random() < 0.5, "duration_ms": 500.0}
            yield i, "task.completed.v1", data

    def costs(keys: list[int]) -> Made:
        for i in keys:
            yield 0, "cost.incurred.v1", {"cost": 0.001, "token_usage": 5, "model": f"m{i % n:06}"}

    def streams(keys: list[int]) -> Made:
        for i in keys:
            figures = {"performance_score": chance.random(), "learning_rate": 0.01, "convergence_metric": 0.02 * chance.random(), "episode_count": 2}
            yield i, "learning.recorded.v1", {"task_type": f"k{i % 100}", "run": f"r{i:06}", **figures}

    def goals(keys: list[int]) -> Made:
        for i in keys:
            yield i, "goal.progressed.v1", {"goal_id": f"g{i % n:06}", "current": chance.choice((0.6, 1.0)), "task_type": f"k{i % n % 100}"}

    make = {
        "trust keys": trust, "variables": variables, "series": series, "agents": agents, "scopes of costs": costs, "learning streams": streams, "goals": goals,
    }[what]  # fmt: skip
    while True:
        yield make([chance.randrange(n) if chance.random() > 0.01 else n + chance.randrange(n) for _ in range(changed)])


def archive(metrics: int, times: int, only: str) -> Iterator[str]:
    """Rows of the archive queries; the newest 50,000 metrics are still in the tail."""
    if not any(only in name for name, _ in QUERIES):
        return
    settings = Given(msgspec.to_builtins(load({}, {}, None, FOLD_SETTINGS).values))
    with tempfile.TemporaryDirectory() as folder:
        now_s = (START_US + metrics * 100_000) / 1e6 + 60
        keeper = Keeper(Path(folder), dict.fromkeys(SOURCE_TOPICS, 1), clock=lambda: now_s)
        keeper.open({})
        for begin in range(0, metrics, 50_000):
            records = []
            for i in range(begin, min(metrics, begin + 50_000)):
                at_us = START_US + i * 100_000
                data = {"metric_type": ("loss", "accuracy")[i % 2], "model": "m", "run": f"r{i % 50}", "value": i % 97 / 97, "step": i, "tags": ["ab"[i % 2]]}
                records.append(Record(i, at_us // 1000, b"r", event(f"e{i}", "metric.recorded.v1", at_us, data)))
            keeper.take(("training", 0), records, records[-1].offset + 1)
            if begin + 50_000 < metrics:
                keeper.write("training")
        for name, asked in QUERIES:
            if only in name:
                params = {
                    "limit": 100,
                    "format": "json",
                    "order": "time",
                    "id": f"e{metrics // 2}",
                    **{key: value for key, value in asked.items() if key != "op"},
                }

                def ask(op: str = asked["op"], params: DATA = params) -> Any:
                    reply = answer(keeper, settings, op, "default", params)
                    assert reply["status"] == 200, reply
                    return reply["body"]

                yield row(f"`{name}`", f"{metrics:,} metrics", timed(ask, times), None, ARCHIVE_GOAL_MS)
        keeper.close()
        keeper.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--changed", type=int, default=1_000)
    parser.add_argument("--metrics", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    gc.set_threshold(50_000, 20, 100)  # as a worker has it, which is frozen at its start too
    goals = f"Goals: {GOAL_MS:g} ms for a view, {ARCHIVE_GOAL_MS:g} ms for an archive query"
    lines = [f"{goals}, by the p95 of the CPU time, which waiting for other work on the machine is no part of.", ""]
    lines += [
        f"Changing: rows of {words.changed:,} keys changed before each question, at once, or in the tenths of a second, with the lists tended in "
        "between for as long as a worker does; then also the CPU time of a turn of that, for which nothing else is done (p95). "
        "What answers with every key is no list of 100 and has no goal.",
        "",
    ]
    lines += [
        "| view | keys | kB | first, ms of CPU | median, ms | p95 | p95 of CPU | changing at once | changing | a turn |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for part in (views(words.keys, words.changed, words.times, words.only), archive(words.metrics, words.times, words.only)):
        for line in part:
            print(line, flush=True)
            lines.append(line)
    if words.write and not words.only:
        Path(__file__).with_suffix(".md").write_text(HEAD + "\n".join(lines) + "\n")
    gc.unfreeze()  # or DuckDB's binding tells at the end of everything that was not collected


if __name__ == "__main__":
    main()
