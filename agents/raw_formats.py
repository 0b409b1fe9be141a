"""Rows as JSON, JSON lines, CSV or Parquet.

The rules this file keeps: numbers and texts stay what they are (cells of CSV: `agents.csv_text`); a table without rows has its
columns all the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import orjson

from . import csv_text, scratch
from .csv_text import Column, as_csv, cell

KINDS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": csv_text.KIND, "parquet": "application/vnd.apache.parquet"}


def render(kind: str, name: str, items: Sequence[Mapping[str, Any]], columns: Sequence[Column], head: Mapping[str, Any]) -> dict[str, Any]:
    """A reply with rows in a format.

    Args:
        kind: of `KINDS`.
        name: of the list, in JSON.
        items: rows; values of events' data may be JSON text (``data``).
        columns: of a table; what a row has beside them is only in JSON.
        head: other members of the JSON answer; of other formats `count` and `cursor` go into headers.
    """
    if kind == "json":
        body = orjson.dumps({name: [_plain(item) for item in items], **head})
    elif kind == "ndjson":
        body = b"".join(orjson.dumps(_plain(item)) + b"\n" for item in items)
    elif kind == "csv":
        body = as_csv(items, columns)
    else:
        body = as_parquet(items, columns)
    return {"status": 200, "body": body, "kind": KINDS[kind], "count": head.get("count"), "cursor": head.get("cursor")}


def _plain(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row for JSON: data that is JSON text goes in as it came."""
    data = item.get("data")
    return {**item, "data": orjson.Fragment(data)} if isinstance(data, str) else item


def as_parquet(items: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> bytes:
    """Parquet (zstd), in the order of the rows."""
    with tempfile.TemporaryDirectory(prefix="parquet-", dir=scratch.home()) as folder, duckdb.connect(":memory:", config={"threads": 1}) as database:
        lines, table = os.path.join(folder, "rows.jsonl"), os.path.join(folder, "rows.parquet")
        types = {name: "VARCHAR" for name, _ in columns}
        with open(lines, "wb") as out:
            for item in items:
                texts = {name: cell(item.get(name)) for name, _ in columns}
                out.write(orjson.dumps({name: text if text is None or isinstance(text, str) else str(text) for name, text in texts.items()}) + b"\n")
        made = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in columns)
        database.execute(f"CREATE TABLE rows AS SELECT {made} FROM read_json($path, columns = $types, format = 'newline_delimited')",
                         {"path": lines, "types": types})  # fmt: skip
        database.execute("COPY rows TO $path (FORMAT parquet, COMPRESSION zstd)", {"path": table})
        with open(table, "rb") as made_file:
            return made_file.read()
