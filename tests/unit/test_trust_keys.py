"""Trust: how many keys are taken in, scheduled decay once a tick, what a process tells of itself, and the exported file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.client import Answer
from streams.keys import derived_id, encode_key
from tables.partition import Partition
from tables.times import DAY_US, HOUR_US, rfc3339
from tables.trust import Trust
from tests.harness import Log
from tests.service import Service

from .test_trust import HALF, START_US, Story, all_rows, configured, mixed, rows

# ---- how many keys


def test_each_kind_has_its_own_bound_and_what_is_known_goes_on() -> None:
    log = Log([configured({"max_trust_keys": 2, "max_trust_keys.judge": 1})])
    story = Story(log)
    for kind in ("model", "judge", "rule"):
        for name in ("a", "b", "c", "a"):
            story.observe(name, True, kind=kind)
    assert [e["id"] for e in log.get("/trust", kind="model")["entries"]] == ["a", "b"]
    assert [e["id"] for e in log.get("/trust", kind="judge")["entries"]] == ["a"]
    assert [e["id"] for e in log.get("/trust", kind="rule")["entries"]] == ["a", "b"]
    assert log.get("/trust/judge/a")["alpha"] == 3.0
    assert log.topics["judgments"][0].counters().overflow == 4


def test_keys_that_are_called_like_members_of_the_answer_hide_none_and_are_hidden_by_none(tmp_path: Path) -> None:
    service = Service(tmp_path)
    names = ["lag", "as_of", "named", "a", "ready", "cursor"]
    for n, name in enumerate(names):
        event = {"id": f"e{n}", "type": "trust.observed.v1", "tenant": "default", "time": "2026-03-02T00:00:00Z"}
        service.send([{**event, "data": {"kind": "model", "id": name, "success": True, "weight": n + 1}}])
    service.settle()
    body = service.ask(f"/api/v1/trust?kind=model&ids={','.join(names)}").json()
    assert sorted(body) == ["a", "lag", "named", "ready"] and (body["lag"], body["ready"]) == (0, True)
    assert {name: one["alpha"] for name, one in {**body["named"], "a": body["a"]}.items()} == {name: n + 2.0 for n, name in enumerate(names)}
    assert {row["id"]: row["alpha"] for row in Answer(body).rows} == {name: n + 2.0 for n, name in enumerate(names)}
    assert [row["id"] for row in Answer(service.ask("/api/v1/trust?kind=model&ids=lag").json()).rows] == ["lag"]
    service.engine.ready = False
    assert service.ask("/api/v1/trust?kind=model&ids=ready,b").json()["ready"] is False
    assert "named" not in service.ask("/api/v1/trust?kind=model&ids=a,b").json()


def test_a_removed_key_keeps_its_place() -> None:
    log = Log([configured({"max_trust_keys": 1})])
    story = Story(log)
    story.observe("a", True)
    story.send("imported", kind="model", id="a", removed=True)
    story.observe("b", True)
    story.observe("a", True)
    assert [(e["id"], e["alpha"]) for e in log.get("/trust")["entries"]] == [("a", 2.0)]


def test_new_keys_of_one_batch_share_what_room_there_is() -> None:
    log = Log([configured({"max_trust_keys": 3})])
    story = Story(log)
    story.observe("a", True)
    names = [("model", "b"), ("rule", "r"), ("model", "a"), ("model", "c"), ("model", "d"), ("model", "b")]
    story.send("batch_observed", observations=[{"kind": kind, "id": id, "success": True} for kind, id in names])
    assert [(e["kind"], e["id"], e["observations"]) for e in log.get("/trust")["entries"]] == [
        ("model", "a", 2),
        ("model", "b", 2),
        ("model", "c", 1),
        ("rule", "r", 1),
    ]
    assert log.topics["judgments"][0].counters().overflow == 1


def test_folding_again_the_batch_that_took_the_last_place_lets_no_further_key_in() -> None:
    log = Log([configured({"max_trust_keys": 1})])
    Story(log).send("batch_observed", observations=[{"kind": "model", "id": id, "success": True} for id in "ab"])
    again = Log([configured({"max_trust_keys": 1})]).topics["judgments"][0]
    for table in again.schema.tables:
        if table.name.startswith("trust"):
            again.spaces[table.index] = log.topics["judgments"][0].spaces[table.index]
    before = all_rows(log)
    again.absorb(log.records[("judgments", 0)])
    assert all_rows(log) == before


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 60), arrived=st.floats(0, 1))
def test_a_crash_between_two_keys_or_two_counts_of_a_flush_lets_in_the_same_keys(seed: int, cut: int, arrived: float) -> None:
    """Rows of one table leave in no particular order: any part of the last one may have arrived."""
    bound = {"max_trust_keys": 3, "trust_half_life.model": 3600.0}
    log = Log([configured(bound)])
    log.send(mixed(seed, 60))
    records = log.records[("judgments", 0)]
    rng = random.Random(seed)
    older, newer = (Log([configured(bound)]).topics["judgments"][0] for _ in range(2))
    older.absorb(records[: max(0, cut - 12)])
    newer.absorb(records[:cut])
    tables = [newer.schema.tables[i] for i in newer.schema.flush_order if newer.schema.tables[i].name.startswith(("counters", "trust"))]
    whole = round(arrived * len(tables))
    for place, table in enumerate(tables[: whole + 1]):
        for tenant, space in newer.spaces[table.index].items():
            for key, row in space.items():
                if place < whole or rng.random() < 0.5:
                    older.space(table, tenant)[key] = row
    older.absorb(records[max(0, cut - 12) :])
    assert rows(older) == all_rows(log)[0]
    assert older.counters() == log.topics["judgments"][0].counters()


# ---- scheduled decay


def tick(log: Log, number: int, every_s: float = 60.0, kind: str | None = None, copy: int = 0, partition: int = 0) -> None:
    """The command of a tick as the worker publishes it: partition 0, an id made of the tick's number."""
    raw = {
        "specversion": "1.0",
        "id": derived_id("judgments", "golden", f"decay-{number}", "trust.decayed.v1", kind or "all") + ("" if not copy else f"-{copy}"),
        "source": "pulsefold/pulsefold",
        "type": "trust.decayed.v1",
        "time": rfc3339(int(number * every_s * 1e6)),
        "tenant": "golden",
        "data": {"factor": 0.5, "min_count": 0, **({"kind": kind} if kind else {})},
    }
    log.append("judgments", encode_key("golden"), json.dumps(raw).encode(), partition, 4_102_444_800_000)


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_tick_acts_once_even_if_its_command_comes_again_after_the_dedupe_window(partitions: int) -> None:
    log = Log([Trust()], partitions)
    story = Story(log)
    for name in "abcdefgh":
        story.observe(name, *[True] * 15)
    base = START_US // 60_000_000
    for number, copy in ((base, 0), (base, 0), (base, 1), (base + 1, 0), (base, 2), (base + 1, 3)):
        tick(log, number, copy=copy)  # another id stands for one that the window has forgotten
    for name in "abcdefgh":
        assert (log.get(f"/trust/model/{name}")["alpha"], log.get(f"/trust/model/{name}")["decays"]) == (4.0, 2)
    skipped = log.topics["judgments"][0].counters().skipped
    assert skipped == {"command": 2, "tick_repeated": 3}


