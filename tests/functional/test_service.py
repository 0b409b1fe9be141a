"""A worker as its users meet it: bad events, HTTP in and out, tokens, health, metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from streams.broker import EmbeddedBroker

from ..unit.test_contract import GOLDEN, INVALID
from ..workers import WorkerProcess
from .test_golden_http import read


def event(id: str, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id,
        "source": "test",
        "type": "trust.observed.v1",
        "time": "2026-03-02T00:00:00Z",
        "data": {"kind": "model", "id": "m", "success": True, **data},
    }


def post(worker: WorkerProcess, body: object, content_type: str = "application/cloudevents+json", **headers: str) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{worker.port}/api/v1/events", raw, {"Content-Type": content_type, **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, dict(json.load(response))
    except urllib.error.HTTPError as exc:
        return exc.code, dict(json.load(exc))


def test_every_invalid_golden_becomes_a_dead_letter_naming_the_field_and_the_next_event_is_folded(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    sent = []
    for name, n in INVALID:
        golden, case = GOLDEN[name], GOLDEN[name]["invalid"][n]
        data = {k: v for k, v in {**golden["wire"]["data"], **case["set"]}.items() if k not in case["remove"]}
        raw = json.dumps({**golden["wire"], "id": f"bad-{name}-{n}", "data": data}).encode()
        sent.append((raw, case))
        producer.produce("pulsefold." + golden["topic"], raw, b"acme")
        producer.produce("pulsefold.judgments", json.dumps(event(f"good-{name}-{n}")).encode(), b"default|model|m")
    producer.flush(30)
    worker.until(lambda: worker.absorbed(2 * len(sent)))
    worker.until(lambda: len(read(embedded.bootstrap, "pulsefold.dead-letters")) >= len(sent))
    assert worker.get("/trust/model/m")["observations"] == len(sent)
    letters = {json.dumps(body): headers for body, headers in read(embedded.bootstrap, "pulsefold.dead-letters")}
    for raw, case in sent:
        headers = letters[json.dumps(json.loads(raw))]
        assert headers["reason"] == case["reason"]
        assert case["field"] in headers["error"]
        assert set(headers) >= {"topic", "partition", "offset", "time"}
    counts = worker.get("/status")["counts"]
    assert (counts["dead_lettered"], counts["folded"]) == (len(sent), len(sent))


def test_events_by_http_are_answered_one_by_one_and_folded(worker: WorkerProcess) -> None:
    status, body = post(worker, event("one"))
    assert (status, body["results"]) == (200, [{"id": "one", "accepted": True}])
    batch = [
        event("two"),
        event("three", weight=-1),
        {**event("four"), "derivedfrom": "x"},
        {**event("five"), "type": "clock.ticked.v1", "data": {"until": "2026-03-02T00:00:00Z"}},
    ]
    status, body = post(worker, batch, "application/cloudevents-batch+json")
    assert status == 200
    assert [one["accepted"] for one in body["results"]] == [True, False, False, False]
    assert "data.weight" in body["results"][1]["error"]
    worker.until(lambda: worker.ask("/trust/model/m")[1].get("observations") == 2)


@pytest.mark.parametrize(
    ("raw", "kind", "status"), [(b"{", "application/json", 200), (b"[1", "application/cloudevents-batch+json", 400), (b"{}", "text/plain", 415)]
)
def test_bodies_that_are_no_events_are_refused_without_a_500(worker: WorkerProcess, raw: bytes, kind: str, status: int) -> None:
    found, body = post(worker, raw, kind)
    assert found in (status, 400)
    assert found != 200 or not body["results"][0]["accepted"]


def test_errors_are_problem_details_that_name_the_parameter(worker: WorkerProcess) -> None:
    for path, params, status, name in (
        ("/trust", {"kind": "model", "z": 9}, 400, "z"),
        ("/trust", {"colour": "red"}, 400, "colour"),
        ("/variables/rank", {"key": "beauty"}, 400, "key"),
        ("/learning/trend", {"task": "t", "window": 1}, 400, "window"),
        ("/alerts", {"state": "closed"}, 400, "state"),
        ("/trust/model/nobody", {}, 404, None),
        ("/nowhere", {}, 404, None),
    ):
        found, body = worker.ask(path, **params)
        assert (found, body["status"]) == (status, status), (path, body)
        assert name is None or body["parameter"] == name
        assert body["detail"]


def test_health_readiness_metrics_and_the_api_description(worker: WorkerProcess) -> None:
    assert worker.get("/healthz", api="") == {"ok": True}
    assert worker.get("/readyz", api="")["ready"] is True
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics", timeout=10) as response:
        families = {family.name for family in text_string_to_metric_families(response.read().decode())}
    assert {"pulsefold_records", "pulsefold_lag_records", "pulsefold_ready", "pulsefold_http_requests"} <= families
    api = worker.get("/openapi.json", api="")
    assert {"/api/v1/trust/{kind}/{id}", "/api/v1/costs/status", "/api/v1/events", "/api/v1/alerts", "/api/v1/metrics/aggregate"} <= set(api["paths"])
    for page in ("/", "/docs", "/app.js", "/style.css"):
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}{page}", timeout=10) as response:
            assert response.status == 200
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    for alias in ("metrics", "goals", "report"):
        assert worker.get(f"/api/learning/{alias}", api="")["lag"] == 0


def test_a_token_sees_its_own_tenant_only(tmp_path: Path) -> None:
    tokens = {
        "secret-a": {"tenant": "a", "scopes": ["read", "publish"]},
        "secret-b": {"tenant": "b", "scopes": ["read"]},
        "root": {"tenant": "*", "scopes": ["admin"]},
    }
    with EmbeddedBroker(partitions=2) as broker:
        worker = WorkerProcess(broker.bootstrap, tmp_path, environment={"PULSEFOLD_TOKENS": json.dumps(tokens)}, partitions=2).start()
        try:
            as_a, as_b = {"Authorization": "Bearer secret-a"}, {"Authorization": "Bearer secret-b"}
            assert post(worker, event("1"), **as_a)[1]["results"][0]["accepted"]
            assert not post(worker, {**event("2"), "tenant": "b"}, **as_a)[1]["results"][0]["accepted"]
            assert post(worker, event("3"), **as_b)[0] == 403
            worker.until(lambda: worker.ask("/trust/model/m", headers=as_a)[0] == 200)
            assert worker.ask("/trust/model/m", headers=as_b)[0] == 404
            assert worker.ask("/trust/model/m", headers={**as_b, "X-Tenant": "a"})[0] == 403
            assert worker.ask("/trust/model/m")[0] == 401
            assert worker.ask("/trust/model/m", headers={"Authorization": "Bearer root", "X-Tenant": "a"})[0] == 200
            assert worker.ask("/trust/model/m", headers={"Authorization": "Bearer root"})[0] == 400
            assert "secret-a" not in json.dumps(worker.get("/status", headers=as_a))
        finally:
            worker.stop()


def told(broker: EmbeddedBroker) -> dict[str, Any]:
    """Alerts on the topic by id: a message that was in flight when its worker was killed may have a twin."""
    return {message["id"]: message for message, _ in read(broker.bootstrap, "pulsefold.alerts")}


def test_a_restart_opens_no_alert_twice_and_keeps_every_figure(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    for n, cost in enumerate((3, 5, 60)):
        post(worker, {"id": f"c{n}", "source": "t", "type": "cost.incurred.v1", "time": f"2026-03-02T00:00:0{n}Z", "data": {"cost": cost}})
    worker.until(lambda: worker.get("/costs")["events"] == 3)
    worker.until(lambda: len(read(embedded.bootstrap, "pulsefold.alerts")) >= 3)
    worker.until(lambda: all(p["safe"] == p["absorbed"] for p in worker.get("/status")["partitions"] if p["owner"] and p["in"]))  # nothing is unwritten
    before, costs = told(embedded), worker.get("/costs")
    worker.kill()
    worker.start()
    worker.until(lambda: worker.absorbed(3))
    assert worker.get("/costs") == costs
    assert told(embedded) == before
    shown = worker.get("/alerts", state="open")["alerts"]
    assert {a["rule"]: a["severity"] for a in shown} == {"cost.cumulative": "critical", "cost.daily": "shutdown"}
