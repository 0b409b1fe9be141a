"""The list of series against a plain count over the raw events."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tables.fold import BadParameter, Fold
from tables.partition import Schema
from tables.windows import Windows
from tests.harness import Log


def published(n: int = 400) -> list[dict[str, Any]]:
    """Metrics of several names over models and runs, some of them diverged."""
    rng = random.Random(7)
    found = []
    for i in range(n):
        data: dict[str, Any] = {
            "metric_type": rng.choice(["loss", "held|out", "a%b"]),
            "model": rng.choice(["m1", "m2"]),
            "value": rng.choice([rng.random(), rng.random(), "NaN"]),
        }
        if rng.random() < 0.7:
            data["run"] = rng.choice(["r1", "r2", "r|3"])
        time = f"2026-03-02T00:{rng.randrange(60):02}:{rng.randrange(60):02}.{i:06}Z"
        found.append({"id": f"e{i}", "type": "metric.recorded.v1", "time": time, "tenant": "golden", "data": data})
    return found


def test_every_series_is_listed_once_with_what_its_finite_values_come_to() -> None:
    log, events = Log([Windows()], 4), published()
    log.send(events)
    wanted: dict[tuple[str, str, str | None], list[tuple[str, float]]] = {}
    for event in events:
        data = event["data"]
        values = wanted.setdefault((data["metric_type"], data["model"], data.get("run")), [])
        if data["value"] != "NaN":
            values.append((event["time"], data["value"]))
    answer = log.get("/metrics/series")
    assert [(s["metric"], s["model"], s["run"]) for s in answer["series"]] == sorted(wanted, key=lambda key: (key[0], key[1], key[2] or ""))
    for one in answer["series"]:
        values = wanted[(one["metric"], one["model"], one["run"])]
        numbers = [value for _, value in values]
        assert (one["n"], one["min"], one["max"], one["last"]) == (len(values), min(numbers), max(numbers), max(values)[1])
        assert one["mean"] == pytest.approx(sum(numbers) / len(numbers))
        assert one["last_at"] == max(values)[0]


def test_pages_give_the_same_list_and_names_narrow_it() -> None:
    log = Log([Windows()], 2)
    log.send(published())
    whole = log.get("/metrics/series")["series"]
    pages, cursor = [], None
    while True:
        answer = log.get("/metrics/series", limit=5, **({"cursor": cursor} if cursor else {}))
        assert answer["count"] == len(whole) and len(answer["series"]) <= 5
        pages += answer["series"]
        cursor = answer["cursor"]
        if cursor is None:
            break
    assert pages == whole
    assert log.get("/metrics/series", metric="held|out", run="r|3")["series"] == [s for s in whole if (s["metric"], s["run"]) == ("held|out", "r|3")]
    assert {s["run"] for s in log.get("/metrics/series", run="")["series"]} == {None}
    with pytest.raises(BadParameter, match="cursor"):
        log.get("/metrics/series", cursor="nothing")


def test_a_series_of_diverged_values_alone_has_no_figures_and_another_tenant_sees_none() -> None:
    log = Log([Windows()])
    event = published(1)[0]
    log.send([{**event, "data": {**event["data"], "value": "Infinity"}}])
    (one,) = log.get("/metrics/series")["series"]
    assert [one[name] for name in ("n", "mean", "min", "max", "last", "last_at")] == [0, None, None, None, None, None]
    assert log.get("/metrics/series", tenant="other") == {"series": [], "count": 0, "cursor": None, "as_of": None}


def test_two_views_at_one_path_are_refused() -> None:
    class Same(Fold):
        topics = ("training",)
        views = Windows().views

    with pytest.raises(ValueError, match="two views are at /metrics/"):
        Schema([Windows(), Same()])
