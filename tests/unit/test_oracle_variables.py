"""Variables and calibration against an oracle in pandas and scipy: 20,000 events over several partitions, every view at ten moments."""

from __future__ import annotations

import random
from math import atanh, sqrt, tanh
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tables.calibration import Forecasts
from tables.variable_states import VariableSettings
from tables.variables import Variables
from tests.oracles import DAY_US, HOUR_US, MOMENTS, Event, envelope, moments, text, times, unequal

NAMES = ("a", "b", "c|%", "d,e", "ü", "f", "once")
MODELS = ("m0", "m1", "m2", "m3", None)
TAGS = ("hope", "rage", "calm")
OUTCOMES = ("confidence", "fragility", "alignment", "certified")
LOOSE = {"p": 1e-7, "q": 1e-7, "r_interval": 1e-7}


def stream(seed: int) -> list[Event]:
    """Forecasts that turn worse in the last third, resolutions of them, registrations and performance updates."""
    rng = random.Random(seed)
    found: list[Event] = []
    issued: list[tuple[str, str | None]] = [("f-none", "m0")]
    total = MOMENTS[-1]
    for n, at in enumerate(times(rng, total, 6 * DAY_US, late_us=30 * HOUR_US)):
        dice, bad = rng.random(), 0.5 if n > total * 2 / 3 else 1.0
        if dice < 0.70 or n < 5:
            model = rng.choice(MODELS)
            inputs = {name: rng.choice([rng.gauss(0, 1), 0.5, 1e9 + rng.random()]) for name in rng.sample(NAMES[:-1], rng.randint(0, 5))}
            if n == 700:
                inputs["once"] = 1.5
            data: dict[str, Any] = {
                "confidence": rng.random() * bad, "fragility": 1 - rng.random() ** 0.3 * bad, "certified": rng.random() < 0.85 * bad,
                "alignment_score": rng.choice([rng.random(), None]), "symbolic_tag": rng.choice([*TAGS, None]), "arc_label": rng.choice(["up", "down", None]),
                "prediction": rng.choice([rng.gauss(0, 5), None]), "model": model, "inputs": inputs,
            }  # fmt: skip
            if rng.random() < 0.1:  # what is missing counts as 0 and not certified
                del data["confidence"], data["certified"]
            found.append(envelope(n, "forecast.issued", at, forecast_id=f"f{n}", **data))
            issued.append((f"f{n}", model))
        elif dice < 0.96:
            name, model = rng.choice(issued[-400:])
            actual, p = rng.choice([rng.gauss(0, 5), None]), rng.choice([rng.random(), rng.choice([0.0, 0.1, 0.3, 1.0]), None])
            found.append(envelope(n, "forecast.resolved", at, forecast_id=name, model=model, success=rng.random() < 0.6, actual=actual, probability=p))
        elif dice < 0.98:
            limits = {"low": rng.choice([None, -0.5]), "high": rng.choice([None, 1.0])}
            found.append(envelope(n, "variable.registered", at, name=rng.choice([*NAMES[:4], "idle"]), kind=rng.choice(["market", None]), **limits))
        else:
            found.append(envelope(n, "variable.performance_updated", at, variable=rng.choice(NAMES[:4]), new_score={"n": n}))
    return found


