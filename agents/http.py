"""HTTP: the tables' views, events in, alerts out, health and metrics. Served by Faust's web server.

The rule this file keeps: it knows no table. A view is a path, a parameter struct and an answer function (`tables.fold.View`);
routing, parameters, tenants, errors (RFC 9457), `lag` and the API's description follow from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from aiohttp import web
from aiokafka.errors import KafkaError

from streams.codec import InvalidEvent, decode
from streams.keys import record_key
from tables.fold import BadParameter, NotFound, View
from tables.orders import ListKeeper
from tables.partition import Schema
from tables.reader import PartitionReader
from tables.times import to_us
from tables.window_views import bound

from .archive import Archive
from .auth import Caller, Denied, Tokens
from .board import Entry, Subscription
from .cleared import forgotten
from .limits import (
    ACK_S,
    BODY_S,
    EVENT_S,
    LOOPBACK,
    MAX_BATCH,
    MAX_BODY,
    MOST_RAW_OF_ONE,
    MOST_STREAMS,
    MOST_STREAMS_OF_ONE,
    SEND_S,
    TELL_S,
    Quota,
)
from .raw import RAW_VIEWS, RawView, past_answer, raw_answer, table_answer, wanted
from .registry import RULE_NAMES
from .status import openapi, prometheus, status, tenant_status, tenants_of
from .sums import SUMMED, summed

API = "/api/v1"
MANY_RAW = "raw queries of this tenant are being answered; ask again in a moment"
ALIASES = {"/api/learning/metrics": "/learning/metrics", "/api/learning/report": "/learning/report", "/api/learning/goals": "/learning/goals"}
_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
log = logging.getLogger("pulsefold.http")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "pulsefold",
}


class NoParams(msgspec.Struct, frozen=True):
    """Nothing can be asked for."""


class AlertsParams(msgspec.Struct, frozen=True):
    """Parameters of /alerts."""

    state: str = "open"
    rule: str | None = None
    since: str | None = None
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
        408: "Request Timeout",
        409: "Conflict",
        413: "Content Too Large",
        415: "Unsupported Media Type",
        421: "Misdirected Request",
        429: "Too Many Requests",
        500: "Internal Server Error",
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
        self.use(engine.schema)
        engine.on_schema.append(self.use)
        self.quota = Quota(settings.get("tenant_events_per_s"))
        self.queries = Quota(settings.get("queries_per_s"))
        self.open_metrics = bool(settings.get("open_metrics"))
        self.streams: dict[str, int] = {}
        self.raw_asked: dict[str, int] = {}
        self.n_requests: dict[tuple[str, int], int] = {}
        self.seconds: dict[str, float] = {}
        self.keeper: ListKeeper | None = None

    def use(self, schema: Schema) -> None:
        """Answer by this schema's views from now on."""
        every: list[View | RawView] = [*(view for fold in schema.folds for view in fold.views), *RAW_VIEWS]
        self.views = sorted(every, key=lambda v: (v.path.count("{"), v.path))
        self.split = [(view, view.path.split("/")) for view in self.views]

    def install(self, application: web.Application) -> None:
        """Add the one route; bodies are limited."""
        application._client_max_size = MAX_BODY
        application.router.add_route("*", "/{tail:.*}", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; never a traceback, and never for longer than `agents.limits` says."""
        begun = time.perf_counter()
        name = "other"
        try:
            self.check_host(request)
            name, handler = self.route(request)
            response = await handler(request)
        except Denied as denied:
            response = problem(denied.status, denied.detail)
            if denied.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            if denied.retry_s is not None:
                response.headers["Retry-After"] = str(denied.retry_s)
        except NotFound as missing:
            response = problem(404, str(missing), **missing.members)
        except BadParameter as bad:
            response = problem(400, f"{bad.parameter}: {bad}", parameter=bad.parameter)
        except web.HTTPRequestEntityTooLarge:
            response = problem(413, f"the body is larger than {MAX_BODY} bytes")
        except (ConnectionError, web.RequestPayloadError):
            response = problem(400, "the request ended before its body did")  # there is nobody left to read it
        except Exception:
            log.exception("a bug while answering %s", name)  # the folds do not depend on it, so the worker goes on
            response = problem(500, "the worker could not answer; its log says why")
        await self.send(request, response)
        self.n_requests[(name, response.status)] = self.n_requests.get((name, response.status), 0) + 1
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
        return response

    async def send(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let an answer go out, to a caller that takes it; a stream sends for itself."""
        if isinstance(response, web.Response):
            try:
                async with asyncio.timeout(SEND_S):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                pass  # it has gone

    def check_host(self, request: web.Request) -> None:
        """Without tokens only this machine is served; a web page that has its own name resolve to loopback is not this machine's.

        Raises:
            Denied: 421 for a name of somebody else's.
        """
        if not self.tokens and host_of(request.host) not in LOOPBACK:
            raise Denied(421, "Host: without tokens this worker answers to 127.0.0.1, ::1 and localhost only")

    def route(self, request: web.Request) -> tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Name (for metrics) and handler of a request."""
        path = request.rel_url.raw_path
        method = request.method
        if not (path.isascii() and request.rel_url.raw_query_string.isascii()):
            raise Denied(400, "the address is not percent-encoded")
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

    def caller(self, request: web.Request, scope: str = "read", *, sums: bool = False, again: bool = False) -> Caller:
        """Who asks, within the quota of its token.

        Args:
            sums: for all tenants is possible.
            again: a request that was counted before.

        Raises:
            Denied: as of `Tokens.caller`; 429 beyond the quota.
        """
        caller = self.tokens.caller(request.headers.get("Authorization"), request.headers.get("X-Tenant"), scope, datetime.now(UTC), sums=sums)
        if scope == "read" and caller.name and not again:
            wait_s = self.queries.take(caller.name, 1)
            if wait_s:
                raise Denied(429, f"more than queries_per_s = {self.queries.per_s:g} with this token; ask again in a moment", retry_s=wait_s)
        return caller

    def reader(self, tenant: str) -> PartitionReader:
        """A reader bound to a tenant; it keeps lists for the next question, of the tables that serve."""
        engine = self.engine
        if self.keeper is None or self.keeper.partitions is not engine.partitions:
            self.keeper = ListKeeper(engine.partitions, engine.schema.homes, time.monotonic)
        return PartitionReader(engine.partitions, engine.schema.homes, tenant, time.time_ns() // 1000, self.keeper)

    async def view(self, request: web.Request, view: View | RawView, found: Mapping[str, str]) -> web.Response:
        """Answer a table's view, or ask the archive."""
        caller = self.caller(request, sums=view.path in SUMMED)
        moment = past_of(request, view)
        kind = wanted(request.headers.get("Accept"), ("csv",) if isinstance(view, View) and view.table else ())
        params = convert(request, view.params, found, ignored=PAST if moment is not None else ())
        self.check_served()
        if moment is not None and not isinstance(view, RawView) and caller.tenant != "*":
            with counted(self.raw_asked, caller.tenant, MOST_RAW_OF_ONE, MANY_RAW):
                return await past_answer(self.archive, view, caller.tenant, params, moment, HEADERS, problem, kind)
        if isinstance(view, RawView):
            with counted(self.raw_asked, caller.tenant, MOST_RAW_OF_ONE, MANY_RAW):
                return await raw_answer(self.archive, request, view, self.reader(caller.tenant), params, HEADERS, problem)
        if caller.tenant == "*":
            if not caller.operator:
                raise Denied(403, "X-Tenant: * needs the scope admin")
            if moment is not None:
                raise BadParameter("as_of", "sums over tenants are told of the present")
            body = summed(view, params, tenants_of(self.engine), self.reader)
        else:
            body = view.answer(self.reader(caller.tenant), params)
        if kind == "csv":  # which has no room to say that it may not be whole
            return table_answer(body, HEADERS) if self.engine.ready else problem(503, "the tables are still being restored; ask again when /readyz says 200")
        body["lag"] = self.lag(view.topics)
        body.setdefault("ready", True) if self.engine.ready else body.__setitem__("ready", False)
        return answer(body)

    def check_served(self) -> None:
        """
        Raises:
            Denied: 503 where the tables that serve can only be read by the workers whose code made them. The archive's rows and the past are for them too:
                what is told of either is made with the tables, and by the code that serves.
        """
        rebuild = self.engine.rebuild
        if rebuild is not None and rebuild.beside:
            told = rebuild.progress()
            raise Denied(
                503,
                f"the tables are being rebuilt by another version of the service: {told['folded']} of {told['to_fold']} records so far; until then ask the "
                "workers of the former version",
                retry_s=max(1, min(60, int(told["seconds_left"] or 5))),
            )

    def lag(self, topics: tuple[str, ...]) -> int:
        """Records of these topics not yet absorbed here."""
        return sum(self.engine.lag(shard) for shard in self.engine.core.shards.values() if shard.partition.topic in topics)

    async def status(self, request: web.Request) -> web.Response:
        """Counts, lag, tables, settings: to who may see the worker's own figures; to others what concerns their tenant."""
        caller = self.caller(request, sums=True)
        convert(request, NoParams, {})
        archive = self.archive.status()
        if caller.tenant != "*" and "days" in archive:  # who else has days of its own is not for a tenant's eyes
            archive["days"] = archive.pop("days_of").get(caller.tenant, archive["days"])
        if caller.operator:
            found = {"tenant": caller.tenant, **status(self.engine, self.settings), **self.judged_by(), "archive": archive}
            if caller.tenant == "*":
                found["tenants"] = [tenant_status(self.engine, name) for name in tenants_of(self.engine)]
            return answer(found)
        if caller.tenant == "*":
            raise Denied(403, "X-Tenant: * needs the scope admin")
        return answer(
            {
                **tenant_status(self.engine, caller.tenant),
                **self.judged_by(),
                "archive": {name: archive[name] for name in ("enabled", "ready", "days") if name in archive},
            }
        )

    def judged_by(self) -> dict[str, Any]:
        """What a tenant's figures and alerts follow from, so that it can fold its own log anew: thresholds and the like, and numbers of partitions."""
        named = [] if self.settings is None else self.settings.describe()
        given = self.engine.schema.given  # of the tables that serve, which may not be those of this worker's settings yet
        rules = [(name, value, origin, msgspec.to_builtins(given.get(name, value))) for name, value, origin, _ in named if name in RULE_NAMES]
        return {
            "rules": [{"name": name, "value": serves, "from": origin if serves == value else "the tables"} for name, value, origin, serves in rules],
            "partition_counts": {topic: len(partitions) for topic, partitions in self.engine.partitions.items()},
        }

    def brief(self, caller: Caller) -> dict[str, Any]:
        """What the status stream tells: whether to ask the views again, and how far restoring has come.

        How much of everybody's was absorbed is for who may see the worker's own figures; others are told how far their own events are.
        """
        restored, to_restore = self.engine.progress()
        shards = self.engine.core.shards.values()
        mine = self.reader(caller.tenant)
        found = {
            "tenant": caller.tenant,
            "ready": self.engine.ready,
            "restored": restored,
            "to_restore": to_restore,
            "newest": [max(times.values(), default=None) for times in (mine.watermarks(topic) for topic in self.engine.partitions)],
            "lag": sum(self.engine.lag(shard) for shard in shards),
            "alert_messages": self.engine.board.told.get(caller.tenant, 0),
        }
        if caller.operator:
            found["absorbed"] = sum(self.engine.absorbed(shard) for shard in shards)
        return found

    async def status_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events for a page: `status` when something changed, at most every half second, and at least every five
        seconds; besides every new alert message of the tenant."""
        async with self.stream(request) as (caller, response, queue):
            told: dict[str, Any] | None = None
            told_at = 0.0
            while self.goes_on(request):
                now, brief = time.monotonic(), self.brief(caller)
                if brief != told or now - told_at > TELL_S:
                    self.caller(request, again=True)  # a token that has expired, or was taken out, ends its streams
                    await write(response, b"event: status\ndata: " + orjson.dumps(brief) + b"\n\n")
                    told, told_at = brief, now
                message = None
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(queue.get(), 0.5)
                if message is not None:
                    await tell(response, message, caller.tenant)
                if queue.n_lost:
                    await tell_lost(response, queue)
        return response

    @contextlib.asynccontextmanager
    async def stream(self, request: web.Request) -> AsyncIterator[tuple[Caller, web.StreamResponse, Subscription]]:
        """Who asks, the begun answer, and the alert messages from now on.

        A stream that there is no room for is refused before it begins; one whose reader takes nothing, or may not read any more, is ended.
        """
        caller = self.caller(request)
        convert(request, NoParams, {})
        if len(self.engine.board.subscribers) >= MOST_STREAMS:
            raise Denied(503, "too many subscribers", retry_s=5)
        with (
            counted(self.streams, caller.tenant, MOST_STREAMS_OF_ONE, "streams of this tenant are open; close one"),
            self.engine.board.subscribe(caller.tenant) as queue,
        ):
            response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": pulsefold\n\n")  # a few bytes find room
            try:
                yield caller, response, queue
            except (TimeoutError, Denied):
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                pass  # the reader has gone

    def goes_on(self, request: web.Request) -> bool:
        """Whether a stream has a reader, and this worker is to serve it: who has gone is noticed without anything to tell them."""
        return not self.engine.should_stop and request.transport is not None and not request.transport.is_closing()

    async def healthz(self, request: web.Request) -> web.Response:
        """The process answers."""
        return answer({"ok": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """The tables are restored."""
        followed, total = self.engine.progress()
        body: dict[str, Any] = {"ready": self.engine.ready, "restored": followed, "to_restore": total}
        if self.archive.behind():
            body["degraded"] = ["archive"]  # why is in /status and in the log; folds and their views do not depend on it
        return answer(body, 200 if self.engine.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text, of all tenants: for who may see that, unless `open_metrics` gives it to anybody who comes as far."""
        if self.tokens and not self.open_metrics and not self.caller_of_metrics(request).operator:
            raise Denied(403, "the token's scopes do not include admin (or set open_metrics)")
        return web.Response(body=prometheus(self.engine, self), headers={**HEADERS, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def caller_of_metrics(self, request: web.Request) -> Caller:
        """Who asks for what is nobody's in particular: an admin token needs no ``X-Tenant``."""
        return self.tokens.caller(request.headers.get("Authorization"), request.headers.get("X-Tenant", "*"), "admin", datetime.now(UTC), sums=True)

    async def openapi(self, request: web.Request) -> web.Response:
        """The API's description."""
        return answer(openapi(self.views))

    async def docs(self, request: web.Request) -> web.Response:
        """The description, readable."""
        rows = []
        for view in self.views:
            params = ", ".join(parameters(view.params))
            rows.append(f"<tr><td><code>{html.escape(API + view.path)}</code><td>{html.escape(view.summary)}<td>{html.escape(params)}")
        body = (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
            "<title>pulsefold API</title><link rel=icon href=/icon.svg><link rel=stylesheet href=/style.css>"
            "<main class=docs><h1><img src=/icon.svg alt='' width=26 height=26>pulsefold API</h1>"
            "<p><a href=/>Dashboard</a>. Machine-readable: <a href=/openapi.json>/openapi.json</a>. "
            f"Events in: <code>POST {API}/events</code>. Alerts: <code>{API}/alerts</code>, as they come <code>{API}/alerts/stream</code>. "
            f"The worker itself: <code>{API}/status</code>, as it changes <code>{API}/status/stream</code>. "
            "With <code>as_of=TIME</code> a folded view answers as it stood then."
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
        since_us = bound(params.since, "since")
        board, standing = self.engine.board, params.state == "open"

        def asked(entry: Entry) -> bool:
            message = entry.message
            return not (
                (standing and not entry.open)
                or (params.rule is not None and message["data"]["rule"] != params.rule)
                or (since_us is not None and to_us(datetime.fromisoformat(message["time"])) < since_us)
                or forgotten(self.engine, entry)
            )

        behind, last = None, board.entries.get(params.cursor or "")
        if last is not None and (last.message["tenant"], last.message["data"]["alert_id"]) == (caller.tenant, params.cursor) and asked(last):
            behind = params.cursor
        found = filter(asked, board.newest(caller.tenant, standing=standing, behind=behind))
        if params.cursor is not None and behind is None and not any(entry.message["data"]["alert_id"] == params.cursor for entry in found):
            raise BadParameter("cursor", "the cursor is not of this list; start again without it")
        part = [
            {"type": entry.message["type"], "id": entry.message["id"], "time": entry.message["time"], "open": entry.open, **entry.message["data"]}
            for entry in islice(found, params.limit)
        ]
        more = bool(part) and next(found, None) is not None
        return answer({"alerts": part, "cursor": part[-1]["alert_id"] if more else None})

    async def alert_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: every new alert message of the tenant."""
        async with self.stream(request) as (caller, response, queue):
            told_at = time.monotonic()
            while self.goes_on(request):
                message = None
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(queue.get(), 1)
                if time.monotonic() - told_at > 15:
                    self.caller(request, again=True)  # as above
                    await write(response, b": still here\n\n")
                    told_at = time.monotonic()
                if message is not None:
                    await tell(response, message, caller.tenant)
                if queue.n_lost:
                    await tell_lost(response, queue)
        return response

    # ---- events in

    async def post_events(self, request: web.Request) -> web.Response:
        """One CloudEvent, or a batch; answered after the broker has acknowledged."""
        caller = self.caller(request, "publish")
        kind = request.content_type
        if kind not in ("application/cloudevents+json", "application/cloudevents-batch+json", "application/json"):
            return problem(415, "Content-Type: expected application/cloudevents+json or application/cloudevents-batch+json")
        try:
            async with asyncio.timeout(BODY_S):
                raw = await request.read()
        except TimeoutError:
            return problem(408, f"the body did not come within {BODY_S:.0f} s")
        events: list[Any] = [raw]
        if kind == "application/cloudevents-batch+json" or raw.lstrip()[:1] == b"[":
            try:
                events = _batch(raw)
            except (msgspec.DecodeError, RecursionError) as bad:
                return problem(400, f"body: expected a list of events: {bad}")
        if len(events) > MAX_BATCH:
            return problem(413, f"body: {len(events)} events, at most {MAX_BATCH} in one batch")
        wait_s = self.quota.take(caller.tenant, len(events))
        if wait_s:
            raise Denied(429, f"more than tenant_events_per_s = {self.quota.per_s:g}; nothing was accepted", retry_s=wait_s)
        results: list[dict[str, Any]] = []
        sends = []
        for piece in events:
            result, send = self.prepare(bytes(piece), caller)
            results.append(result)
            sends.append(send)
        failures = await self.publish([send for send in sends if send is not None])
        told = iter(failures)
        for result, send in zip(results, sends, strict=True):
            failure = next(told) if send is not None else None
            if failure is not None:
                error = f"the broker did not acknowledge ({failure}); it may still come: send it again with the same id"
                result.update(accepted=False, reason="not_acknowledged", error=error)
        if any(failures):
            response = answer({"results": results}, 503)
            response.headers["Retry-After"] = "5"
            return response
        return answer({"results": results})

    async def publish(self, sends: Sequence[tuple[str, bytes, bytes]]) -> list[str | None]:
        """Send records, (topic, key, value) each, and wait for a bounded time; for each what went wrong, None where it was acknowledged."""
        acks: list[asyncio.Future[Any]] = []
        refused = "TimeoutError"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACK_S):
                try:
                    for topic, key, value in sends:
                        acks.append(await self.engine.producer.send(topic, value, key=key))
                except KafkaError as bad:  # no broker knows the topic, or none has room: nor will it for the next
                    refused = type(bad).__name__
                if acks:
                    await asyncio.wait(acks)
        failures: list[str | None] = []
        for ack in acks:
            failed = ack.exception() if ack.done() and not ack.cancelled() else TimeoutError()
            failures.append(None if failed is None else type(failed).__name__)
        failures += [refused] * (len(sends) - len(acks))
        return failures

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
        await write(response, b"event: " + message["type"].encode() + b"\nid: " + message["id"].encode() + b"\ndata: " + orjson.dumps(message) + b"\n\n")


async def tell_lost(response: web.StreamResponse, queue: Subscription) -> None:
    """Say how many messages a reader was too slow for: it can ask /alerts for what they have led to."""
    n, queue.n_lost = queue.n_lost, 0
    await write(response, b'event: lost\ndata: {"messages":%d}\n\n' % n)


async def write(response: web.StreamResponse, data: bytes) -> None:
    """A piece of a stream, to a reader that takes it.

    Raises:
        TimeoutError: it does not.
    """
    async with asyncio.timeout(EVENT_S):
        await response.write(data)


@contextlib.contextmanager
def counted(open_of: dict[str, int], tenant: str, most: int, told: str) -> Iterator[None]:
    """One more of a tenant's, as long as the block lasts.

    Raises:
        Denied: 429 where there are `most` already.
    """
    if open_of.get(tenant, 0) >= most:
        raise Denied(429, f"{most} {told}", retry_s=1)
    open_of[tenant] = open_of.get(tenant, 0) + 1
    try:
        yield
    finally:
        open_of[tenant] -= 1
        if not open_of[tenant]:
            del open_of[tenant]


def host_of(given: str) -> str:
    """Name in a ``Host`` header.

    Example:
        >>> host_of("localhost:6066"), host_of("[::1]:6066"), host_of("127.0.0.1")
        ('localhost', '::1', '127.0.0.1')
    """
    name = given[1:].partition("]")[0] if given[:1] == "[" else given.partition(":")[0]
    return name.lower()


PAST = ("as_of", "at")
"""Names of the moment whose state of a folded view is asked for. Where a view has an `at` of its own, that is the view's (common.md §8)."""


def past_of(request: web.Request, view: View | RawView) -> int | None:
    """The moment in the past that a request asks for, microseconds since the epoch; None = the present.

    Raises:
        BadParameter: it is no moment, or one that is still to come, or the view has no past.
    """
    own = parameters(view.params)
    given = [name for name in PAST if name in request.query and name not in own]
    if not given:
        return None
    name = given[0]
    if isinstance(view, RawView):
        raise BadParameter(name, "these are the events themselves, which have no earlier state; ask for those up to a time with until")
    if len(given) > 1 or len(request.query.getall(name)) > 1:
        raise BadParameter(name, "one moment is expected, as as_of" if "at" in own else "one moment is expected, as as_of or as at")
    at_us = bound(request.query[name], name)
    if at_us is None or at_us > time.time_ns() // 1000:
        raise BadParameter(name, "lies in the future; nothing is known of it yet")
    return at_us


@functools.cache
def parameters(params: type[msgspec.Struct]) -> dict[str, bool]:
    """Names of a view's parameters, and whether each may be given several times; msgspec finds them anew at every call, which costs more than most answers."""
    return {field.encode_name: "list" in str(field.type) or "tuple" in str(field.type) for field in msgspec.structs.fields(params)}


def convert(request: web.Request, params: type[msgspec.Struct], found: Mapping[str, str], ignored: Collection[str] = ()) -> Any:
    """Path and query parameters as a struct.

    Args:
        ignored: names in the query that are no parameters of the view's; what the struct declares is one nevertheless.

    Raises:
        BadParameter: naming the one that is unknown or malformed.
    """
    fields = parameters(params)
    values: dict[str, Any] = dict(found)
    for name in request.query:
        if name in ignored and name not in fields:
            continue
        if name not in fields or name in found:
            raise BadParameter(name, f"unknown parameter; known are {', '.join(fields) or 'none'}")
        if fields[name]:
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
