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


def owner(log: list[Rec], upto: int) -> tuple[Core, Shard, list[tuple[bytes, bytes | None]]]:
    """An owner that has folded and written so many; and the changelog."""
    core = Core([Partition("costs", 0, Schema(folds()))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, upto, log[:upto])
    flush = core.take(shard)
    assert flush is not None
    core.acked(flush)
    core.committed("costs", 0, upto)
    core.followed(shard, flush.rows, len(flush.rows))
    return core, shard, flush.rows


def regained(core: Core, shard: Shard, committed: int | None, log_start: int, changelog: list[tuple[bytes, bytes | None]]) -> None:
    """What the engine does where a log is beheaded."""
    assert core.beheaded(shard, log_start)
    core.gained("costs", 0, committed=committed, log_start=log_start, changelog_end=len(changelog))
    core.followed(shard, changelog[shard.followed :], len(changelog))


def test_an_owner_whose_log_is_beheaded_goes_on_at_its_start_and_counts_what_is_gone() -> None:
    log = records()
    core, shard, changelog = owner(log, 40)
    assert isinstance(core.chunk(shard, shard.epoch, 70, 80, log[70:80]), Refusal)
    assert not core.beheaded(shard, 40), "nothing is gone: what lies between was dropped on its way, and is fetched again"
    regained(core, shard, 40, 70, changelog)
    assert (shard.next, shard.safe, shard.n_gone) == (70, 70, 30)
    assert core.chunk(shard, shard.epoch, 70, 80, log[70:80]) == 10
    assert not core.beheaded(shard, 75), "what is folded may go"
    assert shard.n_gone == 30


def test_rows_that_are_not_yet_written_hold_the_safe_offset_back_though_the_log_is_beheaded() -> None:
    log = records()
    core, shard, changelog = owner(log, 40)
    core.chunk(shard, shard.epoch, 40, 50, log[40:50])
    regained(core, shard, 40, 70, changelog)
    assert (shard.next, shard.n_gone, core.committable()) == (70, 20, {})
    flush = core.take(shard)
    assert flush is not None
    core.acked(flush)
    assert core.committable() == {("costs", 0): 70}


def test_what_was_committed_may_go_though_no_row_tells_that_it_is_absorbed() -> None:
    """Control records behind the last record, committed by the owner; its heir begins before them, and they are removed before it has fetched them."""
    log = records()
    _, former, rows = owner(log, 40)
    for committed, start, gone in ((45, 45, 0), (45, 43, 0), (45, 50, 5), (None, 45, 5)):
        core = Core([Partition("costs", 0, Schema(folds()))])
        shard = core.gained("costs", 0, committed=committed, log_start=0, changelog_end=len(rows))
        core.followed(shard, rows, len(rows))
        assert (shard.ready, shard.next) == (True, former.next)
        regained(core, shard, committed, start, rows)
        assert (shard.next, shard.n_gone) == (start, gone)


def test_an_owner_that_slept_through_its_loss_does_not_pass_over_what_its_heir_has_folded() -> None:
    log = records()
    core, sleeper, before = owner(log, 40)
    _, _, since = owner(log, 72)
    regained(core, sleeper, 72, 70, [*before, *since])
    assert (sleeper.next, sleeper.n_gone) == (72, 0)
    core.chunk(sleeper, sleeper.epoch, 70, 100, log[70:])
    found, expected = sleeper.partition, Partition("costs", 0, Schema(folds()))
    expected.absorb(log)
    for table in expected.schema.tables:
        spaces = {tenant: {key: table.dump(row) for key, row in rows.items()} for tenant, rows in expected.spaces[table.index].items()}
        assert {tenant: {key: table.dump(row) for key, row in rows.items()} for tenant, rows in found.spaces[table.index].items()} == spaces


def test_rows_that_were_read_back_before_their_ack_failed_may_be_committed() -> None:
    log = records()
    core = Core([Partition("costs", 0, Schema(folds()))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, 5, log[:5])
    flush = core.take(shard)
    assert flush is not None and not flush.outputs
    core.followed(shard, flush.rows, len(flush.rows))
    core.failed(flush)
    assert core.take(shard) is None and core.committable() == {("costs", 0): 5}, "nothing is left to be written: nothing else would move it"


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
