"""Trust: how far variables, rules, models, agents and judges can be relied on, and how sure that is.

The rules this file keeps:
  * a key (kind, id) has one home partition; observations, decay and imports act there in log order;
  * a record touches the key's row alone, and now and then one closed segment of its history;
  * a scheduled decay acts once a tick, however often and by whom its command is published.

Rows in the order in which a flush writes them: closed segments (`trust_history`), made from a key's row; keys (`trust`), of which
only so many are taken in as `trust_keys` leaves room for; and that count.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from streams.derive import event_bytes
from streams.events import TrustBatchObserved, TrustDecayed, TrustImported, TrustObserved
from streams.keys import derived_id, encode_key, partition_for

from .fold import Absorbed, Fold, Refused
from .rows import Table
from .trust_alert import LowTrust
from .trust_evidence import KindRule
from .trust_history import FULL_BYTES, POINT, History, forget, history_points, moment_us
from .trust_runs import observed_run
from .trust_state import CRITICAL, LONG_AGO, OK, TOPIC, Key, Keys, ScheduledDecay, Tick, TrustSettings, TrustState, fold_settings, kinds_named
from .trust_views import trust_views

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

SCHEDULER = "pulsefold/"
"""How the source of an event begins that a worker published."""

_pack = POINT.pack


class Trust(Fold):
    """The fold of trust events, its views and its ordered alert ``trust.low``.

    Args:
        settings: see `TrustSettings`.
    """

    topics = (TOPIC,)

    def __init__(self, settings: TrustSettings | None = None) -> None:
        self.settings = settings = settings or TrustSettings()
        self.other = KindRule(settings, "")
        self.kinds = {kind: KindRule(settings, kind) for kind in kinds_named(settings)}
        reads = fold_settings(settings)
        self.history = History(reads)
        self.rows = Table("trust", TrustState, rank=20, version=2, settings=reads)
        self.n_keys = Table("trust_keys", Keys, rank=25, settings=reads)
        self.ticks = Table("trust_ticks", Tick, rank=26, settings=reads)
        self.tables = (self.history.table, self.rows, self.n_keys, self.ticks)
        self.alert = LowTrust(settings.trust_low)
        self.low, self.critical = self.alert.low, self.alert.critical
        self.handlers = {
            TrustObserved: self.observed,
            TrustBatchObserved: self.batch_observed,
            TrustDecayed: self.decayed,
            TrustImported: self.imported,
        }
        self.runs = {TrustObserved: partial(observed_run, self)}
        self.views = trust_views(self)
        # for `figures` alone; no fold reads them
        self.n_batches = self.n_batched = self.n_commands = self.n_decays = self.n_imports = 0

    def rule(self, kind: str) -> KindRule:
        """What the settings say about a kind."""
        return self.kinds.get(kind, self.other)

    def figures(self, partitions: Iterable[Partition]) -> dict[str, dict[str, int]]:
        """What this process absorbed, and how many keys it serves (removed ones keep their row)."""
        observations = sum(rule.n_observed for rule in (self.other, *self.kinds.values()))
        return {
            "trust": {
                "events": observations - self.n_batched + self.n_batches + self.n_commands + self.n_imports,
                "batches": self.n_batches,
                "observations": observations,
                "decays": self.n_decays,
                "imports": self.n_imports,
                "keys": sum(len(space) for p in partitions for space in p.spaces[self.rows.index].values()),
            }
        }

    # ---- observations

    def observed(self, event: Event, p: Partition) -> None:
        """Absorb one observation: the hot path, so `Partition.open` and `after_evidence` are written out here."""
        data: TrustObserved = event.data
        kind = data.kind
        key = (kind, data.id)
        rows = self.rows
        space = p.spaces[rows.index].get(event.tenant)
        row = space.get(key) if space is not None else None
        rule = self.kinds.get(kind, self.other)
        if row is None:
            state = self.opened(event, p, key)
            if state is None:
                return
        else:
            offset = p.offset
            if offset <= row.applied:
                self.admit(p, event.tenant, (key,))
                return
            row.applied = offset
            p.dirty[rows.index].add(row)
            known = row.state
            state = known if known.__class__ is TrustState else rows.load(row)
            if not state.known:
                rule.begin(state, offset)
        time_us = p.time_us
        alpha, n = rule.observe(state, data.success, data.weight, time_us)
        if rule.slots:
            points = state.points
            points += _pack(time_us, alpha / n)
            if len(points) == FULL_BYTES:
                self.history.close(p, event.tenant, key, rule.slots, state)
        if state.level or (n >= rule.judged_from and alpha - 1.0 < self.low * n):
            self.weigh(event, p, key, rule, state, alpha, n)

    def batch_observed(self, event: Event, p: Partition) -> None:
        """Absorb the observations whose home is this partition; send the others to theirs."""
        data: TrustBatchObserved = event.data
        self.n_batches += 1
        mine: dict[Key, list[tuple[bool, float]]] = {}
        for index, one in enumerate(data.observations):
            home = encode_key(event.tenant, one.kind, one.id)
            if p.count == 1 or partition_for(home, p.count) == p.number:
                mine.setdefault((one.kind, one.id), []).append((one.success, one.weight))
                continue
            body = {"kind": one.kind, "id": one.id, "success": one.success, "weight": one.weight}
            p.publish(TOPIC, home, self.derived(event, p, TrustObserved.TYPE, f"i{index}", body))
        for key in self.admit(p, event.tenant, mine):
            state = self.begun(event, p, key)
            if state is None:
                continue
            rule = self.rule(key[0])
            alpha = n = 0.0
            for success, weight in mine[key]:
                alpha, n = rule.observe(state, success, weight, p.time_us)
            self.n_batched += len(mine[key])
            self.after_evidence(event, p, key, rule, state, alpha, n)

    def after_evidence(self, event: Event, p: Partition, key: Key, rule: KindRule, state: TrustState, alpha: float, n: float) -> None:
        """Note the trust after new evidence in the history, and judge the alert unless it plainly stays as it is.

        Args:
            alpha, n: successes and all, prior included.
        """
        if rule.slots:
            self.history.remember(p, event.tenant, key, rule.slots, state, p.time_us, alpha / n)
        self.weigh(event, p, key, rule, state, alpha, n)

    def weigh(self, event: Event, p: Partition, key: Key, rule: KindRule, state: TrustState, alpha: float, n: float) -> None:
        """Judge the alert unless it plainly stays as it is."""
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
        self.alert.judge(event, p, key, rule, state)

    # ---- which keys are taken in

    def opened(self, event: Event, p: Partition, key: Key) -> TrustState | None:
        """State of a key to change, begun if it is new; None where there is nothing to do."""
        return self.begun(event, p, key) if self.admit(p, event.tenant, (key,)) else None

    def begun(self, event: Event, p: Partition, key: Key) -> TrustState | None:
        """As `opened`, of a key that was admitted."""
        state = p.open(self.rows, event.tenant, key)
        if state is not None and not state.known:
            self.rule(key[0]).begin(state, p.offset)
        return state

    def admit(self, p: Partition, tenant: str, keys: Iterable[Key]) -> list[Key]:
        """Those of the record's keys that are known or find room, in their order; the others are counted as overflow.

        After a crash a key's row may have the record already and the count of keys not, for that is written later: then only
        the count is brought up. Removed keys keep their small row, and their place.
        """
        space = p.space(self.rows, tenant)
        born: dict[str, int] = {}
        room: dict[str, int] = {}
        admitted = []
        for key in keys:
            kind = key[0]
            row = space.get(key)
            if row is None:
                if kind not in room:
                    try:
                        seen = p.read(self.n_keys, tenant, (kind,))
                        room[kind] = self.rule(kind).max_keys - (0 if seen is None else seen.n)
                    except Absorbed:
                        room[kind] = 0  # every key that was admitted has its row
                if room[kind] <= born.get(kind, 0):
                    p.count_as(overflow=1)
                    continue
                born[kind] = born.get(kind, 0) + 1
            elif self.rows.peek(row).born == p.offset:
                born[kind] = born.get(kind, 0) + 1
            admitted.append(key)
        for kind, n in born.items():
            count = p.open(self.n_keys, tenant, (kind,))
            if count is not None:
                count.n += n
        return admitted

    # ---- commands

    def decayed(self, event: Event, p: Partition) -> None:
        """Absorb a decay command: of one key, or (as a copy in every partition) of a kind or of all."""
        data: TrustDecayed = event.data
        self.n_commands += 1
        if data.id is not None and data.kind is not None:
            self.decay(event, p, data, [(data.kind, data.id)])
        elif event.derivedfrom is None:
            if self.ticked_before(event, p, data.kind or ""):
                p.skip("tick_repeated")
                return
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

    def ticked_before(self, event: Event, p: Partition, kind: str) -> bool:
        """Whether a scheduled command is of a tick that has acted already.

        Its id would tell as long as the dedupe window reaches; a worker that takes over a day later publishes the tick again.
        """
        if not (event.id.startswith("d-") and event.source.startswith(SCHEDULER)):
            return False
        tick = p.open(self.ticks, event.tenant, (kind,))
        if tick is None:
            raise Absorbed  # this very record, again after a crash: its copies are on the log
        if p.time_us <= tick.last_us:
            return True
        tick.last_us = p.time_us
        return False

    def last_tick_us(self, p: Partition, tenant: str, kind: str) -> int | None:
        """Event time of the last scheduled decay absorbed (kind ``""`` = of all), microseconds; None before the first."""
        row = p.spaces[self.ticks.index].get(tenant, {}).get((kind,))
        return None if row is None else self.ticks.load(row).last_us

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
        self.n_decays += len(to_judge)
        for key, rule, state in sorted(to_judge, key=itemgetter(0)):
            self.alert.judge(event, p, key, rule, state)

    def imported(self, event: Event, p: Partition) -> None:
        """Absorb an import: the key's state from here on, or its removal."""
        data: TrustImported = event.data
        key = (data.kind, data.id)
        self.n_imports += 1
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
        self.history.replace(p, event.tenant, key, rule.slots, state, points[max(0, len(points) - rule.history) :])
        self.alert.judge(event, p, key, rule, state)

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
        forget(state)
        self.alert.removed(event, p, key, level, period)

    def derived(self, event: Event, p: Partition, type_: str, suffix: str, data: dict[str, Any]) -> bytes:
        """A trust event that follows from this one; its id follows from the suffix."""
        name = derived_id(p.topic, event.tenant, event.id, type_, suffix)
        return event_bytes(type=type_, id=name, source=p.source, time_us=p.time_us, tenant=event.tenant, data=data, derivedfrom=event.id)


__all__ = ["LONG_AGO", "ScheduledDecay", "Trust", "TrustSettings", "TrustState"]
