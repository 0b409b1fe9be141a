"""Drift: variables whose averages are bad over their whole life, or have become worse lately.

The rules this file keeps: limits of lifetime drift are strict and compare rounded figures. Recent drift compares the newest
UTC hours with everything before them; all tests of a tenant at a look are adjusted together, and a flag needs both a small q
and an effect that matters. Alerts look once per closed hour; a view looks at the hour that is open too.

`drift.recent` tells one bad model once: of the variables flagged at a look that hang together by models they share, the worst
one is the alert's subject, the others are its `related`. A variable that stays flagged when that alert resolves opens its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from streams.keys import encode_key

from .alerting import LEVELS
from .fold import BadParameter, MergedRule, Reader, Standing, Verdict, View
from .hours import NO_HOUR, Hours, Side
from .many_sides import divided
from .many_tests import adjusted_all, proportions, welches
from .orders import Key, Sheet, Source, same
from .rows import Table
from .times import HOUR_US, rfc3339, rfc3339_or_none
from .two_samples import two_proportions, welch
from .variable_states import TOPIC, History, Partial, VariableSettings, VariableTables
from .variable_views import Count, Limit, Scores, forecast, rounded

Lives = tuple[list[Partial], list[History]]
"""A variable's rows of all partitions: the open hours, and those that are over."""

LIFETIME, RECENT = "drift.variable", "drift.recent"
ALERT_MIN_COUNT = 20
"""Forecasts below which `drift.variable` does not open."""
ENOUGH = 30
"""Forecasts needed on each side of a comparison."""
FLAG_Q, FLAG_EFFECT = 0.001, 0.1
CALM_Q, CALM_EFFECT = 0.05, 0.05
CRITICAL_FALL = 0.3
"""Fall of the certified ratio from which `drift.recent` is critical."""
MAX_RELATED = 100
"""Variables told as `related` in one message; further ones get a message of their own at the next look."""
MAX_LOOKS = 256
"""Tenants whose last look is remembered; for others the next judgement looks again."""
OUTCOMES = ("certified", "confidence", "fragility")
OK, WARNING, CRITICAL = LEVELS[0], LEVELS[2], LEVELS[3]


@dataclass(slots=True)
class Test:
    """One outcome of a variable, before and lately.

    Attributes:
        before, recent: means; None without forecasts on that side.
        statistic: z of certified, t of the others; None where there is no spread at all, or too little data.
        df: degrees of freedom of t.
        p, q: None with too little data.
    """

    before: float | None
    recent: float | None
    statistic: float | None = None
    df: float | None = None
    p: float | None = None
    q: float | None = None

    @property
    def effect(self) -> float | None:
        """Recent mean - mean before."""
        return None if self.before is None or self.recent is None else self.recent - self.before

    @property
    def flagged(self) -> bool:
        """Whether the change is beyond chance and matters."""
        effect = self.effect
        return self.q is not None and effect is not None and self.q < FLAG_Q and abs(effect) >= FLAG_EFFECT


@dataclass(slots=True)
class Change:
    """One variable, before and lately: forecasts on both sides, and a `Test` an outcome."""

    n_before: int
    n_recent: int
    tests: dict[str, Test]

    @property
    def enough(self) -> bool:
        """Whether both sides have the forecasts that the tests need."""
        return self.n_before >= ENOUGH and self.n_recent >= ENOUGH


def compared(before: Side, recent: Side) -> Change:
    """The tests of one variable, not adjusted yet."""
    n1, n2 = before.n, recent.n
    tests = {
        "certified": Test(before.certified_ratio, recent.certified_ratio),
        "confidence": Test(before.confidence if n1 else None, recent.confidence if n2 else None),
        "fragility": Test(before.fragility if n1 else None, recent.fragility if n2 else None),
    }
    change = Change(n1, n2, tests)
    if change.enough:
        test = tests["certified"]
        test.statistic, test.p = two_proportions(before.certified, n1, recent.certified, n2)
        test = tests["confidence"]
        test.statistic, test.df, test.p = welch(n1, before.confidence, before.confidence_m2, n2, recent.confidence, recent.confidence_m2)
        test = tests["fragility"]
        test.statistic, test.df, test.p = welch(n1, before.fragility, before.fragility_m2, n2, recent.fragility, recent.fragility_m2)
    return change


