"""Variables through the whole data flow in memory: golden vectors, an oracle in numpy, laws of folds, and the alert."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.fold import BadParameter, Standing
from tables.partition import HEAD, Partition
from tables.rows import Row, parse_wire_key
from tables.times import rfc3339
from tables.variable_states import EXTREMES, Partial, Registration, VariableSettings
from tables.variable_views import RANK_KEYS, Merged, newest
from tables.variables import Variables
from tests.forecast_events import NAMES, START_US, Event, all_rows, forecast, registration, rows, stream, update
from tests.harness import VECTORS, Log, Rec, subset


def strict(**more: Any) -> Variables:
    return Variables(VariableSettings(variables_strict=True, **more))


# ---- golden


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", ["G8", "V1", "V2", "V3", "V4", "V5", "V6"])
def test_golden_vector_holds_and_a_second_delivery_changes_nothing(name: str, partitions: int) -> None:
    vector = VECTORS[name]
    log = Log([Variables()], partitions)
    for _ in range(2):
        log.send(vector["events"])
        for check in vector["checks"]:
            assert subset(check["expect"], log.get(check["path"], **check.get("params", {}))) == []
    assert sum(p.counters().duplicate for p in log.topics["forecasts"]) == len(vector["events"])


def test_a_score_has_exactly_the_documented_fields() -> None:
    log = Log([Variables()])
    log.send(VECTORS["G8"]["events"])
    score = log.get("/variables")["variables"][0]
    assert list(score) == [
        "name", "registered", "count", "avg_confidence", "avg_fragility", "avg_alignment", "alignment_count", "certified_count",
        "certified_ratio", "volatility", "drift", "trust_weight", "first_seen", "last_seen", "out_of_range", "as_of",
    ]  # fmt: skip
    assert (score["first_seen"], score["last_seen"], score["as_of"]) == tuple(f"2026-03-02T00:00:0{s}.000000Z" for s in (1, 4, 4))


# ---- the oracle: the rules once more, in numpy


def oracle(events: list[Event], name: str) -> dict[str, Any]:
    """One variable's answer from the raw events."""
    issued = [e for e in events if e["type"] == "forecast.issued.v1" and name in e["data"]["inputs"]]
    data = [e["data"] for e in issued]
    limits = [e["data"] for e in events if e["type"] == "variable.registered.v1" and e["data"]["name"] == name]
    conf = np.array([d["confidence"] for d in data])
    frag = np.array([d["fragility"] for d in data])
    cert = np.array([d["certified"] for d in data])
    align = np.array([d["alignment_score"] for d in data if d.get("alignment_score") is not None])
    x = np.array([d["inputs"][name] for d in data])
    low = limits[-1].get("low") if limits else None
    high = limits[-1].get("high") if limits else None
    outside = (x < (-np.inf if low is None else low)) | (x > (np.inf if high is None else high))
    n = len(data)
    return {
        "registered": bool(limits),
        "count": n,
        "avg_confidence": float(conf.mean()) if n else None,
        "avg_fragility": float(frag.mean()) if n else None,
        "avg_alignment": float(align.mean()) if len(align) else None,
        "alignment_count": len(align),
        "certified_count": int(cert.sum()),
        "certified_ratio": float(cert.mean()) if n else None,
        "volatility": round(float((frag.mean() + 1 - cert.mean()) / 2), 4) if n else None,
        "first_seen": min(e["time"] for e in issued) if n else None,
        "last_seen": max(e["time"] for e in issued) if n else None,
        "outside": int(outside.sum()),
        "value": {
            "n": n,
            "mean": float(x.mean()) if n else None,
            "std": float(x.std(ddof=1)) if n > 1 else None,
            "min": float(x.min()) if n else None,
            "max": float(x.max()) if n else None,
        },
    }


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_moments_of_a_random_stream_equal_numpy(seed: int, partitions: int) -> None:
    log = Log([Variables()], partitions)
    events = stream(seed, 400)
    for done in range(0, 400, 40):
        log.send(events[done : done + 40])
        for name in NAMES:
            expected = oracle(events[: done + 40], name)
            outside = expected.pop("outside")
            answer = log.get(f"/variables/{name}", exact=True)
            if not expected["count"] and not expected["registered"]:
                assert answer.get("status", 404) == 404 or answer["updates"]
                continue
            assert subset(expected, answer) == []
            if "out_of_range_at_least" in answer:
                assert 0 < answer["out_of_range"] <= outside
            else:
                assert answer["out_of_range"] == outside


