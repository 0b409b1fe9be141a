"""The demo as a newcomer runs it: to its end, with its events published again elsewhere, and broken off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.registry import folds
from agents.trainer import EPOCHS, PLANS
from streams.broker import EmbeddedBroker

from ..laws import PER_PARTITION, differences, questions
from ..ports import free_port
from ..workers import ROOT, WorkerProcess
from .test_cli import pulsefold


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


NOW = {"at", "lag", "seconds_since_update", "report_time", "convergence_rate", "rates"}
"""Members that follow from the moment of asking."""
AGAIN = {"predict": {"score"}, "export": {"timestamps"}, "history": {"points"}}
"""Members of views (by the last part of their path) that are of each partition, or in the order in which rules derived them."""


def ask(port: int, path: str, params: dict[str, Any]) -> dict[str, Any]:
    """A view's answer; what is not 200 as it is."""
    url = f"http://127.0.0.1:{port}/api/v1" + "/".join(urllib.parse.quote(part, safe="") for part in path.split("/"))
    try:
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(params)}", timeout=30) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as refused:
        return {"status": refused.code}


def names_at(port: int) -> dict[str, list[Any]]:
    """Names that a worker knows, some of each, by the parameters that take them."""
    series = ask(port, "/metrics/series", {"limit": 1000})["series"]
    streams = ask(port, "/learning/streams", {"limit": 100})["streams"]
    trusted = ask(port, "/trust", {"limit": 1000})["entries"]
    found: dict[str, list[Any]] = {
        "kind": [one["kind"] for one in trusted], "id": [one["id"] for one in trusted if one["kind"] != "variable"],
        "name": [one["name"] for one in ask(port, "/variables", {"limit": 12})["variables"]],
        "agent": [one["agent"] for one in ask(port, "/agents", {})["agents"]],
        "metric": [*(one["metric"] for one in series), "success", "quality", "judgment"], "model": [one["model"] for one in series],
        "run": [one["run"] for one in streams if one["run"]], "task": [one["task"] for one in streams], "amount": ["1"],
        "panel": ["curves", "scores", "rates", "goals"],
    }  # fmt: skip
    found["id"] += [one["goal_id"] for one in ask(port, "/learning/goals", {})["goals"]] + found["agent"]
    found["task_type"] = found["task"]
    found["scope"] = ["tenant", *(f"model:{name}" for name in ask(port, "/costs", {"by": "model"})["models"])]
    return {field: list(dict.fromkeys(values))[:8] for field, values in found.items()}


def views(port: int, names: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Every view of the service, asked for every name."""
    return {json.dumps([path, params]): ask(port, path, params) for path, params in questions(folds(), names)}


class Held:
    """The demo stopped in its tracks when its worker has absorbed all that there will be, so that its views can be asked at leisure."""

    def __init__(self, run: Run, port: int) -> None:
        self.run, self.port = run, port
        self.names: dict[str, list[Any]] = {}

    def absorbed(self) -> int:
        status = ask(self.port, "/status", {})
        return int(status["counts"]["in"]) if status.get("lag") == 0 else -1

    def ask(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """All views when nothing has come for a while, and nothing came while they were asked."""
        deadline, last, since = time.monotonic() + timeout_s, -1, time.monotonic()
        while time.monotonic() < deadline:
            now = self.absorbed()
            if now != last or now < 6000 or ask(self.port, "/learning/metrics", {})["total_learning_events"] < EPOCHS * len(PLANS):
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 0.8:
                self.run.process.send_signal(signal.SIGSTOP)
                try:
                    self.names = names_at(self.port)
                    found = views(self.port, self.names)
                    if self.absorbed() == last:
                        return found
                finally:
                    self.run.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        raise AssertionError(self.run.text)


@pytest.mark.timeout(400)
def test_to_its_end_every_figure_holds_and_its_events_give_the_same_views_elsewhere(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--exit-when-done", "--web-port", str(port := free_port())))
    run.until(f"http://127.0.0.1:{port}", 60)
    run.until("ready", 90)
    held = Held(run, port)
    shown = held.ask(150)
    assert run.end(60) == 0, run.text
    assert "figures hold." in run.text and "DIFFERS" not in run.text and "Traceback" not in run.text
    lines = (tmp_path / "demo-events.jsonl").read_bytes()
    assert lines.count(b"\n") > 6000
    assert b'"derivedfrom"' not in lines

    goals = [line for line in lines.splitlines() if json.loads(line)["type"] == "goal.created.v1"]
    (tmp_path / "goals.jsonl").write_bytes(b"\n".join(goals))  # first: a metric that is folded before a goal wants it does not move it
    with EmbeddedBroker(partitions=4, prefix="pulsefold.") as broker:
        worker = WorkerProcess(broker.bootstrap, tmp_path, partitions=4).start()
        try:
            for file, least in (("goals.jsonl", len(goals)), ("demo-events.jsonl", lines.count(b"\n"))):
                done = pulsefold("publish", str(tmp_path / file), "--bootstrap", broker.bootstrap)
                assert done.returncode == 0, done.stderr
                worker.until(lambda least=least: worker.absorbed(least))
            quiet(worker)
            found = views(worker.port, held.names)
        finally:
            worker.stop()
    assert found.keys() == shown.keys() and sum("status" not in answer for answer in shown.values()) > 150
    wrong = {key: differences(shown[key], found[key], NOW | PER_PARTITION | AGAIN.get(json.loads(key)[0].rpartition("/")[2], set())) for key in shown}
    assert not {key: lines for key, lines in wrong.items() if lines}


def quiet(worker: WorkerProcess) -> None:
    """Wait until nothing has come for a while, not even what is derived of what was derived."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 1:
        now = worker.get("/status")["counts"]["in"] if worker.absorbed() else -1
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)


@pytest.mark.timeout(240)
def test_ctrl_c_adds_up_what_there_is_and_leaves_nothing_running(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--web-port", (port := str(free_port()))))
    run.until("is reached", 150)
    run.process.send_signal(signal.SIGINT)
    assert run.end(30) == 0, run.text
    assert "figures hold." in run.text and "what happened" in run.text and "Traceback" not in run.text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), 1)


def test_ctrl_c_before_the_worker_is_ready_says_so(tmp_path: Path, started: list[Run]) -> None:
    started.append(run := Run(tmp_path, "--web-port", str(free_port())))
    run.until("What to look at", 60)
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
