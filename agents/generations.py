"""Tables that were made with other settings or versions than this worker's: said in one sentence, with the way out."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from streams.errors import ConfigError

from .core import Shard


def other_tables(shard: Shard) -> ConfigError:
    """What is told to whoever started the worker: the settings and tables that differ from those on the changelog."""
    mine = shard.partition.schema.made_of
    theirs: dict[str, dict[str, Any]] = msgspec.json.decode(next(reversed(shard.generations.values())))
    names, parts = differences(mine, theirs)
    return ConfigError(
        ", ".join(names),
        f"the tables of {shard.partition.topic} were made with {'; '.join(parts)}. Set it back, or start with --rebuild to fold everything again "
        "from the log's start",
    )


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
