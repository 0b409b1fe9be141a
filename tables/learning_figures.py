"""Figures of learning progress, from points and from streams.

The rule this file keeps: every documented key is there, whatever was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from .learning_state import Key, Point, StreamState
from .moments import Moments, plain_sum
from .orders import Columns, Place
from .regression import fit
from .rings import LONG_AGO
from .times import HOUR_US, rfc3339, rfc3339_or_none

if TYPE_CHECKING:
    from .fold import Reader

LIVE = 10
"""Events that the live figures rest on; the same number for `recent_avg` of the trend, and the least a trend needs."""
LEAST_P = 0.05
"""A slope whose p is below is a direction."""

Streams = list[tuple[Key, StreamState]]


def mean(values: Sequence[float]) -> float | None:
    """Mean, None of nothing; exactly the value where all are equal."""
    if not values:
        return None
    if min(values) == max(values):
        return values[0]
    n = len(values)
    try:
        return fsum(values) / n
    except OverflowError:  # the sum is beyond a double, the mean is not
        return fsum(value / n for value in values)


def share(total: float, n: int) -> float | None:
    """A sum over its count; None of nothing, or where the sum is beyond the range of a double."""
    return total / n if n and isfinite(total) else None


def tendency(points: Sequence[Point]) -> str | None:
    """The last score beside the one before: improving, declining or stable (also with one event); None of nothing."""
    if not points:
        return None
    last, before = points[-1][3], points[-2][3] if len(points) > 1 else points[-1][3]
    return "improving" if last > before else "declining" if last < before else "stable"


def trend_of(points: Sequence[Point]) -> dict[str, Any]:
    """Trend of scores; zeros and ``null`` below `LIVE` points.

    Args:
        points: oldest first.

    Returns:
        trend and stderr by event, slope_per_hour and stderr_time by hour since the first point; confidence and r2_time are R²;
        p values are two-sided; figures of the time ``null`` where all times are equal.
    """
    n = len(points)
    answer: dict[str, Any] = {
        "n": n, "enough": n >= LIVE, "trend": 0.0, "confidence": 0.0, "recent_avg": 0.0, "improvement_rate": 0.0, "direction": "stable",
        "intercept": None, "stderr": None, "p": None, "slope_per_hour": None, "r2_time": None, "stderr_time": None, "p_time": None,
        "std": None, "median": None, "min": None, "max": None,
    }  # fmt: skip
    if n < LIVE:
        return answer
    scores = [point[3] for point in points]
    line = fit(range(n), scores)
    first = points[0][0]
    by_time = fit([(point[0] - first) / HOUR_US for point in points], scores)
    slope = line.slope or 0.0
    moments = Moments.of(scores)
    answer |= {
        "trend": slope, "confidence": line.r2, "recent_avg": mean(scores[-LIVE:]), "improvement_rate": slope * n,
        "intercept": line.intercept, "stderr": line.stderr, "p": line.p,
        "slope_per_hour": by_time.slope, "r2_time": by_time.r2, "stderr_time": by_time.stderr, "p_time": by_time.p,
        "std": moments.std, "median": median(scores), "min": moments.min, "max": moments.max,
    }  # fmt: skip
    if line.p is not None and line.p < LEAST_P and slope != 0.0:
        answer["direction"] = "improving" if slope > 0.0 else "declining"
    return answer


FIGURES = ("n", "scores", "rates", "metrics", "below", "below_sum", "entered", "left", "late", "inside", "first", "since", "last")
"""Columns that are kept of all streams, in the order of their names and partitions."""
KINDS = "ifffifiiiiiii"
"""Of `Columns`, a letter a figure."""
NEVER = 1 << 62
"""First convergence, or begin of convergence, of a stream without one."""


def lines(key: Key, states: list[StreamState]) -> list[tuple[Place, tuple[Any, ...]]]:
    """A task and run's lines of `FIGURES`, one a partition."""
    return [
        (
            (key, one.home),
            (
                one.n, one.scores, one.rates, one.metrics, one.below, one.below_sum, one.entered, one.left, one.late, one.inside,
                NEVER if one.first_below_us is None else one.first_below_us,
                one.entered_us if one.inside and one.entered_us is not None else NEVER,
                one.recent[-1][0] if one.recent else LONG_AGO,
            ),
        )
        for one in states
    ]  # fmt: skip


def newest_first(reader: Reader, key: Key, states: list[StreamState]) -> list[Place]:
    """Where a stream stands by its newest event."""
    return [(-one.newest_us, key, one.home) for one in states]


def last_below(reader: Reader, key: Key, states: list[StreamState]) -> list[Place] | None:
    """Where a stream stands by its last convergence."""
    return [(-one.recent[-1][0], key, one.home) for one in states if one.recent] or None


def total_of(figures: Any) -> float:
    """`plain_sum` of an array."""
    return 0.0 + float(np.cumsum(figures)[-1]) if len(figures) else 0.0


def whole_sums(columns: Columns) -> tuple[int, float, float, float]:
    """Events of all streams, and the sums of their scores, rates and metrics."""
    n = column(columns, "n")
    if "sums" not in columns.derived:
        columns.derived["sums"] = (int(n.sum()), *(total_of(column(columns, name)) for name in ("scores", "rates", "metrics")))
    return columns.derived["sums"]  # type: ignore[no-any-return]  # put there in the line before


