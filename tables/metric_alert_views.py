"""View of the watched series: where each stands with the alert rules, its outliers and its last values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .alerting import LEVELS
from .fold import Reader, View
from .orders import Source, parts_of, states_of
from .rows import escape
from .series_view import SeriesParams, chosen
from .times import rfc3339_or_none

if TYPE_CHECKING:
    from .metric_alerts import MetricAlerts, OpenSegment, Watch

RECENT = 10
"""Values shown of each series of a list."""


def views(fold: MetricAlerts) -> tuple[View, ...]:
    """Views of one fold's tables."""
    source = states_of(fold.watches)

    def answer(reader: Reader, asked: SeriesParams) -> dict[str, Any]:
        return series(fold, source, reader, asked)

    return (View("/metrics/watched", SeriesParams, answer, fold.topics, "Watched series: alerts, outliers, last values"),)


def series(fold: MetricAlerts, source: Source[list[Watch]], reader: Reader, asked: SeriesParams) -> dict[str, Any]:
    """Body of ``/metrics/watched``; sorted by metric, model and run. Where all three are given, the last 100 finite values are shown, else the last 10."""
    wanted = (asked.metric, asked.model, asked.run)
    whole = None not in wanted
    order, span = chosen(reader, source, wanted, lambda key, watches: [(*key, n) for n in range(len(watches))])  # one a partition that has it
    shown, cursor = order.page(asked.limit, asked.cursor, parts_of, lambda place: "|".join(map(escape, place[:-1])), span=span)
    body = [_shown(fold, reader, key, reader.rows(fold.watches, key)[n], whole) for *parts, n in shown for key in (tuple(parts),)]
    return {"series": body, "count": len(body), "cursor": cursor, "as_of": rfc3339_or_none(reader.as_of())}


def _shown(fold: MetricAlerts, reader: Reader, key: tuple[str, ...], watch: Watch, whole: bool) -> dict[str, Any]:
    metric, model, run = key
    last: list[float] = []
    for newest in reader.rows(fold.newest, key)[-1:]:
        last = last_values(fold, reader, key, newest)
    return {
        "metric": metric,
        "model": model,
        "run": run or None,
        "n": watch.n,
        "outliers": watch.outliers,
        "alerts": {
            "nonfinite": LEVELS[watch.non_finite],
            "plateau": LEVELS[watch.plateau],
            "degraded": LEVELS[watch.degraded],
            "anomaly": LEVELS[watch.anomaly],
        },
        "best_mean": watch.best,
        "baseline": watch.baseline if watch.degraded else watch.tagged if watch.tagged is not None else watch.best,
        "recent": last if whole else last[-RECENT:],
    }


def last_values(fold: MetricAlerts, reader: Reader, key: tuple[str, ...], newest: OpenSegment) -> list[float]:
    """The last up to 100 finite values in the log's order."""
    from .metric_alerts import SEGMENT, doubles  # here, because that module reads these views
    from .outliers import WINDOW

    open_one = (newest.n - 1) // SEGMENT
    closed = [row.values for place in (open_one - 2, open_one - 1) for row in reader.rows(fold.closed, (*key, str(place % 2)))[-1:]]
    return doubles(b"".join([*closed, newest.values]))[-WINDOW:]
