"""Trust through the whole data flow in memory: golden vectors, laws, an oracle in plain Python, and the alert."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.keys import encode_key, partition_for
from tables import beta
from tables.fold import BadParameter
from tables.partition import Partition
from tables.times import DAY_US, HOUR_US, rfc3339
from tables.trust import Trust, TrustSettings
from tables.trust_history import POINT, SEGMENT
from tests.harness import VECTORS, Log, Rec, subset

START_US = 1_772_409_600_000_000  # 2026-03-02
NAMES = ("a", "b", "c|%", "d,e")
GOLDEN = ("G1", "G2", "G3", "G4", "G5", "G6", "T1", "T2", "T3", "T4", "T5", "T6", "T7")


def configured(by_name: dict[str, Any]) -> Trust:
    """The fold with settings as the vectors name them: ``trust_half_life.model``."""
    given_: dict[str, Any] = {}
    for name, value in by_name.items():
        field, dot, kind = name.partition(".")
        if dot or field in ("trust_prior", "trust_half_life", "trust_history", "max_trust_keys"):
            given_.setdefault(field, {"": getattr(TrustSettings(), field)[""]})[kind] = value
        else:
            given_[field] = value
    return Trust(msgspec.convert(given_, TrustSettings))


class Story:
    """Events with ascending ids, a second apart."""

    def __init__(self, log: Log, tenant: str = "golden") -> None:
        self.log = log
        self.tenant = tenant
        self.n = 0

    def send(self, type_: str, at_us: int | None = None, **data: Any) -> None:
        self.n += 1
        time = rfc3339(START_US + self.n * 1_000_000 if at_us is None else at_us)
        self.log.send([{"id": f"e{self.n}", "type": f"trust.{type_}.v1", "time": time, "tenant": self.tenant, "data": data}])

    def observe(self, id: str, *outcomes: bool, kind: str = "model", weight: float = 1.0, at_us: int | None = None) -> None:
        for success in outcomes:
            self.send("observed", at_us, kind=kind, id=id, success=success, weight=weight)


def rows(partition: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row of the folds of a partition, as it would be on the changelog."""
    return {
        (table.wire, tenant, key): (row.applied, table.dump(row))
        for table in partition.schema.tables
        if table.name.startswith("trust")
        for tenant, space in partition.spaces[table.index].items()
        for key, row in space.items()
    }


def all_rows(log: Log) -> list[dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]]:
    return [rows(p) for p in log.topics["judgments"]]


# ---- golden


@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_vector_holds_and_a_second_delivery_changes_nothing(name: str, partitions: int) -> None:
    vector = VECTORS[name]
    log = Log([configured(vector.get("settings", {}))], partitions)
    events = [{"tenant": "golden", **event} for event in vector["events"]]
    log.send(events)
    check_golden(log, vector)
    before = [{key: state for key, (_, state) in part.items()} for part in all_rows(log)]
    log.send(events)
    assert [{key: state for key, (_, state) in part.items()} for part in all_rows(log)] == before
    check_golden(log, vector)


def check_golden(log: Log, vector: dict[str, Any]) -> None:
    for check in vector["checks"]:
        params = dict(check.get("params", {}))
        if "ids" in params:
            params["ids"] = params["ids"].split(",")
        answer = log.get(check["path"], **params)
        if check.get("computed"):
            assert len(answer["points"]) == check["expect"]["n"]
        else:
            assert subset(check["expect"], answer) == []


def test_a_key_without_evidence_is_404_with_the_prior_of_its_kind() -> None:
    log = Log([configured({"trust_prior.judge": [2.0, 6.0]})])
    answer = log.get("/trust/judge/nobody")
    assert answer["status"] == 404
    assert (answer["prior"]["alpha"], answer["prior"]["trust"], answer["prior"]["known"]) == (2.0, 0.25, False)
    assert (answer["prior"]["effective_n"], answer["prior"]["last_update"], answer["prior"]["seconds_since_update"]) == (0.0, None, None)
    assert log.get("/trust/model/nobody/history")["status"] == 404


# ---- the oracle: the rules once more, in plain Python


