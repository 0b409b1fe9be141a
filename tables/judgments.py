"""Judgments and evaluations: sums by agent and judge, and how often a judge agrees with what the evaluation found.

The rules this file keeps: a verdict is compared once, with the last evaluation of its task that was absorbed before it (7 d
of event time), else with the first that comes after; both must be keyed alike, by the same agent or by none. What was
measured is shown, what could not be compared is not guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streams.events import EvaluationCompleted, JudgmentRecorded
from streams.keys import encode_key

from .agent_alerts import RECENT, judge_scores
from .alerting import LEVELS
from .facts import bucket, digest
from .fold import MergedRule, Reader, Standing, Verdict
from .performance_names import MOST_JUDGED_PAIRS, Rooms
from .performance_rows import EVALUATED, JUDGED, OTHER, Judgments
from .rooms import Pending
from .times import DAY_US
from .verdicts import Marks, marked, overall, pass_limits, said

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streams.events import Event

    from .partition import Partition
    from .performance_names import Ground
    from .performance_rows import Evaluations, PerformanceTables, TaskRoom
    from .performance_series import SeriesTables

FACT_BUCKETS = 8192
"""Rows of remembered evaluations and allocations, a tenant and partition."""
FACT_KEYS = tuple((str(i),) for i in range(FACT_BUCKETS))
PENDING_BUCKETS = 8192
"""Rows of verdicts that wait."""
TASK_BUCKETS = 8192
"""Rows of judged tasks."""
TASK_KEYS = tuple((str(i),) for i in range(TASK_BUCKETS))
MOST_TASKS = 8
"""Latest (task, judge) pairs kept a row."""
WEEK_US = 7 * DAY_US
MOST_CRITERIA = 100
MOST_RUBRICS = 100
MOST_CRITERIA_BYTES = 32_000
MOST_TASK_CRITERIA_BYTES = 1_000
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Judgments).decode


AGREEMENT = "judge.agreement"
AGREEMENT_LEAST, AGREEMENT_LOW, AGREEMENT_RESOLVED = 50, 0.7, 0.75


class JudgmentHandlers:
    """Handlers of `evaluation.completed` and `judgment.recorded`.

    Args:
        ground: tables, settings, and the rows that every event has.
        series: windows of the agents' figures.
    """

    def __init__(self, ground: Ground, series: SeriesTables) -> None:
        self.ground = ground
        self.kept = ground.kept
        self.series = series
        self.limits = pass_limits(ground.settings.criteria_pass)

    # ---- events

    def evaluated(self, event: Event, p: Partition) -> None:
        """An evaluation: remembered for the verdicts to come, and compared with those that wait for it."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: EvaluationCompleted = event.data
        agent = data.agent
        since_us = ground.moment(p, tenant) - WEEK_US
        fact, task = evaluation_fact(agent, data.task), verdict_fact(agent, data.task)
        facts = p.open(kept.facts, tenant, FACT_KEYS[bucket(fact, FACT_BUCKETS)])
        if facts is None:
            return
        facts.put(fact, p.time_us, int(data.passed), since_us)
        key = FACT_KEYS[bucket(task, PENDING_BUCKETS)]
        waiting: list[Pending] = []
        space = p.spaces[kept.pending.index].get(tenant)
        if space is not None and key in space:
            room = p.open(kept.pending, tenant, key)
            if room is None:
                return
            waiting = room.evaluated(task, since_us)
        admitted = agent is not None and ground.admits(p, tenant, agent)
        if ground.count(p, tenant, EVALUATED) is None:
            return
        if agent is not None and admitted:
            if ground.seen(p, tenant, agent, EVALUATED) is None:
                return
            self._evaluation(p, tenant, agent, data)
        compared: dict[tuple[str, str], list[tuple[bool, float]]] = {}
        for one in waiting:  # by row: a record opens each once, and those of all and of the agent are of every judge's
            for cell in self.cells(agent if admitted else None, one.judge):
                compared.setdefault(cell, []).append((one.agreed_if == data.passed, one.confidence))
        for cell, outcomes in compared.items():
            if ground.settled(p, kept.judgments, tenant, cell):
                state = p.open(kept.judgments, tenant, cell)
                if state is not None:
                    for agreed, confidence in outcomes:
                        compare(state, agreed, confidence)
        self.series.absorb(p, tenant, (("perf.evaluation", agent or "", "", data.score),))

    def judged(self, event: Event, p: Partition) -> None:
        """A judgment: by agent, by judge, by both, by task."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: JudgmentRecorded = event.data
        agent, judge = data.agent, data.judge
        score, marks = overall(data), marked(data, self.limits)
        says = said(data, marks)
        outcome: bool | None = None
        if judge is not None and says is not None:
            since_us = ground.moment(p, tenant) - WEEK_US
            fact, task = evaluation_fact(agent, data.task), verdict_fact(agent, data.task)
            key = FACT_KEYS[bucket(fact, FACT_BUCKETS)]
            facts = p.read(kept.facts, tenant, key)
            known = None if facts is None else facts.find(fact, since_us)
            if known is not None:
                outcome = says == bool(known[1])
            else:
                room = p.open(kept.pending, tenant, FACT_KEYS[bucket(task, PENDING_BUCKETS)])
                if room is None:
                    return
                room.add(Pending(task, p.time_us, says, data.overall_confidence, judge), since_us)
        keys = self._admit(p, tenant, agent, judge)
        admitted = agent is not None and (agent, "") in keys
        if ground.count(p, tenant, JUDGED) is None:
            return
        if agent is not None and admitted and ground.seen(p, tenant, agent, JUDGED) is None:
            return
        for cell in keys:
            state = p.open(kept.judgments, tenant, cell)
            if state is not None:
                if state.born < 0:
                    state.born = p.offset
                add(state, data, score, says, marks)
                if outcome is not None:
                    compare(state, outcome, data.overall_confidence)
        self._by_task(p, tenant, data, score, says, marks)
        if agent is not None and admitted:
            watch = p.open(kept.judged, tenant, (agent,))
            if watch is not None:
                watch.recent = [*watch.recent[1 - RECENT :], score]
                judge_scores(p, event, watch.standing, agent, watch.recent)
        self.series.absorb(p, tenant, (("perf.judgment", agent or "", "", score),))

    # ---- steps

    def cells(self, agent: str | None, judge: str | None) -> list[tuple[str, str]]:
        """Keys of the sums that a judgment belongs to: all, the agent's, the judge's, those of both."""
        keys = [("", "")]
        if agent is not None:
            keys.append((agent, ""))
        if judge is not None:
            keys.append(("", judge))
            if agent is not None:
                keys.append((agent, judge))
        return keys

    def _admit(self, p: Partition, tenant: str, agent: str | None, judge: str | None) -> list[tuple[str, str]]:
        """Keys of the sums that are kept of a judgment, or for which there is room."""
        ground, kept = self.ground, self.kept
        new_agent = agent is not None and not ground.settled(p, kept.agents, tenant, (agent,))
        new_judge = judge is not None and not ground.settled(p, kept.judgments, tenant, ("", judge))
        new_pair = agent is not None and judge is not None and not ground.settled(p, kept.judgments, tenant, (agent, judge))
        if new_agent or new_judge or new_pair:
            rooms = Rooms(p, kept, tenant)
            if new_agent and not rooms.take("agents", ground.settings.max_agents):
                agent = None
            if new_judge and not rooms.take("judges", ground.settings.max_judges):
                judge = None
            pair = agent is not None and judge is not None and (not new_pair or rooms.take("judged_pairs", MOST_JUDGED_PAIRS))
            rooms.close()
            keys = self.cells(agent, judge)
            return keys if pair else [key for key in keys if not (key[0] and key[1])]
        return self.cells(agent, judge)

    def _evaluation(self, p: Partition, tenant: str, agent: str, data: EvaluationCompleted) -> None:
        state: Evaluations | None = p.open(self.kept.evaluations, tenant, (agent,))
        if state is None:
            return
        n = state.n = state.n + 1
        state.passed += data.passed
        state.score += (data.score - state.score) / n
        for name, score in (data.rubric_scores or {}).items():
            if name not in state.rubrics and not _room(state.rubrics, name, MOST_RUBRICS, MOST_CRITERIA_BYTES):
                name = OTHER
            count, mean = state.rubrics.get(name, (0, 0.0))
            state.rubrics[name] = (count + 1, mean + (score - mean) / (count + 1))

    def _by_task(self, p: Partition, tenant: str, data: JudgmentRecorded, score: float, says: bool | None, marks: Marks) -> None:
        task, agent, judge = data.task, data.agent or "", data.judge or ""
        room = p.open(self.kept.tasks, tenant, TASK_KEYS[bucket(digest(task), TASK_BUCKETS)])
        if room is None:
            return
        entries, name = room.entries, "\0".join((task, agent, judge))
        packed = entries.get(name)
        if packed is None:
            sums = Judgments(p.offset)
            if len(entries) >= MOST_TASKS:
                del entries[next(iter(entries))]
        else:
            sums = _unpack(packed)
        add(sums, data, score, says, marks, MOST_TASK_CRITERIA_BYTES)
        entries[name] = _pack(sums)


def of_task(rooms: Iterable[TaskRoom], task: str, agent: str | None, judge: str | None) -> list[Judgments]:
    """Judgments of a task in its buckets, by an agent or a judge if they are given."""
    found = []
    for room in rooms:
        for name, packed in room.entries.items():
            of, by_agent, by_judge = name.split("\0")
            if of == task and (agent is None or by_agent == agent) and (judge is None or by_judge == judge):
                found.append(_unpack(packed))
    return found


def add(state: Judgments, data: JudgmentRecorded, score: float, says: bool | None, marks: Marks, most_bytes: int = MOST_CRITERIA_BYTES) -> None:
    """Add a judgment to sums.

    Args:
        score: overall.
        says: whether all criteria pass; None = unknown.
        marks: (name, score, whether it passes) of each criterion.
        most_bytes: of the criteria's names.
    """
    n = state.n = state.n + 1
    state.overall += (score - state.overall) / n
    state.confidence += (data.overall_confidence - state.confidence) / n
    state.evaluation_ms += (data.evaluation_time_ms - state.evaluation_ms) / n
    if says is not None:
        state.verdicts += 1
        state.passes += says
    criteria = state.criteria
    for name, value, passed in marks:
        found = criteria.get(name)
        if found is None and name != OTHER:
            size = len(name.encode())
            if len(criteria) >= MOST_CRITERIA or state.size + size > most_bytes:
                name = OTHER
                found = criteria.get(name)
            else:
                state.size += size
        if found is None:
            criteria[name] = (1, value, int(passed))
        else:
            count, mean, passes = found
            count += 1
            criteria[name] = (count, mean + (value - mean) / count, passes + passed)


def evaluation_fact(agent: str | None, task: str) -> bytes:
    """Digest under which a task's evaluation is remembered."""
    return digest("evaluation", agent or "", task)


