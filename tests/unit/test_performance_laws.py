"""Laws of the folds of agents and judgments: replay, redelivery, crashes in the middle of a flush, splits, copies of commands."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.topics import SOURCE_TOPICS
from tables.partition import HEAD, Partition, Schema
from tables.times import DAY_US
from tests.harness import Log, Rec
from tests.unit.performance_stream import START_US, all_rows, crash_everywhere, event, folds, load, rows, stream


def records(events: list[dict[str, Any]], topic: str = "judgments") -> list[Rec]:
    """The records of one partition."""
    log = Log(folds(), 1)
    log.send(events)
    return log.records[(topic, 0)]


def commands(events: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The stream with collection turned off and on, and the tenant cleared."""
    rng = random.Random(seed)
    found = list(events)
    for n, (kind, data) in enumerate(
        [("collection.changed", {"enabled": False}), ("collection.changed", {"enabled": True}), ("tenant.cleared", {"scope": "performance"})]
    ):
        found.insert(rng.randrange(len(found)), event(f"c{n}", kind, START_US, **data))
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_crash_at_any_place_of_a_flush_changes_no_row(seed: int) -> None:
    log = records(commands(stream(seed, 160), seed))
    assert crash_everywhere(folds, log, "judgments", random.Random(seed), 60) > 1000


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_changes_no_row_where_names_have_no_room(seed: int) -> None:
    def narrow() -> list[Any]:
        return folds(max_agents=3, max_judges=1)

    log = records(stream(seed, 160))
    assert crash_everywhere(narrow, log, "judgments", random.Random(seed), 40) > 1000


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 50))
def test_replay_in_other_chunks_gives_the_same_rows_to_the_bit(seed: int, chunk: int) -> None:
    log = records(commands(stream(seed, 120), seed))
    whole, parts = (Partition("judgments", 0, Schema(folds())) for _ in range(2))
    whole.absorb(log)
    for start in range(0, len(log), chunk):
        parts.absorb(log[start : start + chunk])
        written = [(key, value) for key, value, _, _ in parts.drain()]
        assert all(len(value) < 65_536 + HEAD.size for _, value in written)
    assert rows(whole) == rows(parts)
    assert [(o.topic, o.key, o.value) for o in whole.outputs] == [(o.topic, o.key, o.value) for o in parts.outputs]


def test_every_row_survives_the_changelog() -> None:
    log = Log(folds(), 1)
    log.send(commands(stream(5, 400), 5))
    for topic, (p,) in log.topics.items():
        restored = Partition(topic, 0, log.schema)
        load(restored, [(key, value) for key, value, _, _ in p.drain()])
        for table in log.schema.tables:
            for tenant, space in restored.spaces[table.index].items():
                for key, row in space.items():
                    assert msgspec.msgpack.encode(table.load(row)) == table.dump(p.spaces[table.index][tenant][key])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), prefix=st.integers(1, 120))
def test_redelivery_to_rows_that_have_absorbed_it_changes_nothing(seed: int, prefix: int) -> None:
    log = Log(folds(), 1)
    log.send(stream(seed, 120))
    done = log.topics["judgments"][0]
    before = {table.wire: rows(done) for table in log.schema.tables}
    again = Partition("judgments", 0, Schema(log.folds))  # no dedupe window: handlers see all
    for table in (again.schema.tables[0], *(t for fold in log.folds for t in fold.tables)):
        again.spaces[table.index] = done.spaces[table.index]
    overflow = done.counters().overflow
    again.absorb(log.records[("judgments", 0)][:prefix])
    assert {table.wire: rows(done) for table in log.schema.tables} == before
    assert done.counters().overflow == overflow
    assert not again.outputs


