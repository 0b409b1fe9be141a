"""Variables: which inputs of forecasts go with confident, robust, certified ones.

The rules this file keeps:
  * a variable is fed by many models, so its state is a `Partial` a partition, and an answer merges them (`variable_views`);
  * the rows of a record are independent of each other, so any of them may be ahead after a crash; only the ring of
    performance updates reads its head, and the overflow count what is full;
  * names never go: what was beyond `max_variables` once stays beyond it, on every replay.

Out of range is counted against the limits now registered, in whatever order registration and forecasts came. A registration
lives on the tenant's partition; where it has limits the worker publishes a copy of it to every other one, from where on that
partial counts exactly. What came before (or races with the copy) is counted from the `EXTREMES` least and greatest values
kept: exact while fewer than `EXTREMES` values of a partition lie beyond a limit, else a lower bound, and said so.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from streams.derive import event_bytes
from streams.events import ForecastIssued, VariablePerformanceUpdated, VariableRegistered
from streams.keys import derived_id, encode_key

from .fold import Fold, Refused
from .moments import Moments
from .rows import Row, Table
from .variable_views import UPDATES, drift_rule, variable_views

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "forecasts"
EXTREMES = 8
"""Least and greatest values kept of a partial, each."""
MAX_UPDATE_BYTES = 48 << 10
"""Of one `new_score` as JSON: rows stay under 64 KiB."""
HUGE = 1e150
"""A number whose square is still a double."""
NEVER, ALWAYS = -(2**62), 2**62
"""Before and after every event time, microseconds."""


class VariableSettings(msgspec.Struct, frozen=True):
    """Settings of variables.

    Attributes:
        variables_strict: names nobody registered are kept and listed, but not scored.
        drift_threshold: t of lifetime drift: flagged above t in fragility or below 1 - t certified; also of ``drift.variable``.
        drift_hysteresis: how far inside both limits the figures must be again for ``drift.variable`` to resolve.
        max_variables: variables of a tenant in a partition (models and audited names likewise); further ones are overflow.
    """

    variables_strict: bool = False
    drift_threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.25
    drift_hysteresis: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    max_variables: Annotated[int, msgspec.Meta(ge=0)] = 100_000


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the fold reads: its digest is part of the rows' version."""

    max_variables: int


class Partial(msgspec.Struct, array_like=True, gc=False):
    """What the forecasts of one partition say about a variable.

    Attributes:
        count, certified: forecasts that used it, and those of them that were certified.
        confidence, confidence2, fragility, fragility2: sums over them, and sums of squares.
        alignments, alignment: how many had an alignment score, and its sum.
        mean, m2: mean of the variable's values, and sum of squared deviations from it.
        last_value: at `last_us`, the later offset of two.
        first_us, last_us: least and greatest event time, microseconds; `ALWAYS` and `NEVER` without forecasts.
        first_offset, place: record of the first event time (the earlier offset of two), and the name's place in its inputs.
        home: the partition.
        low, high, range_us: limits registered, infinite where there are none, and the event time of that registration.
        outside: values beyond them; a lower bound unless `exact`.
        lows, highs: the `EXTREMES` least and greatest values, ascending.
        calm_low, calm_high: a value between them is neither an extreme, nor beyond the limits, nor huge.
    """

    count: int = 0
    certified: int = 0
    confidence: float = 0.0
    confidence2: float = 0.0
    fragility: float = 0.0
    fragility2: float = 0.0
    alignments: int = 0
    alignment: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
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

    def values(self) -> Moments:
        """Sums of the values."""
        return Moments(self.count, self.mean, self.m2, self.lows[0], self.highs[-1]) if self.count else Moments()

    def take_in(self, x: float) -> None:
        """Enter a value outside the calm range; `count` has it already."""
        n = self.count - 1
        sums = Moments(n, self.mean, self.m2, self.lows[0], self.highs[-1]) if n else Moments()
        sums.add(x)
        self.mean, self.m2 = sums.mean, sums.m2
        insort(self.lows, x)
        del self.lows[EXTREMES:]
        insort(self.highs, x)
        del self.highs[:-EXTREMES]
        if not self.low <= x <= self.high:
            self.outside += 1
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


class Overflow(msgspec.Struct, array_like=True, gc=False):
    """How often a tenant's new name found the partition full."""

    n: int = 0


class VariableTables:
    """The rows kept. Keys: (variable,); updates (variable, slot); models (model,) or ("",) for none; overflow ()."""

    def __init__(self, settings: VariableSettings) -> None:
        reads = FoldSettings(settings.max_variables)
        self.registry = Table("variable_registry", Registration, rank=70, settings=reads)
        self.updates = Table("variable_updates", Update, rank=71, settings=reads)
        self.models = Table("forecast_models", Model, rank=72, settings=reads)
        self.overflow = Table("variable_overflow", Overflow, rank=69, settings=reads)
        self.heads = Table("variable_update_heads", UpdateHead, rank=73, settings=reads)
        self.partials = Table("variables", Partial, rank=75, settings=reads)


