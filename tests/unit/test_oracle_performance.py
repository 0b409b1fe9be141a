"""Agents, tasks, judgments and predictions against an oracle in pandas and scipy: 20,000 events over several partitions, every view at ten moments."""

from __future__ import annotations

import random
from math import ceil, floor
from math import log as ln
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tables.performance import Performance
from tables.performance_rows import PerformanceSettings
from tests.oracles import DAY_US, HOUR_US, MINUTE_US, MOMENTS, Event, envelope, moments, text, times, unequal

AGENTS = ("a0", "a1", "a|2", "ü", "slow")
TYPES, VERSIONS, JUDGES = ("code", "doc", "plan"), ("v1", "v2", None), ("j0", "j1", None)
PASS = {"safety": 0.8}
STRATEGIES = ("multi-armed-bandit", "capability-match", "load-balance", "random")
SEVERITIES = ("low", "medium", "high", "critical")
COMPLEXITIES = ("trivial", "standard", "complex")
EXECUTION = ["agent", "type", "version", "t", "success", "quality", "efficiency", "tokens", "duration", "timed", "joined", "negative", "known"]
GAMMA, STRENGTH = 1.01 / 0.99, 10.0


def stream(seed: int) -> list[Event]:
    """Tasks with starts and completions in either order, with everything that is said of them, over two days."""
    rng = random.Random(seed)
    found: list[Event] = []
    coming: list[tuple[int, str, dict[str, Any]]] = []
    at_of = times(rng, MOMENTS[-1], 2 * DAY_US)
    n = 0
    while len(found) < MOMENTS[-1]:
        at, k = at_of[len(found)], len(found)
        if coming and (rng.random() < 0.6 or coming[0][0] < k - 400):
            _, kind, data = coming.pop(0 if rng.random() < 0.7 else rng.randrange(len(coming)))
            found.append(envelope(k, kind, at, **data))
            continue
        n += 1
        dice, agent, task = rng.random(), rng.choice(AGENTS), f"t{n}"
        of = {"agent": agent, "task_type": rng.choice(TYPES), "model_version": rng.choice(VERSIONS)}
        if dice < 0.6:
            done = {
                **of, "task": task, "execution_id": f"x{n}", "success": rng.random() < 0.5 + 0.1 * AGENTS.index(agent) - 0.2 * (of["task_type"] == "doc"),
                "quality": rng.choice([rng.random(), None]), "efficiency": rng.choice([rng.random(), None]), "tokens": rng.choice([rng.randrange(3000), None]),
                "duration_ms": rng.choice([None, rng.lognormvariate(6, 1)]),
            }  # fmt: skip
            start = {**of, "task": task, "execution_id": f"x{n}"}
            shape = rng.random()
            both = [("task.started", start), ("task.completed", done)]
            if shape < 0.2:
                both.reverse()
            elif shape < 0.3:
                both = both[1:]
            elif shape < 0.35:
                both = both[:1]
            elif shape < 0.45:
                both.append(("task.completed", {**done, "success": not done["success"]}))  # the execution has completed already
            elif shape < 0.5:
                both = [both[0], ("task.completed", {**done, "execution_id": None})]  # the agent's only open start of that task
            kind, data = both[0]
            found.append(envelope(k, kind, at, **data))
            coming += [(k, kind, data) for kind, data in both[1:]]
            if rng.random() < 0.4:
                coming.append((k, "evaluation.completed", evaluation(rng, task, agent)))
            for _ in range(rng.choice([0, 0, 1, 2])):
                coming.append((k, "judgment.recorded", judgment(rng, task, rng.choice([agent, agent, None]))))
        elif dice < 0.68:
            broken = [{"severity": rng.choice(SEVERITIES), "message": "m"} for _ in range(rng.choice([0, 0, 0, 1, 3]))]
            body = {
                "valid": rng.random() < 0.9,
                "violations": broken,
                "compliance_score": rng.random(),
                "processing_time_ms": rng.random() * 9,
                "rule_count": 3,
            }
            found.append(envelope(k, "validation.completed", at, task=task, agent=agent, **body))
        elif dice < 0.78:
            used = {"tokens_used": rng.randrange(3000), "tokens_allocated": rng.choice([500, 2000]), "complexity": rng.choice([None, None, "trivial"])}
            body = {"tokens": rng.randrange(9000), "complexity": rng.choice(COMPLEXITIES), "confidence": rng.random()}
            both = [("thinking_budget.allocated", body), ("thinking_budget.used", used)]
            both = both[rng.choice([0, 0, 1]) :] if rng.random() < 0.9 else both[::-1]
            kind, data = both[0]
            found.append(envelope(k, kind, at, task=task, agent=agent, **data))
            coming += [(k, kind, {"task": task, "agent": agent, **data}) for kind, data in both[1:]]
        elif dice < 0.84:
            body = {"factor": rng.uniform(0.1, 1), "ast_similarity": rng.random(), "scaffolding_penalty": rng.random(), "lines_changed": rng.randrange(99)}
            found.append(envelope(k, "minimality.evaluated", at, task=task, agent=agent, quality=rng.choice(["good", "bad"]), **body))
        elif dice < 0.90:
            others = [{"agent": rng.choice(AGENTS), "score": rng.random(), "reason": "r"} for _ in range(rng.randrange(3))]
            body = {"strategy": rng.choice(STRATEGIES), "confidence": rng.random(), "alternatives": others}
            found.append(envelope(k, "routing.decided", at, task=task, agent=agent, **body))
        elif dice < 0.92:
            status = rng.choice(["available", "busy", "offline"])
            found.append(envelope(k, "agent.status_changed", at, agent=agent, status=status, reason=rng.choice([None, "lunch"])))
        elif dice < 0.94:
            found.append(
                envelope(k, "agent.registered", at, agent=agent, capabilities=rng.sample(["code", "doc", "plan"], 2), baseline={"accuracy": rng.random()})
            )
        elif dice < 0.97:
            found.append(envelope(k, "custom.recorded", at, name=rng.choice(["deploy", "merge"]), agent=agent, fields={"size": rng.random(), "who": "x"}))
        else:
            figures = {name: rng.gauss(1, 1) for name in ("average_reward", "policy_loss", "value_loss", "kl_divergence")}
            found.append(envelope(k, "rl_metrics.recorded", at, run="r0", agent=agent, trajectories_processed=5, training_time_ms=9.5, **figures))
    return found


