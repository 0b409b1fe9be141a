"""A worker with a fault built in: ``python -m tests.kafka.faults FAULT worker --SETTING VALUE …``.

The product knows nothing of this: the classes are changed here, in the worker's process, before the worker starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from agents import engine, main, seam


def drop(every: int) -> None:
    """Every so many chunks one is lost between fetch and fold."""

    class Dropping(seam.Consumer):  # type: ignore[misc]  # faust is untyped here
        chunks = 0

        async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:
            async for tp, chunk in super().getmany(timeout):
                Dropping.chunks += 1
                if Dropping.chunks % every:
                    yield tp, chunk
                else:
                    print("a chunk was dropped on purpose", file=sys.stderr, flush=True)

    seam.Transport.Consumer = Dropping


def freeze() -> None:
    """On SIGHUP the process stops itself (SIGSTOP) with rows in its hands, just before it would send them."""
    asked = []
    signal.signal(signal.SIGHUP, lambda *_: asked.append(True))
    append = engine.Engine._append

    async def frozen(self: engine.Engine, flush: Any) -> None:
        if asked and len(flush.rows) > 10:
            asked.clear()
            os.kill(os.getpid(), signal.SIGSTOP)
        await append(self, flush)

    engine.Engine._append = frozen  # type: ignore[method-assign]  # that is the fault


if __name__ == "__main__":
    fault, _, parameter = sys.argv[1].partition(":")
    if fault == "drop":
        drop(int(parameter))
    elif fault == "freeze":
        freeze()
    else:
        sys.exit(f"no such fault: {fault}")
    sys.exit(main.main(sys.argv[2:]))
