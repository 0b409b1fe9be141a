"""What is kept of a goal: its definition, where it stands, and how much of the way to the target is done."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from struct import Struct

import msgspec

from streams.keys import encode_key

HISTORY = 100
"""Values kept of a goal: the estimate rests on them."""
POINT = Struct("<qd")
"""A value: event time in microseconds, current."""
NEVER = 2**62
"""A moment that does not come, microseconds."""

Key = tuple[str, ...]
"""(task type or "", goal id)"""


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
        worse, risk, miss: UTC day on which the open alert ``goal.regressed``, ``goal.at_risk``, ``goal.missed`` was opened; ""
            while it is not open.
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
    worse: str = ""
    risk: str = ""
    miss: str = ""

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


class Links(msgspec.Struct, array_like=True, gc=False):
    """Goals that want one metric: (task type or "", goal id, event time of the creation in microseconds)."""

    goals: list[tuple[str, str, int]] = []


class Due(msgspec.Struct, array_like=True, gc=False):
    """The next deadline of a tenant's goals that the watermark has not passed, microseconds; `NEVER` if there is none."""

    next_us: int = NEVER


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
