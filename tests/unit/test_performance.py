"""Agents and their work through the whole data flow in memory: an oracle over the raw events, edge cases, filters, bounds."""

from __future__ import annotations

from datetime import datetime
from itertools import product
from typing import Any

import numpy as np
import pytest

from tables import executions, judgments, performance, performance_names
from tables.fold import BadParameter, Standing
from tables.performance_rows import COMPLEXITIES, SEVERITIES
from tables.rooms import MOST_WAITING
from tables.times import DAY_US, HOUR_US, rfc3339
from tables.trust import Trust
from tests.harness import VECTORS, Log, subset
from tests.unit.performance_stream import AGENTS, JUDGES, START_US, TYPES, Event, completed, event, folds, home, stream

S = 1_000_000


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


class Oracle:
    """Every rule once more, over lists of raw events."""

    def __init__(self, events: list[Event], partitions: int) -> None:
        self.watermarks: dict[int, int] = {}
        self.starts: list[dict[str, Any]] = []
        self.executions: list[dict[str, Any]] = []
        self.duplicates: list[dict[str, Any]] = []
        self.repeats: list[dict[str, Any]] = []
        self.seen: list[Event] = []
        seen: set[str] = set()
        started: dict[tuple[str, str], dict[str, Any]] = {}
        ended: dict[tuple[str, str], dict[str, Any]] = {}
        for one in events:
            if one["type"].startswith("rl_") or one["id"] in seen:
                continue
            seen.add(one["id"])
            data, at = one["data"], micros(one["time"])
            partition = home(one, partitions)
            self.watermarks[partition] = max(self.watermarks.get(partition, 0), at)
            if one["type"] == "task.started.v1":
                key = (data["agent"], data["execution_id"])
                start = {**data, "at": at, "partition": partition, "finished": False, "task_type": data.get("task_type", "unknown")}
                if key in started:
                    self.repeats.append(start)
                else:
                    started[key] = start
                    self.starts.append(start)
                    if key in ended:
                        start["finished"] = True
                        self.join(ended[key], start)
            elif one["type"] == "task.completed.v1":
                found = None
                if "execution_id" in data:
                    key = (data["agent"], data["execution_id"])
                    found = started.get(key)
                    if key in ended or (found is not None and found["finished"]):
                        of = found if found is not None and key not in ended else {}
                        ended.setdefault(key, {})
                        self.duplicates.append({"task_type": of.get("task_type", "unknown"), **data})
                        continue
                else:
                    same = [s for s in self.starts if (s["agent"], s["task"]) == (data["agent"], data["task"]) and not s["finished"]]
                    found = same[0] if len(same) == 1 else None
                execution = {**data, "at": at, "joined": False, "duration": data.get("duration_ms"), "negative": False}
                if found is not None:
                    found["finished"] = True
                    execution.setdefault("task_type", found["task_type"])
                    if "model_version" in found:
                        execution.setdefault("model_version", found["model_version"])
                    self.join(execution, found)
                execution.setdefault("task_type", "unknown")
                if "execution_id" in data:
                    ended[key] = execution
                self.executions.append(execution)
            self.seen.append(one)

    @staticmethod
    def join(execution: dict[str, Any], start: dict[str, Any]) -> None:
        execution["joined"] = True
        if execution["duration"] is None:
            if execution["at"] < start["at"]:
                execution["negative"] = True
            else:
                execution["duration"] = (execution["at"] - start["at"]) / 1000

    def figures(self, agent: str | None = None, task_type: str | None = None, version: str | None = None) -> dict[str, Any]:
        def chosen(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                i
                for i in items
                if (agent is None or i["agent"] == agent)
                and (task_type is None or i["task_type"] == task_type)
                and (version is None or i.get("model_version") == version)
            ]

        done, starts = chosen(self.executions), chosen(self.starts)
        times = np.array([e["duration"] for e in done if e["duration"] is not None])
        qualities = [e["quality"] for e in done if "quality" in e]
        efficiencies = [e["efficiency"] for e in done if "efficiency" in e]
        waits = [s for s in starts if not s["finished"]]
        late = [s for s in waits if s["at"] + HOUR_US <= self.watermarks[s["partition"]]]
        return {
            "executions": len(done),
            "total_task_executions": len(done),
            "successes": sum(e["success"] for e in done),
            "overall_success_rate": float(np.mean([e["success"] for e in done])) if done else None,
            "avg_quality": float(np.mean(qualities)) if qualities else None,
            "avg_efficiency": float(np.mean(efficiencies)) if efficiencies else None,
            "tokens": sum(e.get("tokens", 0) for e in done),
            "with_tokens": sum("tokens" in e for e in done),
            "average_completion_time_ms": float(times.mean()) if len(times) else None,
            "with_duration": len(times),
            "duration_ms": {"n": len(times), "min": float(times.min()) if len(times) else None, "max": float(times.max()) if len(times) else None},
            "starts": len(starts),
            "abandoned": len(late),
            "open_executions": len(waits) - len(late),
            "completed_without_start": sum(not e["joined"] for e in done),
            "duplicate_completions": len(chosen(self.duplicates)) if agent is None or task_type is None else 0,
            "repeated_starts": len(chosen(self.repeats)),
            "negative_duration": sum(e["negative"] for e in done),
        }


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_statistics_under_every_filter_equal_the_oracle(seed: int, partitions: int) -> None:
    events = stream(seed, 700, span_s=9000)
    log = Log(folds(), partitions)
    log.send(events)
    oracle = Oracle(events, partitions)
    assert len(oracle.executions) > 100 and oracle.duplicates and oracle.repeats
    for agent, task_type, version in product((None, "a", "c|%", "nobody"), (None, "code", "unknown", "none"), (None, "v1", "v9")):
        asked = {k: v for k, v in (("agent", agent), ("task_type", task_type), ("model_version", version)) if v is not None}
        answer = log.get("/performance/stats", **asked)
        expected = oracle.figures(agent, task_type, version)
        if asked:
            expected.pop("duplicate_completions")  # under which type and version a second completion is filed is of no use to anybody
        assert subset(expected, answer) == [], asked
        times = [e["duration"] for e in oracle.executions if e["duration"] is not None and (agent is None or e["agent"] == agent)]
        if times and agent != "nobody" and task_type is None and version is None:
            for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
                assert answer["duration_ms"][name] == pytest.approx(sorted(times)[int(q * (len(times) - 1))], rel=0.0101)
    stats = log.get("/performance/stats")
    counted = [e for e in oracle.seen if not e["type"].startswith("trust")]
    assert (stats["first_event"], stats["last_event"]) == (min(e["time"] for e in counted), max(e["time"] for e in counted))
    assert sum(stats["events"].values()) == len(oracle.seen)
    assert stats["total_routing_decisions"] == sum(e["type"] == "routing.decided.v1" for e in oracle.seen)
    assert stats["custom"] == {
        name: n for name in ("deploy", "merge") if (n := sum(e["type"] == "custom.recorded.v1" and e["data"]["name"] == name for e in oracle.seen))
    }


