"""Learning progress and goals against an oracle in numpy, scipy and pandas: 20,000 events over several partitions, every view at ten moments."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tables.learning import Learning
from tables.learning_state import LearningSettings
from tests.oracles import DAY_US, HOUR_US, MOMENTS, SECOND_US, START_US, Event, envelope, moments, text, times, unequal

RING = 600
HOLD = 2
THRESHOLDS = {"": 0.01, "doc": 0.05}
TASKS, RUNS = ("code", "doc", "flat"), ("r0", "r1|%", None)
GOALS: dict[str, dict[str, Any]] = {
    "up": {"target": 30.0}, "down": {"target": 0.5, "direction": "at_most", "start": 90.0}, "from": {"target": 95.0, "start": 10.0, "task_type": "code"},
    "below": {"target": -3.0},
    "first": {"target": 2.0, "direction": "at_most"},
    "beyond": {"target": 50.0, "start": 60.0}, "away": {"target": 99.0},
    "idle": {"target": 1.0, "task_type": "doc"},
    "linked": {"target": 70.0, "metric": "rare"}, "linked too": {"target": 1e6, "metric": "rare", "task_type": "x"},
}  # fmt: skip


def stream(seed: int) -> list[Event]:
    """Learning events of nine streams, goals, their progress, and a metric that moves two of them by itself."""
    rng = random.Random(seed)
    found: list[Event] = []
    names = list(GOALS)
    for n, at in enumerate(times(rng, MOMENTS[-1], 3 * DAY_US)):
        share, dice = n / MOMENTS[-1], rng.random()
        if n < len(names):
            found.append(envelope(n, "goal.created", START_US + n, goal_id=names[n], **GOALS[names[n]]))
        elif dice < 0.8:
            task = rng.choice(TASKS)
            score = 0.5 if task == "flat" else min(1.0, max(0.0, 0.3 + 0.5 * share * (1 if task == "code" else -0.3) + rng.gauss(0, 0.1)))
            metric = max(0.0, rng.gauss(0.06 * (1 - share), 0.02))
            data = {"task_type": task, "run": rng.choice(RUNS), "performance_score": score, "learning_rate": 0.1 * (1 - share / 2)}
            found.append(envelope(n, "learning.recorded", at, **data, episode_count=n, convergence_metric=metric))
        elif dice < 0.97:
            name = rng.choice([name for name in names if name != "idle" and not name.startswith("linked")])
            way = 100 * share + rng.gauss(0, 6)
            current = {"up": 160 * share * (1 - share) + rng.gauss(0, 3), "down": 90 - way, "below": -40 + way, "first": 30 - way / 3, "away": 20 - way}.get(
                name, way
            )
            found.append(envelope(n, "goal.progressed", at, goal_id=name, current=current, task_type=GOALS[name].get("task_type")))
        elif dice < 0.98:
            again = rng.choice(names)  # the same again changes nothing
            found.append(envelope(n, "goal.created", at, goal_id=again, **GOALS[again]))
        else:
            task_type = rng.choice([None, "train"])
            found.append(
                envelope(n, "metric.recorded", at, metric_type="rare", model=task_type, run="r0", value=rng.choice([90 * share + rng.gauss(0, 3), "NaN"]))
            )
    return found


class Stream:
    """One stream in the order of the log."""

    def __init__(self, task: str) -> None:
        self.threshold = THRESHOLDS.get(task, THRESHOLDS[""])
        self.inside, self.streak, self.newest, self.late = False, 0, 0, 0
        self.entered: list[int] = []
        self.left = 0

    def take(self, at_us: int, metric: float) -> None:
        if at_us < self.newest:
            self.late += 1
            return
        self.newest = at_us
        self.streak = self.streak + 1 if (metric < self.threshold) is not self.inside else 0
        if self.streak >= HOLD:
            self.inside, self.streak = not self.inside, 0
            if self.inside:
                self.entered.append(at_us)
            else:
                self.left += 1


class Oracle:
    """Frames of the events so far."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.streams: dict[tuple[str, str], Stream] = {}
        self.values: dict[str, list[tuple[int, float]]] = {name: [] for name in GOALS}
        self.as_of = 0

    def take(self, event: Event) -> None:
        data, at = event["data"], event["time_us"]
        self.as_of = max(self.as_of, at)
        if event["type"] == "learning.recorded.v1":
            task, run = data["task_type"], data.get("run", "")
            self.rows.append((at, task, run, data["performance_score"], data["learning_rate"], data["episode_count"], data["convergence_metric"]))
            self.streams.setdefault((task, run), Stream(task)).take(at, data["convergence_metric"])
        elif event["type"] == "goal.progressed.v1":
            self.values[data["goal_id"]].append((at, data["current"]))
        elif event["type"] == "metric.recorded.v1" and data["value"] != "NaN":
            for name in ("linked", "linked too"):  # a metric event has no task type, so it moves goals of any
                self.values[name].append((at, data["value"]))

    def settle(self) -> None:
        self.all = pd.DataFrame(self.rows, columns=["t", "task", "run", "score", "rate", "episodes", "metric"])
        self.kept = self.all.groupby(["task", "run"], sort=False).tail(RING).sort_values("t")
        limits = self.all["task"].map(lambda task: THRESHOLDS.get(task, THRESHOLDS[""]))
        self.below = self.all[self.all["metric"] < limits].sort_values("t")

    @staticmethod
    def of(frame: Any, task: str | None, run: str | None = None) -> Any:
        frame = frame if task is None else frame[frame["task"] == task]
        return frame if run is None else frame[frame["run"] == run]

    def live(self, task: str | None, run: str | None) -> dict[str, Any]:
        every, last = self.of(self.all, task, run), self.of(self.kept, task, run).tail(10)
        some = len(last) > 0
        return {
            "current_performance": last["score"].iloc[-1] if some else None, "current_learning_rate": last["rate"].iloc[-1] if some else None,
            "recent_avg_performance": last["score"].mean() if some else None, "performance_trend": tendency(last["score"]),
            "active_goals_count": sum(1 for name in GOALS if self.in_task(name, task) and self.goal(name)["completed_at"] is None),
            "total_learning_events": len(every), "last_update": text(last["t"].iloc[-1]) if some else None,
            "lifetime_avg_performance": every["score"].mean() if some else None, "lifetime_avg_learning_rate": every["rate"].mean() if some else None,
            "lifetime_avg_convergence_metric": every["metric"].mean() if some else None, "as_of": text(self.as_of),
        }  # fmt: skip

    @staticmethod
    def in_task(name: str, task: str | None) -> bool:
        return task is None or GOALS[name].get("task_type", "") == task

    def trend(self, task: str, run: str | None, window: int) -> dict[str, Any]:
        points = self.of(self.kept, task, run).tail(window)
        n, scores = len(points), points["score"].to_numpy()
        if n < 10:
            return {"n": n, "enough": False, "trend": 0, "confidence": 0, "recent_avg": 0, "improvement_rate": 0, "direction": "stable", "slope_per_hour": None}
        flat = scores.min() == scores.max()
        line = stats.linregress(np.arange(n), scores)
        hours = stats.linregress((points["t"] - points["t"].iloc[0]) / HOUR_US, scores)
        slope, p = (0.0, 1.0) if flat else (line.slope, line.pvalue)
        return {
            "n": n, "enough": True, "trend": slope, "confidence": 0.0 if flat else line.rvalue**2,
            "recent_avg": scores[-10:].mean(), "improvement_rate": slope * n,
            "stderr": 0.0 if flat else line.stderr, "p": p, "intercept": line.intercept, "slope_per_hour": 0.0 if flat else hours.slope,
            "r2_time": 0.0 if flat else hours.rvalue**2, "stderr_time": 0.0 if flat else hours.stderr, "p_time": 1.0 if flat else hours.pvalue,
            "direction": "stable" if p >= 0.05 else "improving" if slope > 0 else "declining",
            "std": 0.0 if flat else scores.std(ddof=1), "median": np.median(scores), "min": scores.min(), "max": scores.max(),
        }  # fmt: skip

    def convergence(self, task: str | None, run: str | None, at_us: int) -> dict[str, Any]:
        below = self.of(self.below, task, run)
        mine = {key: one for key, one in self.streams.items() if task in (None, key[0]) and run in (None, key[1])}
        n = len(below)
        hours = (at_us - below["t"].iloc[0]) / HOUR_US if n else 0.0
        since = [one.entered[-1] for one in mine.values() if one.inside]
        by_task = {}
        for name in sorted({key[0] for key in mine}):
            part, those = self.of(below, name), [one for key, one in mine.items() if key[0] == name]
            by_task[name] = {
                "count": len(part), "avg_convergence_metric": part["metric"].mean() if len(part) else 0.0,
                "last_convergence": text(part["t"].iloc[-1]) if len(part) else None, "entered": sum(len(one.entered) for one in those),
                "left": sum(one.left for one in those), "converged": any(one.inside for one in those),
            }  # fmt: skip
        return {
            "total_convergences": n, "avg_convergence_metric": below["metric"].mean() if n else 0.0,
            "last_convergence": text(below["t"].iloc[-1]) if n else None,
            "recent_convergences": [[text(t), name, metric] for t, name, metric in zip(*(below.tail(10)[c] for c in ("t", "task", "metric")), strict=True)],
            "convergence_rate": n / hours if hours > 0 else 0.0, "rate_defined": hours > 0, "entered": sum(len(one.entered) for one in mine.values()),
            "left": sum(one.left for one in mine.values()), "converged": bool(since), "since": text(min(since)) if since else None,
            "late": sum(one.late for one in mine.values()), "task_statistics": by_task,
        }  # fmt: skip

    def report(self, task: str | None, limit: int, at_us: int) -> dict[str, Any]:
        points = self.of(self.kept, task).tail(limit)
        scores = points["score"]
        n = len(points)
        analysis = {
            name: {
                "event_count": len(mine), "avg_performance": mine["score"].mean(), "performance_trend": tendency(mine["score"]),
                "latest_score": mine["score"].iloc[-1], "total_events": len(self.of(self.all, name)),
            }
            for name, mine in points.groupby("task")
        }  # fmt: skip
        return {
            "report_time": text(at_us), "total_learning_events": len(self.of(self.all, task)), "recent_events_analyzed": n,
            "overall_performance": {
                "average": scores.mean() if n else None, "std_deviation": scores.std(ddof=0) if n else None, "min": scores.min() if n else None,
                "max": scores.max() if n else None, "median": scores.median() if n else None,
            },
            "learning_dynamics": {"average_learning_rate": points["rate"].mean() if n else None, "convergence_analysis": self.convergence(task, None, at_us)},
            "task_analysis": analysis, "time_span_hours": (points["t"].iloc[-1] - points["t"].iloc[0]) / HOUR_US if n else None,
        }  # fmt: skip

    def goal(self, name: str) -> dict[str, Any]:
        """One goal by the words of learning.md §4."""
        of, values = GOALS[name], self.values[name]
        target, down = of["target"], of.get("direction") == "at_most"
        met = [t for t, v in values if (v <= target if down else v >= target)]
        start = of.get("start")
        if start is None and values and (down or target <= 0):
            start = values[0][1]
        now = max(values)[1] if values else None
        done = now is not None and (now <= target if down else now >= target)
        percentage = 0.0
        if now is not None:
            if done:
                percentage = 100.0
            elif start is None:
                percentage = float(np.clip(now / target * 100, 0, 100))
            elif not (start <= target if down else start >= target):
                percentage = float(np.clip((now - start) / (target - start) * 100, 0, 100))
        return {
            "goal_id": name, "task_type": of.get("task_type"), "target": target, "direction": of.get("direction", "at_least"), "start": start, "current": now,
            "percentage": percentage, "completed": bool(met), "completed_at": text(min(met)) if met else None, "regressed": bool(met) and not done,
            "created_at": text(START_US + list(GOALS).index(name)), "n": min(100, len(values)), "n_total": len(values),
        }  # fmt: skip

    def eta(self, name: str) -> tuple[float | None, float | None, float | None, float | None]:
        """(eta, low, high in microseconds, slope by second); None where nothing can be said."""
        of, values = GOALS[name], self.values[name][-100:]
        if len(values) < 2 or self.goal(name)["completed"]:
            return None, None, None, None
        t, v = np.array(values).T
        line = stats.linregress((t - t[0]) / SECOND_US, v)
        sign = -1 if of.get("direction") == "at_most" else 1
        if line.slope * sign <= 0:
            return None, None, None, None
        last, now = max(self.values[name])
        reach = stats.t.ppf(0.95, len(values) - 2) * line.stderr if len(values) > 2 else None

        def when(speed: float | None) -> float | None:
            return None if speed is None or speed <= 0 else last + (of["target"] - now) * sign / speed * SECOND_US

        speed = line.slope * sign
        return when(speed), when(None if reach is None else speed + reach), when(None if reach is None else speed - reach), line.slope


