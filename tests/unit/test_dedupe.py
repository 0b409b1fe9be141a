"""The dedupe window: an id is a duplicate iff it occurred within the last W offsets of its partition, whatever the chunks."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.dedupe import IDS, Chains
from tables.partition import Bounds, Partition, Schema
from tables.trust import Trust

from ..harness import Rec

WINDOW = 128


def record(offset: int, id: str | None, **headers: bytes) -> Rec:
    """A trust observation, or bytes that are no event."""
    data = {"kind": "model", "id": "m", "success": True}
    raw = b"{broken" if id is None else json.dumps({"id": id, "source": "t", "type": "trust.observed.v1", "data": data}).encode()
    return Rec(offset, 1_700_000_000_000, b"k", raw, list(headers.items()))


def partition(window: int = WINDOW) -> Partition:
    made = Partition("judgments", 0, Schema([Trust()]), identity=7, bounds=Bounds(dedupe_window=window))
    made.restored()
    return made


def ids_of(p: Partition) -> dict[tuple[str, ...], tuple[int, bytes]]:
    return {key: (row.applied, IDS.dump(row)) for key, row in p.space(IDS, "").items()}


def stream(seed: int, n: int) -> list[Rec]:
    """Few enough ids that many repeat on both sides of the window's edge; gaps, as control records leave them; broken records."""
    rng = random.Random(seed)
    offset, out = 0, []
    for _ in range(n):
        offset += 1 if rng.random() < 0.9 else rng.choice((2, 5, 70, 200))
        out.append(record(offset, None if rng.random() < 0.15 else f"e{rng.randrange(150)}"))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_are_those_of_a_plain_look_at_the_log(seed: int) -> None:
    records, last, wanted = stream(seed, 1500), {}, 0
    for one in records:
        if one.value != b"{broken":
            id = json.loads(one.value or b"")["id"]
            wanted += id in last and one.offset - last[id] <= WINDOW
            last[id] = one.offset
    p = partition()
    p.absorb(records)
    counters = p.counters()
    assert 100 < counters.duplicate == wanted
    assert counters.folded + counters.duplicate + counters.dead_lettered == len(records)


@pytest.mark.parametrize("chunk", [1, 3, 64, 997])
def test_the_rows_are_the_same_wherever_chunks_end(chunk: int) -> None:
    records = stream(9, 1200)
    whole, parts = partition(), partition()
    whole.absorb(records)
    for begin in range(0, len(records), chunk):
        parts.absorb(records[begin : begin + chunk])
    assert ids_of(parts) == ids_of(whole)
    assert parts.counters() == whole.counters()


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 500])
def test_an_owner_that_restores_the_rows_goes_on_as_the_one_before(cut: int) -> None:
    records = stream(5, 1000)
    whole, before = partition(), partition()
    whole.absorb(records)
    before.absorb(records[:cut])
    for row in before.space(IDS, "").values():
        row.state = IDS.dump(row)  # as it comes from the changelog
    assert before.restored() == records[cut - 1].offset + 1
    before.absorb(records)
    assert ids_of(before) == ids_of(whole)
    assert before.counters() == whole.counters()


def test_a_redriven_record_is_known_by_where_it_comes_from() -> None:
    p = partition()
    p.absorb([record(0, "a"), record(1, "a", redriven=b"judgments/0/5"), record(2, "a", redriven=b"judgments/0/5"), record(3, "a")])
    assert (p.counters().folded, p.counters().duplicate) == (2, 2)


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 6)), min_size=1, max_size=300),
    st.integers(1, 40),
    st.sampled_from([0, 2**31 - 5000, 2**40 + 7]),
    st.booleans(),
)
def test_chains_find_what_occurred_within_the_window(steps: list[tuple[int, int]], size: int, start: int, alone: bool) -> None:
    import numpy as np

    offsets = (start + np.cumsum([step for step, _ in steps])).tolist()
    names = [number for _, number in steps]
    entered: dict[int, bytes] = {}
    chains, found = Chains(WINDOW, lambda offset, digest: entered[offset] == digest), []
    for begin in range(0, len(names), size):
        at = np.array(offsets[begin : begin + size], np.int64)
        digests = np.array([[number % 3, number % 2, 0, number] for number in names[begin : begin + size]], np.uint32)  # some share a slot, or look alike
        if alone and begin % 2:
            fresh: dict[int, bytes] = {}
            for offset, digest in zip(at.tolist(), digests, strict=True):
                found += [offset] if chains.note_one(offset, digest.tobytes(), fresh) else []
                fresh[offset] = digest.tobytes()
        else:
            found += [offsets[begin + index] for index in chains.note(at, digests)]
        entered.update(zip(at.tolist(), map(bytes, digests), strict=True))
    last: dict[int, int] = {}
    wanted = []
    for offset, number in zip(offsets, names, strict=True):
        if number in last and offset - last[number] <= WINDOW:
            wanted.append(offset)
        last[number] = offset
    assert found == wanted
