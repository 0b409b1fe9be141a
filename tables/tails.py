"""Whether a difference is more than luck: the exact binomial tail, and Welch's test.

The rule this file keeps: every function is of numbers alone, and gives a probability for any input in its range.
"""

from __future__ import annotations

from math import comb, inf, sqrt

from .moments import Moments, plain_sum
from .regression import p_two_sided


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of n independent trials, each with probability p: summed term by term, so exact to rounding.

    Args:
        k: successes, 0 or more.
        n: trials, some dozens.
        p: 0…1.

    Example:
        >>> binomial_tail(6, 20, 0.05) < 0.001 < binomial_tail(5, 20, 0.05)
        True
    """
    if k <= 0:
        return 1.0
    q = 1.0 - p
    return min(1.0, plain_sum(comb(n, i) * p**i * q ** (n - i) for i in range(n, k - 1, -1)))


def welch_fall(before: Moments, after: Moments) -> tuple[float | None, float]:
    """Whether a mean fell: (t, one-sided p) of Welch's test. Both sides constant: t None, p 0 if it fell, else 1.

    Args:
        before, after: two values or more each.

    Example:
        >>> t, p = welch_fall(Moments.of([0.8, 0.9, 0.85, 0.9]), Moments.of([0.4, 0.5, 0.45, 0.5]))
        >>> round(t, 4), round(p, 8)
        (11.8142, 1.09e-05)

    Source:
        B. L. Welch, "The generalization of Student's problem" (1947); degrees of freedom after Satterthwaite (1946).
    """
    fall = before.mean - after.mean
    a, b = (before.variance or 0.0) / before.n, (after.variance or 0.0) / after.n
    spread = a + b
    if spread <= 0.0:
        return None, 0.0 if fall > 0.0 else 1.0
    t = fall / sqrt(spread)
    inner = (a / spread) ** 2 / max(before.n - 1, 1) + (b / spread) ** 2 / max(after.n - 1, 1)
    half = p_two_sided(t, 1.0 / inner if inner > 0.0 else inf) / 2.0
    return t, half if t > 0.0 else 1.0 - half
