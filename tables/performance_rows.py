"""Rows of agents, their executions, checks and judgments, and the order in which they are written.

The rule this file keeps: a handler goes through the rows of a record by falling rank. What it opens or reads depends on rows
of a higher rank only, whose state it saw before it changed them; where a row has the record already, all below have it.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Any

import msgspec

from .agent_alerts import Ring, Standing, Watch
from .facts import Facts
from .prediction import Score
from .rooms import ALWAYS, NEVER, PendingRoom, WaitingRoom
from .rows import Table
from .sketch import Sketch

MOST_TOKENS = 2**62
"""Sums of tokens stop here: a row's integers have 64 bits."""

KINDS = (
    "agent.registered", "agent.status_changed", "routing.decided", "task.started", "task.completed", "evaluation.completed", "validation.completed",
    "thinking_budget.allocated", "thinking_budget.used", "minimality.evaluated", "judgment.recorded", "custom.recorded",
)  # fmt: skip
"""Kinds of performance events on `judgments`; counts of them are lists in this order."""
REGISTERED, STATUS, ROUTED, STARTED, COMPLETED, EVALUATED, VALIDATED, ALLOCATED, USED, MINIMALITY, JUDGED, CUSTOM = range(len(KINDS))

STRATEGIES = ("multi-armed-bandit", "capability-match", "load-balance", "random")
COMPLEXITIES = ("trivial", "standard", "complex", "unknown")
REFERENCE_TOKENS = (500, 2000, 8000, None)
"""Usual size of a thinking budget by complexity."""
SEVERITIES = ("low", "medium", "high", "critical")
CLASSES = ("minimal", "moderate", "extensive")
OTHER = "_other"
"""Takes what is beyond a bound on names."""
UNKNOWN = "unknown"


class PerformanceSettings(msgspec.Struct, frozen=True):
    """Settings of agents, tasks and judgments.

    Attributes:
        task_timeout: seconds behind the watermark after which a start without completion is abandoned.
        predict_strength: m, weight of a coarser level's estimate in the next finer one of a prediction, in executions.
        criteria_pass: score from which on a criterion of a judgment passes, by its name; ``default`` (or no name) is that of all others.
        max_agents: agents of a tenant in a partition; further ones are overflow.
        max_judges: judges of a tenant in a partition; further ones are overflow.
    """

    task_timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 3600.0
    predict_strength: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    criteria_pass: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1)]] = msgspec.field(default_factory=lambda: {"": 0.7, "safety": 0.8})
    max_agents: Annotated[int, msgspec.Meta(ge=0)] = 50_000
    max_judges: Annotated[int, msgspec.Meta(ge=0)] = 1_000


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the folds read: its digest is part of the rows' version. Sorted, so that equal is equal."""

    predict_strength: float
    criteria_pass: list[tuple[str, float]]
    max_agents: int
    max_judges: int


# ---- executions


