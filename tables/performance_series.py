"""Series of agents over time: windows of their own beside those of the training metrics, and trends of them.

The rule this file keeps: a series is (metric, agent, task type), both ``""`` where an event has none; a trend is a line
through the means of the last windows that have values, never through single values.
"""

from __future__ import annotations

from copy import copy
from math import sqrt
from typing import Annotated, Any, NamedTuple

import msgspec

from .fold import BadParameter, Reader
from .moments import plain_sum
from .regression import Fit, fit
from .rows import Table
from .times import HOUR_US, rfc3339, rfc3339_or_none
from .window_views import WindowReader, bound, duration, merged
from .windows import SPANS, Bucket, Windows, WindowSettings

RL_FIELDS = {
    "average_reward": "rl.average_reward",
    "kl_divergence": "rl.kl_divergence",
    "trajectories_processed": "rl.trajectories",
    "training_time_ms": "rl.training_time_ms",
}
"""Fields of RL metrics and their series; a loss ``NAME`` is the series ``rl.NAME_loss``."""
METRICS = {
    "success": "perf.success",
    "quality": "perf.quality",
    "efficiency": "perf.efficiency",
    "duration_ms": "perf.duration_ms",
    "tokens": "perf.tokens",
    "judgment": "perf.judgment",
    "compliance": "perf.compliance",
    "minimality": "perf.minimality",
    "utilisation": "perf.utilisation",
    "evaluation": "perf.evaluation",
}
"""Metrics of an agent and their series."""
RATES = frozenset(METRICS.values()) - {"perf.duration_ms", "perf.tokens", "perf.utilisation"}
"""Series whose values lie in 0…1: a slope is judged as it is."""
LOWER_IS_BETTER = frozenset(("perf.duration_ms", "perf.tokens", "perf.utilisation"))
STEADY = 0.001
"""Change an hour below which a trend is stable."""
SIGNIFICANT = 0.05


class SeriesTables(Windows):
    """Windows under names of their own.

    Args:
        prefix: what the tables' names begin with.
        topic: whose partitions keep them.
        settings: bounds.
    """

    def __init__(self, prefix: str, topic: str, settings: WindowSettings | None = None) -> None:
        super().__init__(settings)
        renamed = {table: copy(table) for table in self.tables}
        for table in renamed.values():
            table.name, table.wire = prefix + table.name, prefix + table.wire
        for name, value in list(vars(self).items()):
            if isinstance(value, Table):
                setattr(self, name, renamed[value])
            elif isinstance(value, tuple) and value and all(isinstance(one, Table) for one in value):
                setattr(self, name, tuple(renamed[one] for one in value))
        self.handlers = {}
        self.views = []
        self.rules = ()
        self.topics = (topic,)


def series_name(metric: str) -> str:
    """Series that a request's metric names.

    Raises:
        BadParameter: there is no such metric.
    """
    if metric in METRICS:
        return METRICS[metric]
    if (
        metric in METRICS.values()
        or metric in RL_FIELDS.values()
        or (metric.startswith("rl.") and metric.endswith("_loss"))
        or (metric.startswith("custom.") and metric.count(".") >= 2)
    ):
        return metric
    known = ", ".join([*METRICS, *RL_FIELDS.values(), "rl.NAME_loss"])
    raise BadParameter("metric", f"metric: one of {known}, or custom.NAME.FIELD")


class Trends(msgspec.Struct, frozen=True):
    """Parameters of ``/performance/trends``.

    Attributes:
        metric: success, quality, efficiency, duration_ms, tokens, judgment, compliance, minimality, utilisation, evaluation,
            one of the ``rl.`` series, or ``custom.NAME.FIELD``.
        agent: of this one; for ``rl.`` series an agent or a run.
        task_type: only of this type.
        window: ``1m``, ``5m``, ``1h``, ``1d`` or a multiple of one of them.
        points: last windows with values that are looked at.
        since, until: RFC 3339 or a UTC date; a window belongs to the span by its start.
    """

    metric: str
    agent: str | None = None
    task_type: str | None = None
    window: str = "1h"
    points: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    since: str | None = None
    until: str | None = None


class Point(NamedTuple):
    """A window that has values."""

    start_us: int
    mean: float
    n: int


def windows_of(fold: Windows, reader: Reader, series: str, model: str | None, run: str | None, q: Trends) -> list[Point]:
    """All windows with values in the span asked for, oldest first."""
    since, until = bound(q.since, "since"), bound(q.until, "until", end=True)
    if since is not None and until is not None and since >= until:
        raise BadParameter("since", "since: not before until")
    window_us = duration(q.window, "window")
    level = max((i for i, span in enumerate(SPANS) if window_us % span.size_us == 0), default=-1)
    if level < 0:
        raise BadParameter("window", "window: no multiple of a kept size (1m, 5m, 1h, 1d)")
    span = SPANS[level]
    if window_us > span.kept_us:
        raise BadParameter("window", f"window: longer than buckets of {span.name} are kept")
    found = WindowReader(fold, reader, series, model, run)
    if found.as_of is None:
        return []
    size = span.size_us
    width = window_us // size
    low = (found.as_of - span.kept_us) // size
    if since is not None:
        low = max(low, -(-since // size))
    low = -(-low // width) * width
    high = found.as_of // size
    if until is not None:
        high = min(high, (-(-until // size) - 1) // width * width + width - 1)
    windows: dict[int, list[Bucket]] = {}
    for index, bucket in found.buckets(level, low, high).items():
        windows.setdefault(index // width * width, []).append(bucket)
    points = []
    for start, parts in sorted(windows.items()):
        whole = parts[0] if len(parts) == 1 else merged(parts, size)
        if whole.n:
            points.append(Point(start * size, whole.mean, whole.n))
    return points


def direction(series: str, line: Fit, means: list[float]) -> str:
    """Whether it gets better: ``improving``, ``declining`` or ``stable``.

    Args:
        line: through the points, x in hours.
        means: of the points.
    """
    score = line.slope
    if len(means) < 3 or score is None:
        return "stable"
    if series not in RATES:
        size = plain_sum(map(abs, means)) / len(means)
        score = score / size if size > 0.0 else 0.0
    if series in LOWER_IS_BETTER:
        score = -score
    return "improving" if score > STEADY else "declining" if score < -STEADY else "stable"


def trend(fold: Windows, rl: Windows, reader: Reader, q: Trends) -> dict[str, Any]:
    """Body of ``/performance/trends``."""
    series = series_name(q.metric)
    if series.startswith("rl."):
        if q.task_type is not None:
            raise BadParameter("task_type", "task_type: RL metrics have none")
        points = windows_of(rl, reader, series, q.agent, None, q)
        if not points and q.agent is not None:
            points = windows_of(rl, reader, series, None, q.agent, q)
    else:
        points = windows_of(fold, reader, series, q.agent, q.task_type, q)
    points = points[-q.points :]
    means = [point.mean for point in points]
    hours = [(point.start_us - points[0].start_us) / HOUR_US for point in points]
    line = fit(hours, means)
    enough = len(points) >= 3
    return {
        "metric": q.metric,
        "n": len(points),
        "points": [{"start": rfc3339(point.start_us), "mean": point.mean, "n": point.n} for point in points],
        "slope_per_hour": line.slope,
        "r2": line.r2,
        "stderr": line.stderr,
        "p": line.p,
        "confidence": None if line.r2 is None else sqrt(max(0.0, line.r2)),
        "direction": direction(series, line, means),
        "significant": enough and line.p is not None and line.p < SIGNIFICANT,
        "enough": enough,
        "as_of": rfc3339_or_none(reader.as_of()),
    }
