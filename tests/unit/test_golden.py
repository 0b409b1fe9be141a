"""Every golden vector of the tables that exist, by pure folds: one and eight partitions, once and doubled."""

from __future__ import annotations

from typing import Any

import pytest

from agents.registry import FOLD_SETTINGS
from tables.fold import Fold

from ..golden_checks import ONE_PARTITION, SETTINGS_OF, VECTORS_HERE, check_vector, folds_for
from ..harness import VECTORS, Log


@pytest.mark.parametrize("doubled", [False, True], ids=["once", "doubled"])
@pytest.mark.parametrize("partitions", [1, 8])
@pytest.mark.parametrize("name", VECTORS_HERE)
def test_a_vector_gives_its_numbers(name: str, partitions: int, doubled: bool) -> None:
    vector: dict[str, Any] = VECTORS[name]
    if partitions > 1 and name in ONE_PARTITION:
        pytest.skip("its figures are per partition")
    if doubled and name == "M3":
        pytest.skip("M3 counts its own duplicates")
    folds: list[Fold] = folds_for(vector)
    log = Log(folds, partitions)
    for event in vector["events"]:
        for _ in range(2 if doubled else 1):
            log.send([event])
    differences = check_vector(vector, lambda path, params: log.get(path, **params), log.alerts, log.dead_letters)
    assert not differences, differences


def test_every_setting_of_a_vector_is_one_of_a_fold() -> None:
    known = {name for struct in FOLD_SETTINGS for name in struct.__struct_fields__} | {"clock_ticks"}
    for name in VECTORS_HERE:
        assert {key.partition(".")[0] for key in VECTORS[name].get("settings", {})} <= known | set(SETTINGS_OF)