class Tested(Sheet):
    """The p of every test of every variable, and what follows from all of them together.

    Columns: forecasts on both sides; p of each of `OUTCOMES`, NaN with too little data; effect of each.

    Args:
        hours: that are recent.
        end: the newest one, since the epoch. At another hour it is filled anew: with the hour every variable's sides change.
    """

    def __init__(self, hours: int, end: int) -> None:
        super().__init__(self.test)
        self.hours = hours
        self.end = end

    def test(self, reader: Reader, found: Sequence[tuple[Key, Lives]]) -> tuple[list[Key], list[Any]]:
        """The columns of some variables: `compared` of all of them at once."""
        (n1, k1, *before), (n2, k2, *recent) = divided([lives for _, lives in found], self.end - self.hours + 1, self.end)
        enough = np.flatnonzero((n1 >= ENOUGH) & (n2 >= ENOUGH))
        m1, m2 = n1[enough], n2[enough]
        ps = [np.full(len(found), np.nan) for _ in OUTCOMES]
        ps[0][enough] = proportions(k1[enough], m1, k2[enough], m2)
        for p, at in ((ps[1], 0), (ps[2], 2)):
            p[enough] = welches(m1, before[at][enough], before[at + 1][enough], m2, recent[at][enough], recent[at + 1][enough])
        with np.errstate(invalid="ignore"):  # a side without forecasts has no mean; nothing looks at that effect
            effects = [k2 / n2 - k1 / n1, recent[0] - before[0], recent[2] - before[2]]
        return [key for key, _ in found], [(n1 + n2).astype(np.int64), *ps, *effects]

    def qs(self) -> list[Any]:
        """q of each outcome, NaN with too little data; all tests are adjusted together."""

        def adjust() -> list[Any]:
            p = np.concatenate(self.columns[1:4])
            some = ~np.isnan(p)
            p[some] = adjusted_all(p[some])
            return np.split(p, len(OUTCOMES))

        found: list[Any] = self.kept("q", adjust)
        return found

    @property
    def n_tests(self) -> int:
        """How many tests were adjusted together."""
        found: int = self.kept("tests", lambda: sum(int(np.count_nonzero(~np.isnan(q))) for q in self.qs()))
        return found

    def changed(self, most_q: float, least_effect: float, min_count: int = 0, *, inclusive: bool = False) -> Any:
        """Indices of the variables with an outcome whose q is below `most_q` (or at it) and whose effect is at least so great, ascending."""
        found = np.zeros(len(self.keys), dtype=bool)
        for q, effect in zip(self.qs(), self.columns[4:], strict=True):
            found |= ((q <= most_q) if inclusive else (q < most_q)) & (np.abs(effect) >= least_effect)
        return np.flatnonzero(found & (self.columns[0] >= min_count))

    def flagged(self, min_count: int) -> list[str]:
        """The variables flagged on any outcome, by name."""
        found: list[str] = self.kept(min_count, lambda: self.names_at(self.changed(FLAG_Q, FLAG_EFFECT, min_count)))
        return found

    def told(self, i: int, change: Change) -> Change:
        """The tests of the variable at this index, with their q."""
        if change.enough:
            for name, q in zip(OUTCOMES, self.qs(), strict=True):
                change.tests[name].q = float(q[i])
        return change


def sides(closed: list[tuple[int, Hours]], newest: list[tuple[int, int, Side]], start: int, end: int) -> tuple[Side, Side]:
    """Forecasts before `start`, and from `start` to `end` inclusive (hours since the epoch), over all partitions.

    Args:
        closed: (partition, closed hours).
        newest: (partition, open hour, its forecasts).
    """
    before, recent = Side(), Side()
    through = {}
    for home, hours in closed:
        older, newer = hours.split(start, end)
        before.merge(older)
        recent.merge(newer)
        through[home] = hours.through
    for home, hour, side in newest:
        if hour > through.get(home, NO_HOUR):  # not closed already: a follower may see that row first
            if hour < start:
                before.merge(side)
            elif hour <= end:
                recent.merge(side)
    return before, recent


