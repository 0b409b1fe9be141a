"""Views of the past over an archive in memory, against the events folded one by one in the test."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents import past as past_module
from agents.archivist import Given
from agents.past import Past
from agents.raw_answers import answer
from tables.partition import Logged

from ..archive_feed import NOW_MS, SETTINGS, Feed

NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)


class Log:
    """The feed's log as the broker would give it."""

    def __init__(self, feed: Feed, head: int = 0) -> None:
        self.feed = feed
        self.head = head
        self.n = 0

    def starts(self, counts: dict[str, int]) -> dict[tuple[str, int], int]:
        return {(topic, n): self.head for topic, count in counts.items() for n in range(count)}

    def records(self, topic: str, starts: dict[int, int]) -> Any:
        for number, start in starts.items():
            for record in self.feed.log[(topic, number)][start:]:
                self.n += 1
                yield {number: [Logged(record.offset, record.timestamp, record.value, record.headers, record.key)]}


def stream(seed: int, n: int = 400) -> list[tuple[int, dict[str, Any]]]:
    """Trust observations, costs and refunds of two tenants with the Kafka time of each: repeats, late ones, clocks that differ."""
    rng = random.Random(seed)
    made: list[tuple[int, dict[str, Any]]] = []
    for number in range(n):
        stamp = NOW_MS + number * 1000 + rng.choice([0, 0, 0, 1500, -900])
        if made and rng.random() < 0.1:
            made.append((stamp, rng.choice(made)[1]))
            continue
        moment = NOW + timedelta(seconds=number) - timedelta(days=rng.choice([0, 0, 0, 5]))
        kind, data = rng.choice(
            [
                ("trust.observed.v1", {"kind": "model", "id": rng.choice("abc"), "success": rng.random() < 0.6, "weight": rng.choice([1.0, 0.25])}),
                ("cost.incurred.v1", {"cost": rng.choice(["0.1", "0.25"]), "model": rng.choice("ab")}),
            ]
        )
        event = {"id": f"e{number}", "type": kind, "tenant": rng.choice(["acme", "acme", "other"]), "data": data}
        made.append((stamp, {**event, **({"time": moment.isoformat()} if rng.random() < 0.9 else {})}))
    return made


def truth(made: list[tuple[int, dict[str, Any]]], at_ms: int, tenant: str = "acme") -> tuple[dict[str, tuple[float, float]], int]:
    """By hand: alpha and beta of each key, and micro-USD spent; what was sent by a moment, the same event once."""
    trust: dict[str, tuple[float, float]] = {}
    spent, seen = 0, set()
    for stamp, event in made:
        first = event["id"] not in seen
        seen.add(event["id"])
        if stamp > at_ms or not first or event["tenant"] != tenant:
            continue
        data = event["data"]
        if "cost" in data:
            spent += round(float(data["cost"]) * 1e6)
        else:
            good, bad = trust.get(data["id"], (1.0, 1.0))
            trust[data["id"]] = (good + data["weight"], bad) if data["success"] else (good, bad + data["weight"])
    return trust, spent


def ask(past: Past, feed: Feed, view: str, at_ms: float, tenant: str = "acme", **params: Any) -> dict[str, Any]:
    reply = past.answer(feed.keeper, tenant, {"view": view, "params": params, "at_us": int(at_ms * 1000)})
    return dict(json.loads(reply["body"])) if reply["status"] == 200 else reply


def fed(path: Path, made: list[tuple[int, dict[str, Any]]], **words: Any) -> Feed:
    """A feed that has read everything, some of it into files."""
    feed = Feed(path, **words)
    for begin in range(0, len(made), 150):
        for stamp, event in made[begin : begin + 150]:
            feed.send(event, timestamp=stamp)
        feed.take()
        if begin < 300:
            feed.write()
    return feed


