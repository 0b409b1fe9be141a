"""The client, `pulsefold query`, `sql` and `export` against a real worker with an archive."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from agents.raw import RAW_VIEWS
from agents.registry import folds
from streams.broker import EmbeddedBroker
from streams.client import AsyncClient, Client, NotAnswered, NotKnown
from streams.publisher import SyncPublisher

from ..workers import ROOT, WorkerProcess
from .test_cli import answered, pulsefold

START = datetime(2026, 3, 2, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def events() -> list[dict[str, Any]]:
    """A little of everything, so that every view has something to show."""
    made = [
        ("trust.observed.v1", {"kind": "model", "id": "m1", "success": True}),
        ("task.started.v1", {"execution_id": "e1", "task": "t1", "agent": "a1", "task_type": "code"}),
        ("task.completed.v1", {"execution_id": "e1", "task": "t1", "agent": "a1", "task_type": "code", "success": True}),
        (
            "judgment.recorded.v1",
            {"task": "t1", "judge": "j", "agent": "a1", "overall_score": 0.9, "overall_confidence": 0.8, "criteria": {"safety": 0.9}, "evaluation_time_ms": 5},
        ),
        ("learning.recorded.v1", {"task_type": "chess", "performance_score": 0.5, "learning_rate": 0.1, "episode_count": 1, "convergence_metric": 0.2}),
        ("goal.created.v1", {"goal_id": "g1", "target": 0.9}),
        ("cost.incurred.v1", {"cost": "0.5", "model": "m1"}),
        ("variable.performance_updated.v1", {"variable": "vix", "new_score": {"a": 1}}),
        *(("forecast.issued.v1", {"forecast_id": f"f{n}", "model": "m1", "confidence": 0.5, "inputs": {"vix": n, "rate": 1}}) for n in range(5)),
        *(("metric.recorded.v1", {"metric_type": "train", "model": "=m1", "value": n / 2, "tags": ["x"]}) for n in range(30)),
    ]  # fmt: skip
    return [{"id": f"x{n}", "source": "test", "type": type_, "time": at(n), "data": data} for n, (type_, data) in enumerate(made)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker that has absorbed and archived the events."""
    folder = tmp_path_factory.mktemp("served")
    with EmbeddedBroker(partitions=2) as broker:
        worker = WorkerProcess(broker.bootstrap, folder, partitions=2, archive_dir=folder / "archive").start()
        try:
            with SyncPublisher(broker.bootstrap, source="test") as publisher:
                for event in events():
                    publisher.publish(event)
                publisher.flush(20)
            n = len(events())
            worker.until(lambda: worker.absorbed(n) and worker.archived(n))
            yield worker
        finally:
            worker.stop()


@pytest.fixture
def client(served: WorkerProcess) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{served.port}") as made:
        yield made


def test_the_client_asks_a_worker(client: Client) -> None:
    assert client.trust("model", "m1")["alpha"] > 1
    assert client.cost_check("9.5")["allowed"] is True
    assert client.costs()["total_micro_usd"] == 500_000
    assert client.agent("a1")["executions"] == 1
    assert [row["id"] for row in client.trusts("model", ["m1", "nobody,else"]).rows] == ["m1", "nobody,else"]
    found = client.metrics(types="train", since=START, filter={"value": 3.5})
    assert [one["value"] for one in found["metrics"]] == [3.5]
    assert found.lag == 0
    assert len(list(client.every("/metrics", limit=7))) == 30
    assert {row["variable"] for row in client.contributions()["lines"]} == {"vix", "rate"}
    assert client.sql("SELECT count(*) AS n FROM events WHERE type LIKE 'metric%'").rows == [{"n": 30}]
    assert client.status()["archive"]["enabled"]
    assert len(client.event_log("training", limit=1000).rows) == len([event for event in events() if event["type"].startswith(("metric", "learning", "goal"))])
    raw, headers = client.raw("/metrics", "text/csv", limit=3)
    assert len(raw.splitlines()) == 4 and headers["pulsefold-cursor"]
    with pytest.raises(NotKnown):
        client.metric("nobody")
    with pytest.raises(NotAnswered) as refused:
        client.rank("beauty")
    assert refused.value.parameter == "key"
    results = client.post_events(
        [{"id": "h1", "source": "test", "type": "trust.observed.v1", "time": at(99), "data": {"kind": "rule", "id": "r", "success": True}}]
    )
    assert results["results"][0]["accepted"]


def test_the_async_client_asks_a_worker(served: WorkerProcess) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(f"http://127.0.0.1:{served.port}") as client:
            found = await asyncio.gather(client.trust("model", "m1"), client.metrics(limit=2), client.goal("g1"))
            return (*found, [row["id"] async for row in client.every("/metrics", limit=9)])

    trust, metrics, goal, every = asyncio.run(ask())
    assert trust["alpha"] > 1 and metrics["count"] == 2 and goal["goal_id"] == "g1" and len(every) == 30