@pytest.mark.parametrize("partitions", [1, 4])
def test_an_agents_page_equals_the_oracle(partitions: int) -> None:
    events = stream(4, 900)
    log = Log(folds(), partitions)
    log.send(events)
    oracle = Oracle(events, partitions)
    for agent in AGENTS:
        page = log.get(f"/agents/{agent}")
        mine = [(e["type"].removesuffix(".v1"), e["data"], e) for e in oracle.seen if e["data"].get("agent") == agent]
        expected = oracle.figures(agent)
        for name in ("total_task_executions", "overall_success_rate", "average_completion_time_ms", "with_duration"):
            expected.pop(name)
        assert subset(expected, page) == []
        assert sorted(page["by_task_type"]) == sorted({e["task_type"] for e in (*oracle.executions, *oracle.starts) if e["agent"] == agent})
        for task_type, found in page["by_task_type"].items():
            assert found["executions"] == oracle.figures(agent, task_type)["executions"]
            assert found["abandoned"] == oracle.figures(agent, task_type)["abandoned"]
        for version, found in page["by_model_version"].items():
            assert found["successes"] == oracle.figures(agent, None, version)["successes"]
        checks = [d for kind, d, _ in mine if kind == "validation.completed"]
        compliance = page["compliance"]
        assert compliance["n"] == len(checks)
        assert compliance["pass_rate"] == pytest.approx(np.mean([d["valid"] for d in checks]))
        assert compliance["mean_score"] == pytest.approx(np.mean([d["compliance_score"] for d in checks]))
        assert compliance["mean_processing_time_ms"] == pytest.approx(np.mean([d["processing_time_ms"] for d in checks]))
        found_ones = [v["severity"] for d in checks for v in d["violations"]]
        assert compliance["violations"] == {s: found_ones.count(s) for s in SEVERITIES}
        assert compliance["severity_score"] == sum(SEVERITIES.index(s) + 1 for s in found_ones)
        small = [d for kind, d, _ in mine if kind == "minimality.evaluated"]
        assert page["minimality"]["n"] == len(small)
        for name in ("factor", "ast_similarity", "scaffolding_penalty", "lines_changed"):
            assert page["minimality"][f"mean_{name}"] == (pytest.approx(np.mean([d[name] for d in small])) if small else None)
        routed = [d for kind, d, _ in mine if kind == "routing.decided"]
        assert page["routing"]["chosen"] == len(routed)
        over = [a["agent"] for d in routed for a in d["alternatives"]]
        assert page["routing"]["passed_over"] == {name: over.count(name) for name in sorted(set(over))}
        assert page["routing"]["mean_confidence"] == pytest.approx(np.mean([d["confidence"] for d in routed]))
        tests = [d for kind, d, _ in mine if kind == "evaluation.completed"]
        assert page["evaluations"]["n"] == len(tests)
        assert page["evaluations"]["mean_score"] == pytest.approx(np.mean([d["score"] for d in tests]))
        styles = [d["rubric_scores"]["style"] for d in tests if "rubric_scores" in d]
        assert page["evaluations"]["rubrics"] == ({"style": {"n": len(styles), "mean": pytest.approx(np.mean(styles))}} if styles else {})
        self_told = [(e["time"], i, d) for i, (kind, d, e) in enumerate(mine) if kind == "agent.status_changed"]
        assert page["status"] == (max(self_told, key=lambda s: s[:2])[2]["status"] if self_told else None)
        registrations = [(e["time"], i, d) for i, (kind, d, e) in enumerate(mine) if kind == "agent.registered"]
        assert page["registrations"] == len(registrations) and page["registered"] == bool(registrations)
        assert page["capabilities"] == (max(registrations, key=lambda s: s[:2])[2]["capabilities"] if registrations else [])
        budgets(page["budget"], mine)


