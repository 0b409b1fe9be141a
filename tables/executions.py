"""Executions of tasks: starts and completions joined in either order, and everything that counts them.

The rules this file keeps:
  * what an execution_id has seen (a start, a completion) is a fact of its digest, remembered for 24 h of event time; so a
    second completion is known whatever else happened to the first;
  * who waits for the other half is kept beside it, under (agent, task), with the names under which it was counted;
  * a completion that comes before its start counts at once; the start adds the duration. A completion that names no task
    type takes that of its start, where the start is known by then; else the type is `unknown`.

Abandoned executions are not written anywhere: they are the starts without completion, less those that wait no longer than
the timeout (`performance_views`). So a completion that comes late takes the mark back by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.events import TaskCompleted, TaskStarted

from .agent_alerts import SEGMENT, SEGMENTS, SLOTS, Completions, append, watch
from .facts import bucket, digest
from .performance_rows import COMPLETED, STARTED, UNKNOWN, Sums
from .prediction import backed_off
from .rooms import EARLY, EARLY_TIMED, OPEN, TAKEN, Waiting
from .times import DAY_US

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .performance_names import Admitted, Ground
    from .performance_series import SeriesTables
    from .rows import Table

ID_BUCKETS = 16_384
"""Rows of remembered execution ids, a tenant and partition."""
WAITING_BUCKETS = 1024
"""Rows of those who wait; views go through all of them."""
_IDS = tuple((str(i),) for i in range(ID_BUCKETS))
WAITING_KEYS = tuple((str(i),) for i in range(WAITING_BUCKETS))

HAS_START, HAS_COMPLETION = 1, 2
"""Bits of a remembered execution; the bits above are the bucket where its half waits."""


class Executions:
    """Handlers of `task.started` and `task.completed`.

    Args:
        ground: tables, settings, and the rows that every event has.
        series: windows of the agents' figures.
    """

    def __init__(self, ground: Ground, series: SeriesTables) -> None:
        self.ground = ground
        self.kept = ground.kept
        self.series = series
        self.strength = ground.settings.predict_strength

    # ---- events

    def started(self, event: Event, p: Partition) -> None:
        """A start: waits for its completion, or adds the duration to the one that was here first."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: TaskStarted = event.data
        agent, time_us = data.agent, p.time_us
        since_us = ground.moment(p, tenant) - DAY_US
        execution, task = digest(agent, data.execution_id), digest(agent, data.task)
        facts = p.open(kept.executions, tenant, _IDS[bucket(execution, ID_BUCKETS)])
        if facts is None:
            return
        place = bucket(task, WAITING_BUCKETS)
        at = facts.place(execution)
        known = facts.told(at, since_us)
        seen = 0 if known is None else known[1]
        if seen & HAS_START:
            repeated = True
        else:
            repeated = False
            if known is None:
                facts.put(execution, time_us, place << 2 | HAS_START, since_us, at)
            else:
                place = seen >> 2
                facts.put(execution, known[0], seen | HAS_START, since_us, at)
        early: Waiting | None = None
        if not repeated:
            room = p.open(kept.waiting, tenant, WAITING_KEYS[place])
            if room is None:
                return
            if seen & HAS_COMPLETION:
                there = room.of_execution(execution, since_us)
                if there >= 0:
                    early = room.out(there)
            else:
                room.add(Waiting(execution, task, time_us, OPEN, agent, data.task_type or "", data.model_version or ""), since_us)
        task_type, version = data.task_type or UNKNOWN, data.model_version or ""
        admitted = ground.admit(p, tenant, agent, task_type, version)
        if ground.count(p, tenant, STARTED) is None:
            return
        duration_ms, negative = None, False
        if early is not None and early.state == EARLY:
            duration_ms, negative = lasting(time_us, early.time_us)
        finished = bool(seen & HAS_COMPLETION)
        if admitted.agent:
            state = ground.seen(p, tenant, agent, STARTED)
            if state is None:
                return
            _started(state.sums, repeated, finished, early is not None, duration_ms, negative, sketched=False)
        types = p.open(kept.task_types, tenant, (admitted.task_type,))
        if types is None:
            return
        if types.born < 0:
            types.born = p.offset
        if duration_ms is not None:
            # the completion's own time lies behind; its figure is filed under the start's
            self.series.absorb(p, tenant, (("perf.duration_ms", agent, (early and early.task_type) or UNKNOWN, duration_ms),))
        after = admitted
        if early is not None and ((early.task_type or UNKNOWN) != task_type or early.model_version != version):
            after = ground.known(p, tenant, agent, early.task_type or UNKNOWN, early.model_version)
        for table, start_key, end_key in self.cells(admitted, after, agent):
            start = p.open(table, tenant, start_key)
            end = start if start_key == end_key or early is None else p.open(table, tenant, end_key)
            if start is not None:
                start.at(time_us, p.offset)
                _started(start, repeated, finished, False, None, False)
            if early is not None and end is not None:
                _started(end, True, False, True, duration_ms, negative, again=True)

    def completed(self, event: Event, p: Partition) -> None:
        """A completion: counts as the success or failure it says, unless its execution_id has completed before."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: TaskCompleted = event.data
        agent, time_us, success = data.agent, p.time_us, data.success
        since_us = ground.moment(p, tenant) - DAY_US
        task = digest(agent, data.task)
        place = bucket(task, WAITING_BUCKETS)
        duplicate = started = False
        execution = b""
        if data.execution_id is not None:
            execution = digest(agent, data.execution_id)
            facts = p.open(kept.executions, tenant, _IDS[bucket(execution, ID_BUCKETS)])
            if facts is None:
                return
            at = facts.place(execution)
            known = facts.told(at, since_us)
            if known is not None:
                duplicate, started = bool(known[1] & HAS_COMPLETION), bool(known[1] & HAS_START)
                if started:
                    place = known[1] >> 2
            if not duplicate:
                facts.put(execution, time_us, place << 2 | HAS_COMPLETION | (HAS_START if started else 0), since_us, at)
        start: Waiting | None = None
        if not duplicate:
            room = p.open(kept.waiting, tenant, WAITING_KEYS[place])
            if room is None:
                return
            if data.execution_id is None:
                there = room.only_open(task, since_us)
                if there >= 0:
                    start = room.take(there)
                    started = True
            elif started:
                there = room.of_execution(execution, since_us)
                if there >= 0:
                    start = room.out(there)
                    duplicate = start.state == TAKEN  # a completion without execution_id was its end
            else:
                state = EARLY if data.duration_ms is None else EARLY_TIMED
                room.add(Waiting(execution, task, time_us, state, agent, data.task_type or "", data.model_version or ""), since_us)
        task_type = data.task_type or (start.task_type if start is not None else "") or UNKNOWN
        version = data.model_version or (start.model_version if start is not None else "")
        admitted = ground.admit(p, tenant, agent, task_type, version)
        if duplicate:
            self._duplicate(p, tenant, agent, admitted)
            return
        duration_ms, negative = data.duration_ms, False
        if duration_ms is None and start is not None:
            duration_ms, negative = lasting(start.time_us, time_us)
        quality, efficiency, tokens = data.quality, data.efficiency, data.tokens
        joined = start is not None

        totals = ground.count(p, tenant, COMPLETED)
        if totals is None:
            return
        all_n, all_s = totals.executions, totals.successes
        totals.executions += 1
        if success:
            totals.successes += 1
        agent_n = agent_s = both_n = both_s = 0
        number = -1
        if admitted.agent:
            state_of = ground.seen(p, tenant, agent, COMPLETED)
            if state_of is None:
                return
            sums = state_of.sums
            number = sums.executions
            agent_n, agent_s = number, sums.successes
            sums.complete(success, quality, efficiency, tokens, duration_ms, joined, negative, False)
            if started:
                sums.finished += 1
            both = p.open(kept.agent_types, tenant, (agent, admitted.own_type))
            if both is None:
                return
            both_n, both_s = both.n, both.s
            both.n += 1
            if success:
                both.s += 1
        types = p.open(kept.task_types, tenant, (admitted.task_type,))
        if types is None:
            return
        if types.born < 0:
            types.born = p.offset
        probability = backed_off((all_n, all_s), (types.n, types.s), (agent_n, agent_s), (both_n, both_s), self.strength)
        types.score.add(probability, (all_s + 1.0) / (all_n + 2.0), success)
        types.n += 1
        if success:
            types.s += 1

        figures = [("perf.success", agent, admitted.own_type, 1.0 if success else 0.0)]
        if quality is not None:
            figures.append(("perf.quality", agent, admitted.own_type, quality))
        if efficiency is not None:
            figures.append(("perf.efficiency", agent, admitted.own_type, efficiency))
        if duration_ms is not None:
            figures.append(("perf.duration_ms", agent, admitted.own_type, duration_ms))
        if tokens is not None:
            figures.append(("perf.tokens", agent, admitted.own_type, float(tokens)))
        self.series.absorb(p, tenant, figures)

        before = admitted
        if start is not None and ((start.task_type or UNKNOWN) != task_type or start.model_version != version):
            before = ground.known(p, tenant, agent, start.task_type or UNKNOWN, start.model_version)
        for table, end_key, start_key in self.cells(admitted, before, agent):
            end = p.open(table, tenant, end_key)
            begin = end if start_key == end_key or not started else p.open(table, tenant, start_key)
            if end is not None:
                end.at(time_us, p.offset)
                end.complete(success, quality, efficiency, tokens, duration_ms, joined, negative)
            if started and begin is not None:
                begin.finished += 1
        if admitted.agent:
            self._watch(p, event, agent, number, success, quality, duration_ms)

    # ---- steps

    def cells(self, one: Admitted, other: Admitted, agent: str) -> list[tuple[Table[Sums], tuple[str, ...], tuple[str, ...]]]:
        """Rows of executions by task type and model version: (table, key of the one, key of the other)."""
        found: list[tuple[Table[Sums], tuple[str, ...], tuple[str, ...]]] = []
        if one.agent:
            found.append((self.kept.pairs, (agent, one.own_type, one.own_version), (agent, other.own_type, other.own_version)))
        found.append((self.kept.sums, (one.task_type, one.version), (other.task_type, other.version)))
        return found

    def _duplicate(self, p: Partition, tenant: str, agent: str, admitted: Admitted) -> None:
        if admitted.agent:
            state = p.open(self.kept.agents, tenant, (agent,))
            if state is None:
                return
            if state.born < 0:
                state.born = p.offset
            state.sums.duplicates += 1
        types = p.open(self.kept.task_types, tenant, (admitted.task_type,))
        if types is None:
            return
        if types.born < 0:
            types.born = p.offset
        for table, key, _ in self.cells(admitted, admitted, agent):
            sums = p.open(table, tenant, key)
            if sums is not None:
                sums.duplicates += 1
                if sums.born < 0:
                    sums.born = p.offset

    def _watch(self, p: Partition, event: Event, agent: str, number: int, success: bool, quality: float | None, duration_ms: float | None) -> None:
        kept, tenant = self.kept, event.tenant
        ring = p.open(kept.rings, tenant, (agent, SLOTS[number // SEGMENT % SEGMENTS]))
        if ring is None:
            return
        append(ring, number, success, quality, duration_ms)
        state = p.open(kept.watches, tenant, (agent,))
        if state is not None:
            watch(p, event, state, Completions(p, kept.rings, tenant, agent, number, ring.entries), agent, success, quality, duration_ms)


def lasting(start_us: int, end_us: int) -> tuple[float | None, bool]:
    """(duration in ms, whether the end lies before the start: then there is no duration)."""
    return (None, True) if end_us < start_us else ((end_us - start_us) / 1000.0, False)


def _started(
    sums: Sums, repeated: bool, finished: bool, joined: bool, duration_ms: float | None, negative: bool, sketched: bool = True, again: bool = False
) -> None:
    """Count a start, and what it says of the completion that was here first.

    Args:
        repeated: the execution has a start; with `again` it is counted in another row, else as a repeat.
        finished: its completion is known.
        joined: this row has that completion.
    """
    if not repeated:
        sums.starts += 1
        if finished:
            sums.finished += 1
    elif not again:
        sums.repeats += 1
    if joined:
        sums.joined += 1
    if negative:
        sums.negative += 1
    if duration_ms is not None:
        sums.last(duration_ms, sketched)