@pytest.mark.parametrize("source", ["archive", "log"])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_any_moment_the_views_say_what_the_records_up_to_it_say(tmp_path: Path, seed: int, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(seed)
    feed = fed(tmp_path, made)
    log = Log(feed)
    past = Past(SETTINGS, feed.keeper.counts, log)  # type: ignore[arg-type]  # the log in memory
    if source == "log":
        monkeypatch.setattr(feed.keeper, "lacks", lambda topic, tenant: True)
    rng = random.Random(seed)
    for at_ms in [NOW_MS + 20_000, NOW_MS + 399_000, *(NOW_MS + rng.randint(20_000, 399_000) for _ in range(6))]:
        trust, spent = truth(made, at_ms)
        for key, (good, bad) in trust.items():
            found = ask(past, feed, "/trust/{kind}/{id}", at_ms, kind="model", id=key)
            assert (found["alpha"], found["beta"]) == (good, bad), (at_ms, key)
        assert ask(past, feed, "/costs", at_ms, scope="tenant")["total_micro_usd"] == spent
        assert len(past.kept) <= past_module.MOST_KEPT
    assert (log.n > 0) == (source == "log")
    assert ask(past, feed, "/costs", at_ms, "other")["total_micro_usd"] == truth(made, at_ms, "other")[1] != spent


def test_the_first_event_the_end_of_the_log_and_the_clock_of_a_view(tmp_path: Path) -> None:
    made = [
        (NOW_MS + n * 1000, {"id": f"t{n}", "type": "trust.observed.v1", "tenant": "acme", "data": {"kind": "model", "id": "a", "success": True}})
        for n in (0, 9)
    ]
    feed = fed(tmp_path, made)
    past = Past(SETTINGS, feed.keeper.counts)
    early = ask(past, feed, "/trust/{kind}/{id}", NOW_MS - 1, kind="model", id="a")
    assert (early["status"], early["members"]) == (404, {"earliest": "2026-03-20T00:00:00.000000Z"})
    assert "2026-03-20T00:00:00" in early["detail"]
    assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS, kind="model", id="a")["alpha"] == 2.0
    found = ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 8999, kind="model", id="a")
    assert (found["alpha"], found["seconds_since_update"], found["at"]) == (2.0, 8.999, "2026-03-20T00:00:08.999000Z")
    assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 9000, kind="model", id="a")["alpha"] == 3.0
    assert ask(past, feed, "/variables", NOW_MS - 1, "nobody")["variables"] == []  # of whom nothing is known, nothing was
    bad = ask(past, feed, "/costs", NOW_MS, since="2026-03-03", until="2026-03-02")
    assert (bad["status"], bad["parameter"]) == (400, "until")


def test_what_was_cleared_is_not_told_of_the_time_before_either(tmp_path: Path) -> None:
    def seen(n: int) -> dict[str, Any]:
        return {"id": f"t{n}", "type": "trust.observed.v1", "tenant": "acme", "data": {"kind": "model", "id": "a", "success": True}}

    feed = Feed(tmp_path, 1)
    feed.send(seen(0), seen(1), timestamp=NOW_MS)
    feed.take()
    past = Past(SETTINGS, feed.keeper.counts)
    assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS, kind="model", id="a")["alpha"] == 3.0
    cleared = {"id": "c", "type": "tenant.cleared.v1", "tenant": "acme", "derivedfrom": "x", "data": {"scope": "all"}}
    feed.send(cleared, timestamp=NOW_MS + 5000, partition=0)
    feed.send(seen(2), timestamp=NOW_MS + 6000)
    feed.take()
    for n in range(2):
        then = ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 4999, kind="model", id="a")
        assert (then["status"], then["members"]["earliest"]) == (404, "2026-03-20T00:00:05.000000Z")
        assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 6000, kind="model", id="a")["alpha"] == 2.0
        if not n:
            feed.write()
            feed.tidy()
    feed.keeper.close()
    feed.words["clock"] = lambda: NOW_MS / 1000 + 7
    feed.start()  # another process, which did not see it happen
    past = Past(SETTINGS, feed.keeper.counts)
    then = ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 4999, kind="model", id="a")
    assert (then["status"], then["members"]["earliest"]) == (404, "2026-03-20T00:00:05.000000Z")
    assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS + 6000, kind="model", id="a")["alpha"] == 2.0