class Plain:
    """One key by the words of trust.md §3."""

    def __init__(self, a0: float, b0: float, half_life_us: float | None) -> None:
        self.a0, self.b0, self.half = a0, b0, half_life_us
        self.evidence: list[tuple[int, bool, float]] = []
        self.alpha, self.beta = a0, b0
        self.decays = self.n = 0
        self.times: list[int] = []
        self.history: list[tuple[int, float]] = []
        self.t_ref: int | None = None

    def at(self, at_us: int) -> tuple[float, float]:
        if self.half is None:
            return self.alpha, self.beta
        at_us = at_us if self.t_ref is None else max(at_us, self.t_ref)
        fade = [(ok, w * 2.0 ** (-(at_us - t) / self.half)) for t, ok, w in self.evidence]
        return self.a0 + sum(w for ok, w in fade if ok), self.b0 + sum(w for ok, w in fade if not ok)

    def observe(self, t: int, ok: bool, w: float) -> None:
        self.t_ref = t if self.t_ref is None else max(t, self.t_ref)
        self.evidence.append((t, ok, w))
        self.alpha, self.beta = self.alpha + (w if ok else 0.0), self.beta + (0.0 if ok else w)
        self.n += 1
        self.times.append(t)
        alpha, beta_ = self.at(t)
        self.history.append((t, alpha / (alpha + beta_)))

    def decay(self, t: int, factor: float, min_count: float) -> None:
        t = t if self.t_ref is None else max(t, self.t_ref)
        alpha, beta_ = self.at(t)
        if not self.n or alpha + beta_ <= min_count:
            return
        self.alpha, self.beta = max(self.a0, alpha * factor), max(self.b0, beta_ * factor)
        self.evidence = [(t, True, self.alpha - self.a0), (t, False, self.beta - self.b0)]
        self.t_ref = t
        self.decays += 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("observe"), st.integers(0, 10 * DAY_US), st.booleans(), st.floats(0.01, 50)),
        st.tuples(st.just("decay"), st.integers(0, 10 * DAY_US), st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.0, 5.0, 20.0])),
    ),
    max_size=25,
)


@pytest.mark.parametrize("half_life_s", [None, 86_400.0])
@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_every_prefix_equals_the_plain_rules(half_life_s: float | None, steps: list[Any]) -> None:
    log = Log([configured({"trust_half_life.model": half_life_s, "trust_prior.model": [2.0, 1.5]})])
    story = Story(log)
    plain = Plain(2.0, 1.5, None if half_life_s is None else half_life_s * 1e6)
    for what, offset_us, first, second in steps:
        t = START_US + offset_us
        if what == "observe":
            story.observe("k", first, weight=second, at_us=t)
            plain.observe(t, first, second)
        else:
            story.send("decayed", t, kind="model", id="k", factor=first, min_count=second)
            plain.decay(t, first, second)
        for at_us in (START_US + 10 * DAY_US, START_US + 12 * DAY_US):
            answer = log.get("/trust/model/k", at=rfc3339(at_us))
            if not plain.n:
                assert answer["status"] == 404
                continue
            alpha, beta_ = plain.at(at_us)
            assert answer["alpha"] == pytest.approx(alpha, rel=1e-9)
            assert answer["beta"] == pytest.approx(beta_, rel=1e-9)
            assert (answer["observations"], answer["decays"]) == (plain.n, plain.decays)
            assert answer["last_update"] == rfc3339(max(plain.times))
            assert answer["seconds_since_update"] == pytest.approx((at_us - max(plain.times)) / 1e6)
    if plain.n:
        points = log.get("/trust/model/k/history")["points"]
        assert [p["time"] for p in points] == [rfc3339(t) for t, _ in plain.history]
        assert [p["trust"] for p in points] == pytest.approx([v for _, v in plain.history], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5 * DAY_US), st.booleans(), st.floats(0.1, 5)), min_size=1, max_size=12), st.randoms())
def test_with_a_half_life_any_order_of_the_observations_gives_the_same_sums(observed: list[tuple[int, bool, float]], rng: random.Random) -> None:
    answers = []
    for _ in range(2):
        log = Log([configured({"trust_half_life.model": 3600 * 24.0})])
        story = Story(log)
        for offset_us, ok, weight in observed:
            story.observe("k", ok, weight=weight, at_us=START_US + offset_us)
        answers.append(log.get("/trust/model/k", at=rfc3339(START_US + 6 * DAY_US)))
        observed = rng.sample(observed, len(observed))
    for field in ("alpha", "beta", "trust", "effective_n"):
        assert answers[0][field] == pytest.approx(answers[1][field], rel=1e-9, abs=1e-12)
    assert answers[0]["last_update"] == answers[1]["last_update"]


def test_fading_evidence_leaves_the_prior_mean_and_no_figure_depends_on_how_often_it_is_read() -> None:
    log = Log([configured({"trust_half_life.model": 3600.0})])
    Story(log).observe("k", *[True] * 98, False, False, at_us=START_US)
    for hours in range(400):
        last = log.get("/trust/model/k", at=rfc3339(START_US + hours * HOUR_US))
    assert last["trust"] == pytest.approx(0.5, abs=1e-9)
    assert log.get("/trust/model/k", at=rfc3339(START_US))["alpha"] == 99.0


# ---- laws of folds


