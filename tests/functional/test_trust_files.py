"""`pulsefold export trust` and `pulsefold import trust` through a broker and a worker."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams.broker import EmbeddedBroker
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess
from .test_cli import pulsefold

HALF_LIFE = {"PULSEFOLD_TRUST_HALF_LIFE__model": "3600"}


def url(worker: WorkerProcess) -> str:
    return f"http://127.0.0.1:{worker.port}"


def exported(worker: WorkerProcess, file: Path, tenant: str, *words: str) -> dict[str, Any]:
    done = pulsefold("export", "trust", str(file), "--url", url(worker), "--tenant", tenant, *words)
    assert done.returncode == 0, done
    return dict(json.loads(file.read_text()))


def imported(worker: WorkerProcess, file: Path, tenant: str, *words: str) -> dict[str, Any]:
    """The command's figures, once all it published is absorbed."""
    before = worker.get("/status")["counts"]["in"]
    bootstrap = str(worker.settings["bootstrap"])
    done = pulsefold("import", "trust", str(file), "--bootstrap", bootstrap, "--url", url(worker), "--tenant", tenant, "--json", *words)
    assert done.returncode == 0, done
    found = dict(json.loads(done.stdout))
    worker.until(lambda: worker.absorbed(before + found["delivered"]))
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[member] == b[member] for member in ("stats", "last_update", "timestamps"))


def observe(bootstrap: str, tenant: str, n: int = 400) -> None:
    rng = random.Random(7)
    with SyncPublisher(bootstrap, tenant=tenant) as publisher:
        for i in range(n):
            publisher.observe(rng.choice(("model", "rule")), rng.choice(("a", "b|c%", "ü")), rng.random() < 0.6, 1.0 + i % 3)
        for _ in range(150):  # more than a history holds
            publisher.observe("variable", "long", rng.random() < 0.6)
        assert publisher.flush(30) == 0


@pytest.mark.timeout(180)
def test_an_export_imported_into_a_fresh_tenant_and_exported_again_is_the_same_and_a_second_import_changes_nothing(
    embedded: EmbeddedBroker, tmp_path: Path
) -> None:
    worker = WorkerProcess(embedded.bootstrap, tmp_path, environment=HALF_LIFE, partitions=4).start()
    try:
        observe(embedded.bootstrap, "a")
        worker.until(lambda: worker.absorbed(550))
        first = exported(worker, tmp_path / "a.json", "a")
        assert list(first) == ["format", "export_time", "stats", "last_update", "timestamps", "as_of"]
        assert len(first["stats"]) == 7 and len(first["timestamps"]["variable|long"]["times"]) == 100
        assert imported(worker, tmp_path / "a.json", "b") == {"keys": 7, "removed": 0, "delivered": 7, "failed": 0}
        assert same(exported(worker, tmp_path / "b.json", "b"), first)
        assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []

        with SyncPublisher(embedded.bootstrap, tenant="b") as publisher:
            publisher.observe("rule", "a", True)
            publisher.observe("rule", "new", True)
        worker.until(lambda: worker.absorbed(550 + 7 + 2))
        later = exported(worker, tmp_path / "b.json", "b")
        duplicates = worker.get("/status")["counts"]["duplicate"]
        imported(worker, tmp_path / "a.json", "b")
        worker.until(lambda: worker.get("/status")["counts"]["duplicate"] == duplicates + 7)
        assert same(exported(worker, tmp_path / "b.json", "b"), later)

        imported(worker, tmp_path / "a.json", "b", "--again")
        restored = exported(worker, tmp_path / "b.json", "b", "--kind", "rule")
        assert restored["stats"]["rule|a"] == first["stats"]["rule|a"] and "rule|new" in restored["stats"]
        assert set(restored["stats"]) == {"rule|a", "rule|b%7Cc%25", "rule|ü", "rule|new"}
        assert imported(worker, tmp_path / "a.json", "b", "--again", "--replace-all")["removed"] == 1
        assert set(exported(worker, tmp_path / "b.json", "b")["stats"]) == set(first["stats"])
        assert worker.get("/status")["trust"]["imports"] == 7 + 7 + 8  # a duplicate is none
        assert same(exported(worker, tmp_path / "a2.json", "a"), first)
    finally:
        worker.stop()


