"""How numbers of [0, 1] are spread over its parts, for a picture."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sortedcontainers import SortedList

BINS = 20
"""Parts of [0, 1] that numbers are counted in; the last one holds 1 too."""
EDGES = tuple(n / BINS for n in range(BINS + 1))


def distribution(numbers: Sequence[float]) -> list[dict[str, Any]]:
    """How many numbers lie in each of `BINS` equal parts of [0, 1], `low` included and `high` not (1 is in the last); none for no numbers.

    Example:
        >>> [(one["low"], one["count"], one["share"]) for one in distribution([0.1, 0.12, 1.0, 0.95]) if one["count"]]
        [(0.1, 2, 0.5), (0.95, 2, 0.5)]
    """
    counts = [0] * BINS
    for number in numbers:
        counts[min(bisect_right(EDGES, number), BINS) - 1] += 1
    return _bins(counts)


def distribution_sorted(places: SortedList) -> list[dict[str, Any]]:
    """The same of tuples in order, whose first member is the number, without looking at each."""
    below = [*(places.bisect_left((edge,)) for edge in EDGES[:-1]), len(places)]
    return _bins([end - begin for begin, end in pairwise(below)])


def _bins(counts: Sequence[int]) -> list[dict[str, Any]]:
    total = sum(counts)
    return [{"low": EDGES[n], "high": EDGES[n + 1], "count": counts[n], "share": counts[n] / total} for n in range(BINS)] if total else []
