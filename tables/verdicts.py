"""What a judgment says: its overall score, which criteria pass, and whether all do.

The rule this file keeps: what was given wins; what was not follows from the criteria; what cannot be known is None.
"""

from __future__ import annotations

from collections.abc import Mapping

from streams.events import JudgmentRecorded

DEFAULT = ""
"""Name of the limit for criteria that have none of their own."""
Marks = list[tuple[str, float, bool]]
"""Criteria of a judgment: name, score, whether it passes."""


def pass_limits(setting: Mapping[str, float]) -> dict[str, float]:
    """Setting ``criteria_pass`` with its default under `DEFAULT`; it may be called ``default`` too, which wins.

    Example:
        >>> pass_limits({"default": 0.6, "safety": 0.9})[DEFAULT]
        0.6
    """
    return {**setting, DEFAULT: setting.get("default", setting.get(DEFAULT, 0.7))}


def overall(data: JudgmentRecorded) -> float:
    """Overall score: as given, else the mean of the criteria (the codec lets neither pass).

    Example:
        >>> overall(JudgmentRecorded(task="t", overall_confidence=1.0, criteria={"a": 0.5, "b": 1.0}, evaluation_time_ms=1))
        0.75
    """
    if data.overall_score is not None:
        return data.overall_score
    scores = data.criteria.values()
    return sum(scores) / len(scores) if scores else 0.0


def verdict(data: JudgmentRecorded, limits: Mapping[str, float]) -> bool | None:
    """Whether all criteria pass: as given, else each at its limit or above; None without criteria.

    Example:
        >>> judgment = JudgmentRecorded(task="t", overall_confidence=1.0, criteria={"safety": 0.79, "style": 0.7}, evaluation_time_ms=1)
        >>> verdict(judgment, {"": 0.7}), verdict(judgment, {"": 0.7, "safety": 0.8})
        (True, False)
    """
    return said(data, marked(data, limits)) if data.all_criteria_pass is None else data.all_criteria_pass


def marked(data: JudgmentRecorded, limits: Mapping[str, float]) -> Marks:
    """Each criterion, its score, and whether it passes.

    Args:
        limits: of `pass_limits`: criterion, or `DEFAULT`, to a score in 0…1.
    """
    usual = limits[DEFAULT]
    return [(name, score, score >= limits.get(name, usual)) for name, score in data.criteria.items()]


def said(data: JudgmentRecorded, marks: Marks) -> bool | None:
    """`verdict`, where the criteria are marked already."""
    if data.all_criteria_pass is not None or not marks:
        return data.all_criteria_pass
    return all([passed for _, _, passed in marks])
