"""Which series of metrics there are: what a page or a person asks first, before asking for the windows of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from .fold import Reader, View, page
from .moments import Moments
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


def series_view(fold: Windows) -> View:
    """``/metrics/series``"""

    def answer(reader: Reader, q: SeriesParams) -> dict[str, Any]:
        asked = (q.metric, q.model, q.run)
        found = sorted((key, states) for key, states in reader.scan(fold.series) if all(want in (None, part) for want, part in zip(asked, key, strict=True)))
        shown, cursor = page(found, q.limit, q.cursor, lambda item: "|".join(part.replace("%", "%25").replace("|", "%7C") for part in item[0]))
        rows = []
        for (metric, model, run), states in shown:
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
        return {"series": rows, "count": len(found), "cursor": cursor, "as_of": rfc3339_or_none(reader.as_of())}

    return View("/metrics/series", SeriesParams, answer, fold.topics, "The series of metrics: metric, model and run, with what they came to.")
