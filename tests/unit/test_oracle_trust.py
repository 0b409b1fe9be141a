"""Trust against an oracle in numpy and scipy: 20,000 events over several partitions, every view at ten moments."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from scipy import stats

from tables.trust import Trust, TrustSettings
from tests.oracles import DAY_US, HOUR_US, MOMENTS, SECOND_US, Event, envelope, moments, text, times, unequal

HALF_LIFE_US = 12 * HOUR_US
PRIOR = {"model": (2.0, 3.0)}
KINDS = ("variable", "model", "agent")
IDS = (*(f"k{n}" for n in range(12)), "a|b", "50%")
HISTORY = 100


def stream(seed: int) -> list[Event]:
    """Observations of 42 keys, and commands that change their evidence in the order of the log."""
    rng = random.Random(seed)
    found = []
    for n, at in enumerate(times(rng, MOMENTS[-1], 4 * DAY_US, late_us=6 * HOUR_US)):
        kind, id_, dice = rng.choice(KINDS), rng.choice(IDS), rng.random()
        good = 0.1 + 0.8 * IDS.index(id_) / len(IDS)
        if dice < 0.985:
            found.append(envelope(n, "trust.observed", at, kind=kind, id=id_, success=rng.random() < good, weight=rng.choice([None, None, 0.5, 2.5])))
        elif dice < 0.99:
            each = [
                {"kind": k, "id": i, "success": rng.random() < 0.5, "weight": 0.5}
                for k, i in rng.sample([(k, i) for k in KINDS for i in IDS], rng.randint(1, 5))
            ]
            found.append(envelope(n, "trust.batch_observed", at, observations=each))
        elif dice < 0.995:
            whose = rng.choice([{"kind": kind, "id": id_}, {"kind": kind, "id": id_}, {"kind": kind}, {}])
            found.append(envelope(n, "trust.decayed", at, **whose, factor=rng.choice([0.5, 0.9, 0.99]), min_count=rng.choice([None, 40])))
        elif dice < 0.9985:
            points = [[text(at - 1000 * k), rng.random()] for k in range(rng.choice([0, 3, 150]), 0, -1)]
            last = rng.choice([None, text(at - HOUR_US)])
            found.append(
                envelope(n, "trust.imported", at, kind=kind, id=id_, alpha=rng.uniform(0.5, 30), beta=rng.uniform(0.5, 30), last_update=last, history=points)
            )
        else:
            found.append(envelope(n, "trust.imported", at, kind=kind, id=id_, removed=True))
    return found


class Key:
    """One key: segments of observations between the commands that change its evidence.

    Args:
        kind: says prior and half-life.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.prior = PRIOR.get(kind, (1.0, 1.0))
        self.half_us = HALF_LIFE_US if kind == "agent" else None
        self.forget()

    def forget(self) -> None:
        self.base = np.array(self.prior)
        """Evidence at the last command, with the prior, as of `base_us`."""
        self.base_us = -np.inf
        self.seen: list[tuple[int, bool, float]] = []
        self.points: list[tuple[int, float]] = []
        self.n = self.decays = 0
        self.last: int | None = None
        self.known = False

    def series(self) -> tuple[Any, Any]:
        """(alpha, beta) after each observation since the last command, and the moments that they are of."""
        at, ok, weight = (np.array(column) for column in zip(*self.seen, strict=True))
        split = np.stack([weight * ok, weight * ~ok])
        if self.half_us is None:
            return self.base[:, None] + split.cumsum(axis=1), at
        newest = np.maximum.accumulate(np.maximum(at, self.base_us))
        zero = at[0] if np.isinf(self.base_us) else self.base_us
        prior = np.array(self.prior)[:, None]
        grown = (split * 2.0 ** ((at - zero) / self.half_us)).cumsum(axis=1) + np.maximum(0, self.base[:, None] - prior) * 2.0**0
        return prior + grown * 2.0 ** (-(newest - zero) / self.half_us), newest

    def counts(self, at_us: float) -> Any:
        """(alpha, beta) at a moment."""
        counts, moment = (self.base, self.base_us) if not self.seen else (self.series()[0][:, -1], self.series()[1][-1])
        if self.half_us is None or np.isinf(moment):
            return counts
        prior = np.array(self.prior)
        return prior + np.maximum(0, counts - prior) * 2.0 ** (-max(0.0, at_us - moment) / self.half_us)

    def settle(self) -> None:
        """Put what was seen since the last command into the history."""
        if self.seen:
            counts, _ = self.series()
            self.points += zip([at for at, _, _ in self.seen], (counts[0] / counts.sum(axis=0)).tolist(), strict=True)
            self.points = self.points[-HISTORY:]

    def history(self) -> list[tuple[int, float]]:
        kept = list(self.points)
        self.settle()
        found, self.points = self.points, kept
        return found

    def command(self, counts: Any, at_us: float) -> None:
        """The evidence is this from here on."""
        self.settle()
        self.seen, self.base, self.base_us = [], np.array(counts, dtype=float), at_us

    def decay(self, at_us: int, factor: float, min_count: float) -> None:
        moment = max([at_us, self.base_us, *(at for at, _, _ in self.seen)])
        counts = self.counts(moment)
        if self.known and counts.sum() > min_count:
            self.command(np.maximum(self.prior, counts * factor), moment)
            self.decays += 1


