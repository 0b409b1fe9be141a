"""Bounded buckets of facts and of those who wait: what gives way when they are full, against the rule said plainly, on random streams.

The buckets know their oldest time so as not to be looked through for each event; here everything is looked through each time.
"""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from tables.facts import FACT, MOST, Facts
from tables.fold import Fold
from tables.partition import Partition, Schema
from tables.remembered import bucket_of, digest_of
from tables.rooms import (
    EARLY,
    EARLY_TIMED,
    MOST_CHARACTERS,
    MOST_EARLY,
    MOST_PENDING,
    MOST_WAITING,
    OPEN,
    TAKEN,
    Pending,
    PendingRoom,
    Waiting,
    WaitingRoom,
)
from tables.trust_verdicts import TASKS_A_BUCKET, WAITING_A_BUCKET, WITHIN_US, Judged, TaskBucket, Verdicts

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
    return len(one.agent) + len(one.task_type) + len(one.model_version) + 2


def full(there: list[Waiting], one: Waiting) -> bool:
    early = sum(other.state >= EARLY for other in there)
    characters = sum(map(size_of, there)) + size_of(one)
    return len(there) >= MOST_WAITING or characters > MOST_CHARACTERS or (one.state >= EARLY and early >= MOST_EARLY)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("long", [True, False])
def test_a_full_room_lets_go_who_is_over_then_completions_then_starts(slow: bool, long: bool) -> None:
    rng = Random(8)
    room, plain = WaitingRoom(), list[Waiting]()
    left = swept = taken = met = 0
    for number, (time_us, now) in enumerate(moments(rng, slow, 3000)):
        since, state = now - DAY, rng.choice((OPEN, OPEN, EARLY, EARLY_TIMED) if number % 400 < 200 else (OPEN,))
        task = rng.randrange(40).to_bytes(8, "little")
        one = Waiting(number.to_bytes(8, "little"), task, time_us, state, "ä" * rng.randrange(1, 300 if long else 9), "t", "")
        room.add(one, since)
        if full(plain, one):
            alive = [other for other in plain if other.time_us > since]
            swept += len(alive) < len(plain)
            plain = alive
            while plain and full(plain, one):
                early = [other for other in plain if other.state >= EARLY]
                plain.remove((early or plain)[0])
                left += 1
        plain.append(one)
        open_ = [other for other in plain if other.task == task and other.state == OPEN and other.time_us > since]
        place = room.only_open(task, since)
        assert (place >= 0) == (len(open_) == 1)
        if place >= 0 and rng.random() < 0.3:
            at = plain.index(open_[0])
            plain[at] = room.take(place)
            assert plain[at] == open_[0]._replace(state=TAKEN)
            taken += 1
        if rng.random() < 0.3:
            gone = rng.choice(plain)
            place = room.of_execution(gone.execution, since)
            assert (place >= 0) == (gone.time_us > since)
            if place >= 0:
                assert room.out(place) == gone
                plain.remove(gone)
                met += 1
        assert room.of_execution(b"\xff" * 8, since) == -1
        assert [room.at(place) for place in range(len(room.names))] == plain
        assert room.characters == sum(map(size_of, plain))
        assert room.early == sum(other.state >= EARLY for other in plain)
        assert room.open_names(since) == ["\0".join(other[4:]) for other in plain if other.state == OPEN and other.time_us > since]
    assert met and taken and (left if slow or long else swept)


def test_a_digest_that_stands_across_two_fields_is_nobody() -> None:
    room = WaitingRoom()
    room.add(Waiting(b"abcdefgh", b"ijklmnop", 1, OPEN, "a", "", ""), 0)
    assert [room.of_execution(name, 0) for name in (b"abcdefgh", b"efghijkl", b"ijklmnop")] == [0, -1, -1]
    assert [room.only_open(name, 0) for name in (b"abcdefgh", b"efghijkl", b"ijklmnop")] == [-1, -1, 0]


