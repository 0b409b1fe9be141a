"""The pages under docs/ say what the code does: settings, views, event types, alert rules."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

from agents.registry import folds
from agents.status import openapi
from streams.events import EVENT_TYPES

ROOT = Path(__file__).parent.parent.parent
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
ALERTS = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SERVED = {re.sub(r"\{\w+\}", "{}", path.removeprefix("/api/v1")) for path in openapi([view for fold in folds() for view in fold.views])["paths"]}
ALIASES = {"/api/learning/metrics", "/api/learning/report", "/api/learning/goals"}
FAMILIES = ("cost", "drift", "volatility", "forecast", "trust", "learning", "goal", "agent", "judge", "metric", "dead_letters")
NO_RULES = {"agent.registered", "agent.status_changed", "agent.scored"} | {
    f"learning.{name}" for name in ("performance_score", "learning_rate", "convergence_metric", "episode_count")
}
"""Names of the form FAMILY.NAME that are event types or series."""


def test_the_page_of_settings_is_what_the_code_declares() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, "run: python docs/make_settings.py"


def test_every_view_that_the_migration_page_names_is_served_or_marked_as_not_yet() -> None:
    named = {re.sub(r"\{\w+\}", "{}", path.split("?")[0]): mark for path, mark in re.findall(r"`(/[^`]+)`(¹?)", MIGRATION) if path != "/api/v1"}
    assert {path for path, mark in named.items() if not mark} - ALIASES <= SERVED
    assert {path for path, mark in named.items() if mark} & SERVED == set(), "served by now: take the mark away"


def test_every_event_type_of_producers_is_on_the_migration_page_and_no_other() -> None:
    names = {name.rpartition(".")[0] for name in EVENT_TYPES}
    workers = {name for name in names if name.startswith(("alert.", "clock.")) or name.endswith(".scored")}
    columns = [line.split("|")[2] for line in MIGRATION.splitlines() if line.startswith("| ") and line.count("|") == 4]
    published = {name for column in columns for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", column)}
    assert published == names - workers


def test_every_alert_rule_of_the_code_is_on_the_page_of_alerts_and_no_other() -> None:
    code = set()
    for file in (*(ROOT / "tables").glob("*.py"), *(ROOT / "agents").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(rf"({'|'.join(FAMILIES)})\.[a-z_]+", node.value):
                code.add(node.value)
    rules = [name for line in ALERTS.splitlines() if line.startswith("| `") for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", line.split("|")[1])]
    assert sorted(rules) == sorted(code - NO_RULES)


def test_every_test_that_the_page_of_security_names_is_there() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) > 25
    for row in rows:
        shown = [one.strip() for one in row.split("|")[-2].split(",")]
        assert shown and all(re.fullmatch(r"tests/\w+/test_\w+\.py(::test_\w+)?", one) for one in shown), row
        for one in shown:
            file, _, name = one.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
            assert tests and (not name or name in tests), one


def test_every_threat_of_the_page_of_security_has_a_test() -> None:
    table = SECURITY.partition("## Threats")[2].partition("## What is not stopped")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert all(len(row.split("|")) == 5 and all(cell.strip() for cell in row.split("|")[1:4]) and "tests/" in row for row in rows)


def test_every_test_that_the_page_of_guarantees_names_is_there() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/\w+/test_\w+\.py)::(test_\w+)", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
