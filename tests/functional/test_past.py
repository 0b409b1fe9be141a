"""Time travel through a real worker: what it said at a moment, asked for again later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from streams.broker import EmbeddedBroker
from streams.client import Client, NotAnswered
from streams.publisher import SyncPublisher

from ..workers import ROOT, WorkerProcess

VIEWS = (
    "/trust/model/m1", "/trust/model/m1/history", "/trust", "/trust/report", "/variables", "/variables/vix", "/variables/rank?key=count", "/variables/drift",
    "/forecasts/calibration", "/metrics/aggregate?metric=loss&window=5m", "/metrics/summary", "/metrics/series", "/costs", "/costs?by=day", "/costs/status",
    "/costs/forecast", "/budgets", "/learning/metrics", "/learning/report", "/learning/curve?task=t1", "/learning/goals", "/goals/g1", "/agents",
    "/agents/a1", "/performance/stats", "/predict?agent=a1", "/trust/export",
)  # fmt: skip
"""Folded views of every domain."""


@pytest.fixture
def archiving(embedded: EmbeddedBroker, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker with an archive of its own and two tenants."""
    tokens = {name: {"tenant": name, "scopes": ["read", "publish"]} for name in ("acme", "other")} | {"boss": {"tenant": "*", "scopes": ["read", "admin"]}}
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, archive_dir=tmp_path / "archive", environment={"PULSEFOLD_TOKENS": json.dumps(tokens)})
    worker.start(wait=False)
    try:
        worker.until(lambda: worker.get("/readyz", api="")["ready"])
        yield worker
    finally:
        worker.stop()


def say(worker: WorkerProcess, path: str, token: str = "acme", **params: str) -> tuple[int, bytes, str | None]:
    """Status, body and the header that names the moment; asked again for a while where the answer is to do so."""
    deadline = time.monotonic() + 60
    while (found := say_once(worker, path, token, **params))[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def say_once(worker: WorkerProcess, path: str, token: str, **params: str) -> tuple[int, bytes, str | None]:
    """One answer."""
    url = f"http://127.0.0.1:{worker.port}/api/v1{path}"
    if params:
        url += ("&" if "?" in path else "?") + urlencode(params)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=60) as response:
            return response.status, response.read(), response.headers["Pulsefold-As-Of"]
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read(), refused.headers["Pulsefold-As-Of"]


def without_lag(status: int, body: bytes, _: str | None = None) -> tuple[int, dict[str, Any]]:
    """An answer but for its lag and the time that a view took from the clock."""
    found = json.loads(body)
    found.pop("lag", None)
    return status, found


def events(turn: int, tenant: str = "acme", late: timedelta = timedelta(days=1)) -> list[dict[str, Any]]:
    """A handful of every domain; some late, some twice, some without a time."""
    now, old = datetime.now(UTC).isoformat(), (datetime.now(UTC) - late).isoformat()
    made: list[tuple[str, str | None, dict[str, Any]]] = [
        ("trust.observed.v1", now, {"kind": "model", "id": "m1", "success": turn % 3 != 0, "weight": 1.0 + turn}),
        ("forecast.issued.v1", old, {"forecast_id": f"f{turn}", "model": "m1", "confidence": 0.5 + turn / 20, "inputs": {"vix": 10.0 + turn, "gold": 3.0}}),
        ("forecast.resolved.v1", None, {"forecast_id": f"f{turn}", "model": "m1", "success": turn % 2 == 0, "probability": 0.7, "inputs": {"vix": turn}}),
        ("metric.recorded.v1", now, {"metric_type": "train", "model": "m1", "values": {"loss": 1.0 / (turn + 1)}, "tags": ["x"]}),
        ("cost.incurred.v1", now, {"cost": "4.500001", "model": "m1", "api_calls": 3}),
        ("learning.recorded.v1", now, dict(task_type="t1", performance_score=turn / 10, learning_rate=0.1, episode_count=turn, convergence_metric=0.5)),
        ("task.completed.v1", now, dict(execution_id=f"x{turn}", task=f"k{turn}", agent="a1", task_type="q", success=turn != 1, duration_ms=100 + turn)),
        ("goal.progressed.v1", now, {"goal_id": "g1", "current": turn * 1.5}),
    ]  # fmt: skip
    if turn == 0:
        made.insert(0, ("goal.created.v1", now, {"goal_id": "g1", "target": 10.0}))
    if turn == 2:
        made.append(("budget.set.v1", now, {"scope": "tenant", "period": "daily", "limits": [{"level": "warning", "at": 20}]}))
        made.append(("trust.decayed.v1", now, {"factor": 0.5, "min_count": 1}))
    found = []
    for number, (kind, at, data) in enumerate(made):
        event = {"id": f"{tenant}-{turn}-{number}", "type": kind, "tenant": tenant, "data": data, **({"time": at} if at else {})}
        found += [event, event] if number == turn % 4 else [event]
    return found


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


OPERATOR = {"Authorization": "Bearer boss", "X-Tenant": "acme"}
"""Who may see how far the worker itself is."""


def settle(worker: WorkerProcess, n: int) -> None:
    """All of so many events came and nothing waits, derived events included: three looks show the same."""
    counts: list[int] = []
    while len(counts) < 3 or counts[-1] < n or len({*counts[-3:]}) > 1 or not absorbed(worker):
        time.sleep(0.5)
        counts.append(worker.get("/status", headers=OPERATOR)["counts"]["in"])


