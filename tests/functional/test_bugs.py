"""A bug in a fold: the worker stops, its half-changed rows are never written, and the next start folds the record once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from ..kafka.truth import body
from ..workers import WorkerProcess


def test_an_exception_in_a_fold_ends_the_worker_and_nothing_of_the_chunk_counts_twice(embedded: Any, worker: WorkerProcess, tmp_path: Path) -> None:
    worker.stop()
    worker.module = ("tests.kafka.faults", f"raising:{tmp_path / 'raised'}")
    worker.start()
    assert worker.process is not None
    producer = Producer({"bootstrap.servers": embedded.bootstrap, "partitioner": "murmur2_random"})
    for n in range(50):
        observations = [{"kind": "model", "id": f"k{i}", "success": i % 2 == 0} for i in range(4)]
        producer.produce("pulsefold.judgments", body(f"b{n}", "trust.batch_observed.v1", "2026-03-02T00:00:00Z", {"observations": observations}), b"default|b")
    assert producer.flush(30) == 0
    assert worker.process.wait(30) == 1
    assert "a bug in a fold, on purpose" in worker.log.read_text()
    worker.start()
    keys = {f"k{i}": [51.0, 1.0] if i % 2 == 0 else [1.0, 51.0] for i in range(4)}
    worker.until(lambda: {k: [v["alpha"], v["beta"]] for k, v in worker.get("/trust", kind="model", ids=",".join(keys)).items() if k in keys} == keys, 30)
