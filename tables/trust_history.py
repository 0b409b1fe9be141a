"""Trust: the history of a key, its trust after each of its last events.

The rule this file keeps: a record touches one segment of at most `SEGMENT` points, the open one, which lies in the key's own row;
a full segment goes into a ring of closed rows, over the oldest. Closed rows are made from the key's row, so they are written first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from struct import Struct
from typing import TYPE_CHECKING

import msgspec

from streams.events import Series

from .fold import Reader, Refused
from .rows import Table
from .times import SECOND_US, to_us
from .trust_state import FoldSettings, Key, TrustState

if TYPE_CHECKING:
    from .partition import Partition

SEGMENT = 64
"""History points a row; a full segment is closed."""
POINT = Struct("<qd")
"""A history point: event time in microseconds, trust after the event."""
FULL_BYTES = SEGMENT * POINT.size
EARLIEST_S, LATEST_S = -62_135_596_800, 253_402_300_799
"""Unix seconds of the years 1 to 9999."""


class ClosedSegment(msgspec.Struct, array_like=True, gc=False):
    """A full segment of a key's history: its number and its packed `POINT`s."""

    number: int = -1
    points: bytes = b""


class History:
    """The closed segments. Keys: (kind, id, slot).

    Args:
        reads: settings that the rows depend on.
    """

    def __init__(self, reads: FoldSettings) -> None:
        self.table = Table("trust_history", ClosedSegment, rank=10, version=2, settings=reads)

    def remember(self, p: Partition, tenant: str, key: Key, slots: int, state: TrustState, time_us: int, trust: float) -> None:
        """Add a point.

        Args:
            slots: closed segments kept, 1 or more.
        """
        state.points += POINT.pack(time_us, trust)
        if len(state.points) == FULL_BYTES:
            self.close(p, tenant, key, slots, state)

    def close(self, p: Partition, tenant: str, key: Key, slots: int, state: TrustState) -> None:
        """Put the full segment into the ring of closed ones, over the oldest, and open the next."""
        closed = p.open(self.table, tenant, (*key, str(state.segment % slots)))
        if closed is not None:
            closed.number = state.segment
            closed.points = bytes(state.points)
        state.segment += 1
        state.points = bytearray()

    def replace(self, p: Partition, tenant: str, key: Key, slots: int, state: TrustState, points: list[tuple[int, float]]) -> None:
        """Put these points, oldest first and no more than are kept, in the place of all before."""
        forget(state)
        for time_us, trust in points:
            self.remember(p, tenant, key, slots, state, time_us, trust)

    def points(self, reader: Reader, key: Key, placed: list[tuple[int, TrustState]], slots: int, kept: int) -> list[tuple[int, float]]:
        """The last points kept of a key, (event time, trust), oldest first in log order.

        Args:
            placed: the key's rows, each with its partition.
            kept: how many points.
        """
        found: list[list[tuple[int, float]]] = []
        for number, state in placed:
            mine = bytearray()
            for segment in range(max(state.base, state.segment - slots), state.segment):
                closed = dict(reader.placed(self.table, (*key, str(segment % slots)))).get(number)
                if closed is not None and closed.number == segment:
                    mine += closed.points
            found.append([*POINT.iter_unpack(mine + state.points)])
        if len(found) > 1:  # rows of one key in several partitions have no common log order
            found = [sorted(point for points in found for point in points)]
        points = found[0] if found else []
        return points[max(0, len(points) - kept) :]


def forget(state: TrustState) -> None:
    """Leave the history behind: closed rows with earlier numbers are not of it any more."""
    state.segment += 1
    state.base = state.segment
    state.points = bytearray()


def moment_us(moment: datetime | float, field: str) -> int:
    """Microseconds of a time in an import: RFC 3339, or unix seconds within the years 1 to 9999.

    Raises:
        Refused: the sender's; the time is out of range.
    """
    if isinstance(moment, datetime):
        return to_us(moment)
    if not EARLIEST_S <= moment <= LATEST_S:
        raise Refused("invalid_field", f"{field}: a time outside the years 1 to 9999")
    return round(moment * SECOND_US)


def history_points(history: Sequence[tuple[datetime | float, float]] | Series | None) -> list[tuple[int, float]]:
    """(event time in microseconds, trust) of an imported history of either shape, in the file's order.

    Raises:
        Refused: the sender's; as many times as values are needed.
    """
    if history is None:
        return []
    if isinstance(history, Series):
        if len(history.times) != len(history.values):
            raise Refused("invalid_field", f"history: {len(history.times)} times for {len(history.values)} values")
        history = list(zip(history.times, history.values, strict=True))
    return [(moment_us(moment, "history"), trust) for moment, trust in history]
