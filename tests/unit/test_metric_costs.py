"""Costs told on metrics reach the one ledger, each once, to the cent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.keys import derived_id
from tables.costs import Costs
from tables.metric_costs import MetricCosts, MetricCostSettings
from tests.harness import Log


def metric(id: str, **data: Any) -> dict[str, Any]:
    return {"id": id, "type": "metric.recorded.v1", "time": "2026-03-02T10:00:00.000001Z", "tenant": "golden", "data": {"metric_type": "loss", **data}}


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_metrics_cost_enters_the_ledger_of_its_model_run_and_tags_once_however_often_delivered(partitions: int) -> None:
    log = Log([MetricCosts(), Costs()], partitions)
    event = metric("m1", model="gpt", run="r1", tags=["a", "b"], cost="0.1000005", api_calls=2, token_usage=30, value=1.0)
    log.send([event, event])
    for scope in ("tenant", "model:gpt", "run:r1", "tag:a", "tag:b"):
        answer = log.get("/costs", scope=scope)
        assert (answer["total_micro_usd"], answer["events"], answer["estimated_events"]) == (100_000, 1, 0)
        assert (answer["api_calls"], answer["token_usage"], answer["first"]) == (2, 30, "2026-03-02T10:00:00.000001Z")
    derived = {out.value for out in log.outputs if out.topic == "costs"}
    assert len(derived) == 1
    body = json.loads(derived.pop() or b"")
    assert (body["derivedfrom"], body["id"]) == ("m1", derived_id("training", "golden", "m1", "cost.incurred.v1", "cost"))


@pytest.mark.parametrize(
    ("data", "micro", "estimated"),
    [
        ({"cost": 0.1}, 100_000, 0),
        ({"token_usage": 10}, 20, 1),
        ({"api_calls": 3}, 3000, 1),
        ({"cost": 0, "token_usage": 10}, 0, 0),
        ({"api_calls": 3, "token_usage": 1}, 2, 1),
    ],
)
def test_what_a_metric_does_not_tell_is_estimated_from_its_tokens_or_calls(data: dict[str, Any], micro: int, estimated: int) -> None:
    log = Log([MetricCosts(), Costs()])
    log.send([metric("m", **data)])
    answer = log.get("/costs")
    assert (answer["total_micro_usd"], answer["estimated_events"], answer["events"]) == (micro, estimated, 1)


@pytest.mark.parametrize("data", [{}, {"cost": 0}, {"value": 2.0}, {"api_calls": 0, "token_usage": 0}])
def test_a_metric_without_cost_tokens_and_calls_costs_nothing(data: dict[str, Any]) -> None:
    log = Log([MetricCosts(), Costs()])
    log.send([metric("m", **data)])
    assert log.outputs == []


def test_costs_from_metrics_can_be_off() -> None:
    log = Log([MetricCosts(MetricCostSettings(costs_from_metrics=False)), Costs()])
    log.send([metric("m", cost=1)])
    assert log.outputs == []
    assert log.get("/costs")["events"] == 0


def test_two_metrics_with_one_metric_id_cost_once() -> None:
    log = Log([MetricCosts(), Costs()])
    log.send([metric("m1", metric_id="x", cost=1), metric("m2", metric_id="x", cost=1)])
    assert log.get("/costs")["total_usd"] == 1.0
