"""Events without names: what identifies somebody is replaced by a pseudonym or left out, everything else stays.

The rules this file keeps: which fields name whom is an explicit list, never a search for "id" in names; a field that nobody
has listed is left out, so that a new one cannot leak; the same id of the same class gets the same pseudonym in every event
type, and another in every tenant; without the key no pseudonym can be traced back or guessed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import msgspec

SEPARATOR = b"\x1f"
LENGTH = 32
"""Hex digits of a pseudonym: 128 bits."""


class AnonymiseSettings(msgspec.Struct, frozen=True):
    """Settings of anonymised exports.

    Attributes:
        anonymise_key: secret that pseudonyms are made with; set, exports are anonymised unless told otherwise; off = there is none.
        anonymise_required: exports are never given with names.
        anonymise_keep: fields that would be left out and are kept all the same, such as ``rationale``; of custom events ``fields``, or the name of one.
    """

    anonymise_key: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    anonymise_required: bool = False
    anonymise_keep: list[str] = []


def pseudonym(key: str, tenant: str, kind: str, name: str) -> str:
    """Pseudonym of an id: first 32 hex digits of HMAC-SHA-256 over tenant, class and id, parted by byte 0x1F.

    Args:
        key: the secret.
        kind: class of the id: ``agent``, ``task``, ``execution``, ``judge``, ``run``, ``goal``, ``forecast``, ``event``, ``source``,
            or the kind of a trust id.

    Example:
        >>> pseudonym("golden-key", "golden", "agent", "agent-7")
        '7057d73f294e875ba4433afd02b27974'

    Source:
        RFC 2104.
    """
    message = SEPARATOR.join((tenant.encode(), kind.encode(), name.encode()))
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:LENGTH]


KEEP, DROP = "keep", "drop"
_AGENT, _TASK, _RUN, _EVENT = "agent", "task", "run", "event"

_TRUST: dict[str, Any] = {"kind": KEEP, "id": "by kind", "success": KEEP, "weight": KEEP}

FIELDS: dict[str, dict[str, Any]] = {
    "agent.registered.v1": {"agent": _AGENT, "capabilities": KEEP, "baseline": KEEP},
    "agent.status_changed.v1": {"agent": _AGENT, "status": KEEP, "previous_status": KEEP, "reason": DROP},
    "routing.decided.v1": {
        "task": _TASK,
        "agent": _AGENT,
        "strategy": KEEP,
        "confidence": KEEP,
        "alternatives": [{"agent": _AGENT, "score": KEEP, "reason": DROP}],
        "rationale": DROP,
    },
    "task.started.v1": {"execution_id": "execution", "task": _TASK, "agent": _AGENT, "task_type": KEEP, "model_version": KEEP},
    "task.completed.v1": {
        "execution_id": "execution",
        "task": _TASK,
        "agent": _AGENT,
        **dict.fromkeys(("task_type", "model_version", "success", "quality", "efficiency", "tokens", "duration_ms"), KEEP),
    },
    "evaluation.completed.v1": {"task": _TASK, "agent": _AGENT, "passed": KEEP, "score": KEEP, "rubric_scores": KEEP, "feedback": DROP},
    "validation.completed.v1": {
        "task": _TASK,
        "agent": _AGENT,
        "valid": KEEP,
        "violations": [{"severity": KEEP, "message": DROP, "rule": KEEP}],
        **dict.fromkeys(("compliance_score", "processing_time_ms", "rule_count"), KEEP),
    },
    "thinking_budget.allocated.v1": {"task": _TASK, "agent": _AGENT, "tokens": KEEP, "complexity": KEEP, "confidence": KEEP},
    "thinking_budget.used.v1": {"task": _TASK, "agent": _AGENT, "tokens_used": KEEP, "tokens_allocated": KEEP, "complexity": KEEP},
    "minimality.evaluated.v1": {
        "task": _TASK,
        "agent": _AGENT,
        **dict.fromkeys(("factor", "ast_similarity", "scaffolding_penalty", "lines_changed", "quality"), KEEP),
    },
    "judgment.recorded.v1": {
        "task": _TASK,
        "judge": "judge",
        "agent": _AGENT,
        **dict.fromkeys(("overall_score", "overall_confidence", "all_criteria_pass", "criteria", "evaluation_time_ms"), KEEP),
    },
    "custom.recorded.v1": {"name": KEEP, "agent": _AGENT, "task": _TASK, "fields": "custom"},
    "trust.observed.v1": _TRUST,
    "trust.batch_observed.v1": {"observations": [_TRUST]},
    "trust.decayed.v1": {"kind": KEEP, "id": "by kind", "factor": KEEP, "min_count": KEEP},
    "trust.imported.v1": {"kind": KEEP, "id": "by kind", **dict.fromkeys(("alpha", "beta", "last_update", "history", "removed"), KEEP)},
    "tenant.cleared.v1": {"scope": KEEP},
    "collection.changed.v1": {"enabled": KEEP, "reason": DROP},
    "clock.ticked.v1": {"until": KEEP},
    "rl_metrics.recorded.v1": {
        "run": _RUN,
        "agent": _AGENT,
        **dict.fromkeys(("trajectories_processed", "average_reward", "policy_loss", "value_loss", "kl_divergence", "training_time_ms"), KEEP),
    },
    "rl_metrics.recorded.v2": {
        "run": _RUN,
        "agent": _AGENT,
        **dict.fromkeys(("trajectories_processed", "average_reward", "losses", "kl_divergence", "training_time_ms"), KEEP),
    },
    "metric.recorded.v1": {
        "run": _RUN,
        "metric_id": _EVENT,
        **dict.fromkeys(("metric_type", "model", "value", "values", "tags", "epoch", "step", "cost", "api_calls", "token_usage"), KEEP),
    },
    "learning.recorded.v1": {
        "run": _RUN,
        "metadata": DROP,
        **dict.fromkeys(("task_type", "performance_score", "learning_rate", "episode_count", "convergence_metric"), KEEP),
    },
    "goal.created.v1": {
        "goal_id": "goal",
        "description": DROP,
        **dict.fromkeys(("target", "direction", "start", "task_type", "metric", "deadline"), KEEP),
    },
    "goal.progressed.v1": {"goal_id": "goal", "current": KEEP, "task_type": KEEP},
    "cost.incurred.v1": {"run": _RUN, "agent": _AGENT, **dict.fromkeys(("cost", "api_calls", "token_usage", "model", "tags"), KEEP)},
    "cost.refunded.v1": {"run": _RUN, "agent": _AGENT, "refers_to": _EVENT, "cost": KEEP, "model": KEEP, "tags": KEEP},
    "budget.set.v1": {"scope": "scope", "period": KEEP, "limits": KEEP, "starts": KEEP},
    "forecast.issued.v1": {
        "forecast_id": "forecast",
        **dict.fromkeys(
            ("model", "confidence", "fragility", "certified", "alignment_score", "arc_label", "symbolic_tag", "confidence_status", "prediction", "inputs"), KEEP
        ),
    },
    "forecast.resolved.v1": {"forecast_id": "forecast", **dict.fromkeys(("model", "success", "actual", "probability", "inputs"), KEEP)},
    "variable.registered.v1": {"description": DROP, **dict.fromkeys(("name", "kind", "default", "low", "high"), KEEP)},
    "variable.performance_updated.v1": {"variable": KEEP, "new_score": KEEP},
}
"""What becomes of each field of an event's data: kept, left out, or replaced by a pseudonym of the class named."""

