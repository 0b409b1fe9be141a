"""Agents and their work: the fold of performance events, its commands, its views.

The rules this file keeps:
  * an agent's rows have one home partition, for starts meet completions there and windows have an order; task types, judges
    and totals are partial, and an answer merges them (`performance_views`);
  * while collection is off, performance events are counted as skipped and change nothing;
  * a command for the whole tenant changes nothing where it lands: each partition concerned gets a copy, and acts at its
    place in that partition's log.

Executions are in `executions`, evaluations and judgments in `judgments`, names and bounds in `performance_names`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from streams.derive import event_bytes
from streams.events import (
    AgentRegistered,
    AgentStatusChanged,
    CollectionChanged,
    CustomRecorded,
    EvaluationCompleted,
    JudgmentRecorded,
    MinimalityEvaluated,
    RlMetricsRecordedV2,
    RoutingDecided,
    TaskCompleted,
    TaskStarted,
    TenantCleared,
    ThinkingBudgetAllocated,
    ThinkingBudgetUsed,
    ValidationCompleted,
)
from streams.keys import derived_id, encode_key
from streams.topics import SOURCE_TOPICS

from .agent_alerts import BUDGET, COMPLIANCE, JUDGMENT, RECENT, WATCHED, cleared, judge_budget, judge_compliance
from .executions import Executions
from .facts import bucket, digest
from .fold import Fold, Scored
from .judgments import FACT_BUCKETS, FACT_KEYS, WEEK_US, JudgmentHandlers, agreement_rule
from .performance_names import MOST_CUSTOM, Ground, Rooms
from .performance_rows import (
    ALLOCATED,
    COMPLEXITIES,
    CUSTOM,
    MINIMALITY,
    MOST_TOKENS,
    OTHER,
    REGISTERED,
    ROUTED,
    SEVERITIES,
    STATUS,
    STRATEGIES,
    USED,
    VALIDATED,
    PerformanceSettings,
    PerformanceTables,
)
from .performance_series import RL_FIELDS, SeriesTables
from .performance_views import Figures, performance_views
from .windows import WindowSettings

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .performance_rows import Profile
    from .rows import Table
    from .trust import Trust

TOPIC = "judgments"
MOST_WORDS = 50
MOST_PASSED_OVER = 500
MOST_PASSED_OVER_BYTES = 32_000
MOST_FIELDS = 64
"""Numbers of a generic event that become series."""
HUGE = 1e300
_MASK = (1 << RECENT) - 1
_COMPLEXITY = {name: i for i, name in enumerate(COMPLEXITIES)}
_STRATEGY = {name: i for i, name in enumerate(STRATEGIES)}
_SEVERITY = {name: i for i, name in enumerate(SEVERITIES)}
_UNKNOWN = _COMPLEXITY["unknown"]


class Performance(Fold):
    """Agents, executions, checks, judgments, predictions, from the topic ``judgments``.

    Args:
        settings: bounds and limits.
        windows: bounds of the series.
        trust: the fold that knows how far agents are trusted; without it the answers have no trust.
    """

    topics = (TOPIC,)

    def __init__(self, settings: PerformanceSettings | None = None, windows: WindowSettings | None = None, trust: Trust | None = None) -> None:
        self.settings = settings or PerformanceSettings()
        self.kept = kept = PerformanceTables(self.settings)
        self.ground = Ground(kept, self.settings)
        self.series = SeriesTables("perf_", TOPIC, windows)
        self.tables = (*kept.all, *self.series.tables)
        executions, judgments = Executions(self.ground, self.series), JudgmentHandlers(self.ground, self.series)
        self.handlers = {
            AgentRegistered: self.registered,
            AgentStatusChanged: self.status_changed,
            RoutingDecided: self.routed,
            TaskStarted: executions.started,
            TaskCompleted: executions.completed,
            EvaluationCompleted: judgments.evaluated,
            ValidationCompleted: self.validated,
            ThinkingBudgetAllocated: self.allocated,
            ThinkingBudgetUsed: self.used,
            MinimalityEvaluated: self.minimality,
            JudgmentRecorded: judgments.judged,
            CustomRecorded: self.custom,
            CollectionChanged: self.collection_changed,
            TenantCleared: self.tenant_cleared,
        }
        self.rl = RlSeries(self.ground, windows)
        self.views = performance_views(kept, self.settings, self.series, self.rl.series, trust)
        self.rules = (agreement_rule(kept),)
        self.scored = (Scored("agent", TOPIC, kept.agents, Figures(kept, self.settings, trust).scored),)

    # ---- agents

    def registered(self, event: Event, p: Partition) -> None:
        """A registration; a later one by event time replaces it."""
        data: AgentRegistered = event.data
        if not self._seen(event, p, data.agent, REGISTERED):
            return
        state: Profile | None = p.open(self.kept.profiles, event.tenant, (data.agent,))
        if state is None:
            return
        state.registrations += 1
        if p.time_us >= state.registered_us:
            base = data.baseline
            state.registered_us = p.time_us
            state.capabilities = list(data.capabilities)
            state.baseline = None if base is None else (base.latency_ms, base.accuracy, base.cost_per_task, base.reliability)

    def status_changed(self, event: Event, p: Partition) -> None:
        """A change of status; one that comes late may still be the one before the latest."""
        data: AgentStatusChanged = event.data
        if not self._seen(event, p, data.agent, STATUS):
            return
        state: Profile | None = p.open(self.kept.profiles, event.tenant, (data.agent,))
        if state is None:
            return
        time_us = p.time_us
        if time_us >= state.since_us:
            before = state.status
            state.previous, state.previous_us = before, state.since_us
            state.status, state.since_us, state.reason = data.status, time_us, data.reason
        else:
            before = state.previous if time_us >= state.previous_us else None
            if time_us >= state.previous_us:
                state.previous, state.previous_us = data.status, time_us
        if before is not None and data.previous_status is not None and data.previous_status != before:
            state.mismatches += 1

    def routed(self, event: Event, p: Partition) -> None:
        """A routing decision, in the record of the agent that was chosen."""
        data: RoutingDecided = event.data
        if not self._seen(event, p, data.agent, ROUTED):
            return
        state = p.open(self.kept.routing, event.tenant, (data.agent,))
        if state is None:
            return
        state.chosen += 1
        state.strategies[_STRATEGY[data.strategy]] += 1
        state.confidence += (data.confidence - state.confidence) / state.chosen
        over = state.passed_over
        for one in data.alternatives:
            name = one.agent
            if name not in over and (len(over) >= MOST_PASSED_OVER or sum(len(other.encode()) for other in over) > MOST_PASSED_OVER_BYTES):
                name = OTHER
            over[name] = over.get(name, 0) + 1

    # ---- checks

    def validated(self, event: Event, p: Partition) -> None:
        """A check of an agent's work against rules."""
        data: ValidationCompleted = event.data
        tenant, agent = event.tenant, data.agent
        if not self._seen(event, p, agent, VALIDATED):
            return
        state = p.open(self.kept.compliance, tenant, (agent,))
        if state is None:
            return
        n = state.n = state.n + 1
        state.valid += data.valid
        state.score += (data.compliance_score - state.score) / n
        state.processing_ms += (data.processing_time_ms - state.processing_ms) / n
        critical = 0
        for one in data.violations:
            state.violations[_SEVERITY[one.severity]] += 1
            if one.severity == "critical":
                critical = 1
        state.valid_bits = (state.valid_bits << 1 | data.valid) & _MASK
        state.critical_bits = (state.critical_bits << 1 | critical) & _MASK
        judge_compliance(p, event, state.standing, agent, n, state.valid_bits, state.critical_bits)
        self.series.absorb(p, tenant, (("perf.compliance", agent, "", data.compliance_score),))

    def allocated(self, event: Event, p: Partition) -> None:
        """A thinking budget; its complexity is remembered for the use that does not tell it."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: ThinkingBudgetAllocated = event.data
        agent, place = data.agent, _COMPLEXITY[data.complexity]
        fact = digest("budget", agent or "", data.task)
        facts = p.open(kept.facts, tenant, FACT_KEYS[bucket(fact, FACT_BUCKETS)])
        if facts is None:
            return
        facts.put(fact, p.time_us, place, ground.moment(p, tenant) - WEEK_US)
        if not self._counted(event, p, agent, ALLOCATED) or agent is None:
            return
        state = p.open(kept.budgets, tenant, (agent,))
        if state is not None:
            state.allocations[place] += 1
            state.allocated[place] = min(state.allocated[place] + data.tokens, MOST_TOKENS)

    def used(self, event: Event, p: Partition) -> None:
        """What was used of a thinking budget."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: ThinkingBudgetUsed = event.data
        agent = data.agent
        if data.complexity is not None:
            place = _COMPLEXITY[data.complexity]
        else:
            fact = digest("budget", agent or "", data.task)
            facts = p.read(kept.facts, tenant, FACT_KEYS[bucket(fact, FACT_BUCKETS)])
            known = None if facts is None else facts.find(fact, ground.moment(p, tenant) - WEEK_US)
            place = _UNKNOWN if known is None else known[1]
        utilisation = data.tokens_used / data.tokens_allocated
        if not self._counted(event, p, agent, USED):
            return
        if agent is not None:
            state = p.open(kept.budgets, tenant, (agent,))
            if state is None:
                return
            state.uses[place] += 1
            state.used[place] = min(state.used[place] + data.tokens_used, MOST_TOKENS)
            state.utilisation[place] += (utilisation - state.utilisation[place]) / state.uses[place]
            state.exhausted[place] += data.tokens_used >= data.tokens_allocated
            state.recent = [*state.recent[1 - RECENT :], utilisation]
            judge_budget(p, event, state.standing, agent, state.recent)
        self.series.absorb(p, tenant, (("perf.utilisation", agent or "", "", utilisation),))

    def minimality(self, event: Event, p: Partition) -> None:
        """How small a change was for what it does."""
        data: MinimalityEvaluated = event.data
        tenant, agent = event.tenant, data.agent
        if not self._seen(event, p, agent, MINIMALITY):
            return
        if agent is not None:
            state = p.open(self.kept.minimality, tenant, (agent,))
            if state is None:
                return
            n = state.n = state.n + 1
            factor = data.factor
            state.factor += (factor - state.factor) / n
            state.ast_similarity += (data.ast_similarity - state.ast_similarity) / n
            state.scaffolding_penalty += (data.scaffolding_penalty - state.scaffolding_penalty) / n
            state.lines_changed += (data.lines_changed - state.lines_changed) / n
            state.classes[0 if factor >= 0.8 else 1 if factor >= 0.5 else 2] += 1
            word = data.quality
            if word not in state.words and len(state.words) - (OTHER in state.words) >= MOST_WORDS:
                word = OTHER
            state.words[word] = state.words.get(word, 0) + 1
        self.series.absorb(p, tenant, (("perf.minimality", agent or "", "", data.factor),))

    def custom(self, event: Event, p: Partition) -> None:
        """A generic event: counted by name; its numbers become series."""
        ground, kept, tenant = self.ground, self.kept, event.tenant
        if not ground.collecting(p, tenant):
            return
        data: CustomRecorded = event.data
        agent, key = data.agent, (data.name,)
        new_agent = agent is not None and not ground.settled(p, kept.agents, tenant, (agent,))
        kept_name, kept_agent = True, agent is not None
        if new_agent or not ground.settled(p, kept.custom, tenant, key):
            rooms = Rooms(p, kept, tenant)
            if new_agent:
                kept_agent = rooms.take("agents", self.settings.max_agents)
            kept_name = ground.settled(p, kept.custom, tenant, key) or rooms.take("custom", MOST_CUSTOM)
            rooms.close()
        if ground.count(p, tenant, CUSTOM) is None:
            return
        if agent is not None and kept_agent and ground.seen(p, tenant, agent, CUSTOM) is None:
            return
        if kept_name:
            state = p.open(kept.custom, tenant, key)
            if state is None:
                return
            if state.born < 0:
                state.born = p.offset
            state.n += 1
            state.first_us, state.last_us = min(state.first_us, p.time_us), max(state.last_us, p.time_us)
        numbers = ((name, x) for name, x in data.fields.items() if (x.__class__ is float or x.__class__ is int) and -HUGE < x < HUGE)
        figures = [(f"custom.{data.name}.{name}", agent or "", "", float(x)) for name, x in islice(numbers, MOST_FIELDS)]
        if figures:
            self.series.absorb(p, tenant, figures)

    # ---- commands

    def collection_changed(self, event: Event, p: Partition) -> None:
        """Turn collection on or off: as a copy, from this record on."""
        data: CollectionChanged = event.data
        if event.derivedfrom is None:
            self._copy(event, p, data, (TOPIC, RlSeries.TOPIC))
            return
        state = p.open(self.kept.switch, event.tenant, ())
        if state is not None:
            state.off, state.reason, state.time_us = not data.enabled, data.reason, p.time_us

    def tenant_cleared(self, event: Event, p: Partition) -> None:
        """Begin anew: as a copy, from this record on. Open alerts on agents resolve with reason ``cleared``.

        With scope ``all`` the partition drops the tenant's rows of every table, whoever keeps it, when the folds have told what they have to.
        """
        data: TenantCleared = event.data
        if event.derivedfrom is None:
            self._copy(event, p, data, SOURCE_TOPICS)
            return
        tenant, kept = event.tenant, self.kept
        self._resolve(event, p)
        if data.scope == "all":
            return
        tables: Iterable[Table[Any]] = (*kept.all, *self.series.tables, *self.rl.series.tables)
        for table in tables:
            if table is not kept.switch:
                for key in p.keys(table, tenant):
                    p.put(table, tenant, key, table.fresh())

    # ---- steps

    def _seen(self, event: Event, p: Partition, agent: str | None, kind: int) -> bool:
        """Count an event for tenant and agent; False where there is nothing else to do."""
        return self.ground.collecting(p, event.tenant) and self._counted(event, p, agent, kind)

    def _counted(self, event: Event, p: Partition, agent: str | None, kind: int) -> bool:
        """As `_seen`, once it is known that events are collected. Events of an agent that found no room end here."""
        ground, tenant = self.ground, event.tenant
        admitted = agent is None or ground.admits(p, tenant, agent)
        if ground.count(p, tenant, kind) is None:
            return False
        if agent is None:
            return True
        return admitted and ground.seen(p, tenant, agent, kind) is not None

    def _copy(self, event: Event, p: Partition, data: CollectionChanged | TenantCleared, topics: Iterable[str]) -> None:
        """Publish a copy of a command to every partition concerned."""
        tenant = event.tenant
        for number in range(p.count):
            name = derived_id(p.topic, tenant, event.id, data.TYPE, f"p{number}")
            raw = event_bytes(type=data.TYPE, id=name, source=p.source, time_us=p.time_us, tenant=tenant, data=data, derivedfrom=event.id)
            for topic in topics:
                p.publish(topic, encode_key(tenant), raw, number)
        p.skip("command")

    def _resolve(self, event: Event, p: Partition) -> None:
        """Resolve the open alerts on agents of this partition."""
        kept, tenant, offset = self.kept, event.tenant, p.offset

        def standing(table: Table[Any]) -> Iterable[tuple[str, Any]]:
            space = p.space(table, tenant)
            return [(key[0], table.load(space[key])) for key in p.keys(table, tenant) if space[key].applied < offset]

        for agent, state in standing(kept.watches):
            cleared(p, event, agent, {rule: getattr(state, field) for rule, field in WATCHED})
        for table, rule in ((kept.judged, JUDGMENT), (kept.budgets, BUDGET), (kept.compliance, COMPLIANCE)):
            for agent, state in standing(table):
                cleared(p, event, agent, {rule: state.standing})


class RlSeries(Fold):
    """Windows of reinforcement learning's figures, from the topic ``training``; a series is (metric, agent, run), ``""`` for none.

    Args:
        ground: whether events are collected.
        windows: bounds of the series.
    """

    TOPIC = "training"
    topics = (TOPIC,)

    def __init__(self, ground: Ground, windows: WindowSettings | None = None) -> None:
        self.ground = ground
        self.series = SeriesTables("rl_", self.TOPIC, windows)
        self.tables = self.series.tables
        self.handlers = {RlMetricsRecordedV2: self.recorded}

    def recorded(self, event: Event, p: Partition) -> None:
        """Figures of a step of reinforcement learning, its losses by name among them."""
        tenant = event.tenant
        if self.ground.collecting(p, tenant):
            data: RlMetricsRecordedV2 = event.data
            agent, run = data.agent or "", data.run or ""
            told = {f"rl.{name}_loss": value for name, value in data.losses.items()}
            told.update((series, value) for field, series in RL_FIELDS.items() if (value := getattr(data, field)) is not None)
            self.series.absorb(p, tenant, [(series, agent, run, value if value.__class__ is str else float(value)) for series, value in told.items()])
