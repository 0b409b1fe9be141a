"""Variables: which inputs of forecasts go with confident, robust, certified ones.

The rules this file keeps:
  * a variable is fed by many models, so its state is a `Partial` a partition, and an answer merges them (`variable_views`);
  * a row that is made from another's is written before it: closed hours before the open one, everything that counts a change
    of tag or label before the last tag; the others are independent of each other, so any may be ahead after a crash;
  * names never go: what was beyond `max_variables` once stays beyond it, on every replay.

Out of range is counted against the limits now registered, in whatever order registration and forecasts came. A registration
lives on the tenant's partition; where it has limits the worker publishes a copy of it to every other one, from where on that
partial counts exactly. What came before (or races with the copy) is counted from the `EXTREMES` least and greatest values
kept: exact while fewer than `EXTREMES` values of a partition lie beyond a limit, else a lower bound, and said so.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import msgspec

from streams.derive import event_bytes
from streams.events import ForecastIssued, VariablePerformanceUpdated, VariableRegistered
from streams.keys import derived_id, encode_key

from .drift import drift_rules, drift_view
from .fold import Fold, Refused, Scored
from .influence import influence_view
from .times import HOUR_US
from .variable_exports import scored
from .variable_states import HUGE, MAX_NAMES_BYTES, MAX_TAGS, TOPIC, Partial, Update, VariableSettings, VariableTables
from .variable_views import UPDATES, Scores, variable_views
from .volatility import volatility_rules, volatility_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.events import Event

    from .partition import Partition
    from .rows import Table

MAX_UPDATE_BYTES = 48 << 10
"""Of one `new_score` as JSON: rows stay under 64 KiB."""
NONE, SAME, CHANGED = 0, 1, 2
"""A forecast's tag (or label) against the last of its model: one of them is missing, they agree, they differ."""


