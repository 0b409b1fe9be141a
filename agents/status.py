"""What a worker says of itself: /status, /metrics, /openapi.json."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from streams.derive import time_text
from streams.events import SOURCE_EVENTS, UPCASTS, ClockTicked, newest
from tables.fold import View
from tables.partition import CLEARED, COUNTERS, WATERMARK, Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from tables.rows import Row, Table

    from .core import Shard
    from .raw import RawView

NAMES = ("folded", "duplicate", "dead_lettered", "late", "expired", "overflow")


def counters(shard: Shard) -> Counters:
    """A partition's counters as this worker knows them."""
    row = shard.partition.spaces[COUNTERS.index].get("", {}).get(())
    return Counters() if row is None else COUNTERS.load(row)


def counts(shards: Iterable[Shard]) -> dict[str, Any]:
    """Sums over partitions; in = folded + duplicate + dead_lettered, always."""
    total: dict[str, Any] = dict.fromkeys(("in", *NAMES), 0)
    reasons: dict[str, int] = {}
    skipped: dict[str, int] = {}
    types: dict[str, int] = {}
    for shard in shards:
        state = counters(shard)
        for name in NAMES:
            total[name] += getattr(state, name)
        for mine, theirs in ((reasons, state.reasons), (skipped, state.skipped), (types, state.types)):
            for name, n in theirs.items():
                mine[name] = mine.get(name, 0) + n
    total["in"] = total["folded"] + total["duplicate"] + total["dead_lettered"]
    return {**total, "reasons": reasons, "skipped": skipped, "types": types}


def size(table: Table[Any], spaces: Iterable[Mapping[tuple[str, ...], Row]]) -> dict[str, int]:
    """Rows of a table, and their bytes, estimated from the first of each space."""
    filled = [space for space in spaces if space]
    keys = sum(map(len, filled))
    sample = [len(table.dump(row)) for space in filled for row in islice(space.values(), 20)]
    return {"keys": keys, "bytes": round(sum(sample) * keys / len(sample)) if sample else 0}


def status(engine: Any, settings: Any) -> dict[str, Any]:
    """Body of /status."""
    shards: Sequence[Shard] = list(engine.core.shards.values())
    partitions = []
    for shard in shards:
        one = counts([shard])
        partitions.append(
            {
                "topic": engine.config.prefix + shard.partition.topic,
                "partition": shard.partition.number,
                "owner": shard.owned,
                "ready": shard.ready,
                "absorbed": engine.absorbed(shard),
                "end": engine.ends.get(shard.name),
                "lag": engine.lag(shard),
                "committed": shard.committed,
                "safe": shard.safe,
                "stale_rows": shard.n_stale,
                "repaired_rows": shard.n_repaired,
                "refused_chunks": shard.n_refused,
                "gone_offsets": shard.n_gone,
                **{name: one[name] for name in ("in", *NAMES)},
            }
        )
    tables = []
    for table in engine.schema.tables:
        spaces = [space for shard in shards for space in shard.partition.spaces[table.index].values()]
        tables.append({"name": table.wire, **size(table, spaces)})
    since = {"since": time_text(int(engine.started_at * 1e6))}
    served = [shard.partition for shard in shards]
    figures = {name: {**mine, **since} for fold in engine.schema.folds for name, mine in fold.figures(served).items()}
    return {
        **figures,
        "app_id": engine.config.app_id,
        "outputs": {"publishes": engine.publishes, "recorded_app": engine.publisher},
        "ready": engine.ready,
        "rebuild": rebuild(engine),
        "uptime_s": round(time.time() - engine.started_at, 3),
        "restored_s": engine.restored_s,
        "counts": counts(shards),
        "partitions": partitions,
        "tables": tables,
        "lag": sum(p["lag"] for p in partitions),
        "engine": dict(engine.n),
        "alerts": {"messages": engine.board.n_messages, "open": sum(e.open for e in engine.board.entries.values())},
        "settings": [{"name": name, "value": value, "from": origin} for name, value, origin, _ in settings.describe()] if settings is not None else [],
    }


def rebuild(engine: Any) -> dict[str, Any] | None:
    """Tables that are built beside those that serve, or what the last one of this process came to; None where there was none."""
    return engine.rebuilt if engine.rebuild is None else engine.rebuild.progress()  # type: ignore[no-any-return]  # the engine is untyped here


def tenants_of(engine: Any) -> list[str]:
    """Tenants that have rows here, sorted; not one that was cleared and has sent nothing since."""
    found: set[str] = set()
    for shard in engine.core.shards.values():
        marks, cleared = (shard.partition.spaces[table.index] for table in (WATERMARK, CLEARED))
        for index, spaces in enumerate(shard.partition.spaces):
            if index not in (WATERMARK.index, CLEARED.index):
                found.update(tenant for tenant, rows in spaces.items() if rows)
        found.update(tenant for tenant, rows in marks.items() if rows and not cleared.get(tenant))
    return sorted(found - {""})


