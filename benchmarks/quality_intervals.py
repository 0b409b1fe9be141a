"""How often the intervals of the trust views hold the true rate: exactly, without chance.

For n observations every possible number of successes k is folded into a key of its own and asked from ``/trust/{kind}/{id}``; the coverage
at a true rate p is the sum of the binomial probabilities of those k whose interval holds p.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import binom  # type: ignore[import-untyped]  # scipy ships no types

from tables.partition import Partition, Schema
from tables.reader import PartitionReader
from tables.trust import Trust
from tables.trust_state import TrustSettings

from .made import START_US, Record, event

SIZES = (10, 20, 50, 100, 200)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
GRID = np.linspace(0.05, 0.95, 1801)
"""Rates that means and least values are taken over."""
LOW, HIGH = 0.93, 0.97


def intervals(n: int, prior: tuple[float, float], kind: str) -> list[list[float]]:
    """What the view answers for 0…n successes of n, as [low, high].

    Args:
        kind: ``beta_interval`` or ``wald``.
    """
    fold = Trust(TrustSettings(trust_prior={"": prior}))
    p = Partition("judgments", 0, Schema([fold]))
    records = []
    for k in range(n + 1):
        for i in range(n):
            data = {"kind": "model", "id": f"k{k}", "success": (i + 1) * k // n > i * k // n}
            at = len(records)
            records.append(Record(at, START_US // 1000 + at, None, event(f"{k}-{i}", "trust.observed.v1", START_US + at * 1000, data)))
    p.absorb(records)
    reader = PartitionReader({"judgments": [p]}, {fold.rows.wire: ("judgments",)}, "default", START_US)
    view = next(view for view in fold.views if view.path == "/trust/{kind}/{id}")
    found = []
    for k in range(n + 1):
        answer = view.answer(reader, view.params(kind="model", id=f"k{k}"))
        assert answer["observations"] == n
        found.append(answer[kind])
    return found


def coverage(n: int, held: list[list[float]], rates: np.ndarray) -> np.ndarray:
    """Probability that the interval holds the rate, for each rate."""
    k = np.arange(n + 1)
    low, high = np.array(held).T
    inside = (low[None, :] <= rates[:, None]) & (rates[:, None] <= high[None, :])
    return np.asarray((binom.pmf(k[None, :], n, rates[:, None]) * inside).sum(axis=1))


def report() -> Iterator[str]:
    """The section, as lines of Markdown."""
    yield from (
        "## Coverage of the 95 % intervals of trust",
        "",
        "Exact: every number of successes of n through the fold and the view, weighted by its binomial probability. *mean*: over true rates drawn evenly",
        f"from 0.05 to 0.95; *share*: of those rates whose own coverage is within {LOW:g}–{HIGH:g}; *least*: the worst of them.",
        "",
        "| interval | n | mean | share | least | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
        "|---|---|---|---|---|" + "---|" * len(RATES),
    )
    kinds = (("Beta, prior 1, 1 (default)", (1.0, 1.0), "beta_interval"), ("Beta, prior ½, ½ (a setting)", (0.5, 0.5), "beta_interval"))
    for name, prior, kind in (*kinds, ("Wald (parity)", (1.0, 1.0), "wald")):
        for n in SIZES:
            held = intervals(n, prior, kind)
            whole = coverage(n, held, GRID)
            share = ((whole >= LOW) & (whole <= HIGH)).mean()
            at = " | ".join(f"{one:.3f}" for one in coverage(n, held, np.array(RATES)))
            yield (f"| {name} | {n} | {whole.mean():.3f} | {share:.0%} | {whole.min():.3f} | {at} |")
