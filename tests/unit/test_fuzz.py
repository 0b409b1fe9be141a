"""A short run of the fuzzers, the same each time, and every fault that a long one has found (`make fuzz`).

Of the log: for any bytes, each record is folded, a duplicate, or a dead letter, and never anything else. Of HTTP: no view fails, whatever is asked.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.board import Board
from streams.codec import InvalidEvent, decode
from streams.topics import SOURCE_TOPICS
from tables.partition import COUNTERS

from ..fuzz import http as wild
from ..fuzz.events import FromBytes, ask, check, event, partitions, places, records, simple_views, tables
from ..fuzz.run import one_log
from ..service import Service

TOPICS = st.sampled_from(sorted(SOURCE_TOPICS))
QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
WILD = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)), max_leaves=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    found = wild.service(tmp_path_factory.mktemp("fuzz"), n=200)
    yield found
    found.feed.keeper.close()


@QUICK
@given(st.lists(st.one_of(st.none(), st.binary(max_size=300)), min_size=1, max_size=6), TOPICS)
def test_any_bytes_are_dead_letters_and_the_partition_goes_on(raws: list[bytes | None], topic: str) -> None:
    partition = check(raws, topic)
    assert COUNTERS.load(partition.spaces[COUNTERS.index][""][()]).dead_lettered == len(raws)


@QUICK
@given(st.lists(WILD, min_size=1, max_size=4), st.sampled_from(sorted(tables().handlers, key=lambda data: data.__name__)), TOPICS)
def test_any_json_in_the_place_of_an_event_of_its_data_or_of_its_fields(values: list[Any], data: Any, topic: str) -> None:
    names = data.__struct_fields__
    bodies = [
        *values,
        *({"id": "1", "type": data.TYPE, "data": value} for value in values),
        {"id": "2", "type": data.TYPE, "tenant": "acme", "data": dict(zip(names, values * 9, strict=False))},
    ]
    check([json.dumps(body).encode("utf-8", "surrogatepass") for body in bodies], topic)


@QUICK
@given(st.binary(max_size=600), TOPICS)
def test_golden_events_changed_in_a_few_places(data: bytes, topic: str) -> None:
    rng = FromBytes(data)
    check([event(rng) for _ in range(1 + rng.randrange(5))], topic, look=rng.random() < 0.5)


def test_long_logs_of_changed_golden_events() -> None:
    for seed in range(250):
        one_log(random.Random(seed))


def test_the_changed_events_are_not_all_refused() -> None:
    """The test of the test: enough of them reach the folds, of every type that folds take."""
    rng = random.Random(1)
    types: dict[str, int] = {}
    for _ in range(4000):
        try:
            found = decode(event(rng))
        except InvalidEvent:
            continue
        types[found.data.TYPE] = types.get(found.data.TYPE, 0) + 1
    assert sum(types.values()) > 1500
    assert {data.TYPE for data in tables().handlers} <= set(types)


@QUICK
@given(st.one_of(st.none(), st.binary(max_size=200), WILD.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))), st.binary(max_size=10))
def test_anything_on_the_topic_of_alerts_is_counted_and_shown_to_nobody(value: bytes | None, key: bytes) -> None:
    board = Board()
    assert board.read(key, value, (0, 0)) is None
    assert board.n_odd == (value is not None) and not board.entries


ALERT = {
    "id": "1", "type": "alert.opened.v1", "time": "2026-03-02T00:00:00Z", "tenant": "acme", "data": {
        "alert_id": "x", "rule": "r", "subject": "s", "severity": "info", "period": "all", "evidence": {"topic": "costs", "partition": 0, "offset": 1},
    },
}  # fmt: skip


def test_an_alert_with_anything_wrong_in_it_is_none() -> None:
    assert Board().read(b"x", json.dumps(ALERT).encode(), (0, 0)) is not None
    values: tuple[Any, ...] = (None, [], "", 1, {"a": 1}, "a\nevent: x")
    n = 0
    for _, key in places(ALERT):
        for value in values:
            changed = json.loads(json.dumps(ALERT))
            for holder, name in places(changed):
                if name == key:
                    holder[name] = value
                    break
            board = Board()
            board.read(b"x", json.dumps(changed).encode(), (0, 0))
            n += board.n_odd
            for entry in board.of("acme"):  # what the views and the rules read of it is there
                assert entry.message["data"]["evidence"]["offset"] >= 0 and "\n" not in entry.message["id"]
                datetime.fromisoformat(entry.message["time"])
                board.open_of("acme", "r")
                board.standing("x")
    assert n > 50


def test_no_view_fails_whatever_it_is_asked(made: Service) -> None:
    paths, known = wild.described(made), wild.names()

    async def every() -> dict[int, int]:
        codes: dict[int, int] = {}
        for seed in range(700):
            target, headers = wild.request(random.Random(seed), paths, known)
            reply = await made.reply(target, headers)
            assert wild.fine(reply), (seed, target, headers, reply.status, reply.body[:300])
            codes[reply.status] = codes.get(reply.status, 0) + 1
        return codes

    codes = asyncio.run(every())
    assert codes[200] > 120 and codes[400] > 120 and codes[404] > 20


@QUICK
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=400).map(lambda data: event(FromBytes(data)))))
def test_whatever_is_posted_is_an_event_or_refused_and_never_of_another_tenant(made: Service, raw: bytes) -> None:
    caller = made.tokens.caller("Bearer token-of-acme", None, "read", datetime.now(UTC))
    result, send = made.routes.prepare(raw, caller)
    assert result["accepted"] == (send is not None)
    if send is not None:
        topic, key, value = send
        found = decode(value)
        assert found.tenant == "acme" and topic == "pulsefold." + found.data.TOPIC and key
    else:
        assert result["reason"] and result["error"]


# ---- faults that were found


def observed(n: int, weight: float) -> bytes:
    data = {"kind": "model", "id": "m", "success": True, "weight": weight}
    return json.dumps({"id": str(n), "source": "s", "type": "trust.observed.v1", "tenant": "acme", "time": "2026-03-02T00:00:00Z", "data": data}).encode()


def test_a_weight_beyond_all_counts_leaves_the_views_of_trust_answering() -> None:
    raws = [observed(n, 1.79e308) for n in range(4)]
    check(raws, "judgments", look=True)
    logs = partitions()
    logs["judgments"][0].absorb(records(raws))
    view = next(view for view in simple_views() if view.path == "/trust/report")
    answer = ask(logs, view, "acme", min_sample=1)
    assert answer is not None and answer["high_confidence"][0]["sample_size"] == 2**53


FOUND = [
    ("/api/v1/metrics?filter=%7B%22a%22%3A1%7D&until=0001-01-01", 200),
    ("/api/v1/metrics?until=9999-12-31", 200),
    ("/api/v1/metrics?since=9999-12-31T23%3A59%3A59Z&limit=1", 200),
    ("/api/v1/alerts?since=2026-03-03T01%3A02%3A03", 400),
    ("/api/v1/alerts?since=0001-01-01T00%3A00%3A00%2B14%3A00", 200),
    ("/api/v1/alerts?since=2026-03-02", 200),
    ("/api/v1/costs/events?cursor=lKZuZXdlc3TP___________PgAAAAAAAAAAB", 400),
    ("/api/v1/metrics?cursor=lKZuZXdlc3TPf_________8AAQ", 400),
    ("/api/v1/status?tenant=a", 400),
    ("/api/v1/trust/model/%ff%ed%a0%80", 404),
    ("/api/v1/metrics/%00", 404),
]


@pytest.mark.parametrize(("target", "status"), FOUND)
def test_a_request_that_failed_once(made: Service, target: str, status: int) -> None:
    reply = made.ask(target, {"Authorization": "Bearer token-of-acme"})
    assert reply.status == status, reply.body


def test_no_events_at_all_are_fine_too(tmp_path: Path) -> None:
    empty = Service(tmp_path)
    empty.settle(write=False)
    for path, ways in wild.described(empty).items():
        if not any(one["required"] for one in ways["get"].get("parameters", [])):
            assert empty.ask(path).status in (200, 400, 404), path
