"""Learning progress: what training streams report, step by step, and whether they have converged.

The rules this file keeps:
  * a stream (task type, run) has one home partition; a task type over several runs is merged by event time when it is asked for;
  * a stream costs the same however much it has absorbed: sums, and a ring of its last points in segments of 32, of which a
    record touches the open one;
  * every event below the threshold counts; only events in time order move the stream in and out of convergence.

`learning` has the lower rank: whether a stream declines is judged by its ring, which is made from the events alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import mul
from struct import Struct
from typing import TYPE_CHECKING

from streams.events import LearningRecorded
from streams.keys import encode_key

from .alerting import emit
from .fold import Fold, Reader, page
from .goal_state import GoalBounds
from .goals import Goals
from .learning_figures import KINDS, LIVE, last_below, lines, newest_first
from .learning_panels import LearningPanels
from .learning_state import POINT, Key, LearningSettings, Point, StreamSettings, StreamState, note
from .learning_views import LearningViews
from .orders import Columns, Order, Place, parts_of, states_of
from .regression import fit
from .rings import LONG_AGO, Ring
from .rows import Table
from .times import day

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
CONVERGED, DECLINING = "learning.converged", "learning.declining"
EVERY = 10
"""Events of a stream from one look for a decline to the next."""
WINDOW, LEAST = 50, 30
"""Points that a decline is judged by, and the fewest."""
STEPS = {n: [(i - (n - 1) / 2) / (n * (n * n - 1) / 12) for i in range(n)] for n in range(LEAST, WINDOW + 1)}
"""By number of points: what each weighs in the slope of a line through them."""
SCORE = Struct("<16xd24x")
"""Of a `POINT` the score alone."""
SURE_P, FALL, UNSURE_P = 0.001, 0.05, 0.05
"""A decline begins with a p below and a fall of more over the window; it ends with a p above, or without a slope downwards."""


class Learning(Fold):
    """The fold of learning events, with the fold of goals: their views, and the ordered alerts of both.

    Args:
        settings: see `LearningSettings`.

    Attributes:
        goals: the fold of goals; the live figures and the report count them.
        rows, ring: streams, and the last points of each.
    """

    topics = (TOPIC,)

    def __init__(self, settings: LearningSettings | None = None) -> None:
        self.settings = settings = settings or LearningSettings()
        self.goals = Goals(GoalBounds(settings.max_goals))
        self.thresholds = dict(settings.convergence_threshold)
        self.other_threshold = self.thresholds.get("", 0.01)
        self.hold = settings.convergence_hold
        reads = StreamSettings(settings.learning_ring, sorted(self.thresholds.items()), self.hold)
        self.rows = Table("learning", StreamState, rank=50, settings=reads)
        self.ring = Ring("learning_points", POINT, settings.learning_ring, rank=51, settings=reads)
        self.tables = (self.rows, *self.ring.tables, *self.goals.tables)
        self.handlers = {**self.goals.handlers, LearningRecorded: self.recorded}
        self.source = states_of(self.rows)
        self.views = (*LearningViews(self).views, LearningPanels(self).view, *self.goals.views)

    # ---- absorbing

    def recorded(self, event: Event, p: Partition) -> None:
        """Absorb one step of learning progress: the stream, its ring, and the goals that want its figures."""
        data: LearningRecorded = event.data
        key = (data.task_type, data.run or "")
        time_us, score, metric = p.time_us, data.performance_score, data.convergence_metric
        state = p.open(self.rows, event.tenant, key)
        if state is not None:
            state.home = p.number
            n = state.n = state.n + 1
            state.scores += score
            state.rates += data.learning_rate
            state.metrics += metric
            self.converge(event, p, key, state, metric)
            if n % EVERY == 0 and n >= LEAST:
                self.judge(event, p, key, state, score)
        self.ring.append(p, event.tenant, key, POINT.pack(time_us, p.offset, score, data.learning_rate, data.episode_count, metric))
        self.goals.learned(event, p)

    def converge(self, event: Event, p: Partition, key: Key, state: StreamState, metric: float) -> None:
        """Count a convergence, and move the stream in or out."""
        time_us = p.time_us
        threshold = self.thresholds.get(key[0], self.other_threshold)
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

    def turn(self, event: Event, p: Partition, key: Key, state: StreamState, metric: float, threshold: float) -> None:
        """Enter convergence or leave it, and tell so."""
        inside = state.inside = not state.inside
        state.streak = 0
        who = called(key)
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
        tell(event, p, key, CONVERGED, period, previous, level, metric, threshold, message)

    def judge(self, event: Event, p: Partition, key: Key, state: StreamState, score: float) -> None:
        """Whether the scores of the stream decline: over its last `WINDOW` points, this one included."""
        scores = self.window(event.tenant, p, key, state, score)
        n = len(scores)
        if n < LEAST or (not state.falling and -sum(map(mul, STEPS[n], scores)) * n < 0.9 * FALL):
            return  # nothing is open, and nothing near the limit: what nearly every look ends with
        line = fit(range(n), scores)
        trend, chance = line.slope or 0.0, 1.0 if line.p is None else line.p
        fall = -trend * n
        if not state.falling:
            if chance < SURE_P and fall > FALL:
                state.falling = day(p.time_us)
                message = f"{called(key)} is declining: its score fell by {fall:.3g} over its last {n} events (p = {chance:.1g})."
                tell(event, p, key, DECLINING, state.falling, "ok", "warning", fall, FALL, message)
        elif trend >= 0.0 or chance > UNSURE_P:
            message = f"{called(key)} is no longer declining: over its last {n} events its score {'rose' if trend > 0.0 else 'shows no trend'}."
            tell(event, p, key, DECLINING, state.falling, "warning", "ok", fall, FALL, message)
            state.falling = ""

    def window(self, tenant: str, p: Partition, key: Key, state: StreamState, score: float) -> list[float]:
        """Scores of the stream's last `WINDOW` points by (time, offset), oldest first, with that of the current record."""
        if not state.late:  # the log's order is that of time
            scores = [score]
            for _, packed in self.ring.before(p, tenant, key):
                scores[:0] = [entry[0] for entry in SCORE.iter_unpack(packed)]
                if len(scores) >= WINDOW:
                    break
            return scores[-WINDOW:]
        found = [(p.time_us, p.offset, score)]
        for newest_us, packed in self.ring.before(p, tenant, key):
            if len(found) < WINDOW or newest_us >= found[0][0]:
                found += [entry[:3] for entry in POINT.iter_unpack(packed)]
                found.sort()
                del found[:-WINDOW]
        return [entry[2] for entry in found]

    def due(self, p: Partition) -> Iterable[tuple[str, int]]:
        """What waits for time: the deadlines of goals."""
        return self.goals.due(p)

    # ---- answering

    def streams(self, reader: Reader, task: str | None, run: str | None) -> list[tuple[Key, StreamState]]:
        """Streams of a task type, of a run (``""`` = of none), of both, or all, by name and partition."""
        if task is not None and run is not None:
            return [((task, run), state) for state in reader.rows(self.rows, (task, run))]
        order, span = self.named(reader, task, run)
        return [(key, state) for key in order.sorted.islice(*span) for state in self.states(reader, key)]

    def listed(self, reader: Reader, task: str | None, run: str | None, limit: int, cursor: str | None) -> tuple[list[Key], str | None]:
        """A page of tasks and runs."""
        if task is not None and run is not None:
            return page([(task, run)] if self.any(reader, task, run) else [], limit, cursor, lambda key: encode_key(*key).decode())
        order, span = self.named(reader, task, run)
        return order.page(limit, cursor, parts_of, lambda key: encode_key(*key).decode(), span=span)

    def any(self, reader: Reader, task: str, run: str | None) -> bool:
        """Whether a task, or one of its runs, has events."""
        if run is not None:
            return bool(reader.rows(self.rows, (task, run)))
        _, (low, high) = self.named(reader, task, None)
        return low < high

    def named(self, reader: Reader, task: str | None, run: str | None) -> tuple[Order, tuple[int, int]]:
        """Tasks and runs by name: a list, and what part of it is of the task."""
        name = "names", run if task is None else None
        order: Order = reader.lists(self.source, {name: lambda: Order(lambda _, key, states: key if name[1] in (None, key[1]) else None)})[name]
        return order, order.span(() if task is None else (task,))

    def states(self, reader: Reader, key: Key) -> list[StreamState]:
        """A task and run in each partition that has it, in order."""
        return sorted(reader.rows(self.rows, key), key=lambda state: state.home)

    def newest(self, reader: Reader) -> Iterator[tuple[Key, StreamState]]:
        """All streams, the one with the newest event first; then by name and partition."""
        order: Order = reader.lists(self.source, {"newest": lambda: Order(newest_first)})["newest"]
        for _, key, home in order:
            yield key, next(state for state in reader.rows(self.rows, key) if state.home == home)

    def columns(self, reader: Reader) -> Columns:
        """`FIGURES` of all streams."""
        columns: Columns = reader.lists(self.source, {"figures": lambda: Columns(lines, KINDS)})["figures"]
        return columns

    def last_below(self, reader: Reader) -> list[tuple[Key, StreamState]]:
        """The streams that have the last `LIVE` convergences of all, and perhaps more."""
        order: Order = reader.lists(self.source, {"below": lambda: Order(last_below)})["below"]
        last: list[Place] = []
        for place in order:
            if len(last) >= LIVE and place[0] != last[-1][0]:
                break
            last.append(place)
        return [(key, next(state for state in reader.rows(self.rows, key) if state.home == home)) for _, key, home in last]

    def last(self, reader: Reader, streams: list[tuple[Key, StreamState]], n: int, since_us: int = LONG_AGO) -> list[Point]:
        """The last points of streams, oldest first: the greatest by (time, partition, offset) in their rings.

        Args:
            n: at most so many.
            since_us: none before this event time, microseconds.
        """
        return self.last_of(reader, sorted(streams, key=lambda item: -item[1].newest_us), n, since_us)

    def last_of(self, reader: Reader, streams: Iterable[tuple[Key, StreamState]], n: int, since_us: int = LONG_AGO) -> list[Point]:
        """As `last`, of streams that are in the order of their newest events, the newest first."""
        found: list[Point] = []
        least = since_us
        for key, state in streams:
            if state.newest_us < least:
                break
            task, home = key[0], state.home
            for newest_us, packed in self.ring.blocks(reader, key, home):
                if newest_us >= least:
                    points = POINT.iter_unpack(packed)
                    found += [(t, home, at, score, rate, k, metric, task) for t, at, score, rate, k, metric in points if t >= least]
                    if len(found) >= 2 * n:
                        found = sorted(found)[-n:]
                        least = max(least, found[0][0])
                    elif len(found) >= n:
                        least = max(least, sorted(found)[-n][0])
        return sorted(found)[-n:]


def called(key: Key) -> str:
    """A stream in a sentence."""
    return f"{key[0]} in run {key[1]}" if key[1] else key[0]


def tell(event: Event, p: Partition, key: Key, rule: str, period: str, previous: str, level: str, value: float, threshold: float, message: str) -> None:
    """Put out a message about a stream; its subject is ``task_type|run``, or ``task_type`` without a run."""
    emit(
        p,
        event,
        rule=rule,
        subject=encode_key(key[0], key[1] or None).decode(),
        period=period,
        previous=previous,
        level=level,
        value=value,
        threshold=threshold,
        message=message,
    )