def tenant_status(engine: Any, tenant: str) -> dict[str, Any]:
    """What /status tells of one tenant: its own rows and alerts, and whether what it is told is up to date.

    Lag is that of partitions which tenants share: how busy the worker is, not with what. Counts, offsets, settings, and how large the tables
    are, are those of all tenants together, and not in here.
    """
    shards: Sequence[Shard] = list(engine.core.shards.values())
    tables = []
    for table in engine.schema.tables:
        spaces = [space for shard in shards if (space := shard.partition.spaces[table.index].get(tenant))]
        if spaces:
            tables.append({"name": table.name, **size(table, spaces)})
    newest: dict[str, str | None] = {}
    for topic, partitions in engine.partitions.items():
        marks = [WATERMARK.load(row).time_us for p in partitions if (row := p.spaces[WATERMARK.index].get(tenant, {}).get(())) is not None]
        newest[topic] = time_text(max(marks)) if marks else None
    return {
        "tenant": tenant,
        "app_id": engine.config.app_id,
        "ready": engine.ready,
        "rebuild": None
        if engine.rebuild is None
        else {name: value for name, value in engine.rebuild.progress().items() if name in ("state", "served_by", "seconds_left", "estimated_end")},
        "uptime_s": round(time.time() - engine.started_at, 3),
        "restored_s": engine.restored_s,
        "lag": sum(engine.lag(shard) for shard in shards),
        "newest": newest,
        "tables": tables,
        "alerts": {"messages": engine.board.told.get(tenant, 0), "open": engine.board.n_open(tenant)},
    }


class _Worker(Collector):
    def __init__(self, engine: Any, routes: Any) -> None:
        self.engine = engine
        self.routes = routes

    def collect(self) -> Iterable[Metric]:
        engine = self.engine
        shards = list(engine.core.shards.values())
        records = CounterMetricFamily("pulsefold_records", "Records absorbed, by outcome.", labels=["topic", "outcome"])
        lag = GaugeMetricFamily("pulsefold_lag_records", "Records on the log not yet absorbed here.", labels=["topic", "partition"])
        topics: dict[str, list[Shard]] = {}
        for shard in shards:
            topics.setdefault(shard.partition.topic, []).append(shard)
            lag.add_metric([shard.partition.topic, str(shard.partition.number)], engine.lag(shard))
        for topic, mine in topics.items():
            sums = counts(mine)
            for name in NAMES:
                records.add_metric([topic, name], sums[name])
        yield records
        letters = CounterMetricFamily("pulsefold_dead_letters", "Records that could not be absorbed.", labels=["topic", "reason"])
        for topic, mine in topics.items():
            for reason, n in counts(mine)["reasons"].items():
                letters.add_metric([topic, reason], n)
        yield letters
        yield lag
        keys = GaugeMetricFamily("pulsefold_table_keys", "Rows of a table over all partitions.", labels=["table"])
        for table in engine.schema.tables:
            keys.add_metric([table.name], sum(len(space) for s in shards for space in s.partition.spaces[table.index].values()))
        yield keys
        yield GaugeMetricFamily("pulsefold_ready", "1 once the tables are restored.", value=int(engine.ready))
        yield GaugeMetricFamily("pulsefold_owned_partitions", "Partitions this worker folds.", value=sum(s.owned for s in shards))
        undurable = sum(s.next - (s.safe or 0) for s in shards if s.ready)
        yield GaugeMetricFamily("pulsefold_undurable_records", "Records folded whose rows are not acknowledged yet.", value=undurable)
        yield CounterMetricFamily("pulsefold_stale_rows", "Rows appended after a newer one of their key.", value=sum(s.n_stale for s in shards))
        yield CounterMetricFamily("pulsefold_repaired_rows", "Rows written again for that.", value=sum(s.n_repaired for s in shards))
        yield CounterMetricFamily("pulsefold_refused_chunks", "Chunks that did not continue where folding stopped.", value=sum(s.n_refused for s in shards))
        yield CounterMetricFamily("pulsefold_gone_offsets", "Offsets that retention removed before they were folded.", value=sum(s.n_gone for s in shards))
        told = engine.rebuild.progress() if engine.rebuild is not None else {"folded": 0, "to_fold": 0}
        yield GaugeMetricFamily("pulsefold_rebuilding", "1 while tables are built beside those that serve.", value=int(engine.rebuild is not None))
        yield GaugeMetricFamily("pulsefold_rebuild_folded_records", "Records folded into the tables that are built.", value=told["folded"])
        yield GaugeMetricFamily("pulsefold_rebuild_records", "Records to fold into them.", value=told["to_fold"])
        failed = engine.rebuild is None and engine.rebuilt is not None and engine.rebuilt["state"] == "failed"
        yield GaugeMetricFamily("pulsefold_rebuild_failed", "1 after a build that could not be done; the former tables serve.", value=int(failed))
        for name, n in engine.n.items():
            yield CounterMetricFamily(f"pulsefold_engine_{name}", f"Engine: {name.replace('_', ' ')}.", value=n)
        yield CounterMetricFamily("pulsefold_alert_messages", "Alert messages read.", value=engine.board.n_messages)
        yield CounterMetricFamily("pulsefold_alert_messages_lost", "Alert messages that readers of streams were too slow for.", value=engine.board.n_lost)
        yield GaugeMetricFamily("pulsefold_open_alerts", "Alerts that stand.", value=sum(e.open for e in engine.board.entries.values()))
        archive = self.routes.archive.status()
        if archive["enabled"]:
            behind = "1 while the archive cannot be written or read; what it lacks is on the log."
            yield GaugeMetricFamily("pulsefold_archive_behind", behind, value=int(self.routes.archive.behind()))
            yield GaugeMetricFamily("pulsefold_archive_lag_records", "Records on the log that the archive has not read.", value=archive.get("lag", 0))
            yield GaugeMetricFamily("pulsefold_archive_tail_bytes", "Bytes of JSON that are read and in no file yet.", value=archive.get("tail_bytes", 0))
        requests = CounterMetricFamily("pulsefold_http_requests", "Requests answered.", labels=["route", "status"])
        for (route, code), n in self.routes.n_requests.items():
            requests.add_metric([route, str(code)], n)
        yield requests
        seconds = CounterMetricFamily("pulsefold_http_request_seconds", "Time spent answering.", labels=["route"])
        for route, spent in self.routes.seconds.items():
            seconds.add_metric([route], spent)
        yield seconds


