"""Goals linked to a metric: what is derived, for whom and when, over partitions; crashes, bounds and replay."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from streams.keys import partition_for
from tables.goal_links import LINKS
from tables.learning import Learning
from tables.partition import HEAD, Partition
from tables.rows import Row, parse_wire_key
from tests.harness import Log

from .test_goals import at, goal, rows, value

Event = dict[str, Any]


def metric(n: int, x: object, seconds: float | None = None, kind: str = "loss", tenant: str = "golden", **data: Any) -> Event:
    body = {"metric_type": kind, "model": "m", "value": x, **data}
    return {"id": f"m{n}", "type": "metric.recorded.v1", "time": at(n if seconds is None else seconds), "tenant": tenant, "data": body}


def learning(n: int, **data: Any) -> Event:
    body = {"task_type": "task", "performance_score": 0.5, "learning_rate": 0.01, "episode_count": 7, "convergence_metric": 0.25, **data}
    return {"id": f"l{n}", "type": "learning.recorded.v1", "time": at(n), "tenant": "golden", "data": body}


def derived(log: Log) -> list[Event]:
    return [json.loads(o.value or b"") for o in log.outputs if o.topic == "training"]


def moves(log: Log) -> list[tuple[str, str, float, str]]:
    """(task type, goal, value, source) of every derived event."""
    return [(e["data"].get("task_type", ""), e["data"]["goal_id"], e["data"]["current"], e["derivedfrom"]) for e in derived(log)]


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_metric_in_any_partition_moves_the_goal_that_wants_it(partitions: int) -> None:
    log = Log([Learning()], partitions)
    log.send([goal(0, metric="loss", target=0.1, direction="at_most", task_type="t")])
    for _ in range(2):
        log.send(metric(n, 1.0 - n / 10, run=f"run{n}") for n in range(10))
    answer = log.get("/goals/g")
    assert (answer["current"], answer["n_total"], answer["completed"], answer["completed_at"]) == (pytest.approx(0.1), 10, True, at(9))
    assert moves(log) == [("t", "g", pytest.approx(1.0 - n / 10), f"m{n}") for n in range(10)]
    assert not log.dead_letters()
    places = {number for (topic, number), records in log.records.items() for r in records if topic == "training" and b"metric.recorded" in (r.value or b"")}
    assert len(places) > (1 if partitions > 1 else 0)


def test_the_derived_event_is_what_the_contract_says() -> None:
    log = Log([Learning()], 8)
    log.send([goal(0, metric="loss", task_type="t"), metric(5, 0.25)])
    (out,) = [o for o in log.outputs if o.topic == "training"]
    name = "d-" + hashlib.sha256(b"training|golden|m5|goal.progressed.v1|t|g").hexdigest()[:40]
    assert json.loads(out.value or b"") == {
        "specversion": "1.0", "id": name, "source": "pulsefold/pulsefold", "type": "goal.progressed.v1", "time": at(5), "tenant": "golden",
        "derivedfrom": "m5", "data": {"goal_id": "g", "current": 0.25, "task_type": "t"},
    }  # fmt: skip
    assert (out.key, out.partition) == (b"golden|t", partition_for(b"golden|t", 8))


def test_a_goal_names_a_metric_one_of_its_values_or_a_figure_of_learning() -> None:
    log = Log([Learning()], 4)
    wanted = ["loss", "loss.val", "performance_score", "learning_rate", "convergence_metric", "episode_count", "val"]
    log.send(goal(n, name, metric=name) for n, name in enumerate(wanted))
    log.send([metric(10, 0.5, values={"val": 0.6, "train": 0.4}), metric(11, None, values={"val": 0.7}), metric(12, 1.0, kind="acc"), learning(13)])
    assert [(goal_id, x, source) for _, goal_id, x, source in moves(log)] == [
        ("loss", 0.5, "m10"), ("loss.val", 0.6, "m10"), ("loss.val", 0.7, "m11"),
        ("performance_score", 0.5, "l13"), ("learning_rate", 0.01, "l13"), ("convergence_metric", 0.25, "l13"), ("episode_count", 7.0, "l13"),
    ]  # fmt: skip


def test_a_goal_of_a_task_type_takes_learning_of_that_task_alone_and_metrics_of_all() -> None:
    log = Log([Learning()], 4)
    log.send(goal(n, metric="performance_score", **task) for n, task in enumerate(({}, {"task_type": "a"}, {"task_type": "b"})))
    log.send([learning(10, task_type="a"), learning(11, task_type="c"), metric(12, 0.9, kind="performance_score")])
    assert {(task, source) for task, _, _, source in moves(log)} == {("", "l10"), ("a", "l10"), ("", "l11"), ("", "m12"), ("a", "m12"), ("b", "m12")}
    assert [log.get("/goals/g", task_type=task)["n_total"] for task in ("", "a", "b")] == [3, 2, 1]
    assert len({e["id"] for e in derived(log)}) == 6


def test_values_from_before_the_creation_and_values_that_are_no_finite_number_move_nothing() -> None:
    log = Log([Learning()])
    log.send(
        [goal(0, metric="loss", seconds=100), metric(1, 0.9, 99), metric(2, 0.8, 100), metric(3, "NaN", 101), metric(4, "-Infinity", 102), metric(5, None, 103)]
    )
    log.send([metric(6, 0.5, 110, tenant="other")])
    assert [(x, source) for _, _, x, source in moves(log)] == [(0.8, "m2")]


def test_a_metric_folded_before_its_worker_follows_the_goals_row_is_not_caught_up() -> None:
    log = Log([Learning()], 8)
    home = partition_for(b"golden|t", 8)
    there = next(run for run in map(str, range(99)) if partition_for(f"golden|{run}".encode(), 8) != home)
    for p in log.topics["training"]:
        p.peers = (p,)
    log.send([goal(0, metric="loss", task_type="t"), metric(1, 0.9, run=there), metric(2, 0.8, run="t")])
    assert [source for _, _, _, source in moves(log)] == ["m2"]
    for p in log.topics["training"]:
        p.peers = log.topics["training"]
    log.send([metric(3, 0.7, run=there)])
    assert [source for _, _, _, source in moves(log)] == ["m2", "m3"]


def test_many_goals_may_want_one_metric_and_no_row_grows_beyond_its_bound() -> None:
    fold = Learning()
    log = Log([fold])
    names = [("é" * 250 + str(n).zfill(6), "ü" * 250 + str(n % 7).zfill(6)) for n in range(2 * LINKS + 3)]
    log.send(goal(n, name, metric="loss", task_type=task) for n, (name, task) in enumerate(names))
    log.send([metric(100, 0.5)])
    assert sorted((name, task) for task, name, _, _ in moves(log)) == sorted(names)
    p = log.topics["training"][0]
    kept = {key: raw for (wire, _, key), (_, raw) in rows(p).items() if wire.startswith("goal_links")}
    assert set(kept) == {("loss", "0"), ("loss", "1"), ("loss", "2")}
    assert max(map(len, kept.values())) < 64 << 10


def test_a_goal_over_the_bound_or_refused_is_linked_to_nothing() -> None:
    from tables.learning_state import LearningSettings

    log = Log([Learning(LearningSettings(max_goals=1))])
    log.send([goal(0, metric="loss"), goal(1, "h", metric="loss"), goal(2, metric="loss", target=9.0), goal(3, metric="loss"), metric(4, 0.5)])
    assert [name for _, name, _, _ in moves(log)] == ["g"]
    assert log.topics["training"][0].counters().overflow == 1


def stream(seed: int, n: int) -> list[Event]:
    rng = random.Random(seed)
    found: list[Event] = []
    for i in range(n):
        seconds = i + rng.choice([0, 0, -30])
        kind = rng.random()
        if kind < 0.25:
            made = goal(i, f"g{rng.randrange(40)}", seconds, metric=rng.choice(["loss", "acc"]), **rng.choice([{}, {"task_type": "t"}]))
            found.append({**made, "data": {**made["data"], "target": rng.choice([0.2, 0.2, 0.9])}})
        elif kind < 0.9:
            found.append(metric(i, rng.random(), seconds, kind=rng.choice(["loss", "acc", "other"]), **rng.choice([{}, {"run": "r"}])))
        else:
            found.append(value(i, rng.random(), seconds, f"g{rng.randrange(40)}"))
    return found


def test_a_crash_after_any_row_of_a_flush_changes_no_row_and_every_link_is_told_again_or_was() -> None:
    def fresh() -> Partition:
        return Log([Learning()]).topics["training"][0]

    log = Log([Learning()])
    log.send(stream(1, 120))
    records = log.records[("training", 0)]
    assert len(records) > 400
    whole = {(o.topic, o.key, o.value) for o in log.outputs}
    for flushed, crash in ((0, 60), (30, 200), (200, len(records))):
        source = fresh()
        source.absorb(records[:flushed])
        kept = [(k, v) for k, v, _, _ in source.drain()]
        source.absorb(records[flushed:crash])
        flush = [(k, v) for k, v, _, _ in source.drain()]
        told = {(o.topic, o.key, o.value) for o in source.outputs}
        for k in range(0, len(flush) + 1, 3):
            p = fresh()
            for key, raw in [*kept, *flush[:k]]:
                wire, tenant, parts = parse_wire_key(key)
                applied, _ = HEAD.unpack_from(raw)
                p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, raw[HEAD.size :])
            p.restored()
            p.absorb(records[max(0, flushed - 5) :])
            assert rows(p) == rows(log.topics["training"][0]), (flushed, crash, k)
            again = {(o.topic, o.key, o.value) for o in p.outputs}
            assert told | again >= whole
            # More can only be links to goals that were created later in the log and earlier in time: true ones.
            assert all(json.loads(raw or b"")["type"] == "goal.progressed.v1" for _, _, raw in again - whole)


def test_every_value_after_the_creation_is_linked_and_none_before() -> None:
    log = Log([Learning()], 5)
    log.send(stream(2, 300))
    refused = {json.loads(raw or b"")["id"] for raw, _ in log.dead_letters()}
    sent = [event for event in stream(2, 300) if event["id"] not in refused]
    wanted = set()
    goals: dict[tuple[str, str], Event] = {}
    for event in sent:
        data = event["data"]
        if event["type"] == "goal.created.v1":
            goals.setdefault((data.get("task_type", ""), data["goal_id"]), event)
        elif event["type"] == "metric.recorded.v1":
            wanted |= {
                (*key, data["value"], event["id"])
                for key, made in goals.items()
                if made["data"]["metric"] == data["metric_type"] and event["time"] >= made["time"]
            }
    assert set(moves(log)) == wanted
    assert len(wanted) == len(moves(log)) > 500
