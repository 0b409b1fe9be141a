"""Who asks: tokens per tenant, hashed at rest, compared in constant time.

The rule this file keeps: nothing of tenant A is visible to B. A token belongs to one tenant; an admin token (tenant ``*``)
names the tenant in ``X-Tenant``. Without any token configured only loopback is served and ``X-Tenant`` is taken at its word.
Tokens are changed without a restart in the file that the setting `tokens_file` names (`TokenFile`): the new one is put in, its
users change over, the old one is taken out or expires.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("pulsefold.tokens")
LOOK_S = 1.0
"""Seconds between two looks at the file of tokens."""
ENTRY = frozenset(("tenant", "scopes", "expires"))
TENANT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
SCOPES = ("read", "publish", "admin")


class Denied(Exception):
    """The request is not allowed: HTTP status and one sentence; `retry_s`: seconds after which it may be."""

    def __init__(self, status: int, detail: str, retry_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_s = retry_s


@dataclass(frozen=True)
class Grant:
    """What a token allows.

    Attributes:
        tenant: the only one it may see, or ``*``.
        scopes: of `SCOPES`.
        expires: None = never.
    """

    tenant: str
    scopes: frozenset[str]
    expires: datetime | None = None


@dataclass(frozen=True)
class Caller:
    """A request's tenant and what it may do.

    Attributes:
        tenant: whose data; ``*`` = everybody's, for an admin token that asked for that.
        bound: the tenant comes from a token.
        operator: may see the worker's own figures: sums over tenants, offsets, settings.
        name: the token's hash, by which its requests are counted; empty where there are no tokens.
    """

    tenant: str
    scopes: frozenset[str]
    bound: bool
    operator: bool
    name: str = ""


def token_hash(token: str) -> str:
    """How a token is kept: ``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The configured tokens.

    Args:
        configured: {TOKEN or its ``sha256:`` hash: {"tenant": …, "scopes": [...], "expires": RFC 3339 or absent}}.

    Raises:
        ValueError: an entry is unusable; the sentence names the tenant, never the token.
    """

    def __init__(self, configured: Mapping[str, Mapping[str, Any]]) -> None:
        self.grants: dict[str, Grant] = {}
        for token, entry in configured.items():
            if not isinstance(entry, Mapping):
                raise ValueError("tokens: expected {TOKEN: {tenant, scopes, expires}}")
            tenant = str(entry.get("tenant", ""))
            if tenant != "*" and not TENANT.fullmatch(tenant):
                raise ValueError(f"tokens: tenant {tenant!r} is not a tenant name (or *)")
            if not entry.keys() <= ENTRY:  # a misspelt one must not be an expiry that never comes
                raise ValueError(f"tokens: tenant {tenant!r} has {', '.join(sorted(map(repr, entry.keys() - ENTRY)))}; known are tenant, scopes, expires")
            given = entry.get("scopes", ("read",))
            scopes = frozenset(map(str, given)) if isinstance(given, (list, tuple)) else frozenset()
            if not scopes or not scopes <= set(SCOPES):
                raise ValueError(f"tokens: scopes of tenant {tenant!r} must be of {', '.join(SCOPES)}")
            expires = entry.get("expires")
            try:
                until = datetime.fromisoformat(str(expires)) if expires else None
            except ValueError:
                raise ValueError(f"tokens: expires of tenant {tenant!r} must be a time such as 2027-01-31T00:00:00Z, got {expires!r}") from None
            if until is not None and until.tzinfo is None:
                raise ValueError(f"tokens: expires of tenant {tenant!r} needs an offset, such as Z")
            name = token if re.fullmatch(r"sha256:[0-9a-f]{64}", token) else token_hash(token)
            self.grants[name] = Grant(tenant, scopes, until)

    def __bool__(self) -> bool:
        return bool(self.grants)

    def caller(self, authorization: str | None, x_tenant: str | None, scope: str, now: datetime, *, sums: bool = False) -> Caller:
        """Who asks, allowed to do `scope`.

        Args:
            sums: what is asked for can be had over all tenants (``X-Tenant: *``).

        Raises:
            Denied: 401 without a valid token, 403 beyond its scope or tenant, 400 for a malformed tenant.
        """
        if x_tenant is not None and x_tenant != "*" and not TENANT.fullmatch(x_tenant):
            raise Denied(400, "X-Tenant: expected a tenant name such as acme")
        if not self:
            if x_tenant == "*":
                raise Denied(403, "X-Tenant: * needs an admin token")
            return Caller(x_tenant or "default", frozenset(SCOPES), bound=False, operator=True)
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Denied(401, "Authorization: expected Bearer and a token")
        offered = token_hash(token.strip())
        grant = None
        for name, held in self.grants.items():  # every entry is compared, so time tells nothing
            if hmac.compare_digest(name, offered):
                grant = held
        if grant is None or (grant.expires is not None and grant.expires <= now):
            raise Denied(401, "Authorization: the token is not known or has expired")
        if scope not in grant.scopes and "admin" not in grant.scopes:
            raise Denied(403, f"the token's scopes do not include {scope}")
        if grant.tenant == "*":
            if x_tenant is None:
                raise Denied(400, "X-Tenant: an admin token must name the tenant")
            if x_tenant == "*" and not sums:
                raise Denied(403, "X-Tenant: sums over tenants are not served by this view")
            return Caller(x_tenant, grant.scopes, bound=True, operator="admin" in grant.scopes, name=offered)
        if x_tenant is not None and x_tenant != grant.tenant:
            raise Denied(403, "X-Tenant: the token belongs to another tenant")
        return Caller(grant.tenant, grant.scopes, bound=True, operator="admin" in grant.scopes, name=offered)


class TokenFile(Tokens):
    """Tokens of the settings and of a file that is read again when it changes, so that tokens are rotated without a restart.

    A file that cannot be used later on leaves the tokens before it in force and is told in the log; at the start it is refused.

    Args:
        configured: as of `Tokens`; they stand beside those of the file.
        path: a JSON file of the same form.
        clock: seconds, monotonic.

    Raises:
        ValueError: the file, or an entry, is unusable; never with a token in its sentence.
    """

    def __init__(self, configured: Mapping[str, Mapping[str, Any]], path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.configured = dict(configured)
        self.path = Path(path)
        self.clock = clock
        self.problem: str | None = None
        self._looked = clock()
        self._state = self._stat()
        super().__init__({**self.configured, **self._read()})

    def caller(self, authorization: str | None, x_tenant: str | None, scope: str, now: datetime, *, sums: bool = False) -> Caller:
        """As `Tokens.caller`, by the file as it is now."""
        if self.clock() - self._looked >= LOOK_S:
            self._look()
        return super().caller(authorization, x_tenant, scope, now, sums=sums)

    def __bool__(self) -> bool:
        return True  # a file without tokens lets nobody in, it does not open the door

    def _look(self) -> None:
        self._looked = self.clock()
        state = self._stat()
        if state == self._state and self.problem is None:
            return
        try:
            found = Tokens({**self.configured, **self._read()}).grants
        except ValueError as bad:
            if self.problem != str(bad):
                self.problem = str(bad)
                log.error("the tokens before it stay in force: %s", bad)
            return
        self.grants, self._state, self.problem = found, state, None

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
        except OSError as bad:
            raise ValueError(f"tokens_file: {self.path} cannot be read: {bad.strerror or bad}") from None
        except (ValueError, RecursionError):  # its text may hold a token
            raise ValueError(f"tokens_file: {self.path} is no JSON") from None
        if not isinstance(content, dict):
            raise ValueError(f"tokens_file: {self.path}: expected {{TOKEN: {{tenant, scopes, expires}}}}")
        return content
