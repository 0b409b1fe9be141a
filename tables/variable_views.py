"""Variables as they are asked for: partials merged, scores, ranks, drift.

The rules this file keeps: limits are strict and compare rounded figures (4 decimals, 1 - t too), so exactly .25 and .75 are
not flagged; ranks order what is shown, so that no rounding noise of a float breaks a tie; ``null`` is last either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import inf, isfinite, sqrt
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from .fold import BadParameter, NotFound, Reader, View
from .hours import NO_HOUR
from .many_tests import rounded_all
from .orders import Key, Order, Place, Sheet, Source, same, whole_of
from .times import rfc3339, rfc3339_or_none
from .variable_exports import all_scores
from .variable_states import TOPIC, History, Partial, Registration, Sums, VariableSettings, VariableTables

UPDATES = 100
"""Performance updates kept of a variable."""

RANK_KEYS = (
    "count", "avg_confidence", "avg_fragility", "avg_alignment", "certified_count", "certified_ratio", "volatility", "trust_weight",
)  # fmt: skip


def rounded(x: float | None) -> float | None:
    """To 4 decimals; None stays None."""
    return None if x is None else round(x, 4)


class Tally:
    """What ranks are made of, over all partitions: the part of `Merged` that is cheap enough to be had of every variable.

    Args:
        states: partials, in partition order.

    Attributes:
        avg_confidence, avg_fragility, avg_alignment, certified_ratio: unrounded; None without what they are a mean of.
        first: (event time, partition, offset, place in the inputs) of its first sight, for ties; infinite without forecasts.
    """

    def __init__(self, states: Iterable[Partial]) -> None:
        n = certified = alignments = 0
        confidence = fragility = alignment = 0.0
        self.first: tuple[float, int, int, int] = (inf, 0, 0, 0)
        for state in states:
            newest, aligned = state.open, state.aligned
            some = newest[0]
            if not state.past_n + some:
                continue
            n += state.past_n + some
            certified += state.past_certified + newest[1]
            confidence += state.past_confidence + some * newest[5]
            fragility += state.past_fragility + some * newest[8]
            alignments += state.past_alignments + aligned[0]
            alignment += state.past_alignment + aligned[0] * aligned[3]
            first = (state.first_us, state.home, state.first_offset, state.place)
            if first < self.first:
                self.first = first
        self.count, self.certified, self.alignments = n, certified, alignments
        self.avg_confidence = confidence / n if n else None
        self.avg_fragility = fragility / n if n else None
        self.certified_ratio = certified / n if n else None
        self.avg_alignment = alignment / alignments if alignments else None

    def drift(self, threshold: float) -> list[str]:
        """What is beyond the limits of lifetime drift: ``fragility``, ``certified``."""
        by = []
        if self.avg_fragility is not None and self.certified_ratio is not None:
            if round(self.avg_fragility, 4) > threshold:
                by.append("fragility")
            if round(self.certified_ratio, 4) < round(1 - threshold, 4):
                by.append("certified")
        return by

    def volatility(self) -> float | None:
        """Mean of average fragility and share not certified, 0…1, unrounded."""
        if self.avg_fragility is None or self.certified_ratio is None:
            return None
        return (self.avg_fragility + 1 - self.certified_ratio) / 2

    def trust_weight(self, drifting: bool) -> float | None:
        """Weight for learners, 0…2 (at least 0.1 while drifting), unrounded."""
        if self.avg_confidence is None or self.avg_fragility is None:
            return None
        weight = 1 + self.avg_confidence - self.avg_fragility
        return max(0.1, 0.85 * weight) if drifting else weight


class Merged(Tally):
    """One variable over all partitions.

    Args:
        name: the variable.
        states: its partials, in partition order; none for a name that is only registered.
        registration: what is registered of it.

    Attributes:
        first_us, last_us: least and greatest event time, microseconds; None without forecasts.
        low, high, last_value: least and greatest of its values, and that of the last event; None without forecasts.
        transitions: of tags, changes of them, of arc labels, changes of those.
        outside: values beyond the registered limits; at least so many unless `outside_exact`.
    """

    def __init__(self, name: str, states: Sequence[Partial], registration: Registration | None) -> None:
        super().__init__(states)
        self.name = name
        self.registration = registration
        self.outside = 0
        self.low: float | None = None
        self.high: float | None = None
        self.transitions = [0, 0, 0, 0]
        self.last_value: float | None = None
        self.first_us: int | None = int(self.first[0]) if self.count else None
        self.last_us: int | None = None
        self.outside_exact = True
        low, high = limits_of(registration)
        for state in states:
            if not state.count:
                continue
            self.low = state.lows[0] if self.low is None else min(self.low, state.lows[0])
            self.high = state.highs[-1] if self.high is None else max(self.high, state.highs[-1])
            for i, n in enumerate((state.tags, state.tag_changes, state.arcs, state.arc_changes)):
                self.transitions[i] += n
            if self.last_us is None or state.last_us >= self.last_us:
                self.last_us, self.last_value = state.last_us, state.last_value
            outside, exact = state.beyond(low, high)
            self.outside += outside
            self.outside_exact = self.outside_exact and exact


def limits_of(registration: Registration | None) -> tuple[float, float]:
    """Registered limits; infinite where there are none."""
    if registration is None:
        return -inf, inf
    return -inf if registration.low is None else registration.low, inf if registration.high is None else registration.high


def newest(registrations: Iterable[Registration]) -> Registration | None:
    """The registration in force of those in several partitions (in their order)."""
    found = None
    for one in registrations:
        if found is None or one.time_us >= found.time_us:
            found = one
    return found


def forecast(states: Iterable[Partial]) -> bool:
    """Whether there are forecasts."""
    for state in states:  # noqa: SIM110 - nearly always the first one tells, and a generator costs more than the loop
        if state.past_n or state.open[0]:
            return True
    return False


def whole(states: Iterable[Partial], histories: Iterable[History]) -> Sums:
    """Closed and open hours of all partitions."""
    sums = Sums()
    closed = {}
    for history in histories:
        sums.merge(history.past)
        closed[history.home] = history.hours.through
    for state in states:
        if state.hour > closed.get(state.home, NO_HOUR):  # not in the history yet: a follower may see that row first
            sums.merge(state.newest())
    return sums


class Variable(msgspec.Struct, frozen=True):
    """``/variables/{name}``"""

    name: str
    exact: bool = False


Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class ListParams(msgspec.Struct, frozen=True):
    """``/variables``"""

    kind: str | None = None
    registered: bool | None = None
    min_count: Count = 0
    exact: bool = False
    limit: Limit = 100
    cursor: str | None = None


class AllParams(msgspec.Struct, frozen=True):
    """``/exports/variables``"""

    exact: bool = False


class RankParams(msgspec.Struct, frozen=True):
    """``/variables/rank``"""

    key: str = "avg_confidence"
    order: Literal["desc", "asc"] = "desc"
    limit: Limit = 100
    min_count: Count = 1


class Scores:
    """Merging and rendering, with the settings in force.

    Args:
        kept: the fold's tables.
        settings: limits and strictness.
    """

    def __init__(self, kept: VariableTables, settings: VariableSettings) -> None:
        self.kept = kept
        self.settings = settings
        self.source: Source[tuple[list[Partial], Registration | None]] = Source({kept.partials: same, kept.registry: same}, self.keyed, self.parts)

    def one(self, reader: Reader, name: str) -> Merged:
        """A variable, even one of which nothing is known."""
        key = (name,)
        return Merged(name, reader.rows(self.kept.partials, key), newest(reader.rows(self.kept.registry, key)))

    def sums(self, reader: Reader, name: str) -> Sums:
        """A variable's values against its outcomes, over its whole life."""
        return whole(reader.rows(self.kept.partials, (name,)), reader.rows(self.kept.histories, (name,)))

    def scored(self, merged: Merged) -> bool:
        """Whether it takes part in scores, ranks, drift and alerts: in strict mode only what is registered does."""
        return self.admits(merged.registration)

    def admits(self, registration: Registration | None) -> bool:
        """The same, of a variable's registration."""
        return registration is not None or not self.settings.variables_strict

    def found(self, reader: Reader) -> Iterator[tuple[str, list[Partial], Registration | None]]:
        """Name, partials and registration of all variables that have forecasts or are registered, in no particular order."""
        return ((key[0], *parts) for key, parts in self.keyed(reader))

    def keyed(self, reader: Reader) -> Iterator[tuple[Key, tuple[list[Partial], Registration | None]]]:
        """All of them by key, for lists."""
        registry = {key: newest(states) for key, states in reader.scan(self.kept.registry)}
        for key, states in reader.scan(self.kept.partials):
            registration = registry.pop(key, None)
            if registration is not None or forecast(states):
                yield key, (states, registration)
        for key, registration in registry.items():
            yield key, ([], registration)

    def parts(self, reader: Reader, key: Key) -> tuple[list[Partial], Registration | None] | None:
        """Partials and registration of one of them; None of a variable that has neither forecasts nor a registration."""
        states, registered = reader.rows(self.kept.partials, key), reader.rows(self.kept.registry, key)
        if registered:
            return states, newest(registered)
        return (states, None) if forecast(states) else None

    def averages(self, reader: Reader) -> Sheet:
        """Of every variable that is scored and has forecasts: how many, and the rounded means of fragility and certified."""

        def work(reader: Reader, found: Sequence[tuple[Key, tuple[list[Partial], Registration | None]]]) -> tuple[list[Key], list[Any]]:
            keys: list[Key] = []
            whose: list[int] = []
            n: list[int] = []
            fragility: list[float] = []
            certified: list[int] = []
            every = not self.settings.variables_strict
            for key, (states, known) in found:
                if every or self.admits(known):
                    for state in states:
                        newest = state.open
                        some = newest[0]
                        whose.append(len(keys))
                        n.append(state.past_n + some)
                        fragility.append(state.past_fragility + some * newest[8])
                        certified.append(state.past_certified + newest[1])
                    keys.append(key)
            # added up in the order of the partitions, as a Tally does
            count, *sums = (np.bincount(np.array(whose, dtype=np.int64), np.array(x, dtype=np.float64), len(keys)) for x in (n, fragility, certified))
            with_any = np.flatnonzero(count)
            count = count[with_any]
            if len(with_any) < len(keys):
                keys = [keys[i] for i in with_any.tolist()]
            return keys, [count.astype(np.int64), *(rounded_all(x[with_any] / count) for x in sums)]

        sheet: Sheet = reader.lists(self.source, {"averages": lambda: Sheet(work)})["averages"]
        return sheet

    def drifting(self, sheet: Sheet, threshold: float, min_count: int) -> tuple[Any, list[str]]:
        """The variables beyond the limits of lifetime drift, by name: their indices in the `averages`, and their names."""

        def find() -> tuple[Any, list[str]]:
            n, fragility, ratio = sheet.columns
            chosen = np.flatnonzero(((fragility > threshold) | (ratio < round(1 - threshold, 4))) & (n >= min_count))
            return chosen, sheet.names_at(chosen)

        found: tuple[Any, list[str]] = sheet.kept((threshold, min_count), find)
        return found

    def every(self, reader: Reader) -> Iterator[Merged]:
        """All of them, merged."""
        return (Merged(*one) for one in self.found(reader))

    def value(self, tally: Tally, key: str) -> float | None:
        """One figure of the score of a variable that is scored; `key` of `RANK_KEYS`."""
        if key == "count":
            return tally.count
        if key == "certified_count":
            return tally.certified
        if key == "volatility":
            return rounded(tally.volatility())
        if key == "trust_weight":
            return rounded(tally.trust_weight(bool(tally.drift(self.settings.drift_threshold))))
        return rounded(getattr(tally, key))

    def score(self, merged: Merged, as_of: int | None, exact: bool = False) -> dict[str, Any]:
        """The fields of a score (`lag` is added by HTTP). Scores of what is not scored are null.

        Args:
            as_of: greatest event time that fed the answer, microseconds.
            exact: means unrounded.
        """
        scored = self.scored(merged)
        means = (merged.avg_confidence, merged.avg_fragility, merged.avg_alignment, merged.certified_ratio)
        confidence, fragility, alignment, ratio = (x if scored else None for x in (means if exact else map(rounded, means)))
        drifting = scored and bool(merged.drift(self.settings.drift_threshold))
        answer = {
            "name": merged.name,
            "registered": merged.registration is not None,
            "count": merged.count,
            "avg_confidence": confidence,
            "avg_fragility": fragility,
            "avg_alignment": alignment,
            "alignment_count": merged.alignments,
            "certified_count": merged.certified,
            "certified_ratio": ratio,
            "volatility": rounded(merged.volatility()) if scored else None,
            "drift": drifting,
            "trust_weight": rounded(merged.trust_weight(drifting)) if scored else None,
            "first_seen": rfc3339_or_none(merged.first_us),
            "last_seen": rfc3339_or_none(merged.last_us),
            "out_of_range": merged.outside,
            "as_of": rfc3339_or_none(as_of),
        }
        if not merged.outside_exact:
            answer["out_of_range_at_least"] = True
        return answer

    def details(self, reader: Reader, merged: Merged) -> dict[str, Any]:
        """Registry fields, values and performance updates of one variable."""
        known, values = merged.registration, self.sums(reader, merged.name)
        spread = 0.0 if merged.low == merged.high else values.x_m2
        return {
            "kind": known and known.kind,
            "default": known and known.default,
            "low": known and known.low,
            "high": known and known.high,
            "description": known and known.description,
            "registered_at": known and rfc3339(known.time_us),
            "value": {
                "n": merged.count,
                "mean": values.mean if values.n else None,
                "std": sqrt(spread / (values.n - 1)) if values.n > 1 and isfinite(spread) else None,
                "min": merged.low,
                "max": merged.high,
                "last": merged.last_value,
            },
            "updates": self.updates(reader, merged.name),
        }

    def updates(self, reader: Reader, name: str) -> list[dict[str, Any]]:
        """The performance updates kept, oldest first."""
        kept = self.kept
        found = []
        if reader.rows(kept.heads, (name,)):
            slots = max(head.n for head in reader.rows(kept.heads, (name,)))
            for slot in range(min(slots, UPDATES)):
                found += [(one.time_us, number, one.offset, one) for number, one in reader.placed(kept.updates, (name, str(slot)))]
        found.sort(key=lambda item: item[:3])
        return [{"id": one.id, "time": rfc3339(one.time_us), "new_score": msgspec.json.decode(one.score)} for *_, one in found[-UPDATES:]]


