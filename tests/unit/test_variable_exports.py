"""Exports of variables: lines and scores as pure functions of events and tables."""

from __future__ import annotations

import json
from typing import Any

from streams.codec import decode, encode
from streams.events import Event, VariableScored
from streams.keys import record_key
from tables.times import rfc3339, to_us
from tables.variable_exports import FORECAST_FIELDS, all_scores, contributions, memory_update, scored
from tables.variable_states import VariableSettings
from tables.variable_views import Scores
from tables.variables import Variables
from tests.forecast_events import START_US, all_rows, forecast, registration, stream, update
from tests.harness import VECTORS, Log


def decoded(event: dict[str, Any]) -> tuple[Event, int]:
    found = decode(json.dumps({"specversion": "1.0", "source": "t", **event}).encode())
    return found, 0 if found.time is None else to_us(found.time)


def test_all_scores_are_those_of_the_list_at_one_moment() -> None:
    fold = Variables()
    log = Log([fold], 4)
    log.send(stream(3, 200))
    found = all_scores(Scores(fold.kept, fold.settings), log.reader())
    assert list(found.values()) == log.get("/variables", limit=1000)["variables"]
    assert list(found) == sorted(found) and len({score["as_of"] for score in found.values()}) == 1
    exact = all_scores(Scores(fold.kept, fold.settings), log.reader(), exact=True)
    assert exact["a"]["avg_confidence"] == log.get("/variables/a", exact=True)["avg_confidence"] != found["a"]["avg_confidence"]
    assert all_scores(Scores(fold.kept, fold.settings), log.reader("other")) == {}


def test_a_forecast_is_a_line_a_variable_with_every_field_and_none_without_inputs() -> None:
    event = forecast(1, {"a": 0.5, '=b"': -2.0}, confidence=0.75, arc_label="Hope", symbolic_tag="hope", certified=True, confidence_status="sure")
    lines = [json.loads(line) for line in contributions(*decoded(event))]
    assert lines[0] == {
        "timestamp": rfc3339(START_US + 1_000_000), "variable": "a", "value": 0.5, "forecast_id": "f1", "confidence": 0.75, "fragility": 0.0,
        "certified": True, "alignment_score": None, "arc_label": "Hope", "symbolic_tag": "hope", "confidence_status": "sure",
    }  # fmt: skip
    assert [(line["variable"], line["value"]) for line in lines] == [("a", 0.5), ('=b"', -2.0)]
    assert len(FORECAST_FIELDS) == 8
    assert contributions(*decoded(forecast(2))) == contributions(*decoded(registration(3, "a"))) == []


def test_a_log_gives_as_many_lines_as_the_scores_count() -> None:
    log = Log([Variables()], 4)
    events = stream(4, 300)
    log.send(events)
    lines = [json.loads(line) for event in events for line in contributions(*decoded(event))]
    for score in log.get("/variables")["variables"]:
        mine = [line for line in lines if line["variable"] == score["name"]]
        assert (len(mine), sum(line["certified"] for line in mine)) == (score["count"], score["certified_count"])


def test_a_performance_update_is_a_line_of_the_learning_log() -> None:
    line = memory_update(*decoded(update(7, "a", {"score": 0.5, "why": ["x"]})))
    time = rfc3339(START_US + 7_000_000)
    assert line is not None
    assert json.loads(line) == {
        "event_id": "u7",
        "timestamp": time,
        "event_type": "memory_update",
        "data": {"event": "variable_performance_update", "variable": "a", "new_score": {"score": 0.5, "why": ["x"]}, "timestamp": time},
    }
    assert memory_update(*decoded(forecast(1))) is None


def test_what_learners_are_told_is_the_score_under_the_variables_key() -> None:
    fold = Variables()
    log = Log([fold], 3)
    log.send(VECTORS["G8"]["events"])
    told = scored(Scores(fold.kept, fold.settings), log.reader(), ("A",))
    assert isinstance(told, VariableScored)
    assert (told.name, told.score["trust_weight"], told.score) == ("A", 1.1107, log.get("/variables")["variables"][0])
    event = Event(id="x", tenant="golden", data=told)
    assert record_key(event) == b"golden|variable|A"
    assert json.loads(encode(event))["type"] == "variable.scored.v1"
    strict = Scores(fold.kept, VariableSettings(variables_strict=True))
    assert scored(strict, log.reader(), ("A",)) is scored(Scores(fold.kept, fold.settings), log.reader(), ("nobody",)) is None
    assert all_scores(strict, log.reader()) == {}


def test_exporting_changes_no_row() -> None:
    fold = Variables()
    log = Log([fold], 2)
    log.send(stream(5, 150))
    before = all_rows(log)
    all_scores(Scores(fold.kept, fold.settings), log.reader())
    for path in ("/variables", "/variables/drift", "/variables/volatility", "/variables/a/influence", "/variables/a", "/variables/rank"):
        log.get(path, **({"recent": True} if path.endswith("drift") else {}))
    assert all_rows(log) == before
