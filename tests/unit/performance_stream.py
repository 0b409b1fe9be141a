"""Random performance events, and a crash in the middle of a flush, for the tests of agents and judgments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from streams.codec import decode
from streams.keys import partition_for, record_key
from tables.fold import Fold
from tables.partition import GRAVE, HEAD, Partition, Schema
from tables.performance import Performance
from tables.performance_rows import PerformanceSettings
from tables.rows import Row, parse_wire_key
from tables.times import rfc3339
from tests.harness import Log, Rec

START_US = 1_772_409_600_000_000  # 2026-03-02
AGENTS = ("a", "b", "c|%", "ü", "e")
TYPES = ("code", "doc", None)
JUDGES = ("j1", "j2", None)
Event = dict[str, Any]


def folds(**settings: Any) -> list[Fold]:
    performance = Performance(PerformanceSettings(**settings))
    return [performance, performance.rl]


def event(n: int | str, kind: str, at_us: int, tenant: str = "golden", **data: Any) -> Event:
    """An event; fields that are None are left out."""
    body = {name: value for name, value in data.items() if value is not None}
    return {"id": f"e{n}", "type": f"{kind}.v1", "time": rfc3339(at_us), "tenant": tenant, "data": body}


def completed(n: int, success: bool = True, agent: str = "a", at_us: int | None = None, **data: Any) -> Event:
    """The n-th completion, n seconds after the start."""
    at_us = START_US + n * 1_000_000 if at_us is None else at_us
    return event(n, "task.completed", at_us, **{"task": f"k{n}", "agent": agent, "success": success, **data})


def stream(seed: int, n: int, span_s: int = 7200, repeats: float = 0.05, start_us: int = START_US) -> list[Event]:
    """Random events of every kind, roughly in the order of their times."""
    rng = random.Random(seed)
    found: list[Event] = []
    for i in range(n):
        at_us = start_us + int((i / n + rng.gauss(0, 0.02)) * span_s * 1e6)
        agent, task = rng.choice(AGENTS), f"t{rng.randrange(max(2, n // 30))}"
        execution = f"x{rng.randrange(max(2, n // 4))}"
        some_agent = rng.choice([agent, agent, None])
        dice = rng.random()
        of = {"task_type": rng.choice(TYPES), "model_version": rng.choice(["v1", "v2", None])}
        if dice < 0.22:
            one = event(i, "task.started", at_us, execution_id=execution, task=task, agent=agent, **of)
        elif dice < 0.55:
            one = event(
                i, "task.completed", at_us, execution_id=rng.choice([execution, execution, None]), task=task, agent=agent, success=rng.random() < 0.7,
                quality=rng.choice([rng.random(), None]), efficiency=rng.choice([rng.random(), None]), tokens=rng.choice([rng.randrange(1000), None]),
                duration_ms=rng.choice([rng.lognormvariate(6, 1), None]), **of,
            )  # fmt: skip
        elif dice < 0.63:
            rubrics = rng.choice([{"style": rng.random()}, None])
            one = event(i, "evaluation.completed", at_us, task=task, agent=some_agent, passed=rng.random() < 0.6, score=rng.random(), rubric_scores=rubrics)
        elif dice < 0.75:
            criteria = {name: rng.random() ** 0.3 for name in rng.sample(["relevance", "safety", "style"], rng.randrange(4))}
            one = event(
                i, "judgment.recorded", at_us, task=task, judge=rng.choice(JUDGES), agent=some_agent, criteria=criteria, overall_confidence=rng.random(),
                overall_score=rng.random() if not criteria or rng.random() < 0.3 else None, evaluation_time_ms=rng.randrange(100),
            )  # fmt: skip
        elif dice < 0.79:
            violations = [{"severity": rng.choice(["low", "medium", "high", "critical"]), "message": "m"} for _ in range(rng.randrange(3))]
            one = event(
                i, "validation.completed", at_us, task=task, agent=agent, valid=rng.random() < 0.8, violations=violations, compliance_score=rng.random(),
                processing_time_ms=rng.random() * 10, rule_count=3,
            )  # fmt: skip
        elif dice < 0.83:
            complexity = rng.choice(["trivial", "standard", "complex"])
            one = event(i, "thinking_budget.allocated", at_us, task=task, agent=some_agent, tokens=rng.randrange(9000), complexity=complexity, confidence=0.5)
        elif dice < 0.87:
            complexity = rng.choice(["trivial", None, None])
            tokens = {"tokens_used": rng.randrange(3000), "tokens_allocated": rng.randrange(1, 3000)}
            one = event(i, "thinking_budget.used", at_us, task=task, agent=some_agent, complexity=complexity, **tokens)
        elif dice < 0.90:
            one = event(
                i, "minimality.evaluated", at_us, task=task, agent=some_agent, factor=rng.uniform(0.1, 1), ast_similarity=rng.random(),
                scaffolding_penalty=rng.random(), lines_changed=rng.randrange(500), quality=rng.choice(["good", "bad"]),
            )  # fmt: skip
        elif dice < 0.92:
            one = event(i, "agent.registered", at_us, agent=agent, capabilities=rng.sample(["code", "doc", "plan"], 2), baseline={"accuracy": 0.9})
        elif dice < 0.94:
            states = ["available", "busy", "offline", "maintenance"]
            one = event(i, "agent.status_changed", at_us, agent=agent, status=rng.choice(states), previous_status=rng.choice([*states, None]))
        elif dice < 0.97:
            others = [{"agent": rng.choice(AGENTS), "score": rng.random(), "reason": "r"} for _ in range(rng.randrange(3))]
            one = event(
                i, "routing.decided", at_us, task=task, agent=agent, strategy=rng.choice(["random", "load-balance"]), confidence=rng.random(),
                alternatives=others,
            )  # fmt: skip
        elif dice < 0.985:
            one = event(
                i, "custom.recorded", at_us, name=rng.choice(["deploy", "merge"]), agent=some_agent, fields={"size": rng.random(), "ok": True, "who": "x"}
            )
        else:
            figures = {name: rng.random() for name in ("average_reward", "policy_loss", "value_loss", "kl_divergence", "training_time_ms")}
            one = event(i, "rl_metrics.recorded", at_us, run=rng.choice(["r1", None]), agent=agent, trajectories_processed=5, **figures)
        found.append(one)
        if rng.random() < repeats:
            found.append(rng.choice(found))
    return found


def rows(p: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row, as it would be on the changelog."""
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for table in p.schema.tables
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
    }


