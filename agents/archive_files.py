"""The archive's folder: which files there are, what is in each, and how they are written, taken over and rewritten.

The rules this file keeps:
  * a file is written aside, synced and renamed, so it is there whole or not at all;
  * its name says all of it (topic, partition, first and last offset), and a range is written again with the same rows;
  * of one range the file that reaches furthest counts, whoever wrote it;
  * a file that was replaced goes when nobody reads it any more;
  * a file that cannot be read is put aside under another name, told, and made again from the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from streams.aside import aside

from .archive_rows import NAMES, TABLE

log = logging.getLogger("pulsefold.archive")

CHUNK = 50_000
"""Offsets a file."""
ROW_GROUP = 16_384
READ_S = 60.0
"""Longest time that an archiver may go on to read a file that was replaced."""
MOST_TENANTS = 2_000
"""Tenants that a file's own description lists; of more it says only that there are many."""
NAME = re.compile(r"([a-z]+)-(\d+)-(\d+)-(\d+)\.parquet(\.broken)?")
LOG = "log.json"
VERSION = 2
STOOD_IN = ("not_json", "unknown_type", "invalid_field", "too_large")
"""Why a record is no event, whatever the settings; another record of which that is true can stand in its place."""

Place = tuple[str, int]
"""Topic without prefix, partition."""


class Unusable(Exception):
    """The folder cannot be used as it is; the text says why and what to do."""


@dataclass(frozen=True)
class Piece:
    """One file.

    Attributes:
        first, last: offsets that it covers, inclusive; also those at which there is no row.
        min_us, max_us: event times of its rows, microseconds; None where it has none.
        stamp_us: greatest Kafka timestamp of its rows, microseconds.
        tenants: tenant -> (rows, least, greatest event time); None = too many to list.
        cleared: tenant -> offset up to which (inclusive) that tenant's rows of the partition are to go.
        cleared_us: tenant -> Kafka timestamp of the record that cleared it, microseconds, where it is known.
        past: tenant -> rows of the range that went because they were past their time.
        json_bytes: of the records' values in it.
        removed: rows that were there and went, for whatever reason.
        missing: ranges of offsets (from, up to and without) that were never read: the log no longer had them.
        unkept: rows of which too little is kept to fold them again: events of the future.
    """

    topic: str
    partition: int
    first: int
    last: int
    path: str
    rows: int
    bytes: int
    json_bytes: int
    min_us: int | None
    max_us: int | None
    stamp_us: int | None
    tenants: Mapping[str, tuple[int, int, int]] | None
    cleared: Mapping[str, int] = field(default_factory=dict)
    past: Mapping[str, int] = field(default_factory=dict)
    cleared_us: Mapping[str, int] = field(default_factory=dict)
    removed: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    unkept: int = 0

    def may_have(self, tenant: str) -> bool:
        """Whether it can hold rows of the tenant."""
        return self.tenants is None or tenant in self.tenants

    def span(self, tenant: str) -> tuple[int, int]:
        """Least and greatest event time that a row of the tenant can have."""
        if self.tenants is not None and tenant in self.tenants:
            _, low, high = self.tenants[tenant]
            return low, high
        return (2**62, -(2**62)) if self.min_us is None or self.max_us is None else (self.min_us, self.max_us)