def test_ticks_of_a_kind_and_of_all_are_told_apart() -> None:
    log = Log([Trust()])
    fold = log.folds[0]
    assert isinstance(fold, Trust)
    story = Story(log)
    story.observe("a", *[True] * 15)
    story.observe("a", *[True] * 15, kind="rule")
    base = START_US // 60_000_000
    p = log.topics["judgments"][0]
    assert fold.last_tick_us(p, "golden", "") is None
    tick(log, base)
    tick(log, base, kind="model")
    assert (log.get("/trust/model/a")["alpha"], log.get("/trust/rule/a")["alpha"]) == (4.0, 8.0)
    assert fold.last_tick_us(p, "golden", "model") == fold.last_tick_us(p, "golden", "") == base * 60_000_000
    assert fold.last_tick_us(p, "golden", "rule") is None


def test_a_command_of_a_person_acts_whatever_the_schedule_did() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("a", *[True] * 15)
    tick(log, START_US // 60_000_000 + 1000)
    for _ in range(2):
        story.send("decayed", START_US, factor=0.5, min_count=0)
    assert log.get("/trust/model/a")["alpha"] == 2.0


def test_a_crash_after_a_tick_was_noted_publishes_no_copy_of_a_repeated_one() -> None:
    log = Log([Trust()])
    Story(log).observe("a", *[True] * 15)
    base = START_US // 60_000_000
    for copy in range(3):
        tick(log, base, copy=copy)
    done = log.topics["judgments"][0]
    again: Partition = Log([Trust()]).topics["judgments"][0]
    for table in again.schema.tables:
        if table.name.startswith(("trust", "counters")):
            again.spaces[table.index] = done.spaces[table.index]
    again.absorb(log.records[("judgments", 0)])
    assert again.outputs == []
    assert log.get("/trust/model/a")["decays"] == 1


# ---- figures


def test_a_process_tells_what_it_absorbed_and_how_many_keys_it_serves() -> None:
    log = Log([Trust()], 8)
    fold = log.folds[0]
    assert isinstance(fold, Trust)
    story = Story(log)
    story.observe("a", True, False, True)
    story.send("batch_observed", observations=[{"kind": "model", "id": "a", "success": True}] * 4)
    story.send("imported", kind="rule", id="r", alpha=9, beta=9)
    story.send("decayed", kind="rule", id="r", factor=0.5)
    story.send("decayed", kind="rule", id="nobody", factor=0.5)
    assert fold.figures(log.topics["judgments"]) == {"trust": {"events": 7, "batches": 1, "observations": 7, "decays": 1, "imports": 1, "keys": 2}}


# ---- the file


def seconds(time_us: int) -> float:
    return time_us / 1e6


def test_the_export_of_nothing_is_an_empty_file() -> None:
    found = Log([Trust()]).get("/trust/export", now_us=START_US)
    assert found == {
        "format": "pulsefold.trust.v1",
        "export_time": seconds(START_US),
        "stats": {},
        "last_update": {},
        "timestamps": {},
        "as_of": None,
    }


@pytest.mark.parametrize("partitions", [1, 8])
def test_the_export_says_of_every_key_what_the_other_views_say(partitions: int) -> None:
    log = Log([configured(HALF)], partitions)
    log.send(mixed(5, 400))
    Story(log).send("imported", kind="judge", id="i|%", alpha=3, beta=4)
    found = log.get("/trust/export")
    entries = log.get("/trust", limit=10_000, at=found["as_of"])["entries"]
    assert len(entries) == len(found["stats"]) > 5
    for one in entries:
        name = encode_key(one["kind"], one["id"]).decode()
        assert found["stats"][name] == [one["alpha"], one["beta"]]
        when = found["last_update"].get(name)
        assert one["last_update"] == (None if when is None else rfc3339(round(when * 1e6)))
        history = found["timestamps"].get(name, {"times": [], "values": []})
        points = log.get(f"/trust/{one['kind']}/{one['id']}/history", limit=10_000)["points"]
        assert [(rfc3339(round(t * 1e6)), v) for t, v in zip(history["times"], history["values"], strict=True)] == [(p["time"], p["trust"]) for p in points]
    assert found["stats"]["judge|i%7C%25"] == [3.0, 4.0]
    assert "judge|i%7C%25" not in found["last_update"] and "judge|i%7C%25" not in found["timestamps"]
    assert set(log.get("/trust/export", kind="judge")["stats"]) == {"judge|i%7C%25"}


def test_an_export_shows_fading_evidence_as_it_is_at_as_of() -> None:
    log = Log([configured({"trust_half_life.model": 86_400.0})])
    story = Story(log)
    story.observe("k", *[True] * 8, at_us=START_US)
    story.observe("other", True, kind="rule", at_us=START_US + DAY_US)
    found = log.get("/trust/export", now_us=START_US + 5 * DAY_US)
    assert found["stats"]["model|k"] == [5.0, 1.0]
    assert found["export_time"] == seconds(START_US + DAY_US)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), half_life=st.sampled_from([None, 7200.0]), partitions=st.sampled_from([1, 8]))
