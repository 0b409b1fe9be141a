"""Bytes that may be on a topic, and what must hold of whatever they are.

The one sentence: for any bytes, the partition goes on, and each record is folded, a duplicate, or a dead letter.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import orjson

from agents.board import Board
from agents.registry import schema
from streams.codec import InvalidEvent, decode
from streams.topics import SOURCE_TOPICS
from tables.fold import BadParameter, NotFound, View
from tables.partition import COUNTERS, Partition, Schema
from tables.reader import PartitionReader
from tables.rows import parse_wire_key

from ..harness import VECTORS, Rec

NOW_MS = 1_772_500_000_000
"""Kafka timestamps begin here (March 2026), so that most events are neither old nor of the future."""
MAX_ROW = 64 << 10
MOMENTS = (
    "2026-03-02T00:00:00Z",
    "2026-03-02T23:59:59.999999+14:00",
    "1970-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "9998-12-31T23:59:59Z",
    "9999-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "2026-03-03T01:02:03",
    "2024-02-29T12:00:00-12:00",
    "0001-01-01T00:00:00Z",
    "2026-03-01",
)
TEXTS = (
    "",
    "a",
    "m",
    "run-1",
    "NaN",
    "Infinity",
    "-Infinity",
    "nan",
    "inf",
    "1e400",
    "0.1",
    "-1",
    "1e-7",
    "0.0000005",
    "1" * 40,
    "x" * 257,
    "x" * 5000,
    "|",
    "%",
    "a|b",
    "%7C",
    "=1+1",
    "<b>",
    "\u0000",
    "\n",
    "\t",
    "é",
    "\u202e",
    "\ud800",
    "𝔘" * 64,
    "default",
    "*",
    "model:m",
    "tag:",
    "tenant",
    "..",
    "true",
    "null",
    "[]",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    5,
    0.5,
    1.0,
    -0.0,
    1e-320,
    5e-324,
    1e308,
    -1e308,
    1.7976931348623157e308,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.1,
    0.9999999999999999,
    1.0000000000000002,
    1e9,
    1e9 + 1,
    1e-9,
    1e16,
    1e200,
    1e154,
    1.4e154,
    1e-200,
    float("nan"),
    float("inf"),
    3,
    97,
    1e5,
    1e6,
)


class FromBytes(random.Random):
    """Chance that is read from bytes, so that whoever varies or shrinks the bytes varies and shrinks what is made of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self.data = data
        self.at = 0

    def getrandbits(self, k: int) -> int:
        """The next bits; zeros when there are none left."""
        n = (k + 7) // 8
        part = self.data[self.at : self.at + n]
        self.at += n
        return int.from_bytes(part, "big") >> max(0, len(part) * 8 - k)

    def random(self) -> float:
        """The next four bytes as a number from 0 to 1."""
        return self.getrandbits(32) / 2**32


@cache
def goldens() -> list[dict[str, Any]]:
    """Valid events of every type, and all those of the vectors."""
    files = sorted((Path(__file__).parent.parent / "golden" / "events").glob("*.json"))
    found = [json.loads(file.read_text())["wire"] for file in files] * 8
    return found + [event for vector in VECTORS.values() for event in vector["events"][:40]]


