"""Asking for raw metrics: which ones, in which order, and how each is shown. Pure: whoever reads the records asks this.

The rules this file keeps:
  * `types`, `models`, `tags`, `runs` and `filter`: any one inside a list, all of the parameters together;
  * since <= time < until, compared as instants; a bare date as `until` takes in that whole UTC day;
  * newest first, by (time, offset, partition), so that a page's cursor holds its place while new metrics come.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from streams.events import MetricRecorded

from .fold import BadParameter, names
from .money import micro_usd
from .times import DAY_US, rfc3339
from .window_views import bound

DEFAULT_TYPE = "unknown"
DEFAULT_MODEL = "unknown"
FILTER_DAYS = 30
"""How far back a `filter` looks where no `since` is given."""
DEEPEST = 8
"""Parts of a dotted path."""
MOST_CONDITIONS = 64

Place = tuple[int, int, int]
"""Where a metric stands in the order: event time (microseconds), offset, partition."""
Scalar = str | int | float | bool | None


class MetricsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/metrics``.

    Attributes:
        types, models, tags, runs: any of these, comma-separated or repeated; none given: all.
        since, until: RFC 3339 or a UTC date; a date as `until` takes in that day.
        filter: JSON object of dotted paths into `data` and the scalar each must equal.
        limit: metrics a page.
        cursor: from the page before.
    """

    types: list[str] = []
    models: list[str] = []
    tags: list[str] = []
    runs: list[str] = []
    since: str | None = None
    until: str | None = None
    filter: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    cursor: str | None = None


class RecentParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/metrics/recent``: the newest, of any of the given types."""

    types: list[str] = []
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10


@dataclass(frozen=True)
class MetricQuery:
    """A query that was checked.

    Attributes:
        types, models, tags, runs: any of these; empty: all.
        since_us, until_us: event time, microseconds; None: without end on that side.
        conditions: (dotted path, scalar) that `data` must have, all of them.
        limit: metrics to give.
        after: place of the last metric of the page before; None: from the newest.
        since_given: whether `since_us` was asked for; else it is the default of a filter and the answer says so.
    """

    types: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    runs: frozenset[str] = frozenset()
    since_us: int | None = None
    until_us: int | None = None
    conditions: tuple[tuple[str, Scalar], ...] = ()
    limit: int = 100
    after: Place | None = None
    since_given: bool = False

    def matches(self, time_us: int, data: Mapping[str, Any]) -> bool:
        """Whether a metric is asked for, its place in the order apart.

        Args:
            time_us: event time, microseconds.
            data: the event's `data` as JSON, fields that the contract does not know among them.
        """
        if (self.since_us is not None and time_us < self.since_us) or (self.until_us is not None and time_us >= self.until_us):
            return False
        if self.types and data.get("metric_type", DEFAULT_TYPE) not in self.types:
            return False
        if self.models and data.get("model", DEFAULT_MODEL) not in self.models:
            return False
        if self.runs and data.get("run") not in self.runs:
            return False
        if self.tags and self.tags.isdisjoint(data.get("tags") or ()):
            return False
        return all(holds(data, path, want) for path, want in self.conditions)

    def beyond(self, place: Place) -> bool:
        """Whether a metric comes after the page before."""
        return self.after is None or place < self.after

    def stated(self) -> dict[str, str]:
        """What the answer says of the query besides its metrics: the `since` that a filter got by default."""
        return {"since": rfc3339(self.since_us)} if self.since_us is not None and not self.since_given else {}


def query(asked: MetricsParams, now_us: int) -> MetricQuery:
    """Check the parameters of ``/metrics``.

    Args:
        now_us: the server's clock, microseconds since the epoch; a filter without `since` looks 30 days back from it.

    Raises:
        BadParameter: a time that is none, since not before until, a filter that is no object of scalars, a foreign cursor.
    """
    since, until = bound(asked.since, "since"), bound(asked.until, "until", end=True)
    if since is not None and until is not None and since >= until:
        raise BadParameter("since", "since: not before until")
    conditions = parse_filter(asked.filter) if asked.filter is not None else ()
    given = since is not None
    if since is None and asked.filter is not None:
        since = (now_us if until is None else min(now_us, until)) - FILTER_DAYS * DAY_US
    return MetricQuery(
        types=frozenset(names(asked.types)),
        models=frozenset(names(asked.models)),
        tags=frozenset(names(asked.tags)),
        runs=frozenset(names(asked.runs)),
        since_us=since,
        until_us=until,
        conditions=conditions,
        limit=asked.limit,
        after=place_of(asked.cursor) if asked.cursor is not None else None,
        since_given=given,
    )


def recent(asked: RecentParams) -> MetricQuery:
    """The query of ``/metrics/recent``."""
    return MetricQuery(types=frozenset(names(asked.types)), limit=asked.limit)


def place(time_us: int, partition: int, offset: int) -> Place:
    """Place of a metric; the greatest is the newest."""
    return time_us, offset, partition


def cursor_of(last: Place) -> str:
    """Cursor of the page after a metric.

    Example:
        >>> place_of(cursor_of((1, 2, 3)))
        (1, 2, 3)
    """
    return base64.urlsafe_b64encode(".".join(map(str, last)).encode()).decode().rstrip("=")


def place_of(cursor: str) -> Place:
    """Inverse of `cursor_of`.

    Raises:
        BadParameter: it was made by nobody here.
    """
    try:
        parts = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii").split(".")
        time_us, offset, partition = map(int, parts)
    except (binascii.Error, ValueError):
        raise BadParameter("cursor", "cursor: not of this list; start again without it") from None
    return time_us, offset, partition


# ---- filter


def parse_filter(text: str) -> tuple[tuple[str, Scalar], ...]:
    """Conditions of a `filter`.

    Raises:
        BadParameter: no JSON object, a value that is an object or a list, too many of them, or a path that is too deep.
    """
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise BadParameter("filter", "filter: not JSON") from None
    if not isinstance(found, dict) or any(isinstance(value, (dict, list)) for value in found.values()):
        raise BadParameter("filter", 'filter: a JSON object of scalars expected, such as {"epoch": 3, "config.lr": 0.1}')
    if len(found) > MOST_CONDITIONS:
        raise BadParameter("filter", f"filter: at most {MOST_CONDITIONS} conditions")
    if any(path.count(".") >= DEEPEST for path in found):
        raise BadParameter("filter", f"filter: paths of at most {DEEPEST} parts")
    return tuple(found.items())


def holds(data: Mapping[str, Any], path: str, want: Scalar) -> bool:
    """Whether a field equals a scalar. A field name with a dot in it is found too; a missing field equals nothing, not even null.

    Example:
        >>> holds({"config": {"lr": 0.1}, "a.b": 1}, "config.lr", 0.1), holds({"a.b": 1}, "a.b", 1.0), holds({}, "x", None)
        (True, True, False)
    """
    if path in data and equal(data[path], want):
        return True
    dot = path.find(".")
    while dot >= 0:
        inner = data.get(path[:dot])
        if isinstance(inner, dict) and holds(inner, path[dot + 1 :], want):
            return True
        dot = path.find(".", dot + 1)
    return False


def equal(have: object, want: Scalar) -> bool:
    """Equality as JSON has it: 1 equals 1.0; true is no number."""
    if isinstance(have, bool) or isinstance(want, bool):
        return have is want
    return have == want


# ---- showing


def shown(id: str, time_us: int, time_given: bool, data: MetricRecorded) -> dict[str, Any]:
    """A metric as the views show it.

    Args:
        id: of the event; the metric's own id wins.
        time_us: event time, microseconds.
        time_given: False where it is the record's Kafka timestamp.
        data: decoded.
    """
    return {
        "id": data.metric_id or id,
        "time": rfc3339(time_us),
        "time_given": time_given,
        "metric_type": data.metric_type,
        "model": data.model,
        "run": data.run,
        "value": data.value,
        "values": data.values,
        "tags": data.tags,
        "epoch": data.epoch,
        "step": data.step,
        "cost_micro_usd": None if data.cost is None else micro_usd(data.cost),
        "api_calls": data.api_calls,
        "token_usage": data.token_usage,
    }
