"""Goals as they are asked for: each of them, and the summary over all."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from .fold import BadParameter, NotFound, Reader, View, page
from .goal_estimate import estimate
from .goal_state import POINT, GoalState, Key, called, direction, earliest, name_of, states_of
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
        topics = fold.topics
        self.views = (
            View("/learning/goals", GoalsParams, self.listed, topics, "Goals: how many are reached, how long that took, and each of them."),
            View("/goals/{id}", GoalParams, self.shown, topics, "How far one goal has come, and when it will be reached."),
        )

    def every(self, reader: Reader, task_type: str | None) -> list[tuple[Key, GoalState]]:
        """All goals, of one task type ("" = of none) or of all, by id and then task type."""
        found = [(key, earliest(states)) for key, states in reader.scan(self.fold.rows) if task_type is None or key[0] == task_type]
        found.sort(key=lambda item: (item[0][1], item[0][0]))
        return found

    def active(self, reader: Reader, task_type: str | None) -> int:
        """How many goals are not completed."""
        return sum(state.completed_us is None for _, state in self.every(reader, task_type))

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
            key: Key = (params.task_type, params.id)
            states = reader.rows(self.fold.rows, key)
            found = [(key, earliest(states))] if states else []
        else:
            found = [(key, state) for key, state in self.every(reader, None) if key[1] == params.id]
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
            "goals": [self.render(reader, key, state, params.history) for key, state in part],
            "cursor": cursor,
        }


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
