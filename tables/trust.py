"""Trust: how far variables, rules, models, agents and judges can be relied on, and how sure that is.

The rules this file keeps:
  * a key (kind, id) has one home partition; observations, decay and imports act there in log order;
  * a key costs the same however much it has absorbed: pseudo-counts, and a history in segments of 32 points, of which
    a record touches the open one; full segments go to a ring of closed rows;
  * with a half-life only evidence fades, by event time, and any order of the observations gives the same sums.

`trust_history` has the lower rank: its rows are made from the `trust` row, so a crash leaves them ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from heapq import nsmallest
from math import exp2, fsum
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from streams.derive import event_bytes
from streams.events import Series, TrustBatchObserved, TrustDecayed, TrustImported, TrustObserved
from streams.keys import derived_id, encode_key, partition_for

from . import beta
from .alerting import LEVELS, emit
from .fold import Absorbed, BadParameter, Fold, NotFound, Reader, Refused, View, names, page
from .rows import Table
from .times import SECOND_US, day, rfc3339, rfc3339_or_none, to_us

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "judgments"
SEGMENT = 32
"""History points a row; a full segment is closed."""
POINT = Struct("<qd")
"""A history point: event time in microseconds, trust after the event."""

ALERT = "trust.low"
ALERT_MIN_N = 20.0
"""Evidence below which `trust.low` neither opens nor gets worse."""
ALERT_CRITICAL = 0.2
ALERT_MARGIN = 0.05
"""How far above `trust_low` the upper end must be to resolve."""
OK, WARNING, CRITICAL = (LEVELS.index(name) for name in ("ok", "warning", "critical"))

MOST = 1e300
"""Pseudo-counts stop here, so that their sums and quotients stay finite numbers."""
LONG_AGO = -(2**62)
EARLIEST_S, LATEST_S = -62_135_596_800, 253_402_300_799
"""Unix seconds of the years 1 to 9999."""

Positive = Annotated[float, msgspec.Meta(gt=0)]
Z = Annotated[float, msgspec.Meta(gt=0, le=6)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Kind = Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,32}$")]
Key = tuple[str, ...]

_pack = POINT.pack
_FULL = SEGMENT * POINT.size


class ScheduledDecay(msgspec.Struct, frozen=True):
    """A decay command that the worker publishes by itself.

    Attributes:
        every_s: seconds between two commands.
        factor: of the command, above 0, at most 1.
        min_count: of the command.
    """

    every_s: Positive
    factor: Annotated[float, msgspec.Meta(gt=0, le=1)]
    min_count: Annotated[float, msgspec.Meta(ge=0)] = 5.0


class TrustSettings(msgspec.Struct, frozen=True):
    """Settings of trust. Dictionaries are by kind; ``""`` is the value of every other kind.

    Attributes:
        trust_prior: (alpha, beta) of a key without evidence.
        trust_half_life: seconds of event time after which evidence counts half; None = it does not fade.
        trust_history: points of history a key.
        trust_z: half width of intervals in standard deviations.
        trust_strength_k, trust_strength_mid: steepness and middle of the curve of strength.
        trust_min_sample: evidence from which the report judges a key.
        trust_low: limit of the alert ``trust.low``.
        max_trust_keys: keys of a tenant in a partition; further ones are counted as overflow.
        trust_scheduled_decay: decay commands by themselves; None = off.
    """

    trust_prior: dict[str, tuple[Positive, Positive]] = msgspec.field(default_factory=lambda: {"": (1.0, 1.0)})
    trust_half_life: dict[str, Positive | None] = msgspec.field(default_factory=lambda: {"": None})
    trust_history: dict[str, Annotated[int, msgspec.Meta(ge=0, le=10_000)]] = msgspec.field(default_factory=lambda: {"": 100})
    trust_z: dict[str, Z] = msgspec.field(default_factory=lambda: {"": 1.96})
    trust_strength_k: dict[str, float] = msgspec.field(default_factory=lambda: {"": 0.1})
    trust_strength_mid: dict[str, float] = msgspec.field(default_factory=lambda: {"": 10.0})
    trust_min_sample: dict[str, float] = msgspec.field(default_factory=lambda: {"": 5.0})
    trust_low: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.4
    max_trust_keys: Annotated[int, msgspec.Meta(ge=0)] = 1_000_000
    trust_scheduled_decay: dict[str, ScheduledDecay | None] = msgspec.field(default_factory=lambda: {"": None})


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the fold reads: its digest is part of the rows' version. Sorted, so that equal is equal."""

    prior: list[tuple[str, tuple[float, float]]]
    half_life: list[tuple[str, float | None]]
    history: list[tuple[str, int]]
    low: float
    max_keys: int