def evaluation(rng: random.Random, task: str, agent: str) -> dict[str, Any]:
    rubrics = rng.choice([{"style": rng.random()}, {"style": rng.random(), "depth": rng.random()}, None])
    return {"task": task, "agent": agent, "passed": rng.random() < 0.6, "score": rng.random(), "rubric_scores": rubrics}


def judgment(rng: random.Random, task: str, agent: str | None) -> dict[str, Any]:
    criteria = {name: rng.random() ** 0.2 for name in rng.sample(["relevance", "safety", "style"], rng.randrange(4))}
    return {
        "task": task, "judge": rng.choice(JUDGES), "agent": agent, "criteria": criteria, "overall_confidence": rng.random(),
        "overall_score": rng.random() if not criteria or rng.random() < 0.3 else None, "all_criteria_pass": rng.choice([None, None, True]),
        "evaluation_time_ms": rng.randrange(100),
    }  # fmt: skip


class Oracle:
    """Raw events, joined as they come, and frames of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.starts: dict[tuple[str, str], dict[str, Any]] = {}
        self.done: dict[tuple[str, str], dict[str, Any]] = {}
        self.executions: list[dict[str, Any]] = []
        self.repeated: list[dict[str, Any]] = []
        self.complexity: dict[tuple[str, str], str] = {}
        self.uses: list[dict[str, Any]] = []
        self.as_of = self.rl_as_of = 0

    def take(self, event: Event) -> None:
        data, at, kind = event["data"], event["time_us"], event["type"].removesuffix(".v1")
        self.events.append(event)
        if kind == "rl_metrics.recorded":
            self.rl_as_of = max(self.rl_as_of, at)
            return
        self.as_of = max(self.as_of, at)
        agent = data.get("agent", "")
        if kind == "thinking_budget.allocated":
            self.complexity[agent, data["task"]] = data["complexity"]
        elif kind == "thinking_budget.used":
            complexity = data.get("complexity") or self.complexity.get((agent, data["task"]), "unknown")
            self.uses.append({"agent": agent, "t": at, "complexity": complexity, "used": data["tokens_used"], "given": data["tokens_allocated"]})
        elif kind == "task.started":
            start = {"agent": agent, "type": data["task_type"], "version": data.get("model_version", ""), "t": at, "finished": False}
            key = agent, data["execution_id"]
            self.starts[key] = start
            if key in self.done:
                self.close(self.done[key], start, at)
        elif kind == "task.completed":
            one = {
                "agent": agent, "type": data["task_type"], "version": data.get("model_version", ""), "t": at, "success": data["success"],
                **{name: data.get(name, np.nan) for name in ("quality", "efficiency", "tokens")}, "duration": data.get("duration_ms", np.nan),
                "timed": "duration_ms" in data, "joined": False, "negative": False, "known": at,
            }  # fmt: skip
            key = agent, data.get("execution_id") or f"x{data['task'][1:]}"
            if key in self.done:
                self.repeated.append(one)
                return
            self.executions.append(one)
            if "execution_id" in data or key in self.starts:
                self.done[key] = one
            if key in self.starts:
                self.close(one, self.starts[key], at)

    @staticmethod
    def close(one: dict[str, Any], start: dict[str, Any], at: int) -> None:
        """A completion and its start know one another; a duration that follows from both is filed under the time of the record that came last."""
        one["joined"] = start["finished"] = True
        if not one["timed"]:
            lasted, one["known"] = (one["t"] - start["t"]) / 1000, at
            one["duration"], one["negative"] = (lasted, False) if lasted >= 0 else (np.nan, True)

    def settle(self) -> None:
        self.x = pd.DataFrame(self.executions, columns=EXECUTION)
        self.s = pd.DataFrame(list(self.starts.values()), columns=["agent", "type", "version", "t", "finished"])
        self.r = pd.DataFrame(self.repeated, columns=["agent", "type", "version"])
        rows: dict[str, list[dict[str, Any]]] = {}
        for e in self.events:
            rows.setdefault(e["type"].removesuffix(".v1"), []).append({"t": e["time_us"], "agent": None, "judge": None, **e["data"]})
        self.kinds = rows
        judged = []
        evaluated = {(one["agent"], one["task"]): one["passed"] for one in rows.get("evaluation.completed", [])}
        for one in rows.get("judgment.recorded", []):
            passes = {name: value >= PASS.get(name, 0.7) for name, value in one["criteria"].items()}
            verdict = one.get("all_criteria_pass", all(passes.values()) if passes else None)
            overall = one.get("overall_score")
            passed = evaluated.get((one["agent"], one["task"]))
            overall = np.mean(list(one["criteria"].values())) if overall is None else overall
            agrees = None if verdict is None or passed is None or one["judge"] is None else verdict == passed
            judged.append({**one, "passes": passes, "verdict": verdict, "overall": overall, "agrees": agrees})
        self.judged = judged

    # ---- executions

    def counters(self, x: Any, s: Any, r: Any) -> dict[str, Any]:
        n, d = len(x), np.sort(x["duration"].dropna().to_numpy())
        return {
            "executions": n, "successes": int(x["success"].sum()), "success_rate": x["success"].mean() if n else None,
            "avg_quality": x["quality"].mean(), "with_quality": int(x["quality"].count()), "avg_efficiency": x["efficiency"].mean(),
            "with_efficiency": int(x["efficiency"].count()), "tokens": int(x["tokens"].sum()), "with_tokens": int(x["tokens"].count()),
            "duration_ms": {
                "n": len(d), "mean": d.mean() if len(d) else None, "min": d[0] if len(d) else None, "max": d[-1] if len(d) else None,
                **{f"p{q}": quantile(d, q / 100) for q in (50, 95, 99)},
            },
            "starts": len(s), "completed_without_start": int((~x["joined"].astype(bool)).sum()), "duplicate_completions": len(r), "repeated_starts": 0,
            "negative_duration": int(x["negative"].sum()),
        }  # fmt: skip

    def of(self, agent: str | None = None, task_type: str | None = None, version: str | None = None) -> tuple[Any, Any, Any]:
        found = []
        for frame in (self.x, self.s, self.r):
            for column, value in (("agent", agent), ("type", task_type), ("version", version)):
                frame = frame if value is None else frame[frame[column] == value]
            found.append(frame)
        return found[0], found[1], found[2]

    def events_of(self, agent: str | None) -> dict[str, int]:
        names = [name for name in self.kinds if name != "rl_metrics.recorded"]
        counts = {name: sum(agent is None or one["agent"] == agent for one in self.kinds[name]) for name in names}
        if "task.completed" in counts:
            counts["task.completed"] -= len(self.of(agent)[2])
        return counts

    def last_seen(self, agent: str) -> int:
        """Greatest event time; a completion that is a repeat is counted as such and says nothing else."""
        passed_over = {one["t"] for one in self.repeated}
        kinds = (rows for kind, rows in self.kinds.items() if kind != "rl_metrics.recorded")
        return int(max(one["t"] for rows in kinds for one in rows if one["agent"] == agent and one["t"] not in passed_over))

    # ---- what else is said of an agent

    def details(self, agent: str) -> dict[str, Any]:
        def rows(kind: str) -> list[dict[str, Any]]:
            return [one for one in self.kinds.get(kind, []) if one["agent"] == agent]

        x, s, r = self.of(agent)
        status, known = (max(rows(kind), key=lambda one: one["t"], default=None) for kind in ("agent.status_changed", "agent.registered"))
        valid, small, routed, tested = (rows(kind) for kind in ("validation.completed", "minimality.evaluated", "routing.decided", "evaluation.completed"))
        budget = {}
        given = rows("thinking_budget.allocated")
        for name in (*COMPLEXITIES, "unknown"):
            uses = [one for one in self.uses if one["agent"] == agent and one["complexity"] == name]
            granted = [one["tokens"] for one in given if one["complexity"] == name]
            if uses or granted:
                budget[name] = {
                    "n": len(uses), "mean_utilisation": mean([one["used"] / one["given"] for one in uses]),
                    "exhaustion_rate": mean([one["used"] >= one["given"] for one in uses]), "tokens_used": sum(one["used"] for one in uses),
                    "allocations": len(granted), "tokens_allocated": sum(granted),
                }  # fmt: skip
        violations = [one["severity"] for each in valid for one in each["violations"]]
        over = [one["agent"] for each in routed for one in each["alternatives"]]
        factor = np.array([one["factor"] for one in small])
        return {
            "agent": agent, "registered": known is not None, "capabilities": [] if known is None else known["capabilities"],
            "registrations": len(rows("agent.registered")),
            "status": None if status is None else status["status"], "status_since": None if status is None else text(status["t"]),
            "last_seen": text(self.last_seen(agent)), **self.counters(x, s, r), "events": self.events_of(agent),
            "by_task_type": {name: self.counters(*self.of(agent, name)) for name in sorted({*x["type"], *s["type"]})},
            "by_model_version": {name: self.counters(*self.of(agent, None, name)) for name in sorted({*x["version"], *s["version"]} - {""})},
            "budget": budget,
            "minimality": {
                "n": len(small), "mean_factor": mean(factor), "mean_ast_similarity": mean([one["ast_similarity"] for one in small]),
                "mean_scaffolding_penalty": mean([one["scaffolding_penalty"] for one in small]),
                "mean_lines_changed": mean([one["lines_changed"] for one in small]),
                "classes": {
                    "minimal": int((factor >= 0.8).sum()), "moderate": int(((factor >= 0.5) & (factor < 0.8)).sum()), "extensive": int((factor < 0.5).sum())
                },
                "quality": counted(one["quality"] for one in small),
            },
            "compliance": {
                "n": len(valid), "pass_rate": mean([one["valid"] for one in valid]), "mean_score": mean([one["compliance_score"] for one in valid]),
                "mean_processing_time_ms": mean([one["processing_time_ms"] for one in valid]),
                "violations": {name: violations.count(name) for name in SEVERITIES},
                "severity_score": sum(SEVERITIES.index(one) + 1 for one in violations),
            },
            "evaluations": {
                "n": len(tested), "passed": sum(one["passed"] for one in tested), "pass_rate": mean([one["passed"] for one in tested]),
                "mean_score": mean([one["score"] for one in tested]),
                "rubrics": {
                    name: {"n": len(of), "mean": mean(of)}
                    for name in ("depth", "style")
                    if (of := [one["rubric_scores"][name] for one in tested if name in one.get("rubric_scores", {})])
                },
            },
            "judgments": self.judgments(agent=agent),
            "routing": {
                "chosen": len(routed), "passed_over": counted(over),
                "by_strategy": {name: sum(one["strategy"] == name for one in routed) for name in STRATEGIES},
                "mean_confidence": mean([one["confidence"] for one in routed]),
            },
        }  # fmt: skip

    def judgments(self, **of: str | None) -> dict[str, Any]:
        mine = [one for one in self.judged if all(one[name] == value for name, value in of.items())]
        verdicts = [one["verdict"] for one in mine if one["verdict"] is not None]
        joined = [one for one in mine if one["agrees"] is not None]
        each = {name: [one for one in mine if name in one["criteria"]] for name in ("relevance", "safety", "style")}
        return {
            "n": len(mine), "all_pass_rate": mean(verdicts), "verdicts": len(verdicts), "avg_overall_score": mean([one["overall"] for one in mine]),
            "avg_confidence": mean([one["overall_confidence"] for one in mine]), "avg_evaluation_time_ms": mean([one["evaluation_time_ms"] for one in mine]),
            "criteria": {
                name: {"n": len(of), "mean": mean([one["criteria"][name] for one in of]), "pass_rate": mean([one["passes"][name] for one in of])}
                for name, of in each.items()
                if of
            },
            "calibration": None if "task" in of else {
                "n": len(joined), "agreement": mean([one["agrees"] for one in joined]),
                "brier": mean([(one["overall_confidence"] - one["agrees"]) ** 2 for one in joined]), "unjoined": len(verdicts) - len(joined),
            },
        }  # fmt: skip

    # ---- predictions and trends

    def predict(self, agent: str | None, task_type: str | None) -> dict[str, Any]:
        """Disjoint evidence, backed off from level to level."""
        x = self.x
        by, of = x["agent"] == agent, x["type"] == task_type
        if agent is None and task_type is None:
            steps = [("tenant", x)]
        elif task_type is None:
            steps = [("tenant", x[~by]), ("agent", x[by])]
        elif agent is None:
            steps = [("tenant", x[~of]), ("task_type", x[of])]
        else:
            steps = [("tenant", x[~by & ~of]), ("task_type", x[of & ~by]), ("agent", x[by & ~of]), ("agent_task_type", x[by & of])]
        alpha = beta = p = 0.0
        levels = {}
        for name, mine in steps:
            s, n = int(mine["success"].sum()), len(mine)
            alpha, beta = (s + 1, n - s + 1) if name == "tenant" else (s + STRENGTH * p, n - s + STRENGTH * (1 - p))
            p = alpha / (alpha + beta)
            levels[name] = {"n": n, "estimate": p}
        basis = next((name for name, mine in reversed(steps) if len(mine)), "prior")
        interval = [stats.beta.ppf(q, alpha, beta) for q in (0.05, 0.95)]
        return {"probability": p, "alpha": float(alpha), "beta": float(beta), "interval": interval, "basis": basis, "levels": levels}

    def trend(self, metric: str, agent: str | None, task_type: str | None, window_us: int, kept_us: int, n: int) -> dict[str, Any]:
        if metric.startswith("rl."):
            rows = [(one["t"], one[metric[3:]]) for one in self.kinds.get("rl_metrics.recorded", []) if agent in (None, one["agent"])]
            now = self.rl_as_of
        else:
            x = self.of(agent, task_type)[0]
            column = {"success": x["success"].astype(float), "duration_ms": x["duration"]}.get(metric)
            column = x[metric] if column is None else column
            at = x["known"] if metric == "duration_ms" else x["t"]
            rows, now = [(t, v) for t, v in zip(at, column, strict=True) if not np.isnan(v)], self.as_of
        frame = pd.DataFrame(rows, columns=["t", "v"], dtype=float)
        frame["start"] = frame["t"] // window_us
        frame = frame[frame["start"] >= (now - kept_us) // window_us]
        windows = frame.groupby("start")["v"].agg(["mean", "count"]).tail(n)
        points = [{"start": text(start * window_us), "mean": row["mean"], "n": int(row["count"])} for start, row in windows.iterrows()]
        if len(points) < 3:
            return {"n": len(points), "points": points, "direction": "stable", "enough": False, "significant": False}
        means = windows["mean"].to_numpy()
        if means.min() == means.max():
            flat = {"slope_per_hour": 0.0, "r2": 0.0, "stderr": 0.0, "p": 1.0, "confidence": 0.0}
            return {"n": len(points), "points": points, "direction": "stable", "enough": True, "significant": False, **flat}
        line = stats.linregress((windows.index - windows.index[0]) * window_us / HOUR_US, means)
        slope = line.slope / np.abs(means).mean() if metric in ("duration_ms", "tokens") or metric.startswith("rl.") else line.slope
        slope = -slope if metric in ("duration_ms", "tokens") else slope
        return {
            "n": len(points), "points": points, "slope_per_hour": line.slope, "r2": line.rvalue**2, "stderr": line.stderr, "p": line.pvalue,
            "confidence": abs(line.rvalue), "direction": "improving" if slope > 0.001 else "declining" if slope < -0.001 else "stable",
            "significant": bool(line.pvalue < 0.05), "enough": True,
        }  # fmt: skip


def mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def counted(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def quantile(ordered: Any, q: float) -> float | None:
    """The bucket of the exact value, clamped to what there is."""
    if not len(ordered):
        return None
    x = float(ordered[floor(q * (len(ordered) - 1))])
    x = 2 * GAMMA ** ceil(ln(x) / ln(GAMMA)) / (GAMMA + 1) if x >= 1e-12 else 0.0
    return min(max(x, float(ordered[0])), float(ordered[-1]))


def check_agents(log: Any, oracle: Oracle) -> None:
    seen = {one["agent"] for kind, rows in oracle.kinds.items() if kind != "rl_metrics.recorded" for one in rows} - {None}
    status = {}
    for agent in seen:
        found, expected = log.get(f"/agents/{agent}"), oracle.details(agent)
        assert unequal(expected, found) == [], agent
        status[agent] = expected["status"]
        assert found["open_executions"] + found["abandoned"] == (~oracle.of(agent)[1]["finished"].astype(bool)).sum()
    rates: dict[str, dict[str, float]] = {"success_rate": {}, "quality": {}, "latency": {}, "executions": {}}
    for agent in seen:
        x = oracle.of(agent)[0]
        rates["success_rate"][agent] = x["success"].mean() if len(x) else -1.0
        rates["quality"][agent] = x["quality"].mean() if x["quality"].count() else -1.0
        rates["latency"][agent] = -x["duration"].mean() if x["duration"].count() else -np.inf
        rates["executions"][agent] = len(x)
    for by, of in rates.items():
        assert [one["agent"] for one in log.get("/agents", sort=by)["agents"]] == sorted(seen, key=lambda agent: (-of[agent], agent)), by
    busy = {one["agent"] for one in log.get("/agents", status="busy")["agents"]}
    assert busy == {agent for agent in seen if status[agent] == "busy"}


def test_every_view_of_agents_and_tasks_is_what_pandas_and_scipy_make_of_the_events() -> None:
    events, oracle, done = stream(5), Oracle(), 0
    performance = Performance(PerformanceSettings())
    for log, moment in moments([performance, performance.rl], events):
        for event in events[done:moment]:
            oracle.take(event)
        done = moment
        oracle.settle()
        for agent, task_type, version in (
            (None, None, None),
            ("a0", None, None),
            (None, "doc", None),
            ("a|2", "code", None),
            (None, None, "v2"),
            ("ü", "plan", "v1"),
        ):
            asked = {name: value for name, value in (("agent", agent), ("task_type", task_type), ("model_version", version)) if value is not None}
            x, s, r = oracle.of(agent, task_type, version)
            found = log.get("/performance/stats", **asked)
            expected = {**oracle.counters(x, s, r), "total_task_executions": len(x), "average_completion_time_ms": x["duration"].mean()}
            if task_type is None and version is None:
                kinds = oracle.events_of(agent)
                expected |= {
                    "events": kinds,
                    "total_routing_decisions": kinds.get("routing.decided", 0),
                    "total_evaluation_outcomes": kinds.get("evaluation.completed", 0),
                }
            assert unequal(expected, found) == [], asked
            assert found["open_executions"] + found["abandoned"] == (~s["finished"].astype(bool)).sum(), asked
        assert unequal(counted(one["name"] for one in oracle.kinds.get("custom.recorded", [])), log.get("/performance/stats")["custom"]) == []
        check_agents(log, oracle)
        for of in ({}, {"judge": "j0"}, {"agent": "a1"}, {"agent": "ü", "judge": "j1"}):
            assert unequal(oracle.judgments(**of), log.get("/judgments/summary", **of)) == [], of
        for one in oracle.judged[-3:]:
            assert unequal(oracle.judgments(task=one["task"]), log.get("/judgments/summary", task=one["task"])) == []
        for agent, task_type in ((None, None), ("a0", None), (None, "doc"), ("slow", "plan"), ("nobody", "code"), ("a1", "nothing")):
            asked = {name: value for name, value in (("agent", agent), ("task_type", task_type)) if value is not None}
            assert unequal(oracle.predict(agent, task_type), log.get("/predict", **asked), loose={"interval": 1e-7}) == [], asked
        ranked = [one["agent"] for one in log.get("/predict", agents=list(AGENTS), task_type="code")["agents"]]
        assert ranked == sorted(AGENTS, key=lambda agent: (-oracle.predict(agent, "code")["probability"], agent))
        loose = {"slope_per_hour": 1e-7, "stderr": 1e-7, "p": 1e-6, "r2": 1e-7, "confidence": 1e-7}
        for metric in ("success", "quality", "efficiency", "tokens", "duration_ms", "rl.policy_loss"):
            for agent, task_type in ((None, None), ("a0", None), ("slow", "code")):
                if metric.startswith("rl.") and task_type is not None:
                    continue
                asked = {name: value for name, value in (("agent", agent), ("task_type", task_type)) if value is not None}
                sizes = [("1h", HOUR_US, 30 * DAY_US, 20)] + [("5m", 5 * MINUTE_US, 2 * DAY_US, 100)] * (metric in ("success", "duration_ms"))
                for window, size, kept, n in sizes:
                    expected = oracle.trend(metric, agent, task_type, size, kept, n)
                    assert unequal(expected, log.get("/performance/trends", metric=metric, window=window, points=n, **asked), loose=loose) == [], (
                        metric,
                        asked,
                        window,
                    )
    assert len(oracle.x) > 4000 and len(oracle.repeated) > 100 and oracle.judgments()["calibration"]["n"] > 200
