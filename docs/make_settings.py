"""Writes docs/settings.md from the settings that the code declares: ``python docs/make_settings.py`` (a test compares)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.registry import FOLD_SETTINGS  # noqa: E402 - found by the line above
from streams.expected import expected  # noqa: E402
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
    "MetricAlertSettings": "Alerts on metrics",
    "SummarySettings": "Summary of metrics",
    "AnonymiseSettings": "Pseudonyms in exports",
    "PerformanceSettings": "Agents, tasks, judgments",
}


def quoted(words: str) -> str:
    """The words of a value that are written as they stand, as code."""
    plain = ("whole number", "number", "amount", "text", "by name", "list of", "map", "object", "{")
    return (
        words if words.startswith("by name") or words.startswith("list") else " or ".join(w if w.startswith(plain) else f"`{w}`" for w in words.split(" or "))
    )


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
            quoted(expected(one.type, keyed=one.keyed)),
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
