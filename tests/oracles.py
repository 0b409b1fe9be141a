"""What the oracles of the domains share: a long random stream delivered over several partitions, and ten moments at which views are compared.

An oracle keeps the raw events and computes every figure anew by brute force (numpy, scipy, pandas), from the words of the contract and from no
table. Moments grow, so that early ones see half-filled rings and late ones what they have forgotten.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from math import isclose, isnan
from typing import Any

from tables.fold import Fold

from .harness import Log

Event = dict[str, Any]
START_US = 1_772_409_600_000_000
"""2026-03-02, Monday."""
SECOND_US, MINUTE_US, HOUR_US, DAY_US = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
MOMENTS = (40, 300, 1_000, 2_500, 5_000, 8_000, 11_000, 14_000, 17_000, 20_000)
TENANT = "golden"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(time_us: float | int) -> str:
    """RFC 3339 in UTC with microseconds."""
    return (_EPOCH + timedelta(microseconds=int(time_us))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def envelope(n: int | str, kind: str, time_us: int, /, **data: Any) -> Event:
    """An event; fields that are None are left out."""
    body = {name: value for name, value in data.items() if value is not None}
    return {"id": f"e{n}", "type": f"{kind}.v1", "time": text(time_us), "time_us": time_us, "tenant": TENANT, "data": body}


def times(rng: random.Random, n: int, span_us: int, late: float = 0.1, late_us: int = HOUR_US) -> list[int]:
    """Event times in the order of delivery: rising over the span, some of them late, all different."""
    found, seen = [], set()
    for at in range(n):
        time_us = START_US + at * span_us // n + rng.randrange(1000)
        if rng.random() < late:
            time_us -= rng.randrange(late_us)
        time_us = max(START_US, time_us)
        while time_us in seen:
            time_us += 1
        seen.add(time_us)
        found.append(time_us)
    return found


def moments(
    folds: Sequence[Fold],
    events: Sequence[Event],
    *,
    alone: Callable[[Event], bool] = lambda event: False,
    partitions: int = 5,
    seed: int = 1,
    twice: float = 0.03,
) -> Iterator[tuple[Log, int]]:
    """Deliver a stream and stop at each of `MOMENTS`: (log, number of events that are in it).

    Args:
        alone: what other partitions are told of; it is delivered by itself, so that its copies have their place in the order of `events`.
        twice: share of events that come again later.
    """
    rng, log, done = random.Random(seed), Log(folds, partitions), 0
    for moment in MOMENTS:
        waiting: list[Event] = []
        for at in range(done, moment):
            event = events[at]
            if alone(event):
                log.pour(waiting)
                log.pour([event])
                waiting = []
            else:
                waiting.append(event)
            if rng.random() < twice:
                waiting.append(events[rng.randrange(max(0, at - 5000), at + 1)])
        log.pour(waiting)
        done = moment
        yield log, moment
    repeated = sum(p.counters().duplicate for found in log.topics.values() for p in found)
    assert repeated >= 0.9 * twice * len(events)


def unequal(expected: Any, found: Any, where: str = "", rel: float = 1e-9, loose: dict[str, float] | None = None) -> list[str]:
    """Where an answer differs from what is expected of it; members that are not named are not compared.

    Args:
        loose: name of a member -> relative difference allowed in it.
    """
    loose = loose or {}
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for name, value in expected.items()
            for line in (unequal(value, found[name], f"{where}.{name}", loose.get(name, rel), loose) if name in found else [f"{where}.{name} is missing"])
        ]
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(expected) != len(found):
            return [f"{where}: {len(found)} items, expected {len(expected)}"]
        return [line for at, pair in enumerate(zip(expected, found, strict=True)) for line in unequal(*pair, f"{where}[{at}]", rel, loose)]
    if type(expected).__module__ == "numpy":
        expected = expected.item()
    if isinstance(expected, float) and isnan(expected):
        expected = None
    if isinstance(expected, (int, float)) and isinstance(found, (int, float)) and bool is not type(expected) and bool is not type(found):
        if isinstance(expected, int) and isinstance(found, int):
            return [] if expected == found else [f"{where}: {found!r}, expected {expected!r}"]
        return [] if isclose(expected, found, rel_tol=rel, abs_tol=rel) else [f"{where}: {found!r}, expected {expected!r}"]
    return [] if expected == found and type(expected) is type(found) else [f"{where}: {found!r}, expected {expected!r}"]
