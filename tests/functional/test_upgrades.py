"""Tables rebuilt beside those that serve: what is answered before, while and after, by one worker, by two, and by another version of the code."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from agents.core import AT
from agents.registry import schema
from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess
from .test_clearing import last
from .test_cli import answered, pulsefold
from .test_generations import generations, observed, refused
from .test_golden_http import read
from .test_service import post

PRIOR = {"PULSEFOLD_TRUST_PRIOR": '{"": [3, 1]}', "PULSEFOLD_BUDGET_DAILY_USD": "20"}
KEYS = [f"m{n}" for n in range(20)]
START = "2026-03-02T00:00:00Z"


def slow(gate: Path) -> tuple[str, str]:
    """A worker that builds so slowly that its rate can be seen, and only to a part until the file is there."""
    return "tests.kafka.faults", f"building:0.3,halfway:{gate}"


def feed(worker: WorkerProcess, name: str, rounds: int) -> None:
    """So many observations of each key."""
    batch = [observed(f"{name}{n}-{i}", i) for n in range(rounds) for i in range(len(KEYS))]
    assert post(worker, batch, "application/cloudevents-batch+json")[0] == 200


def priors(worker: WorkerProcess) -> set[float]:
    """Which prior the trust of each key was folded from: alpha without the successes."""
    found = worker.get("/trust", kind="model", ids=",".join(KEYS), at="2026-03-02T00:00:00Z")
    return {round(one["alpha"] - one["observations"], 6) for key, one in found.items() if key in KEYS}


def scores(broker: EmbeddedBroker) -> list[dict[str, Any]]:
    """What the topic tells of an agent, in its order."""
    return [message for message, _ in read(broker.bootstrap, "pulsefold.scores") if message["type"] == "agent.scored.v1"]


@contextmanager
def watched(worker: WorkerProcess) -> Iterator[list[set[float]]]:
    """What somebody is told who asks all the time, each answer once in a row."""
    told: list[set[float]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            found = priors(worker)
            if not told or told[-1] != found:
                told.append(found)
            time.sleep(0.1)

    asking = threading.Thread(target=look)
    asking.start()
    try:
        yield told
    finally:
        over.set()
        asking.join(30)


def rebuilding(worker: WorkerProcess, state: str = "building") -> Callable[[], bool]:
    return lambda: (worker.get("/status")["rebuild"] or {}).get("state") == state


@pytest.mark.timeout(280)
def test_views_answer_by_the_former_tables_until_the_new_ones_are_built_even_through_a_kill_and_never_by_both(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4)
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, environment=PRIOR, rebuild="on")
    after.module = slow(tmp_path / "rest")
    try:
        before.start()
        feed(before, "a", 75)
        for n, amount in enumerate((9, 7)):
            post(before, {"id": f"c{n}", "source": "t", "type": "cost.incurred.v1", "time": f"2026-03-02T00:00:0{n}Z", "data": {"cost": amount}})
        post(before, {**observed("bad", 1), "type": "goal.progressed.v1", "data": {"goal_id": "g", "current": 1}})
        post(before, {"id": "x", "source": "t", "type": "agent.registered.v1", "time": START, "data": {"agent": "x", "capabilities": []}})
        before.until(lambda: before.absorbed(1504) and len(scores(embedded)) == 1)
        assert priors(before) == {1.0}
        before.stop()
        alerts, letters = read(embedded.bootstrap, "pulsefold.alerts"), read(embedded.bootstrap, "pulsefold.dead-letters")
        after.start()
        status = after.get("/status")
        told = status["rebuild"]
        assert status["ready"] and (told["state"], told["served_by"]) == ("building", "this worker")
        assert any("prior" in one for one in told["differs"])
        assert {rule["name"]: rule["value"] for rule in status["rules"]}["budget_daily_usd"] == 10, "what the figures follow from now"
        with watched(after) as answers:
            feed(after, "b", 2)
            seen: list[dict[str, Any]] = []

            def measured() -> bool:
                seen.append(after.get("/status")["rebuild"])
                return seen[-1]["folded"] > 100 and bool(seen[-1]["per_s"]) and bool(seen[-1]["seconds_left"])

            after.until(measured)
            progress = seen[-1]
            assert progress["folded"] < progress["to_fold"] == sum(one["to_fold"] for one in progress["partitions"])
            assert progress["per_s"] > 0 and progress["seconds_left"] > 0 and progress["estimated_end"] > progress["since"]
            assert {t["name"]: t for t in progress["tables"]}["trust"]["serving_keys"] == 20
            text = answered("status", "--url", f"http://127.0.0.1:{after.port}")
            assert "rebuilding: " in text and "of 15" in text and "prior" in text, text
            after.until(lambda: after.get("/trust/model/m3")["observations"] == 77)
        assert answers == [{1.0}], "the former tables serve, and take in what is new"
        after.kill()
        assert len(generations(embedded)) == 2
        del after.settings["rebuild"]
        after.start()
        after.until(lambda: after.get("/status")["rebuild"]["folded"] > 0)
        with watched(after) as answers:
            (tmp_path / "rest").touch()
            after.until(rebuilding(after, "swapped"))
            after.until(lambda: answers[-1:] == [{3.0}])
        assert answers in ([{1.0}, {3.0}], [{3.0}]), "at once for all partitions"
        feed(after, "c", 1)
        after.until(lambda: after.absorbed(1564))
        assert after.get("/trust/model/m3")["observations"] == 78 and priors(after) == {3.0}
        after.until(lambda: len(generations(embedded)) == 1)
        told = [(key, value) for key, value in last(embedded).items() if key.partition(b"|")[2].startswith(b"told") and value is not None]
        assert all(key.endswith(b"||") and AT.unpack_from(value)[0] >= 0 for key, value in told), "of what was compared there is left that it was"
        assert read(embedded.bootstrap, "pulsefold.dead-letters") == letters
        fresh = [m for m, _ in read(embedded.bootstrap, "pulsefold.alerts")[len(alerts) :]]
        assert [(m["type"], m["data"]["rule"], m["data"].get("reason")) for m in fresh if m["data"]["rule"].startswith("cost.daily")] == [
            ("alert.eased.v1", "cost.daily", "settings_changed")
        ]
        assert len({m["id"] for m, _ in read(embedded.bootstrap, "pulsefold.alerts")}) == len(alerts) + len(fresh), "none twice"
        after.until(lambda: len(scores(embedded)) > 1)
        quiet = scores(embedded)
        assert [one["data"]["score"]["trust"] for one in quiet] == [0.5, 0.75] and quiet[0]["id"] != quiet[1]["id"], "of whom nothing was told since"
        marks = [key for key, value in last(embedded).items() if key.partition(b"|")[2].startswith(b"scores.") and value is not None]
        after.until(lambda: not marks or not [key for key, value in last(embedded).items() if key in marks and value is not None])
        assert after.stop() == 0
        replay = pulsefold("replay", "--bootstrap", embedded.bootstrap, "--partitions", "4", env=PRIOR)
        assert replay.returncode == 0, replay
    finally:
        before.stop()
        after.stop()


@pytest.mark.timeout(280)
def test_another_version_of_the_code_builds_beside_workers_that_serve_which_give_way_when_it_is_done(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4)
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, rebuild="on")
    after.module = ("tests.kafka.faults", f"newer:trust,gated:{tmp_path / 'built'}")
    try:
        before.start()
        feed(before, "a", 100)
        before.until(lambda: before.absorbed(2000))
        after.start(wait=False)
        after.until(rebuilding(after))
        status, detail = after.ask("/trust/model/m3")
        assert status == 503 and "former version" in detail["detail"]
        assert after.get("/status")["ready"] is False and not any(p["committed"] for p in after.get("/status")["partitions"])
        feed(before, "b", 1)
        before.until(lambda: before.get("/trust/model/m3")["observations"] == 101)
        after.until(lambda: after.get("/status")["rebuild"]["to_fold"] == 2020)  # that is committed too: so far it is built before it serves
        (tmp_path / "built").touch()
        after.until(rebuilding(after, "swapped"))
        assert after.get("/trust/model/m3")["observations"] == 101, "no gap: it answers as soon as it is ready"
        assert before.process is not None and before.process.wait(60) == 2
        mine = next(table.version for table in schema().tables if table.name == "trust")
        assert f"table trust version {mine + 1} and here it is {mine}" in before.log.read_text() and "Traceback" not in before.log.read_text()
        after.until(lambda: all(p["owner"] for p in after.get("/status")["partitions"]))
        feed(after, "c", 1)
        after.until(lambda: after.absorbed(2040))
        assert after.get("/trust/model/m3")["observations"] == 102
        after.until(lambda: len(generations(embedded)) == 1)
        assert "trust" in refused(before)
    finally:
        before.stop()
        after.stop()


def behead(broker: EmbeddedBroker, worker: WorkerProcess, absorbed: int) -> None:
    """Let the embedded broker drop the head of a partition, which it does after 5 MiB; the worker folds everything meanwhile."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": 2_000_000})
    archive = worker.get("/status")["archive"]["enabled"]
    for n in range(8):
        body = f'{{"specversion":"1.0","id":"big{n}","source":"t","type":"custom.recorded.v1","data":{{"name":"n","fields":{{"x":"{"y" * 900_000}"}}}}}}'
        producer.produce("pulsefold.judgments", body.encode(), b"default", partition=0)
        assert producer.flush(30) == 0
        worker.until(lambda n=n: worker.absorbed(absorbed + n + 1) and (not archive or worker.archived(absorbed + n + 1)))


