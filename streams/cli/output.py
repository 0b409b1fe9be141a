"""What the commands print: tables for people, CSV and JSON for programs. Text from events never steers the terminal."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from ..formulas import safe

err = Console(stderr=True)


def clean(text: str) -> str:
    """Text without control characters (an event's name could hold escape sequences).

    Example:
        >>> clean("a" + chr(27) + "[31mb")
        'a�[31mb'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def cell(value: Any) -> str:
    """A value as text: nothing for null, JSON for what is nested."""
    if value is None:
        return ""
    return clean(json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else str(value))


def rows_of(body: Any) -> list[dict[str, Any]]:
    """The list inside an answer, else the answer as one row."""
    if isinstance(body, dict):
        for value in body.values():
            if _is_rows(value):
                return list(value)
        return [body]
    return list(body) if _is_rows(body) else [{"value": body}]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all rows, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def table_value(value: Any, *, number: bool = False) -> Any:
    """A value for a cell of CSV: nested ones as JSON, and what a spreadsheet would take for a formula with an apostrophe.

    Args:
        number: of a column of numbers, where text such as ``-Infinity`` is no formula.

    Example:
        >>> table_value("=1+1"), table_value([1]), table_value("-Infinity", number=True), table_value(None)
        ("'=1+1", '[1]', '-Infinity', '')
    """
    text = "" if value is None else json.dumps(value) if isinstance(value, (dict, list, bool)) else value
    return text if number else safe(text)


def write_csv(rows: Iterable[Mapping[str, Any]], names: Iterable[str] | None = None, to: TextIO | None = None) -> None:
    """CSV on stdout, or into `to`; `names` are those of the columns, where no row may tell them."""
    rows = list(rows)
    names = columns(rows) if names is None else list(names)
    out = csv.writer(sys.stdout if to is None else to)
    out.writerow([table_value(name) for name in names])
    out.writerows([table_value(row.get(name)) for name in names] for row in rows)


def show(body: Any) -> None:
    """Tables for people: single values first, then each list."""
    wide = None if sys.stdout.isatty() else 1000  # a pipe has no width: nothing is cut
    out = Console(markup=False, highlight=False, emoji=False, width=wide)
    lists = {name: value for name, value in body.items() if _is_rows(value)} if isinstance(body, dict) else {"": rows_of(body)}
    single = {name: value for name, value in body.items() if name not in lists} if isinstance(body, dict) else {}
    if single:
        table = Table("field", "value")
        for name, value in single.items():
            table.add_row(clean(name), cell(value))
        out.print(table)
    for title, rows in lists.items():
        names = columns(rows)
        table = Table(*(clean(name) for name in names), title=title or None)
        for row in rows:
            table.add_row(*(cell(row.get(name)) for name in names))
        out.print(table)
