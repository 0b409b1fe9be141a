"""Runs of trust observations: what `Trust.observed` does, for many events at a time.

The rule this file keeps: the rows are the same to the last bit as if each event had come alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter
from struct import Struct
from typing import TYPE_CHECKING

from .trust_evidence import MOST
from .trust_history import FULL_BYTES, POINT, SEGMENT
from .trust_state import LONG_AGO, TrustState

if TYPE_CHECKING:
    from streams.events import Event, TrustObserved

    from .partition import Partition
    from .rows import Row
    from .trust import Trust
    from .trust_evidence import KindRule


FEW = 2
"""Events a key, on the average, from which a run is absorbed key by key."""
PACK = [Struct("<" + n * POINT.format.removeprefix("<")).pack for n in range(SEGMENT + 1)]
"""By number of history points: packs them, each as `POINT` does."""
_offset = attrgetter("offset")


def observed_run(trust: Trust, events: Sequence[Event], data: Sequence[TrustObserved], offsets: Sequence[int], times: Sequence[int], p: Partition) -> None:
    """Absorb a run of observations of one tenant."""
    tenant = events[0].tenant
    absorb = _by_key if len(p.space(trust.rows, tenant)) * FEW <= len(events) else _in_turn
    n_slow = absorb(trust, tenant, events, data, offsets, times, p)  # counts there too
    trust.other.n_observed += len(events) - n_slow


def _by_key(
    trust: Trust, tenant: str, events: Sequence[Event], observations: Sequence[TrustObserved], offsets: Sequence[int], times: Sequence[int], p: Partition
) -> int:
    """All events of a key, then those of the next: its figures are at hand meanwhile. Returns how many `Trust.observed` has counted."""
    find, dirty = p.space(trust.rows, tenant).get, p.dirty[trust.rows.index].add
    n_slow, told = 0, len(p.outputs)
    for key, mine in _places(observations):
        rule = trust.kinds.get(key[0], trust.other)
        row = None if rule.half_life_us is not None else find(key)
        if (
            row is None
            or row.applied >= offsets[mine[0]]
            or type(state := row.state) is not TrustState
            or not state.known
            or state.level
            or not _calmly(trust, row, rule, mine, observations, offsets, times, p)
        ):
            for at in mine:
                p.offset, p.time_us = offsets[at], times[at]
                trust.observed(events[at], p)
            n_slow += len(mine)
            continue
        row.applied = offsets[mine[-1]]
        dirty(row)
    if len(p.outputs) - told > 1:
        p.outputs[told:] = sorted(p.outputs[told:], key=_offset)  # as if each event had come in its turn
    return n_slow


def _places(observations: Sequence[TrustObserved]) -> Iterable[tuple[tuple[str, str], list[int]]]:
    """Keys, each with the places of its observations, which rise."""
    kind = observations[0].kind
    if {one.kind for one in observations} == {kind}:  # as almost always; a name costs half of a pair
        named: defaultdict[str, list[int]] = defaultdict(list)
        for at, one in enumerate(observations):
            named[one.id].append(at)
        return [((kind, id), places) for id, places in named.items()]
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for at, one in enumerate(observations):
        found[(one.kind, one.id)].append(at)
    return found.items()


def _calmly(
    trust: Trust,
    row: Row,
    rule: KindRule,
    mine: Sequence[int],
    observations: Sequence[TrustObserved],
    offsets: Sequence[int],
    times: Sequence[int],
    p: Partition,
) -> bool:
    """Absorb the events of a key whose alert is not open, if none of them opens it. False: that is not plain, and nothing is changed.

    Evidence only grows, so trust is nowhere below what the first alpha and the last sum make.
    """
    state: TrustState = row.state
    alpha, beta, last, first = state.alpha, state.beta, state.last_update, state.first
    last = LONG_AGO if last is None else last
    first = -LONG_AGO if first is None else first
    points: list[float] = []  # time, trust, time, trust ...
    add = points.append
    for at in mine:
        one, time_us = observations[at], times[at]
        if one.success:
            alpha += one.weight
        else:
            beta += one.weight
        if time_us > last:
            last = time_us
        if time_us < first:
            first = time_us
        add(time_us)
        add(alpha / (alpha + beta))
    n = alpha + beta
    if alpha > MOST or beta > MOST or (n >= rule.judged_from and state.alpha - 1.0 < trust.low * n):
        return False
    state.alpha, state.beta, state.last_update, state.first = alpha, beta, last, first
    state.n_events += len(mine)
    if rule.slots:
        done, n_mine = 0, len(mine)
        while n_mine - done >= (room := (FULL_BYTES - len(state.points)) // POINT.size):
            state.points += PACK[room](*points[2 * done : 2 * (done + room)])
            done += room
            p.offset, p.time_us = offsets[mine[done - 1]], times[mine[done - 1]]
            trust.history.close(p, row.tenant, row.key, rule.slots, state)
        state.points += PACK[n_mine - done](*(points[2 * done :] if done else points))
    return True


def _in_turn(
    trust: Trust, tenant: str, events: Sequence[Event], observations: Sequence[TrustObserved], offsets: Sequence[int], times: Sequence[int], p: Partition
) -> int:
    """Event by event. Returns how many `Trust.observed` has counted."""
    rows = trust.rows
    space = p.space(rows, tenant)
    find, dirty = space.get, p.dirty[rows.index].add
    other, low, pack = trust.other, trust.low, POINT.pack
    n_slow, told, rule, slots, judged_from, fades = 0, "", other, 0, 0.0, True  # of the kind that was told last; none is ""
    for event, data, offset, time_us in zip(events, observations, offsets, times, strict=True):
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
                trust.history.close(p, tenant, row.key, slots, state)
        if state.level or (n >= judged_from and alpha - 1.0 < low * n):
            p.offset, p.time_us = offset, time_us
            trust.weigh(event, p, row.key, rule, state, alpha, n)
    return n_slow