def tendency(scores: Any) -> str | None:
    if len(scores) == 0:
        return None
    step = scores.iloc[-1] - scores.iloc[-2] if len(scores) > 1 else 0
    return "improving" if step > 0 else "declining" if step < 0 else "stable"


LATEST_US = 253_402_300_799_999_999


def check_goals(log: Any, oracle: Oracle) -> None:
    goals = {name: oracle.goal(name) for name in GOALS}
    created = {name: START_US + k for k, name in enumerate(GOALS)}
    for task in (None, "", "code"):
        mine = {name: goal for name, goal in goals.items() if oracle.in_task(name, task)}
        took = [(datetime.fromisoformat(goal["completed_at"]).timestamp() * 1e6 - created[name]) / 1e6 for name, goal in mine.items() if goal["completed"]]
        expected = {
            "total_goals": len(mine), "completed_goals": len(took), "active_goals": len(mine) - len(took), "completion_rate": len(took) / len(mine),
            "goals": sorted(mine.values(), key=lambda goal: (goal["goal_id"], goal["task_type"] or "")),
        }  # fmt: skip
        found = log.get("/learning/goals", **({} if task is None else {"task_type": task}))
        assert unequal(expected, found) == []
        assert unequal(np.mean(took) if took else None, found["avg_completion_time_s"], rel=1e-6) == []
    assert {goal["goal_id"] for goal in log.get("/learning/goals", state="regressed")["goals"]} == {name for name, goal in goals.items() if goal["regressed"]}
    for name, goal in goals.items():
        found = log.get(f"/goals/{name}", history=True)
        assert unequal(goal, found) == []
        *etas, slope = oracle.eta(name)
        assert unequal(slope, found["slope_per_second"], rel=1e-8) == [], name
        for expected_us, key in zip(etas, ("eta", "eta_low", "eta_high"), strict=True):
            if expected_us is None or expected_us > LATEST_US:
                assert found[key] is None, (name, key)
            else:
                us = datetime.fromisoformat(found[key]).timestamp() * 1e6
                assert abs(us - expected_us) <= 2 + 1e-7 * abs(expected_us - max(oracle.values[name])[0]), (name, key)
        if len(oracle.values[name]) <= 100:
            assert unequal([{"time": text(t), "current": v} for t, v in oracle.values[name]], found["history"]) == []


