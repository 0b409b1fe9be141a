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


@pytest.mark.parametrize(("second", "over"), [("2026-03-02T23:59:59.999999Z", ["m"]), ("2026-03-03T00:00:00Z", [])], ids=["of one day", "over midnight"])
def test_a_budget_a_day_is_over_by_what_one_day_cost(second: str, over: list[str]) -> None:
    truth = Truth()
    truth.read(raw("budget.set.v1", "2026-03-02T10:00:00Z", scope="model:m", limits=[{"level": "shutdown", "at": 0.01}]))
    for time in ("2026-03-02T23:59:30Z", second):
        truth.read(raw("cost.incurred.v1", time, model="m", cost="0.005"))
        truth.read(raw("cost.incurred.v1", time, model="free", cost="5"))
    truth.count()
    assert truth.over() == over
    assert {model: str(spent) for model, spent in truth.spent.items()} == {"m": "0.010", "free": "10"}
