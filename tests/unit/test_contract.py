"""The contract, type by type: golden wire files, what is refused and why, keys, and conformance to CloudEvents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2
from cloudevents.core.bindings.kafka import KafkaMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st

from streams.codec import InvalidEvent, decode, decode_all, encode
from streams.events import EVENT_TYPES, SOURCE_EVENTS, UPCASTS, Event, RlMetricsRecorded, RlMetricsRecordedV2, newest, upcast
from streams.keys import encode_key, murmur2, partition_for, record_key

GOLDEN = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in sorted((Path(__file__).parent.parent / "golden" / "events").glob("*.json"))}
INVALID = [(name, n) for name, golden in GOLDEN.items() for n in range(len(golden["invalid"]))]
REASONS = {"not_json", "unknown_type", "invalid_field", "too_large"}


def raw(body: object) -> bytes:
    return json.dumps(body).encode()


def test_every_type_of_the_contract_has_a_golden_file_with_at_least_three_invalid_ones() -> None:
    assert set(GOLDEN) == {data.TYPE for data in SOURCE_EVENTS}
    assert all(len(golden["invalid"]) >= 3 for golden in GOLDEN.values())


def test_many_events_at_once_are_the_same_as_one_by_one_derived_ones_too_and_none_where_one_is_refused() -> None:
    wires = [{**golden["wire"], **derived} for golden in GOLDEN.values() for derived in ({}, {"derivedfrom": "e1"}, {"derivedfrom": "e" * 256})]
    one_by_one = [decode(raw(wire)) for wire in wires]  # first, for these learn which tenants there are
    found = decode_all([raw(wire) for wire in wires])
    assert found is not None
    assert found.events == one_by_one, "of several types"
    assert {event.derivedfrom for event in found.events} == {None, "e1", "e" * 256}
    untold = {field: value for field, value in wires[0].items() if field != "type"}
    for bad_wire in (untold, {**untold, "type": None}, {**untold, "type": "nothing"}):
        assert decode_all([raw(wires[0]), raw(bad_wire)]) is None
    assert decode_all([raw(wires[0]), b"{"]) is None
    for bad in ("", "e" * 257):
        assert decode_all([raw(wires[0]), raw({**wires[1], "derivedfrom": bad})]) is None


def said(events: Iterable[Event]) -> list[list[object]]:
    """What events say, whichever structs they are."""
    return [[getattr(event, field) for field in Event.__struct_fields__] for event in events]


def odd_ones(wire: dict[str, Any]) -> Iterator[bytes]:
    """An event with each of its attributes left out, null, another's, and said twice; and in another order."""
    for field in wire:
        yield raw({name: value for name, value in wire.items() if name != field})
        yield raw({**wire, field: None})
        for other in ("trust.decayed.v1", "trust.observed.v1", "nothing", "", 1, {}, "2026-03-02T00:00:00Z", "b"):
            yield raw({**wire, field: other})
            yield raw(wire)[:-1] + b"," + raw({field: other})[1:]
            yield b"{" + raw({field: other})[1:-1] + b"," + raw(wire)[1:]
    yield raw(dict(reversed(wire.items())))
    yield raw({**wire, "data": {**wire["data"], "type": wire["type"]}})
    yield raw({**{name: value for name, value in wire.items() if name != "type"}, "data": {**wire["data"], "type": wire["type"]}})


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("name", GOLDEN)
def test_among_many_events_of_its_type_an_odd_one_is_what_it_is_by_itself(name: str, derived: bool) -> None:
    wire = {**GOLDEN[name]["wire"], "tenant": "default", "derivedfrom": "e1"}
    one = raw(wire if derived else {field: value for field, value in wire.items() if field != "derivedfrom"})
    plain = decode(one)
    taken = refused = 0
    for odd in odd_ones(wire):
        found = decode_all([one, odd, one])
        try:
            wanted = decode(odd)
        except InvalidEvent:
            assert found is None, odd
            refused += 1
        else:
            if found is None:  # a tenant that is not known yet
                found = decode_all([one, odd, one])
            assert found is not None, odd
            assert said(found.events) == said([plain, wanted, plain]), odd
            assert found.data == [event.data for event in found.events]
            assert (found.classes, found.tenants) == ({event.data.__class__ for event in found.events}, {event.tenant for event in found.events})
            taken += 1
    assert taken > 10 < refused


def test_no_events_at_once_are_none() -> None:
    found = decode_all([])
    assert found is not None and found.events == []


