"""Reading windows: buckets of any multiple of a kept size, merged over sizes, series and partitions.

The rule this file keeps: an answer is made of whole buckets of one kept size, the base. What a finer size still holds of
them is merged in; what is no longer kept at the base size (judged by the greatest event time that any partition has
absorbed, so that one partition and eight show the same) is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from .fold import BadParameter, Reader, View
from .moments import Moments
from .regression import fit_pairs
from .series_view import chosen, series_view
from .times import DAY_US, HOUR_US, MINUTE_US, SECOND_US, rfc3339, rfc3339_or_none, to_us
from .windows import RINGS, SLOTS, SPANS, Bucket, NonFinite

if TYPE_CHECKING:
    from .windows import Key, Series, SeriesWindows, Windows

QUANTILES = (0.5, 0.95, 0.99)
ENOUGH = ((7 * DAY_US, 500), (DAY_US, 100), (HOUR_US, 50), (0, 10))
"""Values from which a window of at least this size is enough to judge by."""
MOST_MERGES = 20_000
"""Buckets that an answer with sliding windows may merge."""
MOST_BUCKETS = 200_000
"""Slots that an answer may look at."""
UNITS = {"m": MINUTE_US, "h": HOUR_US, "d": DAY_US}

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_WINDOW = re.compile(r"([1-9]\d{0,5})([mhd])")


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/metrics/aggregate``.

    Attributes:
        metric: metric type, `metric_type.NAME` of one of several values, or `learning.performance_score` and the like.
        model, run: only of these; none given: over all. ``run=`` (empty) means series without a run. For learning series
            the model is the task type.
        tag: only figures of events with this tag, over all models and runs; sizes from 1 h up.
        window: ``1m``, ``5m``, ``1h``, ``1d`` or a multiple of one of them; none: only the whole span.
        slide: from the start of one window to the next; default as long as the window.
        since, until: RFC 3339 or a UTC date. A window belongs to the span by its start; a date as `until` takes in that day.
    """

    metric: str
    model: str | None = None
    run: str | None = None
    tag: str | None = None
    window: str | None = None
    slide: str | None = None
    since: str | None = None
    until: str | None = None


EARLIEST_US = -2_208_988_800 * SECOND_US
LATEST_US = 253_370_764_800 * SECOND_US


def bound(text: str | None, name: str, *, end: bool = False) -> int | None:
    """A moment of a request in microseconds since the epoch, of the years 1900 to 9998: no event is outside, and what is reckoned from it
    stays a moment.

    Args:
        text: RFC 3339 with offset, or a UTC date.
        name: parameter, for the error.
        end: a date means the end of its day.
    """
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text):
            day = date.fromisoformat(text).toordinal() - date(1970, 1, 1).toordinal()
            return min(max((day + end) * DAY_US, EARLIEST_US), LATEST_US)
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadParameter(name, f"{name}: neither a date nor an RFC 3339 time with offset")
    return min(max(to_us(moment), EARLIEST_US), LATEST_US)


