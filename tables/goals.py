"""Goals: a figure to reach from below or from above, how far it has come, and when it will be there.

The rules this file keeps:
  * a goal (task type, goal id) has one home partition; its definition never changes after the record that created it;
  * what is shown as current is the latest value by event time, then by place in the log, so a late value replaces nothing;
  * completion is never taken back: a later value that misses the target is shown beside it as a regress.

Whether an event is refused follows from the definition and the creating record's offset alone, which later records leave
as they are: absorbed again after a crash, a refused record is refused again. `goal_history` has the lower rank: its rows
are made from the `goal` row, so a crash leaves them ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum, isfinite
from struct import Struct
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from streams.events import GoalCreated, GoalProgressed
from streams.keys import encode_key

from .alerting import emit
from .fold import BadParameter, Fold, NotFound, Reader, Refused, View, page
from .regression import fit, t_quantile
from .rows import Table
from .times import SECOND_US, day, rfc3339, rfc3339_or_none, to_us

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
HISTORY = 100
"""Values kept of a goal: the estimate rests on them."""
SEGMENT = 32
"""Values a row; a full segment is closed."""
SLOTS = -(-HISTORY // SEGMENT)
"""Closed segments kept."""
POINT = Struct("<qd")
"""A value: event time in microseconds, current."""
_FULL = SEGMENT * POINT.size

COMPLETED, REGRESSED = "goal.completed", "goal.regressed"
LAST_US = 253_402_300_799_999_999
"""The end of the year 9999: no later moment can be written."""

Key = tuple[str, ...]


class GoalBounds(msgspec.Struct, frozen=True):
    """What the fold of goals reads of the settings: its digest is part of the rows' version.

    Attributes:
        max_goals: goals of a tenant in a partition; further ones are counted as overflow.
    """

    max_goals: int = 10_000


class GoalState(msgspec.Struct, array_like=True, gc=False):
    """One goal.

    Attributes:
        description, target, at_most, start, metric, deadline_us: as created; start and deadline (microseconds) None if not given.
        created_us: event time of the creating record, microseconds.
        born, home: its offset and its partition.
        n: values absorbed.
        first: the first of them in log order.
        current, current_us: the latest by event time, then log order; None before the first.
        completed_us: least event time of a value that meets the target; None before the first.
        period: UTC day on which the open alert ``goal.regressed`` was opened; "" while it is not open.
        segment, points: number of the open segment of values, and its packed `POINT`s in log order.
    """

    description: str = ""
    target: float = 0.0
    at_most: bool = False
    start: float | None = None
    metric: str | None = None
    deadline_us: int | None = None
    created_us: int = 0
    born: int = -1
    home: int = -1
    n: int = 0
    first: float | None = None
    current: float | None = None
    current_us: int | None = None
    completed_us: int | None = None
    period: str = ""
    segment: int = 0
    points: bytearray = msgspec.field(default_factory=bytearray)

    def met(self, value: float | None) -> bool:
        """Whether a value reaches the target, which counts itself."""
        return value is not None and (value <= self.target if self.at_most else value >= self.target)

    @property
    def regressed(self) -> bool:
        """Completed once, and the latest value misses the target."""
        return self.completed_us is not None and not self.met(self.current)

    @property
    def begin(self) -> float | None:
        """Where the way to the target starts: as given, else the first value where a share of the target says nothing."""
        if self.start is not None:
            return self.start
        return self.first if self.at_most or self.target <= 0.0 else None

    def percentage(self) -> float:
        """How much of the way is done, 0…100, not rounded."""
        current, target, start = self.current, self.target, self.begin
        if current is None:
            return 0.0
        if self.met(current):
            return 100.0
        if start is None:
            return min(100.0, max(0.0, current / target * 100.0))
        if self.met(start):  # it lies beyond the target, or on it: there is no way to go
            return 0.0
        way, done = target - start, current - start
        if not (isfinite(way) and isfinite(done)):
            way, done = target / 4 - start / 4, current / 4 - start / 4
        return min(100.0, max(0.0, done / way * 100.0))


class ClosedValues(msgspec.Struct, array_like=True, gc=False):
    """A full segment of a goal's values: its number and its packed `POINT`s."""

    number: int = -1
    points: bytes = b""