def test_values_near_a_billion_keep_their_spread_and_huge_ones_break_nothing() -> None:
    log = Log([Variables()])
    values = [1e9 + i % 7 for i in range(200)]
    log.send(forecast(i, {"x": x, "y": (-1) ** i * 1.7e308}) for i, x in enumerate(values))
    value = log.get("/variables/x")["value"]
    assert value["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    huge = log.get("/variables/y")["value"]
    assert (huge["n"], huge["min"], huge["max"], huge["std"]) == (200, -1.7e308, 1.7e308, None)
    assert abs(huge["mean"]) < 1e308


# ---- laws of folds


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), parts=st.integers(2, 9))
def test_partials_of_any_split_merge_to_the_whole(seed: int, parts: int) -> None:
    whole, split = Log([Variables()], 1), Log([Variables()], parts)
    events = stream(seed, 80, models=12)
    whole.send(events)
    split.send(events)
    for name in NAMES:
        one, many = (log.get(f"/variables/{name}", exact=True) for log in (whole, split))
        if one.get("status") == 404:
            assert many == one
            continue
        for exact in ("count", "alignment_count", "certified_count", "first_seen", "last_seen", "registered_at", "low", "high"):
            assert one[exact] == many[exact]
        if not one.get("out_of_range_at_least") and not many.get("out_of_range_at_least"):
            assert one["out_of_range"] == many["out_of_range"]
        last = one.pop("value"), many.pop("value")
        assert [v["min"] for v in last[:1]] == [v["min"] for v in last[1:]]
        drop = {"out_of_range", "out_of_range_at_least"}
        assert subset({k: v for k, v in one.items() if k not in drop}, many) == []
        assert {k: pytest.approx(v, rel=1e-9) for k, v in last[0].items() if k not in ("last", "n")} == {
            k: v for k, v in last[1].items() if k not in ("last", "n")
        }
    for key in RANK_KEYS:
        assert whole.get("/variables/rank", key=key)["names"] == split.get("/variables/rank", key=key)["names"] or tied(whole, key)


def tied(log: Log, key: str) -> bool:
    """Whether two variables share a figure and the second of their first sight (partitions may order those differently)."""
    shown = [(v[key], v["first_seen"]) for v in log.get("/variables/rank", key=key)["variables"]]
    return len(set(shown)) < len(shown)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), prefix=st.integers(1, 100))
def test_redelivery_to_rows_that_have_absorbed_it_changes_nothing(seed: int, prefix: int) -> None:
    log = Log([Variables(VariableSettings(max_variables=3))])
    log.send(stream(seed, 100))
    before, done = all_rows(log), log.topics["forecasts"][0]
    again = Log([Variables(VariableSettings(max_variables=3))]).topics["forecasts"][0]  # no dedupe window: handlers see all
    for table in (again.schema.tables[0], *again.schema.folds[0].tables):
        again.spaces[table.index] = done.spaces[table.index]
    overflow = done.counters().overflow
    again.absorb(log.records[("forecasts", 0)][:prefix])
    assert all_rows(log) == before
    assert done.counters().overflow == overflow


@pytest.mark.parametrize("partitions", [1, 8])
def test_replay_from_offset_zero_gives_the_same_rows_and_publishes_the_same_copies(partitions: int) -> None:
    log = Log([Variables()], partitions)
    log.send(stream(5, 500))
    fresh = Log([Variables()], partitions)
    for number, p in enumerate(fresh.topics["forecasts"]):
        p.absorb(log.records[("forecasts", number)])
    assert all_rows(fresh) == all_rows(log)
    told = [(o.topic, o.key, o.value, o.partition) for p in fresh.topics["forecasts"] for o in p.outputs]
    assert sorted(told, key=str) == sorted([(o.topic, o.key, o.value, o.partition) for o in log.outputs], key=str)
    assert bool(told) == (partitions > 1)