def budgets(found: dict[str, Any], mine: list[tuple[str, dict[str, Any], Event]]) -> None:
    told: dict[str, str] = {}
    uses: dict[str, list[tuple[int, int]]] = {name: [] for name in COMPLEXITIES}
    allocations: dict[str, list[int]] = {name: [] for name in COMPLEXITIES}
    for kind, data, _ in mine:
        if kind == "thinking_budget.allocated":
            told[data["task"]] = data["complexity"]
            allocations[data["complexity"]].append(data["tokens"])
        elif kind == "thinking_budget.used":
            complexity = data.get("complexity") or told.get(data["task"], "unknown")
            uses[complexity].append((data["tokens_used"], data["tokens_allocated"]))
    assert set(found) == {name for name in COMPLEXITIES if uses[name] or allocations[name]}
    for name, one in found.items():
        assert (one["n"], one["allocations"]) == (len(uses[name]), len(allocations[name]))
        assert one["tokens_allocated"] == sum(allocations[name])
        if uses[name]:
            assert one["mean_utilisation"] == pytest.approx(np.mean([u / a for u, a in uses[name]]))
            assert one["exhaustion_rate"] == pytest.approx(np.mean([u >= a for u, a in uses[name]]))


@pytest.mark.parametrize("partitions", [1, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_judgments_under_every_filter_equal_the_oracle(seed: int, partitions: int) -> None:
    events = stream(seed, 900)
    log = Log(folds(), partitions)
    log.send(events)
    told: list[dict[str, Any]] = []
    waiting: dict[tuple[str | None, str], list[dict[str, Any]]] = {}
    passed: dict[tuple[str | None, str], bool] = {}
    for one in Oracle(events, partitions).seen:
        data = one["data"]
        if one["type"] == "evaluation.completed.v1":
            key = (data.get("agent"), data["task"])
            passed[key] = data["passed"]
            for judgment in waiting.pop(key, []):
                judgment["agreed"] = judgment["verdict"] == data["passed"]
        elif one["type"] == "judgment.recorded.v1":
            key = (data.get("agent"), data["task"])
            criteria = data["criteria"]
            verdict = all(x >= (0.8 if name == "safety" else 0.7) for name, x in criteria.items()) if criteria else None
            score = data.get("overall_score", np.mean(list(criteria.values())) if criteria else None)
            judgment = {**data, "verdict": verdict, "score": score, "agreed": None}
            if verdict is not None and "judge" in data:
                if key in passed:
                    judgment["agreed"] = verdict == passed[key]
                else:
                    waiting.setdefault(key, []).append(judgment)
            told.append(judgment)
    tasks = sorted({j["task"] for j in told})
    assert sum(j["agreed"] is not None for j in told) > 10
    for agent, judge, task in product((None, "a", "c|%"), JUDGES, (None, *tasks[:15])):
        asked = {k: v for k, v in (("agent", agent), ("judge", judge), ("task", task)) if v is not None}
        mine = [j for j in told if all(j.get(k) == v for k, v in asked.items())]
        answer = log.get("/judgments/summary", **asked)
        assert answer["n"] == len(mine), asked
        verdicts = [j["verdict"] for j in mine if j["verdict"] is not None]
        assert answer["all_pass_rate"] == (pytest.approx(np.mean(verdicts)) if verdicts else None)
        for name, field in (("avg_overall_score", "score"), ("avg_confidence", "overall_confidence"), ("avg_evaluation_time_ms", "evaluation_time_ms")):
            assert answer[name] == (pytest.approx(np.mean([j[field] for j in mine])) if mine else None)
        names = {name for j in mine for name in j["criteria"]}
        assert set(answer["criteria"]) == names
        for name in names:
            scores = [j["criteria"][name] for j in mine if name in j["criteria"]]
            rate = np.mean([x >= (0.8 if name == "safety" else 0.7) for x in scores])
            assert answer["criteria"][name] == {"n": len(scores), "mean": pytest.approx(np.mean(scores)), "pass_rate": pytest.approx(rate)}
        if task is None:
            joined = [(j["agreed"], j["overall_confidence"]) for j in mine if j["agreed"] is not None]
            assert answer["calibration"]["n"] == len(joined)
            if joined:
                assert answer["calibration"]["agreement"] == pytest.approx(np.mean([a for a, _ in joined]))
                assert answer["calibration"]["brier"] == pytest.approx(np.mean([(c - a) ** 2 for a, c in joined]))


@pytest.mark.parametrize("partitions", [2, 7])
def test_partitions_change_no_figure_but_those_that_are_per_partition(partitions: int) -> None:
    events = stream(9, 600)
    one, many = Log(folds(), 1), Log(folds(), partitions)
    for log in (one, many):
        log.send(events)
    drop = {"abandoned", "open_executions", "overflow"}
    for path in ("/performance/stats", "/judgments/summary", "/agents"):
        whole, split = ({k: v for k, v in log.get(path).items() if k not in drop} for log in (one, many))
        assert subset(whole, split) == []
    for agent in (None, "a", "new"):
        for task_type in (None, "code", "new"):
            asked = {k: v for k, v in (("agent", agent), ("task_type", task_type)) if v is not None}
            whole, split = (log.get("/predict", **asked) for log in (one, many))
            assert subset({k: v for k, v in whole.items() if k != "score"}, split) == []


# ---- executions


def start(n: int, execution: str, at_us: int, task: str = "t", **data: Any) -> Event:
    return event(f"s{n}", "task.started", at_us, execution_id=execution, task=task, agent="a", **data)


def end(n: int, execution: str | None, at_us: int, task: str = "t", success: bool = True, **data: Any) -> Event:
    return event(f"c{n}", "task.completed", at_us, execution_id=execution, task=task, agent="a", success=success, **data)


def stats_of(*events: Event, **settings: Any) -> dict[str, Any]:
    log = Log(folds(**settings))
    log.send(events)
    return log.get("/performance/stats")


def test_start_and_completion_give_the_same_figures_in_either_order() -> None:
    pair = [start(1, "x", START_US, task_type="code"), end(1, "x", START_US + 5 * S, task_type="code", quality=0.5)]
    first, second = stats_of(*pair), stats_of(*reversed(pair))
    assert first == second
    assert (first["average_completion_time_ms"], first["completed_without_start"], first["abandoned"], first["open_executions"]) == (5000.0, 0, 0, 0)


def test_two_starts_of_one_task_in_one_instant_are_two_executions_and_one_without_id_joins_neither() -> None:
    two = [start(1, "x", START_US), start(2, "y", START_US)]
    found = stats_of(*two, end(1, "x", START_US + S), end(2, "y", START_US + 3 * S))
    assert (found["total_task_executions"], found["average_completion_time_ms"]) == (2, 2000.0)
    found = stats_of(*two, end(1, None, START_US + S))
    assert (found["with_duration"], found["completed_without_start"], found["open_executions"]) == (0, 1, 2)


def test_a_completion_without_id_joins_the_only_open_start_and_a_later_one_with_its_id_is_a_second_one() -> None:
    found = stats_of(start(1, "x", START_US), end(1, None, START_US + S), end(2, "x", START_US + 2 * S))
    assert (found["total_task_executions"], found["average_completion_time_ms"], found["duplicate_completions"]) == (1, 1000.0, 1)
    assert found["abandoned"] + found["open_executions"] == 0


def test_a_completion_that_names_another_task_still_ends_its_execution() -> None:
    found = stats_of(start(1, "x", START_US, task="t"), end(1, "x", START_US + S, task="other"))
    assert (found["with_duration"], found["open_executions"]) == (1, 0)


def test_a_completion_before_its_start_in_time_has_no_duration_and_is_counted() -> None:
    for events in ([start(1, "x", START_US + S), end(1, "x", START_US)], [end(1, "x", START_US), start(1, "x", START_US + S)]):
        found = stats_of(*events)
        assert (found["with_duration"], found["negative_duration"], found["average_completion_time_ms"]) == (0, 1, None)


def test_a_given_duration_wins_in_either_order() -> None:
    for events in ([start(1, "x", START_US), end(1, "x", START_US + S, duration_ms=7)], [end(1, "x", START_US + S, duration_ms=7), start(1, "x", START_US)]):
        assert stats_of(*events)["average_completion_time_ms"] == 7.0


def other(n: int, at_us: int) -> Event:
    """Something else that happened, so that time goes on."""
    return event(f"o{n}", "routing.decided", at_us, task="z", agent="a", strategy="random", confidence=0.5, alternatives=[])


def test_an_execution_is_abandoned_one_hour_behind_the_watermark_and_taken_back_by_its_completion() -> None:
    begin = start(1, "x", START_US)
    just = stats_of(begin, other(1, START_US + HOUR_US - 1))
    assert (just["open_executions"], just["abandoned"]) == (1, 0)
    over = stats_of(begin, other(1, START_US + HOUR_US))
    assert (over["open_executions"], over["abandoned"], over["overall_success_rate"]) == (0, 1, None)
    back = stats_of(begin, other(1, START_US + HOUR_US), end(1, "x", START_US + 2 * HOUR_US))
    assert (back["abandoned"], back["average_completion_time_ms"], back["total_task_executions"]) == (0, 7_200_000.0, 1)
    assert stats_of(begin, other(1, START_US + 60 * S), task_timeout=60.0)["abandoned"] == 1


def test_a_second_completion_counts_again_after_24_hours_of_event_time() -> None:
    for gap, executions_, duplicates in ((DAY_US - 1, 1, 1), (DAY_US, 2, 0)):
        found = stats_of(end(1, "x", START_US), end(2, "x", START_US + gap))
        assert (found["total_task_executions"], found["duplicate_completions"]) == (executions_, duplicates)


def test_a_start_older_than_24_hours_stays_abandoned_and_its_completion_still_counts() -> None:
    found = stats_of(start(1, "x", START_US), end(1, "x", START_US + DAY_US))
    assert (found["abandoned"], found["total_task_executions"], found["completed_without_start"], found["with_duration"]) == (1, 1, 1, 0)


def test_what_waits_beyond_the_bound_gives_way_and_still_adds_up() -> None:
    n = executions.WAITING_BUCKETS  # all starts of one task fall into one bucket
    log = Log(folds())
    log.send(start(i, f"x{i}", START_US + i) for i in range(MOST_WAITING + 40))
    log.send(end(i, f"x{i}", START_US + S) for i in range(MOST_WAITING + 40))
    found = log.get("/performance/stats")
    assert n and found["total_task_executions"] == MOST_WAITING + 40
    assert (found["with_duration"], found["completed_without_start"]) == (MOST_WAITING, 40)
    assert found["abandoned"] + found["open_executions"] == 0


def test_a_thousand_executions_at_once_are_all_joined() -> None:
    log = Log(folds())
    log.send(start(i, f"x{i}", START_US + i, task=f"t{i}") for i in range(1000))
    assert log.get("/performance/stats")["open_executions"] == 1000
    log.send(end(i, f"x{i}", START_US + S + i, task=f"t{i}") for i in reversed(range(1000)))
    found = log.get("/performance/stats")
    assert (found["with_duration"], found["average_completion_time_ms"], found["open_executions"]) == (1000, 1000.0, 0)


def test_sums_of_tokens_and_durations_stay_numbers_however_large() -> None:
    log = Log(folds())
    log.send(completed(i, tokens=2**53, duration_ms=1.7e308) for i in range(1030))
    found = log.get("/performance/stats")
    assert found["tokens"] == 2**62 and found["average_completion_time_ms"] == pytest.approx(1.7e308)
    assert all(len(value) < 65_536 for _, value, _, _ in log.topics["judgments"][0].drain())


# ---- agents


def status(n: int, name: str, at_s: int, previous: str | None = None, **data: Any) -> Event:
    return event(f"st{n}", "agent.status_changed", START_US + at_s * S, agent="a", status=name, previous_status=previous, **data)


def test_the_latest_status_by_event_time_wins_and_a_late_one_may_be_the_one_before() -> None:
    log = Log(folds())
    log.send([status(1, "available", 0), status(2, "busy", 10, "available", reason="work"), status(3, "offline", 5, "busy")])
    page = log.get("/agents/a")
    assert (page["status"], page["status_since"], page["previous_status"], page["status_reason"]) == ("busy", rfc3339(START_US + 10 * S), "offline", "work")
    assert page["status_mismatch"] == 1  # the late one followed `available`
    assert page["registered"] is False and page["trust"] is None


def test_the_list_filters_sorts_and_pages() -> None:
    log = Log(folds(), 3)
    for i, (agent, good, quality, ms) in enumerate([("x", 9, 0.5, 30.0), ("y", 5, 0.9, 10.0), ("z", 9, 0.7, 20.0)]):
        log.send(completed(100 * i + n, n < good, agent=agent, quality=quality, duration_ms=ms, task_type="code" if agent != "y" else "doc") for n in range(10))
        log.send([event(f"r{i}", "agent.registered", START_US, agent=agent, capabilities=["all", f"only-{agent}"])])
    log.send([event("w", "agent.registered", START_US, agent="w", capabilities=["all"])])
    log.send([event("wb", "agent.status_changed", START_US, agent="w", status="busy")])

    def listed(**asked: Any) -> list[str]:
        return [a["agent"] for a in log.get("/agents", **asked)["agents"]]

    assert listed() == ["w", "x", "y", "z"]
    assert listed(sort="success_rate") == ["x", "z", "y", "w"]
    assert listed(sort="quality") == ["y", "z", "x", "w"]
    assert listed(sort="latency") == ["y", "z", "x", "w"]
    assert listed(sort="executions") == ["x", "y", "z", "w"]
    assert (listed(task_type="code"), listed(capability="only-z"), listed(status="busy"), listed(status="offline")) == (["x", "z"], ["z"], ["w"], [])
    first = log.get("/agents", limit=3, sort="quality")
    assert [a["agent"] for a in log.get("/agents", limit=3, sort="quality", cursor=first["cursor"])["agents"]] == ["w"]
    assert log.get("/agents/nobody")["status"] == 404
    assert list(first["agents"][0]) == [
        "agent", "registered", "capabilities", "status", "executions", "successes", "success_rate", "avg_quality", "tokens", "duration_ms", "trust",
        "last_seen", "as_of",
    ]  # fmt: skip


def test_trust_in_an_agent_is_shown_with_its_figures() -> None:
    trust = Trust()
    fold = performance.Performance(trust=trust)
    log = Log([trust, fold, fold.rl])
    log.send([completed(1)])
    assert log.get("/agents/a")["trust"] == 0.5
    log.send([{"id": "o", "type": "trust.observed.v1", "time": rfc3339(START_US), "tenant": "golden", "data": {"kind": "agent", "id": "a", "success": True}}])
    assert log.get("/agents/a")["trust"] == pytest.approx(2 / 3)


def test_agents_beyond_the_bound_are_overflow_and_still_count_for_the_tenant() -> None:
    log = Log(folds(max_agents=2))
    log.send(completed(i, agent=f"a{i % 4}") for i in range(8))
    found = log.get("/performance/stats")
    assert (found["total_task_executions"], found["overflow"]) == (8, 4)
    assert [a["agent"] for a in log.get("/agents")["agents"]] == ["a0", "a1"]
    assert log.topics["judgments"][0].counters().overflow == 4


def test_task_types_and_versions_beyond_the_bound_go_to_other_and_still_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_names, "MOST_TASK_TYPES", 3)
    monkeypatch.setattr(performance_names, "MOST_VERSIONS", 2)
    log = Log(folds())
    log.send(completed(i, task_type=f"k{i % 5}", model_version=f"v{i % 4}") for i in range(40))
    page = log.get("/agents/a")
    assert set(page["by_task_type"]) == {"k0", "k1", "k2", "_other"} and set(page["by_model_version"]) == {"v0", "v1", "_other"}
    assert sum(v["executions"] for v in page["by_task_type"].values()) == sum(v["executions"] for v in page["by_model_version"].values()) == 40
    assert log.get("/performance/stats", task_type="k4")["executions"] == 8


def test_words_and_judges_beyond_the_bound() -> None:
    log = Log(folds(max_judges=1))
    figures = {"factor": 0.5, "ast_similarity": 0.5, "scaffolding_penalty": 0.5, "lines_changed": 1}
    log.send(event(i, "minimality.evaluated", START_US, task="t", agent="a", quality=f"w{i:03}", **figures) for i in range(60))
    words = log.get("/agents/a")["minimality"]["quality"]
    assert len(words) == 51 and words["_other"] == 10
    judgment = {"task": "t", "overall_score": 0.5, "overall_confidence": 0.5, "evaluation_time_ms": 1}
    log.send(event(f"j{i}", "judgment.recorded", START_US, judge=f"j{i}", **judgment) for i in range(3))
    assert [log.get("/judgments/summary", judge=f"j{i}")["n"] for i in range(3)] == [1, 0, 0]
    assert log.get("/judgments/summary")["n"] == 3


# ---- judges


def test_a_judge_that_disagrees_is_alerted_from_fifty_comparisons_on_and_resolves() -> None:
    log = Log(folds(), 4)
    rule = log.folds[0].rules[0]

    def compared(n: int, agree: bool) -> list[Event]:
        task = {"task": f"t{n}", "agent": f"a{n % 7}"}
        says = {"judge": "j|1", "overall_score": 0.5, "overall_confidence": 0.5, "all_criteria_pass": agree, "evaluation_time_ms": 1}
        judged = event(f"j{n}", "judgment.recorded", START_US, **task, **says)
        return [judged, event(f"v{n}", "evaluation.completed", START_US, **task, passed=True, score=1)]

    def verdict(standing: str) -> Any:
        return rule.judge(log.reader(), ("", "j|1"), Standing(standing, None))

    assert verdict("ok") is None
    for n in range(49):
        log.send(compared(n, n % 2 == 0))
    assert verdict("ok") is None
    log.send(compared(49, False))
    found = verdict("ok")
    assert (found.level, found.value, found.threshold) == ("warning", 0.5, 0.7)
    assert rule.subject(("", "j|1")) == "j%7C1" and rule.judge(log.reader(), ("a1", "j|1"), Standing("ok", None)) is None
    for n in range(50, 99):
        log.send(compared(n, True))
    assert verdict("warning") is None  # 74 of 99
    log.send(compared(99, True))
    assert verdict("warning").level == "ok"
    log.send([event("clear", "tenant.cleared", START_US, scope="performance")])
    assert verdict("warning").reason == "cleared"


def test_a_verdict_waits_seven_days_for_its_evaluation() -> None:
    for gap, joined in ((7 * DAY_US - 1, 1), (7 * DAY_US, 0)):
        log = Log(folds())
        data = {"task": "t", "agent": "a"}
        log.send([event(1, "judgment.recorded", START_US, judge="j", **data, overall_confidence=0.5, criteria={"x": 1}, evaluation_time_ms=1)])
        log.send([event(2, "evaluation.completed", START_US + gap, **data, passed=True, score=1)])
        calibration = log.get("/judgments/summary", judge="j")["calibration"]
        assert (calibration["n"], calibration["unjoined"]) == (joined, 1 - joined)


def test_the_limits_of_criteria_are_settings() -> None:
    log = Log(folds(criteria_pass={"default": 0.5, "style": 0.9}))
    for n, criteria in enumerate(({"x": 0.5, "style": 0.9}, {"x": 0.49}, {"style": 0.89})):
        log.send([event(n, "judgment.recorded", START_US, task="t", overall_confidence=1, criteria=criteria, evaluation_time_ms=1)])
    assert log.get("/judgments/summary")["all_pass_rate"] == pytest.approx(1 / 3)


def test_tasks_judged_longest_ago_give_way_in_a_full_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgments, "TASK_BUCKETS", 1)
    log = Log(folds())
    n = judgments.MOST_TASKS + 2
    log.send(event(i, "judgment.recorded", START_US, task=f"t{i}", overall_score=1, overall_confidence=1, evaluation_time_ms=1) for i in range(n))
    rooms = log.reader().rows(log.folds[0].kept.tasks, ("0",))  # type: ignore[attr-defined]
    assert list(rooms[0].entries) == [f"t{i}\0\0" for i in range(2, n)]