def prometheus(engine: Any, routes: Any) -> bytes:
    """Body of /metrics."""
    registry = CollectorRegistry()
    registry.register(_Worker(engine, routes))
    return generate_latest(registry)


def openapi(views: Sequence[View | RawView]) -> dict[str, Any]:
    """OpenAPI 3.1 of the views and of POST /events."""
    paths: dict[str, Any] = {}
    error = {"description": "Problem details (RFC 9457)", "content": {"application/problem+json": {"schema": {"type": "object"}}}}
    bad = {code: error for code in ("400", "401", "403", "404", "429", "501", "503")}
    for view in views:
        properties = msgspec.json.schema_components([view.params])[1][view.params.__name__]["properties"]
        required = [field.encode_name for field in msgspec.structs.fields(view.params) if field.required]
        params = [
            {
                "name": name,
                "in": "path" if "{" + name + "}" in view.path else "query",
                "required": "{" + name + "}" in view.path or name in required,
                "schema": schema,
            }
            for name, schema in properties.items()
        ]
        if isinstance(view, View):
            about = "the answer as it was at this moment, folded from the archive"
            moment = {"in": "query", "required": False, "schema": {"type": "string", "format": "date-time"}, "description": about}
            params += [{"name": name, **moment} for name in ("as_of", "at") if name not in properties]
        ok: dict[str, Any] = {"description": view.summary, "content": {"application/json": {"schema": {"type": "object"}}}}
        if view.table if isinstance(view, View) else "csv" in view.formats:
            ok["content"]["text/csv"] = {"schema": {"type": "string"}}
        paths["/api/v1" + view.path] = {"get": {"summary": view.summary, "parameters": params, "responses": {"200": ok, **bad}}}
    plain = {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}, **bad}
    alert_params = [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in (("state", "string"), ("rule", "string"), ("since", "string"), ("limit", "integer"), ("cursor", "string"))
    ]
    paths["/api/v1/alerts"] = {"get": {"summary": "Alerts by their newest message", "parameters": alert_params, "responses": plain}}
    paths["/api/v1/status"] = {"get": {"summary": "Counts, lag, tables, settings", "responses": plain}}
    stream = {"200": {"description": "OK", "content": {"text/event-stream": {"schema": {"type": "string"}}}}, **bad}
    paths["/api/v1/alerts/stream"] = {"get": {"summary": "Server-sent events: every new alert message", "responses": stream}}
    paths["/api/v1/status/stream"] = {"get": {"summary": "Server-sent events: status when it changes, and every new alert message", "responses": stream}}
    types = sorted(data.TYPE for data in SOURCE_EVENTS if data is not ClockTicked)
    earlier = "; ".join(f"{data.TYPE} is taken as {newest(data).TYPE} says it" for data in UPCASTS)
    event = {
        "type": "object",
        "required": ["id", "type", "data"],
        "properties": {"type": {"type": "string", "enum": types, "description": f"with its version; {earlier}"}},
    }
    paths["/api/v1/events"] = {
        "post": {
            "summary": "One CloudEvent, or a batch",
            "requestBody": {
                "required": True,
                "content": {
                    "application/cloudevents+json": {"schema": event},
                    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": event}},
                },
            },
            "responses": {**plain, "408": error, "413": error, "415": error, "429": error, "503": error},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "pulsefold", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }
