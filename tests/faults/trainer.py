"""A trainer as a process that can be killed: ``python -m tests.faults.trainer BOOTSTRAP PREFIX SPOOL HANDED FIRST LAST PAUSE_MS``.

Observations p0, p1, …, whose content follows from their number. Once `publish` has returned for one, its number goes to the file HANDED; with
a SPOOL of ``-`` there is none, and the numbers are of what was acknowledged.
"""

from __future__ import annotations

import os
import sys
import time

from streams.events import TrustObserved
from streams.publisher import SyncPublisher

KEYS = 50


def observation(n: int) -> tuple[str, bool]:
    """Key and success of number n."""
    return f"p{n % KEYS}", n % 3 > 0


def main(bootstrap: str, prefix: str, spool: str, handed: str, first: int, last: int, pause_ms: float) -> None:
    """Publish them all, a hundred at a time."""
    out = os.open(handed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def told(id: str, error: BaseException | None) -> None:
        if error is None:
            os.write(out, f"{id[1:]}\n".encode())

    publisher = SyncPublisher(bootstrap, prefix=prefix, spool=None if spool == "-" else spool, flush_timeout_s=90)
    for n in range(first, last):
        key, success = observation(n)
        publisher.publish(TrustObserved(kind="model", id=key, success=success), id=f"p{n}", on_delivery=told if spool == "-" else None)
        if spool != "-":
            os.write(out, f"{n}\n".encode())
        if n % 100 == 99:
            time.sleep(pause_ms / 1000)
    report = publisher.close()
    sys.exit(1 if report.failed or report.dropped or report.spooled else 0)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7]))
