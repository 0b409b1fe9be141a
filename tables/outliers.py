"""Outliers: how far a value lies from the last 100 before it, in their standard deviations.

The rule this file keeps: whether a value is an outlier, and its z, are what `score` says of exactly those 100 values, summed
exactly and so in any order alike. Running sums only answer the common case, that a value is certainly none, and are trusted
only while their rounding cannot matter (`Running.certainly_inside`); they are part of the state, so a replay is equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

import msgspec

WINDOW = 100
"""Finite values before a value that it is compared with."""

_HUGE, _TINY = 1e150, 1e-140
_UP, _DOWN = 2.0**600, 2.0**-600
_MARGIN = 0.98
"""Share of the squared limit up to which running sums may say that a value is no outlier."""
_STALE = WINDOW


def score(values: Sequence[float], x: float) -> tuple[float | None, float, float]:
    """z of a value, and the mean and sum of squared deviations of the values it is compared with.

    Args:
        values: finite, 2 or more.
        x: finite.

    Returns:
        z, signed: None where all values are equal (or too near to one another for a double to tell); mean; sum of squared
        deviations (nan where the values are beyond 1e150 or all below 1e-140 in magnitude: it may be no double).

    Example:
        >>> score([1.0, 3.0, 2.0], 4.0)
        (2.0, 2.0, 2.0)
    """
    low, high = min(values), max(values)
    if low == high:
        return None, low, 0.0
    n = len(values)
    largest = max(-low, high)
    if _TINY < largest < _HUGE:
        mean = fsum(values) / n
        m2 = fsum([(value - mean) * (value - mean) for value in values])
        return ((x - mean) / sqrt(m2 / (n - 1)) if m2 > 0.0 else None), mean, m2
    scale = _UP if largest <= _TINY else _DOWN  # powers of two: exact
    scaled = [value * scale for value in values]
    mean = fsum(scaled) / n
    m2 = fsum([(value - mean) * (value - mean) for value in scaled])
    return ((x * scale - mean) / sqrt(m2 / (n - 1)) if m2 > 0.0 else None), mean / scale, float("nan")


class Running(msgspec.Struct, array_like=True, gc=False):
    """Sums of the last up to 100 values around a centre, good enough to tell that a value is no outlier.

    Attributes:
        centre: a mean they once had.
        s1, s2: sums of (value - centre) and of its squares.
        peak: greatest s2 on the way since they were exact: what rounding errors are measured by.
        age: values entered since then; 100: not to be trusted.
    """

    centre: float = 0.0
    s1: float = 0.0
    s2: float = 0.0
    peak: float = 0.0
    age: int = _STALE

    def certainly_inside(self, x: float, n: int, limit2: float) -> bool:
        """Whether the value is no outlier, beyond any doubt of rounding. False says nothing.

        At most 100 steps, each with three roundings of at most peak * 1.2e-16, leave s2 - s1 * s1 / n within 1e-12 * peak: a
        millionth of it where it is above 1e-6 * peak. Deviations have to be large against the spacing of doubles near the centre.

        Args:
            n: number of values, 2 or more.
            limit2: square of the z above which a value is an outlier.
        """
        shift = self.s1 / n
        m2 = self.s2 - self.s1 * shift
        gap = x - self.centre - shift
        return self.age < _STALE and m2 > 1e-6 * self.peak and m2 > 1e-18 * n * self.centre * self.centre and gap * gap * (n - 1) <= _MARGIN * limit2 * m2

    def restart(self, mean: float, m2: float) -> None:
        """Begin anew from exact sums."""
        self.centre = mean
        self.s1 = 0.0
        self.s2 = self.peak = m2
        self.age = 0 if m2 > 0.0 and m2 - m2 == 0.0 else _STALE

    def enter(self, x: float, leaving: float | None) -> None:
        """Take in a value, and out the one that it pushes out of the window."""
        d = x - self.centre
        s2 = self.s2 + d * d
        self.s1 += d
        if s2 > self.peak:
            self.peak = s2
        if leaving is not None:
            d = leaving - self.centre
            self.s1 -= d
            s2 -= d * d
        self.s2 = s2
        self.age += 1
