"""Golden vectors and how an answer is compared with them, whoever gives it: pure folds or a worker over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agents.registry import FOLD_SETTINGS, folds
from streams.keys import alert_id, derived_id
from streams.settings import load
from tables.fold import Fold

from .harness import subset

VECTORS_HERE = [
    "G1", "G2", "G3", "G4", "G5", "G6", "T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "G8", "V1", "V2", "V3", "V4", "V5", "V6", "V7", "M1", "M2",
    "M3", "M4", "M5", "M6", "G7", "C1", "C2", "C3", "C4", "C5", "C6", "G9", "G10", "G11", "G12", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9",
    "A1", "P1", "P2", "P3", "P4", "P5", "P6", "P8",
]  # fmt: skip
ONE_PARTITION = {"P1", "P3"}
"""Vectors whose figures are per partition (common rules §12.3)."""
SETTINGS_OF: dict[str, str] = {}
LATER = {"/metrics"}
"""Views that read the archive."""

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


def environment(vector: dict[str, Any]) -> dict[str, str]:
    """A vector's settings as environment variables."""
    found = {}
    for name, value in vector.get("settings", {}).items():
        base, _, key = name.partition(".")
        found[f"PULSEFOLD_{base.upper()}" + (f"__{key}" if key else "")] = json.dumps(value)
    return found


def folds_for(vector: dict[str, Any]) -> list[Fold]:
    """The product's folds under a vector's settings."""
    settings = load({}, environment(vector), None, FOLD_SETTINGS)
    return folds(settings.fold)


def check_vector(
    vector: dict[str, Any], ask: Ask, alerts: Callable[[], list[dict[str, Any]]], dead_letters: Callable[[], list[tuple[bytes | None, dict[str, str]]]]
) -> list[str]:
    """All differences between a vector's checks and what is there."""
    differences = []
    for check in vector["checks"]:
        path, expect, params = check["path"], dict(check["expect"]), check.get("params", {})
        if path in LATER:
            continue
        if path == "alert_id":
            found: Any = {"alert_id": alert_id(**params)}
        elif path == "derived_id":
            found = {"id": derived_id(params["topic"], params["tenant"], params["id"], params["type"], params["suffix"])}
        elif path == "alerts":
            differences += _alerts(expect, alerts())
            continue
        elif path == "dead-letters":
            have = [[json.loads(value or b"{}")["id"], headers["reason"]] for value, headers in dead_letters()]
            found = {"reasons": have}
        else:
            found = ask(path, {k: str(v).lower() if isinstance(v, bool) else v for k, v in params.items()})
            if check.get("computed"):
                found = _computed(path, found, expect)
                expect = {k: v for k, v in expect.items() if k in found}
        differences += [f"{path} {params}: {d}" for d in subset(expect, found)]
    return differences


def _alerts(expect: dict[str, Any], messages: list[dict[str, Any]]) -> list[str]:
    if "messages" in expect:
        mine = [m for m in messages if m["rule"] == expect["rule"]]
        want = [{("derivedfrom" if k == "at_event" else k): v for k, v in m.items()} for m in expect["messages"]]
        return subset(want, mine, "alerts")
    return [
        f"no alert {want}"
        for want in expect["opened"]
        if not any(m["type"] == "alert.opened.v1" and m["rule"] == want["rule"] and m["derivedfrom"] == want["at_event"] for m in messages)
    ]


def _computed(path: str, found: dict[str, Any], expect: dict[str, Any]) -> dict[str, Any]:
    """Numbers that follow from an answer, under the names of the check."""
    from datetime import datetime

    result = dict(found)
    if path.endswith("/history"):
        result["n"] = len(found["points"])
    if path == "/costs/check":
        for limit in found["limits"]:
            if limit["level"] == "shutdown":
                result[limit["rule"].removeprefix("cost.")] = {"exceeds": limit["exceeds"], "after_usd": limit["after_usd"]}
    if "eta_seconds_from_last" in expect:
        last = datetime.fromisoformat(found["as_of"])
        for name in ("eta", "eta_low", "eta_high"):
            seconds = (datetime.fromisoformat(found[name]) - last).total_seconds()
            want = expect[f"{name}_seconds_from_last"]
            result[f"{name}_seconds_from_last"] = want if abs(seconds - want) < 1e-6 else seconds  # times have microseconds
        expect.pop("stderr", None)
    for name in ("percentage_after_each", "after_each"):
        result.pop(name, None)
    return result
