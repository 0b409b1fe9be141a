"""Sums that merge: count, mean, squared deviations, least and greatest value, and the same for pairs.

The rule this file keeps: sums are taken around the running mean, never of raw squares, so a million values near 1e9 lose
nothing; and any split of the values, folded apart and merged, gives the same sums (to rounding).

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979), formula 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import inf, isfinite, sqrt
from operator import add

import msgspec


def plain_sum(values: Iterable[float]) -> float:
    """Sum of doubles, added one after the other and rounded each time: the same on every Python, whose own `sum` makes up for the roundings from 3.12 on.

    Example:
        >>> plain_sum([0.1] * 10)
        0.9999999999999999
    """
    return reduce(add, values, 0.0)


class Moments(msgspec.Struct, array_like=True, gc=False):
    """Sums of a set of finite numbers, in their own unit.

    Attributes:
        n: how many.
        mean: of them; 0.0 while there are none.
        m2: sum of squared deviations from the mean.
        min, max: +inf and -inf while there are none.

    Example:
        >>> m = Moments.of([1.0, 2.0, 10.0])
        >>> m.n, round(m.mean, 4), round(m.std or 0, 4), m.min, m.max
        (3, 4.3333, 4.9329, 1.0, 10.0)
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float = inf
    max: float = -inf

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """Sums of these values."""
        moments = cls()
        for value in values:
            moments.add(value)
        return moments

    def add(self, x: float) -> None:
        """Take in one finite value."""
        n = self.n = self.n + 1
        old = self.mean
        d = x - old
        mean = old + d / n
        if mean - mean != 0.0:  # the difference of two huge values is no finite number, their mean is
            mean = old * ((n - 1) / n) + x / n
            self.m2 = inf
        else:
            self.m2 += d * (x - mean)
        self.mean = mean
        if x < self.min:
            self.min = x
        if x > self.max:
            self.max = x

    def merge(self, other: Moments) -> None:
        """Take in the values of another set; `other` stays as it is."""
        nb = other.n
        if nb == 0:
            return
        na = self.n
        if na == 0:
            self.n, self.mean, self.m2, self.min, self.max = other.n, other.mean, other.m2, other.min, other.max
            return
        n = na + nb
        d = other.mean - self.mean
        mean = self.mean + d * (nb / n)
        if mean - mean != 0.0:
            mean = self.mean * (na / n) + other.mean * (nb / n)
            self.m2 = inf
        else:
            self.m2 += other.m2 + d * d * (na * nb / n)
        self.n = n
        self.mean = mean
        if other.min < self.min:
            self.min = other.min
        if other.max > self.max:
            self.max = other.max

    @property
    def sum(self) -> float:
        """Sum of the values."""
        return self.n * self.mean

    @property
    def variance(self) -> float | None:
        """Sample variance (n - 1); None below 2 values, or where it is beyond the range of a double."""
        if self.n < 2 or not isfinite(self.m2):
            return None
        return 0.0 if self.min == self.max else self.m2 / (self.n - 1)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1), in the values' unit; None below 2 values."""
        variance = self.variance
        return None if variance is None else sqrt(variance)

    @property
    def population_std(self) -> float | None:
        """Standard deviation with n, in the values' unit; None without values."""
        if self.n < 1 or not isfinite(self.m2):
            return None
        return 0.0 if self.min == self.max else sqrt(self.m2 / self.n)


class Pairs(msgspec.Struct, array_like=True, gc=False):
    """Sums of a set of finite pairs (x, y), enough for a least-squares line.

    Attributes:
        n: how many.
        mean_x, mean_y: means; 0.0 while there are none.
        m2_x, m2_y: sums of squared deviations.
        cxy: sum of (x - mean_x)(y - mean_y).
    """

    n: int = 0
    mean_x: float = 0.0
    m2_x: float = 0.0
    mean_y: float = 0.0
    m2_y: float = 0.0
    cxy: float = 0.0

    @classmethod
    def of(cls, xs: Iterable[float], ys: Iterable[float]) -> Pairs:
        """Sums of these pairs; both of one length."""
        n = 0
        mean_x = m2_x = mean_y = m2_y = cxy = 0.0
        for x, y in zip(xs, ys, strict=True):  # `add`, written out: several times as fast, and the same to the last bit
            n += 1
            dx = x - mean_x
            dy = y - mean_y
            mean_x += dx / n
            mean_y += dy / n
            rest = y - mean_y
            m2_x += dx * (x - mean_x)
            m2_y += dy * rest
            cxy += dx * rest
        return cls(n, mean_x, m2_x, mean_y, m2_y, cxy)

    def add(self, x: float, y: float) -> None:
        """Take in one pair."""
        n = self.n = self.n + 1
        dx = x - self.mean_x
        dy = y - self.mean_y
        self.mean_x += dx / n
        self.mean_y += dy / n
        rest = y - self.mean_y
        self.m2_x += dx * (x - self.mean_x)
        self.m2_y += dy * rest
        self.cxy += dx * rest

    def merge(self, other: Pairs, shift_x: float = 0.0) -> None:
        """Take in the pairs of another set, `shift_x` added to each of their x; `other` stays as it is."""
        nb = other.n
        if nb == 0:
            return
        na = self.n
        n = self.n = na + nb
        if not na:  # nothing to weigh: 0 times a product beyond all bounds would be no number
            self.mean_x, self.mean_y = other.mean_x + shift_x, other.mean_y
            self.m2_x, self.m2_y, self.cxy = other.m2_x, other.m2_y, other.cxy
            return
        dx = other.mean_x + shift_x - self.mean_x
        dy = other.mean_y - self.mean_y
        part = nb / n
        weight = na * part
        self.mean_x += dx * part
        self.mean_y += dy * part
        self.m2_x += other.m2_x + dx * dx * weight
        self.m2_y += other.m2_y + dy * dy * weight
        self.cxy += other.cxy + dx * dy * weight
