"""Which processor a worker's threads run on.

One thread folds, another fetches, and Python lets one of them work at a time. Where they are on two processors, each turn is handed from one to the
other, with all that the first had at hand; on one processor a worker folds a tenth to a fifth more (docs/scaling.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from streams.errors import ConfigError

_allowed: set[int] = set()
"""Where this process might have run before it was given one processor."""


def stay_on(number: int) -> None:
    """Keep this thread, and all that are started from it, on one processor.

    Raises:
        ConfigError: there is no such processor here, or the system does not let it be chosen.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("cpu", "expected off: this system does not let a process choose its processor")
    allowed = os.sched_getaffinity(0)
    if number not in allowed:
        raise ConfigError("cpu", f"expected one of {', '.join(map(str, sorted(allowed)))}, which this process may run on, or off; got {number}")
    os.sched_setaffinity(0, {number})
    _allowed.update(allowed)


@contextmanager
def anywhere() -> Iterator[None]:
    """Processes started within are not kept where this one is."""
    if not _allowed:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
