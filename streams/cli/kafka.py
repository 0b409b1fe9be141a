"""The commands that speak to Kafka itself: broker, topics, alerts."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from .. import admin
from ..settings import Settings
from .options import AppId, AsJson, Bootstrap, Config, Partitions, TopicPrefix, security, settings_of
from .output import clean


def broker(*, partitions: Partitions = None, topic_prefix: TopicPrefix = None, app_id: AppId = None, config: Config = None) -> int:
    """The embedded broker alone, until Ctrl-C. The first line of stdout is HOST:PORT. It keeps nothing."""
    from ..broker import EmbeddedBroker

    found = settings_of(config, partitions=partitions, topic_prefix=topic_prefix, app_id=app_id)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with EmbeddedBroker(partitions=found.get("partitions"), prefix=found.get("topic_prefix"), app_ids=(found.get("app_id"),)) as running:
        print(running.bootstrap, flush=True)
        print("embedded broker: memory only, nothing is kept after Ctrl-C", file=sys.stderr, flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


def create(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    app_id: AppId = None,
    partitions: Partitions = None,
    replication: Annotated[int | None, Parameter(help="copies of each topic that the brokers keep")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Create every topic that is missing, then verify all; exit 2 if one differs from what is needed."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix, app_id=app_id, partitions=partitions, replication=replication)
    created, present = admin.create_topics(found, security=security(found))
    if as_json:
        return _check(found, {"created": created, "present": present})
    for name in created:
        print(f"created  {name}")
    for name in present:
        print(f"present  {name}")
    return _check(found)


def check(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    app_id: AppId = None,
    partitions: Partitions = None,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Verify every topic; exit 2 if one differs from what is needed."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix, app_id=app_id, partitions=partitions)
    return _check(found, {} if as_json else None)


def _check(found: Settings, body: dict[str, Any] | None = None) -> int:
    """Print problems, one a line, or with what was done as JSON."""
    problems = admin.check_topics(found, security=security(found))
    if body is not None:
        print(json.dumps({**body, "problems": problems}))
    else:
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            print("all topics are as needed")
    return 2 if problems else 0


def tail(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    tenant: Annotated[str | None, Parameter(help="whose alerts (default: everybody's)")] = None,
    since: Annotated[Literal["latest", "earliest"], Parameter(help="earliest begins with the alerts on the topic")] = "latest",
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Print alerts as they come, until Ctrl-C."""
    from ..subscriber import AlertSubscriber

    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)

    async def follow() -> None:
        async with AlertSubscriber(found.get("bootstrap"), prefix=found.get("topic_prefix"), tenant=tenant, since=since, config=security(found)) as source:
            async for alert in source:
                data = alert.data
                line = f"{alert.time}  {alert.type.split('.')[1]:9} {data.severity:8} {data.rule:18} {alert.tenant}  {data.message}"
                print(json.dumps(msgspec.to_builtins(alert)) if as_json else clean(line), flush=True)

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        return 0
    return 0
