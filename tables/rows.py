"""Rows: the unit of state, of the changelog and of replication.

The rule this file keeps: a row is (tenant, key) -> (applied, state), where ``applied`` is the offset of the last record
absorbed. A row is a pure function of the log's prefix, so of two rows of one key **the higher applied wins**.
"""

from __future__ import annotations

import hashlib
from typing import Any, Generic, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

MOST_SHARED = 1_000
"""Different values of a place in a table's keys up to which rows share them."""
_encode = msgspec.msgpack.Encoder().encode


class Row:
    """One key's state in one partition.

    Attributes:
        tenant: owner of the key; ``""`` for the partition's own bookkeeping.
        key: the key's parts, without the tenant.
        applied: offset of the last record absorbed, -1 before the first.
        logged: highest ``applied`` seen in the changelog, -1 before the first.
        state: the table's struct, or its msgpack bytes until somebody touches it.
    """

    __slots__ = ("applied", "key", "logged", "state", "tenant")

    def __init__(self, tenant: str, key: tuple[str, ...], applied: int, logged: int, state: Any) -> None:
        self.tenant = tenant
        self.key = key
        self.applied = applied
        self.logged = logged
        self.state: Any = state


class Table(Generic[S]):
    """A kind of row: its name on the wire, its state's type and its place in a flush.

    Args:
        name: literal, part of every row key; never a Python path.
        state: array-like msgspec struct whose fields all have defaults (a fresh row is ``state()``).
        rank: place in a flush. **Readers before what they read**: a table whose fold reads another's rows has the lower rank.
        version: bumped when the meaning of the state changes; rows of another version are never read.
        settings: what the fold reads of the settings; its digest is part of the version.

    Attributes:
        wire: name, version and digest. (On the changelog a row is named by its schema, see `tables.partition.Schema`.)
    """

    def __init__(self, name: str, state: type[S], *, rank: int, version: int = 1, settings: msgspec.Struct | None = None) -> None:
        self.name = name
        self.type = state
        self.rank = rank
        self.version = version
        self.settings = settings
        digest = hashlib.sha256(_encode(settings)).hexdigest()[:8] if settings is not None else "0"
        self.wire = f"{name}.{version}.{digest}"
        self.index = -1  # set by the partition's schema
        self._decode = msgspec.msgpack.Decoder(state).decode
        self._shared: list[tuple[int, dict[str, str]]] | None = None  # places in (tenant, *key), and what stands there

    def __repr__(self) -> str:
        return f"Table({self.wire})"

    def fresh(self) -> S:
        """State of a key that has absorbed nothing."""
        return self.type()

    def names(self, tenant: str, key: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """Tenant and key of a new row, in which places with few values (tenants, kinds, windows) hold one string a value: a fifth of a row's memory."""
        parts = [tenant, *key]
        if self._shared is None:
            self._shared = [(place, {}) for place in range(len(parts))]
        for place, values in self._shared:
            if place < len(parts):
                parts[place] = values.setdefault(parts[place], parts[place])
                if len(values) > MOST_SHARED:
                    self._shared = [shared for shared in self._shared if shared[0] != place]
        return parts[0], tuple(parts[1:])

    def enter(self, space: dict[tuple[str, ...], Row], tenant: str, key: tuple[str, ...], applied: int, logged: int, state: Any) -> Row:
        """A new row, in its space."""
        tenant, key = self.names(tenant, key)
        row = space[key] = Row(tenant, key, applied, logged, state)
        return row

    def load(self, row: Row) -> S:
        """State of a row, decoded on first touch and kept decoded."""
        state = row.state
        if state.__class__ is bytes:
            state = row.state = self._decode(state)  # type: ignore[arg-type]  # bytes, checked above
        return state  # type: ignore[return-value]  # by construction: rows of this table only

    def peek(self, row: Row) -> S:
        """State of a row without keeping it decoded: for scans over many cold rows."""
        state = row.state
        if state.__class__ is bytes:
            return self._decode(state)  # type: ignore[arg-type]  # bytes, checked above
        return state  # type: ignore[return-value]  # by construction: rows of this table only

    def pack(self, row: Row | None) -> None:
        """Keep a row's state as msgpack from now on, until somebody touches it: for what will hardly be changed again."""
        if row is not None and row.state.__class__ is not bytes:
            row.state = _encode(row.state)

    def dump(self, row: Row) -> bytes:
        """State of a row as msgpack."""
        state = row.state
        return state if state.__class__ is bytes else _encode(state)  # type: ignore[return-value]  # bytes, checked


def escape(part: str) -> str:
    """Percent-encode the two characters that have a meaning in keys: ``%`` and ``|``."""
    return part.replace("%", "%25").replace("|", "%7C") if "|" in part or "%" in part else part


def unescape(part: str) -> str:
    """Inverse of `escape`."""
    return part.replace("%7C", "|").replace("%25", "%") if "%" in part else part


def wire_key(table: str, tenant: str, key: tuple[str, ...]) -> bytes:
    """Changelog key of a row: table, tenant and the key's parts joined by ``|``."""
    text = "|".join((table, tenant, *key))
    if "%" in text or text.count("|") != len(key) + 1:
        text = "|".join((table, tenant, *map(escape, key)))
    return text.encode()


def parse_wire_key(raw: bytes) -> tuple[str, str, tuple[str, ...]]:
    """Inverse of `wire_key`: (table, tenant, key)."""
    parts = raw.decode().split("|")
    if b"%" in raw:
        parts = [unescape(part) for part in parts]
    return parts[0], parts[1], tuple(parts[2:])
