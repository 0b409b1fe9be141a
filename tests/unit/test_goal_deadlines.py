"""Deadlines of goals: ``goal.at_risk`` beside scipy, ``goal.missed`` beside the watermark, and the laws of folds for both."""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pytest
from scipy import stats

from agents.registry import folds
from tables.goal_state import NEVER
from tables.goals import Goals
from tables.learning import Learning
from tables.partition import HEAD, WATERMARK, Partition
from tables.rows import Row, parse_wire_key
from tables.times import rfc3339, to_us
from tests.harness import Log

from .test_goals import at, goal, rows, value

START_US = 1_772_409_600_000_000  # 2026-03-02
Event = dict[str, Any]


def learning(n: int, seconds: float, **data: Any) -> Event:
    body = {"task_type": "task", "performance_score": 0.5, "learning_rate": 0.01, "episode_count": n, "convergence_metric": 0.5, **data}
    return {"id": f"l{n}", "type": "learning.recorded.v1", "time": at(seconds), "tenant": "golden", "data": body}


def tick(n: int, seconds: float, tenant: str = "golden") -> bytes:
    body = {"specversion": "1.0", "source": "clock", "id": f"t{n}", "type": "clock.ticked.v1", "time": at(seconds), "tenant": tenant}
    return json.dumps({**body, "data": {"until": at(seconds)}}).encode()


def changes(log: Log, rule: str) -> list[tuple[str, str, str]]:
    """(type without version, subject, id of the event) of every message."""
    return [(a["type"].split(".")[1], a["subject"], a["derivedfrom"]) for a in log.alerts(rule)]