NEEDED: dict[str, list[str]] = {
    "/costs/check": ["amount=1"], "/learning/curve": ["task=chess"], "/learning/trend": ["task=chess"],
    "/metrics/aggregate": ["metric=train"], "/performance/trends": ["metric=success"],
    "/sql": ["query=SELECT id FROM events LIMIT 2"],
}  # fmt: skip
NAMES = {
    "/agents/{id}": "/agents/a1", "/goals/{id}": "/goals/g1", "/metrics/{id}": "/metrics/x20", "/trust/{kind}/{id}": "/trust/model/m1",
    "/learning/panels/{panel}": "/learning/panels/curves",
    "/trust/{kind}/{id}/history": "/trust/model/m1/history", "/variables/{name}": "/variables/vix", "/variables/{name}/influence": "/variables/vix/influence",
}  # fmt: skip


def test_query_reaches_every_view_as_json_and_csv(served: WorkerProcess) -> None:
    paths = [*sorted({view.path for fold in folds() for view in fold.views} | {view.path for view in RAW_VIEWS}), "/alerts", "/status"]
    code = """
import sys, json, io, contextlib
from streams.cli.app import run
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(words)
    print(json.dumps([words, code, out.getvalue()]))
"""
    url = f"http://127.0.0.1:{served.port}"
    asked = [["query", NAMES.get(path, path), *NEEDED.get(path, []), how, "--url", url] for path in paths for how in ("--json", "--csv")]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(asked)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2 * len(paths)
    for words, exit_code, out in answers:
        assert exit_code == 0 and out.strip(), words
        if "--json" in words:
            assert isinstance(json.loads(out), dict), words
        else:
            assert len(list(csv.reader(io.StringIO(out)))) >= 2, words


def test_sql_prints_tables_json_and_csv(served: WorkerProcess) -> None:
    words = ["sql", "SELECT model, count(*) AS n FROM events WHERE model = '=m1' GROUP BY ALL", "--url", f"http://127.0.0.1:{served.port}"]
    assert json.loads(answered(*words, "--json"))["rows"] == [{"model": "=m1", "n": 30}]
    assert answered(*words, "--csv").splitlines() == ["model,n", "'=m1,30"]
    assert re.search(r"=m1\s*│\s*30", answered(*words))
    refused = pulsefold("sql", "SELECT * FROM read_text('/etc/passwd')", "--url", words[-1])
    assert refused.returncode == 2 and "not allowed" in refused.stderr and "Traceback" not in refused.stderr
    nobody = pulsefold("sql", "SELECT 1", "--url", "http://127.0.0.1:1")
    assert nobody.returncode == 2 and "no worker answers" in nobody.stderr


def test_exports_are_whole_files_of_every_format(served: WorkerProcess, tmp_path: Path) -> None:
    url = ("--url", f"http://127.0.0.1:{served.port}")
    for name in ("m.csv", "m.jsonl", "m.json", "m.parquet", "m.csv.gz"):
        done = pulsefold("export", "metrics", str(tmp_path / name), "--types", "train", "--since", "2026-03-02", *url)
        assert (done.returncode, done.stderr.strip()) == (0, "30 rows"), done
    text = (tmp_path / "m.csv").read_text()
    assert (
        gzip.decompress((tmp_path / "m.csv.gz").read_bytes()).decode() == text.replace("\n", "\r\n")
        or gzip.decompress((tmp_path / "m.csv.gz").read_bytes()) == (tmp_path / "m.csv").read_bytes()
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["model"] for row in rows} == {"'=m1"}
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "m.json").read_text())
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    table = duckdb.execute("SELECT id, value, tags FROM read_parquet($p)", {"p": str(tmp_path / "m.parquet")}).fetchall()
    assert table == [(line["id"], line["value"], json.dumps(line["tags"])) for line in lines]
    done = pulsefold("export", "metrics", str(tmp_path / "none.csv"), "--types", "nothing", *url)
    assert done.returncode == 0
    assert (tmp_path / "none.csv").read_text().strip() == ",".join(
        ["id", "time", "metric_type", "model", "run", "value", "values", "tags", "epoch", "step", "cost_micro_usd", "api_calls", "token_usage"]
    )
    done = pulsefold("export", "contributions", str(tmp_path / "c.jsonl"), *url)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 10
    done = pulsefold("export", "learning", str(tmp_path / "l.csv"), "--panel", "curves", "--format", "csv", *url)
    assert (done.returncode, done.stderr.strip()) == (0, "1 rows"), done
    assert (tmp_path / "l.csv").read_bytes().splitlines()[1:] == [f"chess,,{START:%Y-%m-%dT%H:%M}:04.000000Z,1,0.5".encode()]
    assert answered("export", "learning-log", "-", *url).count("memory_update") == 1
    assert pulsefold("export", "variables", str(tmp_path / "v.json"), *url).returncode == 0
    assert json.loads((tmp_path / "v.json").read_text())["vix"]["count"] == 5
    assert pulsefold("export", "training-data", str(tmp_path / "t.jsonl"), "--types", "task.completed", *url).returncode == 0
    (line,) = (tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(line)["data"]["execution_id"] == "e1"
    wrong = pulsefold("export", "metrics", str(tmp_path / "x.xls"), *url)
    assert wrong.returncode == 2 and "format" in wrong.stderr
    wrong = pulsefold("export", "metrics", "/nowhere/x.csv", *url)
    assert wrong.returncode == 2 and "cannot be written" in wrong.stderr
    wrong = pulsefold("export", "metrics", str(tmp_path / "y.csv"), "--filter", "[]", *url)
    assert wrong.returncode == 2 and "filter" in wrong.stderr and not (tmp_path / "y.csv").exists()
    assert not list(tmp_path.glob(".*"))
