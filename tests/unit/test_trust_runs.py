"""Runs of observations: absorbed many at a time or one by one, by key or in turn, the rows and what is put out are the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

import tables.trust_runs
from streams.keys import encode_key
from tables.partition import Logged, Partition, Schema
from tables.trust import Trust
from tables.trust_state import TrustSettings

from ..laws import assert_same, rows

SETTINGS = TrustSettings(trust_half_life={"": None, "fading": 3600.0}, trust_history={"": 100, "short": 0}, max_trust_keys={"": 1_000_000, "few": 3})


class Watched(Trust):
    """Notes what is seen of a key when its alert is judged."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.seen: list[tuple[Any, ...]] = []

    def weigh(self, event: Any, p: Partition, key: tuple[str, ...], rule: Any, state: Any, alpha: float, n: float) -> None:
        """Note it, and go on."""
        self.seen.append((p.offset, p.time_us, key, event.id, alpha, n, state.alpha, state.beta, state.n_events, state.first or 0, state.last_update))
        super().weigh(event, p, key, rule, state, alpha, n)


KINDS = ["model"] * 12 + ["short", "fading", "few"]


def observation(rng: random.Random, n: int, kinds: list[str]) -> dict[str, Any]:
    """Of keys that are trusted, distrusted (whose alert opens, escalates and resolves), new, faded, not taken in, without history."""
    kind = rng.choice(kinds)
    name = rng.choice(["good", "bad", "turning", "odd", f"new{n // 700}"])
    rate = {"good": 0.9, "bad": 0.05, "turning": 0.02 if n // 900 % 2 else 0.98}.get(name, 0.5)
    data: dict[str, Any] = {"kind": kind, "id": f"{name}{rng.randrange(4) if kind == 'few' else ''}", "success": rng.random() < rate}
    if name == "odd":
        data["weight"] = rng.choice([0.5, 1e9, 3.0])
    return {"type": "trust.observed.v1", "time": f"2026-11-{rng.randrange(1, 28):02d}T00:00:00.{n:06d}Z", "data": data}


def log(seed: int, n: int, kinds: list[str] = KINDS) -> list[Logged]:
    """Observations, with what happens to keys between them."""
    rng, records = random.Random(seed), []
    for offset in range(n):
        event = observation(rng, offset, kinds)
        chance = rng.random()
        key = {"kind": "model", "id": rng.choice(["good", "turning", "bad"])}
        if chance < 0.0005:
            event = {"type": "trust.imported.v1", "data": {**key, "removed": True}}
        elif chance < 0.001:
            event = {"type": "trust.imported.v1", "data": {**key, "alpha": 3.0, "beta": 9.5, "last_update": "2026-12-24T00:00:00Z"}}
        elif chance < 0.0015:
            event = {"type": "trust.decayed.v1", "time": event["time"], "data": {"factor": 0.5}}
        elif chance < 0.004:
            event["tenant"] = "other"
        elif chance < 0.0042:
            event["id"] = "again"
        event = {"specversion": "1.0", "source": "t", "id": f"e{offset}", **event}
        records.append(Logged(offset, 1_800_000_000_000, json.dumps(event).encode(), (), encode_key("default", "model", "x")))
    return records


def absorbed(records: list[Logged], sizes: list[int]) -> tuple[Any, list[tuple[Any, ...]], Any]:
    fold = Watched()
    partition = Partition("judgments", 0, Schema([fold]))
    at = 0
    for size in sizes:
        partition.absorb(records[at : at + size])
        at += size
    assert at >= len(records)
    counted = sum(rule.n_observed for rule in {id(rule): rule for rule in (*fold.kinds.values(), fold.other)}.values())
    return rows(partition), [(out.topic, out.key, out.value, out.offset) for out in partition.outputs], (counted, sorted(fold.seen))


def counting(used: Counter[str], name: str) -> Any:
    absorb = getattr(tables.trust_runs, name)

    def counted(*words: Any) -> Any:
        used[name] += len(words[2]) > 30
        return absorb(*words)

    return counted


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("few", [0.0001, 2, 10**9])
@pytest.mark.parametrize("kinds", [KINDS, ["model"]], ids=["several", "one"])
def test_runs_are_what_their_events_would_be_one_by_one(seed: int, few: float, kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    used: Counter[str] = Counter()
    for name in ("_by_key", "_in_turn"):
        monkeypatch.setattr(tables.trust_runs, name, counting(used, name))
    monkeypatch.setattr(tables.trust_runs, "FEW", few)  # key by key always, where it pays, never
    records = log(seed, 6000, kinds)
    alone, told, counted = absorbed(records, [1] * len(records))
    assert len({value for _, _, value, _ in told if value is not None and b"trust.low" in value}) > 3, "alerts open and resolve"
    for sizes in ([len(records)], [700] * 9, [100, 3000, 20, 2880]):
        found, out, n = absorbed(records, sizes)
        assert_same(alone, found, f"in pieces of {sizes}")
        assert out == told and n == counted
    assert used["_by_key"] > 30 if few < 10**9 else used["_in_turn"] > 30


@pytest.mark.parametrize("few", [0.0001, 2, 10**9])
def test_what_is_folded_again_after_a_crash_changes_nothing_and_is_put_out_again(few: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.trust_runs, "FEW", few)
    records = log(9, 3000)
    fold = Trust(SETTINGS)
    partition = Partition("judgments", 0, Schema([fold]))
    partition.absorb(records)
    whole = rows(partition)
    other = Partition("judgments", 0, Schema([Trust(SETTINGS)]))
    other.absorb(records[:1500])
    ahead = {table.wire for table in fold.tables if table.rank < 50}
    for table in other.schema.tables:  # these rows were on the changelog before the crash, the others not
        if table.wire in ahead:
            theirs = {t.wire: t for t in partition.schema.tables}[table.wire]
            other.spaces[table.index] = partition.spaces[theirs.index]
    other.absorb(records[1500:])
    assert_same(whole, rows(other), "folded again")
