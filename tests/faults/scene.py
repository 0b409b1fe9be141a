"""One row of the fault matrix: workers, events whose result is known, a fault, and what is right afterwards.

The truth is `tests.kafka.truth`, extended by alerts of an ordered and of a merged kind: what must be told is known from the events alone,
in type, rule, subject and level, each exactly once. A figure of a view that is below the truth counts as lost, above it as doubled.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer

from ..kafka.deployment import Deployment
from ..kafka.truth import PARTITIONS, Load, body, folded, home, load, produce
from ..workers import WorkerProcess
from .trio import Trio

STAMP = "2026-03-02T00:00:00Z"
VARIABLES = [f"v{n}" for n in range(20)]
LOW = [f"low{n}" for n in range(5)]
FRAGILE, SOUND, FAILURES, DOLLARS = 40, 260, 80, 120
SETTINGS = {"trust_low": 0.05, "dead_letters_per_minute": "off"}
"""No key of the load but the low ones is judged low; and dead letters a minute would follow from when the test ran, not from the events."""
Told = tuple[str, str, str, str]
"""Type, rule, subject and level of an alert's message."""
BUDGETS = ("cost.cumulative", "cost.daily", "cost.monthly")
"""Those that the load's dollars, all of one day, go through from below the warning to beyond the shutdown, a dollar at most at a time."""
MERGED = ("drift.variable", "volatility.variable")
LEVELS = ("warning", "critical", "shutdown")
EXPECTED: frozenset[Told] = frozenset(
    {
        *((f"alert.{'escalated' if n else 'opened'}.v1", rule, "tenant", level) for rule in BUDGETS for n, level in enumerate(LEVELS)),
        *(("alert.opened.v1", "trust.low", f"model|{name}", "critical") for name in LOW),
        *(("alert.opened.v1", rule, name, "warning") for rule in MERGED for name in VARIABLES),
    }
)
RESOLVED: frozenset[Told] = frozenset(("alert.resolved.v1", rule, name, "warning") for rule in MERGED for name in VARIABLES)


def mixed(n: int, seed: int) -> Load:
    """The load of `tests.kafka.truth`, and among it what opens alerts."""
    made = load(n, seed)
    rng = random.Random(seed)
    among: list[tuple[float, tuple[str, bytes, bytes]]] = []
    for i in range(DOLLARS):
        made.micro_usd += 1_000_000
        among.append((i / DOLLARS, ("costs", b"default", body(f"d{i}", "cost.incurred.v1", STAMP, {"cost": "1"}))))
    for name in LOW:
        for i in range(FAILURES):
            made.observe(name, False, 1.0)
            data = {"kind": "model", "id": name, "success": False}
            among.append((rng.random(), ("judgments", f"default|model|{name}".encode(), body(f"{name}-{i}", "trust.observed.v1", STAMP, data))))
    among += [(i / FRAGILE, forecast(i, 0.9)) for i in range(FRAGILE)]
    step = len(made.records)
    placed = [(at / step, record) for at, record in enumerate(made.records)] + among
    made.records = [record for _, record in sorted(placed, key=lambda one: one[0])]
    return made


def forecast(n: int, fragility: float) -> tuple[str, bytes, bytes]:
    """A forecast of one of ten models, with all variables; a fragile one is not certified."""
    data = {"forecast_id": f"f{n}", "model": f"m{n % 10}", "confidence": 0.5, "fragility": fragility, "certified": fragility < 0.5}
    return "forecasts", f"default|m{n % 10}".encode(), body(f"f{n}", "forecast.issued.v1", STAMP, {**data, "inputs": dict.fromkeys(VARIABLES, 1.0)})


@dataclass
class Outcome:
    """What a row found, over all of its workers."""

    lost: int = 0
    doubled: int = 0
    alerts_false: int = 0
    alerts_missing: int = 0
    replay_different: int = 0
    workers_differ: int = 0
    recovery_s: float | None = None
    restarts: int = 0
    notes: list[str] = field(default_factory=list)

    def compare(self, what: str, shown: float, true: float) -> None:
        """One figure of a view."""
        if shown == true:
            return
        if shown < true:
            self.lost += 1
        else:
            self.doubled += 1
        if len(self.notes) < 10:
            self.notes.append(f"{what} is {shown:g}, not {true:g}")

    @property
    def right(self) -> bool:
        """Nothing is lost, doubled, false or missing."""
        return not (self.lost or self.doubled or self.alerts_false or self.alerts_missing or self.replay_different or self.workers_differ)


