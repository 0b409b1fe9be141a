"""Symbolic volatility: how erratic variables are, how often tags and arc labels change, and which tags flipped.

The rule this file keeps: a change is counted against the forecast before it of the same model, in log order; a missing tag is
neither a change nor the end of the tag before it. What there is no data for is null, never a middling guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any

import msgspec

from .alerting import LEVELS
from .drift import sides, subject_of, unscored
from .fold import BadParameter, MergedRule, Reader, Standing, Verdict, View, names
from .hours import Side
from .orders import Key
from .times import HOUR_US, rfc3339_or_none
from .variable_states import TOPIC, Tag, TagHistory, VariableSettings, VariableTables
from .variable_views import Limit, Scores, rounded

VARIABLE, FLIP = "volatility.variable", "volatility.flip"
HIGH, CALM = 0.5, 0.45
"""Volatility above which `volatility.variable` opens, and from which down it resolves."""
ALERT_MIN_COUNT = 20
FLIP_FROM, FLIP_TO, FLIP_OVER = 0.6, 0.4, 0.45
"""A tag flips from a mean above the first to one below the second; the alert resolves from the third on."""
FLIP_MIN_N = 5
"""Forecasts needed on each side of a flip."""
UNSEEN = 0.5
"""Mean of a side without forecasts, in symbolic drift."""
OK, WARNING = LEVELS[0], LEVELS[2]


@dataclass(slots=True)
class TagLife:
    """A tag over all partitions: its forecasts before the recent hours, and in them."""

    before: Side
    recent: Side

    def all(self) -> Side:
        """Both sides together."""
        side = Side()
        side.merge(self.before)
        side.merge(self.recent)
        return side

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Mean confidence (before, recent); None without forecasts."""
        return (self.before.confidence if self.before.n else None, self.recent.confidence if self.recent.n else None)

    @property
    def flipped(self) -> bool:
        """Whether confidence was high before and is low now."""
        before, recent = self.before, self.recent
        return before.n >= FLIP_MIN_N and recent.n >= FLIP_MIN_N and before.confidence > FLIP_FROM and recent.confidence < FLIP_TO


def rate(transitions: int, changes: int) -> dict[str, Any]:
    """Changes among transitions; the rate is null where there are none."""
    return {"transitions": transitions, "changes": changes, "rate": changes / transitions if transitions else None}


class Volatility:
    """Rendering and judging, with the settings in force.

    Args:
        kept: the fold's tables.
        settings: hours that are recent, and strictness.
    """

    def __init__(self, kept: VariableTables, settings: VariableSettings) -> None:
        self.kept = kept
        self.settings = settings
        self.scores = Scores(kept, settings)

    def life(self, states: list[Tag], histories: list[TagHistory], end: int) -> TagLife:
        """A tag's forecasts, divided at the recent hours that end with `end` (since the epoch)."""
        closed = [(history.home, history.hours) for history in histories]
        newest = [(state.home, state.hour, state.newest()) for state in states]
        return TagLife(*sides(closed, newest, end - self.settings.drift_recent_hours + 1, end))

    def tags(self, reader: Reader) -> dict[str, TagLife]:
        """Every tag, by name."""
        scanned = dict(reader.scan(self.kept.tags))
        histories = dict(reader.scan(self.kept.tag_histories))
        as_of = reader.as_of()
        end = 0 if as_of is None else as_of // HOUR_US
        return {key[0]: self.life(scanned[key], histories.get(key, []), end) for key in sorted(scanned)}

    def judge_variable(self, reader: Reader, key: Key, standing: Standing) -> Verdict | None:
        """Whether a variable is erratic; None leaves it as it stands."""
        merged = self.scores.one(reader, key[0])
        found = rounded(merged.volatility())
        if found is None:
            return None
        name = merged.name
        if not self.scores.scored(merged):
            return unscored(name, found, HIGH, standing)
        if standing.level == OK:
            if merged.count < ALERT_MIN_COUNT or not found > HIGH:
                return None
            says = f"Variable {name} is volatile: {found:g} is above {HIGH:g} over {merged.count} forecasts; rely on it less, or check its source."
            return Verdict(WARNING, found, HIGH, says)
        if found <= CALM:
            return Verdict(OK, found, HIGH, f"Variable {name} has calmed down: volatility {found:g} over {merged.count} forecasts; nothing to do.")
        return None

    def judge_flip(self, reader: Reader, key: Key, standing: Standing) -> Verdict | None:
        """Whether a tag flipped; None leaves it as it stands."""
        states = reader.rows(self.kept.tags, key)
        as_of = reader.as_of()
        if not states or as_of is None:
            return None
        life = self.life(states, reader.rows(self.kept.tag_histories, key), as_of // HOUR_US)
        before, recent = life.means
        if standing.level == OK:
            if not life.flipped:
                return None
            says = f"Forecasts tagged {key[0]} flipped: confidence {before:.4g} before, {recent:.4g} in the last hours; check what the tag stands for now."
            return Verdict(WARNING, recent, FLIP_TO, says)
        if recent is None:
            return Verdict(OK, None, FLIP_TO, f"There are no recent forecasts tagged {key[0]}; nothing to do.", "nothing_recent")
        if recent >= FLIP_OVER:
            return Verdict(OK, recent, FLIP_TO, f"Forecasts tagged {key[0]} are confident again: {recent:.4g} in the last hours; nothing to do.")
        return None


def volatility_rules(kept: VariableTables, settings: VariableSettings) -> tuple[MergedRule, ...]:
    """``volatility.variable`` and ``volatility.flip``; a tag can become unseen by the hour alone."""
    volatility = Volatility(kept, settings)
    return (
        MergedRule(VARIABLE, TOPIC, kept.partials, subject_of, volatility.judge_variable),
        MergedRule(FLIP, TOPIC, kept.tags, subject_of, volatility.judge_flip, beat=kept.beat),
    )


class VolatilityParams(msgspec.Struct, frozen=True):
    """``/variables/volatility``; with `names` there are no pages."""

    names: list[str] = []
    threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)] = HIGH
    limit: Limit = 100
    cursor: str | None = None


