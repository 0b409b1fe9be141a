"""Valid events of every type of the contract, made from its structs: a new type is in here by being in `streams.events`.

Values are drawn within the ranges that the annotations say. Names come from small pools, so that events speak of one another: a completion
of a started execution, a resolution of an issued forecast, progress of a goal. What the contract demands across fields is left to the codec:
an event that it refuses is drawn again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from streams.codec import InvalidEvent, decode
from streams.events import SOURCE_EVENTS, ClockTicked, CollectionChanged, Data, GoalCreated, TenantCleared
from tables.times import rfc3339

Event = dict[str, Any]
START_US = 1_772_409_600_000_000
"""2026-03-02, Monday."""
POOLS: dict[str, tuple[str, ...]] = {
    "metric_id": tuple(f"metric-{n}" for n in range(2000)),
    "forecast_id": tuple(f"f{n}" for n in range(40)),
    "model": ("m0", "m1", "m|2%"),
    "run": ("r0", "r1"),
    "task_type": ("code", "doc"),
    "agent": ("a0", "a1", "a|2%", "ü"),
    "judge": ("j0", "j1"),
    "task": tuple(f"t{n}" for n in range(12)),
    "execution_id": tuple(f"x{n}" for n in range(40)),
    "variable": ("v0",),
    "goal_id": ("g0", "g1", "loss"),
    "metric": ("train.loss", "performance_score", "unknown"),
    "metric_type": ("train", "unknown"),
    "kind": ("variable", "model", "agent", "odd_kind"),
    "id": ("v0", "m0", "a0", "|"),
    "scope": ("tenant", "model:m0", "run:r0", "agent:a0", "tag:x"),
    "arc_label": ("rise", "fall"),
    "symbolic_tag": ("hope", "fear", "calm"),
    "model_version": ("1", "2"),
    "capabilities": ("code", "doc", "plan"),
    "tags": ("x", "y", "z"),
}
KEYS = {"inputs": ("v0", "v1", "v|2"), "values": ("loss", "acc"), "criteria": ("safety", "style"), "rubric_scores": ("safety", "clarity")}
RARE: dict[type[Data], float] = {TenantCleared: 0.1, CollectionChanged: 0.15, ClockTicked: 0.3}
"""How often a type is drawn beside the others (1): what ends or stops everything would leave little to look at."""


class Maker:
    """Draws events.

    Args:
        rng: chance.
        span_us: of event times, from `START_US` on.
        without: types that are left out.
    """

    def __init__(self, rng: random.Random, span_us: int = 7_200_000_000, without: Iterable[type[Data]] = ()) -> None:
        self.rng = rng
        self.span_us = span_us
        self.types = [data for data in SOURCE_EVENTS if data not in set(without)]
        self.weights = [RARE.get(data, 1.0) for data in self.types]

    def stream(self, n: int, tenants: tuple[str, ...] = ("acme",)) -> list[Event]:
        """Events roughly in the order of their times, every one valid and each with a time of its own."""
        made: list[Event] = []
        for at in range(n):
            kind = GoalCreated if at < 3 and GoalCreated in self.types else self.rng.choices(self.types, self.weights)[0]
            late_us = int(self.rng.expovariate(1 / 60e6)) if self.rng.random() < 0.2 else 0
            made.append(self.event(kind, f"e{at}", START_US + max(0, at * self.span_us // n - late_us // 64 * 64) + at % 64, self.rng.choice(tenants)))
        return made

    def event(self, data: type[Data], id: str, time_us: int, tenant: str = "acme") -> Event:
        """One event of a type."""
        for _ in range(200):
            made = {"specversion": "1.0", "id": id, "source": "test", "type": data.TYPE, "time": rfc3339(time_us), "tenant": tenant}
            made["data"] = {"until": made["time"]} if data is ClockTicked else self.fields(data, time_us)
            if data is ClockTicked:
                made["derivedfrom"] = "tick"
            try:
                decode(json.dumps(made).encode())
            except InvalidEvent:
                continue
            return made
        raise AssertionError(f"200 events of {data.TYPE} in a row were refused")

    def fields(self, struct: type[msgspec.Struct], time_us: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in described(struct):
            if field.required or self.rng.random() < 0.6:
                found[field.encode_name] = self.value(field.type, field.name, time_us)
        return found

    def value(self, kind: inspect.Type, name: str, time_us: int) -> Any:
        """A value of a field's type, within its bounds."""
        rng = self.rng
        match kind:
            case inspect.UnionType():
                return self.value(rng.choice(kind.types), name, time_us)
            case inspect.NoneType():
                return None
            case inspect.LiteralType():
                return rng.choice(kind.values)
            case inspect.BoolType():
                return rng.random() < 0.7
            case inspect.StrType():
                return rng.choice(POOLS.get(name, (f"{name} 1", f"{name} 2")))
            case inspect.IntType():
                low = max(x for x in (kind.ge, None if kind.gt is None else kind.gt + 1, 0) if x is not None)
                return int(low) + rng.randrange(200)
            case inspect.FloatType():
                low = max(x for x in (kind.ge, kind.gt, -50.0 if kind.ge is None and kind.gt is None else None) if x is not None)
                high = kind.le if kind.le is not None else low + 100
                return round(min(high, low + (high - low) * max(1e-4, rng.random())), 6)
            case inspect.DecimalType():
                return str(Decimal(rng.randrange(1, 300)) / 100)
            case inspect.DateTimeType():
                return rfc3339(time_us + rng.randrange(7_200_000_000))
            case inspect.DateType():
                return "2026-03-01"
            case inspect.DictType(value_type=inspect.AnyType()):
                return {"size": rng.random(), "who": "x", "ok": True}
            case inspect.DictType():
                names = KEYS.get(name, ("one", "two"))
                return {key: self.value(kind.value_type, key, time_us) for key in rng.sample(names, rng.randrange(len(names) + 1))}
            case inspect.ListType():
                least = kind.min_length or 0
                return [self.value(kind.item_type, name, time_us) for _ in range(least + rng.randrange(3))]
            case inspect.TupleType():
                return [self.value(item, name, time_us) for item in kind.item_types]
            case inspect.StructType():
                return self.fields(kind.cls, time_us)
        raise NotImplementedError(f"{name}: no values of {kind} can be drawn yet")


@cache
def described(struct: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """Fields of a struct."""
    found = inspect.type_info(struct)
    assert isinstance(found, inspect.StructType)
    return found.fields
