"""Which forecasts were issued and resolved lately, so that a resolution finds its forecast and counts once.

The rules this file keeps: a forecast is known by (model, forecast_id), and remembered for `KEPT_US` of event time or until
`KEPT_N` more of the tenant were issued in the partition, whichever ends first; to the last one, whatever else has hashed to
its row. Resolutions alone do not count as issued: of them a row keeps the last `MOST_RESOLVED`, many more than `KEPT_N` forecasts bring.
Entries are packed, and what is no longer remembered goes when its row is written the next time.
"""

from __future__ import annotations

from math import isnan, nan
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from xxhash import xxh3_128_digest

from .times import DAY_US

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

KEPT_US = 30 * DAY_US
KEPT_N = 100_000
ROWS = 16_384
"""Rows of a tenant in a partition: some 6 forecasts a row where `KEPT_N` are remembered."""
MAX_NAMES_BYTES = 8 << 10
"""Of the input names of one forecast; beyond, they are not remembered."""
MOST_RESOLVED = 32
"""Resolved forecasts a row: half a million of a tenant in a partition."""
MAX_ROW_BYTES = 48 << 10
"""Beyond, the oldest entries of a row are forgotten early: rows stay under 64 KiB."""
UNKNOWN = "unknown"
"""The id of forecasts that have none."""

ISSUED, RESOLVED, NAMES_LOST = 0, 1, 2
ENTRY = Struct("<16sQqddBH")
"""Digest, number of the forecast, event time (microseconds), confidence, prediction (NaN: none), flags, bytes of names."""
_SIZE = ENTRY.size
_FLAGS = 5
"""Place of the flags in an unpacked `ENTRY`."""
_pack = ENTRY.pack
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[str]).decode


class Remembered(msgspec.Struct, array_like=True, gc=False):
    """Forecasts whose digests fall into one row.

    Attributes:
        entries: packed `ENTRY`s, oldest first, each followed by its names as msgpack.
        resolved: how many of them are.
    """

    entries: bytearray = msgspec.field(default_factory=bytearray)
    resolved: int = 0


class Issued(NamedTuple):
    """A forecast as it is remembered.

    Attributes:
        number: of the forecast, 1 for the first of the tenant in the partition; once resolved that of the last one before it.
        time_us: event time of its issue, once resolved of that.
        confidence: as issued.
        prediction: None where there was none.
        resolved: whether it was; nothing but number and time is known from then on.
        inputs: names of its variables; None if there were too many to remember.
    """

    number: int
    time_us: int
    confidence: float
    prediction: float | None
    resolved: bool
    inputs: list[str] | None


def digest_of(model: str, forecast_id: str) -> bytes:
    """16 bytes that stand for a forecast."""
    return xxh3_128_digest(f"{model}\0{forecast_id}".encode())  # neither holds a NUL: names have no control characters


def row_of(digest: bytes) -> tuple[str]:
    """Key of the row that a digest falls into."""
    return (str((digest[0] << 8 | digest[1]) % ROWS),)


def find(state: Remembered | None, digest: bytes, last_number: int, time_us: int) -> Issued | None:
    """A forecast, if it is remembered.

    Args:
        last_number: of the last forecast issued.
        time_us: event time of the record that asks.
    """
    if state is None or digest not in state.entries:
        return None
    entries = state.entries
    for _, end, (name, number, moment_us, confidence, prediction, flags, size) in _heads(entries):
        if name == digest and number > last_number - KEPT_N and moment_us >= time_us - KEPT_US:
            inputs = None if flags & NAMES_LOST else _decode(entries[end - size : end]) if size else []
            return Issued(number, moment_us, confidence, None if isnan(prediction) else prediction, bool(flags & RESOLVED), inputs)
    return None


def remember(
    state: Remembered, digest: bytes, number: int, time_us: int, confidence: float, prediction: float | None, inputs: Mapping[str, float], flags: int
) -> None:
    """Note a forecast as the newest of its row, in the place of what was known of it.

    Args:
        number, time_us: as in `Issued`; what is too old by them is forgotten.
        inputs: only the names are noted.
        flags: `ISSUED`, `RESOLVED`.
    """
    names = _encode(list(inputs)) if inputs else b""
    if len(names) > MAX_NAMES_BYTES:
        names, flags = b"", flags | NAMES_LOST
    entries = state.entries
    if digest in entries:
        _forget(state, lambda head: head[0] == digest)
    while entries:
        _, oldest, oldest_us, *_ = ENTRY.unpack_from(entries)
        if oldest > number - KEPT_N and oldest_us >= time_us - KEPT_US and len(entries) <= MAX_ROW_BYTES:
            break
        _forget(state, lambda _: True)
    if flags & RESOLVED:
        if state.resolved >= MOST_RESOLVED:
            _forget(state, lambda head: head[_FLAGS] & RESOLVED)
        state.resolved += 1
    entries += _pack(digest, number, time_us, confidence, nan if prediction is None else prediction, flags, len(names))
    entries += names


def _heads(entries: bytearray) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Where each entry begins and ends, and its fixed part; until one is taken out."""
    begin = 0
    while begin < len(entries):
        head = ENTRY.unpack_from(entries, begin)
        end = begin + _SIZE + head[-1]
        yield begin, end, head
        begin = end


def _forget(state: Remembered, is_it: Callable[[tuple[Any, ...]], object]) -> None:
    """Take out the first entry of whose fixed part this is true."""
    for begin, end, head in _heads(state.entries):
        if is_it(head):
            del state.entries[begin:end]
            state.resolved -= head[_FLAGS] & RESOLVED
            return