@dataclass(slots=True)
class Look:
    """What the rule remembers of a look: only what is flagged, or not calm.

    Attributes:
        hour: the last one looked at, since the epoch.
        flagged: variable -> its change.
        restless: variables that could not resolve.
        groups: variable -> all flagged ones it hangs together with, itself too, worst first.
    """

    hour: int
    flagged: dict[str, Change] = field(default_factory=dict)
    restless: set[str] = field(default_factory=set)
    groups: dict[str, list[str]] = field(default_factory=dict)


def severity(change: Change) -> str:
    """Level of a flagged change."""
    fall = change.tests["certified"]
    return CRITICAL if fall.flagged and fall.effect is not None and fall.effect <= -CRITICAL_FALL else WARNING


def strongest(change: Change) -> tuple[str, Test]:
    """The flagged outcome to tell: a critical fall of certified, else that with the least q, of equal ones with the greatest effect."""
    if severity(change) == CRITICAL:
        return "certified", change.tests["certified"]
    return min(((name, test) for name, test in change.tests.items() if test.flagged), key=lambda item: (item[1].q, -abs(item[1].effect or 0.0)))


def gathered(flagged: dict[str, Change], models: Iterator[list[str]]) -> dict[str, list[str]]:
    """Flagged variables that hang together, directly or over others, by a model that uses both.

    Args:
        flagged: variable -> its change.
        models: for each model the variables that it uses.

    Returns:
        Variable -> its group, worst first: critical before warning, then by q, then by name.
    """
    group = {name: [name] for name in flagged}
    for used in models:
        mine = [name for name in used if name in group]
        for name in mine[1:]:
            one, other = group[mine[0]], group[name]
            if one is not other:
                one.extend(other)
                for member in other:
                    group[member] = one
    for members in {id(members): members for members in group.values()}.values():
        members.sort(key=lambda name: (severity(flagged[name]) != CRITICAL, strongest(flagged[name])[1].q, name))
    return group