class TrustState(msgspec.Struct, array_like=True, gc=False):
    """Evidence on one key.

    Attributes:
        alpha, beta: pseudo-counts of successes and failures, prior included. With a half-life: the decayed evidence S and F
            alone, scaled to `t_ref`.
        t_ref: event time that S and F are scaled to, microseconds; 0 without a half-life.
        n_events: observations absorbed since the key was new or imported.
        first, last_update: least and greatest event time of them, microseconds; `last_update` also by import.
        decays: decay commands that took effect.
        segment, base: number of the open history segment, and of the first that is valid (earlier ones were replaced).
        points: the open segment, packed `POINT`s.
        level, period: of the alert ``trust.low``: place in `LEVELS`, and the day it was opened.
        born: offset of the record that made the row.
        known: False before the first record and after a removal.
    """

    alpha: float = 0.0
    beta: float = 0.0
    t_ref: int = 0
    n_events: int = 0
    first: int | None = None
    last_update: int | None = None
    decays: int = 0
    segment: int = 0
    base: int = 0
    points: bytearray = msgspec.field(default_factory=bytearray)
    level: int = OK
    period: str = ""
    born: int = -1
    known: bool = False


class ClosedSegment(msgspec.Struct, array_like=True, gc=False):
    """A full segment of a key's history: its number and its packed `POINT`s."""

    number: int = -1
    points: bytes = b""


