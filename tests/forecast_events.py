"""Forecasts, registrations and performance updates to fold, and the rows that come of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from tables.partition import Partition
from tables.times import rfc3339
from tests.harness import Log

START_US = 1_772_409_600_000_000  # 2026-03-02
NAMES = ("a", "b", "c|%", "d,e", "ü")
Event = dict[str, Any]


def forecast(n: int, inputs: dict[str, float] | None = None, at_us: int | None = None, tenant: str = "golden", **data: Any) -> Event:
    """The n-th forecast, n seconds after the start."""
    body = {"forecast_id": f"f{n}", "inputs": inputs or {}, **data}
    time = rfc3339(START_US + n * 1_000_000 if at_us is None else at_us)
    return {"id": f"e{n}", "type": "forecast.issued.v1", "time": time, "tenant": tenant, "data": body}


def registration(n: int, name: str, **data: Any) -> Event:
    time = rfc3339(START_US + n * 1_000_000)
    return {"id": f"r{n}", "type": "variable.registered.v1", "time": time, "tenant": "golden", "data": {"name": name, **data}}


def update(n: int, variable: str, score: dict[str, Any]) -> Event:
    data = {"variable": variable, "new_score": score}
    return {
        "id": f"u{n}",
        "type": "variable.performance_updated.v1",
        "time": rfc3339(START_US + n * 1_000_000),
        "tenant": "golden",
        "data": data,
    }


def stream(seed: int, n: int, names: Iterable[str] = NAMES, models: int = 5, hours: int = 80) -> list[Event]:
    """Random forecasts of several models, registrations and performance updates; times out of order over `hours`."""
    rng = random.Random(seed)
    names = list(names)
    found: list[Event] = []
    for i in range(n):
        dice = rng.random()
        if dice < 0.06:
            low = rng.choice([None, -1.0, 0.0])
            found.append(registration(i, rng.choice(names), kind=rng.choice(["market", None]), low=low, high=rng.choice([None, 1.0])))
        elif dice < 0.12:
            found.append(update(i, rng.choice(names), {"i": i}))
        else:
            inputs = {name: rng.choice([rng.gauss(0, 1), 0.5, 1e9 + rng.random()]) for name in rng.sample(names, rng.randint(0, len(names)))}
            data: dict[str, Any] = {"confidence": rng.random(), "fragility": rng.random() ** 2, "certified": rng.random() < 0.8}
            if rng.random() < 0.6:
                data["alignment_score"] = rng.choice([rng.random(), None])
            if rng.random() < 0.9:
                data["model"] = f"m{rng.randrange(models)}"
            if rng.random() < 0.7:
                data["symbolic_tag"] = rng.choice(["hope", "rage", "calm"])
            if rng.random() < 0.5:
                data["arc_label"] = rng.choice(["Hope", "Rage"])
            at_s = rng.choice([i * hours * 3600 // n, rng.randrange(hours * 3600 + 1)])  # half of them in order
            found.append(forecast(i, inputs, START_US + at_s * 1_000_000, **data))
    return found


def rows(p: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row of the folds, as it would be on the changelog."""
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for fold in p.schema.folds
        for table in fold.tables
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
    }


def all_rows(log: Log) -> list[dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]]:
    return [rows(p) for p in log.topics["forecasts"]]


def resolution(n: int, forecast_id: str, success: bool, at_us: int | None = None, tenant: str = "golden", **data: Any) -> Event:
    """The n-th resolution, n seconds after the start."""
    time = rfc3339(START_US + n * 1_000_000 if at_us is None else at_us)
    body = {"forecast_id": forecast_id, "success": success, **data}
    return {"id": f"x{n}", "type": "forecast.resolved.v1", "time": time, "tenant": tenant, "data": body}
