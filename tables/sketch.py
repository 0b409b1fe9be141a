"""Quantiles with a bounded relative error, from counts of values in logarithmic buckets.

The rule this file keeps: a quantile is within 1 % of the exact value at sorted index floor(q(n-1)); and the state after a
set of values is the same in any order and any split, so merged sketches are equal to the last count.

Source: C. Masson, J. E. Rim, H. K. Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees", VLDB 12 (2019), sections 2.1 (buckets) and 2.2 (collapsing).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, exp, inf, log

import msgspec

ALPHA = 0.01
"""Relative error of a quantile."""
GAMMA = (1 + ALPHA) / (1 - ALPHA)
LOG_GAMMA = log(GAMMA)
ZERO = 1e-12
"""Magnitudes below count as zero."""
MAX_BUCKETS = 4096
"""Occupied buckets a store; beyond that the lowest collapse into one."""

shared_number = dict[int, int]().setdefault
"""The one object that stands for a bucket's number in all sketches (there are some 37,000): 32 bytes less an entry, and near at hand when it is written."""
_MIDDLE = log(2 / (GAMMA + 1))
_HUGE = 700.0


def bucket(x: float) -> int:
    """Bucket of a number of at least 1e-12: ceil(ln x / ln gamma).

    Example:
        >>> bucket(2.785774), bucket(1.0)
        (52, 0)
    """
    return ceil(log(x) / LOG_GAMMA)


def representative(i: int) -> float:
    """Value that stands for a bucket: 2 gamma^i / (gamma + 1), within 1 % of every value in it.

    Example:
        >>> round(representative(52), 10)
        2.8010219504
    """
    exponent = i * LOG_GAMMA + _MIDDLE
    if exponent > _HUGE:  # near the largest double, where gamma^i would overflow
        return exp(exponent) if exponent < 709.78 else inf
    return 2 * GAMMA**i / (GAMMA + 1)


class Sketch(msgspec.Struct, array_like=True, gc=False):
    """How many values fell into each bucket. About 4 bytes an occupied bucket in a row, 12 at most while counts fit 32 bits.

    Attributes:
        positive: bucket -> count of the values in it.
        zero: count of values nearer to 0 than 1e-12.
        negative: as `positive`, of the magnitudes of negative values; None while there are none.
        collapsed: whether buckets were joined: quantiles that fall into the lowest one are no longer within 1 %.

    Example:
        >>> s = Sketch()
        >>> for x in range(1, 101): s.add(x)
        >>> [round(v, 2) for v in s.quantiles((0.0, 0.5, 1.0), 1, 100)]
        [1, 49.9, 100]
    """

    positive: dict[int, int] = {}
    zero: int = 0
    negative: dict[int, int] | None = None
    collapsed: bool = False

    def add(self, x: float) -> None:
        """Count one finite value."""
        if x >= ZERO:
            store = self.positive
            i = ceil(log(x) / LOG_GAMMA)
        elif x > -ZERO:
            self.zero += 1
            return
        else:
            if self.negative is None:
                self.negative = {}
            store = self.negative
            i = ceil(log(-x) / LOG_GAMMA)
        if i in store:
            store[i] += 1
        else:
            store[shared_number(i, i)] = 1
            if len(store) > MAX_BUCKETS:
                self.collapse(store)

    def merge(self, other: Sketch) -> None:
        """Count the values of another sketch too; `other` stays as it is."""
        self.zero += other.zero
        if other.collapsed:
            self.collapsed = True
        self._merge(self.positive, other.positive)
        if other.negative:
            if self.negative is None:
                self.negative = {}
            self._merge(self.negative, other.negative)

    def _merge(self, into: dict[int, int], store: dict[int, int]) -> None:
        get = into.get
        for i, count in store.items():
            into[i] = get(i, 0) + count
        if len(into) > MAX_BUCKETS:
            self.collapse(into)

    def collapse(self, store: dict[int, int]) -> None:
        """Shrink one of its stores that is over the bound: keep the highest 4,096 buckets; the lowest of them takes the counts of all below.

        No order of values matters."""
        self.collapsed = True
        surplus = len(store) - MAX_BUCKETS
        below = sorted(store)[:surplus] if surplus > 1 else [min(store)]
        count = sum(store.pop(i) for i in below)
        store[min(store)] += count

    @property
    def n(self) -> int:
        """How many values."""
        return sum(self.positive.values()) + self.zero + (sum(self.negative.values()) if self.negative else 0)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Occupied buckets upward: (value that stands for it, count)."""
        if self.negative:
            for i in sorted(self.negative, reverse=True):
                yield -representative(i), self.negative[i]
        if self.zero:
            yield 0.0, self.zero
        for i in sorted(self.positive):
            yield representative(i), self.positive[i]

    def quantile(self, q: float, low: float, high: float) -> float | None:
        """One quantile; see `quantiles`."""
        return self.quantiles((q,), low, high)[0]

    def quantiles(self, qs: Sequence[float], low: float, high: float) -> list[float | None]:
        """Quantiles, each None where nothing was counted.

        Args:
            qs: 0 to 1, ascending.
            low, high: least and greatest value counted; answers are clamped to them.
        """
        n = self.n
        found: list[float | None] = []
        if n:
            walk = self.buckets()
            value, cumulative = next(walk)
            for q in qs:
                while cumulative <= q * (n - 1):
                    value, count = next(walk)
                    cumulative += count
                found.append(min(max(value, low), high))
        return found or [None] * len(qs)

    @classmethod
    def of(cls, values: Iterable[float]) -> Sketch:
        """Sketch of these values."""
        sketch = cls()
        for value in values:
            sketch.add(value)
        return sketch