def absorbed(worker: WorkerProcess) -> bool:
    found = worker.get("/status", headers=OPERATOR)
    return found["lag"] == 0 and all(p["end"] is not None for p in found["partitions"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("days", "moments"), [(1, 5), (300, 3)], ids=["from the archive", "from the log, as the archive has dropped some"])
def test_at_several_moments_each_view_answers_later_what_the_worker_said_then(
    embedded: EmbeddedBroker, archiving: WorkerProcess, days: int, moments: int
) -> None:
    said: list[tuple[str, str, tuple[int, dict[str, Any]]]] = []
    begun, n = now(), 0
    time.sleep(0.01)
    with SyncPublisher(embedded.bootstrap, source="test") as publisher:
        for turn in range(moments):
            for event in [*events(turn, late=timedelta(days=days)), *events(turn, "other")[: 2 + turn]]:
                publisher.publish(event)
                n += 1
            assert publisher.flush(20) == 0
            settle(archiving, n)
            time.sleep(0.05)
            for path in VIEWS:
                own = "at" in archiving_params(archiving, path)
                moment = now()
                answer = without_lag(*say(archiving, path, **({"at": moment} if own else {})))
                said.append((path, answer[1].get("report_time", moment), answer))  # the clock as the view took it, where it says so
            time.sleep(0.05)
    assert {answer[0] for _, _, answer in said} == {200}
    last = {path: answer for path, _, answer in said}
    assert [path for path, _, answer in said[: len(last)] if answer == last[path]] == [], "the views have to move on"
    if days > 90:
        if not removed(archiving):  # the archivist tidies when it begins, and then not for ten minutes
            archiving.stop()
            archiving.start()
        archiving.until(lambda: removed(archiving))
    for path, moment, answer in said:
        status, body, header = say(archiving, path, as_of=moment)
        assert without_lag(status, body) == answer, (path, moment, body[:300])
        assert header is not None and datetime.fromisoformat(header) == datetime.fromisoformat(moment)
    # asked by the client and on the command line, the same
    path, moment, answer = said[4]
    client = Client(f"http://127.0.0.1:{archiving.port}", token="acme")
    assert {k: v for k, v in client.at(moment).get(path).items() if k != "lag"} == answer[1]
    done = command("query", path, "--at", moment, "--json", "--url", client.url, "--token", "acme")
    assert {k: v for k, v in json.loads(done.stdout).items() if k != "lag"} == answer[1], done.stderr
    # a name that was not known yet, a moment before everything, one to come, one that is none; raw views have no past
    assert say(archiving, "/goals/none", as_of=moment)[0] == 404
    status, body, _ = say(archiving, "/trust/model/m2", as_of=moment)
    assert (status, "prior" in json.loads(body)) == (404, True)
    status, body, _ = say(archiving, "/variables", as_of=begun)
    assert status == 404 and begun < json.loads(body)["earliest"] < said[0][1] and "as_of" in json.loads(body)["detail"]
    for path, params, name in (
        ("/variables", {"as_of": "2999-01-01T00:00:00Z"}, "as_of"),
        ("/variables", {"at": "yesterday"}, "at"),
        ("/variables", {"at": moment, "as_of": moment}, "as_of"),
        ("/metrics", {"as_of": moment}, "as_of"),
        ("/variables", {"as_of": moment, "colour": "red"}, "colour"),
        ("/variables", {"as_of": moment, "limit": "many"}, "limit"),
    ):
        status, body, _ = say(archiving, path, **params)
        assert (status, json.loads(body)["parameter"]) == (400, name), (path, params, body)
    done = command("query", "/variables", "--at", "noon", "--url", client.url)
    assert (done.returncode, done.stdout) == (2, "") and "at: expected a time" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(NotAnswered, match="as_of"):
        client.at("2999-01-01T00:00:00Z").variables()


def removed(worker: WorkerProcess) -> bool:
    """The archive has dropped rows."""
    return bool(worker.get("/status", headers=OPERATOR)["archive"].get("removed_rows"))


def archiving_params(worker: WorkerProcess, path: str) -> set[str]:
    """Parameters of a view that are its own."""
    described = worker.get("/openapi.json", api="")["paths"]
    parts = path.partition("?")[0].split("/")
    for template, what in sorted(described.items(), key=lambda item: item[0].count("{")):
        have = template.removeprefix("/api/v1").split("/")
        if len(have) == len(parts) and all(h == p or h.startswith("{") for h, p in zip(have, parts, strict=True)) and "get" in what:
            return {param["name"] for param in what["get"]["parameters"] if "description" not in param}
    raise LookupError(path)


def test_another_tenants_token_sees_nothing_of_the_past(embedded: EmbeddedBroker, archiving: WorkerProcess) -> None:
    with SyncPublisher(embedded.bootstrap, source="test") as publisher:
        made = [*events(1), *events(1, "other")[:1]]
        for event in made:
            publisher.publish(event)
        assert publisher.flush(20) == 0
    settle(archiving, len(made))
    moment = now()
    assert say(archiving, "/agents/a1", as_of=moment)[0] == 200
    for path in ("/agents/a1", "/variables/vix", "/goals/g1"):
        status, body, _ = say(archiving, path, token="other", as_of=moment)
        assert status == 404 and b"m1" not in body
    for path in (path for path in VIEWS if "vix" not in path):
        _, body, _ = say(archiving, path, token="other", as_of=moment)
        assert b"acme" not in body and b"vix" not in body, path
    assert say(archiving, "/agents/a1", token="nobody", as_of=moment)[0] == 401


def test_without_the_archive_the_past_is_501(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, roles="fold,serve").start()
    try:
        status, found = worker.ask("/variables", as_of=now())
        assert status == 501 and "roles" in found["detail"]
    finally:
        worker.stop()


def command(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", "from streams.cli import main; raise SystemExit(main())"]
    return subprocess.run([*start, *words], cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=100)
