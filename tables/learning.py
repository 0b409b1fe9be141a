"""Learning progress: what training streams report, step by step, and whether they have converged.

The rules this file keeps:
  * a stream (task type, run) has one home partition; a task type over several runs is merged by event time when it is asked for;
  * a stream costs the same however much it has absorbed: sums, and a ring of its last points in segments of 32, of which a
    record touches the open one;
  * every event below the threshold counts; only events in time order move the stream in and out of convergence.

`learning_points` has the lower rank: its rows are made from the `learning` row, so a crash leaves them ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Annotated

import msgspec

from streams.events import LearningRecorded
from streams.keys import encode_key

from .alerting import emit
from .fold import Fold, Reader
from .goal_state import GoalBounds
from .goals import Goals
from .learning_views import LearningViews
from .rows import Table
from .times import day

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
SEGMENT = 32
"""Points a row; a full segment is closed."""
POINT = Struct("<qqddqd")
"""A point: event time (microseconds), offset, score, learning rate, episode count, convergence metric."""
SIZE = POINT.size
_FULL = SEGMENT * SIZE
RECENT = 10
"""Convergences kept of a stream."""
LONG_AGO = -(2**62)

CONVERGED = "learning.converged"

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
        segment, points: number of the open segment of the ring, and its packed `POINT`s in log order.
        below, below_sum: convergences, and the sum of their metrics.
        first_below_us: least event time of a convergence; None before the first.
        recent: the last `RECENT` convergences by event time, then offset.
        inside: whether the stream is converged.
        streak: events in a row, up to the newest, that speak against `inside`.
        entered, left: changes of `inside`.
        entered_us, left_us: event time of the last change; None before the first.
        late: events older than the newest when they came: they moved no state.
        period: UTC day on which the open alert ``learning.converged`` was opened; "" while it is not open.
    """

    home: int = -1
    n: int = 0
    scores: float = 0.0
    rates: float = 0.0
    metrics: float = 0.0
    newest_us: int = LONG_AGO
    segment: int = 0
    points: bytearray = msgspec.field(default_factory=bytearray)
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


class ClosedPoints(msgspec.Struct, array_like=True, gc=False):
    """A full segment of a stream's ring: its number, its greatest event time (microseconds), its packed `POINT`s."""

    number: int = -1
    newest_us: int = LONG_AGO
    points: bytes = b""


