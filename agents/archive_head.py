"""The head of a log that the brokers no longer have, read from the archive's files: for tables that are folded from the log's start.

The rules this file keeps:
  * a range is had only where every offset of it was read and nothing of it has gone since: no row past its time, none of a cleared tenant;
  * the value of an event is the one that was on the log, to the byte: its digest is compared;
  * of a record that was no event the archive keeps the reason alone, so another one of the same reason stands in its place: it counts as that
    one did, whatever later code would make of the bytes;
  * nothing is written; files that an archiver replaces meanwhile are looked for again.

A process of its own, asked by `agents.head_reader` over stdin; it ends when that does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import msgspec

from streams.codec import MAX_BYTES
from streams.derive import time_text
from streams.errors import TopicProblem
from tables.partition import Logged

from .archive_files import LOG, VERSION, Folder, Piece, Place
from .archive_rows import plain_value, value_of
from .pipe import frame as framed

PAGE = 5_000
"""Records that are read at once."""
TRIES = 3
"""Times that files are looked for again because one was replaced."""
STANDS_IN: Mapping[str, bytes | None] = {
    "not_json": None,
    "unknown_type": b'{"id":"-","type":"-","data":{}}',
    "invalid_field": b"[]",
    "too_large": bytes(MAX_BYTES + 1),
}
"""A value for every reason of `archive_files.STOOD_IN`."""
_asked = (
    'SELECT "offset", epoch_us(timestamp), id, source, type, CASE WHEN time_given THEN epoch_us(time) END, tenant, derivedfrom, data, '
    'frame, headers, digest, reason FROM read_parquet($paths) WHERE "offset" >= $start ORDER BY "offset" LIMIT $n'
)
_unpacked = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode
log = logging.getLogger("pulsefold.archive")


@dataclass(frozen=True)
class Gap:
    """Offsets that the archive cannot give.

    Attributes:
        begin, end: from, up to and without.
        why: in words.
    """

    begin: int
    end: int
    why: str


class Head(Folder):
    """What the archive has of a log.

    Args:
        path: its folder; it need not be there.
        prefix, identities: as in `Folder`, of the log as it is now.
    """

    def __init__(self, path: Path, *, prefix: str, identities: Mapping[str, int]) -> None:
        database = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "256MB", "enable_external_file_cache": False})
        super().__init__(path, database, prefix=prefix, identities=identities)
        self.problem: str | None = None

    def look(self) -> None:
        """See what files there are; `problem` says why none of them can be used."""
        try:
            found = json.loads((self.path / LOG).read_text())
        except FileNotFoundError:
            self.problem = f"there is no archive in {self.path}"
            return
        except (OSError, ValueError) as bad:
            self.problem = f"the archive in {self.path} cannot be read ({type(bad).__name__})"
            return
        same = isinstance(found, dict) and (found.get("version"), found.get("topic_prefix"), found.get("topics")) == (VERSION, self.prefix, self.identities)
        self.problem = None if same else f"what is in {self.path} is the archive of another log, or of another version"
        if same:
            self.chunk = int(found["chunk"])
            self.again = {}
            self.scan()

    def _put_aside(self, path: str) -> None:
        """A broken file is its archiver's business; here it is not there."""

    def begins(self, place: Place, log_start: int) -> int:
        """Offset from which on archive and log have everything; the log's start where the archive does not reach up to it."""
        at = log_start
        if self.problem is not None:
            return at
        for piece in sorted(self.pieces.get(place, {}).values(), key=lambda one: -one.first):
            if piece.first >= at:
                continue
            if piece.last + 1 < at or self._lost(piece):
                return at
            holes = [end for begin, end in piece.missing if begin < at]
            if holes:
                return min(at, max(holes))
            at = piece.first
        return at

    def gap(self, place: Place, start: int, log_start: int) -> Gap | None:
        """The first offsets from a start on that neither the archive nor the log has."""
        if self.problem is not None:
            return Gap(start, log_start, self.problem)
        at, ranges = start, self.pieces.get(place, {})
        while at < log_start:
            piece = ranges.get(at // self.chunk * self.chunk)
            if piece is None or piece.last < at:
                following = [first for first in ranges if first > at]
                return Gap(at, min([log_start, *following]), "the archive has no such file")
            lost = self._lost(piece)
            if lost is not None:
                return Gap(max(start, piece.first), piece.last + 1, lost)
            hole = next((hole for hole in piece.missing if hole[1] > at), None)
            if hole is not None:
                return Gap(max(at, hole[0]), hole[1], "the log had removed them before the archive read them")
            at = piece.last + 1
        return None

    @staticmethod
    def _lost(piece: Piece) -> str | None:
        if piece.removed:
            return f"the archive has removed {piece.removed} of their rows (past archive_days, or of a cleared tenant)"
        if piece.unkept:
            return f"{piece.unkept} of them are events of the future, of which the archive keeps no content"
        return None

    def read(self, place: Place, start: int) -> tuple[list[Logged], int]:
        """The next records of a partition, and the offset behind them.

        Raises:
            TopicProblem: they are not there, or are not those of the log.
        """
        for _ in range(TRIES):
            piece = self.pieces.get(place, {}).get(start // self.chunk * self.chunk)
            if piece is not None and start <= piece.last and self.gap(place, start, start + 1) is None:
                try:
                    with self.database.cursor() as cursor:
                        rows = cursor.execute(_asked, {"paths": [piece.path], "start": start, "n": PAGE}).fetchall()
                except duckdb.Error as bad:
                    log.warning("the archive's %s could not be read: %s", piece.path, str(bad).splitlines()[0])
                else:
                    records = [self._record(place, *row) for row in rows]
                    return records, records[-1].offset + 1 if len(rows) == PAGE else piece.last + 1
            self.look()
        raise TopicProblem(f"{self.prefix}{place[0]}/{place[1]}: the archive in {self.path} no longer has offset {start}")

    def _record(
        self, place: Place, offset: int, stamp_us: int, id: str, source: str | None, type: str, time_us: int | None, tenant: str, derivedfrom: str | None,
        data: str, frame: bytes | None, headers: bytes | None, digest: bytes, reason: str | None,
    ) -> Logged:  # fmt: skip
        if reason is not None:
            return Logged(offset, stamp_us // 1000, STANDS_IN[reason])
        raw = data.encode()
        time = None if time_us is None else time_text(time_us)
        value = value_of(frame, raw, b"" if frame is not None else plain_value(id, source or "", type, time, tenant, derivedfrom, raw))
        if hashlib.sha256(value).digest() != digest:
            raise TopicProblem(f"{self.prefix}{place[0]}/{place[1]}: what the archive in {self.path} has of offset {offset} is not what was on the log")
        return Logged(offset, stamp_us // 1000, value, _unpacked(headers) if headers is not None else ())

    def answer(self, op: str, *words: Any) -> Any:
        """What a request of `agents.head_reader` is answered with.

        Raises:
            TopicProblem: as `read`.
        """
        if op == "begins":
            self.look()
            return [self.begins((topic, number), start) for topic, number, start in words]
        topic, number, *offsets = words
        if op == "gap":
            found = self.gap((topic, number), *offsets)
            return (offsets[0], offsets[1], "the archive has them by now") if found is None else (found.begin, found.end, found.why)
        records, end = self.read((topic, number), *offsets)
        return [(one.offset, one.timestamp, one.value, one.headers) for one in records], end


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody asks any more."""
    about = _read(asked)
    if about is None:
        return
    head = Head(Path(about["path"]), prefix=about["prefix"], identities=about["identities"])
    while (request := _read(asked)) is not None:
        try:
            answer = {"found": head.answer(*request)}
        except TopicProblem as problem:
            answer = {"problem": str(problem)}
        answers.write(framed(answer))
        answers.flush()


def _read(asked: BinaryIO) -> Any:
    size = asked.read(4)
    return msgspec.msgpack.decode(asked.read(int.from_bytes(size, "big"))) if len(size) == 4 else None


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the worker, which closes stdin
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not break the frames
    serve(sys.stdin.buffer, out)
    out.flush()
    os._exit(0)  # DuckDB complains of itself at an ordinary end
