"""The audit of dependencies says what it did not do."""

from __future__ import annotations

import http.server
import threading

import pytest

from ..packaging.audit import NOT_DONE, unreachable, verdict

FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}
OWN = {"name": "pulsefold", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("dependencies", "code", "says"),
    [
        ([FINE, OWN], 0, "none known in 1 packages"),
        ([FINE, BAD, SKIPPED], 1, "b 2: CVE-1"),
        ([FINE, SKIPPED], NOT_DONE, "NOT DONE for 1 of 2"),
        ([SKIPPED, OWN], NOT_DONE, "NOT DONE for 1 of 1"),
        ([], NOT_DONE, "NOT DONE"),
    ],
)
def test_none_is_known_only_where_every_package_was_looked_up(dependencies: list[dict[str, object]], code: int, says: str) -> None:
    found, said = verdict({"dependencies": dependencies})
    assert found == code and says in said


@pytest.mark.parametrize(
    ("body", "reachable"), [(b'{"vulnerabilities": [{"id": "CVE-1"}]}', True), (b'{"vulnerabilities": []}', False), (b"{}", False), (b"<html>", False)]
)
def test_a_mirror_that_knows_no_vulnerability_is_nobody_to_ask(body: bytes, reachable: bool) -> None:
    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert (unreachable(f"http://127.0.0.1:{server.server_port}/") is None) == reachable


def test_a_service_that_does_not_answer_is_named() -> None:
    assert "127.0.0.1:1" in (unreachable("http://127.0.0.1:1/", 2.0) or "")
