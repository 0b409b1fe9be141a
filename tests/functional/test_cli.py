"""The command line as a new user meets it, wrong words included."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.registry import schema
from streams.broker import EmbeddedBroker

from ..workers import ROOT, WorkerProcess


def pulsefold(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    code = "import sys; from streams.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
    )


def answered(*words: str) -> str:
    """What a call that succeeds prints."""
    done = pulsefold(*words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize(
    ("words", "env", "names"),
    [
        (["worker", "--bootstrap", "127.0.0.1:1"], {}, "bootstrap"),
        (["worker", "--web-port", "many"], {}, "web_port"),
        (["worker"], {"PULSEFOLD_PARTITIONS": "eight"}, "partitions"),
        (["worker", "--colour", "red"], {}, "colour"),
        (["worker", "--web-host", "0.0.0.0"], {}, "web_host"),
        (["worker", "--config", "/nowhere.toml"], {}, "/nowhere.toml"),
        (["topics", "check", "--bootstrap", "127.0.0.1:1"], {}, "bootstrap"),
        (["publish", "/nowhere.jsonl", "--bootstrap", "127.0.0.1:1"], {}, "/nowhere.jsonl"),
        (["publish", "/dev/null", "--bootstrap", "127.0.0.1:1"], {}, "bootstrap"),
        (["query", "/costs", "--url", "http://127.0.0.1:1"], {}, "url"),
        (["replay", "--bootstrap", "127.0.0.1:1"], {}, "bootstrap"),
    ],
)
def test_what_cannot_be_used_is_one_clear_sentence_and_exit_code_2(words: list[str], env: dict[str, str], names: str) -> None:
    done = pulsefold(*words, env=env)
    assert done.returncode == 2, done
    assert names in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_busy_port_and_a_wrong_partition_count_are_told_before_the_start(embedded: EmbeddedBroker) -> None:
    done = pulsefold("worker", "--bootstrap", embedded.bootstrap, "--partitions", "8")
    assert done.returncode == 2
    assert "has 4 partitions, the setting partitions says 8" in done.stderr
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        done = pulsefold("worker", "--bootstrap", embedded.bootstrap, "--partitions", "4", "--web-port", port)
    assert done.returncode == 2
    assert port in done.stderr and "Traceback" not in done.stderr


def test_settings_come_from_flag_environment_file_and_default_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "pulsefold.toml").write_text('web_port = 1\napp_id = "file"\npartitions = 3\n"trust_half_life.model" = 60\n[tokens.secret]\ntenant = "a"\n')
    env = {"PULSEFOLD_WEB_PORT": "2", "PULSEFOLD_APP_ID": "environment", "PULSEFOLD_TRUST_HALF_LIFE__Model_X": "5"}
    done = pulsefold("config", "--json", "--web-port", "3", env=env, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert [found[name]["value"] for name in ("web_port", "app_id", "partitions")] == [3, "environment", 3]
    assert [found[name]["from"] for name in ("web_port", "app_id", "partitions", "replication")] == ["flag", "PULSEFOLD_APP_ID", "pulsefold.toml", "default"]
    assert found["trust_half_life"]["value"] == {"": None, "model": 60.0, "Model_X": 5.0}
    assert "secret" not in done.stdout


def test_publish_counts_what_was_taken_and_refused_by_line(embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path) -> None:
    good = {"type": "trust.observed.v1", "time": "2026-03-02T00:00:00Z", "data": {"kind": "model", "id": "m", "success": True}}
    lines = [json.dumps(good), "{", json.dumps({**good, "data": {**good["data"], "weight": 0}}), json.dumps({**good, "derivedfrom": "x"})]  # type: ignore[dict-item]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(lines) + "\n")
    for _ in range(2):  # ids come from the content, so the second time changes nothing
        done = pulsefold("publish", str(file), "--bootstrap", embedded.bootstrap, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["accepted"], [one["line"] for one in found["refused"]]) == (1, 1, [2, 3, 4])
    worker.until(lambda: worker.get("/status")["counts"]["in"] == 2)
    assert worker.get("/trust/model/m")["observations"] == 1
    url = f"http://127.0.0.1:{worker.port}"
    assert json.loads(answered("query", "/trust/model/m", "--url", url, "--json"))["observations"] == 1
    assert "observations" in answered("query", "/trust", "--url", url, "--csv")
    missing = pulsefold("query", "/trust/model/nobody", "--url", url)
    assert missing.returncode == 2 and "404" in missing.stderr


def test_learning_goes_into_a_file_and_back_and_a_linked_goal_moves_over_partitions(
    embedded: EmbeddedBroker, worker: WorkerProcess, tmp_path: Path, on_topics: Callable[..., list[Any]]
) -> None:
    lines = [{"type": "goal.created.v1", "time": "2026-03-02T00:00:00Z", "data": {"goal_id": "g", "target": 0.9, "metric": "performance_score"}}]
    data = {"learning_rate": 0.1, "convergence_metric": 0.5, "task_type": "t"}
    for n in range(20):
        body = {**data, "performance_score": n / 20, "episode_count": n, "run": f"r{n % 3}"}
        lines.append({"type": "learning.recorded.v1", "time": f"2026-03-02T00:00:{n:02}Z", "data": body})
    bootstrap = ("--bootstrap", embedded.bootstrap)
    assert pulsefold("publish", "-", *bootstrap, stdin=json.dumps(lines[0])).returncode == 0
    worker.until(lambda: worker.get("/learning/goals")["total_goals"] == 1)
    assert pulsefold("publish", "-", *bootstrap, stdin="\n".join(map(json.dumps, lines[1:]))).returncode == 0
    worker.until(lambda: worker.get("/goals/g")["n_total"] == 20)
    file, again = tmp_path / "learning.json", tmp_path / "again.json"
    url = f"http://127.0.0.1:{worker.port}"
    done = pulsefold("export", "learning", str(file), "--url", url)
    assert (done.returncode, done.stderr) == (0, "20 learning events, 1 goals\n"), done
    broken = file.read_text().replace('"current": 0.95', '"current": null').splitlines()
    (tmp_path / "broken.json").write_text("\n".join(broken))
    done = pulsefold("import", "learning", str(tmp_path / "broken.json"), *bootstrap, "--tenant", "other", "--json")
    assert done.returncode == 1
    assert [one["line"] for one in json.loads(done.stdout)["refused"]] == [next(i for i, line in enumerate(broken, 1) if "null}" in line)]
    for _ in range(2):
        done = pulsefold("import", "learning", str(file), *bootstrap, "--tenant", "new", "--json")
        assert (done.returncode, json.loads(done.stdout)["delivered"]) == (0, 41), done
    worker.until(lambda: worker.absorbed(len(on_topics())))
    assert pulsefold("export", "learning", str(again), "--url", url, "--tenant", "new").returncode == 0
    first, second = json.loads(file.read_text()), json.loads(again.read_text())
    assert second["learning_events"] == first["learning_events"]
    assert second["goals"][0]["n_total"] == 20 and second["goals"][0]["percentage"] == first["goals"][0]["percentage"]


def test_replay_agrees_with_the_live_tables(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    lines = "\n".join(json.dumps({"id": str(n), "type": "cost.incurred.v1", "time": "2026-03-02T00:00:00Z", "data": {"cost": "0.1"}}) for n in range(200))
    assert pulsefold("publish", "-", "--bootstrap", embedded.bootstrap, stdin=lines).returncode == 0
    worker.until(lambda: worker.get("/costs")["events"] == 200)
    done = pulsefold("replay", "--bootstrap", embedded.bootstrap, "--partitions", "4", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["records"] == 200


def test_dead_letters_are_listed_with_why(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    producer.produce("pulsefold.costs", b"not json", b"default")
    producer.flush(10)
    worker.until(lambda: worker.get("/status")["counts"]["dead_lettered"] == 1)
    rows: list[dict[str, Any]] = []

    def listed() -> bool:
        rows[:] = json.loads(answered("dead-letters", "list", "--bootstrap", embedded.bootstrap, "--json"))
        return bool(rows)

    worker.until(listed)
    assert [(row["reason"], row["topic"], row["value"]) for row in rows] == [("not_json", "costs", "not json")]


def test_the_broker_command_prints_its_address_first() -> None:
    code = "import sys; from streams.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "broker", "--partitions", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert pulsefold("topics", "check", "--bootstrap", address, "--partitions", "1").returncode == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_faust_lists_the_agent_and_the_tables() -> None:
    trust = next(table for table in schema().tables if table.name == "trust")
    for word, expected in (("agents", "fold"), ("tables", trust.wire)):
        done = subprocess.run(
            [sys.executable, "-m", "faust", "-A", "agents.worker", word],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