ENVELOPE: dict[str, str] = {
    "specversion": KEEP,
    "type": KEEP,
    "time": KEEP,
    "tenant": KEEP,
    "datacontenttype": KEEP,
    "dataschema": KEEP,
    "id": _EVENT,
    "derivedfrom": _EVENT,
    "source": "source",
}
"""The same of an envelope's attributes; others are left out."""
NAMELESS_KINDS = frozenset(("variable", "rule", "model"))
"""Kinds of trust whose ids name nobody and are kept; of every other kind the id gets a pseudonym of the class of that name."""
_SCOPES = {"agent:": _AGENT, "run:": _RUN}


class Anonymiser:
    """Replaces names in events of one tenant.

    Args:
        key: the secret.
        tenant: enters every pseudonym.
        keep: fields that are kept though they would be left out.
    """

    def __init__(self, key: str, tenant: str, keep: Collection[str] = ()) -> None:
        self.tenant = tenant
        self.keep = frozenset(keep)
        self._key = key

    def name(self, kind: str, name: str) -> str:
        """Pseudonym of an id of a class."""
        return pseudonym(self._key, self.tenant, kind, name)

    def envelope(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """An event without names; `event` stays as it is.

        Args:
            event: a CloudEvents envelope as decoded JSON. Data of a type that is not listed is left out.
        """
        found: dict[str, Any] = {}
        for attribute, value in event.items():
            rule = ENVELOPE.get(attribute, KEEP if attribute in self.keep and attribute != "data" else DROP)
            if rule == KEEP:
                found[attribute] = value
            elif rule != DROP and isinstance(value, str):
                found[attribute] = self.name(rule, value)
        data = event.get("data")
        rules = FIELDS.get(str(event.get("type")))
        if rules is not None and isinstance(data, Mapping):
            found["data"] = self._struct(rules, data)
        return found

    def _struct(self, rules: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field, value in data.items():
            rule = rules.get(field, DROP)
            if rule == KEEP or (rule == DROP and field in self.keep) or value is None:
                if field in rules or field in self.keep:
                    found[field] = value
            elif rule == DROP:
                continue
            elif isinstance(rule, list):
                if isinstance(value, list):
                    found[field] = [self._struct(rule[0], item) for item in value if isinstance(item, Mapping)]
            elif rule == "custom":
                if "fields" in self.keep:
                    found[field] = value
                elif isinstance(value, Mapping):
                    found[field] = {name: item for name, item in value.items() if name in self.keep}
            elif isinstance(value, str):
                found[field] = _SPECIAL[rule](self, data, value) if rule in _SPECIAL else self.name(rule, value)
        return found

    def _by_kind(self, data: Mapping[str, Any], value: str) -> str:
        kind = str(data.get("kind"))
        return value if kind in NAMELESS_KINDS else self.name(kind, value)

    def _scope(self, data: Mapping[str, Any], value: str) -> str:
        for prefix, kind in _SCOPES.items():
            if value.startswith(prefix):
                return prefix + self.name(kind, value.removeprefix(prefix))
        return value


_SPECIAL: dict[str, Callable[[Anonymiser, Mapping[str, Any], str], str]] = {"by kind": Anonymiser._by_kind, "scope": Anonymiser._scope}