def test_an_import_while_observations_stream_in_acts_at_its_place_of_the_log(
    embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path, on_topics: Callable[..., list[Any]]
) -> None:
    file = tmp_path / "state.json"
    stop = threading.Event()
    with SyncPublisher(embedded.bootstrap) as publisher:

        def stream() -> None:
            rng = random.Random(3)
            while not stop.wait(0.002):
                publisher.observe("model", rng.choice("ab"), rng.random() < 0.7)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            for n in range(2):
                file.write_text(json.dumps({"stats": {"model|a": [1000.0 * (n + 1), 1.0], "model|b": [1.0, 500.0]}}))
                assert pulsefold("import", "trust", str(file), "--bootstrap", embedded.bootstrap).returncode == 0
        finally:
            stop.set()
            thread.join()
        assert publisher.flush(30) == 0
    n = len(on_topics())
    worker.until(lambda: worker.absorbed(n))
    for name in "ab":
        alpha, beta, history, after_last_import = 1.0, 1.0, [], 0
        for message in on_topics("judgments"):  # a key's records lie in one partition, in their order
            event = json.loads(message.value())
            data = event["data"]
            if data["id"] != name:
                continue
            if event["type"] == "trust.imported.v1":
                alpha, beta, history, after_last_import = data["alpha"], data["beta"], [], 0
            else:
                alpha, beta = alpha + data["success"], beta + (not data["success"])
                history.append(alpha / (alpha + beta))
                after_last_import += 1
        shown = worker.get(f"/trust/model/{name}")
        assert (shown["alpha"], shown["beta"], shown["observations"]) == (alpha, beta, after_last_import)
        assert [p["trust"] for p in worker.get(f"/trust/model/{name}/history")["points"]] == history[-100:]


def test_an_older_file_without_kinds_is_taken_with_its_history_of_pairs(embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.observe("model", "stays", True)
        publisher.observe("rule", "goes", True)
    worker.until(lambda: worker.absorbed(2))
    file = tmp_path / "old.json"
    old = {
        "stats": {"vix|level": [7, 5.5], "gamma": [1.0, 3.0]},
        "last_update": {"vix|level": 1_772_409_600.25},
        "timestamps": {"vix|level": [[1_772_409_599, 0.5], [1_772_409_600.25, 0.56]], "gamma": {"times": [1_772_409_600], "values": [0.25]}},
        "export_time": 1_772_409_700.0,
    }
    file.write_text(json.dumps(old))
    assert imported(worker, file, "default")["keys"] == 2
    shown = worker.get("/trust/variable/vix%7Clevel")
    assert (shown["alpha"], shown["beta"], shown["last_update"]) == (7.0, 5.5, "2026-03-02T00:00:00.250000Z")
    assert worker.get("/trust/variable/vix%7Clevel/history")["points"] == [
        {"time": "2026-03-01T23:59:59.000000Z", "trust": 0.5},
        {"time": "2026-03-02T00:00:00.250000Z", "trust": 0.56},
    ]
    assert imported(worker, file, "default", "--kind", "rule", "--replace-all") == {"keys": 2, "removed": 1, "delivered": 3, "failed": 0}
    found = exported(worker, tmp_path / "now.json", "default")
    assert set(found["stats"]) == {"variable|vix%7Clevel", "variable|gamma", "rule|vix%7Clevel", "rule|gamma", "model|stays"}


def test_a_broken_file_changes_nothing_and_exits_1(embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    good = {"format": "pulsefold.trust.v1", "stats": {"model|a": [2, 1], "model|b": [2, 1]}, "export_time": 1.0}
    for wrong in ('{"stats": {"model|a": [2, 1]', json.dumps({**good, "stats": {**good["stats"], "model|c": [0, 1]}})):  # type: ignore[dict-item]
        file.write_text(wrong)
        done = pulsefold("import", "trust", str(file), "--bootstrap", embedded.bootstrap, "--url", url(worker))
        assert done.returncode == 1
        assert "nothing of it was published" in done.stderr and "Traceback" not in done.stderr
    worker.until(worker.settled)
    assert worker.get("/status")["counts"]["in"] == 0
