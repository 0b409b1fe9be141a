"""What the demo works out from the events alone, whatever order their times give them."""

from __future__ import annotations

import json

import pytest

from agents.demo_truth import TENANT, Truth


def raw(kind: str, time: str, **data: object) -> bytes:
    return json.dumps({"type": kind, "tenant": TENANT, "time": time, "data": data}).encode()


@pytest.mark.parametrize(
    ("issued", "resolved"),
    [("2026-03-02T00:00:05Z", "2026-03-02T00:00:05.000400Z"), ("2026-03-02T00:00:05.000400Z", "2026-03-02T00:00:05.000100Z")],
    ids=["in a whole second", "before the clock was set back"],
)
def test_a_forecast_is_known_when_it_is_resolved(issued: str, resolved: str) -> None:
    truth = Truth()
    truth.read(raw("forecast.issued.v1", issued, model="m", forecast_id="f", confidence=0.5, inputs={"x": 1.0}))
    truth.read(raw("forecast.resolved.v1", resolved, model="m", forecast_id="f", success=True, probability=0.5))
    truth.count()
    assert truth.trust[("model", "m")] == truth.trust[("variable", "x")] == [1, 0]
    assert len(truth.issued) == 1 and truth.squares == [0.25]
    times = [time for time, _ in truth.lines]
    assert times == sorted(times)
