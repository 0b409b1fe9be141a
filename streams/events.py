"""Every event of the contract: one frozen struct a type and version, its `data`, with ranges that are enforced.

The rules this file keeps: fields are the contract's, `TYPE` is what stands on the wire, `TOPIC` where it travels (without
prefix). Ranges live in the annotations and are checked while decoding; what spans several fields is checked in `codec`.
Unknown fields are ignored. Times are RFC 3339 with an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Union, get_type_hints

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Tag = Annotated[str, Meta(min_length=1, max_length=128)]
Tags = Annotated[list[Tag], Meta(max_length=64)]
Kind = Annotated[str, Meta(min_length=1, max_length=32)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Natural = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Moment = Annotated[datetime, Meta(tz=True)]
Figure = float | Literal["NaN", "Infinity", "-Infinity"]
Level = Literal["info", "warning", "critical", "shutdown"]
Rubrics = Annotated[dict[Name, Unit], Meta(max_length=64)]


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of all event data.

    Attributes:
        TYPE: the event's type with its version, as on the wire.
        TOPIC: the topic it travels on, without prefix.
    """

    TYPE: ClassVar[str] = ""
    TOPIC: ClassVar[str] = ""


# ---- forecasts


class ForecastIssued(Data, frozen=True, kw_only=True):
    """A forecast was made; `inputs` are the variables (name -> value) that it used. Confidence and fragility lie in 0…1."""

    TYPE = "forecast.issued.v1"
    TOPIC = "forecasts"
    forecast_id: Name = "unknown"
    model: Name | None = None
    confidence: Unit = 0.0
    fragility: Unit = 0.0
    certified: bool = False
    alignment_score: Unit | None = None
    arc_label: Name | None = None
    symbolic_tag: Name | None = None
    confidence_status: Name | None = None
    prediction: float | None = None
    inputs: Annotated[dict[Name, float], Meta(max_length=10_000)] = {}


class ForecastResolved(Data, frozen=True, kw_only=True):
    """What became of a forecast; `probability` is that of success as it was forecast (0…1)."""

    TYPE = "forecast.resolved.v1"
    TOPIC = "forecasts"
    forecast_id: Name
    model: Name | None = None
    success: bool
    actual: float | None = None
    probability: Unit | None = None
    inputs: Annotated[dict[Name, float], Meta(max_length=10_000)] | None = None


class VariableRegistered(Data, frozen=True, kw_only=True):
    """A variable is known from now on, with its usual range `low`…`high`."""

    TYPE = "variable.registered.v1"
    TOPIC = "forecasts"
    name: Name
    kind: Name | None = None
    default: float | None = None
    low: float | None = None
    high: float | None = None
    description: Annotated[str, Meta(max_length=4096)] | None = None


class VariablePerformanceUpdated(Data, frozen=True, kw_only=True):
    """Somebody scored a variable elsewhere: kept for audit, changes no score."""

    TYPE = "variable.performance_updated.v1"
    TOPIC = "forecasts"
    variable: Name
    new_score: dict[str, Any]


# ---- training


class MetricRecorded(Data, frozen=True, kw_only=True):
    """A figure (or several) of a training run; `value` may be "NaN", "Infinity" or "-Infinity". `cost` in USD."""

    TYPE = "metric.recorded.v1"
    TOPIC = "training"
    metric_id: Name | None = None
    metric_type: Name = "unknown"
    model: Name = "unknown"
    run: Name | None = None
    value: float | Literal["NaN", "Infinity", "-Infinity"] | None = None
    values: Annotated[dict[Name, float | Literal["NaN", "Infinity", "-Infinity"]], Meta(max_length=64)] | None = None
    tags: Tags = []
    epoch: Natural | None = None
    step: Natural | None = None
    cost: Decimal | None = None
    api_calls: Count | None = None
    token_usage: Count | None = None


class LearningRecorded(Data, frozen=True, kw_only=True):
    """One step of learning progress; score in 0…1, the convergence metric falls towards 0."""

    TYPE = "learning.recorded.v1"
    TOPIC = "training"
    task_type: Name
    performance_score: Unit
    learning_rate: Positive
    episode_count: Count
    convergence_metric: Natural
    run: Name | None = None
    metadata: dict[str, Any] | None = None


