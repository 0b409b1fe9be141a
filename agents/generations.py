"""Tables that were made with other settings or versions than this worker's: said in one sentence, with the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from streams.errors import ConfigError
from tables.partition import Bounds, Schema

from .core import Shard
from .registry import FOLD_SETTINGS, schema


def other_tables(shard: Shard, serving: bytes | None = None) -> ConfigError:
    """What is told to whoever started the worker: the settings and tables that differ from those on the changelog.

    Args:
        serving: what the tables that serve are made of, JSON; default those that were found last.
    """
    mine = shard.partition.schema.made_of
    theirs: dict[str, dict[str, Any]] = msgspec.json.decode(serving or next(reversed(shard.generations.values())))
    names, parts = differences(mine, theirs)
    return ConfigError(
        ", ".join(names),
        f"the tables of {shard.partition.topic} were made with {'; '.join(parts)}. Set it back, or start with --rebuild to fold everything again "
        "from the log's start, beside them",
    )


def remade(record: Mapping[str, Any], generation: str, mine: Schema) -> Schema | None:
    """The schema of tables that were made with other settings; None where other code made them (other tables, versions or settings).

    Args:
        record: what the changelog says that they are made of.
        generation: its digest there.
        mine: what this worker would make; settings that no row follows from are its own.
    """
    values, given = dict(mine.given), record.get("given", {})
    try:
        for name in sorted(name for name in values.keys() & given.keys() if values[name] != given[name]):
            tried = {**values, name: given[name]}
            if _schema(tried).made_of != _schema(values).made_of:
                values = tried
        found = _schema(values, generation)
    except (KeyError, ValueError, TypeError):
        return None
    return found if differences(found.made_of, dict(record)) == ([], []) else None


def _schema(values: Mapping[str, Any], generation: str | None = None) -> Schema:
    folded = {struct: msgspec.convert({name: values[name] for name in struct.__struct_fields__}, struct) for struct in FOLD_SETTINGS}
    bounds = Bounds(max_future_us=round(values["max_future_s"] * 1e6), dedupe_window=int(values["dedupe_window"]))
    return schema(folded.__getitem__, bounds, generation)


def differences(mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Names that differ, and what is said of each.

    Args:
        mine, theirs: `tables.partition.Schema.made_of`.
    """
    names, parts = [], []
    mine = json.loads(json.dumps(mine))  # as it looks after the changelog
    for kind in ("settings", "tables"):
        here, there = mine[kind], theirs.get(kind, {})
        for name in sorted(here.keys() | there.keys()):
            if name in here and name in there and here[name] == there[name]:
                continue
            names.append(name)
            what = ("table " if kind == "tables" else "") + name
            if name not in there:
                parts.append(f"no {what}" if kind == "tables" else f"no {what}, which is {short(here[name])} here")
            elif name not in here:
                parts.append(f"{what}, which this worker does not know")
            else:
                version = "version " if kind == "tables" else ""
                parts.append(f"{what} {version}{short(there[name])} and here it is {short(here[name])}")
    return names, parts


def short(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
