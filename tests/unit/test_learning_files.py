"""Export and import of learning: the file, the way back, twice, broken lines; through the folds in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from streams.cli.learning import Ask, Import, document, text_of
from tables.learning import Learning
from tables.learning_state import LearningSettings
from tests.harness import VECTORS, Log, subset

from .test_goals import at, goal, value

Event = dict[str, Any]


def asks(log: Log, tenant: str = "golden") -> Ask:
    def ask(path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return log.get(path, tenant, **{k: str(v) for k, v in params.items()})

    return ask


def exported(log: Log, tenant: str = "golden") -> str:
    return text_of(document(asks(log, tenant)))


def imported(text: str, tenant: str = "new", partitions: int = 3) -> tuple[Log, Import]:
    log = Log([Learning()], partitions)
    return log, put(log, text, tenant)


def put(log: Log, text: str, tenant: str = "new") -> Import:
    read = Import(tenant)
    read.take(text.splitlines())
    log.send(list(read.events()))
    return read


def step(n: int, seconds: float, **data: Any) -> Event:
    body = {"task_type": "task", "performance_score": 0.5, "learning_rate": 0.01, "episode_count": n, "convergence_metric": 0.25, **data}
    return {"id": f"e{n}", "type": "learning.recorded.v1", "time": at(seconds), "tenant": "golden", "data": body}


def filled(seed: int = 1) -> Log:
    """Learning in tasks and runs with odd names, late and equal events, goals of every kind."""
    rng = random.Random(seed)
    log = Log([Learning()], 4)
    for i in range(200):
        data = {"task_type": rng.choice(["a", "ü|% b"]), "performance_score": rng.random(), "convergence_metric": rng.choice([0.001, 0.5])}
        if rng.random() < 0.5:
            data["run"] = rng.choice(["r1", "r|2"])
        log.send([step(i, rng.choice([i, i, i // 2]), **data)])
    log.send([step(500, 3, learning_rate=1), step(501, 3, episode_count=500, learning_rate=1)])
    log.send([{**step(502, 7), "id": "twin1"}, {**step(502, 7), "id": "twin2"}])
    log.send(
        [
            goal(0, "plain", description='says "hi"\n', target=2), goal(1, "loss", task_type="a", direction="at_most", target=-1.0, deadline=at(10)),
            goal(2, "start", start=0.5, target=3.0, deadline="2030-01-01T00:00:00Z"), goal(3, "done", target=1.0), goal(4, "void", target=1.0),
            goal(5, "metric", metric="loss", target=1.0),
        ]
    )  # fmt: skip
    for i in range(60):
        log.send([value(4 * i, rng.random() * 2, rng.randrange(300), "plain"), value(4 * i + 1, 3 - i / 20, 5 * i, "loss", task_type="a")])
        log.send([value(4 * i + 2, i / 25, i, "start"), value(4 * i + 3, 1.5 - i / 60, 2 * i, "done")])
    return log


def state(document: dict[str, Any]) -> tuple[list[Event], list[Event]]:
    """What an import into an empty tenant has to bring back."""
    return document["learning_events"], document["goals"]


def test_an_export_imported_into_an_empty_tenant_exports_the_same_events_and_goals() -> None:
    log = filled()
    text = exported(log)
    found = json.loads(text)
    other, read = imported(text)
    again = document(asks(other, "new"))
    assert not read.refused and not other.dead_letters()
    assert (read.n_events, read.n_goals) == (204, 6)
    assert (len(found["learning_events"]), found["events_total"]) == (204, 204)
    assert state(again) == state(found)
    assert {one["goal_id"]: (one["completed"], one["regressed"]) for one in again["goals"]}["done"] == (True, True)
    assert again["convergence_history"] == found["convergence_history"]
    left_out = {"report_time", "as_of", "learning_dynamics"}
    assert subset({k: v for k, v in found["learning_report"].items() if k not in left_out}, again["learning_report"]) == []


def test_importing_twice_changes_nothing() -> None:
    text = exported(filled())
    log, _ = imported(text)
    before = document(asks(log, "new"))
    put(log, text)
    after = document(asks(log, "new"))
    assert state(after) == state(before)
    assert after["events_total"] == before["events_total"]


def test_equal_events_of_one_file_stay_apart_and_one_line_more_does_not_rename_them() -> None:
    log = Log([Learning()])
    log.send([{**step(1, 5), "id": name} for name in ("x", "y", "z")])
    text = exported(log)
    other, _ = imported(text)
    assert len(document(asks(other, "new"))["learning_events"]) == 3
    log.send([step(0, 1)])
    put(other, exported(log))
    assert document(asks(other, "new"))["events_total"] == 4


@pytest.mark.parametrize("partitions", [1, 4])
def test_values_that_a_linked_goal_got_from_learning_count_once_when_both_are_imported(partitions: int) -> None:
    log = Log([Learning()], 4)
    log.send([goal(0, "any", metric="performance_score"), goal(1, "of", metric="episode_count", task_type="a", target=5)])
    log.send(step(i, i, task_type=["a", "b"][i % 2], performance_score=i / 20) for i in range(12))
    log.send([value(0, 0.7, 99, "any")])
    text = exported(log)
    other, _ = imported(text, partitions=partitions)
    assert [(one["goal_id"], one["n_total"]) for one in document(asks(other, "new"))["goals"]] == [("any", 13), ("of", 6)]
    assert [one["percentage"] for one in document(asks(other, "new"))["goals"]] == [one["percentage"] for one in json.loads(text)["goals"]]


def test_a_goal_whose_values_left_the_ring_stands_as_it_stood() -> None:
    log = Log([Learning()])
    log.send([goal(0, "loss", target=0.5, direction="at_most"), goal(1, "first", target=-1.0, direction="at_least"), goal(2, "ahead", target=9.0)])
    log.send([value(900, 7.0, 90_000, "ahead")])
    for i in range(250):
        log.send([value(3 * i, [2.0, 0.4, 1.0][(i > 20) + (i > 40)], i, "loss"), value(3 * i + 1, -0.5 - i, i, "first")])
        log.send([value(3 * i + 2, 0.5, i, "ahead")])
    found = json.loads(exported(log))["goals"]
    again = document(asks(imported(exported(log))[0], "new"))["goals"]
    own = ("n_total", "history")
    assert [{k: v for k, v in one.items() if k not in own} for one in again] == [{k: v for k, v in one.items() if k not in own} for one in found]
    assert {one["goal_id"]: (one["start"], one["completed_at"]) for one in again} == {
        "loss": (2.0, at(21)), "first": (-0.5, at(0)), "ahead": (None, None)
    }  # fmt: skip


def test_a_broken_line_is_refused_with_its_number_and_the_rest_goes_on() -> None:
    log = Log([Learning()])
    log.send([*(step(i, i) for i in range(6)), goal(0), value(1, 0.5, 1), goal(2, "h", seconds=5)])
    lines = exported(log).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('{"task_type"'))
    lines[first] = lines[first][:-9]
    lines[first + 1] = lines[first + 1].replace('"performance_score": 0.5', '"performance_score": 1.2')
    lines[first + 2] = "[1, 2],"
    lines[first + 3] = lines[first + 3].replace('"time"', '"when"')
    last = next(i for i, line in enumerate(lines) if '"goal_id": "h"' in line)
    lines[last] = lines[last].replace('"target": 1.0', '"target": "much"')
    other, read = imported("\n".join(lines))
    assert [(one["line"], one["reason"]) for one in read.refused] == [
        (first + 1, "not_json"), (first + 2, "invalid_field"), (first + 3, "not_json"), (first + 4, "invalid_field"), (last + 1, "invalid_field"),
    ]  # fmt: skip
    assert "performance_score" in read.refused[1]["error"] and "target" in read.refused[4]["error"]
    assert (read.n_events, read.n_goals) == (2, 1)
    assert other.get("/goals/g", "new")["current"] == 0.5


def test_a_goal_with_one_bad_value_is_refused_whole() -> None:
    log = Log([Learning()])
    log.send([goal(0), value(1, 0.25, 1), value(2, 0.75, 2)])
    text = exported(log).replace('"current": 0.75}]', '"current": "x"}]')
    other, read = imported(text)
    assert [one["reason"] for one in read.refused] == ["invalid_field"]
    assert other.get("/goals/g", "new")["status"] == 404


def test_json_lines_of_events_and_goals_are_taken_too() -> None:
    log = filled()
    found = json.loads(exported(log))
    other, read = imported("\n".join(json.dumps(one) for one in [*found["learning_events"], *found["goals"]]) + "\n\n")
    assert not read.refused
    assert state(document(asks(other, "new"))) == state(found)


def test_where_more_was_recorded_than_is_kept_the_file_says_how_much() -> None:
    log = Log([Learning(LearningSettings(learning_ring=40))])
    log.send(step(i, i) for i in range(100))
    found = document(asks(log))
    assert (len(found["learning_events"]), found["events_total"]) == (40, 100)
    assert [one["episode_count"] for one in found["learning_events"]] == list(range(60, 100))
    assert len(document(asks(log), at(90))["learning_events"]) == 10


def test_nothing_recorded_is_a_file_too() -> None:
    text = exported(Log([Learning()]))
    assert json.loads(text)["learning_events"] == []
    assert set(json.loads(text)) == {"export_time", "events_total", "learning_events", "goals", "convergence_history", "learning_report"}
    _, read = imported(text)
    assert not read.refused and list(read.events()) == []


def test_the_report_in_the_file_is_that_of_the_golden_vector() -> None:
    log = Log([Learning()], 8)
    log.send(VECTORS["L8"]["events"])
    report = document(asks(log))["learning_report"]
    assert report["total_learning_events"] == VECTORS["L8"]["checks"][0]["expect"]["total_learning_events"]


def test_streams_are_listed_by_name_page_by_page() -> None:
    log = filled()
    every = log.get("/learning/streams")["streams"]
    assert [(one["task"], one["run"]) for one in every] == sorted(((one["task"], one["run"]) for one in every), key=lambda one: (one[0], one[1] or ""))
    assert sum(one["total_events"] for one in every) == 204
    shown, cursor = [], None
    while True:
        body = log.get("/learning/streams", limit=2, **({} if cursor is None else {"cursor": cursor}))
        shown += body["streams"]
        cursor = body["cursor"]
        if cursor is None:
            break
    assert shown == every
    assert {one["task"] for one in log.get("/learning/streams", task="a")["streams"]} == {"a"}