def mixed(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """A log of every kind of trust event over few keys."""
    rng = random.Random(seed)
    for i in range(n):
        kind, id = rng.choice(("variable", "model")), rng.choice(NAMES)
        what = rng.choice(("observed",) * 12 + ("batch_observed", "decayed", "decay_kind", "decay_all", "imported", "removed"))
        data: dict[str, Any] = {"kind": kind, "id": id}
        if what == "observed":
            data |= {"success": rng.random() < 0.1, "weight": rng.choice((0.5, 1.0, 3.0))}
        elif what == "batch_observed":
            data = {"observations": [{"kind": kind, "id": rng.choice(NAMES), "success": rng.random() < 0.2} for _ in range(5)]}
        elif what == "decayed":
            data |= {"factor": 0.7}
        elif what.startswith("decay_"):
            data = {"factor": 0.8, **({"kind": kind} if what == "decay_kind" else {})}
        elif what == "imported":
            data |= {"alpha": 3.0, "beta": 40.0, "history": [[START_US / 1e6 + j, 0.1] for j in range(rng.choice((0, 5, 70)))]}
        else:
            data |= {"removed": True}
        type_ = {"decay_kind": "decayed", "decay_all": "decayed", "removed": "imported"}.get(what, what)
        yield {"id": f"m{i}", "type": f"trust.{type_}.v1", "time": rfc3339(START_US + i * 1_000_000), "tenant": "golden", "data": data}


def refold(log: Log, fold: Trust) -> Log:
    """The records of a log's partitions folded again from offset 0, into empty tables."""
    fresh = Log([fold], log.count)
    for number, partition in enumerate(fresh.topics["judgments"]):
        partition.absorb(log.records[("judgments", number)])
    return fresh


HALF = {"trust_half_life.model": 86_400.0, "trust_history.variable": 40}


@pytest.mark.parametrize("partitions", [1, 8])
def test_replay_from_offset_zero_gives_the_same_rows_and_the_same_messages(partitions: int) -> None:
    log = Log([configured(HALF)], partitions)
    log.send(mixed(1, 600))
    again = refold(log, configured(HALF))
    assert all_rows(again) == all_rows(log)
    put_out = [(o.topic, o.key, o.value, o.partition) for p in again.topics["judgments"] for o in p.outputs]
    assert sorted(put_out, key=str) == sorted([(o.topic, o.key, o.value, o.partition) for o in log.outputs], key=str)
    assert len(log.alerts("trust.low")) > 3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), prefix=st.integers(1, 120))
def test_a_prefix_delivered_again_to_rows_that_have_absorbed_it_changes_nothing(seed: int, prefix: int) -> None:
    log = Log([configured(HALF)])
    log.send(mixed(seed, 120))
    before = all_rows(log)
    done = log.topics["judgments"][0]
    again = Log([configured(HALF)]).topics["judgments"][0]  # no dedupe window: every handler sees every record
    for table in again.schema.tables:
        if table.name.startswith("trust"):
            again.spaces[table.index] = done.spaces[table.index]
    again.absorb(log.records[("judgments", 0)][:prefix])
    assert all_rows(log) == before
    assert [o for o in again.outputs if o.topic == "alerts"] == []


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.floats(0, 1), back=st.integers(1, 40), ahead=st.integers(0, 4))
def test_a_crash_between_the_rows_of_a_flush_changes_nothing(seed: int, cut: float, back: int, ahead: int) -> None:
    log = Log([configured({**HALF, "max_trust_keys": 5})])
    log.send(mixed(seed, 150))
    records: list[Rec] = log.records[("judgments", 0)]
    crash = int(cut * len(records))
    flushed = max(0, crash - back)
    older, newer = (Log([configured({**HALF, "max_trust_keys": 5})]) for _ in range(2))
    p, q = older.topics["judgments"][0], newer.topics["judgments"][0]
    p.absorb(records[:flushed])
    q.absorb(records[:crash])
    # of the flush at `crash` only the tables written first have arrived: `ahead` of them, counters before all
    tables = [q.schema.tables[i] for i in q.schema.flush_order]
    arrived = [t for t in tables if t.name == "counters"] + [t for t in tables if t.name.startswith("trust")][:ahead]
    for table in arrived:
        p.spaces[table.index] = q.spaces[table.index]
    p.absorb(records[flushed:])
    assert rows(p) == all_rows(log)[0]
    assert p.counters() == log.topics["judgments"][0].counters()


def test_one_or_eight_partitions_answer_the_same() -> None:
    one, many = Log([configured(HALF)], 1), Log([configured(HALF)], 8)
    events = list(mixed(3, 300))
    one.send(events)
    many.send(events)
    asked: list[tuple[str, dict[str, Any]]] = [("/trust", {}), ("/trust/report", {}), ("/trust", {"sort": "trust", "order": "desc"})]
    for path, params in asked:
        assert subset(one.get(path, **params), many.get(path, **params)) == []