class Drift:
    """Both kinds of drift, with the settings in force.

    Args:
        kept: the fold's tables.
        settings: limits and strictness.
    """

    def __init__(self, kept: VariableTables, settings: VariableSettings) -> None:
        self.kept = kept
        self.settings = settings
        self.scores = Scores(kept, settings)
        self.looks: OrderedDict[str, Look] = OrderedDict()
        tables: dict[Table[Any], Callable[[Key], Key]] = {kept.partials: same, kept.histories: same}
        if settings.variables_strict:
            tables[kept.registry] = same
        self.source: Source[Lives] = Source(tables, self.every, self.one)

    # ---- recent drift

    def every(self, reader: Reader) -> Iterator[tuple[Key, Lives]]:
        """Every scored variable with forecasts, and its rows."""
        kept = self.kept
        registered = {key for key, _ in reader.scan(kept.registry)} if self.settings.variables_strict else None
        histories = dict(reader.scan(kept.histories))
        none: list[History] = []
        for key, states in reader.scan(kept.partials):
            if registered is None or key in registered:
                closed = histories.get(key, none)
                if closed or forecast(states):
                    yield key, (states, closed)

    def one(self, reader: Reader, key: Key) -> Lives | None:
        """The rows of one of them; None of a variable that is not scored, or has no forecasts."""
        kept = self.kept
        states, closed = reader.rows(kept.partials, key), reader.rows(kept.histories, key)
        if not states or not (closed or forecast(states)):
            return None
        return None if self.settings.variables_strict and not reader.rows(kept.registry, key) else (states, closed)

    def change(self, reader: Reader, key: Key, end: int) -> Change:
        """One variable's tests, not adjusted yet.

        Args:
            end: the newest hour that counts, since the epoch; later forecasts are on neither side.
        """
        closed = [(history.home, history.hours) for history in reader.rows(self.kept.histories, key)]
        newest = [(state.home, state.hour, state.newest().side()) for state in reader.rows(self.kept.partials, key) if state.count]
        return compared(*sides(closed, newest, end - self.settings.drift_recent_hours + 1, end))

    def tested(self, reader: Reader, end: int) -> Tested:
        """The tests of all variables, kept between questions while the hour is the same.

        Args:
            end: as of `change`.
        """
        tested: Tested = reader.lists(self.source, {RECENT: lambda: Tested(self.settings.drift_recent_hours, end)})[RECENT]
        if tested.end != end:
            tested.end = end
            tested.fill(reader, self.every(reader))
        return tested

    def look(self, reader: Reader) -> Look | None:
        """The look at the last closed hour, taken once; None before the first forecast."""
        reader.rows(self.kept.beat, ())  # the topic whose newest event time counts
        as_of = reader.as_of()
        if as_of is None:
            return None
        hour = as_of // HOUR_US - 1
        look = self.looks.get(reader.tenant)
        if look is not None and look.hour >= hour:
            self.looks.move_to_end(reader.tenant)
            return look
        look = Look(hour)
        tested = Tested(self.settings.drift_recent_hours, hour)
        tested.fill(reader, self.every(reader))
        for i in tested.changed(FLAG_Q, FLAG_EFFECT).tolist():
            look.flagged[tested.keys[i][0]] = tested.told(i, self.change(reader, tested.keys[i], hour))
        look.restless.update(tested.names_at(tested.changed(CALM_Q, CALM_EFFECT, inclusive=True)))
        look.groups = gathered(look.flagged, (list(one.names) for _, states in reader.scan(self.kept.inputs) for one in states))
        self.looks[reader.tenant] = look
        self.looks.move_to_end(reader.tenant)
        while len(self.looks) > MAX_LOOKS:
            self.looks.popitem(last=False)
        return look

    def judge_recent(self, reader: Reader, key: Key, standing: Standing) -> Verdict | None:
        """Whether a variable changed lately; None leaves it as it stands, also where another one's message tells of it."""
        name = key[0]
        look = self.look(reader)
        if look is None:
            return None
        change = look.flagged.get(name)
        if change is None:
            if standing.level == OK or name in look.restless:
                return None
            says = f"Variable {name} is as before again (or has too few recent forecasts to tell); nothing to do."
            return Verdict(OK, None, FLAG_Q, says)
        level = severity(change)
        related: list[str] | None = None
        if standing.level == OK:
            untold = [one for one in look.groups[name] if subject_of((one,)) not in standing.told]
            if not untold or untold[0] != name:
                return None
            related = [subject_of((one,)) for one in untold[1 : MAX_RELATED + 1]] or None
        elif level == standing.level:
            return None
        outcome, test = strongest(change)
        with_others = f" with {len(related)} more of the same models" if related else ""
        says = (
            f"Variable {name}{with_others} changed: {outcome} {test.before:.4g} before, {test.recent:.4g} over the last "
            f"{change.n_recent} forecasts (q {test.q:.2g}): check its source and the models that use it."
        )
        return Verdict(level, test.q, FLAG_Q, says, related=related)

    def render(self, change: Change) -> dict[str, Any]:
        """One variable of the answer; p, q and the flag only with enough data."""
        answer: dict[str, Any] = {"enough": change.enough, "n_before": change.n_before, "n_recent": change.n_recent}
        for name in OUTCOMES:
            test = change.tests[name]
            body: dict[str, Any] = {"before": test.before, "recent": test.recent, "effect": test.effect}
            if test.q is not None:
                body.update({"z": test.statistic} if name == "certified" else {"t": test.statistic, "df": test.df})
                body.update(p=test.p, q=test.q, flagged=test.flagged)
            answer[name] = body
        return answer

    # ---- lifetime drift

    def judge_lifetime(self, reader: Reader, key: Key, standing: Standing) -> Verdict | None:
        """Whether a variable drifts; None leaves it as it stands (too few forecasts, or between the two limits)."""
        t, margin = self.settings.drift_threshold, self.settings.drift_hysteresis
        merged = self.scores.one(reader, key[0])
        fragility, ratio = rounded(merged.avg_fragility), rounded(merged.certified_ratio)
        if fragility is None or ratio is None:
            return None
        name = merged.name
        if not self.scores.scored(merged):
            return unscored(name, fragility, t, standing)
        floor = round(1 - t, 4)
        if standing.level == OK:
            by = merged.drift(t)
            if merged.count < ALERT_MIN_COUNT or not by:
                return None
            look = f"over {merged.count} forecasts: check its source and the models that use it"
            if "fragility" in by:
                return Verdict(WARNING, fragility, t, f"Variable {name} drifts, average fragility {fragility:g} is above {t:g} {look}.")
            return Verdict(WARNING, ratio, floor, f"Variable {name} drifts, certified ratio {ratio:g} is below {floor:g} {look}.")
        if fragility <= max(0.0, round(t - margin, 4)) and ratio >= min(1.0, round(1 - t + margin, 4)):
            says = f"average fragility {fragility:g}, certified ratio {ratio:g} over {merged.count} forecasts"
            return Verdict(OK, fragility, t, f"Variable {name} has recovered: {says}; nothing to do.")
        return None


