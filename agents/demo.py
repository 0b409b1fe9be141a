"""``pulsefold demo``: broker, worker and real training runs on one machine, with a summary that has to add up.

Every figure of the summary is asked from the running worker and compared with one computed here from the events themselves;
`--exit-when-done` returns 0 only if all of them hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from streams import events
from streams.broker import EmbeddedBroker
from streams.errors import PulsefoldError
from streams.publisher import SyncPublisher
from streams.topics import SOURCE_TOPICS

from .trainer import PLANS

TENANT = "default"
PARTITIONS = 4


class DemoFailed(PulsefoldError):
    """A part of the demo did not come up."""


@dataclass
class Check:
    """A figure of the service beside the one computed from the events."""

    name: str
    shown: object
    expected: object
    holds: bool


@dataclass
class Truth:
    """What the published events say, computed without any of the service's code."""

    n: int = 0
    derived: int = 0
    trust: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    spent: Decimal = Decimal(0)
    by_model: dict[str, Decimal] = field(default_factory=dict)
    confidence: dict[str, list[tuple[float, float, bool]]] = field(default_factory=dict)
    goals: dict[str, tuple[float, str]] = field(default_factory=dict)
    met: dict[str, bool] = field(default_factory=dict)

    def read(self, event: dict[str, Any]) -> None:
        """Take one event."""
        self.n += 1
        data, kind = event["data"], event["type"]
        if "derivedfrom" in event:
            self.derived += 1
        if kind == "trust.observed.v1":
            self._observe(data)
        elif kind == "trust.batch_observed.v1":
            for one in data["observations"]:
                self._observe(one)
        elif kind == "cost.incurred.v1":
            amount = Decimal(str(data["cost"]))
            self.spent += amount
            self.by_model[data["model"]] = self.by_model.get(data["model"], Decimal(0)) + amount
        elif kind == "forecast.issued.v1":
            for name in data.get("inputs", {}):
                self.confidence.setdefault(name, []).append((data.get("confidence", 0.0), data.get("fragility", 0.0), data.get("certified", False)))
        elif kind == "goal.created.v1":
            self.goals[data["goal_id"]] = (data["target"], data.get("direction", "at_least"))
        elif kind == "goal.progressed.v1":
            target, direction = self.goals[data["goal_id"]]
            met = data["current"] >= target if direction == "at_least" else data["current"] <= target
            self.met[data["goal_id"]] = self.met.get(data["goal_id"], False) or met

    def _observe(self, one: dict[str, Any]) -> None:
        pair = self.trust.setdefault((one["kind"], one["id"]), [1.0, 1.0])
        pair[0 if one["success"] else 1] += one.get("weight", 1.0)

    def drifted(self) -> list[str]:
        """Variables whose lifetime averages are over the default limits (variables.md §3.2), 20 forecasts or more."""
        found = []
        for name, seen in self.confidence.items():
            n = len(seen)
            if n >= 20 and (round(sum(f for _, f, _ in seen) / n, 4) > 0.25 or round(sum(c for *_, c in seen) / n, 4) < 0.75):
                found.append(name)
        return sorted(found)


class Asker:
    """Asks the worker's views."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> dict[str, Any]:
        """JSON body of a view under /api/v1."""
        with urllib.request.urlopen(f"{self.base}/api/v1{path}", timeout=10) as response:
            return dict(json.load(response))

    def ready(self) -> bool:
        """Whether the worker has restored its tables."""
        try:
            with urllib.request.urlopen(f"{self.base}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port(wanted: int | None) -> int:
    """The wanted port, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as exc:
            raise DemoFailed(f"web_port: 127.0.0.1:{wanted} cannot be served ({exc.strerror}); choose another with --web-port") from None
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the demo; it is ended when the demo ends."""
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ.copy())
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def probe(bootstrap: str, prefix: str, asker: Asker, stop: threading.Event, took: list[float]) -> None:
    """Time from publishing an event to seeing it in a view, again and again."""
    with SyncPublisher(bootstrap, prefix=prefix, tenant=TENANT, source="demo/probe", linger_ms=1) as publisher:
        n = 0
        while not stop.wait(0.05):
            n += 1
            begun = time.perf_counter()
            publisher.publish(events.TrustObserved(kind="probe", id="event_to_view", success=True))
            while time.perf_counter() - begun < 5:
                with contextlib.suppress(urllib.error.HTTPError):
                    if asker.get("/trust/probe/event_to_view")["observations"] >= n:
                        took.append((time.perf_counter() - begun) * 1000)
                        break
                time.sleep(0.001)


def collect(bootstrap: str, prefix: str, path: Path) -> Truth:
    """Read every source topic from its start; write what producers published as JSON lines; compute the truth."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "demo-collector", "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    truth = Truth()
    lines: list[tuple[str, bytes]] = []
    try:
        for topic in SOURCE_TOPICS:
            metadata = consumer.list_topics(prefix + topic, timeout=10).topics[prefix + topic]
            for number in metadata.partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(prefix + topic, number), timeout=10)
                if low:
                    raise DemoFailed(f"{prefix}{topic}/{number}: the embedded broker has dropped the head of this partition; nothing can be checked against it")
                consumer.assign([TopicPartition(prefix + topic, number, low)])
                at = low
                while at < high:
                    message = consumer.poll(5)
                    if message is None or message.error():
                        raise DemoFailed(f"{prefix}{topic}/{number}: could not be read back")
                    at = message.offset() + 1
                    event = json.loads(message.value())
                    truth.read(event)
                    if "derivedfrom" not in event:
                        lines.append((event.get("time", ""), message.value()))
    finally:
        consumer.close()
    lines.sort(key=lambda line: line[0])
    aside = path.with_suffix(".tmp")
    aside.write_bytes(b"".join(raw + b"\n" for _, raw in lines))
    aside.replace(path)
    return truth


