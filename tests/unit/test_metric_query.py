"""Asking for raw metrics: day limits, offsets, lists, filters on any field, and an order that pages hold."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from streams.codec import decode
from tables.fold import BadParameter
from tables.metric_query import MetricQuery, MetricsParams, RecentParams, cursor_of, equal, holds, place, place_of, query, recent, shown
from tables.times import DAY_US, HOUR_US, to_us
from tests.harness import VECTORS
from tests.unit.test_windows import START_US

NOW_US = START_US + 10 * DAY_US


def ask(events: Iterable[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """What a reader of all records answers: distinct, asked for, newest first, one page."""
    asked = query(msgspec.convert({k: [v] if k in ("types", "models", "tags", "runs") else v for k, v in params.items()}, MetricsParams, strict=False), NOW_US)
    found, seen = [], set()
    for offset, event in enumerate(events):
        if event["id"] in seen:
            continue
        seen.add(event["id"])
        time_us = to_us(datetime.fromisoformat(event["time"]))
        at = place(time_us, 0, offset)
        if asked.matches(time_us, event["data"]) and asked.beyond(at):
            found.append((at, event))
    return [event for _, event in sorted(found, key=lambda one: one[0], reverse=True)][: asked.limit]


@pytest.mark.parametrize("check", [c for c in VECTORS["M3"]["checks"] if c["path"] == "/metrics"], ids=lambda c: json.dumps(c["params"]))
def test_golden_queries_count_what_lies_in_their_days(check: dict[str, Any]) -> None:
    assert len(ask(VECTORS["M3"]["events"], **check["params"])) == check["expect"]["count"]


def event(i: int, time: str = "2026-03-02T10:00:00Z", **data: Any) -> dict[str, Any]:
    return {"id": f"e{i}", "time": time, "data": data}


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [one["id"] for one in found]


def test_lists_are_any_of_inside_and_all_of_between_and_defaults_are_unknown() -> None:
    some = [
        event(0, metric_type="loss", model="a", run="r", tags=["x", "y"]),
        event(1, metric_type="loss", tags=["y"]),
        event(2, metric_type="acc", model="a"),
        event(3, model="b", run="s", tags=[]),
    ]
    assert ids(ask(some, types="loss,acc")) == ["e2", "e1", "e0"]
    assert ids(ask(some, types="unknown")) == ["e3"]
    assert ids(ask(some, models="unknown,b")) == ["e3", "e1"]
    assert ids(ask(some, tags="x,y", types="loss", models="a")) == ["e0"]
    assert ids(ask(some, tags="z")) == []
    assert ids(ask(some, runs="r,s")) == ["e3", "e0"]
    assert ids(ask(some)) == ["e3", "e2", "e1", "e0"]


def test_since_is_inclusive_until_exclusive_a_bare_date_takes_in_its_day_and_offsets_are_instants() -> None:
    some = [event(0, "2026-03-02T00:00:00Z"), event(1, "2026-03-02T23:59:59.999999Z"), event(2, "2026-03-03T00:00:00Z"), event(3, "2026-03-03T01:30:00+02:00")]
    assert ids(ask(some, until="2026-03-02")) == ["e1", "e3", "e0"]
    assert ids(ask(some, since="2026-03-03")) == ["e2"]
    assert ids(ask(some, since="2026-03-04")) == []
    assert ids(ask(some, since="2026-03-02T23:30:00Z", until="2026-03-02T23:30:00.000001Z")) == ["e3"]
    assert ids(ask(some, since="2026-03-03T02:00:00+02:00")) == ["e2"]
    assert ids(ask(some, until="2026-03-02T00:00:00Z")) == []


@pytest.mark.parametrize(
    ("parameter", "params"),
    [
        ("since", {"since": "2026-03-03T00:00:00Z", "until": "2026-03-03T00:00:00Z"}),
        ("since", {"since": "2026-03-04", "until": "2026-03-03"}),
        ("since", {"since": "yesterday"}),
        ("until", {"until": "2026-03-03T10:00:00"}),
        ("filter", {"filter": "epoch=3"}),
        ("filter", {"filter": "[1]"}),
        ("filter", {"filter": '{"a": {"b": 1}}'}),
        ("filter", {"filter": '{"a": [1]}'}),
        ("filter", {"filter": json.dumps({".".join("abcdefghi"): 1})}),
        ("filter", {"filter": json.dumps({str(i): 1 for i in range(65)})}),
        ("filter", {"filter": "[" * 5000}),
        ("cursor", {"cursor": "abc"}),
        ("cursor", {"cursor": "\u00e9"}),
        ("cursor", {"cursor": ""}),
    ],
)
def test_an_unusable_parameter_is_named(parameter: str, params: dict[str, str]) -> None:
    with pytest.raises(BadParameter) as refused:
        query(MetricsParams(**params), NOW_US)
    assert refused.value.parameter == parameter


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({"epoch": 3}, ["e1", "e0"]),
        ({"epoch": 3.0, "config.lr": 0.1}, ["e0"]),
        ({"config.opt.name": "adam"}, ["e1", "e0"]),
        ({"config.opt": "adam"}, []),
        ({"a.b": 1}, ["e2"]),
        ({"done": True}, ["e2"]),
        ({"done": 1}, []),
        ({"note": None}, ["e2"]),
        ({"tags": "x"}, []),
        ({"value": "NaN"}, ["e3"]),
        ({}, ["e3", "e2", "e1", "e0"]),
    ],
)
def test_a_filter_equals_fields_also_unknown_ones_by_dotted_path(filter: dict[str, Any], found: list[str]) -> None:
    some = [
        event(0, epoch=3, config={"lr": 0.1, "opt": {"name": "adam"}}),
        event(1, epoch=3.0, config={"lr": 0.2, "opt": {"name": "adam"}}, tags=["x"]),
        event(2, done=True, note=None, **{"a.b": 1}),
        event(3, value="NaN", done="true"),
    ]
    assert ids(ask(some, filter=json.dumps(filter))) == found


def test_a_filter_without_since_looks_thirty_days_back_and_says_so() -> None:
    some = [event(0, "2026-02-09T23:59:59Z", epoch=1), event(1, "2026-02-10T00:00:00Z", epoch=1), event(2, "2026-03-05T00:00:00Z", epoch=1)]
    assert ids(ask(some, filter='{"epoch": 1}')) == ["e2", "e1"]
    assert ids(ask(some, filter='{"epoch": 1}', since="2025-01-01")) == ["e2", "e1", "e0"]
    assert query(MetricsParams(filter="{}"), NOW_US).stated() == {"since": "2026-02-10T00:00:00.000000Z"}
    assert query(MetricsParams(filter="{}", since="2025-01-01"), NOW_US).stated() == {}
    assert query(MetricsParams(), NOW_US).stated() == {}
    before = query(MetricsParams(filter="{}", until="2025-03-31"), NOW_US)
    assert before.until_us is not None
    assert before.since_us == before.until_us - 30 * DAY_US


def test_pages_give_every_metric_once_newest_first_though_new_ones_come_between() -> None:
    rng = random.Random(1)
    some = [event(i, f"2026-03-02T{rng.randint(0, 3):02d}:00:00Z", metric_type="loss") for i in range(50)]
    got: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while page := ask(some, limit=7, **cursor):
        got += page
        last = some.index(page[-1])
        cursor = {"cursor": cursor_of(place(to_us(datetime.fromisoformat(page[-1]["time"])), 0, last))}
        some.append(event(len(some), "2026-03-05T00:00:00Z"))  # newer than everything
    want = sorted(range(50), key=lambda i: (some[i]["time"], i), reverse=True)
    assert ids(got) == [f"e{i}" for i in want]


def test_a_cursor_names_one_place_and_partitions_break_ties() -> None:
    at = place(1_772_409_600_000_000, 3, 12)
    assert place_of(cursor_of(at)) == at
    assert place(5, 1, 7) < place(5, 0, 8) < place(6, 0, 0)
    assert place(5, 0, 7) < place(5, 1, 7)


def test_equality_is_that_of_json() -> None:
    assert equal(1, 1.0)
    assert not equal(True, 1)
    assert not equal(0, False)
    assert equal(None, None)
    assert not equal("1", 1)
    assert not equal([1], 1)
    assert holds({"a": {"b.c": {"d": 2}}}, "a.b.c.d", 2)
    assert holds({"a.b": 1, "a": {"b": 2}}, "a.b", 2)


def test_recent_asks_for_the_newest_of_the_given_types() -> None:
    assert recent(RecentParams()) == MetricQuery(limit=10)
    assert recent(RecentParams(types=["loss,acc", "f1"], limit=3)) == MetricQuery(types=frozenset({"loss", "acc", "f1"}), limit=3)


def test_a_metric_is_shown_with_its_own_id_exact_money_and_whether_it_told_its_time() -> None:
    data = {"metric_id": "mine", "value": "NaN", "values": {"a": 1.5}, "tags": ["x"], "epoch": 2, "cost": "0.0000015", "api_calls": 4, "more": {"x": 1}}
    raw = json.dumps({"specversion": "1.0", "id": "e", "source": "t", "type": "metric.recorded.v1", "tenant": "a", "data": data}).encode()
    body = shown("e", START_US + HOUR_US, False, decode(raw).data)  # type: ignore[arg-type]  # a metric
    assert (body["id"], body["metric_type"], body["model"], body["run"]) == ("mine", "unknown", "unknown", None)
    assert (body["value"], body["values"], body["cost_micro_usd"], body["api_calls"], body["token_usage"]) == ("NaN", {"a": 1.5}, 2, 4, None)
    assert (body["time"], body["time_given"]) == ("2026-03-02T01:00:00.000000Z", False)
    data.pop("metric_id")
    assert shown("e", START_US, True, decode(json.dumps({**json.loads(raw), "data": data}).encode()).data)["id"] == "e"  # type: ignore[arg-type]
