"""Steps between two decimal numbers that were read as doubles."""

from __future__ import annotations

from decimal import Decimal


def within(a: float, b: float, limit: float) -> bool:
    """Whether two finite numbers are at most `limit` apart, as they are written: 0.3 and 0.299 are 0.001 apart, though their doubles are more.

    Example:
        >>> within(0.3, 0.299, 0.001), 0.3 - 0.299 <= 0.001
        (True, False)
    """
    apart = a - b if a > b else b - a
    doubt = (abs(a) + abs(b) + limit) * 1e-15
    if apart <= limit - doubt:
        return True
    if apart > limit + doubt:
        return False
    return abs(Decimal(repr(a)) - Decimal(repr(b))) <= Decimal(repr(limit))
