"""A caller's own SQL over its own events, and nothing else.

The rules this file keeps: one SELECT, over the view ``events``, in a database of its own without access to anything but the
files of the archive that can have rows of the tenant; the view holds the tenant's rows alone, and a LIMIT inside it keeps the
caller's conditions from being asked of other rows first (an error, or its absence, would tell what they hold); functions that
tell of settings, files or statistics are refused; time, memory and the size of the answer are bounded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from datetime import time as clock_time
from typing import Any

import duckdb

from streams.topics import SOURCE_TOPICS
from tables.fold import BadParameter

from . import scratch
from .archive_files import text
from .archive_read import TRIES, Snapshot, Store, TooLong

ALL = 10**12
"""More rows than there will ever be: the LIMIT that conditions do not cross."""
ANSWER_S = 20.0
MOST_BYTES = 32 << 20
"""Bytes of an answer, about."""
MEMORY = "256MB"
DISK = "1GB"
COLUMNS = (
    "topic", "partition", "offset", "timestamp", "time", "time_given", "tenant", "type", "id", "source", "derivedfrom", "key", "size", "metric_id",
    "metric_type", "model", "run", "agent", "task", "tags", "data",
)  # fmt: skip
TABLE_REFS = frozenset(("EMPTY", "SUBQUERY", "JOIN", "EXPRESSION_LIST", "PIVOT", "SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"))
TABLE_FUNCTIONS = frozenset(("unnest", "range", "generate_series"))
REFUSED = frozenset((
    "getvariable", "current_setting", "stats", "sleep_ms", "pg_sleep", "write_log", "nextval", "currval", "setval", "setseed", "getenv", "index_key",
    "parse_duckdb_log_message", "vector_type", "get_block_size", "query", "query_table", "duckdb_extensions",
))  # fmt: skip
REFUSED_BEGINNINGS = ("pg_", "has_", "inet_", "duckdb_", "pragma_", "read_", "write_", "parquet_", "current_connection")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(query: str) -> None:
    """Refuse what is not one SELECT over ``events``.

    Raises:
        BadParameter: it is not; the sentence says what is.
    """
    with duckdb.connect(":memory:", config={"threads": 1}) as parser:
        found = json.loads(parser.execute("SELECT json_serialize_sql($query)", {"query": query}).fetchall()[0][0])
    if found["error"]:
        raise BadParameter("query", f"expected one SELECT: {found.get('error_message', 'cannot be read')}")
    if len(found["statements"]) != 1:
        raise BadParameter("query", f"expected one SELECT, got {len(found['statements'])} statements")
    names: set[str] = set()
    _ctes(found, names)
    _walk(found["statements"], names)


def _ctes(node: Any, names: set[str]) -> None:
    """Names that WITH gives."""
    if isinstance(node, dict):
        for one in (node.get("cte_map") or {}).get("map", ()):
            names.add(str(one["key"]).lower())
        for value in node.values():
            _ctes(value, names)
    elif isinstance(node, list):
        for value in node:
            _ctes(value, names)


def _walk(node: Any, ctes: set[str]) -> None:
    if isinstance(node, list):
        for value in node:
            _walk(value, ctes)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if "function_name" in node:
        name = str(node["function_name"]).lower()
        if name in REFUSED or name.startswith(REFUSED_BEGINNINGS):
            raise BadParameter("query", f"the function {name} is not allowed here")
    if "table_name" in node and kind != "COLUMN_REF" and kind != "SHOW_REF":
        _table(node, ctes)
    elif kind == "SHOW_REF":
        if node.get("table_name") or node.get("show_type") not in ("DESCRIBE", "SUMMARY"):
            raise BadParameter("query", "expected one SELECT (or DESCRIBE events)")
    elif kind == "TABLE_FUNCTION":
        name = str((node.get("function") or {}).get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise BadParameter("query", f"the table function {name or '?'} is not allowed here; the table is events")
    elif "sample" in node and kind not in TABLE_REFS:
        raise BadParameter("query", f"{kind} is not allowed here")
    for value in node.values():
        _walk(value, ctes)


def _table(node: Mapping[str, Any], ctes: set[str]) -> None:
    name = str(node["table_name"])
    path = (node.get("qualified_name") or {}).get("path", [name])
    if node.get("catalog_name") or node.get("schema_name") or node.get("at_clause") or len(path) != 1 or not _NAME.fullmatch(name):
        raise BadParameter("query", f"{'.'.join(map(str, path))} is not a table here; the table is events")
    if name.lower() != "events" and name.lower() not in ctes:
        raise BadParameter("query", f"{name} is not a table here; the table is events")


def run(store: Store, tenant: str, query: str, limit: int) -> tuple[list[dict[str, str]], list[dict[str, Any]], bool]:
    """Answer a query.

    Args:
        limit: most rows.

    Returns:
        columns (name, type), rows, and whether there were more.

    Raises:
        BadParameter: the query cannot be answered, and why.
        TooLong: nor in time.
    """
    check(query)
    gone: duckdb.Error | None = None
    for _ in range(TRIES):
        try:
            with store.reading():
                return _run(store, tenant, query, limit)
        except Moved as moved:
            gone = moved.error
            if not moved.written:
                store.refresh()
    assert gone is not None
    raise gone


class Moved(Exception):
    """The tail was written to a file while the query was being set up, or another archiver of the folder replaced a file."""

    def __init__(self, error: duckdb.Error, *, written: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.written = written
        """It is the tail, and what was in it is in files that are known."""


def _run(store: Store, tenant: str, query: str, limit: int) -> tuple[list[dict[str, str]], list[dict[str, Any]], bool]:
    folder = tempfile.mkdtemp(prefix="sql-", dir=scratch.home())
    database = duckdb.connect(
        ":memory:",
        config={
            "threads": 1, "memory_limit": MEMORY, "temp_directory": folder, "max_temp_directory_size": DISK, "autoinstall_known_extensions": False,
            "autoload_known_extensions": False, "enable_external_file_cache": False, "python_enable_replacements": False,
        },
    )  # fmt: skip
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        database.interrupt()  # what is under way; between two statements there is nothing

    watch = threading.Timer(ANSWER_S, interrupt)
    watch.start()
    try:
        files = _events(store, database, tenant, folder)
        if late.is_set():
            raise TooLong
        try:
            return _answer(database, query, limit)
        except duckdb.InterruptException:
            raise
        except duckdb.Error as wrong:
            if _gone(files):
                raise Moved(wrong) from None
            raise BadParameter("query", str(wrong).splitlines()[0]) from None
    except duckdb.InterruptException:
        raise TooLong from None
    finally:
        watch.cancel()
        database.close()
        shutil.rmtree(folder, ignore_errors=True)


def _gone(files: Sequence[str]) -> bool:
    """Whether one is no longer there. DuckDB says of such a file that it may not look for it: the doors are shut."""
    return not all(os.path.exists(path) for path in files)


def _events(store: Store, database: duckdb.DuckDBPyConnection, tenant: str, folder: str) -> list[str]:
    """Make the view, then shut every door; returns the files that the view reads.

    Raises:
        Moved: what it was to read is no longer there.
    """
    parts: list[str] = []
    paths: list[str] = []
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    for topic in SOURCE_TOPICS:
        at = store.snapshot(topic)
        erased = store.erased(topic, tenant)
        kept = (
            f"tenant = getvariable('tenant') AND reason IS NULL AND NOT duplicate AND time >= make_timestamp({int(store.keep_from_us(tenant))}) "
            f'AND "offset" > list_extract({[int(erased.get(n, -1)) for n in range(len(at.ends))]}::BIGINT[], partition + 1)'
        )
        files = [piece.path for piece in at.pieces if piece.rows and piece.may_have(tenant)]
        try:
            tail = _tail(store, at, tenant, os.path.join(folder, f"{topic}.parquet"))
        except duckdb.CatalogException as written:
            raise Moved(written, written=True) from None
        if tail is not None:
            files.append(tail)
        if files:
            paths += files
            listed = ", ".join(text(path) for path in files)
            parts.append(f"SELECT {names} FROM read_parquet([{listed}]) WHERE {kept}")
    if not parts:
        empty = ", ".join(f'NULL::{"TIMESTAMP" if name in ("time", "timestamp") else "VARCHAR"} AS "{name}"' for name in COLUMNS)
        parts.append(f"SELECT {empty} WHERE false")
    database.execute("SET VARIABLE tenant = $tenant", {"tenant": tenant})
    database.execute(f"SET allowed_paths = [{', '.join(text(path) for path in paths)}]")
    database.execute("SET enable_external_access = false")
    try:
        database.execute(f"CREATE VIEW events AS SELECT * FROM ({' UNION ALL '.join(parts)}) LIMIT {ALL}")
    except duckdb.InterruptException:
        raise
    except duckdb.Error as wrong:
        if _gone(paths):
            raise Moved(wrong) from None
        raise
    database.execute("SET lock_configuration = true")
    return paths


def _tail(store: Store, at: Snapshot, tenant: str, path: str) -> str | None:
    """The tenant's rows that are in no file yet, as one."""
    where = 'tenant = $tenant AND "offset" > list_extract($covered, partition + 1)'
    params = {"tenant": tenant, "covered": list(at.covered)}
    with store.cursor() as cursor:
        if not cursor.execute(f"SELECT count(*) FROM {at.table} WHERE {where}", params).fetchall()[0][0]:
            return None
        cursor.execute(f"COPY (SELECT * FROM {at.table} WHERE {where}) TO {text(path)} (FORMAT parquet)", params)
    return path