def variable_views(kept: VariableTables, settings: VariableSettings) -> list[View]:
    """Views of scores and ranks."""
    scores = Scores(kept, settings)

    def one(reader: Reader, params: Variable) -> dict[str, Any]:
        merged = scores.one(reader, params.name)
        details = scores.details(reader, merged)
        if merged.count == 0 and merged.registration is None and not details["updates"]:
            raise NotFound(f"no forecast used the variable {params.name}, and it is not registered")
        return {**scores.score(merged, reader.as_of(), params.exact), **details}

    def listed(reader: Reader, params: ListParams) -> dict[str, Any]:
        def admitted(reader: Reader, key: Key, found: tuple[list[Partial], Registration | None]) -> Place | None:
            states, known = found
            if (
                scores.admits(known)
                and (not params.min_count or sum(state.count for state in states) >= params.min_count)
                and (params.kind is None or (known is not None and known.kind == params.kind))
                and (params.registered is None or params.registered == (known is not None))
            ):
                return key
            return None

        def others(reader: Reader, key: Key, found: tuple[list[Partial], Registration | None]) -> Place | None:
            return None if scores.admits(found[1]) else (key[0], sum(state.count for state in found[0]))

        name = "list", params.min_count, params.kind, params.registered
        lists = reader.lists(scores.source, {name: lambda: Order(admitted), "unknown": lambda: Order(others)})
        on_page, cursor = lists[name].page(params.limit, params.cursor, whole_of, lambda place: place[0])
        overflow = sum(state.n for state in reader.rows(kept.overflow, ()))
        as_of = reader.as_of()
        return {
            "variables": [scores.score(scores.one(reader, name), as_of, params.exact) for (name,) in on_page],
            "unknown": dict(lists["unknown"]) if params.cursor is None else {},
            "overflow": overflow,
            "cursor": cursor,
            "as_of": rfc3339_or_none(as_of),
        }

    def ranked(score: str, sign: int, min_count: int, reader: Reader, key: Key, found: tuple[list[Partial], Registration | None]) -> Place | None:
        states, registration = found
        if not scores.admits(registration):
            return None
        tally = Tally(states)
        if tally.count < min_count:
            return None
        value = scores.value(tally, score)
        return value is None, 0.0 if value is None else sign * value, tally.first, key[0]

    def rank(reader: Reader, params: RankParams) -> dict[str, Any]:
        key = params.key
        if key not in RANK_KEYS:
            raise BadParameter("key", f"expected one of {', '.join(RANK_KEYS)}")
        name = "rank", key, params.order, params.min_count
        order: Order = reader.lists(scores.source, {name: lambda: Order(partial(ranked, key, -1 if params.order == "desc" else 1, params.min_count))})[name]
        as_of = reader.as_of()
        shown = [{"rank": at, **scores.score(scores.one(reader, place[-1]), as_of)} for at, place in enumerate(order.first(params.limit), 1)]
        names = [score["name"] for score in shown]
        return {"key": key, "order": params.order, "names": names, "variables": shown, "as_of": rfc3339_or_none(as_of)}

    def everything(reader: Reader, asked: AllParams) -> dict[str, Any]:
        found = all_scores(scores, reader, asked.exact)
        return {"variables": found, "as_of": rfc3339_or_none(reader.as_of())}

    topics = (TOPIC,)
    return [
        View("/exports/variables", AllParams, everything, topics, "All scores of one moment, by variable: pulsefold export variables."),
        View("/variables/rank", RankParams, rank, topics, "Variables ordered by a score, with their scores."),
        View("/variables/{name}", Variable, one, topics, "One variable: scores, registration, values, performance updates."),
        View("/variables", ListParams, listed, topics, "All variables with their scores, by name."),
    ]
