"""Every law over every table of the registry: a new table is under them by being registered (`tests/laws.py` says what they are).

And each law over a fold with one fault planted in it, which it must find.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agents.registry import FOLD_SETTINGS, folds
from streams.events import SOURCE_EVENTS
from tables.fold import Fold
from tables.learning_state import LearningSettings
from tables.partition import COUNTERS
from tables.trust_state import TrustSettings

from .. import laws, planted
from ..harness import Log
from ..valid_events import Maker

Law = Callable[[laws.Make], None]
LAWS: list[Law] = [laws.replay, laws.redelivery, laws.split, laws.purity, laws.versions]
VIEWS_ALONE = {
    "trust_z", "trust_strength_k", "trust_strength_mid", "trust_min_sample", "variables_strict", "drift_threshold", "drift_hysteresis", "drift_recent_hours",
    "costs_from_metrics", "task_timeout", "trust_scheduled_decay",
}  # fmt: skip
"""Settings that no row follows from: of views, of merged rules, and of what is published."""


def registered() -> list[Fold]:
    """What a worker folds."""
    return folds()


def with_small_rings() -> list[Fold]:
    """The same with rings that a test can fill."""
    small: dict[Any, Any] = {LearningSettings: LearningSettings(learning_ring=32), TrustSettings: TrustSettings(trust_history={"": 10})}
    return folds(lambda struct: small.get(struct) or struct())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_registered_table_keeps_the_law_of(law: Law) -> None:
    law(registered)


def test_no_row_of_a_registered_table_grows_without_bound() -> None:
    laws.bounds(with_small_rings)


def test_no_registered_table_goes_by_the_clock_chance_or_hash_seeds_and_those_that_do_are_found() -> None:
    found = laws.not_repeatable("agents.registry:folds", "tests.planted:honest", "tests.planted:clocked", "tests.planted:hashed")
    assert list(found.values()) == [[], [], ["tallies"], ["tallies"]], found


def settings() -> list[tuple[str, msgspec.Struct]]:
    """Every setting of every fold, changed; those are left out that `laws.other` knows no other value for."""
    found = []
    for struct in FOLD_SETTINGS:
        plain = struct()
        for name in struct.__struct_fields__:
            changed = next(filter(None, (usable(struct, plain, name, value) for value in laws.other(getattr(plain, name)))), None)
            if changed is not None:
                found.append((name, changed))
    return found


def usable(struct: type[msgspec.Struct], plain: msgspec.Struct, name: str, value: Any) -> msgspec.Struct | None:
    """Settings with another value, if it may be that."""
    try:
        found = msgspec.convert({**msgspec.to_builtins(plain), name: msgspec.to_builtins(value)}, struct, strict=False)
        folds(lambda asked: found if asked is struct else asked())
    except (msgspec.ValidationError, ValueError):
        return None
    return None if found == plain else found


def test_a_changed_setting_changes_the_key_of_the_rows_or_else_no_row() -> None:
    changed = settings()
    log = laws.folded(registered, Maker(random.Random(7)).stream(500))
    keyed = {name for name, value in changed if laws.settings(log, lambda value=value: folds(lambda s: value if s is type(value) else s()), name)}
    assert {name for name, _ in changed} - keyed <= VIEWS_ALONE
    assert {name for struct in FOLD_SETTINGS for name in struct.__struct_fields__} - keyed <= VIEWS_ALONE, "a setting was not changed"


def test_the_events_are_of_every_type_and_nearly_all_are_folded() -> None:
    log = Log(registered())
    log.pour(Maker(random.Random(8)).stream(2000))
    counters = [COUNTERS.load(p.spaces[COUNTERS.index][""][()]) for (p,) in log.topics.values()]
    assert {name for counter in counters for name in counter.types} == {data.TYPE for data in SOURCE_EVENTS}
    assert sum(counter.dead_lettered for counter in counters) < 0.1 * sum(counter.folded for counter in counters)


# ---- the laws can be broken


@pytest.mark.parametrize("law", [*LAWS, laws.bounds], ids=lambda law: law.__name__)
def test_an_honest_fold_breaks_no_law(law: Law) -> None:
    law(planted.honest)


FAULTS: list[tuple[Law, str, str]] = [
    (laws.replay, "counts what it heard", "in chunks with restarts"),
    (laws.replay, "counts the chunk", "one by one and at once"),
    (laws.redelivery, "reads what is written before it", "after"),
    (laws.split, "does not merge", "/tallies"),
    (laws.purity, "changes the event", "the event was changed"),
    (laws.purity, "changes a row it only read", "without being opened"),
    (laws.bounds, "remembers all", "bytes"),
    (laws.bounds, "a row an event", "rows after each"),
]


@pytest.mark.parametrize(("law", "fault", "says"), FAULTS)
def test_a_fold_that(law: Law, fault: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        law(lambda: [planted.Tally(fault)])


def test_a_setting_that_is_read_and_not_declared_is_found() -> None:
    stream = laws.maker_for(planted.honest, 7).stream(100)
    assert laws.settings(laws.folded(planted.honest, stream), lambda: [planted.Tally(step=2)], "tally_step")
    hiding = laws.folded(lambda: [planted.Tally("undeclared setting")], stream)
    with pytest.raises(AssertionError, match="tally_step"):
        laws.settings(hiding, lambda: [planted.Tally("undeclared setting", step=2)], "tally_step")


def test_a_table_whose_version_is_not_in_its_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tables import partition

    def unversioned(tables: Any, bounds: Any) -> dict[str, Any]:
        return {"tables": sorted(table.name for table in tables)}

    monkeypatch.setattr(partition, "made_of", unversioned)
    with pytest.raises(AssertionError, match="tallies"):
        laws.versions(planted.honest)


def test_a_view_that_nobody_has_names_for_is_told() -> None:
    class Params(msgspec.Struct, frozen=True):
        colour: str

    tally = planted.Tally()
    tally.views = (planted.View("/colours", Params, tally.answer, tally.topics, ""),)
    with pytest.raises(KeyError, match="colour"):
        list(laws.questions([tally]))