def test_every_view_of_learning_and_goals_is_what_scipy_and_pandas_make_of_the_events() -> None:
    events, oracle, done = stream(4), Oracle(), 0
    fold = Learning(LearningSettings(learning_ring=RING, convergence_hold=HOLD, convergence_threshold=THRESHOLDS))
    tight = {"p": 1e-7, "p_time": 1e-6, "slope_per_hour": 1e-8, "trend": 1e-9, "stderr_time": 1e-8, "r2_time": 1e-8}
    for log, moment in moments([fold], events, alone=lambda event: event["type"] in ("goal.created.v1", "metric.recorded.v1")):
        for event in events[done:moment]:
            oracle.take(event)
        done = moment
        oracle.settle()
        at_us = oracle.as_of + HOUR_US
        for task, run in ((None, None), ("code", None), ("doc", "r1|%"), ("flat", ""), (None, "r0")):
            asked = {name: value for name, value in (("task", task), ("run", run)) if value is not None}
            assert unequal(oracle.live(task, run), log.get("/learning/metrics", **asked)) == []
            assert unequal(oracle.convergence(task, run, at_us), log.get("/learning/convergence", now_us=at_us, **asked)) == []
            if task is None:
                continue
            for window in (20, 50, 1000):
                assert unequal(oracle.trend(task, run, window), log.get("/learning/trend", window=window, **asked), loose=tight) == [], (moment, asked, window)
                points = oracle.of(oracle.kept, task, run).tail(window)
                columns = {"time": points["t"].map(text), "score": points["score"], "learning_rate": points["rate"], "episode_count": points["episodes"]}
                curve = pd.DataFrame({**columns, "convergence_metric": points["metric"]}).to_dict("records")
                assert unequal(curve, log.get("/learning/curve", window=window, **asked)["points"]) == []
        several = log.get("/learning/trend", tasks=["code", "flat", "never"])["tasks"]
        assert unequal({task: oracle.trend(task, None, 50) for task in several}, several, loose=tight) == [] and several["never"]["n"] == 0
        for task, limit in ((None, 100), ("doc", 250)):
            found = log.get("/learning/report", limit=limit, now_us=at_us, **({} if task is None else {"task": task}))
            assert unequal(oracle.report(task, limit, at_us), found) == []
        streams = {(one["task"], one["run"] or ""): one for one in log.get("/learning/streams")["streams"]}
        assert streams.keys() == oracle.streams.keys()
        for key, one in oracle.streams.items():
            n = len(oracle.of(oracle.all, *key))
            assert unequal({"total_events": n, "kept": min(n, RING), "last_update": text(one.newest), "converged": one.inside}, streams[key]) == []
        check_goals(log, oracle)
    assert len(oracle.below) > 1000 and any(oracle.goal(name)["regressed"] for name in GOALS)