def wild(rng: random.Random, depth: int = 0) -> Any:
    """A value that nobody promised not to send."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return rng.choice(MOMENTS)
    if kind == 7:
        return {rng.choice(TEXTS): wild(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 8:
        return [wild(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.random() * rng.choice((1, 10, 1e-6, 1e12))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    found: list[tuple[Any, Any]] = []
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            found += places(item)
    return found


def event(rng: random.Random) -> bytes:
    """A golden event, changed in some places: mostly in its data, so that it often stays valid."""
    body = json.loads(json.dumps(rng.choice(goldens())))
    body["id"] = f"e{rng.randrange(40)}"
    body["tenant"] = rng.choice(("acme", "acme", "acme", "other"))
    if rng.random() < 0.6:
        body["time"] = f"2026-03-0{rng.randrange(1, 4)}T{rng.randrange(24):02}:{rng.randrange(60):02}:00Z"
    if rng.random() < 0.9:
        body.pop("derivedfrom", None)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        where = places(body["data"]) if isinstance(body.get("data"), (dict, list)) and rng.random() < 0.85 else places(body)
        if not where:
            break
        holder, key = rng.choice(where)
        change = rng.randrange(6)
        if change == 0 and isinstance(holder, dict):
            holder.pop(key)
        elif change == 1 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = wild(rng)
        elif change == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(NUMBERS)
        elif change == 3 and isinstance(holder[key], str):
            holder[key] = rng.choice((*TEXTS, *MOMENTS))
        elif change == 4 and isinstance(holder[key], list) and holder[key]:
            holder[key] = holder[key] * rng.choice((2, 65, 1001))
        else:
            holder[key] = wild(rng)
    raw = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.08:
        cut = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(cut))
            cut[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        raw = bytes(cut)
    return raw


@cache
def tables() -> Schema:
    """The whole registry with its default settings."""
    return schema()


def partitions() -> dict[str, list[Partition]]:
    """One fresh partition of every source topic."""
    found = {topic: [Partition(topic, 0, tables())] for topic in SOURCE_TOPICS}
    for mine in found.values():
        mine[0].peers = mine
    return found


def records(raws: Sequence[bytes | None]) -> list[Rec]:
    """Records of a log, a second apart."""
    return [Rec(n, NOW_MS + 1000 * n, b"k", raw) for n, raw in enumerate(raws)]


def rows_of(partition: Partition) -> dict[bytes, bytes]:
    """Every row of a partition by its changelog key, as bytes."""
    return {key: value for key, value, _, _ in partition.drain()}


def check(raws: Sequence[bytes | None], topic: str, *, look: bool = False) -> Partition:
    """What must hold for any bytes on a topic.

    Args:
        look: ask every view too that can be asked without naming anything.

    Raises:
        AssertionError: it does not; anything else is raised by what is wrong itself.
    """
    whole, single = partitions(), partitions()
    partition, other = whole[topic][0], single[topic][0]
    log = records(raws)
    assert partition.absorb(log) == len(raws)
    for record in log:
        other.absorb([record])
    counters = COUNTERS.load(partition.spaces[COUNTERS.index][""][()])
    assert counters.folded + counters.duplicate + counters.dead_lettered == len(raws)
    assert sum(counters.reasons.values()) == counters.dead_lettered
    assert partition.next == len(raws) and partition.whole

    board = Board()
    letters: dict[int, tuple[bytes | None, dict[str, bytes]]] = {}
    for out in partition.outputs:
        if out.topic == "dead-letters":
            assert out.offset not in letters, "one letter a record"
            letters[out.offset] = out.value, dict(out.headers)
        elif out.topic == "alerts":
            board.read(out.key, out.value, (0, 0))
        else:
            assert out.value is not None
            decode(out.value)
    assert board.n_odd == 0
    assert len(letters) == counters.dead_lettered
    for offset, raw in enumerate(raws):
        try:
            decode(raw)
        except InvalidEvent as bad:
            value, headers = letters[offset]
            assert value == raw and headers["reason"] == bad.reason.encode(), (bad.reason, headers)
            headers["error"].decode()
    mine = rows_of(partition)
    assert mine == rows_of(other), "the rows depend on how the log is cut"
    assert [(o.topic, o.key, o.value) for o in partition.outputs] == [(o.topic, o.key, o.value) for o in other.outputs]
    for key, value in mine.items():
        parse_wire_key(key)
        assert len(value) <= MAX_ROW, (key[:80], len(value))
    if look:
        for tenant in ("acme", "other"):
            for view in simple_views():
                ask(whole, view, tenant)
    return partition


@cache
def simple_views() -> list[View]:
    """Views that can be asked without a parameter."""
    return [v for fold in tables().folds for v in fold.views if not any(field.required for field in msgspec.structs.fields(v.params))]


def ask(logs: dict[str, list[Partition]], view: View, tenant: str, **params: Any) -> dict[str, Any] | None:
    """A view's answer, which must be JSON; None where it finds nothing."""
    homes = {table.wire: fold.topics for fold in tables().folds for table in fold.tables if fold.topics}
    reader = PartitionReader(logs, homes, tenant, NOW_MS * 1000)
    try:
        answer = view.answer(reader, view.params(**params))
    except (NotFound, BadParameter):
        return None
    orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS)
    return answer
