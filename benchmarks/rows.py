"""How many rows and bytes a key costs, with its history full: what docs/scaling.md multiplies.

Run: ``python -m benchmarks.rows``. No broker is needed: the folds are the product's, on one partition in memory. A row's size is that of
its changelog record: key, value and about 60 bytes of record and headers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from typing import Any

from agents.registry import folds
from tables.rows import wire_key
from tests.harness import Log

T0 = 1_795_000_000


def events(n: int, every_s: float, **of: Any) -> Iterator[dict[str, Any]]:
    """n events of a type, `every_s` seconds apart; callables in `data` get the number."""
    for i in range(n):
        data = {name: value(i) if callable(value) else value for name, value in of["data"].items()}
        stamp = T0 + i * every_s
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp)) + f".{int(stamp % 1 * 1e6):06}Z"
        yield {"id": f"{of['type']}-{i}", "type": of["type"], "time": text, "tenant": "golden", "data": data}


rng = random.Random(1)
KEYS: dict[str, list[dict[str, Any]]] = {
    "a key of trust, 200 observations": [
        dict(n=200, every_s=1, type="trust.observed.v1", data={"kind": "model", "id": "model-0001", "success": lambda i: i % 3 > 0})
    ],
    "a variable over 48 h, 480 forecasts": [
        dict(n=480, every_s=360, type="forecast.issued.v1", data={"model": "m", "confidence": 0.7, "inputs": lambda i: {"variable-0001": rng.random()}})
    ],
    "4 variables, 100 forecasts awaiting results": [
        dict(
            n=100,
            every_s=1,
            type="forecast.issued.v1",
            data={"model": "m", "forecast_id": lambda i: f"forecast-{i:06}", "inputs": {f"variable-{i:04}": 1.0 for i in range(4)}},
        )
    ],
    "a series of metrics, 2,000 values in 6 h": [
        dict(
            n=2000,
            every_s=10.8,
            type="metric.recorded.v1",
            data={"metric_type": "loss", "model": "m", "run": "run-0001", "value": lambda i: rng.expovariate(1)},
        )
    ],
    "a series of metrics, 20,000 values in 30 d": [
        dict(
            n=20_000,
            every_s=129.6,
            type="metric.recorded.v1",
            data={"metric_type": "loss", "model": "m", "run": "run-0001", "value": lambda i: rng.expovariate(1)},
        )
    ],
    "a learning stream, 1,000 events": [
        dict(
            n=1000,
            every_s=10,
            type="learning.recorded.v1",
            data={
                "task_type": "t",
                "run": "r",
                "performance_score": lambda i: rng.random(),
                "learning_rate": 0.1,
                "episode_count": lambda i: i,
                "convergence_metric": 0.5,
            },
        )
    ],
    "a goal, 200 values": [
        dict(n=1, every_s=1, type="goal.created.v1", data={"goal_id": "goal-0001", "target": 1, "task_type": "t"}),
        dict(n=200, every_s=1, type="goal.progressed.v1", data={"goal_id": "goal-0001", "current": lambda i: i / 300, "task_type": "t"}),
    ],
    "an agent, 500 tasks": [
        dict(n=500, every_s=10, type="task.started.v1", data={"execution_id": lambda i: f"x{i}", "task": lambda i: f"t{i}", "agent": "agent-0001"}),
        dict(
            n=500,
            every_s=10,
            type="task.completed.v1",
            data={
                "execution_id": lambda i: f"x{i}",
                "task": lambda i: f"t{i}",
                "agent": "agent-0001",
                "success": lambda i: i % 9 > 0,
                "quality": 0.8,
                "duration_ms": lambda i: rng.expovariate(0.001),
            },
        ),
    ],
    "a scope of costs, 60 days": [dict(n=600, every_s=8640, type="cost.incurred.v1", data={"cost": 0.25, "model": "model-0001"})],
}


def main() -> None:
    """Measure and print; what every partition has anyway (counters, ids, watermark) is left out."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    common = {"counters", "watermark", "ids"}
    print(f"{'key':46} {'rows':>6} {'bytes':>9} {'largest row':>12}")
    for name, parts in KEYS.items():
        log = Log(folds())
        for part in parts:
            log.send(events(**part))
        rows = [
            len(table.dump(row)) + len(wire_key(table.wire, tenant, key)) + 60
            for partitions in log.topics.values()
            for partition in partitions
            for table in log.schema.tables
            if table.name not in common
            for tenant, space in partition.spaces[table.index].items()
            for key, row in space.items()
        ]
        print(f"{name:46} {len(rows):6} {sum(rows):9} {max(rows):12}")


if __name__ == "__main__":
    main()