class Variables(Fold):
    """Scores, registry and audit of variables, from the topic ``forecasts``.

    Args:
        settings: limits of drift, strictness, bounds.
    """

    topics = (TOPIC,)

    def __init__(self, settings: VariableSettings | None = None) -> None:
        self.settings = settings or VariableSettings()
        self.max = self.settings.max_variables
        self.kept = kept = VariableTables(self.settings)
        self.tables = (kept.overflow, kept.registry, kept.updates, kept.models, kept.heads, kept.partials)
        self.handlers = {ForecastIssued: self.issued, VariableRegistered: self.registered, VariablePerformanceUpdated: self.updated}
        self.views = variable_views(kept, self.settings)
        self.rules = (drift_rule(kept, self.settings),)

    # ---- events

    def issued(self, event: Event, p: Partition) -> None:
        """Add a forecast to its model and to each of its inputs.

        The rows are opened in place (as `Partition.open` does), for a forecast has many.
        """
        data: ForecastIssued = event.data
        tenant = event.tenant
        offset, time_us = p.offset, p.time_us
        overflow = self._count_model(p, tenant, data.model)
        inputs = data.inputs
        if inputs:
            table = self.kept.partials
            space = p.space(table, tenant)
            dirty = p.dirty[table.index]
            confidence, fragility, alignment, certified = data.confidence, data.fragility, data.alignment_score, data.certified
            confidence2, fragility2 = confidence * confidence, fragility * fragility
            most = self.max
            place = -1
            for name, x in inputs.items():
                place += 1
                key = (name,)
                row = space.get(key)
                if row is None:
                    if len(space) >= most:
                        overflow += 1
                        continue
                    row = space[key] = Row(tenant, key, offset, -1, Partial(home=p.number))
                elif offset <= row.applied:
                    continue
                else:
                    row.applied = offset
                dirty.add(row)
                state: Any = row.state
                if state.__class__ is bytes:
                    state = table.load(row)
                n = state.count = state.count + 1
                if certified:
                    state.certified += 1
                state.confidence += confidence
                state.confidence2 += confidence2
                state.fragility += fragility
                state.fragility2 += fragility2
                if alignment is not None:
                    state.alignments += 1
                    state.alignment += alignment
                if state.calm_low <= x <= state.calm_high:
                    mean = state.mean
                    d = x - mean
                    state.mean = mean = mean + d / n
                    state.m2 += d * (x - mean)
                else:
                    state.take_in(x)
                if time_us >= state.last_us:
                    state.last_us = time_us
                    state.last_value = x
                    if n > 1:
                        continue  # no first sight either
                if time_us < state.first_us:
                    state.first_us = time_us
                    state.first_offset = offset
                    state.place = place
        if overflow:
            self._overflow(p, tenant, overflow)

    def registered(self, event: Event, p: Partition) -> None:
        """Take in a registration, and tell its limits to the tenant's partials in the other partitions."""
        data: VariableRegistered = event.data
        if data.low is not None and data.high is not None and data.low > data.high:
            raise Refused("invalid_field", "data.low: must not be above data.high")
        tenant, key, time_us = event.tenant, (data.name,), p.time_us
        overflow = 0
        if event.derivedfrom is None:
            if self._admits(p, self.kept.registry, tenant, key):
                known = p.open(self.kept.registry, tenant, key)
                if known is not None and time_us >= known.time_us:
                    known.kind, known.default, known.low, known.high = data.kind, data.default, data.low, data.high
                    known.description, known.time_us = data.description, time_us
            else:
                overflow = 1
            if data.low is not None or data.high is not None:
                self._copy(event, p, data)
        if self._admits(p, self.kept.partials, tenant, key):
            state = p.open(self.kept.partials, tenant, key)
            if state is not None:
                state.home = p.number
                state.limit(-inf if data.low is None else data.low, inf if data.high is None else data.high, time_us)
        else:
            overflow = 1
        if overflow:
            self._overflow(p, tenant, 1)

    def updated(self, event: Event, p: Partition) -> None:
        """Keep a performance update for audit, over the oldest of `UPDATES`."""
        data: VariablePerformanceUpdated = event.data
        score = msgspec.json.encode(data.new_score)
        if len(score) > MAX_UPDATE_BYTES:
            raise Refused("too_large", f"data.new_score: {len(score)} bytes, at most {MAX_UPDATE_BYTES} are taken")
        kept, tenant, key = self.kept, event.tenant, (data.variable,)
        if not self._admits(p, kept.heads, tenant, key):
            self._overflow(p, tenant, 1)
            return
        seen = p.read(kept.heads, tenant, key)
        n = 0 if seen is None else seen.n
        p.put(kept.updates, tenant, (data.variable, str(n % UPDATES)), Update(event.id, p.time_us, p.offset, score))
        head = p.open(kept.heads, tenant, key)
        if head is not None:
            head.n = n + 1

    # ---- steps

    def _count_model(self, p: Partition, tenant: str, model: str | None) -> int:
        """Count the forecast for its model; returns 1 if there is no room for the model."""
        key = (model or "",)
        table = self.kept.models
        if not self._admits(p, table, tenant, key):
            return 1
        state = p.open(table, tenant, key)
        if state is not None:
            time_us = p.time_us
            state.issued += 1
            if time_us >= state.last_us:
                state.last_us = time_us
            if time_us <= state.first_us:
                state.first_us = time_us
        return 0

    def _admits(self, p: Partition, table: Table[Any], tenant: str, key: tuple[str, ...]) -> bool:
        """Whether a key is kept, or there is room for it.

        True on a refold after a crash too, though some rows are ahead then: a row that is missing was admitted once, so there
        are fewer than `max`; a key that was refused finds again all those that were there before it.
        """
        space = p.space(table, tenant)
        return key in space or len(space) < self.max

    def _overflow(self, p: Partition, tenant: str, n: int) -> None:
        p.count_as(overflow=n)
        state = p.open(self.kept.overflow, tenant, ())
        if state is not None:
            state.n += n

    def _copy(self, event: Event, p: Partition, data: VariableRegistered) -> None:
        """Publish a copy of a registration to every partition but this one."""
        for number in range(p.count):
            if number != p.number:
                name = derived_id(TOPIC, event.tenant, event.id, data.TYPE, f"p{number}")
                raw = event_bytes(type=data.TYPE, id=name, source=p.source, time_us=p.time_us, tenant=event.tenant, data=data, derivedfrom=event.id)
                p.publish(TOPIC, encode_key(event.tenant), raw, number)
