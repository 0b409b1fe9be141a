"""After a tenant is cleared no byte of it is left: a scan, over what was planted in every text of every event type.

Where something stays (the tenant's name, and what is a log by nature) this file says what, and docs/security.md says why.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import duckdb
import msgspec
import pytest

from agents.core import Core
from agents.status import tenants_of
from agents.sums import SUMMED
from streams.codec import InvalidEvent, decode
from streams.events import EVENT_TYPES
from streams.spool import Spool
from tables.partition import CLEARED, WATERMARK, Partition, Schema
from tables.rows import parse_wire_key

from ..harness import VECTORS
from ..service import Service
from .test_contract import GOLDEN
from .test_isolation import MARK, marked, questions

TENANT = "gone-tenant"
TOKENS = {
    "token-of-gone": {"tenant": TENANT, "scopes": ["read", "publish"]},
    "token-of-root": {"tenant": "*", "scopes": ["read", "publish", "admin"]},
}
NOT_FREE = {
    "kind",
    "direction",
    "scope",
    "period",
    "status",
    "previous_status",
    "strategy",
    "complexity",
    "starts",
    "deadline",
    "until",
    "severity",
    "level",
    "baseline",
    "limits",
    "history",
}
"""Texts that are one of a few words, or times; and maps without any."""
COMMANDS = {"clock.ticked.v1", "tenant.cleared.v1", "collection.changed.v1"}


def texts_of(data: type[msgspec.Struct]) -> set[str]:
    """Fields of an event type that hold texts: plain, in lists, or as names in maps."""
    found = set()
    for name, hint in get_type_hints(data).items():
        if name.isupper():
            continue
        kinds: list[Any] = [hint]
        for kind in kinds:
            kinds += get_args(kind)
        if str in kinds or any(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in kinds):
            found.add(name)
    return found - NOT_FREE


def absent(data: type[msgspec.Struct]) -> dict[str, Any]:
    """Marked values for the optional texts and lists of texts of an event type."""
    hints = get_type_hints(data)
    free = [field for field in msgspec.structs.fields(data) if field.name in texts_of(data) and not field.required]
    plain = {field.name: f"{field.name}-{MARK}" for field in free if str in (hints[field.name], *get_args(hints[field.name]))}
    return {**plain, **{field.name: [f"{field.name}-{MARK}"] for field in free if "list" in str(hints[field.name])}}


def planted() -> list[dict[str, Any]]:
    """Events of every type of the tenant, with the mark in every name and text; those in which it is not possible as they are."""
    events: list[dict[str, Any]] = [golden["wire"] for golden in GOLDEN.values()]
    events += [event for vector in VECTORS.values() for event in vector["events"]]
    found = []
    taken: Counter[str] = Counter()
    for n, event in enumerate(events):
        if event["type"] in COMMANDS or taken[event["type"]] == 15:
            continue
        taken[event["type"]] += 1
        made = {**{k: v for k, v in event.items() if k != "derivedfrom"}, "id": f"{MARK}-{n}", "source": f"of-{MARK}", "tenant": TENANT}
        more = {name: text for name, text in absent(EVENT_TYPES[event["type"]].data).items() if name not in event["data"]}
        for data in ({**more, **marked(made["data"])} if n % 2 or taken[event["type"]] == 1 else {}, marked(made["data"]), made["data"]):
            try:
                decode(json.dumps({"specversion": "1.0", **made, "data": data}).encode())
            except InvalidEvent:
                continue
            found.append({**made, "data": data})
            break
    return found


def walk(value: Any) -> Iterator[str]:
    """Every text in a value, names of maps included."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)
    elif isinstance(value, str):
        yield value


def test_the_mark_is_in_every_text_of_every_event_type() -> None:
    """Else the scan would find nothing because nothing was there."""
    seen: dict[str, set[str]] = {}
    for event in planted():
        seen.setdefault(event["type"], set()).update(name for name, value in event["data"].items() if any(MARK in text for text in walk(value)))
    missing = {}
    for name, type_ in EVENT_TYPES.items():
        if type_.topic in ("alerts", "scores") or name in COMMANDS:
            continue
        lacks = texts_of(type_.data) - seen.get(name, set())
        if lacks:
            missing[name] = sorted(lacks)
    assert missing == {}


@dataclass
class Scene:
    """A service whose tenant was cleared, and what was there before.

    Attributes:
        shown: requests of whose answers the mark was part.
        files: archive files that had the mark in them.
    """

    service: Service
    path: Path
    shown: list[str]
    files: list[str]

    @property
    def mine(self) -> dict[str, str]:
        """Headers of the tenant."""
        return {"Authorization": "Bearer token-of-gone"}

    def root(self, tenant: str) -> dict[str, str]:
        """Headers of an admin who asks of the tenant, or of all."""
        return {"Authorization": "Bearer token-of-root", "X-Tenant": tenant}