class Learning(Fold):
    """The fold of learning events, with the fold of goals: their views, and the ordered alert ``learning.converged``.

    Args:
        settings: see `LearningSettings`.

    Attributes:
        goals: the fold of goals; the live figures and the report count them.
        rows, closed: tables of streams and of closed segments.
    """

    topics = (TOPIC,)

    def __init__(self, settings: LearningSettings | None = None) -> None:
        self.settings = settings = settings or LearningSettings()
        self.goals = Goals(GoalBounds(settings.max_goals))
        self.ring = settings.learning_ring
        self.slots = -(-self.ring // SEGMENT)
        self.thresholds = dict(settings.convergence_threshold)
        self.other_threshold = self.thresholds.get("", 0.01)
        self.hold = settings.convergence_hold
        reads = StreamSettings(self.ring, sorted(self.thresholds.items()), self.hold)
        self.closed = Table("learning_points", ClosedPoints, rank=50, settings=reads)
        self.rows = Table("learning", StreamState, rank=55, settings=reads)
        self.tables = (self.closed, self.rows, *self.goals.tables)
        self.handlers = {LearningRecorded: self.recorded, **self.goals.handlers}
        self.views = (*LearningViews(self).views, *self.goals.views)

    # ---- absorbing

    def recorded(self, event: Event, p: Partition) -> None:
        """Absorb one step of learning progress."""
        data: LearningRecorded = event.data
        key = (data.task_type, data.run or "")
        state = p.open(self.rows, event.tenant, key)
        if state is None:
            return
        time_us, metric = p.time_us, data.convergence_metric
        state.points += POINT.pack(time_us, p.offset, data.performance_score, data.learning_rate, data.episode_count, metric)
        if len(state.points) == _FULL:
            self.close_segment(event.tenant, p, key, state)
        state.home = p.number
        state.n += 1
        state.scores += data.performance_score
        state.rates += data.learning_rate
        state.metrics += metric
        threshold = self.thresholds.get(data.task_type, self.other_threshold)
        below = metric < threshold
        if below:
            note(state, time_us, p.offset, metric)
        if time_us < state.newest_us:
            state.late += 1
            return
        state.newest_us = time_us
        if below is state.inside:
            state.streak = 0
            return
        state.streak += 1
        if state.streak >= self.hold:
            self.turn(event, p, key, state, metric, threshold)

    def close_segment(self, tenant: str, p: Partition, key: Key, state: StreamState) -> None:
        """Put the full segment into the ring of closed ones, over the oldest, and open the next."""
        closed = p.open(self.closed, tenant, (*key, str(state.segment % self.slots)))
        if closed is not None:
            closed.number = state.segment
            closed.points = bytes(state.points)
            closed.newest_us = max(point[0] for point in POINT.iter_unpack(closed.points))
        state.segment += 1
        state.points = bytearray()

    def turn(self, event: Event, p: Partition, key: Key, state: StreamState, metric: float, threshold: float) -> None:
        """Enter convergence or leave it, and tell so."""
        inside = state.inside = not state.inside
        state.streak = 0
        task, run = key
        who = f"{task} in run {run}" if run else task
        if inside:
            state.entered += 1
            state.entered_us = p.time_us
            period = state.period = day(p.time_us)
            previous, level = "ok", "info"
            message = f"{who} has converged: its metric is {metric:g}, below {threshold:g}."
        else:
            state.left += 1
            state.left_us = p.time_us
            period, state.period = state.period, ""
            previous, level = "info", "ok"
            message = f"{who} has left convergence: its metric is {metric:g}, {threshold:g} or above."
        emit(
            p,
            event,
            rule=CONVERGED,
            subject=encode_key(task, run or None).decode(),
            period=period,
            previous=previous,
            level=level,
            value=metric,
            threshold=threshold,
            message=message,
        )

    # ---- answering

    def streams(self, reader: Reader, task: str | None, run: str | None) -> list[tuple[Key, StreamState]]:
        """Streams of a task type, of a run (``""`` = of none), of both, or all, by name and partition."""
        if task is not None and run is not None:
            return [((task, run), state) for state in reader.rows(self.rows, (task, run))]
        found: list[tuple[Key, StreamState]] = []
        for key, states in reader.scan(self.rows):
            if (task is None or key[0] == task) and (run is None or key[1] == run):
                found += [(key, state) for state in states]
        found.sort(key=lambda item: (item[0], item[1].home))
        return found

    def blocks(self, reader: Reader, key: Key, state: StreamState) -> Iterator[tuple[float, bytes | bytearray]]:
        """The ring of a stream, segments from new to old, exactly its last `learning_ring` points: (greatest time, packed points)."""
        yield inf, state.points[-self.ring * SIZE :]
        left = self.ring - len(state.points) // SIZE
        for number in range(state.segment - 1, max(-1, state.segment - 1 - self.slots), -1):
            if left <= 0:
                return
            for home, closed in reader.placed(self.closed, (*key, str(number % self.slots))):
                if home == state.home and closed.number == number:
                    yield closed.newest_us, closed.points[-left * SIZE :]
            left -= SEGMENT

    def last(self, reader: Reader, streams: list[tuple[Key, StreamState]], n: int, since_us: int = LONG_AGO) -> list[Point]:
        """The last points of streams, oldest first: the greatest by (time, partition, offset) in their rings.

        Args:
            n: at most so many.
            since_us: none before this event time, microseconds.
        """
        found: list[Point] = []
        least = since_us
        for key, state in sorted(streams, key=lambda item: -item[1].newest_us):
            if state.newest_us < least:
                break
            task, home = key[0], state.home
            for newest_us, packed in self.blocks(reader, key, state):
                if newest_us >= least:
                    points = POINT.iter_unpack(packed)
                    found += [(t, home, at, score, rate, k, metric, task) for t, at, score, rate, k, metric in points if t >= least]
                    if len(found) >= 2 * n:
                        found = sorted(found)[-n:]
                        least = max(least, found[0][0])
                    elif len(found) >= n:
                        least = max(least, sorted(found)[-n][0])
        return sorted(found)[-n:]


def note(state: StreamState, time_us: int, offset: int, metric: float) -> None:
    """Count a convergence."""
    state.below += 1
    state.below_sum += metric
    if state.first_below_us is None or time_us < state.first_below_us:
        state.first_below_us = time_us
    state.recent = sorted([*state.recent, (time_us, offset, metric)])[-RECENT:]
