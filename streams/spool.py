"""A disk spool: every event is stored before it is sent and removed when the broker has acknowledged it.

The rules this file keeps: what `put` has returned for survives the death of the process (not a power cut: the write is with the
operating system, not forced to the disk, since that would cost the caller milliseconds); numbers rise and are never used twice,
so a late acknowledgement never removes another event; one process a file, enforced by SQLite's own lock, which ends with the
process whatever it died of; `put` never waits for the disk itself: what has to (`checkpoint`) is done by another thread, and
`put` waits for that no longer than it is told.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .errors import ConfigError, PulsefoldError

OVERHEAD_BYTES = 64
"""Counted for each event besides its key and value: SQLite's own, roughly."""
CHECKPOINT_BYTES = 4 << 20
"""Bytes of write-ahead log, roughly, after which it should be taken into the file."""
MOST_LOG_BYTES = 32 << 20
"""The same, after which a `put` that may wait for ever does it where nobody else did."""
COMMIT_BYTES = 8192
"""Of a commit, besides what is in it: two pages."""


class SpoolFull(PulsefoldError):
    """The spool has reached its bound: the event was not taken."""


class SpoolStuck(PulsefoldError):
    """The spool's disk is full, broken or too slow at the moment: nothing was stored or removed."""


class SpoolBusy(SpoolStuck):
    """Others used the spool for as long as one was willing to wait, because its disk is slow."""


class Stored(NamedTuple):
    """An event that waits in the spool.

    Attributes:
        number: of `Spool.put`.
        topic: full name.
    """

    number: int
    id: str
    topic: str
    key: bytes
    value: bytes