def events_of(columns: Columns, task: str) -> int:
    """Events of a task type's streams."""
    return int(columns.column(FIGURES.index("n"), *columns.span(task)).sum())


def column(columns: Columns, name: str) -> Any:
    """One of `FIGURES` of all streams."""
    return columns.column(FIGURES.index(name))


def convergence_kept(columns: Columns, last: Sequence[tuple[Key, StreamState]], at_us: int) -> dict[str, Any]:
    """What `convergence_of` says of all streams.

    Args:
        last: the streams that hold the last `LIVE` convergences.
    """
    below = column(columns, "below")
    known = columns.derived.get("convergence")
    if known is None:
        since = int(column(columns, "since").min(initial=NEVER))
        known = columns.derived["convergence"] = {
            "first": int(column(columns, "first").min(initial=NEVER)),
            "sum": total_of(column(columns, "below_sum")),
            "entered": int(column(columns, "entered").sum()),
            "left": int(column(columns, "left").sum()),
            "converged": since != NEVER,
            "since": None if since == NEVER else rfc3339(since),
            "late": int(column(columns, "late").sum()),
            "task_statistics": by_task(columns),
        }
    total, first = int(below.sum()), known["first"]
    recent = sorted((t, state.home, offset, key[0], metric) for key, state in last for t, offset, metric in state.recent)[-LIVE:]
    hours = (at_us - first) / HOUR_US if first != NEVER else 0.0
    return {
        "total_convergences": total,
        "avg_convergence_metric": share(known["sum"], total) if total else 0.0,
        "last_convergence": rfc3339(recent[-1][0]) if recent else None,
        "recent_convergences": [[rfc3339(t), task, metric] for t, _, _, task, metric in recent],
        "convergence_rate": total / hours if hours > 0 else 0.0,
        "rate_defined": hours > 0,
        "entered": known["entered"],
        "left": known["left"],
        "converged": known["converged"],
        "since": known["since"],
        "late": known["late"],
        "at": rfc3339(at_us),
        "task_statistics": known["task_statistics"],
    }


def by_task(columns: Columns) -> dict[str, dict[str, Any]]:
    """`statistics_of` every task's streams: those of a task are next to each other."""
    places = columns.places
    tasks: list[str] = []
    begins: list[int] = []
    at = 0
    while at < len(places):
        tasks.append(places[at][0][0])
        begins.append(at)
        at = columns.span(tasks[-1])[1]
    if not tasks:
        return {}
    below, entered, left, inside = (np.add.reduceat(column(columns, name), begins).tolist() for name in ("below", "entered", "left", "inside"))
    newest = np.maximum.reduceat(column(columns, "last"), begins).tolist()
    sums = column(columns, "below_sum")
    return {
        task: {
            "count": below[i],
            "avg_convergence_metric": share(total_of(sums[low:high]), below[i]) if below[i] else 0.0,
            "last_convergence": None if newest[i] == LONG_AGO else rfc3339(newest[i]),
            "entered": entered[i],
            "left": left[i],
            "converged": inside[i] > 0,
        }
        for i, (task, low, high) in enumerate(zip(tasks, begins, [*begins[1:], len(places)], strict=True))
    }


def convergence_of(streams: Streams, at_us: int) -> dict[str, Any]:
    """Convergences counted over streams, the streams that are converged, and the same by task.

    Args:
        at_us: end of the span that the rate is over, microseconds.

    Returns:
        Zeros where nothing has converged; convergence_rate by hour since the first convergence; `since` = when the stream that
        has been converged the longest entered, ``null`` if none is.
    """
    total = sum(state.below for _, state in streams)
    begins = [state.first_below_us for _, state in streams if state.first_below_us is not None]
    hours = (at_us - min(begins)) / HOUR_US if begins else 0.0
    since = [state.entered_us for _, state in streams if state.inside and state.entered_us is not None]
    recent = sorted((t, state.home, offset, key[0], metric) for key, state in streams for t, offset, metric in state.recent)[-LIVE:]
    tasks: dict[str, Streams] = {}
    for item in streams:
        tasks.setdefault(item[0][0], []).append(item)
    return {
        "total_convergences": total,
        "avg_convergence_metric": share(plain_sum(state.below_sum for _, state in streams), total) if total else 0.0,
        "last_convergence": rfc3339(recent[-1][0]) if recent else None,
        "recent_convergences": [[rfc3339(t), task, metric] for t, _, _, task, metric in recent],
        "convergence_rate": total / hours if hours > 0 else 0.0,
        "rate_defined": hours > 0,
        "entered": sum(state.entered for _, state in streams),
        "left": sum(state.left for _, state in streams),
        "converged": bool(since),
        "since": rfc3339_or_none(min(since, default=None)),
        "late": sum(state.late for _, state in streams),
        "at": rfc3339(at_us),
        "task_statistics": {task: statistics_of(mine) for task, mine in sorted(tasks.items())},
    }


def statistics_of(streams: Streams) -> dict[str, Any]:
    """Convergences of one task's streams."""
    count = sum(state.below for _, state in streams)
    return {
        "count": count,
        "avg_convergence_metric": share(plain_sum(state.below_sum for _, state in streams), count) if count else 0.0,
        "last_convergence": rfc3339_or_none(max((state.recent[-1][0] for _, state in streams if state.recent), default=None)),
        "entered": sum(state.entered for _, state in streams),
        "left": sum(state.left for _, state in streams),
        "converged": any(state.inside for _, state in streams),
    }
