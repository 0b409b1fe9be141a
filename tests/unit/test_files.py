"""Files of trust: what is read from them, how they are written, and what is refused. With a worker: tests/functional/test_trust_files.py."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.cli import files
from streams.codec import decode, encode
from streams.errors import ConfigError, PulsefoldError
from streams.events import Event, Series
from streams.keys import encode_key
from tables.trust_views import FORMAT

from .test_cli import one_sentence, pulsefold

NOW = datetime(2026, 3, 2, tzinfo=UTC)
OURS: dict[str, Any] = {"format": FORMAT, "export_time": 1_772_000_000.5, "stats": {"model|a": [3.5, 1.0]}, "last_update": {}, "timestamps": {}}


def events_of(body: dict[str, Any] | bytes, kind: str | None = None, salt: str | None = None) -> list[Event]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    parsed = files.parse(raw)
    return files.imports(parsed, files.keys_of(parsed, kind)[0], raw, "acme", NOW, salt)


def test_the_command_and_the_view_speak_of_the_same_format() -> None:
    assert files.TRUST_FORMAT == FORMAT


def test_an_id_is_made_from_the_file_and_the_key_and_with_again_from_the_time_too() -> None:
    raw = json.dumps(OURS).encode()
    digest = hashlib.sha256(raw).hexdigest()
    assert [event.id for event in events_of(raw)] == ["imp-" + hashlib.sha256(f"{digest}|model|a".encode()).hexdigest()[:40]]
    ids = {event.id for salt in (None, "t1", "t2") for event in events_of(raw, salt=salt)} | {event.id for event in events_of(raw + b" ")}
    assert len(ids) == 4


def test_the_state_is_that_of_the_moment_the_file_was_written_but_never_of_the_future() -> None:
    assert events_of(OURS)[0].time == datetime.fromtimestamp(1_772_000_000.5, UTC)
    for later in ({**OURS, "export_time": 4e9}, {**OURS, "export_time": None}, {**OURS, "export_time": "2027-01-01T00:00:00Z"}):
        assert events_of(later)[0].time == NOW


names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(st.dictionaries(st.tuples(st.sampled_from(("variable", "model", "a_b")), names), st.tuples(st.floats(0.1, 1e9), st.floats(0.1, 1e9)), max_size=5))
def test_every_name_and_number_comes_out_of_a_file_as_it_went_in(state: dict[tuple[str, str], tuple[float, float]]) -> None:
    body = {**OURS, "stats": {encode_key(*key).decode(): list(counts) for key, counts in state.items()}}
    found = [decode(encode(event)).data for event in events_of(body)]
    assert {(one.kind, one.id): (one.alpha, one.beta) for one in found} == state


@given(st.dictionaries(names, st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=5), st.sampled_from(("variable", "rule")))
def test_names_of_an_older_file_are_taken_as_they_are(state: dict[str, tuple[float, float]], kind: str) -> None:
    found = [event.data for event in events_of({"stats": state}, kind)]
    assert {(one.kind, one.id) for one in found} == {(kind, name) for name in state}


@pytest.mark.parametrize(
    ("stats", "kind", "keys"),
    [
        (("x", "y"), None, [("variable", "x"), ("variable", "y")]),
        (("model|x", "rule|y%7Cz"), None, [("model", "x"), ("rule", "y|z")]),
        (("model|x", "y"), None, [("variable", "model|x"), ("variable", "y")]),
        (("model|x",), "rule", [("rule", "model|x")]),
        (("a%20",), None, [("variable", "a%20")]),
    ],
)
def test_a_file_that_does_not_say_its_format_has_kinds_where_every_name_looks_so(stats: tuple[str, ...], kind: str | None, keys: list[Any]) -> None:
    assert [(event.data.kind, event.data.id) for event in events_of({"stats": {name: [1, 1] for name in stats}}, kind)] == keys


def test_of_a_long_history_the_last_points_go_in_and_of_an_empty_one_none() -> None:
    n = files.MOST_POINTS + 5
    pairs = [[float(i), 0.5] for i in range(n)]
    series = {"times": [float(i) for i in range(n)], "values": [0.5] * n}
    found = {e.data.id: e.data.history for e in events_of({"stats": {name: [1, 1] for name in "abc"}, "timestamps": {"a": pairs, "b": series, "c": []}})}
    assert len(found["a"]) == files.MOST_POINTS and found["a"][0][0] == 5.0
    assert isinstance(found["b"], Series) and found["b"].times[0] == 5.0 and found["b"].times[-1] == n - 1
    assert found["c"] is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no"),
        (b"[]", "is no file of trust"),
        (b"{}", "stats"),
        (json.dumps({**OURS, "stats": {"model|a": [1]}}).encode(), "stats"),
        (json.dumps({**OURS, "stats": {"model|a": [-1, 1]}}).encode(), "stats"),
        (json.dumps({**OURS, "stats": {"model|a": [float("nan"), 1]}}).encode(), "is no JSON"),
        (json.dumps({**OURS, "stats": {"a": [1, 1]}}).encode(), "a is not kind|id"),
        (json.dumps({**OURS, "stats": {"Model|a": [1, 1]}}).encode(), "Model|a is not kind|id"),
        (json.dumps({**OURS, "stats": {"model|" + "a" * 300: [1, 1]}}).encode(), "data.id"),
        (json.dumps({**OURS, "stats": {"model|a\x07": [1, 1]}}).encode(), "U+0007"),
        (json.dumps({**OURS, "format": "pulsefold.trust.v9"}).encode(), "expected pulsefold.trust.v1"),
        (json.dumps({**OURS, "last_update": {"model|b": 1.0}}).encode(), "last_update: model|b is not in stats"),
        (json.dumps({**OURS, "last_update": {"model|a": 1e300}}).encode(), "data.last_update"),
        (json.dumps({**OURS, "timestamps": {"model|a": [[1.0, 1.5]]}}).encode(), "timestamps"),
        (json.dumps({**OURS, "timestamps": {"model|a": {"times": [1.0, 2.0], "values": [0.5]}}}).encode(), "2 times and 1 values"),
        (json.dumps({**OURS, "export_time": 1e300}).encode(), "export_time"),
    ],
)
def test_a_broken_file_is_told_in_a_sentence_with_exit_code_1_before_anybody_is_asked(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trust.json"
    file.write_bytes(content)
    assert files.import_trust(str(file), bootstrap="127.0.0.1:1", url="http://127.0.0.1:1") == 1
    told = one_sentence(capsys.readouterr().err.rstrip("\n"))
    assert says in told and "nothing of it was published" in told


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    files.write_aside(file, b"old")
    files.write_aside(file, b"new")
    assert file.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "nowhere" / "a.json", tmp_path / "folder"):
        with pytest.raises(ConfigError, match="cannot be written"):
            files.write_aside(wrong, b"x")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "folder"]


def test_without_a_worker_the_file_that_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    code, _, told = pulsefold("export", "trust", str(file), "--url", "http://127.0.0.1:1")
    assert (code, file.read_text()) == (2, "old")
    assert "no worker answers" in one_sentence(told)
    code, _, told = pulsefold("import", "trust", str(tmp_path / "nowhere.json"), "--bootstrap", "127.0.0.1:1")
    assert code == 2 and "nowhere.json: cannot be read" in one_sentence(told)


class Restoring(BaseHTTPRequestHandler):
    """A worker that has not read all of its tables yet."""

    def do_GET(self) -> None:
        body = json.dumps({**OURS, "ready": False, "lag": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def test_a_worker_that_is_still_restoring_gives_no_file_and_removes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(OURS))
    with HTTPServer(("127.0.0.1", 0), Restoring) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(PulsefoldError, match="still restoring"):
            files.export_trust(str(tmp_path / "b.json"), url=url)
        with pytest.raises(PulsefoldError, match="still restoring"):
            files.import_trust(str(file), url=url, replace_all=True, bootstrap="127.0.0.1:1")
        server.shutdown()
    assert os.listdir(tmp_path) == ["a.json"]
