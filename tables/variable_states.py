"""Variables: settings, and what is kept in rows.

The rules this file keeps: the row that every forecast writes is small (what scores need, and the open hour); the hours that
are over are in a row of their own, which is written when an hour ends or an event comes late. Sums are taken around running
means, so a constant value or outcome has a sum of squared deviations of exactly 0, and any split merges to the whole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from math import inf, isfinite
from typing import Annotated, Any

import msgspec

from .hours import NO_HOUR, Hours, Side
from .moments import Pairs
from .rows import Table

TOPIC = "forecasts"
EXTREMES = 8
"""Least and greatest values kept of a partial, each."""
HUGE = 1e150
"""A number whose square is still a double."""
NEVER, ALWAYS = -(2**62), 2**62
"""Before and after every event time, microseconds."""
MAX_TAGS = 1000
"""Symbolic tags of a tenant kept in a partition."""
MAX_NAMES_BYTES = 32 << 10
"""Of the inputs noted of a model: rows stay under 64 KiB."""


class VariableSettings(msgspec.Struct, frozen=True):
    """Settings of variables.

    Attributes:
        variables_strict: names nobody registered are kept and listed, but not scored.
        drift_threshold: t of lifetime drift: flagged above t in fragility or below 1 - t certified; also of ``drift.variable``.
        drift_hysteresis: how far inside both limits the figures must be again for ``drift.variable`` to resolve.
        drift_recent_hours: hours that are recent, up to and including the newest; at most 47 of the 48 kept.
        max_variables: variables of a tenant in a partition (models and audited names likewise); further ones are overflow.
    """

    variables_strict: bool = False
    drift_threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.25
    drift_hysteresis: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    drift_recent_hours: Annotated[int, msgspec.Meta(ge=1, le=47)] = 24
    max_variables: Annotated[int, msgspec.Meta(ge=0)] = 100_000


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the fold reads: its digest is part of the rows' version."""

    max_variables: int


