"""The client without a worker: every view has its method, parameters as they go out, errors as they come in."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

import streams
from agents.raw import RAW_VIEWS
from agents.registry import folds
from streams.cli.query import query
from streams.client import Answer, AsyncClient, Client, NotAnswered, NotKnown, Views, dataframe
from streams.errors import ConfigError, PulsefoldError


class Recorded(Views[tuple[str, dict[str, Any]]]):
    """Says what would be asked."""

    def get(self, path: str, **params: Any) -> tuple[str, dict[str, Any]]:
        return path, params


def methods() -> dict[str, tuple[str, set[str]]]:
    """Method -> (path with its names as ``{}``, parameters), found by calling each."""
    found = {}
    for name, method in inspect.getmembers(Recorded(), inspect.ismethod):
        if name == "get" or name.startswith("_"):
            continue
        needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        path, params = method(*("{}" for _ in needed))
        found[name] = path.replace("%7B%7D", "{}"), set(params)
    return found


def test_every_view_has_a_method_with_every_parameter() -> None:
    asked: dict[str, set[str]] = {}
    for path, params in methods().values():
        asked.setdefault(path, set()).update(params)
    views = [*(view for fold in folds() for view in fold.views), *RAW_VIEWS]
    for view in views:
        path = "/".join("{}" if part.startswith("{") else part for part in view.path.split("/"))
        names = {field.encode_name for field in msgspec.structs.fields(view.params) if "{" + field.encode_name + "}" not in view.path}
        assert path in asked, f"the client has no method for {view.path}"
        if path == "/trust":
            names.discard("ids")  # `id`, which may have commas, is the same
        assert names == asked[path], view.path
    assert set(asked) - {"/".join("{}" if part.startswith("{") else part for part in view.path.split("/")) for view in views} == {"/alerts", "/status"}


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that keeps requests and answers what the test says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = {"method": self.command, "path": parts.path, "params": parse_qsl(parts.query, keep_blank_values=True), "headers": dict(self.headers)}
            length = int(self.headers.get("Content-Length") or 0)
            found["body"] = self.rfile.read(length)
            self.server.seen.append((found, threading.get_ident()))  # type: ignore[attr-defined]  # set below
            status, body = self.server.answer(found)  # type: ignore[attr-defined]  # set below
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.seen = []  # type: ignore[attr-defined]  # of this test
    made.answer = lambda found: (200, {"ok": True})  # type: ignore[attr-defined]  # of this test
    made.url = f"http://127.0.0.1:{made.server_address[1]}"  # type: ignore[attr-defined]  # of this test
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_parameters_names_and_headers_go_out_as_the_contract_says(server: Any) -> None:
    with Client(server.url, token="secret", tenant="acme") as client:
        moment = datetime(2026, 3, 2, 1, tzinfo=timezone(timedelta(hours=2)))
        client.metrics(types=["a,b", "c"], tags="x", since=date(2026, 3, 1), until=moment, filter={"config.lr": 0.1}, limit=5)
        client.trust("model", "a/b c|%ü")
        client.variables(registered=False)
        client.at(moment).costs()
    (first, _), (second, _), (third, _), (fourth, _) = server.seen
    assert first["path"] == "/api/v1/metrics"
    assert first["params"] == [
        ("types", "a,b"), ("types", "c"), ("tags", "x"), ("since", "2026-03-01"), ("until", "2026-03-01T23:00:00+00:00"),
        ("filter", '{"config.lr": 0.1}'), ("limit", "5"),
    ]  # fmt: skip
    assert (first["headers"]["Authorization"], first["headers"]["X-Tenant"]) == ("Bearer secret", "acme")
    assert second["path"] == "/api/v1/trust/model/a%2Fb%20c%7C%25%C3%BC"
    assert third["params"] == [("registered", "false")]
    assert fourth["params"] == [("as_of", "2026-03-01T23:00:00+00:00")]
    with pytest.raises(ConfigError, match="offset"):
        client.metrics(since=datetime(2026, 3, 2))


def busy(times: int) -> Callable[[Any], tuple[int, Any]]:
    """Answers of an archive that still reads so many times."""
    left = [503] * times
    return lambda found: (left.pop(), {"detail": "still reading; ask again"}) if left else (200, {"ok": True})


def test_a_moment_in_the_past_is_asked_again_until_the_archive_can_answer_or_the_time_is_over(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.client.AGAIN_S", 0.01)
    client = Client(server.url)
    server.answer = busy(3)
    assert client.at("2026-03-02").variables() == {"ok": True} and len(server.seen) == 4
    server.answer = busy(1)
    assert asyncio.run(AsyncClient(server.url).at("2026-03-02").get("/variables")) == {"ok": True}
    server.answer = busy(1)
    with pytest.raises(NotAnswered, match="still reading"):
        client.variables()
    server.answer = lambda found: (503, {"detail": "still reading"})
    begun = time.monotonic()
    with pytest.raises(NotAnswered, match="still reading") as given_up:
        Client(server.url, timeout_s=0.2, as_of="2026-03-02").variables()
    assert given_up.value.status == 503 and 0.1 < time.monotonic() - begun < 10
    server.seen.clear()
    server.answer = lambda found: (404, {"detail": "nobody"})
    with pytest.raises(NotKnown):
        client.at("2026-03-02").goal("g")
    assert len(server.seen) == 1


def test_a_query_of_the_past_from_the_shell_goes_on_where_the_archive_says_ask_again(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = busy(1)
    assert query("/variables", at="2026-03-02", url=server.url, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True}
    server.answer = busy(1)
    with pytest.raises(PulsefoldError, match="503 still reading"):
        query("/variables", url=server.url)


def test_errors_are_the_workers_own_sentences(server: Any) -> None:
    client = Client(server.url)
    server.answer = lambda found: (400, {"detail": "limit: too large", "parameter": "limit", "status": 400})
    with pytest.raises(NotAnswered, match="limit: too large") as refused:
        client.metrics(limit=10**9)
    assert (refused.value.status, refused.value.parameter, refused.value.body["status"]) == (400, "limit", 400)
    server.answer = lambda found: (404, {"detail": "nobody", "known": False})
    with pytest.raises(NotKnown):
        client.goal("g")
    server.answer = lambda found: (502, b"<html>")
    with pytest.raises(NotAnswered, match="502"):
        client.status()
    with pytest.raises(NotAnswered, match="no worker answers") as nobody:
        Client("http://127.0.0.1:1").status()
    assert nobody.value.status == 0
    with pytest.raises(ConfigError):
        Client("ftp://x")


def test_a_list_is_read_to_its_end(server: Any) -> None:
    pages = {None: ([{"id": "a"}, {"id": "b"}], "1"), "1": ([{"id": "c"}], "2"), "2": ([], None)}

    def answer(found: Any) -> tuple[int, Any]:
        rows, cursor = pages[dict(found["params"]).get("cursor")]
        return 200, {"metrics": rows, "cursor": cursor, "count": len(rows)}

    server.answer = answer
    assert [row["id"] for row in Client(server.url).every("/metrics", types=["x"])] == ["a", "b", "c"]

    async def read() -> list[str]:
        async with AsyncClient(server.url) as client:
            return [row["id"] async for row in client.every("/metrics")]

    assert asyncio.run(read()) == ["a", "b", "c"]


def test_the_async_client_asks_without_holding_the_loop(server: Any) -> None:
    gate = threading.Event()
    server.answer = lambda found: (gate.wait(10) and (200, {"n": 1})) or (500, {})

    async def both() -> list[Answer]:
        async with AsyncClient(server.url) as client:
            asking = [asyncio.ensure_future(client.status()), asyncio.ensure_future(client.trust("model", "m"))]
            await asyncio.sleep(0.05)
            gate.set()
            return list(await asyncio.gather(*asking))

    assert asyncio.run(both()) == [{"n": 1}, {"n": 1}]


def test_a_connection_that_was_closed_in_between_is_opened_again(server: Any) -> None:
    client = Client(server.url)
    assert client.status()["ok"]
    client._connection().sock.shutdown(socket.SHUT_RDWR)  # as when a worker was restarted
    assert client.status()["ok"]


def test_an_answer_knows_its_time_lag_rows_and_readiness() -> None:
    answer = Answer({"as_of": "2026-03-02T00:00:00.000000Z", "lag": 3, "ready": False, "variables": [{"name": "a"}], "cursor": "c"})
    assert (answer.as_of, answer.lag, answer.ready, answer.rows, answer.cursor) == (datetime(2026, 3, 2, tzinfo=UTC), 3, False, [{"name": "a"}], "c")
    assert Answer({"trust": 0.5}).rows == [{"trust": 0.5}]
    assert Answer({"m1": {"trust": 0.5}, "m2": {"trust": 0.7}, "lag": 0}).rows == [{"id": "m1", "trust": 0.5}, {"id": "m2", "trust": 0.7}]
    assert Answer({"trust": 0.5}).as_of is None


def test_everything_public_can_be_imported() -> None:
    for name in streams.__all__:
        assert getattr(streams, name) is not None


def test_data_frames_have_times_or_say_what_is_missing() -> None:
    rows = [{"id": "a", "time": "2026-03-02T00:00:00.000001Z", "value": 1.5}, {"id": "b", "time": "2026-03-02T00:00:01Z", "value": None}]
    if importlib.util.find_spec("pandas") is None:
        with pytest.raises(PulsefoldError, match=r"pulsefold\[dataframe\]"):
            dataframe(rows)
        return
    frame = dataframe(rows)
    assert list(frame["id"]) == ["a", "b"]
    assert frame["time"][0].isoformat() == "2026-03-02T00:00:00.000001+00:00"
    assert list(dataframe([], ["id", "time"]).columns) == ["id", "time"]
    assert Answer({"metrics": rows}).to_dataframe().shape == (2, 3)
