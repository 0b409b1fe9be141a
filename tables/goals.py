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

from typing import TYPE_CHECKING

from streams.events import GoalCreated, GoalProgressed

from .alerting import emit
from .fold import Fold, Refused
from .goal_state import FULL, POINT, SLOTS, ClosedValues, GoalBounds, GoalState, Key, called, content, name_of
from .goal_views import GoalViews
from .rows import Table
from .times import day, to_us

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
COMPLETED, REGRESSED = "goal.completed", "goal.regressed"


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
        self.asked = GoalViews(self)
        self.views = self.asked.views

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
        if len(state.points) == FULL:
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
