"""Rows as CSV.

The rules this file keeps: a cell that a spreadsheet would take for a formula gets an apostrophe; numbers and texts stay what
they are; a table without rows has its header all the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from streams.formulas import safe

Column = tuple[str, str]
"""Name and DuckDB type."""
KIND = "text/csv; charset=utf-8"


def cell(value: Any) -> Any:
    """A value for a table: nested ones as JSON text, null as nothing."""
    if value is None:
        return None
    if isinstance(value, (dict, list)):
        return orjson.dumps(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def as_csv(items: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> bytes:
    """CSV (RFC 4180) with a header."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([safe(name) for name, _ in columns])
    numbers = [kind in ("DOUBLE", "BIGINT") for _, kind in columns]
    for item in items:
        # a number may come as text (NaN, -Infinity): that is no formula
        writer.writerow([cell(item.get(name)) if number else safe(cell(item.get(name))) for (name, _), number in zip(columns, numbers, strict=True)])
    return out.getvalue().encode()
