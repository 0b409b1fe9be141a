"""The laws that every table keeps, as functions that raise AssertionError where one is broken.

  replay      rows and outputs do not depend on how the log is cut, nor on a restart in between
  redelivery  a crash at any place of a flush, and any event sent again, changes nothing
  split       one partition or eight: every view gives the same figures
  purity      an event and rows that were not opened stay as they are; the clock, chance and the hash seed change nothing
  bounds      rows stay under 64 KiB, and more events of the same names make no more rows
  versions    what a fold reads of its settings is part of its rows' key, and so is a table's version

A law takes `make`, which makes the folds, and asks for nothing else: a table is under the laws by being in the registry.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streams.events import SOURCE_EVENTS, ClockTicked, Data, TenantCleared
from streams.topics import SOURCE_TOPICS
from tables.fold import BadParameter, Fold, View
from tables.partition import HEAD, OWN, Bounds, Partition, Schema

from .harness import Log
from .unit.performance_stream import crash_everywhere, load, rows
from .valid_events import KEYS, POOLS, START_US, Event, Maker

Make = Callable[[], list[Fold]]
MOST_BYTES = 64 << 10
HOUR_US = 3_600_000_000
PER_PARTITION = {"late", "expired", "overflow", "abandoned"}
"""Figures that each partition has of its own (common rules §12.3)."""


def folded(make: Make, events: Sequence[Event], partitions: int = 1, bounds: Bounds | None = None) -> Log:
    """A log of these events and its rows."""
    log = Log(make(), partitions, bounds)
    log.send(events)
    return log


def maker_for(make: Make, seed: int, span_us: int = 7_200_000_000, without: tuple[type[Data], ...] = ()) -> Maker:
    """Events of the types that the folds look at."""
    handled = {data for fold in make() for data in fold.handlers}
    return Maker(random.Random(seed), span_us, [data for data in SOURCE_EVENTS if data not in handled or data in without])


def told(p: Partition) -> list[tuple[Any, ...]]:
    return [(o.topic, o.key, o.value, o.partition) for o in p.outputs]


# ---- replay


def replay(make: Make, seed: int = 1, n: int = 500) -> None:
    """Folded at once, and in chunks with a restart from the changelog between them: the same rows and outputs to the bit."""
    rng = random.Random(seed)
    log = folded(make, maker_for(make, seed).stream(n))
    for topic in SOURCE_TOPICS:
        records = log.records[(topic, 0)]
        whole = Partition(topic, 0, Schema(make()))
        whole.absorb(records)
        assert rows(whole) == rows(log.topics[topic][0]), f"{topic}: one by one and at once"
        part, outputs, written, at = Partition(topic, 0, Schema(make())), [], [], 0
        while at < len(records):
            size = rng.randrange(1, 60)
            part.absorb(records[at : at + size])
            at += size
            outputs += told(part)
            part.outputs = []
            written += [(key, value) for key, value, _, _ in part.drain()]
            if rng.random() < 0.3:
                part = Partition(topic, 0, Schema(make()))
                load(part, written)
                assert part.restored() == min(at, len(records))
        assert_same(rows(whole), rows(part), f"{topic}: in chunks with restarts")
        assert outputs == told(whole), f"{topic}: what is put out depends on chunks or restarts"


def assert_same(one: dict[Any, Any], other: dict[Any, Any], where: str) -> None:
    """Two sets of rows are equal to the bit."""
    differ = sorted({key for key in one.keys() | other.keys() if one.get(key) != other.get(key)})
    assert not differ, f"{where}: {len(differ)} rows differ, the first {differ[0]}: {one.get(differ[0])} and {other.get(differ[0])}"


# ---- redelivery


def redelivery(make: Make, seed: int = 4, n: int = 260, times: int = 12) -> None:
    """A crash after any part of a flush, then the log again from the last commit: the same rows. Every event twice: the same views."""
    rng = random.Random(seed)
    stream = maker_for(make, seed).stream(n)
    once = folded(make, stream)
    for topic in SOURCE_TOPICS:
        if len(once.records[(topic, 0)]) > 1:
            crash_everywhere(make, once.records[(topic, 0)], topic, rng, times)
    twice = folded(make, [event for event in stream for _ in range(2)])
    differ = view_differences(once, twice, passed_over={"duplicates", "duplicate"})
    assert not differ, differ[:5]


# ---- split and merge


def split(make: Make, seed: int = 3, n: int = 700, partitions: int = 8) -> None:
    """The same events over several partitions: every view gives the same figures (common rules §12.3)."""
    stream = [one_home_a_key(event) for event in maker_for(make, seed, without=(TenantCleared,)).stream(n)]
    differ = view_differences(folded(make, stream), folded(make, stream, partitions), passed_over=PER_PARTITION)
    differ = [text for text in differ if not (text.startswith("/predict ") and ": .score." in text)]  # made of each partition's own predictions
    assert not differ, differ[:8]


def one_home_a_key(event: Event) -> Event:
    """A batch with each key once, as the SDK makes them: what travels on from a batch is single observations, and each is a point of a history."""
    if event["type"] == "trust.batch_observed.v1":
        each = {(one["kind"], one["id"]): one for one in event["data"]["observations"]}
        event["data"]["observations"] = list(each.values())
    return event


def questions(folds: Sequence[Fold], known: Mapping[str, Sequence[Any]] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every view with every name that the events may hold.

    Args:
        known: name of a parameter -> values; default `NAMES`.

    Raises:
        KeyError: a view requires a parameter that nobody has names for: give it some in `NAMES`.
    """
    known = NAMES if known is None else known
    seen = set()
    for view in (view for fold in folds for view in fold.views):
        if view.path in seen:
            continue
        seen.add(view.path)
        fields = msgspec.structs.fields(view.params)
        required = [field.encode_name for field in fields if field.required]
        for values in itertools.product(*(known[name] for name in required)):
            path, params = filled(view, dict(zip(required, values, strict=True)))
            yield path, params
            for field in fields:
                if not field.required and "str" in str(field.type):
                    for value in known.get(field.encode_name, ())[:3]:
                        yield path, {**params, field.encode_name: value}


