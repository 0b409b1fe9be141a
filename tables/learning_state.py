"""What is kept of a training stream, and by which settings."""

from __future__ import annotations

from struct import Struct
from typing import Annotated

import msgspec

from .rings import LONG_AGO, SEGMENT

POINT = Struct("<qqddqd")
"""A point: event time (microseconds), offset, score, learning rate, episode count, convergence metric."""
RECENT = 10
"""Convergences kept of a stream."""

Key = tuple[str, ...]
Point = tuple[int, int, int, float, float, int, float, str]
"""(event time in microseconds, partition, offset, score, learning rate, episode count, convergence metric, task type): sorts by
what makes a point the later one."""
Below = tuple[int, int, float]
"""A convergence: event time in microseconds, offset, metric."""

Threshold = Annotated[float, msgspec.Meta(ge=0)]


class LearningSettings(msgspec.Struct, frozen=True):
    """Settings of learning progress and goals.

    Attributes:
        learning_ring: points kept of a stream (task type and run).
        convergence_threshold: by task type, ``""`` = every other; an event is a convergence if its metric is below.
        convergence_hold: events in a row below the threshold that enter convergence, or at or above it that leave.
        max_goals: goals of a tenant in a partition; further ones are counted as overflow.
    """

    learning_ring: Annotated[int, msgspec.Meta(ge=SEGMENT, le=100_000)] = 1_000
    convergence_threshold: dict[str, Threshold] = msgspec.field(default_factory=lambda: {"": 0.01})
    convergence_hold: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    max_goals: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000


class StreamSettings(msgspec.Struct, frozen=True):
    """What of the settings the fold of streams reads: its digest is part of the rows' version. Sorted, so that equal is equal."""

    ring: int
    threshold: list[tuple[str, float]]
    hold: int


class StreamState(msgspec.Struct, array_like=True, gc=False):
    """One stream.

    Attributes:
        home: its partition.
        n: events absorbed, also those that left the ring.
        scores, rates, metrics: sums over all of them.
        newest_us: greatest event time, microseconds.
        below, below_sum: convergences, and the sum of their metrics.
        first_below_us: least event time of a convergence; None before the first.
        recent: the last `RECENT` convergences by event time, then offset.
        inside: whether the stream is converged.
        streak: events in a row, up to the newest, that speak against `inside`.
        entered, left: changes of `inside`.
        entered_us, left_us: event time of the last change; None before the first.
        late: events older than the newest when they came: they moved no state.
        period, falling: UTC day on which the open alert ``learning.converged``, ``learning.declining`` was opened; "" while it is not open.
    """

    home: int = -1
    n: int = 0
    scores: float = 0.0
    rates: float = 0.0
    metrics: float = 0.0
    newest_us: int = LONG_AGO
    below: int = 0
    below_sum: float = 0.0
    first_below_us: int | None = None
    recent: list[Below] = []
    inside: bool = False
    streak: int = 0
    entered: int = 0
    left: int = 0
    entered_us: int | None = None
    left_us: int | None = None
    late: int = 0
    period: str = ""
    falling: str = ""


def note(state: StreamState, time_us: int, offset: int, metric: float) -> None:
    """Count a convergence."""
    state.below += 1
    state.below_sum += metric
    if state.first_below_us is None or time_us < state.first_below_us:
        state.first_below_us = time_us
    state.recent = sorted([*state.recent, (time_us, offset, metric)])[-RECENT:]