@pytest.mark.parametrize("scope", ["performance", "all"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_after_clearing_the_figures_are_those_of_the_later_events_alone(scope: str, partitions: int) -> None:
    early, late = stream(1, 300), [{**e, "id": f"late-{e['id']}"} for e in stream(2, 200, start_us=START_US + DAY_US // 2)]
    log, fresh = Log(folds(), partitions), Log(folds(), partitions)
    log.send(early)
    log.send([event("clear", "tenant.cleared", START_US, scope=scope)])
    assert log.get("/performance/stats")["total_task_executions"] == 0
    assert log.get("/agents")["agents"] == []
    assert log.get("/agents/a")["status"] == 404
    assert log.get("/performance/trends", metric="rl.policy_loss")["n"] == 0
    log.send(late)
    fresh.send(late)
    assert {topic for topic, _ in log.records if any(b"tenant.cleared" in (r.value or b"") for n in range(partitions) for r in log.records[(topic, n)])} == set(
        SOURCE_TOPICS
    )
    for path in ("/performance/stats", "/agents", "/judgments/summary", "/predict", "/agents/a"):
        one, other = log.get(path), fresh.get(path)
        for answer in (one, other):
            answer.pop("as_of")
        if path == "/agents":
            for item in (*one["agents"], *other["agents"]):
                item.pop("as_of")
        assert one == other, path


def test_a_clear_resolves_the_open_alerts_once() -> None:
    log = Log(folds(), 1)
    log.send(event(i, "task.completed", START_US + i, task="t", agent="a", success=False) for i in range(25))
    assert [a["type"] for a in log.alerts("agent.success_rate")] == ["alert.opened.v1"]
    log.send([event("clear", "tenant.cleared", START_US, scope="performance")])
    assert [(a["type"], a.get("reason")) for a in log.alerts("agent.success_rate")][1:] == [("alert.resolved.v1", "cleared")]
    log.send([event("clear2", "tenant.cleared", START_US, scope="performance")])
    assert len(log.alerts()) == 2


@pytest.mark.parametrize("partitions", [1, 4])
def test_while_collection_is_off_events_are_skipped_and_counted(partitions: int) -> None:
    log = Log(folds(), partitions)
    events = stream(3, 300, repeats=0.0)
    log.send(events[:100])
    log.send([event("off", "collection.changed", START_US, enabled=False, reason="privacy")])
    before = {k: v for k, v in log.get("/performance/stats").items() if k not in ("as_of", "collecting", "collection_reason")}
    log.send(events[100:200])
    stats = log.get("/performance/stats")
    assert (stats["collecting"], stats["collection_reason"]) == (False, "privacy")
    moves = ("as_of", "collecting", "collection_reason", "abandoned", "open_executions")  # time goes on
    assert {k: v for k, v in stats.items() if k not in moves} == {k: v for k, v in before.items() if k not in moves}
    skipped = sum(p.counters().skipped.get("collection_off", 0) for topic in ("judgments", "training") for p in log.topics[topic])
    assert skipped == 100
    log.send([event("on", "collection.changed", START_US + 1, enabled=True)])
    log.send(events[200:])
    assert log.get("/performance/stats")["collecting"] is True
    counted = sum(log.get("/performance/stats")["events"].values())
    rl = sum(e["type"].startswith("rl_") for e in events[:100] + events[200:])
    assert counted == 200 - rl - log.get("/performance/stats")["duplicate_completions"]


def test_tenants_share_nothing() -> None:
    alone, both = Log(folds(), 2), Log(folds(), 2)
    mine = stream(1, 200)
    theirs = [{**e, "tenant": "other"} for e in stream(2, 200)]
    alone.send(mine)
    for pair in zip(mine, theirs, strict=False):
        both.send(pair)
    both.send(mine[len(theirs) :])
    kept = {table.name for fold in both.folds for table in fold.tables}
    for path in ("/performance/stats", "/agents/a", "/judgments/summary", "/predict"):
        assert alone.get(path) == both.get(path)
    mine_of = [{key: row for key, row in partition.items() if key[1] == "golden" and key[0].split(".")[0] in kept} for partition in all_rows(both)]
    assert sum(map(len, mine_of)) == sum(sum(key[1] == "golden" and key[0].split(".")[0] in kept for key in partition) for partition in all_rows(alone))
