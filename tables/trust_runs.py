"""Runs of trust observations: what `Trust.observed` does, for many events at a time.

The rule this file keeps: the rows are the same to the last bit as if each event had come alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .trust_evidence import MOST
from .trust_history import FULL_BYTES, POINT
from .trust_state import TrustState

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .trust import Trust


def observed_run(trust: Trust, events: Sequence[Event], offsets: Sequence[int], times: Sequence[int], p: Partition) -> None:
    """Absorb a run of observations of one tenant."""
    rows = trust.rows
    space = p.space(rows, events[0].tenant)
    find, dirty = space.get, p.dirty[rows.index].add
    other, low, pack = trust.other, trust.low, POINT.pack
    n_slow, told, rule, slots, judged_from, fades = 0, "", other, 0, 0.0, True  # of the kind that was told last; none is ""
    for event, offset, time_us in zip(events, offsets, times, strict=True):
        data = event.data
        kind = data.kind
        if kind != told:
            told, rule = kind, trust.kinds.get(kind, other)
            slots, judged_from, fades = rule.slots, rule.judged_from, rule.half_life_us is not None
        row = None if fades else find((kind, data.id))
        if row is None or row.applied >= offset or type(state := row.state) is not TrustState or not state.known:
            p.offset, p.time_us = offset, time_us
            trust.observed(event, p)
            n_slow += 1
            continue
        row.applied = offset
        dirty(row)
        alpha, beta = state.alpha, state.beta
        if data.success:
            alpha += data.weight
            if alpha > MOST:
                alpha = MOST
            state.alpha = alpha
        else:
            beta += data.weight
            if beta > MOST:
                beta = MOST
            state.beta = beta
        state.n_events += 1
        last, first = state.last_update, state.first
        if last is None or time_us > last:
            state.last_update = time_us
        if first is None or time_us < first:
            state.first = time_us
        n = alpha + beta
        if slots:
            points = state.points
            points += pack(time_us, alpha / n)
            if len(points) == FULL_BYTES:
                p.offset, p.time_us = offset, time_us
                trust.history.close(p, event.tenant, row.key, slots, state)
        if state.level or (n >= judged_from and alpha - 1.0 < low * n):
            p.offset, p.time_us = offset, time_us
            trust.weigh(event, p, row.key, rule, state, alpha, n)
    other.n_observed += len(events) - n_slow
