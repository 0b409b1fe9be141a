"""Sums over tenants for an admin: equal to one tenant that did everything, and each tenant's own answer beside them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ..service import TOKENS, Service

ROOT = {"Authorization": "Bearer token-of-root", "X-Tenant": "*"}
TENANTS = ("a", "b", "c")
PATHS = (
    "/costs", "/costs?by=day", "/costs?by=model", "/costs?since=2026-03-02&until=2026-03-04", "/metrics/summary", "/performance/stats",
    "/performance/stats?task_type=code",
)  # fmt: skip


def events(rng: random.Random) -> list[dict[str, Any]]:
    """Costs, metrics and tasks of three tenants, who share the names of models, runs and kinds of task but no id."""
    made = []
    for n in range(900):
        tenant = rng.choice(TENANTS)
        time = f"2026-03-0{rng.randrange(1, 6)}T{rng.randrange(24):02}:00:00Z"
        kind = rng.choice(("cost.incurred.v1", "metric.recorded.v1", "task.completed.v1", "task.started.v1"))
        data: dict[str, Any]
        if kind.startswith("cost"):
            data = {"cost": f"0.{rng.randrange(1, 1000):03}", "model": rng.choice("mn"), "api_calls": rng.randrange(3)}
        elif kind.startswith("metric"):
            data = {"metric_type": rng.choice(("loss", "f1")), "model": "m", "run": tenant + rng.choice("12"), "value": rng.random(), "tags": ["x"]}
        else:
            data = {"execution_id": f"e{n}", "task": f"t{n}", "agent": tenant + rng.choice("12"), "task_type": rng.choice(("code", "text"))}
            if kind.startswith("task.completed"):
                data |= {"success": rng.random() < 0.7, "duration_ms": rng.randrange(1, 500)}
        made.append({"id": f"x{n}", "source": "test", "type": kind, "time": time, "tenant": tenant, "data": data})
    return made


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, Service]:
    """Three tenants; and one that did all of it."""
    folder: Path = tmp_path_factory.mktemp("sums")
    shared, whole = (Service(folder / name, partitions=4, allowed=TOKENS) for name in ("shared", "whole"))
    stream = events(random.Random(5))
    shared.send(stream)
    whole.send([{**event, "tenant": "all"} for event in stream])
    return shared, whole


def alike(found: Any, wanted: Any, name: str) -> None:
    """Equal, but for the order in which floating-point sums were made."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for part, value in wanted.items():
            alike(found[part], value, f"{name}.{part}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-12), name
    else:
        assert found == wanted, name


@pytest.mark.parametrize("path", PATHS)
def test_sums_over_tenants_are_those_of_one_tenant_that_did_everything(services: tuple[Service, Service], path: str) -> None:
    shared, whole = services
    found = shared.ask("/api/v1" + path, ROOT).json()
    one = whole.ask("/api/v1" + path, {**ROOT, "X-Tenant": "all"}).json()
    for name in ("as_of", "collecting", "collection_reason"):
        one.pop(name, None)
    told = found.pop("tenants")
    assert found.pop("tenant") == "*"
    for name, value in one.items():
        alike(found[name], value, name)
    assert [each["tenant"] for each in told] == list(TENANTS)
    for each in told:
        alone = shared.ask("/api/v1" + path, {**ROOT, "X-Tenant": each.pop("tenant")}).json()
        assert {name: value for name, value in alone.items() if name not in ("lag", "ready")} == each


def test_standings_over_tenants_name_the_worst_and_leave_budgets_to_each(services: tuple[Service, Service]) -> None:
    found = services[0].ask("/api/v1/costs/status?at=2026-03-05T12:00:00Z", ROOT).json()
    assert "budgets" not in found and len(found["tenants"]) == 3 and all(one["budgets"] for one in found["tenants"])
    order = ("ok", "info", "warning", "critical", "shutdown")
    assert found["status"] == max((one["status"] for one in found["tenants"]), key=order.index)
    assert found["total_usd"] == pytest.approx(sum(one["total_usd"] for one in found["tenants"]))


def test_sums_are_for_an_admin_of_all_and_of_the_present_and_refused_elsewhere(services: tuple[Service, Service]) -> None:
    shared, _ = services
    for token in ("token-of-a", "token-of-b"):
        assert shared.ask("/api/v1/costs", {"Authorization": f"Bearer {token}", "X-Tenant": "*"}).status == 403
    assert shared.ask("/api/v1/trust", ROOT).status == 403
    assert shared.ask("/api/v1/costs?as_of=2026-03-04", ROOT).status == 400
    assert shared.ask("/api/v1/costs?scope=model:nobody", ROOT).status == 404


def test_starts_of_a_tenant_are_open_by_its_own_watermark(tmp_path: Path) -> None:
    service = Service(tmp_path, partitions=1, allowed=TOKENS)
    for tenant, day in (("a", 3), ("b", 1)):
        data = {"execution_id": "e", "task": "t", "agent": "x", "task_type": "code"}
        service.send([{"id": tenant, "source": "test", "type": "task.started.v1", "time": f"2026-03-0{day}T00:00:00Z", "tenant": tenant, "data": data}])
    found = service.ask("/api/v1/performance/stats", ROOT).json()
    assert (found["open_executions"], found["abandoned"]) == (2, 0)
