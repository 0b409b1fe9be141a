"""Raw queries over files and tail against plain Python over the events."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from agents.raw import wanted
from agents.raw_answers import answer
from streams.events import MetricRecorded
from tables.metric_query import MetricQuery, shown

from ..archive_feed import NOW_MS, SETTINGS, START, Feed, metrics


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feed]:
    """Half of the events in files, half in the tail."""
    made = Feed(tmp_path_factory.mktemp("archive"))
    events = metrics(800, 21)
    made.send(*events[:500])
    made.take()
    made.write()
    made.send(*events[500:])
    made.take()
    yield made
    made.keeper.close()


def us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=moment.tzinfo)) // timedelta(microseconds=1)


def newest(events: list[dict[str, Any]]) -> list[str]:
    """Ids as the view sorts them."""
    return [e["id"] for e in sorted(events, key=lambda e: (e["at"], e["place"][2], e["place"][1]), reverse=True)]


def test_metrics_are_those_that_match_newest_first(feed: Feed) -> None:
    rng = random.Random(5)
    choices: dict[str, list[Any]] = {
        "types": [["loss"], ["it's", 'q"uote'], ["unknown"], ["none"]],
        "models": [["a"], ["; drop table", "x%y"], ["unknown", "b"]],
        "runs": [["r1"], ["é", "r2"]],
        "tags": [["x"], ["y", "z"], ["=1+1"]],
        "since_us": [us(START) + n * 3_600_000_000 for n in range(0, 70, 5)],
        "until_us": [us(START) + n * 3_600_000_000 for n in range(3, 75, 7)],
        "conditions": [
            [("note.lab", "b")],
            [("note.n", 1)],
            [("note.n", True)],
            [("note.n", None)],
            [("metric_type", "loss"), ("note.lab", "c")],
            [("value", 3)],
            [("note.lab.x", "b")],
            [("no.te", "dotted")],
            [("model", "unknown")],
        ],
    }
    n_found = 0
    for _ in range(50):
        asked = {name: rng.choice(choices[name]) for name in rng.sample(list(choices), rng.randint(0, 3))}
        tenant = rng.choice(["default", "other"])
        sets = {name: frozenset(asked[name]) for name in ("types", "models", "runs", "tags") if name in asked}
        query = MetricQuery(**{**asked, **sets})
        want = newest([event for event in feed.events(tenant, "training") if query.matches(us(event["at"]), event["data"])])
        found = [one["id"] for one in feed.pages("metrics", "metrics", tenant, limit=rng.choice([7, 100, 1000]), **asked)]
        assert found == want, asked
        n_found += len(found)
    assert n_found > 800


def test_pages_stay_what_they_are_while_events_arrive_and_files_are_written(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 2)
    feed.send(*metrics(300, 1, ["default"]))
    feed.take()
    before = newest(feed.events())
    found, cursor, n = [], None, 0
    while True:
        page = feed.ask("metrics", cursor=cursor, limit=20)
        found += [one["id"] for one in page["metrics"]]
        cursor = page["cursor"]
        if cursor is None:
            break
        n += 1
        feed.send({"id": f"new{n}", "type": "metric.recorded.v1", "time": (START + timedelta(days=5, seconds=n)).isoformat(), "data": {}})
        feed.take()
        if n % 4 == 0:
            feed.write()
    assert found == before
    assert n > 10


def test_recent_reads_only_the_files_that_can_matter(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    events = [{"id": f"m{n}", "type": "metric.recorded.v1", "time": (START + timedelta(seconds=n)).isoformat(), "data": {"value": n}} for n in range(3000)]
    feed.send(*events)
    feed.take()
    feed.write()
    old = sorted(tmp_path.glob("training-0-*"), key=lambda file: int(file.name.split("-")[2]))[:-4]
    assert len(old) == 26
    for file in old:  # whoever opened them would fail
        file.write_bytes(b"")
    assert [one["value"] for one in feed.ask("metrics", limit=10)["metrics"]] == list(range(2999, 2989, -1))
    assert feed.ask("metrics", limit=5, since_us=us(START) + 2_995_000_000)["count"] == 5


NASTY = [
    "x' OR '1'='1",
    '"; DROP TABLE tail_training_1; --',
    "$tenant",
    "a.b'c",
    "/../../etc/passwd",
    "\\",
    "%",
    "?",
    "{}",
    "' UNION SELECT * FROM read_text('/etc/passwd') --",
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_a_caller_gives_becomes_sql(feed: Feed, text: str) -> None:
    for name in ("types", "models", "runs", "tags", "ids"):
        assert feed.ask("metrics", **{name: [text]})["metrics"] == []
    for body in ({text: "b"}, {"note": text}, {text: None}, {text: 1}, {text: True}):
        found = feed.ask("metrics", conditions=list(body.items()), limit=10_000)
        assert isinstance(found["metrics"], list)
        assert found["metrics"] == []
    assert feed.ask("metrics", cursor=text)["status"] == 400
    assert feed.ask("metric", id=text)["status"] == 404
    assert feed.ask("cost_events", scope=f"tag:{text}")["events"] == []
    assert feed.ask("metrics", f"default' OR tenant = 'other{text}")["metrics"] == []
    assert feed.ask("metrics", limit=10_000)["count"] == len(feed.events("default", "training"))


def test_a_metric_is_shown_as_the_tables_show_it(feed: Feed) -> None:
    events = {event["id"]: event for event in feed.events("default", "training")}
    for one in feed.ask("metrics", limit=10_000)["metrics"]:
        event = events[one["id"]]
        want = shown(event["id"], us(event["at"]), True, msgspec.convert(event["data"], MetricRecorded))
        assert {name: one[name] for name in want} == want
        assert one.get("other", {}) == {name: value for name, value in event["data"].items() if name == "note" or name == "no.te"}


def test_one_metric_is_the_earliest_of_its_copies(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1, window=128)
    for n in range(400):
        feed.send(
            {"id": f"e{n}", "type": "metric.recorded.v1", "time": (START + timedelta(seconds=n)).isoformat(), "data": {"value": n, "metric_id": f"m{n % 200}"}}
        )
    feed.send({"id": "c", "type": "metric.recorded.v1", "data": {"value": 1e308, "cost": "0.0000015", "extra": {"a": 1}}})
    feed.take()
    feed.write()
    found = feed.ask("metric", id="m7")
    assert (found["value"], found["versions"], found["time"]) == (7, 2, "2026-03-02T00:00:07.000000Z")
    found = feed.ask("metric", id="c")
    assert (found["cost_micro_usd"], found["time_given"], found["other"]) == (2, False, {"extra": {"a": 1}})
    assert feed.ask("metric", id="e7")["status"] == 404
    assert feed.ask("metric", "other", id="m7")["status"] == 404


def test_tables_have_one_row_a_metric_and_no_formulas(feed: Feed) -> None:
    params = {"limit": 10_000, "order": "time"}
    items = feed.ask("metrics", limit=10_000)["metrics"]
    text = answer(feed.keeper, SETTINGS, "metrics", "default", {**params, "format": "csv"})["body"].decode()
    header, *lines = list(csv.reader(io.StringIO(text)))
    assert header == ["id", "time", "metric_type", "model", "run", "value", "values", "tags", "epoch", "step", "cost_micro_usd", "api_calls", "token_usage"]
    assert [line[0] for line in lines] == [one["id"] for one in items]
    assert {line[5] for line in lines} >= {"NaN", "-Infinity"}  # a number is no formula
    raw = answer(feed.keeper, SETTINGS, "metrics", "default", {**params, "format": "parquet"})["body"]
    path = feed.path / "answer.bin"
    path.write_bytes(raw)
    table = duckdb.execute("SELECT id, value, tags, epoch_us(time) FROM read_parquet($p)", {"p": str(path)}).fetchall()
    assert [row[0] for row in table] == [one["id"] for one in items]
    assert [repr(row[1]) for row in table] == [repr(float(one["value"])) for one in items]
    assert [json.loads(row[2]) for row in table] == [one["tags"] for one in items]
    empty = {**params, "types": ["none"]}
    assert answer(feed.keeper, SETTINGS, "metrics", "default", {**empty, "format": "csv"})["body"].decode().strip() == ",".join(header)
    path.write_bytes(answer(feed.keeper, SETTINGS, "metrics", "default", {**empty, "format": "parquet"})["body"])
    assert duckdb.execute("SELECT count(*) FROM read_parquet($p)", {"p": str(path)}).fetchall() == [(0,)]
    lines_ = answer(feed.keeper, SETTINGS, "metrics", "default", {**params, "format": "ndjson"})["body"].splitlines()
    assert [json.loads(line) for line in lines_] == items


def test_cells_that_begin_like_a_formula_get_an_apostrophe(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    for n, text in enumerate(("=1+1", "+1", "-1", "@a", "\tx", "plain")):
        feed.send({"id": f"{n}", "type": "metric.recorded.v1", "time": (START - timedelta(seconds=n)).isoformat(), "data": {"model": text, "value": -1.5}})
    feed.take()
    text = answer(feed.keeper, SETTINGS, "metrics", "default", {"limit": 100, "format": "csv"})["body"].decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "'\tx", "plain"]
    assert {row["value"] for row in rows} == {"-1.5"}


def test_cost_events_are_exact_and_by_scope(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 2)
    feed.send(
        {"id": "a", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:01Z", "data": {"cost": "0.0000025", "model": "m", "tags": ["t", "u"]}},
        {"id": "b", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:02Z", "data": {"token_usage": 15_000, "run": "r", "api_calls": 3}},
        {"id": "c", "type": "cost.refunded.v1", "time": "2026-03-02T00:00:03Z", "data": {"cost": 0.1, "refers_to": "a", "agent": "x", "model": "m"}},
        {"id": "d", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:00Z", "data": {"api_calls": 3}},
        {"id": "e", "type": "budget.set.v1", "time": "2026-03-02T00:00:04Z", "data": {"scope": "tenant", "period": "daily", "limits": []}},
    )  # fmt: skip
    feed.take()
    found = feed.pages("cost_events", "events", limit=1)
    assert [(e["id"], e["cost_micro_usd"], e["estimated"]) for e in found] == [("c", 100_000, False), ("b", 30_000, True), ("a", 2, False), ("d", 3000, True)]
    ids = {scope: [e["id"] for e in feed.pages("cost_events", "events", scope=scope)] for scope in ("model:m", "run:r", "agent:x", "tag:u", "tag:nobody")}
    assert ids == {"model:m": ["c", "a"], "run:r": ["b"], "agent:x": ["c"], "tag:u": ["a"], "tag:nobody": []}
    assert found[0]["refers_to"] == "a"


def performance(n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rl = dict.fromkeys(("average_reward", "policy_loss", "value_loss", "kl_divergence", "trajectories_processed", "training_time_ms"), 1)
    made = []
    for number in range(n):
        time = (START + timedelta(seconds=rng.randint(0, 5000))).isoformat()
        agent = f"agent-{rng.randint(0, 5)}"
        type_, data = rng.choice(
            [
                ("task.completed.v1", {"task": f"t{number}", "agent": agent, "success": True}),
                ("custom.recorded.v1", {"name": "n", "agent": agent, "fields": {"secret": "x"}}),
("rl_metrics.recorded.v1", {"agent": agent, **rl}),
                ("metric.recorded.v1", {"value": 1}),
                ("trust.observed.v1", {"kind": "agent", "id": agent, "success": False}),
            ]
        )  # fmt: skip
        made.append({"id": f"p{number}", "type": type_, "time": time, "data": data})
    return made


def test_training_data_by_time_is_every_event_of_the_kinds_in_order(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.send(*performance(400, 1))
    feed.take(90)
    feed.write()
    feed.take()
    want = sorted((e for e in feed.events() if e["place"][0] == "judgments" or e["type"].startswith("rl_")), key=lambda e: (e["at"], *e["place"]))
    found = feed.pages("training", "events", limit=37)
    assert [e["id"] for e in found] == [e["id"] for e in want]
    assert [e["data"] for e in found] == [e["data"] for e in want]
    since = us(want[100]["at"])
    found = feed.pages("training", "events", limit=1000, since_us=since, types=["task.completed", "rl_metrics.recorded.v1"])
    assert [e["id"] for e in found] == [e["id"] for e in want if us(e["at"]) >= since and e["type"] in ("task.completed.v1", "rl_metrics.recorded.v1")]
    assert feed.ask("training", types=["metric.recorded"])["status"] == 400


def test_training_data_by_log_can_be_asked_again_for_ever_and_gives_each_event_once(tmp_path: Path) -> None:
    rng = random.Random(8)
    feed = Feed(tmp_path)
    waiting = performance(500, 2)
    found: list[str] = []
    cursor = None
    idle = 0
    while idle < 3:
        feed.send(*waiting[:20])
        waiting = waiting[20:]
        feed.take(15, rng)
        if rng.random() < 0.3:
            feed.write()
        page = feed.ask("training", order="log", limit=rng.choice([1, 5, 50]), cursor=cursor)
        found += [e["id"] for e in page["events"]]
        cursor = page["cursor"]
        done = not waiting and all(feed.read[place] == len(log) for place, log in feed.log.items())
        idle = idle + 1 if done and not page["events"] else 0
    want = [e["id"] for e in feed.events() if e["place"][0] == "judgments" or e["type"].startswith("rl_")]
    assert sorted(found) == sorted(want)
    assert feed.ask("training", order="time", cursor=cursor)["status"] == 400


def test_names_are_replaced_where_that_is_asked_or_configured(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    feed.send(*performance(60, 3))
    feed.take()

    def ask(anonymise: bool | None, **settings: Any) -> Any:
        configured = type("S", (), {"get": lambda self, name: {"anonymise_key": None, "anonymise_required": False, "anonymise_keep": [], **settings}[name]})()
        reply = answer(feed.keeper, configured, "training", "default", {"limit": 100, "format": "json", "order": "time", "anonymise": anonymise})
        return json.loads(reply["body"]) if reply["status"] == 200 else reply["status"]

    assert ask(True) == 409
    assert ask(False, anonymise_key="k", anonymise_required=True) == 403
    assert ask(None, anonymise_required=True) == 409
    assert "agent-1" in json.dumps(ask(None)["events"])
    assert "agent-1" in json.dumps(ask(False, anonymise_key="k")["events"])
    hidden = ask(None, anonymise_key="k")
    assert hidden["anonymised"] is True
    text = json.dumps(hidden["events"])
    assert "agent-" not in text and "secret" not in text and '"p1"' not in text
    names = {e["data"].get("agent", e["data"].get("id")) for e in hidden["events"]}
    assert len(names) == 6  # the same pseudonym in every type


def test_exports_of_variables_have_a_line_a_contribution(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    want = set()
    for n in range(200):
        inputs = {f"v{k}": n + k / 2 for k in range(n % 4)}
        event = {
            "id": f"f{n}",
            "type": "forecast.issued.v1",
            "time": (START + timedelta(minutes=n)).isoformat(),
            "data": {"model": f"m{n % 5}", "inputs": inputs},
        }
        feed.send(event, event)
        want |= {(f"2026-03-{2 + n // 1440:02d}T{n // 60 % 24:02d}:{n % 60:02d}:00.000000Z", name, value) for name, value in inputs.items()}
    feed.send({"id": "u", "type": "variable.performance_updated.v1", "time": START.isoformat(), "data": {"variable": "v1", "new_score": {"a": 1}}})
    feed.take(80)
    feed.write()
    feed.take()
    lines: list[dict[str, Any]] = feed.pages("contributions", "lines", order="log", limit=45)
    assert len(lines) == len(want)
    assert {(one["timestamp"], one["variable"], one["value"]) for one in lines} == want
    later = feed.pages("contributions", "lines", order="log", limit=45, since_us=us(START) + 60 * 60_000_000)
    assert {(one["timestamp"], one["variable"], one["value"]) for one in later} == {w for w in want if w[0] >= "2026-03-02T01"}
    (update,) = feed.ask("learning_log")["lines"]
    assert update["event_type"] == "memory_update" and update["data"]["variable"] == "v1"


def test_a_tenant_sees_only_its_own(feed: Feed) -> None:
    ids = {tenant: {one["id"] for one in feed.pages("metrics", "metrics", tenant, limit=500)} for tenant in ("default", "other")}
    assert not ids["default"] & ids["other"]
    assert feed.ask("metrics", "nobody")["metrics"] == []
    stranger = next(iter(ids["other"]))
    assert feed.ask("metric", "default", id=stranger)["status"] == 404
    assert feed.ask("metrics", "default", ids=[stranger])["metrics"] == []


@pytest.mark.parametrize("cursor", ["", "abc", "gaZuZXdlc3Q", "5", "é"])
def test_a_cursor_that_is_not_ours_is_refused(feed: Feed, cursor: str) -> None:
    for op in ("metrics", "cost_events", "training"):
        found = feed.ask(op, cursor=cursor)
        assert (found["status"], found["parameter"]) == (400, "cursor")


def test_the_format_is_the_one_most_wanted() -> None:
    assert wanted("text/csv", ("csv",)) == "csv"
    assert wanted("*/*", ("csv",)) == "json"
    assert wanted("application/json;q=0.2, text/csv;q=0.9", ("csv",)) == "csv"
    assert wanted("text/csv;q=nonsense", ("csv",)) == "json"
    assert wanted("text/csv", ()) == "json"
    assert NOW_MS