@pytest.mark.timeout(280)
def test_a_log_whose_start_is_gone_is_built_from_the_archive_where_that_has_it_and_else_refused(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, archive_dir=tmp_path / "kept")
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, environment=PRIOR, rebuild="on")
    try:
        before.start()
        feed(before, "a", 3)
        post(before, {**observed("bad", 1), "type": "goal.progressed.v1", "data": {"goal_id": "g", "current": 1}})
        feed(before, "a", 1)  # once more
        before.until(lambda: before.archived(81))
        behead(embedded, before, 81)
        counts = before.get("/status")["counts"]
        assert (counts["duplicate"], counts["dead_lettered"]) == (20, 1)
        before.stop()
        said = refused(after)
        assert "pulsefold.judgments/0: the log begins at offset" in said and "of offsets 0 to" in said and "no archive" in said and "prior" in said
        assert len(generations(embedded)) == 1
        after.settings["archive_dir"] = tmp_path / "kept"
        after.start()
        after.until(rebuilding(after, "swapped"), 60)
        assert priors(after) == {3.0} and after.get("/trust/model/m3")["observations"] == 3
        assert after.get("/status")["counts"] == counts
        feed(after, "b", 1)
        after.until(lambda: after.get("/trust/model/m3")["observations"] == 4)
    finally:
        before.stop()
        after.stop()