class Goals(Fold):
    """The fold of goals, its views, the notice ``goal.completed`` and the ordered alert ``goal.regressed``.

    Args:
        bounds: see `GoalBounds`.
    """

    topics = (TOPIC,)

    def __init__(self, bounds: GoalBounds | None = None) -> None:
        bounds = bounds or GoalBounds()
        self.max_goals = bounds.max_goals
        self.history = Table("goal_history", ClosedValues, rank=60, settings=bounds)
        self.rows = Table("goal", GoalState, rank=65, settings=bounds)
        self.tables = (self.history, self.rows)
        self.handlers = {GoalCreated: self.created, GoalProgressed: self.progressed}
        topics = self.topics
        self.views = (
            View("/learning/goals", GoalsParams, self.listed, topics, "Goals: how many are reached, how long that took, and each of them."),
            View("/goals/{id}", GoalParams, self.shown, topics, "How far one goal has come, and when it will be reached."),
        )

    # ---- absorbing

    def created(self, event: Event, p: Partition) -> None:
        """Absorb a creation: of a new goal, or once more of one that is there (equal content changes nothing).

        Raises:
            Refused: the sender's; the goal is there with another content.
        """
        data: GoalCreated = event.data
        key = (data.task_type or "", data.goal_id)
        deadline_us = None if data.deadline is None else to_us(data.deadline)
        known = self.definition(p, event.tenant, key)
        if known is not None and known.born != p.offset:
            wanted = {
                "description": data.description,
                "target": data.target,
                "direction": data.direction,
                "start": data.start,
                "metric": data.metric,
                "deadline": deadline_us,
            }
            for name, there in content(known).items():
                if there != wanted[name]:
                    raise Refused("goal_conflict", f"{name}: {called(key)} was created with another; give another goal another goal_id")
            p.skip("goal_exists")
            return
        if known is None and self.full(p, event.tenant):
            return
        state = p.open(self.rows, event.tenant, key)
        if state is None:
            return
        state.description, state.target, state.at_most = data.description, data.target, data.direction == "at_most"
        state.start, state.metric, state.deadline_us = data.start, data.metric, deadline_us
        state.created_us, state.born, state.home = p.time_us, p.offset, p.number

    def progressed(self, event: Event, p: Partition) -> None:
        """Absorb where a goal stands.

        Raises:
            Refused: the sender's; the goal was not created before this record in this partition.
        """
        data: GoalProgressed = event.data
        key = (data.task_type or "", data.goal_id)
        if self.definition(p, event.tenant, key) is None:
            raise Refused("unknown_goal", f"goal_id: {called(key)} was not created before this; create it and send this again")
        state = p.open(self.rows, event.tenant, key)
        if state is None:
            return
        value, time_us = data.current, p.time_us
        state.points += POINT.pack(time_us, value)
        if len(state.points) == _FULL:
            closed = p.open(self.history, event.tenant, (*key, str(state.segment % SLOTS)))
            if closed is not None:
                closed.number, closed.points = state.segment, bytes(state.points)
            state.segment += 1
            state.points = bytearray()
        state.n += 1
        if state.n == 1:
            state.first = value
        if state.current_us is None or time_us >= state.current_us:
            state.current, state.current_us = value, time_us
        if state.met(value):
            if state.completed_us is None:
                state.completed_us = time_us
                limit = "at most" if state.at_most else "at least"
                message = f"The {called(key)} is reached: {value:g}, {limit} {state.target:g} was wanted."
                self.tell(event, p, key, COMPLETED, day(time_us), "ok", "info", value, state.target, message)
            else:
                state.completed_us = min(state.completed_us, time_us)
        if state.regressed != bool(state.period):
            self.turn(event, p, key, state)

    def turn(self, event: Event, p: Partition, key: Key, state: GoalState) -> None:
        """Open or resolve ``goal.regressed``."""
        current = state.current
        if state.regressed:
            state.period = day(p.time_us)
            message = f"The {called(key)} was reached and is missed again: {current:g}, the target is {state.target:g}."
            self.tell(event, p, key, REGRESSED, state.period, "ok", "warning", current, state.target, message)
        else:
            message = f"The {called(key)} is reached again: {current:g}, the target is {state.target:g}."
            self.tell(event, p, key, REGRESSED, state.period, "warning", "ok", current, state.target, message)
            state.period = ""

    def tell(
        self,
        event: Event,
        p: Partition,
        key: Key,
        rule: str,
        period: str,
        previous: str,
        level: str,
        value: float | None,
        target: float,
        message: str,
    ) -> None:
        """Put out a message about a goal; its subject is ``task_type|goal_id``, or ``goal_id`` without a task type."""
        emit(
            p,
            event,
            rule=rule,
            subject=name_of(key),
            period=period,
            previous=previous,
            level=level,
            value=value,
            threshold=target,
            message=message,
            notice=rule == COMPLETED,
        )

    def definition(self, p: Partition, tenant: str, key: Key) -> GoalState | None:
        """The goal if it was created up to the current record, for what never changes of it.

        The row may be ahead of the log (after a crash), so `Partition.read` would not show it; only the fields set at
        creation may be looked at.
        """
        space = p.spaces[self.rows.index].get(tenant)
        row = space.get(key) if space is not None else None
        state = self.rows.load(row) if row is not None else None
        return state if state is not None and state.born <= p.offset else None

    def full(self, p: Partition, tenant: str) -> bool:
        """Whether a new goal is one too many; counted as overflow then.

        Goals are never removed, so this is the same while records are absorbed again after a crash: rows that are ahead of the
        log are of goals that were within the bound.
        """
        if len(p.spaces[self.rows.index].get(tenant) or ()) < self.max_goals:
            return False
        p.count_as(overflow=1)
        return True

    # ---- answering

    def every(self, reader: Reader, task_type: str | None) -> list[tuple[Key, GoalState]]:
        """All goals, of one task type ("" = of none) or of all, by id and then task type."""
        found = [(key, earliest(states)) for key, states in reader.scan(self.rows) if task_type is None or key[0] == task_type]
        found.sort(key=lambda item: (item[0][1], item[0][0]))
        return found

    def active(self, reader: Reader, task_type: str | None) -> int:
        """How many goals are not completed."""
        return sum(state.completed_us is None for _, state in self.every(reader, task_type))

    def points(self, reader: Reader, key: Key, state: GoalState) -> list[tuple[int, float]]:
        """The last `HISTORY` values, (event time in microseconds, current), in log order."""
        packed = bytearray()
        for number in range(max(0, state.segment - SLOTS), state.segment):
            for home, closed in reader.placed(self.history, (*key, str(number % SLOTS))):
                if home == state.home and closed.number == number:
                    packed += closed.points
        return list(POINT.iter_unpack(packed + state.points))[-HISTORY:]

    def render(self, reader: Reader, key: Key, state: GoalState) -> dict[str, Any]:
        """Everything about a goal."""
        points = self.points(reader, key, state)
        return {
            "goal_id": key[1],
            "description": state.description,
            "task_type": key[0] or None,
            "metric": state.metric,
            "target": state.target,
            "direction": direction(state),
            "start": state.begin,
            "current": state.current,
            "current_at": rfc3339_or_none(state.current_us),
            "percentage": state.percentage(),
            "completed": state.completed_us is not None,
            "completed_at": rfc3339_or_none(state.completed_us),
            "regressed": state.regressed,
            "created_at": rfc3339(state.created_us),
            "deadline": rfc3339_or_none(state.deadline_us),
            **estimate(state, points),
            "n": len(points),
            "n_total": state.n,
        }

    def shown(self, reader: Reader, params: GoalParams) -> dict[str, Any]:
        """One goal."""
        if params.task_type is not None:
            key: Key = (params.task_type, params.id)
            states = reader.rows(self.rows, key)
            found = [(key, earliest(states))] if states else []
        else:
            found = [(key, state) for key, state in self.every(reader, None) if key[1] == params.id]
        if not found:
            raise NotFound(f"there is no {called((params.task_type or '', params.id))}", goal_id=params.id, task_type=params.task_type)
        if len(found) > 1:
            types = ", ".join(key[0] or "(none: give it empty)" for key, _ in found)
            raise BadParameter("task_type", f"goals of several task types have this id: {types}")
        return {**self.render(reader, *found[0]), "as_of": rfc3339_or_none(reader.as_of())}

    def listed(self, reader: Reader, params: GoalsParams) -> dict[str, Any]:
        """The summary: figures over all goals (of the task type), and those of the state asked for."""
        return {**self.summary(reader, params), "as_of": rfc3339_or_none(reader.as_of())}

    def summary(self, reader: Reader, params: GoalsParams) -> dict[str, Any]:
        """As `listed`, for other answers to hold."""
        goals = self.every(reader, params.task_type)
        times = [state.completed_us - state.created_us for _, state in goals if state.completed_us is not None]
        chosen = [item for item in goals if params.state is None or params.state in states_of(item[1])]
        part, cursor = page(chosen, params.limit, params.cursor, lambda item: name_of(item[0]))
        return {
            "total_goals": len(goals),
            "completed_goals": len(times),
            "active_goals": len(goals) - len(times),
            "completion_rate": len(times) / len(goals) if goals else 0.0,
            "avg_completion_time_s": fsum(times) / len(times) / SECOND_US if times else None,
            "goals": [self.render(reader, key, state) for key, state in part],
            "cursor": cursor,
        }