class Variables(Fold):
    """Scores, drift, volatility, influence, registry and audit of variables, from the topic ``forecasts``.

    Args:
        settings: limits of drift, strictness, bounds.
    """

    topics = (TOPIC,)

    def __init__(self, settings: VariableSettings | None = None) -> None:
        self.settings = settings or VariableSettings()
        self.max = self.settings.max_variables
        self.kept = kept = VariableTables(self.settings)
        self.tables = kept.all()
        self.handlers = {ForecastIssued: self.issued, VariableRegistered: self.registered, VariablePerformanceUpdated: self.updated}
        self.views = [*(view(kept, self.settings) for view in (drift_view, influence_view, volatility_view)), *variable_views(kept, self.settings)]
        scores = Scores(kept, self.settings)
        self.scored = [Scored("variable", TOPIC, kept.partials, partial(scored, scores))]
        self.rules = [*drift_rules(kept, self.settings), *volatility_rules(kept, self.settings)]

    # ---- events

    def issued(self, event: Event, p: Partition) -> None:
        """Add a forecast to its model, its tag and each of its inputs.

        The rows are opened in place (as `Partition.open` does), for a forecast has many, and `Sums.add` is written out for calm values.
        """
        data: ForecastIssued = event.data
        tenant, model = event.tenant, data.model or ""
        offset, time_us = p.offset, p.time_us
        hour = time_us // HOUR_US
        confidence, fragility, alignment, certified = data.confidence, data.fragility, data.alignment_score, data.certified
        tag = data.symbolic_tag
        tagged = labelled = NONE
        if tag is not None or data.arc_label is not None:  # before anything else, for whatever is below has read it
            tagged, labelled = self._against_last(p, tenant, model, tag, data.arc_label)
        overflow = self._count_model(p, tenant, model, hour)
        if tag is not None:
            overflow += self._count_tag(p, tenant, tag, hour, confidence, fragility, certified)
        inputs = data.inputs
        if inputs:
            self._note_inputs(p, tenant, model, inputs)
            table = self.kept.partials
            space = p.space(table, tenant)
            dirty = p.dirty[table.index]
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
                    row = table.enter(space, tenant, key, offset, -1, Partial(home=p.number))
                elif offset <= row.applied:
                    continue
                else:
                    row.applied = offset
                dirty.add(row)
                state: Any = row.state
                if state.__class__ is bytes:
                    state = table.load(row)
                if tagged:
                    state.tags += 1
                    if tagged == CHANGED:
                        state.tag_changes += 1
                if labelled:
                    state.arcs += 1
                    if labelled == CHANGED:
                        state.arc_changes += 1
                calm = state.calm_low <= x <= state.calm_high
                if not calm:
                    state.take_in(x)
                if hour != state.hour and self._turned(p, tenant, key, state, hour, x, data):
                    pass  # late: it is in the history
                elif calm or -HUGE <= x <= HUGE:
                    before, yes, origin, mean, m2, mean_c, m2_c, xc, mean_f, m2_f, xf, xk = state.open
                    n = before + 1
                    if not before:
                        origin = x
                    u = x - origin
                    d = u - mean
                    mean += d / n
                    rest = u - mean
                    dc = confidence - mean_c
                    mean_c += dc / n
                    df = fragility - mean_f
                    mean_f += df / n
                    if before:
                        xk += rest * (certified - yes / before)
                    state.open = (
                        n, yes + certified, origin, mean, m2 + d * rest,
                        mean_c, m2_c + dc * (confidence - mean_c), xc + rest * dc,
                        mean_f, m2_f + df * (fragility - mean_f), xf + rest * df,
                        xk,
                    )  # fmt: skip
                    if alignment is not None:
                        n, mean, m2, mean_a, m2_a, xa, origin = state.aligned
                        if not n:
                            origin = x
                        u = x - origin
                        n += 1
                        d = u - mean
                        mean += d / n
                        da = alignment - mean_a
                        mean_a += da / n
                        rest = alignment - mean_a
                        state.aligned = (n, mean, m2 + d * (u - mean), mean_a, m2_a + da * rest, xa + d * rest, origin)
                else:
                    state.add(x, confidence, fragility, certified, alignment)
                if time_us >= state.last_us:
                    state.last_us = time_us
                    state.last_value = x
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

    def _against_last(self, p: Partition, tenant: str, model: str, tag: str | None, label: str | None) -> tuple[int, int]:
        """What a forecast's tag and label are against the last of its model, which they become.

        The row is written only where it changes. Where it is ahead of this record, so is everything made from it.
        """
        table, key = self.kept.lasts, (model,)
        last = p.read(table, tenant, key)
        if last is None:
            if not self._admits(p, table, tenant, key):
                return NONE, NONE  # an overflow that the model's count tells of
            before_tag = before_label = None
        else:
            before_tag, before_label = last.tag, last.arc
        tagged = NONE if tag is None or before_tag is None else SAME if tag == before_tag else CHANGED
        labelled = NONE if label is None or before_label is None else SAME if label == before_label else CHANGED
        if (tag is not None and tag != before_tag) or (label is not None and label != before_label):
            state = p.open(table, tenant, key)
            if state is not None:
                state.tag = before_tag if tag is None else tag
                state.arc = before_label if label is None else label
        return tagged, labelled

    def _count_model(self, p: Partition, tenant: str, model: str, hour: int) -> int:
        """Count the forecast for its model, and note the hour; returns 1 if there is no room for the model."""
        beats = p.space(self.kept.beat, tenant)
        beat = beats.get(())
        if beat is None or self.kept.beat.load(beat).hour < hour:
            newest = p.open(self.kept.beat, tenant, ())
            if newest is not None:
                newest.hour = hour
        table, key = self.kept.models, (model,)
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

    def _count_tag(self, p: Partition, tenant: str, tag: str, hour: int, confidence: float, fragility: float, certified: bool) -> int:
        """Count the forecast for its tag; returns 1 if there is no room for the tag."""
        table, key = self.kept.tags, (tag,)
        space = p.space(table, tenant)
        if len(space) >= MAX_TAGS and key not in space:
            return 1
        state = p.open(table, tenant, key)
        if state is None:
            return 0
        if hour != state.hour:
            open_hour = state.hour
            state.home = p.number
            if hour < open_hour:
                history = p.open(self.kept.tag_histories, tenant, key)
                if history is not None:
                    history.home = p.number
                    history.hours.late(hour, open_hour, confidence, fragility, certified)
                return 0
            if state.open[0]:
                history = p.open(self.kept.tag_histories, tenant, key)
                if history is not None:
                    history.home = p.number
                    history.hours.close(open_hour, state.newest(), hour)
            state.open = (0, 0, 0.0, 0.0, 0.0, 0.0)
            state.hour = hour
        n, yes, mean_c, m2_c, mean_f, m2_f = state.open
        n += 1
        dc = confidence - mean_c
        mean_c += dc / n
        df = fragility - mean_f
        mean_f += df / n
        state.open = (n, yes + certified, mean_c, m2_c + dc * (confidence - mean_c), mean_f, m2_f + df * (fragility - mean_f))
        return 0

    def _note_inputs(self, p: Partition, tenant: str, model: str, inputs: Mapping[str, float]) -> None:
        """Note which variables a model uses; seldom is there a new one."""
        table, key = self.kept.inputs, (model,)
        row = p.space(table, tenant).get(key)
        known = None if row is None else table.load(row)
        if known is not None and (inputs.keys() <= known.names.keys() or known.bytes >= MAX_NAMES_BYTES):
            return
        if known is None and not self._admits(p, table, tenant, key):
            return
        state = p.open(table, tenant, key)
        if state is not None:
            for name in inputs:
                if name not in state.names and state.bytes < MAX_NAMES_BYTES:
                    state.names[name] = True
                    state.bytes += len(name.encode()) + 4

    def _turned(self, p: Partition, tenant: str, key: tuple[str, ...], state: Partial, hour: int, x: float, data: ForecastIssued) -> bool:
        """Open a later hour, or put a late forecast into its own; whether that was late, and so is done."""
        open_hour = state.hour
        table = self.kept.histories
        confidence, fragility, alignment, certified = data.confidence, data.fragility, data.alignment_score, data.certified
        if hour < open_hour:
            state.late(confidence, fragility, certified, alignment)
            history = p.open(table, tenant, key)
            if history is not None:
                history.home = p.number
                history.past.add(x, confidence, fragility, certified, alignment)
                history.hours.late(hour, open_hour, confidence, fragility, certified)
            return True
        closed = state.turn(hour)
        if closed is not None:
            history = p.open(table, tenant, key)
            if history is not None:
                history.home = p.number
                history.past.merge(closed)
                history.hours.close(open_hour, closed.side(), hour)
        return False

    def _admits(self, p: Partition, table: Table[Any], tenant: str, key: tuple[str, ...]) -> bool:
        """Whether a key is kept, or there is room for it.

        True on a refold after a crash too, though some rows are ahead then: a row that is missing was admitted once, so there
        are fewer than `max`; a key that was refused finds again all those that were there before it.
        """
        space = p.space(table, tenant)
        return len(space) < self.max or key in space

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
