"""Answers to raw queries, made by the archivist: metrics, cost events, training data, exports.

A reply is ``{"status": 200, "body": ..., "count": rows, "cursor": ...}`` with the body as JSON bytes, or in the format asked
for; or a status with `detail`, and `parameter` where one is to blame.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, cast

import msgspec
import orjson
from msgspec import Meta

from streams.events import CostIncurred, CostRefunded, MetricRecorded
from streams.topics import SOURCE_TOPICS
from tables.anonymise import Anonymiser
from tables.fold import BadParameter, NotFound
from tables.money import MICRO, micro_usd, priced
from tables.times import rfc3339
from tables.variable_exports import contributions, memory_update

from .archive_read import LOG, NEWEST, OLDEST, Asked, Order, Row, Snapshot, Store, TooLong, read
from .csv_text import Column
from .raw_formats import render

Params = Mapping[str, Any]
Reply = dict[str, Any]

METRIC_COLUMNS: tuple[Column, ...] = (
    ("id", "VARCHAR"), ("time", "TIMESTAMP"), ("metric_type", "VARCHAR"), ("model", "VARCHAR"), ("run", "VARCHAR"), ("value", "DOUBLE"),
    ("values", "VARCHAR"), ("tags", "VARCHAR"), ("epoch", "DOUBLE"), ("step", "DOUBLE"), ("cost_micro_usd", "BIGINT"), ("api_calls", "BIGINT"),
    ("token_usage", "BIGINT"),
)  # fmt: skip
COST_COLUMNS: tuple[Column, ...] = (
    ("id", "VARCHAR"), ("time", "TIMESTAMP"), ("type", "VARCHAR"), ("cost_micro_usd", "BIGINT"), ("estimated", "BOOLEAN"), ("api_calls", "BIGINT"),
    ("token_usage", "BIGINT"), ("model", "VARCHAR"), ("run", "VARCHAR"), ("agent", "VARCHAR"), ("tags", "VARCHAR"), ("refers_to", "VARCHAR"),
    ("derivedfrom", "VARCHAR"),
)  # fmt: skip
EVENT_COLUMNS: tuple[Column, ...] = (
    ("id", "VARCHAR"), ("type", "VARCHAR"), ("time", "TIMESTAMP"), ("tenant", "VARCHAR"), ("source", "VARCHAR"), ("derivedfrom", "VARCHAR"),
    ("data", "VARCHAR"),
)  # fmt: skip
ENVELOPE = ("id", "type", "source", "derivedfrom", "tenant", "time_given", "data")
METRIC_FIELDS = frozenset(MetricRecorded.__struct_fields__)

_metric = msgspec.json.Decoder(MetricRecorded).decode
_incurred = msgspec.json.Decoder(CostIncurred).decode
_refunded = msgspec.json.Decoder(CostRefunded).decode


class Refusal(Exception):
    """The request is not answered: status and one sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def answer(store: Store, settings: Any, op: str, tenant: str, params: Params) -> Reply:
    """Answer one request."""
    try:
        return OPERATIONS[op](store, settings, tenant, params)
    except NotFound as missing:
        return {"status": 404, "detail": str(missing)}
    except BadParameter as bad:
        return {"status": 400, "detail": f"{bad.parameter}: {bad}", "parameter": bad.parameter}
    except Refusal as refused:
        return {"status": refused.status, "detail": str(refused)}
    except TooLong:
        return {"status": 503, "detail": "the archive took too long; ask for less, such as a shorter time from since to until"}


# ---- cursors


def cursor_of(*place: Any) -> str:
    """An opaque cursor."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


Moment = Annotated[int, Meta(ge=-(2**61), le=2**61)]
Offset = Annotated[int, Meta(ge=0, le=2**61)]
Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]


def place_of(cursor: str, kind: str, types: type[Any]) -> Any:
    """What a cursor of this kind says.

    Raises:
        BadParameter: it is none of ours.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        found = msgspec.msgpack.decode(raw, type=types)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise BadParameter("cursor", "the cursor is not of this list; start again without it") from None
    if found[0] != kind:
        raise BadParameter("cursor", "the cursor is not of this list; start again without it")
    return found[1:]