class Oracle:
    """Frames of the raw events of a prefix."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.as_of = max(e["time_us"] for e in events)
        issued = [(i, e["time_us"], e["data"]) for i, e in enumerate(events) if e["type"] == "forecast.issued.v1"]
        self.issued = pd.DataFrame(
            {
                "order": [i for i, _, _ in issued],
                "t": [t for _, t, _ in issued],
                "model": [d.get("model", "") for _, _, d in issued],
                "confidence": [d.get("confidence", 0.0) for _, _, d in issued],
                "fragility": [d.get("fragility", 0.0) for _, _, d in issued],
                "certified": [d.get("certified", False) for _, _, d in issued],
                "alignment": pd.array([d.get("alignment_score") for _, _, d in issued], dtype="Float64").to_numpy(dtype=float, na_value=np.nan),
                "tag": [d.get("symbolic_tag") for _, _, d in issued],
                "arc": [d.get("arc_label") for _, _, d in issued],
            }
        )
        for label in ("tag", "arc"):  # of those with a label, the one before of the same model
            had = self.issued[self.issued[label].notna()]
            before = had.groupby("model")[label].shift()
            self.issued[f"{label}_moves"] = before.notna().reindex(self.issued.index, fill_value=False)
            self.issued[f"{label}_changes"] = ((before != had[label]) & before.notna()).reindex(self.issued.index, fill_value=False)
        uses = [(row, name, value, place) for row, (_, _, d) in enumerate(issued) for place, (name, value) in enumerate(d["inputs"].items())]
        used = pd.DataFrame(uses, columns=["row", "name", "value", "place"])
        self.used = used.join(self.issued, on="row")
        self.registered: dict[str, tuple[int, dict[str, Any]]] = {}
        for e in events:
            if e["type"] == "variable.registered.v1" and e["time_us"] >= self.registered.get(e["data"]["name"], (0, {}))[0]:
                self.registered[e["data"]["name"]] = e["time_us"], e["data"]
        self.updated = [e for e in events if e["type"] == "variable.performance_updated.v1"]
        self.names = sorted({*used["name"], *self.registered})
        self.of = {name: self.used[self.used["name"] == name] for name in self.names}
        self.start = (self.as_of // HOUR_US - 23) * HOUR_US

    def score(self, name: str, exact: bool = False) -> dict[str, Any]:
        """The fields of variables.md §4."""
        mine = self.of[name]
        n = len(mine)
        align = mine["alignment"].dropna()
        confidence, fragility, certified = (float(mine[c].mean()) if n else None for c in ("confidence", "fragility", "certified"))
        alignment = float(align.mean()) if len(align) else None
        drifts = bool(self.drifts(name))
        weight = volatility = None
        if confidence is not None and fragility is not None and certified is not None:
            weight = 1 + confidence - fragility
            weight = round(max(0.1, 0.85 * weight) if drifts else weight, 4)
            volatility = round((fragility + 1 - certified) / 2, 4)
        means = {"avg_confidence": confidence, "avg_fragility": fragility, "avg_alignment": alignment, "certified_ratio": certified}
        return {
            "name": name, "registered": name in self.registered, "count": n, "alignment_count": len(align), "certified_count": int(mine["certified"].sum()),
            **{key: value if exact or value is None else round(value, 4) for key, value in means.items()},
            "volatility": volatility, "drift": drifts, "trust_weight": weight,
            "first_seen": text(mine["t"].min()) if n else None, "last_seen": text(mine["t"].max()) if n else None, "as_of": text(self.as_of),
        }  # fmt: skip

    def drifts(self, name: str, threshold: float = 0.25) -> list[str]:
        """By what it drifts over its whole life, figures rounded, limits strict."""
        mine = self.of[name]
        if not len(mine):
            return []
        by = ["fragility"] if round(mine["fragility"].mean(), 4) > threshold else []
        return by + (["certified"] if round(mine["certified"].mean(), 4) < round(1 - threshold, 4) else [])

    def details(self, name: str) -> dict[str, Any]:
        mine, (at, known) = self.of[name], self.registered.get(name, (None, {}))
        value = mine["value"]
        n = len(mine)
        updates = sorted((e for e in [e for e in self.updated if e["data"]["variable"] == name][-100:]), key=lambda e: e["time_us"])
        return {
            "kind": known.get("kind"), "low": known.get("low"), "high": known.get("high"), "registered_at": None if at is None else text(at),
            "value": {
                "n": n, "mean": float(value.mean()) if n else None, "std": float(value.std()) if n > 1 else None, "min": float(value.min()) if n else None,
                "max": float(value.max()) if n else None, "last": float(value.loc[mine["t"].idxmax()]) if n else None,
            },
            "updates": [{"id": e["id"], "time": e["time"], "new_score": e["data"]["new_score"]} for e in updates],
        }  # fmt: skip

    def outside(self, name: str) -> int:
        _, known = self.registered.get(name, (0, {}))
        value = self.of[name]["value"]
        return int(((value < known.get("low", -np.inf)) | (value > known.get("high", np.inf))).sum())

    def rank(self, key: str, sign: int) -> list[str]:
        """Names with forecasts, by rounded score, then first sight."""
        found = []
        for name in self.names:
            mine = self.of[name]
            if len(mine):
                first = mine.loc[mine["t"].idxmin()]
                value = self.score(name)[key]
                found.append((value is None, 0.0 if value is None else sign * value, first["t"], first["place"], name))
        return [name for *_, name in sorted(found)]

    def influence(self, name: str, outcome: str) -> dict[str, Any]:
        """scipy's line of the outcome on the value."""
        pairs = self.of[name][["value", outcome]].dropna().astype(float)
        n = len(pairs)
        none = {"n": n, "r": None, "r_interval": None, "slope": None, "intercept": None, "p": None}
        if n < 3 or pairs["value"].nunique() == 1 or pairs[outcome].nunique() == 1:
            return none
        shift = pairs["value"].mean()  # scipy's own sums lose digits so far from zero
        line = stats.linregress(pairs["value"] - shift, pairs[outcome])
        reach = stats.norm.ppf(0.975) / sqrt(n - 3) if n > 3 else None
        between = None if reach is None else [tanh(atanh(line.rvalue) - reach), tanh(atanh(line.rvalue) + reach)]
        return {"n": n, "r": line.rvalue, "r_interval": between, "slope": line.slope, "intercept": line.intercept - line.slope * shift, "p": line.pvalue}

    def recent(self) -> dict[str, Any]:
        """Recent drift by scipy: Welch, two proportions, Benjamini and Hochberg over all tests."""
        found: dict[str, Any] = {}
        tests: list[dict[str, Any]] = []
        for name in self.names:
            mine = self.of[name]
            if not len(mine):
                continue
            late = mine["t"] >= self.start
            old, new = mine[~late], mine[late]
            enough = min(len(old), len(new)) >= 30
            body: dict[str, Any] = {"enough": enough, "n_before": len(old), "n_recent": len(new)}
            for outcome in ("certified", "confidence", "fragility"):
                x, y = old[outcome].astype(float), new[outcome].astype(float)
                before, now = (float(v.mean()) if len(v) else None for v in (x, y))
                one: dict[str, Any] = {"before": before, "recent": now, "effect": None if before is None or now is None else now - before}
                if enough and outcome == "certified":
                    pooled = (x.sum() + y.sum()) / (len(x) + len(y))
                    one["z"] = (y.mean() - x.mean()) / sqrt(pooled * (1 - pooled) * (1 / len(x) + 1 / len(y)))
                    one["p"] = 2 * stats.norm.sf(abs(one["z"]))
                elif enough:
                    welch = stats.ttest_ind(y, x, equal_var=False)
                    one.update(t=welch.statistic, df=welch.df, p=welch.pvalue)
                if enough:
                    tests.append(one)
                body[outcome] = one
            found[name] = body
        for one, q in zip(tests, stats.false_discovery_control([one["p"] for one in tests]) if tests else [], strict=True):
            one.update(q=q, flagged=bool(q < 0.001 and abs(one["effect"]) >= 0.1))
        return {"window_start": text(self.start), "tests": len(tests), "recent": found}

    def volatility(self, asked: list[str] | None = None) -> dict[str, Any]:
        names = [name for name in self.names if (len(self.of[name]) if asked is None else name in asked)]
        moves = {
            kind: {name: (int(self.of[name][f"{kind}_moves"].sum()), int(self.of[name][f"{kind}_changes"].sum())) for name in names} for kind in ("tag", "arc")
        }
        tagged = self.issued[self.issued["tag"].notna()]
        means, tags, flips, apart = {}, {}, [], []
        for tag, mine in tagged.groupby("tag"):
            old, new = (mine[late]["confidence"] for late in (mine["t"] < self.start, mine["t"] >= self.start))
            before, now = (float(v.mean()) if len(v) else None for v in (old, new))
            means[tag] = [before, now]
            tags[tag] = {"n": len(mine), "avg_confidence": mine["confidence"].mean(), "std_confidence": mine["confidence"].std() if len(mine) > 1 else None}
            apart.append(abs((0.5 if now is None else now) - (0.5 if before is None else before)))
            if min(len(old), len(new)) >= 5 and old.mean() > 0.6 and new.mean() < 0.4:
                flips.append(tag)
        exact = {name: (self.of[name]["fragility"].mean() + 1 - self.of[name]["certified"].mean()) / 2 for name in names if len(self.of[name])}
        return {
            "variables": [{"name": name, "volatility": round(exact[name], 4), "above": bool(round(exact[name], 4) > 0.5)} for name in names if name in exact],
            "cluster": None if asked is None or not exact else round(np.mean(list(exact.values())), 4),
            **{f"{kind}_change": {name: change_of(*counts) for name, counts in of.items()} for kind, of in moves.items()},
            "tags": tags, "tag_means": means, "flips": flips, "symbolic_drift": np.mean(apart) if apart else None,
        }  # fmt: skip

    def calibration(self, model: str | None) -> dict[str, Any]:
        """Resolutions in the order of the log, joined to the forecast of the same model and id."""
        issued, seen, taken = {}, set(), []
        counts = dict.fromkeys(("probability", "confidence", "unjoined", "resolved", "re_resolved"), 0)
        errors = []
        for e in self.events:
            data = e["data"]
            whose = data.get("model", "")
            if e["type"] not in ("forecast.issued.v1", "forecast.resolved.v1") or (model is not None and whose != model):
                continue
            key = whose, data["forecast_id"]
            if e["type"] == "forecast.issued.v1":
                issued.setdefault(key, data)
                continue
            if key in seen:
                counts["re_resolved"] += 1
                continue
            seen.add(key)
            counts["resolved"] += 1
            known = issued.get(key)
            p, basis = data.get("probability"), "probability"
            if p is None and known is not None:
                p, basis = known.get("confidence", 0.0), "confidence"
            counts["unjoined" if p is None else basis] += 1
            if p is not None:
                taken.append((p, data["success"]))
            if known is not None and "prediction" in known and "actual" in data:
                errors.append(known["prediction"] - data["actual"])
        p, y = np.array(taken, dtype=float).T.reshape(2, -1)
        n, error, clipped = len(p), np.array(errors), np.clip(p, 1e-12, 1 - 1e-12)
        bins = np.digitize(p, [k / 10 for k in range(1, 10)])
        each = [(p[bins == k], y[bins == k]) for k in range(10)]
        return {
            "n": n, "basis": {"probability": counts["probability"], "confidence": counts["confidence"]},
            **{key: counts[key] for key in ("unjoined", "resolved", "re_resolved")}, "errors": len(error),
            "brier": np.mean((p - y) ** 2) if n else None, "log_loss": -np.mean(np.where(y > 0, np.log(clipped), np.log(1 - clipped))) if n else None,
            "ece": sum(abs(a.sum() - b.sum()) for a, b in each) / n if n else None,
            "bins": [{"n": len(a), "mean_p": a.mean() if len(a) else None, "rate": b.mean() if len(b) else None} for a, b in each],
            "mean_error": error.mean() if len(error) else None, "mae": np.abs(error).mean() if len(error) else None,
            "rmse": sqrt((error**2).mean()) if len(error) else None,
        }  # fmt: skip


