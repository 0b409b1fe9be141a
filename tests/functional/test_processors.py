"""A worker that stays on one processor, and what it starts, which does not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where threads run is told by Linux alone")


def allowed(process: int) -> list[set[int]]:
    """Where each thread of a process may run."""
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{process}/task").iterdir()]


@pytest.mark.timeout(120)
def test_every_thread_of_a_worker_stays_on_its_processor_and_the_archivist_runs_anywhere(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    if len(every) < 2:
        pytest.skip("there is one processor")
    last = max(every)
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, roles="all", archive_dir=tmp_path / "archive", cpu=last).start()
    try:
        worker.until(lambda: worker.get("/status")["archive"].get("ready"))
        assert worker.process is not None
        threads = allowed(worker.process.pid)
        assert len(threads) > 2 and all(where == {last} for where in threads)
        (archivist,) = psutil.Process(worker.process.pid).children()
        assert all(where == every for where in allowed(archivist.pid))
    finally:
        worker.stop()
