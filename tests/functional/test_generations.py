"""Workers whose settings differ from those that the tables were made with: they say so and stop, or rebuild, and what was before ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.generations import differences
from streams.broker import EmbeddedBroker
from tables.rows import parse_wire_key

from ..workers import WorkerProcess
from .test_clearing import last
from .test_cli import pulsefold
from .test_golden_http import read
from .test_service import event, post

LOW = {"PULSEFOLD_BUDGET_DAILY_USD": "20"}


def observed(id: str, n: int) -> dict[str, Any]:
    found = event(id)
    return {**found, "data": {**found["data"], "id": f"m{n}"}}


def refused(worker: WorkerProcess) -> str:
    """Start a worker that stops by itself with exit code 2; the last line it says."""
    worker.log.write_bytes(b"")
    worker.start(wait=False)
    assert worker.process is not None
    assert worker.process.wait(40) == 2, worker.log.read_text()
    said = worker.log.read_text()
    assert "Traceback" not in said, said
    return said[said.index("pulsefold: ") :]


def generations(broker: EmbeddedBroker) -> set[str]:
    """Generations that have rows, or the record of what they are made of, on the changelogs."""
    parsed = [parse_wire_key(key.partition(b"|")[2]) for key, value in last(broker).items() if value is not None]
    parsed = [one for one in parsed if one[0] != "served"]
    return {tenant if table == "schema" else table.rpartition(".")[2] for table, tenant, _ in parsed}


@pytest.mark.timeout(240)
def test_other_settings_are_refused_by_name_and_a_rebuild_gives_their_figures_publishes_nothing_and_ends_the_old_rows(
    embedded: EmbeddedBroker, tmp_path: Path
) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4)
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, environment=LOW)
    try:
        before.start()
        for n in range(30):
            post(before, observed(f"e{n}", n))
        for n, amount in enumerate((4, 4, 1)):
            post(before, {"id": f"c{n}", "source": "t", "type": "cost.incurred.v1", "time": f"2026-03-02T00:00:0{n}Z", "data": {"cost": amount}})
        post(before, {**event("bad"), "type": "goal.progressed.v1", "data": {"goal_id": "g", "current": 1}})
        before.until(lambda: before.absorbed(34))
        before.until(lambda: len(read(embedded.bootstrap, "pulsefold.dead-letters")) >= 1 and len(read(embedded.bootstrap, "pulsefold.alerts")) >= 2)
        alerts, letters = read(embedded.bootstrap, "pulsefold.alerts"), read(embedded.bootstrap, "pulsefold.dead-letters")
        assert len(letters) == 1 and [m["data"]["severity"] for m, _ in alerts if m["data"]["rule"] == "cost.daily"] == ["warning", "critical"]
        status, trust = before.get("/status")["counts"], before.get("/trust/model/m3", at="2026-03-03T00:00:00Z")
        assert before.stop() == 0
        assert len(generations(embedded)) == 1

        said = refused(after)
        assert said.startswith("pulsefold: budget_daily_usd: ") and "--rebuild" in said
        assert "10" in said and "20" in said
        replay = pulsefold("replay", "--bootstrap", embedded.bootstrap, "--partitions", "4", env=LOW)
        assert replay.returncode == 2 and "budget_daily_usd" in replay.stderr

        after.settings["rebuild"] = "on"
        after.start()
        assert after.get("/status")["counts"] == status and after.get("/trust/model/m3", at="2026-03-03T00:00:00Z") == trust
        after.until(lambda: after.get("/status")["rebuild"]["state"] == "swapped" and len(generations(embedded)) == 1)
        assert after.get("/status")["counts"] == status and after.get("/trust/model/m3", at="2026-03-03T00:00:00Z") == trust
        told = read(embedded.bootstrap, "pulsefold.alerts")
        assert told[: len(alerts)] == alerts, "nothing is told again"
        assert [(m["type"], m["data"]["reason"], m["data"]["previous"]) for m, _ in told[len(alerts) :]] == [
            ("alert.resolved.v1", "settings_changed", "critical")
        ]
        alerts = told
        assert read(embedded.bootstrap, "pulsefold.dead-letters") == letters
        post(after, {"id": "c9", "source": "t", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:09Z", "data": {"cost": 11}})
        after.until(lambda: len(read(embedded.bootstrap, "pulsefold.alerts")) > len(alerts))
        assert after.stop() == 0

        assert "budget_daily_usd" in refused(before)
        del after.settings["rebuild"]
        after.start()
        assert after.get("/costs")["events"] == 4
        again = pulsefold("replay", "--bootstrap", embedded.bootstrap, "--partitions", "4", "--json", env=LOW)
        assert (again.returncode, json.loads(again.stdout)["equal"]) == (0, True), again
    finally:
        before.stop()
        after.stop()


@pytest.mark.timeout(240)
def test_a_rebuild_that_was_killed_goes_on_without_the_word_and_ends_with_the_same_figures(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    before = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4).start()
    after = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, dedupe_window=128, rebuild="on")
    after.module = ("tests.kafka.faults", f"halfway:{tmp_path / 'rest'}")
    try:
        for n in range(40):
            batch = [observed(f"{n}-{i}", i) for i in range(100)]
            assert post(before, batch, "application/cloudevents-batch+json")[0] == 200
        before.until(lambda: before.absorbed(4000))
        before.stop()
        after.start(wait=False)
        after.until(lambda: len(generations(embedded)) == 2)
        after.kill()
        (tmp_path / "rest").touch()
        del after.settings["rebuild"]
        after.start()
        after.until(lambda: after.absorbed(4000))
        assert after.get("/trust/model/m7")["observations"] == 40
        assert after.get("/status")["counts"]["in"] == 4000
        after.until(lambda: len(generations(embedded)) == 1)
        assert "dedupe_window" in refused(before)
    finally:
        before.stop()
        after.stop()


def test_what_differs_is_named_with_both_values() -> None:
    mine: dict[str, Any] = {"settings": {"a": 1, "b": {"": None}, "new": 2}, "tables": {"t": 1, "u": 2, "w": 1}}
    theirs: dict[str, Any] = {"settings": {"a": 1, "b": {"": 5.0}, "old": 1}, "tables": {"t": 1, "u": 1, "v": 1}}
    names, parts = differences(mine, theirs)
    assert names == ["b", "new", "old", "u", "v", "w"]
    assert parts == [
        'b {"": 5.0} and here it is {"": null}',
        "no new, which is 2 here",
        "old, which this worker does not know",
        "table u version 1 and here it is 2",
        "table v, which this worker does not know",
        "no table w",
    ]
    assert differences(mine, mine) == ([], [])
