"""Workers with a part of the roles: one that only serves follows the one that only folds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streams.broker import EmbeddedBroker
from streams.outputs import recorded_app

from ..workers import WorkerProcess
from .test_cli import pulsefold
from .test_golden_http import read
from .test_service import event, post


@pytest.mark.timeout(120)
def test_one_folds_and_one_serves_and_each_does_its_part_alone(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    serving = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, roles="serve").start()
    folding = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, roles="fold,archive")
    try:
        assert post(serving, [event(f"e{n}") for n in range(20)], "application/cloudevents-batch+json")[0] == 200
        assert post(serving, {"id": "c", "source": "t", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:00Z", "data": {"cost": 60}})[0] == 200
        serving.until(lambda: serving.get("/status")["lag"] == 21)
        time.sleep(2)
        assert serving.ask("/trust/model/m")[0] == 404
        assert not any(p["owner"] for p in serving.get("/status")["partitions"])
        assert recorded_app(embedded.bootstrap, "pulsefold.") is None and read(embedded.bootstrap, "pulsefold.alerts") == []

        folding.start()
        serving.until(lambda: serving.ask("/trust/model/m")[1].get("observations") == 20)
        serving.until(lambda: serving.absorbed(21))
        serving.until(lambda: len(serving.get("/alerts")["alerts"]) >= 2)
        assert all(p["owner"] for p in folding.get("/status")["partitions"])
        assert not any(p["owner"] for p in serving.get("/status")["partitions"])
        assert folding.get("/healthz", api="") == {"ok": True}
        assert folding.get("/readyz", api="")["ready"] is True
        for path in ("/trust/model/m", "/alerts", "/costs", "/nowhere"):
            assert folding.ask(path)[0] == 404
        assert "serve" in folding.ask("/trust/model/m")[1]["detail"]
        status, _ = post(folding, event("more"))
        assert status == 404

        folding.kill()
        assert serving.get("/trust/model/m")["observations"] == 20  # it goes on
        assert serving.stop() == 0
    finally:
        serving.stop()
        folding.stop()


@pytest.mark.parametrize("roles", ["fold;serve", "cook", "fold,"])
def test_roles_that_there_are_not_are_refused(roles: str) -> None:
    done = pulsefold("worker", "--roles", roles)
    assert done.returncode == 2 and "roles" in done.stderr