@pytest.mark.parametrize("char", ["\x01", "\x1f", "\x7f", "\x85", "\ud800"])
@pytest.mark.parametrize("field", ["id", "data.id"])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("beside", ["plain", "é", 'quo"ted'])
def test_a_control_character_is_found_among_many_events_however_it_is_written(char: str, field: str, escaped: bool, beside: str) -> None:
    def wire(name: str) -> dict[str, Any]:
        data = {"kind": "model", "id": name if field == "data.id" else "m", "success": True}
        return {"specversion": "1.0", "id": name if field == "id" else "e", "source": "t", "type": "trust.observed.v1", "data": data}

    good = [raw(wire("m")), json.dumps(wire(beside), ensure_ascii=False).encode()]
    bad = json.dumps(wire(f"m{char}"), ensure_ascii=escaped).encode(errors="surrogatepass")
    one_by_one = [decode(one) for one in good]
    found = decode_all(good)
    assert found is not None and said(found.events) == said(one_by_one)
    with pytest.raises(InvalidEvent):
        decode(bad)
    assert decode_all([*good, bad]) is None
    assert decode_all([raw(wire("m")), bad]) is None


def test_a_value_that_is_too_large_is_found_among_many_events() -> None:
    good = raw({"specversion": "1.0", "id": "e", "source": "t", "type": "trust.observed.v1", "data": {"kind": "model", "id": "m", "success": True}})
    large = good + b" " * (1 << 20)
    found = decode_all([good] * 10_000)
    assert found is not None and len(found.events) == 10_000, "many of them are more bytes than one may have"
    assert decode_all([good, large]) is None


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_event_decodes_travels_by_its_key_and_survives_a_round_trip(name: str) -> None:
    golden = GOLDEN[name]
    event = decode(raw(golden["wire"]))
    assert name == event.data.TYPE
    assert golden["topic"] == event.data.TOPIC
    assert record_key(event) == golden["key"].encode()
    assert decode(encode(event)) == event
    again = json.loads(encode(event))
    for field, value in golden["wire"]["data"].items():
        if not isinstance(value, (dict, list)) and field not in ("cost", "deadline", "last_update", "until"):
            assert again["data"].get(field, value) == value


@pytest.mark.parametrize(("name", "n"), INVALID)
def test_an_invalid_event_is_refused_with_its_reason_and_the_fields_name(name: str, n: int) -> None:
    golden = GOLDEN[name]
    case = golden["invalid"][n]
    data = {key: value for key, value in {**golden["wire"]["data"], **case["set"]}.items() if key not in case["remove"]}
    with pytest.raises(InvalidEvent) as refused:
        decode(raw({**golden["wire"], "data": data}))
    assert refused.value.reason == case["reason"]
    assert refused.value.field == case["field"]
    assert case["field"] in refused.value.error


@pytest.mark.parametrize("name", GOLDEN)
def test_the_cloudevents_package_reads_what_we_write(name: str) -> None:
    event = decode(raw(GOLDEN[name]["wire"]))
    message = KafkaMessage(headers={"content-type": b"application/cloudevents+json"}, key=record_key(event), value=encode(event))
    theirs = from_structured_event(message, JSONFormat())
    assert (theirs.get_id(), theirs.get_source(), theirs.get_type(), theirs.get_specversion()) == (event.id, "golden", name, "1.0")
    assert theirs.get_time() == event.time
    assert theirs.get_extension("tenant") == "acme"
    assert theirs.get_data() == json.loads(msgspec.json.encode(event.data))


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"type": "trust.seen.v1"}, "unknown_type", "type"),
        ({"type": 5}, "invalid_field", "type"),
        ({"tenant": "ACME!"}, "invalid_field", "tenant"),
        ({"id": ""}, "invalid_field", "id"),
        ({"id": "x" * 129}, "too_large", "id"),
        ({"id": "a\u0007"}, "invalid_field", "id"),
        ({"time": "2026-03-02T00:00:00"}, "invalid_field", "time"),
        ({"time": "yesterday"}, "invalid_field", "time"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "invalid_field", "time"),
        ({"specversion": "0.3"}, "invalid_field", "specversion"),
    ],
)
def test_the_envelope_is_checked_field_by_field(change: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        decode(raw({**GOLDEN["trust.observed.v1"]["wire"], **change}))
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_a_record_over_one_mebibyte_is_too_large() -> None:
    wire = GOLDEN["custom.recorded.v1"]["wire"]
    with pytest.raises(InvalidEvent, match="1048576"):
        decode(raw({**wire, "data": {"name": "n", "fields": {"x": "y" * (1 << 20)}}}))


def test_unknown_attributes_and_fields_are_ignored() -> None:
    wire = GOLDEN["trust.observed.v1"]["wire"]
    assert decode(raw({**wire, "traceparent": "00-x", "data": {**wire["data"], "colour": "red"}})) == decode(raw(wire))


def test_money_keeps_its_decimal_text() -> None:
    event = decode(b'{"specversion":"1.0","id":"1","source":"s","type":"cost.incurred.v1","data":{"cost":0.1000000000000000055}}')
    assert str(event.data.cost) == "0.1000000000000000055"


@given(st.binary(max_size=300))
def test_any_bytes_give_an_event_or_invalid_event(noise: bytes) -> None:
    try:
        assert isinstance(decode(noise), Event)
    except InvalidEvent as refused:
        assert refused.reason in REASONS


@given(
    st.sampled_from(sorted(GOLDEN)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
        max_leaves=6,
    ),
    st.data(),
)
def test_any_value_in_any_field_gives_an_event_or_invalid_event(name: str, value: object, data: st.DataObject) -> None:
    wire = GOLDEN[name]["wire"]
    field = data.draw(st.sampled_from(sorted(wire["data"])))
    try:
        event = decode(raw({**wire, "data": {**wire["data"], field: value}}))
        assert decode(encode(event)) == event
    except InvalidEvent as refused:
        assert refused.reason in REASONS and refused.error


@given(st.binary(max_size=200), st.integers(1, 64))
def test_home_partitions_are_those_of_the_java_client(key: bytes, count: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == kafka_murmur2(key) & 0xFFFFFFFF
    assert partition_for(key, count) == (kafka_murmur2(key) & 0x7FFFFFFF) % count


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("acme", None, "a|b"), b"acme|a%7Cb"),
        (("acme",), b"acme"),
        (("acme", None), b"acme"),
        (("acme", "50%"), b"acme|50%25"),
        (("acme", "é"), "acme|é".encode()),
    ],
)
def test_absent_parts_of_a_key_are_left_out_with_their_separator(parts: tuple[str | None, ...], key: bytes) -> None:
    assert encode_key(*parts) == key


