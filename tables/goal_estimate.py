"""When a goal will be reached, if it goes on along a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from operator import mul
from typing import Any, NamedTuple

from .goal_state import GoalState
from .moments import plain_sum
from .regression import fit, t_quantile
from .times import SECOND_US, rfc3339

LAST_US = 253_402_300_799_999_999
"""The end of the year 9999: no later moment can be written."""


class Estimate(NamedTuple):
    """The moment of arrival with its 90 % interval, microseconds since the epoch (infinite: not foreseeable late), and the line.

    Attributes:
        eta_us: at the slope as it is.
        low_us, high_us: at the steeper and the flatter end of the slope's interval; None below 3 values; `high_us` infinite
            where the flatter one no longer moves toward the target.
        slope: unit of the goal by second.
        stderr: of the slope; None below 3 values.
    """

    eta_us: float
    low_us: float | None
    high_us: float | None
    slope: float
    stderr: float | None

    def shown(self) -> dict[str, str | None]:
        """The moments as RFC 3339, ``null`` beyond the year 9999."""
        return {"eta": written(self.eta_us), "eta_low": written(self.low_us), "eta_high": written(self.high_us)}


def foresee(state: GoalState, points: Sequence[tuple[int, float]]) -> Estimate | None:
    """The estimate; None where the goal is completed, has fewer than two values at different times, or does not move toward its target.

    Args:
        points: (event time in microseconds, current), in any order.
    """
    current, current_us = state.current, state.current_us
    if state.completed_us is not None or current is None or current_us is None or not points:
        return None
    begin = points[0][0]
    line = fit([(time_us - begin) / SECOND_US for time_us, _ in points], [value for _, value in points])
    sign = -1.0 if state.at_most else 1.0
    if line.slope is None or line.slope * sign <= 0.0:
        return None
    left, speed = (state.target - current) * sign, line.slope * sign

    def moment(speed: float) -> float:
        return current_us + left / speed * SECOND_US if speed > 0.0 else inf

    if line.stderr is None:
        return Estimate(moment(speed), None, None, line.slope, None)
    half = t_quantile(0.95, line.n - 2) * line.stderr
    return Estimate(moment(speed), moment(speed + half), moment(speed - half), line.slope, line.stderr)


def settled(state: GoalState, points: Sequence[tuple[int, float]], deadline_us: int, at_risk: bool) -> bool:
    """Whether a rough estimate shows already that the goal stays at risk, or stays out of it: most of the time, at a third of the cost.

    Args:
        points: as of `foresee`.
        deadline_us: microseconds since the epoch.
        at_risk: as it stands.
    """
    current, current_us = state.current, state.current_us
    if current is None or current_us is None:
        return False
    times = [time_us for time_us, _ in points]
    middle = sum(times) // len(times)
    apart = [float(time_us - middle) for time_us in times]
    slope = plain_sum(map(mul, apart, [value for _, value in points])) / (plain_sum(map(mul, apart, apart)) or 1.0)
    if not (slope < 0.0 if state.at_most else slope > 0.0):
        return False
    ahead_us = (state.target - current) / slope
    return current_us + 0.99 * ahead_us > deadline_us if at_risk else current_us + 1.01 * ahead_us < deadline_us


def estimate(state: GoalState, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The estimate as it is shown: ``null`` where nothing can be said, or where the moment lies beyond the year 9999.

    Args:
        points: (event time in microseconds, current), in any order.

    Returns:
        eta, eta_low, eta_high (RFC 3339), slope_per_second and its stderr (unit of the goal by second), model.
    """
    found = foresee(state, points)
    if found is None:
        return {"eta": None, "eta_low": None, "eta_high": None, "slope_per_second": None, "stderr": None, "model": "linear"}
    return {**found.shown(), "slope_per_second": found.slope, "stderr": found.stderr, "model": "linear"}


def written(time_us: float | None) -> str | None:
    """A moment as RFC 3339; None for none, and for one that no date can name."""
    return None if time_us is None or not time_us <= LAST_US else rfc3339(round(time_us))
