"""Trust by rule: what forecasts, tasks, evaluations and judgments say of models, variables, agents and judges.

The rules this file keeps:
  * what follows is put out as derived `trust.observed` events, which are absorbed like any other: on the topic, in the history,
    in a replay. Nothing here touches the trust of a key;
  * a forecast resolved twice, or an execution completed twice, speaks once;
  * where a join cannot be made that is counted (`unjoined`), never guessed.

An observation has the id and time of the event that it speaks of. For a judge that is the judgment, whichever of judgment and
evaluation came first, so its id does not depend on the order.

Rows in the order in which a flush writes them: counts, made from all others; kept forecasts; resolutions, completions and tasks,
each made from itself alone; whether performance is collected, which is only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streams.derive import time_text
from streams.errors import ConfigError
from streams.events import CollectionChanged, EvaluationCompleted, ForecastIssued, ForecastResolved, JudgmentRecorded, TaskCompleted, TrustObserved
from streams.keys import derived_id, encode_key

from .fold import Fold, Reader, View
from .remembered import Seen, Texts, digest_of
from .rows import Table
from .times import DAY_US, rfc3339_or_none
from .trust_state import TOPIC, Positive, of_kind
from .trust_verdicts import Judged, Verdicts
from .verdicts import pass_limits, verdict

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

RULES = {
    "forecast_model": "a resolved forecast: its model",
    "forecast_variables": "a resolved forecast: each of its inputs",
    "forecast_certified": "an issued forecast: whether it was certified, for each of its inputs",
    "task": "a completed task: its agent",
    "evaluation": "an evaluation: its agent",
    "judgment": "a judgment: its agent",
    "judge": "a judgment against the evaluation of the same task: the judge",
}
MOST_FORECASTS = 100_000
KEPT_US = 30 * DAY_US
"""How long an issued forecast and a resolution are remembered, event time."""
NO_NAME = "unknown"
"""The forecast_id of forecasts without one: it names nothing, so it joins nothing."""

_OBSERVED: str = TrustObserved.TYPE
_encode = msgspec.json.Encoder().encode


class TrustRuleSettings(msgspec.Struct, frozen=True):
    """Settings of trust by rule.

    Attributes:
        trust_rule: by rule (forecast_model, forecast_variables, forecast_certified, task, evaluation, judgment, judge): on, off,
            or the weight of its observations (on = 1); it acts from there on, not backwards.
    """

    trust_rule: dict[str, Literal["on", "off"] | bool | Positive] = msgspec.field(default_factory=lambda: {"": "on", "forecast_certified": "off"})


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the rows depend on: its digest is part of their version. Weights are not of it."""

    on: list[str]
    criteria_pass: list[tuple[str, float]]
    most_forecasts: int


class RuleCounts(msgspec.Struct, array_like=True, gc=False):
    """What a rule did in a partition.

    Attributes:
        derived: observations put out.
        unjoined: events whose other half is not known (of judgments: not yet).
        repeated: events that were passed over because the first of their kind had spoken.
    """

    derived: int = 0
    unjoined: int = 0
    repeated: int = 0


class Collection(msgspec.Struct, array_like=True, gc=False):
    """Whether the tenant's performance events are collected."""

    on: bool = True


class RulesParams(msgspec.Struct, frozen=True):
    """``/trust/rules``"""


def weights(settings: TrustRuleSettings) -> dict[str, float]:
    """Weight of each rule's observations; 0 = the rule is off.

    Raises:
        ConfigError: a name that is no rule.
    """
    for name in settings.trust_rule:
        if name and name not in RULES:
            raise ConfigError(f"trust_rule.{name}", f"there is no such rule; there are {', '.join(RULES)}")
    found = {}
    for name in RULES:
        value = of_kind(settings.trust_rule, name, name != "forecast_certified")
        found[name] = (1.0 if value else 0.0) if isinstance(value, bool) else {"on": 1.0, "off": 0.0}[value] if isinstance(value, str) else float(value)
    return found