def shown(service: Service, targets: list[str], headers: dict[str, str]) -> list[str]:
    """Requests whose answer has the mark in it, but for what only repeats the question."""

    async def ask() -> list[str]:
        found = []
        for target in targets:
            path, _, query = target.partition("?")
            asked = [*urllib.parse.unquote(path).split("/"), *(one for _, value in urllib.parse.parse_qsl(query) for one in (value, *value.split(",")))]
            reply = await service.reply(target, headers)
            body = reply.body.decode("utf-8", "replace")
            for text in asked if reply.status == 200 else ():
                body = body.replace(f'"{text}"', "")
            if reply.status == 200 and MARK in body:
                found.append(target)
        return found

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    path = tmp_path_factory.mktemp("archive")
    service = Service(path, allowed=TOKENS)
    for event in planted():
        service.send([event])
        if event["type"] == "metric.recorded.v1":  # and one that no fold takes, under the same key
            service.append("training", f"{TENANT}|{MARK}".encode(), json.dumps({"tenant": TENANT, "note": MARK}).encode(), None, 4_102_444_800_000)
    service.settle()
    asked = list(dict.fromkeys(target for _, target in questions(service, planted())))
    made = Scene(service, path, [], [file.name for file in path.glob("*.parquet") if MARK.encode() in unpacked(file)])
    made.shown = shown(service, asked, made.mine)
    (path / "training-0-0-99.parquet.broken").write_text(MARK)
    service.feed.keeper.folder.scan()
    service.send([{"id": "clear", "type": "tenant.cleared.v1", "time": "2027-01-01T00:00:00Z", "tenant": TENANT, "data": {"scope": "all"}}])
    service.settle()
    service.feed.tidy()
    return made


def test_no_byte_is_in_any_answer_to_the_tenant_or_to_an_admin(scene: Scene) -> None:
    service = scene.service
    assert len(scene.shown) > 60  # they did find something
    asked = list(dict.fromkeys([*scene.shown, *(target for _, target in questions(service, planted()))]))
    assert shown(service, asked, scene.mine) == []
    assert shown(service, scene.shown, scene.root(TENANT)) == []
    summed = [path for path in asked if path.partition("?")[0].removeprefix("/api/v1") in (*SUMMED, "/status")]
    assert summed and shown(service, summed, scene.root("*")) == []
    for path in ("/api/v1/status", "/metrics", "/api/v1/alerts?state=all&limit=10000"):
        assert MARK.encode() not in service.ask(path, scene.root(TENANT)).body, path
    for path in ("/api/v1/status", "/metrics"):  # not even its name, where nobody asks for it
        assert TENANT.encode() not in service.ask(path, scene.root("*")).body, path
    assert tenants_of(service.engine) == []


def test_no_byte_is_left_of_the_changelogs_after_compaction_but_the_tenants_name_in_two_bookkeeping_keys(scene: Scene) -> None:
    service = scene.service
    kept_names = set()
    rows = marked_rows = 0
    for (topic, number), records in service.records.items():
        core = Core([Partition(topic, number, Schema(service.folds), count=service.count)])
        shard = core.gained(topic, number, committed=None, log_start=0, changelog_end=0)
        latest: dict[bytes, bytes | None] = {}
        at = next(at for at, record in enumerate(records) if b"tenant.cleared" in (record.value or b"") and b"derivedfrom" in (record.value or b""))
        for begin, end in ((0, at), (at, len(records))):  # before its copy of the clearing, and with it
            core.chunk(shard, shard.epoch, begin, end, records[begin:end])
            while (flush := core.take(shard)) is not None:
                latest.update(flush.rows)
                core.acked(flush)
            if begin == 0:
                rows += len(latest)
                marked_rows += sum(MARK.encode() in key + (value or b"") for key, value in latest.items())
        for key, value in latest.items():
            if value is not None:
                assert MARK.encode() not in key + value, (topic, key)
                assert TENANT.encode() not in value, (topic, key)
                if TENANT.encode() in key:
                    kept_names.add(parse_wire_key(key)[0].split(".")[0])
    assert marked_rows > 300 and rows > marked_rows
    assert kept_names == {WATERMARK.name, CLEARED.name}


def test_no_byte_is_in_the_archives_files_but_the_tenants_name_in_their_notes_of_what_was_cleared(scene: Scene) -> None:
    files = list(scene.path.glob("*"))
    assert len(scene.files) > 4 and len(files) > 4 and not list(scene.path.glob("*.broken"))
    for file in files:
        assert MARK.encode() not in file.read_bytes() and MARK.encode() not in unpacked(file), file
        assert TENANT.encode() not in unpacked(file), file
    notes = duckdb.sql(f"SELECT DISTINCT decode(value) FROM parquet_kv_metadata('{scene.path}/*.parquet') WHERE decode(key) = 'pulsefold'").fetchall()
    assert {tenant for (note,) in notes for tenant in json.loads(note)["cleared"]} == {TENANT}
    assert all(MARK not in note and TENANT not in (json.loads(note)["tenants"] or ()) for (note,) in notes)


def test_a_tenant_that_comes_back_is_listed_again(scene: Scene) -> None:
    scene.service.send([{"id": "new", "type": "cost.incurred.v1", "time": "2027-01-02T00:00:00Z", "tenant": TENANT, "data": {"cost": 1}}])
    assert tenants_of(scene.service.engine) == [TENANT]


def unpacked(file: Path) -> bytes:
    """All columns of a Parquet file as text."""
    if file.suffix != ".parquet":
        return b""
    return repr(duckdb.sql(f"SELECT * FROM read_parquet('{file}')").fetchall()).encode()


def test_no_byte_of_an_event_is_in_the_spools_files_once_it_was_acknowledged_and_the_spool_closed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    numbers = [spool.put(f"{MARK}-{n}", "pulsefold.costs", TENANT.encode(), (MARK * n).encode()) for n in range(200)]
    assert any(MARK.encode() in file.read_bytes() for file in tmp_path.iterdir())
    kept = spool.put("kept", "pulsefold.costs", b"other", b"other")
    spool.remove(numbers)
    spool.close()
    assert [file.name for file in tmp_path.iterdir()] == ["spool"]
    content = (tmp_path / "spool").read_bytes()
    assert MARK.encode() not in content and TENANT.encode() not in content
    with sqlite3.connect(tmp_path / "spool") as database:
        assert database.execute("SELECT n FROM spool").fetchall() == [(kept,)]
