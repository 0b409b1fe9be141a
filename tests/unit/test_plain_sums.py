"""Sums of doubles that are the same on every Python."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tables.agent_alerts import Watch, recount
from tables.learning_figures import total_of
from tables.moments import plain_sum


@pytest.mark.parametrize("seed", range(50))
def test_sums_are_rounded_at_every_step_whatever_pythons_own_does(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.choice((0.1, 1e16, -1e16, rng.gauss(0, 1), -0.0)) for _ in range(rng.randrange(200))]
    total = 0.0
    for x in values:
        total += x
    assert plain_sum(values).hex() == plain_sum(iter(values)).hex() == total.hex()
    assert total_of(np.array(values, np.float64)).hex() == total.hex()
    assert plain_sum([0.1] * 10) == 0.9999999999999999


def test_what_a_row_keeps_of_an_agents_quality_is_such_a_sum() -> None:
    class Ring:
        def recent(self) -> list[tuple[bool, float, float]]:
            return [(True, 0.1, 1.0)] * 10

        def before(self) -> list[tuple[bool, float, float]]:
            return [(True, 0.1, 1.0)] * 20

    state = Watch()
    recount(state, Ring())  # type: ignore[arg-type]  # as much of a ring as is read
    assert (state.quality, state.quality_before) == (0.9999999999999999, 2.0000000000000004)