def _after_newest(asked: Asked, cursor: str | None) -> Asked:
    """From where a page of a newest-first list goes on."""
    if cursor is None:
        return asked
    time_us, offset, partition = place_of(cursor, "newest", tuple[str, Moment, Offset, Number])
    until = time_us + 1 if asked.until_us is None else min(asked.until_us, time_us + 1)
    where = '(epoch_us(time), "offset", partition) < ($after_us, $after_offset, $after_partition)'
    params = {**asked.params, "after_us": time_us, "after_partition": partition, "after_offset": offset}
    return _with(asked, where=[*asked.where, where], params=params, until_us=until)


def _after_oldest(asked: Asked, cursor: str | None) -> Asked:
    """From where a page of an oldest-first list goes on."""
    if cursor is None:
        return asked
    time_us, topic, partition, offset = place_of(cursor, "oldest", tuple[str, Moment, str, Number, Offset])
    since = time_us if asked.since_us is None else max(asked.since_us, time_us)
    where = '(epoch_us(time), topic, partition, "offset") > ($after_us, $after_topic, $after_partition, $after_offset)'
    params = {**asked.params, "after_us": time_us, "after_topic": topic, "after_partition": partition, "after_offset": offset}
    return _with(asked, where=[*asked.where, where], params=params, since_us=since)


def _with(asked: Asked, **changed: Any) -> Asked:
    from dataclasses import replace

    return replace(asked, **changed)


def _page(store: Store, asked: Asked, order: Order, limit: int, next_of: Callable[[Row], str]) -> tuple[list[Row], str | None]:
    rows = read(store, asked, order, limit + 1)
    return rows[:limit], next_of(rows[limit - 1]) if len(rows) > limit else None


# ---- metrics


def conditions_of(conditions: Sequence[Sequence[Any]]) -> tuple[list[str], dict[str, Any]]:
    """What `tables.metric_query` says of a filter, in SQL: every path and value a parameter.

    Args:
        conditions: (dotted path, scalar) that an event's data must have, all of them.

    Example:
        >>> conditions_of([("note.lab", "b")])[1]
        {'path_0_0': '/note.lab', 'path_0_1': '/note/lab', 'is_0': 'b'}
    """
    where: list[str] = []
    params: dict[str, Any] = {}
    for n, (name, value) in enumerate(conditions):
        ways = []
        for m, pointer in enumerate(pointers(name)):
            path = f"$path_{n}_{m}"
            params[f"path_{n}_{m}"] = pointer
            kind, found = f"TRY(json_type(data, {path}))", f"TRY(json_extract_string(data, {path}))"
            if value is None:
                ways.append(f"{kind} = 'NULL'")
            elif isinstance(value, bool):
                ways.append(f"{kind} = 'BOOLEAN' AND {found} = $is_{n}")
            elif isinstance(value, str):
                ways.append(f"{kind} = 'VARCHAR' AND {found} = $is_{n}")
            else:
                ways.append(f"{kind} IN ('BIGINT', 'UBIGINT', 'DOUBLE', 'HUGEINT') AND TRY_CAST({found} AS DOUBLE) = $is_{n}")
        if value is not None:
            params[f"is_{n}"] = ("true" if value else "false") if isinstance(value, bool) else value if isinstance(value, str) else float(value)
        where.append("coalesce(" + " OR ".join(f"({way})" for way in ways) + ", false)")
    return where, params


def pointers(name: str) -> list[str]:
    """JSON pointers that a dotted name may mean: a field's own name may have dots.

    Example:
        >>> pointers("a.b/c")
        ['/a.b~1c', '/a/b~1c']
    """
    first, *rest = (part.replace("~", "~0").replace("/", "~1") for part in name.split("."))
    found = ["/" + first]
    for part in rest:
        found = [begin + join + part for join in (".", "/") for begin in found]
    return found


