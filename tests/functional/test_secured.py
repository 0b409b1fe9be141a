"""A worker as it is run where others can reach it: TLS, tokens in a file, and a broker that dies under it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from streams.broker import EmbeddedBroker

from ..certificates import self_signed
from ..workers import ROOT, WorkerProcess

EVENT = {
    "specversion": "1.0",
    "source": "t",
    "type": "trust.observed.v1",
    "time": "2026-03-02T00:00:00Z",
    "data": {"kind": "model", "id": "m", "success": True},
}


def test_a_worker_with_tls_and_a_file_of_tokens_answers_while_its_broker_dies(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    file = tmp_path / "tokens.json"
    file.write_text('{"first": {"tenant": "a", "scopes": ["read", "publish"]}}')
    trusting = ssl.create_default_context(cafile=str(cert))

    def ask(path: str, token: str, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents+json"}
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://127.0.0.1:{worker.port}{path}", raw, headers)
        try:
            with urllib.request.urlopen(request, timeout=30, context=trusting) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)

    def ready() -> bool:
        try:
            return ask("/readyz", "")[0] == 200
        except OSError:
            return False

    broker = EmbeddedBroker(partitions=1)
    words = {"web_tls_cert": cert, "web_tls_key": key, "tokens_file": file, "partitions": 1, "web_host": "0.0.0.0", "roles": "fold,serve", "log_level": "info"}
    worker = WorkerProcess(broker.bootstrap, tmp_path, environment={"PULSEFOLD_COLOUR": "red"}, **words)
    try:
        worker.start(wait=False)
        worker.until(ready)
        assert ask("/api/v1/costs", "")[0] == 401
        assert ask("/api/v1/events", "first", {**EVENT, "id": "1"}) == (200, {"results": [{"id": "1", "accepted": True}]})
        worker.until(lambda: ask("/api/v1/trust/model/m", "first")[0] == 200)
        file.write_text('{"second": {"tenant": "a", "scopes": ["read", "publish"]}}')
        worker.until(lambda: ask("/api/v1/costs", "first")[0] == 401)
        assert ask("/api/v1/trust/model/m", "second")[1]["observations"] == 1
        broker.down()
        begun = time.monotonic()
        status, body = ask("/api/v1/events", "second", {**EVENT, "id": "2"})
        assert time.monotonic() - begun < 20
        assert (status, body["results"][0]["accepted"], body["results"][0]["reason"]) == (503, False, "not_acknowledged")
        assert ask("/api/v1/trust/model/m", "second")[1]["observations"] == 1
    finally:
        worker.kill()
        broker.close()
    said = worker.log.read_text()
    assert "https://0.0.0.0" in said and "without TLS" not in said
    assert "PULSEFOLD_COLOUR names no setting" in said
    assert "first" not in said and "second" not in said


def test_a_misspelt_variable_stops_a_worker_before_it_starts(tmp_path: Path) -> None:
    environment = {**os.environ, "PULSEFOLD_TOKNES": '{"undisclosed": {"tenant": "a"}}', "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "agents.main", "worker"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pulsefold: PULSEFOLD_TOKNES: names no setting; PULSEFOLD_TOKENS is one\n"