# ---- predictions


def test_several_agents_are_ranked_and_unknown_ones_are_answered() -> None:
    log = Log(folds(), 4)
    log.send(VECTORS["P2"]["events"])
    answer = log.get("/predict", agents="a1,new,a2", task_type="code")
    assert [(a["rank"], a["agent"], a["known"]["agent"]) for a in answer["agents"]] == [(1, "a1", True), (2, "new", False), (3, "a2", True)]
    assert answer["agents"][0]["probability"] == log.get("/predict", agent="a1", task_type="code")["probability"]
    with pytest.raises(BadParameter):
        log.get("/predict", agents=",".join(f"a{i}" for i in range(1001)))


def test_without_events_a_prediction_is_the_prior_and_its_score_is_null() -> None:
    answer = Log(folds()).get("/predict", agent="a", task_type="k")
    assert (answer["probability"], answer["basis"], answer["known"]) == (0.5, "prior", {"agent": False, "task_type": False})
    assert (answer["score"]["n"], answer["score"]["brier"], answer["score"]["skill"]) == (0, None, None)


def test_the_score_of_a_task_type_is_of_its_own_outcomes() -> None:
    log = Log(folds())
    log.send(VECTORS["P3"]["events"])
    parts = [log.get("/predict", task_type=k)["score"] for k in sorted({e["data"]["task_type"] for e in VECTORS["P3"]["events"]})]
    whole = log.get("/predict")["score"]
    assert sum(p["n"] for p in parts) == whole["n"] == 40
    assert sum(p["n"] * p["brier"] for p in parts) == pytest.approx(40 * whole["brier"])


