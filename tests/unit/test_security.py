"""Who may ask, for how much and for how long: tokens, TLS, limits, and what is told to nobody. The threats are in docs/security.md."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agents import auth, limits
from agents import http as served
from agents import seam as inside
from agents.access import security
from agents.app import check_settings
from agents.auth import Denied, TokenFile, Tokens, token_hash
from agents.limits import Quota, tls
from agents.main import config
from agents.registry import FOLD_SETTINGS
from streams.cli.options import security as commands_security
from streams.client import Client, own_certificate
from streams.errors import ConfigError
from streams.settings import MASK, declare, load, unknown_variables

from ..certificates import self_signed, signed
from ..service import TOKENS, Server, Service

ROOT = Path(__file__).parent.parent.parent
NOW = datetime(2026, 3, 2, tzinfo=UTC)
EVENT = {"id": "1", "source": "t", "type": "trust.observed.v1", "time": "2026-03-02T00:00:00Z", "data": {"kind": "model", "id": "m", "success": True}}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, 1, TOKENS)


# ---- tokens


def test_a_token_is_kept_as_its_hash_only_and_may_be_given_as_such() -> None:
    secret = "a-long-secret"
    for configured in (secret, token_hash(secret)):
        tokens = Tokens({configured: {"tenant": "a"}})
        assert secret not in repr(vars(tokens)) and list(tokens.grants) == [token_hash(secret)]
        assert tokens.caller(f"Bearer {secret}", None, "read", NOW).tenant == "a"
        with pytest.raises(Denied):  # the hash opens nothing
            tokens.caller(f"Bearer {token_hash(secret)}", None, "read", NOW)


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens({f"t{n}": {"tenant": "a"} for n in range(20)})
    compared: list[str] = []
    compare = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for offered in ("t0", "t19", "other"):
        compared.clear()
        if offered == "other":
            with pytest.raises(Denied):
                tokens.caller(f"Bearer {offered}", None, "read", NOW)
        else:
            tokens.caller(f"Bearer {offered}", None, "read", NOW)
        assert sorted(compared) == sorted(tokens.grants)


@pytest.mark.parametrize(
    ("scopes", "asked", "allowed"),
    [
        (["read"], "read", True), (["read"], "publish", False), (["read"], "admin", False), (["publish"], "read", False), (["publish"], "publish", True),
        (["admin"], "read", True), (["admin"], "publish", True), (["read", "publish"], "publish", True),
    ],
)  # fmt: skip
def test_a_token_does_what_its_scopes_say(scopes: list[str], asked: str, allowed: bool) -> None:
    tokens = Tokens({"t": {"tenant": "a", "scopes": scopes}})
    if allowed:
        assert tokens.caller("Bearer t", None, asked, NOW).operator == ("admin" in scopes)
    else:
        with pytest.raises(Denied, match="scopes do not include") as denied:
            tokens.caller("Bearer t", None, asked, NOW)
        assert denied.value.status == 403


def test_a_token_ends_when_it_expires() -> None:
    tokens = Tokens({"t": {"tenant": "a", "expires": "2026-03-02T01:00:00+01:00"}})
    assert tokens.caller("Bearer t", None, "read", datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)).bound
    with pytest.raises(Denied, match="expired") as denied:
        tokens.caller("Bearer t", None, "read", NOW)
    assert denied.value.status == 401


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"tenant": "A"}, "is not a tenant name"),
        ({}, "is not a tenant name"),
        ({"tenant": "a", "scopes": []}, "scopes"),
        ({"tenant": "a", "scopes": "read"}, "scopes"),
        ({"tenant": "a", "scopes": ["write"]}, "scopes"),
        ({"tenant": "a", "expires": "soon"}, "expires"),
        ({"tenant": "a", "expires": "2027-01-01"}, "offset"),
        ({"tenant": "a", "expire": "2027-01-01T00:00:00Z"}, "'expire'"),
        ({"tenant": "a", "scope": ["admin"]}, "'scope'"),
        (7, "expected"),
    ],
)
def test_an_entry_that_is_not_understood_is_refused_without_its_token(entry: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refused:
        Tokens({"the-secret": entry})
    assert "the-secret" not in str(refused.value)


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Basic dDp0", "t", "Bearer \udcff", "bearer  ", "Bearer t t", "Bearer " + "t" * 5000])
def test_anything_but_a_token_is_401(given: str | None) -> None:
    with pytest.raises(Denied) as denied:
        Tokens({"t": {"tenant": "a"}}).caller(given, None, "read", NOW)
    assert denied.value.status == 401


def test_tokens_are_rotated_in_their_file_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens.json"
    clock = [0.0]

    def put(content: str) -> None:
        aside = tmp_path / "aside"
        aside.write_text(content)
        aside.replace(file)
        clock[0] += auth.LOOK_S

    def allowed(token: str) -> bool:
        try:
            tokens.caller(f"Bearer {token}", None, "read", NOW)
        except Denied:
            return False
        return True

    file.write_text('{"old": {"tenant": "a"}}')
    tokens = TokenFile({"fixed": {"tenant": "a"}}, file, lambda: clock[0])
    assert (allowed("old"), allowed("new"), allowed("fixed")) == (True, False, True)
    put('{"old": {"tenant": "a"}, "new": {"tenant": "a"}}')
    assert (allowed("old"), allowed("new"), allowed("fixed")) == (True, True, True)
    put('{"new": {"tenant": "a"}}')
    assert (allowed("old"), allowed("new"), allowed("fixed")) == (False, True, True)
    put('{"the-next": {"tenant": "a"')
    assert (allowed("new"), tokens.problem is not None) == (True, True)
    assert "is no JSON" in caplog.text and "the-next" not in caplog.text
    file.unlink()
    clock[0] += auth.LOOK_S
    assert allowed("new")
    put("{}")
    assert (allowed("new"), allowed("fixed"), tokens.problem) == (False, True, None)


def test_a_file_without_tokens_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{}")
    for x_tenant in (None, "a", "*"):
        with pytest.raises(Denied) as denied:
            TokenFile({}, tmp_path / "tokens.json").caller(None, x_tenant, "read", NOW)
        assert denied.value.status == 401


@pytest.mark.parametrize("content", ["", "[]", '{"t": 1}', '{"t": {"tenant": "A"}}', None])
def test_a_file_of_tokens_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(ConfigError, match="tokens"):
        check_settings(load({"tokens_file": str(tmp_path / "tokens.json")}, {}, None, FOLD_SETTINGS))


# ---- where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.2", ""])
def test_wider_than_loopback_is_refused_without_tokens(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        check_settings(load({"web_host": host}, {}, None, FOLD_SETTINGS))
    check_settings(load({"web_host": host, "tokens": '{"t": {"tenant": "a"}}'}, {}, None, FOLD_SETTINGS))


def test_loopback_is_the_default() -> None:
    settings = load({}, {}, None, FOLD_SETTINGS)
    assert settings.get("web_host") == "127.0.0.1"
    assert not check_settings(settings)


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:6066", 200), ("localhost", 200), ("[::1]:6066", 200), ("LOCALHOST:1", 200), ("evil.example:6066", 421), ("", 421)]
)
def test_without_tokens_a_web_page_whose_name_resolves_to_loopback_gets_nothing(tmp_path: Path, host: str, status: int) -> None:
    assert Service(tmp_path, 1).ask("/api/v1/costs", {"Host": host}).status == status


def test_with_tokens_any_name_is_served(service: Service) -> None:
    assert service.ask("/api/v1/costs", {"Host": "pulsefold.example", "Authorization": "Bearer token-of-a"}).status == 200


# ---- TLS


def test_http_is_served_by_tls_and_nothing_older_than_1_2(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = self_signed(tmp_path)
    context = tls(load({"web_tls_cert": str(cert), "web_tls_key": str(key)}, {}, None, FOLD_SETTINGS))
    with Server(service, context) as server:
        trusting = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"https://127.0.0.1:{server.port}/healthz", context=trusting, timeout=10) as response:
            assert json.load(response) == {"ok": True}
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"https://127.0.0.1:{server.port}/healthz", timeout=10)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with Client(f"https://localhost:{server.port}", token="token-of-a") as client:
            assert client.get("/costs")["lag"] == 0
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(str(cert))
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", server.port), 10) as plain, pytest.raises(OSError):
            old.wrap_socket(plain, server_hostname="localhost")


def test_where_callers_need_a_certificate_nobody_without_one_of_the_authoritys_gets_an_answer(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = self_signed(tmp_path)
    authority = self_signed(tmp_path, "authority")
    mine, others = signed(tmp_path, "mine", authority), self_signed(tmp_path, "others")
    words = {"web_tls_cert": str(cert), "web_tls_key": str(key), "web_tls_client_ca": str(authority[0])}
    with Server(service, tls(load(words, {}, None, FOLD_SETTINGS))) as server:

        def ask(own: tuple[Path, Path] | None, token: str | None = "token-of-a") -> int:
            context = ssl.create_default_context(cafile=str(cert))
            if own is not None:
                context.load_cert_chain(*own)
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            request = urllib.request.Request(f"https://127.0.0.1:{server.port}/api/v1/costs", headers=headers)
            try:
                with urllib.request.urlopen(request, context=context, timeout=10) as response:
                    return int(response.status)
            except urllib.error.HTTPError as refused:
                return refused.code

        assert ask(mine) == 200
        assert ask(mine, None) == 401  # it is no token
        (tmp_path / "whole.pem").write_text(mine[0].read_text() + mine[1].read_text())
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        monkeypatch.setenv("PULSEFOLD_CLIENT_CERT", str(tmp_path / "whole.pem"))
        with Client(f"https://127.0.0.1:{server.port}", token="token-of-a") as client:
            assert client.get("/costs")["lag"] == 0
        monkeypatch.setenv("PULSEFOLD_CLIENT_CERT", str(cert))
        with Client(f"https://127.0.0.1:{server.port}", token="token-of-a") as client, pytest.raises(ConfigError, match="PULSEFOLD_CLIENT_CERT"):
            client.get("/costs")
        for own in (None, others):
            with pytest.raises(OSError):
                ask(own)


def test_a_clients_certificate_is_given_to_every_kafka_client_and_one_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    locked = self_signed(tmp_path, "locked", password="long-enough")
    base = {"kafka_security_protocol": "SSL", "kafka_ssl_cafile": str(cert)}
    whole = load({**base, "kafka_ssl_certfile": str(cert), "kafka_ssl_keyfile": str(key)}, {}, None, FOLD_SETTINGS)
    _, theirs = security(whole)
    assert (theirs["ssl.certificate.location"], theirs["ssl.key.location"]) == (str(cert), str(key))
    assert commands_security(whole) == theirs
    for words, name in (
        ({"kafka_ssl_keyfile": str(key)}, "kafka_ssl_certfile"),
        ({"kafka_ssl_certfile": str(cert)}, "kafka_ssl_certfile"),
        ({"kafka_ssl_certfile": str(tmp_path / "nowhere"), "kafka_ssl_keyfile": str(key)}, "kafka_ssl_keyfile"),
        ({"kafka_ssl_certfile": str(locked[0]), "kafka_ssl_keyfile": str(locked[1])}, "kafka_ssl_keyfile"),
    ):
        with pytest.raises(ConfigError, match=name):
            security(load({**base, **words}, {}, None, FOLD_SETTINGS))


def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    other, locked = self_signed(tmp_path, "other"), self_signed(tmp_path, "locked", password="long-enough")
    (tmp_path / "garbage.pem").write_text("garbage")
    for words in (
        {"web_tls_key": str(key)},
        {"web_tls_cert": str(cert)},
        {"web_tls_cert": str(cert), "web_tls_key": str(other[1])},
        {"web_tls_cert": str(tmp_path / "nowhere.pem"), "web_tls_key": str(key)},
        {"web_tls_cert": str(tmp_path / "garbage.pem"), "web_tls_key": str(key)},
        {"web_tls_cert": str(locked[0]), "web_tls_key": str(locked[1])},
        {"web_tls_client_ca": str(cert)},
        {"web_tls_cert": str(cert), "web_tls_key": str(key), "web_tls_client_ca": str(tmp_path / "garbage.pem")},
        {"web_tls_cert": str(cert), "web_tls_key": str(key), "web_tls_client_ca": str(tmp_path / "nowhere.pem")},
    ):
        with pytest.raises(ConfigError, match="web_tls"):
            check_settings(load(words, {}, None, FOLD_SETTINGS))
    together = tmp_path / "both.pem"
    together.write_text(cert.read_text() + key.read_text())
    assert tls(load({"web_tls_cert": str(together)}, {}, None, FOLD_SETTINGS)) is not None


# ---- limits


@pytest.fixture
def server(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with little patience."""
    monkeypatch.setattr(inside, "HEAD_S", 0.8)
    monkeypatch.setattr(inside, "LINGER_S", 0.3)
    monkeypatch.setattr(served, "BODY_S", 0.7)
    monkeypatch.setattr(served, "ACK_S", 0.5)
    monkeypatch.setattr(served, "EVENT_S", 0.5)
    monkeypatch.setattr(served, "MOST_STREAMS_OF_ONE", 2)
    with Server(service) as running:
        yield running


