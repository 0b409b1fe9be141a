"""Each bound of the contract is reached, and passed by one; and each bound that docs/bounds.md lists names a test that is there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from agents.engine import MAX_BEHIND
from streams.codec import MAX_BYTES, InvalidEvent, decode

from ..service import Service
from .test_contract import GOLDEN

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "bounds.md").read_text(encoding="utf-8")


def names(n: int) -> list[str]:
    return [f"n{i}" for i in range(n)]


def nested(depth: int) -> dict[str, Any]:
    """Objects inside one another; `data` itself, around them, counts too."""
    found: dict[str, Any] = {"x": 1}
    for _ in range(depth - 1):
        found = {"x": found}
    return found


ALTERNATIVE = {"agent": "a", "score": 0.5, "reason": "r"}
VIOLATION = {"severity": "low", "message": "m"}
OBSERVATION = {"kind": "model", "id": "m", "success": True}
BOUNDS: list[tuple[str, str, int, Any]] = [
    *((type_, name, 256, lambda n: "x" * n) for type_, name in (
        ("forecast.issued.v1", "model"), ("variable.registered.v1", "name"), ("metric.recorded.v1", "metric_type"), ("metric.recorded.v1", "run"),
        ("learning.recorded.v1", "task_type"), ("goal.created.v1", "goal_id"), ("cost.incurred.v1", "agent"), ("trust.observed.v1", "id"),
        ("agent.registered.v1", "agent"), ("task.completed.v1", "task"), ("judgment.recorded.v1", "judge"), ("custom.recorded.v1", "name"),
    )),
    ("metric.recorded.v1", "tags", 64, names),
    ("metric.recorded.v1", "tags", 128, lambda n: ["x" * n]),
    ("cost.incurred.v1", "tags", 64, names),
    ("metric.recorded.v1", "values", 64, lambda n: dict.fromkeys(names(n), 0.5)),
    ("judgment.recorded.v1", "criteria", 64, lambda n: dict.fromkeys(names(n), 0.5)),
    ("evaluation.completed.v1", "rubric_scores", 64, lambda n: dict.fromkeys(names(n), 0.5)),
    ("agent.registered.v1", "capabilities", 64, names),
    ("routing.decided.v1", "alternatives", 1_000, lambda n: [ALTERNATIVE] * n),
    ("validation.completed.v1", "violations", 1_000, lambda n: [VIOLATION] * n),
    ("trust.batch_observed.v1", "observations", 10_000, lambda n: [OBSERVATION] * n),
    ("forecast.issued.v1", "inputs", 10_000, lambda n: dict.fromkeys(names(n), 0.5)),
    ("forecast.resolved.v1", "inputs", 10_000, lambda n: dict.fromkeys(names(n), 0.5)),
    ("custom.recorded.v1", "fields", 8, lambda n: nested(n - 1)),
    ("variable.performance_updated.v1", "new_score", 8, lambda n: nested(n - 1)),
    ("learning.recorded.v1", "metadata", 8, lambda n: nested(n - 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "most", "make"), BOUNDS, ids=[f"{name}-{field}-{most}" for name, field, most, _ in BOUNDS])
def test_a_bound_is_taken_at_its_last_value_and_refused_as_too_large_beyond(name: str, field: str, most: int, make: Any) -> None:
    wire = GOLDEN[name]["wire"]

    def raw(n: int) -> bytes:
        return json.dumps({**wire, "data": {**wire["data"], field: make(n)}}).encode()

    decode(raw(most))
    with pytest.raises(InvalidEvent) as refused:
        decode(raw(most + 1))
    assert refused.value.reason == "too_large" and refused.value.field.startswith(f"data.{field}"), refused.value.error


def test_a_record_of_exactly_one_mebibyte_is_taken_and_a_byte_more_is_not() -> None:
    wire = GOLDEN["custom.recorded.v1"]["wire"]
    empty = len(json.dumps({**wire, "data": {"name": "n", "fields": {"x": ""}}}))
    for more, taken in ((0, True), (1, False)):
        raw = json.dumps({**wire, "data": {"name": "n", "fields": {"x": "y" * (MAX_BYTES - empty + more)}}}).encode()
        assert len(raw) == MAX_BYTES + more
        if taken:
            decode(raw)
        else:
            with pytest.raises(InvalidEvent, match="1048576"):
                decode(raw)


def test_fetching_waits_where_folding_is_too_far_ahead_of_what_is_written(tmp_path: Path) -> None:
    engine = Service(tmp_path, 1).engine
    shard, place = engine.core.shards[("costs", 0)], TP("pulsefold.costs", 0)
    shard.ready, shard.safe = True, 7
    for ahead, readable in ((MAX_BEHIND - 1, True), (MAX_BEHIND, False)):
        shard.next = 7 + ahead
        assert engine.readable(place) is readable


def test_every_bound_of_the_page_names_a_test_that_is_there() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| bound", "|---"))]
    assert len(rows) > 45
    for row in rows:
        cells = row.split("|")
        assert len(cells) == 6 and all(cell.strip() for cell in cells[1:5]), row
        for one in cells[4].split(","):
            file, _, name = one.strip().partition("::")
            assert re.fullmatch(r"(tests/\w+|benchmarks)/\w+\.py", file) and (ROOT / file).exists(), one
            if name:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, one