# ---- at risk


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_goal_is_at_risk_from_where_scipy_puts_the_early_end_of_the_interval_behind_the_deadline(seed: int, at_most: bool) -> None:
    rng = random.Random(seed)
    sign = -1.0 if at_most else 1.0
    deadline = 2000.0
    log = Log([Goals()])
    log.send([goal(0, target=sign, start=0.0, direction="at_most" if at_most else "at_least", deadline=at(deadline))])
    wanted = []
    seen: list[tuple[float, float]] = []
    standing = False
    level = 0.0
    for n in range(1, 190):
        pace = [0.004, 0.0005, 0.02, -0.001][n // 50]
        level += pace
        moment = float(10 * n if rng.random() < 0.9 else 10 * n - rng.randrange(60))
        log.send([value(n, sign * (level + rng.gauss(0, 0.004)), moment)])
        seen.append((moment, json.loads(log.records[("training", 0)][-1].value or b"")["data"]["current"]))
        if any(x * sign >= 1.0 for _, x in seen):
            if standing:
                wanted.append(("resolved", "g", f"v{n}"))
            break
        used = seen[-100:]
        if len(seen) < 10:
            continue
        line = stats.linregress([t for t, _ in used], [x for _, x in used])
        if line.slope * sign <= 0:
            continue
        last_at, last = max((t, i) for i, (t, _) in enumerate(seen))[0], seen[max((t, i) for i, (t, _) in enumerate(seen))[1]][1]
        left = 1.0 - last * sign
        low = last_at + left / (line.slope * sign + stats.t.ppf(0.95, len(used) - 2) * line.stderr)
        if not standing and low > deadline:
            standing = True
            wanted.append(("opened", "g", f"v{n}"))
        elif standing and last_at + left / (line.slope * sign) <= deadline:
            standing = False
            wanted.append(("resolved", "g", f"v{n}"))
    assert changes(log, "goal.at_risk") == wanted
    assert wanted


def test_the_message_says_when_and_the_view_shows_it_until_the_goal_is_reached() -> None:
    log = Log([Goals()])
    log.send([goal(0, target=1.0, deadline=at(100), task_type="t")])
    log.send(value(n, 0.001 * n + 0.0001 * (n % 2), 10 * n, task_type="t") for n in range(9))
    assert not log.alerts()
    log.send([value(9, 0.009, 90, task_type="t")])
    (opened,) = log.alerts("goal.at_risk")
    assert (opened["severity"], opened["subject"], opened["value"], opened["threshold"]) == ("warning", "t|g", 0.009, 1.0)
    assert opened["message"] == "The goal g of task type t will not be reached by 2026-03-02T00:01:40.000000Z: 0.009 now, at least 1 is wanted."
    answer = log.get("/goals/g")
    assert {name: opened[name] for name in ("eta", "eta_low", "eta_high", "deadline")} == {
        name: answer[name] for name in ("eta", "eta_low", "eta_high", "deadline")
    }
    assert (answer["at_risk"], answer["missed"]) == (True, False)
    log.send([value(10, 1.0, 95, task_type="t")])
    assert [(a["rule"], a["type"], a.get("reason")) for a in log.alerts()[1:]] == [
        ("goal.completed", "alert.opened.v1", None), ("goal.at_risk", "alert.resolved.v1", "completed"),
    ]  # fmt: skip
    assert log.get("/goals/g")["at_risk"] is False


def test_nine_values_or_no_deadline_or_a_goal_that_moves_away_put_nothing_at_risk() -> None:
    log = Log([Goals()])
    log.send([goal(0, "none"), goal(1, "away", deadline=at(1000)), goal(2, "few", deadline=at(1000))])
    for n in range(30):
        log.send([value(3 * n, 0.0001 * n, n, "none"), value(3 * n + 1, -0.0001 * n, n, "away")])
        if n < 9:
            log.send([value(3 * n + 2, 0.0001 * n, n, "few")])
    assert not log.alerts("goal.at_risk")


# ---- missed


def test_a_deadline_is_missed_by_any_record_that_moves_the_watermark_past_it_and_not_on_it() -> None:
    for mover in (
        learning(1, 101),
        {"id": "m", "type": "metric.recorded.v1", "time": at(101), "tenant": "golden", "data": {"metric_type": "loss", "value": 1.0}},
        {
            "id": "r", "type": "rl_metrics.recorded.v1", "time": at(101), "tenant": "golden",
            "data": {
                "trajectories_processed": 1, "average_reward": 0.0, "policy_loss": 0.0, "value_loss": 0.0, "kl_divergence": 0.0, "training_time_ms": 1,
            },
        },
        goal(5, "other", 101), value(5, 0.4, 101), goal(0, seconds=101, deadline=at(100)),
    ):  # fmt: skip
        log = Log([Learning()])
        log.send([goal(0, deadline=at(100)), value(1, 0.3, 50), learning(0, 100), value(2, 0.3, 100)])
        assert not log.alerts("goal.missed")
        log.send([{**mover, "id": "mover"}])
        (missed,) = log.alerts("goal.missed")
        assert (missed["type"], missed["severity"], missed["subject"], missed["threshold"]) == ("alert.opened.v1", "critical", "g", 1.0)
        assert (missed["derivedfrom"], missed["deadline"], missed["time"]) == ("mover", at(100), at(101))
        stands = 0.4 if mover["id"] == "v5" else 0.3
        assert missed["message"] == f"The goal g missed its deadline 2026-03-02T00:01:40.000000Z: it stands at {stands}, at least 1 was wanted."
        assert log.get("/goals/g")["missed"] is True


def test_a_tick_of_the_clock_on_the_goals_partition_misses_its_deadline_and_one_elsewhere_does_not() -> None:
    log = Log(folds())
    log.send([goal(0, deadline=at(100))])
    log.send([tick(0, 200)], topic="judgments")
    log.send([tick(1, 200, "other")], topic="training")
    assert not log.alerts("goal.missed")
    log.send([tick(2, 200)], topic="training")
    assert changes(log, "goal.missed") == [("opened", "g", "t2")]
    assert "nothing was reported" in log.alerts("goal.missed")[0]["message"]


def test_a_missed_goal_that_is_reached_after_all_resolves_the_alert() -> None:
    log = Log([Goals()])
    log.send([goal(0, deadline=at(100)), value(1, 0.2, 150), value(2, 0.9, 160), value(3, 1.0, 90)])
    assert changes(log, "goal.missed") == [("opened", "g", "v1"), ("resolved", "g", "v3")]
    opened, resolved = log.alerts("goal.missed")
    assert (resolved["severity"], resolved["reason"], resolved["alert_id"]) == ("critical", "completed", opened["alert_id"])
    answer = log.get("/goals/g")
    assert (answer["missed"], answer["completed"], answer["completed_at"]) == (False, True, at(90))


def test_a_goal_reached_in_time_or_by_the_record_that_passes_the_deadline_is_not_missed() -> None:
    log = Log([Goals()])
    log.send([goal(0, "early", deadline=at(100)), goal(1, "just", deadline=at(100)), value(2, 1.0, 50, "early"), value(3, 1.0, 120, "just")])
    assert not log.alerts("goal.missed")


def test_a_goal_created_behind_its_own_deadline_is_missed_at_once() -> None:
    log = Log([Goals()])
    log.send([goal(0, "other", 500), goal(1, "g", 10, deadline=at(100)), goal(2, "h", 600, deadline=at(550)), goal(3, "i", 600, deadline=at(600))])
    assert changes(log, "goal.missed") == [("opened", "g", "c1"), ("opened", "h", "c2")]


def test_a_refused_record_moves_the_watermark_and_the_next_one_tells() -> None:
    log = Log([Goals()])
    log.send([goal(0, deadline=at(100)), value(1, 1.0, 200, "unknown"), value(2, 0.1, 50)])
    assert changes(log, "goal.missed") == [("opened", "g", "v2")]


def test_the_clock_is_told_of_the_next_deadline_of_each_tenant_until_it_has_passed() -> None:
    fold = Goals()
    log = Log([fold])
    p = log.topics["training"][0]
    log.send([goal(0, "a", deadline=at(300)), goal(1, "b", deadline=at(100)), goal(2, "c"), goal(3, "a", tenant="other", deadline=at(50))])
    assert sorted(fold.due(p)) == [("golden", START_US + 100_000_000), ("other", START_US + 50_000_000)]
    log.send([value(4, 0.0, 200, "c")])
    assert sorted(fold.due(p)) == [("golden", START_US + 300_000_000), ("other", START_US + 50_000_000)]
    log.send([value(5, 0.0, 301, "c"), goal(6, "z", tenant="other", seconds=51)])
    assert list(fold.due(p)) == []
    assert list(fold.due(Log([fold]).topics["training"][0])) == []


# ---- laws


def stream(seed: int, n: int) -> list[Event]:
    """Goals with deadlines, their values, and learning events, on two tenants; times wander."""
    rng = random.Random(seed)
    found: list[Event] = []
    for i in range(n):
        seconds = i * 3 + rng.choice([0, 0, 0, -40, 25])
        tenant = rng.choice(["golden", "golden", "other"])
        task = rng.choice([{}, {}, {"task_type": "t|%"}])
        name = rng.choice("aaabbcdefg")
        kind = rng.random()
        if kind < 0.2:
            deadline = {"deadline": at(rng.randrange(3 * n))} if rng.random() < 0.8 else {}
            found.append({**goal(i, name, seconds, tenant, direction="at_most", target=rng.choice([0.05, 0.1]), **deadline, **task), "id": f"x{i}"})
        elif kind < 0.8:
            found.append({**value(i, 1.0 - i / n + rng.uniform(-0.02, 0.02), seconds, name, tenant, **task), "id": f"x{i}"})
        else:
            found.append({**learning(i, seconds), "id": f"x{i}", "tenant": tenant})
    return found


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_missed_deadline_is_told_by_the_record_that_a_plain_reading_of_the_log_names(seed: int, partitions: int) -> None:
    log = Log([Learning()], partitions)
    log.send(stream(seed, 400))
    refused = {json.loads(raw or b"")["id"] for raw, _ in log.dead_letters()}
    wanted = set()
    for (topic, _), records in log.records.items():
        mark: dict[str, int] = {}
        goals: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in records if topic == "training" else ():
            event = json.loads(record.value or b"")
            data, tenant, time_us = event["data"], event["tenant"], to_us(datetime.fromisoformat(event["time"]))
            mark[tenant] = max(mark.get(tenant, time_us), time_us)
            if event["id"] in refused:
                continue
            key = (tenant, data.get("task_type", ""), data.get("goal_id", ""))
            if event["type"].startswith("goal.created"):
                goals.setdefault(key, {**data, "done": False, "told": False})
            elif event["type"].startswith("goal.progressed") and data["current"] <= goals[key]["target"]:
                goals[key]["done"] = True
            for (owner, task, name), one in goals.items():
                if owner != tenant or "deadline" not in one or one["done"] or one["told"]:
                    continue
                if mark[tenant] > to_us(datetime.fromisoformat(one["deadline"])):
                    one["told"] = True
                    wanted.add((event["id"], (task.replace("%", "%25").replace("|", "%7C") + "|" if task else "") + name))
    opened = [(a["derivedfrom"], a["subject"]) for a in log.alerts("goal.missed") if a["type"] == "alert.opened.v1"]
    assert len(opened) == len(set(opened)) > 5
    assert set(opened) == wanted


@pytest.mark.parametrize("seed", [4, 5])
def test_a_crash_after_any_row_of_a_flush_changes_no_row_and_no_message(seed: int) -> None:
    def fresh() -> Partition:
        return Log([Learning()]).topics["training"][0]

    log = Log([Learning()])
    log.send(stream(seed, 330))
    records = log.records[("training", 0)]
    whole = {(o.topic, o.key, o.value) for o in log.outputs}
    assert {"goal.missed", "goal.at_risk", "goal.completed"} <= {a["rule"] for a in log.alerts()}
    for flushed, crash in ((0, 60), (30, 200), (70, 330), (200, 290)):
        source = fresh()
        source.absorb(records[:flushed])
        kept = [(k, v) for k, v, _, _ in source.drain()]
        source.absorb(records[flushed:crash])
        flush = [(k, v) for k, v, _, _ in source.drain()]
        told = {(o.topic, o.key, o.value) for o in source.outputs}
        for k in range(len(flush) + 1):
            p = fresh()
            for key, raw in [*kept, *flush[:k]]:
                wire, tenant, parts = parse_wire_key(key)
                applied, _ = HEAD.unpack_from(raw)
                p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, raw[HEAD.size :])
            p.restored()
            p.absorb(records[max(0, flushed - 5) :])
            assert rows(p) == rows(log.topics["training"][0]), (flushed, crash, k)
            assert told | {(o.topic, o.key, o.value) for o in p.outputs} == whole


