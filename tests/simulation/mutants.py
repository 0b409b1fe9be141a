"""Planted bugs: each breaks one rule of the core (or of its shell); the simulation must find every one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from agents.beside import Beside
from agents.core import NOT_YET, Core, Flush, Refusal, Served, Shard
from tables.rows import Row


class SkipsVersionCheck(Core):
    """Takes any followed row, older ones too."""

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        taken = list(records)
        for key, value in taken:
            if value is not None:
                for space in shard.partition.spaces:
                    for rows in space.values():
                        for row in rows.values():
                            from tables.rows import wire_key

                            for table in shard.partition.schema.tables:
                                if (
                                    rows is shard.partition.spaces[table.index].get(row.tenant)
                                    and wire_key(shard.partition.schema.wires[table.index], row.tenant, row.key) == key
                                ):
                                    row.applied = row.logged = -1
        return super().followed(shard, taken, position)


class CommitsBeforeRows(Core):
    """The safe offset moves as soon as a chunk is folded."""

    def chunk(self, shard: Shard, epoch: int, start: int, end: int, records: Sequence[Any]) -> int | Refusal | None:
        found = super().chunk(shard, epoch, start, end, records)
        if isinstance(found, int):
            shard.safe = shard.next
        return found


class HearsOldOwnersAcks(Core):
    """An ack of an earlier ownership moves the safe offset."""

    def acked(self, flush: Flush) -> None:
        flush.epoch = flush.shard.epoch
        super().acked(flush)
        if flush.shard.owned:
            flush.shard.safe = max(flush.upto, flush.shard.safe or 0)


class NoChainCheck(Core):
    """Believes every chunk, wherever it starts."""

    def chunk(self, shard: Shard, epoch: int, start: int, end: int, records: Sequence[Any]) -> int | Refusal | None:
        return super().chunk(shard, epoch, min(start, shard.next), end, records)


class NoRepair(Core):
    """Does not write a newer row again after a stale one."""

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        before = [set(marks) for marks in shard.partition.dirty]
        found = super().followed(shard, records, position)
        for index, row in list(shard.regressed):
            if row not in before[index]:
                shard.partition.dirty[index].discard(row)
        shard.regressed.clear()
        return found


class ForgetsFailedRows(Core):
    """A failed flush is taken for done."""

    def failed(self, flush: Flush) -> None:
        self.acked(flush)


class WritesSourcesFirst(Core):
    """Rows leave in reverse order: what is read before its readers."""

    def take(self, shard: Shard) -> Flush | None:
        flush = super().take(shard)
        if flush is not None:
            flush.rows.reverse()
        return flush


class DropsOutputsOfALoss(Core):
    """Outputs that were not acknowledged when the partition was lost are forgotten, their rows are not."""

    def _renounce(self, shard: Shard) -> None:
        super()._renounce(shard)
        shard.partition.outputs.clear()


class TombstonesAtOnce(Core):
    """A tombstone does not wait until its grave is durable."""

    def overdue(self, shard: Shard) -> list[tuple[int, Row]]:
        return [(index, row) for (index, _, _), row in shard.partition.graves.items()]


class ForgetsClearings(Core):
    """A row from before a clearing that is written late lives again."""

    def _resurrected(self, shard: Shard, index: int, row: Row) -> None:
        shard.partition.space(shard.partition.schema.tables[index], row.tenant)[row.key] = row


class LetsTombstonesWin(Core):
    """A late tombstone over a newer row is not repaired."""

    def _tombstone(self, shard: Shard, index: int, tenant: str, key: tuple[str, ...]) -> None:
        row = shard.partition.spaces[index].get(tenant, {}).get(key)
        was = (index, row) in shard.regressed
        super()._tombstone(shard, index, tenant, key)
        if row is not None and not was:
            shard.regressed.discard((index, row))
            shard.partition.dirty[index].discard(row)


class FoldsWhatWasCleared(Core):
    """After a crash records from before a clearing are folded into what the crash left of its rows."""

    def _maybe_ready(self, shard: Shard) -> None:
        super()._maybe_ready(shard)
        shard.partition._passed.clear()


class DoesNotWaitForTheRestore(Core):
    """Folds before the follower has reached the changelog's end."""

    def _maybe_ready(self, shard: Shard) -> None:
        if shard.goal is not None:
            shard.goal = 0
        super()._maybe_ready(shard)


class WritesTwoFlushesAtOnce(Core):
    """A flush does not wait for the one before."""

    def take(self, shard: Shard) -> Flush | None:
        shard.flushing = None
        return super().take(shard)


class TakesOutputsForPublished(Core):
    """After a gain the outputs of some records behind the committed offset are taken for published."""

    def gained(self, topic: str, number: int, **known: Any) -> Shard:
        shard = super().gained(topic, number, **known)
        shard.publish_from += 8
        return shard