def verdict_fact(agent: str | None, task: str) -> bytes:
    """Digest under which verdicts on a task wait."""
    return digest("verdict", agent or "", task)


def compare(state: Judgments, agreed: bool, confidence: float) -> None:
    """Count a verdict that was compared with an evaluation."""
    state.joined += 1
    state.agreed += agreed
    state.brier += (confidence - agreed) ** 2


def _room(names: Mapping[str, object], name: str, most: int, most_bytes: int) -> bool:
    """Whether a new name fits into a row."""
    return len(names) < most and sum(len(one.encode()) for one in names) + len(name.encode()) <= most_bytes


# ---- reading


def merged(states: Iterable[Judgments]) -> Judgments:
    """One sum of several; they stay as they are."""
    whole = Judgments()
    for one in states:
        if not one.n:
            continue
        n = whole.n = whole.n + one.n
        part = one.n / n
        whole.overall += (one.overall - whole.overall) * part
        whole.confidence += (one.confidence - whole.confidence) * part
        whole.evaluation_ms += (one.evaluation_ms - whole.evaluation_ms) * part
        whole.verdicts += one.verdicts
        whole.passes += one.passes
        for name, (count, mean, passes) in one.criteria.items():
            have, old, passed = whole.criteria.get(name, (0, 0.0, 0))
            total = have + count
            whole.criteria[name] = (total, old + (mean - old) * (count / total), passed + passes)
        whole.joined += one.joined
        whole.agreed += one.agreed
        whole.brier += one.brier
    return whole