class RlMetricsRecorded(Data, frozen=True, kw_only=True):
    """Figures of reinforcement learning, as first told: two losses, all finite. Taken for ever; new producers send the second version."""

    TYPE = "rl_metrics.recorded.v1"
    TOPIC = "training"
    run: Name | None = None
    agent: Name | None = None
    trajectories_processed: Count
    average_reward: float
    policy_loss: float
    value_loss: float
    kl_divergence: float
    training_time_ms: Natural


class RlMetricsRecordedV2(Data, frozen=True, kw_only=True):
    """Figures of reinforcement learning, its `losses` by name; what diverged is a figure too: "NaN", "Infinity" or "-Infinity"."""

    TYPE = "rl_metrics.recorded.v2"
    TOPIC = "training"
    run: Name | None = None
    agent: Name | None = None
    trajectories_processed: Count
    average_reward: Figure
    losses: Annotated[dict[Name, Figure], Meta(max_length=64)]
    kl_divergence: Figure | None = None
    training_time_ms: Natural


def _rl_metrics_v2(old: RlMetricsRecorded) -> RlMetricsRecordedV2:
    return RlMetricsRecordedV2(
        run=old.run,
        agent=old.agent,
        trajectories_processed=old.trajectories_processed,
        average_reward=old.average_reward,
        losses={"policy": old.policy_loss, "value": old.value_loss},
        kl_divergence=old.kl_divergence,
        training_time_ms=old.training_time_ms,
    )


class GoalCreated(Data, frozen=True, kw_only=True):
    """A goal: a figure to reach from below or from above; `metric` names one whose values move it by themselves."""

    TYPE = "goal.created.v1"
    TOPIC = "training"
    goal_id: Name
    description: Annotated[str, Meta(max_length=4096)] = ""
    target: float
    direction: Literal["at_least", "at_most"] = "at_least"
    start: float | None = None
    task_type: Name | None = None
    metric: Name | None = None
    deadline: Moment | None = None


class GoalProgressed(Data, frozen=True, kw_only=True):
    """Where a goal stands now; `task_type` as in its creation."""

    TYPE = "goal.progressed.v1"
    TOPIC = "training"
    goal_id: Name
    current: float
    task_type: Name | None = None


# ---- costs


class CostIncurred(Data, frozen=True, kw_only=True):
    """Money spent, in USD (number or decimal text, six places kept exactly); without `cost` it is estimated."""

    TYPE = "cost.incurred.v1"
    TOPIC = "costs"
    cost: Decimal | None = None
    api_calls: Count = 0
    token_usage: Count = 0
    model: Name | None = None
    run: Name | None = None
    agent: Name | None = None
    tags: Tags = []


class CostRefunded(Data, frozen=True, kw_only=True):
    """Money that came back, in USD: the only way down."""

    TYPE = "cost.refunded.v1"
    TOPIC = "costs"
    cost: Decimal
    refers_to: Name | None = None
    model: Name | None = None
    run: Name | None = None
    agent: Name | None = None
    tags: Tags = []


class Limit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A level and the amount in USD at which it is reached."""

    level: Level
    at: Decimal


class BudgetSet(Data, frozen=True, kw_only=True):
    """The limits of a scope and period from here on; no limits remove them. `starts` (UTC date): cumulative only."""

    TYPE = "budget.set.v1"
    TOPIC = "costs"
    scope: Annotated[str, Meta(min_length=1, max_length=262)]
    period: Literal["cumulative", "daily", "monthly", "total"]
    limits: Annotated[list[Limit], Meta(max_length=4)]
    starts: date | None = None


# ---- judgments


class Observation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A success or failure of something, with a weight above 0."""

    kind: Kind
    id: Name
    success: bool
    weight: Positive = 1.0