class Oracle:
    """All keys."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], Key] = {}
        self.as_of = 0

    def key(self, kind: str, id_: str) -> Key:
        found = self.keys.setdefault((kind, id_), Key(kind))
        found.known = True
        return found

    def take(self, event: Event) -> None:
        data, at = event["data"], event["time_us"]
        self.as_of = max(self.as_of, at)
        if event["type"] == "trust.decayed.v1":
            for (kind, id_), key in self.keys.items():
                if data.get("kind") in (None, kind) and data.get("id") in (None, id_):
                    key.decay(at, data["factor"], data.get("min_count", 5))
        elif event["type"] == "trust.imported.v1":
            key = self.key(data["kind"], data["id"])
            key.forget()
            if data.get("removed"):
                return
            key.known = True
            key.base, key.base_us = np.array([data["alpha"], data["beta"]]), at
            if key.half_us is not None:
                key.base = np.maximum(key.base, key.prior)
            if "last_update" in data:
                key.last = at - HOUR_US
            count = len(data["history"])
            key.points = [(at - 1000 * (count - k), point[1]) for k, point in enumerate(data["history"])][-HISTORY:]
        else:
            for one in data.get("observations", [data]):
                key = self.key(one["kind"], one["id"])
                key.seen.append((at, one["success"], one.get("weight", 1.0)))
                key.n += 1
                key.last = at if key.last is None else max(key.last, at)

    def answers(self, at_us: int, z: float = 1.96) -> list[dict[str, Any]]:
        """What is known of every key, by kind and id."""
        keys = sorted((kind, id_) for (kind, id_), key in self.keys.items() if key.known)
        kept = [self.keys[key] for key in keys]
        alpha, beta = np.array([key.counts(at_us) for key in kept]).T.reshape(2, -1)
        prior = np.array([key.prior for key in kept]).T.reshape(2, -1)
        n, p = alpha + beta, alpha / (alpha + beta)
        level = 2 * stats.norm.cdf(z) - 1
        low, high = stats.beta.ppf([[(1 - level) / 2], [(1 + level) / 2]], alpha, beta)
        half = z * np.sqrt(p * (1 - p) / n)
        effective = n - prior.sum(axis=0)
        strength = 1 / (1 + np.exp(-0.1 * (effective - 10)))
        return [
            {
                "kind": kind, "id": id_, "known": True, "alpha": alpha[i], "beta": beta[i], "trust": p[i],
                "wald": [max(0.0, p[i] - half[i]), min(1.0, p[i] + half[i])],
                "beta_interval": [low[i], high[i]], "z": z, "level": level, "effective_n": effective[i], "sample_size": int(np.floor(effective[i] + 1e-9)),
                "strength": strength[i], "observations": key.n, "decays": key.decays, "last_update": None if key.last is None else text(key.last),
                "seconds_since_update": None if key.last is None else max(0, at_us - key.last) / SECOND_US,
                "half_life_s": None if key.half_us is None else key.half_us / SECOND_US, "at": text(at_us),
            }
            for i, ((kind, id_), key) in enumerate(zip(keys, kept, strict=True))
        ]  # fmt: skip


LOOSE = {"beta_interval": 1e-7}
REPORTED = ("kind", "id", "trust", "strength", "wald", "beta_interval", "sample_size", "seconds_since_update")


def spread(trusts: list[float]) -> list[dict[str, float]]:
    """numpy's histogram."""
    edges = [n / 20 for n in range(21)]
    counts = np.histogram(trusts, edges)[0]
    return [{"low": low, "high": high, "count": int(n), "share": n / len(trusts)} for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def report_of(answers: list[dict[str, Any]], limit: int = 100) -> dict[str, Any]:
    """The report by the words of trust.md §5.1."""
    enough = [a for a in answers if a["effective_n"] >= 5]
    seconds = [a for a in enough if a["seconds_since_update"] is not None]

    def listed(found: list[dict[str, Any]], by: str, sign: int) -> list[dict[str, Any]]:
        found.sort(key=lambda a: (sign * a[by], a["kind"], a["id"]))
        return [{name: a[name] for name in REPORTED} for a in found[:limit]]

    return {
        "high_trust": listed([a for a in enough if a["trust"] > 0.8], "trust", -1),
        "low_trust": listed([a for a in enough if a["trust"] < 0.2], "trust", 1),
        "high_confidence": listed([a for a in enough if a["strength"] > 0.8], "strength", -1),
        "low_confidence": listed([a for a in answers if a["effective_n"] < 5], "strength", 1),
        "recently_updated": listed([a for a in seconds if a["seconds_since_update"] < 3600], "seconds_since_update", 1),
        "stale": listed([a for a in seconds if a["seconds_since_update"] > 86_400], "seconds_since_update", -1),
        "summary": {
            "total_entities": len(answers), "active_entities": len(enough), "avg_trust": np.mean([a["trust"] for a in answers]),
            "avg_confidence": np.mean([a["strength"] for a in answers]),
        },
    }  # fmt: skip


def exported(oracle: Oracle) -> dict[str, Any]:
    """The file, as it is at as_of."""
    answers = oracle.answers(oracle.as_of)
    name = {(a["kind"], a["id"]): f"{a['kind']}|{a['id'].replace('%', '%25').replace('|', '%7C')}" for a in answers}
    kept = {name[key]: found for key, found in oracle.keys.items() if found.known}
    return {
        "export_time": oracle.as_of / SECOND_US,
        "stats": {name[a["kind"], a["id"]]: [a["alpha"], a["beta"]] for a in answers},
        "last_update": {key: found.last / SECOND_US for key, found in kept.items() if found.last is not None},
        "timestamps": {
            key: {"times": [t / SECOND_US for t, _ in points], "values": [trust for _, trust in points]}
            for key, found in kept.items()
            if (points := found.history())
        },
    }


def test_every_view_of_trust_is_what_numpy_makes_of_the_events() -> None:
    events = stream(1)
    oracle, done = Oracle(), 0
    half = {"": None, "agent": HALF_LIFE_US / SECOND_US}
    fold = Trust(TrustSettings(trust_prior={"": (1.0, 1.0), **PRIOR}, trust_half_life=half))
    for log, moment in moments([fold], events, alone=lambda event: event["type"] != "trust.observed.v1"):
        for event in events[done:moment]:
            oracle.take(event)
        done = moment
        at_us = oracle.as_of + 7 * HOUR_US
        whole = {"now_us": at_us, "limit": 1000}
        answers = oracle.answers(at_us)
        by_name = sorted(answers, key=lambda a: (a["id"], a["kind"]))
        assert unequal({"entries": by_name, "as_of": text(oracle.as_of), "cursor": None}, log.get("/trust", **whole), loose=LOOSE) == []
        for limit in (1, 1000):  # however long the page is, all keys are counted
            assert log.get("/trust", now_us=at_us, limit=limit, distribution=True)["distribution"] == spread([a["trust"] for a in answers])
        for by in ("trust", "effective_n"):
            sorted_ = log.get("/trust", **whole, sort=by, order="desc")["entries"]
            assert unequal(sorted((a[by] for a in answers), reverse=True), [a[by] for a in sorted_]) == []
        for a in answers[:: max(1, len(answers) // 6)]:
            assert unequal(a, log.get(f"/trust/{a['kind']}/{a['id']}", now_us=at_us), loose=LOOSE) == []
            points = oracle.keys[a["kind"], a["id"]].history()
            found = log.get(f"/trust/{a['kind']}/{a['id']}/history", limit=1000)["points"]
            assert unequal([{"time": text(t), "trust": trust} for t, trust in points], found) == []
        asked = [a for a in oracle.answers(at_us, 2.576) if a["kind"] == "model"][:5]
        found = log.get("/trust", now_us=at_us, kind="model", id=[*(a["id"] for a in asked), "nobody"], z=2.576)
        assert unequal({a["id"]: a for a in asked}, found, loose=LOOSE) == []
        assert found["nobody"]["known"] is False and found["nobody"]["trust"] == 0.4
        assert unequal(report_of(answers), log.get("/trust/report", now_us=at_us), loose=LOOSE) == []
        file = log.get("/trust/export")
        assert unequal(exported(oracle), file) == []
        assert [file[part].keys() for part in ("stats", "last_update", "timestamps")] == [
            exported(oracle)[part].keys() for part in ("stats", "last_update", "timestamps")
        ]
