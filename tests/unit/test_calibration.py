"""Calibration against plain lists of resolutions, joins and what is remembered, and the ordered alert."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import forecast_memory
from tables.calibration import LAST, Calibration, Forecasts, Recent, bin_of
from tables.forecast_memory import ISSUED, RESOLVED, Remembered, digest_of, find, remember, row_of
from tables.partition import HEAD, Partition
from tables.rows import Row, parse_wire_key
from tables.times import DAY_US
from tables.variable_states import VariableSettings
from tables.variables import Variables
from tests.forecast_events import START_US, Event, all_rows, forecast, resolution, rows
from tests.harness import VECTORS, Log, Rec, subset


def folds() -> list[Any]:
    variables = Variables()
    return [variables, Forecasts(variables.settings, variables.kept.models)]


def stream(seed: int, n: int, models: int = 2) -> list[Event]:
    """Forecasts and resolutions: in either order, repeated, of unknown ids, with and without probability and actual value."""
    rng = random.Random(seed)
    found: list[Event] = []
    for i in range(n):
        model = {"model": f"m{rng.randrange(models)}"} if rng.random() < 0.9 else {}
        if rng.random() < 0.5:
            data: dict[str, Any] = {"confidence": rng.choice([rng.random(), 0.1, 0.3, 0.7, 1.0, 0.0])}
            if rng.random() < 0.6:
                data["prediction"] = rng.gauss(10, 3)
            found.append(forecast(i, {"a": 1.0, "b": 2.0} if rng.random() < 0.8 else {}, **model, **data))
            found[-1]["data"]["forecast_id"] = rng.choice([f"f{rng.randrange(n // 4)}", "unknown"] if rng.random() < 0.1 else [f"f{rng.randrange(n // 4)}"])
        else:
            data = {"probability": rng.choice([rng.random(), 0.2, 0.6])} if rng.random() < 0.4 else {}
            if rng.random() < 0.5:
                data["actual"] = rng.gauss(10, 3)
            name = rng.choice([f"f{rng.randrange(n // 4)}"] * 9 + ["unknown"])
            found.append(resolution(i, name, rng.random() < 0.6, **model, **data))
    return found


def oracle(events: list[Event], model: str | None) -> dict[str, Any]:
    """Figures of one model (None = all), from the raw events in log order."""
    issued: dict[tuple[str, str], Any] = {}
    resolved: set[tuple[str, str]] = set()
    pairs, errors = [], []
    basis = {"probability": 0, "confidence": 0}
    n, again, unjoined = 0, 0, 0
    for e in events:
        d = e["data"]
        key = (d.get("model", ""), d["forecast_id"])
        mine = model is None or key[0] == model
        if e["type"] == "forecast.issued.v1":
            if key[1] != "unknown" and key not in resolved:
                issued[key] = d
            continue
        if key in resolved:
            again += mine
            continue
        known = issued.get(key)
        if key[1] != "unknown":
            resolved.add(key)
        if not mine:
            continue
        n += 1
        p = d.get("probability", known and known["confidence"])
        if p is None:
            unjoined += 1
        else:
            basis["probability" if "probability" in d else "confidence"] += 1
            pairs.append((p, d["success"]))
        if "actual" in d and known and known.get("prediction") is not None:
            errors.append(known["prediction"] - d["actual"])
    ps, ys = np.array([p for p, _ in pairs]), np.array([float(y) for _, y in pairs])
    place = np.minimum(np.digitize(ps, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]), 9) if len(ps) else np.array([], int)
    clipped = np.clip(ps, 1e-12, 1 - 1e-12)
    bins = [
        {
            "n": int((place == k).sum()),
            "mean_p": float(ps[place == k].mean()) if (place == k).any() else None,
            "rate": float(ys[place == k].mean()) if (place == k).any() else None,
        }
        for k in range(10)
    ]
    wrong = np.array(errors)
    return {
        "n": len(ps),
        "basis": basis,
        "brier": float(((ps - ys) ** 2).mean()) if len(ps) else None,
        "log_loss": float(-np.log(np.where(ys > 0, clipped, 1 - clipped)).mean()) if len(ps) else None,
        "ece": sum(b["n"] / len(ps) * abs(b["mean_p"] - b["rate"]) for b in bins if b["n"]) if len(ps) else None,
        "bins": bins,
        "errors": len(wrong),
        "mean_error": float(wrong.mean()) if len(wrong) else None,
        "mae": float(np.abs(wrong).mean()) if len(wrong) else None,
        "rmse": float(np.sqrt((wrong**2).mean())) if len(wrong) else None,
        "unjoined": unjoined,
        "resolved": n,
        "re_resolved": again,
    }


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_stream_gives_numpys_figures_by_model_and_for_all_with_duplicates(seed: int, partitions: int) -> None:
    log = Log(folds(), partitions)
    events = stream(seed, 600)
    for done in range(0, 600, 150):
        log.send(events[done : done + 150])
        log.send(events[done : done + 40])
        for model in (None, "m0", "m1", ""):
            answer = log.get("/forecasts/calibration", **({} if model is None else {"model": model}))
            expected = oracle(events[: done + 150], model)
            assert subset(expected, answer) == [], model
            assert [(b["low"], b["high"]) for b in answer["bins"]] == [(k / 10, (k + 1) / 10) for k in range(10)]
    whole = log.get("/forecasts/calibration")
    assert min(whole["re_resolved"], whole["unjoined"], *whole["basis"].values(), whole["errors"]) > 5


def test_a_probability_of_its_own_wins_over_the_confidence_of_the_forecast() -> None:
    log = Log(folds())
    log.send([forecast(1, model="m", confidence=0.9), forecast(2, model="m", confidence=0.6)])
    log.send([resolution(3, "f1", True, model="m", probability=0.2), resolution(4, "f2", True, model="m")])
    answer = log.get("/forecasts/calibration", model="m")
    assert answer["basis"] == {"probability": 1, "confidence": 1}
    assert answer["brier"] == pytest.approx((0.64 + 0.16) / 2)


def test_forecasts_of_another_model_or_tenant_and_unknown_ids_never_join() -> None:
    log = Log(folds(), 4)
    log.send([forecast(1, model="m"), forecast(2, model="n"), forecast(3, tenant="other", model="m")])
    log.send([{**forecast(4, model="m"), "data": {"model": "m", "confidence": 0.5}}])
    log.send([resolution(5, "f2", True, model="m"), resolution(6, "f3", True, model="m"), resolution(7, "unknown", True, model="m")])
    log.send([resolution(8, "unknown", False, model="m"), resolution(9, "f1", True)])
    answer = log.get("/forecasts/calibration")
    assert (answer["n"], answer["unjoined"], answer["re_resolved"], answer["resolved"]) == (0, 5, 0, 5)
    assert (answer["brier"], answer["log_loss"], answer["ece"], answer["mae"]) == (None, None, None, None)


def test_a_model_nobody_has_seen_is_404_and_one_without_resolutions_is_empty() -> None:
    log = Log(folds())
    assert log.get("/forecasts/calibration")["n"] == 0
    assert log.get("/forecasts/calibration", model="m")["status"] == 404
    log.send([forecast(1, model="m")])
    assert log.get("/forecasts/calibration", model="m")["n"] == 0


def test_a_forecast_issued_again_counts_as_issued_last_until_it_is_resolved() -> None:
    log = Log(folds())
    for i, confidence in enumerate((0.9, 0.7)):
        log.send([{**forecast(i, model="m", confidence=confidence), "data": {"forecast_id": "x", "model": "m", "confidence": confidence}}])
    log.send([resolution(5, "x", True, model="m")])
    log.send([{**forecast(6), "data": {"forecast_id": "x", "model": "m", "confidence": 0.1}}, resolution(7, "x", True, model="m")])
    answer = log.get("/forecasts/calibration", model="m")
    assert (answer["brier"], answer["n"], answer["re_resolved"]) == (pytest.approx(0.09), 1, 1)


def test_a_forecast_joins_for_thirty_days_of_event_time_and_its_resolution_is_remembered_as_long() -> None:
    log = Log(folds())
    log.send([forecast(1, model="m"), forecast(2, model="m")])
    log.send([resolution(3, "f1", True, START_US + 1_000_000 + 30 * DAY_US, model="m")])
    log.send([resolution(4, "f2", True, START_US + 2_000_001 + 30 * DAY_US, model="m", probability=0.5)])
    log.send([resolution(5, "f1", True, START_US + 59 * DAY_US, model="m"), resolution(6, "f2", True, START_US + 61 * DAY_US, model="m", probability=0.5)])
    answer = log.get("/forecasts/calibration", model="m")
    assert (answer["basis"], answer["re_resolved"], answer["resolved"]) == ({"probability": 2, "confidence": 1}, 1, 3)


def test_the_last_hundred_thousand_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_memory, "KEPT_N", 100)
    monkeypatch.setattr(forecast_memory, "ROWS", 8)
    fold = Forecasts()
    log = Log([fold])
    log.send(forecast(i, {"a": 1.0}, model="m") for i in range(1, 301))
    log.send(resolution(1000 + i, f"f{i}", True, model="m") for i in (200, 201, 300))
    answer = log.get("/forecasts/calibration", model="m")
    assert (answer["unjoined"], answer["basis"]["confidence"]) == (1, 2)
    log.send([forecast(2000 + i, {"a": 1.0}, model="m") for i in range(300)])
    space = log.topics["forecasts"][0].spaces[fold.memory.index]["golden"]
    kept = sum(len(fold.memory.load(row).entries) for row in space.values()) // (forecast_memory.ENTRY.size + 3)
    assert len(space) <= 8 and 100 <= kept <= 130
    assert forecast_memory.KEPT_N == 100 and fold.memory.load(next(iter(space.values()))).entries


def test_input_names_are_remembered_for_the_join_unless_there_are_too_many() -> None:
    state = Remembered()
    few, many = {"a|%": 1.0, "ü": 2.0}, {f"a very long name {i}": 1.0 for i in range(1000)}
    remember(state, digest_of("m", "1"), 1, 5, 0.25, None, few, ISSUED)
    remember(state, digest_of("m", "2"), 2, 5, 0.5, -7.5, many, ISSUED)
    remember(state, digest_of("m", "3"), 3, 5, 0.5, 0.0, {}, ISSUED)
    found = [find(state, digest_of("m", str(i)), 3, 5) for i in (1, 2, 3, 4)]
    assert [one and one.inputs for one in found] == [["a|%", "ü"], None, [], None]
    assert found[0] == (1, 5, 0.25, None, False, ["a|%", "ü"])
    assert found[1] is not None and (found[1].prediction, found[1].confidence) == (-7.5, 0.5)
    assert find(state, digest_of("m1", ""), 3, 5) is None and digest_of("m", "1") != digest_of("m1", "")


def test_a_row_never_grows_over_its_bound_and_forgets_the_oldest_first() -> None:
    state = Remembered()
    names = {f"a very long name {i}": 1.0 for i in range(300)}
    for i in range(1, 40):
        remember(state, digest_of("m", str(i)), i, 5, 0.5, None, names, ISSUED)
    assert len(state.entries) < 60_000
    known = [find(state, digest_of("m", str(i)), 39, 5) is not None for i in range(1, 40)]
    assert known == sorted(known) and 5 < sum(known) < 39


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 3)), max_size=60))
def test_what_is_remembered_is_what_a_dictionary_would(steps: list[tuple[int, bool, int]]) -> None:
    state, known = Remembered(), dict[int, tuple[float, bool]]()
    for number, (name, done, _) in enumerate(steps, 1):
        remember(state, digest_of("m", str(name)), number, 0, number / 100, None, {"x": 1.0}, RESOLVED if done else ISSUED)
        known[name] = (number / 100, done)
    for name in range(13):
        found = find(state, digest_of("m", str(name)), len(steps), 0)
        assert (None if found is None else (found.confidence, found.resolved)) == known.get(name)
    assert state.entries == msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Remembered).entries


def test_of_resolutions_without_forecasts_a_row_keeps_the_last_ones() -> None:
    rng, state, plain = random.Random(5), Remembered(), dict[int, bool]()
    forgotten = 0
    for _ in range(4000):
        name, done = rng.randrange(120), rng.random() < 0.8
        remember(state, digest_of("m", str(name)), 1, 0, 0.5, None, {"x" * rng.randrange(9): 1.0}, RESOLVED if done else ISSUED)
        plain.pop(name, None)
        oldest = [one for one, resolved in plain.items() if resolved]
        if done and len(oldest) == forecast_memory.MOST_RESOLVED:
            del plain[oldest[0]]
            forgotten += 1
        plain[name] = done
        known = {one: found.resolved for one in range(120) if (found := find(state, digest_of("m", str(one)), 1, 0)) is not None}
        assert known == plain and state.resolved == sum(plain.values()) <= forecast_memory.MOST_RESOLVED
    assert forgotten > 100


def test_rows_are_spread_evenly_and_stay_in_their_number() -> None:
    keys = [int(row_of(digest_of("m", str(i)))[0]) for i in range(50_000)]
    assert min(keys) >= 0 and max(keys) < forecast_memory.ROWS
    assert np.bincount(keys, minlength=forecast_memory.ROWS).max() < 16


@pytest.mark.parametrize(("p", "k"), [(0.0, 0), (0.0999999, 0), (0.1, 1), (0.3, 3), (np.nextafter(0.3, 0), 2), (0.7, 7), (0.9, 9), (1.0, 9)])
def test_bins_take_in_their_lower_edge(p: float, k: int) -> None:
    assert bin_of(float(p)) == k


def test_errors_beyond_a_double_are_null_and_never_an_invalid_answer() -> None:
    log = Log(folds())
    log.send([forecast(1, model="m", prediction=1e300), forecast(2, model="m", prediction=-1.7e308)])
    log.send([resolution(3, "f1", True, model="m", actual=0.0), resolution(4, "f2", True, model="m", actual=1.7e308)])
    answer = log.get("/forecasts/calibration", model="m")
    assert (answer["errors"], answer["mae"], answer["rmse"]) == (1, 1e300, None)
    msgspec.json.encode(answer)


# ---- laws of folds


def test_replay_gives_the_same_rows_and_redelivery_changes_nothing() -> None:
    log = Log(folds(), 3)
    log.send(stream(5, 600))
    before = all_rows(log)
    again = Log(folds(), 3)
    for number, p in enumerate(again.topics["forecasts"]):
        p.absorb(log.records[("forecasts", number)])
    assert all_rows(again) == before
    fresh = Log(folds(), 3)
    for number, p in enumerate(fresh.topics["forecasts"]):
        done = log.topics["forecasts"][number]
        for table in (fresh.schema.tables[0], *(t for f in fresh.schema.folds for t in f.tables)):
            p.spaces[table.index] = done.spaces[table.index]
        p.absorb(log.records[("forecasts", number)])  # no dedupe window: the handlers see all of it
    assert all_rows(log) == before
    assert [o for p in fresh.topics["forecasts"] for o in p.outputs if o.topic == "alerts"] == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_crash_after_any_row_of_a_flush_changes_nothing(seed: int) -> None:
    def folded(records: list[Rec]) -> Partition:
        p = Log(folds()).topics["forecasts"][0]
        p.absorb(records)
        return p

    log = Log(folds())
    log.send(stream(seed, 120, models=2))
    records = log.records[("forecasts", 0)]
    for flushed, crash in ((0, 40), (30, 100)):
        source = folded(records[:flushed])
        kept = [(k, v) for k, v, _, _ in source.drain()]
        source.absorb(records[flushed:crash])
        flush = [(k, v) for k, v, _, _ in source.drain()]
        for k in range(0, len(flush) + 1, 3):
            p = Log(folds()).topics["forecasts"][0]
            for key, value in [*kept, *flush[:k]]:
                wire, tenant, parts = parse_wire_key(key)
                applied, _ = HEAD.unpack_from(value)
                p.space(p.schema.by_wire[wire], tenant)[parts] = Row(tenant, parts, applied, applied, value[HEAD.size :])
            p.restored()
            p.absorb(records[max(0, flushed - 3) :])
            assert rows(p) == all_rows(log)[0], (flushed, crash, k)


def test_models_beyond_the_bound_count_as_overflow_and_leave_the_others_alone() -> None:
    log = Log([Forecasts(VariableSettings(max_variables=2))])
    log.send(resolution(i, f"f{i}", True, model=f"m{i % 4}", probability=0.5) for i in range(40))
    answer = log.get("/forecasts/calibration")
    assert (answer["n"], log.topics["forecasts"][0].counters().overflow) == (20, 20)


# ---- the alert


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.35, 0.7, 0.95, 1.0]) | st.floats(0, 1), st.booleans()), max_size=250))
def test_the_error_of_the_last_hundred_is_that_of_a_list_and_leaves_nothing_behind(pairs: list[tuple[float, bool]]) -> None:
    state = Recent()
    for p, y in pairs:
        state.add(p, y)
    last = Calibration()
    for p, y in pairs[-LAST:]:
        last.by_probability += 1
        last.add(p, y)
    assert state.ece == pytest.approx(last.ece or 0.0, abs=1e-12)
    assert len(state.ring) == min(LAST, len(pairs))
    assert len(msgspec.msgpack.encode(state)) < 1200


def test_the_alert_opens_above_point_two_with_fifty_and_resolves_at_point_fifteen_and_a_replay_says_the_same() -> None:
    log = Log(folds(), 2)
    log.send(resolution(i, f"f{i}", False, model="m|1", probability=0.5) for i in range(49))
    assert log.alerts("forecast.calibration") == []
    log.send([resolution(49, "f49", False, model="m|1", probability=0.5)])
    (opened,) = log.alerts("forecast.calibration")
    assert (opened["type"], opened["severity"], opened["subject"], opened["value"], opened["threshold"]) == ("alert.opened.v1", "info", "m%7C1", 0.5, 0.2)
    assert (opened["derivedfrom"], opened["period"], opened["evidence"]["offset"]) == ("x49", "2026-03-02", 49)
    log.send(resolution(100 + i, f"g{i}", True, model="m|1", probability=0.5) for i in range(26))
    assert len(log.alerts("forecast.calibration")) == 1  # 26 of 76 came true
    log.send([resolution(200, "h", True, model="m|1", probability=0.5)])  # 27 of 77
    _, resolved = log.alerts("forecast.calibration")
    assert (resolved["type"], resolved["severity"], resolved["previous"], resolved["period"]) == ("alert.resolved.v1", "info", "info", "2026-03-02")
    assert (resolved["value"], resolved["alert_id"]) == (pytest.approx(0.5 - 27 / 77), opened["alert_id"])
    again = Log(folds(), 2)
    for number, p in enumerate(again.topics["forecasts"]):
        p.absorb(log.records[("forecasts", number)])
    assert [o.value for p in again.topics["forecasts"] for o in p.outputs] == [o.value for o in log.outputs]


def test_limits_of_the_alert_are_strict_above_and_inclusive_below() -> None:
    log = Log(folds())
    log.send(resolution(i, f"f{i}", i % 10 < 3, model="m", probability=0.5) for i in range(100))
    assert log.alerts("forecast.calibration") == []  # exactly .2
    log.send([resolution(100, "f100", False, model="m", probability=0.5)])  # in the place of a success
    assert [a["value"] for a in log.alerts("forecast.calibration")] == [0.21]
    for i in range(100):  # those that leave the ring come again, but for six that turn out well now
        log.send([resolution(200 + i, f"g{i}", (i + 1) % 10 < 3 or i in (5, 15, 25, 35, 45, 55), model="m", probability=0.5)])
    assert [a["value"] for a in log.alerts("forecast.calibration")] == [0.21, 0.15]


def test_forecasts_without_a_model_are_calibrated_but_raise_no_alert() -> None:
    log = Log(folds())
    log.send(resolution(i, f"f{i}", False, probability=0.9) for i in range(80))
    assert log.get("/forecasts/calibration")["ece"] == pytest.approx(0.9)
    assert log.alerts("forecast.calibration") == []


def test_the_golden_vector_opens_nothing_with_so_few() -> None:
    log = Log(folds(), 8)
    log.send(VECTORS["V7"]["events"])
    assert log.alerts() == []
