"""Writes docs/settings.md from the settings that the code declares: ``python docs/make_settings.py`` (a test compares)."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.registry import FOLD_SETTINGS  # noqa: E402 - found by the line above
from streams.settings import SERVICE, Setting, declare  # noqa: E402

HEAD = """# Settings

Made by `python docs/make_settings.py` from what the code declares; edit the code, not this file.

A setting comes from, first found first taken: a flag (`--web-port 8080`), the environment (`PULSEFOLD_WEB_PORT=8080`), the file
`pulsefold.toml` in the working folder or the one named by `--config` (`web_port = 8080`), its default. A setting *by name* is a
map whose `""` is the default of every name: `--trust-half-life.model 3600`, `PULSEFOLD_TRUST_HALF_LIFE__model=3600`, in the file

<!-- test: toml -->
```toml
[trust_half_life]
"" = "off"
model = 3600
```

or the whole map as JSON in `PULSEFOLD_TRUST_HALF_LIFE`. `pulsefold config` prints what is in force and where each comes from. A
name that is not here, or a value that is not allowed, is refused at the start with one sentence and exit code 2.

Settings of a table are part of the version of its rows: workers of one `app_id` must agree on them, and a change builds the
table anew from the log.
"""

TITLES = {
    "TrustSettings": "Trust",
    "TrustRuleSettings": "Trust by rule",
    "VariableSettings": "Variables and forecasts",
    "CostSettings": "Costs and budgets",
    "LearningSettings": "Learning and goals",
    "WindowSettings": "Windows of metrics",
    "MetricCostSettings": "Costs told on metrics",
    "PerformanceSettings": "Agents, tasks, judgments",
}
BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"), ("multiple_of", "a multiple of"))


def allowed(kind: Any, keyed: bool = False) -> str:
    """What a value of a type may be, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        words = [f"{word} {getattr(meta, name):,}" for meta in parts[1:] for name, word in BOUNDS if getattr(meta, name, None) is not None]
        return " ".join([allowed(parts[0]), *words])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        names = list(dict.fromkeys(name for part in parts if part is not type(None) for name in allowed(part).split(" or ")))
        return " or ".join([*names, *(["`off`"] if type(None) in parts else [])])
    if origin is dict:
        return "by name: " + allowed(parts[1]) if keyed else "map"
    if origin in (list, tuple):
        return "list of " + ", ".join(allowed(part) for part in parts if part is not Ellipsis)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "{" + ", ".join(field.encode_name for field in msgspec.structs.fields(kind)) + "}"
    return {Decimal: "amount", str: "text", int: "whole number", float: "number", bool: "`on` or `off`"}.get(kind, "object")


def written(value: Any) -> str:
    """A default as one writes it."""
    value = msgspec.to_builtins(value)
    if isinstance(value, dict) and set(value) == {""}:
        value = value[""]
    text = (
        "off"
        if value is None
        else ("on" if value else "off")
        if isinstance(value, bool)
        else value
        if isinstance(value, str)
        else msgspec.json.encode(value).decode()
    )
    return f"`{text}`" if text else "(empty)"


def rows(settings: list[Setting]) -> list[str]:
    """A table of settings."""
    lines = ["| setting | default | value | what it is |", "|---|---|---|---|"]
    for one in settings:
        cells = (
            f"`{one.name}`",
            written(one.default),
            allowed(one.type, one.keyed),
            re.sub(r"\bNone\b", "off", one.help.replace("``", "`")) + (" (secret: masked where settings are shown)" if one.secret else ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines


def page() -> str:
    """The whole page."""
    declared = declare(FOLD_SETTINGS)
    parts = [HEAD, "## The service", "", *rows([declared[one.name] for one in SERVICE])]
    for struct in FOLD_SETTINGS:
        names = [name for name in get_type_hints(struct) if name in declared]
        title = TITLES.get(struct.__name__, " ".join(struct.__name__.removesuffix("Settings").split("_")))
        parts += ["", f"## {title}", "", *rows([declared[name] for name in names])]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(page(), encoding="utf-8")
