"""The tests of `tables.two_samples`, of many pairs of samples at once, and rounding.

The rule this file keeps: every figure is the one that the function of one pair gives, to the last bit. So the arithmetic is in
the same order; logarithms and the like, which numpy rounds otherwise, are those of `math`; and a fraction goes on
until it has converged for its own pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .two_samples import _TINY, student_p

Array = Any
"""A numpy array of doubles, a number a pair."""


def proportions(k1: Array, n1: Array, k2: Array, n2: Array) -> Array:
    """p of `tables.two_samples.two_proportions`."""
    pooled = (k1 + k2) / (n1 + n2)
    spread = pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n2)
    p = np.ones(len(spread))
    some = spread > 0.0
    z = (k2[some] / n2[some] - k1[some] / n1[some]) / np.sqrt(spread[some])
    p[some] = _each(math.erfc, np.abs(z) / math.sqrt(2.0))
    return p


def welches(n1: Array, mean1: Array, m2_1: Array, n2: Array, mean2: Array, m2_2: Array) -> Array:
    """p of `tables.two_samples.welch`."""
    v1 = m2_1 / (n1 - 1) / n1
    v2 = m2_2 / (n2 - 1) / n2
    both = v1 + v2
    p = np.where(mean1 == mean2, 1.0, 0.0)
    some = both > 0.0
    n1, n2, v1, v2, both = n1[some], n2[some], v1[some], v2[some], both[some]
    t = (mean2[some] - mean1[some]) / np.sqrt(both)
    s1, s2 = v1 / both, v2 / both
    p[some] = students(t, 1.0 / (s1 * s1 / (n1 - 1) + s2 * s2 / (n2 - 1)))
    return p


def students(t: Array, degrees: Array) -> Array:
    """p of `tables.two_samples.student_p`; `t` is never NaN."""
    with np.errstate(over="ignore", under="ignore"):
        share = t * t / degrees
        p = np.where(share == 0.0, 1.0, 0.0)
        some = np.isfinite(share) & (share > 0.0)
        large = some & (degrees >= 1e5)
        p[large] = list(map(student_p, t[large].tolist(), degrees[large].tolist()))
        some &= ~large
        p[some] = _by_fractions(share[some], degrees[some])
    return p


def _by_fractions(share: Array, degrees: Array) -> Array:
    a = degrees / 2.0
    log_x = -_each(math.log1p, share)
    x = 1.0 / (1.0 + share)
    front = _each(math.exp, a * log_x + 0.5 * (_each(math.log, share) + log_x) - _log_beta_half(a))
    tail = x < (a + 1.0) / (a + 2.5)
    half = np.full(len(a), 0.5)
    fraction = _fractions(np.where(tail, a, half), np.where(tail, half, a), np.where(tail, x, share * x))
    return np.where(tail, np.minimum(1.0, front * fraction / a), np.maximum(0.0, 1.0 - 2.0 * front * fraction))


def _each(function: Callable[[float], float], x: Array) -> Array:
    return np.array(list(map(function, x.tolist())), dtype=np.float64)


def _log_beta_half(a: Array) -> Array:
    found = np.zeros(len(a))
    few = a < 40.0
    b = a[few]
    found[few] = _each(math.lgamma, b) + 0.5 * math.log(math.pi) - _each(math.lgamma, b + 0.5)
    b = a[~few]
    r = 1.0 / b
    series = r * (-1 / 8 + r * (1 / 128 + r * (5 / 1024 + r * (-21 / 32768 + r * (-399 / 262144 + r * 869 / 4194304)))))
    found[~few] = 0.5 * _each(math.log, math.pi / b) - _each(math.log1p, series)
    return found


def _fractions(a: Array, b: Array, x: Array) -> Array:
    answer = np.zeros(len(a))
    at = np.arange(len(a))
    c = np.ones(len(a))
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / np.where(np.abs(d) > _TINY, d, _TINY)
    found = d
    for m in range(1, 500 if len(a) else 0):
        even = a + 2 * m
        for step in (m * (b - m) * x / ((even - 1.0) * even), -(a + m) * (a + b + m) * x / (even * (even + 1.0))):
            d = 1.0 + step * d
            d = 1.0 / np.where(np.abs(d) > _TINY, d, _TINY)
            c = 1.0 + step / c
            c = np.where(np.abs(c) > _TINY, c, _TINY)
            found = found * (d * c)
        more = np.abs(d * c - 1.0) >= 1e-15
        if not more.all():
            answer[at[~more]] = found[~more]
            at, a, b, x, c, d, found = at[more], a[more], b[more], x[more], c[more], d[more], found[more]
            if not len(at):
                break
    answer[at] = found
    return answer


def rounded_all(x: Array) -> Array:
    """Each to 4 decimals, as `round` does it; 0 to 1."""
    tens = x * 1e4
    found = np.rint(tens) / 1e4
    close = np.flatnonzero(np.abs(tens - np.floor(tens) - 0.5) < 1e-6)  # to a tie, which the product may have got to the other side of
    found[close] = [round(one, 4) for one in x[close].tolist()]
    return found


def adjusted_all(p: Array) -> Array:
    """q of every p, as `tables.two_samples.adjusted` gives them."""
    n = len(p)
    order = np.argsort(p)[::-1]  # the order of equal ones does not matter: all get the q of the first
    q = np.empty(n)
    q[order] = np.minimum.accumulate(np.minimum(1.0, p[order] * n / np.arange(n, 0, -1)))
    return q