@pytest.mark.parametrize("bound", [3, 100_000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_crash_after_any_row_of_a_flush_changes_nothing(seed: int, bound: int) -> None:
    def folded(records: list[Rec]) -> Partition:
        p = Log([Variables(VariableSettings(max_variables=bound))]).topics["forecasts"][0]
        p.absorb(records)
        return p

    log = Log([Variables(VariableSettings(max_variables=bound))])
    log.send(stream(seed, 90, names=[f"v{i}" for i in range(8)]))
    log.send([update(1000 + i, "v1", {"i": i}) for i in range(130)])
    records = log.records[("forecasts", 0)]
    for flushed, crash in ((0, 25), (20, 60), (70, 190)):
        source = folded(records[:flushed])
        kept = [(k, v) for k, v, _, _ in source.drain()]
        source.absorb(records[flushed:crash])
        flush = [(k, v) for k, v, _, _ in source.drain()]
        for k in range(len(flush) + 1):
            p = Log([Variables(VariableSettings(max_variables=bound))]).topics["forecasts"][0]
            for key, value in [*kept, *flush[:k]]:
                wire, tenant, parts = parse_wire_key(key)
                applied, _ = HEAD.unpack_from(value)
                p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, value[HEAD.size :])
            p.restored()
            p.absorb(records[max(0, flushed - 3) :])
            assert rows(p) == all_rows(log)[0], (flushed, crash, k)
            assert p.counters() == log.topics["forecasts"][0].counters()


# ---- contribution


def test_missing_fields_count_as_nought_and_a_null_alignment_is_left_out() -> None:
    log = Log([Variables()])
    log.send([forecast(1, {"a": 1.0}), forecast(2, {"a": 1.0}, confidence=1.0, fragility=0.5, certified=True, alignment_score=None)])
    log.send([forecast(3, {"a": 1.0}, alignment_score=0.0)])
    score = log.get("/variables/a")
    assert (score["count"], score["avg_confidence"], score["avg_fragility"], score["certified_ratio"]) == (3, 0.3333, 0.1667, 0.3333)
    assert (score["avg_alignment"], score["alignment_count"]) == (0.0, 1)
    assert log.get("/variables/a", exact=True)["avg_confidence"] == 1 / 3


def test_a_forecast_without_inputs_changes_no_variable_but_counts_for_its_model() -> None:
    fold = Variables()
    log = Log([fold])
    log.send([forecast(1, model="m"), forecast(2, {"a": 1.0}, model="m"), forecast(3, {"a": 1.0})])
    assert [v["count"] for v in log.get("/variables")["variables"]] == [2]
    reader = log.reader()
    assert [reader.rows(fold.kept.models, (m,))[0].issued for m in ("m", "")] == [2, 1]


def test_a_late_forecast_moves_the_first_sight_but_never_the_last_value() -> None:
    log = Log([Variables()], 8)
    log.send([forecast(i, {"a": float(i)}, START_US + at * 1_000_000, model=f"m{i}") for i, at in enumerate((50, 90, 10, 90, 60))])
    answer = log.get("/variables/a")
    assert (answer["first_seen"], answer["last_seen"]) == (rfc3339(START_US + 10_000_000), rfc3339(START_US + 90_000_000))
    assert answer["value"]["last"] in (1.0, 3.0)
    one = Log([Variables()])
    one.send([forecast(i, {"a": float(i)}, START_US + at * 1_000_000) for i, at in enumerate((50, 90, 10, 90, 60))])
    assert one.get("/variables/a")["value"]["last"] == 3.0


def test_a_confidence_of_seven_and_a_half_is_a_dead_letter_and_the_next_forecast_is_folded() -> None:
    log = Log([Variables()])
    good, bad = forecast(1, {"a": 1.0}), json.dumps({"specversion": "1.0", "source": "t", **forecast(0, {"a": 1.0}, confidence=7.5)})
    log.send([bad.encode(), good], topic="forecasts")
    assert "confidence" in log.dead_letters()[0][1]["error"]
    assert log.get("/variables/a")["count"] == 1


def test_a_name_of_another_tenant_is_not_seen() -> None:
    log = Log([Variables()])
    log.send([forecast(1, {"a": 1.0}, tenant="other")])
    assert log.get("/variables/a")["status"] == 404
    assert log.get("/variables") == {"variables": [], "unknown": {}, "overflow": 0, "cursor": None, "as_of": None}
    assert log.get("/variables/rank")["names"] == log.get("/variables/drift")["flagged"] == []


def test_beyond_the_bound_new_names_are_overflow_and_the_kept_ones_go_on() -> None:
    log = Log([Variables(VariableSettings(max_variables=2))])
    log.send(forecast(i, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}) for i in range(3))
    assert [(v["name"], v["count"]) for v in log.get("/variables")["variables"]] == [("a", 3), ("b", 3)]
    assert log.get("/variables")["overflow"] == log.topics["forecasts"][0].counters().overflow == 6
    log.send([registration(10, "e", kind="k")])
    assert log.get("/variables")["overflow"] == 7