def direction(state: GoalState) -> str:
    """``at_most`` or ``at_least``."""
    return "at_most" if state.at_most else "at_least"


def content(state: GoalState) -> dict[str, str | float | None]:
    """What makes a second creation the same goal or another one."""
    return {
        "description": state.description, "target": state.target, "direction": direction(state), "start": state.start,
        "metric": state.metric, "deadline": state.deadline_us,
    }  # fmt: skip


def states_of(state: GoalState) -> Iterator[str]:
    """Names of the states a goal is in; a regressed one is completed too."""
    yield "active" if state.completed_us is None else "completed"
    if state.regressed:
        yield "regressed"


def earliest(states: list[GoalState]) -> GoalState:
    """The row that speaks for a goal: it has one, unless a producer created it under another record key too."""
    return min(states, key=lambda state: (state.created_us, state.home))


def name_of(key: Key) -> str:
    """Name of a goal in alerts and cursors: ``task_type|goal_id``, parts encoded as in record keys."""
    return encode_key(key[0] or None, key[1]).decode()


def called(key: Key) -> str:
    """A goal in a sentence."""
    return f"goal {key[1]} of task type {key[0]}" if key[0] else f"goal {key[1]}"


def estimate(state: GoalState, points: list[tuple[int, float]]) -> dict[str, Any]:
    """When the goal will be reached if it goes on along a straight line, with a 90 % interval; ``null`` where nothing can be said.

    Args:
        points: (event time in microseconds, current), in any order.

    Returns:
        eta, eta_low, eta_high (RFC 3339; ``null`` also beyond the year 9999), slope_per_second and its stderr (unit of the goal
        by second), model.
    """
    answer: dict[str, Any] = {"eta": None, "eta_low": None, "eta_high": None, "slope_per_second": None, "stderr": None, "model": "linear"}
    current, current_us = state.current, state.current_us
    if state.completed_us is not None or current is None or current_us is None:
        return answer
    begin = points[0][0]
    line = fit([(time_us - begin) / SECOND_US for time_us, _ in points], [value for _, value in points])
    sign = -1.0 if state.at_most else 1.0
    if line.slope is None or line.slope * sign <= 0.0:
        return answer
    left, speed = (state.target - current) * sign, line.slope * sign

    def moment(speed: float) -> str | None:
        ahead_us = left / speed * SECOND_US if speed > 0.0 else float("inf")
        return rfc3339(current_us + round(ahead_us)) if ahead_us <= LAST_US - current_us else None

    answer["eta"], answer["slope_per_second"], answer["stderr"] = moment(speed), line.slope, line.stderr
    if line.stderr is not None:
        half = t_quantile(0.95, line.n - 2) * line.stderr
        answer["eta_low"], answer["eta_high"] = moment(speed + half), moment(speed - half)
    return answer


# ---- views


class GoalParams(msgspec.Struct, frozen=True):
    """``/goals/{id}``: an empty `task_type` is that of the goals without one."""

    id: str
    task_type: str | None = None


class GoalsParams(msgspec.Struct, frozen=True):
    """``/learning/goals``"""

    task_type: str | None = None
    state: Literal["active", "completed", "regressed"] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    cursor: str | None = None
