"""``pulsefold export`` and ``pulsefold import``: what the tables know, as files.

The rules this file keeps: a file is written aside and renamed, so it is there whole or not at all; what is read from one is
checked whole before anything of it is published; and importing a file twice changes nothing, for an event's id is made from the
file's content and the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from msgspec import Meta

from .. import admin
from ..aside import aside
from ..codec import InvalidEvent, decode, encode
from ..errors import ConfigError, PulsefoldError
from ..events import Event, Moment, Positive, Series, TrustImported, Unit
from ..keys import encode_key
from .options import AsJson, Bootstrap, Config, OutFile, Tenant, Token, TopicPrefix, Url, security, settings_of
from .output import clean
from .query import ask, worker_url

TRUST_FORMAT = "pulsefold.trust.v1"
MOST_POINTS = 10_000
"""Points of a history that an event takes; of a longer one the last go in."""
ANSWER_S = 600.0
"""How long a worker may take to put a whole table together."""

Point = tuple[Moment | float, Unit]

_WITH_KIND = re.compile(r"[a-z_]{1,32}\|[^|]+\Z")


class Broken(Exception):
    """A file that cannot be taken, in one sentence."""


class Points(msgspec.Struct):
    """A history of any length as two lists."""

    times: list[Moment | float]
    values: list[Unit]


class TrustFile(msgspec.Struct):
    """A file of trust, also as the earlier trackers wrote it: keys without a kind, histories as pairs, no `format`."""

    stats: dict[str, tuple[Positive, Positive]]
    last_update: dict[str, Moment | float | None] = {}
    timestamps: dict[str, Points | list[Point] | None] = {}
    export_time: Annotated[float, Meta(ge=0)] | Moment | None = None
    format: str | None = None


# ---- out


def export_trust(
    file: OutFile,
    *,
    kind: Annotated[str | None, Parameter(help="only keys of this kind")] = None,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Write the trust of every key as it is at one moment, with its history, as JSON that `pulsefold import trust` takes."""
    found = table("/trust/export", kind, url, token, tenant, config)
    lag = found.pop("lag")
    put(file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if file == "-":
        return 0
    if as_json:
        print(json.dumps({"keys": len(found["stats"]), "as_of": found["as_of"], "lag": lag}))
    else:
        print(f"{len(found['stats'])} keys as of {found['as_of']}" + (f", {lag} events are not absorbed yet" if lag else ""))
    return 0


def table(path: str, kind: str | None, url: str | None, token: str | None, tenant: str | None, config: str | None) -> dict[str, Any]:
    """A whole table from a worker.

    Raises:
        PulsefoldError: nobody answers, or not yet with everything.
    """
    params = [] if kind is None else [("kind", kind)]
    found: dict[str, Any] = ask(worker_url(url, config), path, params, token or os.environ.get("PULSEFOLD_TOKEN"), tenant, timeout_s=ANSWER_S)
    if not found.pop("ready", True):
        raise PulsefoldError("the worker is still restoring its tables; ask again when /readyz says 200")
    return found


def put(file: str, text: str) -> None:
    """Text into a file, whole or not at all, or onto stdout.

    Raises:
        ConfigError: it cannot be written.
    """
    if file == "-":
        sys.stdout.write(text)
    else:
        write_aside(Path(file), text.encode())


def write_aside(path: Path, content: bytes) -> None:
    """Put a file in its place at once, so that a reader or a crash never meets half of one.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with aside(path) as out:
            out.write(content)
    except OSError as exc:
        raise ConfigError(str(path), f"cannot be written: {exc.strerror or exc}") from None


# ---- in


def import_trust(
    file: Annotated[str, Parameter(allow_leading_hyphen=True, help="JSON as `pulsefold export trust` writes it, or as the earlier trackers did; - = stdin")],
    *,
    kind: Annotated[str | None, Parameter(help="of keys that name none (default: variable)")] = None,
    again: Annotated[bool, Parameter(negative="", help="restore the file's state although it was imported before")] = False,
    replace_all: Annotated[bool, Parameter(negative="", help="also remove the keys that the file lacks (of a file without kinds: those of its kind)")] = False,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    tenant: Annotated[str, Parameter(help="whose trust")] = "default",
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Put keys in the state that a file has for them, history included; importing a file twice changes nothing.

    Exit code 1 if the file is broken (then nothing of it is published) or an event was not acknowledged.
    """
    from ..publisher import SyncPublisher

    raw = read(file)
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    now = datetime.now(UTC)
    try:
        body = parse(raw)
        named, of_kind = keys_of(body, kind)
        known: Iterable[str] = ()
        if replace_all:
            known = table("/trust/export", of_kind, url, token, tenant, config)["stats"]
        salt = now.isoformat() if again else None
        events = [*imports(body, named, raw, tenant, now, salt), *removals(sorted(set(known) - set(named.values())), raw, tenant, now, salt)]
    except Broken as broken:
        print(clean(f"pulsefold: {file}: {broken}; nothing of it was published"), file=sys.stderr)
        return 1
    theirs = security(found)
    admin.partition_counts(found.get("bootstrap"), [found.get("topic_prefix") + "judgments"], security=theirs)
    with SyncPublisher(
        found.get("bootstrap"), prefix=found.get("topic_prefix"), tenant=tenant, source="pulsefold-import", max_block_ms=60_000, config=theirs
    ) as publisher:
        for event in events:
            publisher.publish(event)
        publisher.flush(120)
        report = publisher.report()
    failed = report.accepted - report.delivered
    n_removed = len(events) - len(named)
    if as_json:
        print(json.dumps({"keys": len(named), "removed": n_removed, "delivered": report.delivered, "failed": failed}))
    else:
        print(f"{len(named)} keys, {n_removed} removed" + (f", {failed} not acknowledged ({report.errors})" if failed else ""))
    return 1 if failed else 0


def read(file: str) -> bytes:
    """Content of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror or exc}") from None


def parse(raw: bytes) -> TrustFile:
    """A file of trust.

    Raises:
        Broken: it is none.
    """
    try:
        body = msgspec.json.decode(raw, type=TrustFile)
    except msgspec.ValidationError as exc:
        raise Broken(f"is no file of trust: {str(exc)[:1].lower()}{str(exc)[1:]}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Broken(f"is no JSON: {exc}") from None
    if body.format not in (None, TRUST_FORMAT):
        raise Broken(f"format: expected {TRUST_FORMAT}, got {body.format}")
    for member in ("last_update", "timestamps"):
        for name in getattr(body, member):
            if name not in body.stats:
                raise Broken(f"{member}: {name} is not in stats")
    return body


def keys_of(body: TrustFile, kind: str | None) -> tuple[dict[str, str], str | None]:
    """The file's names -> keys (``kind|id``, encoded as record keys), and the kind if its names have none.

    Names have kinds where the file says its format, or where every one looks so and no kind was given.

    Raises:
        Broken: a name without a kind where there should be one.
    """
    if body.format is None and (kind is not None or not all(_WITH_KIND.match(name) for name in body.stats)):
        plain = kind or "variable"
        return {name: encode_key(plain, name).decode() for name in body.stats}, plain
    for name in body.stats:
        if not _WITH_KIND.match(name):
            raise Broken(f"stats: {name} is not kind|id")
    return {name: name for name in body.stats}, None


def imports(body: TrustFile, named: dict[str, str], raw: bytes, tenant: str, now: datetime, salt: str | None) -> list[Event]:
    """An event a key: its state as it was when the file was written.

    Args:
        salt: makes ids that no import before had; None = the same ids for the same file.

    Raises:
        Broken: a value that no event may have, naming its key.
    """
    digest = hashlib.sha256(raw).hexdigest()
    written = moment(body.export_time, now)
    events = []
    for name, (alpha, beta) in body.stats.items():
        kind, id = parts(named[name])
        points = body.timestamps.get(name)
        history: list[Point] | Series | None = None
        if isinstance(points, Points):
            if len(points.times) != len(points.values):
                raise Broken(f"timestamps: {name} has {len(points.times)} times and {len(points.values)} values")
            history = Series(times=points.times[-MOST_POINTS:], values=points.values[-MOST_POINTS:])
        elif points:
            history = points[-MOST_POINTS:]
        data = TrustImported(kind=kind, id=id, alpha=alpha, beta=beta, last_update=body.last_update.get(name), history=history)
        events.append(checked(name, data, event_id(digest, named[name], salt), tenant, written))
    return events


def removals(keys: Iterable[str], raw: bytes, tenant: str, now: datetime, salt: str | None) -> list[Event]:
    """An event a key that is to be as never seen."""
    digest = hashlib.sha256(raw).hexdigest()
    events = []
    for key in keys:
        kind, id = parts(key)
        events.append(checked(key, TrustImported(kind=kind, id=id, removed=True), event_id(digest, key, salt), tenant, now))
    return events


def event_id(digest: str, key: str, salt: str | None) -> str:
    """``imp-`` and 40 hex digits of what makes an import what it is.

    Args:
        digest: SHA-256 of the file.
        key: ``kind|id``, encoded.
    """
    text = "|".join((digest, key) if salt is None else (digest, key, salt))
    return "imp-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def parts(key: str) -> tuple[str, str]:
    """Kind and id of an encoded key."""
    kind, _, id = key.partition("|")
    return kind, id.replace("%7C", "|").replace("%25", "%")


def moment(written: float | datetime | None, now: datetime) -> datetime:
    """When a file was written, but never after now.

    Raises:
        Broken: no such moment.
    """
    if written is None:
        return now
    try:
        return min(now, written if isinstance(written, datetime) else datetime.fromtimestamp(round(written * 1e6) / 1e6, UTC))
    except (ValueError, OverflowError, OSError):
        raise Broken(f"export_time: {written} is no moment of unix time") from None


def checked(name: str, data: TrustImported, id: str, tenant: str, time: datetime) -> Event:
    """An event that a worker will take.

    Raises:
        Broken: it would not, naming the key and the field.
    """
    event = Event(id=id, data=data, tenant=tenant, time=time, source="pulsefold-import")
    try:
        decode(encode(event))
    except InvalidEvent as bad:
        raise Broken(f"{name}: {bad.error}") from None
    except (UnicodeEncodeError, ValueError) as bad:
        raise Broken(f"{name}: {bad}") from None
    return event
