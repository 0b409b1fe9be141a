"""``pulsefold query``: every view from the shell."""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Iterable
from datetime import date, datetime
from typing import Annotated, Any

from cyclopts import Parameter

from ..client import Client, NotAnswered
from ..errors import ConfigError, PulsefoldError
from .options import AsCsv, AsJson, Config, Tenant, Token, Url, settings_of
from .output import rows_of, show, write_csv

OUTSIDE = ("/api/", "/readyz", "/healthz", "/openapi.json")
"""Paths that are not under /api/v1."""


def query(
    path: Annotated[str, Parameter(help="such as /trust/model/m1")],
    *params: Annotated[str, Parameter(help="parameters as name=value")],
    param: Annotated[list[str] | None, Parameter(negative="", help="parameter as name=value; may be repeated")] = None,
    at: Annotated[str | None, Parameter(help="as it stood at this moment (RFC 3339), folded from the archive")] = None,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    config: Config = None,
) -> int:
    """Ask a view, e.g. `pulsefold query /variables/rank key=count limit=5`; prints a table, or --json, or --csv."""
    pairs = []
    for one in (*params, *(param or ())):
        name, equals, value = one.partition("=")
        if not equals:
            raise ConfigError("param", f"expected name=value, got {one!r}")
        pairs.append((name, value))
    if at is not None:
        pairs.append(("as_of", moment_of(at, "at")))
    timeout_s = 30.0 if at is None else 90.0
    secret = token or os.environ.get("PULSEFOLD_TOKEN")
    body = ask(worker_url(url, config), path, pairs, secret, tenant, timeout_s=timeout_s, again=at is not None)
    if as_json:
        print(json.dumps(body, indent=2))
    elif as_csv:
        table = isinstance(body, dict) and "panel" in body  # whose columns are known where there are no rows
        write_csv(body["rows"] if table else rows_of(body), body["columns"] if table else None)
    else:
        show(body)
    return 0


def moment_of(text: str, name: str) -> str:
    """A moment as it was given.

    Raises:
        ConfigError: it is none; `name` is the flag.
    """
    try:
        if len(text) == 10 or datetime.fromisoformat(text).tzinfo is not None:
            date.fromisoformat(text[:10])
            return text
    except ValueError:
        pass
    raise ConfigError(name, f"expected a time such as 2026-11-21T08:15:30Z, or a UTC date, got {text[:60]!r}")


def worker_url(url: str | None, config: str | None) -> str:
    """Where the worker answers: as given, else by the settings web_host and web_port."""
    if url is not None:
        return url
    found = settings_of(config)
    host = found.get("web_host")
    scheme = "http" if found.get("web_tls_cert") is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else '127.0.0.1' if host == '0.0.0.0' else host}:{found.get('web_port')}"  # noqa: S104 - asked, not bound


def ask(url: str, path: str, params: Iterable[tuple[str, str]], token: str | None, tenant: str | None, *, timeout_s: float = 30.0, again: bool = False) -> Any:
    """JSON of a view.

    Args:
        again: ask again where it says 503, as long as `timeout_s` is not over: an answer of the past may take several questions.

    Raises:
        PulsefoldError: nobody answers, or the answer is an error (its detail).
    """
    path = urllib.parse.quote(path if path.startswith("/") else "/" + path, safe="/%:|,?=&~")
    asked = urllib.parse.urlencode(list(params))
    target = ("" if path.startswith(OUTSIDE) else "/api/v1") + path + (("&" if "?" in path else "?") + asked if asked else "")
    try:
        with Client(url, token=token or "", tenant=tenant, timeout_s=timeout_s) as client:
            raw = client.of(target, again=again)
    except NotAnswered as failed:
        if failed.status:
            raise PulsefoldError(f"{path}: {failed.status} {failed.detail}") from None
        raise
    try:
        return json.loads(raw)
    except ValueError as exc:
        raise PulsefoldError(f"url: what {url.rstrip('/')}{target} answers cannot be read as JSON ({exc})") from None
