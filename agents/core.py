"""The engine's bookkeeping as a sans-I/O core: what is folded, written, published, committed, repaired.

Inputs come in as method calls (gained, followed, chunk, acked, failed, lost), what is to be done comes back as values
(`Flush`, `Refusal`, offsets to commit). No clock, no socket, no coroutine, so a simulator can run it through any schedule.

The rules this file keeps, for one source partition s and its changelog partition:

1. **Outputs before rows before offsets.** A flush carries the outputs and then the rows of everything absorbed since the
   last one; the safe offset moves when both are acknowledged. One flush of s at a time, so rows stay in rank order.
2. **The higher applied wins.** A followed row replaces ours only if its version is higher, whoever wrote it.
3. **Rows say where to go on**, not the committed offset: after a gain folding continues behind the last record that every
   row has absorbed. So a commit that ran ahead of the rows, or a seek that did nothing, cannot lose an update. The
   committed offset tells which outputs are known to be on the log, so a rebuild publishes nothing twice.
4. **Restore before fold.** After a gain the follower must have reached the changelog's end, read after the assignment.
5. **Chain.** A chunk covers the fetch positions [start, end). It is refused unless start <= next; then next = end. What is
   dropped between fetch and fold is fetched again.
6. **Epochs.** Results of an earlier ownership (acks, chunks) change nothing of the present one.
7. **Repair.** A row appended after a newer one of its key (a zombie's late write) would win compaction; the owner writes
   the newer one again.
8. **Tombstones last.** A cleared row is written as a grave first, a row like any other. Its tombstone follows when the grave and
   everything below is durable, so nothing that it would be needed for is folded again. What is written late over a tombstone,
   or a tombstone over a newer row, is repaired as in 7.
9. **Generations apart.** What a partition's rows are made with (`Schema.made_of`) is written before its first row. Where only that
   of other generations is found, the partition does not become ready, unless this worker was told to rebuild.
10. **Built beside, swapped at once.** Which generation serves is one record for the whole app (`Served`). Another is built by a core of its
   own that folds from the log's start what the serving one has made durable, and puts nothing out: what it would have told of alerts is
   kept as rows (`Shard.told`), outputs before rows as in 1, and of two the higher offset wins as in 2. When every partition is built
   the record changes; an owner then begins where the former one stopped, and first tells, once, which alerts stand differently.
11. Memory stays one consistent state through a loss: unacknowledged rows and outputs are kept, and either the next owner
   writes the same, or they are written on regaining.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from streams.errors import TopicProblem
from tables.dedupe import IDS
from tables.partition import CLEARED, COUNTERS, GRAVE, HEAD, OWN, Output, Partition, Record, Schema
from tables.rows import Row, parse_wire_key, wire_key

SCHEMA = "schema"
"""First part of the changelog key of what a generation is made of; the second is the generation."""
SERVED = b"served|"
"""Changelog key of the record that says which generation serves; in partition 0 of the first source topic's changelog."""
TOLD, BUILT, SCORES = "told", "built", "scores"
"""What a generation that is being built would have said of an alert; how far it is built where no row can tell; that its scores are to be published.
Followed by ``.GENERATION``."""
MARK = b""
"""In the place of an alert, while there is something to compare: that there is, at offset -1; then that it is done, at which offset."""
AT = struct.Struct(">q")
"""Head of what is kept of an alert: the offset of the record of which it was said."""
NOT_YET = 1 << 62
"""An offset beyond all."""
MOST_TOMBSTONES = 20_000
"""In one flush."""


class Served(msgspec.Struct, frozen=True):
    """Which generation serves.

    Attributes:
        n: number of the decision; a later one wins over an earlier one that is written late.
        generation: it is folded, asked, and puts out.
        former: the one before it, set when the swap is made: rows of all others are then ended. None while another is being built.
        ended: why `former`, which was being built, cannot be built to its end; None of every other decision.
    """

    n: int
    generation: str
    former: str | None = None
    ended: str | None = None


_served = msgspec.json.Decoder(Served).decode


@dataclass(slots=True, eq=False)
class Flush:
    """What one partition has to write: first `outputs`, then `rows`; answered by `Core.acked` or `Core.failed`.

    Attributes:
        rows: changelog (key, value) in rank order; they go to the changelog partition of the same number. The last may be
            tombstones, with a value of None.
        graves: what those are of.
        upto: every record below this offset is in these rows or earlier ones.
    """

    shard: Shard
    epoch: int
    outputs: list[Output]
    rows: list[tuple[bytes, bytes | None]]
    marks: list[tuple[int, Row, int]]
    upto: int
    graves: list[tuple[int, Row]] = field(default_factory=list)
    told: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A chunk that does not continue where folding stopped: fetch again from `seek`."""

    seek: int


class WrongIdentity(Exception):
    """Rows were made from another topic of the same name (deleted and created again): offsets mean something else.

    Args:
        topic: the source topic, without prefix.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic

    def told(self, full: str, changelog: str) -> TopicProblem:
        """The same as a sentence with the way out, given the full names of the topic and its changelog."""
        return TopicProblem(
            f"{full}: the tables were made from another topic of this name (it was deleted and created again); start with a new app_id, "
            f"or delete {changelog} and run pulsefold topics create: the tables are then rebuilt from the topic as it is now"
        )


class Shard:
    """Bookkeeping of one source partition.

    Attributes:
        owned, ready: assigned to this worker; restored, so chunks may be folded.
        next: offset expected next.
        safe: every record below it is durable in rows and outputs; None until something is known.
        committed: what the group's offset is known to be.
        publish_from: outputs of records below it are on the log already.
        alerts_from: alerts of records below it may be, put out by the former rows; what stands is compared there.
        followed: next changelog offset the follower will read.
        goal: changelog end that must be followed before folding.
        entombed: graves whose tombstones were written and not met by the follower yet.
        generations: what is on the changelog, by generation: what its rows are made with, JSON.
        written: rows of ours that the follower has not met yet, by changelog key.
        n_gone: offsets that the source topic removed before they were folded; the rows lack them for ever. What was committed is in the
            rows, or was no record: that may be gone.
        building: its rows are made beside those that serve; nothing is put out.
        headless: they cannot be made: the log no longer has its start.
        told: alert id -> what a generation said of it while it was built, until an owner has told what differs; empty otherwise.
        told_at: offset of the record of which it was said, -1 for the mark that it is to be compared.
        compared: offset at which an owner has told what differs, -1 where that is not done.
        stands: alert id -> newest message of what stands by the rows here, followed by an owner after a swap (`agents.standings`); None elsewhere.
        n_alerts: messages of alerts that were put out.
        scores_due: scores that follow from the rows here are to be published, whether they changed or not, since others serve than before.
        built: records below this are in the rows of the generation that is being built, as its builder says.
        foreign: generation -> its rows as they are on the changelog, where `Core.gather` asks for them.
        late: generation -> what came behind a newer row of its key, to be repaired as in rule 7.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.epoch = 0
        self.owned = False
        self.ready = False
        self.next = 0
        self.safe: int | None = None
        self.committed: int | None = None
        self.publish_from = 0
        self.alerts_from = 0
        self.log_start = 0
        self.followed = 0
        self.goal: int | None = None
        self.flushing: Flush | None = None
        self.waiting: tuple[int, int, int] | None = None
        self.regressed: set[tuple[int, Row]] = set()
        self.generations: dict[str, bytes] = {}
        self.entombed: set[tuple[int, Row]] = set()
        self.written: dict[bytes, tuple[int, Row]] = {}
        self.n_stale = 0
        self.n_repaired = 0
        self.n_refused = 0
        self.n_gone = 0
        self.n_rows = 0
        self.n_followed = 0
        self.building = False
        self.headless = False
        self.told: dict[bytes, bytes] = {}
        self.told_at: dict[bytes, int] = {}
        self.untold: set[bytes] = set()
        self.compared = -1
        self.stands: dict[bytes, bytes] | None = None
        self.n_alerts = 0
        self.scores_due = False
        self.built = 0
        self.foreign: dict[str, dict[bytes, bytes]] = {}
        self.late: dict[str, dict[bytes, bytes | None]] = {}

    @property
    def name(self) -> tuple[str, int]:
        """Source topic without prefix, and partition."""
        return self.partition.topic, self.partition.number

    def dirty(self) -> bool:
        """Something absorbed is not yet durable."""
        return bool(self.partition.outputs) or any(self.partition.dirty)

    def absorbed(self) -> int:
        """Offset up to which (exclusive) the rows here have absorbed the partition, as far as rows can tell."""
        if self.ready:
            return self.next
        return max(self.logged() + 1, self.built)

    def logged(self) -> int:
        """Offset of the newest record whose ids, the rows that are written last, were met on the changelog; -1 before the first."""
        return max((row.logged for row in self.partition.spaces[IDS.index].get("", {}).values()), default=-1)

    def keep(self, generation: str, key: bytes, value: bytes | None) -> None:
        """Note a row of another generation; an older one that comes late, or a tombstone over what is no grave, does not replace a newer one."""
        rows, late = self.foreign.setdefault(generation, {}), self.late.setdefault(generation, {})
        held = rows.get(key)
        if value is None and (held is None or len(held) <= HEAD.size):
            rows.pop(key, None)
            late.pop(key, None)
        elif value is None or (held is not None and len(value) >= HEAD.size and HEAD.unpack_from(value)[0] < HEAD.unpack_from(held)[0]):
            late[key] = value
        else:
            rows[key] = value
            late.pop(key, None)


def _place(found: tuple[int, Row]) -> tuple[int, str, tuple[str, ...]]:
    index, row = found
    return index, row.tenant, row.key


class Core:
    """The core of one worker over all source partitions that it serves.

    Args:
        rebuild: fold a partition whose rows are all of other generations from its start.

    Attributes:
        gather: keep the rows of other generations, in `Shard.foreign`.
        served: which generation serves; None where that was never in question.
        outdated: an earlier decision was written after it, and would win compaction.
    """

    def __init__(self, partitions: Iterable[Partition], *, rebuild: bool = False) -> None:
        self.rebuild = rebuild
        self.gather = False
        self.served: Served | None = None
        self.outdated = False
        self.shards: dict[tuple[str, int], Shard] = {(p.topic, p.number): Shard(p) for p in partitions}

    def gathered(self) -> None:
        """What was to be gathered is read. Of generations that were ended a late write may have left rows, which nothing else tells of."""
        self.gather = False
        for shard in self.shards.values():
            for generation, rows in shard.foreign.items():
                if rows and self.served is not None:
                    shard.generations.setdefault(generation, b"{}")
            shard.foreign, shard.late = {}, {}

    # ---- ownership

    def gained(self, topic: str, number: int, *, committed: int | None, log_start: int, changelog_end: int, building: bool = False) -> Shard:
        """The partition is ours from now on.

        Args:
            building: to be made beside the rows that serve.
            committed: the group's offset, None if it never committed.
            log_start: oldest offset that the source topic keeps.
            changelog_end: end of the changelog partition, read **after** the assignment.
        """
        shard = self.shards[(topic, number)]
        self._renounce(shard)
        shard.owned = True
        shard.committed = committed
        shard.building = building
        shard.publish_from = NOT_YET if building else committed or 0
        shard.alerts_from = 0
        shard.log_start = log_start
        shard.goal = changelog_end
        self._maybe_ready(shard)
        return shard

    def follow_to(self, shard: Shard, changelog_end: int) -> None:
        """It takes long to follow the changelog to where it ended at the gain: it is followed to where it ends now."""
        if shard.goal is not None:
            shard.goal = max(shard.goal, changelog_end)

    def lost(self, topic: str, number: int) -> None:
        """The partition is not ours any more; its rows stay, as a replica."""
        shard = self.shards.get((topic, number))
        if shard is not None:
            self._renounce(shard)

    def _renounce(self, shard: Shard) -> None:
        shard.epoch += 1
        if shard.flushing is not None:
            self._put_back(shard.flushing)
        shard.flushing = None
        shard.owned = shard.ready = False
        shard.safe = None
        shard.goal = None
        shard.written = {}
        shard.entombed = set()
        shard.stands = None
        shard.partition.window.forget()

    def differs(self, shard: Shard) -> bool:
        """Whether the partition's rows are all of other generations, and this worker may not rebuild them.

        Where ours is known to serve they are being built beside it, and the partition had nothing to fold yet.
        """
        mine = shard.partition.schema.generation
        if not shard.generations or self.rebuild or mine in shard.generations:
            return False
        return self.served is None or self.served.generation != mine

    def _maybe_ready(self, shard: Shard) -> None:
        if not shard.owned or shard.ready or shard.goal is None or shard.followed < shard.goal or self.differs(shard):
            return
        partition = shard.partition
        shard.next = partition.restored()
        if shard.building:
            shard.next = max(shard.next, shard.built)
            shard.headless = shard.log_start > shard.next
            if shard.headless:
                return
        if not shard.told and self._begins(shard):
            self._tell(shard, MARK, b"{}", -1)  # there may be alerts of the former rows, and none of these
        known = max(shard.publish_from, shard.logged() + 1)
        partition.outputs = [out for out in partition.outputs if out.offset >= known]
        if shard.log_start > shard.next:
            passed = max(shard.next, shard.committed or 0)  # where nothing was folded yet, this is a new deployment on a topic of some age
            shard.n_gone += max(0, shard.log_start - passed) if passed else 0
            shard.next = shard.log_start
        shard.regressed = {(index, row) for index, row in shard.regressed if partition.current(index, row)}
        for index, row in sorted(shard.regressed, key=_place):
            partition.dirty[index].add(row)
        shard.n_repaired += len(shard.regressed)
        shard.ready = True
        shard.safe = None if shard.dirty() else shard.next

    def _begins(self, shard: Shard) -> bool:
        """Whether nothing is known of what these rows would have told: they are being built, or serve before anything was built of the partition.

        It had no records then, and the former rows may have taken some in before they gave way.
        """
        mine = shard.partition.schema.generation
        if shard.compared >= 0:
            return False
        if self.served is None or self.served.generation != mine:
            return shard.building
        return self.served.former is not None and mine not in shard.generations

    # ---- folding

    def chunk(self, shard: Shard, epoch: int, start: int, end: int, records: Iterable[Record]) -> int | Refusal | None:
        """Fold what was fetched from the positions [start, end).

        Returns the number of records that were new, `Refusal` where the chunk does not continue, None where it belongs to
        an earlier ownership, or was fetched before a swap after which is first to be told what stands differently.
        """
        if epoch != shard.epoch or not shard.ready or self.differing(shard):
            return None
        if start > shard.next:
            shard.n_refused += 1
            return Refusal(shard.next)
        partition = shard.partition
        if end <= shard.next:
            return 0
        bar = max(shard.publish_from, shard.alerts_from) if shard.told else shard.publish_from
        if shard.told and shard.next < bar < end:  # what stands differently is told before anything new
            end = bar
            records = [record for record in records if record.offset < end]
        before = len(partition.outputs)
        new = partition.absorb(records)
        if bar > shard.next and len(partition.outputs) > before:
            fresh = partition.outputs[before:]
            partition.outputs[before:] = [out for out in fresh if out.offset >= (bar if out.topic == "alerts" else shard.publish_from)]
            for out in fresh if shard.told else ():
                if out.topic == "alerts" and out.offset < bar and out.key is not None and out.value is not None:
                    self._tell(shard, out.key, out.value, out.offset)
        for out in partition.outputs[before:]:
            if out.topic == "alerts":
                shard.n_alerts += 1
                if shard.stands is not None and out.key is not None and out.value is not None:
                    shard.stands[out.key] = out.value
        shard.next = end
        if not shard.dirty() and shard.flushing is None:
            shard.safe = end  # only control records, or records absorbed before
        return new

    def _tell(self, shard: Shard, alert: bytes, message: bytes, offset: int) -> None:
        shard.told[alert] = message
        shard.told_at[alert] = offset
        shard.untold.add(alert)

    def differing(self, shard: Shard) -> bool:
        """Whether what stands differently is to be told now, by the owner, who folds nothing new before."""
        return bool(shard.told) and shard.ready and not shard.building and shard.next >= max(shard.publish_from, shard.alerts_from)

    def trails(self, shard: Shard) -> bool:
        """Whether rows of a former owner, which landed after the gain, are ahead of what is folded here."""
        return shard.ready and shard.logged() >= shard.next

    def comparing(self, shard: Shard) -> list[tuple[bytes, bytes | None]]:
        """What is to be written, in this order, when what stands differently is told: that it is, then the end of what was kept for it."""
        generation = shard.partition.schema.generation
        done = told_key(generation, MARK), AT.pack(shard.next) + b"{}"
        return [done, *((told_key(generation, alert), None) for alert in shard.told if alert != MARK)]

    def compared(self, shard: Shard) -> None:
        """That is written."""
        shard.compared = shard.next
        shard.told, shard.told_at, shard.untold = {}, {}, set()

    def serve(self, shard: Shard, former: Shard) -> None:
        """Go on in the place of the former rows, which the same owner has folded and written up to where this shard is built.

        It may be further: another owner has swapped already, and folded on. What that one put out was on the log before its rows.
        """
        if not (shard.ready and former.ready and shard.next >= former.next):
            raise ValueError("a shard takes over where it is built as far as the former one was folded")
        shard.building = False
        shard.committed, shard.publish_from = former.committed, max(former.next, former.committed or 0)

    def idle(self, shard: Shard, position: int) -> Refusal | None:
        """Asked now and then with the fetch position: fetch again if what lies between it and `next` does not arrive.

        A chunk that was dropped on its way is noticed by the next one's start; this is for the last one of the log. Asked
        twice with nothing moved in between, the chunk is taken for lost; if it arrives after all, it is passed over.
        """
        if not shard.ready or position <= shard.next:
            shard.waiting = None
            return None
        seen = shard.epoch, shard.next, position
        if shard.waiting != seen:
            shard.waiting = seen
            return None
        shard.waiting = None
        shard.n_refused += 1
        return Refusal(shard.next)

    def beheaded(self, shard: Shard, log_start: int) -> bool:
        """Asked where chunks are refused, with the log's start as it is now: what is not there any more cannot be fetched again.

        True where the partition must be gained once more, with all that is asked for on a gain asked anew. Folding then goes on behind
        what is gone, but not before the changelog is followed: this owner may have slept through its loss, and what is gone may have
        been folded by another; rows that lack it would have the higher versions.
        """
        return shard.ready and log_start > shard.next

    # ---- flushing

    def take(self, shard: Shard) -> Flush | None:
        """Everything of the partition that is to be written now; None where there is nothing, or a flush is under way."""
        partition = shard.partition
        if not shard.ready or not partition.whole or shard.flushing is not None:
            return None
        graves = self.overdue(shard) if partition.graves else []
        if not graves and not shard.dirty():
            return None
        told, shard.untold = shard.untold, set()
        outputs, partition.outputs = partition.outputs, []
        rows: list[tuple[bytes, bytes | None]] = []
        marks, written = [], shard.written
        for key, value, row, index in partition.drain():
            rows.append((key, value))
            marks.append((index, row, row.applied))
            written[key] = index, row
        schema = partition.schema
        if rows and schema.generation not in shard.generations:
            rows.insert(0, (wire_key(SCHEMA, schema.generation, ()), record_of(schema)))
        rows[:0] = [(told_key(schema.generation, alert), AT.pack(shard.told_at[alert]) + shard.told[alert]) for alert in sorted(told) if alert in shard.told]
        if MARK in told and shard.compared >= 0:
            rows.insert(0, (told_key(schema.generation, MARK), AT.pack(shard.compared) + b"{}"))
        rows += [(wire_key(schema.wires[index], row.tenant, row.key), None) for index, row in graves]
        shard.entombed.update(graves)
        shard.flushing = Flush(shard, shard.epoch, outputs, rows, marks, shard.next, graves, told)
        return shard.flushing

    def overdue(self, shard: Shard) -> list[tuple[int, Row]]:
        """Graves whose tombstones may be written: they and everything below are durable."""
        partition, safe, found = shard.partition, shard.safe or 0, []
        for (index, tenant, key), row in list(partition.graves.items()):
            if partition.alive(index, tenant, key):
                del partition.graves[(index, tenant, key)]  # its row is newer, and will be written
            elif row.applied < safe and row not in partition.dirty[index] and (index, row) not in shard.entombed:
                found.append((index, row))
        return found[:MOST_TOMBSTONES]

    def acked(self, flush: Flush) -> None:
        """Outputs and rows of the flush are durable."""
        shard = flush.shard
        if flush.epoch != shard.epoch:
            return
        shard.flushing = None
        shard.n_rows += len(flush.rows)
        if flush.rows:
            schema = shard.partition.schema
            if schema.generation not in shard.generations:
                shard.generations[schema.generation] = record_of(schema)
        shard.safe = shard.next if not shard.dirty() else flush.upto

    def failed(self, flush: Flush) -> None:
        """The flush may be on the log in part or not at all: everything of it is written again, in rank order."""
        if flush.epoch == flush.shard.epoch:
            self._put_back(flush)
            flush.shard.entombed.difference_update(flush.graves)
            flush.shard.flushing = None
            if not flush.shard.dirty():
                flush.shard.safe = flush.shard.next  # only its ack failed: all of it was read back meanwhile

    def _put_back(self, flush: Flush) -> None:
        partition = flush.shard.partition
        partition.outputs[:0] = flush.outputs
        flush.shard.untold |= {alert for alert in flush.told if alert in flush.shard.told or (alert == MARK and flush.shard.compared >= 0)}
        for index, row, applied in flush.marks:
            if (applied > row.logged or (index, row) in flush.shard.regressed) and partition.current(index, row):
                partition.dirty[index].add(row)

    def committable(self) -> dict[tuple[str, int], int]:
        """Offsets that may be committed: outputs and rows below them are durable."""
        return {key: shard.safe for key, shard in self.shards.items() if shard.owned and shard.safe is not None and shard.safe > (shard.committed or 0)}

    def committed(self, topic: str, number: int, offset: int) -> None:
        """The group's offset is known to be this."""
        shard = self.shards.get((topic, number))
        if shard is not None and shard.owned:
            shard.committed = offset

    # ---- following the changelog

    def followed(self, shard: Shard, records: Iterable[tuple[bytes, bytes | None]], position: int) -> list[tuple[int, Row]]:
        """Rows read from the changelog, in its order; returns those that changed here as (table index, row).

        Args:
            records: (key, value); a value of None is a tombstone.
            position: changelog offset behind the last of them (it passes control records).

        Raises:
            WrongIdentity: the rows belong to another incarnation of the source topic.
        """
        partition = shard.partition
        by_wire = partition.schema.by_wire
        spaces, unpack, identity = partition.spaces, HEAD.unpack_from, partition.identity
        changed = []
        n = 0
        written = shard.written
        for key, value in records:
            n += 1
            mine = written.pop(key, None) if written else None
            if mine is not None and value is not None:
                index, row = mine
                version, made_of = unpack(value)
                if version == row.applied > row.logged and made_of == identity and not shard.regressed:
                    row.logged = version  # our own row comes back, and is still the newest
                    partition.dirty[index].discard(row)
                    continue
                if row.logged < version < row.applied and made_of == identity and not shard.regressed:
                    row.logged = version
                    continue
            wire, tenant, parts = parse_wire_key(key)
            table = by_wire.get(wire)
            if table is None:  # rows of another generation, or what one is made of
                if wire == SCHEMA and value is not None:
                    shard.generations[tenant] = value
                elif wire == SCHEMA:
                    shard.generations.pop(tenant, None)
                elif key == SERVED:
                    self._decided(value)
                else:
                    self._noted(shard, wire, parts, key, value)
                continue
            if value is None:
                self._tombstone(shard, table.index, tenant, parts)
                continue
            version, made_of = unpack(value)
            if made_of != identity and made_of and identity:
                raise WrongIdentity(partition.topic)
            index = table.index
            space = spaces[index].get(tenant)
            if space is None:
                space = spaces[index][tenant] = {}
            row = space.get(parts)  # type: ignore[assignment]  # None is looked at in the next line
            if row is None and (index, tenant, parts) in partition.graves:
                if self._at_grave(shard, partition.graves[(index, tenant, parts)], index, version, value):
                    changed.append((index, space[parts]))
                continue
            if row is None:
                if len(value) == HEAD.size:
                    self._buried(shard, index, Row(tenant, parts, version, version, GRAVE))
                    continue
                row = table.enter(space, tenant, parts, version, version, value[12:])
                if version <= partition.cleared_at(tenant) and table not in OWN:
                    self._resurrected(shard, index, row)
                    continue
                changed.append((index, row))
                if partition.watched:
                    partition.mark(index, (row,))
                if table is CLEARED:
                    self._cleared(shard, row)
                if shard.ready:
                    self._overtaken(shard, index)
                continue
            if version < row.logged:
                self._stale(shard, index, row)
                continue
            if shard.regressed:
                shard.regressed.discard((index, row))
            row.logged = version
            if version >= row.applied:
                partition.dirty[index].discard(row)
                if partition.watched:
                    partition.mark(index, (row,))
                if version > row.applied:
                    row.applied = version
                    row.state = value[12:]
                    if len(value) == HEAD.size:
                        del space[parts]
                        self._buried(shard, index, Row(tenant, parts, version, version, GRAVE))
                        continue
                    changed.append((index, row))
                    if table is CLEARED:
                        self._cleared(shard, row)
                    if shard.ready:
                        self._overtaken(shard, index)
        shard.n_followed += n
        shard.followed = max(shard.followed, position)
        self._maybe_ready(shard)
        if shard.ready and shard.flushing is None and not shard.dirty():
            shard.safe = shard.next  # another worker's rows made ours durable
        return changed

    def _decided(self, value: bytes | None) -> None:
        """The record of which generation serves was read."""
        found = None if value is None else _served(value)
        if found is None or (self.served is not None and found.n < self.served.n):
            self.outdated = self.served is not None
        else:
            self.served, self.outdated = found, False

    def _noted(self, shard: Shard, wire: str, parts: tuple[str, ...], key: bytes, value: bytes | None) -> None:
        """What is on the changelog besides our rows."""
        kind, _, generation = wire.rpartition(".")
        if generation != shard.partition.schema.generation:
            if self.gather:
                shard.keep(generation, key, value)
            elif value is not None:
                shard.generations.setdefault(generation, b"{}")  # a zombie's, from before a swap
        elif kind == TOLD:
            self._told(shard, parts[0].encode(), value)
        elif kind == BUILT and value is not None:
            shard.built = max(shard.built, int(value))
        elif kind == SCORES and not shard.ready:
            shard.scores_due = value is not None

    def _told(self, shard: Shard, alert: bytes, value: bytes | None) -> None:
        """What a generation said of an alert while it was built was read: of two, that of the higher offset is right, as with rows."""
        if value is None:
            if not shard.ready:
                shard.told.pop(alert, None)
                shard.untold.discard(alert)
                shard.compared = -1 if alert == MARK else shard.compared  # its rows were ended, or never were
            return
        (offset,), message = AT.unpack_from(value), value[AT.size :]
        if alert == MARK and offset >= 0:
            shard.compared = max(shard.compared, offset)
            shard.told, shard.told_at, shard.untold = {}, {}, set()
        elif shard.compared >= 0:  # a late write, which would win compaction
            shard.untold |= {MARK} & {alert}
        elif alert not in shard.told or offset > shard.told_at[alert]:
            shard.told[alert], shard.told_at[alert] = message, offset
            shard.untold.discard(alert)
        elif offset < shard.told_at[alert]:
            shard.untold.add(alert)

    def _buried(self, shard: Shard, index: int, grave: Row) -> None:
        """Another worker has cleared a row."""
        shard.partition.graves[(index, grave.tenant, grave.key)] = grave
        if shard.ready:
            shard.partition.pass_over(grave)

    def _at_grave(self, shard: Shard, grave: Row, index: int, version: int, value: bytes) -> bool:
        """A row of a key in its grave was read; True where it is a new one."""
        partition = shard.partition
        if version < grave.logged:
            self._stale(shard, index, grave)
            return False
        shard.regressed.discard((index, grave))
        grave.logged = version
        if version < grave.applied:
            return False
        partition.dirty[index].discard(grave)
        if len(value) == HEAD.size:
            grave.applied = version
            self._buried(shard, index, grave)
            return False
        if version == grave.applied:
            return False
        if version <= partition.cleared_at(grave.tenant):  # a zombie's, from between two clearings
            grave.applied = partition.cleared_at(grave.tenant)
            self._stale(shard, index, grave)
            return False
        del partition.graves[(index, grave.tenant, grave.key)]
        row = Row(grave.tenant, grave.key, version, version, value[HEAD.size :])
        partition.space(partition.schema.tables[index], grave.tenant)[grave.key] = row
        partition.mark(index, (row,))
        return True

    def _tombstone(self, shard: Shard, index: int, tenant: str, key: tuple[str, ...]) -> None:
        """A tombstone was read: of a grave, or a late one over a row that is newer."""
        partition = shard.partition
        grave = partition.graves.get((index, tenant, key))
        if grave is not None and grave.logged >= grave.applied:  # else it is the tombstone of an earlier grave
            del partition.graves[(index, tenant, key)]
            partition.dirty[index].discard(grave)
            shard.regressed.discard((index, grave))
            shard.entombed.discard((index, grave))
        row = partition.spaces[index].get(tenant, {}).get(key)
        if row is not None and row.logged >= 0:
            self._stale(shard, index, row)

    def _stale(self, shard: Shard, index: int, row: Row) -> None:
        """What is last on the changelog is older than this row: its owner writes it again."""
        shard.n_stale += 1
        shard.regressed.add((index, row))
        if shard.ready:
            shard.partition.dirty[index].add(row)
            shard.n_repaired += 1

    def _resurrected(self, shard: Shard, index: int, row: Row) -> None:
        """A row from before its tenant was cleared is on the changelog, behind its tombstone or without one."""
        partition = shard.partition
        del partition.spaces[index][row.tenant][row.key]
        grave = partition.bury(index, row, partition.cleared_at(row.tenant))
        if not shard.ready:
            partition.dirty[index].discard(grave)
        self._stale(shard, index, grave)

    def _cleared(self, shard: Shard, cleared: Row) -> None:
        """A tenant was cleared: rows from before that are here can only be a zombie's."""
        partition, at = shard.partition, shard.partition.cleared_at(cleared.tenant)
        if shard.ready:
            partition.pass_over(cleared)
        for table in partition.schema.tables:
            if table in OWN:
                continue
            for row in [row for row in partition.spaces[table.index].get(cleared.tenant, {}).values() if row.applied <= at]:
                shard.regressed.discard((table.index, row))
                self._resurrected(shard, table.index, row)

    def _overtaken(self, shard: Shard, index: int) -> None:
        """Another worker's row is ahead of the owner: it still writes, or wrote before it lost the partition."""
        if index == IDS.index:
            shard.partition.window.restore()


def record_of(schema: Schema) -> bytes:
    """What is written of a generation: what it is a digest of, and the settings that it can be made again with."""
    return msgspec.json.encode({**schema.made_of, "given": schema.given})


def scores_key(generation: str) -> bytes:
    """Changelog key of what says that a generation's scores are to be published."""
    return wire_key(f"{SCORES}.{generation}", "", ())


def told_key(generation: str, alert: bytes) -> bytes:
    """Changelog key of what a generation that is built says of an alert."""
    return wire_key(f"{TOLD}.{generation}", "", (alert.decode(),))


__all__ = ["COUNTERS", "Core", "Flush", "Refusal", "Served", "Shard", "WrongIdentity"]
