"""A stream of every event type, for the benchmarks that fold without a broker: `WORKLOADS`.

The keys are constant in number (100 to 1,000) but where the table says otherwise; names that are new each time (tasks, executions, forecasts)
are new here too. Events come 100 a second of event time, but where a type comes more seldom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from agents.registry import schema
from streams.topics import SOURCE_TOPICS
from tables.partition import Partition, Schema

from .made import START_US, Record, event

PARTITIONS = 8
Data = dict[str, Any]
Maker = Callable[[int, Random], tuple[str, Data]]


@dataclass(frozen=True)
class Workload:
    """A stream of events.

    Attributes:
        topic: without prefix.
        keys: how many, in words.
        make: (place, chance) -> type and data.
        first: what has to be there before.
        per_s: events a second of event time.
        carried: events in one record of the stream: observations of a batch, values of a metric of several (each is a series of its own, with its
            windows, anomalies and alerts, as if it had come in a record of its own).
    """

    topic: str
    keys: str
    make: Maker
    first: tuple[tuple[str, Data], ...] = ()
    per_s: float = 100.0
    carried: int = 1


def forecast(i: int, rng: Random) -> tuple[str, Data]:
    inputs = {f"x{rng.randrange(1000)}": round(rng.gauss(0, 1), 4) for _ in range(5)}
    figures = {"confidence": round(rng.random(), 4), "fragility": round(rng.random(), 4), "certified": rng.random() < 0.8}
    return "forecast.issued.v1", {"forecast_id": f"f{i}", "model": f"m{rng.randrange(200)}", **figures, "inputs": inputs}


def forecast_and_result(i: int, rng: Random) -> tuple[str, Data]:
    if i % 2 == 0:
        inputs = {f"x{rng.randrange(1000)}": round(rng.gauss(0, 1), 4) for _ in range(5)}
        return "forecast.issued.v1", {"forecast_id": f"f{i}", "model": f"m{i // 2 % 200}", "confidence": 0.7, "inputs": inputs}
    return "forecast.resolved.v1", {"forecast_id": f"f{i - 1}", "model": f"m{i // 2 % 200}", "success": rng.random() < 0.7}


def result(i: int, rng: Random) -> tuple[str, Data]:
    return "forecast.resolved.v1", {"forecast_id": f"f{i}", "model": f"m{rng.randrange(200)}", "success": rng.random() < 0.7, "probability": 0.7}


def metric(i: int, rng: Random) -> tuple[str, Data]:
    return "metric.recorded.v1", {"metric_type": "loss", "model": "m", "run": f"r{rng.randrange(100)}", "value": round(1 + rng.random() / 100, 5), "step": i}


def metric_with_cost(i: int, rng: Random) -> tuple[str, Data]:
    return "metric.recorded.v1", {**metric(i, rng)[1], "cost": round(rng.random() / 1000, 6), "token_usage": 100}


def metric_of_many(i: int, rng: Random) -> tuple[str, Data]:
    values = {"loss": rng.random(), "accuracy": rng.random(), "grad_norm": rng.random()}
    return "metric.recorded.v1", {"metric_type": "eval", "model": "m", "run": f"r{rng.randrange(100)}", "values": values, "step": i}


def learned(i: int, rng: Random) -> tuple[str, Data]:
    figures = {"performance_score": rng.random(), "learning_rate": 0.01, "episode_count": i, "convergence_metric": 0.05 + rng.random()}
    return "learning.recorded.v1", {"task_type": f"t{rng.randrange(10)}", "run": f"r{rng.randrange(100)}", **figures}


def rl(i: int, rng: Random) -> tuple[str, Data]:
    figures = {name: round(rng.random(), 5) for name in ("average_reward", "policy_loss", "value_loss", "kl_divergence", "training_time_ms")}
    return "rl_metrics.recorded.v1", {"run": f"r{rng.randrange(100)}", "agent": f"a{rng.randrange(100)}", "trajectories_processed": 8, **figures}


def goal(i: int, rng: Random) -> tuple[str, Data]:
    return "goal.created.v1", {"goal_id": f"g{i}", "target": 1.0, "task_type": "t"}


def progress(i: int, rng: Random) -> tuple[str, Data]:
    return "goal.progressed.v1", {"goal_id": f"g{rng.randrange(100)}", "current": rng.random(), "task_type": "t"}


def cost(i: int, rng: Random) -> tuple[str, Data]:
    return "cost.incurred.v1", {"cost": round(rng.random() / 1000, 6), "token_usage": 50, "model": f"m{rng.randrange(100)}"}


def cost_of_many(i: int, rng: Random) -> tuple[str, Data]:
    scopes = {"model": f"m{rng.randrange(100)}", "run": f"r{rng.randrange(100)}", "agent": f"a{rng.randrange(100)}", "tags": ["x", "y"]}
    return "cost.incurred.v1", {"cost": round(rng.random() / 1000, 6), "token_usage": 50, **scopes}


def refund(i: int, rng: Random) -> tuple[str, Data]:
    return "cost.refunded.v1", {"cost": round(rng.random() / 1000 + 1e-6, 6), "model": f"m{rng.randrange(100)}"}


def budget(i: int, rng: Random) -> tuple[str, Data]:
    return "budget.set.v1", {"scope": f"model:m{rng.randrange(100)}", "period": "daily", "limits": [{"level": "warning", "at": 5 + i % 7}]}


def observed(keys: int) -> Maker:
    def make(i: int, rng: Random) -> tuple[str, Data]:
        return "trust.observed.v1", {"kind": "variable", "id": f"v{rng.randrange(keys)}", "success": rng.random() < 0.7}

    return make


def newly_observed(i: int, rng: Random) -> tuple[str, Data]:
    return "trust.observed.v1", {"kind": "variable", "id": f"v{i}", "success": True}


def batch(i: int, rng: Random) -> tuple[str, Data]:
    return "trust.batch_observed.v1", {"observations": [observed(1000)(i, rng)[1] for _ in range(20)]}


def decay(i: int, rng: Random) -> tuple[str, Data]:
    return "trust.decayed.v1", {"kind": "variable", "id": f"v{rng.randrange(1000)}", "factor": 0.99}


def imported(i: int, rng: Random) -> tuple[str, Data]:
    return "trust.imported.v1", {"kind": "variable", "id": f"v{rng.randrange(1000)}", "alpha": 3.0, "beta": 2.0}


def about(i: int, rng: Random) -> Data:
    return {"task": f"t{i}", "agent": f"a{rng.randrange(100)}"}


def started(i: int, rng: Random) -> tuple[str, Data]:
    return "task.started.v1", {**about(i, rng), "execution_id": f"x{i}", "task_type": f"k{rng.randrange(10)}"}


def completed(i: int, rng: Random) -> tuple[str, Data]:
    figures = {"success": rng.random() < 0.9, "quality": round(rng.random(), 3), "tokens": 500, "duration_ms": round(rng.expovariate(0.001), 1)}
    return "task.completed.v1", {**about(i, rng), "execution_id": f"x{i}", "task_type": f"k{rng.randrange(10)}", **figures}


def started_and_completed(i: int, rng: Random) -> tuple[str, Data]:
    same = {"task": f"t{i // 2}", "agent": f"a{i // 2 % 100}", "execution_id": f"x{i // 2}", "task_type": f"k{i // 2 % 10}"}
    return ("task.completed.v1", {**same, "success": rng.random() < 0.9, "quality": 0.8}) if i % 2 else ("task.started.v1", same)


def evaluated(i: int, rng: Random) -> tuple[str, Data]:
    return "evaluation.completed.v1", {**about(i, rng), "passed": rng.random() < 0.8, "score": rng.random(), "rubric_scores": {"style": rng.random()}}


def validated(i: int, rng: Random) -> tuple[str, Data]:
    figures = {"violations": [{"severity": "low", "message": "m"}], "compliance_score": rng.random(), "processing_time_ms": 5, "rule_count": 3}
    return "validation.completed.v1", {**about(i, rng), "valid": rng.random() < 0.95, **figures}


def allocated(i: int, rng: Random) -> tuple[str, Data]:
    return "thinking_budget.allocated.v1", {**about(i, rng), "tokens": 2000, "complexity": "standard", "confidence": 0.5}


def used(i: int, rng: Random) -> tuple[str, Data]:
    return "thinking_budget.used.v1", {**about(i, rng), "tokens_used": rng.randrange(1500), "tokens_allocated": 2000, "complexity": "standard"}


def minimal(i: int, rng: Random) -> tuple[str, Data]:
    figures = {"factor": 0.8, "ast_similarity": rng.random(), "scaffolding_penalty": rng.random(), "lines_changed": 20, "quality": "good"}
    return "minimality.evaluated.v1", {**about(i, rng), **figures}


def judged(i: int, rng: Random) -> tuple[str, Data]:
    criteria = {"relevance": rng.random(), "safety": rng.random(), "style": rng.random()}
    return "judgment.recorded.v1", {**about(i, rng), "judge": f"j{rng.randrange(10)}", "overall_confidence": 0.8, "criteria": criteria, "evaluation_time_ms": 9}


def custom(i: int, rng: Random) -> tuple[str, Data]:
    return "custom.recorded.v1", {"name": "deploy", "agent": f"a{rng.randrange(100)}", "fields": {"size": rng.random(), "ok": True}}


def registered(i: int, rng: Random) -> tuple[str, Data]:
    return "agent.registered.v1", {"agent": f"a{rng.randrange(100)}", "capabilities": ["code", "plan"], "baseline": {"accuracy": 0.9}}


def status(i: int, rng: Random) -> tuple[str, Data]:
    return "agent.status_changed.v1", {"agent": f"a{rng.randrange(100)}", "status": rng.choice(["available", "busy", "offline"])}


def routed(i: int, rng: Random) -> tuple[str, Data]:
    others = [{"agent": f"a{rng.randrange(100)}", "score": rng.random(), "reason": "r"} for _ in range(2)]
    return "routing.decided.v1", {**about(i, rng), "strategy": "load-balance", "confidence": rng.random(), "alternatives": others}


def variable(i: int, rng: Random) -> tuple[str, Data]:
    return "variable.registered.v1", {"name": f"x{rng.randrange(1000)}", "kind": "market", "low": -1.0, "high": 1.0}


def updated(i: int, rng: Random) -> tuple[str, Data]:
    return "variable.performance_updated.v1", {"variable": f"x{rng.randrange(1000)}", "new_score": {"score": rng.random()}}


WORKLOADS: dict[str, Workload] = {
    "trust.observed": Workload("judgments", "1,000", observed(1000)),
    "trust.observed, 100,000 keys": Workload("judgments", "100,000", observed(100_000)),
    "trust.observed, each of a new key": Workload("judgments", "growing", newly_observed),
    "trust.batch_observed, 20 each": Workload("judgments", "1,000", batch, carried=20),
    "trust.decayed": Workload("judgments", "1,000", decay, tuple(imported(0, Random(i)) for i in range(5000))),
    "trust.imported": Workload("judgments", "1,000", imported),
    "forecast.issued, 5 inputs": Workload("forecasts", "1,000 variables, 200 models", forecast),
    "forecast.resolved, not joined": Workload("forecasts", "200 models", result),
    "forecast.issued and .resolved": Workload("forecasts", "1,000 variables, 200 models", forecast_and_result),
    "variable.registered": Workload("forecasts", "1,000", variable),
    "variable.performance_updated": Workload("forecasts", "1,000", updated),
    "metric.recorded": Workload("training", "100 series", metric),
    "metric.recorded with cost": Workload("training", "100 series", metric_with_cost),
    "metric.recorded, 3 values": Workload("training", "300 series", metric_of_many, carried=3),
    "learning.recorded": Workload("training", "1,000 streams", learned),
    "rl_metrics.recorded": Workload("training", "100 agents", rl),
    "goal.created": Workload("training", "growing to 10,000", goal),
    "goal.progressed": Workload("training", "100", progress, tuple(goal(i, Random(0)) for i in range(100))),
    "cost.incurred": Workload("costs", "100 models", cost),
    "cost.incurred, 6 scopes": Workload("costs", "302 scopes", cost_of_many),
    "cost.refunded": Workload("costs", "100 models", refund),
    "budget.set": Workload("costs", "100 models", budget),
    "task.started": Workload("judgments", "100 agents, each of a new execution", started),
    "task.completed": Workload("judgments", "100 agents, each of a new execution", completed),
    "task.started and .completed": Workload("judgments", "100 agents", started_and_completed),
    "evaluation.completed": Workload("judgments", "100 agents", evaluated),
    "validation.completed": Workload("judgments", "100 agents", validated),
    "judgment.recorded": Workload("judgments", "100 agents, 10 judges", judged),
    "thinking_budget.allocated": Workload("judgments", "100 agents", allocated),
    "thinking_budget.used": Workload("judgments", "100 agents", used),
    "minimality.evaluated": Workload("judgments", "100 agents", minimal),
    "routing.decided": Workload("judgments", "100 agents", routed),
    "agent.registered": Workload("judgments", "100", registered),
    "agent.status_changed": Workload("judgments", "100", status),
    "custom.recorded": Workload("judgments", "100 agents", custom),
}
"""Commands for a whole tenant (``tenant.cleared``, ``collection.changed``, ``trust.decayed`` of all keys) and ``clock.ticked`` are no streams."""


class Feed:
    """A workload folded into one partition, in chunks as they come from Kafka, and what it derives into another one of its topic.

    Attributes:
        p: the partition.
        others: where derived events go, by topic: a second partition, for their keys spread over all.
        derived: how many there were.
    """

    def __init__(self, of: Workload, found: Schema | None = None) -> None:
        self.of = of
        found = found or schema()
        self.p = Partition(of.topic, 0, found, count=PARTITIONS)
        self.others = {topic: Partition(topic, 1, found, count=PARTITIONS) for topic in SOURCE_TOPICS}
        self.rng = Random(1)
        self.n = self.derived = 0
        self.first = [event(f"s{i}", kind, START_US, data) for i, (kind, data) in enumerate(of.first)]
        self.p.absorb([Record(i, START_US // 1000, None, raw) for i, raw in enumerate(self.first)])

    def chunk(self, size: int) -> list[Record]:
        """The next records."""
        found, base = [], len(self.first)
        for i in range(self.n, self.n + size):
            at_us = START_US + int(i / self.of.per_s * 1e6)
            kind, data = self.of.make(i, self.rng)
            found.append(Record(base + i, at_us // 1000, None, event(f"e{i}", kind, at_us, data)))
        self.n += size
        return found

    def absorb(self, records: list[Record]) -> None:
        """Fold them, and the events that they derive."""
        self.p.absorb(records)
        self._derive(self.p, records[-1].timestamp)

    def _derive(self, p: Partition, timestamp: int) -> None:
        found: dict[str, list[Record]] = {}
        for out in p.outputs:
            if out.topic in self.others and out.value is not None:
                into = found.setdefault(out.topic, [])
                into.append(Record(self.others[out.topic].next + len(into), timestamp, out.key, out.value))
        p.outputs = []
        for topic, records in found.items():
            self.derived += len(records)
            self.others[topic].absorb(records)
            self._derive(self.others[topic], timestamp)

    def drain(self) -> None:
        """Encode the changed rows, as for the changelog."""
        for p in (self.p, *self.others.values()):
            for _ in p.drain():
                pass

    def settle(self) -> None:
        """Rows are clean."""
        for p in (self.p, *self.others.values()):
            for dirty in p.dirty:
                dirty.clear()

    def check(self) -> None:
        """Every record was folded, or the benchmark would measure something else."""
        counters = self.p.counters()
        assert counters.folded == self.n + len(self.first), counters