# ---- registry


def test_registration_before_or_after_the_forecasts_gives_the_same_answer() -> None:
    events = [forecast(i, {"a": float(i)}, model=f"m{i}") for i in range(6)]
    known = registration(50, "a", kind="market", low=1.0, high=4.0, default=2.0, description="x")
    answers = []
    for order in ([known, *events], [*events, known], [*events[:3], known, *events[3:]]):
        for partitions in (1, 8):
            log = Log([Variables()], partitions)
            log.send(order)
            answers.append(log.get("/variables/a"))
    assert answers[0]["out_of_range"] == 2
    assert (answers[0]["registered"], answers[0]["kind"], answers[0]["low"], answers[0]["registered_at"]) == (
        True,
        "market",
        1.0,
        known["time"],
    )
    assert all(subset({**answer, "as_of": answers[0]["as_of"]}, answers[0]) == [] for answer in answers)


def test_out_of_range_stays_exact_for_thousands_once_the_limits_are_known_in_every_partition() -> None:
    log = Log([Variables()], 8)
    log.send([registration(0, "a", low=0.0, high=1.0)])
    log.send(forecast(i, {"a": (-1.0, 0.0, 0.5, 1.0, 2.0)[i % 5]}, model=f"m{i % 40}") for i in range(1, 1001))
    answer = log.get("/variables/a")
    assert (answer["count"], answer["out_of_range"], "out_of_range_at_least" in answer) == (1000, 400, False)


def test_out_of_range_of_a_long_past_is_a_lower_bound_and_says_so() -> None:
    log = Log([Variables()])
    log.send(forecast(i, {"a": float(i % 100), "all": 5.0, "few": 9.0 if i in (3, 700) else 0.5}) for i in range(1000))
    log.send(registration(2000 + i, name, low=0.0, high=1.0) for i, name in enumerate(("a", "all", "few")))
    a, all_, few = (log.get(f"/variables/{name}") for name in ("a", "all", "few"))
    assert (a["out_of_range"], a["out_of_range_at_least"]) == (EXTREMES, True)
    assert (all_["out_of_range"], few["out_of_range"]) == (1000, 2)
    assert "out_of_range_at_least" not in all_ and "out_of_range_at_least" not in few
    log.send([forecast(5000, {"a": 7.0, "all": 0.5, "few": 7.0})])
    assert [log.get(f"/variables/{n}")["out_of_range"] for n in ("a", "all", "few")] == [EXTREMES + 1, 1000, 3]


def test_registering_again_replaces_the_fields_but_an_older_registration_does_not() -> None:
    log = Log([Variables()], 8)
    log.send([registration(5, "a", kind="k", low=0.0, high=1.0), forecast(6, {"a": 3.0}, model="m")])
    assert log.get("/variables/a")["out_of_range"] == 1
    log.send([registration(9, "a", high=5.0)])
    answer = log.get("/variables/a")
    assert (answer["kind"], answer["low"], answer["high"], answer["out_of_range"]) == (None, None, 5.0, 0)
    log.send([registration(7, "a", kind="late", high=1.0)])
    assert log.get("/variables/a")["high"] == 5.0
    log.send([registration(10, "a")])
    log.send([forecast(11, {"a": 1e6}, model="m2")])
    assert log.get("/variables/a")["out_of_range"] == 0


def test_of_registrations_in_several_partitions_the_latest_is_in_force() -> None:
    early, late, twin = Registration(kind="early", time_us=1), Registration(kind="late", time_us=2), Registration(kind="twin", time_us=2)
    assert [newest(found) for found in ([early, late], [late, early], [late, twin], [])] == [late, late, twin, None]


def test_limits_the_wrong_way_round_are_a_dead_letter() -> None:
    log = Log([Variables()])
    log.send([registration(1, "a", low=2.0, high=1.0)])
    assert "low" in log.dead_letters()[0][1]["error"]
    assert log.get("/variables/a")["status"] == 404


