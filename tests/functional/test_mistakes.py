"""What a newcomer gets wrong is answered with one clear sentence on stderr, exit code 2 and no traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.broker import EmbeddedBroker

from ..ports import free_port
from ..workers import ROOT

NOBODY = "127.0.0.1:1"
TOKENS = json.dumps({"x": {"tenant": "a", "expires": "never"}})


def run(words: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from streams.cli import main; sys.exit(main())", *words.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(partitions=2, prefix="pulsefold.") as running:
        yield running


def refused(words: str, folder: Path, sentence: str, **environment: str) -> None:
    code, out, err = run(words, folder, **environment)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("pulsefold: ") and err.count("\n") == 1 and sentence in err, err


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        ("worker --colour red", {}, "colour: there is no such setting"),
        ("worker --web-port abc", {}, "web_port: expected whole number from 1 to 65535, got 'abc' (from flag)"),
        ("worker --bootstrap", {}, "bootstrap: expected a value after --bootstrap"),
        ("worker --config --web-port 1", {}, "config: expected a value after --config"),
        ("worker", {"PULSEFOLD_PARTITIONS": "none"}, "partitions: expected whole number at least 1, got 'none' (from PULSEFOLD_PARTITIONS)"),
        ("worker", {"PULSEFOLD_TOKENS": TOKENS}, "tokens: expires of tenant 'a' must be a time such as 2027-01-31T00:00:00Z, got 'never'"),
        ("worker --web-host 0.0.0.0", {}, "web_host: 0.0.0.0 is not loopback; configure tokens"),
        ("worker --kafka-security-protocol SASL_SSL", {}, "kafka_sasl_mechanism: is needed for kafka_security_protocol = SASL_SSL"),
        ("worker --kafka-security-protocol SSL --kafka-ssl-cafile nowhere.pem", {}, "kafka_ssl_cafile: nowhere.pem holds no certificates that can be read"),
        ("topics check", {"PULSEFOLD_KAFKA_SSL_CAFILE": "nowhere.pem"}, "kafka_ssl_cafile: there is no file nowhere.pem"),
        ("worker --config missing.toml", {}, "missing.toml: cannot be read: No such file or directory"),
        ("worker --config .", {}, ".: cannot be read: Is a directory"),
        ("publish nowhere.jsonl", {}, "nowhere.jsonl: cannot be read: there is no such file"),
        (f"worker --bootstrap {NOBODY}", {}, f"bootstrap: no Kafka broker answers at {NOBODY}"),
        (f"alerts tail --bootstrap {NOBODY}", {}, f"bootstrap: no Kafka broker answers at {NOBODY}"),
        ("query /costs --url http://127.0.0.1:1", {}, "url: no worker answers at http://127.0.0.1:1"),
    ],
)
def test_without_a_broker(words: str, environment: dict[str, str], sentence: str, tmp_path: Path) -> None:
    refused(words, tmp_path, sentence, **environment)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe", "pulsefold.toml: is no UTF-8 text"),
        (b"web_port = ", "pulsefold.toml: is no TOML: Invalid value"),
        (b'colour = "red"', "colour: there is no such setting (pulsefold.toml)"),
        (b"web_port = 70000", "web_port: expected whole number from 1 to 65535, got 70000 (from pulsefold.toml)"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "topics check"])
def test_a_broken_file_of_settings(command: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pulsefold.toml").write_bytes(content)
    refused(command, tmp_path, sentence)


def test_with_a_broker(broker: EmbeddedBroker, tmp_path: Path) -> None:
    worker = f"worker --bootstrap {broker.bootstrap} --partitions 2"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(f"{worker} --web-port {port}", tmp_path, f"web_port: 127.0.0.1:{port} cannot be served (Address already in use)")
    refused(f"{worker} --data-dir /proc/nowhere", tmp_path, "data_dir: /proc/nowhere cannot be made")
    refused(f"{worker} --web-host no.such.host", tmp_path, "web_host: no.such.host is no address of this machine", PULSEFOLD_TOKENS='{"x": {"tenant": "a"}}')
    way_out = f"create with: pulsefold topics create --bootstrap {broker.bootstrap} --topic-prefix none."
    refused(f"{worker} --topic-prefix none.", tmp_path, way_out)


def test_a_bad_event_is_named_by_its_line_and_field_and_the_good_ones_are_published(broker: EmbeddedBroker, tmp_path: Path) -> None:
    lines = [
        '{"type": "x", "data": {}}',
        "not json",
        '{"type": "cost.incurred.v1", "source": "s", "data": {"cost": -1}}',
        '{"type": "cost.incurred.v1", "source": "s", "data": {"cost": 1}}',
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    code, out, err = run(f"publish events.jsonl --bootstrap {broker.bootstrap}", tmp_path)
    assert (code, out) == (1, "1 accepted, 3 refused\n")
    assert [line.split(":")[:2] for line in err.splitlines()] == [["line 1", " unknown_type"], ["line 2", " not_json"], ["line 3", " invalid_field"]]
    assert "data.cost: expected an amount in USD of 0 or more" in err


def test_a_worker_says_where_it_is_when_it_is_ready_and_that_it_stops_and_nothing_else(broker: EmbeddedBroker, tmp_path: Path) -> None:
    port = free_port()
    words = ["worker", "--bootstrap", broker.bootstrap, "--partitions", "2", "--web-port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "agents.main", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        process.terminate()
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert f"page and API at http://127.0.0.1:{port}/" in first
    assert "tables restored after" in second
    assert "pulsefold worker: stopping: what was folded is written, then the partitions are given up" in rest.splitlines() and "Traceback" not in rest, rest
    assert process.returncode == 0