def summary(sums: Judgments) -> dict[str, Any]:
    """The fields of ``/judgments/summary``; null without judgments."""
    n, joined = sums.n, sums.joined
    return {
        "n": n,
        "all_pass_rate": sums.passes / sums.verdicts if sums.verdicts else None,
        "verdicts": sums.verdicts,
        "avg_overall_score": sums.overall if n else None,
        "avg_confidence": sums.confidence if n else None,
        "avg_evaluation_time_ms": sums.evaluation_ms if n else None,
        "criteria": {name: {"n": count, "mean": mean, "pass_rate": passes / count} for name, (count, mean, passes) in sorted(sums.criteria.items())},
        "calibration": {
            "n": joined,
            "agreement": sums.agreed / joined if joined else None,
            "brier": sums.brier / joined if joined else None,
            "unjoined": sums.verdicts - joined,
        },
    }


def agreement_rule(kept: PerformanceTables) -> MergedRule:
    """``judge.agreement``; its subject is the judge, encoded as in record keys."""

    def judge(reader: Reader, key: tuple[str, ...], standing: Standing) -> Verdict | None:
        agent, name = key
        if agent or not name:
            return None
        states = reader.rows(kept.judgments, key)
        joined = sum(state.joined for state in states)
        agreed = sum(state.agreed for state in states)
        ok, warning = LEVELS[0], LEVELS[2]
        if standing.level != ok and not joined:
            return Verdict(ok, None, None, f"Judge {name}: its records were cleared; nothing to do.", "cleared")
        if not joined:
            return None
        rate = agreed / joined
        says = f"Judge {name} agrees with {rate:.0%} of {joined} evaluations"
        if standing.level == ok:
            if joined >= AGREEMENT_LEAST and rate < AGREEMENT_LOW:
                return Verdict(warning, rate, AGREEMENT_LOW, f"{says}: look at its prompt and criteria, or take another judge.")
        elif rate >= AGREEMENT_RESOLVED:
            return Verdict(ok, rate, AGREEMENT_LOW, f"{says}: it has recovered, nothing to do.")
        return None

    return MergedRule(AGREEMENT, "judgments", kept.judgments, lambda key: encode_key(key[1]).decode(), judge)
