"""``pulsefold scan``: where on the topics and in the archive are bytes of a tenant? For who wants to see that an erasure is done.

A place is one of four: *live* (the last record of a key that a compacted topic has, or a row of the archive: what workers and queries read), *name* (live,
but the tenant's name alone, in the bookkeeping that a clearing needs), *waiting* (replaced or ended, and still on the log until the broker compacts it)
and *log* (a topic that keeps what came until its retention takes it). What is live makes the exit code 1, and so does a file in the archive's folder that
cannot be read, for nobody can tell what it holds. Nothing is written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from streams.errors import ConfigError, PulsefoldError
from streams.topics import SOURCE_TOPICS, changelog_name
from tables.partition import CLEARED, WATERMARK, Logged
from tables.rows import parse_wire_key

from .access import discover_partitions, folder_of, security
from .archive_files import NAME
from .past_log import Log

NAME_ONLY = (WATERMARK.name, CLEARED.name)
TRIES = 5
"""Looks at an archive whose files are being written again."""
_word = re.compile(r"[a-z0-9_.-]+")


class _Owner(msgspec.Struct):
    """Whose an event is."""

    tenant: str = "default"


_owner = msgspec.json.Decoder(_Owner).decode


@dataclass
class Found:
    """What there is in one place.

    Attributes:
        place: full name of a topic, or the archive's folder.
        live, name, waiting, log: records or rows of each sort.
        unread: files that cannot be read, such as broken ones that were put aside.
    """

    place: str
    live: int = 0
    name: int = 0
    waiting: int = 0
    log: int = 0
    unread: int = 0


@dataclass(frozen=True)
class Sought:
    """What is looked for.

    Attributes:
        tenant: by name, as the owner of an event, a row, an alert.
        texts: bytes anywhere, whoever owns them.
    """

    tenant: str
    texts: tuple[bytes, ...] = ()

    def in_record(self, record: Logged, changelog: bool) -> bool:
        """Whether the record is the tenant's, or holds one of the texts."""
        key, value = record.key or b"", record.value or b""
        if any(text in key or text in value or any(text in header for _, header in record.headers) for text in self.texts):
            return True
        if changelog:
            return self.of_row(key)[1] == self.tenant
        if key.partition(b"|")[0].decode("utf-8", "replace") == self.tenant:
            return True
        try:
            return bool(value) and _owner(value).tenant == self.tenant
        except (msgspec.MsgspecError, RecursionError):
            return f'"{self.tenant}"'.encode() in value

    @staticmethod
    def of_row(key: bytes) -> tuple[str, str]:
        """Table and tenant of a row's key."""
        try:
            table, tenant, _ = parse_wire_key(key)
        except (ValueError, IndexError):
            return "", ""
        return table.split(".")[0], tenant


def topics(settings: Any) -> Iterator[tuple[str, bool, bool]]:
    """(name without prefix, whether it is compacted, whether it is a changelog) of every topic of this app."""
    for topic in SOURCE_TOPICS:
        yield topic, False, False
    yield "dead-letters", False, False
    yield "alerts", True, False
    yield "scores", True, False
    for topic in SOURCE_TOPICS:
        yield changelog_name("", settings.get("app_id"), topic), True, True


def in_topic(log: Log, full: str, name: str, partitions: int, sought: Sought, *, compacted: bool, changelog: bool) -> Found:
    """What a topic holds."""
    found = Found(full)
    starts = log.starts({name: partitions})
    live: dict[tuple[int, bytes], bool] = {}
    for batch in log.records(name, {number: at for (_, number), at in starts.items()}):
        for number, records in batch.items():
            for record in records:
                hit = sought.in_record(record, changelog)
                if not compacted:
                    found.log += hit
                    continue
                place = number, record.key or b""
                if live.pop(place, None) is not None:
                    found.waiting += 1
                if hit and record.value is None:
                    found.waiting += 1  # the tombstone has the key
                elif hit:
                    bookkeeping = (
                        changelog and sought.of_row(place[1])[0] in NAME_ONLY and not any(text in place[1] + (record.value or b"") for text in sought.texts)
                    )
                    live[place] = bookkeeping
    found.name = sum(live.values())
    found.live = len(live) - found.name
    return found


def in_archive(folder: Path, sought: Sought) -> Found:
    """What the archive's files hold: rows of the tenant, and rows that hold a text in any column.

    Raises:
        PulsefoldError: a file of the archive cannot be read, or files are written again all the time.
    """
    database = duckdb.connect(":memory:")
    try:
        for _ in range(TRIES):
            try:
                return _in_files(database, folder, sought)
            except FileNotFoundError:
                time.sleep(0.2)  # it is there under another name by now: everything is looked at again
    finally:
        database.close()
    raise PulsefoldError(f"the files in {folder} are written again all the time; try again later")


def _in_files(database: duckdb.DuckDBPyConnection, folder: Path, sought: Sought) -> Found:
    """
    Raises:
        FileNotFoundError: one has gone meanwhile.
    """
    found = Found(str(folder))
    for file in _files(folder):
        named = NAME.fullmatch(file.name)
        try:
            n, noted = _in_rows(database, file, sought)
        except duckdb.Error as bad:
            content = file.read_bytes()
            if named is not None and not named[5]:
                raise PulsefoldError(f"{file} cannot be read: {str(bad).splitlines()[0]}") from None
            n, noted = 0, False
            try:
                n = in_text(content.decode(), sought)
            except ValueError:
                found.unread += 1
        found.live += n
        found.name += noted
    return found