def change_of(n: int, changes: int) -> dict[str, Any]:
    return {"transitions": n, "changes": changes, "rate": changes / n if n else None}


RANKS = ("count", "avg_confidence", "avg_fragility", "avg_alignment", "certified_count", "certified_ratio", "volatility", "trust_weight")


def test_every_view_of_variables_is_what_pandas_and_scipy_make_of_the_events() -> None:
    events = stream(2)
    variables = Variables(VariableSettings())
    for log, moment in moments([variables, Forecasts(variables.settings, variables.kept.models)], events):
        oracle = Oracle(events[:moment])
        scores = {name: oracle.score(name) for name in oracle.names}
        listed = log.get("/variables")
        assert unequal(list(scores.values()), listed["variables"]) == [] and (listed["unknown"], listed["overflow"]) == ({}, 0)
        assert unequal(scores, log.get("/exports/variables")["variables"]) == []
        for name in oracle.names:
            found = log.get(f"/variables/{name}", exact=True)
            assert unequal({**oracle.score(name, exact=True), **oracle.details(name)}, found) == []
            outside = oracle.outside(name)
            assert 0 < found["out_of_range"] <= outside if "out_of_range_at_least" in found else found["out_of_range"] == outside
            influence = {outcome: oracle.influence(name, outcome) for outcome in OUTCOMES}
            assert unequal(influence, log.get(f"/variables/{name}/influence"), loose=LOOSE) == []
        for key in RANKS:
            for order, sign in (("desc", -1), ("asc", 1)):
                assert log.get("/variables/rank", key=key, order=order)["names"] == oracle.rank(key, sign), (moment, key, order)
        for threshold in (0.25, 0.5):
            by = {name: oracle.drifts(name, threshold) for name in oracle.names}
            drift = log.get("/variables/drift", threshold=threshold)
            assert {one["name"]: one["by"] for one in drift["variables"]} == {name: found for name, found in by.items() if found}
        assert unequal(oracle.recent(), log.get("/variables/drift", recent=True), loose=LOOSE) == []
        assert unequal(oracle.volatility(), log.get("/variables/volatility")) == []
        assert unequal(oracle.volatility(["a", "b"]), log.get("/variables/volatility", names=["a", "b"])) == []
        for model in (None, "m0", ""):
            expected = oracle.calibration(model)
            assert unequal(expected, log.get("/forecasts/calibration", **({} if model is None else {"model": model}))) == []
    assert oracle.recent()["recent"]["a"]["certified"]["flagged"] and oracle.calibration(None)["re_resolved"] > 100