Open = tuple[int, int, float, float, float, float, float, float, float, float, float, float]
"""The fields of `Sums` but for those of the alignment: taken apart and put together at once, which is several times faster than by attribute."""
Aligned = tuple[int, float, float, float, float, float, float]
"""The fields of `Sums.alignment`, and the origin of its values."""
NONE_ALIGNED: Aligned = (0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Sums(msgspec.Struct, array_like=True, gc=False):
    """A variable's values against the outcomes of its forecasts.

    Attributes:
        n, certified: forecasts, and those of them that were certified.
        origin: the first value; what follows is of value - origin, so that values near a billion that differ by little keep their
            digits.
        x, x_m2: mean of the values, and sum of squared deviations from it.
        confidence, confidence_m2, confidence_x: mean, squared deviations, and products of deviations with those of the value.
        fragility, fragility_m2, fragility_x: likewise.
        certified_x: products of deviations of the value and of certified as 0 or 1.
        alignment: (value - aligned_origin, alignment score) of the forecasts that have one.
        aligned_origin: the first value that came with an alignment score: those values may be small where the first of all is huge.
    """

    n: int = 0
    certified: int = 0
    origin: float = 0.0
    x: float = 0.0
    x_m2: float = 0.0
    confidence: float = 0.0
    confidence_m2: float = 0.0
    confidence_x: float = 0.0
    fragility: float = 0.0
    fragility_m2: float = 0.0
    fragility_x: float = 0.0
    certified_x: float = 0.0
    alignment: Pairs = msgspec.field(default_factory=Pairs)
    aligned_origin: float = 0.0

    def add(self, x: float, confidence: float, fragility: float, certified: bool, alignment: float | None) -> None:
        """Take in one forecast, its value however large. (`Partial.open` is added to as here, but for huge values.)"""
        before = self.n
        n = self.n = before + 1
        if not before and -HUGE <= x <= HUGE:
            self.origin = x
        if alignment is not None:
            if not self.alignment.n and -HUGE <= x <= HUGE:
                self.aligned_origin = x
            self.alignment.add(x - self.aligned_origin, alignment)
        x -= self.origin
        old = self.x
        d = x - old
        mean = old + d / n
        rest = x - mean
        if mean - mean != 0.0 or rest - rest != 0.0:  # the difference of two huge values is no finite number, their mean is
            mean = old * (before / n) + x / n
            rest = x - mean
            self.x_m2 = inf
        else:
            self.x_m2 += d * rest
        self.x = mean
        mean = self.confidence
        d = confidence - mean
        self.confidence = mean = mean + d / n
        self.confidence_m2 += d * (confidence - mean)
        self.confidence_x = _product(self.confidence_x, rest, d)
        mean = self.fragility
        d = fragility - mean
        self.fragility = mean = mean + d / n
        self.fragility_m2 += d * (fragility - mean)
        self.fragility_x = _product(self.fragility_x, rest, d)
        if before:
            self.certified_x = _product(self.certified_x, rest, certified - self.certified / before)
        if certified:
            self.certified += 1

    def merge(self, other: Sums) -> None:
        """Take in the forecasts of another set, which stays as it is."""
        na, nb = self.n, other.n
        if not nb:
            return
        if na:
            n = na + nb
            part = nb / n
            weight = na * part
            apart = other.origin - self.origin
            dx = other.x + apart - self.x
            dc = other.confidence - self.confidence
            df = other.fragility - self.fragility
            dk = other.certified / nb - self.certified / na
            mean = self.x + dx * part
            if mean - mean != 0.0:
                mean = self.x * (na / n) + (other.x + apart) * part
                self.x_m2 = inf
            else:
                self.x_m2 += other.x_m2 + dx * dx * weight
            self.x = mean
            self.confidence += dc * part
            self.confidence_m2 += other.confidence_m2 + dc * dc * weight
            self.confidence_x = _product(self.confidence_x + other.confidence_x, dx, dc * weight)
            self.fragility += df * part
            self.fragility_m2 += other.fragility_m2 + df * df * weight
            self.fragility_x = _product(self.fragility_x + other.fragility_x, dx, df * weight)
            self.certified_x = _product(self.certified_x + other.certified_x, dx, dk * weight)
            self.certified += other.certified
            self.n = n
        else:
            self.n, self.certified, self.origin, self.x, self.x_m2 = nb, other.certified, other.origin, other.x, other.x_m2
            self.confidence, self.confidence_m2, self.confidence_x = other.confidence, other.confidence_m2, other.confidence_x
            self.fragility, self.fragility_m2, self.fragility_x = other.fragility, other.fragility_m2, other.fragility_x
            self.certified_x = other.certified_x
        if not self.alignment.n:
            self.aligned_origin = other.aligned_origin
        self.alignment.merge(other.alignment, other.aligned_origin - self.aligned_origin)

    def side(self) -> Side:
        """The outcomes without the values."""
        return Side(self.n, self.certified, self.confidence, self.confidence_m2, self.fragility, self.fragility_m2)

    def pairs(self, outcome: str) -> Pairs:
        """Sums of (value, outcome): ``confidence``, ``fragility``, ``certified`` as 0 or 1, ``alignment``."""
        n, k, mean = self.n, self.certified, self.mean
        if outcome == "confidence":
            return Pairs(n, mean, self.x_m2, self.confidence, self.confidence_m2, self.confidence_x)
        if outcome == "fragility":
            return Pairs(n, mean, self.x_m2, self.fragility, self.fragility_m2, self.fragility_x)
        if outcome == "certified":
            return Pairs(n, mean, self.x_m2, k / n if n else 0.0, k * (n - k) / n if n else 0.0, self.certified_x)
        a = self.alignment
        return Pairs(a.n, self.aligned_origin + a.mean_x, a.m2_x, a.mean_y, a.m2_y, a.cxy)

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return self.origin + self.x


def _product(into: float, a: float, b: float) -> float:
    """Add a product of deviations; of values too large for that nothing is known from there on."""
    total = into + a * b
    return total if isfinite(total) else inf


class Partial(msgspec.Struct, array_like=True, gc=False):
    """What the forecasts of one partition say about a variable.

    Attributes:
        hour, open, aligned: the newest hour since the epoch, and what its forecasts say.
        past_n, past_certified: forecasts of all other hours, and those of them that were certified; more is in `History`.
        past_confidence, past_fragility: sums over them.
        past_alignments, past_alignment: how many had an alignment score, and its sum.
        tags, tag_changes: forecasts with a symbolic tag after an earlier tagged one of their model, and where the two differ.
        arcs, arc_changes: likewise for the arc label.
        last_value: at `last_us`, the later offset of two.
        first_us, last_us: least and greatest event time, microseconds; `ALWAYS` and `NEVER` without forecasts.
        first_offset, place: record of the first event time (the earlier offset of two), and the name's place in its inputs.
        home: the partition.
        low, high, range_us: limits registered, infinite where there are none, and the event time of that registration.
        outside: values beyond them; a lower bound unless `exact`.
        lows, highs: the `EXTREMES` least and greatest values, ascending.
        calm_low, calm_high: a value between them is neither an extreme, nor beyond the limits, nor huge.
    """

    hour: int = NO_HOUR
    open: Open = (0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    aligned: Aligned = NONE_ALIGNED
    past_n: int = 0
    past_certified: int = 0
    past_confidence: float = 0.0
    past_fragility: float = 0.0
    past_alignments: int = 0
    past_alignment: float = 0.0
    tags: int = 0
    tag_changes: int = 0
    arcs: int = 0
    arc_changes: int = 0
    last_value: float = 0.0
    first_us: int = ALWAYS
    last_us: int = NEVER
    first_offset: int = -1
    place: int = 0
    home: int = 0
    low: float = -inf
    high: float = inf
    range_us: int = NEVER
    outside: int = 0
    exact: bool = True
    lows: list[float] = []
    highs: list[float] = []
    calm_low: float = inf
    calm_high: float = -inf

    @property
    def count(self) -> int:
        """All forecasts."""
        return self.past_n + self.open[0]

    @property
    def certified(self) -> int:
        """All that were certified."""
        return self.past_certified + self.open[1]

    @property
    def confidence(self) -> float:
        """Sum over all."""
        return self.past_confidence + self.open[0] * self.open[5]

    @property
    def fragility(self) -> float:
        """Sum over all."""
        return self.past_fragility + self.open[0] * self.open[8]

    @property
    def alignments(self) -> int:
        """All with an alignment score."""
        return self.past_alignments + self.aligned[0]

    @property
    def alignment(self) -> float:
        """Sum over them."""
        return self.past_alignment + self.aligned[0] * self.aligned[3]

    def newest(self) -> Sums:
        """Sums of the open hour."""
        return Sums(*self.open, Pairs(*self.aligned[:6]), self.aligned[6])

    def add(self, x: float, confidence: float, fragility: float, certified: bool, alignment: float | None) -> None:
        """Take a forecast into the open hour, its value however large."""
        sums = self.newest()
        sums.add(x, confidence, fragility, certified, alignment)
        *values, pairs, origin = msgspec.structs.astuple(sums)
        self.open = tuple(values)  # type: ignore[assignment]  # in the order of Open
        self.aligned = (*msgspec.structs.astuple(pairs), origin)

    def turn(self, hour: int) -> Sums | None:
        """Open a later hour; returns the sums of the one that is over, None where there was none."""
        closed = self.newest() if self.open[0] else None
        if closed is not None:
            self.past_n, self.past_certified = self.count, self.certified
            self.past_confidence, self.past_fragility = self.confidence, self.fragility
            self.past_alignments, self.past_alignment = self.alignments, self.alignment
            self.open = (0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
            self.aligned = NONE_ALIGNED
        self.hour = hour
        return closed

    def late(self, confidence: float, fragility: float, certified: bool, alignment: float | None) -> None:
        """Count a forecast of an hour before the open one."""
        self.past_n += 1
        self.past_certified += certified
        self.past_confidence += confidence
        self.past_fragility += fragility
        if alignment is not None:
            self.past_alignments += 1
            self.past_alignment += alignment

    def take_in(self, x: float) -> None:
        """Note a value outside the calm range."""
        lows, highs = self.lows, self.highs
        few = len(lows) < EXTREMES
        low, high = few or x < lows[-1], few or x >= highs[0]
        if low:
            insort(lows, x)
            del lows[EXTREMES:]
        if high:
            insort(highs, x)
            del highs[:-EXTREMES]
        if not self.low <= x <= self.high:
            self.outside += 1
        if low or high:
            self.calm()

    def calm(self) -> None:
        """Settle the calm range anew."""
        if len(self.lows) == EXTREMES:
            self.calm_low = max(self.lows[-1], self.low, -HUGE)
            self.calm_high = min(self.highs[0], self.high, HUGE)

    def beyond(self, low: float, high: float) -> tuple[int, bool]:
        """How many values lie outside low…high, and whether that is exact or at least so many."""
        if low == self.low and high == self.high:
            return self.outside, self.exact
        n = self.count
        if n and (self.highs[-1] < low or self.lows[0] > high):
            return n, True
        below = bisect_left(self.lows, low)
        above = len(self.highs) - bisect_right(self.highs, high)
        return below + above, below < EXTREMES and above < EXTREMES

    def limit(self, low: float, high: float, time_us: int) -> None:
        """Count against these limits from here on, unless later ones are known."""
        if time_us >= self.range_us:
            outside, exact = self.beyond(low, high)
            self.low, self.high, self.range_us = low, high, time_us
            self.outside, self.exact = outside, exact
            self.calm()


class History(msgspec.Struct, array_like=True, gc=False):
    """A variable's hours that are over, in one partition: all of them in `past`, by hour in `hours`."""

    home: int = 0
    past: Sums = msgspec.field(default_factory=Sums)
    hours: Hours = msgspec.field(default_factory=Hours)


class Tag(msgspec.Struct, array_like=True, gc=False):
    """Forecasts with a symbolic tag in one partition: `open` are those of its newest `hour` (the fields of
    `Side`), the others are in `TagHistory`."""

    home: int = 0
    hour: int = NO_HOUR
    open: tuple[int, int, float, float, float, float] = (0, 0, 0.0, 0.0, 0.0, 0.0)

    def newest(self) -> Side:
        """Forecasts of the open hour."""
        return Side(*self.open)


class TagHistory(msgspec.Struct, array_like=True, gc=False):
    """A tag's hours that are over."""

    home: int = 0
    hours: Hours = msgspec.field(default_factory=Hours)


class Registration(msgspec.Struct, array_like=True, gc=False):
    """What is registered of a variable; `time_us` is the registration's event time."""

    kind: str | None = None
    default: float | None = None
    low: float | None = None
    high: float | None = None
    description: str | None = None
    time_us: int = NEVER


class Update(msgspec.Struct, array_like=True, gc=False):
    """One performance update: its event's id and time, and `new_score` as JSON."""

    id: str = ""
    time_us: int = NEVER
    offset: int = -1
    score: bytes = b"{}"


class UpdateHead(msgspec.Struct, array_like=True, gc=False):
    """How many performance updates a variable had; the last is in slot (n - 1) mod `UPDATES`."""

    n: int = 0


class Model(msgspec.Struct, array_like=True, gc=False):
    """Forecasts of a model, with inputs or without, and their least and greatest event time, microseconds."""

    issued: int = 0
    first_us: int = ALWAYS
    last_us: int = NEVER


class ModelInputs(msgspec.Struct, array_like=True, gc=False):
    """Variables that a model's forecasts have used, in the order of first use; beyond `MAX_NAMES_BYTES` no more are noted."""

    names: dict[str, bool] = {}
    bytes: int = 0


class Last(msgspec.Struct, array_like=True, gc=False):
    """The last symbolic tag and arc label of a model's forecasts, in log order."""

    tag: str | None = None
    arc: str | None = None


class Beat(msgspec.Struct, array_like=True, gc=False):
    """The newest hour (since the epoch) of a tenant's forecasts: changes once an hour."""

    hour: int = NO_HOUR


class Overflow(msgspec.Struct, array_like=True, gc=False):
    """How often a tenant's new name found the partition full."""

    n: int = 0


class VariableTables:
    """The rows kept.

    Keys: (variable,); updates (variable, slot); models (model,) or ("",) for none; tags (tag,); overflow and beat ().

    Hours are closed from the open one, so `histories` and `tag_histories` are written before `partials` and `tags`; both of
    those count changes against `lasts`, which is written after everything else.
    """

    def __init__(self, settings: VariableSettings) -> None:
        reads = FoldSettings(settings.max_variables)
        self.overflow = Table("variable_overflow", Overflow, rank=69, settings=reads)
        self.registry = Table("variable_registry", Registration, rank=70, settings=reads)
        self.updates = Table("variable_updates", Update, rank=71, settings=reads)
        self.models = Table("forecast_models", Model, rank=72, settings=reads)
        self.inputs = Table("forecast_inputs", ModelInputs, rank=72, settings=reads)
        self.heads = Table("variable_update_heads", UpdateHead, rank=73, settings=reads)
        self.histories = Table("variable_hours", History, rank=74, settings=reads)
        self.partials = Table("variables", Partial, rank=75, settings=reads)
        self.tag_histories = Table("forecast_tag_hours", TagHistory, rank=76, settings=reads)
        self.tags = Table("forecast_tags", Tag, rank=77, settings=reads)
        self.beat = Table("forecast_beat", Beat, rank=78, settings=reads)
        self.lasts = Table("forecast_lasts", Last, rank=79, settings=reads)

    def all(self) -> tuple[Table[Any], ...]:
        """Every table, in the order of ranks."""
        return (
            self.overflow, self.registry, self.updates, self.models, self.inputs, self.heads,
            self.histories, self.partials, self.tag_histories, self.tags, self.beat, self.lasts,
        )  # fmt: skip
