"""Tests of many pairs, and sides of many variables, against those of one: equal to the last bit."""

from __future__ import annotations

import random
from math import inf, nextafter

import numpy as np
import pytest

from tables.drift import sides
from tables.hours import Side
from tables.many_sides import divided
from tables.many_tests import adjusted_all, proportions, rounded_all, students, welches
from tables.two_samples import adjusted, student_p, two_proportions, welch
from tables.variable_states import History, Partial


def test_students_tails_are_bit_for_bit_those_of_one_at_a_time() -> None:
    rng = random.Random(1)
    ts = [rng.gauss(0, 1) * 10.0 ** rng.uniform(-3, 2.5) for _ in range(4_000)] + [0.0, -0.0, inf, -inf, 1e200, 1e-200, 5e-324] * 3
    degrees = [10.0 ** rng.uniform(-0.5, 6) if rng.random() < 0.9 else rng.choice((1.0, 79.9, 80.0, 80.1, 99_999.0, 1e5)) for _ in ts]
    assert students(np.array(ts), np.array(degrees)).tolist() == [student_p(t, df) for t, df in zip(ts, degrees, strict=True)]
    assert len(students(np.array([]), np.array([]))) == 0


def test_two_shares_and_two_means_are_compared_bit_for_bit_as_one_at_a_time() -> None:
    rng = random.Random(2)
    shares, means = [], []
    for _ in range(4_000):
        n1, n2 = (int(30 * 10 ** rng.uniform(0, 4)) for _ in range(2))
        share = rng.choice((0.0, 1.0, rng.random()))
        shares.append((int(share * n1), n1, int(rng.choice((share, rng.random())) * n2), n2))
        mean = rng.random()
        m2s = [rng.choice((0.0, 5e-324, 1e-30, *(n * 10.0 ** rng.uniform(-4, -1) for _ in range(9)))) for n in (n1, n2)]
        means.append((n1, mean, m2s[0], n2, rng.choice((mean, mean + rng.gauss(0, 0.01), mean + rng.gauss(0, 0.05))), m2s[1]))
    assert proportions(*np.array(shares, dtype=np.float64).T).tolist() == [two_proportions(*one)[1] for one in shares]
    ps = welches(*np.array(means, dtype=np.float64).T).tolist()
    assert ps == [welch(*one)[2] for one in means]
    assert len({*ps}) > 1_500 and {0.0, 1.0} <= {*ps}


def test_figures_are_rounded_bit_for_bit_as_one_at_a_time_and_so_at_ties() -> None:
    rng = random.Random(5)
    ties = [(i + 0.5) / 10_000 for i in range(0, 10_000, 7)]
    figures = [
        *ties,
        *(nextafter(x, x + way) for x in ties for way in (-1, 1)),
        *(rng.random() for _ in range(5_000)),
        *(i / 977 for i in range(978)),
        0.0,
        1.0,
    ]
    assert rounded_all(np.array(figures)).tolist() == [round(x, 4) for x in figures]


def test_adjusted_figures_are_bit_for_bit_those_of_the_list() -> None:
    rng = random.Random(3)
    for n in (0, 1, 2, 3, 50, 2_000):
        ps = [rng.choice((0.0, 1.0, 0.5, rng.random(), rng.random() ** 20)) for _ in range(n)]
        assert adjusted_all(np.array(ps)).tolist() == adjusted(ps)


def lives(rng: random.Random) -> tuple[list[Partial], list[History]]:
    """Rows of a variable over some partitions; one of a partition may be missing, or behind the other as a follower may see it."""
    states, histories = [], []
    for home in range(rng.randrange(4)):
        state, history = Partial(home=home), History(home=home)
        for hour in sorted(rng.sample(range(100, 180), rng.randrange(1, 30))):
            for _ in range(rng.choice((0, 1, 2, 9))):
                sums = state.turn(hour) if hour > state.hour else None
                if sums is not None:
                    history.hours.close(state.hour if rng.random() < 0.05 else hour - 1, sums.side(), hour)
                state.add(1.0, rng.random(), rng.choice((0.0, rng.random())), rng.random() < 0.7, None)
                if rng.random() < 0.1:
                    history.hours.late(hour - rng.randrange(1, 60), hour, rng.random(), rng.random(), True)
        if rng.random() < 0.9:
            states.append(state)
        if rng.random() < 0.8:
            histories.append(history)
    return states, histories


@pytest.mark.parametrize("most", [(4 << 20, 20_000), (2_000, 20_000), (4 << 20, 3)])
def test_sides_of_many_variables_are_bit_for_bit_those_of_one_however_they_are_taken_together(most: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tables.many_sides.MOST_BYTES", most[0])
    monkeypatch.setattr("tables.many_sides.MOST_KEYS", most[1])
    rng = random.Random(4)
    found = [lives(rng) for _ in range(300)]
    for start, end in ((120, 143), (150, 173), (170, 250), (0, 10), (100, 100)):
        before, recent = divided(found, start, end)
        for i, (states, histories) in enumerate(found):
            closed = [(history.home, history.hours) for history in histories]
            one = sides(closed, [(state.home, state.hour, state.newest().side()) for state in states if state.count], start, end)
            assert [Side(int(n), int(k), *rest) for n, k, *rest in (before[:, i].tolist(), recent[:, i].tolist())] == list(one)
    assert [part.shape for part in divided([], 1, 2)] == [(6, 0), (6, 0)]
