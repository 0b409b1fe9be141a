"""Goals as they are asked for: each of them, and the summary over all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from .fold import BadParameter, NotFound, Reader, View
from .goal_estimate import estimate
from .goal_state import POINT, GoalState, Key, called, direction, earliest, name_of, states_of
from .orders import Order, Place, Source, Totals, parts_of, same
from .times import SECOND_US, rfc3339, rfc3339_or_none

if TYPE_CHECKING:
    from .goals import Goals


class GoalParams(msgspec.Struct, frozen=True):
    """``/goals/{id}``: an empty `task_type` is that of the goals without one; `history` adds the values."""

    id: str
    task_type: str | None = None
    history: bool = False


class GoalsParams(msgspec.Struct, frozen=True):
    """``/learning/goals``: `history` adds the values of each."""

    task_type: str | None = None
    state: Literal["active", "completed", "regressed"] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    cursor: str | None = None
    history: bool = False


class GoalViews:
    """The views of the fold of goals.

    Args:
        fold: whose rows are read.
    """

    def __init__(self, fold: Goals) -> None:
        self.fold = fold
        self.source: Source[GoalState] = Source({fold.rows: same}, self.merged, self.one)
        topics = fold.topics
        self.views = (
            View("/learning/goals", GoalsParams, self.listed, topics, "Goals: how many are reached, how long that took, and each of them."),
            View("/goals/{id}", GoalParams, self.shown, topics, "How far one goal has come, and when it will be reached."),
        )

    def merged(self, reader: Reader) -> Iterator[tuple[Key, GoalState]]:
        """All goals, in no particular order."""
        return ((key, earliest(states)) for key, states in reader.scan(self.fold.rows))

    def one(self, reader: Reader, key: Key) -> GoalState | None:
        """A goal, None if there is none."""
        states = reader.rows(self.fold.rows, key)
        return earliest(states) if states else None

    def active(self, reader: Reader, task_type: str | None) -> int:
        """How many goals are not completed, of one task type ("" = of none) or of all."""
        total, completed, _ = self.counts(self.lists(reader, task_type)[1])
        return total - completed

    def lists(self, reader: Reader, task_type: str | None, state: str | None = None) -> tuple[Order, Totals]:
        """Goals of a task type, or of all, by id and then task type: those in a state, and how long those that were reached have taken, microseconds."""
        listed, times = ("goals", task_type, state), ("times", task_type)
        found = reader.lists(
            self.source,
            {listed: lambda: Order(partial(place, task_type, state)), times: lambda: Totals(partial(taken, task_type), 2)},
        )
        return found[listed], found[times]

    def counts(self, times: Totals) -> tuple[int, int, float]:
        """Goals, those that were reached, and the sum of what those took, microseconds."""
        took, completed = times.sums()
        return times.n, int(completed), took

    def points(self, reader: Reader, key: Key, state: GoalState) -> list[tuple[int, float]]:
        """The last `HISTORY` values, (event time in microseconds, current), in log order."""
        points: list[tuple[int, float]] = []
        for _, packed in self.fold.ring.blocks(reader, key, state.home):
            points[:0] = POINT.iter_unpack(packed)
        return points

    def render(self, reader: Reader, key: Key, state: GoalState, history: bool) -> dict[str, Any]:
        """Everything about a goal."""
        points = self.points(reader, key, state)
        answer = {
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
            "at_risk": bool(state.risk),
            "missed": bool(state.miss),
            "created_at": rfc3339(state.created_us),
            "deadline": rfc3339_or_none(state.deadline_us),
            **estimate(state, points),
            "n": len(points),
            "n_total": state.n,
        }
        if history:
            answer["given_start"] = state.start
            answer["history"] = [{"time": rfc3339(time_us), "current": current} for time_us, current in leading(state, points) + points]
        return answer

    def shown(self, reader: Reader, params: GoalParams) -> dict[str, Any]:
        """One goal."""
        if params.task_type is not None:
            keys: list[Key] = [(params.task_type, params.id)]
        else:
            order, _ = self.lists(reader, None)
            keys = [(task_type, id) for id, task_type in order.sorted.islice(*order.span((params.id,)))]
        found = [(key, state) for key in keys if (state := self.one(reader, key)) is not None]
        if not found:
            raise NotFound(f"there is no {called((params.task_type or '', params.id))}", goal_id=params.id, task_type=params.task_type)
        if len(found) > 1:
            types = ", ".join(key[0] or "(none: give it empty)" for key, _ in found)
            raise BadParameter("task_type", f"goals of several task types have this id: {types}")
        return {**self.render(reader, *found[0], params.history), "as_of": rfc3339_or_none(reader.as_of())}

    def listed(self, reader: Reader, params: GoalsParams) -> dict[str, Any]:
        """The summary: figures over all goals (of the task type), and those of the state asked for."""
        return {**self.summary(reader, params), "as_of": rfc3339_or_none(reader.as_of())}

    def summary(self, reader: Reader, params: GoalsParams) -> dict[str, Any]:
        """As `listed`, for other answers to hold."""
        chosen, times = self.lists(reader, params.task_type, params.state)
        total, completed, took = self.counts(times)
        shown, cursor = chosen.page(params.limit, params.cursor, key_of, lambda place: name_of(place[::-1]))
        keys = [(task_type, id) for id, task_type in shown]
        return {
            "total_goals": total,
            "completed_goals": completed,
            "active_goals": total - completed,
            "completion_rate": completed / total if total else 0.0,
            "avg_completion_time_s": took / completed / SECOND_US if completed else None,
            "goals": [self.render(reader, key, state, params.history) for key in keys if (state := self.one(reader, key)) is not None],
            "cursor": cursor,
        }


def place(task_type: str | None, wanted: str | None, reader: Reader, key: Key, state: GoalState) -> Place | None:
    """Where a goal stands in a list of a task type and a state; None = any."""
    return (key[1], key[0]) if task_type in (None, key[0]) and (wanted is None or wanted in states_of(state)) else None


def taken(task_type: str | None, key: Key, state: GoalState) -> tuple[float, ...] | None:
    """From a goal's creation to its completion, microseconds, and 1; zeros of one that is not completed, None of another task type."""
    if task_type not in (None, key[0]):
        return None
    return (0.0, 0.0) if state.completed_us is None else (float(state.completed_us - state.created_us), 1.0)


def key_of(cursor: str) -> Key:
    """The goal that a cursor may name: one without a task type has one part."""
    parts = parts_of(cursor)
    return parts if len(parts) > 1 else ("", *parts)


def leading(state: GoalState, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """What of the values that left the ring still counts, so that a goal made of the history again stands as this one.

    Returns:
        The first value, the one that reached the target, the latest one; nothing where the ring holds all values.
    """
    first, done_us, current, current_us = state.first, state.completed_us, state.current, state.current_us
    if state.n <= len(points) or first is None or current is None or current_us is None:
        return []
    found = [(done_us if done_us is not None and state.met(first) else state.created_us, first)]
    if done_us is not None and not any(time_us == done_us and state.met(value) for time_us, value in found + points):
        found.append((done_us, state.target))
    if (current_us, current) not in points:
        found.append((current_us, current))
    return found