def _metrics(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    where: list[str] = ["type = $type"]
    bound: dict[str, Any] = {"type": MetricRecorded.TYPE}
    for name, column in (("types", "metric_type"), ("models", "model"), ("runs", "run"), ("ids", "metric_id")):
        if params.get(name):
            where.append(f"list_contains(${name}, {column})")
            bound[name] = params[name]
    if params.get("tags"):
        where.append("list_has_any($tags, tags)")
        bound["tags"] = params["tags"]
    found, values = conditions_of(params.get("conditions", ()))
    since = params.get("since_us")
    columns = ["metric_id", "time_given", "data"]
    asked = Asked(tenant, ["training"], columns, [*where, *found], {**bound, **values}, since, params.get("until_us"))
    rows, cursor = _page(store, _after_newest(asked, params.get("cursor")), NEWEST, params["limit"], _newest_place)
    head = {} if since is None else {"since": rfc3339(since)}
    return render(params["format"], "metrics", [metric_of(row) for row in rows], METRIC_COLUMNS, {**head, "count": len(rows), "cursor": cursor})


def _newest_place(row: Row) -> str:
    return cursor_of("newest", row[0], row[3], row[2])


def metric_of(row: Row) -> dict[str, Any]:
    """A metric as it is answered."""
    time_us, _, _, _, id, given, data = row
    metric = _metric(data)
    found: dict[str, Any] = {
        "id": id, "time": rfc3339(time_us), "time_given": given, "metric_type": metric.metric_type, "model": metric.model, "run": metric.run,
        "value": metric.value, "values": metric.values, "tags": metric.tags, "epoch": metric.epoch, "step": metric.step, "cost_usd": None,
        "cost_micro_usd": None, "api_calls": metric.api_calls, "token_usage": metric.token_usage,
    }  # fmt: skip
    if metric.cost is not None:
        found["cost_micro_usd"] = micro = micro_usd(metric.cost)
        found["cost_usd"] = micro / MICRO
    other = {name: value for name, value in cast("dict[str, Any]", msgspec.json.decode(data)).items() if name not in METRIC_FIELDS}
    if other:
        found["other"] = other
    return found


def _metric_by_id(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    columns = ["metric_id", "time_given", "data"]
    asked = Asked(tenant, ["training"], columns, ["type = $type", "metric_id = $id"], {"type": MetricRecorded.TYPE, "id": params["id"]})
    rows = read(store, asked, OLDEST, 10_000)
    if not rows:
        raise NotFound(f"there is no metric {params['id']}")
    return {"status": 200, "body": orjson.dumps({**metric_of(rows[0]), "versions": len(rows)}), "kind": "application/json"}


# ---- costs


def _cost_events(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    where = ["list_contains($types, type)"]
    bound: dict[str, Any] = {"types": [CostIncurred.TYPE, CostRefunded.TYPE]}
    kind, _, name = params["scope"].partition(":")
    if kind == "tag":
        where.append("list_contains(tags, $name)")
        bound["name"] = name
    elif kind != "tenant":
        where.append({"model": "model = $name", "run": "run = $name", "agent": "agent = $name"}[kind])
        bound["name"] = name
    asked = Asked(tenant, ["costs"], ["id", "type", "derivedfrom", "data"], where, bound, params.get("since_us"), params.get("until_us"))
    rows, cursor = _page(store, _after_newest(asked, params.get("cursor")), NEWEST, params["limit"], _newest_place)
    prices = Decimal(settings.get("usd_per_token")), Decimal(settings.get("usd_per_call"))
    events = [_cost_of(row, prices) for row in rows]
    return render(params["format"], "events", events, COST_COLUMNS, {"scope": params["scope"], "count": len(rows), "cursor": cursor})


def _cost_of(row: Row, prices: tuple[Decimal, Decimal]) -> dict[str, Any]:
    """A cost or refund event as it is answered; what it counts for is what the ledger took."""
    time_us, _, _, _, id, type_, derivedfrom, data = row
    if type_ == CostRefunded.TYPE:
        refund = _refunded(data)
        micro, estimated, calls, tokens, refers = micro_usd(refund.cost), False, 0, 0, refund.refers_to
        event: CostIncurred | CostRefunded = refund
    else:
        event = cost = _incurred(data)
        calls, tokens, refers, estimated = cost.api_calls, cost.token_usage, None, cost.cost is None
        micro = micro_usd(cost.cost) if cost.cost is not None else priced(tokens, prices[0]) if tokens else priced(calls, prices[1])
    return {
        "id": id, "time": rfc3339(time_us), "type": type_, "cost_usd": micro / MICRO, "cost_micro_usd": micro, "estimated": estimated, "api_calls": calls,
        "token_usage": tokens, "model": event.model, "run": event.run, "agent": event.agent, "tags": list(event.tags), "refers_to": refers,
        "derivedfrom": derivedfrom,
    }  # fmt: skip


# ---- events as they came


def envelope_of(row: Row) -> dict[str, Any]:
    """An event as a CloudEvent; its data is as it came."""
    time_us, _, _, _, id, type_, source, derivedfrom, tenant, given, data = row
    found: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source or "", "type": type_}
    if given:
        found["time"] = rfc3339(time_us)
    found["tenant"] = tenant
    if derivedfrom is not None:
        found["derivedfrom"] = derivedfrom
    found["data"] = data
    return found


def _types(names: Sequence[str] | None, allowed: Callable[[str], bool] = lambda name: True) -> list[str] | None:
    """Event types as they are on the wire, given with or without their version."""
    if not names:
        return None
    from streams.events import EVENT_TYPES

    found = []
    for name in names:
        versions = [known for known in EVENT_TYPES if (known == name or known.rpartition(".v")[0] == name) and allowed(known)]
        if not versions:
            raise BadParameter("types", f"{name} is no type of these events")
        found += versions
    return found


TRAINING_TOPICS = ("judgments", "training")
_OF_TRAINING = ("rl_metrics.recorded.v1", "rl_metrics.recorded.v2")


def _is_training_type(name: str) -> bool:
    from streams.events import EVENT_TYPES

    return EVENT_TYPES[name].topic == "judgments" or name in _OF_TRAINING


def _training(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    anonymiser = anonymiser_of(settings, tenant, params.get("anonymise"))
    types = _types(params.get("types"), _is_training_type)
    where = [f"(topic = 'judgments' OR type IN {_OF_TRAINING})"]
    bound: dict[str, Any] = {}
    if types is not None:
        where.append("list_contains($types, type)")
        bound["types"] = types
    asked = Asked(tenant, TRAINING_TOPICS, ENVELOPE, where, bound, params.get("since_us"), params.get("until_us"))
    limit, cursor = params["limit"], params.get("cursor")
    if params["order"] == "log":
        rows, cursor = _by_log(store, asked, limit, cursor)
    else:
        rows, cursor = _page(store, _after_oldest(asked, cursor), OLDEST, limit, lambda row: cursor_of("oldest", *row[:4]))
    events = []
    for row in rows:
        event = envelope_of(row)
        if anonymiser is not None:
            event["data"] = msgspec.json.decode(event["data"])
            event = anonymiser.envelope(event)
        events.append(event)
    head = {"count": len(rows), "cursor": cursor, "order": params["order"], "anonymised": anonymiser is not None}
    return render(params["format"], "events", events, EVENT_COLUMNS, head)


def anonymiser_of(settings: Any, tenant: str, asked: bool | None) -> Anonymiser | None:
    """What replaces names, or None where they stay.

    Raises:
        Refusal: 409 asked for without a key, 403 refused off.
    """
    key = settings.get("anonymise_key")
    if asked is False and settings.get("anonymise_required"):
        raise Refusal(403, "anonymise: this service never gives names away (anonymise_required)")
    if asked is False or (asked is None and key is None and not settings.get("anonymise_required")):
        return None
    if key is None:
        raise Refusal(409, "anonymise: no key is configured; set anonymise_key")
    return Anonymiser(key, tenant, settings.get("anonymise_keep"))


def _by_log(store: Store, asked: Asked, limit: int, cursor: str | None) -> tuple[list[Row], str]:
    """A page in the order of the log; its cursor says for every partition where to go on, for ever."""
    snapshots: dict[str, Snapshot] = {topic: store.snapshot(topic) for topic in asked.topics}
    starts = {topic: [0] * len(at.ends) for topic, at in snapshots.items()}
    if cursor is not None:
        (told,) = place_of(cursor, "log", tuple[str, dict[str, list[Offset]]])
        for topic, offsets in told.items():
            if topic not in starts or len(offsets) != len(starts[topic]):
                raise BadParameter("cursor", "the cursor is not of this list; start again without it")
            starts[topic] = offsets
    found = read(store, _with(asked, starts=starts), LOG, limit, snapshots=snapshots)
    following = {topic: [max(start, end) for start, end in zip(starts[topic], at.ends, strict=True)] for topic, at in snapshots.items()}
    if len(found) == limit:
        _, topic, partition, offset = found[-1][:4]
        for name in asked.topics:
            for number in range(len(following[name])):
                if (name, number) == (topic, partition):
                    following[name][number] = offset + 1
                elif (name, number) > (topic, partition):
                    following[name][number] = starts[name][number]
    return found, cursor_of("log", following)


def _lines(make: Callable[[Row], list[bytes]], type_: str) -> Callable[[Store, Any, str, Params], Reply]:
    """An export of JSON lines, in the order of the log."""

    def export(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
        asked = Asked(tenant, ["forecasts"], ENVELOPE, ["type = $type"], {"type": type_}, params.get("since_us"), params.get("until_us"))
        rows, cursor = _by_log(store, asked, params["limit"], params.get("cursor"))
        lines = [line for row in rows for line in make(row)]
        if params["format"] == "json":
            body = b'{"lines":[' + b",".join(lines) + b'],"n_events":%d,"cursor":' % len(rows) + orjson.dumps(cursor) + b"}"
            return {"status": 200, "body": body, "kind": "application/json"}
        return {"status": 200, "body": b"".join(line + b"\n" for line in lines), "kind": "application/x-ndjson", "cursor": cursor, "count": len(rows)}

    return export


def _log(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    """Events as they came, each with its place: what a fold needs."""
    if settings.get("anonymise_required"):
        raise Refusal(403, "anonymise_required: this service never gives names away, and a log without them cannot be folded")
    topics = sorted(set(params.get("topics") or SOURCE_TOPICS))
    asked = Asked(tenant, topics, (*ENVELOPE, "epoch_us(timestamp)"), ["NOT duplicate"], whole=True)
    rows, cursor = _by_log(store, asked, params["limit"], params.get("cursor"))
    lines = []
    for row in rows:
        event = envelope_of(row[:-1])
        event["data"] = orjson.Fragment(event["data"])
        lines.append(orjson.dumps({"topic": row[1], "partition": row[2], "offset": row[3], "timestamp": rfc3339(row[-1]), "event": event}))
    if params["format"] == "json":
        body = (
            b'{"records":['
            + b",".join(lines)
            + b'],"count":%d,"whole":%s,"cursor":' % (len(rows), b"false" if any(store.lacks(topic, tenant) for topic in topics) else b"true")
            + orjson.dumps(cursor)
            + b"}"
        )
        return {"status": 200, "body": body, "kind": "application/json"}
    return {"status": 200, "body": b"".join(line + b"\n" for line in lines), "kind": "application/x-ndjson", "cursor": cursor, "count": len(rows)}


def _event_of(row: Row) -> Any:
    from streams.codec import decode

    envelope = envelope_of(row)
    return decode(orjson.dumps({**envelope, "data": orjson.Fragment(envelope["data"])}))


def _contribution_lines(row: Row) -> list[bytes]:
    return contributions(_event_of(row), row[0])


def _memory_lines(row: Row) -> list[bytes]:
    line = memory_update(_event_of(row), row[0])
    return [] if line is None else [line]


def _sql(store: Store, settings: Any, tenant: str, params: Params) -> Reply:
    from . import sandbox

    columns, rows, more = sandbox.run(store, tenant, params["query"], params["limit"])
    head = {"columns": columns, "count": len(rows), "truncated": more}
    return render(params["format"], "rows", rows, [(column["name"], "VARCHAR") for column in columns], head)


Format = Literal["json", "csv", "parquet", "ndjson"]
OPERATIONS: dict[str, Callable[[Store, Any, str, Params], Reply]] = {
    "metrics": _metrics,
    "metric": _metric_by_id,
    "sql": _sql,
    "cost_events": _cost_events,
    "training": _training,
    "log": _log,
    "contributions": _lines(_contribution_lines, "forecast.issued.v1"),
    "learning_log": _lines(_memory_lines, "variable.performance_updated.v1"),
}