def test_what_is_exported_imported_into_empty_tables_and_exported_again_is_the_same(seed: int, half_life: float | None, partitions: int) -> None:
    log = Log([configured({"trust_half_life": half_life})], partitions)
    log.send(mixed(seed, 150))
    first = log.get("/trust/export")
    fresh = Log([configured({"trust_half_life": half_life})], partitions)
    for n, (name, (alpha, beta)) in enumerate(first["stats"].items()):
        kind, _, id = name.partition("|")
        data: dict[str, Any] = {"kind": kind, "id": id.replace("%7C", "|").replace("%25", "%"), "alpha": alpha, "beta": beta}
        if name in first["last_update"]:
            data["last_update"] = first["last_update"][name]
        if name in first["timestamps"]:
            data["history"] = first["timestamps"][name]
        fresh.send([{"id": f"i{n}", "type": "trust.imported.v1", "time": first["as_of"], "tenant": "golden", "data": data}])
    second = fresh.get("/trust/export")
    for member in ("stats", "last_update", "timestamps"):
        assert second[member] == first[member]
    assert second["export_time"] == first["export_time"] or not first["stats"]


# ---- half-life with import and commands


def test_with_a_half_life_an_old_import_goes_on_fading_from_its_own_time() -> None:
    log = Log([configured({"trust_half_life.model": 3600.0})])
    story = Story(log)
    story.observe("k", *[False] * 8, at_us=START_US)
    story.send("imported", START_US - HOUR_US, kind="model", id="k", alpha=9.0, beta=3.0)
    answer = log.get("/trust/model/k", at=rfc3339(START_US))
    assert (answer["alpha"], answer["beta"]) == (5.0, 2.0)
    story.observe("k", True, at_us=START_US)
    assert log.get("/trust/model/k", at=rfc3339(START_US))["alpha"] == 6.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3 * DAY_US, 3 * DAY_US), st.booleans(), st.floats(0.1, 5)), max_size=8),
    st.floats(1.5, 50),
    st.floats(1, 50),
    st.integers(-2 * DAY_US, 2 * DAY_US),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.randoms(),
)
def test_observations_after_an_import_and_a_command_may_come_in_any_order(
    observed: list[tuple[int, bool, float]], alpha: float, beta_: float, command_us: int, factor: float, rng: random.Random
) -> None:
    half_us, end_us = float(DAY_US), START_US + 4 * DAY_US
    answers = []
    for _ in range(2):
        log = Log([configured({"trust_half_life.model": DAY_US / 1e6})])
        story = Story(log)
        story.send("imported", START_US, kind="model", id="k", alpha=alpha, beta=beta_)
        story.send("decayed", START_US + command_us, kind="model", id="k", factor=factor, min_count=0)
        for offset_us, ok, weight in observed:
            story.observe("k", ok, weight=weight, at_us=START_US + offset_us)
        answers.append(log.get("/trust/model/k", at=rfc3339(end_us)))
        observed = rng.sample(observed, len(observed))
    moment = START_US + max(0, command_us)

    def fade(count: float) -> float:
        at_command = 1.0 + (count - 1.0) * 2.0 ** (-(moment - START_US) / half_us)
        after = max(1.0, at_command * factor)
        return (after - 1.0) * 2.0 ** (-(end_us - moment) / half_us)

    plus = sum(w * 2.0 ** (-(end_us - START_US - t) / half_us) for t, ok, w in observed if ok)
    minus = sum(w * 2.0 ** (-(end_us - START_US - t) / half_us) for t, ok, w in observed if not ok)
    for answer in answers:
        assert answer["alpha"] == pytest.approx(1.0 + fade(alpha) + plus, rel=1e-9)
        assert answer["beta"] == pytest.approx(1.0 + fade(beta_) + minus, rel=1e-9)
