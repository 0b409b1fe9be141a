"""Whether the next task of a type by an agent will succeed, and how good such predictions have been.

The rules this file keeps: the evidence of the levels is disjoint, so nothing is counted twice; each level shrinks towards
the one above it with the strength m, so that unknown agents and types are answered too; a prediction is scored with what was
known before the outcome.

Source: partial pooling as in A. Gelman et al., "Bayesian Data Analysis" (2013), chapter 5, with a fixed strength; G. W. Brier,
"Verification of forecasts expressed in terms of probability" (1950); prequential scoring after A. P. Dawid (1984).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import NamedTuple

import msgspec

from .moments import plain_sum

BINS = 10
CLIP = 1e-12
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken."""


class Evidence(NamedTuple):
    """Successes `s` of `n` executions."""

    n: int = 0
    s: int = 0

    def without(self, *others: Evidence) -> Evidence:
        """What is left when parts of it are taken out."""
        return Evidence(self.n - sum(one.n for one in others), self.s - sum(one.s for one in others))


class Level(NamedTuple):
    """A level: its name, its evidence, and the probability estimated there."""

    name: str
    n: int
    estimate: float


class Prediction(NamedTuple):
    """A Beta distribution of the probability of success, and the levels it rests on, from coarse to fine."""

    alpha: float
    beta: float
    levels: list[Level]

    @property
    def probability(self) -> float:
        """Mean of the distribution."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def basis(self) -> str:
        """The finest level with evidence; ``prior`` if there is none."""
        return next((level.name for level in reversed(self.levels) if level.n > 0), "prior")


def backed_off(tenant: tuple[int, int], task_type: tuple[int, int], agent: tuple[int, int], both: tuple[int, int], strength: float) -> float:
    """Probability that the next task of the type by the agent succeeds: the mean of `predict`, without its levels.

    Args:
        tenant: all executions and successes; task_type: those of the type; agent: by the agent; both: of the type by the agent.
        strength: m, weight of each level's estimate in the next, > 0.
    """
    all_n, all_s = tenant
    type_n, type_s = task_type
    agent_n, agent_s = agent
    n, s = both
    p0 = (all_s - type_s - agent_s + s + 1.0) / (all_n - type_n - agent_n + n + 2.0)
    p1 = (type_s - s + strength * p0) / (type_n - n + strength)
    p2 = (agent_s - s + strength * p1) / (agent_n - n + strength)
    return (s + strength * p2) / (n + strength)


def predict(tenant: Evidence, task_type: Evidence | None, agent: Evidence | None, both: Evidence, strength: float) -> Prediction:
    """The prediction for what is given.

    Args:
        tenant: all executions.
        task_type, agent: all of the type, all by the agent; None = not asked for.
        both: of the type by the agent.
        strength: m, weight of each level's estimate in the next, > 0.

    Example:
        >>> p = predict(Evidence(28, 19), Evidence(19, 12), None, Evidence(), 10.0)
        >>> round(p.probability, 7), p.basis
        (0.6614421, 'task_type')
    """
    m = strength
    rest = tenant
    if agent is not None:
        rest = rest.without(agent)
    if task_type is not None:
        rest = rest.without(task_type)
    if agent is not None and task_type is not None:
        rest = Evidence(rest.n + both.n, rest.s + both.s)
    p = (rest.s + 1.0) / (rest.n + 2.0)
    levels = [Level("tenant", rest.n, p)]
    if agent is None and task_type is None:
        return Prediction(rest.s + 1.0, rest.n - rest.s + 1.0, levels)
    steps: list[tuple[str, Evidence]] = []
    if agent is not None and task_type is not None:
        steps = [("task_type", task_type.without(both)), ("agent", agent.without(both)), ("agent_task_type", both)]
    elif agent is not None:
        steps = [("agent", agent)]
    elif task_type is not None:
        steps = [("task_type", task_type)]
    alpha = beta = 1.0
    for name, (n, s) in steps:
        alpha, beta = s + m * p, n - s + m * (1.0 - p)
        p = alpha / (n + m)
        levels.append(Level(name, n, p))
    return Prediction(alpha, beta, levels)


class Score(msgspec.Struct, array_like=True, gc=False):
    """How good predictions were: sums that merge by adding.

    Attributes:
        n: outcomes predicted.
        brier, log_loss: sums of (p − y)² and of −ln of the probability given to what happened (nats).
        brier_base: sum of (b − y)² of the base rate b.
        bins: per tenth of probability: how many, sum of p, how many succeeded.
    """

    n: int = 0
    brier: float = 0.0
    brier_base: float = 0.0
    log_loss: float = 0.0
    bins: list[tuple[int, float, int]] = msgspec.field(default_factory=lambda: [(0, 0.0, 0)] * BINS)

    def add(self, p: float, base: float, success: bool) -> None:
        """Score one prediction.

        Args:
            p, base: probability of success predicted, and the base rate, 0…1.
            success: what happened.
        """
        y = 1.0 if success else 0.0
        self.n += 1
        self.brier += (p - y) * (p - y)
        self.brier_base += (base - y) * (base - y)
        right = p if success else 1.0 - p
        self.log_loss -= log(right if right > CLIP else CLIP)
        place = int(p * BINS)
        if place >= BINS:
            place = BINS - 1
        n, total, wins = self.bins[place]
        self.bins[place] = (n + 1, total + p, wins + success)

    @classmethod
    def merged(cls, scores: Iterable[Score]) -> Score:
        """One score of several; they stay as they are."""
        whole = cls()
        for one in scores:
            whole.n += one.n
            whole.brier += one.brier
            whole.brier_base += one.brier_base
            whole.log_loss += one.log_loss
            whole.bins = [(a + d, b + e, c + f) for (a, b, c), (d, e, f) in zip(whole.bins, one.bins, strict=True)]
        return whole

    def render(self) -> dict[str, object]:
        """n, Brier score, that of the base rate, skill, log loss (nats), expected calibration error and the bins; null without outcomes."""
        n = self.n
        brier, base = (self.brier / n, self.brier_base / n) if n else (None, None)
        ece = plain_sum(abs(total - wins) for _, total, wins in self.bins) / n if n else None
        return {
            "n": n,
            "brier": brier,
            "brier_base": base,
            "skill": 1.0 - self.brier / self.brier_base if n and self.brier_base > 0.0 else None,
            "log_loss": self.log_loss / n if n else None,
            "ece": ece,
            "bins": [
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "n": count,
                    "mean_probability": total / count if count else None,
                    "rate": wins / count if count else None,
                }
                for i, (count, total, wins) in enumerate(self.bins)
            ],
        }
