"""The four pictures of learning as tables: curves by task, distribution of scores, learning rate over time, progress of goals.

The rules this file keeps: a row is flat, so that a spreadsheet can draw it; every row has every column; the points are those of
`/learning/curve`, task and run by task and run; a page holds at most `MOST_POINTS` of them, and its cursor leads to the next.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from .distribution import distribution
from .fold import BadParameter, NotFound, Reader, View
from .goal_views import GoalsParams
from .learning_figures import Streams
from .times import rfc3339, rfc3339_or_none, to_us

if TYPE_CHECKING:
    from .learning import Learning

MOST_POINTS = 20_000
"""Points that one answer may hold."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "curves": ("task", "run", "time", "episode_count", "score"),
    "scores": ("task", "run", "low", "high", "count", "share"),
    "rates": ("task", "run", "time", "episode_count", "learning_rate"),
    "goals": (
        "task", "goal_id", "description", "metric", "direction", "start", "target", "current", "current_at", "percentage", "completed", "completed_at",
        "regressed", "at_risk", "missed", "created_at", "deadline", "eta", "eta_low", "eta_high",
    ),
}  # fmt: skip
"""Panel -> columns of its rows."""


class PanelParams(msgspec.Struct, frozen=True):
    """``/learning/panels/{panel}``: the last `window` points of each task and run, none before `since`; `limit` tasks and runs, or goals, on a page."""

    panel: Literal["curves", "scores", "rates", "goals"]
    task: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    run: str | None = None
    window: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    cursor: str | None = None


class LearningPanels:
    """The view of the panels.

    Args:
        fold: whose rows are read.
    """

    def __init__(self, fold: Learning) -> None:
        self.fold = fold
        about = "What one of the four pictures of learning is drawn of (curves, scores, rates or goals), as rows: also as CSV, by Accept."
        self.view = View("/learning/panels/{panel}", PanelParams, self.answer, fold.topics, about, table=True)

    def answer(self, reader: Reader, params: PanelParams) -> dict[str, Any]:
        """Rows of a panel."""
        rows, cursor = self.goals(reader, params) if params.panel == "goals" else self.drawn(reader, params)
        return {"panel": params.panel, "columns": list(COLUMNS[params.panel]), "rows": rows, "cursor": cursor, "as_of": rfc3339_or_none(reader.as_of())}

    def goals(self, reader: Reader, params: PanelParams) -> tuple[list[dict[str, Any]], str | None]:
        """A row a goal."""
        for name in ("run", "since"):
            if getattr(params, name) is not None:
                raise BadParameter(name, "goals have none")
        summary = self.fold.goals.asked.summary(reader, GoalsParams(task_type=params.task, limit=params.limit, cursor=params.cursor))
        return [{name: goal["task_type" if name == "task" else name] for name in COLUMNS["goals"]} for goal in summary["goals"]], summary["cursor"]

    def drawn(self, reader: Reader, params: PanelParams) -> tuple[list[dict[str, Any]], str | None]:
        """Rows of the tasks and runs on the page, by name, each oldest first.

        Raises:
            NotFound: the one task that was asked for has no events.
        """
        if params.task is not None and not self.fold.any(reader, params.task, params.run):
            raise NotFound(f"no learning event of task {params.task} was recorded", task=params.task, run=params.run)
        shown, cursor = self.fold.listed(reader, params.task, params.run, min(params.limit, MOST_POINTS // params.window), params.cursor)
        since = {} if params.since is None else {"since_us": to_us(params.since)}
        rows: list[dict[str, Any]] = []
        for task, run in shown:
            streams: Streams = [((task, run), state) for state in self.fold.states(reader, (task, run))]
            names = {"task": task, "run": run or None}
            points = self.fold.last(reader, streams, params.window, **since)
            if params.panel == "scores":
                rows += [{**names, **one} for one in distribution([point[3] for point in points])]
            else:
                name, at = ("score", 3) if params.panel == "curves" else ("learning_rate", 4)
                rows += [{**names, "time": rfc3339(point[0]), "episode_count": point[5], name: point[at]} for point in points]
        return rows, cursor