def until_closed(connection: socket.socket, drip: bytes = b"", timeout_s: float = 25.0) -> tuple[float, bytes]:
    """Seconds until the server ends a connection into which something trickles, and what it said."""
    begun, heard = time.monotonic(), b""
    connection.settimeout(0.1)
    while time.monotonic() - begun < timeout_s:
        try:
            if drip:
                connection.sendall(drip)
            part = connection.recv(65536)
            if not part:
                break
            heard += part
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begun, heard


@pytest.mark.parametrize(("head", "drip"), [(b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n"), (b"GET /", b"a"), (b"", b"")])
def test_a_head_that_does_not_end_is_let_go(server: Server, head: bytes, drip: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(head)
        seconds, heard = until_closed(connection, drip)
    assert seconds < 20
    assert b"200 OK" not in heard


def test_a_body_that_does_not_come_is_let_go(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        head = (
            b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        )
        connection.sendall(head + b"{")
        seconds, heard = until_closed(connection, b" ")
    assert b" 408 " in heard and seconds < 20


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"b" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: b\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x00\xa5",
        b"GET /\xff\xfe?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /api/v1/costs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n",
        b"GET /api/v1/costs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\nX-Tenant: \xff\r\nConnection: close\r\n\r\n",
        b"GET /api/v1/costs?scope=\xff HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\nConnection: close\r\n\r\n",
    ],
)
def test_a_head_that_is_too_large_or_no_http_is_refused_and_no_failure(server: Server, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(request_)
        _, heard = until_closed(connection)
    assert heard == b"" or re.match(rb"HTTP/1.[01] (400|401|413|414|431) ", heard), heard[:100]
    assert b"Traceback" not in heard and b"agents" not in heard
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as response:
        assert response.status == 200


def post(server: Server, body: bytes, kind: str = "application/json", token: str = "token-of-a", **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/api/v1/events", body, {"Authorization": f"Bearer {token}", "Content-Type": kind, **headers})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    finally:
        connection.close()


def test_a_body_that_is_too_large_is_413_also_when_it_is_packed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(served, "BODY_S", 20.0)
    assert post(server, b" " * (limits.MAX_BODY + 1))[0] == 413
    assert post(server, gzip.compress(b" " * (limits.MAX_BODY + 1)), **{"Content-Encoding": "gzip"})[0] == 413
    assert post(server, b"[" + b",".join([b"{}"] * (limits.MAX_BATCH + 1)) + b"]")[0] == 413


class Silent:
    """A Kafka client whose broker is dead.

    Args:
        sends: it takes records into its buffer; else it waits for room.
    """

    def __init__(self, sends: bool) -> None:
        self.sends = sends

    async def send(self, topic: str, value: bytes, key: bytes) -> asyncio.Future[Any]:
        if not self.sends:
            await asyncio.sleep(3600)
        return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("sends", [True, False])
def test_events_posted_while_the_broker_is_dead_end_in_503_in_bounded_time(server: Server, sends: bool) -> None:
    server.service.engine.producer = Silent(sends)
    begun = time.monotonic()
    status, headers, body = post(server, json.dumps([EVENT, {**EVENT, "id": "2"}, {"id": "3"}]).encode(), "application/cloudevents-batch+json")
    assert time.monotonic() - begun < 20
    assert status == 503 and int(headers["Retry-After"]) >= 1
    assert [one.get("reason") for one in body["results"]] == ["not_acknowledged", "not_acknowledged", "invalid_field"]
    assert not any(one["accepted"] for one in body["results"]) and "same id" in body["results"][0]["error"]


def test_one_connection_too_many_is_let_go_and_the_others_stay(service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "MOST_CONNECTIONS", 8)  # with all the patience there is, so that nobody is let go for being idle
    with Server(service) as server:
        connections = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(30)]
        assert wait(lambda: len(server.runner.server.connections) == 8)
        stayed = []
        for connection in connections:
            connection.settimeout(0.05)
            try:
                assert connection.recv(1) == b""
            except TimeoutError:
                stayed.append(connection)
            except OSError:
                pass
        assert len(stayed) == 8
        stayed[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        stayed[0].settimeout(10)
        assert b"200 OK" in stayed[0].recv(4096)
        for connection in connections:
            connection.close()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], "a flood of connections must not be one of tracebacks"


def wait(holds: Any, timeout_s: float = 8.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


def stream(server: Server, token: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/api/v1/alerts/stream", headers={"Authorization": f"Bearer {token}"})
    return connection, connection.getresponse()


def test_a_tenant_has_so_many_streams_and_takes_none_from_others(server: Server) -> None:
    mine = [stream(server, "token-of-a") for _ in range(3)]
    assert [response.status for _, response in mine] == [200, 200, 429]
    theirs = stream(server, "token-of-b")
    assert theirs[1].status == 200
    for connection, _ in [*mine, theirs]:
        connection.close()


def test_a_stream_whose_reader_takes_nothing_is_ended(server: Server) -> None:
    board = server.service.engine.board
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(b"GET /api/v1/alerts/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\n\r\n")
    assert wait(lambda: len(board.subscribers) == 1)
    evidence = {"topic": "costs", "partition": 0, "offset": 1}

    async def flood() -> None:
        for n in range(600):
            data = {"alert_id": f"x{n}", "rule": "r", "subject": "s" * 20_000, "severity": "info", "period": "all", "evidence": evidence}
            body = {"id": f"m{n}", "type": "alert.opened.v1", "time": "2026-03-02T00:00:00Z", "tenant": "a", "data": data}
            board.read(f"x{n}".encode(), json.dumps(body).encode(), (0, n))

    server.run(flood())
    assert wait(lambda: not board.subscribers)
    assert server.service.routes.streams == {}
    connection.close()


def test_a_reader_that_is_too_slow_is_told_how_many_messages_it_missed_and_nothing_of_others(server: Server) -> None:
    board = server.service.engine.board
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"GET /api/v1/alerts/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\n\r\n")
        assert wait(lambda: len(board.subscribers) == 1)
        evidence = {"topic": "costs", "partition": 0, "offset": 1}

        async def flood() -> None:  # without a pause: the stream cannot take any meanwhile
            for n in range(2500):
                data = {"alert_id": f"x{n}", "rule": "r", "subject": "s", "severity": "info", "period": "all", "evidence": evidence}
                body = {"id": f"m{n}", "type": "alert.opened.v1", "time": "2026-03-02T00:00:00Z", "tenant": "ab"[n % 2], "data": data}
                board.read(f"x{n}".encode(), json.dumps(body).encode(), (0, n))

        server.run(flood())
        connection.settimeout(10)
        raw = b""
        while b"event: lost" not in raw or not raw.endswith(b"\n\n\r\n"):
            raw += connection.recv(65_536)
            if raw.count(b"event: alert.opened") >= 1000 and b"event: lost" in raw:
                break
    told = sum(int(n) for n in re.findall(rb'event: lost\ndata: {"messages":(\d+)}', raw))
    assert told == 250 == board.n_lost  # 1,250 were the tenant's, 1,000 find room
    assert wait(lambda: not board.subscribers)


@pytest.mark.parametrize("path", ["/api/v1/alerts/stream", "/api/v1/status/stream"])
def test_a_reader_that_has_gone_is_noticed_though_there_is_nothing_to_tell(server: Server, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.http.TELL_S", 1000.0)
    board = server.service.engine.board
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-a\r\n\r\n" % path.encode())
        assert wait(lambda: len(board.subscribers) == 1)
        time.sleep(0.7)  # what there is to tell at first
    assert wait(lambda: not board.subscribers), "ten seconds, and a comment would be written after fifteen"
    assert server.service.routes.streams == {}


def test_a_stream_ends_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(TOKENS))
    made = Service(tmp_path, 1)
    made.routes.tokens = TokenFile({}, file)
    monkeypatch.setattr(auth, "LOOK_S", 0.0)
    monkeypatch.setattr(served, "TELL_S", 0.3)
    with Server(made) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=15)
        connection.request("GET", "/api/v1/status/stream", headers={"Authorization": "Bearer token-of-a"})
        response = connection.getresponse()
        assert response.status == 200 and response.readline() == b": pulsefold\n"
        file.write_text("{}")
        begun = time.monotonic()
        with contextlib.suppress(http.client.HTTPException, OSError):
            while response.readline():
                pass
        assert time.monotonic() - begun < 10
        assert not made.engine.board.subscribers
        connection.close()


def test_a_quota_of_events_is_kept_by_tenant_and_says_when_to_come_again() -> None:
    clock = [0.0]
    quota = Quota(10.0, lambda: clock[0])
    assert [quota.take("a", 1) for _ in range(12)] == [0] * 10 + [1, 1]
    assert quota.take("b", 10) == 0
    clock[0] += 0.5
    assert [quota.take("a", 5), quota.take("a", 1)] == [0, 1]
    clock[0] += 100
    wait_s = quota.take("a", 45)  # more than a second's worth: it has to gather first
    assert wait_s == 4
    clock[0] += wait_s
    assert quota.take("a", 45) == 0
    assert quota.take("a", 1) == 1
    taken, clock[0] = 0, clock[0] + 100
    for _ in range(1000):  # over any time no more than that time's worth and a second's
        clock[0] += 0.01
        taken += 3 if quota.take("a", 3) == 0 else 0
    assert 95 <= taken <= 112
    assert Quota(None).take("a", 10**9) == 0


def test_the_quota_of_many_tenants_is_remembered_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_TENANTS", 50)
    clock = [0.0]
    quota = Quota(1.0, lambda: clock[0])
    for n in range(500):
        clock[0] += 0.001
        quota.take(f"t{n}", 1)
        assert len(quota.buckets) <= 50
    clock[0] += 10
    quota.take("new", 1)
    assert list(quota.buckets) == ["new"]


def test_events_over_the_quota_are_429_and_nothing_of_the_batch_is_accepted(tmp_path: Path) -> None:
    made = Service(tmp_path, 1, TOKENS, tenant_events_per_s=5)
    made.engine.producer = Silent(True)
    with Server(made) as running:
        batch = json.dumps([{**EVENT, "id": str(n)} for n in range(20)]).encode()
        status, headers, body = post(running, batch, "application/cloudevents-batch+json")
        assert status == 429 and "results" not in body
        assert 3 <= int(headers["Retry-After"]) <= 4
        assert "tenant_events_per_s" in body["detail"]


def test_a_token_asks_so_often_a_second_and_is_told_when_to_come_again_and_others_are_not_held_up(tmp_path: Path) -> None:
    made = Service(tmp_path, 1, {**TOKENS, "second-of-a": TOKENS["token-of-a"]}, queries_per_s=5)
    now = [100.0]
    made.routes.queries.clock = lambda: now[0]

    def ask(token: str, path: str = "/api/v1/costs") -> Any:
        return made.ask(path, {"Authorization": f"Bearer {token}", **({"X-Tenant": "a"} if "root" in token else {})})

    paths = ("/api/v1/costs", "/api/v1/status", "/api/v1/alerts", "/api/v1/metrics", "/api/v1/nothing")  # the last is none's and does not count
    assert [ask("token-of-a", path).status for path in (*paths, "/api/v1/costs")] == [200, 200, 200, 200, 404, 200]
    refused = ask("token-of-a")
    assert refused.status == 429 and refused.headers["Retry-After"] == "1" and refused.headers["Content-Type"].startswith("application/problem+json")
    assert refused.json()["status"] == 429 and "queries_per_s = 5" in refused.json()["detail"]
    assert [ask(token).status for token in ("second-of-a", "token-of-b", "token-of-root")] == [200, 200, 200]
    now[0] += 1.0
    assert ask("token-of-a").status == 200
    assert made.ask("/healthz").status == 200 and made.ask("/readyz").status == 200
    unlimited = Service(tmp_path / "more", 1, TOKENS, queries_per_s="off")
    unlimited.routes.queries.clock = lambda: now[0]
    assert all(unlimited.ask("/api/v1/costs", {"Authorization": "Bearer token-of-a"}).status == 200 for _ in range(50))


# ---- what is told to nobody

SECRETS = {
    "PULSEFOLD_TOKENS": '{"undisclosed-token": {"tenant": "a", "scopes": ["admin"]}}',
    "PULSEFOLD_KAFKA_SASL_PASSWORD": "undisclosed-password",
    "PULSEFOLD_ANONYMISE_KEY": "undisclosed-key",
}


def test_no_secret_is_in_what_config_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert config({}) == 0 and config({"json": "on"}) == 0
    said = capsys.readouterr().out
    assert "undisclosed" not in said and said.count(MASK) == 2 * len(SECRETS)


def test_no_secret_is_in_any_answer_or_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = json.loads(SECRETS["PULSEFOLD_TOKENS"])
    made = Service(tmp_path, 1, tokens, tokens=SECRETS["PULSEFOLD_TOKENS"], kafka_sasl_password="undisclosed-password", anonymise_key="undisclosed-key")
    headers = {"Authorization": "Bearer undisclosed-token"}
    described = [path for path, ways in made.ask("/openapi.json").json()["paths"].items() if "get" in ways and not path.endswith("/stream")]
    for path in [*described, "/metrics", "/docs", "/healthz", "/readyz", "/", "/nowhere", "/api/v1/costs?x=1"]:
        reply = made.ask(path, headers)
        assert b"undisclosed" not in reply.body and "undisclosed" not in str(reply.headers), path
    told = {one["name"]: one["value"] for one in made.ask("/api/v1/status", headers).json()["settings"]}
    assert {told[name] for name in ("tokens", "kafka_sasl_password", "anonymise_key")} == {MASK}

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(made.routes, "reader", broken)
    reply = made.ask("/api/v1/costs", headers)
    assert reply.status == 500 and b"bug" not in reply.body and b"Traceback" not in reply.body
    assert "a bug" in caplog.text and "undisclosed" not in caplog.text


@pytest.mark.parametrize("variable", ["PULSEFOLD_TOKENS__undisclosed", "PULSEFOLD_KAFKA_SASL_PASSWORD__undisclosed"])
def test_what_follows_the_name_of_a_secret_is_not_told(variable: str, tmp_path: Path) -> None:
    name = variable.removeprefix("PULSEFOLD_").partition("__")[0].lower()
    file = tmp_path / "t.toml"
    file.write_text(f'"{name}.undisclosed" = 1')
    for flags, environment, toml in (
        ({}, {variable: "{}"}, None),
        ({f"{name}.undisclosed": "1"}, {}, None),
        ({}, {}, file),
        ({"tokenz.undisclosed": "1"}, {}, None),
    ):
        with pytest.raises(ConfigError) as refused:
            load(flags, environment, toml, FOLD_SETTINGS)
        assert "undisclosed" not in str(refused.value) and "undisclosed" not in refused.value.setting


@pytest.mark.parametrize(
    "text", ['{"undisclosed": 1}', '{"undisclosed": {"tenant": ""}}', "undisclosed", '["undisclosed"]', '{"undisclosed": {"tenant": "A"}}']
)
def test_tokens_that_cannot_be_used_are_not_told(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_settings(load({}, {"PULSEFOLD_TOKENS": text}, None, FOLD_SETTINGS))
    assert refused.value.setting == "tokens" and "undisclosed" not in str(refused.value)


def test_figures_of_all_tenants_are_for_the_scope_admin(tmp_path: Path, service: Service) -> None:
    for headers, status in (({}, 401), ({"Authorization": "Bearer token-of-a"}, 403), ({"Authorization": "Bearer token-of-root"}, 200)):
        assert service.ask("/metrics", headers).status == status
    assert Service(tmp_path / "open", 1, TOKENS, open_metrics="on").ask("/metrics").status == 200
    assert Service(tmp_path / "none", 1).ask("/metrics").status == 200


# ---- pages


def test_every_answer_keeps_pages_from_running_what_is_not_ours(service: Service) -> None:
    token = {"Authorization": "Bearer token-of-a"}
    for path, headers in (
        ("/", {}),
        ("/docs", {}),
        ("/app.js", {}),
        ("/api/v1/costs", token),
        ("/api/v1/costs", {}),
        ("/nowhere", {}),
        ("/api/v1/metrics", token),
    ):
        found = service.ask(path, headers).headers
        policy = dict(part.strip().split(" ", 1) for part in found["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'" and "unsafe" not in found["Content-Security-Policy"]
        assert (found["X-Content-Type-Options"], found["Referrer-Policy"], found["Cache-Control"]) == ("nosniff", "no-referrer", "no-store")
        assert found["Cross-Origin-Resource-Policy"] == "same-origin" and "aiohttp" not in found["Server"]
        assert "Access-Control-Allow-Origin" not in found


def test_a_form_of_another_site_cannot_publish(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):  # what a browser sends without asking first
        assert post(server, json.dumps(EVENT).encode(), kind)[0] == 415


def test_the_pages_put_no_text_in_as_html() -> None:
    for file in (ROOT / "agents" / "static").glob("*.js"):
        code = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", code), file.name
    page = (ROOT / "agents" / "static" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|javascript:|https?://", page)


# ---- misspelt settings

NAMES = sorted(declare(FOLD_SETTINGS))


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PULSEFOLD_WEB_PROT", "PULSEFOLD_WEB_PORT"), ("PULSEFOLD_TOKNES", "PULSEFOLD_TOKENS"), ("PULSEFOLD_WEBHOST", "PULSEFOLD_WEB_HOST"),
        ("PULSEFOLD_KAFKA_SASL_PASWORD", "PULSEFOLD_KAFKA_SASL_PASSWORD"), ("PULSEFOLD_TRUST_HALFLIFE__model", "PULSEFOLD_TRUST_HALF_LIFE"),
    ],
)  # fmt: skip
def test_a_misspelt_variable_is_refused_with_the_setting_that_was_meant(variable: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=meant) as refused:
        unknown_variables({variable: "undisclosed"}, NAMES)
    assert "undisclosed" not in str(refused.value) and "model" not in str(refused.value)


def test_variables_of_others_are_told_or_passed_over() -> None:
    environment = {
        "PULSEFOLD_COLOUR": "red",
        "PULSEFOLD_SHADE__x": "1",
        "PULSEFOLD_TOKEN": "t",
        "PULSEFOLD_URL": "u",
        "PULSEFOLD_TEST_BOOTSTRAP": "b",
        "PULSEFOLD_SERVICE_HOST": "10.0.0.1",
        "PULSEFOLD_SERVICE_PORT_HTTP": "6066",
        "PULSEFOLD_PORT": "tcp://10.0.0.1:6066",
        "PULSEFOLD_PORT_6066_TCP_ADDR": "10.0.0.1",
        "PULSEFOLD_WEB_PORT": "1",
        "PULSEFOLD_TRUST_HALF_LIFE__model": "5",
        "HOME": "/",
    }
    assert unknown_variables(environment, NAMES) == ["PULSEFOLD_COLOUR", "PULSEFOLD_SHADE"]


def test_no_setting_is_taken_for_a_misspelling_of_another() -> None:
    assert unknown_variables({f"PULSEFOLD_{name.upper()}": "1" for name in NAMES}, NAMES) == []


def test_a_callers_certificate_with_an_encrypted_key_is_refused_without_a_question_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = self_signed(tmp_path, password="secret")
    (tmp_path / "whole.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    monkeypatch.setenv("PULSEFOLD_CLIENT_CERT", str(tmp_path / "whole.pem"))
    with pytest.raises(ConfigError, match="the key is encrypted"):
        own_certificate()


def test_the_status_tells_each_tenant_its_own_days_of_the_archive_and_only_an_operator_of_all_those_of_others(tmp_path: Path) -> None:
    service = Service(tmp_path, allowed=TOKENS, archive_days='{"": 90, "a": 40, "elsewhere": 3000}')

    def days(token: str, tenant: str) -> tuple[float, object]:
        archive = service.ask("/api/v1/status", {"Authorization": f"Bearer {token}", "X-Tenant": tenant}).json()["archive"]
        return archive["days"], archive.get("days_of")

    assert days("token-of-a", "a") == (40, None) and days("token-of-b", "b") == (90, None)
    assert days("token-of-root", "a") == (40, None) and days("token-of-root", "b") == (90, None)
    assert days("token-of-root", "*") == (90, {"a": 40, "elsewhere": 3000})
