"""A real broker by TLS and SASL: the worker, the commands and the archivist reach it, and nobody without the password or the certificate does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents.access import security
from streams import admin
from streams.errors import PulsefoldError
from streams.settings import load

from ..certificates import self_signed, signed
from ..workers import ROOT, WorkerProcess
from .broker import KafkaCluster, NoBroker, jars

PASSWORD = "undisclosed-7"
EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "t",
    "type": "metric.recorded.v1",
    "time": "2026-03-02T00:00:00Z",
    "data": {"metric_type": "loss", "value": 1},
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """HOST:PORT of the protected listener, and the certificate."""
    folder = tmp_path_factory.mktemp("secured")
    cert, key = self_signed(folder, "kafka")
    both = folder / "both.pem"
    both.write_text(key.read_text() + cert.read_text())
    try:
        jars()
    except NoBroker as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs a real Kafka: {missing}")
        pytest.skip(str(missing))
    cluster = KafkaCluster(secured=(both, "alice", PASSWORD))
    try:
        cluster.start()
        yield cluster.secure, cert
    finally:
        cluster.stop()


def settings(bootstrap: str, cert: Path, mechanism: str) -> dict[str, str]:
    return {
        "PULSEFOLD_BOOTSTRAP": bootstrap, "PULSEFOLD_PARTITIONS": "1", "PULSEFOLD_TOPIC_PREFIX": "sec.", "PULSEFOLD_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "PULSEFOLD_KAFKA_SASL_MECHANISM": mechanism, "PULSEFOLD_KAFKA_SASL_USERNAME": "alice", "PULSEFOLD_KAFKA_SASL_PASSWORD": PASSWORD,
        "PULSEFOLD_KAFKA_SSL_CAFILE": str(cert),
    }  # fmt: skip


def command(words: str, environment: dict[str, str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from streams.cli import main; sys.exit(main())", *words.split()], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_worker_archive_and_commands_reach_a_broker_by_tls_and_sasl(secured: tuple[str, Path], tmp_path: Path) -> None:
    bootstrap, cert = secured
    environment = settings(bootstrap, cert, "SCRAM-SHA-512")
    code, said = command("topics create", environment, tmp_path)
    assert code == 0, said
    assert command("topics check", settings(bootstrap, cert, "PLAIN"), tmp_path)[0] == 0
    worker = WorkerProcess(bootstrap, tmp_path, environment=environment, data_dir=str(tmp_path / "data"), roles="all")
    try:
        worker.start()
        (tmp_path / "events.jsonl").write_text(json.dumps(EVENT) + "\n")
        code, said = command("publish events.jsonl", environment, tmp_path)
        assert (code, "1 accepted" in said) == (0, True), said
        raw = json.dumps({**EVENT, "id": "2"}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{worker.port}/api/v1/events", raw, {"Content-Type": "application/cloudevents+json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert json.load(response)["results"] == [{"id": "2", "accepted": True}]
        worker.until(lambda: worker.absorbed(2))
        worker.until(lambda: worker.ask("/metrics")[1].get("count") == 2)
        told = {one["name"]: one["value"] for one in worker.get("/status")["settings"]}
        assert told["kafka_sasl_password"] == "********"
        assert worker.stop() == 0
    finally:
        worker.stop()
    assert PASSWORD not in worker.log.read_text()


class Asking(KafkaCluster):
    """A broker that asks every client of the protected listener for a certificate of an authority.

    Args:
        authority: PEM file.
        pem: of the broker.
    """

    def __init__(self, authority: Path, pem: Path) -> None:
        self.authority = authority
        super().__init__(secured=(pem, "alice", PASSWORD))

    def further(self, n: int) -> list[str]:
        """The authority of clients, asked for in the listener's own name: else it does not count where there is SASL too."""
        return ["listener.name.sasl_ssl.ssl.client.auth=required", "ssl.truststore.type=PEM", f"ssl.truststore.location={self.authority}"]


def test_a_broker_that_asks_for_a_certificate_is_reached_with_one_and_with_no_other(kafka: str, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "kafka")
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + cert.read_text())
    authority = self_signed(tmp_path, "authority")
    mine, others = signed(tmp_path, "mine", authority), self_signed(tmp_path, "others")
    cluster = Asking(authority[0], both)
    try:
        cluster.start()
        base = settings(cluster.secure, cert, "SCRAM-SHA-512")
        right = {**base, "PULSEFOLD_KAFKA_SSL_CERTFILE": str(mine[0]), "PULSEFOLD_KAFKA_SSL_KEYFILE": str(mine[1])}
        code, said = command("topics create", right, tmp_path)
        assert code == 0, said
        worker = WorkerProcess(cluster.secure, tmp_path, environment=right, data_dir=str(tmp_path / "data"), roles="all")
        try:
            worker.start()
            (tmp_path / "events.jsonl").write_text(json.dumps(EVENT) + "\n")
            code, said = command("publish events.jsonl", right, tmp_path)
            assert (code, "1 accepted" in said) == (0, True), said
            worker.until(lambda: worker.absorbed(1))
            worker.until(lambda: worker.ask("/metrics")[1].get("count") == 1)  # the archivist too
        finally:
            worker.stop()
        for wrong in (base, {**base, "PULSEFOLD_KAFKA_SSL_CERTFILE": str(others[0]), "PULSEFOLD_KAFKA_SSL_KEYFILE": str(others[1])}):
            with pytest.raises(PulsefoldError, match="no Kafka broker answers"):
                admin.partition_counts(cluster.secure, ["sec.costs"], security=security(load({}, wrong))[1], timeout_s=3)
    finally:
        cluster.stop()


def test_nobody_reaches_it_without_the_password_or_who_trusts_another_certificate(secured: tuple[str, Path], tmp_path: Path) -> None:
    bootstrap, cert = secured
    right = settings(bootstrap, cert, "SCRAM-SHA-512")
    wrong = (
        {"PULSEFOLD_KAFKA_SASL_PASSWORD": "undisclosed-8"},
        {"PULSEFOLD_KAFKA_SSL_CAFILE": str(self_signed(tmp_path, "another")[0])},
        {"PULSEFOLD_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"},
    )

    def said(changed: dict[str, str]) -> str:
        found = load({}, {**right, **changed})
        with pytest.raises(PulsefoldError) as refused:
            admin.partition_counts(bootstrap, ["sec.costs"], security=security(found)[1], timeout_s=3)
        return str(refused.value)

    with ThreadPoolExecutor() as pool:
        for sentence in pool.map(said, wrong):
            assert sentence.startswith("bootstrap: no Kafka broker answers") and "undisclosed" not in sentence, sentence
