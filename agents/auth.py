"""Who asks: tokens per tenant, hashed at rest, compared in constant time.

The rule this file keeps: nothing of tenant A is visible to B. A token belongs to one tenant; an admin token (tenant ``*``)
names the tenant in ``X-Tenant``. Without any token configured only loopback is served and ``X-Tenant`` is taken at its word.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

TENANT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
SCOPES = ("read", "publish", "admin")


class Denied(Exception):
    """The request is not allowed: HTTP status and one sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


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
    """A request's tenant and what it may do; `bound` = the tenant comes from a token."""

    tenant: str
    scopes: frozenset[str]
    bound: bool


def token_hash(token: str) -> str:
    """How a token is kept: ``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


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
            tenant = str(entry.get("tenant", ""))
            if tenant != "*" and not TENANT.fullmatch(tenant):
                raise ValueError(f"tokens: tenant {tenant!r} is not a tenant name (or *)")
            scopes = frozenset(entry.get("scopes", ("read",)))
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

    def caller(self, authorization: str | None, x_tenant: str | None, scope: str, now: datetime) -> Caller:
        """Who asks, allowed to do `scope`.

        Raises:
            Denied: 401 without a valid token, 403 beyond its scope or tenant, 400 for a malformed tenant.
        """
        if x_tenant is not None and x_tenant != "*" and not TENANT.fullmatch(x_tenant):
            raise Denied(400, "X-Tenant: expected a tenant name such as acme")
        if not self.grants:
            if x_tenant == "*":
                raise Denied(403, "X-Tenant: * needs an admin token")
            return Caller(x_tenant or "default", frozenset(SCOPES), bound=False)
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
            if x_tenant == "*":
                raise Denied(403, "X-Tenant: sums over tenants are not served by this view")
            return Caller(x_tenant, grant.scopes, bound=True)
        if x_tenant is not None and x_tenant != grant.tenant:
            raise Denied(403, "X-Tenant: the token belongs to another tenant")
        return Caller(grant.tenant, grant.scopes, bound=True)
