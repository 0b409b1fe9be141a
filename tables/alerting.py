"""Alerts of ordered rules: judged inside a partition's fold, so the same log gives the same messages.

A rule per subject is at one level of `LEVELS`. A change of level is one message; its id follows from the event that caused
it, so a crash repeats the message and its twin is recognised. (The merged rules live with the follower.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.derive import event_bytes
from streams.keys import alert_id, derived_id

if TYPE_CHECKING:
    from streams.events import Event

    from .fold import Verdict
    from .partition import Partition

LEVELS = ("ok", "info", "warning", "critical", "shutdown")
"""From harmless to worst; a level's rank is its place."""

OPENED, ESCALATED = "alert.opened.v1", "alert.escalated.v1"
EASED, RESOLVED = "alert.eased.v1", "alert.resolved.v1"


def change_type(previous: str, level: str) -> str | None:
    """Type of the message for a change of level; None where nothing changed.

    Example:
        >>> change_type("ok", "critical"), change_type("critical", "warning"), change_type("warning", "ok")
        ('alert.opened.v1', 'alert.eased.v1', 'alert.resolved.v1')
    """
    if previous == level:
        return None
    if previous == "ok":
        return OPENED
    if level == "ok":
        return RESOLVED
    return ESCALATED if LEVELS.index(level) > LEVELS.index(previous) else EASED


def alert_data(
    *,
    tenant: str,
    rule: str,
    subject: str,
    period: str,
    severity: str,
    previous: str,
    value: float | None,
    threshold: float | None,
    message: str,
    evidence: dict[str, Any],
    reason: str | None = None,
    late: bool = False,
    notice: bool = False,
    related: list[str] | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Body of an alert message (contract §3); absent optional fields are left out."""
    data: dict[str, Any] = {
        "alert_id": alert_id(tenant, rule, subject, period),
        "rule": rule,
        "severity": severity,
        "subject": subject,
        "period": period,
        "value": value,
        "threshold": threshold,
        "previous": previous,
        "message": message,
        "evidence": evidence,
    }
    if reason is not None:
        data["reason"] = reason
    if late:
        data["late"] = True
    if notice:
        data["notice"] = True
    if related:
        data["related"] = related
    if extra:
        data.update(extra)
    return data


def verdict_data(verdict: Verdict, tenant: str, rule: str, subject: str, period: str, previous: str, evidence: dict[str, Any]) -> dict[str, Any]:
    """Body of the message that a merged rule's verdict makes of the level `previous`."""
    return alert_data(
        tenant=tenant,
        rule=rule,
        subject=subject,
        period=period,
        severity=previous if verdict.level == "ok" else verdict.level,
        previous=previous,
        value=verdict.value,
        threshold=verdict.threshold,
        message=verdict.message,
        reason=verdict.reason,
        related=verdict.related,
        evidence=evidence,
    )


def emit(
    p: Partition,
    event: Event,
    *,
    rule: str,
    subject: str,
    period: str,
    previous: str,
    level: str,
    value: float | None,
    threshold: float | None,
    message: str,
    type: str | None = None,
    reason: str | None = None,
    late: bool = False,
    notice: bool = False,
    extra: dict[str, Any] | None = None,
) -> None:
    """Put out the message for a change of level, caused by the event being absorbed.

    Args:
        subject: what it is about; parts joined as record keys are (``kind|id``, already escaped).
        period: ``2026-03-02``, ``2026-03``, ``all``, a start date; other rules: the UTC day of the record that opened it.
        previous, level: of `LEVELS`; equal levels put out nothing unless `type` says which message it is.
        type: only where the levels do not tell it (period ended: RESOLVED with level = the level left).
        message: one sentence a person can act on.
    """
    kind = type or change_type(previous, level)
    if kind is None:
        return
    severity = previous if kind == RESOLVED else level
    data = alert_data(
        tenant=event.tenant,
        rule=rule,
        subject=subject,
        period=period,
        severity=severity,
        previous=previous,
        value=value,
        threshold=threshold,
        message=message,
        reason=reason,
        late=late,
        notice=notice,
        extra=extra,
        evidence={"topic": p.topic, "partition": p.number, "offset": p.offset},
    )
    name = data["alert_id"]
    source_id = derived_id(p.topic, event.tenant, event.id, kind, name)
    value_bytes = event_bytes(type=kind, id=source_id, source=p.source, time_us=p.time_us, tenant=event.tenant, data=data, derivedfrom=event.id)
    p.publish("alerts", name.encode(), value_bytes)
