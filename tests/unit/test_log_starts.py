"""A source topic whose head goes before it was folded: folding goes on behind it, what is missing is counted, and nothing else is."""

from __future__ import annotations

from agents.core import Core, Refusal, Shard
from agents.registry import folds
from tables.partition import Partition, Schema

from ..harness import Log, Rec

START = "2026-03-02T00:00:00Z"


def records() -> list[Rec]:
    """A hundred records of a dollar."""
    log = Log(folds())
    log.send([{"id": f"c{n}", "type": "cost.incurred.v1", "time": START, "data": {"cost": 1}} for n in range(100)])
    return log.records[("costs", 0)]


def owner(log: list[Rec], upto: int) -> tuple[Core, Shard]:
    """An owner that has folded and written so many."""
    core = Core([Partition("costs", 0, Schema(folds()))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, upto, log[:upto])
    flush = core.take(shard)
    assert flush is not None
    core.acked(flush)
    core.committed("costs", 0, upto)
    return core, shard


def alone(log: list[Rec]) -> Partition:
    """What a fold from the start gives."""
    partition = Partition("costs", 0, Schema(folds()))
    partition.absorb(log)
    return partition


def test_an_owner_whose_log_is_beheaded_goes_on_at_its_start_and_counts_what_is_gone() -> None:
    log = records()
    core, shard = owner(log, 40)
    assert isinstance(core.chunk(shard, shard.epoch, 70, 80, log[70:80]), Refusal)
    assert not core.beheaded(shard, 40), "nothing is gone: what lies between was dropped on its way, and is fetched again"
    assert core.beheaded(shard, 70)
    assert (shard.next, shard.safe, shard.n_gone) == (70, 70, 30)
    assert core.chunk(shard, shard.epoch, 70, 80, log[70:80]) == 10
    assert not core.beheaded(shard, 75), "what is folded may go"
    assert shard.n_gone == 30


def test_rows_that_are_not_yet_written_hold_the_safe_offset_back_though_the_log_is_beheaded() -> None:
    log = records()
    core, shard = owner(log, 40)
    core.chunk(shard, shard.epoch, 40, 50, log[40:50])
    assert core.beheaded(shard, 70)
    assert core.committable() == {}
    flush = core.take(shard)
    assert flush is not None
    core.acked(flush)
    assert core.committable() == {("costs", 0): 70}


def test_what_was_committed_may_go_though_no_row_tells_that_it_is_absorbed() -> None:
    """Control records behind the last record, committed by the owner; its heir begins before them, and they are removed before it has fetched them."""
    log = records()
    _, former = owner(log, 40)
    rows = [(key, value) for key, value, _, _ in alone(log[:40]).drain()]
    for committed, start, gone in ((45, 45, 0), (45, 43, 0), (45, 50, 5), (None, 45, 5)):
        core = Core([Partition("costs", 0, Schema(folds()))])
        shard = core.gained("costs", 0, committed=committed, log_start=0, changelog_end=len(rows))
        core.followed(shard, rows, len(rows))
        assert (shard.ready, shard.next) == (True, former.next)
        assert core.beheaded(shard, start)
        assert (shard.next, shard.n_gone) == (start, gone)


def test_a_heir_of_a_beheaded_log_counts_what_is_gone_and_one_that_begins_does_not() -> None:
    log = records()
    core = Core([Partition("costs", 0, Schema(folds()))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, 40, log[:40])
    flush = core.take(shard)
    assert flush is not None
    for committed, log_start, gone in ((40, 70, 30), (40, 40, 0), (40, 10, 0), (42, 42, 0)):  # the last: two control records in between
        heir = Core([Partition("costs", 0, Schema(folds()))])
        gained = heir.gained("costs", 0, committed=committed, log_start=log_start, changelog_end=len(flush.rows))
        heir.followed(gained, flush.rows, len(flush.rows))
        assert (gained.ready, gained.next, gained.n_gone) == (True, max(40, log_start), gone)
    new = Core([Partition("costs", 0, Schema(folds()))])
    begun = new.gained("costs", 0, committed=None, log_start=70, changelog_end=0)
    assert (begun.ready, begun.next, begun.n_gone) == (True, 70, 0)