@pytest.mark.parametrize("head", [0, 1])
def test_what_went_by_its_age_is_read_from_the_log_and_without_it_there_is_no_past(tmp_path: Path, head: int) -> None:
    def seen(n: int, days: int) -> dict[str, Any]:
        time = (NOW - timedelta(days=days)).isoformat()
        return {"id": f"t{n}", "type": "trust.observed.v1", "tenant": "acme", "time": time, "data": {"kind": "model", "id": "a", "success": True}}

    feed = Feed(tmp_path, 1, days=30)
    log = Log(feed, head)
    past = Past(SETTINGS, feed.keeper.counts, log)  # type: ignore[arg-type]  # the log in memory
    feed.send(seen(0, 0), seen(1, 50), timestamp=NOW_MS)
    feed.take()
    feed.write()
    assert ask(past, feed, "/trust/{kind}/{id}", NOW_MS, kind="model", id="a")["alpha"] == 3.0
    feed.tidy()
    assert feed.keeper.lacks("judgments", "acme") and not feed.keeper.lacks("judgments", "other") and not feed.keeper.lacks("costs", "acme")
    past = Past(SETTINGS, feed.keeper.counts, log)  # type: ignore[arg-type]  # the log in memory
    found = ask(past, feed, "/trust/{kind}/{id}", NOW_MS, kind="model", id="a")
    early = ask(past, feed, "/trust/{kind}/{id}", NOW_MS - 1, kind="model", id="a")
    if head:
        assert (found["status"], found["members"]) == (404, {"earliest": None}) and "archive_days" in found["detail"]
    else:
        assert (found["alpha"], log.n) == (3.0, 4)
        assert (early["status"], early["members"]["earliest"]) == (404, "2026-03-20T00:00:00.000000Z")
    feed.keeper.close()
    feed.start()  # it is said in the files
    assert feed.keeper.lacks("judgments", "acme")


def test_folding_goes_on_where_the_time_was_over_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(3)
    feed = fed(tmp_path, made)
    past = Past(SETTINGS, feed.keeper.counts)
    monkeypatch.setattr(past_module, "PAGE", 7)
    monkeypatch.setattr(past_module, "FOLD_S", 0.02)
    at_ms = NOW_MS + 399_000
    asked = 0
    while (found := ask(past, feed, "/costs", at_ms)).get("status") == 503:
        asked += 1
        assert "ask again" in found["detail"]
        assert asked < 500
    assert asked > 0 and found["total_micro_usd"] == truth(made, at_ms)[1]
    monkeypatch.setattr(past_module, "MOST_RECORDS", 10)
    refused = ask(past, feed, "/costs", at_ms - 1)
    assert (refused["status"], refused["parameter"]) == (400, "as_of")


def test_the_settings_of_the_worker_are_those_of_the_past(tmp_path: Path) -> None:
    made = [(NOW_MS, {"id": "t", "type": "trust.observed.v1", "tenant": "acme", "data": {"kind": "model", "id": "a", "success": True}})]
    feed = fed(tmp_path, made)
    given = Given({**SETTINGS.values, "trust_prior": {"": [3.0, 5.0]}})
    found = ask(Past(given, feed.keeper.counts), feed, "/trust/{kind}/{id}", NOW_MS, kind="model", id="a")
    assert (found["alpha"], found["beta"]) == (4.0, 5.0)


def test_the_log_of_a_tenant_is_each_event_once_with_its_place_and_says_when_some_are_gone(tmp_path: Path) -> None:
    made = stream(7, 200)
    feed = fed(tmp_path, made)
    found = feed.pages("log", "records", "acme", limit=67, order="log")
    events = feed.events("acme")
    places = sorted(event["place"] for event in events)
    assert [(one["topic"], one["partition"], one["offset"]) for one in found] == sorted(places) != []
    by_id = {event["id"]: event for event in events}
    for one in found:
        assert one["event"]["data"] == by_id[one["event"]["id"]]["data"] and one["event"]["tenant"] == "acme"
        record = feed.log[(one["topic"], one["partition"])][one["offset"]]
        assert datetime.fromisoformat(one["timestamp"]).timestamp() * 1000 == pytest.approx(record.timestamp, abs=0.01)
    assert feed.ask("log", "acme", topics=["costs"])["whole"] is True
    feed.keeper.lacks = lambda topic, tenant: topic == "costs"  # type: ignore[method-assign]
    assert feed.ask("log", "acme", topics=["costs"])["whole"] is False and feed.ask("log", "acme", topics=["judgments"])["whole"] is True
    refused = answer(feed.keeper, Given({**SETTINGS.values, "anonymise_required": True}), "log", "acme", {"limit": 1, "format": "json"})
    assert refused["status"] == 403 and "anonymise_required" in refused["detail"]
