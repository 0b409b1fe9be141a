"""``pulsefold publish``: CloudEvents, one a line, onto the right topics."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from .. import admin
from ..codec import InvalidEvent
from ..errors import ConfigError
from .options import AsJson, Bootstrap, Config, TopicPrefix, security, settings_of
from .output import clean, err


def publish(
    file: Annotated[str, Parameter(allow_leading_hyphen=True, help="JSON lines; - = stdin")],
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    tenant: Annotated[str, Parameter(help="of events that name none")] = "default",
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Publish CloudEvents JSON lines onto the right topics, and count what was accepted and refused.

    A line without id gets one made from its content, so a file that is published twice changes nothing the second time.
    Exit code 1 if a line was refused or not acknowledged.
    """
    from ..publisher import SyncPublisher

    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    theirs = security(found)
    if file != "-" and not os.access(file, os.R_OK):  # told before a broker is waited for
        raise ConfigError(file, "cannot be read: there is no such file" if not os.path.exists(file) else "cannot be read")
    admin.partition_counts(found.get("bootstrap"), [found.get("topic_prefix") + "judgments"], security=theirs)
    refused: list[dict[str, Any]] = []
    accepted = 0
    with SyncPublisher(
        found.get("bootstrap"), prefix=found.get("topic_prefix"), tenant=tenant, source="pulsefold-publish", max_block_ms=60_000, config=theirs
    ) as publisher:
        for number, line in lines_of(file):
            if not line.strip():
                continue
            try:
                publisher.publish(prepare(line))
                accepted += 1
            except InvalidEvent as bad:
                refused.append({"line": number, "reason": bad.reason, "error": bad.error})
        publisher.flush(120)
        report = publisher.report()
    failed = report.accepted - report.delivered
    if as_json:
        print(json.dumps({"accepted": accepted, "delivered": report.delivered, "failed": failed, "refused": refused}))
    else:
        for one in refused:
            print(clean(f"line {one['line']}: {one['reason']}: {one['error']}"), file=sys.stderr)
        print(f"{report.delivered} accepted, {len(refused)} refused" + (f", {failed} not acknowledged ({report.errors})" if failed else ""))
    return 1 if refused or failed else 0


def prepare(line: bytes) -> dict[str, Any]:
    """A line as an envelope whose data stays as written (numbers keep their decimal text).

    Raises:
        InvalidEvent: not a JSON object, or something that only workers publish.
    """
    try:
        body = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        plain = {name: msgspec.json.decode(raw) for name, raw in body.items() if name != "data"}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidEvent("not_json", f"the line is no JSON object: {exc}") from None
    if plain.get("derivedfrom") is not None:
        raise InvalidEvent("refused", "derivedfrom: set by workers only", "derivedfrom")
    if str(plain.get("type", "")).startswith(("clock.", "alert.")):
        raise InvalidEvent("refused", f"type: {plain['type']} is published by workers only", "type")
    if plain.get("id") is None:
        plain["id"] = content_id(line)
    return {**plain, "data": body.get("data")}


def content_id(line: bytes) -> str:
    """An id made of what a line says, however it is spaced and in whichever order its fields come.

    Example:
        >>> content_id(b'{"a": 1, "b": 2}') == content_id(b'{"b":2,"a":1}')
        True
    """
    try:
        body = json.loads(line)
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # what Python's parser does not take: the codec will say why
        canonical = line.strip()
    return "c-" + hashlib.sha256(canonical).hexdigest()[:40]


def lines_of(file: str) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of a file, with a progress bar on a terminal."""
    try:
        size = Path(file).stat().st_size if file != "-" else None
        stream = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror}") from None
    shown = (TextColumn("publishing"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with stream, Progress(*shown, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("publishing", total=size)
        for number, line in enumerate(stream, 1):
            yield number, line
            bar.advance(task, len(line))
