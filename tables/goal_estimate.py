"""When a goal will be reached, if it goes on along a straight line."""

from __future__ import annotations

from typing import Any

from .goal_state import GoalState
from .regression import fit, t_quantile
from .times import SECOND_US, rfc3339

LAST_US = 253_402_300_799_999_999
"""The end of the year 9999: no later moment can be written."""


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