class Rule:
    """What the settings say about one kind.

    Attributes:
        a0, b0: prior.
        half_life_s, half_life_us: None = evidence does not fade.
        history: points kept.
        slots: closed segments kept.
        judged_from: a + b from which the alert can open.
    """

    __slots__ = ("a0", "b0", "half_life_s", "half_life_us", "history", "judged_from", "k", "mid", "min_sample", "slots", "z")

    def __init__(self, settings: TrustSettings, kind: str) -> None:
        self.a0, self.b0 = _of(settings.trust_prior, kind, (1.0, 1.0))
        self.half_life_s = _of(settings.trust_half_life, kind, None)
        self.half_life_us = None if self.half_life_s is None else self.half_life_s * SECOND_US
        self.history = _of(settings.trust_history, kind, 100)
        self.slots = -(-self.history // SEGMENT)
        self.judged_from = self.a0 + self.b0 + ALERT_MIN_N
        self.z = _of(settings.trust_z, kind, 1.96)
        self.k = _of(settings.trust_strength_k, kind, 0.1)
        self.mid = _of(settings.trust_strength_mid, kind, 10.0)
        self.min_sample = _of(settings.trust_min_sample, kind, 5.0)

    def begin(self, state: TrustState, offset: int) -> None:
        """Make a fresh or removed state that of a key without evidence."""
        state.known = True
        if state.born < 0:
            state.born = offset
        if self.half_life_us is None:
            state.alpha, state.beta = self.a0, self.b0
        else:
            state.alpha, state.beta, state.t_ref = 0.0, 0.0, LONG_AGO

    def observe(self, state: TrustState, success: bool, weight: float, time_us: int) -> tuple[float, float]:
        """Add one observation; returns alpha and alpha + beta after it, prior included."""
        half_us = self.half_life_us
        if half_us is not None:
            behind = state.t_ref - time_us
            if behind < 0:
                fade = exp2(behind / half_us)
                state.alpha *= fade
                state.beta *= fade
                state.t_ref = time_us
            elif behind > 0:
                weight *= exp2(-behind / half_us)
        alpha, beta_ = state.alpha, state.beta
        if success:
            alpha += weight
            if alpha > MOST:
                alpha = MOST
            state.alpha = alpha
        else:
            beta_ += weight
            if beta_ > MOST:
                beta_ = MOST
            state.beta = beta_
        state.n_events += 1
        last = state.last_update
        if last is None or time_us > last:
            state.last_update = time_us
        first = state.first
        if first is None or time_us < first:
            state.first = time_us
        return (alpha, alpha + beta_) if half_us is None else (self.a0 + alpha, self.a0 + alpha + self.b0 + beta_)

    def counts(self, state: TrustState, at_us: int) -> tuple[float, float]:
        """(alpha, beta) of a known key at a moment, prior included."""
        half_us = self.half_life_us
        if half_us is None:
            return state.alpha, state.beta
        behind = state.t_ref - at_us
        fade = exp2(behind / half_us) if behind < 0 else 1.0
        return self.a0 + state.alpha * fade, self.b0 + state.beta * fade

    def assign(self, state: TrustState, alpha: float, beta_: float, time_us: int) -> None:
        """Set (alpha, beta), prior included, as they are at a moment."""
        alpha, beta_ = min(alpha, MOST), min(beta_, MOST)
        if self.half_life_us is None:
            state.alpha, state.beta = alpha, beta_
        else:
            state.alpha, state.beta, state.t_ref = max(0.0, alpha - self.a0), max(0.0, beta_ - self.b0), time_us

    def decay(self, state: TrustState, factor: float, time_us: int) -> None:
        """Apply a decay command; the prior is the floor."""
        moment = max(time_us, state.t_ref)
        alpha, beta_ = self.counts(state, moment)
        self.assign(state, max(self.a0, alpha * factor), max(self.b0, beta_ * factor), moment)
        state.decays += 1

    def merge(self, states: Sequence[TrustState]) -> TrustState | None:
        """What a key's rows say together; None if nobody knows it.

        A key has one row, on its home partition, unless a producer wrote some of its observations elsewhere: then the
        evidence adds up.
        """
        states = [state for state in states if state.known]
        if len(states) <= 1:
            return states[0] if states else None
        moment = max(state.t_ref for state in states)
        counts = [self.counts(state, moment) for state in states]
        merged = TrustState(
            n_events=sum(state.n_events for state in states),
            first=min((state.first for state in states if state.first is not None), default=None),
            last_update=max((state.last_update for state in states if state.last_update is not None), default=None),
            decays=sum(state.decays for state in states),
            known=True,
        )
        self.assign(merged, self.a0 + fsum(a - self.a0 for a, _ in counts), self.b0 + fsum(b - self.b0 for _, b in counts), moment)
        return merged


class Trust(Fold):
    """The fold of trust events, its views and its ordered alert ``trust.low``.

    Args:
        settings: see `TrustSettings`.
    """

    topics = (TOPIC,)

    def __init__(self, settings: TrustSettings | None = None) -> None:
        self.settings = settings = settings or TrustSettings()
        kinds = {
            kind
            for by in (
                settings.trust_prior,
                settings.trust_half_life,
                settings.trust_history,
                settings.trust_z,
                settings.trust_strength_k,
                settings.trust_strength_mid,
                settings.trust_min_sample,
            )
            for kind in by
        }
        self.other = Rule(settings, "")
        self.kinds = {kind: Rule(settings, kind) for kind in kinds if kind}
        reads = FoldSettings(
            sorted(settings.trust_prior.items()),
            sorted(settings.trust_half_life.items(), key=itemgetter(0)),
            sorted(settings.trust_history.items()),
            settings.trust_low,
            settings.max_trust_keys,
        )
        self.history = Table("trust_history", ClosedSegment, rank=10, settings=reads)
        self.rows = Table("trust", TrustState, rank=20, settings=reads)
        self.tables = (self.history, self.rows)
        self.low = settings.trust_low
        self.critical = min(ALERT_CRITICAL, self.low)
        self.max_keys = settings.max_trust_keys
        self.handlers = {
            TrustObserved: self.observed,
            TrustBatchObserved: self.batch_observed,
            TrustDecayed: self.decayed,
            TrustImported: self.imported,
        }
        self.views = _views(self)

    def rule(self, kind: str) -> Rule:
        """What the settings say about a kind."""
        return self.kinds.get(kind, self.other)

    # ---- absorbing

    def observed(self, event: Event, p: Partition) -> None:
        """Absorb one observation: the hot path, so `Partition.open` is written out here."""
        data: TrustObserved = event.data
        kind = data.kind
        key = (kind, data.id)
        rows = self.rows
        space = p.spaces[rows.index].get(event.tenant)
        row = space.get(key) if space is not None else None
        if row is None:
            state = self.opened(event, p, key)
            if state is None:
                return
        else:
            offset = p.offset
            if offset <= row.applied:
                return
            row.applied = offset
            p.dirty[rows.index].add(row)
            state = row.state if row.state.__class__ is TrustState else rows.load(row)
            if not state.known:
                self.rule(kind).begin(state, offset)
        rule = self.kinds.get(kind, self.other)
        alpha, n = rule.observe(state, data.success, data.weight, p.time_us)
        self.after_evidence(event, p, key, rule, state, alpha, n)

    def batch_observed(self, event: Event, p: Partition) -> None:
        """Absorb the observations whose home is this partition; send the others to theirs."""
        data: TrustBatchObserved = event.data
        mine: dict[Key, list[tuple[bool, float]]] = {}
        for index, one in enumerate(data.observations):
            home = encode_key(event.tenant, one.kind, one.id)
            if p.count == 1 or partition_for(home, p.count) == p.number:
                mine.setdefault((one.kind, one.id), []).append((one.success, one.weight))
                continue
            body = {"kind": one.kind, "id": one.id, "success": one.success, "weight": one.weight}
            p.publish(TOPIC, home, self.derived(event, p, TrustObserved.TYPE, f"i{index}", body))
        for key, outcomes in mine.items():
            state = self.opened(event, p, key)
            if state is None:
                continue
            rule = self.rule(key[0])
            for success, weight in outcomes:
                alpha, n = rule.observe(state, success, weight, p.time_us)
            self.after_evidence(event, p, key, rule, state, alpha, n)

    def decayed(self, event: Event, p: Partition) -> None:
        """Absorb a decay command: of one key, or (as a copy in every partition) of a kind or of all."""
        data: TrustDecayed = event.data
        if data.id is not None and data.kind is not None:
            self.decay(event, p, data, [(data.kind, data.id)])
        elif event.derivedfrom is None:
            body: dict[str, Any] = {"factor": data.factor, "min_count": data.min_count}
            if data.kind is not None:
                body["kind"] = data.kind
            for number in range(p.count):
                p.publish(TOPIC, encode_key(event.tenant), self.derived(event, p, TrustDecayed.TYPE, f"p{number}", body), number)
            p.skip("command")
        else:
            space = p.spaces[self.rows.index].get(event.tenant, {})
            kind = data.kind
            self.decay(event, p, data, list(space) if kind is None else [key for key in space if key[0] == kind])

    def imported(self, event: Event, p: Partition) -> None:
        """Absorb an import: the key's state from here on, or its removal."""
        data: TrustImported = event.data
        key = (data.kind, data.id)
        if data.removed:
            self.remove(event, p, key)
            return
        alpha, beta_ = data.alpha, data.beta
        if alpha is None or beta_ is None:
            raise Refused("invalid_field", "alpha, beta: both are needed unless the key is removed")
        points = history_points(data.history)
        last_update = None if data.last_update is None else moment_us(data.last_update, "last_update")
        state = self.opened(event, p, key)
        if state is None:
            return
        rule = self.rule(data.kind)
        rule.assign(state, alpha, beta_, p.time_us)
        state.n_events = state.decays = 0
        state.first = None
        state.last_update = last_update
        self.forget_history(state)
        for time_us, trust in points[len(points) - rule.history :] if len(points) > rule.history else points:
            self.remember(event.tenant, p, key, rule, state, time_us, trust)
        self.judge(event, p, key, rule, state)

    # ---- steps of absorbing

    def opened(self, event: Event, p: Partition, key: Key) -> TrustState | None:
        """State of a key to change, begun if it is new; None where there is nothing to do."""
        space = p.spaces[self.rows.index].get(event.tenant)
        if (space is None or key not in space) and self.full(p, event.tenant):
            return None
        state = p.open(self.rows, event.tenant, key)
        if state is not None and not state.known:
            self.rule(key[0]).begin(state, p.offset)
        return state

    def full(self, p: Partition, tenant: str) -> bool:
        """Whether a new key is one too many; counted as overflow then.

        Removed keys keep their small row and count. While records are absorbed again after a crash some rows are ahead
        of the log: then only those count that were there at this offset.
        """
        space = p.spaces[self.rows.index].get(tenant)
        if len(space or ()) < self.max_keys:
            return False
        if not p._counting and sum(self.rows.peek(row).born <= p.offset for row in (space or {}).values()) < self.max_keys:
            return False
        p.count_as(overflow=1)
        return True

    def after_evidence(self, event: Event, p: Partition, key: Key, rule: Rule, state: TrustState, alpha: float, n: float) -> None:
        """Note the trust after new evidence in the history, and judge the alert unless it plainly stays as it is.

        Args:
            alpha, n: successes and all, prior included.
        """
        if rule.slots:
            points = state.points
            points += _pack(p.time_us, alpha / n)
            if len(points) == _FULL:
                self.close_segment(event.tenant, p, key, rule, state)
        level = state.level
        if level == OK:
            # With a mean above the limit, and alpha above 1, the upper end is above it too.
            if n < rule.judged_from or alpha - 1.0 >= self.low * n:
                return
        elif level == CRITICAL and n >= rule.judged_from:
            # As in `beta.upper_is_below`: it stays as bad as it can be.
            room = self.critical * n - alpha
            if room > 0.0 and room * room * (n + 1.0) >= 40.0 * alpha * (n - alpha):
                return
        self.judge(event, p, key, rule, state)

    def remember(self, tenant: str, p: Partition, key: Key, rule: Rule, state: TrustState, time_us: int, trust: float) -> None:
        """Add a point to the history."""
        state.points += _pack(time_us, trust)
        if len(state.points) == _FULL:
            self.close_segment(tenant, p, key, rule, state)

    def close_segment(self, tenant: str, p: Partition, key: Key, rule: Rule, state: TrustState) -> None:
        """Put the full segment into the ring of closed ones, over the oldest, and open the next."""
        closed = p.open(self.history, tenant, (*key, str(state.segment % rule.slots)))
        if closed is not None:
            closed.number = state.segment
            closed.points = bytes(state.points)
        state.segment += 1
        state.points = bytearray()

    def forget_history(self, state: TrustState) -> None:
        """Leave the history behind: closed rows with earlier numbers are not of it any more."""
        state.segment += 1
        state.base = state.segment
        state.points = bytearray()

    def decay(self, event: Event, p: Partition, data: TrustDecayed, keys: Iterable[Key]) -> None:
        """Apply a decay command to keys of this partition; each is independent of the others."""
        to_judge = []
        for key in keys:
            try:
                seen = p.read(self.rows, event.tenant, key)
            except Absorbed:
                continue  # this key is beyond the command already; the others may not be
            if seen is None or not seen.known:
                continue
            rule = self.rule(key[0])
            if sum(rule.counts(seen, max(p.time_us, seen.t_ref))) <= data.min_count:
                continue
            state = p.open(self.rows, event.tenant, key)
            if state is not None:
                rule.decay(state, data.factor, p.time_us)
                to_judge.append((key, rule, state))
        for key, rule, state in sorted(to_judge, key=itemgetter(0)):
            self.judge(event, p, key, rule, state)

    def remove(self, event: Event, p: Partition, key: Key) -> None:
        """Make a key as never seen; its row stays, so that older segments stay recognised as such."""
        seen = p.read(self.rows, event.tenant, key)
        if seen is None or not seen.known:
            return
        state = p.open(self.rows, event.tenant, key)
        if state is None:
            return
        level, period = state.level, state.period
        state.alpha = state.beta = 0.0
        state.t_ref = state.n_events = state.decays = 0
        state.first = state.last_update = None
        state.level, state.period = OK, ""
        state.known = False
        self.forget_history(state)
        if level:
            self.tell(event, p, key, level, OK, period, None, f"{key[0]} {key[1]} was removed.", "removed")

    def judge(self, event: Event, p: Partition, key: Key, rule: Rule, state: TrustState) -> None:
        """Judge ``trust.low`` after a record that changed a key, and tell a change of level."""
        alpha, beta_ = rule.counts(state, state.t_ref)
        enough = alpha + beta_ - rule.a0 - rule.b0 >= ALERT_MIN_N
        before = state.level
        after = before
        below = beta.upper_is_below
        if before == OK:
            if enough and below(alpha, beta_, self.low):
                after = CRITICAL if below(alpha, beta_, self.critical) else WARNING
        elif not below(alpha, beta_, min(1.0, self.low + ALERT_MARGIN)):
            after = OK
        elif not below(alpha, beta_, self.critical):
            after = WARNING
        elif enough:
            after = CRITICAL
        if after == before:
            return
        if before == OK:
            state.period = day(p.time_us)
        period = state.period
        state.level = after
        if after == OK:
            state.period = ""
        high = beta.upper(alpha, beta_, 1.96)
        says = "no longer low" if after == OK else "low"
        message = f"Trust in {key[0]} {key[1]} is {says}: at most {high:.3f} by {alpha + beta_ - rule.a0 - rule.b0:.0f} observations."
        self.tell(event, p, key, before, after, period, high, message)

    def tell(
        self,
        event: Event,
        p: Partition,
        key: Key,
        before: int,
        after: int,
        period: str,
        value: float | None,
        message: str,
        reason: str | None = None,
    ) -> None:
        """Put out a change of level of ``trust.low``."""
        emit(
            p,
            event,
            rule=ALERT,
            subject=encode_key(*key).decode(),
            period=period,
            previous=LEVELS[before],
            level=LEVELS[after],
            value=value,
            threshold=self.critical if after == CRITICAL else self.low,
            message=message,
            reason=reason,
        )

    def derived(self, event: Event, p: Partition, type_: str, suffix: str, data: dict[str, Any]) -> bytes:
        """A trust event that follows from this one; its id follows from the suffix."""
        name = derived_id(p.topic, event.tenant, event.id, type_, suffix)
        return event_bytes(type=type_, id=name, source=p.source, time_us=p.time_us, tenant=event.tenant, data=data, derivedfrom=event.id)

    # ---- answering

    def render(self, kind: str, id: str, state: TrustState | None, at_us: int, z: float | None = None) -> dict[str, Any]:
        """Everything about a key at a moment; `state` None = a key without evidence."""
        rule = self.rule(kind)
        z = rule.z if z is None else z
        alpha, beta_ = (rule.a0, rule.b0) if state is None else rule.counts(state, at_us)
        effective_n = alpha + beta_ - rule.a0 - rule.b0
        last_update = None if state is None else state.last_update
        return {
            "kind": kind,
            "id": id,
            "known": state is not None,
            "alpha": alpha,
            "beta": beta_,
            "trust": alpha / (alpha + beta_),
            "wald": beta.wald(alpha, beta_, z),
            "beta_interval": beta.interval(alpha, beta_, z),
            "z": z,
            "level": beta.level(z),
            "effective_n": effective_n,
            "sample_size": beta.sample_size(effective_n),
            "strength": beta.strength(effective_n, rule.k, rule.mid),
            "observations": 0 if state is None else state.n_events,
            "decays": 0 if state is None else state.decays,
            "last_update": rfc3339_or_none(last_update),
            "seconds_since_update": seconds_since(last_update, at_us),
            "half_life_s": rule.half_life_s,
            "at": rfc3339(at_us),
        }

    def one(self, reader: Reader, kind: str, id: str) -> TrustState | None:
        """A key's state over all partitions; None if it is unknown."""
        return self.rule(kind).merge(reader.rows(self.rows, (kind, id)))

    def every(self, reader: Reader, kind: str | None) -> list[tuple[Key, TrustState]]:
        """All known keys, of one kind or of all, by name."""
        found = []
        for key, states in reader.scan(self.rows):
            if kind is None or key[0] == kind:
                state = self.rule(key[0]).merge(states)
                if state is not None:
                    found.append((key, state))
        found.sort(key=itemgetter(0))
        return found

    def points(self, reader: Reader, kind: str, id: str) -> list[tuple[int, float]]:
        """The history kept of a key, (event time, trust), oldest first in log order."""
        rule = self.rule(kind)
        kept = []
        placed = [(number, state) for number, state in reader.placed(self.rows, (kind, id)) if state.known]
        for number, state in placed:
            mine = bytearray()
            for segment in range(max(state.base, state.segment - rule.slots), state.segment):
                closed = dict(reader.placed(self.history, (kind, id, str(segment % rule.slots)))).get(number)
                if closed is not None and closed.number == segment:
                    mine += closed.points
            kept.append([*POINT.iter_unpack(mine + state.points)])
        if len(kept) > 1:  # rows of one key in several partitions have no common log order
            kept = [sorted(point for points in kept for point in points)]
        points = kept[0] if kept else []
        return points[max(0, len(points) - rule.history) :]


def _of(by: dict[str, Any], kind: str, default: Any) -> Any:
    """A setting for a kind: its own, else that of every other kind, else the product's default."""
    return by[kind] if kind in by else by.get("", default)


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


def seconds_since(last_update: int | None, at_us: int) -> float | None:
    """Seconds from the last update to a moment, never negative; None before the first."""
    return None if last_update is None else max(0, at_us - last_update) / SECOND_US


def moment_of(reader: Reader, at: datetime | None) -> int:
    """The moment an answer is for: as asked, else the server's clock, which is never before what was absorbed."""
    if at is not None:
        return to_us(at)
    as_of = reader.as_of()
    return reader.now_us if as_of is None else max(reader.now_us, as_of)


def name_of(key: Key) -> str:
    """Name of a key in cursors and alerts: ``kind|id``, parts encoded as in record keys."""
    return encode_key(*key).decode()


# ---- views


class KeyParams(msgspec.Struct, frozen=True):
    """``/trust/{kind}/{id}``"""

    kind: Kind
    id: str
    z: Z | None = None
    at: Moment | None = None


class ListParams(msgspec.Struct, frozen=True):
    """``/trust``: `ids` are comma-separated, `id` is repeated and taken as it is."""

    kind: Kind | None = None
    ids: list[str] | None = None
    id: list[str] | None = None
    z: Z | None = None
    at: Moment | None = None
    sort: Literal["trust", "effective_n", "last_update", "id"] = "id"
    order: Literal["asc", "desc"] = "asc"
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    cursor: str | None = None


class HistoryParams(msgspec.Struct, frozen=True):
    """``/trust/{kind}/{id}/history``"""

    kind: Kind
    id: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


class ReportParams(msgspec.Struct, frozen=True):
    """``/trust/report``: `limit` is per list."""

    kind: Kind | None = None
    min_sample: Annotated[float, msgspec.Meta(ge=0)] | None = None
    at: Moment | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


MOST_IDS = 1_000


def _views(fold: Trust) -> list[View]:
    def one(reader: Reader, params: KeyParams) -> dict[str, Any]:
        state = fold.one(reader, params.kind, params.id)
        answer = fold.render(params.kind, params.id, state, moment_of(reader, params.at), params.z)
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        if state is None:
            raise NotFound(f"nothing is known of {params.kind} {params.id}", prior=answer)
        return answer

    def many(reader: Reader, params: ListParams) -> dict[str, Any]:
        if params.ids is None and params.id is None:
            return listed(reader, params)
        asked = list(dict.fromkeys([*names(params.ids or ()), *(params.id or ())]))
        kind = params.kind
        if kind is None:
            raise BadParameter("kind", "ids are of one kind: name it")
        if len(asked) > MOST_IDS:
            raise BadParameter("ids", f"{len(asked)} ids, at most {MOST_IDS}")
        states = [fold.one(reader, kind, id) for id in asked]
        reader.rows(fold.rows, (kind, ""))  # no id asked: the topic is named all the same
        at_us, as_of = moment_of(reader, params.at), rfc3339_or_none(reader.as_of())
        return {id: {**fold.render(kind, id, state, at_us, params.z), "as_of": as_of} for id, state in zip(asked, states, strict=True)}

    def listed(reader: Reader, params: ListParams) -> dict[str, Any]:
        known = fold.every(reader, params.kind)
        at_us, as_of = moment_of(reader, params.at), rfc3339_or_none(reader.as_of())

        def size(item: tuple[Key, TrustState]) -> float:
            key, state = item
            rule = fold.rule(key[0])
            if params.sort == "last_update":
                return LONG_AGO if state.last_update is None else state.last_update
            alpha, beta_ = rule.counts(state, at_us)
            return alpha / (alpha + beta_) if params.sort == "trust" else alpha + beta_ - rule.a0 - rule.b0

        if params.sort == "id":
            known.sort(key=lambda item: (item[0][1], item[0][0]), reverse=params.order == "desc")
        else:
            known.sort(key=size, reverse=params.order == "desc")  # stable: ties by name
        shown, cursor = page(known, params.limit, params.cursor, lambda item: name_of(item[0]))
        entries = [{**fold.render(key[0], key[1], state, at_us, params.z), "as_of": as_of} for key, state in shown]
        return {"entries": entries, "cursor": cursor, "as_of": as_of}

    def history(reader: Reader, params: HistoryParams) -> dict[str, Any]:
        if fold.one(reader, params.kind, params.id) is None:
            raise NotFound(f"nothing is known of {params.kind} {params.id}")
        points = fold.points(reader, params.kind, params.id)[-params.limit :]
        return {"points": [{"time": rfc3339(t), "trust": trust} for t, trust in points], "as_of": rfc3339_or_none(reader.as_of())}

    def report(reader: Reader, params: ReportParams) -> dict[str, Any]:
        return report_of(fold, reader, params)

    topics = (TOPIC,)
    return [
        View("/trust/report", ReportParams, report, topics, "What is trusted and what is not, what is well known and what is stale."),
        View("/trust/{kind}/{id}/history", HistoryParams, history, topics, "Trust after each of the last events, oldest first."),
        View("/trust/{kind}/{id}", KeyParams, one, topics, "How far one variable, rule, model, agent or judge can be relied on."),
        View("/trust", ListParams, many, topics, "Many keys at once: those asked for, or a sorted list."),
    ]


class Figures(msgspec.Struct, frozen=True, gc=False):
    """What the report looks at of one key."""

    key: Key
    state: TrustState
    trust: float
    strength: float
    seconds: float | None


def report_of(fold: Trust, reader: Reader, params: ReportParams) -> dict[str, Any]:
    """The lists and averages of trust.md §5.1; every limit is strict."""
    known = fold.every(reader, params.kind)
    at_us = moment_of(reader, params.at)
    enough: list[Figures] = []
    scarce: list[Figures] = []
    trusts, strengths = [], []
    for key, state in known:
        rule = fold.rule(key[0])
        alpha, beta_ = rule.counts(state, at_us)
        effective_n = alpha + beta_ - rule.a0 - rule.b0
        trust, strength = alpha / (alpha + beta_), beta.strength(effective_n, rule.k, rule.mid)
        trusts.append(trust)
        strengths.append(strength)
        least = rule.min_sample if params.min_sample is None else params.min_sample
        (enough if effective_n >= least else scarce).append(Figures(key, state, trust, strength, seconds_since(state.last_update, at_us)))

    def entry(one: Figures) -> dict[str, Any]:
        full = fold.render(one.key[0], one.key[1], one.state, at_us)
        wanted = ("kind", "id", "trust", "strength", "wald", "beta_interval", "sample_size", "seconds_since_update")
        return {name: full[name] for name in wanted}

    def first(items: Iterable[Figures], size: Any) -> list[dict[str, Any]]:
        return [entry(one) for one in nsmallest(params.limit, items, key=lambda one: (size(one), one.key))]

    n = len(known)
    updated = [(one.seconds, one) for one in enough if one.seconds is not None]
    return {
        "high_trust": first((one for one in enough if one.trust > 0.8), lambda one: -one.trust),
        "low_trust": first((one for one in enough if one.trust < 0.2), lambda one: one.trust),
        "high_confidence": first((one for one in enough if one.strength > 0.8), lambda one: -one.strength),
        "low_confidence": first(scarce, lambda one: one.strength),
        "recently_updated": first((one for seconds, one in updated if seconds < 3600), lambda one: one.seconds),
        "stale": first((one for seconds, one in updated if seconds > 86_400), lambda one: -one.seconds),
        "summary": {
            "total_entities": n,
            "active_entities": len(enough),
            "avg_trust": fsum(trusts) / n if n else None,
            "avg_confidence": fsum(strengths) / n if n else None,
        },
        "as_of": rfc3339_or_none(reader.as_of()),
    }
