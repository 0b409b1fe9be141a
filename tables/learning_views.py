"""Learning progress as it is asked for: live figures, trend, curve, convergence and the report.

The rules this file keeps: every documented key is there, whatever was recorded; "last" is by event time, then partition, then
offset, so late events replace nothing; no answer reads more than the rings hold, and none waits for anything.
"""

from __future__ import annotations

from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from .fold import BadParameter, NotFound, Reader, View, names
from .goal_views import GoalsParams
from .learning_figures import FIGURES, LIVE, Streams, convergence_kept, convergence_of, events_of, mean, share, tendency, trend_of, whole_sums
from .moments import Moments, plain_sum
from .times import HOUR_US, rfc3339, rfc3339_or_none, to_us

if TYPE_CHECKING:
    from .learning import Learning
    from .learning_state import Point

MOST_TASKS = 100
CURVE = ("time", "score", "learning_rate", "episode_count", "convergence_metric")

Task = Annotated[str, msgspec.Meta(min_length=1)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Window = Annotated[int, msgspec.Meta(ge=2, le=1_000)]


class MetricsParams(msgspec.Struct, frozen=True):
    """``/learning/metrics``: an empty `run` is that of the events without one."""

    task: Task | None = None
    run: str | None = None


class ReportParams(msgspec.Struct, frozen=True):
    """``/learning/report``: `limit` events are analyzed."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    task: Task | None = None


class CurveParams(msgspec.Struct, frozen=True):
    """``/learning/curve``: the last `window` points, none before `since`; `fields` of a point."""

    task: Task
    run: str | None = None
    window: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    since: Moment | None = None
    fields: list[str] | None = None


class TrendParams(msgspec.Struct, frozen=True):
    """``/learning/trend``: of one `task`, or of several `tasks`."""

    task: Task | None = None
    tasks: list[str] | None = None
    run: str | None = None
    window: Window = 50


class ConvergenceParams(msgspec.Struct, frozen=True):
    """``/learning/convergence``: rates are up to `at`."""

    task: Task | None = None
    run: str | None = None
    at: Moment | None = None


class StreamsParams(msgspec.Struct, frozen=True):
    """``/learning/streams``: an empty `run` is that of the events without one."""

    task: Task | None = None
    run: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100
    cursor: str | None = None


class LearningViews:
    """The views of the fold of learning events.

    Args:
        fold: whose rows are read.
    """

    def __init__(self, fold: Learning) -> None:
        self.fold = fold
        topics = fold.topics
        self.views = (
            View("/learning/metrics", MetricsParams, self.metrics, topics, "How training goes right now, by its last ten events."),
            View("/learning/report", ReportParams, self.report, topics, "Performance, dynamics, tasks and goals over the last events."),
            View("/learning/curve", CurveParams, self.curve, topics, "The points of a learning curve, oldest first."),
            View("/learning/streams", StreamsParams, self.streams, topics, "Every task and run, how much it has recorded, and how it stands."),
            View("/learning/trend", TrendParams, self.trend, topics, "Whether a task gets better, how fast, and whether that is noise."),
            View("/learning/convergence", ConvergenceParams, self.convergence, topics, "What has converged, how often, and since when."),
        )

    def metrics(self, reader: Reader, params: MetricsParams) -> dict[str, Any]:
        """Live figures; ``null`` before the first event, counts are 0 then."""
        fold = self.fold
        if params.task is None and params.run is None:
            columns = fold.columns(reader)
            points = fold.last_of(reader, fold.newest(reader), LIVE)
            total, *sums = whole_sums(columns)
        else:
            streams = fold.streams(reader, params.task, params.run)
            points = fold.last(reader, streams, LIVE)
            total = sum(state.n for _, state in streams)
            sums = [plain_sum(getattr(state, name) for _, state in streams) for name in FIGURES[1:4]]
        return {
            "task": params.task,
            "run": params.run,
            "current_performance": points[-1][3] if points else None,
            "current_learning_rate": points[-1][4] if points else None,
            "recent_avg_performance": mean([point[3] for point in points]),
            "performance_trend": tendency(points),
            "active_goals_count": fold.goals.asked.active(reader, params.task),
            "total_learning_events": total,
            "last_update": rfc3339(points[-1][0]) if points else None,
            "lifetime_avg_performance": share(sums[0], total),
            "lifetime_avg_learning_rate": share(sums[1], total),
            "lifetime_avg_convergence_metric": share(sums[2], total),
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def curve(self, reader: Reader, params: CurveParams) -> dict[str, Any]:
        """The last points of a task or of one of its runs."""
        fields = CURVE if params.fields is None else tuple(names(params.fields))
        for name in fields:
            if name not in CURVE:
                raise BadParameter("fields", f"{name} is no field of a point; those are {', '.join(CURVE)}")
        streams = self.known(reader, params.task, params.run)
        since = {} if params.since is None else {"since_us": to_us(params.since)}
        shown = []
        for time_us, _, _, score, rate, episodes, metric, _ in self.fold.last(reader, streams, params.window, **since):
            point: dict[str, object] = dict(zip(CURVE, (rfc3339(time_us), score, rate, episodes, metric), strict=True))
            shown.append({name: point[name] for name in fields})
        return {"task": params.task, "run": params.run, "points": shown, "as_of": rfc3339_or_none(reader.as_of())}

    def streams(self, reader: Reader, params: StreamsParams) -> dict[str, Any]:
        """Streams by name; `kept` points of each are in its curve."""
        shown, cursor = self.fold.listed(reader, params.task, params.run, params.limit, params.cursor)
        return {
            "streams": [
                {
                    "task": task,
                    "run": run or None,
                    "total_events": sum(state.n for state in mine),
                    "kept": sum(min(state.n, self.fold.ring.size) for state in mine),
                    "last_update": rfc3339(max(state.newest_us for state in mine)),
                    "converged": any(state.inside for state in mine),
                    "declining": any(bool(state.falling) for state in mine),
                }
                for (task, run), mine in ((key, self.fold.states(reader, key)) for key in shown)
            ],
            "cursor": cursor,
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def trend(self, reader: Reader, params: TrendParams) -> dict[str, Any]:
        """The trend of one task, or of several in one answer (a task never seen then has n = 0)."""
        if (params.task is None) == (params.tasks is None):
            raise BadParameter("task" if params.task is None else "tasks", "give either task or tasks")
        if params.task is not None:
            points = self.fold.last(reader, self.known(reader, params.task, params.run), params.window)
            answer: dict[str, Any] = {"task": params.task, "run": params.run, **trend_of(points)}
        else:
            asked = list(dict.fromkeys(names(params.tasks or ())))
            if not 1 <= len(asked) <= MOST_TASKS:
                raise BadParameter("tasks", f"{len(asked)} tasks; 1 to {MOST_TASKS} can be asked for at once")
            tasks = {}
            for task in asked:
                points = self.fold.last(reader, self.fold.streams(reader, task, params.run), params.window)
                tasks[task] = {"task": task, "run": params.run, **trend_of(points)}
            answer = {"tasks": tasks}
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        return answer

    def known(self, reader: Reader, task: str, run: str | None) -> Streams:
        """Streams of a task, or of one of its runs.

        Raises:
            NotFound: nobody recorded any.
        """
        streams = self.fold.streams(reader, task, run)
        if not streams:
            raise NotFound(f"no learning event of task {task}" + (f" in run {run}" if run else "") + " was recorded", task=task, run=run)
        return streams

    def convergence(self, reader: Reader, params: ConvergenceParams) -> dict[str, Any]:
        """Convergences counted and converged streams, all tasks or one."""
        every = params.task is None and params.run is None
        streams = self.fold.last_below(reader) if every else self.fold.streams(reader, params.task, params.run)
        at_us = now(reader) if params.at is None else to_us(params.at)
        found = convergence_kept(self.fold.columns(reader), streams, at_us) if every else convergence_of(streams, at_us)
        answer = {"task": params.task, "run": params.run, **found}
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        return answer

    def report(self, reader: Reader, params: ReportParams) -> dict[str, Any]:
        """All at a glance, over the last `limit` events."""
        fold = self.fold
        at_us = now(reader)
        if params.task is None:
            columns = fold.columns(reader)
            points = fold.last_of(reader, fold.newest(reader), params.limit)
            convergence = convergence_kept(columns, fold.last_below(reader), at_us)
            total = whole_sums(columns)[0]
            totals = {task: events_of(columns, task) for task in {point[7] for point in points}}
        else:
            streams = fold.streams(reader, params.task, None)
            points = fold.last(reader, streams, params.limit)
            convergence = convergence_of(streams, at_us)
            total = sum(state.n for _, state in streams)
            totals = {params.task: total}
        scores = [point[3] for point in points]
        goal_summary = fold.goals.asked.summary(reader, GoalsParams(task_type=params.task))
        by_task: dict[str, list[Point]] = {}
        for point in points:
            by_task.setdefault(point[7], []).append(point)
        return {
            "report_time": rfc3339(at_us),
            "task": params.task,
            "total_learning_events": total,
            "recent_events_analyzed": len(points),
            "overall_performance": {
                "average": mean(scores),
                "std_deviation": Moments.of(scores).population_std,
                "min": min(scores, default=None),
                "max": max(scores, default=None),
                "median": median(scores) if scores else None,
            },
            "learning_dynamics": {
                "average_learning_rate": mean([point[4] for point in points]),
                "convergence_analysis": convergence,
            },
            "task_analysis": {
                task: {
                    "event_count": len(mine),
                    "avg_performance": mean([point[3] for point in mine]),
                    "performance_trend": tendency(mine),
                    "latest_score": mine[-1][3],
                    "total_events": totals[task],
                }
                for task, mine in sorted(by_task.items())
            },
            "goal_summary": goal_summary,
            "time_span_hours": (points[-1][0] - points[0][0]) / HOUR_US if points else None,
            "as_of": rfc3339_or_none(reader.as_of()),
        }


def now(reader: Reader) -> int:
    """The server's clock, never before what was absorbed, microseconds."""
    return max(reader.now_us, reader.as_of() or reader.now_us)