class Folder:
    """Files of the archive.

    Args:
        path: made if it is not there.
        database: in which the files are read and written; cursors of it may be used in any thread.
        chunk: offsets a file.
        identities: topic -> 32 bits of its Kafka topic id, 0 where the broker has none.
        prefix: of the topics.

    Attributes:
        retired: files that were replaced -> the first age whose readers cannot know them; None = they still can. For the one who writes; who looks
            for files again has to be kept from it meanwhile.
    """

    def __init__(self, path: Path, database: duckdb.DuckDBPyConnection, *, prefix: str, identities: Mapping[str, int], chunk: int = CHUNK) -> None:
        self.path = path
        self.database = database
        self.chunk = chunk
        self.identities = dict(identities)
        self.prefix = prefix
        self.pieces: dict[Place, dict[int, Piece]] = {}
        self.broken: list[str] = []
        self.again: dict[Place, set[int]] = {}
        self.lock = threading.Lock()
        self.retired: dict[str, int | None] = {}
        self._age = 0
        self._readers: Counter[int] = Counter()

    # ---- what is there

    def open(self) -> None:
        """Find the files.

        Raises:
            OSError: the folder cannot be made, read or written.
            Unusable: it is the archive of another log.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._same_log()
        for stray in self.path.glob(".*.tmp"):
            if _older(stray, 3600):  # another archiver may be writing a newer one now
                stray.unlink(missing_ok=True)
        self.scan()
        with contextlib.suppress(OSError):  # it is tried again
            self.sweep()

    def _same_log(self) -> None:
        about = self.path / LOG
        mine = {"version": VERSION, "topic_prefix": self.prefix, "chunk": self.chunk, "topics": self.identities}
        try:
            found = json.loads(about.read_text())
        except FileNotFoundError:
            write_aside(about, json.dumps(mine, indent=1, sort_keys=True).encode())
            return
        except ValueError:
            raise Unusable(f"{about} cannot be read as JSON; put the folder right or set archive_dir to another one") from None
        if isinstance(found, dict) and found.get("version") != VERSION and {**found, "version": VERSION} == mine:
            raise Unusable(f"{self.path} was written by another version, in another form; move it away, or set archive_dir to another folder")
        if found != mine:
            raise Unusable(f"{self.path} is the archive of another log ({about} differs); set archive_dir to another folder, or move this one away")

    def scan(self, place: Place | None = None) -> None:
        """Look what files there are, of one partition or of all, and take each range's furthest."""
        furthest: dict[tuple[str, int, int], tuple[int, str]] = {}
        for path, (topic, partition), first, last, broken in self._files():
            if broken:
                self.again.setdefault((topic, partition), set()).add(first)
                continue
            if place is not None and (topic, partition) != place:
                continue
            key = (topic, partition, first)
            if key not in furthest or last > furthest[key][0]:
                furthest[key] = last, path
        known = {piece.path: piece for ranges in self.pieces.values() for piece in ranges.values()}
        described = self._described([path for _, path in furthest.values() if path not in known])
        found: dict[Place, dict[int, Piece]] = {}
        for (topic, partition, first), (last, path) in furthest.items():
            piece = known.get(path)
            if piece is None:
                about = described.get(path)
                if about is None:
                    self._put_aside(path)
                    continue
                piece = Piece(topic, partition, first, last, path, bytes=os.stat(path).st_size, **about)
            found.setdefault((topic, partition), {})[first] = piece
        with self.lock:
            if place is None:
                self.pieces = found
            else:
                self.pieces = {**self.pieces, place: found.get(place, {})}

    def _files(self) -> list[tuple[str, Place, int, int, bool]]:
        """Path, partition, first and last offset of every file that was not replaced, and whether it was put aside as broken."""
        named = [(entry.path, NAME.fullmatch(entry.name)) for entry in os.scandir(self.path)]
        return [(path, (m[1], int(m[2])), int(m[3]), int(m[4]), bool(m[5])) for path, m in named if m is not None and path not in self.retired]

    def _described(self, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What files say of themselves; one that cannot be read is missing."""
        found: dict[str, dict[str, Any]] = {}
        for begin in range(0, len(paths), 500):
            part = list(paths[begin : begin + 500])
            try:
                found.update(self._describe(part))
            except duckdb.Error:
                for path in part:
                    try:
                        found.update(self._describe([path]))
                    except duckdb.Error as bad:
                        log.error("archive: %s cannot be read: %s", path, str(bad).splitlines()[0])
        return found

    def _describe(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        asked = "SELECT file_name, decode(value) FROM parquet_kv_metadata($paths) WHERE decode(key) = 'pulsefold'"
        rows = self.database.cursor().execute(asked, {"paths": paths}).fetchall()
        return {path: _about(json.loads(text)) for path, text in rows}

    def _put_aside(self, path: str) -> None:
        """Keep a broken file under another name; its range is made again from the log."""
        if not os.path.exists(path):
            return  # another archiver has replaced it meanwhile
        os.replace(path, path + ".broken")
        self.broken.append(os.path.basename(path))
        named = NAME.fullmatch(os.path.basename(path))
        assert named is not None
        self.again.setdefault((named[1], int(named[2])), set()).add(int(named[3]))
        log.error("archive: %s is broken; it is kept as %s.broken and its range is written again from the log", path, path)

    def resume(self, place: Place, log_start: int = 0) -> int:
        """Offset from which on the partition is not archived.

        Args:
            log_start: first offset that the broker still has; what is missing before it stays missing.
        """
        ranges = self.pieces.get(place, {})
        at = max(min([*ranges, *self.again.get(place, ())], default=0), log_start)
        while True:
            piece = ranges.get(at // self.chunk * self.chunk)
            if piece is None or piece.last < at:
                return at
            at = piece.last + 1

    def of(self, topic: str) -> list[Piece]:
        """Files of a topic."""
        with self.lock:
            return [piece for place, ranges in self.pieces.items() if place[0] == topic for piece in ranges.values()]

    def all(self) -> list[Piece]:
        """Every file."""
        with self.lock:
            return [piece for ranges in self.pieces.values() for piece in ranges.values()]

    def cleared(self, topic: str, tenant: str) -> dict[int, int]:
        """Partition -> offset up to which (inclusive) the tenant's rows are gone or to go."""
        found: dict[int, int] = {}
        for piece in self.of(topic):
            if tenant in piece.cleared:
                found[piece.partition] = max(found.get(piece.partition, -1), piece.cleared[tenant])
        return found

    # ---- what was replaced

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Files that are known at the beginning, or become known meanwhile, stay until the end, unless another archiver replaces them. For any thread."""
        with self.lock:
            age = self._age
            self._readers[age] += 1
        try:
            yield
        finally:
            with self.lock:
                self._readers[age] -= 1
                if not self._readers[age]:
                    del self._readers[age]

    def forget(self) -> None:
        """Delete the files that were replaced and that nobody reads any more. Called when everybody who begins to read knows the new ones.

        Raises:
            OSError: some could not be deleted; they are tried again.
        """
        with self.lock:
            self._age += 1
            for path, age in self.retired.items():
                if age is None:
                    self.retired[path] = self._age
            oldest = min(self._readers, default=self._age)
            gone = [path for path, age in self.retired.items() if age is not None and age <= oldest]
        self._delete(gone)

    def _delete(self, paths: Iterable[str]) -> None:
        failed: OSError | None = None
        for path in list(paths):
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as problem:
                failed = problem
            else:
                del self.retired[path]
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Nobody reads any more: delete everything that was replaced.

        Raises:
            OSError: as `forget`.
        """
        self._delete(self.retired)

    def sweep(self) -> None:
        """Delete what an archiver replaced that was ended before it could delete it.

        Raises:
            OSError: something could not be looked at or deleted.
        """
        known = {piece.path for piece in self.all()}
        for path, place, first, last, broken in self._files():
            if not broken and path not in known:
                newer = self.pieces.get(place, {}).get(first)
                if newer is not None and newer.last > last and _older(Path(newer.path), READ_S):
                    Path(path).unlink(missing_ok=True)

    # ---- writing

    def write(
        self, place: Place, first: int, last: int, table: str, cleared: Mapping[str, int], since: int = 0, passed: Iterable[tuple[int, int]] = ()
    ) -> Piece:
        """Write a range: what its file holds so far, and the rows of a table that follow.

        Args:
            first: a multiple of `chunk`.
            last: greatest offset that is covered.
            table: holds every row of the partition from the end of the file up to `last`.
            cleared: of the new rows, as in `Batch`.
            since: offset from which on the table has them; the log no longer had what is between that and the end of the file.
            passed: ranges of offsets (from, up to and without) that it no longer had later on.

        Raises:
            OSError, duckdb.Error: it could not be written; nothing has changed.
        """
        topic, partition = place
        old = self.pieces.get(place, {}).get(first)
        if old is None or old.last < last:
            self.scan(place)  # perhaps another archiver was faster
            old = self.pieces.get(place, {}).get(first)
        if old is not None and old.last >= last:
            return old
        begin = first if old is None else old.last + 1
        rows = f'SELECT {NAMES} FROM {table} WHERE partition = $partition AND "offset" BETWEEN $begin AND $last'
        parts = [rows] if old is None else [f"SELECT {NAMES} FROM read_parquet($old)", rows]
        params: dict[str, Any] = {"partition": partition, "begin": begin, "last": last} | ({} if old is None else {"old": [old.path]})
        gone = dict(old.cleared) if old is not None else {}
        for tenant, offset in cleared.items():
            if first <= offset <= last:
                gone[tenant] = max(gone.get(tenant, -1), offset)
        made = Piece(topic, partition, first, last, "", 0, 0, 0, None, None, None, {}, gone)
        if old is not None:
            made = replace(made, past=old.past, removed=old.removed, missing=old.missing)
        lost = ((begin, since), *((max(a, begin), min(b, last + 1)) for a, b in passed))
        made = replace(made, missing=(*made.missing, *((a, b) for a, b in lost if a < b)))
        piece = self._write(made, " UNION ALL ".join(parts), params)
        if old is not None and old.path != piece.path:
            self.retired[old.path] = None
        return piece

    def _write(self, piece: Piece, rows: str, params: Mapping[str, Any]) -> Piece:
        """Write a file from a query, aside and renamed, and take it up."""
        name = f"{piece.topic}-{piece.partition}-{piece.first}-{piece.last}.parquet"
        aside, path = self.path / f".{name}.{os.getpid()}.tmp", self.path / name
        cursor = self.database.cursor()
        try:
            cursor.execute(f"CREATE OR REPLACE TEMP TABLE piece_rows ({TABLE})")
            cursor.execute(f"INSERT INTO piece_rows {rows}", dict(params))
            about = self._about(cursor, piece)
            note = json.dumps(about, sort_keys=True, separators=(",", ":"))
            cursor.execute(
                f'COPY (SELECT * FROM piece_rows ORDER BY "offset") TO {text(str(aside))} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 6, '
                f"ROW_GROUP_SIZE {ROW_GROUP}, KV_METADATA {{pulsefold: {text(note)}}})"
            )
            with aside.open("rb+") as written:
                os.fsync(written.fileno())
            aside.replace(path)
            sync_folder(self.path)
        finally:
            aside.unlink(missing_ok=True)
            cursor.execute("DROP TABLE IF EXISTS piece_rows")
            cursor.close()
        made = replace(piece, path=str(path), bytes=path.stat().st_size, **_about(about))
        with self.lock:
            self.retired.pop(made.path, None)
            place = (piece.topic, piece.partition)
            self.pieces = {**self.pieces, place: {**self.pieces.get(place, {}), piece.first: made}}
        return made

    def _about(self, cursor: duckdb.DuckDBPyConnection, piece: Piece) -> dict[str, Any]:
        asked = (
            "SELECT count(*), coalesce(sum(size), 0), epoch_us(min(time)), epoch_us(max(time)), epoch_us(max(timestamp)), "
            "count(*) FILTER (reason IS NOT NULL AND NOT list_contains($stood_in, reason)) FROM piece_rows"
        )
        n, size, low, high, stamp, unkept = cursor.execute(asked, {"stood_in": list(STOOD_IN)}).fetchall()[0]
        asked = (
            f"SELECT tenant, count(*), epoch_us(min(time)), epoch_us(max(time)) FROM piece_rows WHERE tenant IS NOT NULL GROUP BY 1 LIMIT {MOST_TENANTS + 1}"
        )
        tenants = {row[0]: list(row[1:]) for row in cursor.execute(asked).fetchall()}
        shown = tenants if len(tenants) <= MOST_TENANTS else None
        return {
            "version": VERSION,
            "rows": n,
            "json_bytes": int(size),
            "min_us": low,
            "max_us": high,
            "stamp_us": stamp,
            "tenants": shown,
            "cleared": dict(piece.cleared),
            **({"cleared_us": self._cleared_us(cursor, piece)} if piece.cleared else {}),
            **({"past": dict(piece.past)} if piece.past else {}),
            **({"removed": piece.removed} if piece.removed else {}),
            **({"missing": piece.missing} if piece.missing else {}),
            **({"unkept": unkept} if unkept else {}),
        }

    def _cleared_us(self, cursor: duckdb.DuckDBPyConnection, piece: Piece) -> dict[str, int]:
        """When tenants were cleared: of the records that did it, while they are there, then as it was noted."""
        asked = 'SELECT tenant, epoch_us(timestamp) FROM piece_rows WHERE list_contains($offsets, "offset")'
        rows = cursor.execute(asked, {"offsets": list(piece.cleared.values())}).fetchall()
        return {**piece.cleared_us, **{tenant: stamp for tenant, stamp in rows if tenant in piece.cleared}}

    # ---- what has to go

    def tidy(self, keep_from: Mapping[str, int], floors: Mapping[str, int], slack_us: int) -> int:
        """Remove what is past its time and what was cleared; returns the number of rows removed.

        A file all of whose rows are past is deleted, unless it is the last of its partition; one with a day's worth of such
        rows, or with rows of a cleared tenant, is written again without them.

        Args:
            keep_from: tenant -> event time before which its rows go, microseconds.
            floors: tenant -> the same by the clock, ``""`` for every other one and for rows of nobody: rows that are older by both event time and
                Kafka timestamp go however silent the tenant is.
            slack_us: what may wait for more.
        """
        gone = 0
        self.sweep()
        for place in sorted(self.pieces):
            newest = max(self.pieces[place], default=0)
            upto: dict[str, int] = {}
            for piece in self.pieces[place].values():
                for tenant, offset in piece.cleared.items():
                    upto[tenant] = max(upto.get(tenant, -1), offset)
            self._forget_broken(place, max(upto.values(), default=-1))
            for first, piece in sorted(self.pieces[place].items()):
                erased = {tenant: offset for tenant, offset in upto.items() if offset >= first and piece.may_have(tenant)}
                if not piece.rows and not piece.cleared and first != newest:
                    self._drop(piece)
                elif piece.rows and (erased or _past(piece, keep_from, floors, slack_us)):
                    gone += self._without(piece, erased, keep_from, floors, delete=first != newest)
        return gone

    def _forget_broken(self, place: Place, upto: int) -> None:
        """Delete broken files that were put aside, where a tenant was cleared since: nobody can tell what is in them, and they were made again."""
        ranges = self.pieces[place]
        for first in sorted(self.again.get(place, ())):
            if first <= upto and first in ranges:
                for path in self.path.glob(f"{place[0]}-{place[1]}-{first}-*.parquet.broken"):
                    path.unlink(missing_ok=True)
                self.again[place].discard(first)

    def _without(self, piece: Piece, erased: Mapping[str, int], keep_from: Mapping[str, int], floors: Mapping[str, int], *, delete: bool) -> int:
        """Write a file again without what has to go, if there is any; returns how many rows went."""
        params: dict[str, Any] = {"paths": [piece.path], "floor": floors[""]}
        floor = "$floor"
        own = {tenant: at for tenant, at in floors.items() if tenant and piece.may_have(tenant)}
        if own:
            params |= {"own_tenants": list(own), "own_floors": list(own.values())}
            floor = "coalesce(list_extract($own_floors, list_position($own_tenants, tenant)), $floor)"
        keeps = [f"NOT (epoch_us(time) < {floor} AND epoch_us(timestamp) < {floor})"]
        limits = {tenant: at for tenant, at in keep_from.items() if piece.may_have(tenant) and piece.span(tenant)[0] < at}
        if limits:
            params |= {"kept_tenants": list(limits), "kept_from": list(limits.values())}
            keeps.append("coalesce(epoch_us(time) >= list_extract($kept_from, list_position($kept_tenants, tenant)), true)")
        aged = f"SELECT tenant, count(*) FROM read_parquet($paths) WHERE tenant IS NOT NULL AND NOT ({' AND '.join(keeps)}) GROUP BY 1"
        bound = dict(params)
        if erased:
            params |= {"gone_tenants": list(erased), "gone_upto": list(erased.values())}
            keeps.append('coalesce("offset" > list_extract($gone_upto, list_position($gone_tenants, tenant)), true)')
        kept = f"FROM read_parquet($paths) WHERE {' AND '.join(keeps)}"
        with self.database.cursor() as cursor:
            left = int(cursor.execute(f"SELECT count(*) {kept}", params).fetchall()[0][0])
            if left == piece.rows:
                return 0
            past = Counter(piece.past)
            past.update(dict(cursor.execute(aged, bound).fetchall()))
        made = self._write(replace(piece, past=dict(past), removed=piece.removed + piece.rows - left), f"SELECT {NAMES} {kept}", params)
        if not made.rows and delete and not made.cleared:
            self._drop(made)
        return piece.rows - made.rows

    def _drop(self, piece: Piece) -> None:
        """A file in which nothing is left."""
        with self.lock:
            self.retired[piece.path] = None
            place = (piece.topic, piece.partition)
            others = {first: one for first, one in self.pieces[place].items() if first != piece.first}
            self.pieces = {**self.pieces, place: others}


def _past(piece: Piece, keep_from: Mapping[str, int], floors: Mapping[str, int], slack: int) -> bool:
    """Whether enough of a file is past its time to write it again: all of a tenant's rows, or a slack's worth."""
    if piece.min_us is None or piece.stamp_us is None:
        return False
    if piece.tenants is None:
        return True
    for tenant, (_, low, high) in piece.tenants.items():
        floor = floors.get(tenant, floors[""])
        limit = max(keep_from.get(tenant, floor), floor) if piece.stamp_us < floor else keep_from.get(tenant, floor)
        if high < limit or low < limit - slack:
            return True
    nobodys = piece.rows - sum(n for n, _, _ in piece.tenants.values())
    return nobodys > 0 and piece.stamp_us < floors[""] and piece.min_us < floors[""] - slack


def _about(body: Mapping[str, Any]) -> dict[str, Any]:
    """A file's description as fields of a `Piece`."""
    tenants = body["tenants"]
    return {
        "rows": int(body["rows"]),
        "json_bytes": int(body["json_bytes"]),
        "min_us": body["min_us"],
        "max_us": body["max_us"],
        "stamp_us": body["stamp_us"],
        "tenants": None if tenants is None else {name: (one[0], one[1], one[2]) for name, one in tenants.items()},
        "cleared": dict(body["cleared"]),
        "past": dict(body.get("past", {})),
        "cleared_us": dict(body.get("cleared_us", {})),
        "removed": int(body.get("removed", 0)),
        "missing": tuple((int(begin), int(end)) for begin, end in body.get("missing", ())),
        "unkept": int(body.get("unkept", 0)),
    }


def _older(path: Path, seconds: float) -> bool:
    import time

    try:
        return time.time() - path.stat().st_mtime > seconds
    except OSError:
        return False


def text(value: str) -> str:
    """A value as an SQL literal, for the two places that take no parameters: a file's name and what it says of itself.

    Example:
        >>> text("it's")
        "'it''s'"
    """
    return "'" + value.replace("'", "''") + "'"


def write_aside(path: Path, content: bytes) -> None:
    """Put a small file in its place at once."""
    with aside(path) as out:
        out.write(content)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def total(pieces: Iterable[Piece]) -> dict[str, Any]:
    """Figures of files: rows, bytes in (of JSON) and bytes stored, and their ratio."""
    files = list(pieces)
    stored, given = sum(piece.bytes for piece in files), sum(piece.json_bytes for piece in files)
    return {
        "files": len(files),
        "rows": sum(piece.rows for piece in files),
        "bytes": stored,
        "json_bytes": given,
        "ratio": stored / given if given else None,
    }
