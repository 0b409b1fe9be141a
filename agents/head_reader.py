"""The worker's side of reading a log's head from the archive: a process of its own (`agents.archive_head`), asked one thing at a time.

Apart from the worker as the archivist is, because reading and uncompressing would take turns with folding.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.errors import TopicProblem
from tables.partition import Logged

from .pipe import frame, read_frame, start

Place = tuple[str, int]
"""Topic without prefix, partition."""


class HeadReader:
    """Asks for what the archive has of a log's head.

    Args:
        path: the archive's folder; it need not be there.
        prefix, identities: of the log as it is now.
    """

    def __init__(self, path: Path, *, prefix: str, identities: Mapping[str, int]) -> None:
        self.path = path
        self.about = {"path": str(path), "prefix": prefix, "identities": dict(identities)}
        self._asking = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def begins(self, log_starts: Mapping[Place, int]) -> dict[Place, int]:
        """Offset from which on archive and log have everything, by partition."""
        found = await self._ask("begins", [[*place, start] for place, start in log_starts.items()])
        return dict(zip(log_starts, found, strict=True))

    async def gap(self, place: Place, start: int, log_start: int) -> tuple[int, int, str]:
        """The first offsets (from, up to and without) that neither the archive nor the log has, and why."""
        begin, end, why = await self._ask("gap", [*place, start, log_start])
        return begin, end, why

    async def read(self, place: Place, start: int) -> tuple[list[Logged], int]:
        """The next records of a partition, and the offset behind them.

        Raises:
            TopicProblem: they are not there any more, or are not those of the log.
        """
        rows, end = await self._ask("read", [*place, start])
        return [Logged(offset, timestamp, value, headers) for offset, timestamp, value, headers in rows], end

    async def _ask(self, op: str, words: list[Any]) -> Any:
        async with self._asking:
            process = self._process
            if process is None or process.returncode is not None:
                process = self._process = await start("agents.archive_head")
                assert process.stdin is not None
                process.stdin.write(frame(self.about))
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(frame([op, *words]))
                await process.stdin.drain()
                answer = await read_frame(process.stdout)
            except ConnectionError:
                answer = None
            if answer is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                self._process = None
                raise TopicProblem(f"the archive in {self.path} could not be read (its reader ended)")
            if "problem" in answer:
                raise TopicProblem(answer["problem"])
            return answer["found"]

    def close(self) -> None:
        """End the process: it ends by itself when nobody can ask it any more."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
