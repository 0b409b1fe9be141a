"""A worker beside whatever broker a folder's tests have."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.admin import partition_counts

from .workers import WorkerProcess

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell has begun the tests in the background: what they start would not hear Ctrl-C either
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def worker(embedded: Any, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker on the embedded broker of the test."""
    count = partition_counts(embedded.bootstrap, ["pulsefold.judgments"])["pulsefold.judgments"]
    process = WorkerProcess(embedded.bootstrap, tmp_path, partitions=count).start()
    try:
        yield process
    finally:
        process.stop()
