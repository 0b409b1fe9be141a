"""Dead letters from end to end: listed, looked at, counted, told of, and sent again so that each counts once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.broker import EmbeddedBroker
from streams.cli.dead_letters import read_letter

from ..workers import ROOT, WorkerProcess
from .test_cli import pulsefold
from .test_service import event


def produce(broker: EmbeddedBroker, topic: str, *values: object, key: bytes = b"default", partition: int = 1, **more: Any) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for value in values:
        producer.produce("pulsefold." + topic, value if isinstance(value, bytes) else json.dumps(value).encode(), key, partition, **more)
    assert producer.flush(30) == 0


def command(broker: EmbeddedBroker, *words: str) -> Any:
    done = pulsefold("dead-letters", *words, "--bootstrap", broker.bootstrap, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def counts(worker: WorkerProcess) -> tuple[int, int, int]:
    found = worker.get("/status")["counts"]
    return found["folded"], found["duplicate"], found["dead_lettered"]


def goal(id: str, **data: object) -> dict[str, Any]:
    return {"id": id, "source": "t", "type": "goal.created.v1", "time": "2026-03-02T00:00:00Z", "data": {"goal_id": "g", "target": 1, **data}}


def progress(id: str, current: float) -> dict[str, Any]:
    return {"id": id, "source": "t", "type": "goal.progressed.v1", "time": "2026-03-02T00:00:01Z", "data": {"goal_id": "g", "current": current}}


def test_a_letter_is_found_by_reason_type_and_time_and_shown_to_the_last_byte(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    raw = b"\xff\x00not json " + b"x" * 300
    before = datetime.now(UTC)
    produce(embedded, "costs", raw, key=b"k|\xf0", headers=[("topic", b"mine"), ("a", b"b")])
    produce(embedded, "judgments", event("bad", weight=-1), progress("lost", 1))
    worker.until(lambda: len(command(embedded, "list")) == 3)
    rows = {row["reason"]: row for row in command(embedded, "list")}
    assert [(r, rows[r]["topic"], rows[r]["partition"], rows[r]["offset"], rows[r]["type"]) for r in sorted(rows)] == [
        ("invalid_field", "judgments", 1, 0, "trust.observed.v1"),
        ("not_json", "costs", 1, 0, None),
        ("unknown_goal", "judgments", 1, 1, "goal.progressed.v1"),
    ]
    assert "weight" in rows["invalid_field"]["error"]
    assert [row["id"] for row in command(embedded, "list", "--type", "trust.observed.v1")] == ["bad"]
    assert [row["reason"] for row in command(embedded, "list", "--reason", "not_json")] == ["not_json"]
    assert len(command(embedded, "list", "--since", (before - timedelta(minutes=1)).isoformat())) == 3
    assert command(embedded, "list", "--since", (before + timedelta(minutes=1)).isoformat()) == []
    assert len(command(embedded, "list", "--limit", "2")) == 2
    shown = command(embedded, "inspect", "costs/1/0")
    assert (shown["headers"], shown["bytes"], shown["topic"]) == ({"topic": "mine", "a": "b"}, len(raw), "costs")
    code = "import sys; from streams.cli import main; sys.exit(main())"
    words = ["dead-letters", "inspect", "costs/1/0", "--raw", "--bootstrap", embedded.bootstrap]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, timeout=60).stdout == raw
    for place in ("costs/1/7", "costs/1", "nowhere/1/0", "costs/one/0"):
        done = pulsefold("dead-letters", "inspect", place, "--bootstrap", embedded.bootstrap)
        assert done.returncode == 2 and place in done.stderr


def test_a_letter_sent_again_after_the_fix_counts_once_however_often_and_keeps_bytes_key_and_partition(
    embedded: EmbeddedBroker, worker: WorkerProcess, on_topics: Callable[..., list[Any]]
) -> None:
    first = json.dumps(progress("p1", 0.25), indent=3).encode()  # bytes that no encoder of ours would write
    produce(embedded, "training", first, progress("p2", 0.5), key=b"anything", partition=3, headers=[("trace", b"1")])
    worker.until(lambda: counts(worker) == (0, 0, 2) and len(command(embedded, "list")) == 2)
    assert pulsefold("dead-letters", "redrive", "--bootstrap", embedded.bootstrap).returncode == 2  # what is meant must be said
    assert command(embedded, "redrive", "--all", "--dry-run")["would_redrive"] == 2
    assert command(embedded, "redrive", "training/3/0")["redriven"] == 1  # too early: the goal is still unknown
    worker.until(lambda: counts(worker) == (0, 0, 3) and len(command(embedded, "list")) == 3)
    produce(embedded, "training", goal("g"), partition=3)
    worker.until(lambda: counts(worker) == (1, 0, 3))
    told = command(embedded, "redrive", "--reason", "unknown_goal")
    assert (told["redriven"], told["letters"], told["skipped"]["superseded"]) == (2, ["training/3/1", "training/3/2"], 1)
    worker.until(lambda: counts(worker) == (3, 0, 3))
    assert command(embedded, "redrive", "--all")["redriven"] == 2
    worker.until(lambda: counts(worker) == (3, 2, 3))
    assert worker.get("/goals/g")["n_total"] == 2
    sent = [message for message in on_topics("training") if any(name == "redriven" for name, _ in message.headers() or ())]
    assert [(m.partition(), m.key(), m.value() == first, dict(m.headers())) for m in sent if m.value() == first] == [
        (3, b"anything", True, {"trace": b"1", "redriven": b"training/3/0"}),
        (3, b"anything", True, {"trace": b"1", "redriven": b"training/3/2"}),
        (3, b"anything", True, {"trace": b"1", "redriven": b"training/3/2"}),
    ]


def test_beyond_the_window_of_workers_the_log_tells_what_was_sent_again(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, dedupe_window=64).start()
    try:
        metric = {"id": "m", "source": "t", "type": "metric.recorded.v1", "data": {"metric_id": "one", "value": 1.0}}
        now = datetime.now(UTC)  # of an hour from now, on a record of a minute ago: too early then, and not any more when it is sent again
        soon = {**metric, "time": (now + timedelta(hours=1)).isoformat()}
        produce(embedded, "training", soon, partition=0, timestamp=int(now.timestamp() * 1000) - 60_000)
        worker.until(lambda: counts(worker) == (0, 0, 1) and len(command(embedded, "list")) == 1)
        window = ("--bootstrap", embedded.bootstrap)
        for sent in (1, 0):
            done = pulsefold("dead-letters", "redrive", "--reason", "time_in_future", "--json", *window, env={"PULSEFOLD_DEDUPE_WINDOW": "64"})
            assert (done.returncode, json.loads(done.stdout)["redriven"]) == (0, sent), done
            produce(
                embedded, "training", *({**metric, "id": f"{sent}-{n}", "data": {"value": 2.0}, "time": "2026-03-02T00:00:00Z"} for n in range(80)), partition=0
            )
        worker.until(lambda: worker.absorbed(162))
        assert counts(worker) == (161, 0, 1)  # its metric_id was known already, but it is known by what it was
    finally:
        worker.stop()


def test_an_event_without_a_time_keeps_that_of_its_first_record(embedded: EmbeddedBroker, worker: WorkerProcess, on_topics: Callable[..., list[Any]]) -> None:
    timeless = {key: value for key, value in progress("p", 0.5).items() if key != "time"}
    produce(embedded, "training", timeless, partition=2, timestamp=1_772_409_600_000)
    worker.until(lambda: counts(worker) == (0, 0, 1) and len(command(embedded, "list")) == 1)
    command(embedded, "redrive", "--all")
    worker.until(lambda: counts(worker) == (0, 0, 2))
    assert [message.timestamp()[1] for message in on_topics("training")] == [1_772_409_600_000] * 2


@pytest.mark.timeout(120)
def test_a_burst_is_told_once_counted_by_reason_and_a_restart_tells_nothing_again(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, dead_letters_per_minute=5, dead_letters_tenant="ops").start()
    ops = {"X-Tenant": "ops"}

    def alerts(state: str) -> list[tuple[str, str]]:
        return [(a["rule"], a["subject"]) for a in worker.get("/alerts", headers=ops, state=state)["alerts"]]

    try:
        ago = int(time.time() * 1000) - 600_000  # an old backlog is no burst
        produce(embedded, "judgments", *[b"{"] * 20, timestamp=ago)
        produce(embedded, "costs", *[b"{"] * 3)
        worker.until(lambda: counts(worker) == (0, 0, 23))
        time.sleep(1)
        assert alerts("all") == []
        produce(embedded, "costs", *[event(f"e{n}", weight=-1) for n in range(9)], partition=2)
        worker.until(lambda: alerts("open") == [("dead_letters.rate", "costs")])
        (alert,) = worker.get("/alerts", headers=ops, state="open")["alerts"]
        assert (alert["severity"], alert["threshold"]) == ("warning", 5.0) and alert["value"] > 5
        assert alert["evidence"]["topic"] == "costs"
        worker.kill()
        worker.start()
        worker.until(worker.absorbed)
        time.sleep(1)
        assert worker.get("/status")["alerts"]["messages"] == 1
        reasons = worker.get("/status")["counts"]["reasons"]
        assert sum(reasons.values()) == 32 and reasons["not_json"] == 23
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        assert 'pulsefold_dead_letters_total{reason="not_json",topic="judgments"} 20.0' in lines
    finally:
        worker.stop()


def test_what_is_no_dead_letter_of_ours_is_passed_over() -> None:
    class Message:
        """As confluent-kafka's, which cannot be made."""

        def __init__(self, *headers: tuple[str, bytes]) -> None:
            self._headers = headers

        def headers(self) -> list[tuple[str, bytes]]:
            return list(self._headers)

        def key(self) -> None: ...

        def value(self) -> None: ...

    place = [("reason", b"r"), ("error", b"e"), ("topic", b"costs"), ("partition", b"0"), ("offset", b"3"), ("time", b"2026-03-02T00:00:00Z")]
    assert read_letter(Message(*place)).name == "costs/0/3"  # type: ignore[arg-type, union-attr]
    for wrong in ([], place[1:], [*place[:4], ("offset", b"three"), place[5]]):
        assert read_letter(Message(*wrong)) is None  # type: ignore[arg-type]
