"""Pseudonyms and what is left out: every field of every event type, joins across types, tenants apart, the golden vector."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest

from streams.events import SOURCE_EVENTS
from tables.anonymise import DROP, FIELDS, KEEP, Anonymiser, pseudonym
from tests.harness import VECTORS
from tests.unit.performance_stream import START_US, event, stream


def anonymiser(*keep: str, tenant: str = "golden", key: str = "golden-key") -> Anonymiser:
    return Anonymiser(key, tenant, keep)


def test_the_golden_pseudonyms_join_across_event_types() -> None:
    vector = VECTORS["P7"]
    expect = vector["checks"][0]["expect"]
    found = [anonymiser(key=vector["settings"]["anonymise_key"]).envelope(e)["data"] for e in vector["events"]]
    assert [d.get("agent", d.get("id")) for d in found] == [expect["agent"]] * 3
    assert found[1]["task"] == expect["task"]


def test_a_pseudonym_is_the_documented_hmac() -> None:
    message = b"acme\x1fagent\x1f\xc3\xbc"
    assert pseudonym("k", "acme", "agent", "ü") == hmac.new(b"k", message, hashlib.sha256).hexdigest()[:32]


def test_tenants_classes_ids_and_keys_give_different_pseudonyms() -> None:
    names = {pseudonym(k, t, c, i) for k in ("k", "l") for t in ("a", "b") for c in ("agent", "task") for i in ("x", "y")}
    assert len(names) == 16


def test_every_field_of_every_source_event_has_been_decided_on() -> None:
    assert set(FIELDS) == {data.TYPE for data in SOURCE_EVENTS}
    for data in SOURCE_EVENTS:
        assert set(FIELDS[data.TYPE]) == {info.encode_name for info in msgspec.structs.fields(data)}, data.TYPE


IDS = {"agent", "task", "execution_id", "judge", "run", "goal_id", "forecast_id", "refers_to", "metric_id"}
TEXTS = {"rationale", "reason", "feedback", "message", "description", "metadata"}


@pytest.mark.parametrize("data", SOURCE_EVENTS, ids=lambda data: data.TYPE)
def test_no_event_type_keeps_an_id_or_a_free_text(data: Any) -> None:
    rules = FIELDS[data.TYPE]
    assert not [field for field in IDS & set(rules) if rules[field] in (KEEP, DROP)]
    assert not [field for field in TEXTS & set(rules) if rules[field] != DROP]


def test_names_of_people_and_work_leave_a_stream_and_numbers_stay() -> None:
    hide = anonymiser()
    for one in stream(1, 300):
        found = hide.envelope(one)
        data, hidden = one["data"], found["data"]
        for field in IDS & set(data):
            assert hidden[field] != data[field] and len(hidden[field]) == 32
        assert {k: v for k, v in hidden.items() if isinstance(v, int | float)} == {k: v for k, v in data.items() if isinstance(v, int | float)}
        assert (found["type"], found["time"], found["tenant"]) == (one["type"], one["time"], one["tenant"])
        assert found["id"] == hide.name("event", one["id"])
        for alternative in hidden.get("alternatives", []):
            assert set(alternative) == {"agent", "score"} and len(alternative["agent"]) == 32


def test_trust_ids_are_hidden_unless_their_kind_names_nobody() -> None:
    def trust(kind: str) -> dict[str, Any]:
        one = event(1, "trust.observed", START_US)
        one["data"] = {"kind": kind, "id": "x", "success": True}
        return anonymiser().envelope(one)["data"]

    name = anonymiser().name
    assert [trust(k)["id"] for k in ("agent", "judge", "customer")] == [name(k, "x") for k in ("agent", "judge", "customer")]
    assert [trust(k)["id"] for k in ("variable", "rule", "model")] == ["x"] * 3
    batch = {**event(1, "trust.batch_observed", START_US), "data": {"observations": [{"kind": "agent", "id": "x", "success": True, "weight": 1.0}]}}
    assert anonymiser().envelope(batch)["data"]["observations"][0]["id"] == name("agent", "x")


def test_scopes_of_agents_and_runs_are_hidden_behind_their_prefix() -> None:
    def scope(text: str) -> str:
        return str(anonymiser().envelope(event(1, "budget.set", START_US, scope=text, period="daily", limits=[]))["data"]["scope"])

    name = anonymiser().name
    assert [scope(s) for s in ("agent:a", "run:r", "model:m", "tenant")] == [f"agent:{name('agent', 'a')}", f"run:{name('run', 'r')}", "model:m", "tenant"]


def test_what_is_left_out_can_be_kept_by_name() -> None:
    one = event(1, "routing.decided", START_US, task="t", agent="a", rationale="because", alternatives=[{"agent": "b", "score": 1, "reason": "slow"}])
    assert "rationale" not in anonymiser().envelope(one)["data"]
    kept = anonymiser("rationale", "reason").envelope(one)["data"]
    assert (kept["rationale"], kept["alternatives"][0]["reason"]) == ("because", "slow")
    custom = event(2, "custom.recorded", START_US, name="n", fields={"size": 1, "user": "u"})
    assert [anonymiser(*keep).envelope(custom)["data"]["fields"] for keep in ((), ("size",), ("fields",))] == [{}, {"size": 1}, {"size": 1, "user": "u"}]


def test_unknown_fields_attributes_and_types_are_left_out_and_the_event_itself_stays() -> None:
    one = {**event(1, "task.started", START_US, execution_id="x", task="t", agent="a", secret="s"), "subject": "me", "source": "laptop", "derivedfrom": "e0"}
    before = json.dumps(one)
    found = anonymiser().envelope(one)
    assert "secret" not in found["data"] and "subject" not in found
    assert (found["source"], found["derivedfrom"]) == (anonymiser().name("source", "laptop"), anonymiser().name("event", "e0"))
    assert "data" not in anonymiser().envelope({**one, "type": "person.seen.v1"})
    assert json.dumps(one) == before


def test_an_id_of_the_wrong_type_is_left_out_rather_than_shown() -> None:
    one = {**event(1, "task.started", START_US), "data": {"agent": {"name": "me"}, "task": 5, "execution_id": None}}
    assert anonymiser().envelope(one)["data"] == {"execution_id": None}
