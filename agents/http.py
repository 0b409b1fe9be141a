"""HTTP: the tables' views, events in, alerts out, health and metrics. Served by Faust's web server.

The rule this file keeps: it knows no table. A view is a path, a parameter struct and an answer function (`tables.fold.View`);
routing, parameters, tenants, errors (RFC 9457), `lag` and the API's description follow from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from aiohttp import web

from streams.codec import InvalidEvent, decode
from streams.keys import record_key
from tables.fold import BadParameter, NotFound, View
from tables.reader import PartitionReader

from .archive import Archive
from .auth import Caller, Denied, Tokens
from .raw import RAW_VIEWS, RawView, raw_answer
from .status import openapi, prometheus, status

API = "/api/v1"
ALIASES = {"/api/learning/metrics": "/learning/metrics", "/api/learning/report": "/learning/report", "/api/learning/goals": "/learning/goals"}
_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
MAX_BODY = 8 << 20
MAX_BATCH = 10_000
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class AlertsParams(msgspec.Struct, frozen=True):
    """Parameters of /alerts."""

    state: str = "open"
    rule: str | None = None
    since: datetime | None = None
    limit: int = 100
    cursor: str | None = None


def problem(status_code: int, detail: str, **members: object) -> web.Response:
    """RFC 9457 problem details."""
    title = {
        400: "Bad Request",
        401: "Unauthorized",
        403: "Forbidden",
        404: "Not Found",
        405: "Method Not Allowed",
        413: "Content Too Large",
        409: "Conflict",
        501: "Not Implemented",
        503: "Service Unavailable",
    }
    body = {"type": "about:blank", "title": title.get(status_code, "Error"), "status": status_code, "detail": detail, **members}
    return web.Response(body=orjson.dumps(body), status=status_code, content_type="application/problem+json", headers=HEADERS)


def answer(body: object, status_code: int = 200) -> web.Response:
    """A JSON answer."""
    raw = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(body=raw, status=status_code, content_type="application/json", headers=HEADERS)


class Routes:
    """The worker's HTTP interface.

    Args:
        engine: tables, board and producer.
        tokens: who may ask.
        settings: for /status (masked).
        archive: answers raw queries.
    """

    def __init__(self, engine: Any, tokens: Tokens, settings: Any, pages: Mapping[str, tuple[str, bytes]], archive: Archive) -> None:
        self.engine = engine
        self.tokens = tokens
        self.settings = settings
        self.pages = pages
        self.archive = archive
        folds = engine.schema.folds
        every: list[View | RawView] = [*(view for fold in folds for view in fold.views), *RAW_VIEWS]
        self.views = sorted(every, key=lambda v: (v.path.count("{"), v.path))
        self.split = [(view, view.path.split("/")) for view in self.views]
        self.homes = {table.wire: tuple(fold.topics) for fold in folds for table in fold.tables if fold.topics}
        self.n_requests: dict[tuple[str, int], int] = {}
        self.seconds: dict[str, float] = {}

    def install(self, application: web.Application) -> None:
        """Add the one route; bodies are limited."""
        application._client_max_size = MAX_BODY
        application.router.add_route("*", "/{tail:.*}", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; never a traceback."""
        begun = time.perf_counter()
        name = "other"
        try:
            name, handler = self.route(request)
            response = await handler(request)
        except Denied as denied:
            response = problem(denied.status, denied.detail)
            if denied.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
        except NotFound as missing:
            response = problem(404, str(missing), **missing.members)
        except BadParameter as bad:
            response = problem(400, f"{bad.parameter}: {bad}", parameter=bad.parameter)
        except web.HTTPRequestEntityTooLarge:
            response = problem(413, f"the body is larger than {MAX_BODY} bytes")
        self.n_requests[(name, response.status)] = self.n_requests.get((name, response.status), 0) + 1
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
        return response

    def route(self, request: web.Request) -> tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Name (for metrics) and handler of a request."""
        path = request.rel_url.raw_path
        method = request.method
        if path == f"{API}/events":
            if method != "POST":
                raise Denied(405, "POST events here")
            return "/events", self.post_events
        if method not in ("GET", "HEAD"):
            raise Denied(405, f"{method} is not served here")
        fixed: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
            "/openapi.json": self.openapi,
            "/docs": self.docs,
            f"{API}/status": self.status,
            f"{API}/status/stream": self.status_stream,
            f"{API}/alerts": self.alerts,
            f"{API}/alerts/stream": self.alert_stream,
        }
        if path in fixed:
            return path.removeprefix(API), fixed[path]
        if path in self.pages:
            return "page", self.page
        path = ALIASES.get(path) or (path.removeprefix(API) if path.startswith(API + "/") else "")
        parts = [unquote(part) for part in path.split("/")]
        for view, template in self.split:
            if len(template) == len(parts) and all(t == p or (t[:1] == "{" and p) for t, p in zip(template, parts, strict=True)):
                found = {t[1:-1]: p for t, p in zip(template, parts, strict=True) if t[:1] == "{"}
                return view.path, lambda r, view=view, found=found: self.view(r, view, found)  # type: ignore[misc]  # defaults bind the loop's names
        raise NotFound("there is no such page; see /docs")

    # ---- views

    def caller(self, request: web.Request, scope: str = "read") -> Caller:
        """Who asks."""
        return self.tokens.caller(request.headers.get("Authorization"), request.headers.get("X-Tenant"), scope, datetime.now(UTC))

    def reader(self, tenant: str) -> PartitionReader:
        """A reader bound to a tenant."""
        return PartitionReader(self.engine.partitions, self.homes, tenant, time.time_ns() // 1000)

    async def view(self, request: web.Request, view: View | RawView, found: Mapping[str, str]) -> web.Response:
        """Answer a table's view, or ask the archive."""
        caller = self.caller(request)
        params = convert(request, view.params, found)
        if isinstance(view, RawView):
            return await raw_answer(self.archive, request, view, self.reader(caller.tenant), params, HEADERS, problem)
        reader = self.reader(caller.tenant)
        body = view.answer(reader, params)
        body["lag"] = self.lag(view.topics)
        body.setdefault("ready", True) if self.engine.ready else body.__setitem__("ready", False)
        return answer(body)

    def lag(self, topics: tuple[str, ...]) -> int:
        """Records of these topics not yet absorbed here."""
        return sum(self.engine.lag(shard) for shard in self.engine.core.shards.values() if shard.partition.topic in topics)

    async def status(self, request: web.Request) -> web.Response:
        """Counts, lag, tables, settings."""
        caller = self.caller(request)
        return answer({"tenant": caller.tenant, **status(self.engine, self.settings), "archive": self.archive.status()})

    def brief(self, tenant: str) -> dict[str, Any]:
        """What the status stream tells: whether to ask the views again, and how far restoring has come."""
        restored, to_restore = self.engine.progress()
        shards = self.engine.core.shards.values()
        return {
            "tenant": tenant,
            "ready": self.engine.ready,
            "restored": restored,
            "to_restore": to_restore,
            "absorbed": sum(self.engine.absorbed(shard) for shard in shards),
            "lag": sum(self.engine.lag(shard) for shard in shards),
            "alert_messages": self.engine.board.n_messages,
        }

    async def status_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events for a page: `status` when something changed, at most every half second, and at least every five
        seconds; besides every new alert message of the tenant."""
        caller, response = await self.open_stream(request)
        told: dict[str, Any] | None = None
        told_at = 0.0
        with self.engine.board.subscribe() as queue:
            while not self.engine.should_stop:
                now, brief = time.monotonic(), self.brief(caller.tenant)
                if brief != told or now - told_at > 5:
                    await response.write(b"event: status\ndata: " + orjson.dumps(brief) + b"\n\n")
                    told, told_at = brief, now
                with contextlib.suppress(TimeoutError):
                    await tell(response, await asyncio.wait_for(queue.get(), 0.5), caller.tenant)
        return response

    async def open_stream(self, request: web.Request) -> tuple[Caller, web.StreamResponse]:
        """Who asks, and the begun answer; a stream that nobody can take is refused before it begins."""
        caller = self.caller(request)
        if len(self.engine.board.subscribers) >= 1000:
            raise Denied(503, "too many subscribers")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": pulsefold\n\n")
        return caller, response

    async def healthz(self, request: web.Request) -> web.Response:
        """The process answers."""
        return answer({"ok": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """The tables are restored."""
        followed, total = self.engine.progress()
        body = {"ready": self.engine.ready, "restored": followed, "to_restore": total}
        return answer(body, 200 if self.engine.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text."""
        return web.Response(body=prometheus(self.engine, self), headers={**HEADERS, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def openapi(self, request: web.Request) -> web.Response:
        """The API's description."""
        return answer(openapi(self.views))

    async def docs(self, request: web.Request) -> web.Response:
        """The description, readable."""
        rows = []
        for view in self.views:
            params = ", ".join(field.encode_name for field in msgspec.structs.fields(view.params))
            rows.append(f"<tr><td><code>{html.escape(API + view.path)}</code><td>{html.escape(view.summary)}<td>{html.escape(params)}")
        body = (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
            "<title>pulsefold API</title><link rel=icon href=/icon.svg><link rel=stylesheet href=/style.css>"
            "<main class=docs><h1><img src=/icon.svg alt='' width=26 height=26>pulsefold API</h1>"
            "<p><a href=/>Dashboard</a>. Machine-readable: <a href=/openapi.json>/openapi.json</a>. "
            f"Events in: <code>POST {API}/events</code>. Alerts: <code>{API}/alerts</code>, as they come <code>{API}/alerts/stream</code>. "
            f"The worker itself: <code>{API}/status</code>, as it changes <code>{API}/status/stream</code>."
            "<div class=scroll tabindex=0 role=region aria-label='Views'><table><thead><tr><th scope=col>Path<th scope=col>Answers<th scope=col>Parameters"
            f"<tbody>{''.join(rows)}</table></div></main></html>"
        )
        return web.Response(text=body, content_type="text/html", headers=HEADERS)

    async def page(self, request: web.Request) -> web.Response:
        """A page of the dashboard."""
        kind, body = self.pages[request.rel_url.raw_path]
        return web.Response(body=body, headers={**HEADERS, "Content-Type": kind})

    # ---- alerts

    async def alerts(self, request: web.Request) -> web.Response:
        """Alerts by their newest message."""
        caller = self.caller(request)
        params = convert(request, AlertsParams, {})
        if params.state not in ("open", "all"):
            raise BadParameter("state", "expected open or all")
        if not 1 <= params.limit <= 10_000:
            raise BadParameter("limit", "expected 1 to 10000")
        shown = []
        for entry in self.engine.board.of(caller.tenant):
            message = entry.message
            if params.state == "open" and not entry.open:
                continue
            if params.rule is not None and message["data"]["rule"] != params.rule:
                continue
            if params.since is not None and datetime.fromisoformat(message["time"]) < params.since:
                continue
            shown.append({"type": message["type"], "id": message["id"], "time": message["time"], "open": entry.open, **message["data"]})
        start = 0
        if params.cursor is not None:
            start = next((i + 1 for i, alert in enumerate(shown) if alert["alert_id"] == params.cursor), -1)
            if start < 0:
                raise BadParameter("cursor", "the cursor is not of this list; start again without it")
        part = shown[start : start + params.limit]
        return answer({"alerts": part, "cursor": part[-1]["alert_id"] if part and start + params.limit < len(shown) else None})

    async def alert_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: every new alert message of the tenant."""
        caller, response = await self.open_stream(request)
        told_at = time.monotonic()
        with self.engine.board.subscribe() as queue:
            while not self.engine.should_stop:
                try:
                    await tell(response, await asyncio.wait_for(queue.get(), 1), caller.tenant)
                except TimeoutError:
                    if time.monotonic() - told_at > 15:
                        await response.write(b": still here\n\n")
                        told_at = time.monotonic()
        return response

    # ---- events in

    async def post_events(self, request: web.Request) -> web.Response:
        """One CloudEvent, or a batch; answered after the broker has acknowledged."""
        caller = self.caller(request, "publish")
        kind = request.content_type
        if kind not in ("application/cloudevents+json", "application/cloudevents-batch+json", "application/json"):
            return problem(415, "Content-Type: expected application/cloudevents+json or application/cloudevents-batch+json")
        raw = await request.read()
        events: list[Any] = [raw]
        if kind == "application/cloudevents-batch+json" or raw.lstrip()[:1] == b"[":
            try:
                events = _batch(raw)
            except (msgspec.DecodeError, RecursionError) as bad:
                return problem(400, f"body: expected a list of events: {bad}")
        if len(events) > MAX_BATCH:
            return problem(413, f"body: {len(events)} events, at most {MAX_BATCH} in one batch")
        results: list[dict[str, Any]] = []
        sends = []
        for piece in events:
            result, send = self.prepare(bytes(piece), caller)
            results.append(result)
            sends.append(send)
        acks = []
        for send in sends:
            acks.append(await self.engine.producer.send(send[0], send[2], key=send[1]) if send else None)
        outcomes = await asyncio.gather(*(ack for ack in acks if ack is not None), return_exceptions=True)
        failures = iter(outcomes)
        for result, ack in zip(results, acks, strict=True):
            if ack is not None:
                outcome = next(failures)
                if isinstance(outcome, BaseException):
                    result.update(accepted=False, reason="not_acknowledged", error=f"the broker did not acknowledge: {type(outcome).__name__}")
        if any(result.get("reason") == "not_acknowledged" for result in results):
            return answer({"results": results}, 503)
        return answer({"results": results})

    def prepare(self, raw: bytes, caller: Caller) -> tuple[dict[str, Any], tuple[str, bytes, bytes] | None]:
        """Check one event; returns its result and (topic, key, value) to send."""
        try:
            body = msgspec.json.decode(raw)
            if isinstance(body, dict) and body and "tenant" not in body:
                # spliced in, not re-encoded: amounts of money must keep their decimal text
                raw = b'{"tenant":"' + caller.tenant.encode() + b'",' + raw.lstrip()[1:]
            event = decode(raw)
        except InvalidEvent as bad:
            return {"id": None, "accepted": False, "reason": bad.reason, "error": bad.error}, None
        except (msgspec.DecodeError, RecursionError) as bad:
            return {"id": None, "accepted": False, "reason": "not_json", "error": str(bad)}, None
        result: dict[str, Any] = {"id": event.id, "accepted": True}
        refused = None
        if event.derivedfrom is not None:
            refused = "derivedfrom: set by workers only"
        elif event.data.TYPE.startswith(("clock.", "alert.", "variable.scored", "agent.scored")):
            refused = f"type: {event.data.TYPE} is published by workers only"
        elif caller.bound and event.tenant != caller.tenant:
            refused = "tenant: the token belongs to another tenant"
        if refused:
            return {"id": event.id, "accepted": False, "reason": "refused", "error": refused}, None
        return result, (self.engine.config.prefix + event.data.TOPIC, record_key(event), raw)


async def tell(response: web.StreamResponse, message: Mapping[str, Any], tenant: str) -> None:
    """Send an alert message if it is the tenant's."""
    if message.get("tenant") == tenant:
        await response.write(b"event: " + message["type"].encode() + b"\nid: " + message["id"].encode() + b"\ndata: " + orjson.dumps(message) + b"\n\n")


def convert(request: web.Request, params: type[msgspec.Struct], found: Mapping[str, str]) -> Any:
    """Path and query parameters as a struct.

    Raises:
        BadParameter: naming the one that is unknown or malformed.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(params)}
    values: dict[str, Any] = dict(found)
    for name in request.query:
        if name not in fields or name in found:
            raise BadParameter(name, "unknown parameter; known are " + ", ".join(fields))
        field = fields[name]
        if "list" in str(field.type) or "tuple" in str(field.type):
            given = request.query.getall(name)
            values[name] = [item for value in given for item in value.split(",") if item] if len(given) == 1 else given
        else:
            values[name] = request.query[name]
    for name in fields:
        if name in values and isinstance(values[name], str) and len(values[name]) > 4096:
            raise BadParameter(name, "at most 4096 characters")
    try:
        return msgspec.convert(values, params, strict=False)
    except msgspec.ValidationError as bad:
        text = str(bad)
        name = text.rsplit("`$.", 1)[-1].split("`")[0].split("[")[0] if "`$." in text else text.rsplit("`", 2)[-2] if "`" in text else "parameters"
        raise BadParameter(name, text.split(" - at ")[0]) from None


__all__ = ["API", "Routes", "answer", "convert", "problem"]
