"""What of variables goes into files and to learners downstream, as pure functions; who calls them writes and publishes.

The rules this file keeps: all scores of a file are of one moment; a forecast and variable is one line, and an event gives the
same lines whenever it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streams.events import ForecastIssued, VariablePerformanceUpdated, VariableScored

from .times import rfc3339

if TYPE_CHECKING:
    from streams.events import Event

    from .fold import Reader
    from .variable_views import Scores

FORECAST_FIELDS = (
    "forecast_id", "confidence", "fragility", "certified", "alignment_score", "arc_label", "symbolic_tag", "confidence_status",
)  # fmt: skip


def all_scores(scores: Scores, reader: Reader, exact: bool = False) -> dict[str, dict[str, Any]]:
    """Every scored variable's score, by name: ``pulsefold export variables``.

    Args:
        scores: tables and settings.
        reader: of one tenant; nothing may be absorbed while this runs.
        exact: means unrounded.
    """
    found = sorted((merged for merged in scores.every(reader) if scores.scored(merged)), key=lambda merged: merged.name)
    as_of = reader.as_of()
    return {merged.name: scores.score(merged, as_of, exact) for merged in found}


def scored(scores: Scores, reader: Reader, key: tuple[str, ...]) -> VariableScored | None:
    """What the topic ``scores`` is told of a variable whose row changed: its score; None where it is not scored.

    Args:
        key: of its row.
    """
    merged = scores.one(reader, key[0])
    if not scores.scored(merged) or (not merged.count and merged.registration is None):
        return None
    return VariableScored(name=merged.name, score=scores.score(merged, reader.as_of()))


def contributions(event: Event, time_us: int) -> list[bytes]:
    """One JSON line for each variable of a forecast: ``pulsefold export contributions``.

    Args:
        event: any; one that is no forecast, or a forecast without inputs, gives no line.
        time_us: its event time, microseconds since the epoch.

    Returns:
        Lines without their ends: timestamp, variable, value, and the fields of the forecast, null where it has none.
    """
    data = event.data
    if not isinstance(data, ForecastIssued):
        return []
    timestamp = rfc3339(time_us)
    fields = {name: getattr(data, name) for name in FORECAST_FIELDS}
    return [msgspec.json.encode({"timestamp": timestamp, "variable": name, "value": value, **fields}) for name, value in data.inputs.items()]


def memory_update(event: Event, time_us: int) -> bytes | None:
    """A performance update as a line of a learning log: ``pulsefold export learning-log``.

    Args:
        event: any; None for all others.
        time_us: its event time, microseconds since the epoch.
    """
    data = event.data
    if not isinstance(data, VariablePerformanceUpdated):
        return None
    timestamp = rfc3339(time_us)
    body = {"event": "variable_performance_update", "variable": data.variable, "new_score": data.new_score, "timestamp": timestamp}
    return msgspec.json.encode({"event_id": event.id, "timestamp": timestamp, "event_type": "memory_update", "data": body})
