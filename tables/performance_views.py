"""Agents and their work as they are asked for: partials merged, what waits measured against the watermark.

The rules this file keeps: what nobody measured is null, never 0; an execution is abandoned when its start lies more than the
timeout behind the watermark of its own partition; an agent is known from its first event on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from streams.events import AgentScored

from . import beta
from .facts import bucket, digest
from .fold import BadParameter, NotFound, Reader, View, names
from .judgments import TASK_BUCKETS, TASK_KEYS, merged, of_task, summary
from .moments import plain_sum
from .orders import Key, Order, Place, Source, same, whole_of
from .performance_rows import (
    CLASSES,
    COMPLEXITIES,
    EVALUATED,
    KINDS,
    REFERENCE_TOKENS,
    ROUTED,
    SEVERITIES,
    STRATEGIES,
    UNKNOWN,
    Agent,
    Budgets,
    Compliance,
    Minimality,
    Profile,
    Routing,
    Sums,
)
from .performance_series import Trends, trend
from .prediction import Evidence, Score, predict
from .times import SECOND_US, rfc3339_or_none

if TYPE_CHECKING:
    from .performance_rows import Judgments, PerformanceSettings, PerformanceTables
    from .performance_series import SeriesTables
    from .rows import Table
    from .trust import Trust
    from .windows import Windows

QUANTILES = (0.5, 0.95, 0.99)
TOPIC = "judgments"
OUTSIDE = 0.05
"""Probability outside a prediction's interval, on each side."""
MOST_ASKED = 1_000
SEVERITY_POINTS = (1, 2, 3, 4)

Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class StatsParams(msgspec.Struct, frozen=True):
    """``/performance/stats``"""

    agent: str | None = None
    task_type: str | None = None
    model_version: str | None = None


class AgentParams(msgspec.Struct, frozen=True):
    """``/agents/{id}``"""

    id: str


class AgentsParams(msgspec.Struct, frozen=True):
    """``/agents``; sorted from best to worst, without `sort` by name."""

    status: Literal["available", "busy", "offline", "maintenance"] | None = None
    capability: str | None = None
    task_type: str | None = None
    name: str | None = None
    sort: Literal["success_rate", "quality", "latency", "executions"] | None = None
    limit: Limit = 100
    cursor: str | None = None


class JudgmentParams(msgspec.Struct, frozen=True):
    """``/judgments/summary``"""

    judge: str | None = None
    agent: str | None = None
    task: str | None = None


class PredictParams(msgspec.Struct, frozen=True):
    """``/predict``: `agents` are comma-separated or repeated; several are ranked."""

    agent: str | None = None
    agents: list[str] | None = None
    task_type: str | None = None


def times_of(first_us: int, last_us: int) -> tuple[str | None, str | None]:
    """Least and greatest event time as text; null where there was no event."""
    return (None, None) if first_us > last_us else (rfc3339_or_none(first_us), rfc3339_or_none(last_us))


def durations_of(sums: Sums) -> dict[str, Any]:
    """Figures of durations, ms."""
    some = sums.durations > 0
    quantiles: list[float | None] = [None] * len(QUANTILES)
    if sums.sketch is not None:
        quantiles = sums.sketch.quantiles(QUANTILES, sums.shortest, sums.longest)
    return {
        "n": sums.durations,
        "mean": sums.duration if some else None,
        "min": sums.shortest if some else None,
        "max": sums.longest if some else None,
        "p50": quantiles[0],
        "p95": quantiles[1],
        "p99": quantiles[2],
    }


def executions_of(sums: Sums, open_: int) -> dict[str, Any]:
    """Counters of executions.

    Args:
        open_: starts that wait for their completion, and not too long.
    """
    return {
        "executions": sums.executions,
        "successes": sums.successes,
        "success_rate": sums.successes / sums.executions if sums.executions else None,
        "avg_quality": sums.quality / sums.qualities if sums.qualities else None,
        "with_quality": sums.qualities,
        "avg_efficiency": sums.efficiency / sums.efficiencies if sums.efficiencies else None,
        "with_efficiency": sums.efficiencies,
        "tokens": sums.tokens,
        "with_tokens": sums.token_counts,
        "duration_ms": durations_of(sums),
        "starts": sums.starts,
        "open_executions": open_,
        "abandoned": max(0, sums.starts - sums.finished - open_),
        "completed_without_start": sums.executions - sums.joined,
        "duplicate_completions": sums.duplicates,
        "repeated_starts": sums.repeats,
        "negative_duration": sums.negative,
    }


