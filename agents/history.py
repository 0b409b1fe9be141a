"""Where a history comes from: the archive of a worker, over HTTP, the log itself, or a file of CloudEvents; and the settings that are in force there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from streams.client import PAGE, Client
from streams.codec import InvalidEvent, decode
from streams.errors import ConfigError, PulsefoldError
from streams.keys import partition_for, record_key
from streams.settings import Settings, declare, load
from streams.topics import SOURCE_TOPICS
from tables.times import to_us

from .access import discover_partitions, security
from .backtest import Item, item
from .past_log import Log, is_of
from .registry import FOLD_SETTINGS, RULE_NAMES

STILL_S = 30.0
"""How long an archive that is behind the log may stand still before nobody waits for it any more."""


@dataclass
class History:
    """What was recorded.

    Attributes:
        items: in the order of their Kafka times.
        counts: source topic (without prefix) -> partitions.
        settings: those in force where it was recorded.
        refused: lines of a file that are no events.
        whole: it goes back to the first event.
    """

    items: list[Item]
    counts: dict[str, int]
    settings: Settings
    refused: int = 0
    whole: bool = True


class _Line(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    timestamp: datetime
    event: msgspec.Raw


_line = msgspec.json.Decoder(_Line).decode


def of_worker(url: str, tenant: str | None, told: Callable[[int], None], topics: tuple[str, ...] = SOURCE_TOPICS) -> History:
    """The history of the token's tenant in a worker's archive.

    Args:
        told: hears how many events came.

    Raises:
        PulsefoldError: the worker does not answer, or not with this.
    """
    client = Client(url, token=os.environ.get("PULSEFOLD_TOKEN"), tenant=tenant, timeout_s=120.0)
    try:
        status = client.status()
        whole = _read_up(client, topics)
        found: list[tuple[int, str, int, int, Item]] = []
        cursor: str | None = None
        while True:
            raw, headers = client.raw("/exports/log", "application/x-ndjson", topics=list(topics), limit=PAGE, cursor=cursor)
            lines = [_line(line) for line in raw.splitlines()]
            for line in lines:
                stamp_ms = to_us(line.timestamp) // 1000
                one = item((line.topic, line.partition), stamp_ms, bytes(line.event))
                if one is not None:
                    found.append((stamp_ms, line.topic, line.partition, line.offset, one))
            told(len(lines))
            cursor = headers.get("pulsefold-cursor")
            if not lines or cursor is None:
                break
    finally:
        client.close()
    found.sort(key=lambda one: one[:4])
    counts = dict.fromkeys(SOURCE_TOPICS, 1)
    counts.update(status["partition_counts"])
    return History([one[4] for one in found], counts, in_force(status["rules"]), whole=whole)


def _read_up(client: Client, topics: tuple[str, ...]) -> bool:
    """Wait until the archive has everything that is on the log; whether it goes back to the first event.

    Raises:
        PulsefoldError: it does not come any nearer to that.
    """
    least: int | None = None
    deadline = 0.0
    while True:
        first = client.event_log(list(topics), limit=1)
        behind = first.lag or 0
        if not behind:
            return bool(first["whole"])
        if least is None or behind < least:
            least, deadline = behind, time.monotonic() + STILL_S
        elif time.monotonic() > deadline:
            raise PulsefoldError(f"the archive has not read {behind} records that are on the log, and comes no nearer; --from-log folds the log itself")
        time.sleep(0.2)


def of_log(settings: Settings, tenant: str, told: Callable[[int], None], topics: tuple[str, ...] = SOURCE_TOPICS) -> History:
    """The history of a tenant on the log itself, as `pulsefold replay` reads it.

    Raises:
        PulsefoldError: Kafka cannot be reached, or has no such topics.
    """
    _, theirs = security(settings)
    counts, _, _ = discover_partitions(settings, theirs)
    log = Log(settings)
    begins = log.starts({topic: counts[topic] for topic in topics})
    found: list[tuple[int, str, int, int, Item]] = []
    refused = 0
    for topic in topics:
        for batches in log.records(topic, {number: begins[(topic, number)] for number in range(counts[topic])}):
            for number, batch in batches.items():
                told(len(batch))
                for record in batch:
                    if not is_of(tenant, record.value):
                        continue
                    try:
                        decode(record.value)
                    except InvalidEvent:
                        refused += 1
                        continue
                    one = item((topic, number), record.timestamp, record.value or b"")
                    if one is not None:
                        found.append((record.timestamp, topic, number, record.offset, one))
    found.sort(key=lambda one: one[:4])
    return History([one[4] for one in found], counts, settings, refused, whole=not any(begins.values()))


def in_force(described: list[dict[str, Any]]) -> Settings:
    """Settings as a worker's ``/status`` describes them; those that it does not know have their defaults."""
    declared = declare(FOLD_SETTINGS)
    settings = load({}, {}, os.devnull, FOLD_SETTINGS)
    for one in described:
        name = one["name"]
        if name in RULE_NAMES:
            try:
                settings.values[name] = msgspec.convert(one["value"], declared[name].type, strict=False)
            except msgspec.ValidationError:
                raise PulsefoldError(f"the worker's setting {name} means nothing here; use the same version as the worker's") from None
            settings.origins[name] = one["from"]
    return settings


def of_file(path: str, settings: Settings, tenant: str | None, told: Callable[[int], None]) -> History:
    """A file of CloudEvents, one a line, as if each had been recorded at its own time, though never before the line above.

    Args:
        tenant: whose events; None = everybody's.

    Raises:
        ConfigError: the file cannot be read, or holds no events.
    """
    count = settings.get("partitions")
    found: list[Item] = []
    stamp_ms = refused = n = 0
    try:
        with Path(path).open("rb") as lines:
            for n, raw in enumerate(lines, 1):
                value = raw.strip()
                if not value:
                    continue
                try:
                    event = decode(value)
                except InvalidEvent:
                    refused += 1
                    continue
                if tenant is not None and event.tenant != tenant:
                    continue
                if event.time is not None:
                    stamp_ms = max(stamp_ms, -(-to_us(event.time) // 1000))
                one = item((event.data.TOPIC, partition_for(record_key(event), count)), stamp_ms, value)
                if one is not None:
                    found.append(one)
                if n % 10_000 == 0:
                    told(10_000)
    except OSError as problem:
        raise ConfigError("file", f"{path} cannot be read: {problem.strerror or problem}") from None
    if n and refused == n:
        raise ConfigError("file", f"{path} holds no events: one CloudEvent a line is expected")
    return History(found, dict.fromkeys(SOURCE_TOPICS, count), settings, refused)
