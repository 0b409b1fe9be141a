"""Bounded buckets of facts and of those who wait: what gives way when they are full, against the rule said plainly, on random streams.

The buckets know their oldest time so as not to be looked through for each event; here everything is looked through each time.
"""

from __future__ import annotations

from random import Random

import pytest

from tables.facts import FACT, MOST, Facts
from tables.fold import Fold
from tables.partition import Partition, Schema
from tables.performance_rows import EARLY, EARLY_TIMED, MOST_CHARACTERS, MOST_PENDING, MOST_WAITING, OPEN, Pending, PendingRoom, Waiting, WaitingRoom
from tables.remembered import bucket_of, digest_of
from tables.trust_verdicts import TASKS_A_BUCKET, WAITING_A_BUCKET, WITHIN_US, Verdicts
from tables.trust_verdicts import Waiting as Judgment

DAY = 1000
"""How long things are remembered here."""


def moments(rng: Random, slow: bool, steps: int) -> list[tuple[int, int]]:
    """(event time, moment) of records: time goes on, so slowly that full buckets have nothing that is over, or so that they have; some come late."""
    now, found = 0, []
    for _ in range(steps):
        now += rng.randrange(3 if slow else 40)
        found.append((now - rng.choice((0, 0, 0, rng.randrange(2 * DAY))), now))
    return found


@pytest.mark.parametrize("slow", [True, False])
def test_a_full_bucket_of_facts_forgets_what_is_over_or_else_the_oldest(slow: bool) -> None:
    rng = Random(7)
    facts, plain = Facts(), list[tuple[bytes, int, int]]()
    replaced = dropped = swept = 0
    for time_us, now in moments(rng, slow, 3000):
        name, value, since = rng.randrange(300 if slow else 100_000).to_bytes(8, "little"), rng.randrange(1000), now - DAY
        known = [(t, v) for n, t, v in plain if n == name]
        assert facts.find(name, since) == (known[0] if known and known[0][0] > since else None)
        facts.put(name, time_us, value, since, *((facts.place(name),) if rng.random() < 0.5 else ()))
        if known:
            replaced += 1
            plain = [(n, time_us, value) if n == name else (n, t, v) for n, t, v in plain]
            continue
        if len(plain) >= MOST:
            alive = [fact for fact in plain if fact[1] > since]
            swept += len(alive) < MOST
            dropped += len(alive) == MOST
            plain = alive[1:] if len(alive) >= MOST else alive
        plain.append((name, time_us, value))
        assert list(FACT.iter_unpack(facts.entries)) == plain
    assert (replaced and dropped) if slow else swept


def size_of(one: Waiting) -> int:
    return len(one.agent) + len(one.task_type) + len(one.model_version)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("long", [True, False])
def test_a_full_room_lets_go_who_is_over_then_completions_then_starts(slow: bool, long: bool) -> None:
    rng = Random(8)
    room, plain = WaitingRoom(), list[Waiting]()
    left = swept = 0
    for number, (time_us, now) in enumerate(moments(rng, slow, 2000)):
        since, state = now - DAY, rng.choice((OPEN, OPEN, EARLY, EARLY_TIMED) if number % 400 < 200 else (OPEN,))
        one = Waiting(number.to_bytes(8, "little"), b"task", time_us, "a" * rng.randrange(1, 900 if long else 9), "t", "", state)
        room.add(one, since)
        if len(plain) >= MOST_WAITING or sum(map(size_of, plain)) + size_of(one) > MOST_CHARACTERS:
            alive = [other for other in plain if other.time_us > since]
            swept += len(alive) < len(plain)
            plain = alive
            while plain and (len(plain) >= MOST_WAITING or sum(map(size_of, plain)) + size_of(one) > MOST_CHARACTERS):
                early = [other for other in plain if other.state >= EARLY]
                plain.remove((early or plain)[0])
                left += 1
        plain.append(one)
        if rng.random() < 0.2:
            gone = rng.choice(plain)
            plain.remove(gone)
            room.remove(gone)
        assert room.entries == plain
        assert room.characters == sum(map(size_of, plain))
    assert left if slow or long else swept


@pytest.mark.parametrize("slow", [True, False])
def test_a_full_room_of_verdicts_lets_go_who_is_over_or_else_the_oldest(slow: bool) -> None:
    rng = Random(9)
    room, plain = PendingRoom(), list[Pending]()
    for time_us, now in moments(rng, slow, 1500):
        since, one = now - DAY, Pending(b"task", time_us, "judge", True, rng.random())
        room.add(one, since)
        if len(plain) >= MOST_PENDING:
            alive = [other for other in plain if other.time_us > since]
            plain = alive[1:] if len(alive) >= MOST_PENDING else alive
        plain.append(one)
        assert room.entries == plain


def test_the_judgments_that_wait_in_a_bucket_are_counted_right() -> None:
    rng = Random(10)
    sharing = dict[tuple[str], list[str]]()
    for n in range(400_000):  # tasks of one bucket, more than it holds
        found = sharing.setdefault(bucket_of(digest_of("", f"t{n}")), [])
        found.append(f"t{n}")
        if len(found) == TASKS_A_BUCKET + 8:
            break
    verdicts, fold = Verdicts(rank=1, settings=None), Fold()
    fold.tables = (verdicts.table,)
    p = Partition("judgments", 0, Schema([fold]))
    most = 0
    for n in range(6000):
        p.offset, p.time_us = n, n * WITHIN_US // 500 + rng.randrange(WITHIN_US)
        task = rng.choice(found)
        if rng.random() < 0.8:
            verdicts.judged(p, "t", None, task, Judgment("j", True, p.time_us, str(n)))
        else:
            verdicts.evaluated(p, "t", None, task, True)
        (row,) = p.space(verdicts.table, "t").values()
        bucket = verdicts.table.load(row)
        assert bucket.n_waiting == sum(len(one.waiting) for one in bucket.tasks.values()) <= WAITING_A_BUCKET
        most = max(most, bucket.n_waiting)
    assert most == WAITING_A_BUCKET