@pytest.mark.timeout(280)
def test_where_the_log_loses_its_start_while_it_is_built_the_build_ends_with_a_sentence_and_the_former_tables_serve_on(
    embedded: EmbeddedBroker, tmp_path: Path
) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4)
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, environment=PRIOR, rebuild="on")
    after.module = slow(tmp_path / "rest")
    try:
        before.start()
        feed(before, "a", 60)
        before.until(lambda: before.absorbed(1200))
        before.stop()
        after.start()
        after.until(rebuilding(after))
        with watched(after) as answers:
            behead(embedded, after, 1200)
            (tmp_path / "rest").touch()
            after.until(rebuilding(after, "failed"))
            feed(after, "b", 1)
            after.until(lambda: after.get("/trust/model/m3")["observations"] == 61)
        assert answers == [{1.0}]
        told = after.get("/status")["rebuild"]["error"]
        assert "pulsefold.judgments/0: the log begins at offset" in told and "prior" in told
        assert told in after.log.read_text()
        text = answered("status", "--url", f"http://127.0.0.1:{after.port}")
        assert "not rebuilt" in text and told in text
        with urllib.request.urlopen(f"http://127.0.0.1:{after.port}/metrics", timeout=20) as metrics:
            assert b"\npulsefold_rebuild_failed 1.0" in metrics.read()
        after.until(lambda: len(generations(embedded)) == 1)
        after.kill()
        del after.settings["rebuild"]
        after.start()  # as its supervisor would
        assert rebuilding(after, "failed")() and priors(after) == {1.0}
        assert after.stop() == 0
        before.start()
        assert before.get("/status")["rebuild"] is None and before.get("/trust/model/m3")["observations"] == 61
    finally:
        before.stop()
        after.stop()


@pytest.mark.timeout(280)
def test_of_two_workers_the_one_with_the_former_settings_serves_until_the_swap_and_both_fold_meanwhile(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4)
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, environment=PRIOR, rebuild="on")
    try:
        before.start()
        feed(before, "a", 20)
        before.until(lambda: before.absorbed(400))
        after.start()
        after.until(lambda: priors(after) == {1.0} or rebuilding(after, "swapped")())
        # what the other one owns is not built: it has other settings, and is replaced next, as in any rolling restart
        after.until(lambda: any(p["owner"] for p in after.get("/status")["partitions"]), 60)
        feed(before, "b", 2)
        before.until(lambda: priors(before) == {1.0} and before.get("/trust/model/m3")["observations"] == 22)
        assert priors(after) == {1.0}
        assert before.stop() == 0
        after.until(rebuilding(after, "swapped"), 60)
        after.until(lambda: priors(after) == {3.0} and after.get("/trust/model/m3")["observations"] == 22)
    finally:
        before.stop()
        after.stop()
