"""Forecasts by UTC hour: what a variable or a tag did lately, against everything before.

The rules this file keeps:
  * an event's outcomes are added to its own hour, and once, so "before" is a sum and never a difference: a side without any
    spread has a sum of squared deviations of exactly 0;
  * the newest hour is open, in the small row that every event writes; when a later hour begins it is closed into the ring of
    the last `KEPT_HOURS`, which is packed, and what leaves the ring is summed up in `older`. Late events go to their hour.
"""

from __future__ import annotations

from struct import Struct

import msgspec

KEPT_HOURS = 48
NO_HOUR = -(2**62)
"""Before every hour."""
ENTRY = Struct("<iIIdddd")
"""An hour since the epoch, and its `Side`."""
_SIZE = ENTRY.size
_first = Struct("<i").unpack_from


class Side(msgspec.Struct, array_like=True, gc=False):
    """Outcomes of a set of forecasts.

    Attributes:
        n, certified: forecasts, and those of them that were certified.
        confidence, confidence_m2: mean, and sum of squared deviations from it.
        fragility, fragility_m2: likewise.
    """

    n: int = 0
    certified: int = 0
    confidence: float = 0.0
    confidence_m2: float = 0.0
    fragility: float = 0.0
    fragility_m2: float = 0.0

    def add(self, confidence: float, fragility: float, certified: bool) -> None:
        """Take in one forecast."""
        n = self.n = self.n + 1
        if certified:
            self.certified += 1
        mean = self.confidence
        d = confidence - mean
        self.confidence = mean = mean + d / n
        self.confidence_m2 += d * (confidence - mean)
        mean = self.fragility
        d = fragility - mean
        self.fragility = mean = mean + d / n
        self.fragility_m2 += d * (fragility - mean)

    def merge(self, other: Side) -> None:
        """Take in the forecasts of another set, which stays as it is."""
        nb = other.n
        if not nb:
            return
        na = self.n
        if not na:
            self.n, self.certified = nb, other.certified
            self.confidence, self.confidence_m2 = other.confidence, other.confidence_m2
            self.fragility, self.fragility_m2 = other.fragility, other.fragility_m2
            return
        n = self.n = na + nb
        part = nb / n
        weight = na * part
        self.certified += other.certified
        d = other.confidence - self.confidence
        self.confidence += d * part
        self.confidence_m2 += other.confidence_m2 + d * d * weight
        d = other.fragility - self.fragility
        self.fragility += d * part
        self.fragility_m2 += other.fragility_m2 + d * d * weight

    @property
    def certified_ratio(self) -> float | None:
        """Share certified; None without forecasts."""
        return self.certified / self.n if self.n else None


class Hours(msgspec.Struct, array_like=True, gc=False):
    """All closed hours.

    Attributes:
        through: the last hour that was closed into here; a row whose open hour is not later is behind this one.
        older: sums of what has left the ring.
        ring: packed `ENTRY`s by hour.
    """

    through: int = NO_HOUR
    older: Side = msgspec.field(default_factory=Side)
    ring: bytearray = msgspec.field(default_factory=bytearray)

    def close(self, hour: int, side: Side, newest: int) -> None:
        """Take in an hour that is over.

        Args:
            hour: since the epoch; later than every closed one.
            newest: the hour that is open now.
        """
        self.through = hour
        self.ring += _pack(hour, side)
        self._leave(newest)

    def late(self, hour: int, newest: int, confidence: float, fragility: float, certified: bool) -> None:
        """Take in a forecast of an hour before the open one."""
        self._leave(newest)
        if hour <= newest - KEPT_HOURS:
            self.older.add(confidence, fragility, certified)
            return
        at = self._place(hour)
        known = at < len(self.ring) and _first(self.ring, at)[0] == hour
        side = Side(*ENTRY.unpack_from(self.ring, at)[1:]) if known else Side()
        side.add(confidence, fragility, certified)
        self.ring[at : at + _SIZE if known else at] = _pack(hour, side)

    def split(self, start: int, end: int) -> tuple[Side, Side]:
        """Closed forecasts (before `start`, from `start` to `end` inclusive), hours since the epoch."""
        before, recent = Side(), Side()
        before.merge(self.older)
        for hour, *values in ENTRY.iter_unpack(self.ring):
            if hour < start:
                before.merge(Side(*values))
            elif hour <= end:
                recent.merge(Side(*values))
        return before, recent

    def _place(self, hour: int) -> int:
        """Where the entry of an hour is or belongs; mostly at the end."""
        ring = self.ring
        at = len(ring)
        while at and _first(ring, at - _SIZE)[0] >= hour:
            at -= _SIZE
        return at

    def _leave(self, newest: int) -> None:
        """Move what is no longer kept to `older`."""
        ring, end = self.ring, 0
        while end < len(ring) and _first(ring, end)[0] <= newest - KEPT_HOURS:
            self.older.merge(Side(*ENTRY.unpack_from(ring, end)[1:]))
            end += _SIZE
        if end:
            del ring[:end]


def _pack(hour: int, side: Side) -> bytes:
    return ENTRY.pack(hour, side.n, side.certified, side.confidence, side.confidence_m2, side.fragility, side.fragility_m2)
