"""Workers as processes, for tests that start, kill, pause and ask them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streams.admin import create_topics
from streams.settings import load
from streams.topics import SOURCE_TOPICS

from .ports import free_port

ROOT = Path(__file__).parent.parent


class WorkerProcess:
    """``python -m agents.main worker`` with its settings.

    Args:
        settings: by name, as on the command line. An archive is kept where `archive_dir`, or the roles, say so.
        environment: more variables, for keyed settings.
    """

    def __init__(self, bootstrap: str, folder: Path, *, environment: dict[str, str] | None = None, **settings: object) -> None:
        self.port = free_port()
        words: dict[str, object] = {"bootstrap": bootstrap, "web_port": self.port, "log_level": "warning", "alert_interval_s": 0.2, "data_dir": folder / "data"}
        if "archive_dir" not in settings:
            words["roles"] = "fold,serve"  # an archivist is a process more
        self.settings = {**words, **settings}
        self.environment = environment or {}
        self.module: tuple[str, ...] = ("agents.main",)
        self.log = folder / f"worker-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> WorkerProcess:
        """Start, and wait until the tables are restored."""
        words = [word for name, value in self.settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.module, "worker", *words],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
            )
        if wait:
            self.until(lambda: self.get("/readyz", api="") is not None)
        return self

    def until(self, holds: Any, timeout_s: float = 60) -> None:
        """Wait for something to hold."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the worker stopped with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
            try:
                if holds():
                    return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s; {self.standing()}; the worker's log:\n{self.log.read_text()[-3000:]}")

    def standing(self) -> str:
        """How far the worker is, in a line, for who waited in vain."""
        try:
            found = self.get("/status")
            places = [" ".join(str(p[name]) for name in ("topic", "partition", "owner", "ready", "absorbed", "end", "safe")) for p in found["partitions"]]
            return f"ready {found['ready']}, alerts {found['alerts']}, partitions (owner, ready, absorbed, end, safe): {', '.join(places)}"
        except (OSError, KeyError, ValueError) as exc:
            return f"it does not tell how far it is: {exc!r}"

    def get(self, path: str, api: str = "/api/v1", headers: dict[str, str] | None = None, **params: object) -> dict[str, Any]:
        """JSON of a view; errors raise."""
        url = f"http://127.0.0.1:{self.port}{api}{path}"
        if params:
            url += "?" + urllib.parse.urlencode({k: str(v).lower() if isinstance(v, bool) else v for k, v in params.items()})
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=20) as response:
            return dict(json.load(response))

    def ask(self, path: str, headers: dict[str, str] | None = None, **params: object) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a view."""
        try:
            return 200, self.get(path, headers=headers, **params)
        except urllib.error.HTTPError as exc:
            return exc.code, dict(json.load(exc))

    def absorbed(self, total: int | None = None) -> bool:
        """Nothing waits, and the log holds at least `total` records."""
        status = self.get("/status")
        return status["lag"] == 0 and all(p["end"] is not None for p in status["partitions"]) and (total is None or status["counts"]["in"] >= total)

    def settled(self) -> bool:
        """All that is on the log now is absorbed, and all that follows from it written: no derived event is under way.

        `absorbed` without a total goes by where the worker last saw the log end, which may be a second ago: too early for what was just published.
        """
        admin = AdminClient({"bootstrap.servers": self.settings["bootstrap"], "log_level": 0})
        sources = [f"{self.settings.get('topic_prefix', 'pulsefold.')}{name}" for name in SOURCE_TOPICS]
        before = log_ends(admin, sources)
        found = {(p["topic"], p["partition"]): p for p in self.get("/status")["partitions"]}
        done = {place: p["absorbed"] for place, p in found.items() if not p["owner"] or p["safe"] == p["absorbed"]}
        return done == before == log_ends(admin, sources)

    def archived(self, n: int) -> bool:
        """The archive has read at least `n` records and, as far as it knew a moment ago, everything there is."""
        found = self.get("/status")["archive"]
        return bool(found["ready"] and found["lag"] == 0 and found["rows"] + found["tail_rows"] >= n)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT, …"""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit code."""
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            return -9


def log_ends(admin: AdminClient, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """Where each partition of some topics ends, by what the broker says now."""
    parts = [TopicPartition(topic, number) for topic in topics for number in admin.list_topics(topic, 10).topics[topic].partitions]
    found = admin.list_offsets({part: OffsetSpec.latest() for part in parts})
    return {(part.topic, part.partition): future.result(10).offset for part, future in found.items()}


def fresh(bootstrap: str, partitions: int) -> dict[str, Any]:
    """Settings of a new deployment with its topics created."""
    settings = {"bootstrap": bootstrap, "topic_prefix": f"t{uuid.uuid4().hex[:8]}.", "app_id": "pulsefold", "partitions": partitions}
    create_topics(load(settings, {}))
    return settings
