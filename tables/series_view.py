"""Which series of metrics there are: what a page or a person asks first, before asking for the windows of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from .fold import Reader, View
from .moments import Moments
from .orders import Key, Order, Place, Source, parts_of
from .rows import escape
from .times import rfc3339_or_none

if TYPE_CHECKING:
    from .windows import Windows


class SeriesParams(msgspec.Struct, frozen=True, kw_only=True):
    """``/metrics/series`` and ``/metrics/watched``: of one metric, model or run (``run=``, empty: without a run), or all."""

    metric: str | None = None
    model: str | None = None
    run: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    cursor: str | None = None


def chosen(
    reader: Reader, source: Source[Any], asked: Sequence[str | None], places: Callable[[Key, Any], Place | list[Place]]
) -> tuple[Order, tuple[int, int]]:
    """The list of series that answers, and what part of it does: a metric's series lie together in the list of all, and in it those of a model.

    Args:
        asked: metric, model and run; None = any.
        places: (key, its states) -> its places; each begins with the key.
    """
    prefix: Key = tuple(part for part in takewhile(lambda part: part is not None, asked) if part is not None)
    if len(prefix) == len(asked):
        one = Order.of_one(reader, source, prefix, lambda _, key, states: places(key, states))
        return one, one.span(())
    later = [(at, part) for at, part in enumerate(asked) if at >= len(prefix) and part is not None]
    name = "series", *later
    order: Order = reader.lists(
        source, {name: lambda: Order(lambda _, key, states: places(key, states) if all(key[at] == part for at, part in later) else None)}
    )[name]
    return order, order.span(prefix)


def series_view(fold: Windows) -> View:
    """``/metrics/series``"""

    def answer(reader: Reader, q: SeriesParams) -> dict[str, Any]:
        order, span = chosen(reader, fold.source, (q.metric, q.model, q.run), lambda key, states: key)
        low, high = span
        shown, cursor = order.page(q.limit, q.cursor, parts_of, lambda key: "|".join(map(escape, key)), span=span)
        rows = []
        for metric, model, run in shown:
            states = reader.rows(fold.series, (metric, model, run))
            whole = Moments()
            for state in states:
                whole.merge(state.moments())
            newest = max(states, key=lambda state: state.last_us)
            rows.append(
                {
                    "metric": metric,
                    "model": model,
                    "run": run or None,
                    "n": whole.n,
                    "mean": whole.mean if whole.n else None,
                    "min": whole.min if whole.n else None,
                    "max": whole.max if whole.n else None,
                    "last": newest.last,
                    "last_at": rfc3339_or_none(newest.last_us if newest.last is not None else None),
                    "windowed": any(state.windowed for state in states),
                }
            )
        return {"series": rows, "count": high - low, "cursor": cursor, "as_of": rfc3339_or_none(reader.as_of())}

    return View("/metrics/series", SeriesParams, answer, fold.topics, "The series of metrics: metric, model and run, with what they came to.")
