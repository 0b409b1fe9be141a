"""Influence: how a variable's value goes with the outcomes of the forecasts that used it.

The rule this file keeps: a constant value or outcome has no correlation, not one of 0.

Source: product-moment correlation and least squares; interval by R. A. Fisher's z (1921).
"""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any

import msgspec

from .fold import NotFound, Reader, View
from .moments import Pairs
from .times import rfc3339_or_none
from .two_samples import correlation_p, r_interval
from .variable_states import TOPIC, VariableSettings, VariableTables
from .variable_views import Scores

OUTCOMES = ("confidence", "fragility", "alignment", "certified")
NOTE = "Association across forecasts, not cause: what moves the variable may move the outcome by itself."


def influence(pairs: Pairs) -> dict[str, Any]:
    """Correlation and line of an outcome on a value.

    Args:
        pairs: sums of (value, outcome).

    Returns:
        n, r (-1 to 1), r_interval (95 %, from 4 pairs on), slope (outcome by unit of value), intercept, p (two-sided). All null
        but n below 3 pairs, and where either side is constant (or too large for a double).
    """
    n = pairs.n
    answer: dict[str, Any] = {"n": n, "r": None, "r_interval": None, "slope": None, "intercept": None, "p": None}
    if n < 3 or not (pairs.m2_x > 0.0 and pairs.m2_y > 0.0 and isfinite(pairs.m2_x) and isfinite(pairs.cxy)):
        return answer
    slope = pairs.cxy / pairs.m2_x
    if not isfinite(slope) or not isfinite(slope * pairs.mean_x):
        return answer
    line = pairs.m2_y <= slope * pairs.cxy  # nothing is left unexplained
    r = (1.0 if slope > 0.0 else -1.0) if line else max(-1.0, min(1.0, pairs.cxy / (sqrt(pairs.m2_x) * sqrt(pairs.m2_y))))
    answer.update(r=r, r_interval=r_interval(r, n), slope=slope, intercept=pairs.mean_y - slope * pairs.mean_x, p=correlation_p(r, n))
    return answer


class InfluenceParams(msgspec.Struct, frozen=True):
    """``/variables/{name}/influence``"""

    name: str


def influence_view(kept: VariableTables, settings: VariableSettings) -> View:
    """``/variables/{name}/influence``"""
    scores = Scores(kept, settings)

    def answer(reader: Reader, params: InfluenceParams) -> dict[str, Any]:
        merged = scores.one(reader, params.name)
        if merged.count == 0 and merged.registration is None:
            raise NotFound(f"no forecast used the variable {params.name}, and it is not registered")
        sums = scores.sums(reader, params.name)
        found = {outcome: influence(sums.pairs(outcome)) for outcome in OUTCOMES}
        return {"name": params.name, **found, "note": NOTE, "as_of": rfc3339_or_none(reader.as_of())}

    return View("/variables/{name}/influence", InfluenceParams, answer, (TOPIC,), "How a variable's value goes with the outcomes of its forecasts.")