# ---- invalid input


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("agent.status_changed", {"agent": "a", "status": "sleeping"}, "status"),
        ("task.completed", {"task": "t", "agent": "a", "success": True, "quality": 1.2}, "quality"),
        ("task.completed", {"task": "t", "agent": "a", "success": True, "tokens": -1}, "tokens"),
        ("task.completed", {"task": "t", "agent": "a", "success": 1}, "success"),
        ("judgment.recorded", {"task": "t", "overall_confidence": 1, "evaluation_time_ms": 1}, "overall_score"),
    ],
)
def test_a_bad_field_is_a_dead_letter_that_names_it_and_the_next_event_is_folded(kind: str, data: dict[str, Any], field: str) -> None:
    log = Log(folds())
    bad = {"id": "bad", "type": f"{kind}.v1", "time": rfc3339(START_US), "tenant": "golden", "data": data}
    log.send([bad, completed(2)], topic="judgments")
    ((_, headers),) = log.dead_letters()
    assert headers["reason"] == "invalid_field" and field in headers["error"]
    assert log.get("/performance/stats")["total_task_executions"] == 1


def test_types_of_a_stream_are_those_the_tests_think_of() -> None:
    kinds = {e["type"] for e in stream(1, 900)}
    assert len(kinds) == 13 and set(TYPES) == {"code", "doc", None}


def test_verdicts_of_several_judges_that_wait_for_one_evaluation_all_count_for_the_agent_and_in_all() -> None:
    log = Log(folds(), 1)
    said = {"task": "t", "agent": "a", "overall_confidence": 0.5, "criteria": {"style": 0.9}, "evaluation_time_ms": 1}
    log.send([event(n, "judgment.recorded", START_US + n, judge=judge, **said) for n, judge in enumerate(("j1", "j2", "j3", "j3"))])
    log.send([event("e", "evaluation.completed", START_US + 9, task="t", agent="a", passed=True, score=1.0)])
    found = [log.get("/judgments/summary", **of)["calibration"] for of in ({}, {"agent": "a"}, {"judge": "j1"}, {"judge": "j3"}, {"agent": "a", "judge": "j2"})]
    assert [(one["n"], one["unjoined"]) for one in found] == [(4, 0), (4, 0), (1, 0), (2, 0), (1, 0)]
