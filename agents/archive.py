"""The worker's side of the archive role: starts the archivist, hands requests over, and knows its state.

The archivist is a process of its own (`agents.archivist`). If it dies it is started again; what it had not written is read
again from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from mode import Service

from streams.settings import roles

from .pipe import frame, read_frame, start

log = logging.getLogger("pulsefold.archive")
ANSWER_S = 60.0
"""Longest wait for an answer."""
AGAIN_S = (1.0, 30.0)
"""First and longest pause before an archivist that died is started again."""


class Archive(Service):  # type: ignore[misc]  # mode is untyped here
    """The archive of this worker.

    Args:
        settings: the worker's.

    Attributes:
        enabled: whether this worker has the role.
        said: what the archivist last said of itself.
    """

    def __init__(self, settings: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.enabled = "archive" in roles(settings.get("roles"))
        self.said: dict[str, Any] = {"ready": False, "problem": "starting"}
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._stopping = asyncio.Event()

    async def ask(self, op: str, tenant: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A reply of the archivist."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return {"status": 503, "detail": "the archive is starting; ask again in a moment"}
        self._last += 1
        number = self._last
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            process.stdin.write(frame({"id": number, "op": op, "tenant": tenant, "params": params}))
            async with asyncio.timeout(ANSWER_S):
                return await reply
        except TimeoutError:
            return {"status": 503, "detail": f"the archive did not answer within {ANSWER_S:.0f} s; ask for less"}
        finally:
            self._waiting.pop(number, None)

    @Service.task
    async def _run(self) -> None:
        if not self.enabled:
            return
        pause = AGAIN_S[0]
        while not self.should_stop:
            begun = asyncio.get_running_loop().time()
            code = await self._live()
            if self.should_stop:
                return
            self.restarts += 1
            self.said = {"ready": False, "problem": f"the archivist ended with {code} and is started again"}
            log.error("archive: %s", self.said["problem"])
            pause = AGAIN_S[0] if asyncio.get_running_loop().time() - begun > 60 else min(AGAIN_S[1], pause * 2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self) -> int | None:
        """Run an archivist until it ends; returns its exit code."""
        process = await start("agents.archivist")
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(frame({"settings": msgspec.to_builtins(self.settings.values)}))
        self._process = process
        try:
            while (value := await read_frame(process.stdout)) is not None:
                if "state" in value:
                    self.said = value["state"]
                elif (reply := self._waiting.get(value["id"])) is not None and not reply.done():
                    reply.set_result(value)
            return await process.wait()
        finally:
            self._process = None
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_result({"status": 503, "detail": "the archive was interrupted; ask again"})
            await self._end(process)

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        """Let it write its last words, for a bounded time."""
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def on_stop(self) -> None:
        """Close the archivist's stdin; it writes what it has and ends."""
        self._stopping.set()
        process = self._process
        if process is not None:
            await self._end(process)

    def behind(self) -> bool:
        """Whether the archive lags because something is wrong with it: its disk is full, say."""
        return self.enabled and (self.said.get("error") is not None or (self.said.get("problem") or "starting") != "starting")

    def status(self) -> dict[str, Any]:
        """For /status."""
        if not self.enabled:
            return {"enabled": False}
        return {"enabled": True, **self.said, "restarts": self.restarts}
