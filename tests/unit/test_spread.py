"""Which worker gets which partition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.spread import spread

TOPICS = {"costs": 8, "forecasts": 8, "judgments": 8, "training": 8}


def assign(counts: dict[str, int], members: list[str], held: dict[str, set[tuple[str, int]]]) -> dict[str, list[tuple[str, int]]]:
    return spread(counts, {topic: members for topic in counts}, {member: held.get(member, set()) for member in members})


def test_two_workers_share_every_topic() -> None:
    found = assign(TOPICS, ["a", "b"], {})
    assert all(sum(t == topic for t, _ in found[member]) == 4 for member in "ab" for topic in TOPICS)


def test_a_worker_that_comes_takes_half_and_the_other_keeps_what_it_keeps() -> None:
    alone = assign(TOPICS, ["a"], {})
    both = assign(TOPICS, ["a", "b"], {"a": set(alone["a"])})
    assert set(both["a"]) <= set(alone["a"]) and len(both["a"]) == len(both["b"]) == 16
    back = assign(TOPICS, ["b"], {"b": set(both["b"])})
    assert len(back["b"]) == 32


@given(
    counts=st.dictionaries(st.sampled_from("tuvw"), st.integers(1, 13), min_size=1),
    names=st.lists(st.sampled_from("abcdef"), unique=True, min_size=1),
    data=st.data(),
)
def test_each_partition_has_one_owner_topics_are_balanced_and_nothing_moves_without_need(counts: dict[str, int], names: list[str], data: st.DataObject) -> None:
    held: dict[str, set[tuple[str, int]]] = {name: set() for name in "abcdef"}
    for topic, count in counts.items():
        for n in range(count):
            held[data.draw(st.sampled_from("abcdef"))].add((topic, n))
    found = assign(counts, sorted(names), held)
    assert sorted(place for places in found.values() for place in places) == sorted((t, n) for t, count in counts.items() for n in range(count))
    for topic in counts:
        sizes = [sum(t == topic for t, _ in places) for places in found.values()]
        assert max(sizes) - min(sizes) <= 1
    totals = [len(places) for places in found.values()]
    assert max(totals) - min(totals) <= 1
    again = assign(counts, sorted(names), {name: set(places) for name, places in found.items()})
    assert {name: set(places) for name, places in again.items()} == {name: set(places) for name, places in found.items()}