def verify(asker: Asker, truth: Truth) -> list[Check]:
    """Compare the worker's answers with the truth."""
    checks = []

    def check(name: str, shown: object, expected: object, holds: bool | None = None) -> None:
        checks.append(Check(name, shown, expected, shown == expected if holds is None else holds))

    counts = asker.get("/status")["counts"]
    check("events in = on the log", counts["in"], truth.n)
    check("in = folded + duplicate + dead letters", counts["in"], counts["folded"] + counts["duplicate"] + counts["dead_lettered"])
    check("dead letters", counts["dead_lettered"], 0)
    wrong = 0
    for (kind, name), (alpha, beta) in truth.trust.items():
        one = asker.get(f"/trust/{kind}/{name}")
        wrong += one["alpha"] != alpha or one["beta"] != beta
    check(f"trust of {len(truth.trust)} keys, differing", wrong, 0)
    check("total cost, micro-USD", asker.get("/costs")["total_micro_usd"], int(truth.spent * 1_000_000))
    drifted = truth.drifted()
    check("drifted variables", sorted(asker.get("/variables/drift?min_count=20")["flagged"]), drifted)
    goals = asker.get("/learning/goals?limit=1000")["goals"] if truth.goals else []
    check("goals completed", sorted(g["goal_id"] for g in goals if g["completed"]), sorted(n for n, met in truth.met.items() if met))
    alerts = asker.get("/alerts?state=all&limit=1000")["alerts"]
    check("drift alerts", sorted(a["subject"] for a in alerts if a["rule"] == "drift.variable" and a["open"]), drifted)
    over = [f"model:{name}" for name, plan in PLANS.items() if plan.budget_usd and truth.by_model.get(name, Decimal(0)) >= Decimal(str(plan.budget_usd[1]))]
    told = sorted(a["subject"] for a in alerts if a["rule"] == "cost.daily" and a["severity"] == "shutdown" and a["subject"].startswith("model:"))
    check("over budget", told, sorted(over))
    check("one trainer is over its budget", len(over) >= 1, True)
    check(
        "one trainer drifts", any(name.startswith("drifting_") for name in drifted) and not all(name.startswith("drifting_") for name in truth.confidence), True
    )
    return checks


def summary(console: Console, asker: Asker, truth: Truth, checks: list[Check], took: list[float], busy: int, seconds: float) -> None:
    """What happened, as tables."""
    counts = asker.get("/status")["counts"]
    console.print(
        f"\n{counts['in']} events in = {counts['folded']} folded + {counts['duplicate']} duplicates + {counts['dead_lettered']} dead letters ({seconds:.1f} s)"
    )
    for title, order in (("lowest trust", "asc"), ("highest trust", "desc")):
        table = Table(title=title, title_justify="left")
        for name in ("kind", "id", "trust", "95 % interval", "n"):
            table.add_column(name)
        for one in asker.get(f"/trust?sort=trust&order={order}&limit=4")["entries"]:
            low, high = one["beta_interval"]
            table.add_row(one["kind"], one["id"], f"{one['trust']:.3f}", f"{low:.3f} … {high:.3f}", str(one["sample_size"]))
        console.print(table)
    goals = Table(title="goals", title_justify="left")
    for name in ("goal", "wanted", "now", "progress", "completed"):
        goals.add_column(name)
    for goal in asker.get("/learning/goals")["goals"]:
        sign = "at most" if goal["direction"] == "at_most" else "at least"
        goals.add_row(
            goal["goal_id"], f"{sign} {goal['target']}", f"{goal['current']:.4f}", f"{goal['percentage']:.1f} %", "yes" if goal["completed"] else "no"
        )
    console.print(goals)
    console.print(f"drifted variables: {', '.join(truth.drifted()) or 'none'}")
    status = asker.get("/costs/status")
    console.print(f"cost: ${status['total_usd']:.4f}, status of the tenant {status['status']}")
    alerts = Table(title="alerts", title_justify="left")
    for name in ("rule", "subject", "level", "message"):
        alerts.add_column(name)
    for alert in asker.get("/alerts?state=all&limit=20")["alerts"]:
        alerts.add_row(
            alert["rule"], alert["subject"], alert["severity"] if alert["open"] else "notice" if alert.get("notice") else "resolved", alert["message"]
        )
    console.print(alerts)
    for phase, times in (("while the trainers had the processor", took[:busy]), ("afterwards", took[busy:])):
        if times:
            times.sort()
            p95 = times[int(len(times) * 0.95) - 1]
            console.print(f"event to view {phase}: p50 {statistics.median(times):.1f} ms, p95 {p95:.1f} ms ({len(times)} probes)")
    proof = Table(title="checked against the events themselves", title_justify="left")
    for name in ("figure", "service", "from the events", ""):
        proof.add_column(name)
    for one in checks:
        proof.add_row(one.name, str(one.shown), str(one.expected), "holds" if one.holds else "[red]DIFFERS")
    console.print(proof)


