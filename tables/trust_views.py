"""Trust: what is answered of the rows, with its uncertainty.

The rule this file keeps: an answer is of one moment, `at`, which is never before what was absorbed unless somebody asks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from heapq import nsmallest
from math import fsum
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from streams.keys import encode_key

from . import beta
from .distribution import distribution, distribution_sorted
from .fold import BadParameter, NotFound, Reader, View, names, page
from .orders import Order, Part, Place, Source, Totals, parts_of, same
from .times import SECOND_US, rfc3339, rfc3339_or_none, to_us
from .trust_state import LONG_AGO, TOPIC, Key, TrustState, Z

if TYPE_CHECKING:
    from .trust import Trust

MOST_IDS = 1_000
FORMAT = "pulsefold.trust.v1"
"""Of the exported file; whoever changes what a field means changes the number."""

SPOTS = ("high_trust", "low_trust", "high_confidence", "low_confidence", "updated")
"""Lists that the report is made of."""
Spot = tuple[float, float, float, int | None]
"""What those look at: effective number of observations, trust, strength, last update."""

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Kind = Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,32}$")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
BESIDE = ("as_of", "lag", "ready", "cursor", "named")
"""Names of members that answers have beside what was asked for."""


class KeyParams(msgspec.Struct, frozen=True):
    """``/trust/{kind}/{id}``"""

    kind: Kind
    id: str
    z: Z | None = None
    at: Moment | None = None


class ListParams(msgspec.Struct, frozen=True):
    """``/trust``: `ids` are comma-separated, `id` is repeated and taken as it is.

    The answer has each under its id; those that are called as answers' own members are (`BESIDE`) have their place under theirs in the member `named`.
    A list has `distribution`, if that is asked for: how the trust of all keys, not of the page's, is spread.
    """

    kind: Kind | None = None
    ids: list[str] | None = None
    id: list[str] | None = None
    z: Z | None = None
    at: Moment | None = None
    sort: Literal["trust", "effective_n", "last_update", "id"] = "id"
    order: Literal["asc", "desc"] = "asc"
    distribution: bool = False
    limit: Limit = 100
    cursor: str | None = None


class HistoryParams(msgspec.Struct, frozen=True):
    """``/trust/{kind}/{id}/history``"""

    kind: Kind
    id: str
    limit: Limit = 100


class ReportParams(msgspec.Struct, frozen=True):
    """``/trust/report``: `limit` is per list."""

    kind: Kind | None = None
    min_sample: Annotated[float, msgspec.Meta(ge=0)] | None = None
    at: Moment | None = None
    limit: Limit = 100


class ExportParams(msgspec.Struct, frozen=True):
    """``/trust/export``"""

    kind: Kind | None = None


class Figures(msgspec.Struct, frozen=True, gc=False):
    """What the report looks at of one key."""

    key: Key
    state: TrustState
    trust: float
    strength: float
    seconds: float | None


def trust_views(fold: Trust) -> list[View]:
    """The views of a fold's rows."""
    views = TrustViews(fold)
    topics = (TOPIC,)
    return [
        View("/trust/report", ReportParams, views.report, topics, "What is trusted and what is not, what is well known and what is stale."),
        View("/trust/export", ExportParams, views.export, topics, "Every key as one file, which `pulsefold import trust` takes."),
        View("/trust/{kind}/{id}/history", HistoryParams, views.history, topics, "Trust after each of the last events, oldest first."),
        View("/trust/{kind}/{id}", KeyParams, views.one, topics, "How far one variable, rule, model, agent or judge can be relied on."),
        View("/trust", ListParams, views.many, topics, "Many keys at once: those asked for, or a sorted list."),
    ]