def test_a_registered_variable_without_forecasts_is_shown_with_nulls_and_never_ranked() -> None:
    log = Log([Variables()])
    log.send([registration(1, "a", kind="k"), forecast(2, {"b": 1.0})])
    answer = log.get("/variables/a")
    assert (answer["count"], answer["avg_confidence"], answer["volatility"], answer["trust_weight"], answer["drift"]) == (
        0,
        None,
        None,
        None,
        False,
    )
    assert (answer["first_seen"], answer["value"]["n"], answer["value"]["mean"], answer["updates"]) == (None, 0, None, [])
    assert [v["name"] for v in log.get("/variables")["variables"]] == ["a", "b"]
    assert [v["name"] for v in log.get("/variables", min_count=1)["variables"]] == ["b"]
    assert log.get("/variables/rank")["names"] == ["b"]
    assert log.get("/variables/rank", min_count=0, order="asc")["names"] == ["b", "a"]


def test_in_strict_mode_unregistered_names_are_listed_but_neither_scored_ranked_nor_flagged() -> None:
    log = Log([strict()], 8)
    log.send(forecast(i, {"a": 1.0, "b": 1.0}, fragility=0.9, model=f"m{i}") for i in range(3))
    assert log.get("/variables")["unknown"] == {"a": 3, "b": 3}
    assert log.get("/variables")["variables"] == log.get("/variables/rank")["names"] == log.get("/variables/drift")["flagged"] == []
    one = log.get("/variables/a")
    assert (one["count"], one["avg_fragility"], one["drift"], one["trust_weight"], one["registered"]) == (3, None, False, None, False)
    log.send([registration(9, "a")])
    assert log.get("/variables")["unknown"] == {"b": 3}
    assert log.get("/variables/rank")["names"] == log.get("/variables/drift")["flagged"] == ["a"]
    assert log.get("/variables/a")["avg_fragility"] == 0.9


def test_performance_updates_are_kept_for_audit_and_change_no_score() -> None:
    log = Log([Variables()])
    log.send([forecast(1, {"a": 1.0}, confidence=0.5)])
    before = log.get("/variables/a")
    log.send(update(i, "a", {"score": i, "why": ["x", None]}) for i in range(2, 252))
    after = log.get("/variables/a")
    assert [u["new_score"]["score"] for u in after["updates"]] == list(range(152, 252))
    assert after["updates"][-1] == {"id": "u251", "time": rfc3339(START_US + 251_000_000), "new_score": {"score": 251, "why": ["x", None]}}
    assert subset({k: v for k, v in before.items() if k not in ("updates", "as_of")}, after) == []
    assert log.get("/variables")["variables"][0]["count"] == 1
    assert all(len(state) < 1000 for _, state in all_rows(log)[0].values())
    log.send([update(300, "new", {"blob": "x" * 60_000})])
    assert "new_score" in log.dead_letters()[0][1]["error"]


# ---- lists, ranks, drift


def test_lists_are_filtered_and_paged_by_name_and_stable_under_new_names() -> None:
    log = Log([Variables()], 8)
    log.send(forecast(i, {f"v{j}": 1.0 for j in range(i % 10 + 1)}, model=f"m{i}") for i in range(30))
    log.send([registration(100, "v1", kind="x"), registration(101, "v3", kind="y")])
    first = log.get("/variables", limit=4)
    assert [v["name"] for v in first["variables"]] == ["v0", "v1", "v2", "v3"]
    log.send([forecast(200, {"v00": 1.0})])
    second = log.get("/variables", limit=100, cursor=first["cursor"])
    assert ([v["name"] for v in second["variables"]], second["cursor"]) == (["v4", "v5", "v6", "v7", "v8", "v9"], None)
    assert [v["name"] for v in log.get("/variables", kind="y")["variables"]] == ["v3"]
    assert [v["name"] for v in log.get("/variables", registered=True)["variables"]] == ["v1", "v3"]
    assert [v["name"] for v in log.get("/variables", registered=False, min_count=21)["variables"]] == ["v0", "v2"]
    assert log.get("/variables", exact=True, kind="x")["variables"][0]["certified_ratio"] == 0.0


