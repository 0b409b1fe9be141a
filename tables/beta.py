"""Success rates: what (alpha, beta) pseudo-counts say, and how surely.

The rule this file keeps: every function is of numbers alone and gives a number for any positive pseudo-counts.
"""

from __future__ import annotations

from math import erf, erfc, exp, floor, sqrt

from .special import betaincc, betainccinv, betaincinv

_SQRT2 = sqrt(2.0)


def level(z: float) -> float:
    """Confidence level of an interval of ±z standard deviations, ``2Φ(z)−1``.

    Example:
        >>> round(level(1.96), 10)
        0.9500042097
    """
    return erf(z / _SQRT2)


def tail(z: float) -> float:
    """Probability on each side of that interval, ``(1−L)/2``.

    Example:
        >>> round(tail(1.96), 10)
        0.0249978951
    """
    return 0.5 * erfc(z / _SQRT2)


TAIL_95 = tail(1.96)
"""Probability above the upper end of the 95 % interval that alerts are judged by."""


def wald(alpha: float, beta: float, z: float) -> list[float]:
    """Normal approximation of the success rate, cut to 0…1; the prior counts in n.

    Too short near 0 and 1: kept for parity with the earlier trackers, `interval` is the better one.

    Args:
        alpha, beta: pseudo-counts, > 0.
        z: half width in standard deviations, > 0.

    Returns:
        [low, high]

    Example:
        >>> [round(x, 10) for x in wald(7.0, 5.0, 1.96)]
        [0.3043885625, 0.8622781042]

    Source:
        Wald's interval; trust.md §3.
    """
    n = alpha + beta
    p = alpha / n
    half = z * sqrt(p * (1.0 - p) / n)
    return [max(0.0, p - half), min(1.0, p + half)]


def interval(alpha: float, beta: float, z: float) -> list[float]:
    """Credible interval of the success rate: equal-tailed quantiles of Beta(alpha, beta).

    Args:
        alpha, beta: pseudo-counts, > 0.
        z: sets the level, see `level`.

    Returns:
        [low, high], within 0…1

    Example:
        >>> [round(x, 8) for x in interval(7.0, 5.0, 1.96)]
        [0.30790005, 0.83251538]

    Source:
        Regularised incomplete beta function and its inverse, DLMF §8.17.
    """
    outside = tail(z)
    return [float(betaincinv(alpha, beta, outside)), float(betainccinv(alpha, beta, outside))]


def quantiles(alpha: float, beta: float, outside: float) -> list[float]:
    """Equal-tailed quantiles of Beta(alpha, beta).

    Args:
        alpha, beta: pseudo-counts, > 0.
        outside: probability on each side, 0…0.5.

    Returns:
        [low, high], within 0…1

    Example:
        >>> [round(x, 6) for x in quantiles(20.0, 10.0, 0.05)]
        [0.520988, 0.799504]
    """
    return [float(betaincinv(alpha, beta, outside)), float(betainccinv(alpha, beta, outside))]


def upper(alpha: float, beta: float, z: float) -> float:
    """Upper end of `interval`."""
    return float(betainccinv(alpha, beta, tail(z)))


def upper_is_below(alpha: float, beta: float, limit: float) -> bool:
    """Whether the upper end of the 95 % interval (z = 1.96) lies below a limit; cheap where the case is clear.

    Args:
        alpha, beta: pseudo-counts, > 0.
        limit: a rate, 0…1.

    With alpha ≥ 1 and n ≥ 20 at least 0.367 of the probability lies above the mean, and where the distribution leans right
    (alpha ≤ beta) at least 0.135 lies more than one standard deviation above it; both are more than the 0.025 outside.
    With alpha below 1 neither holds.

    Example:
        >>> upper_is_below(5.0, 45.0, 0.4), upper_is_below(5.0, 15.0, 0.4)
        (True, False)

    Source:
        Cantelli's inequality for the other side: at most 1/(1+k²) lies k standard deviations or more above the mean;
        k² = 40 gives 0.0244.
    """
    n = alpha + beta
    room = limit * n - alpha  # n times the way from the mean up to the limit
    if alpha >= 1.0 and n >= 20.0 and room <= 0.0:
        return False
    ways = room * room * (n + 1.0)  # against alpha·beta: the square of that way in standard deviations
    spread = alpha * beta
    if alpha >= 1.0 and n >= 20.0 and alpha <= beta and ways <= spread:
        return False
    if room > 0.0 and ways >= 40.0 * spread:
        return True
    return bool(betaincc(alpha, beta, limit) < TAIL_95)


def strength(effective_n: float, k: float, mid: float) -> float:
    """How much evidence there is, 0…1: the logistic curve ``1/(1+e^(−k·(ne−mid)))``.

    Args:
        effective_n: evidence beyond the prior.
        k: steepness per observation.
        mid: evidence at which it is 0.5.

    Example:
        >>> round(strength(0.0, 0.1, 10.0), 4), strength(10.0, 0.1, 10.0), strength(1e300, 0.1, 10.0)
        (0.2689, 0.5, 1.0)
    """
    x = k * (effective_n - mid)
    if x >= 0.0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


MOST = 2.0**53


def sample_size(effective_n: float) -> int:
    """Whole observations in the evidence, ``⌊ne + 1e-9⌋`` (parity), at most 2⁵³: beyond that a weight is no count, and an answer cannot carry it.

    Example:
        >>> sample_size(9.88), sample_size(2.9999999999), sample_size(1e300) == 2**53
        (9, 3, True)
    """
    return floor(min(effective_n + 1e-9, MOST))