def test_evidence_sums_up_to_what_was_sent_over_partitions_and_redeliveries() -> None:
    log = Log([Trust()], 8)
    rng = random.Random(6)
    events = [
        {
            "id": f"s{i}",
            "type": "trust.observed.v1",
            "time": rfc3339(START_US + i),
            "tenant": "golden",
            "data": {"kind": "rule", "id": f"r{rng.randrange(50)}", "success": rng.random() < 0.5},
        }
        for i in range(4000)
    ]
    log.send(events)
    log.send(rng.sample(events, 500))
    entries = log.get("/trust", limit=1000)["entries"]
    assert len(entries) == 50
    assert sum(e["alpha"] + e["beta"] - 2 for e in entries) == 4000
    assert sum(e["observations"] for e in entries) == 4000


def test_an_event_read_after_a_hundred_more_shows_all_of_them() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", True)
    assert log.get("/trust/model/k")["alpha"] == 2.0
    story.observe("k", *[True] * 100)
    assert log.get("/trust/model/k")["alpha"] == 102.0


# ---- history


@pytest.mark.parametrize("kept", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 100])
def test_history_holds_the_last_points_and_its_rows_stay_bounded(kept: int) -> None:
    log = Log([configured({"trust_history.model": kept})])
    story = Story(log)
    values = []
    alpha, n = 1, 2
    rng = random.Random(9)
    for i in range(300):
        ok = rng.random() < 0.7
        story.observe("k", ok)
        alpha, n = alpha + ok, n + 1
        values.append(alpha / n)
        if i % 29 == 0 or i > 280:
            points = log.get("/trust/model/k/history", limit=10_000)["points"]
            assert [p["trust"] for p in points] == values[max(0, len(values) - kept) :]
    p = log.topics["judgments"][0]
    assert len(p.keys(log.folds[0].tables[0], "golden")) == -(-kept // SEGMENT)
    assert all(len(state) < SEGMENT * POINT.size + 200 for _, state in rows(p).values())
    assert log.get("/trust/model/k/history", limit=10_000)["points"][-7:] == log.get("/trust/model/k/history", limit=7)["points"] or kept < 7


def test_a_batch_makes_one_history_point_a_key_and_reaches_every_home() -> None:
    log = Log([Trust()], 8)
    names = [f"n{i}" for i in range(20)]
    observations = [{"kind": "variable", "id": n, "success": i % 2 == 0, "weight": 1.0 + i} for n in names for i in range(3)]
    Story(log).send("batch_observed", observations=observations)
    derived = [o for o in log.outputs if o.topic == "judgments"]
    mine = partition_for(encode_key("golden", "variable", "n0"), 8)
    away = [n for n in names if partition_for(encode_key("golden", "variable", n), 8) != mine]
    assert len(derived) == 3 * len(away)
    for name in names:
        answer = log.get(f"/trust/variable/{name}")
        assert (answer["alpha"], answer["beta"], answer["observations"]) == (5.0, 3.0, 3)
        assert len(log.get(f"/trust/variable/{name}/history")["points"]) == (3 if name in away else 1)


# ---- decay of many


@pytest.mark.parametrize("partitions", [1, 8])
def test_decay_of_a_kind_halves_every_key_of_it_once_and_no_other(partitions: int) -> None:
    log = Log([Trust()], partitions)
    story, other = Story(log), Story(log, "other")
    for i in range(12):
        story.observe(f"m{i}", *[True] * 9)
        story.observe(f"m{i}", *[True] * 9, kind="rule")
    other.observe("m0", *[True] * 9)
    story.send("decayed", kind="model", factor=0.5)
    for i in range(12):
        answer = log.get(f"/trust/model/m{i}")
        assert (answer["alpha"], answer["decays"], answer["observations"]) == (5.0, 1, 9)
        assert log.get(f"/trust/rule/m{i}")["alpha"] == 10.0
    assert log.get("/trust/model/m0", tenant="other")["alpha"] == 10.0
    copies = [o for o in log.outputs if o.topic == "judgments"]
    assert [o.partition for o in copies] == list(range(partitions))
    assert {o.key for o in copies} == {b"golden"}
    assert len({json.loads(o.value or b"")["id"] for o in copies}) == partitions
    skipped: dict[str, int] = {}
    for p in log.topics["judgments"]:
        for reason, n in p.counters().skipped.items():
            skipped[reason] = skipped.get(reason, 0) + n
    assert skipped == {"command": 1}


def test_decay_with_exactly_min_count_changes_nothing_and_is_not_counted() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", True, True, True)
    story.send("decayed", kind="model", id="k", factor=0.5)
    assert (log.get("/trust/model/k")["alpha"], log.get("/trust/model/k")["decays"]) == (4.0, 0)
    story.observe("k", True, weight=0.001)
    before = log.get("/trust/model/k")
    story.send("decayed", kind="model", id="k", factor=0.5)
    after = log.get("/trust/model/k")
    assert (after["alpha"], after["decays"], after["last_update"]) == (before["alpha"] / 2, 1, before["last_update"])


# ---- import


def test_import_replaces_state_and_history_and_later_observations_go_on_from_it() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[False] * 150)
    imported = [[START_US / 1e6 + i, i / 1000] for i in range(130)]
    story.send("imported", kind="model", id="k", alpha=7.5, beta=2.5, last_update="2026-01-01T00:00:00Z", history=imported)
    answer = log.get("/trust/model/k")
    assert (answer["alpha"], answer["beta"], answer["last_update"]) == (7.5, 2.5, "2026-01-01T00:00:00.000000Z")
    assert (answer["observations"], answer["decays"]) == (0, 0)
    points = log.get("/trust/model/k/history")["points"]
    assert [p["trust"] for p in points] == [i / 1000 for i in range(30, 130)]
    assert points[0]["time"] == rfc3339(START_US + 30_000_000)
    story.observe("k", True)
    points = log.get("/trust/model/k/history")["points"]
    assert [p["trust"] for p in points] == [i / 1000 for i in range(31, 130)] + [8.5 / 11]
    story.send("imported", kind="model", id="k", alpha=1, beta=1, history={"times": [START_US / 1e6, "2026-03-02T00:00:01Z"], "values": [0.25, 0.5]})
    assert log.get("/trust/model/k/history")["points"] == [
        {"time": rfc3339(START_US), "trust": 0.25},
        {"time": rfc3339(START_US + 1_000_000), "trust": 0.5},
    ]
    assert log.get("/trust/model/k")["last_update"] is None
    story.send("imported", kind="model", id="k", alpha=1, beta=1)
    assert log.get("/trust/model/k/history")["points"] == []