class Sums(msgspec.Struct, array_like=True, gc=False):
    """Executions summed up.

    Attributes:
        born: offset of the record that made the row; -1 while it is empty.
        first_us, last_us: least and greatest event time of its starts and completions.
        executions, successes: completions that count.
        qualities, quality: how many had one, and their sum; likewise efficiencies.
        token_counts, tokens: how many told tokens, and their sum.
        durations, duration, shortest, longest: how many have one, and mean, least and greatest, ms.
        sketch: of the durations, ms; None while there are none.
        starts, finished: starts, and those of them whose completion is known.
        joined: completions whose start is known.
        negative: completions before their start; duplicates: second completions; repeats: second starts.
    """

    born: int = -1
    first_us: int = ALWAYS
    last_us: int = NEVER
    executions: int = 0
    successes: int = 0
    qualities: int = 0
    quality: float = 0.0
    efficiencies: int = 0
    efficiency: float = 0.0
    token_counts: int = 0
    tokens: int = 0
    durations: int = 0
    duration: float = 0.0
    shortest: float = inf
    longest: float = -inf
    sketch: Sketch | None = None
    starts: int = 0
    finished: int = 0
    joined: int = 0
    negative: int = 0
    duplicates: int = 0
    repeats: int = 0

    def at(self, time_us: int, offset: int) -> None:
        """Note the time of an event, and the first record."""
        if time_us < self.first_us:
            self.first_us = time_us
        if time_us > self.last_us:
            self.last_us = time_us
        if self.born < 0:
            self.born = offset

    def complete(
        self,
        success: bool,
        quality: float | None,
        efficiency: float | None,
        tokens: int | None,
        duration_ms: float | None,
        joined: bool,
        negative: bool,
        sketched: bool = True,
    ) -> None:
        """Count a completion."""
        self.executions += 1
        if success:
            self.successes += 1
        if quality is not None:
            self.qualities += 1
            self.quality += quality
        if efficiency is not None:
            self.efficiencies += 1
            self.efficiency += efficiency
        if tokens is not None:
            self.token_counts += 1
            tokens += self.tokens
            self.tokens = tokens if tokens < MOST_TOKENS else MOST_TOKENS
        if joined:
            self.joined += 1
        if negative:
            self.negative += 1
        if duration_ms is not None:
            self.last(duration_ms, sketched)

    def last(self, ms: float, sketched: bool = True) -> None:
        """Take in a duration, ms."""
        n = self.durations = self.durations + 1
        self.duration += (ms - self.duration) / n
        if ms < self.shortest:
            self.shortest = ms
        if ms > self.longest:
            self.longest = ms
        if sketched:
            sketch = self.sketch
            if sketch is None:
                sketch = self.sketch = Sketch()
            sketch.add(ms)

    def merge(self, other: Sums) -> None:
        """Take in the executions of another set; `other` stays as it is."""
        self.first_us = min(self.first_us, other.first_us)
        self.last_us = max(self.last_us, other.last_us)
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.durations:
            n = self.durations = self.durations + other.durations
            self.duration += (other.duration - self.duration) * (other.durations / n)
            self.shortest = min(self.shortest, other.shortest)
            self.longest = max(self.longest, other.longest)
        if other.sketch is not None:
            if self.sketch is None:
                self.sketch = Sketch()
            self.sketch.merge(other.sketch)


_ADDED = (
    "executions", "successes", "qualities", "quality", "efficiencies", "efficiency", "token_counts", "tokens", "starts", "finished", "joined", "negative",
    "duplicates", "repeats",
)  # fmt: skip


class AgentType(msgspec.Struct, array_like=True, gc=False):
    """Executions of a task type by an agent, as evidence for predictions."""

    n: int = 0
    s: int = 0


class TaskType(msgspec.Struct, array_like=True, gc=False):
    """Executions of a task type in one partition, and how good their predictions were."""

    born: int = -1
    n: int = 0
    s: int = 0
    score: Score = msgspec.field(default_factory=Score)


class Names(msgspec.Struct, array_like=True, gc=False):
    """Pairs (task type, model version) under which an agent has `Sums`; written only when one is new."""

    pairs: list[tuple[str, str]] = []
    size: int = 0
    """Bytes of the names."""


class Register(msgspec.Struct, array_like=True, gc=False):
    """How many names of a tenant a partition keeps: what the bounds are judged by."""

    agents: int = 0
    task_types: int = 0
    pairs: int = 0
    judges: int = 0
    judged_pairs: int = 0
    custom: int = 0
    overflow: int = 0


class Totals(msgspec.Struct, array_like=True, gc=False):
    """A tenant's performance events in one partition: counts by `KINDS`, least and greatest time, executions for predictions."""

    events: list[int] = msgspec.field(default_factory=lambda: [0] * len(KINDS))
    first_us: int = ALWAYS
    last_us: int = NEVER
    executions: int = 0
    successes: int = 0


class Switch(msgspec.Struct, array_like=True, gc=False):
    """Whether a tenant's performance events are collected in this partition."""

    off: bool = False
    reason: str | None = None
    time_us: int = NEVER


# ---- agents


class Agent(msgspec.Struct, array_like=True, gc=False):
    """An agent's events and executions (without the sketch of durations, which its pairs have)."""

    born: int = -1
    events: list[int] = msgspec.field(default_factory=lambda: [0] * len(KINDS))
    first_us: int = ALWAYS
    last_us: int = NEVER
    sums: Sums = msgspec.field(default_factory=Sums)