class Scene:
    """A deployment on three brokers, with a supervisor that starts a worker again when it ends by itself.

    Args:
        record: takes what the table shows, by name.
    """

    def __init__(self, trio: Trio, folder: Path, record: Callable[[str, object], None], **settings: object) -> None:
        self.trio = trio
        self.record = record
        self.deployed = Deployment(trio.bootstrap, folder, PARTITIONS, replication=3, **settings)
        self.deployed.settings.update(SETTINGS)  # some are of folds: workers know them, topics do not
        self.made = Load()
        self.expected: set[Told] = set(EXPECTED)
        self.outcome = Outcome()
        self.publishing: threading.Thread | None = None
        self.left: set[WorkerProcess] = set()
        self.ended: list[int] = []
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise)
        self._n_probes = 0

    # ---- workers and events

    def workers(self, n: int = 2, *, through: Sequence[int] = ()) -> list[WorkerProcess]:
        """So many workers, those at the places `through` by the network that fails; started one after the other."""
        made = [self.worker(through=i in through) for i in range(n)]
        self._supervisor.start()
        return made

    def worker(self, *fault: str, through: bool = False, start: bool = True) -> WorkerProcess:
        """One more."""
        worker = self.deployed.worker(*fault, start=False)
        if through:
            worker.settings["bootstrap"] = self.trio.network.bootstrap
        return worker.start() if start else worker

    def watch(self) -> None:
        """Let the supervisor begin, where workers were started one by one."""
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._over.wait(1.0):
            for worker in self.deployed.workers:
                if worker not in self.left and worker.process is not None and (code := worker.process.poll()) is not None and not self._over.is_set():
                    self.ended.append(code)
                    worker.start(wait=False)

    def kill(self, worker: WorkerProcess, *, again: bool = False) -> None:
        """kill -9; `again` = the supervisor starts it anew."""
        if not again:
            self.left.add(worker)
        worker.kill()

    def publish(self, n: int, seconds: float, seed: int) -> None:
        """Events in the background, over about so many seconds."""
        self.made = mixed(n, seed)
        self.publishing = produce(self.trio.bootstrap, self.deployed.source(""), self.made, seconds)

    def send(self, records: Sequence[tuple[str, bytes, bytes]], wait_s: float = 90) -> None:
        """Events at once."""
        producer = Producer({"bootstrap.servers": self.trio.bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True, "log_level": 0})
        for topic, key, value in records:
            producer.produce(self.deployed.source(topic), value, key)
        assert producer.flush(wait_s) == 0

    # ---- recovery

    def recovers(self, since: float, workers: Sequence[WorkerProcess] | None = None, timeout_s: float = 120) -> float:
        """Seconds from a moment (of `time.monotonic`) until an observation of every partition, published after it, shows on one of the workers."""
        names: dict[int, str] = {}
        while len(names) < PARTITIONS:
            self._n_probes += 1
            names.setdefault(home(f"probe{self._n_probes}"), f"probe{self._n_probes}")
        probes = []
        for name in names.values():
            data = {"kind": "model", "id": name, "success": True}
            probes.append(("judgments", f"default|model|{name}".encode(), body(f"o-{name}", "trust.observed.v1", STAMP, data)))
        self.send(probes)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for worker in workers or [w for w in self.deployed.workers if w not in self.left]:
                with contextlib.suppress(OSError, urllib.error.URLError):
                    shown = worker.get("/trust", kind="model", ids=",".join(names.values()))
                    if all(shown[name].get("observations") == 1 for name in names.values()):
                        for name in names.values():
                            self.made.observe(name, True, 1.0)
                        self.made.others += PARTITIONS
                        self.outcome.recovery_s = round(time.monotonic() - since, 1)
                        return self.outcome.recovery_s
            time.sleep(0.1)
        raise AssertionError(f"no worker folds every partition {timeout_s:.0f} s after the fault")

    # ---- what is right afterwards

    def judge(self, *, resolve: bool = True, timeout_s: float = 120) -> None:
        """Compare everything with the truth, write the row's figures, and fail where one is wrong.

        Args:
            resolve: first publish what resolves the merged alerts.
        """
        if self.publishing is not None:
            self.publishing.join()
        living = [worker for worker in self.deployed.workers if worker not in self.left]
        if resolve:
            self.settled(living, timeout_s)
            self._until(lambda: not EXPECTED - self.told().keys(), 30)
            sound = [forecast(n, 0.0) for n in range(FRAGILE, FRAGILE + SOUND)]
            self.send(sound)
            self.made.records += sound
            self.expected |= RESOLVED
        self.settled(living, timeout_s)
        self._until(lambda: not self.expected - self.told().keys(), 30)
        answers = [self._figures(worker) for worker in living]
        self.outcome.workers_differ = sum(answer != answers[0] for answer in answers)
        self._alerts(living)
        found = self.deployed.replay()
        self.outcome.replay_different = found["n_different"] + found["in_flight"] + abs(found["records"] - answers[0]["in"])
        if self.outcome.replay_different:
            self.outcome.notes.append(f"replay: {found['records']} of {answers[0]['in']} records, {found['differences'][:3]}")
        self.tell()
        assert self.outcome.right, self.outcome

    def tell(self) -> None:
        """Give the figures to the table."""
        self.outcome.restarts = len(self.ended)
        found = self.outcome
        for name in ("lost", "doubled", "alerts_false", "alerts_missing", "replay_different", "workers_differ", "recovery_s", "restarts", "notes"):
            self.record(name, getattr(found, name))

    def settled(self, workers: Sequence[WorkerProcess], timeout_s: float) -> bool:
        """Wait until the workers have absorbed everything; False where they do not."""
        return all(self._until(lambda w=worker: w.absorbed() and w.get("/status")["counts"]["folded"] >= folded(self.made), timeout_s) for worker in workers)

    def _until(self, holds: Callable[[], object], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, urllib.error.URLError, KafkaException):
                if holds():
                    return True
            time.sleep(0.2)
        return False

    def _figures(self, worker: WorkerProcess) -> dict[str, Any]:
        made, outcome = self.made, self.outcome
        forecasts = sum(topic == "forecasts" for topic, _, _ in made.records)
        names = sorted(made.trust)
        shown: dict[str, Any] = {}
        for at in range(0, len(names), 500):
            shown |= worker.get("/trust", kind="model", ids=",".join(names[at : at + 500]))
        for name in names:
            for side, true in zip(("alpha", "beta"), made.trust[name], strict=True):
                outcome.compare(f"{side} of {name}", shown[name][side], true)
        costs = worker.get("/costs")["total_micro_usd"]
        outcome.compare("the costs", costs, made.micro_usd)
        variables = {v["name"]: v["count"] for v in worker.get("/variables", limit=1000)["variables"]} if forecasts else {}
        for name in VARIABLES if forecasts else ():
            outcome.compare(f"count of {name}", variables.get(name, 0), forecasts)
        counts = worker.get("/status")["counts"]
        outcome.compare("records folded", counts["folded"], folded(made))
        outcome.compare("records dead-lettered", counts["dead_lettered"], made.dead)
        outcome.compare("records in", counts["in"], counts["folded"] + counts["duplicate"] + counts["dead_lettered"])
        # a crash between an output and its rows repeats a derived event: a twin, counted duplicate
        outcome.lost += max(0, made.duplicates - counts["duplicate"])
        trust = {n: (shown[n]["alpha"], shown[n]["beta"], shown[n]["observations"], shown[n]["last_update"]) for n in names}
        return {"in": counts["in"], "trust": trust, "costs": costs, "variables": variables}

    def told(self) -> Counter[Told]:
        """Messages of the topic of alerts, those of one id once."""
        by_id: dict[str, Told] = {}
        for _, message in self.deployed.on(self.deployed.source("alerts")):
            if message is not None:
                data = message["data"]
                by_id[message["id"]] = (message["type"], data["rule"], data["subject"], data["severity"])
        return Counter(by_id.values())

    def _alerts(self, workers: Sequence[WorkerProcess]) -> None:
        told = self.told()
        false = {one: n if one not in self.expected else n - 1 for one, n in told.items() if one not in self.expected or n > 1}
        missing = self.expected - told.keys()
        stands = {(rule, subject, level) for kind, rule, subject, level in self.expected if kind != "alert.resolved.v1"}
        stands -= {(rule, subject, level) for kind, rule, subject, level in self.expected if kind == "alert.resolved.v1"}
        stands -= {(rule, "tenant", level) for rule in BUDGETS for level in LEVELS[:-1]}  # it went on
        for worker in workers:
            shown: set[tuple[str, str, str]] = set()

            def same(w: WorkerProcess = worker) -> bool:
                nonlocal shown
                shown = {(a["rule"], a["subject"], a["severity"]) for a in w.get("/alerts", state="open", limit=1000)["alerts"]}
                return shown == stands

            self._until(same, 20)
            self.outcome.alerts_false += len(shown - stands)
            self.outcome.alerts_missing += len(stands - shown)
            if shown != stands:
                self.outcome.notes.append(f"open alerts: {sorted(shown - stands)[:3]} too many, {sorted(stands - shown)[:3]} missing")
        self.outcome.alerts_false += sum(false.values())
        self.outcome.alerts_missing += len(missing)
        if false or missing:
            self.outcome.notes.append(f"messages: false {json.dumps(sorted(map(str, false.items()))[:12])}, missing {sorted(missing)[:3]}")

    def close(self) -> None:
        """End the workers and remove the topics."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join(10)
        for worker in self.deployed.workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.signal(signal.SIGCONT)
                worker.kill()
        if self.publishing is not None:
            self.publishing.join(5)
        with contextlib.suppress(KafkaException):
            prefix = self.deployed.source("")
            names = [name for name in self.deployed.admin.list_topics(timeout=5).topics if name.startswith(prefix)]
            for future in self.deployed.admin.delete_topics(names, operation_timeout=10).values() if names else ():
                with contextlib.suppress(KafkaException):
                    future.result(15)