def test_last_update_of_an_import_may_be_unix_seconds() -> None:
    log = Log([Trust()])
    Story(log).send("imported", kind="model", id="k", alpha=3, beta=1, last_update=START_US / 1e6 + 0.25)
    assert log.get("/trust/model/k")["last_update"] == rfc3339(START_US + 250_000)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 3},
        {"beta": 3},
        {"alpha": 3, "beta": 1, "last_update": 1e18},
        {"alpha": 3, "beta": 1, "history": [[-1e18, 0.5]]},
        {"alpha": 3, "beta": 1, "history": {"times": [1.0, 2.0], "values": [0.5]}},
    ],
)
def test_an_import_that_cannot_be_taken_whole_is_a_dead_letter_and_changes_nothing(bad: dict[str, Any]) -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", True)
    before = all_rows(log)
    raw = {
        "specversion": "1.0",
        "source": "t",
        "id": "bad",
        "type": "trust.imported.v1",
        "time": rfc3339(START_US),
        "tenant": "golden",
        "data": {"kind": "model", "id": "k", **bad},
    }
    log.append("judgments", encode_key("golden", "model", "k"), json.dumps(raw).encode(), None, START_US // 1000)
    assert all_rows(log) == before
    assert [headers["reason"] for _, headers in log.dead_letters()] == ["invalid_field"]


def test_import_on_a_half_life_key_is_scaled_to_its_own_time_and_floored_at_the_prior() -> None:
    log = Log([configured({"trust_half_life.model": 3600.0})])
    story = Story(log)
    story.observe("k", True, at_us=START_US - 5 * HOUR_US)
    story.send("imported", START_US, kind="model", id="k", alpha=9.0, beta=0.5)
    now = log.get("/trust/model/k", at=rfc3339(START_US))
    later = log.get("/trust/model/k", at=rfc3339(START_US + HOUR_US))
    assert (now["alpha"], now["beta"]) == (9.0, 1.0)
    assert (later["alpha"], later["beta"]) == (5.0, 1.0)


def test_a_removed_key_is_as_never_seen_and_may_come_back() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[True] * 70)
    story.send("imported", kind="model", id="k", removed=True)
    assert log.get("/trust/model/k")["status"] == 404
    assert log.get("/trust/model/k/history")["status"] == 404
    assert log.get("/trust")["entries"] == []
    assert log.get("/trust/report")["summary"]["total_entities"] == 0
    story.send("decayed", kind="model", id="k", factor=0.5)
    assert log.get("/trust/model/k")["status"] == 404
    story.observe("k", False)
    answer = log.get("/trust/model/k")
    assert (answer["alpha"], answer["beta"], answer["observations"], answer["decays"]) == (1.0, 2.0, 1, 0)
    assert [p["trust"] for p in log.get("/trust/model/k/history")["points"]] == [1 / 3]


def test_removing_an_unknown_key_leaves_no_row() -> None:
    log = Log([Trust()])
    Story(log).send("imported", kind="model", id="k", removed=True)
    assert all_rows(log) == [{}]


# ---- bounds


