"""A disk spool: every event is stored before it is sent and removed when the broker has acknowledged it.

What a crash leaves behind is sent again on the next start with the same ids, so nothing is lost and, inside the dedupe
window, nothing counts twice. SQLite keeps it (write-ahead log); one process a file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigError, PulsefoldError


class SpoolFull(PulsefoldError):
    """The spool has reached its bound: the event was not taken."""


class Spool:
    """Events waiting for their acknowledgement.

    Args:
        path: file; its folder must exist.
        max_bytes: bound on the stored values.

    Raises:
        ConfigError: the file cannot be used, or another process holds it.
    """

    def __init__(self, path: str | Path, max_bytes: int = 1 << 30) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=0.5)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS spool (n INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, key BLOB, value BLOB NOT NULL)")
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise ConfigError("spool", f"{self.path} cannot be used: {exc} (another process may hold it)") from None
        self.bytes = int(self._db.execute("SELECT coalesce(sum(length(value)), 0) FROM spool").fetchone()[0])

    def put(self, topic: str, key: bytes, value: bytes) -> int:
        """Store one event; returns its number.

        Raises:
            SpoolFull: the bound is reached.
        """
        with self._lock:
            if self.bytes + len(value) > self.max_bytes:
                raise SpoolFull(f"spool_max_bytes: {self.path} holds {self.bytes} bytes of at most {self.max_bytes}; is the broker reachable?")
            number = self._db.execute("INSERT INTO spool (topic, key, value) VALUES (?, ?, ?)", (topic, key, value)).lastrowid
            self.bytes += len(value)
            return int(number or 0)

    def remove(self, numbers: list[tuple[int, int]]) -> None:
        """The broker has acknowledged these: (number, bytes)."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM spool WHERE n = ?", [(number,) for number, _ in numbers])
            self._db.execute("COMMIT")
            self.bytes -= sum(size for _, size in numbers)

    def waiting(self) -> Iterator[tuple[int, str, bytes, bytes]]:
        """(number, topic, key, value) of everything that waits, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT n, topic, key, value FROM spool ORDER BY n").fetchall()
        yield from rows

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM spool").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()
