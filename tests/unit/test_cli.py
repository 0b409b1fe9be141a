"""The commands' own work: wrong words, lines to publish, tables and CSV. What needs a worker is in tests/functional/test_cli.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.cli.output import clean, rows_of, write_csv
from streams.cli.publish import content_id, prepare
from streams.cli.service import COMMANDS
from streams.codec import InvalidEvent

ROOT = Path(__file__).parent.parent.parent
CODE = "import sys; from streams.cli import main; sys.exit(main())"


def begin(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None, code: str = CODE) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PULSEFOLD_")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=cwd or ROOT,
        env={**own, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pulsefold(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None, code: str = CODE) -> tuple[int, str, str]:
    process = begin(*words, cwd=cwd, env=env, code=code)
    out, told = process.communicate(timeout=60)
    return process.returncode, out, told


def one_sentence(told: str) -> str:
    """The only line on stderr."""
    assert "Traceback" not in told
    lines = told.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pulsefold: "), told
    return lines[0].removeprefix("pulsefold: ")


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        ("nonsense", {}, "nonsense"),
        ("publish", {}, "requires an argument"),
        ("publish x --colour red", {}, "colour"),
        ("topics check --partitions many", {}, "--partitions"),
        ("topics check --partitions 0", {}, "partitions: expected whole number at least 1, got 0 (from flag)"),
        ("topics create", {"PULSEFOLD_WEB_PORT": "many"}, "web_port: expected whole number from 1 to 65535, got 'many' (from PULSEFOLD_WEB_PORT)"),
        ("broker", {"PULSEFOLD_PARTITIONS": "-1"}, "partitions"),
        ("alerts tail --since yesterday", {}, "yesterday"),
        ("dead-letters list --config /nowhere.toml", {}, "/nowhere.toml: cannot be read: No such file or directory"),
        ("query /costs --url localhost:6066", {}, "url: expected http://HOST:PORT"),
        ("query /costs novalue --url http://127.0.0.1:1", {}, "param: expected name=value"),
        ("query /costs --url http://127.0.0.1:1", {}, "url: no worker answers at http://127.0.0.1:1"),
        ("worker stray", {}, "stray: worker takes settings as flags only"),
        ("demo --exit-when-finished", {}, "exit_when_finished: the demo has no such flag"),
        ("config --partitions many", {}, "partitions"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(words: str, environment: dict[str, str], says: str, tmp_path: Path) -> None:
    code, out, told = pulsefold(*words.split(), env=environment, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert says in one_sentence(told)


@pytest.mark.parametrize(
    ("content", "says"), [(b"partitions = [", "is no TOML"), (b"\xff\xfe", "is no UTF-8 text"), (b"colour = 1", "colour: there is no such setting")]
)
@pytest.mark.parametrize("words", ["topics check", "worker"])
def test_an_unreadable_settings_file_is_one_sentence_and_exit_code_2(words: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "pulsefold.toml").write_bytes(content)
    code, _, told = pulsefold(*words.split(), cwd=tmp_path)
    assert code == 2
    assert says in one_sentence(told)


def test_a_missing_broker_is_one_sentence_and_exit_code_2() -> None:
    started = [begin(*words.split(), "--bootstrap", "127.0.0.1:1") for words in ("topics check", "dead-letters list", "alerts tail", "publish -")]
    for process in started:  # each waits ten seconds for the broker, so they wait together
        _, told = process.communicate(timeout=60)
        assert process.returncode == 2
        assert one_sentence(told).startswith("bootstrap: no Kafka broker answers at 127.0.0.1:1")


def test_the_folds_settings_in_the_file_do_not_trouble_the_other_commands(tmp_path: Path) -> None:
    (tmp_path / "pulsefold.toml").write_text('"trust_half_life.model" = 60\nbudget_daily_usd = 5\n')
    code, _, told = pulsefold("query", "/costs", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert "no worker answers" in one_sentence(told)
    code, _, told = pulsefold("query", "/costs", cwd=tmp_path, env={"PULSEFOLD_WEB_PORT": "1"})
    assert (code, "no worker answers at http://127.0.0.1:1 " in told) == (2, True)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_explains_every_setting(command: str) -> None:
    code, out, told = pulsefold(command, "--help")
    assert (code, told) == (0, "")
    assert f"Usage: pulsefold {command}" in out
    wanted = ("--exit-when-done", "--web-port") if command == "demo" else ("--web-port", "--kafka-ssl-cafile", "--trust-half-life", "--budget-cumulative-usd")
    assert all(flag in out for flag in wanted)


@pytest.mark.parametrize("package", ["rich", "cyclopts"])
def test_a_trainers_installation_says_what_the_command_line_needs(package: str) -> None:
    code, _, told = pulsefold("--help", code=f"import sys; sys.modules[{package!r}] = None\n{CODE}")
    assert code == 2
    assert one_sentence(told) == f"the command line needs {package}; install with: pip install 'pulsefold[cli]'"


@pytest.mark.parametrize(("command", "extra"), [("worker", "service"), ("replay", "service"), ("demo", "service,demo")])
def test_without_the_service_its_commands_say_what_to_install(command: str, extra: str) -> None:
    hidden = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None if name in ('faust', 'aiokafka') else find(name)\n"
    code, _, told = pulsefold(command, code=hidden + CODE)
    assert code == 2
    assert one_sentence(told) == f"{command}: faust-streaming, aiokafka is not installed; install with: pip install 'pulsefold[{extra}]'"


def test_without_the_service_config_shows_what_the_commands_read(tmp_path: Path) -> None:
    hidden = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None if name == 'faust' else find(name)\n"
    (tmp_path / "pulsefold.toml").write_text("budget_daily_usd = 5\npartitions = 3\n")
    code, out, _ = pulsefold("config", "--json", "--web-port", "7", cwd=tmp_path, env={"PULSEFOLD_KAFKA_SASL_PASSWORD": "hidden"}, code=hidden + CODE)
    found = json.loads(out)
    assert code == 0
    assert (found["web_port"], found["partitions"]) == ({"value": 7, "from": "flag"}, {"value": 3, "from": "pulsefold.toml"})
    assert found["kafka_sasl_password"]["from"] == "PULSEFOLD_KAFKA_SASL_PASSWORD" and "hidden" not in out


# ---- publish


EVENT: dict[str, Any] = {"type": "cost.incurred.v1", "time": "2026-03-02T00:00:00Z", "data": {"cost": 0.1, "model": "m"}}


def test_an_id_is_made_from_what_a_line_says_not_from_how_it_is_written() -> None:
    compact = json.dumps(EVENT, separators=(",", ":")).encode()
    spread = json.dumps(dict(reversed(EVENT.items())), indent=None, separators=(", ", " : ")).encode() + b"\r\n"
    assert prepare(compact)["id"] == prepare(spread)["id"]
    other = {**EVENT, "data": {"cost": 0.2, "model": "m"}}
    assert prepare(json.dumps(other).encode())["id"] != prepare(compact)["id"]
    assert prepare(compact)["id"].startswith("c-") and len(prepare(compact)["id"]) <= 128


def test_an_id_that_is_there_stays_and_the_data_stays_as_written() -> None:
    line = b'{"id":"x","type":"cost.incurred.v1","data":{"cost": 0.1000000000000000055}}'
    assert prepare(line)["id"] == "x"
    assert bytes(prepare(line)["data"]) == b'{"cost": 0.1000000000000000055}'


@pytest.mark.parametrize(
    ("line", "reason", "names"),
    [
        (b"{", "not_json", "JSON"),
        (b"[]", "not_json", "JSON"),
        (b"\xff\xfe{}", "not_json", "JSON"),
        (b'{"id": "\xff"}', "not_json", "JSON"),
        (b'{"a":' + b"[" * 100_000, "not_json", "JSON"),
        (json.dumps({**EVENT, "derivedfrom": "x"}).encode(), "refused", "derivedfrom"),
        (json.dumps({**EVENT, "type": "clock.ticked.v1"}).encode(), "refused", "clock.ticked.v1"),
        (json.dumps({**EVENT, "type": "alert.opened.v1"}).encode(), "refused", "alert.opened.v1"),
    ],
)
def test_what_is_no_event_or_not_a_clients_to_send_is_refused(line: bytes, reason: str, names: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        prepare(line)
    assert refused.value.reason == reason
    assert names in refused.value.error


@given(st.binary(max_size=80))
def test_any_line_is_an_envelope_or_refused(line: bytes) -> None:
    assert content_id(line) == content_id(line)
    try:
        assert "data" in prepare(line)
    except InvalidEvent as refused:
        assert refused.reason in ("not_json", "refused")


# ---- output


def test_names_from_events_do_not_steer_the_terminal_and_no_spreadsheet_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("a\x1b]0;owned\x07b\nc") == "a\ufffd]0;owned\ufffdb\ufffdc"
    write_csv([{"name": "=1+1", "n": -5}, {"name": "@x", "list": [1]}, {"name": "plain", "n": None}])
    assert capsys.readouterr().out.splitlines() == ["name,n,list", "'=1+1,-5,", "'@x,,[1]", "plain,,"]


def test_the_rows_of_an_answer_are_its_list_or_itself() -> None:
    assert rows_of({"cursor": None, "names": [], "keys": [{"a": 1}]}) == [{"a": 1}]
    assert rows_of({"a": 1, "tags": ["x"]}) == [{"a": 1, "tags": ["x"]}]
    assert rows_of(7) == [{"value": 7}]


class Answers(BaseHTTPRequestHandler):
    """A web server that says what it was asked."""

    def do_GET(self) -> None:
        asked = {"path": self.path, "token": self.headers.get("Authorization"), "tenant": self.headers.get("X-Tenant"), "rows": [{"name": "n" * 150}]}
        status = 404 if "nobody" in self.path else 200
        body = b"plain" if "plain" in self.path else json.dumps({"detail": "nobody\x1b[31m here", **asked}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_query_encodes_the_path_and_passes_parameters_token_and_tenant(url: str) -> None:
    words = ["query", "trust/model/a b", "limit=5", "--param", "name=x&y", "--param", "ids=1", "--url", url, "--tenant", "acme", "--json"]
    code, out, told = pulsefold(*words, env={"PULSEFOLD_TOKEN": "secret"})
    assert (code, told) == (0, "")
    found = json.loads(out)
    assert found["path"] == "/api/v1/trust/model/a%20b?limit=5&name=x%26y&ids=1"
    assert (found["token"], found["tenant"]) == ("Bearer secret", "acme")


def test_a_table_in_a_pipe_is_not_cut_and_csv_has_the_list(url: str) -> None:
    assert "n" * 150 in pulsefold("query", "/x", "--url", url)[1]
    assert pulsefold("query", "/x", "--url", url, "--csv")[1].split() == ["name", "n" * 150]


def test_an_error_of_the_worker_is_its_detail_and_what_is_no_json_is_told(url: str) -> None:
    code, _, told = pulsefold("query", "/trust/model/nobody", "--url", url)
    assert (code, one_sentence(told)) == (2, "/trust/model/nobody: 404 nobody\ufffd[31m here")
    code, _, told = pulsefold("query", "/plain", "--url", url)
    assert code == 2 and "cannot be read as JSON" in one_sentence(told)
