"""Wiring: settings -> Faust app with engine, folds, views, rules and ticks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faust.types import TP
from mode import Service

from streams.derive import event_bytes
from streams.errors import ConfigError
from streams.keys import derived_id, encode_key
from streams.settings import Settings, load, roles, unknown_variables
from streams.topics import SOURCE_TOPICS, changelog_name
from tables.fold import Scored
from tables.partition import Partition, Schema
from tables.trust import ScheduledDecay, Trust

from . import seam
from .access import folder_of, security
from .archive import Archive
from .aside import publishing_app
from .auth import TokenFile, Tokens
from .bare import Bare
from .cleared import ClearedAlerts
from .clock import Clock
from .engine import Engine, EngineConfig
from .http import Routes
from .letters import LetterRate
from .limits import LOOPBACK, tls
from .lists import TendLists
from .pulse import Pulse
from .registry import FOLD_SETTINGS, schema_of
from .rules import Rules
from .scores import Scores
from .standings import Standings
from .tombstones import Tombstones

STATIC = Path(__file__).parent / "static"
PAGES = {
    "/": ("text/html; charset=utf-8", "index.html"),
    "/app.js": ("text/javascript; charset=utf-8", "app.js"),
    "/parts.js": ("text/javascript; charset=utf-8", "parts.js"),
    "/draw.js": ("text/javascript; charset=utf-8", "draw.js"),
    "/icon.svg": ("image/svg+xml", "icon.svg"),
    "/style.css": ("text/css; charset=utf-8", "style.css"),
}


def load_settings(flags: dict[str, Any] | None = None, toml: str | None = None) -> Settings:
    """Flags, environment, pulsefold.toml, defaults.

    Raises:
        ConfigError: a value is unusable, or a name is no setting's; of a variable, where it is nearly one's.
    """
    settings = load(flags or {}, os.environ, toml, FOLD_SETTINGS)
    unknown_variables(os.environ, settings.declared)
    return settings


class Ticks(Service):  # type: ignore[misc]  # mode is untyped here
    """Publishes the scheduled trust decay (trust.md §3): the worker that owns partition 0 of judgments, one command a tick.

    The id is made of the tick's number and the fold passes over a tick that acted before, so neither two workers nor a restart
    give a second decay. Whoever begins to serve the partition publishes a tick that its last owner did not live to publish.
    """

    def __init__(self, engine: Engine, trust: Trust, tenants: Callable[[], Sequence[str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.schedules: dict[str, ScheduledDecay] = {}
        self.use(trust)
        self.tenants = tenants

    def use(self, trust: Trust) -> None:
        """Go by this fold's schedules from now on."""
        self.trust = trust
        self.schedules = {kind: plan for kind, plan in trust.settings.trust_scheduled_decay.items() if plan is not None}

    @Service.task
    async def _tick(self) -> None:
        last = {kind: int(time.time() // plan.every_s) for kind, plan in self.schedules.items()}
        served = False
        while not self.should_stop:
            await self.sleep(min([1.0, *(plan.every_s / 4 for plan in self.schedules.values())]))
            shard = self.engine.core.shards.get(("judgments", 0))
            partition = shard.partition if shard is not None and shard.ready and self.engine.publishes else None
            begins, served = partition is not None and not served, partition is not None
            for kind, plan in self.schedules.items():
                number = int(time.time() // plan.every_s)
                passed, last[kind] = number > last.get(kind, number), number
                if partition is not None and (passed or begins):
                    await self._publish(partition, kind, plan, number, passed)

    async def _publish(self, partition: Partition, kind: str, plan: ScheduledDecay, number: int, passed: bool) -> None:
        """Publish a tick to the tenants where it has not acted; where none ever acted, only one that has just passed."""
        time_us = int(number * plan.every_s * 1e6)
        for tenant in self.tenants():
            acted_us = self.trust.last_tick_us(partition, tenant, kind)
            if (not passed) if acted_us is None else acted_us >= time_us:
                continue
            name = derived_id("judgments", tenant, f"decay-{number}", "trust.decayed.v1", kind or "all")
            data: dict[str, Any] = {"factor": plan.factor, "min_count": plan.min_count}
            if kind:
                data["kind"] = kind
            source = f"pulsefold/{self.engine.config.app_id}"
            value = event_bytes(type="trust.decayed.v1", id=name, source=source, time_us=time_us, tenant=tenant, data=data)
            await self.engine.send(self.engine.full_names["judgments"], value, key=encode_key(tenant), partition=0)


def trust_of(schema: Schema) -> Trust:
    """The fold of trust."""
    return next(fold for fold in schema.folds if isinstance(fold, Trust))


def check_settings(settings: Settings) -> Tokens:
    """The configured tokens, after what can be checked without a broker.

    Raises:
        ConfigError: a setting is unusable.
    """
    file = settings.get("tokens_file")
    try:
        tokens = Tokens(settings.get("tokens") or {}) if file is None else TokenFile(settings.get("tokens") or {}, file)
    except ValueError as bad:
        name, _, said = str(bad).partition(": ")
        raise ConfigError(name, said) from None
    host = settings.get("web_host")
    tls(settings)
    if not tokens and host not in LOOPBACK:
        raise ConfigError("web_host", f"{host} is not loopback; configure tokens before serving it")
    if settings.get("dedupe_window") % 64:
        raise ConfigError("dedupe_window", "expected a multiple of 64")
    return tokens


def build(settings: Settings) -> seam.App:
    """The Faust app, not yet started.

    Raises:
        ConfigError: a setting is unusable.
    """
    seam.register()
    bootstrap, prefix, app_id = settings.get("bootstrap"), settings.get("topic_prefix"), settings.get("app_id")
    ours, _ = security(settings)
    tokens = check_settings(settings)
    host = settings.get("web_host")
    folds = "fold" in roles(settings.get("roles"))
    app = seam.App(
        app_id,
        broker=f"chunk://{bootstrap}",
        broker_credentials=seam.credentials(ours),
        topic_allow_declare=False,
        topic_disable_leader=True,
        value_serializer="raw",
        key_serializer="raw",
        stream_wait_empty=False,
        stream_buffer_maxsize=4,
        stream_recovery_delay=0.0,
        broker_max_poll_records=8192,
        consumer_max_fetch_size=1 << 20,
        broker_session_timeout=float(settings.get("session_timeout_s")),
        broker_heartbeat_interval=float(settings.get("heartbeat_s")),
        broker_rebalance_timeout=20.0,
        broker_request_timeout=30.0,  # longer than a rebalance, which is a request too; who has no answer by then asks over a new connection
        broker_commit_interval=1.0,
        broker_max_poll_interval=300.0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.get("instance_id"),
        TableManager=seam.Tables,
        web_host=host,
        web_bind=host,
        web_port=settings.get("web_port"),
        web_cors_options=None,
        web_ssl_context=tls(settings),
        datadir=settings.get("data_dir") or str(Path(tempfile.gettempdir()) / f"pulsefold-{app_id}"),
    )
    app.kafka_security = ours
    app.without_faust_pages()
    config = EngineConfig(
        bootstrap=bootstrap,
        prefix=prefix,
        changelogs={topic: changelog_name(prefix, app_id, topic) for topic in SOURCE_TOPICS},
        app_id=app_id,
        flush_max_s=settings.get("flush_max_ms") / 1000,
        watchdog_s=settings.get("watchdog_s"),
        shutdown_s=settings.get("shutdown_s"),
        publishes=folds and settings.get("outputs") == "on",
        folds=folds,
        rebuild=settings.get("rebuild"),
        archive=lambda identities, embedded: None if embedded and settings.get("archive_dir") is None else folder_of(settings, identities),
        security=ours,
    )

    tables = schema_of(settings)
    engine = app.engine = Engine(app, config, tables)
    if folds and settings.get("outputs") != "off":
        engine.elect = lambda: publishing_app(settings)
    pages = {path: (kind, (STATIC / name).read_bytes()) for path, (kind, name) in PAGES.items() if (STATIC / name).exists()}
    archive = Archive(settings)
    routes = (Routes if "serve" in roles(settings.get("roles")) else Bare)(engine, tokens, settings, pages, archive)
    app.install_routes = routes.install
    app.routes = routes
    rules = Rules(engine, [rule for fold in tables.folds for rule in fold.rules], routes.reader, settings.get("alert_interval_s"))

    def scored(schema: Schema) -> list[Scored]:
        return [one for fold in schema.folds for one in fold.scored] if settings.get("publish_scores") else []

    scores = Scores(engine, scored(tables), routes.reader, settings.get("topic_prefix") + "scores")
    engine.on_schema.append(lambda schema: scores.use(scored(schema)))
    ticks = Ticks(engine, trust_of(tables), lambda: sorted({t for p in engine.partitions.get("judgments", ()) for space in p.spaces for t in space if t}))
    engine.on_schema.append(lambda schema: ticks.use(trust_of(schema)))
    for table in tables.tables:
        app.tables.add(seam.Rows(app, name=table.wire, help=f"rows of {table.name}, rank {table.rank}"))

    async def fold(stream: Any) -> None:
        """Fold source events into rows."""
        async for event in stream.events():
            try:
                engine.absorb(event.message.tp, event.message.value)
            except Exception as bug:  # Faust would start the agent again, over rows that are half changed
                await engine.crash(bug)

    for name, topic in engine.full_names.items():  # one each, so that `faust agents` can name its topic
        app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"), concurrency=1, name=f"fold-{name}")(fold)

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]  # faust is untyped here
    async def _assigned(app: Any, assigned: Any, **kwargs: Any) -> None:
        await engine.gained(assigned)

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]  # faust is untyped here
    async def _revoked(app: Any, revoked: Any, **kwargs: Any) -> None:
        await engine.lost(revoked)

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]  # faust is untyped here
    async def _bye(app: Any, **kwargs: Any) -> None:
        await engine.lost([TP(engine.full_names[t], n) for (t, n), shard in engine.core.shards.items() if shard.owned])

    if folds:
        engine.add_dependency(
            Pulse(
                {"bootstrap_servers": bootstrap, **ours},
                app_id,
                lambda: app.consumer._thread.member(),
                session_s=settings.get("session_timeout_s"),
                heartbeat_s=settings.get("heartbeat_s"),
                longest_s=settings.get("watchdog_s"),
            )
        )
    engine.add_dependency(rules)
    engine.add_dependency(scores)
    engine.add_dependency(ticks)
    engine.add_dependency(ClearedAlerts(engine, rules))
    engine.add_dependency(Standings(engine, rules))
    engine.add_dependency(archive)
    engine.add_dependency(TendLists(routes))
    engine.add_dependency(Tombstones(engine, min(60.0, 12 * settings.get("alert_interval_s"))))
    limit = settings.get("dead_letters_per_minute")
    if limit is not None:
        engine.add_dependency(LetterRate(engine, rules, limit, settings.get("dead_letters_tenant")))
    if settings.get("clock_ticks") == "on":
        engine.add_dependency(Clock(engine, settings.get("clock_silence_s")))
    return app
