"""A folder of this process for what may go with it: spilled rows, copies for one query, an archive that is not to be kept.

The rules this file keeps: a process holds a lock (flock) on its folder for as long as it lives, and the kernel ends the lock whatever the process
died of; who makes a folder first removes those of the same user that nobody holds. So only what can be locked is dead, also where containers with
process numbers of their own share a ``/tmp``. A folder of a process that is only just making it may be taken for dead: its maker sees that, and makes another.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path

PREFIX = "pulsefold-work-"
_making = threading.Lock()
_mine: tuple[int, str] | None = None
"""Process and folder; the lock's descriptor stays open until the process ends."""


def home() -> str:
    """This process's folder, which only its user may enter (0700); made at the first call, removed at exit.

    Raises:
        OSError: none can be made where temporary files go.
    """
    global _mine
    with _making:
        if _mine is None or _mine[0] != os.getpid() or not os.path.isdir(_mine[1]):
            _mine = os.getpid(), _made()
            sweep()
        return _mine[1]


def _made() -> str:
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX)
        try:
            mine = _lock(path) is not None
        except FileNotFoundError:
            mine = False
        except OSError:
            mine = True  # there are no locks here, so that nobody can take it for dead either
        if mine:
            atexit.register(_remove, os.getpid(), path)
            return path


def _lock(path: str) -> int | None:
    """Descriptor that holds a folder of ours; None where a process holds it, or it is none of ours.

    Raises:
        OSError: it is gone or may not be entered, or there are no locks here.
    """
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here = os.fstat(held)
        if os.path.samestat(here, os.lstat(path)) and here.st_uid == os.geteuid() and stat.S_IMODE(here.st_mode) == 0o700:
            held, found = -1, held
            return found
    except BlockingIOError:
        pass
    finally:
        if held >= 0:
            os.close(held)
    return None


def _remove(pid: int, path: str) -> None:
    if pid == os.getpid():  # not in a copy of the process that was forked
        shutil.rmtree(path, ignore_errors=True)


def sweep() -> int:
    """Remove the folders of dead processes of this user; returns how many."""
    n = 0
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            held = _lock(str(path))
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)
                n += 1
    return n