@pytest.mark.parametrize("slow", [True, False])
def test_a_full_room_of_verdicts_lets_go_who_is_over_or_else_the_oldest(slow: bool) -> None:
    rng = Random(9)
    room, plain = PendingRoom(), list[Pending]()
    met = 0
    for time_us, now in moments(rng, slow, 3000):
        task, since = rng.randrange(200).to_bytes(8, "little"), now - DAY
        one = Pending(task, time_us, rng.random() < 0.5, rng.random(), f"j{rng.randrange(9)}")
        room.add(one, since)
        if len(plain) >= MOST_PENDING:
            alive = [other for other in plain if other.time_us > since]
            plain = alive[1:] if len(alive) >= MOST_PENDING else alive
        plain.append(one)
        assert room.everybody() == plain
        if rng.random() < 0.1:
            task = rng.choice(plain).task
            found = room.evaluated(task, since)
            assert found == [other for other in plain if other.task == task and other.time_us > since]
            plain = [other for other in plain if other.task != task and other.time_us > since]
            assert room.everybody() == plain
            met += len(found)
    assert met


def test_judgments_of_a_full_bucket_wait_and_give_way_as_its_rule_says() -> None:
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
    tasks, waiting = dict[str, tuple[int, bool] | None](), list[tuple[str, Judged]]()
    given_way = met = 0
    for n in range(6000):
        p.offset, p.time_us = n, n * WITHIN_US // 500 + rng.randrange(WITHIN_US)
        task, now, passed = rng.choice(found), p.time_us, rng.random() < 0.5
        if task not in tasks and len(tasks) == TASKS_A_BUCKET:
            oldest = next(iter(tasks))
            given_way += any(other == oldest for other, _ in waiting)
            waiting = [one for one in waiting if one[0] != oldest]
            del tasks[oldest]
        known = tasks.setdefault(task, None)
        if rng.random() < 0.8:
            one = Judged(f"j{n % 3}", passed, now, str(n))
            outcome = known[1] if known is not None and abs(now - known[0]) <= WITHIN_US else None
            assert verdicts.judged(p, "t", None, task, one) == outcome
            if outcome is None:
                waiting = [*waiting[len(waiting) + 1 - WAITING_A_BUCKET if len(waiting) >= WAITING_A_BUCKET else 0 :], (task, one)]
        else:
            mine = [one for other, one in waiting if other == task and abs(one.time_us - now) <= WITHIN_US]
            assert verdicts.evaluated(p, "t", None, task, passed) == mine
            met += len(mine)
            waiting = [(other, one) for other, one in waiting if other != task or one.time_us > now + WITHIN_US]
            if known is None or now >= known[0]:
                tasks[task] = now, passed
        (row,) = p.space(verdicts.table, "t").values()
        bucket = verdicts.table.load(row)
        assert len(bucket.names) == len(waiting) and len(bucket.tasks) == 25 * len(tasks)
        for name in found:
            assert bucket.of_task(digest_of("", name)) == [one for other, one in waiting if other == name]
    assert given_way and met and len(waiting) > 5


def test_rooms_full_of_names_of_the_greatest_length_stay_under_64_kib() -> None:
    wide = "\U0001f40d" * 256
    bucket, waiting, pending = TaskBucket(), WaitingRoom(), PendingRoom()
    for n in range(100):
        digest = n.to_bytes(16, "little")
        bucket.place(digest)
        for says in (True, False):
            bucket.wait(digest, Judged(wide, says, n, wide))
        waiting.add(Waiting(digest[:8], digest[8:], n, OPEN, wide, wide, wide), -1)
        pending.add(Pending(digest[:8], n, True, 0.5, wide), -1)
    held, sizes = list(map(len, (bucket.names, waiting.names, pending.judges))), [len(msgspec.msgpack.encode(room)) for room in (bucket, waiting, pending)]
    assert held == [WAITING_A_BUCKET, MOST_CHARACTERS // (3 * 256 + 2), MOST_PENDING]
    assert max(sizes) < 64 << 10
