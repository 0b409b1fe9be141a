"""Raw queries over HTTP: what the archivist answers, with parameters checked here and formats chosen by ``Accept``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta

from streams.topics import SOURCE_TOPICS
from tables import metric_query
from tables.fold import BadParameter, Reader, View, names
from tables.times import rfc3339
from tables.window_views import bound

from . import csv_text

Limit = Annotated[int, Meta(ge=1, le=10_000)]
Scope = Annotated[str, Meta(pattern=r"(?s)^(tenant|(model|run|agent|tag):.+)$", max_length=280)]
FORMATS = {
    "application/json": "json", "text/csv": "csv", "application/vnd.apache.parquet": "parquet", "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
}  # fmt: skip


class MetricsParams(metric_query.MetricsParams, frozen=True, kw_only=True):
    """Parameters of ``/metrics``; `ids`: any of these metric ids."""

    ids: list[str] = msgspec.field(default_factory=list)


class MetricParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/metrics/{id}``."""

    id: str


class CostEventsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/costs/events``."""

    scope: Scope = "tenant"
    since: str | None = None
    until: str | None = None
    limit: Limit = 100
    cursor: str | None = None


class TrainingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/performance/training-data``.

    Attributes:
        types: event types, with or without their version.
        order: ``time``, or ``log``, whose cursor can be kept and asked again for ever.
        anonymise: pseudonyms for names; by default as the service is configured.
    """

    since: str | None = None
    until: str | None = None
    types: list[str] = []
    order: Literal["time", "log"] = "time"
    anonymise: bool | None = None
    limit: Limit = 100
    cursor: str | None = None


class LinesParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/exports/contributions`` and ``/exports/learning-log``: a page of events in the order of the log."""

    since: str | None = None
    until: str | None = None
    limit: Limit = 1000
    cursor: str | None = None


class LogParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/exports/log``: a page of every event in the order of the log, of some topics or of all.

    Without a cursor what is on the log is read first, for 5 seconds at most; `lag` says how many of these records are not read yet.
    """

    topics: list[Literal["forecasts", "training", "costs", "judgments"]] = []
    limit: Limit = 1000
    cursor: str | None = None


class SqlParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``/sql``: one SELECT over the view ``events``."""

    query: str
    limit: Limit = 1000


@dataclass(frozen=True)
class RawView:
    """A view that the archive answers.

    Attributes:
        op: what the archivist is asked for.
        formats: that it can be had in, beside JSON.
    """

    path: str
    params: type[msgspec.Struct]
    topics: tuple[str, ...]
    summary: str
    op: str
    formats: tuple[str, ...] = ()
    prepare: Callable[[Any, Reader], dict[str, Any]] = lambda params, reader: _plain(params)
    """From checked parameters to what the archivist is asked."""


def _plain(params: msgspec.Struct) -> dict[str, Any]:
    """Parameters as they are, times as moments."""
    asked: dict[str, Any] = msgspec.to_builtins(params)
    since, until = bound(asked.pop("since", None), "since"), bound(asked.pop("until", None), "until", end=True)
    if since is not None and until is not None and since >= until:
        raise BadParameter("since", "since must be before until")
    return {**asked, "since_us": since, "until_us": until}


def _metrics(params: MetricsParams, reader: Reader) -> dict[str, Any]:
    """A query of metrics, checked; a filter looks back from the tenant's newest metric, not from the clock, so it finds what was imported."""
    newest = max(reader.watermarks("training").values(), default=reader.now_us)
    found = metric_query.query(msgspec.structs.replace(params, cursor=None), min(newest, reader.now_us))
    return {
        **{name: sorted(getattr(found, name)) for name in ("types", "models", "tags", "runs")},
        "ids": names(params.ids),
        "since_us": found.since_us,
        "until_us": found.until_us,
        "conditions": list(found.conditions),
        "limit": found.limit,
        "cursor": params.cursor,
    }


def _recent(params: metric_query.RecentParams, reader: Reader) -> dict[str, Any]:
    found = metric_query.recent(params)
    return {"types": sorted(found.types), "limit": found.limit}