NAMES: dict[str, tuple[Any, ...]] = {
    **{name: pool for name, pool in POOLS.items() if name not in ("metric", "metric_type", "forecast_id")},
    "kind": (*POOLS["kind"], "judge"),
    "id": (*POOLS["id"], "j0", *POOLS["agent"][1:], *POOLS["goal_id"]),
    "name": KEYS["inputs"],
    "metric": ("train.loss", "train", "unknown.acc", "learning.performance_score", "task.quality", "task.success", "rl.policy_loss", "task.duration_ms"),
    "task": POOLS["task_type"],
    "tag": POOLS["tags"],
    "amount": ("5",),
    "panel": ("curves", "scores", "rates", "goals"),
}  # fmt: skip


def filled(view: View, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path with its names in place, and the other parameters."""
    path = view.path
    for name in [name for name in values if "{" + name + "}" in path]:
        path = path.replace("{" + name + "}", values.pop(name))
    return path, values


def view_differences(one: Log, other: Log, passed_over: set[str], now_us: int = START_US + 3 * HOUR_US) -> list[str]:
    """Where views of two logs answer differently, floats to 1e-9. Each view must know something."""
    found: list[str] = []
    known: dict[str, bool] = {}
    for path, params in questions(one.folds):
        answers = [ask(log, path, params, now_us) for log in (one, other)]
        template = path.split("/")[1] + str(path.count("/"))
        known[template] = known.get(template, False) or answers[0].get("status") != 404
        found += [f"{path} {params}: {text}" for text in differences(answers[0], answers[1], passed_over)]
    assert all(known.values()), f"nothing is known to {[name for name, any_ in known.items() if not any_]}"
    return found


def ask(log: Log, path: str, params: dict[str, Any], now_us: int) -> dict[str, Any]:
    """A view's answer, a refused parameter as one."""
    try:
        return log.get(path, "acme", now_us, **params)
    except (BadParameter, msgspec.ValidationError) as refused:
        return {"status": 400, "detail": str(refused)}


def differences(one: Any, other: Any, passed_over: set[str], where: str = "", rel: float = 1e-9) -> list[str]:
    """Where two answers differ; keys in `passed_over` are not looked at."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - passed_over
        return [d for key in sorted(keys, key=str) for d in differences(one.get(key), other.get(key), passed_over, f"{where}.{key}", rel)]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for at, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, passed_over, f"{where}[{at}]", rel)]
    if isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=rel, abs_tol=rel):
        return []
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


# ---- purity


def purity(make: Make, seed: int = 4, n: int = 300) -> None:
    """A handler changes neither its event nor a row that it did not open."""
    stream = maker_for(make, seed).stream(n)
    watched = make()
    for fold in watched:
        fold.handlers = {data: _leaves_event(handler) for data, handler in fold.handlers.items()}
        fold.repeats = {data: _leaves_event(handler) for data, handler in fold.repeats.items()}
        fold.runs = {}
    log = folded(make, stream)
    for topic in SOURCE_TOPICS:
        p = Partition(topic, 0, Schema(watched))
        for record in log.records[(topic, 0)]:
            for marks in p.dirty:
                marks.clear()
            before = {id(row): (table.dump(row), row) for table, row in every_row(p)}
            p.absorb([record])
            for table, row in every_row(p):
                was = before.get(id(row))
                changed = was is None or was[0] != table.dump(row)
                assert not changed or row in p.dirty[table.index], f"{table.name} {row.key}: changed at {record.offset} without being opened"
                assert not changed or table in OWN or row.applied == record.offset, f"{table.name} {row.key}: has not absorbed {record.offset}"
        assert_same(rows(log.topics[topic][0]), rows(p), f"{topic}: the watched folds")


def _leaves_event(handler: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def watched(event: Any, p: Any) -> None:
        before = msgspec.json.encode(event)
        try:
            handler(event, p)
        finally:
            assert msgspec.json.encode(event) == before, f"{event.data.TYPE}: the event was changed by {handler}"

    return watched


def every_row(p: Partition) -> Iterator[tuple[Any, Any]]:
    """(table, row) of a partition."""
    for table in p.schema.tables:
        for space in p.spaces[table.index].values():
            for row in space.values():
                yield table, row


def not_repeatable(*makes: str) -> dict[str, list[str]]:
    """Tables that two processes with other clocks, chances and hash seeds make differently, of each way to make folds.

    Args:
        makes: ``MODULE:NAME`` of what makes the folds.
    """
    found: list[dict[str, dict[str, str]]] = []
    for seed, days in (("1", "0"), ("77", "400")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-m", "tests.laws", days, *makes], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout))
    one, other = found
    return {make: sorted(name for name in one[make].keys() | other[make].keys() if one[make].get(name) != other[make].get(name)) for make in makes}


def _digests(make: Make) -> dict[str, str]:
    """Digest of every table's rows, and of what was put out."""
    log = folded(make, maker_for(make, 5).stream(400), partitions=2)
    found = {table.name: hashlib.sha256() for table in log.schema.tables}
    for p in (p for partitions in log.topics.values() for p in partitions):
        for table in p.schema.tables:
            for tenant, space in sorted(p.spaces[table.index].items()):
                for key, row in sorted(space.items()):
                    found[table.name].update(repr((p.topic, p.number, tenant, key, row.applied, table.dump(row))).encode())
    outputs = hashlib.sha256(repr([(o.topic, o.key, o.value, o.partition, o.headers) for o in log.outputs]).encode())
    return {name: digest.hexdigest() for name, digest in {**found, "(outputs)": outputs}.items()}


# ---- bounds


def bounds(make: Make, seed: int = 7, n: int = 1500) -> None:
    """No row over 64 KiB, and twice as many events of the same names and hours make hardly more rows: rings are full, not longer."""
    maker = maker_for(make, seed, 600_000_000, without=(TenantCleared, ClockTicked))
    log = Log(make(), 1, Bounds(dedupe_window=64))
    counts: list[dict[str, int]] = []
    for at in range(4):
        log.pour({**event, "id": f"{at}-{event['id']}"} for event in maker.stream(n))
        found = dict.fromkeys((table.name for table in log.schema.tables), 0)
        for p in (p for partitions in log.topics.values() for p in partitions):
            for table, row in every_row(p):
                found[table.name] += 1
                size = len(table.dump(row)) + HEAD.size
                assert size <= MOST_BYTES, f"{table.name} {row.key}: {size} bytes"
        counts.append(found)
    for name, last in counts[-1].items():
        assert last - counts[1][name] <= 0.6 * counts[1][name] + 8, f"{name}: {[count[name] for count in counts]} rows after each {n} events of the same names"


# ---- versions


def versions(make: Make) -> None:
    """Another version of any table is another generation of rows, and none of the old is read as one of the new."""
    plain = Schema(make())
    for at, table in enumerate(plain.tables):
        if table in OWN:
            continue
        folds = make()
        changed = [t for fold in folds for t in fold.tables][at - len(OWN)]
        assert changed.name == table.name
        changed.version += 1
        other = Schema(folds)
        assert other.generation != plain.generation, table.name
        assert not set(other.wires) & set(plain.wires), table.name


def settings(log: Log, changed: Make, what: str) -> bool:
    """Settings change the rows' key, or else no row of the same log. Returns whether they change the key.

    Args:
        log: folded by the other settings.
    """
    if log.schema.generation != Schema(changed()).generation:
        return True
    for topic in SOURCE_TOPICS:
        p = Partition(topic, 0, Schema(changed()))
        p.absorb(log.records[(topic, 0)])
        assert_same(rows(log.topics[topic][0]), rows(p), what)
    return False


def other(value: Any) -> Iterator[Any]:
    """Values that a setting could have instead."""
    match value:
        case bool():
            yield not value
        case None:
            yield from (5, 0.5)
        case int():
            yield from (value // 2, value + 1, 2 * value)
        case str():
            yield from ("off" if value == "on" else "on", value + "x")
        case dict():
            for parts in zip(*(list(other(part)) for part in value.values()), strict=False):
                yield dict(zip(value, parts, strict=True))
        case tuple():
            yield value[1:]
            for parts in zip(*(list(other(part)) for part in value), strict=False):
                yield parts
        case _:
            yield from (value / 2, value * 2, value + 1)


if __name__ == "__main__":
    import time
    from datetime import datetime, timedelta

    shift_s = float(sys.argv[1]) * 86_400
    wall, wall_ns = time.time, time.time_ns
    time.time = lambda: wall() + shift_s
    time.time_ns = lambda: wall_ns() + int(shift_s * 1e9)
    found = {}
    for asked in sys.argv[2:]:
        module, _, name = asked.partition(":")
        found[asked] = getattr(importlib.import_module(module), name)

    class Shifted(datetime):
        """A datetime whose present is another."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=shift_s)

    for module_name, loaded in list(sys.modules.items()):
        if module_name.startswith("tables.") and getattr(loaded, "datetime", None) is datetime:
            loaded.datetime = Shifted  # type: ignore[attr-defined]  # read at run time only: annotations are evaluated already
    print(json.dumps({asked: _digests(make) for asked, make in found.items()}))