class TrustObserved(Data, frozen=True, kw_only=True):
    """A success or failure of a variable, rule, model, agent, judge or any other kind, with a weight above 0."""

    TYPE = "trust.observed.v1"
    TOPIC = "judgments"
    kind: Kind
    id: Name
    success: bool
    weight: Positive = 1.0


class TrustBatchObserved(Data, frozen=True, kw_only=True):
    """Several observations, taken all or not at all."""

    TYPE = "trust.batch_observed.v1"
    TOPIC = "judgments"
    observations: Annotated[list[Observation], Meta(min_length=1, max_length=10_000)]


class TrustDecayed(Data, frozen=True, kw_only=True):
    """Evidence fades by a factor in (0, 1]: of one key, of a kind, or (neither given) of every key."""

    TYPE = "trust.decayed.v1"
    TOPIC = "judgments"
    kind: Kind | None = None
    id: Name | None = None
    factor: Annotated[float, Meta(gt=0, le=1)]
    min_count: Natural = 5.0


class Series(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A history as two lists of one length; times RFC 3339 or unix seconds."""

    times: Annotated[list[Moment | float], Meta(max_length=10_000)]
    values: Annotated[list[Unit], Meta(max_length=10_000)]


class TrustImported(Data, frozen=True, kw_only=True):
    """A key's state from elsewhere, or its removal. Times RFC 3339 or unix seconds."""

    TYPE = "trust.imported.v1"
    TOPIC = "judgments"
    kind: Kind
    id: Name
    alpha: Positive | None = None
    beta: Positive | None = None
    last_update: Moment | float | None = None
    history: Annotated[list[tuple[Moment | float, Unit]], Meta(max_length=10_000)] | Series | None = None
    removed: bool = False


class Baseline(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agent is expected to do."""

    latency_ms: Natural | None = None
    accuracy: Unit | None = None
    cost_per_task: Natural | None = None
    reliability: Unit | None = None


class AgentRegistered(Data, frozen=True, kw_only=True):
    """An agent and what it can do."""

    TYPE = "agent.registered.v1"
    TOPIC = "judgments"
    agent: Name
    capabilities: Annotated[list[Tag], Meta(max_length=64)]
    baseline: Baseline | None = None


class AgentStatusChanged(Data, frozen=True, kw_only=True):
    """An agent became available, busy, offline or went into maintenance."""

    TYPE = "agent.status_changed.v1"
    TOPIC = "judgments"
    agent: Name
    status: Literal["available", "busy", "offline", "maintenance"]
    previous_status: Literal["available", "busy", "offline", "maintenance"] | None = None
    reason: Annotated[str, Meta(max_length=4096)] | None = None


class Alternative(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent that was considered for a task."""

    agent: Name
    score: float
    reason: Annotated[str, Meta(max_length=4096)] = ""


class RoutingDecided(Data, frozen=True, kw_only=True):
    """Which agent gets a task, and which were passed over."""

    TYPE = "routing.decided.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name
    strategy: Literal["multi-armed-bandit", "capability-match", "load-balance", "random"]
    confidence: Unit
    alternatives: Annotated[list[Alternative], Meta(max_length=1000)]
    rationale: Annotated[str, Meta(max_length=65_536)] | None = None


class TaskStarted(Data, frozen=True, kw_only=True):
    """An execution of a task began."""

    TYPE = "task.started.v1"
    TOPIC = "judgments"
    execution_id: Name
    task: Name
    agent: Name
    task_type: Name | None = None
    model_version: Name | None = None


class TaskCompleted(Data, frozen=True, kw_only=True):
    """An execution ended; quality and efficiency in 0…1."""

    TYPE = "task.completed.v1"
    TOPIC = "judgments"
    execution_id: Name | None = None
    task: Name
    agent: Name
    task_type: Name | None = None
    model_version: Name | None = None
    success: bool
    quality: Unit | None = None
    efficiency: Unit | None = None
    tokens: Count | None = None
    duration_ms: Natural | None = None


class EvaluationCompleted(Data, frozen=True, kw_only=True):
    """The outcome of an evaluation, score in 0…1."""

    TYPE = "evaluation.completed.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name | None = None
    passed: bool
    score: Unit
    rubric_scores: Rubrics | None = None
    feedback: Annotated[str, Meta(max_length=65_536)] | None = None


class Violation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A rule that was broken."""

    severity: Literal["low", "medium", "high", "critical"]
    message: Annotated[str, Meta(max_length=4096)]
    rule: Name | None = None


class ValidationCompleted(Data, frozen=True, kw_only=True):
    """A check of an agent's work against rules."""

    TYPE = "validation.completed.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name
    valid: bool
    violations: Annotated[list[Violation], Meta(max_length=1000)]
    compliance_score: Unit
    processing_time_ms: Natural
    rule_count: Count


class ThinkingBudgetAllocated(Data, frozen=True, kw_only=True):
    """Tokens an agent may think with."""

    TYPE = "thinking_budget.allocated.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name | None = None
    tokens: Count
    complexity: Literal["trivial", "standard", "complex"]
    confidence: Unit


class ThinkingBudgetUsed(Data, frozen=True, kw_only=True):
    """Tokens an agent did think with."""

    TYPE = "thinking_budget.used.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name | None = None
    tokens_used: Count
    tokens_allocated: Annotated[int, Meta(gt=0)]
    complexity: Literal["trivial", "standard", "complex"] | None = None


class MinimalityEvaluated(Data, frozen=True, kw_only=True):
    """How small a change was for what it does."""

    TYPE = "minimality.evaluated.v1"
    TOPIC = "judgments"
    task: Name
    agent: Name | None = None
    factor: Annotated[float, Meta(ge=0.1, le=1)]
    ast_similarity: Unit
    scaffolding_penalty: Unit
    lines_changed: Count
    quality: Name


class JudgmentRecorded(Data, frozen=True, kw_only=True):
    """A judge's verdict; without `overall_score` it is the mean of the criteria."""

    TYPE = "judgment.recorded.v1"
    TOPIC = "judgments"
    task: Name
    judge: Name | None = None
    agent: Name | None = None
    overall_score: Unit | None = None
    overall_confidence: Unit
    all_criteria_pass: bool | None = None
    criteria: Rubrics = {}
    evaluation_time_ms: Natural


class CustomRecorded(Data, frozen=True, kw_only=True):
    """Anything else, by name."""

    TYPE = "custom.recorded.v1"
    TOPIC = "judgments"
    name: Name
    agent: Name | None = None
    task: Name | None = None
    fields: dict[str, Any]


class TenantCleared(Data, frozen=True, kw_only=True):
    """The tenant's state ends here and begins anew."""

    TYPE = "tenant.cleared.v1"
    TOPIC = "judgments"
    scope: Literal["performance", "all"]


class CollectionChanged(Data, frozen=True, kw_only=True):
    """Performance events are collected, or not, from here on."""

    TYPE = "collection.changed.v1"
    TOPIC = "judgments"
    enabled: bool
    reason: Annotated[str, Meta(max_length=4096)] | None = None


class ClockTicked(Data, frozen=True, kw_only=True):
    """Time passed without events; published by workers only."""

    TYPE = "clock.ticked.v1"
    TOPIC = "judgments"
    until: Moment


# ---- out of the service


class Evidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The record that crossed a threshold; topic without prefix."""

    topic: str
    partition: int
    offset: int


class AlertData(Data, frozen=True, kw_only=True):
    """An alert's message (contract §3)."""

    TOPIC = "alerts"
    alert_id: str
    rule: str
    severity: Level
    subject: str
    period: str | None = None
    value: float | None = None
    threshold: float | None = None
    previous: str | None = None
    reason: str | None = None
    late: bool = False
    notice: bool = False
    related: list[str] | None = None
    message: str
    evidence: Evidence


class AlertOpened(AlertData, frozen=True, kw_only=True):
    """A rule left ok."""

    TYPE = "alert.opened.v1"


class AlertEscalated(AlertData, frozen=True, kw_only=True):
    """It became worse."""

    TYPE = "alert.escalated.v1"


class AlertEased(AlertData, frozen=True, kw_only=True):
    """It became better, but not ok."""

    TYPE = "alert.eased.v1"


class AlertResolved(AlertData, frozen=True, kw_only=True):
    """It is over."""

    TYPE = "alert.resolved.v1"


class VariableScored(Data, frozen=True, kw_only=True):
    """A variable's score changed: for learners downstream."""

    TYPE = "variable.scored.v1"
    TOPIC = "scores"
    name: Name
    score: dict[str, Any]


class AgentScored(Data, frozen=True, kw_only=True):
    """An agent's figures changed: for learners downstream."""

    TYPE = "agent.scored.v1"
    TOPIC = "scores"
    agent: Name
    score: dict[str, Any]


# ---- the envelope


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A decoded CloudEvents 1.0 envelope.

    Attributes:
        id: unique within the tenant and topic.
        data: one of the structs above.
        time: event time with an offset; None = the record's Kafka timestamp.
        derivedfrom: id of the event that caused this one; set by workers only.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    data: Any
    source: str = ""
    time: Moment | None = None
    tenant: str = "default"
    derivedfrom: str | None = None
    specversion: Literal["1.0"] = "1.0"


class EventType(msgspec.Struct, frozen=True):
    """A type of the contract: its name, topic (without prefix), data struct and envelope struct."""

    name: str
    topic: str
    data: type[Data]
    envelope: type[Event]


SOURCE_EVENTS: tuple[type[Data], ...] = (
    ForecastIssued, ForecastResolved, VariableRegistered, VariablePerformanceUpdated,
    MetricRecorded, LearningRecorded, RlMetricsRecorded, RlMetricsRecordedV2, GoalCreated, GoalProgressed,
    CostIncurred, CostRefunded, BudgetSet,
    TrustObserved, TrustBatchObserved, TrustDecayed, TrustImported, AgentRegistered, AgentStatusChanged, RoutingDecided, TaskStarted,
    TaskCompleted, EvaluationCompleted, ValidationCompleted, ThinkingBudgetAllocated, ThinkingBudgetUsed, MinimalityEvaluated,
    JudgmentRecorded, CustomRecorded, TenantCleared, CollectionChanged, ClockTicked,
)  # fmt: skip
OUTPUT_EVENTS: tuple[type[Data], ...] = (AlertOpened, AlertEscalated, AlertEased, AlertResolved, VariableScored, AgentScored)


def _envelope(data: type[Data]) -> type[Event]:
    return msgspec.defstruct(  # type: ignore[return-value]  # built from Event
        data.__name__ + "Event",
        [("data", data)],
        bases=(Event,),
        tag_field="type",
        tag=data.TYPE,
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        module=__name__,
    )


EVENT_TYPES: dict[str, EventType] = {data.TYPE: EventType(data.TYPE, data.TOPIC, data, _envelope(data)) for data in (*SOURCE_EVENTS, *OUTPUT_EVENTS)}
"""Every type by its name on the wire."""

AnyEvent: Any = Union[tuple(kind.envelope for kind in EVENT_TYPES.values())]  # noqa: UP007 - made at run time

UPCASTS: dict[type[Data], Callable[[Any], Data]] = {RlMetricsRecorded: _rl_metrics_v2}
"""Earlier version of a type -> the same data as its next version says it. Pure; a chain where there are more than two.

Who folds sees the newest version alone (`tables.partition.Schema` applies `upcast`); the log, the archive and whoever reads them have
what was sent.
"""


def newest(data: type[Data]) -> type[Data]:
    """The struct of a type's newest version, as which its events are folded."""
    while data in UPCASTS:
        data = get_type_hints(UPCASTS[data])["return"]
    return data


def upcast(event: Event) -> Event:
    """An event as its type's newest version says it; one that is the newest is returned as it is."""
    data = event.data
    if data.__class__ not in UPCASTS:
        return event
    while data.__class__ in UPCASTS:
        data = UPCASTS[data.__class__](data)
    return EVENT_TYPES[data.TYPE].envelope(id=event.id, data=data, source=event.source, time=event.time, tenant=event.tenant, derivedfrom=event.derivedfrom)
