"""Frames between a worker and its archivist: four bytes of length, then one MessagePack value."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

MOST_BYTES = 1 << 30


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
