"""Drift and volatility by pages, of kept figures, against answers made one variable at a time from the rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tables.drift import OUTCOMES, Drift
from tables.fold import BadParameter
from tables.orders import ListKeeper
from tables.reader import PartitionReader
from tables.times import HOUR_US
from tables.two_samples import adjusted
from tables.variable_states import VariableSettings
from tables.variable_views import Merged
from tables.variables import Variables
from tests.forecast_events import START_US, forecast, stream
from tests.harness import Log

NAMES = [f"v{i}" for i in range(9)] + ["c|%", "d e", "ü"]


class Asked:
    """A log and what a worker keeps of its lists between questions."""

    def __init__(self, partitions: int, settings: VariableSettings) -> None:
        self.fold = Variables(settings)
        self.log = Log([self.fold], partitions)
        self.keeper = ListKeeper(self.log.topics, self.log.homes)
        self.views = {view.path: view for view in self.fold.views}
        self.drift = Drift(self.fold.kept, settings)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """Ask with what is kept."""
        view = self.views[path]
        reader = PartitionReader(self.log.topics, self.log.homes, "golden", 0, self.keeper)
        return view.answer(reader, msgspec.convert(params, view.params, strict=False))

    def pages(self, path: str, limit: int, **params: Any) -> list[dict[str, Any]]:
        """All pages."""
        found = [self.get(path, limit=limit, **params)]
        while found[-1]["cursor"] is not None:
            found.append(self.get(path, limit=limit, cursor=found[-1]["cursor"], **params))
        return found

    def merged(self) -> dict[str, Merged]:
        """Every scored variable with forecasts, by name."""
        scores, reader = self.drift.scores, self.log.reader()
        return {one.name: one for one in sorted(scores.every(reader), key=lambda one: one.name) if one.count and scores.scored(one)}

    def recent(self, end: int) -> tuple[dict[str, Any], int]:
        """The comparison, one variable after another, and how many tests it has."""
        reader = self.log.reader()
        changes = {name: self.drift.change(reader, (name,), end) for name in self.merged()}
        tests = [test for change in changes.values() for test in change.tests.values() if test.p is not None]
        for test, q in zip(tests, adjusted([test.p for test in tests if test.p is not None]), strict=True):
            test.q = q
        return changes, len(tests)


@pytest.mark.parametrize(("partitions", "strict"), [(1, False), (3, False), (3, True)])
def test_pages_of_drift_and_volatility_are_what_each_variable_says_by_itself(partitions: int, strict: bool) -> None:
    settings = VariableSettings(variables_strict=strict)
    asked = Asked(partitions, settings)
    events = stream(partitions, 700, NAMES, models=9, hours=70)
    for event in events[350:]:
        if "confidence" in event["data"] and "v1" in event["data"]["inputs"]:
            event["data"].update(confidence=event["data"]["confidence"] / 2, certified=False)
    turns, flagged, of_look = set(), set(), set()
    for begin in range(0, 700, 35):
        asked.log.send(events[begin : begin + 35])
        every = asked.merged()
        for threshold, least in ((None, 1), (0.1, 0), (0.31, 40), (0.9, 1)):
            t = threshold or settings.drift_threshold
            want = [name for name, one in every.items() if one.drift(t) and one.count >= least]
            pages = asked.pages("/variables/drift", 2, min_count=least, **({"threshold": threshold} if threshold else {}))
            assert all(page["flagged"] == want for page in pages)
            assert [(v["name"], v["by"], v["count"]) for page in pages for v in page["variables"]] == [(n, every[n].drift(t), every[n].count) for n in want]
            assert all(len(page["variables"]) == 2 for page in pages[:-1])
        if not every:
            continue
        end = max(asked.log.reader().watermarks("forecasts").values()) // HOUR_US
        changes, tests = asked.recent(end)
        turns.add(end)
        for least, limit in ((1, 5), (60, 1), (0, 100)):
            pages = asked.pages("/variables/drift", limit, recent=True, min_count=least)
            shown = [(name, one) for page in pages for name, one in page["recent"].items()]
            assert shown == [(name, asked.drift.render(one)) for name, one in changes.items() if one.n_before + one.n_recent >= least]
            told = [name for name, one in shown if any(one[outcome].get("flagged") for outcome in OUTCOMES)]
            assert all((page["tests"], page["recent_flagged"]) == (tests, told) for page in pages)
            assert [v["name"] for page in pages for v in page["variables"]] == pages[0]["flagged"]
            assert all({v["name"] for v in page["variables"]} <= set(page["recent"]) for page in pages)
            flagged.update(told)
        look = asked.drift.look(asked.log.reader())
        if look is not None and end not in of_look:
            of_look.add(end)
            closed, _ = asked.recent(end - 1)
            assert {*look.flagged} == {name for name, one in closed.items() if any(test.flagged for test in one.tests.values())}
            assert look.flagged == {name: closed[name] for name in look.flagged}
            restless = {n for n, one in closed.items() if any(t.q is not None and t.q <= 0.05 and abs(t.effect or 0) >= 0.05 for t in one.tests.values())}
            assert look.restless == restless
        pages = asked.pages("/variables/volatility", 5)
        whole = asked.get("/variables/volatility", names=list(every)) if every else pages[0]
        assert [v for page in pages for v in page["variables"]] == whole["variables"]
        for change in ("tag_change", "arc_change"):
            assert [one for page in pages for one in page[change].items()] == list(whole[change].items())
        assert all(
            {k: page[k] for k in ("tags", "tag_means", "flips", "symbolic_drift")} == {k: whole[k] for k in ("tags", "tag_means", "flips", "symbolic_drift")}
            for page in pages
        )
        assert {page["cluster"] for page in pages} == {None}
    assert len(turns) > 1 and tests > 9 and "v1" in flagged
    assert asked.keeper.n_again > 50


@pytest.mark.parametrize(("path", "more"), [("/variables/drift", {}), ("/variables/drift", {"recent": True}), ("/variables/volatility", {})])
def test_bad_limits_and_cursors_are_refused_as_by_the_list_of_variables(path: str, more: dict[str, Any]) -> None:
    asked = Asked(2, VariableSettings())
    for wrong in ("nobody", "", "a"):
        with pytest.raises(BadParameter) as refused:
            asked.get(path, cursor=wrong, **more)
        assert refused.value.parameter == "cursor"
    asked.log.send(forecast(i, {name: 1.0}, START_US + i, fragility=0.1 if name == "a" else 0.9, certified=True) for i, name in enumerate("abc"))
    for limit in (0, 10_001, "x"):
        with pytest.raises(msgspec.ValidationError) as bad:
            asked.get(path, limit=limit, **more)
        with pytest.raises(msgspec.ValidationError) as other:
            asked.get("/variables", limit=limit)
        assert str(bad.value) == str(other.value)
    with pytest.raises(BadParameter) as refused:
        asked.get(path, cursor="nobody", **more)
    with pytest.raises(BadParameter) as others:
        asked.get("/variables", cursor="nobody")
    assert str(refused.value) == str(others.value)
    assert asked.get(path, limit=1, **more)["cursor"] == ("b" if path.endswith("drift") and not more else "a")
    assert asked.get(path, cursor="c", **more)["cursor"] is None


def test_a_cursor_of_drift_is_of_a_flagged_variable_and_of_least_counts_as_asked() -> None:
    asked = Asked(2, VariableSettings())
    asked.log.send(forecast(i, {name: 1.0}, fragility=0.1 if name == "a" else 0.9, certified=True) for i, name in enumerate("abbc"))
    for path, params in (("/variables/drift", {"cursor": "a"}), ("/variables/drift", {"cursor": "c", "recent": True, "min_count": 2})):
        with pytest.raises(BadParameter):
            asked.get(path, **params)
    huge = asked.get("/variables/drift", min_count=2**70, recent=True)
    assert (huge["flagged"], huge["recent"], huge["recent_flagged"], huge["tests"]) == ([], {}, [], 0)


def test_named_variables_are_answered_at_once_and_without_pages() -> None:
    asked = Asked(2, VariableSettings())
    asked.log.send([forecast(1, {name: 1.0 for name in NAMES}, fragility=0.2)])
    answer = asked.get("/variables/volatility", names=["v1", "v2", "v3"], limit=1)
    assert [v["name"] for v in answer["variables"]] == ["v1", "v2", "v3"] and answer["cursor"] is None
    with pytest.raises(BadParameter):
        asked.get("/variables/volatility", names=["v1", "v2"], cursor="v1")
