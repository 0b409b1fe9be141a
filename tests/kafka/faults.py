"""A worker with a fault built in: ``python -m tests.kafka.faults FAULT:PARAMETER,… worker --SETTING VALUE …``.

The product knows nothing of this: the classes are changed here, in the worker's process, before the worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import app, engine, main, rebuild, registry, seam
from tables import trust


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


def freeze(topic: str) -> None:
    """On SIGHUP the process stops itself (SIGSTOP) with rows of the topic in its hands, just before it would send them."""
    asked = []
    signal.signal(signal.SIGHUP, lambda *_: asked.append(True))
    append = engine.Engine._append

    async def frozen(self: engine.Engine, flush: Any) -> None:
        if asked and flush.shard.partition.topic == topic and len(flush.rows) > 10:
            asked.clear()
            os.kill(os.getpid(), signal.SIGSTOP)
        await append(self, flush)

    engine.Engine._append = frozen  # type: ignore[method-assign]  # that is the fault


def hasty(retry_s: int) -> None:
    """A write counts as failed after two seconds instead of thirty, and the worker gives up after so many."""
    producer, config = engine.AIOKafkaProducer, app.EngineConfig
    engine.AIOKafkaProducer = lambda **words: producer(**{**words, "request_timeout_ms": 2000})
    app.EngineConfig = lambda **words: config(**{**words, "retry_s": float(retry_s)})  # type: ignore[misc,assignment]  # that is the fault


def raising(told: str) -> None:
    """The fold of a batch of observations raises once, with some of its rows changed and the others not; the file says that it has."""
    after, calls = trust.Trust.after_evidence, [0]

    def broken(self: trust.Trust, *words: Any) -> None:
        after(self, *words)
        calls[0] += 1
        if calls[0] == 30 and not Path(told).exists():
            Path(told).touch()
            raise ZeroDivisionError("a bug in a fold, on purpose")

    trust.Trust.after_evidence = broken  # type: ignore[method-assign]  # that is the fault


def building(seconds: str) -> None:
    """Tables that are built beside others take so long for each 100 records."""
    fetch = rebuild.Rebuild._fetch
    rebuild.MOST_AT_ONCE = 100

    async def slow(self: rebuild.Rebuild, *words: Any) -> None:
        await fetch(self, *words)
        await asyncio.sleep(float(seconds))

    rebuild.Rebuild._fetch = slow  # type: ignore[method-assign]  # that is the fault


def gated(file: str) -> None:
    """Nothing is built beside what serves until the file is there."""
    fetch = rebuild.Rebuild._fetch

    async def waiting(self: rebuild.Rebuild, *words: Any) -> None:
        if os.path.exists(file):  # noqa: ASYNC240 - nobody waits for it
            await fetch(self, *words)
        else:
            await asyncio.sleep(0.05)

    rebuild.Rebuild._fetch = waiting  # type: ignore[method-assign]  # that is the fault


def halfway(file: str) -> None:
    """Of what is built beside what serves no more than some 600 records are folded until the file is there."""
    fetch = rebuild.Rebuild._fetch
    rebuild.MOST_AT_ONCE = 100

    async def waiting(self: rebuild.Rebuild, *words: Any) -> None:
        if os.path.exists(file) or sum(shard.absorbed() for shard in self.core.shards.values()) < 600:  # noqa: ASYNC240 - nobody waits for it
            await fetch(self, *words)
        else:
            await asyncio.sleep(0.05)

    rebuild.Rebuild._fetch = waiting  # type: ignore[method-assign]  # that is the fault


def holding(file: str) -> None:
    """On SIGHUP nothing is written until as many alerts as the file says are folded; with all of them in its hands, just before it would send
    the first, the process stops itself (SIGSTOP)."""
    asked: list[int] = []
    signal.signal(signal.SIGHUP, lambda *_: asked.append(int(Path(file).read_text())))
    flush, publish = engine.Engine._flush_all, engine.Engine._publish

    async def late(self: engine.Engine) -> int:
        while asked and sum(out.topic == "alerts" for shard in self.core.shards.values() for out in shard.partition.outputs) < asked[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return await flush(self)

    async def held(self: engine.Engine, outputs: Any) -> None:
        if asked:
            asked.clear()
            os.kill(os.getpid(), signal.SIGSTOP)
        await publish(self, outputs)

    engine.Engine._flush_all, engine.Engine._publish = late, held  # type: ignore[method-assign]  # that is the fault


def dying(folder: str) -> None:
    """Killed once, whichever worker comes there first: behind the decision that other tables serve, behind the swap, and behind the first
    record that what they would have told was compared; files in the folder say which has been."""

    def once(name: str) -> None:
        with contextlib.suppress(FileExistsError):
            (Path(folder) / name).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)

    decide, swap, send = engine.Engine.decide, engine.Engine.swap, engine.Engine.send

    async def decided(self: engine.Engine, generation: str, former: str | None = None, ended: str | None = None) -> None:
        await decide(self, generation, former, ended)
        if former is not None:
            once("decided")

    async def swapped(self: engine.Engine) -> None:
        await swap(self)
        once("swapped")

    async def sent(self: engine.Engine, topic: str, value: bytes | None, **words: Any) -> Any:
        found = await send(self, topic, value, **words)
        if words["key"].startswith(b"told."):
            once("told")
        return found

    engine.Engine.decide, engine.Engine.swap, engine.Engine.send = decided, swapped, sent  # type: ignore[method-assign]  # that is the fault


def newer(name: str) -> None:
    """Code in which a table has the next version."""
    folds = registry.folds

    def changed(*words: Any) -> list[Any]:
        found = folds(*words)
        for fold in found:
            for table in fold.tables:
                table.version += table.name == name
        return found

    registry.folds = changed


if __name__ == "__main__":
    known = {
        "drop": lambda every: drop(int(every)),
        "freeze": freeze,
        "hasty": lambda retry_s: hasty(int(retry_s)),
        "raising": raising,
        "building": building,
        "dying": dying,
        "gated": gated,
        "halfway": halfway,
        "holding": holding,
        "newer": newer,
    }
    for one in sys.argv[1].split(","):
        fault, _, parameter = one.partition(":")
        known[fault](parameter)
    sys.exit(main.main(sys.argv[2:]))
