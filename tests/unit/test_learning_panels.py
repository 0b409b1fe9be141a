"""The four panels of learning as rows and as CSV: against the raw events, page by page, over HTTP, in the past and into a file."""

from __future__ import annotations

import csv
import io
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.cli.learning import export, panel_of
from streams.errors import ConfigError
from tables.distribution import EDGES
from tables.fold import BadParameter
from tables.learning import Learning
from tables.learning_panels import COLUMNS
from tests.harness import Log
from tests.service import TOKENS, Service

from .test_goals import goal, value
from .test_learning_files import asks, at, step

Event = dict[str, Any]
PANELS = ("curves", "scores", "rates", "goals")
EVIL = '=HYPERLINK("http://x")'


def events(seed: int = 3, n: int = 500) -> list[Event]:
    """Late, equal and repeated events of tasks and runs, one of them named like a formula; scores on the edges of the bins too."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        score = rng.choice([rng.random(), rng.choice(EDGES)])
        run = rng.choice([{}, {"run": "r1"}, {"run": "r|2"}])
        seconds = rng.choice([i, i, i, i // 2])
        found.append(step(i, seconds, task_type=rng.choice(["a", "b", EVIL]), performance_score=score, learning_rate=rng.uniform(1e-4, 1), **run))
    return found + rng.sample(found, n // 10)


def goals() -> list[Event]:
    return [
        goal(900, "@g", description="+1\n", target=2.0), goal(901, "loss", task_type="a", direction="at_most", start=4.0, target=1.0),
        value(902, 1.0, 10, "@g"), value(903, 3.0, 10, "loss", task_type="a"), value(904, 0.5, 20, "loss", task_type="a"),
    ]  # fmt: skip


def brute(found: list[Event], window: int, since: float = 0.0) -> dict[tuple[str, str | None], list[Event]]:
    """The last points of each task and run, from the events themselves: each id once, by time, then as they came."""
    once = {event["id"]: event for event in found}.values()
    streams: dict[tuple[str, str | None], list[tuple[datetime, int, Event]]] = {}
    for n, event in enumerate(once):
        if event["time"] >= at(since):
            streams.setdefault((event["data"]["task_type"], event["data"].get("run")), []).append((datetime.fromisoformat(event["time"]), n, event))
    return {name: [event for _, _, event in sorted(mine, key=lambda one: one[:2])][-window:] for name, mine in streams.items()}


@pytest.fixture(scope="module")
def log() -> Log:
    made = Log([Learning()], 4)
    made.send(events() + goals())
    return made


@pytest.mark.parametrize(("window", "since"), [(1, 0.0), (20, 0.0), (1000, 0.0), (1000, 300.0)])
def test_curves_and_rates_are_the_events_of_each_task_and_run(log: Log, window: int, since: float) -> None:
    wanted = brute(events(), window, since)
    for panel, name, field in (("curves", "score", "performance_score"), ("rates", "learning_rate", "learning_rate")):
        rows = log.get(f"/learning/panels/{panel}", window=window, **({"since": at(since)} if since else {}))["rows"]
        assert all(list(row) == list(COLUMNS[panel]) for row in rows)
        found: dict[tuple[str, str | None], list[tuple[Any, ...]]] = {}
        for row in rows:
            found.setdefault((row["task"], row["run"]), []).append((row["time"], row["episode_count"], row[name]))
        assert list(found) == sorted(found, key=lambda one: (one[0].replace("|", "%7C"), one[1] or ""))
        assert found == {key: [(e["time"], e["data"]["episode_count"], e["data"][field]) for e in mine] for key, mine in wanted.items()}


@pytest.mark.parametrize("window", [7, 1000])
def test_the_distribution_is_numpys_histogram_of_the_same_scores(log: Log, window: int) -> None:
    rows = log.get("/learning/panels/scores", window=window)["rows"]
    wanted = brute(events(), window)
    assert len(rows) == 20 * len(wanted)
    for (task, run), mine in wanted.items():
        bins = [row for row in rows if (row["task"], row["run"]) == (task, run)]
        counts, _ = np.histogram([event["data"]["performance_score"] for event in mine], bins=np.array(EDGES))
        assert [row["count"] for row in bins] == counts.tolist()
        assert [(row["low"], row["high"]) for row in bins] == [(n / 20, (n + 1) / 20) for n in range(20)]
        assert sum(row["share"] for row in bins) == pytest.approx(1.0)
        assert [row["share"] for row in bins] == pytest.approx([count / len(mine) for count in counts])


def test_goals_stand_as_in_their_own_view(log: Log) -> None:
    rows = log.get("/learning/panels/goals")["rows"]
    assert [(row["goal_id"], row["task"], row["current"], row["percentage"], row["completed"]) for row in rows] == [
        ("@g", None, 1.0, 50.0, False),
        ("loss", "a", 0.5, 100.0, True),
    ]
    for row in rows:
        own = log.get(f"/goals/{row['goal_id']}")
        assert {name: own["task_type" if name == "task" else name] for name in row} == row
    assert [row["goal_id"] for row in log.get("/learning/panels/goals", task="a")["rows"]] == ["loss"]


@pytest.mark.parametrize("panel", PANELS)
def test_pages_make_the_whole_and_nothing_recorded_has_columns(log: Log, panel: str) -> None:
    whole = log.get(f"/learning/panels/{panel}")
    found, cursor, n = [], None, 0
    while n == 0 or cursor is not None:
        body = log.get(f"/learning/panels/{panel}", limit=1, **({} if cursor is None else {"cursor": cursor}))
        found += body["rows"]
        cursor, n = body["cursor"], n + 1
    assert whole["cursor"] is None and found == whole["rows"] and n == (2 if panel == "goals" else 9)
    nothing = Log([Learning()]).get(f"/learning/panels/{panel}")
    assert (nothing["rows"], nothing["columns"], nothing["cursor"]) == ([], list(COLUMNS[panel]), None)


def test_a_page_is_bounded_in_points() -> None:
    log = Log([Learning()], 2)
    log.pour([step(n, n, task_type=f"t{n % 25:02}") for n in range(50)])
    body = log.get("/learning/panels/curves", window=1000, limit=1000)
    assert len({row["task"] for row in body["rows"]}) == 20 and body["cursor"] == "t19|"
    assert len(log.get("/learning/panels/curves", window=800, limit=1000)["rows"]) == 50
    names, rows = panel_of(asks(log), "curves")
    assert names == list(COLUMNS["curves"]) and len(rows) == 50


def test_a_task_and_a_run_can_be_chosen_and_what_is_unusable_is_refused(log: Log) -> None:
    wanted = brute(events(), 1000)
    for run in ("r1", ""):
        rows = log.get("/learning/panels/curves", task="b", run=run, window=1000)["rows"]
        assert [row["time"] for row in rows] == [event["time"] for event in wanted["b", run or None]]
    assert log.get("/learning/panels/scores", task="nobody")["status"] == 404
    for given in ({"run": "r1"}, {"since": at(0)}):
        with pytest.raises(BadParameter):
            log.get("/learning/panels/goals", **given)


def table(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


def test_csv_over_http_has_the_rows_of_json_and_no_formulas(tmp_path: Path) -> None:
    service = Service(tmp_path, 2, TOKENS)
    service.send([{**event, "tenant": "a"} for event in events(n=60) + goals()])
    service.settle()
    mine = {"Authorization": "Bearer token-of-a"}
    for panel in PANELS:
        for query in ("", "?limit=1"):
            path = f"/api/v1/learning/panels/{panel}{query}"
            json_, found = service.ask(path, mine), service.ask(path, {**mine, "Accept": "text/csv"})
            body = json_.json()
            assert found.status == 200 and found.headers["Content-Type"] == "text/csv; charset=utf-8"
            assert found.headers["Pulsefold-Count"] == str(len(body["rows"])) and found.headers.get("Pulsefold-Cursor") == body["cursor"]
            assert found.body.decode().splitlines()[0] == ",".join(COLUMNS[panel])
            rows = table(found.body)
            assert len(rows) == len(body["rows"]) > 0
            for row, wanted in zip(rows, body["rows"], strict=True):
                for name, item in wanted.items():
                    text = "" if item is None else str(item).lower() if isinstance(item, bool) else str(item)
                    assert row[name] == ("'" + text if isinstance(item, str) and text[:1] in "=+-@" and text else text), name
            assert not any(cell[:1] in ("=", "@", "+") for row in rows for cell in row.values())
    assert b"'=HYPERLINK" in service.ask("/api/v1/learning/panels/curves", {**mine, "Accept": "text/csv"}).body
    theirs = service.ask("/api/v1/learning/panels/curves", {"Authorization": "Bearer token-of-b", "Accept": "text/csv"})
    assert theirs.body == b"task,run,time,episode_count,score\r\n" and theirs.headers["Pulsefold-Count"] == "0"
    assert service.ask("/api/v1/learning/panels/losses", mine).status == 400
    assert service.ask("/api/v1/learning/curve?task=a", {**mine, "Accept": "text/csv"}).headers["Content-Type"] == "application/json"
    service.engine.ready = False
    assert service.ask("/api/v1/learning/panels/curves", {**mine, "Accept": "text/csv"}).status == 503


def test_csv_of_the_past_is_that_of_then(tmp_path: Path) -> None:
    service = Service(tmp_path, 2, TOKENS)
    stamp_ms = 1_780_000_000_000
    service.send([{**event, "tenant": "a"} for event in events(n=30)], timestamp=stamp_ms)
    service.send([{**event, "tenant": "a", "id": f"later-{event['id']}"} for event in events(seed=4, n=30)], timestamp=stamp_ms + 60_000)
    service.settle()
    mine = {"Authorization": "Bearer token-of-a"}
    path = "/api/v1/learning/panels/rates?as_of=" + datetime.fromtimestamp(stamp_ms / 1000 + 1).astimezone().isoformat().replace("+", "%2B")
    then, found = service.ask(path, mine).json()["rows"], service.ask(path, {**mine, "Accept": "text/csv"})
    assert len(table(found.body)) == len(then) == 30 and found.headers["Pulsefold-As-Of"].startswith("2026-")
    assert [float(row["learning_rate"]) for row in table(found.body)] == [row["learning_rate"] for row in then]


def test_a_csv_file_is_of_one_panel_and_goals_have_no_since() -> None:
    with pytest.raises(ConfigError, match="--panel"):
        export("x.csv", format="csv")
    with pytest.raises(ConfigError, match="goals have none"):
        export("x.csv", panel="goals", since="2026-03-02T00:00:00Z")
