"""Requests that may come, and what must hold of whatever they are: no view fails, whatever its parameters.

Answered by the service in this process, so that thousands fit into seconds.
"""

from __future__ import annotations

import base64
import json
import random
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec

from streams.codec import InvalidEvent

from ..service import TOKENS, Reply, Service
from .events import MOMENTS, NUMBERS, TEXTS, event, goldens

FINE = {200, 400, 401, 403, 404, 405, 409, 415, 421, 429, 501}
"""500 is a bug, and 503 would mean that a query ran out of its time."""
ACCEPTS = ("*/*", "application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.parquet", "text/csv;q=x", ";;,q=1", "é", "text/csv;q=-1")
QUERIES = (
    "SELECT * FROM events",
    "SELECT count(*) FROM events WHERE time > '2026-01-01'",
    "SELECT data->>'value' FROM events",
    "SELECT 1e308*10, 'a'||NULL, [1,NULL], {'a': 1}",
    "SELECT 170141183460469231731687303715884105727::HUGEINT AS h, -1::UTINYINT",
    "SELECT '\\x00'::BLOB, TIMESTAMP 'infinity', INTERVAL 1 YEAR, DATE '-infinity'",
    "SELECT * FROM range(100000000000)",
    "SELECT unnest(range(3)), 0/0, 'NaN'::DOUBLE",
    "",
    ";",
    "SELECT",
    "SELECT * FROM read_text('/etc/passwd')",
    "DROP VIEW events",
    "SELECT MAP {1: 2}, TIME '24:00:00', UUID '00000000-0000-0000-0000-000000000000'",
    "SELECT error('x')",
    "SELECT bit_count(1), '101'::BIT",
    "PIVOT events ON type USING count(*)",
    "SELECT " + "(" * 500 + "1" + ")" * 500,
    "SELECT TIMESTAMPTZ '2026-01-01 00:00:00+14'",
    "SELECT getenv('HOME')",
    "SELECT chr(0), chr(55296)",
    "DESCRIBE events",
    "SELECT 99999999999999999999999999999999999999::DECIMAL(38,0), (2^1000)",
    "SELECT * FROM events TABLESAMPLE 10%",
    "SELECT TIMESTAMP '294247-01-10 04:00:54.775806'",
)


def service(path: Path, seed: int = 1, n: int = 400) -> Service:
    """A service that has absorbed golden events and wild ones of tenant acme."""
    rng = random.Random(seed)
    made = Service(path, allowed={**TOKENS, "token-of-acme": {"tenant": "acme", "scopes": ["read"]}})
    for number in range(n):
        raw = event(rng) if number % 2 else json.dumps({**rng.choice(goldens()), "tenant": "acme", "id": f"g{number}"}).encode()
        try:
            made.send([raw])
        except InvalidEvent:  # it may be on any topic
            made.send([raw], rng.choice(list(made.topics)))
    made.settle()
    return made


def names() -> list[str]:
    """Names that the service's events have, and a few that none has."""
    found = {"m", "a", "t"}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                found.add(key)
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str) and len(value) < 300:
            found.add(value)

    for golden in goldens():
        walk(golden["data"])
    return sorted(found)


def described(made: Service) -> dict[str, Any]:
    """Paths of the API's description that answer and end."""
    return {path: ways for path, ways in made.ask("/openapi.json").json()["paths"].items() if "get" in ways and not path.endswith("/stream")}


def quoted(value: Any, rng: random.Random) -> str:
    """A value as a part of an address, sometimes in bytes that are no text."""
    if rng.random() < 0.1:
        return "".join(f"%{byte:02x}" for byte in rng.randbytes(rng.randrange(1, 6)))
    text = value if isinstance(value, str) else json.dumps(value)
    return urllib.parse.quote(text.encode("utf-8", "surrogatepass"), safe="")


def request(rng: random.Random, paths: dict[str, Any], known: list[str]) -> tuple[str, dict[str, str]]:
    """Address and headers of a request."""
    path = rng.choice(list(paths))
    params = paths[path].get("get", {}).get("parameters", [])

    def value(name: str) -> Any:
        if name == "query" and rng.random() < 0.8:
            return rng.choice(QUERIES)
        if name in ("limit", "window", "slide", "points", "days", "min_count", "threshold", "z", "amount") and rng.random() < 0.7:
            return rng.choice(("1", "2", "10000", "100000", "0", "-1", "1h", "15m", "1d", "7d", "1e3", "1e308", "0.5", "nan", "inf", str(2**63), str(2**64)))
        if name in ("since", "until", "at", "as_of") and rng.random() < 0.7:
            return rng.choice((*MOMENTS, "2026-03-02", "2026-13-01", "now", "0", "1e400"))
        if name == "filter" and rng.random() < 0.7:
            return json.dumps({rng.choice(TEXTS): rng.choice((*NUMBERS[:20], *TEXTS)) for _ in range(rng.randrange(3))})
        if name == "metric" and rng.random() < 0.5:
            return rng.choice(("success", "quality", "duration_ms", "tokens", "loss"))
        if name == "cursor" and rng.random() < 0.7:
            return cursor(rng)
        if name == "kind" and rng.random() < 0.7:
            return rng.choice(("model", "variable", "agent"))
        return rng.choice(known) if rng.random() < 0.6 else rng.choice((*TEXTS, *NUMBERS))

    query = []
    for one in params:
        if one["in"] == "path":
            path = path.replace("{" + one["name"] + "}", quoted(value(one["name"]), rng))
        elif one["required"] or rng.random() < 0.35:
            query += [f"{one['name']}={quoted(value(one['name']), rng)}"] * rng.choice((1, 1, 1, 2))
    if rng.random() < 0.05:
        query.append(f"{quoted(rng.choice(TEXTS), rng)}={quoted(rng.choice(TEXTS), rng)}")
    headers = {"Authorization": "Bearer token-of-acme"}
    if rng.random() < 0.3:
        headers["Accept"] = rng.choice(ACCEPTS)
    if rng.random() < 0.03:
        headers[rng.choice(("Authorization", "X-Tenant"))] = rng.choice(("Bearer é", "*", "Basic eA==", "Bearer", "é", "acme,other", ""))
    return path + ("?" + "&".join(query) if query else ""), headers


def cursor(rng: random.Random) -> str:
    """A cursor that looks like ours."""
    places: tuple[tuple[Any, ...], ...] = (
        ("newest", rng.choice((0, 2**62, -(2**63), 2**64 - 1)), rng.choice((0, -1, 2**63)), rng.choice((0, 1, 2**40))),
        ("oldest", rng.choice((0, 2**63 - 1, 2**64 - 1, -1)), rng.choice(("training", "x", "")), 0, rng.choice((0, 2**64 - 1))),
        ("log", {"forecasts": [rng.choice((0, -1, 2**63, 2**64 - 1)), 0]}),
        ("log", {"judgments": [0, 2**63 - 1], "training": [-(2**63), 0]}),
        ("log", {}),
        ("newest",),
    )
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(rng.choice(places))).rstrip(b"=").decode()


def fine(reply: Reply) -> bool:
    """Whether an answer is one that a caller can make sense of."""
    if reply.status not in FINE:
        return False
    if reply.status != 200:
        body = reply.json()
        return bool(reply.headers["Content-Type"].startswith("application/problem+json") and body["status"] == reply.status and body["detail"])
    return "json" not in reply.headers["Content-Type"] or "ndjson" in reply.headers["Content-Type"] or reply.json() is not None
