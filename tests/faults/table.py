"""The table of the fault matrix, after the tests: ``pytest -p tests.faults.table --faults-json PATH tests/faults …``.

A row is a test, with the figures it gave by `record_property`. Rows of `tests/kafka` give none: they are right or fail.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FIGURES = ("lost", "doubled", "alerts_false", "alerts_missing")
ROWS: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the table goes."""
    parser.addoption("--faults-json", help="write the table of the fault matrix to this file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what a row gave."""
    row = ROWS.setdefault(report.nodeid, {"test": report.nodeid, "row": sentence(report.nodeid), "outcome": "passed", "seconds": 0.0})
    row["seconds"] = round(row["seconds"] + report.duration, 1)
    row.update(report.user_properties)
    if report.skipped:
        row["outcome"], row["why"] = "skipped", str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
    elif report.failed:
        row["outcome"] = "failed"
        row["why"] = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))[:2000]


def sentence(test: str) -> str:
    """The name of a test as a sentence."""
    return re.sub(r"^.*::(test_)?", "", test).replace("_", " ")


def shown(row: dict[str, Any]) -> list[str]:
    """Cells of a row."""
    asserted = row["outcome"] == "passed" and "lost" not in row
    lost, doubled, false, missing = (str(0 if asserted else row.get(name, "?")) for name in FIGURES)
    took = row.get("recovery_s")
    return [row["row"], row["outcome"], lost, doubled, f"{false}/{missing}", "–" if took is None else f"{took:g} s"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it."""
    cells = [["row", "", "lost", "doubled", "alerts false/missing", "time to recover"], *map(shown, ROWS.values())]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    terminalreporter.section("fault matrix")
    for line in cells:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    path = config.getoption("--faults-json")
    if path:
        Path(path).write_text(json.dumps(list(ROWS.values()), indent=1) + "\n")