TABLE = ("csv", "parquet", "ndjson")
RAW_VIEWS: tuple[RawView, ...] = (
    RawView("/metrics", MetricsParams, ("training",), "Metrics as they were recorded, newest first", "metrics", TABLE, _metrics),
    RawView("/metrics/recent", metric_query.RecentParams, ("training",), "The newest metrics of some types", "metrics", TABLE, _recent),
    RawView("/metrics/{id}", MetricParams, ("training",), "One metric by its id", "metric"),
    RawView("/costs/events", CostEventsParams, ("costs",), "Costs and refunds as they were told, newest first", "cost_events", TABLE),
    RawView("/performance/training-data", TrainingParams, ("judgments", "training"), "Events of agents, tasks and judgments, to learn from", "training", TABLE),
    RawView("/exports/contributions", LinesParams, ("forecasts",), "What each forecast contributed to each variable", "contributions", ("ndjson",)),
    RawView("/exports/learning-log", LinesParams, ("forecasts",), "Performance updates as lines of a learning log", "learning_log", ("ndjson",)),
    RawView("/exports/log", LogParams, SOURCE_TOPICS, "Every event with its place on the log and its Kafka time, to fold again", "log", ("ndjson",)),
    RawView("/sql", SqlParams, SOURCE_TOPICS, "One SELECT over the tenant's own events", "sql", ("csv", "ndjson")),
)


class Answers(Protocol):
    """The archive, as far as it is asked here."""

    enabled: bool

    async def ask(self, op: str, tenant: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A reply: ``{"status": …}`` and what belongs to it."""
        ...


Problem = Callable[..., web.Response]


async def past_answer(
    archive: Answers, view: View, tenant: str, params: msgspec.Struct, at_us: int, headers: Mapping[str, str], problem: Problem, kind: str = "json"
) -> web.Response:
    """Answer a folded view as it stood at a moment (`agents.past`).

    Args:
        at_us: Kafka time, microseconds.
        kind: json, or csv where the view is a table.
    """
    if not archive.enabled:
        return problem(501, "as_of: the past is not kept here: the archive is off (setting roles)")
    reply = await archive.ask("past", tenant, {"view": view.path, "params": msgspec.to_builtins(params), "at_us": at_us})
    headers = {**headers, "Pulsefold-As-Of": rfc3339(at_us)}
    if kind == "csv" and reply["status"] == 200:
        return table_answer(msgspec.json.decode(reply["body"]), headers)
    return response({**reply, "lag": None}, headers, problem)


def table_answer(body: Mapping[str, Any], headers: Mapping[str, str]) -> web.Response:
    """A folded view's `rows` as CSV, under its `columns`."""
    text = csv_text.as_csv(body["rows"], [(name, "VARCHAR") for name in body["columns"]])
    more = {} if body["cursor"] is None else {"Pulsefold-Cursor": str(body["cursor"])}
    return web.Response(body=text, headers={**headers, **more, "Pulsefold-Count": str(len(body["rows"])), "Content-Type": csv_text.KIND})


async def raw_answer(
    archive: Answers, request: web.Request, view: RawView, reader: Reader, params: msgspec.Struct, headers: Mapping[str, str], problem: Problem
) -> web.Response:
    """Answer a raw view.

    Args:
        reader: of the tenant's tables.
        headers: of every answer.
        problem: makes an RFC 9457 response of a status and a sentence.
    """
    if not archive.enabled:
        return problem(501, "raw events are not kept here: the archive is off (setting roles)")
    asked = {**view.prepare(params, reader), "format": wanted(request.headers.get("Accept"), view.formats)}
    reply = await archive.ask(view.op, reader.tenant, asked)
    return response(reply, headers, problem)


def response(reply: Mapping[str, Any], headers: Mapping[str, str], problem: Problem) -> web.Response:
    """A reply of the archivist as a response."""
    if reply["status"] != 200:
        members = {**reply.get("members", {}), **({"parameter": reply["parameter"]} if "parameter" in reply else {})}
        return problem(reply["status"], reply["detail"], **members)
    body, kind = reply["body"], reply["kind"]
    if kind == "application/json" and body[:1] == b"{" and reply.get("lag", 0) is not None:
        body = body[:-1] + b',"lag":%d}' % reply.get("lag", 0)
    extra = {name: str(reply[key]) for name, key in (("Pulsefold-Cursor", "cursor"), ("Pulsefold-Count", "count")) if reply.get(key) is not None}
    return web.Response(body=body, headers={**headers, **extra, "Content-Type": kind})


def wanted(accept: str | None, formats: tuple[str, ...]) -> str:
    """Format that an ``Accept`` header asks for: the most wanted one that there is, else JSON.

    Example:
        >>> wanted("text/csv;q=0.5, application/vnd.apache.parquet", ("csv", "parquet")), wanted("text/html", ("csv",)), wanted(None, ())
        ('parquet', 'json', 'json')
    """
    best, found = 0.0, "json"
    for part in (accept or "").split(","):
        kind, *words = (word.strip() for word in part.split(";"))
        name = FORMATS.get(kind.lower())
        quality = 1.0
        for word in words:
            if word.startswith("q="):
                try:
                    quality = float(word[2:])
                except ValueError:
                    quality = 0.0
        if name is not None and (name == "json" or name in formats) and quality > best:
            best, found = quality, name
    return found