@pytest.mark.parametrize("partitions", [1, 3])
def test_replay_in_other_chunks_gives_the_same_rows_and_messages(partitions: int) -> None:
    log, again = Log([Learning()], partitions), Log([Learning()], partitions)
    log.send(stream(6, 400))
    for number, p in enumerate(again.topics["training"]):
        records = log.records[("training", number)]
        for start in range(0, len(records), 13):
            p.absorb(records[start : start + 13])
        assert rows(p) == rows(log.topics["training"][number])
    told = [(o.topic, o.key, o.value) for p in again.topics["training"] for o in p.outputs]
    assert sorted(told, key=str) == sorted([(o.topic, o.key, o.value) for o in log.outputs], key=str)


def test_the_next_deadline_of_many_goals_is_right_after_every_record() -> None:
    rng = random.Random(9)
    fold = Goals()
    log = Log([fold])
    p = log.topics["training"][0]
    deadlines: list[int] = []
    for n in range(300):
        if rng.random() < 0.6:
            deadlines.append(rng.randrange(4000))
            log.send([goal(n, f"g{n}", 10 * n, deadline=at(deadlines[-1]))])
        else:
            log.send([goal(n, f"g{n}", 10 * n)])
        mark = WATERMARK.load(p.space(WATERMARK, "golden")[()]).time_us
        left = [START_US + d * 1_000_000 for d in deadlines if START_US + d * 1_000_000 >= mark]
        assert [moment for _, moment in fold.due(p)] == ([min(left)] if left else [])
        assert len(log.alerts("goal.missed")) == len(deadlines) - len(left)
    assert max(left) < NEVER
    assert rfc3339(min(left))
