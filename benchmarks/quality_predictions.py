"""Brier score and calibration of ``/predict`` on tasks that it has not seen, beside simpler predictions and logistic regression.

Tasks come from a world with agents of different skill, types of different difficulty and, where it is said, agents that suit some types
better; few agents and types have most of the tasks. The probability of success is known, so the best possible score is known too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tables.partition import Partition, Schema
from tables.performance import Performance
from tables.reader import PartitionReader

from .made import START_US, Record, event

AGENTS, TYPES, HELD_OUT, WORLDS = 30, 12, 4000, 5
SIZES = (300, 1000, 5000)
SPREADS = {"agents and types differ": (1.0, 1.0, 0.0), "agents suit types": (0.6, 0.6, 1.0), "nobody differs": (0.0, 0.0, 0.0)}
"""Standard deviations in log odds: of agents, of types, of pairs."""
Pairs = np.ndarray


def world(seed: int, spreads: tuple[float, float, float], n: int) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """(n tasks as rows of agent and type, their successes, probability of success of each pair)."""
    rng = np.random.default_rng(seed)
    odds = 0.8 + spreads[0] * rng.normal(size=(AGENTS, 1)) + spreads[1] * rng.normal(size=(1, TYPES)) + spreads[2] * rng.normal(size=(AGENTS, TYPES))
    chances = 1 / (1 + np.exp(-odds))
    often = [1 / np.arange(1, size + 1) for size in (AGENTS, TYPES)]
    tasks = np.stack([rng.choice(len(one), n, p=one / one.sum()) for one in often], axis=1)
    return tasks, rng.random(n) < chances[tasks[:, 0], tasks[:, 1]], chances


def asked(tasks: Pairs, successes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What ``/predict`` says of every pair after these tasks: probability, and interval."""
    fold = Performance()
    p = Partition("judgments", 0, Schema([fold, fold.rl]))
    records = []
    for i, ((agent, kind), success) in enumerate(zip(tasks, successes, strict=True)):
        data = {"task": f"t{i}", "agent": f"a{agent}", "task_type": f"k{kind}", "success": bool(success)}
        records.append(Record(i, START_US // 1000 + i, None, event(f"e{i}", "task.completed.v1", START_US + i * 1000, data)))
    p.absorb(records)
    assert p.counters().folded == len(records)
    reader = PartitionReader({"judgments": [p]}, {table.wire: ("judgments",) for table in fold.tables}, "default", START_US)
    view = next(view for view in fold.views if view.path == "/predict")
    chances, intervals = np.empty((AGENTS, TYPES)), np.empty((AGENTS, TYPES, 2))
    for agent in range(AGENTS):
        for kind in range(TYPES):
            answer: dict[str, Any] = view.answer(reader, view.params(agent=f"a{agent}", task_type=f"k{kind}"))
            chances[agent, kind], intervals[agent, kind] = answer["probability"], answer["interval"]
    return chances, intervals


def mean_of(tasks: Pairs, successes: np.ndarray, by: tuple[int, ...]) -> np.ndarray:
    """Success rate by agent (0), type (1), both or neither, each with one success and one failure added; of every pair."""
    shape = tuple((AGENTS, TYPES)[axis] if axis in by else 1 for axis in (0, 1))
    n, s = np.zeros(shape), np.zeros(shape)
    place = tuple(tasks[:, axis] if axis in by else np.zeros(len(tasks), dtype=int) for axis in (0, 1))
    np.add.at(n, place, 1)
    np.add.at(s, place, successes)
    return np.broadcast_to((s + 1) / (n + 2), (AGENTS, TYPES))


def regression(tasks: Pairs, successes: np.ndarray) -> np.ndarray | None:
    """Logistic regression on agent and type, L2 with scikit-learn's default strength; None where that is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    features = np.concatenate([np.eye(AGENTS)[tasks[:, 0]], np.eye(TYPES)[tasks[:, 1]]], axis=1)
    model = LogisticRegression(max_iter=1000).fit(features, successes)
    every = np.array([(agent, kind) for agent in range(AGENTS) for kind in range(TYPES)])
    whole = np.concatenate([np.eye(AGENTS)[every[:, 0]], np.eye(TYPES)[every[:, 1]]], axis=1)
    return np.asarray(model.predict_proba(whole)[:, 1]).reshape(AGENTS, TYPES)


def calibration_error(p: np.ndarray, y: np.ndarray) -> float:
    """Mean distance of stated chance and rate over ten bins, weighted by their sizes."""
    place = np.minimum((p * 10).astype(int), 9)
    return float(sum(abs(p[place == k].sum() - y[place == k].sum()) for k in range(10)) / len(p))


def report() -> Iterator[str]:
    """The section, as lines of Markdown."""
    yield from (
        "## Predictions of success",
        "",
        f"{AGENTS} agents, {TYPES} types, a few of which have most of the tasks; the mean of {WORLDS} worlds, each with {HELD_OUT} tasks held out. Brier score",
        "(the less the better; *possible*: with the true chances), in brackets the calibration error of ten bins. *interval*: share of held-out tasks whose",
        "true chance lies in the 90 % interval of `/predict`.",
        "",
        "| world | tasks seen | `/predict` | base rate | mean of the agent | mean of agent and type | logistic regression | possible | interval |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    missing = False
    for name, spreads in SPREADS.items():
        for size in SIZES:
            found: dict[str, list[tuple[float, float]]] = {}
            inside = []
            for seed in range(WORLDS):
                tasks, successes, chances = world(seed, spreads, size + HELD_OUT)
                seen, outcome, after, y = tasks[:size], successes[:size], tasks[size:], successes[size:]
                ours, intervals = asked(seen, outcome)
                said = {
                    "ours": ours, "base": mean_of(seen, outcome, ()), "agent": mean_of(seen, outcome, (0,)),
                    "both": mean_of(seen, outcome, (0, 1)), "regression": regression(seen, outcome), "possible": chances,
                }  # fmt: skip
                for key, table in said.items():
                    missing = missing or table is None
                    if table is not None:
                        p = table[after[:, 0], after[:, 1]]
                        found.setdefault(key, []).append((float(np.mean((p - y) ** 2)), calibration_error(p, y)))
                low, high = np.moveaxis(intervals, 2, 0)
                inside.append(((low <= chances) & (chances <= high))[after[:, 0], after[:, 1]].mean())
            cells = []
            for key in ("ours", "base", "agent", "both", "regression", "possible"):
                brier, error = np.mean(found[key], axis=0) if key in found else (np.nan, np.nan)
                cells.append(f"{brier:.4f} ({error:.3f})")
            yield f"| {name} | {size} | " + " | ".join(cells) + f" | {np.mean(inside):.0%} |"
    if missing:
        yield from ("", "scikit-learn is not installed (`pip install 'pulsefold[dev]'`): no logistic regression.")