def test_ranks_put_null_last_both_ways_and_break_ties_by_first_sight_then_place_then_name() -> None:
    log = Log([Variables()])
    log.send(
        [
            forecast(5, {"late": 1.0, "first": 1.0}, alignment_score=0.5, confidence=0.5),
            forecast(6, {"none": 1.0}, confidence=0.9),
            forecast(7, {"z": 1.0, "y": 1.0}, alignment_score=0.9, confidence=0.1),
            forecast(8, {"first": 1.0}, START_US, alignment_score=0.5, confidence=0.5),
        ]
    )
    assert log.get("/variables/rank", key="avg_alignment")["names"] == ["z", "y", "first", "late", "none"]
    assert log.get("/variables/rank", key="avg_alignment", order="asc")["names"] == ["first", "late", "z", "y", "none"]
    answer = log.get("/variables/rank", limit=2)
    assert (answer["key"], answer["order"], answer["names"]) == ("avg_confidence", "desc", ["none", "first"])
    assert [(v["rank"], v["name"], v["avg_confidence"]) for v in answer["variables"]] == [(1, "none", 0.9), (2, "first", 0.5)]
    assert log.get("/variables/rank", min_count=2)["names"] == ["first"]


@pytest.mark.parametrize("key", RANK_KEYS)
def test_every_rank_key_orders_by_the_figure_shown(key: str) -> None:
    log = Log([Variables()], 4)
    log.send(stream(9, 200, names=[f"v{i}" for i in range(12)]))
    for order, sign in (("desc", -1), ("asc", 1)):
        shown = [v[key] for v in log.get("/variables/rank", key=key, order=order)["variables"]]
        assert len(shown) == 12
        assert shown == sorted(shown, key=lambda v: sign * v)


def test_an_unknown_rank_key_names_the_allowed_ones() -> None:
    with pytest.raises(BadParameter, match=r"avg_confidence.*trust_weight") as caught:
        Log([Variables()]).get("/variables/rank", key="nonsense")
    assert caught.value.parameter == "key"


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_threshold_outside_nought_to_one_is_a_bad_parameter(threshold: float) -> None:
    with pytest.raises(BadParameter) as caught:
        Log([Variables()]).get("/variables/drift", threshold=threshold)
    assert caught.value.parameter == "threshold"


def test_drift_says_by_which_figure_and_leaves_out_the_exact_limits() -> None:
    log = Log([Variables()])
    log.send(forecast(i, {"exact": 1.0}, fragility=0.3, certified=i % 10 < 7) for i in range(10))
    log.send(forecast(20 + i, {"frail": 1.0}, fragility=0.3001, certified=True) for i in range(2))
    log.send(forecast(30 + i, {"bare": 1.0}, fragility=0.1, certified=i < 6) for i in range(10))
    log.send(forecast(50 + i, {"noise": 1.0}, fragility=0.30004, certified=True) for i in range(2))
    answer = log.get("/variables/drift", threshold=0.3)
    assert {v["name"]: v["by"] for v in answer["variables"]} == {"frail": ["fragility"], "bare": ["certified"]}
    assert (answer["flagged"], answer["threshold"]) == (["bare", "frail"], 0.3)
    assert log.get("/variables/drift", threshold=0.3, min_count=3)["flagged"] == ["bare"]
    assert log.get("/variables/drift")["threshold"] == 0.25
    assert log.get("/variables/drift")["flagged"] == ["bare", "exact", "frail", "noise"]


def test_one_minus_the_threshold_is_rounded_too() -> None:
    log = Log([Variables()])
    log.send(forecast(i, {"a": 1.0}, certified=i < 41) for i in range(50))
    assert 1 - 0.18 > 0.82  # as a double
    assert log.get("/variables/drift", threshold=0.18)["flagged"] == []
    assert log.get("/variables/drift", threshold=0.1799)["flagged"] == ["a"]


def test_the_deployments_threshold_decides_the_flag_and_the_weight_never_below_a_tenth() -> None:
    for threshold, flag, weight in ((0.1, True, 0.1), (0.98, False, 0.05)):
        log = Log([Variables(VariableSettings(drift_threshold=threshold))])
        log.send([forecast(1, {"a": 1.0}, confidence=0.0, fragility=0.95, certified=True)])
        score = log.get("/variables/a")
        assert (score["drift"], score["trust_weight"]) == (flag, weight)
        assert bool(log.get("/variables/drift")["flagged"]) == flag


# ---- the alert


def drifting(log: Log, level: str, name: str = "a") -> Any:
    fold: Any = log.folds[0]
    rule = fold.rules[0]
    return rule.judge(log.reader(), (name,), Standing(level))