def all_rows(log: Log) -> list[dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]]:
    """The same of every partition."""
    return [rows(p) for partitions in log.topics.values() for p in partitions]


def home(one: Event, partitions: int) -> int:
    """Partition of an event."""
    decoded = decode(json.dumps({"specversion": "1.0", "source": "test", **one}).encode())
    return partition_for(record_key(decoded), partitions)


def load(p: Partition, written: Sequence[tuple[bytes, bytes]]) -> None:
    """Fill an empty partition from changelog records; the last of a key counts."""
    for raw_key, value in written:
        wire, tenant, key = parse_wire_key(raw_key)
        applied, _ = HEAD.unpack_from(value)
        table = p.schema.by_wire[wire]
        row = Row(tenant, key, applied, applied, value[HEAD.size :] or GRAVE)
        if row.state is GRAVE:
            p.space(table, tenant).pop(key, None)
            p.graves[(table.index, tenant, key)] = row
        else:
            p.graves.pop((table.index, tenant, key), None)
            p.space(table, tenant)[key] = row


def crash_everywhere(make: Callable[[], list[Fold]], records: Sequence[Rec], topic: str, rng: random.Random, times: int) -> int:
    """Crash after any part of a flush, restore, fold on; the rows must be those of an undisturbed partition. Returns how many tables were behind."""
    whole = Partition(topic, 0, Schema(make()))
    whole.absorb(records)
    expected = rows(whole)
    n = len(records)
    behind = 0
    for _ in range(times):
        first = rng.randrange(n)
        second = rng.randrange(first, n) + 1
        broken = Partition(topic, 0, Schema(make()))
        broken.absorb(records[:first])
        written = [(key, value) for key, value, _, _ in broken.drain()]
        broken.absorb(records[first:second])
        flush = [(key, value) for key, value, _, _ in broken.drain()]
        cut = rng.randrange(len(flush) + 1)
        behind += len(flush) - cut
        again = Partition(topic, 0, Schema(make()))
        load(again, [*written, *flush[:cut]])
        start = again.restored()
        again.absorb(records[start:])
        found = rows(again)
        differ = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        assert not differ, f"after {first}, {second}, {cut} of {len(flush)}: {differ}"
    return behind