def settle(asker: Asker, truth_n: int, timeout_s: float = 60) -> None:
    """Wait until the worker has absorbed everything and merged rules were judged."""
    deadline = time.monotonic() + timeout_s
    quiet_since = None
    while time.monotonic() < deadline:
        now = asker.get("/status")
        if now["lag"] == 0 and now["counts"]["in"] >= truth_n:
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() - quiet_since > 2.5:
                return
        else:
            quiet_since = None
        time.sleep(0.2)
    raise DemoFailed(f"the worker did not absorb all events within {timeout_s:.0f} s")


def demo(flags: dict[str, Any]) -> int:
    """Run it; 0 if every figure holds (or after Ctrl-C without --exit-when-done)."""
    leave = flags.pop("exit_when_done", None) is not None
    port = free_port(int(flags.pop("web_port", 0) or 0) or (None if leave else 6066))
    prefix = flags.get("topic_prefix", "pulsefold.")
    console = Console(stderr=False)
    logs = Path(flags.pop("log_dir", None) or tempfile.gettempdir()) / f"pulsefold-demo-{os.getpid()}"
    logs.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(partitions=PARTITIONS, prefix=prefix))
        console.print(f"embedded broker at {broker.bootstrap} (it keeps nothing after the demo)")
        words = [
            "-m",
            "agents.main",
            "worker",
            "--bootstrap",
            broker.bootstrap,
            "--topic-prefix",
            prefix,
            "--partitions",
            str(PARTITIONS),
            "--web-port",
            str(port),
            "--alert-interval-s",
            "1",
            "--log-level",
            "warning",
        ]
        worker = stack.enter_context(child(words, logs / "worker.log"))
        asker = Asker(port)
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as progress:
            waiting = progress.add_task("starting the worker")
            while not asker.ready():
                if worker.poll() is not None or time.monotonic() - begun > 60:
                    raise DemoFailed(f"the worker did not start; see {logs / 'worker.log'}")
                time.sleep(0.1)
            console.print(f"dashboard: http://127.0.0.1:{port}/")
            stop, took = threading.Event(), []  # type: threading.Event, list[float]
            timer = threading.Thread(target=probe, args=(broker.bootstrap, prefix, asker, stop, took), daemon=True)
            timer.start()
            progress.update(waiting, description="three trainers at work")
            pace = "0" if leave else "0.02"
            trainers = [
                (
                    name,
                    stack.enter_context(
                        child(["-m", "agents.trainer", name, "--bootstrap", broker.bootstrap, "--prefix", prefix, "--pace-s", pace], logs / f"{name}.log")
                    ),
                )
                for name in PLANS
            ]
            try:
                for name, process in trainers:
                    while process.poll() is None:
                        if worker.poll() is not None:
                            raise DemoFailed(f"the worker stopped; see {logs / 'worker.log'}")
                        time.sleep(0.1)
                    if process.returncode:
                        raise DemoFailed(f"trainer {name} failed; see {logs / (name + '.log')}")
                seconds = time.monotonic() - begun
                while asker.get("/status")["lag"]:
                    time.sleep(0.1)
                busy = len(took)
                progress.update(waiting, description="timing events on their way to the views")
                time.sleep(3)
            except KeyboardInterrupt:
                return 0
            finally:
                stop.set()
                timer.join(10)
            progress.update(waiting, description="waiting for the last event")
            truth = collect(broker.bootstrap, prefix, Path("demo-events.jsonl"))
            settle(asker, truth.n)
        checks = verify(asker, truth)
        summary(console, asker, truth, checks, took, busy, seconds)
        console.print(f"{truth.n - truth.derived} events are in demo-events.jsonl; publish them anywhere with: pulsefold publish demo-events.jsonl")
        holds = all(one.holds for one in checks)
        if leave:
            return 0 if holds else 1
        console.print(f"serving http://127.0.0.1:{port}/ until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            while worker.poll() is None:
                time.sleep(0.5)
        return 0 if holds else 1