def duration(text: str, name: str) -> int:
    """A window's length in microseconds: ``15m``, ``2h``, ``7d``."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise BadParameter(name, f"{name}: a whole number of minutes, hours or days such as 15m, 2h or 1d")
    return int(found[1]) * UNITS[found[2]]


def enough(n: int, size_us: int) -> bool:
    """Whether a window of this size has enough values to judge by."""
    return n >= next(least for size, least in ENOUGH if size_us >= size)


def render(bucket: Bucket, late: int, size_us: int) -> dict[str, Any]:
    """Figures of a bucket."""
    moments = bucket.moments()
    some = moments.n > 0
    p50, p95, p99 = bucket.sketch.quantiles(QUANTILES, moments.min, moments.max)
    non_finite = bucket.non_finite
    return {
        "n": moments.n,
        "mean": moments.mean if some else None,
        "std": moments.std,
        "min": moments.min if some else None,
        "max": moments.max if some else None,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "sum": moments.sum if some else None,
        "non_finite": {"nan": non_finite.nan, "pos_inf": non_finite.pos_inf, "neg_inf": non_finite.neg_inf}
        if non_finite is not None
        else {"nan": 0, "pos_inf": 0, "neg_inf": 0},
        "slope_per_hour": fit_pairs(bucket.pairs(), y_constant=moments.min == moments.max).slope,
        "late": late,
        "enough": enough(moments.n, size_us),
        "collapsed": bucket.sketch.collapsed,
    }


class WindowReader:
    """One request's way through the rings.

    Args:
        fold: whose tables.
        reader: of the tenant.
        metric, model, run: which series; None = any.
        tag: the tag sums of this tag instead; then without model and run.
    """

    def __init__(self, fold: Windows, reader: Reader, metric: str, model: str | None = None, run: str | None = None, tag: str | None = None) -> None:
        self.kept: SeriesWindows = fold if tag is None else fold.tags
        self.reader = reader
        self.series: dict[Key, list[Series]] = {}
        exact: Key | None = (metric, tag) if tag is not None else (metric, model, run) if model is not None and run is not None else None
        if exact is not None:
            states = reader.rows(self.kept.series, exact)
            if states:
                self.series[exact] = states
        else:
            order, (low, high) = chosen(reader, self.kept.source, (metric, model, run), lambda key, states: key)
            self.series = {key: reader.rows(self.kept.series, key) for key in order.sorted.islice(low, high)}
        self.as_of = reader.as_of()

    def buckets(self, level: int, low: int, high: int) -> dict[int, Bucket]:
        """Buckets of a kept size with everything that finer sizes hold of them, by index, ascending.

        Args:
            level: of `SPANS`.
            low, high: indices, both inclusive.
        """
        size = SPANS[level].size_us
        found: dict[int, Bucket] = {}
        looked = 0
        for key in sorted(self.series):
            states = self.series[key]
            oldest = max(low * size, min(s.oldest_us for s in states))
            newest = min((high + 1) * size - 1, max(s.newest_us for s in states))
            if oldest > newest:
                continue
            for finer in range(self.kept.finest, level + 1):
                part, ring, table = SPANS[finer].size_us, RINGS[finer], self.kept.ring(finer)
                first, last = oldest // part, newest // part
                slots: Iterable[int] = range(ring) if last - first + 1 >= ring else [i % ring for i in range(first, last + 1)]
                looked += min(ring, last - first + 1)
                if looked > MOST_BUCKETS:
                    raise BadParameter("metric", "too many series match for so long a span: name model and run, or narrow it")
                for bucket in self.reader.beside(self.kept.series, key, table, [(*key, SLOTS[slot]) for slot in slots]):
                    start_us = bucket.index * part
                    index = start_us // size
                    if low <= index <= high:
                        into = found.get(index)
                        if into is None:
                            into = found[index] = Bucket(index=index)
                        into.merge(bucket, (start_us - index * size) / HOUR_US)
        return dict(sorted(found.items()))

    def counted(self, name: str, level: int) -> int:
        """Values that came `late` for, or `expired` from, a kept size."""
        counts = (getattr(state, name) for states in self.series.values() for state in states)
        return sum(count[level] for count in counts if count is not None)


def merged(buckets: Sequence[Bucket], size_us: int) -> Bucket:
    """One bucket of several of one size; hours count from the first."""
    whole = Bucket(index=buckets[0].index) if buckets else Bucket()
    for bucket in buckets:
        whole.merge(bucket, (bucket.index - whole.index) * size_us / HOUR_US)
    return whole


def aggregate(fold: Windows, reader: Reader, q: Aggregate) -> dict[str, Any]:
    """Body of ``/metrics/aggregate``."""
    if q.tag is not None and (q.model is not None or q.run is not None):
        raise BadParameter("tag", "tag: summed over all models and runs; leave those out")
    since, until = bound(q.since, "since"), bound(q.until, "until", end=True)
    if since is not None and until is not None and since >= until:
        raise BadParameter("since", "since: not before until")
    window_us = None if q.window is None else duration(q.window, "window")
    if window_us is None and q.slide is not None:
        raise BadParameter("slide", "slide: needs a window")
    slide_us = window_us if q.slide is None else duration(q.slide, "slide")
    if window_us is not None and slide_us is not None and slide_us > window_us:
        raise BadParameter("slide", "slide: longer than the window, so that values would be left out")
    found = WindowReader(fold, reader, q.metric, q.model, q.run, q.tag)
    sizes = [(level, span) for level, span in enumerate(SPANS) if level >= found.kept.finest]
    as_of = found.as_of
    now = as_of if as_of is not None else 0
    if window_us is None or slide_us is None:  # the whole span, from the finest size that reaches back to its start
        level = len(SPANS) - 1
        if since is not None:
            level = next((i for i, s in sizes if (since // s.size_us + 1) * s.size_us + s.kept_us > now), level)
        window_us = slide_us = SPANS[level].size_us
    else:
        level = max((i for i, s in sizes if window_us % s.size_us == 0 and slide_us % s.size_us == 0), default=-1)
        if level < 0:
            raise BadParameter("window", f"window: no multiple of a kept size ({', '.join(s.name for _, s in sizes)})")
    span = SPANS[level]
    size = span.size_us
    width, step = window_us // size, slide_us // size
    if window_us > span.kept_us:
        raise BadParameter("window", f"window: longer than buckets of {span.name} are kept")
    low = (now - span.kept_us) // size
    if since is not None:
        low = max(low, -(-since // size))
    low = -(-low // step) * step
    high = now // size
    if until is not None:
        last_start = (-(-until // size) - 1) // step * step  # the last window that starts before until
        high = min(high, last_start + width - 1)
    base = found.buckets(level, low, high) if as_of is not None else {}
    windows: dict[int, Bucket] = {}
    if q.window is None:
        pass
    elif width == 1:
        windows = base
    else:
        if len(base) * -(-width // step) > MOST_MERGES:
            raise BadParameter("slide", "slide: too fine for so long a span; narrow it, or slide further")
        starts: dict[int, list[Bucket]] = {}
        for index, bucket in base.items():
            for start in range(index // step * step, max(low, index - width + 1) - 1, -step):
                starts.setdefault(start, []).append(bucket)
        windows = {start: merged(parts, size) for start, parts in sorted(starts.items()) if until is None or start * size < until}
    overall = merged(list(base.values()), size)
    if q.window is None and since is None and until is None:
        _lifetime(found, overall)
    return {
        "buckets": [
            {"start": rfc3339(start * size), "end": rfc3339(start * size + window_us), **render(bucket, _late(bucket, level), window_us)}
            for start, bucket in windows.items()
        ],
        "overall": render(overall, _late(overall, level), window_us),
        "late": found.counted("late", level),
        "expired": found.counted("expired", level),
        "as_of": rfc3339_or_none(as_of),
    }


def _late(bucket: Bucket, level: int) -> int:
    return bucket.late[level] if bucket.late is not None else 0


def _lifetime(found: WindowReader, overall: Bucket) -> None:
    """Replace the sums of the kept windows by those of the whole life; the slope stays that of the kept windows."""
    moments, non_finite = Moments(), NonFinite()
    for key, states in found.series.items():
        for state in states:
            moments.merge(state.moments())
            if state.non_finite is not None:
                non_finite.merge(state.non_finite)
        for residue in found.reader.rows(found.kept.residue, key):
            overall.sketch.merge(residue.sketch)
    overall.non_finite = non_finite
    overall.n, overall.mean, overall.m2, overall.min, overall.max = moments.n, moments.mean, moments.m2, moments.min, moments.max


def views(fold: Windows) -> list[View]:
    """Views of the windows."""
    return [
        View(
            "/metrics/aggregate",
            Aggregate,
            lambda reader, q: aggregate(fold, reader, q),
            fold.topics,
            "Figures of a metric by window, and of the whole span",
        ),
        series_view(fold),
    ]