def test_keys_beyond_the_bound_are_counted_and_known_keys_go_on() -> None:
    log = Log([configured({"max_trust_keys": 2})])
    story = Story(log)
    for name in ("a", "b", "c", "a", "d"):
        story.observe(name, True)
    story.send("imported", kind="model", id="e", alpha=3, beta=1)
    story.send("batch_observed", observations=[{"kind": "model", "id": n, "success": True} for n in ("b", "f")])
    assert [e["id"] for e in log.get("/trust")["entries"]] == ["a", "b"]
    assert [e["alpha"] for e in log.get("/trust")["entries"]] == [3.0, 3.0]
    assert log.topics["judgments"][0].counters().overflow == 4
    Story(log, "other").observe("x", True)
    assert len(log.get("/trust", tenant="other")["entries"]) == 1


def test_rows_ahead_of_the_log_take_no_place_from_a_key_that_was_there_before_them() -> None:
    full = configured({"max_trust_keys": 2})
    log = Log([full])
    story = Story(log)
    for name in ("a", "b", "c"):
        story.observe(name, True)
    done, crashed = log.topics["judgments"][0], Log([configured({"max_trust_keys": 2})]).topics["judgments"][0]
    for table in done.schema.tables:
        if table.name in ("counters", "trust"):  # of one flush; the row of "a" had not arrived
            crashed.spaces[table.index] = {t: dict(space) for t, space in done.spaces[table.index].items()}
    rows_ = crashed.spaces[full.rows.index]["golden"]
    rows_["x",] = rows_["model", "b"]  # stands for a further key that is ahead
    del rows_["model", "a"]
    crashed.absorb(log.records[("judgments", 0)])
    assert ("model", "a") in rows_
    assert ("model", "c") not in rows_


def test_enormous_weights_stay_finite() -> None:
    log = Log([configured({"trust_half_life.rule": 60.0})])
    story = Story(log)
    for kind in ("model", "rule"):
        story.observe("k", True, True, False, True, kind=kind, weight=1.7e308, at_us=START_US)
        answer = log.get(f"/trust/{kind}/k", at=rfc3339(START_US))
        assert 0.0 < answer["trust"] < 1.0
        assert answer["sample_size"] > 0
        json.dumps(answer, allow_nan=False)


# ---- alert


def changes(log: Log) -> list[tuple[str, str, str]]:
    return [(a["type"].split(".")[1], a["previous"], a["severity"]) for a in log.alerts("trust.low")]


def test_low_trust_opens_once_eases_and_resolves() -> None:
    log = Log([Trust()])
    story = Story(log)
    limits = []
    for ok in [False] * 7 + [True] * 3 + [False] * 70 + [True] * 60:
        story.observe("m|1", ok)
        limits.append(log.get("/trust/model/m|1")["beta_interval"][1])
    assert changes(log) == [
        ("opened", "ok", "warning"),
        ("escalated", "warning", "critical"),
        ("eased", "critical", "warning"),
        ("resolved", "warning", "warning"),
    ]
    opened, escalated, eased, resolved = log.alerts("trust.low")
    assert opened["value"] == next(x for i, x in enumerate(limits) if i >= 19 and x < 0.4)
    assert escalated["value"] == next(x for x in limits if x < 0.2)
    assert resolved["value"] == next(x for i, x in enumerate(limits) if i > limits.index(eased["value"]) and x >= 0.45)
    assert [a["threshold"] for a in (opened, escalated, eased, resolved)] == [0.4, 0.2, 0.4, 0.4]
    assert {a["subject"] for a in (opened, escalated, eased, resolved)} == {"model|m%7C1"}
    assert {a["alert_id"] for a in (opened, resolved)} == {opened["alert_id"]}
    assert opened["evidence"] == {"topic": "judgments", "partition": 0, "offset": limits.index(opened["value"])}


def test_low_trust_needs_twenty_observations_of_evidence() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[False] * 19)
    assert beta.upper(1.0, 20.0, 1.96) < 0.2
    assert changes(log) == []
    story.observe("k", False)
    assert changes(log) == [("opened", "ok", "critical")]


def test_an_open_alert_keeps_the_day_it_was_opened_on() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[False] * 20, at_us=START_US)
    story.observe("k", *[True] * 40, at_us=START_US + 3 * DAY_US)
    assert {a["period"] for a in log.alerts("trust.low")} == {"2026-03-02"}
    story.observe("k", *[False] * 400, at_us=START_US + 3 * DAY_US)
    assert log.alerts("trust.low")[-1]["period"] == "2026-03-05"


def test_import_and_removal_and_decay_are_judged_too() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.send("imported", kind="model", id="i", alpha=2, beta=100)
    assert changes(log) == [("opened", "ok", "critical")]
    story.send("imported", kind="model", id="i", removed=True)
    assert changes(log)[1:] == [("resolved", "critical", "critical")]
    assert log.alerts("trust.low")[-1]["reason"] == "removed"
    story.send("imported", kind="model", id="d", alpha=2, beta=100)
    story.send("decayed", kind="model", id="d", factor=0.01)
    assert changes(log)[2:] == [("opened", "ok", "critical"), ("resolved", "critical", "critical")]


