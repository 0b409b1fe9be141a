"""Nothing of one tenant shows in, or changes, what another is answered: over every path of the API's description, in every format.

Three tenants sit in the same logs: `b`, who asks; `a`, whose every name carries a mark; and `twin`, who uses b's very names and ids
with other contents. B is then asked everything that there is, and answered as if it were alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import urllib.parse
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.codec import InvalidEvent, decode
from tables.variables import Variables

from ..harness import VECTORS
from ..service import TOKENS, Server, Service
from .test_contract import GOLDEN

MARK = "zqa7mark"
AS_B = {"Authorization": "Bearer token-of-b"}
WORDS = {  # free texts and names, whatever the event
    "id", "name", "forecast_id", "model", "arc_label", "symbolic_tag", "confidence_status", "variable", "metric_id", "metric_type", "run", "task_type",
    "agent", "goal_id", "metric", "task", "judge", "execution_id", "model_version", "refers_to", "description", "feedback", "rationale", "message",
    "reason", "rule", "quality",
}  # fmt: skip
MAPS = {"losses", "inputs", "values", "criteria", "rubric_scores", "metadata", "fields", "new_score"}
LISTS = {"tags", "capabilities"}
VOLATILE = {"uptime_s", "cursor", "offset", "evidence", "at", "seconds_since_update", "age_s", "idle_s", "lag", "report_time", "convergence_rate", "bytes"}
"""What depends on the clock, or on where in a shared log a record lies."""


def marked(value: Any, field: str = "") -> Any:
    """Data with the mark in every name and text."""
    if isinstance(value, dict):
        return {(name + MARK if field in MAPS else name): marked(item, "" if field in MAPS else name) for name, item in value.items()}
    if isinstance(value, list):
        return [item + MARK if field in LISTS and isinstance(item, str) else marked(item, field) for item in value]
    if isinstance(value, str):
        if field in WORDS:
            return value + MARK
        kind, colon, name = value.partition(":")
        if field == "scope" and colon:
            return f"{kind}:{name}{MARK}"
    return value


def other(value: Any, rng: random.Random) -> Any:
    """Data with other contents under the same names."""
    if isinstance(value, dict):
        return {name: other(item, rng) for name, item in value.items()}
    if isinstance(value, bool):
        return not value
    if isinstance(value, float) and 0 < value <= 1:
        return rng.random() * 0.9 + 0.05
    if isinstance(value, int) and value > 1:
        return value + rng.randint(1, 5)
    return value


def corpus() -> list[dict[str, Any]]:
    """Every event of the golden vectors and files, of one tenant, ids and times made unique: equal times are sorted by offset."""
    found = []
    for name, vector in VECTORS.items():
        for event in vector["events"]:
            if event["type"] not in ("tenant.cleared.v1", "collection.changed.v1", "trust.decayed.v1"):
                found.append({**{k: v for k, v in event.items() if k != "tenant"}, "id": f"{name}-{event['id']}"})
    for golden in GOLDEN.values():
        if golden["wire"]["type"] not in ("tenant.cleared.v1", "collection.changed.v1", "trust.decayed.v1", "clock.ticked.v1"):
            found.append({k: v for k, v in golden["wire"].items() if k not in ("tenant", "derivedfrom")})
    for n, event in enumerate(found):
        if "time" in event:
            event["time"] = (datetime.fromisoformat(event["time"]) + timedelta(microseconds=n)).isoformat()
    return found


def valid(event: dict[str, Any]) -> bool:
    try:
        decode(json.dumps({"specversion": "1.0", "source": "s", **event}).encode())
    except InvalidEvent:
        return False
    return True


def fill(service: Service, tenants: tuple[str, ...]) -> None:
    rng = random.Random(3)
    for event in corpus():
        for tenant in tenants:
            data = marked(event["data"]) if tenant == "a" else other(event["data"], rng) if tenant == "twin" else event["data"]
            made = {**event, "tenant": tenant, "data": data, "source": f"of-{MARK}" if tenant == "a" else "trainer"}
            service.send([made if valid(made) else {**event, "tenant": tenant}])
    service.settle()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Service:
    made = Service(tmp_path_factory.mktemp("shared"), allowed=TOKENS)
    fill(made, ("a", "twin", "b"))
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Service:
    made = Service(tmp_path_factory.mktemp("alone"), allowed=TOKENS)
    fill(made, ("b",))
    return made


def names_of(field: str, events: list[dict[str, Any]]) -> list[str]:
    """Values that a field has in events, the most frequent first."""
    counts: dict[str, int] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if name in MAPS and field in ("name", "metric", "variable"):
                    counts[key] = counts.get(key, 0) + 1
                walk(item, key)
        elif isinstance(value, list):
            for item in value:
                walk(item, name)
        elif isinstance(value, str) and name == field:
            counts[value] = counts.get(value, 0) + 1

    for event in events:
        walk(event["data"], "")
    return sorted(counts, key=lambda name: -counts[name])


def paths(service: Service) -> dict[str, Any]:
    return dict(service.ask("/openapi.json").json()["paths"])


def questions(service: Service, events: list[dict[str, Any]] | None = None) -> Iterator[tuple[str, str]]:
    """(path of the description, a request): each with several names of the events and parameters, so that most of them find something."""
    events = corpus() if events is None else events
    asked_of: dict[str, list[dict[str, Any]]] = {}
    for vector in VECTORS.values():
        for check in vector["checks"]:
            asked_of.setdefault(check["path"], []).append(check.get("params", {}))
    metrics = [event["id"] for event in events if event["type"] == "metric.recorded.v1"]
    values = {
        "kind": ["variable", "model", "agent"],
        "id": [*names_of("id", events)[:6], *names_of("goal_id", events)[:4], *names_of("agent", events)[:4], *metrics[:4]],
        "name": [*names_of("name", events)[:3], *names_of("variable", events)[:3], *names_of("metric", events)[:2]],
        "query": ["SELECT * FROM events", "SELECT tenant, count(*) AS n FROM events GROUP BY tenant", "SELECT DISTINCT model, run, agent, source FROM events"],
        "task": names_of("task_type", events)[:3],
        "agent": names_of("agent", events)[:2],
        "agents": [",".join(names_of("agent", events)[:3])],
        "metric": ["loss", "success", "quality", *names_of("metric_type", events)[:3]],
        "scope": ["tenant", *(s for s in names_of("scope", events) if ":" in s)],
        "ids": names_of("id", events)[:3],
        "amount": ["1.5"],
        "panel": ["curves", "scores", "rates", "goals"],
        "models": names_of("model", events)[:2],
        "task_type": names_of("task_type", events)[:2],
    }
    clocked = {view.path for fold in service.folds for view in fold.views if "at" in view.params.__struct_fields__}  # else by the clock, which differs
    optional = ("task", "agent", "agents", "metric", "kind", "scope", "ids", "models", "task_type")
    for path, methods in paths(service).items():
        if "get" not in methods or path.endswith("/stream"):
            continue
        params = methods["get"].get("parameters", [])
        need = [one["name"] for one in params if one["required"]]
        inside = [name for name in need if "{" + name + "}" in path]
        rows: list[dict[str, Any]] = [{}]
        for name in need:
            rows = [{**row, name: value} for row in rows for value in values[name]]
        extra: list[dict[str, Any]] = [{}]
        known = {one["name"] for one in params}
        extra += [{"limit": "10000"}] if "limit" in known else []
        extra += [{"as_of": "2026-11-20T00:00:00Z"}] if "as_of" in known else []
        extra += [{name: value} for name in optional if name in known and name not in need for value in values[name]]
        extra += asked_of.get(path.removeprefix("/api/v1"), [])
        for row in rows:
            for more in extra if len(rows) < 8 else extra[:2]:
                given = {**({"at": "2026-12-01T00:00:00Z"} if path.removeprefix("/api/v1") in clocked else {}), **row, **more}
                at = path
                for name in inside:
                    at = at.replace("{" + name + "}", urllib.parse.quote(str(given.pop(name)), safe=""))
                query = urllib.parse.urlencode({k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items()})
                yield path, at + ("?" + query if query else "")


def still(value: Any) -> Any:
    """An answer without what may differ."""
    if isinstance(value, dict):
        return {name: still(item) for name, item in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [still(item) for item in value]
    return value


PLACE = re.compile(rb'"offset":\d+,')
"""Places on a log are the same for all who share it: that others write there may be seen, and nothing of what they write."""
FORMATS = ("application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.parquet")


def test_no_byte_of_another_tenant_shows_in_any_answer_and_none_of_them_changes_it(shared: Service, alone: Service) -> None:
    async def ask(service: Service, target: str, accept: str) -> Any:
        return await service.reply(target, {**AS_B, "Accept": accept})

    asked = list(dict.fromkeys(questions(shared)))
    tables = {path: target for path, target in asked if path.startswith(("/api/v1/metrics", "/api/v1/costs/events", "/api/v1/exports", "/api/v1/performance"))}

    async def every() -> tuple[dict[str, int], list[str]]:
        found: dict[str, int] = {}
        differ = []
        for path, target in asked:
            for accept in (FORMATS if path.endswith("/metrics") else FORMATS[:3]) if tables.get(path) == target else FORMATS[:1]:
                mine, lonely = await ask(shared, target, accept), await ask(alone, target, accept)
                assert mine.status < 500, (target, mine.body)
                assert MARK.encode() not in mine.body, target
                assert MARK not in str(mine.headers), target
                assert b"twin" not in mine.body, target
                found[path] = found.get(path, 0) + (mine.status == 200)
                if "json" in mine.headers["Content-Type"] and "ndjson" not in mine.headers["Content-Type"]:
                    if "/sql" not in path and still(mine.json()) != still(lonely.json()):
                        differ.append(target)
                elif "parquet" not in accept and PLACE.sub(b"", mine.body) != PLACE.sub(b"", lonely.body):
                    differ.append(f"{target} {accept}")
        return found, differ

    found, differ = asyncio.run(every())
    assert not differ
    described = {path for path, methods in paths(shared).items() if "get" in methods and not path.endswith("/stream")}
    assert set(found) == described
    assert {path for path, n in found.items() if n == 0} == set(), "these were asked nothing that they answer, so nothing was shown of them"


def test_the_other_tenants_are_really_there(shared: Service) -> None:
    for tenant in ("a", "twin"):
        headers = {"Authorization": "Bearer token-of-root", "X-Tenant": tenant}
        body = shared.ask("/api/v1/sql?query=SELECT+*+FROM+events&limit=10000", headers)
        assert body.json()["count"] > 300
        assert (MARK.encode() in body.body) == (tenant == "a")
        assert (MARK.encode() in shared.ask("/api/v1/variables?limit=1000", headers).body) == (tenant == "a")
        assert (MARK.encode() in shared.ask("/api/v1/alerts?state=all", headers).body) == (tenant == "a")


def test_asking_by_another_tenants_names_finds_what_a_name_that_nobody_has_finds(shared: Service) -> None:
    marked_events = [{"data": marked(event["data"])} for event in corpus()]
    n = 0
    for path, methods in paths(shared).items():
        inside = [one["name"] for one in methods.get("get", {}).get("parameters", []) if one["in"] == "path"]
        for name in [name for name in inside if name != "kind"]:
            fields = {"id": ("id", "agent", "goal_id"), "name": ("name", "variable", "metric")}.get(name, (name,))
            for theirs in [one for field in fields for one in names_of(field, marked_events)[:5]]:
                nobodys = theirs.replace(MARK, "nobody77")
                at = path.replace("{kind}", "model") + ("?at=2026-12-01T00:00:00Z" if path.endswith("{kind}/{id}") else "")
                found, nothing = (shared.ask(at.replace("{" + name + "}", urllib.parse.quote(one, safe="")), AS_B) for one in (theirs, nobodys))
                assert found.status == nothing.status
                assert found.body.replace(theirs.encode(), b"") == nothing.body.replace(nobodys.encode(), b""), path
                n += 1
    assert n > 20


SPYING = [
    "SELECT * FROM events WHERE tenant = 'a'",
    f"SELECT * FROM events WHERE data LIKE '%{MARK}%'",
    "SELECT * FROM events UNION ALL SELECT * FROM events",
    "WITH x AS (SELECT * FROM events) SELECT count(*) FROM x WHERE tenant <> 'b'",
    "SELECT 1/(SELECT count(*) FROM events WHERE tenant = 'a')",
]


@pytest.mark.parametrize("query", SPYING)
def test_sql_reaches_no_row_of_another_tenant(shared: Service, query: str) -> None:
    reply = shared.ask("/api/v1/sql?" + urllib.parse.urlencode({"query": query, "limit": 10_000}), AS_B)
    assert MARK.encode() not in reply.body.replace(query.encode(), b"")
    if reply.status == 200:
        assert all(row.get("tenant", "b") == "b" for row in reply.json()["rows"])


def test_every_way_to_take_another_tenant_is_refused(shared: Service) -> None:
    described = [path for path, methods in paths(shared).items() if "get" in methods]
    for path in described:
        at = path.replace("{kind}", "model").replace("{id}", "x").replace("{name}", "x").replace("/sql", "/sql?query=SELECT+1")
        for tenant in ("a", "*", "A", "a,b", "a%00", ""):
            assert shared.ask(at, {**AS_B, "X-Tenant": tenant}).status in (400, 403), (path, tenant)
        assert shared.ask(at).status == 401
        assert shared.ask(at, {"Authorization": "Bearer token-of-c"}).status == 401
        joined = at + ("&" if "?" in at else "?") + "tenant=a"
        assert shared.ask(joined, AS_B).status == 400, path


def test_status_tells_a_tenants_token_of_its_own_and_an_admin_of_all(shared: Service) -> None:
    mine = shared.ask("/api/v1/status", AS_B).json()
    assert mine.keys() & {"settings", "counts", "partitions", "engine", "tenants"} == set()
    assert mine["alerts"]["open"] > 0 and mine["tables"]
    root = {"Authorization": "Bearer token-of-root"}
    assert shared.ask("/api/v1/status", root).status == 400
    full = shared.ask("/api/v1/status", {**root, "X-Tenant": "b"}).json()
    assert {"settings", "counts", "partitions", "engine"} <= full.keys() and "tenants" not in full
    every = shared.ask("/api/v1/status", {**root, "X-Tenant": "*"}).json()
    told = {one["tenant"]: one for one in every["tenants"]}
    assert set(told) == {"a", "b", "twin"}
    assert told["b"]["tables"] == mine["tables"]
    keys = sum(one["keys"] for one in every["tables"])
    own = sum(one["keys"] for one in every["tables"] if one["name"].split(".")[0] in ("counters", "ids"))
    assert sum(one["keys"] for who in told.values() for one in who["tables"]) == keys - own


def test_a_stream_tells_of_its_own_tenant_only(shared: Service) -> None:
    import http.client

    def alert(tenant: str, n: int) -> tuple[bytes, bytes]:
        data = {"alert_id": f"{tenant}{n}", "rule": "r", "subject": MARK if tenant == "a" else "s", "severity": "info", "period": "all", "message": "m",
                "evidence": {"topic": "costs", "partition": 0, "offset": 1}}  # fmt: skip
        body = {"id": f"{tenant}-{n}", "type": "alert.opened.v1", "time": "2026-03-02T00:00:00Z", "tenant": tenant, "data": data}
        return f"{tenant}{n}".encode(), json.dumps(body).encode()

    with Server(shared) as server:
        for path in ("/api/v1/alerts/stream", "/api/v1/status/stream"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connection.request("GET", path, headers=AS_B)
            response = connection.getresponse()
            assert response.status == 200
            response.readline()

            async def tell(path: str = path) -> None:
                for n, tenant in enumerate(("a", "twin", "a", "b")):
                    key, value = alert(tenant, hash(path) % 1000 * 10 + n)
                    shared.engine.board.read(key, value, (0, n))

            server.run(tell())
            heard = b""
            while b"event: alert.opened" not in heard:
                line = response.readline()
                assert line
                heard += line
            heard += response.readline() + response.readline()
            assert MARK.encode() not in heard
            assert b'"tenant":"b"' in heard and b'"tenant":"a"' not in heard and b"twin" not in heard
            connection.close()


def test_it_would_be_found_if_a_table_forgot_the_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: a reader that is bound to the wrong tenant is caught by the mark."""
    made = Service(tmp_path, allowed=TOKENS)
    for tenant in ("a", "b"):
        data = {"forecast_id": "f", "inputs": {f"x{MARK}" if tenant == "a" else "x": 1.0}}
        made.send([{"id": "1", "type": "forecast.issued.v1", "tenant": tenant, "time": "2026-03-02T00:00:00Z", "data": data}])
    assert MARK.encode() not in made.ask("/api/v1/variables", AS_B).body
    assert any(isinstance(fold, Variables) for fold in made.folds)
    reader = made.routes.reader
    monkeypatch.setattr(made.routes, "reader", lambda tenant: reader("a"))
    assert MARK.encode() in made.ask("/api/v1/variables", AS_B).body
