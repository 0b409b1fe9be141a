"""Goals: a figure to reach from below or from above, how far it has come, and whether it gets there in time.

The rules this file keeps:
  * a goal (task type, goal id) has one home partition; its definition never changes after the record that created it;
  * what is shown as current is the latest value by event time, then by place in the log, so a late value replaces nothing;
  * completion is never taken back: a later value that misses the target is shown beside it as a regress;
  * a deadline is missed when the tenant's watermark passes it, whatever record moved that.

Whether an event is refused follows from the definition and the creating record's offset alone, which later records leave
as they are: absorbed again after a crash, a refused record is refused again. `goal` has the lowest rank: it is judged by its
ring of values, and by the next deadline of the tenant (`goal_due`), which both are made without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streams.events import ClockTicked, GoalCreated, GoalProgressed, LearningRecorded, MetricRecorded, RlMetricsRecordedV2

from .alerting import emit
from .fold import Fold, Refused
from .goal_estimate import foresee, settled
from .goal_links import GoalLinks
from .goal_state import HISTORY, NEVER, POINT, Due, GoalBounds, GoalState, Key, called, content, name_of
from .goal_views import GoalViews
from .rings import Ring
from .rows import Table
from .times import day, rfc3339, to_us

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
COMPLETED, REGRESSED, AT_RISK, MISSED = "goal.completed", "goal.regressed", "goal.at_risk", "goal.missed"
FORESEEN = 10
"""Values from which a goal is judged to be at risk."""


class Goals(Fold):
    """The fold of goals: their views, the notice ``goal.completed``, the ordered alerts ``goal.regressed``, ``.at_risk`` and ``.missed``.

    Args:
        bounds: see `GoalBounds`.

    Attributes:
        rows, ring: goals, and the last values of each.
        links: which goals want which metric.
        deadlines: the next deadline of each tenant.
        asked: the views, for other answers to hold.
    """

    topics = (TOPIC,)

    def __init__(self, bounds: GoalBounds | None = None) -> None:
        bounds = bounds or GoalBounds()
        self.max_goals = bounds.max_goals
        self.rows = Table("goal", GoalState, rank=60, settings=bounds)
        self.ring = Ring("goal_points", POINT, HISTORY, rank=61, settings=bounds)
        self.links = GoalLinks(rank=63, settings=bounds)
        self.deadlines = Table("goal_due", Due, rank=64, settings=bounds)
        self.tables = (self.rows, *self.ring.tables, self.links.table, self.deadlines)
        self.handlers = {
            GoalCreated: self.created,
            GoalProgressed: self.progressed,
            MetricRecorded: self.measured,
            LearningRecorded: self.learned,
            RlMetricsRecordedV2: self.elapse,
            ClockTicked: self.ticked,
        }
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
            self.elapse(event, p)
            return
        if known is None and self.full(p, event.tenant):
            self.elapse(event, p)
            return
        state = p.open(self.rows, event.tenant, key)
        if state is not None:
            state.description, state.target, state.at_most = data.description, data.target, data.direction == "at_most"
            state.start, state.metric, state.deadline_us = data.start, data.metric, deadline_us
            state.created_us, state.born, state.home = p.time_us, p.offset, p.number
        if data.metric is not None:
            self.links.add(p, event.tenant, data.metric, key)
        self.elapse(event, p, key, state, deadline_us)

    def progressed(self, event: Event, p: Partition) -> None:
        """Absorb where a goal stands.

        Raises:
            Refused: the sender's; the goal was not created before this record in this partition.
        """
        data: GoalProgressed = event.data
        key = (data.task_type or "", data.goal_id)
        if self.definition(p, event.tenant, key) is None:
            raise Refused("unknown_goal", f"goal_id: {called(key)} was not created before this; create it and send this again")
        value, time_us = data.current, p.time_us
        state = p.open(self.rows, event.tenant, key)
        if state is not None:
            state.n += 1
            if state.n == 1:
                state.first = value
            if state.current_us is None or time_us >= state.current_us:
                state.current, state.current_us = value, time_us
            if state.met(value):
                if state.completed_us is None:
                    state.completed_us = time_us
                    message = f"The {called(key)} is reached: {value:g}, {limit(state)} was wanted."
                    tell(event, p, key, COMPLETED, day(time_us), "ok", "info", value, state.target, message)
                else:
                    state.completed_us = min(state.completed_us, time_us)
            if state.regressed != bool(state.worse):
                self.turn(event, p, key, state)
            if state.deadline_us is not None:
                self.judge(event, p, key, state, state.deadline_us, (time_us, value))
        self.ring.append(p, event.tenant, key, POINT.pack(time_us, value))
        self.elapse(event, p, key, state)

    def measured(self, event: Event, p: Partition) -> None:
        """Hand a metric's values on to the goals that want them."""
        if self.links.any(p, event.tenant):
            data: MetricRecorded = event.data
            self.links.feed(event, p, "", [(data.metric_type, data.value), *((f"{data.metric_type}.{name}", x) for name, x in (data.values or {}).items())])
        self.elapse(event, p)

    def learned(self, event: Event, p: Partition) -> None:
        """Hand the figures of a learning event on to the goals that want them."""
        if self.links.any(p, event.tenant):
            data: LearningRecorded = event.data
            names = ("performance_score", "learning_rate", "convergence_metric", "episode_count")
            self.links.feed(event, p, data.task_type, [(name, getattr(data, name)) for name in names])
        self.elapse(event, p)

    def ticked(self, event: Event, p: Partition) -> None:
        """Time passed without events."""
        data: ClockTicked = event.data
        self.elapse(event, p, until_us=to_us(data.until))

    # ---- judging

    def turn(self, event: Event, p: Partition, key: Key, state: GoalState) -> None:
        """Open or resolve ``goal.regressed``."""
        current = state.current
        if state.regressed:
            state.worse = day(p.time_us)
            message = f"The {called(key)} was reached and is missed again: {current:g}, the target is {state.target:g}."
            tell(event, p, key, REGRESSED, state.worse, "ok", "warning", current, state.target, message)
        else:
            message = f"The {called(key)} is reached again: {current:g}, the target is {state.target:g}."
            tell(event, p, key, REGRESSED, state.worse, "warning", "ok", current, state.target, message)
            state.worse = ""

    def judge(self, event: Event, p: Partition, key: Key, state: GoalState, deadline_us: int, point: tuple[int, float]) -> None:
        """Open or resolve ``goal.at_risk`` by the estimate that includes this value; a completion resolves ``goal.missed`` too."""
        if state.completed_us is not None:
            message = f"The {called(key)} is reached."
            if state.risk:
                tell(event, p, key, AT_RISK, state.risk, "warning", "ok", point[1], state.target, message, reason="completed")
                state.risk = ""
            if state.miss:
                tell(event, p, key, MISSED, state.miss, "critical", "ok", point[1], state.target, message, reason="completed")
                state.miss = ""
            return
        if state.n < FORESEEN:
            return
        points = [point]
        for _, packed in self.ring.before(p, event.tenant, key):
            points[:0] = POINT.iter_unpack(packed)
        if settled(state, points, deadline_us, bool(state.risk)):
            return
        found = foresee(state, points)
        if found is None:
            return
        if not state.risk:
            if found.low_us is not None and found.low_us > deadline_us:
                when = {"deadline": rfc3339(deadline_us), **found.shown()}
                state.risk = day(p.time_us)
                message = f"The {called(key)} will not be reached by {when['deadline']}: {state.current:g} now, {limit(state)} is wanted."
                tell(event, p, key, AT_RISK, state.risk, "ok", "warning", state.current, state.target, message, extra=when)
        elif found.eta_us <= deadline_us:
            when = {"deadline": rfc3339(deadline_us), **found.shown()}
            message = f"The {called(key)} is expected to be reached by {when['deadline']} again: {state.current:g} now, {limit(state)} is wanted."
            tell(event, p, key, AT_RISK, state.risk, "warning", "ok", state.current, state.target, message, extra=when)
            state.risk = ""

    def elapse(
        self,
        event: Event,
        p: Partition,
        key: Key | None = None,
        state: GoalState | None = None,
        deadline_us: int | None = None,
        until_us: int = -NEVER,
    ) -> None:
        """Open ``goal.missed`` for the goals whose deadline the tenant's watermark passes with this record. The last step of every handler.

        Args:
            key, state: of the goal that this record opened; no state where the row had the record already.
            deadline_us: of the goal that this record created, microseconds.
            until_us: of a tick of the clock, microseconds.
        """
        tenant = event.tenant
        if deadline_us is None and not p.spaces[self.deadlines.index].get(tenant):
            return
        due = p.read(self.deadlines, tenant, ())
        next_us = rest_us = NEVER if due is None else due.next_us
        if deadline_us is None and next_us == NEVER:
            return
        now_us = max(p.time_us, until_us, p.watermark(tenant) or -NEVER)
        passed: set[tuple[int, Key]] = set()
        if now_us > next_us:
            rest_us = NEVER
            for at_us, goal in self.dated(p, tenant):
                if at_us >= now_us:
                    rest_us = min(rest_us, at_us)
                elif at_us >= next_us:
                    passed.add((at_us, goal))
        if deadline_us is not None and key is not None:
            if deadline_us < now_us:
                passed.add((deadline_us, key))
            else:
                rest_us = min(rest_us, deadline_us)
        for at_us, goal in sorted(passed):
            late = state if goal == key else self.unfinished(p, tenant, goal)
            if late is not None and late.completed_us is None:
                late.miss = day(p.time_us)
                stands = "nothing was reported" if late.current is None else f"it stands at {late.current:g}"
                message = f"The {called(goal)} missed its deadline {rfc3339(at_us)}: {stands}, {limit(late)} was wanted."
                tell(event, p, goal, MISSED, late.miss, "ok", "critical", late.current, late.target, message, extra={"deadline": rfc3339(at_us)})
        if rest_us != next_us:
            due = p.open(self.deadlines, tenant, ())
            if due is not None:
                due.next_us = rest_us

    # ---- looking

    def dated(self, p: Partition, tenant: str) -> Iterator[tuple[int, Key]]:
        """Deadlines of the goals created up to the current record, (microseconds, goal): what never changes of them.

        Rows may be ahead of the log (after a crash); so nothing else of them may enter `goal_due`.
        """
        for key, row in p.space(self.rows, tenant).items():
            state = self.rows.peek(row)
            if state.deadline_us is not None and state.born <= p.offset:
                yield state.deadline_us, key

    def unfinished(self, p: Partition, tenant: str, key: Key) -> GoalState | None:
        """A goal to change by the current record, unless it is completed or has absorbed the record."""
        if self.rows.load(p.space(self.rows, tenant)[key]).completed_us is not None:
            return None
        return p.open(self.rows, tenant, key)

    def due(self, p: Partition) -> Iterator[tuple[str, int]]:
        """Tenants that wait for a deadline in this partition, and for which (microseconds)."""
        for tenant, space in p.spaces[self.deadlines.index].items():
            for row in space.values():
                next_us = self.deadlines.load(row).next_us
                if next_us < NEVER:
                    yield tenant, next_us

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


def limit(state: GoalState) -> str:
    """What is wanted, in a sentence."""
    return f"at {'most' if state.at_most else 'least'} {state.target:g}"


def tell(
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
    *,
    reason: str | None = None,
    extra: dict[str, Any] | None = None,
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
        reason=reason,
        extra=extra,
    )
