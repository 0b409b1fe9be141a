"""Processes beside a worker, and the frames between them: four bytes of length, then one MessagePack value."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

MOST_BYTES = 1 << 30
ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """Environment in which another process finds the packages that this one runs from."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


async def start(module: str) -> asyncio.subprocess.Process:
    """A process that runs a module of the packages that this one runs from, with pipes to both ends of it."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, stdin=pipe, stdout=pipe, limit=1 << 26, env=environment())


def frame(value: Any) -> bytes:
    """A value as a frame."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next value; None where the other side has gone."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MOST_BYTES:
            return None
        return msgspec.msgpack.decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
