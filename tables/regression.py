"""Least squares on one variable: slope, how well the line fits, and whether there is a trend at all.

The rule this file keeps: a constant series has slope exactly 0, never 7e-18; what cannot be known is None, never NaN.

Source: common rules §5; Student's t after W. S. Gosset, "The Probable Error of a Mean" (1908).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING

import msgspec

from .moments import Pairs

if TYPE_CHECKING:
    from collections.abc import Callable

from .special import stdtr, stdtrit

_cdf: Callable[[float, float], float] = stdtr
_inverse: Callable[[float, float], float] = stdtrit


class Fit(msgspec.Struct, frozen=True):
    """A least-squares line ``y = intercept + slope * x``.

    Attributes:
        n: pairs it rests on.
        slope: unit of y by unit of x; None below 2 pairs or where all x are equal. Exactly 0.0 where all y are equal.
        intercept: at x = 0, unit of y; None as the slope.
        r: correlation, -1 to 1; 0.0 where all y are equal; None as the slope.
        r2: share of the variance that the line explains, 0 to 1; None as the slope.
        stderr: standard error of the slope; None below 3 pairs.
        t: slope / stderr; infinite on a perfect line; None below 3 pairs.
        p: two-sided, of the hypothesis that there is no trend; 1.0 where all y are equal; None below 3 pairs.
    """

    n: int
    slope: float | None = None
    intercept: float | None = None
    r: float | None = None
    r2: float | None = None
    stderr: float | None = None
    t: float | None = None
    p: float | None = None


def p_two_sided(t: float, degrees: float) -> float:
    """Probability of a Student's t at least as far from 0.

    Args:
        t: the statistic; infinite gives 0.
        degrees: of freedom, above 0.

    Example:
        >>> round(p_two_sided(2.0, 10), 9)
        0.073388035
    """
    return 0.0 if t in (inf, -inf) else float(2.0 * _cdf(degrees, -abs(t)))


def t_quantile(q: float, degrees: float) -> float:
    """Quantile of Student's t.

    Args:
        q: 0 to 1, both exclusive.
        degrees: of freedom, above 0.

    Example:
        >>> round(t_quantile(0.95, 3), 6)
        2.353363
    """
    return float(_inverse(degrees, q))


def fit(xs: Sequence[float], ys: Sequence[float]) -> Fit:
    """Line through pairs.

    Args:
        xs, ys: finite, of one length.

    Example:
        >>> line = fit([0, 1, 2, 3], [1.0, 3.0, 4.0, 8.0])
        >>> round(line.slope, 9), round(line.r2, 9)
        (2.2, 0.930769231)
        >>> fit(range(100), [0.3] * 100).slope
        0.0
    """
    return fit_pairs(Pairs.of(xs, ys), y_constant=len(ys) > 0 and min(ys) == max(ys))


def fit_pairs(pairs: Pairs, y_constant: bool) -> Fit:
    """Line from sums.

    Args:
        pairs: of finite numbers.
        y_constant: whether all y are equal. Ask their least and greatest value: the sums cannot tell to the last bit.
    """
    n, m2_x, m2_y = pairs.n, pairs.m2_x, pairs.m2_y
    if n < 2 or not m2_x > 0.0 or not (isfinite(m2_x) and isfinite(m2_y) and isfinite(pairs.cxy)):
        return Fit(n)
    if y_constant or not m2_y > 0.0:
        if n == 2:
            return Fit(n, 0.0, pairs.mean_y, 0.0, 0.0, None, None, 1.0)
        return Fit(n, 0.0, pairs.mean_y, 0.0, 0.0, 0.0, 0.0, 1.0)
    slope = pairs.cxy / m2_x
    if not isfinite(slope) or (slope == 0.0 and pairs.cxy != 0.0):
        return Fit(n)
    sse = max(0.0, m2_y - slope * pairs.cxy)
    r = max(-1.0, min(1.0, pairs.cxy / (sqrt(m2_x) * sqrt(m2_y)))) if sse > 0.0 else 1.0 if slope > 0.0 else -1.0
    intercept = pairs.mean_y - slope * pairs.mean_x
    if n == 2:
        return Fit(n, slope, intercept, r, r * r)
    stderr = sqrt(sse / (n - 2) / m2_x)
    if stderr == 0.0:
        return Fit(n, slope, intercept, r, r * r, 0.0, inf if slope > 0.0 else -inf, 0.0)
    t = slope / stderr
    return Fit(n, slope, intercept, r, r * r, stderr, t, p_two_sided(t, n - 2))
