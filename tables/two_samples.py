"""Is a difference more than chance: two-sided tests of two samples, and how many tests at one look are read together.

The rules this file keeps: plain arithmetic from the standard library; what cannot be known is None, never NaN; two sides
without any spread are no division by zero, but equal (p 1) or different (p 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, erfc, exp, inf, isfinite, lgamma, log, log1p, pi, sqrt, tanh

Z_95 = 1.959963984540054
"""Φ⁻¹(0.975)."""
_TINY = 1e-300


def normal_p(z: float) -> float:
    """Probability of a standard normal variable at least as far from 0.

    Example:
        >>> round(normal_p(1.96), 9)
        0.04999579
    """
    return erfc(abs(z) / sqrt(2.0))


def student_p(t: float, degrees: float) -> float:
    """Probability of a Student's t at least as far from 0, to about 1e-11 of itself.

    Args:
        t: the statistic; infinite gives 0.
        degrees: of freedom, above 0, not necessarily whole.

    Example:
        >>> round(student_p(2.0, 10), 9), round(student_p(-1.0, 1), 9)
        (0.073388035, 0.5)

    Source:
        Regularised incomplete beta function by its continued fraction, DLMF 8.17.22; from 100,000 degrees on Hill,
        "Algorithm 395: Student's t-distribution" (1970).
    """
    if not isfinite(t):
        return 0.0
    share = t * t / degrees
    if share == 0.0:
        return 1.0
    if not isfinite(share):
        return 0.0
    if degrees >= 1e5:
        a = degrees - 0.5
        b = 48.0 * a * a
        y = a * log1p(share)
        z = (((((-0.4 * y - 3.3) * y - 24.0) * y - 85.5) / (0.8 * y * y + 100.0 + b) + y + 3.0) / b + 1.0) * sqrt(y)
        return normal_p(z)
    a = degrees / 2.0
    log_x = -log1p(share)
    x = 1.0 / (1.0 + share)
    front = exp(a * log_x + 0.5 * (log(share) + log_x) - _log_beta_half(a))
    if x < (a + 1.0) / (a + 2.5):
        return min(1.0, front * _fraction(a, 0.5, x) / a)
    return max(0.0, 1.0 - 2.0 * front * _fraction(0.5, a, share * x))


def _log_beta_half(a: float) -> float:
    """ln B(a, 1/2); for large a by the series of a ratio of gamma functions, where their difference would lose digits."""
    if a < 40.0:
        return lgamma(a) + 0.5 * log(pi) - lgamma(a + 0.5)
    r = 1.0 / a
    series = r * (-1 / 8 + r * (1 / 128 + r * (5 / 1024 + r * (-21 / 32768 + r * (-399 / 262144 + r * 869 / 4194304)))))
    return 0.5 * log(pi / a) - log1p(series)


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method; some 60 steps at most where it is called."""
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    found = d
    for m in range(1, 500):
        even = a + 2 * m
        for step in (m * (b - m) * x / ((even - 1.0) * even), -(a + m) * (a + b + m) * x / (even * (even + 1.0))):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + step / c
            c = c if abs(c) > _TINY else _TINY
            found *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return found


def two_proportions(k1: int, n1: int, k2: int, n2: int) -> tuple[float, float]:
    """Whether two shares differ: (z of the second against the first with the pooled share, p).

    Args:
        k1, n1: successes and trials before, n1 at least 1.
        k2, n2: and after.

    Example:
        >>> [round(x, 6) for x in two_proportions(55, 61, 20, 41)]
        [-4.644843, 3e-06]
    """
    pooled = (k1 + k2) / (n1 + n2)
    spread = pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n2)
    if spread <= 0.0:
        return 0.0, 1.0
    z = (k2 / n2 - k1 / n1) / sqrt(spread)
    return z, normal_p(z)


def welch(n1: int, mean1: float, m2_1: float, n2: int, mean2: float, m2_2: float) -> tuple[float | None, float | None, float]:
    """Whether two means differ, whatever the variances: (t of the second against the first, degrees of freedom, p).

    Args:
        n1, mean1, m2_1: count (at least 2), mean and sum of squared deviations before.
        n2, mean2, m2_2: and after.

    Returns:
        Without any spread on either side t and the degrees are None where the means differ (p 0), else t is 0 (p 1).

    Source:
        Welch, "The generalization of 'Student's' problem when several different population variances are involved" (1947).
    """
    v1 = m2_1 / (n1 - 1) / n1
    v2 = m2_2 / (n2 - 1) / n2
    both = v1 + v2
    if both <= 0.0:
        return (0.0, None, 1.0) if mean1 == mean2 else (None, None, 0.0)
    t = (mean2 - mean1) / sqrt(both)
    # as shares of the sum, so that no square of a tiny variance is lost
    s1, s2 = v1 / both, v2 / both
    degrees = 1.0 / (s1 * s1 / (n1 - 1) + s2 * s2 / (n2 - 1))
    return t, degrees, student_p(t, degrees)


def adjusted(ps: Sequence[float]) -> list[float]:
    """q of each p: the share of false alarms among all tests with a p no greater, if they were all told.

    Example:
        >>> adjusted([0.01, 0.04, 0.03])
        [0.03, 0.04, 0.04]

    Source:
        Benjamini, Hochberg, "Controlling the false discovery rate" (1995), as step-up adjusted p-values.
    """
    n = len(ps)
    qs = [1.0] * n
    least = 1.0
    for rank, i in zip(range(n, 0, -1), sorted(range(n), key=ps.__getitem__, reverse=True), strict=True):
        least = min(least, ps[i] * n / rank)
        qs[i] = least
    return qs


def r_interval(r: float, n: int) -> list[float] | None:
    """95 % interval of a correlation, by Fisher's z.

    Args:
        r: -1 to 1.
        n: pairs.

    Returns:
        [low, high]; None below 4 pairs; [r, r] where all pairs lie on a line.
    """
    if n < 4:
        return None
    if abs(r) >= 1.0:
        return [r, r]
    middle, half = atanh(r), Z_95 / sqrt(n - 3)
    return [tanh(middle - half), tanh(middle + half)]


def correlation_p(r: float, n: int) -> float:
    """p of the hypothesis that there is no correlation.

    Args:
        r: -1 to 1.
        n: pairs, at least 3.
    """
    rest = (1.0 - r) * (1.0 + r)
    return student_p(r * sqrt((n - 2) / rest) if rest > 0.0 else inf, n - 2)