class Spool:
    """Events waiting for their acknowledgement, in a SQLite file with a write-ahead log.

    Args:
        path: file, made if absent; on a local disk (its lock is not to be trusted on network file systems).
        max_bytes: bound on keys, values and 64 bytes an event; the files take up to about 1.3 times that, and 4 MB.

    Raises:
        ConfigError: yours: the file cannot be used, is no spool, or another process holds it.

    Example:
        >>> import tempfile
        >>> spool = Spool(tempfile.mkdtemp() + "/spool")
        >>> number = spool.put("e1", "pulsefold.costs", b"default", b"{}")
        >>> [one.id for one in spool.after(0)]
        ['e1']
        >>> spool.remove([number])
        >>> len(spool)
        0
        >>> spool.close()
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 1 << 30) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=0.2)
        except sqlite3.Error as exc:
            raise ConfigError("spool", f"{self.path} cannot be opened: {exc}; its folder must exist and be writable") from None
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # it would make a `put` wait until the disk has it
            self._db.execute("PRAGMA journal_size_limit=4194304")
            self._db.execute("PRAGMA secure_delete=ON")  # an event that has left leaves no bytes behind, once the write-ahead log has gone too
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS spool "
                "(n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, topic TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL)"
            )
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")
            rows = self._db.execute("SELECT n, length(key) + length(value) + ? FROM spool", (OVERHEAD_BYTES,)).fetchall()
        except sqlite3.Error as exc:
            self._db.close()
            if "locked" in str(exc):
                raise ConfigError("spool", f"{self.path} is held by another publisher; give each process a file of its own") from None
            raise ConfigError("spool", f"{self.path} cannot be used as a spool: {exc}; move it away or name another file") from None
        self._logged = 0
        self._sizes: dict[int, int] = dict(rows)
        self._bytes = sum(self._sizes.values())

    @property
    def n_bytes(self) -> int:
        """What counts against `max_bytes` now."""
        return self._bytes

    @property
    def newest(self) -> int:
        """Highest number stored now, 0 if none."""
        with self._lock:
            return max(self._sizes, default=0)

    def put(self, id: str, topic: str, key: bytes, value: bytes, *, timeout_s: float = -1) -> int:
        """Store one event; returns its number, above every earlier one.

        Args:
            timeout_s: longest wait for others who use the spool; -1 = for ever.

        Raises:
            SpoolFull: the bound is reached; nothing was stored.
            SpoolBusy: others took too long; nothing was stored.
            SpoolStuck: the disk takes no more; nothing was stored.
        """
        size = len(key) + len(value) + OVERHEAD_BYTES
        self._acquire(timeout_s)
        try:
            if self._bytes + size > self.max_bytes:
                raise SpoolFull(f"spool_max_bytes: {self.path} is full ({self.max_bytes} bytes); is the broker reachable?")
            try:
                self._roll_back()
                number = int(self._db.execute("INSERT INTO spool (id, topic, key, value) VALUES (?, ?, ?, ?)", (id, topic, key, value)).lastrowid or 0)
            except sqlite3.Error as exc:
                raise SpoolStuck(f"spool: {self.path} cannot be written: {exc}") from None
            self._sizes[number] = size
            self._bytes += size
            self._logged += size + COMMIT_BYTES
            if self._logged >= MOST_LOG_BYTES and timeout_s < 0:
                self._checkpoint()
            return number
        finally:
            self._lock.release()

    def _acquire(self, timeout_s: float) -> None:
        if not self._lock.acquire(timeout=timeout_s):
            raise SpoolBusy(f"spool: the disk of {self.path} is slow")

    def remove(self, numbers: Iterable[int], *, timeout_s: float = -1) -> None:
        """Forget events, because the broker has them or never will take them; numbers not stored are ignored.

        Args:
            timeout_s: longest wait for others who use the spool; -1 = for ever.

        Raises:
            SpoolStuck: the disk takes nothing, or others took too long; all of them are still stored.
        """
        self._acquire(timeout_s)
        try:
            known = [number for number in numbers if number in self._sizes]
            if not known:
                return
            try:
                self._roll_back()
                self._db.execute("BEGIN")
                self._db.executemany("DELETE FROM spool WHERE n = ?", [(number,) for number in known])
                self._db.execute("COMMIT")
            except sqlite3.Error as exc:
                with contextlib.suppress(sqlite3.Error):  # a broken disk may refuse that too: whoever writes next does it
                    self._roll_back()
                raise SpoolStuck(f"spool: {self.path} cannot be written: {exc}") from None
            self._logged += COMMIT_BYTES
            for number in known:
                size = self._sizes.pop(number)
                self._bytes -= size
                self._logged += size
        finally:
            self._lock.release()

    def _roll_back(self) -> None:
        """End a removal that failed halfway: within it, what `put` stores would not be there yet."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def checkpoint(self, *, now: bool = False) -> None:
        """Take the write-ahead log into the file; as long as the disk needs for it, everybody else waits.

        Args:
            now: also where it has hardly grown: on a full disk it makes room in the log.
        """
        if now or self._logged >= CHECKPOINT_BYTES:
            with self._lock:
                self._checkpoint()

    def _checkpoint(self) -> None:
        self._logged = 0
        with contextlib.suppress(sqlite3.Error):  # of a full disk `put` tells
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            self._db.execute(f"PRAGMA user_version={1 - version}")  # the first write after it waits for the disk once more: not the next `put`

    def after(self, number: int, limit: int = 500) -> list[Stored]:
        """At most `limit` stored events with a higher number, oldest first.

        Raises:
            SpoolStuck: the disk gives nothing.
        """
        with self._lock:
            try:
                rows = self._db.execute("SELECT n, id, topic, key, value FROM spool WHERE n > ? ORDER BY n LIMIT ?", (number, limit)).fetchall()
            except sqlite3.Error as exc:
                raise SpoolStuck(f"spool: {self.path} cannot be read: {exc}") from None
        return [Stored(*row) for row in rows]

    def __len__(self) -> int:
        return len(self._sizes)

    def close(self, *, timeout_s: float = -1) -> None:
        """Let go of the file; a second call does nothing.

        Args:
            timeout_s: longest wait for others who use the spool; -1 = for ever.

        Raises:
            SpoolBusy: they took too long; the file is still held.
        """
        self._acquire(timeout_s)
        try:
            self._db.close()
        finally:
            self._lock.release()