class Profile(msgspec.Struct, array_like=True, gc=False):
    """What an agent is said to be, and its status.

    Attributes:
        registrations: how often it was registered.
        registered_us: event time of the registration in force.
        capabilities, baseline: of it; the baseline is (latency_ms, accuracy, cost_per_task, reliability), each or None.
        status, since_us, reason: latest by event time.
        previous, previous_us: the status before it.
        mismatches: changes whose previous_status was another than the one known.
    """

    registrations: int = 0
    registered_us: int = NEVER
    capabilities: list[str] = []
    baseline: tuple[float | None, float | None, float | None, float | None] | None = None
    status: str | None = None
    since_us: int = NEVER
    reason: str | None = None
    previous: str | None = None
    previous_us: int = NEVER
    mismatches: int = 0


class Routing(msgspec.Struct, array_like=True, gc=False):
    """Decisions that chose an agent: by `STRATEGIES`, sum of confidence, and who was passed over for it."""

    chosen: int = 0
    strategies: list[int] = msgspec.field(default_factory=lambda: [0] * len(STRATEGIES))
    confidence: float = 0.0
    passed_over: dict[str, int] = {}


class Budgets(msgspec.Struct, array_like=True, gc=False):
    """Thinking budgets of an agent, lists by `COMPLEXITIES`.

    Attributes:
        allocations, allocated: how many, and tokens.
        uses, used, utilisation, exhausted: how many, tokens, sum of used/allocated, and how many used all or more.
        recent: last 20 utilisations.
        standing: of ``agent.budget``.
    """

    allocations: list[int] = msgspec.field(default_factory=lambda: [0] * len(COMPLEXITIES))
    allocated: list[int] = msgspec.field(default_factory=lambda: [0] * len(COMPLEXITIES))
    uses: list[int] = msgspec.field(default_factory=lambda: [0] * len(COMPLEXITIES))
    used: list[int] = msgspec.field(default_factory=lambda: [0] * len(COMPLEXITIES))
    utilisation: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(COMPLEXITIES))
    exhausted: list[int] = msgspec.field(default_factory=lambda: [0] * len(COMPLEXITIES))
    recent: list[float] = []
    standing: Standing = msgspec.field(default_factory=Standing)


class Compliance(msgspec.Struct, array_like=True, gc=False):
    """Validations of an agent.

    Attributes:
        n, valid: how many, and how many were valid.
        score, processing_ms: mean compliance score, mean processing time.
        violations: by `SEVERITIES`.
        valid_bits, critical_bits: of the last 20, the newest lowest.
        standing: of ``agent.compliance``.
    """

    n: int = 0
    valid: int = 0
    score: float = 0.0
    processing_ms: float = 0.0
    violations: list[int] = msgspec.field(default_factory=lambda: [0] * len(SEVERITIES))
    valid_bits: int = 0
    critical_bits: int = 0
    standing: Standing = msgspec.field(default_factory=Standing)


class Minimality(msgspec.Struct, array_like=True, gc=False):
    """Minimality of an agent's changes: means, counts by `CLASSES`, counts of the quality words."""

    n: int = 0
    factor: float = 0.0
    ast_similarity: float = 0.0
    scaffolding_penalty: float = 0.0
    lines_changed: float = 0.0
    classes: list[int] = msgspec.field(default_factory=lambda: [0] * len(CLASSES))
    words: dict[str, int] = {}


class Custom(msgspec.Struct, array_like=True, gc=False):
    """Generic events of a name."""

    born: int = -1
    n: int = 0
    first_us: int = ALWAYS
    last_us: int = NEVER


# ---- evaluations and judgments


class Evaluations(msgspec.Struct, array_like=True, gc=False):
    """Evaluations of an agent: how many, passed, mean score, and per rubric how many and the mean."""

    n: int = 0
    passed: int = 0
    score: float = 0.0
    rubrics: dict[str, tuple[int, float]] = {}


