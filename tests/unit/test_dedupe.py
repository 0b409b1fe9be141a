"""The dedupe window: an id is a duplicate iff it occurred within the last W offsets of its partition, whatever the chunks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.dedupe import FEW, FURTHEST, IDS, Chains, digest_of
from tables.partition import Bounds, Partition, Schema
from tables.trust import Trust

from ..harness import Rec

WINDOW = 128


def record(offset: int, id: str | None, tenant: str = "default", **headers: bytes | None) -> Rec:
    """A trust observation, or bytes that are no event."""
    data = {"kind": "model", "id": "m", "success": True}
    raw = b"{broken" if id is None else json.dumps({"id": id, "source": "t", "type": "trust.observed.v1", "tenant": tenant, "data": data}).encode()
    return Rec(offset, 1_700_000_000_000, b"k", raw, list(headers.items()))


def metric(offset: int, id: str, metric_id: str, tenant: str = "default") -> Rec:
    raw = json.dumps({"id": id, "source": "t", "type": "metric.recorded.v1", "tenant": tenant, "data": {"metric_id": metric_id, "value": 1}}).encode()
    return Rec(offset, 1_700_000_000_000, b"k", raw)


def partition(topic: str = "judgments") -> Partition:
    made = Partition(topic, 0, Schema([Trust()]), identity=7, bounds=Bounds(dedupe_window=WINDOW))
    made.restored()
    return made


def restore(p: Partition) -> int:
    """As an owner does it, from the rows as they come from the changelog."""
    for row in p.space(IDS, "").values():
        row.state = IDS.dump(row)
    return p.restored()


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
    assert restore(before) == records[cut - 1].offset + 1
    before.absorb(records)
    assert ids_of(before) == ids_of(whole)
    assert before.counters() == whole.counters()


def test_a_redriven_record_is_known_by_where_it_comes_from() -> None:
    p = partition()
    p.absorb([record(0, "a"), record(1, "a", redriven=b"judgments/0/5"), record(2, "a", redriven=b"judgments/0/5"), record(3, "a")])
    assert (p.counters().folded, p.counters().duplicate) == (2, 2)


@pytest.mark.parametrize("value", [None, b"", b"judgments", b"judgments/0/", b"judgments/0/5\0", b"judgments\0/0/5", b"judgments/0/\xd9\xa5"])
@pytest.mark.parametrize("more", [0, FEW])
def test_what_names_no_record_is_not_redriven(value: bytes | None, more: int) -> None:
    p = partition()
    p.absorb([record(0, "a", redriven=value), record(1, "b", redriven=value), record(2, "a"), *(record(3 + n, f"e{n}") for n in range(more))])
    assert (p.counters().folded, p.counters().duplicate) == (2 + more, 1)


@pytest.mark.parametrize("more", [0, FEW])
def test_tenants_share_no_ids_and_no_metric_ids_and_none_is_taken_for_a_letter(more: int) -> None:
    p = partition()
    p.absorb([record(0, "judgments/0/5", "redriven"), record(1, "a", redriven=b"judgments/0/5"), *(record(2 + n, "e", f"t{n}") for n in range(more))])
    assert (p.counters().folded, p.counters().duplicate) == (2 + more, 0)
    p = partition("training")
    p.absorb([metric(0, "a", "m", "a"), metric(1, "a", "m", "b"), metric(2, "b", "m", "a"), *(metric(3 + n, "e", "m", f"t{n}") for n in range(more))])
    assert (p.counters().folded, p.counters().duplicate) == (2 + more, 1)


@pytest.mark.parametrize("chunk", [FEW, FEW + 1, 300])
def test_ids_whose_tags_and_slots_agree_are_told_apart_by_the_rows(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tables.dedupe.digest_of", lambda name, seed: bytes(8) + digest_of(name, seed)[:8])
    rng, p = random.Random(chunk), partition("training")
    last: dict[tuple[str, str], int] = {}
    wanted = 0
    for begin in range(0, 900, chunk):
        named = [(offset, f"e{rng.randrange(200)}", f"e{rng.randrange(200)}") for offset in range(begin, begin + chunk)]
        for offset, *both in named:
            known = list(zip(("id", "metric_id"), both, strict=True))
            wanted += any(one in last and offset - last[one] <= WINDOW for one in known)
            last.update(dict.fromkeys(known, offset))
        p.absorb([metric(*one) for one in named])
        assert p.counters().duplicate == wanted
        if begin // chunk % 3 == 1:
            assert restore(p) == begin + chunk
    assert 100 < wanted < 800


def test_a_metric_id_twice_in_one_small_chunk_is_a_duplicate() -> None:
    p = partition("training")
    p.absorb([metric(0, "a", "m"), metric(1, "b", "m")])
    assert (p.counters().folded, p.counters().duplicate) == (1, 1)


class Fed:
    """Chains that are fed numbers in place of ids, beside a dictionary that says what they have to find."""

    def __init__(self) -> None:
        self.entered: dict[int, bytes] = {}
        self.last: dict[int, int] = {}
        self.chains = Chains(WINDOW, lambda offset, digest: self.entered[offset] == digest)

    def feed(self, offsets: Sequence[int], numbers: Sequence[int], alone: bool = False) -> int:
        """Enter a chunk, one by one or at once; returns how many were found."""
        digests = np.array([[number % 3, number % 2, 0, number] for number in numbers], np.uint32)  # some share a slot, or look alike
        raw = dict(zip(offsets, map(bytes, digests), strict=True))
        if alone:
            fresh: dict[int, bytes] = {}
            found = []
            for offset, digest in raw.items():
                found += [offset] if self.chains.note_one(offset, digest, fresh) else []
                fresh[offset] = digest
        else:
            found = [offsets[index] for index in self.chains.note(np.array(offsets, np.int64), digests)]
        wanted = []
        for offset, number in zip(offsets, numbers, strict=True):
            if number in self.last and offset - self.last[number] <= WINDOW:
                wanted.append(offset)
            self.last[number] = offset
        assert found == wanted
        self.entered |= raw
        return len(found)


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 6)), min_size=1, max_size=300),
    st.integers(1, 40),
    st.sampled_from([0, 2**31 - 5000, 2**40 + 7]),
    st.booleans(),
)
def test_chains_find_what_occurred_within_the_window(steps: list[tuple[int, int]], size: int, start: int, alone: bool) -> None:
    offsets = (start + np.cumsum([step for step, _ in steps])).tolist()
    numbers = [number for _, number in steps]
    fed = Fed()
    for begin in range(0, len(numbers), size):
        fed.feed(offsets[begin : begin + size], numbers[begin : begin + size], alone and begin % 2 == 1)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("before", [300, 250])  # of chunks of 100, one ends where the base moves, or is on both sides
def test_the_window_survives_the_move_of_its_base(before: int, alone: bool) -> None:
    rng, fed = random.Random(before), Fed()
    for far in (1, 1, 5):
        base = fed.chains.base
        edge = base + far * FURTHEST
        for begin in range(edge - before, edge + 500, 100):
            found = fed.feed(range(begin, begin + 100), [rng.randrange(100) for _ in range(100)], alone)
            assert found > 30 or begin == edge - before
            assert (fed.chains.base > base) == (far > 1 or begin + 100 > edge)


@pytest.mark.parametrize(("names", "repeats"), [(150, 0), (90, 2910)])
def test_a_slice_without_gaps_over_the_end_of_the_ring(names: int, repeats: int) -> None:
    fed = Fed()
    assert sum(fed.feed(range(begin, begin + 100), [i % names for i in range(begin, begin + 100)]) for begin in range(0, 3000, 100)) == repeats