def _answer(database: duckdb.DuckDBPyConnection, query: str, limit: int) -> tuple[list[dict[str, str]], list[dict[str, Any]], bool]:
    cursor = database.execute(query)
    columns = [{"name": name, "type": str(kind)} for name, kind in zip(_unique([one[0] for one in cursor.description or ()]), _kinds(cursor), strict=True)]
    names = [column["name"] for column in columns]
    rows: list[dict[str, Any]] = []
    size = 0
    while part := cursor.fetchmany(64):
        for row in part:
            if len(rows) == limit:
                return columns, rows, True
            values = [plain(value) for value in row]
            size += sum(len(value) if isinstance(value, str) else 16 for value in values)
            if size > MOST_BYTES:
                raise BadParameter("query", f"the answer is larger than {MOST_BYTES} bytes; ask for less")
            rows.append(dict(zip(names, values, strict=True)))
    return columns, rows, False


def _kinds(cursor: duckdb.DuckDBPyConnection) -> list[Any]:
    return [one[1] for one in cursor.description or ()]


def _unique(names: Sequence[str]) -> list[str]:
    """Names of columns, each once.

    Example:
        >>> _unique(["n", "n", "m"])
        ['n', 'n_1', 'm']
    """
    found: list[str] = []
    for name in names:
        n, candidate = 0, name
        while candidate in found:
            n += 1
            candidate = f"{name}_{n}"
        found.append(candidate)
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it: times as RFC 3339 (UTC), bytes as hex digits, non-finite numbers as text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds") + ("Z" if value.tzinfo is None else "")
    if isinstance(value, (date, clock_time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(plain(name)): plain(one) for name, one in value.items()}
    return str(value)  # a decimal, an interval, a UUID