@pytest.mark.parametrize(
    ("name", "without", "key"),
    [
        ("metric.recorded.v1", ["run"], "acme|m1"),
        ("metric.recorded.v1", ["run", "model"], "acme|unknown"),
        ("learning.recorded.v1", ["run"], "acme|t"),
        ("goal.created.v1", ["task_type"], "acme"),
        ("rl_metrics.recorded.v1", ["agent"], "acme"),
        ("forecast.issued.v1", ["model"], "acme"),
        ("trust.decayed.v1", ["id"], "acme"),
        ("judgment.recorded.v1", ["agent"], "acme|t"),
        ("custom.recorded.v1", ["task"], "acme"),
    ],
)
def test_a_key_without_its_optional_part(name: str, without: list[str], key: str) -> None:
    wire = GOLDEN[name]["wire"]
    data = {k: v for k, v in wire["data"].items() if k not in without}
    assert record_key(decode(raw({**wire, "data": data}))) == key.encode()


def test_the_first_version_of_rl_metrics_says_the_same_as_the_second_for_whoever_folds_it() -> None:
    first, second = (decode(raw(GOLDEN[f"rl_metrics.recorded.v{n}"]["wire"])) for n in (1, 2))
    assert (type(first.data), type(second.data)) == (RlMetricsRecorded, RlMetricsRecordedV2), "what was sent stays what it is"
    lifted = upcast(first)
    assert msgspec.structs.replace(lifted.data, losses={**lifted.data.losses, "entropy": "NaN"}) == second.data
    assert lifted == msgspec.structs.replace(second, id=first.id, data=lifted.data)
    assert record_key(lifted) == record_key(first) == record_key(second)
    assert upcast(second) is second


def test_every_upcast_leads_to_a_later_version_of_the_same_type_that_is_valid_on_the_wire() -> None:
    for former in UPCASTS:
        event = decode(raw(GOLDEN[former.TYPE]["wire"]))
        lifted = upcast(event)
        assert type(lifted.data) is newest(former) and newest(former) not in UPCASTS
        (name, version), (later, its) = (kind.TYPE.rsplit(".v", 1) for kind in (former, newest(former)))
        assert name == later and int(its) > int(version) and EVENT_TYPES[former.TYPE].topic == EVENT_TYPES[newest(former).TYPE].topic
        assert decode(encode(lifted)) == lifted
        assert upcast(decode(encode(event))) == lifted, "pure: the same again"


def test_too_many_values_are_too_large_and_not_a_bad_number() -> None:
    for name, field in (("metric.recorded.v1", "values"), ("rl_metrics.recorded.v2", "losses")):
        wire = GOLDEN[name]["wire"]
        with pytest.raises(InvalidEvent, match="length") as refused:
            decode(raw({**wire, "data": {**wire["data"], field: {str(n): 1 for n in range(65)}}}))
        assert (refused.value.reason, refused.value.field) == ("too_large", f"data.{field}")