class Judgments(msgspec.Struct, array_like=True, gc=False):
    """Judgments, of an agent, by a judge, or both.

    Attributes:
        born: offset of the record that made the row; -1 while it is empty.
        n, overall, confidence, evaluation_ms: how many, and means.
        verdicts, passes: how many have a verdict, and how many of those say that all criteria pass.
        criteria: per criterion how many, mean, passes.
        size: bytes of the criteria's names.
        joined, agreed, brier: verdicts compared with the task's evaluation, how many agreed, sum of (confidence − agreed)².
    """

    born: int = -1
    n: int = 0
    overall: float = 0.0
    confidence: float = 0.0
    evaluation_ms: float = 0.0
    verdicts: int = 0
    passes: int = 0
    criteria: dict[str, tuple[int, float, int]] = {}
    size: int = 0
    joined: int = 0
    agreed: int = 0
    brier: float = 0.0


class TaskRoom(msgspec.Struct, array_like=True, gc=False):
    """One bucket of tasks that were judged.

    Attributes:
        entries: `Judgments` as msgpack, so that those which a record does not change are not encoded for it; by task, agent and judge, joined by NUL,
            in the order in which they first came.
    """

    entries: dict[str, bytes] = {}


class JudgmentWatch(msgspec.Struct, array_like=True, gc=False):
    """Last 20 overall scores of an agent's judgments, and where ``agent.judgment`` stands."""

    recent: list[float] = []
    standing: Standing = msgspec.field(default_factory=Standing)


class PerformanceTables:
    """The rows kept, by falling rank. Keys: see each."""

    def __init__(self, settings: PerformanceSettings) -> None:
        reads = FoldSettings(settings.predict_strength, sorted(settings.criteria_pass.items()), settings.max_agents, settings.max_judges)
        self.switch = Table("performance_switch", Switch, rank=80, settings=reads)  # ()
        self.executions = Table("executions", Facts, rank=79, version=2, settings=reads)  # (bucket,)
        self.facts = Table("task_facts", Facts, rank=79, version=2, settings=reads)  # (bucket,)
        self.waiting = Table("waiting_executions", WaitingRoom, rank=78, version=2, settings=reads)  # (bucket,)
        self.pending = Table("waiting_verdicts", PendingRoom, rank=78, version=2, settings=reads)  # (bucket,)
        self.register = Table("performance_names", Register, rank=76, settings=reads)  # ()
        self.names = Table("agent_names", Names, rank=75, settings=reads)  # (agent,)
        self.totals = Table("performance_totals", Totals, rank=70, settings=reads)  # ()
        self.agents = Table("agents", Agent, rank=68, settings=reads)  # (agent,)
        self.agent_types = Table("agent_types", AgentType, rank=66, settings=reads)  # (agent, task type)
        self.task_types = Table("task_types", TaskType, rank=64, settings=reads)  # (task type,)
        self.profiles = Table("agent_profiles", Profile, rank=62, settings=reads)  # (agent,)
        self.routing = Table("agent_routing", Routing, rank=62, settings=reads)  # (agent,)
        self.budgets = Table("agent_budgets", Budgets, rank=62, settings=reads)  # (agent,)
        self.compliance = Table("agent_compliance", Compliance, rank=62, settings=reads)  # (agent,)
        self.minimality = Table("agent_minimality", Minimality, rank=62, settings=reads)  # (agent,)
        self.custom = Table("custom_events", Custom, rank=62, settings=reads)  # (name,)
        self.evaluations = Table("agent_evaluations", Evaluations, rank=62, settings=reads)  # (agent,)
        self.judgments = Table("judgments", Judgments, rank=60, settings=reads)  # (agent or "", judge or "")
        self.tasks = Table("judged_tasks", TaskRoom, rank=58, version=2, settings=reads)  # (bucket,)
        self.judged = Table("agent_judged", JudgmentWatch, rank=56, settings=reads)  # (agent,)
        # the series' windows have ranks 40 to 46
        self.pairs = Table("agent_executions", Sums, rank=30, settings=reads)  # (agent, task type, version or "")
        self.sums = Table("task_executions", Sums, rank=28, settings=reads)  # (task type, version or "")
        self.rings = Table("agent_completions", Ring, rank=20, settings=reads)  # (agent, segment)
        self.watches = Table("agent_watch", Watch, rank=18, settings=reads)  # (agent,)
        self.all: tuple[Table[Any], ...] = tuple(value for value in vars(self).values() if isinstance(value, Table))