class Figures:
    """Merging and rendering.

    Args:
        kept: the tables.
        settings: timeout, strength of predictions.
        trust: who knows how far agents are trusted.
    """

    def __init__(self, kept: PerformanceTables, settings: PerformanceSettings, trust: Trust | None) -> None:
        self.kept = kept
        self.settings = settings
        self.timeout_us = int(settings.task_timeout * SECOND_US)
        self.trust = trust
        one_part: dict[Table[Any], Callable[[Key], Key]] = dict.fromkeys((kept.profiles, kept.agent_types), lambda key: key[:1])
        self.agents: Source[Agent] = Source({kept.agents: same}, self.every_agent, lambda reader, key: self.agent(reader, key[0]))
        self.filtered: Source[Agent] = Source({kept.agents: same, **one_part}, self.agents.every, self.agents.one)

    # ---- executions

    def waiting(self, reader: Reader, agent: str | None = None) -> list[tuple[str, str, str]]:
        """(agent, task type, model version) of every start that waits, and not too long; of one agent, if so asked."""
        watermarks = reader.watermarks(TOPIC)
        found: list[str] = []
        for number, room in reader.everywhere(self.kept.waiting):
            if len(room.names) > room.early:
                found += room.open_names(watermarks.get(number, 0) - self.timeout_us)
        if agent is not None:
            begin = agent + "\0"
            found = [name for name in found if name.startswith(begin)]
        return [(name, task_type or UNKNOWN, version) for name, task_type, version in (one.split("\0") for one in found)]

    def agent(self, reader: Reader, name: str) -> Agent | None:
        """An agent's events and executions; None for one never seen. It has one row, unless events of it went astray."""
        return joined_agent(reader.rows(self.kept.agents, (name,)))

    def every_agent(self, reader: Reader) -> Iterator[tuple[Key, Agent]]:
        """All agents, in no particular order."""
        return ((key, state) for key, states in reader.scan(self.kept.agents) if (state := joined_agent(states)) is not None)

    def pairs(self, reader: Reader, name: str) -> list[tuple[str, str]]:
        """Pairs of task type and model version that an agent has."""
        return sorted({pair for state in reader.rows(self.kept.names, (name,)) for pair in state.pairs})

    def of_agent(self, reader: Reader, name: str, task_type: str | None = None, version: str | None = None) -> Sums:
        """Executions of an agent, sketches included."""
        whole = Sums()
        for pair in self.pairs(reader, name):
            if (task_type is None or pair[0] == task_type) and (version is None or pair[1] == version):
                for state in reader.rows(self.kept.pairs, (name, *pair)):
                    whole.merge(state)
        return whole

    def of_tenant(self, reader: Reader, task_type: str | None, version: str | None) -> Sums:
        """Executions of all agents."""
        whole = Sums()
        if task_type is not None and version is not None:
            states: Iterable[Sums] = reader.rows(self.kept.sums, (task_type, version))
        else:
            states = (
                state
                for key, found in sorted(reader.scan(self.kept.sums), key=itemgetter(0))  # so that every worker rounds alike
                if (task_type is None or key[0] == task_type) and (version is None or key[1] == version)
                for state in found
            )
        for state in states:
            whole.merge(state)
        return whole

    def stats(self, reader: Reader, q: StatsParams) -> dict[str, Any]:
        """Body of ``/performance/stats``. Events without a task type (all but executions) are null where one is asked for."""
        kept = self.kept
        narrow = q.task_type is not None or q.model_version is not None
        filters = (q.task_type, q.model_version)
        sums = self.of_tenant(reader, *filters) if q.agent is None else self.of_agent(reader, q.agent, *filters)
        events: list[int] | None = None
        first_us, last_us = sums.first_us, sums.last_us
        if not narrow:
            totals: Iterable[Any]
            if q.agent is None:
                totals = reader.rows(kept.totals, ())
            else:
                state = self.agent(reader, q.agent)
                totals = [] if state is None else [state]
            events = [0] * len(KINDS)
            for one in totals:
                events = [a + b for a, b in zip(events, one.events, strict=True)]
                first_us, last_us = min(first_us, one.first_us), max(last_us, one.last_us)
        open_ = sum(
            (q.task_type is None or task_type == q.task_type) and (q.model_version is None or version == q.model_version)
            for _, task_type, version in self.waiting(reader, q.agent)
        )
        counters = executions_of(sums, open_)
        first, last = times_of(first_us, last_us)
        switches = reader.rows(kept.switch, ())
        newest = max(switches, key=lambda one: one.time_us, default=None)
        answer: dict[str, Any] = {
            "total_routing_decisions": None if events is None else events[ROUTED],
            "total_task_executions": sums.executions,
            "total_evaluation_outcomes": None if events is None else events[EVALUATED],
            "average_completion_time_ms": sums.duration if sums.durations else None,
            "with_duration": sums.durations,
            "overall_success_rate": counters["success_rate"],
            "first_event": first,
            "last_event": last,
            **counters,
            "events": None if events is None else dict(zip(KINDS, events, strict=True)),
            "collecting": newest is None or not newest.off,
            "collection_reason": None if newest is None else newest.reason,
        }
        if q.agent is None and not narrow:
            customs = {key[0]: sum(state.n for state in states) for key, states in reader.scan(kept.custom)}
            answer["custom"] = {name: n for name, n in sorted(customs.items()) if n}
            answer["overflow"] = sum(state.overflow for state in reader.rows(kept.register, ()))
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        return answer

    # ---- agents

    def profile(self, reader: Reader, name: str) -> Profile:
        """What an agent is said to be; of several rows the one that was registered or changed last."""
        return latest(reader.rows(self.kept.profiles, (name,)))

    def trust_of(self, reader: Reader, name: str) -> float | None:
        """How far an agent is trusted now: the prior's mean where nobody observed it; None without the table of trust."""
        if self.trust is None:
            return None
        rule = self.trust.rule("agent")
        state = rule.merge(reader.rows(self.trust.rows, ("agent", name)))
        as_of = reader.as_of()
        at_us = reader.now_us if as_of is None else max(reader.now_us, as_of)
        alpha, beta_ = (rule.a0, rule.b0) if state is None else rule.counts(state, at_us)
        return alpha / (alpha + beta_)

    def scored(self, reader: Reader, key: tuple[str, ...]) -> AgentScored | None:
        """What the topic ``scores`` is told of an agent whose row changed."""
        state = self.agent(reader, key[0])
        return None if state is None else AgentScored(agent=key[0], score=self.score(reader, key[0], state))

    def score(self, reader: Reader, name: str, state: Agent) -> dict[str, Any]:
        """The fields of an agent in lists, and of ``agent.scored.v1``."""
        profile, sums = self.profile(reader, name), state.sums
        durations = durations_of(self.of_agent(reader, name))
        return {
            "agent": name,
            "registered": profile.registrations > 0,
            "capabilities": list(profile.capabilities),
            "status": profile.status,
            "executions": sums.executions,
            "successes": sums.successes,
            "success_rate": sums.successes / sums.executions if sums.executions else None,
            "avg_quality": sums.quality / sums.qualities if sums.qualities else None,
            "tokens": sums.tokens,
            "duration_ms": {field: durations[field] for field in ("n", "mean", "p50", "p95")},
            "trust": self.trust_of(reader, name),
            "last_seen": rfc3339_or_none(state.last_us),
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def details(self, reader: Reader, name: str, state: Agent) -> dict[str, Any]:
        """Body of ``/agents/{id}``."""
        kept, key = self.kept, (name,)
        profile = self.profile(reader, name)
        waits = [(task_type, version) for _, task_type, version in self.waiting(reader, name)]
        by_type: dict[str, Sums] = {}
        by_version: dict[str, Sums] = {}
        whole = Sums()
        for pair in self.pairs(reader, name):
            for sums in reader.rows(kept.pairs, (name, *pair)):
                if sums.born < 0:
                    continue
                whole.merge(sums)
                by_type.setdefault(pair[0], Sums()).merge(sums)
                if pair[1]:
                    by_version.setdefault(pair[1], Sums()).merge(sums)
        base = profile.baseline
        budgets = reader.rows(kept.budgets, key)
        return {
            **self.score(reader, name, state),
            **executions_of(whole, len(waits)),
            "first_seen": rfc3339_or_none(state.first_us),
            "events": dict(zip(KINDS, state.events, strict=True)),
            "registrations": profile.registrations,
            "registered_at": rfc3339_or_none(profile.registered_us) if profile.registrations else None,
            "baseline": None if base is None else dict(zip(("latency_ms", "accuracy", "cost_per_task", "reliability"), base, strict=True)),
            "status_since": rfc3339_or_none(profile.since_us) if profile.status is not None else None,
            "previous_status": profile.previous,
            "status_reason": profile.reason,
            "status_mismatch": profile.mismatches,
            "by_task_type": {k: executions_of(v, sum(t == k for t, _ in waits)) for k, v in sorted(by_type.items())},
            "by_model_version": {k: executions_of(v, sum(t == k for _, t in waits)) for k, v in sorted(by_version.items())},
            "budget": budget_of(budgets),
            "minimality": minimality_of(reader.rows(kept.minimality, key)),
            "compliance": compliance_of(reader.rows(kept.compliance, key)),
            "evaluations": self.evaluations(reader, name),
            "judgments": summary(merged(reader.rows(kept.judgments, (name, "")))),
            "routing": routing_of(reader.rows(kept.routing, key)),
        }

    def evaluations(self, reader: Reader, name: str) -> dict[str, Any]:
        """Evaluations of an agent."""
        n = passed = 0
        score = 0.0
        rubrics: dict[str, tuple[int, float]] = {}
        for state in reader.rows(self.kept.evaluations, (name,)):
            n, passed, score = n + state.n, passed + state.passed, score + state.score * state.n
            for rubric, (count, mean) in state.rubrics.items():
                have, total = rubrics.get(rubric, (0, 0.0))
                rubrics[rubric] = (have + count, total + mean * count)
        return {
            "n": n,
            "passed": passed,
            "pass_rate": passed / n if n else None,
            "mean_score": score / n if n else None,
            "rubrics": {rubric: {"n": count, "mean": total / count} for rubric, (count, total) in sorted(rubrics.items())},
        }

    # ---- predictions

    def predict(self, reader: Reader, agent: str | None, task_type: str | None) -> dict[str, Any]:
        """One prediction, without its score."""
        kept = self.kept
        n = s = 0
        for totals in reader.rows(kept.totals, ()):
            n, s = n + totals.executions, s + totals.successes
        of_agent = of_type = None
        both = Evidence()
        known: dict[str, bool] = {}
        if agent is not None:
            state = self.agent(reader, agent)
            of_agent = Evidence() if state is None else Evidence(state.sums.executions, state.sums.successes)
            known["agent"] = state is not None
        if task_type is not None:
            of_type = self.of_type(reader, task_type)
            known["task_type"] = of_type.n > 0
        if agent is not None and task_type is not None:
            rows = reader.rows(kept.agent_types, (agent, task_type))
            both = Evidence(sum(row.n for row in rows), sum(row.s for row in rows))
        found = predict(Evidence(n, s), of_type, of_agent, both, self.settings.predict_strength)
        return {
            "agent": agent,
            "task_type": task_type,
            "probability": found.probability,
            "interval": beta.quantiles(found.alpha, found.beta, OUTSIDE),
            "alpha": found.alpha,
            "beta": found.beta,
            "basis": found.basis,
            "known": known,
            "levels": {level.name: {"n": level.n, "estimate": level.estimate} for level in found.levels},
        }

    def of_type(self, reader: Reader, task_type: str) -> Evidence:
        """Executions of a task type."""
        rows = reader.rows(self.kept.task_types, (task_type,))
        return Evidence(sum(row.n for row in rows), sum(row.s for row in rows))

    def prediction_score(self, reader: Reader, task_type: str | None) -> dict[str, Any]:
        """How good the predictions of a task type have been, or of all."""
        if task_type is not None:
            scores = [row.score for row in reader.rows(self.kept.task_types, (task_type,))]
        else:
            scores = [row.score for _, rows in sorted(reader.scan(self.kept.task_types), key=itemgetter(0)) for row in rows]
        answer = Score.merged(scores).render()
        answer["note"] = "scored where each outcome was absorbed, with what that partition knew before; the answer above knows all partitions"
        return answer


def joined_agent(states: list[Agent]) -> Agent | None:
    """One agent of its rows; None where none has absorbed anything."""
    states = [state for state in states if state.born >= 0]
    if len(states) <= 1:
        return states[0] if states else None
    whole = Agent(born=0)
    for one in states:
        whole.events = [a + b for a, b in zip(whole.events, one.events, strict=True)]
        whole.first_us, whole.last_us = min(whole.first_us, one.first_us), max(whole.last_us, one.last_us)
        whole.sums.merge(one.sums)
    return whole


def latest(states: list[Profile]) -> Profile:
    """The profile in force of those in several partitions; an empty one if there is none."""
    return max(states, key=lambda one: (one.registered_us, one.since_us), default=Profile())


def budget_of(states: Iterable[Budgets]) -> dict[str, Any]:
    """Thinking budgets by complexity; only those that occurred."""
    found: dict[str, Any] = {}
    rows = list(states)
    for i, name in enumerate(COMPLEXITIES):
        n = sum(row.uses[i] for row in rows)
        allocations = sum(row.allocations[i] for row in rows)
        if n or allocations:
            found[name] = {
                "n": n,
                "mean_utilisation": plain_sum(row.utilisation[i] * row.uses[i] for row in rows) / n if n else None,
                "exhaustion_rate": sum(row.exhausted[i] for row in rows) / n if n else None,
                "tokens_used": sum(row.used[i] for row in rows),
                "allocations": allocations,
                "tokens_allocated": sum(row.allocated[i] for row in rows),
                "reference_tokens": REFERENCE_TOKENS[i],
            }
    return found


def minimality_of(states: Iterable[Minimality]) -> dict[str, Any]:
    """How minimal an agent's changes are."""
    whole = Minimality()
    for one in states:
        if not one.n:
            continue
        n = whole.n = whole.n + one.n
        for field in ("factor", "ast_similarity", "scaffolding_penalty", "lines_changed"):
            mean = getattr(whole, field)
            setattr(whole, field, mean + (getattr(one, field) - mean) * (one.n / n))
        whole.classes = [a + b for a, b in zip(whole.classes, one.classes, strict=True)]
        for word, count in one.words.items():
            whole.words[word] = whole.words.get(word, 0) + count
    some = whole.n > 0
    return {
        "n": whole.n,
        "mean_factor": whole.factor if some else None,
        "mean_ast_similarity": whole.ast_similarity if some else None,
        "mean_scaffolding_penalty": whole.scaffolding_penalty if some else None,
        "mean_lines_changed": whole.lines_changed if some else None,
        "classes": dict(zip(CLASSES, whole.classes, strict=True)),
        "quality": dict(sorted(whole.words.items())),
    }


def compliance_of(states: Iterable[Compliance]) -> dict[str, Any]:
    """How an agent's work stands up to rules."""
    n = valid = 0
    score = processing_ms = 0.0
    violations = [0] * len(SEVERITIES)
    for one in states:
        n, valid = n + one.n, valid + one.valid
        score, processing_ms = score + one.score * one.n, processing_ms + one.processing_ms * one.n
        violations = [a + b for a, b in zip(violations, one.violations, strict=True)]
    return {
        "n": n,
        "pass_rate": valid / n if n else None,
        "mean_score": score / n if n else None,
        "mean_processing_time_ms": processing_ms / n if n else None,
        "violations": dict(zip(SEVERITIES, violations, strict=True)),
        "severity_score": sum(points * count for points, count in zip(SEVERITY_POINTS, violations, strict=True)),
    }


def routing_of(states: Iterable[Routing]) -> dict[str, Any]:
    """How often an agent was chosen, how, and over whom."""
    chosen, confidence = 0, 0.0
    strategies = [0] * len(STRATEGIES)
    over: dict[str, int] = {}
    for one in states:
        chosen, confidence = chosen + one.chosen, confidence + one.confidence * one.chosen
        strategies = [a + b for a, b in zip(strategies, one.strategies, strict=True)]
        for name, count in one.passed_over.items():
            over[name] = over.get(name, 0) + count
    return {
        "chosen": chosen,
        "passed_over": dict(sorted(over.items())),
        "by_strategy": dict(zip(STRATEGIES, strategies, strict=True)),
        "mean_confidence": confidence / chosen if chosen else None,
    }


def performance_views(kept: PerformanceTables, settings: PerformanceSettings, series: SeriesTables, rl: Windows, trust: Trust | None) -> list[View]:
    """Views of performance.md §7, but for the training data."""
    figures = Figures(kept, settings, trust)

    def stats(reader: Reader, q: StatsParams) -> dict[str, Any]:
        return figures.stats(reader, q)

    def trends(reader: Reader, q: Trends) -> dict[str, Any]:
        return trend(series, rl, reader, q)

    def agent(reader: Reader, q: AgentParams) -> dict[str, Any]:
        state = figures.agent(reader, q.id)
        if state is None:
            raise NotFound(f"no event names the agent {q.id}")
        return figures.details(reader, q.id, state)

    def agents(reader: Reader, q: AgentsParams) -> dict[str, Any]:
        def place(reader: Reader, key: Key, state: Agent) -> Place | None:
            name = key[0]
            if q.status is not None or q.capability is not None:
                profile = figures.profile(reader, name)
                if (q.status is not None and profile.status != q.status) or (q.capability is not None and q.capability not in profile.capabilities):
                    return None
            if q.task_type is not None and not any(row.n for row in reader.rows(kept.agent_types, (name, q.task_type))):
                return None
            return -_rank(q.sort, state.sums), name

        if q.name is not None:
            order = Order.of_one(reader, figures.agents, (q.name,), place)
        else:
            filters = q.status, q.capability, q.task_type
            source = figures.agents if filters == (None, None, None) else figures.filtered
            order = reader.lists(source, {(q.sort, *filters): lambda: Order(place)})[(q.sort, *filters)]
        shown, cursor = order.page(q.limit, q.cursor, whole_of, lambda place: place[-1])
        states = ((name, figures.agent(reader, name)) for _, name in shown)
        listed = [figures.score(reader, name, state) for name, state in states if state is not None]
        return {"agents": listed, "cursor": cursor, "as_of": rfc3339_or_none(reader.as_of())}

    def judgments(reader: Reader, q: JudgmentParams) -> dict[str, Any]:
        sums: list[Judgments]
        if q.task is not None:
            rooms = reader.rows(kept.tasks, TASK_KEYS[bucket(digest(q.task), TASK_BUCKETS)])
            sums = of_task(rooms, q.task, q.agent, q.judge)
        else:
            sums = reader.rows(kept.judgments, (q.agent or "", q.judge or ""))
        answer = summary(merged(sums))
        if q.task is not None:
            answer["calibration"] = None  # comparisons are kept by agent and judge
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        return answer

    def predicted(reader: Reader, q: PredictParams) -> dict[str, Any]:
        asked: list[str] = list(dict.fromkeys([*names(q.agents or ()), *([q.agent] if q.agent is not None else [])]))
        if len(asked) > MOST_ASKED:
            raise BadParameter("agents", f"{len(asked)} agents, at most {MOST_ASKED}")
        score = figures.prediction_score(reader, q.task_type)
        if q.agents is None:
            answer = figures.predict(reader, q.agent, q.task_type)
        else:
            ranked = sorted((figures.predict(reader, name, q.task_type) for name in asked), key=lambda one: (-one["probability"], one["agent"]))
            answer = {"agents": [{"rank": i, **one} for i, one in enumerate(ranked, 1)]}
        return {**answer, "score": score, "as_of": rfc3339_or_none(reader.as_of())}

    topics = (TOPIC,)
    return [
        View("/performance/stats", StatsParams, stats, topics, "Totals of executions, by agent, task type and model version."),
        View("/performance/trends", Trends, trends, (TOPIC, "training"), "Whether a figure of an agent gets better or worse."),
        View("/agents/{id}", AgentParams, agent, topics, "Everything about one agent."),
        View("/agents", AgentsParams, agents, topics, "Agents and their figures, filtered and sorted."),
        View("/judgments/summary", JudgmentParams, judgments, topics, "Judgments by judge, agent, task, and how well judges agree with evaluations."),
        View("/predict", PredictParams, predicted, topics, "Probability that the next task of a type by an agent succeeds."),
    ]


def _rank(sort: str | None, sums: Sums) -> float:
    """What a list is sorted by, the best greatest; agents without the figure come last."""
    if sort == "success_rate":
        return sums.successes / sums.executions if sums.executions else -1.0
    if sort == "quality":
        return sums.quality / sums.qualities if sums.qualities else -1.0
    if sort == "latency":
        return -sums.duration if sums.durations else float("-inf")
    if sort == "executions":
        return sums.executions
    return 0.0