def test_a_removed_key_that_comes_back_is_judged_anew() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[False] * 20)
    story.send("imported", kind="model", id="k", removed=True)
    story.observe("k", *[False] * 19)
    assert len(changes(log)) == 2
    story.observe("k", False)
    assert changes(log)[2:] == [("opened", "ok", "critical")]


def test_an_open_alert_gets_no_worse_on_little_evidence() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.send("imported", kind="model", id="k", alpha=8, beta=40)
    story.send("imported", kind="model", id="k", alpha=1, beta=18)
    assert beta.upper(1.0, 18.0, 1.96) < 0.2
    assert changes(log) == [("opened", "ok", "warning")]


def test_one_heavy_success_resolves_at_once() -> None:
    log = Log([Trust()])
    story = Story(log)
    story.observe("k", *[False] * 30)
    story.observe("k", True, weight=1e6)
    assert changes(log) == [("opened", "ok", "critical"), ("resolved", "critical", "critical")]


def test_fading_alone_opens_nothing_and_resolves_nothing() -> None:
    log = Log([configured({"trust_half_life.model": 60.0})])
    story = Story(log)
    story.observe("k", *[False] * 30, at_us=START_US)
    assert changes(log) == [("opened", "ok", "critical")]
    story.observe("other", True, at_us=START_US + DAY_US)
    assert len(changes(log)) == 1
    story.observe("k", False, at_us=START_US + DAY_US)
    assert changes(log)[1:] == [("resolved", "critical", "critical")]


# ---- views


def test_the_answer_has_exactly_the_fields_of_the_contract() -> None:
    log = Log([Trust()])
    Story(log).observe("k", True)
    answer = log.get("/trust/model/k", now_us=START_US + 13_500_000)
    assert list(answer) == [
        "kind",
        "id",
        "known",
        "alpha",
        "beta",
        "trust",
        "wald",
        "beta_interval",
        "z",
        "level",
        "effective_n",
        "sample_size",
        "strength",
        "observations",
        "decays",
        "last_update",
        "seconds_since_update",
        "half_life_s",
        "at",
        "as_of",
    ]
    assert (answer["last_update"], answer["seconds_since_update"]) == ("2026-03-02T00:00:01.000000Z", 12.5)
    assert (answer["at"], answer["as_of"]) == ("2026-03-02T00:00:13.500000Z", "2026-03-02T00:00:01.000000Z")