def test_the_alert_opens_once_with_twenty_forecasts_and_resolves_only_inside_both_limits() -> None:
    log = Log([Variables()], 8)
    n = 0

    def send(times: int, fragility: float, certified: bool) -> None:
        nonlocal n
        log.send(forecast(n + i, {"a": 1.0}, fragility=fragility, certified=certified, model=f"m{i}") for i in range(times))
        n += times

    assert drifting(log, "ok") is None
    send(19, 0.3, True)
    assert drifting(log, "ok") is None
    send(1, 0.3, True)
    opened = drifting(log, "ok")
    assert (opened.level, opened.value, opened.threshold) == ("warning", 0.3, 0.25)
    assert "Variable a" in opened.message and "0.3" in opened.message and opened.message.endswith(".")
    assert drifting(log, "warning") is None
    send(20, 0.18, True)  # mean .24: between the limits
    assert (drifting(log, "ok"), drifting(log, "warning")) == (None, None)
    send(8, 0.18, True)  # mean .23
    assert log.get("/variables/a")["avg_fragility"] == 0.23
    resolved = drifting(log, "warning")
    assert (resolved.level, resolved.value, resolved.threshold) == ("ok", 0.23, 0.25)
    assert drifting(log, "ok") is None
    send(12, 0.23, False)  # 48 of 60 certified
    assert drifting(log, "ok") is None
    assert drifting(log, "warning") is not None
    send(5, 0.23, False)  # 48 of 65: .7385
    opened = drifting(log, "ok")
    assert (opened.level, opened.value, opened.threshold) == ("warning", 0.7385, 0.75)
    send(1, 0.23, True)
    send(2, 0.23, True)  # 51 of 68: .75, still below .77
    assert (drifting(log, "ok"), drifting(log, "warning")) == (None, None)
    send(6, 0.23, True)  # 57 of 74: .7703
    assert drifting(log, "warning").level == "ok"


def test_without_hysteresis_the_alert_resolves_at_the_limit_itself() -> None:
    log = Log([Variables(VariableSettings(drift_hysteresis=0.0))])
    log.send(forecast(i, {"a": 1.0}, fragility=0.25, certified=i % 4 > 0) for i in range(40))
    assert drifting(log, "ok") is None
    assert drifting(log, "warning").level == "ok"


def test_in_strict_mode_an_unregistered_variable_raises_nothing_and_an_open_alert_ends() -> None:
    log = Log([strict()])
    log.send(forecast(i, {"a": 1.0}, fragility=0.9) for i in range(30))
    assert drifting(log, "ok") is None
    ended = drifting(log, "warning")
    assert (ended.level, ended.reason) == ("ok", "settings_changed")
    log.send([registration(40, "a")])
    assert drifting(log, "ok").level == "warning"
    assert drifting(log, "warning") is None


def test_the_rules_subject_is_the_name_as_in_record_keys_and_a_registration_makes_it_due() -> None:
    fold = Variables()
    rule = fold.rules[0]
    assert (rule.name, rule.topic, rule.table, rule.subject(("c|%",))) == ("drift.variable", "forecasts", fold.kept.partials, "c%7C%25")
    log = Log([fold])
    log.send([registration(1, "a")])
    assert ("a",) in log.topics["forecasts"][0].spaces[rule.table.index]["golden"]


# ---- the state itself


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e308, 1e308) | st.sampled_from([0.0, 1.0, -1.0]), max_size=60), st.floats(-2, 2), st.floats(0, 3))
def test_least_and_greatest_values_count_what_is_outside_or_a_lower_bound_of_it(values: list[float], low: float, width: float) -> None:
    state = Partial()
    for x in values:
        state.past_n += 1
        state.take_in(x)
    outside = sum(not low <= x <= low + width for x in values)
    found, exact = state.beyond(low, low + width)
    assert found == outside if exact else EXTREMES <= found <= outside
    assert exact or len(values) > EXTREMES
    state.limit(low, low + width, 5)
    state.limit(-9.0, 9.0, 4)
    assert (state.outside, state.exact, state.low) == (found, exact, low)
    assert state.lows == sorted(values)[:EXTREMES] and state.highs == sorted(values)[-EXTREMES:]


def test_a_row_survives_the_changelog_as_it_is_and_stays_small() -> None:
    log = Log([Variables()])
    log.send(stream(4, 300))
    fold: Any = log.folds[0]
    state = next(iter(log.reader().scan(fold.kept.partials)))[1][0]
    raw = msgspec.msgpack.encode(state)
    assert msgspec.msgpack.decode(raw, type=Partial) == state
    assert len(raw) < 450
    assert Merged("x", [Partial()], None).first_us is None
