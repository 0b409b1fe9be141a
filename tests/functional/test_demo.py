"""The demo as a newcomer runs it: to its end, and broken off."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..workers import ROOT


class Run:
    """A demo that is running, and its output so far."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agents.main", "demo", "--log-dir", str(folder), *flags],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.text = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while part := os.read(self.process.stdout.fileno(), 65_536):
            self.text += part.decode("utf-8", "replace")

    def until(self, words: str, timeout_s: float) -> float:
        """Seconds since the start when the words were there."""
        while words not in self.text:
            assert time.monotonic() - self.begun < timeout_s and self.reader.is_alive(), self.text
            time.sleep(0.05)
        return time.monotonic() - self.begun

    def end(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        self.reader.join(5)
        return code


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(20)


@pytest.mark.timeout(200)
def test_to_its_end_every_figure_holds_and_the_events_are_kept(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--exit-when-done"))
    assert run.until("http://127.0.0.1:", 20) < 10
    assert run.end(180) == 0, run.text
    assert "figures hold." in run.text and "DIFFERS" not in run.text and "Traceback" not in run.text
    assert (tmp_path / "demo-events.jsonl").read_bytes().count(b"\n") > 6000
    assert b'"derivedfrom"' not in (tmp_path / "demo-events.jsonl").read_bytes()


@pytest.mark.timeout(150)
def test_ctrl_c_adds_up_what_there_is_and_leaves_nothing_running(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--web-port", (port := str(free_port()))))
    run.until("is reached", 90)
    run.process.send_signal(signal.SIGINT)
    assert run.end(30) == 0, run.text
    assert "figures hold." in run.text and "what happened" in run.text and "Traceback" not in run.text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), 1)


def test_ctrl_c_before_the_worker_is_ready_says_so(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--web-port", str(free_port())))
    run.until("What to look at", 30)
    run.process.send_signal(signal.SIGINT)
    assert run.end(30) == 130
    assert "stopped before the worker was ready" in run.text and "Traceback" not in run.text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--web-port", "eight"], "web_port: expected a port from 1 to 65535, got 'eight'"),
        (["--web-port", "0"], "web_port: expected a port from 1 to 65535, got '0'"),
        (["--log-dir", "/proc/nowhere"], "log_dir: /proc/nowhere cannot be written to"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(tmp_path: Path, started: list[Run], flags: list[str], sentence: str) -> None:
    started.append(run := Run(tmp_path, *flags))
    assert run.end(30) == 2
    assert run.text.startswith(f"pulsefold: {sentence}") and run.text.count("\n") == 1


def test_a_port_in_use_is_named(tmp_path: Path, started: list[Run]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started.append(run := Run(tmp_path, "--web-port", str(port)))
        assert run.end(30) == 2
    assert run.text == f"pulsefold: web_port: 127.0.0.1:{port} is in use; choose another with --web-port\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