def unscored(name: str, value: float | None, threshold: float, standing: Standing) -> Verdict | None:
    """What becomes of the alert of a variable that is not scored (any more): it ends."""
    if standing.level == OK:
        return None
    says = f"Variable {name} is not registered, and only registered ones are scored now: register it to have it watched."
    return Verdict(OK, value, threshold, says, "settings_changed")


def subject_of(key: Key) -> str:
    """Subject of an alert on a variable or a tag: its name, encoded as in record keys."""
    return encode_key(*key).decode()


def drift_rules(kept: VariableTables, settings: VariableSettings) -> tuple[MergedRule, ...]:
    """``drift.variable`` and ``drift.recent``; the latter looks at every variable when an hour is over."""
    drift = Drift(kept, settings)
    return (
        MergedRule(LIFETIME, TOPIC, kept.partials, subject_of, drift.judge_lifetime),
        MergedRule(RECENT, TOPIC, kept.partials, subject_of, drift.judge_recent, beat=kept.beat),
    )


class DriftParams(msgspec.Struct, frozen=True):
    """``/variables/drift``; the threshold's default is the setting.

    Pages are of the flagged variables; with `recent` of all that are compared, and the flagged ones among their names are with them.
    """

    threshold: float | None = None
    min_count: Count = 1
    recent: bool = False
    limit: Limit = 100
    cursor: str | None = None


def within(names: list[str], after: str | None, through: str | None) -> list[str]:
    """Of sorted names those behind the one cursor, up to and including the other; None is no bound."""
    return names[0 if after is None else bisect_right(names, after) : None if through is None else bisect_right(names, through)]


def drift_view(kept: VariableTables, settings: VariableSettings) -> View:
    """``/variables/drift``"""
    drift = Drift(kept, settings)
    scores = drift.scores

    def answer(reader: Reader, params: DriftParams) -> dict[str, Any]:
        threshold = settings.drift_threshold if params.threshold is None else params.threshold
        if not 0 < threshold < 1:
            raise BadParameter("threshold", "expected a number above 0 and below 1")
        sheet = scores.averages(reader)
        chosen, flagged = scores.drifting(sheet, threshold, params.min_count)
        as_of = reader.as_of()
        found: dict[str, Any] = {"threshold": threshold, "flagged": flagged, "variables": [], "cursor": None, "as_of": rfc3339_or_none(as_of)}
        if params.recent and as_of is not None:
            found |= lately(reader, params, as_of // HOUR_US)
            names = within(flagged, params.cursor, found["cursor"])
        else:
            on_page, found["cursor"] = sheet.page(params.limit, params.cursor, chosen)
            names = sheet.names_at(on_page)
            if params.recent:
                found |= {"window_start": None, "tests": 0, "recent_flagged": [], "recent": {}}
        for name in names:
            merged = scores.one(reader, name)
            score = scores.score(merged, as_of)
            found["variables"].append({"name": score.pop("name"), "by": merged.drift(threshold), **score})
        return found

    def lately(reader: Reader, params: DriftParams, end: int) -> dict[str, Any]:
        tested = drift.tested(reader, end)
        on_page, cursor = tested.page(params.limit, params.cursor, np.flatnonzero(tested.columns[0] >= params.min_count))
        return {
            "cursor": cursor,
            "window_start": rfc3339((end - settings.drift_recent_hours + 1) * HOUR_US),
            "tests": tested.n_tests,
            "recent_flagged": tested.flagged(params.min_count),
            "recent": {tested.keys[i][0]: drift.render(tested.told(i, drift.change(reader, tested.keys[i], end))) for i in on_page},
        }

    return View("/variables/drift", DriftParams, answer, (TOPIC,), "Variables whose averages are beyond the limits, or (recent=true) changed lately.")