def volatility_view(kept: VariableTables, settings: VariableSettings) -> View:
    """``/variables/volatility``"""
    volatility = Volatility(kept, settings)
    scores = volatility.scores

    def answer(reader: Reader, params: VolatilityParams) -> dict[str, Any]:
        asked = list(dict.fromkeys(names(params.names)))
        cursor = None
        if asked:
            if params.cursor is not None:
                raise BadParameter("cursor", "the variables named are answered at once; leave the cursor out")
            shown = sorted(asked)
        else:
            sheet = scores.averages(reader)
            on_page, cursor = sheet.page(params.limit, params.cursor)
            shown = sheet.names_at(on_page)
        found = [scores.one(reader, name) for name in shown]
        exact = {one.name: one.volatility() if scores.scored(one) else None for one in found}
        members = [value for value in exact.values() if value is not None]
        variables = [{"name": name, "volatility": (value := rounded(x)), "above": value is not None and value > params.threshold} for name, x in exact.items()]
        tags = volatility.tags(reader)
        lives = {tag: life.all() for tag, life in tags.items()}
        apart = [
            abs((UNSEEN if recent is None else recent) - (UNSEEN if before is None else before))
            for before, recent in (life.means for life in tags.values())
            if before is not None or recent is not None
        ]
        as_of = reader.as_of()
        start = None if as_of is None else (as_of // HOUR_US - settings.drift_recent_hours + 1) * HOUR_US
        return {
            "variables": variables,
            "cluster": rounded(sum(members) / len(members)) if asked and members else None,
            "threshold": params.threshold,
            "tag_change": {one.name: rate(*one.transitions[:2]) for one in found},
            "arc_change": {one.name: rate(*one.transitions[2:]) for one in found},
            "tags": {
                tag: {
                    "n": life.n,
                    "avg_confidence": life.confidence if life.n else None,
                    "std_confidence": sqrt(life.confidence_m2 / (life.n - 1)) if life.n > 1 else None,
                }
                for tag, life in lives.items()
            },
            "tag_means": {tag: list(life.means) for tag, life in tags.items()},
            "flips": [tag for tag, life in tags.items() if life.flipped],
            "symbolic_drift": sum(apart) / len(apart) if apart else None,
            "window_start": rfc3339_or_none(start),
            "cursor": cursor,
            "as_of": rfc3339_or_none(as_of),
        }

    return View("/variables/volatility", VolatilityParams, answer, (TOPIC,), "How erratic variables are; changes of tags and arc labels; tags that flipped.")