class TrustViews:
    """Answers from a fold's rows over all partitions."""

    def __init__(self, fold: Trust) -> None:
        self.fold = fold
        self.source: Source[TrustState] = Source({fold.rows: same}, self.merged, lambda reader, key: self.state(reader, *key))
        self.figured: Source[Spot] = Source({fold.rows: same}, self.every_spot, self.spot_of)

    # ---- reading

    def state(self, reader: Reader, kind: str, id: str) -> TrustState | None:
        """A key's state over all partitions; None if it is unknown."""
        return self.fold.rule(kind).merge(reader.rows(self.fold.rows, (kind, id)))

    def every(self, reader: Reader, kind: str | None) -> list[tuple[Key, TrustState]]:
        """All known keys, of one kind or of all, by name."""
        found = [item for item in self.merged(reader) if kind is None or item[0][0] == kind]
        found.sort(key=itemgetter(0))
        return found

    def merged(self, reader: Reader) -> Iterator[tuple[Key, TrustState]]:
        """All known keys, in no particular order."""
        for key, states in reader.scan(self.fold.rows):
            if len(states) == 1:
                if states[0].known:
                    yield key, states[0]
            else:
                state = self.fold.rule(key[0]).merge(states)
                if state is not None:
                    yield key, state

    def fades(self, kind: str | None) -> bool:
        """Whether evidence of a kind, or of any, has a half-life: then its order depends on the moment, and is not kept."""
        rules = [self.fold.other, *self.fold.kinds.values()] if kind is None else [self.fold.rule(kind)]
        return any(rule.half_life_us is not None for rule in rules)

    def points(self, reader: Reader, key: Key) -> list[tuple[int, float]]:
        """The history kept of a key, (event time, trust), oldest first in log order."""
        rule = self.fold.rule(key[0])
        placed = [(number, state) for number, state in reader.placed(self.fold.rows, key) if state.known]
        return self.fold.history.points(reader, key, placed, rule.slots, rule.history)

    def render(self, kind: str, id: str, state: TrustState | None, at_us: int, chosen: float | None = None) -> dict[str, Any]:
        """Everything about a key at a moment; `state` None = a key without evidence."""
        rule = self.fold.rule(kind)
        z: float = rule.z if chosen is None else chosen
        alpha, beta_ = (rule.a0, rule.b0) if state is None else rule.counts(state, at_us)
        effective_n = alpha + beta_ - rule.a0 - rule.b0
        last_update = None if state is None else state.last_update
        return {
            "kind": kind,
            "id": id,
            "known": state is not None,
            "alpha": alpha,
            "beta": beta_,
            "trust": alpha / (alpha + beta_),
            "wald": beta.wald(alpha, beta_, z),
            "beta_interval": beta.interval(alpha, beta_, z),
            "z": z,
            "level": beta.level(z),
            "effective_n": effective_n,
            "sample_size": beta.sample_size(effective_n),
            "strength": beta.strength(effective_n, rule.k, rule.mid),
            "observations": 0 if state is None else state.n_events,
            "decays": 0 if state is None else state.decays,
            "last_update": rfc3339_or_none(last_update),
            "seconds_since_update": seconds_since(last_update, at_us),
            "half_life_s": rule.half_life_s,
            "at": rfc3339(at_us),
        }

    # ---- answering

    def one(self, reader: Reader, params: KeyParams) -> dict[str, Any]:
        """``/trust/{kind}/{id}``"""
        state = self.state(reader, params.kind, params.id)
        answer = self.render(params.kind, params.id, state, moment_of(reader, params.at), params.z)
        answer["as_of"] = rfc3339_or_none(reader.as_of())
        if state is None:
            raise NotFound(f"nothing is known of {params.kind} {params.id}", prior=answer)
        return answer

    def many(self, reader: Reader, params: ListParams) -> dict[str, Any]:
        """``/trust``"""
        if params.ids is None and params.id is None:
            return self.listed(reader, params)
        asked = list(dict.fromkeys([*names(params.ids or ()), *(params.id or ())]))
        kind = params.kind
        if kind is None:
            raise BadParameter("kind", "ids are of one kind: name it")
        if len(asked) > MOST_IDS:
            raise BadParameter("ids", f"{len(asked)} ids, at most {MOST_IDS}")
        states = [self.state(reader, kind, id) for id in asked]
        reader.rows(self.fold.rows, (kind, ""))  # no id asked: the topic is named all the same
        at_us, as_of = moment_of(reader, params.at), rfc3339_or_none(reader.as_of())
        found: dict[str, Any] = {id: {**self.render(kind, id, state, at_us, params.z), "as_of": as_of} for id, state in zip(asked, states, strict=True)}
        named = {id: found.pop(id) for id in BESIDE if id in found}
        return {**found, "named": named} if named else found

    def listed(self, reader: Reader, params: ListParams) -> dict[str, Any]:
        """``/trust`` without ids."""
        if params.sort in ("trust", "effective_n") and self.fades(params.kind):
            return self.faded(reader, params)
        order = self.by_place(reader, params.kind, params.sort, params.order == "desc" and params.sort != "id")
        at_us, as_of = moment_of(reader, params.at), rfc3339_or_none(reader.as_of())
        backwards = params.sort == "id" and params.order == "desc"
        shown, cursor = order.page(params.limit, params.cursor, parts_of, lambda place: name_of(place[-1]), backwards=backwards)
        entries = [{**self.render(key[0], key[1], self.state(reader, *key), at_us, params.z), "as_of": as_of} for *_, key in shown]
        return {"entries": entries, "cursor": cursor, **self.spread(reader, params, at_us), "as_of": as_of}

    def by_place(self, reader: Reader, kind: str | None, sort: str, descending: bool) -> Order:
        """The kept list of a kind's keys, or of all, in this order."""
        name = "list", kind, sort, descending
        found: Order = reader.lists(self.source, {name: lambda: Order(partial(self.place, *name[1:]))})[name]
        return found

    def spread(self, reader: Reader, params: ListParams, at_us: int) -> dict[str, Any]:
        """How the trust of all keys of the list is distributed, where that is asked."""
        if not params.distribution:
            return {}
        if not self.fades(params.kind):
            return {"distribution": distribution_sorted(self.by_place(reader, params.kind, "trust", False).sorted)}
        counts = [self.fold.rule(key[0]).counts(state, at_us) for key, state in self.every(reader, params.kind)]
        return {"distribution": distribution([alpha / (alpha + beta_) for alpha, beta_ in counts])}

    def place(self, kind: str | None, sort: str, descending: bool, reader: Reader, key: Key, state: TrustState) -> Place | None:
        """Where a key stands in a list without a half-life; ties by name."""
        if kind is not None and key[0] != kind:
            return None
        if sort == "id":
            return key[1], key[0], key
        size: float
        if sort == "last_update":
            size = LONG_AGO if state.last_update is None else state.last_update
        else:
            rule = self.fold.rule(key[0])
            alpha, beta_ = state.alpha, state.beta
            size = alpha / (alpha + beta_) if sort == "trust" else alpha + beta_ - rule.a0 - rule.b0
        return -size if descending else size, key

    def faded(self, reader: Reader, params: ListParams) -> dict[str, Any]:
        """As `listed`, in an order of the moment."""
        known = self.every(reader, params.kind)
        at_us, as_of = moment_of(reader, params.at), rfc3339_or_none(reader.as_of())

        def size(item: tuple[Key, TrustState]) -> float:
            key, state = item
            rule = self.fold.rule(key[0])
            alpha, beta_ = rule.counts(state, at_us)
            return alpha / (alpha + beta_) if params.sort == "trust" else alpha + beta_ - rule.a0 - rule.b0

        known.sort(key=size, reverse=params.order == "desc")  # stable: ties by name
        shown, cursor = page(known, params.limit, params.cursor, lambda item: name_of(item[0]))
        entries = [{**self.render(key[0], key[1], state, at_us, params.z), "as_of": as_of} for key, state in shown]
        return {"entries": entries, "cursor": cursor, **self.spread(reader, params, at_us), "as_of": as_of}

    def history(self, reader: Reader, params: HistoryParams) -> dict[str, Any]:
        """``/trust/{kind}/{id}/history``"""
        if self.state(reader, params.kind, params.id) is None:
            raise NotFound(f"nothing is known of {params.kind} {params.id}")
        points = self.points(reader, (params.kind, params.id))[-params.limit :]
        return {"points": [{"time": rfc3339(t), "trust": trust} for t, trust in points], "as_of": rfc3339_or_none(reader.as_of())}

    def report(self, reader: Reader, params: ReportParams) -> dict[str, Any]:
        """``/trust/report``: the lists and averages of all keys; every limit is strict."""
        return self.faded_report(reader, params) if self.fades(params.kind) else self.kept_report(reader, params)

    def kept_report(self, reader: Reader, params: ReportParams) -> dict[str, Any]:
        """The report without a half-life, of lists that are kept: but for the seconds since an update, nothing depends on the moment."""
        kind, least, limit = params.kind, params.min_sample, params.limit
        wanted: dict[Hashable, Callable[[], Part]] = {(name, kind, least): partial(Order, partial(self.place_of_spot, name, kind, least)) for name in SPOTS}
        wanted["sums", kind] = lambda: Totals(lambda key, spot: spot[1:3] if kind in (None, key[0]) else None, 2)
        found: Mapping[Any, Any] = reader.lists(self.figured, wanted)
        high, low, sure, unsure, updated = (found[name, kind, least] for name in SPOTS)
        totals: Totals = found["sums", kind]
        at_us = moment_of(reader, params.at)

        def entry(key: Key) -> dict[str, Any]:
            full = self.render(key[0], key[1], self.state(reader, *key), at_us)
            wanted = ("kind", "id", "trust", "strength", "wald", "beta_interval", "sample_size", "seconds_since_update")
            return {name: full[name] for name in wanted}

        def by_time(places: Iterable[Place], sign: int, met: Callable[[float], bool]) -> list[dict[str, Any]]:
            """The first by seconds, then by name: `places` are in the order of their times, from where the first are."""
            best: list[tuple[float, Key]] = []
            for last_update, key in places:
                seconds = max(0, at_us - last_update) / SECOND_US
                if not met(seconds) or (len(best) >= limit and sign * seconds != best[-1][0]):
                    break
                best.append((sign * seconds, key))
            return [entry(key) for _, key in nsmallest(limit, best)]

        n, n_scarce = totals.n, len(unsure)
        trusts, strengths = totals.sums()
        return {
            "high_trust": [entry(place[-1]) for place in high.first(limit)],
            "low_trust": [entry(place[-1]) for place in low.first(limit)],
            "high_confidence": [entry(place[-1]) for place in sure.first(limit)],
            "low_confidence": [entry(place[-1]) for place in unsure.first(limit)],
            "recently_updated": by_time(updated.from_end(), 1, lambda seconds: seconds < 3600),
            "stale": by_time(updated, -1, lambda seconds: seconds > 86_400),
            "summary": {
                "total_entities": n,
                "active_entities": n - n_scarce,
                "avg_trust": trusts / n if n else None,
                "avg_confidence": strengths / n if n else None,
            },
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def every_spot(self, reader: Reader) -> Iterator[tuple[Key, Spot]]:
        """All known keys with what the report's lists look at."""
        return ((key, self.spot(key, state)) for key, state in self.merged(reader))

    def spot_of(self, reader: Reader, key: Key) -> Spot | None:
        """The same of one key, None if it is unknown."""
        state = self.state(reader, *key)
        return None if state is None else self.spot(key, state)

    def spot(self, key: Key, state: TrustState) -> Spot:
        """Effective number of observations, trust, strength and last update; nothing of a key with a half-life, which no kept list has."""
        rule = self.fold.rule(key[0])
        if rule.half_life_us is not None:
            return 0.0, 0.0, 0.0, None
        alpha, beta_ = state.alpha, state.beta
        effective_n = alpha + beta_ - rule.a0 - rule.b0
        return effective_n, alpha / (alpha + beta_), beta.strength(effective_n, rule.k, rule.mid), state.last_update

    def place_of_spot(self, name: str, kind: str | None, least: float | None, reader: Reader, key: Key, spot: Spot) -> Place | None:
        """Where a key stands in one of the report's lists, `SPOTS`."""
        if kind is not None and key[0] != kind:
            return None
        effective_n, trust, strength, last_update = spot
        enough = effective_n >= (self.fold.rule(key[0]).min_sample if least is None else least)
        if name == "low_confidence":
            return None if enough else (strength, key)
        if not enough:
            return None
        if name == "high_trust":
            return (-trust, key) if trust > 0.8 else None
        if name == "low_trust":
            return (trust, key) if trust < 0.2 else None
        if name == "high_confidence":
            return (-strength, key) if strength > 0.8 else None
        return None if last_update is None else (last_update, key)

    def faded_report(self, reader: Reader, params: ReportParams) -> dict[str, Any]:
        """The report at a moment, by looking at every key."""
        known = self.every(reader, params.kind)
        at_us = moment_of(reader, params.at)
        enough: list[Figures] = []
        scarce: list[Figures] = []
        trusts, strengths = [], []
        for key, state in known:
            rule = self.fold.rule(key[0])
            alpha, beta_ = rule.counts(state, at_us)
            effective_n = alpha + beta_ - rule.a0 - rule.b0
            trust, strength = alpha / (alpha + beta_), beta.strength(effective_n, rule.k, rule.mid)
            trusts.append(trust)
            strengths.append(strength)
            least = rule.min_sample if params.min_sample is None else params.min_sample
            (enough if effective_n >= least else scarce).append(Figures(key, state, trust, strength, seconds_since(state.last_update, at_us)))

        def entry(one: Figures) -> dict[str, Any]:
            full = self.render(one.key[0], one.key[1], one.state, at_us)
            wanted = ("kind", "id", "trust", "strength", "wald", "beta_interval", "sample_size", "seconds_since_update")
            return {name: full[name] for name in wanted}

        def first(items: Iterable[Figures], size: Any) -> list[dict[str, Any]]:
            return [entry(one) for one in nsmallest(params.limit, items, key=lambda one: (size(one), one.key))]

        n = len(known)
        updated = [(one.seconds, one) for one in enough if one.seconds is not None]
        return {
            "high_trust": first((one for one in enough if one.trust > 0.8), lambda one: -one.trust),
            "low_trust": first((one for one in enough if one.trust < 0.2), lambda one: one.trust),
            "high_confidence": first((one for one in enough if one.strength > 0.8), lambda one: -one.strength),
            "low_confidence": first(scarce, lambda one: one.strength),
            "recently_updated": first((one for seconds, one in updated if seconds < 3600), lambda one: one.seconds),
            "stale": first((one for seconds, one in updated if seconds > 86_400), lambda one: -one.seconds),
            "summary": {
                "total_entities": n,
                "active_entities": len(enough),
                "avg_trust": fsum(trusts) / n if n else None,
                "avg_confidence": fsum(strengths) / n if n else None,
            },
            "as_of": rfc3339_or_none(reader.as_of()),
        }

    def export(self, reader: Reader, params: ExportParams) -> dict[str, Any]:
        """``/trust/export``: all keys as they are at `as_of`, so that nothing new gives the same file again.

        Times are unix seconds. A key that was never observed has no last update, one without history no timestamps.
        """
        known = self.every(reader, params.kind)
        as_of = reader.as_of()
        moment = reader.now_us if as_of is None else as_of
        stats: dict[str, list[float]] = {}
        last_update: dict[str, float] = {}
        timestamps: dict[str, dict[str, list[float]]] = {}
        for key, state in known:
            name = name_of(key)
            stats[name] = list(self.fold.rule(key[0]).counts(state, moment))
            if state.last_update is not None:
                last_update[name] = state.last_update / SECOND_US
            points = self.points(reader, key)
            if points:
                timestamps[name] = {"times": [t / SECOND_US for t, _ in points], "values": [trust for _, trust in points]}
        return {
            "format": FORMAT,
            "export_time": moment / SECOND_US,
            "stats": stats,
            "last_update": last_update,
            "timestamps": timestamps,
            "as_of": rfc3339_or_none(as_of),
        }


def seconds_since(last_update: int | None, at_us: int) -> float | None:
    """Seconds from the last update to a moment, never negative; None before the first."""
    return None if last_update is None else max(0, at_us - last_update) / SECOND_US


def moment_of(reader: Reader, at: datetime | None) -> int:
    """The moment an answer is for: as asked, else the server's clock, which is never before what was absorbed."""
    if at is not None:
        return to_us(at)
    as_of = reader.as_of()
    return reader.now_us if as_of is None else max(reader.now_us, as_of)


def name_of(key: Key) -> str:
    """Name of a key in cursors, alerts and files: ``kind|id``, parts encoded as in record keys."""
    return encode_key(*key).decode()