class WritesIdsFirst(Core):
    """The dedupe window's rows, which every other row reads, leave before them."""

    def take(self, shard: Shard) -> Flush | None:
        flush = super().take(shard)
        if flush is not None:
            flush.rows.sort(key=lambda row: not row[0].startswith(b"ids."))
        return flush


class AcksWhatCameLater(Core):
    """An ack makes everything folded until then durable, not what was in the flush."""

    def acked(self, flush: Flush) -> None:
        super().acked(flush)
        if flush.shard.safe is not None:
            flush.shard.safe = flush.shard.next


class BelievesOwnRows(Core):
    """A row of a key that this worker has written is taken for its own, whoever wrote it."""

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        return super().followed(shard, [(key, value) for key, value in records if key not in shard.written], position)


class ForgetsFailedOutputs(Core):
    """Of a failed flush the rows are written again, the outputs are not."""

    def failed(self, flush: Flush) -> None:
        flush.outputs.clear()
        super().failed(flush)


class FollowsToTheFormerEnd(Core):
    """Who was stopped beyond the lag while it read a changelog reads it to where it ended before."""

    def follow_to(self, shard: Shard, changelog_end: int) -> None:
        """Nothing."""


class NeverAsksAgain(Core):
    """A chunk that was dropped at the end of the log is not missed."""

    def idle(self, shard: Shard, position: int) -> Refusal | None:
        return None


class GainsWithoutTheWindow(Core):
    """After a gain nothing is known of the ids that were seen before."""

    def _maybe_ready(self, shard: Shard) -> None:
        was = shard.ready
        super()._maybe_ready(shard)
        if shard.ready and not was:
            shard.partition.window.forget()


class GainsWithoutRepair(Core):
    """What was found overwritten before the gain is not written again after it."""

    def _maybe_ready(self, shard: Shard) -> None:
        if not shard.ready:
            shard.regressed.clear()
        super()._maybe_ready(shard)


class TakesSentForWritten(Core):
    """A row is taken for durable when it is sent."""

    def take(self, shard: Shard) -> Flush | None:
        flush = super().take(shard)
        for _, row, applied in flush.marks if flush is not None else ():
            row.logged = applied
        return flush


class WritesRowsBeforeOutputs(Core):
    """Outputs leave one flush later than the rows that follow from the same events."""

    def take(self, shard: Shard) -> Flush | None:
        flush = super().take(shard)
        if flush is not None and flush.rows:
            shard.partition.outputs[:0] = flush.outputs
            flush.outputs = []
        return flush


class IsSafeWhileWriting(Core):
    """A followed row makes everything folded safe, though a flush is under way."""

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        found = super().followed(shard, records, position)
        if shard.ready:
            shard.safe = shard.next
        return found


class ForgetsRowsOfALoss(Core):
    """Rows that were on their way when the partition was lost are not written again when it comes back."""

    def _renounce(self, shard: Shard) -> None:
        shard.flushing = None
        super()._renounce(shard)


class RegainsAtOnce(Core):
    """A partition that comes back is folded on at once: what another has written meanwhile is not waited for."""

    def gained(self, topic: str, number: int, **known: Any) -> Shard:
        shard = self.shards[(topic, number)]
        if shard.epoch > 0:
            known["changelog_end"] = shard.followed
        return super().gained(topic, number, **known)


class LosesAllAtOnce(Core):
    """Where one partition is revoked the others are given up too, though the group leaves them here."""

    def lost(self, topic: str, number: int) -> None:
        for shard in self.shards.values():
            self._renounce(shard)


class NeverCommitsWhatWasReadBack(Core):
    """Where an ack fails of rows that were read back meanwhile, nothing makes them safe."""

    def failed(self, flush: Flush) -> None:
        safe = flush.shard.safe
        super().failed(flush)
        if flush.epoch == flush.shard.epoch:
            flush.shard.safe = safe


class PassesOverWhatIsGone(Core):
    """Where the log is beheaded folding goes on behind it at once: an owner that slept through its loss passes over what its heir has folded."""

    def beheaded(self, shard: Shard, log_start: int) -> bool:
        if super().beheaded(shard, log_start):
            shard.n_gone += log_start - shard.next
            shard.next = shard.log_start = log_start
        return False


class CountsWhatWasCommittedAsGone(Core):
    """Control records that were committed, and removed since, are told to be gone."""

    def gained(self, topic: str, number: int, **known: Any) -> Shard:
        committed = known.pop("committed")
        shard = super().gained(topic, number, committed=None, **known)
        shard.committed = committed
        return shard


class TakesRowsOfAnotherTopic(Core):
    """Rows that were made of a deleted topic of the same name are taken for rows of the present one."""

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        by_wire, identity = shard.partition.schema.by_wire, shard.partition.identity.to_bytes(4, "big")
        return super().followed(
            shard,
            [(key, value and value[:8] + identity + value[12:] if key.split(b"|")[0].decode() in by_wire else value) for key, value in records],
            position,
        )


class KeepsNothingOfWhatItTold(Core):
    """What tables that are built would have told of alerts is not written, so a crash forgets it."""

    def take(self, shard: Shard) -> Flush | None:
        shard.untold = set()
        return super().take(shard)


class TellsNothingAfterASwap(Core):
    """Tables that were swapped put out no more than while they were built."""

    def serve(self, shard: Shard, former: Shard) -> None:
        super().serve(shard, former)
        shard.publish_from = NOT_YET


class ForgetsThatItCompared(Core):
    """That what stands differently was told is only known by tombstones, behind which a late write brings the mark back."""

    def comparing(self, shard: Shard) -> list[tuple[bytes, bytes | None]]:
        return [(key, None) for key, _ in super().comparing(shard)]

    def compared(self, shard: Shard) -> None:
        super().compared(shard)
        shard.compared = -1


class TakesAnyTold(Core):
    """Of two messages of an alert the one that was written later is taken, though it was said of an earlier record."""

    def _told(self, shard: Shard, alert: bytes, value: bytes | None) -> None:
        before = shard.told_at.get(alert, -2)
        shard.told_at[alert] = -2
        super()._told(shard, alert, value)
        if shard.told_at.get(alert) == -2:
            shard.told_at[alert] = before


class BuildsAhead(Beside):
    """Tables are built beyond what is durable of those that serve."""

    def bound(self, shard: Shard) -> int:
        return NOT_YET


class WaitsForTheFormer(Beside):
    """Tables that another owner has swapped and folded on are waited with until the former rows are as far, which is never."""

    def level(self) -> bool:
        assert self.former is not None
        return super().level() and all(
            shard.next == self.former.shards[name].next for name, shard in self.building.shards.items() if self.former.shards[name].owned
        )


class HeedsNoDecision(Beside):
    """A worker that is told that the new tables serve goes on with the former ones."""

    def heed(self, served: Served | None) -> bool:
        return False


SWAPPED = (KeepsNothingOfWhatItTold, TellsNothingAfterASwap, ForgetsThatItCompared, TakesAnyTold)
"""Planted in what the core does of a rebuild."""
BESIDE = (BuildsAhead, WaitsForTheFormer, HeedsNoDecision)
"""Planted in what decides of a rebuild."""
MUTANTS = (
    SkipsVersionCheck,
    CommitsBeforeRows,
    HearsOldOwnersAcks,
    NoChainCheck,
    NoRepair,
    ForgetsFailedRows,
    WritesSourcesFirst,
    DropsOutputsOfALoss,
    TombstonesAtOnce,
    ForgetsClearings,
    LetsTombstonesWin,
    FoldsWhatWasCleared,
    DoesNotWaitForTheRestore,
    WritesTwoFlushesAtOnce,
    TakesOutputsForPublished,
    WritesIdsFirst,
    AcksWhatCameLater,
    BelievesOwnRows,
    ForgetsFailedOutputs,
    FollowsToTheFormerEnd,
    NeverAsksAgain,
    GainsWithoutTheWindow,
    GainsWithoutRepair,
    TakesSentForWritten,
    WritesRowsBeforeOutputs,
    IsSafeWhileWriting,
    ForgetsRowsOfALoss,
    RegainsAtOnce,
    LosesAllAtOnce,
    NeverCommitsWhatWasReadBack,
    PassesOverWhatIsGone,
    CountsWhatWasCommittedAsGone,
    TakesRowsOfAnotherTopic,
)
"""Planted in the core."""
ALL = range(1000)
REBUILDS = range(3, 10_000, 10)
"""Seeds of a thousand schedules with a changed setting."""


class Planted(NamedTuple):
    """A planted bug.

    Attributes:
        seeds: among which it must be found.
        where: arguments of `schedules.first_failure`.
    """

    name: str
    told: str
    seeds: range
    where: dict[str, Any]


def planted() -> list[Planted]:
    """All of them."""
    found = [Planted(bug.__name__, bug.__doc__ or "", ALL, {"core_type": bug}) for bug in MUTANTS]
    found += [Planted(bug.__name__, bug.__doc__ or "", REBUILDS, {"core_type": bug}) for bug in SWAPPED]
    found += [Planted(bug.__name__, bug.__doc__ or "", REBUILDS, {"beside_type": bug}) for bug in BESIDE]
    found.append(Planted("(broken seek)", "A seek does nothing.", ALL, {"broken_seek": True}))
    found.append(Planted("(folds on)", "Who was stopped beyond the lag while it folded goes on.", range(1000, 2000), {"folds_on": True}))
    return [*found, Planted("(no lag)", "The brokers compact rows that are younger than the lag of the changelog.", ALL, {"no_lag": True})]