def _files(folder: Path) -> list[Path]:
    """
    Raises:
        FileNotFoundError: one has gone meanwhile.
    """
    before: list[str] = []
    while (names := sorted(os.listdir(folder))) != before:  # what is replaced while names are read may be missed under both
        before = names
    return [path for path in map(folder.joinpath, names) if stat.S_ISREG(path.stat().st_mode)]


def _in_rows(database: duckdb.DuckDBPyConnection, file: Path, sought: Sought) -> tuple[int, bool]:
    """Rows of the tenant or with a text, and whether the notes of what was cleared have its name, in a file of the archive's columns."""
    # a row as one text: quotes in a list would be escaped
    row = "concat_ws(chr(10), *COLUMNS(* EXCLUDE (tags, frame, headers)), array_to_string(tags, chr(10)))"
    raw = "concat_ws('-', hex(frame), hex(headers))"
    n_texts = range(len(sought.texts))
    where = " OR ".join(["tenant = $tenant", *(f"contains({row}, $text{n}) OR contains({raw}, $hex{n})" for n in n_texts)])
    params = {"path": str(file), "tenant": sought.tenant, **{f"text{n}": text.decode("utf-8", "replace") for n, text in enumerate(sought.texts)}}
    params |= {f"hex{n}": text.hex().upper() for n, text in enumerate(sought.texts)}
    n = database.execute(f"SELECT count(*) FROM read_parquet($path) AS files WHERE {where}", params).fetchall()[0][0]  # noqa: S608 - bound
    asked = "SELECT decode(value) FROM parquet_kv_metadata($path) WHERE decode(key) = 'pulsefold'"
    notes = "".join(note for (note,) in database.execute(asked, {"path": str(file)}).fetchall())
    return n, f'"{sought.tenant}"' in notes


def in_text(content: str, sought: Sought) -> bool:
    """Whether a file of plain text names the tenant, or holds a text; a longer name that begins or ends like the tenant's is another one.

    Raises:
        ValueError: it is no plain text.

    Example:
        >>> [in_text(text, Sought("acme")) for text in ('{"tenant":"acme"}', "It was acme.", "acme2 x-acme acme.eu")]
        [True, True, False]
    """
    if not all(one.isprintable() or one.isspace() for one in content):
        raise ValueError("no plain text")
    if any(text.decode("utf-8", "replace") in content for text in sought.texts):
        return True
    if "\\" in content:  # what is escaped may touch the name
        return sought.tenant in content
    return any(word == sought.tenant or word.strip("_.-") == sought.tenant.strip("_.-") for word in _word.findall(content))


def look(settings: Any, sought: Sought) -> list[Found]:
    """Look through every topic and the archive.

    Raises:
        PulsefoldError: a broker or a file cannot be read.
    """
    from streams.admin import partition_counts

    _, theirs = security(settings)
    prefix, log = settings.get("topic_prefix"), Log(settings)
    every = list(topics(settings))
    counts = partition_counts(settings.get("bootstrap"), [prefix + name for name, _, _ in every], security=theirs)
    found = [in_topic(log, prefix + name, name, counts[prefix + name], sought, compacted=compacted, changelog=of) for name, compacted, of in every]
    _, identities, embedded = discover_partitions(settings, theirs)
    folder = folder_of(settings, identities) if settings.get("archive_dir") is not None or not embedded else None
    if folder is not None and folder.is_dir():
        found.append(in_archive(folder, sought))
    return found


def told(found: Sequence[Found], tenant: str) -> str:
    """The findings as text."""
    lines = [f"{'place':44} {'live':>8} {'name':>8} {'waiting':>8} {'log':>8}"]
    lines += [f"{one.place:44} {one.live:8} {one.name:8} {one.waiting:8} {one.log:8}" for one in found]
    n_live, n_rest = sum(one.live for one in found), sum(one.waiting + one.log for one in found)
    verdict = f"{n_live} records and rows of {tenant} are live" if n_live else f"nothing of {tenant} is live but its name in what notes the clearing"
    rest = f"; {n_rest} wait for compaction or retention (docs/guarantees.md, Erasure)" if n_rest else ""
    n_unread = sum(one.unread for one in found)
    unread = f"; {n_unread} files in the archive's folder cannot be read, so they may hold anything: remove them (*.broken ones were made again)"
    return "\n".join([*lines, verdict + rest + (unread if n_unread else "")])


def scan(flags: dict[str, Any]) -> int:
    """The command: 0 where nothing is live, 1 where something is or may be."""
    from .app import load_settings

    tenant, texts, as_json = flags.pop("tenant", None), flags.pop("text", ""), flags.pop("json", None) is not None
    if not tenant or tenant == "on":
        raise ConfigError("tenant", "expected whose bytes are looked for, as --tenant NAME")
    settings = load_settings(flags, flags.pop("config", None))
    found = look(settings, Sought(str(tenant), tuple(text.encode() for text in str(texts).split(",") if text)))
    if not any(one.place == str(settings.get("archive_dir")) for one in found) and len(found) == len(list(topics(settings))):
        print("pulsefold: no archive is on this machine; name its folder with --archive-dir", file=sys.stderr)
    print(json.dumps([asdict(one) for one in found]) if as_json else told(found, str(tenant)))
    return 1 if any(one.live or one.unread for one in found) else 0