def test_the_server_clock_never_stands_before_what_was_absorbed() -> None:
    log = Log([Trust()])
    Story(log).observe("k", True)
    answer = log.get("/trust/model/k", now_us=START_US - DAY_US)
    assert answer["at"] == answer["as_of"] == answer["last_update"]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/trust/model/k", {"z": 0}),
        ("/trust/model/k", {"z": -1}),
        ("/trust/model/k", {"z": 6.01}),
        ("/trust/model/k", {"z": "nan"}),
        ("/trust/model/k", {"at": "yesterday"}),
        ("/trust/model/k", {"at": "2026-03-02T00:00:00"}),
        ("/trust/Model/k", {}),
        ("/trust", {"kind": "no-kind"}),
        ("/trust", {"sort": "beta"}),
        ("/trust", {"limit": 0}),
        ("/trust", {"limit": 10_001}),
    ],
)
def test_malformed_parameters_are_refused(path: str, params: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        Log([Trust()]).get(path, **params)


def test_ids_are_at_most_a_thousand_of_one_kind() -> None:
    log = Log([Trust()])
    assert len(log.get("/trust", kind="model", ids=[",".join(f"x{i}" for i in range(1000))])) == 1000
    with pytest.raises(BadParameter, match="1001 ids"):
        log.get("/trust", kind="model", ids=[f"x{i}" for i in range(1001)])
    with pytest.raises(BadParameter) as refused:
        log.get("/trust", ids=["a"])
    assert refused.value.parameter == "kind"


def test_ids_with_commas_are_asked_for_one_by_one() -> None:
    log = Log([Trust()], 8)
    story = Story(log)
    for name in NAMES:
        story.observe(name, True)
    answer = log.get("/trust", kind="model", ids=["a,b"], id=["d,e"], z=1.0)
    assert list(answer) == ["a", "b", "d,e"]
    assert all(one["known"] and one["z"] == 1.0 for one in answer.values())


@pytest.mark.parametrize(
    ("sort", "order", "expected"),
    [
        ("id", "asc", ["a", "b", "c", "z"]),
        ("id", "desc", ["z", "c", "b", "a"]),
        ("trust", "asc", ["a", "b", "c", "z"]),
        ("trust", "desc", ["z", "b", "c", "a"]),
        ("effective_n", "desc", ["a", "z", "b", "c"]),
        ("last_update", "asc", ["z", "b", "c", "a"]),
    ],
)
@pytest.mark.parametrize("partitions", [1, 8])
def test_the_list_is_sorted_and_paged_without_gaps(sort: str, order: str, expected: list[str], partitions: int) -> None:
    log = Log([Trust()], partitions)
    story = Story(log)
    story.observe("z", True, True)
    story.observe("b", True, at_us=START_US + 60_000_000)
    story.observe("c", True, at_us=START_US + 60_000_000)
    story.observe("a", False, True, True, False, False, at_us=START_US + 90_000_000)
    seen, cursor = [], None
    for _ in range(4):
        answer = log.get("/trust", sort=sort, order=order, limit=1, **({"cursor": cursor} if cursor else {}))
        seen += [e["id"] for e in answer["entries"]]
        cursor = answer["cursor"]
    assert (seen, cursor) == (expected, None)
    with pytest.raises(BadParameter):
        log.get("/trust", cursor="model|nobody")


def test_the_report_sorts_keys_into_its_lists_and_averages_over_all() -> None:
    log = Log([Trust()], 8)
    story = Story(log)
    now_us = START_US + 10 * DAY_US
    story.send("imported", kind="model", id="good", alpha=40, beta=2, last_update=(now_us - 10_000_000) / 1e6)
    story.send("imported", kind="rule", id="bad", alpha=1, beta=9, last_update=(now_us - 2 * DAY_US) / 1e6)
    story.send("imported", kind="rule", id="five", alpha=4, beta=3, last_update=(now_us - HOUR_US) / 1e6)
    story.send("imported", kind="rule", id="day", alpha=4, beta=3, last_update=(now_us - DAY_US) / 1e6)
    story.send("imported", kind="rule", id="few", alpha=1.5, beta=1, last_update=(now_us - 1_000_000) / 1e6)
    report = log.get("/trust/report", now_us=now_us)
    found = {name: [e["id"] for e in entries] for name, entries in report.items() if isinstance(entries, list)}
    assert found == {
        "high_trust": ["good"],
        "low_trust": ["bad"],
        "high_confidence": ["good"],
        "low_confidence": ["few"],
        "recently_updated": ["good"],
        "stale": ["bad"],
    }
    assert list(report["stale"][0]) == ["kind", "id", "trust", "strength", "wald", "beta_interval", "sample_size", "seconds_since_update"]
    trusts = [40 / 42, 1 / 10, 4 / 7, 4 / 7, 0.6]
    assert report["summary"]["total_entities"] == 5
    assert report["summary"]["active_entities"] == 4
    assert report["summary"]["avg_trust"] == pytest.approx(sum(trusts) / 5)
    assert report["summary"]["avg_confidence"] == pytest.approx(sum(beta.strength(n, 0.1, 10.0) for n in (40, 8, 5, 5, 0.5)) / 5)
    assert log.get("/trust/report", now_us=now_us, kind="model")["summary"]["total_entities"] == 1
    assert [e["id"] for e in log.get("/trust/report", now_us=now_us, min_sample=0.1)["recently_updated"]] == ["few", "good"]
    assert len(log.get("/trust/report", now_us=now_us, min_sample=0.1, limit=1)["recently_updated"]) == 1


def test_the_report_of_nothing_has_no_averages() -> None:
    summary = Log([Trust()]).get("/trust/report")["summary"]
    assert summary == {"total_entities": 0, "active_entities": 0, "avg_trust": None, "avg_confidence": None}


def test_observations_written_past_their_home_add_up() -> None:
    log = Log([Trust()], 8)
    Story(log).observe("k", True, True, False)
    home = partition_for(encode_key("golden", "model", "k"), 8)
    raw = {
        "specversion": "1.0",
        "source": "t",
        "id": "lost",
        "type": "trust.observed.v1",
        "time": rfc3339(START_US),
        "tenant": "golden",
        "data": {"kind": "model", "id": "k", "success": True},
    }
    log.append("judgments", None, json.dumps(raw).encode(), (home + 1) % 8, START_US // 1000)
    answer = log.get("/trust/model/k")
    assert (answer["alpha"], answer["beta"], answer["observations"]) == (4.0, 2.0, 4)
    assert len(log.get("/trust/model/k/history")["points"]) == 4


def test_settings_that_only_views_read_leave_the_rows_their_version() -> None:
    plain = [t.wire for t in Trust().tables]
    assert [t.wire for t in configured({"trust_z.model": 2.5, "trust_min_sample.model": 9.0}).tables] == plain
    for change in ({"trust_low": 0.3}, {"trust_half_life.model": 5.0}, {"trust_prior.model": [1, 2]}, {"trust_history.x": 9}, {"max_trust_keys": 7}):
        assert not set(plain) & {t.wire for t in configured(change).tables}
