"""Events whose result is computed here without the product's code, and the comparison with what workers show.

The rule this file keeps: nothing of `tables` or `agents` is imported, so that a fault of theirs cannot hide in the truth.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from ..workers import ROOT, WorkerProcess

KEYS = 1000
PARTITIONS = 8


@dataclass
class Load:
    """Events to publish, and what must come of them.

    Attributes:
        others: further events that somebody else publishes, which these figures do not show.
    """

    records: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    trust: dict[str, list[float]] = field(default_factory=dict)
    derived: int = 0
    duplicates: int = 0
    dead: int = 0
    micro_usd: int = 0
    others: int = 0

    def observe(self, name: str, success: bool, weight: float) -> None:
        """One observation counts."""
        self.trust.setdefault(name, [1.0, 1.0])[0 if success else 1] += weight


def load(n: int, seed: int) -> Load:
    """Single and batched observations, costs, repetitions and broken records, over 1,000 keys."""
    rng = random.Random(seed)
    made = Load()
    for i in range(n):
        kind = rng.random()
        stamp = f"2026-03-02T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.000000Z"
        if kind < 0.02 and made.records:
            topic, key, value = made.records[-1 - rng.randrange(min(len(made.records), 500))]
            if b"broken" in value:
                made.dead += 1
            else:
                made.duplicates += 1
            made.records.append((topic, key, value))
        elif kind < 0.03:
            made.dead += 1
            made.records.append(("judgments", b"default|broken", b'{"broken":'))
        elif kind < 0.06:
            micro = rng.randrange(1, 20_000)
            made.micro_usd += micro
            made.records.append(("costs", b"default", body(f"c{i}", "cost.incurred.v1", stamp, {"cost": f"{micro / 1e6:.6f}"})))
        elif kind < 0.07:
            picked = [(f"k{rng.randrange(KEYS)}", rng.random() < 0.6) for _ in range(4)]
            homes = [home(name) for name, _ in picked]
            for name, success in picked:
                made.observe(name, success, 1.0)
            made.derived += sum(h != homes[0] for h in homes)
            data = {"observations": [{"kind": "model", "id": name, "success": success} for name, success in picked]}
            made.records.append(("judgments", f"default|model|{picked[0][0]}".encode(), body(f"b{i}", "trust.batch_observed.v1", stamp, data)))
        else:
            name, success, weight = f"k{rng.randrange(KEYS)}", rng.random() < 0.6, rng.choice((1.0, 0.5, 2.0))
            made.observe(name, success, weight)
            data = {"kind": "model", "id": name, "success": success, "weight": weight}
            made.records.append(("judgments", f"default|model|{name}".encode(), body(f"e{i}", "trust.observed.v1", stamp, data)))
    return made


def home(name: str) -> int:
    """Home partition by aiokafka's own Murmur2, which is not the product's."""
    from aiokafka.partitioner import murmur2

    return int((murmur2(f"default|model|{name}".encode()) & 0x7FFFFFFF) % PARTITIONS)


def body(id: str, type: str, stamp: str, data: dict[str, Any]) -> bytes:
    """An envelope."""
    return json.dumps({"specversion": "1.0", "id": id, "source": "test", "type": type, "time": stamp, "data": data}, separators=(",", ":")).encode()


def produce(bootstrap: str, prefix: str, made: Load, seconds: float) -> threading.Thread:
    """Publish in the background over about so many seconds."""

    def run() -> None:
        producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        begun = time.monotonic()
        for i, (topic, key, value) in enumerate(made.records):
            producer.produce(prefix + topic, value, key)
            if i % 1000 == 0:
                producer.poll(0)
                time.sleep(max(0.0, begun + seconds * i / len(made.records) - time.monotonic()))
        assert producer.flush(60) == 0

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def forecasts(bootstrap: str, topic: str, ids: range, variables: list[str], fragility: float) -> None:
    """Forecasts of ten models, each with all variables; fragile ones are not certified."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for n in ids:
        data = {"forecast_id": f"f{n}", "model": f"m{n % 10}", "confidence": 0.5, "fragility": fragility, "certified": fragility < 0.5}
        data["inputs"] = dict.fromkeys(variables, 1.0)
        producer.produce(topic, body(f"f{n}", "forecast.issued.v1", "2026-03-02T00:00:00Z", data), f"default|m{n % 10}".encode())
    assert producer.flush(30) == 0


def settle(worker: WorkerProcess, made: Load) -> None:
    """Wait until a worker has absorbed everything."""
    total = len(made.records) + made.derived + made.others
    worker.until(lambda: worker.absorbed(total) and worker.get("/status")["counts"]["folded"] >= folded(made), 120)


def folded(made: Load) -> int:
    """Records that must be folded, each once."""
    return len(made.records) + made.others + made.derived - made.duplicates - made.dead


def verify(workers: list[WorkerProcess], made: Load, settings: dict[str, Any]) -> None:
    """Views, counts, alerts and replay."""
    names = sorted(made.trust)
    answers = []
    for worker in workers:
        settle(worker, made)
        shown = worker.get("/trust", kind="model", ids=",".join(names))
        wrong = {n: (shown[n]["alpha"], shown[n]["beta"], made.trust[n]) for n in names if [shown[n]["alpha"], shown[n]["beta"]] != made.trust[n]}
        assert not wrong, f"{len(wrong)} keys differ, such as {list(wrong.items())[:3]}"
        answers.append({n: (shown[n]["alpha"], shown[n]["beta"], shown[n]["observations"], shown[n]["last_update"]) for n in names})
        costs = worker.get("/costs")
        assert costs["total_micro_usd"] == made.micro_usd
        counts = worker.get("/status")["counts"]
        # a crash between an output and its rows repeats a derived event: a twin, counted duplicate
        twins = counts["duplicate"] - made.duplicates
        assert (counts["folded"], counts["dead_lettered"]) == (folded(made), made.dead)
        assert twins >= 0
        assert counts["in"] == counts["folded"] + counts["duplicate"] + counts["dead_lettered"]
        usd = made.micro_usd / 1e6
        expected = {
            rule: level
            for rule, level in (("cost.cumulative", level_of(usd, (10, 50, 100))), ("cost.daily", None), ("cost.total", level_of(usd, (700, 900, 1000))))
            if level
        }
        worker.until(
            lambda w=worker, e=expected: {a["rule"]: a["severity"] for a in w.get("/alerts", state="open", limit=1000)["alerts"] if a["rule"] in e} == e
        )
    assert all(answer == answers[0] for answer in answers)
    words = [w for name, value in settings.items() if name != "partitions" for w in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([sys.executable, "-m", "agents.main", "replay", "--json", *words], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["equal"] and found["records"] == counts["in"], found


def level_of(usd: float, limits: tuple[float, float, float]) -> str | None:
    """Level of a sum."""
    return next((level for level, at in zip(("shutdown", "critical", "warning"), reversed(limits), strict=True) if usd >= at), None)