class Derivation:
    """Observations derived from one event.

    Args:
        id, time_us: of the event that they speak of.
    """

    __slots__ = ("id", "p", "tenant", "time")

    def __init__(self, p: Partition, tenant: str, id: str, time_us: int) -> None:
        self.p, self.tenant, self.id = p, tenant, id
        self.time = time_text(time_us)

    def observe(self, kind: str, id: str, success: bool, weight: float) -> None:
        """Put out one observation, to the home of its key."""
        p, tenant, source = self.p, self.tenant, self.id
        body = {
            "specversion": "1.0",
            "id": derived_id(p.topic, tenant, source, _OBSERVED, f"{kind}|{id}"),
            "source": p.source,
            "type": _OBSERVED,
            "time": self.time,
            "tenant": tenant,
            "derivedfrom": source,
            "data": {"kind": kind, "id": id, "success": success, "weight": weight},
        }
        p.publish(TOPIC, encode_key(tenant, kind, id), _encode(body))


class TrustByRule(Fold):
    """The rules of trust.md §4, and ``/trust/rules``.

    Args:
        settings: which rules are on, and their weights.
        criteria_pass: setting of judgments: score from which a criterion passes, by criterion; ``""`` is that of all others.
        most_forecasts: issued forecasts remembered, a tenant and partition (one with very many inputs counts as several).
    """

    topics = ("forecasts", TOPIC)

    def __init__(
        self, settings: TrustRuleSettings | None = None, criteria_pass: Mapping[str, float] | None = None, *, most_forecasts: int = MOST_FORECASTS
    ) -> None:
        self.settings = settings or TrustRuleSettings()
        self.weights = found = weights(self.settings)
        self.model, self.variables, self.certified = found["forecast_model"], found["forecast_variables"], found["forecast_certified"]
        self.task, self.evaluation, self.judgment, self.judge = found["task"], found["evaluation"], found["judgment"], found["judge"]
        self.pass_at = pass_limits({"": 0.7, "safety": 0.8} if criteria_pass is None else criteria_pass)
        reads = FoldSettings([name for name in RULES if found[name]], sorted(self.pass_at.items()), most_forecasts)
        self.counts = Table("trust_rules", RuleCounts, rank=5, settings=reads)
        self.issues = Texts("trust_forecasts", most=most_forecasts, within_us=KEPT_US, rank=30, settings=reads)
        self.resolutions = Seen("trust_resolutions", within_us=KEPT_US, rank=33, settings=reads)
        self.completions = Seen("trust_completions", within_us=DAY_US, rank=34, settings=reads)
        self.verdicts = Verdicts(rank=35, settings=reads)
        self.collection = Table("trust_collection", Collection, rank=36, settings=reads)
        self.tables = (self.counts, *self.issues.tables, self.resolutions.table, self.completions.table, self.verdicts.table, self.collection)
        self.handlers = {
            ForecastIssued: self.issued,
            ForecastResolved: self.resolved,
            TaskCompleted: self.completed,
            EvaluationCompleted: self.evaluated,
            JudgmentRecorded: self.judged,
            CollectionChanged: self.collection_changed,
        }
        summary = "What each rule of trust is worth, how many observations it gave, and what it could not join."
        self.views = (View("/trust/rules", RulesParams, self.shown, self.topics, summary),)

    # ---- forecasts

    def issued(self, event: Event, p: Partition) -> None:
        """Remember a forecast's inputs for its resolution; speak of them if it was certified."""
        data: ForecastIssued = event.data
        if self.certified and data.inputs:
            derivation = Derivation(p, event.tenant, event.id, p.time_us)
            for name in data.inputs:
                derivation.observe("variable", name, data.certified, self.certified)
            self.count(p, event.tenant, "forecast_certified", derived=len(data.inputs))
        if self.variables and data.forecast_id != NO_NAME:
            self.issues.keep(p, event.tenant, digest_of(data.model or "", data.forecast_id), data.inputs)

    def resolved(self, event: Event, p: Partition) -> None:
        """Speak of a resolved forecast's model and inputs, once."""
        data: ForecastResolved = event.data
        if not (self.model or self.variables):
            return
        tenant = event.tenant
        named = data.forecast_id != NO_NAME
        digest = digest_of(data.model or "", data.forecast_id)
        if named and not self.resolutions.first(p, tenant, digest):
            if self.model and data.model is not None:
                self.count(p, tenant, "forecast_model", repeated=1)
            if self.variables:
                self.count(p, tenant, "forecast_variables", repeated=1)
            return
        inputs = data.inputs or (self.issues.recall(p, tenant, digest) if self.variables and named else None)
        derivation = Derivation(p, tenant, event.id, p.time_us)
        if self.model and data.model is not None:
            derivation.observe("model", data.model, data.success, self.model)
            self.count(p, tenant, "forecast_model", derived=1)
        if self.variables:
            if inputs is None:
                self.count(p, tenant, "forecast_variables", unjoined=1)
            else:
                for name in inputs:
                    derivation.observe("variable", name, data.success, self.variables)
                self.count(p, tenant, "forecast_variables", derived=len(inputs))

    # ---- agents and judges

    def completed(self, event: Event, p: Partition) -> None:
        """Speak of the agent of a completed task; of an execution_id only the first completion within 24 h counts."""
        data: TaskCompleted = event.data
        tenant = event.tenant
        if not self.task or not self.collected(p, tenant):
            return
        if data.execution_id is not None and not self.completions.first(p, tenant, digest_of(data.agent, data.execution_id)):
            self.count(p, tenant, "task", repeated=1)
            return
        Derivation(p, tenant, event.id, p.time_us).observe("agent", data.agent, data.success, self.task)
        self.count(p, tenant, "task", derived=1)

    def evaluated(self, event: Event, p: Partition) -> None:
        """Speak of an evaluated agent, and of the judges who judged the task before."""
        data: EvaluationCompleted = event.data
        tenant = event.tenant
        if not self.collected(p, tenant):
            return
        if self.evaluation and data.agent is not None:
            Derivation(p, tenant, event.id, p.time_us).observe("agent", data.agent, data.passed, self.evaluation)
            self.count(p, tenant, "evaluation", derived=1)
        if self.judge:
            met = self.verdicts.evaluated(p, tenant, data.agent, data.task, data.passed)
            for one in met:
                Derivation(p, tenant, one.id, one.time_us).observe("judge", one.judge, one.verdict == data.passed, self.judge)
            if met:
                self.count(p, tenant, "judge", derived=len(met), unjoined=-len(met))

    def judged(self, event: Event, p: Partition) -> None:
        """Speak of a judged agent, and of the judge if the task was evaluated before."""
        data: JudgmentRecorded = event.data
        tenant = event.tenant
        if not self.collected(p, tenant):
            return
        says = verdict(data, self.pass_at)
        if says is None:
            return
        derivation = Derivation(p, tenant, event.id, p.time_us)
        if self.judgment and data.agent is not None:
            derivation.observe("agent", data.agent, says, self.judgment)
            self.count(p, tenant, "judgment", derived=1)
        if self.judge and data.judge is not None:
            passed = self.verdicts.judged(p, tenant, data.agent, data.task, Judged(data.judge, says, p.time_us, event.id))
            if passed is None:
                self.count(p, tenant, "judge", unjoined=1)
            else:
                derivation.observe("judge", data.judge, says == passed, self.judge)
                self.count(p, tenant, "judge", derived=1)

    # ---- whether performance is collected

    def collection_changed(self, event: Event, p: Partition) -> None:
        """Take note of a copy of the command; the command itself is the performance tables' business."""
        data: CollectionChanged = event.data
        if event.derivedfrom is not None:
            state = p.open(self.collection, event.tenant, ())
            if state is not None:
                state.on = data.enabled

    def collected(self, p: Partition, tenant: str) -> bool:
        """Whether the tenant's performance events count at this place of the log."""
        state = p.read(self.collection, tenant, ())
        return state is None or state.on

    # ---- counts

    def count(self, p: Partition, tenant: str, rule: str, derived: int = 0, unjoined: int = 0, repeated: int = 0) -> None:
        """Add to a rule's counts; once a record and rule."""
        counts = p.open(self.counts, tenant, (rule,))
        if counts is not None:
            if derived:
                counts.derived += derived
            if unjoined:
                counts.unjoined += unjoined
            if repeated:
                counts.repeated += repeated

    def shown(self, reader: Reader, params: RulesParams) -> dict[str, Any]:
        """``/trust/rules``"""
        shown = []
        for name, of in RULES.items():
            counts = reader.rows(self.counts, (name,))
            shown.append(
                {
                    "name": name,
                    "of": of,
                    "on": self.weights[name] > 0,
                    "weight": self.weights[name],
                    "derived": sum(one.derived for one in counts),
                    "unjoined": sum(one.unjoined for one in counts),
                    "repeated": sum(one.repeated for one in counts),
                }
            )
        return {"rules": shown, "as_of": rfc3339_or_none(reader.as_of())}
