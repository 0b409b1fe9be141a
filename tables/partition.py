"""One source partition folded into rows: the deterministic heart, without any I/O.

The rules this file keeps:
  * a record changes a row only if its offset is above the row's ``applied``, so redelivery after a crash changes nothing;
  * every record is exactly one of folded, duplicate, dead-lettered, and is counted once;
  * rows leave in rank order, **readers before what they read**: counters (which read every outcome) first, the ids of the
    dedupe window (which every row reads) last. A crash leaves a prefix of that order in the changelog, so a reader is
    ahead of its source, never behind.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from streams.codec import Batch, InvalidEvent, decode, decode_all
from streams.derive import dead_letter_headers
from streams.events import UPCASTS, ClockTicked, MetricRecorded, TenantCleared, newest, upcast

from .dedupe import IDS, SLICE, Window, known_by, metric_known_by
from .fold import Absorbed, Fold, Refused
from .rows import Row, S, Table, wire_key
from .times import all_to_us

if TYPE_CHECKING:
    from datetime import datetime

    from streams.events import Event

    from .fold import RunHandler

HEAD = struct.Struct(">qI")
"""Head of a changelog value: ``applied``, then the identity of the source topic."""


class Record(Protocol):
    """What is read of a Kafka record; aiokafka's ``ConsumerRecord`` is one."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class Logged:
    """A `Record` that did not come by aiokafka: of the archive, of a recorded history.

    Attributes:
        timestamp: Kafka's, milliseconds.
    """

    offset: int
    timestamp: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    key: bytes | None = None


@dataclass(slots=True)
class Output:
    """A record to publish before the rows that follow from the same event.

    Attributes:
        topic: without prefix.
        partition: explicit, or None for murmur2 of the key.
        offset: of the record that caused it.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    offset: int = -1


class Counters(msgspec.Struct, array_like=True):
    """What became of a partition's records. In = folded + duplicate + dead_lettered, always."""

    folded: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    late: int = 0
    expired: int = 0
    overflow: int = 0
    reasons: dict[str, int] = {}
    """Dead letters by reason."""
    skipped: dict[str, int] = {}
    """Folded records that changed no table, by reason."""
    types: dict[str, int] = {}
    """Folded records by event type."""
    minutes: dict[int, int] = {}
    """Dead letters of the newest three minutes that had any, by the minute (since the epoch) of their Kafka timestamp."""
    last_letter: tuple[int, int] = (-1, 0)
    """Offset and Kafka timestamp, milliseconds, of the last dead letter."""


class Watermark(msgspec.Struct, array_like=True):
    """Greatest event time of a tenant absorbed in a partition, microseconds since the epoch."""

    time_us: int = -(2**62)


class Cleared(msgspec.Struct, array_like=True):
    """Offset of the record by which everything of a tenant was cleared here last."""

    offset: int = -1


_headers = attrgetter("headers")


def _applied(row: Row) -> int:
    return row.applied


def _event_or_none(record: Record, odd: dict[int, InvalidEvent | None]) -> Event | None:
    try:
        return decode(record.value)
    except InvalidEvent as bad:
        odd[record.offset] = bad
        return None


def _times(events: Sequence[Any], batch: Batch | None, kafka_times: Sequence[int]) -> list[int]:
    """Event times in microseconds; the record's Kafka timestamp where an event has none."""
    moments = [None if event is None else event.time for event in events] if batch is None else batch.moments
    if all(moments):
        return all_to_us(cast("Sequence[datetime]", moments))
    told = [moment for moment in moments if moment is not None]
    found = all_to_us(told)
    of_told = iter(found)
    return [kafka_ms * 1000 if moment is None else next(of_told) for moment, kafka_ms in zip(moments, kafka_times, strict=True)]


def _no_table(event: Event, p: Partition) -> None:
    p.skip("no_table")


def _in_time(event: Event, p: Partition) -> None:
    if event.data.until.timestamp() * 1000 > p.timestamp():  # type: ignore[attr-defined]  # dispatched by type
        raise Refused("time_in_future", "until: after the record's Kafka timestamp")


def _cleared(event: Event, p: Partition) -> None:
    if event.derivedfrom is not None and event.data.scope == "all":  # type: ignore[attr-defined]  # dispatched by type
        p.clear(event.tenant)


def _upcasting(handler: Callable[[Event, Partition], None]) -> Callable[[Event, Partition], None]:
    return lambda event, p: handler(upcast(event), p)


NO_TABLE = (_no_table,)
IN_FUTURE = InvalidEvent("time_in_future", "time: more than max_future after the record's Kafka timestamp", "time")
COUNTERS = Table("counters", Counters, rank=0)
WATERMARK = Table("watermark", Watermark, rank=90)
CLEARED = Table("cleared", Cleared, rank=98)
"""Behind every row that a clearing buries, before the ids: where it is on the changelog, all of them are."""
OWN = (COUNTERS, WATERMARK, IDS, CLEARED)
"""The partition's own tables, which no clearing touches."""
MOST_MARKS = 100_000
"""Changed rows of a table that are marked for the lists made of them; beyond it those lists are made anew."""
GRAVE = b""
"""State of a row that was cleared and whose tombstone is not on the changelog yet."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of absorbing that are settings.

    Attributes:
        max_future_us: how far an event's time may lie after the record's Kafka timestamp.
        dedupe_window: offsets within which a repeated id is a duplicate; a multiple of 64.
    """

    max_future_us: int = 3_600_000_000
    dedupe_window: int = 65_536


def made_of(tables: Sequence[Table[Any]], bounds: Bounds) -> dict[str, dict[str, Any]]:
    """Versions of tables and values of settings that rows follow from."""
    settings: dict[str, Any] = {"max_future_s": bounds.max_future_us / 1e6, "dedupe_window": bounds.dedupe_window}
    for table in tables:
        for name, value in msgspec.to_builtins(table.settings).items() if table.settings is not None else ():
            if settings.setdefault(name, value) != value:
                settings[f"{table.name}.{name}"] = value
    return {"tables": {table.name: table.version for table in tables}, "settings": settings}


class Schema:
    """The tables and handlers of all folds, indexed once.

    Rows of one schema are never mixed with those of another: a row that is folded anew and one that is not cannot read each other.
    So the digest of all versions, settings and bounds, the generation, is part of every row's name on the changelog.

    Args:
        folds: in the order in which they see an event; one that may refuse a type comes first for it.
        bounds: limits of absorbing.
        generation: its name on the changelog, where it was given one by a worker that wrote equal values otherwise (1 for 1.0).
        given: the folds' settings by name, from which they can be made again.

    Attributes:
        made_of: what the generation is a digest of: ``{"tables": {name: version}, "settings": {name: value}}``.
        wires: name of each table's rows on the changelog, ``NAME.VERSION.GENERATION``.
        homes: table -> source topics whose partitions have its rows.
    """

    def __init__(self, folds: Sequence[Fold], bounds: Bounds | None = None, generation: str | None = None, given: Mapping[str, Any] | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.folds = list(folds)
        # ours first: they are shared by every schema, so their place must not depend on the folds
        self.tables: list[Table[Any]] = [*OWN, *(t for f in folds for t in f.tables)]
        self.by_wire: dict[str, Table[Any]] = {}
        self.made_of = made_of(self.tables, self.bounds)
        self.given = {"max_future_s": self.bounds.max_future_us / 1e6, "dedupe_window": self.bounds.dedupe_window, **(given or {})}
        self.generation = generation or hashlib.sha256(msgspec.json.encode(self.made_of, order="sorted")).hexdigest()[:8]
        self.wires = [f"{table.name}.{table.version}.{self.generation}" for table in self.tables]
        for index, (table, wire) in enumerate(zip(self.tables, self.wires, strict=True)):
            if wire in self.by_wire:
                raise ValueError(f"two tables are named {table.name}")
            table.index = index
            self.by_wire[wire] = table
        paths = [view.path for fold in folds for view in fold.views]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"two views are at {path}")
        self.homes = {table.wire: tuple(fold.topics) for fold in folds for table in fold.tables if fold.topics}
        self.flush_order = sorted(range(len(self.tables)), key=lambda i: (self.tables[i].rank, i))
        self.handlers: dict[type[msgspec.Struct], tuple[Callable[[Event, Partition], None], ...]] = {ClockTicked: (_in_time,)}
        self.runs: dict[type[msgspec.Struct], RunHandler] = {}
        for fold in folds:
            for data, handler in fold.handlers.items():
                self.handlers[data] = (*self.handlers.get(data, ()), handler)
        self.handlers[TenantCleared] = (*self.handlers.get(TenantCleared, ()), _cleared)  # when the folds have told what they have to
        for former in UPCASTS:  # folds know the newest version of a type alone
            self.handlers[former] = tuple(_upcasting(handler) for handler in self.handlers.get(newest(former), ()))
        for fold in folds:
            self.runs.update({data: run for data, run in fold.runs.items() if len(self.handlers[data]) == 1})
        self.repeats: dict[type[msgspec.Struct], tuple[Callable[[Event, Partition], None], ...]] = {}
        for fold in folds:
            for data, handler in fold.repeats.items():
                self.repeats[data] = (*self.repeats.get(data, ()), handler)
        for former in UPCASTS:
            self.repeats[former] = tuple(_upcasting(handler) for handler in self.repeats.get(newest(former), ()))


class Partition:
    """All rows of one source partition, and the means to absorb its records.

    Args:
        topic: source topic without prefix.
        number: the partition.
        schema: tables and handlers.
        count: number of partitions of the topic.
        identity: 32 bits that stand for the source topic's Kafka topic id; 0 if the broker has none.
        source: ``source`` of the events put out, ``pulsefold/APP_ID``.

    Attributes:
        offset, time_us: of the record being absorbed; read by folds.
        next: the offset expected next.
        outputs: records to publish, in order.
        dirty: changed rows, a set a table.
        watched: table index -> rows changed since the lists that are kept of them were looked at, the dirty ones apart; of tables without such lists nothing.
        graves: (table index, tenant, key) -> rows that were cleared: nothing reads them, they wait for their tombstones.
        heard: tenant -> Kafka timestamp, milliseconds, of what it sent last, ticks of the clock apart, as far as this process saw it.
        peers: the partitions of the topic whose rows are here, this one among them. Outputs may be made from their rows, rows never.
        whole: False while records are being absorbed, and for good after a fold raised.
        marks: kind of the sets of changed rows; their order is not part of any promise.
    """

    marks: type[set[Row]] = set

    def __init__(
        self,
        topic: str,
        number: int,
        schema: Schema,
        *,
        count: int = 1,
        identity: int = 0,
        source: str = "pulsefold/pulsefold",
        bounds: Bounds | None = None,
    ) -> None:
        self.topic = topic
        self.number = number
        self.schema = schema
        self.count = count
        self.identity = identity
        self.source = source
        self.bounds = bounds or schema.bounds
        self.spaces: list[dict[str, dict[tuple[str, ...], Row]]] = [{} for _ in schema.tables]
        self.dirty: list[set[Row]] = [self.marks() for _ in schema.tables]
        self.watched: dict[int, set[Row]] = {}
        self.graves: dict[tuple[int, str, tuple[str, ...]], Row] = {}
        self._passed: dict[str, int] = {}
        self.outputs: list[Output] = []
        self.offset = -1
        self.time_us = 0
        self.next = 0
        self.window = Window(self)
        self.peers: Sequence[Partition] = (self,)
        self.whole = True
        self.heard: dict[str, int] = {}
        self._counting = True
        self._slice: Sequence[Record] = ()

    # ---- rows

    def space(self, table: Table[Any], tenant: str) -> dict[tuple[str, ...], Row]:
        """Rows of a tenant in a table."""
        space = self.spaces[table.index].get(tenant)
        if space is None:
            space = self.spaces[table.index][tenant] = {}
        return space

    def open(self, table: Table[S], tenant: str, key: tuple[str, ...]) -> S | None:
        """State to change by the current record, or None where the row has already absorbed it."""
        spaces = self.spaces[table.index]
        space = spaces.get(tenant)
        if space is None:
            space = spaces[tenant] = {}
        row = space.get(key)
        offset = self.offset
        if row is None:
            row = table.enter(space, tenant, key, offset, -1, table.fresh())
        elif offset <= row.applied:
            return None
        else:
            row.applied = offset
        self.dirty[table.index].add(row)
        state = row.state
        return table.load(row) if state.__class__ is bytes else state  # type: ignore[return-value]  # rows of this table only

    def read(self, table: Table[S], tenant: str, key: tuple[str, ...]) -> S | None:
        """State of a row to look at, or None where there is none. It must not be changed.

        Raises:
            Absorbed: the row is at or beyond the current record (a refold after a crash). Since readers are written before
                what they read, every row that depends on it has this record: the rest of the handler is passed over.
        """
        space = self.spaces[table.index].get(tenant)
        row = space.get(key) if space is not None else None
        if row is None:
            return None
        if row.applied >= self.offset:
            raise Absorbed
        state = row.state
        return table.load(row) if state.__class__ is bytes else state  # type: ignore[return-value]  # rows of this table only

    def put(self, table: Table[S], tenant: str, key: tuple[str, ...], state: S) -> None:
        """Replace a row's state, unless the row has already absorbed the current record."""
        space = self.space(table, tenant)
        row = space.get(key)
        if row is None:
            row = table.enter(space, tenant, key, self.offset, -1, state)
        elif self.offset > row.applied:
            row.applied = self.offset
            row.state = state
        else:
            return
        self.dirty[table.index].add(row)

    def clear(self, tenant: str) -> None:
        """Drop every row of a tenant, whoever keeps it, but the watermark.

        What is dropped is gone for every reader at once. On the changelog each row is first written once more, as a grave that
        has absorbed the current record, so that a refold after a crash finds it absorbed; when that and everything below is
        durable it becomes a tombstone (`agents.core`). The row of `CLEARED` stays and tells a zombie's late row from a new one.
        """
        for table in self.schema.tables:
            if table in OWN:
                continue
            space = self.spaces[table.index].pop(tenant, None) or {}
            later = {key: row for key, row in space.items() if row.applied > self.offset}  # written before a crash, and refolded now
            if later:
                self.spaces[table.index][tenant] = later
            for key, row in space.items():
                if key not in later:
                    self.bury(table.index, row, self.offset)
        state = self.open(CLEARED, tenant, ())
        if state is not None:
            state.offset = self.offset

    def bury(self, index: int, row: Row, applied: int, logged: int | None = None) -> Row:
        """Put a row into its grave, to be written; it must not be in its space any more.

        Args:
            applied: offset of the record that cleared it.
            logged: of the grave; default the row's.
        """
        grave = Row(row.tenant, row.key, applied, row.logged if logged is None else logged, GRAVE)
        self.dirty[index].discard(row)
        self.dirty[index].add(grave)
        self.graves[(index, row.tenant, row.key)] = grave
        self.mark(index, (grave,))
        return grave

    def cleared_at(self, tenant: str) -> int:
        """Offset of the record by which everything of the tenant was cleared last, -1 if it never was."""
        row = self.spaces[CLEARED.index].get(tenant, {}).get(())
        return -1 if row is None else CLEARED.load(row).offset

    def alive(self, index: int, tenant: str, key: tuple[str, ...]) -> bool:
        """Whether there is a row of the key (again)."""
        return key in self.spaces[index].get(tenant, ())

    def current(self, index: int, row: Row) -> bool:
        """Whether this is still the row (or the grave) of its key."""
        place = self.spaces[index].get(row.tenant, {}).get(row.key)
        return place is row or (place is None and self.graves.get((index, row.tenant, row.key)) is row)

    def keys(self, table: Table[Any], tenant: str) -> list[tuple[str, ...]]:
        """Keys of a tenant in a table, sorted, so that a command over all of them repeats on replay."""
        space = self.spaces[table.index].get(tenant)
        return sorted(space) if space else []

    def watermark(self, tenant: str) -> int | None:
        """Greatest event time of the tenant absorbed here before the current record."""
        state = self.read(WATERMARK, tenant, ())
        return None if state is None else state.time_us

    def count_as(self, **amounts: int) -> None:
        """Add to the counters ``late``, ``expired``, ``overflow`` of the current record."""
        if self._counting:
            counters = self.counters()
            for name, amount in amounts.items():
                setattr(counters, name, getattr(counters, name) + amount)

    def skip(self, reason: str) -> None:
        """The current record is folded but changes no table, for this reason."""
        if self._counting:
            skipped = self.counters().skipped
            skipped[reason] = skipped.get(reason, 0) + 1

    def publish(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        """Put out a record. Its id must be deterministic: a crash may repeat it, never lose it."""
        self.outputs.append(Output(topic, key, value, partition, [], self.offset))

    def timestamp(self) -> int:
        """Kafka timestamp of the record being absorbed, milliseconds."""
        return next(record.timestamp for record in self._slice if record.offset == self.offset)

    # ---- absorbing

    def counters(self) -> Counters:
        """This partition's counters."""
        space = self.space(COUNTERS, "")
        row = space.get(())
        if row is None:
            row = space[()] = Row("", (), -1, -1, Counters())
        return COUNTERS.load(row)

    def restored(self) -> int:
        """Called on gaining the partition, once its rows are restored; returns the offset to fold next."""
        self.window.restore()
        self.next = self.window.done + 1
        self._passed = {}
        for row in self.graves.values():
            self.pass_over(row)
        for space in self.spaces[CLEARED.index].values():
            for row in space.values():
                self.pass_over(row)
        return self.next

    def pass_over(self, row: Row) -> None:
        """A grave, or a row of `CLEARED`, is on the changelog: up to that clearing the tenant's records are not folded again.

        All that they put out is on the log, since outputs come before rows; and all that they leave in rows is cleared.
        """
        if row.applied >= self.next:
            self._passed[row.tenant] = max(row.applied, self._passed.get(row.tenant, -1))

    def absorb(self, records: Iterable[Record]) -> int:
        """Fold records in offset order; returns how many were new to this partition.

        Records at or below the last fully absorbed offset are passed over. Where a fold raises, which is a bug, the
        partition is not `whole` any more and must not be written.
        """
        done = max(self.window.done, self.next - 1)
        left, n = iter(records), 0
        self.whole = False
        while piece := list(islice(left, SLICE)):
            if piece[0].offset <= done:
                piece = [record for record in piece if record.offset > done]
            if piece:
                self._absorb(piece)
                n += len(piece)
        self.whole = True
        return n

    def _absorb(self, records: Sequence[Record]) -> None:
        """Absorb a slice of records: decode all, look all up in the dedupe window, then fold run by run."""
        odd: dict[int, InvalidEvent | None] = {}
        first, last = records[0].offset, records[-1].offset
        offsets: Sequence[int] = range(first, last + 1) if last - first + 1 == len(records) else [record.offset for record in records]
        kafka_times = [record.timestamp for record in records]
        batch = decode_all([record.value for record in records])
        events: list[Any] = [_event_or_none(record, odd) for record in records] if batch is None else batch.events
        self._slice = records
        self._hear(events, batch, kafka_times[-1])
        times = _times(events, batch, kafka_times)
        self._look_up(events, batch, records, offsets, odd)
        latest = max(times)
        if latest > min(kafka_times) * 1000 + self.bounds.max_future_us:
            for offset, time_us, kafka_ms in zip(offsets, times, kafka_times, strict=True):
                if time_us > kafka_ms * 1000 + self.bounds.max_future_us:
                    odd.setdefault(offset, IN_FUTURE)
        alike = batch is not None and len(batch.classes) == 1 == len(batch.tenants)

        counters = self.counters()
        counters_row = self.spaces[COUNTERS.index][""][()]
        counted = counters_row.applied
        handlers, runs = self.schema.handlers, self.schema.runs
        folded: dict[type[msgspec.Struct], int] = {}
        begin, end, size = 0, 0, len(records)
        while begin < size:
            record = records[begin]
            offset = self.offset = offsets[begin]
            self._counting = offset > counted
            if odd and offset in odd:
                bad = odd[offset]
                if bad is not None:
                    self._dead_letter(record, bad.reason, bad.error)
                else:
                    if self._counting:
                        counters.duplicate += 1
                    self.time_us = times[begin]
                    passed = bool(self._passed) and offset <= self._passed.get(events[begin].tenant, -1)
                    for handler in () if passed else self.schema.repeats.get(events[begin].data.__class__, ()):
                        with suppress(Absorbed):
                            handler(events[begin], self)
                begin += 1
                continue
            event = events[begin]
            cls = event.data.__class__
            absorb_run = runs.get(cls)
            if absorb_run is not None and not odd and self._counting:
                end = size if alike else begin + 1
                tenant = event.tenant
                while end < size and events[end].data.__class__ is cls and events[end].tenant == tenant:
                    end += 1
                data = [event.data for event in events[begin:end]] if batch is None else batch.data[begin:end]
                absorb_run(events[begin:end], data, offsets[begin:end], times[begin:end], self)
                folded[cls] = folded.get(cls, 0) + end - begin
                newest = latest if end - begin == size else max(times[begin:end])
                self._moved(tenant, newest, offsets[times.index(newest, begin)])
                begin = end
                continue
            time_us = self.time_us = times[begin]
            if self._passed and offset <= self._passed.get(event.tenant, -1):
                if offset == self._passed[event.tenant]:
                    self.clear(event.tenant)
                self._moved(event.tenant, time_us, offset)
                begin += 1
                continue
            try:
                for handler in handlers.get(cls, NO_TABLE):
                    try:  # noqa: SIM105 - a context manager would cost more than the fold
                        handler(event, self)
                    except Absorbed:
                        pass
            except Refused as refusal:
                # It still moves the watermark, which must not depend on what the folds made of the record.
                self._dead_letter(record, refusal.reason, refusal.error)
            else:
                if self._counting:
                    folded[cls] = folded.get(cls, 0) + 1
            self._moved(event.tenant, time_us, offset)
            begin += 1
        for cls, n in folded.items():
            counters.folded += n
            name: str = cls.TYPE  # type: ignore[attr-defined]  # every event's data has one
            counters.types[name] = counters.types.get(name, 0) + n
        self.next = last + 1
        if last > counted:
            counters_row.applied = last
            self.dirty[COUNTERS.index].add(counters_row)

    def _hear(self, events: Sequence[Any], batch: Batch | None, timestamp_ms: int) -> None:
        """Note whose events these are; ticks are not the tenant's own."""
        if batch is not None and ClockTicked not in batch.classes:
            tenants = batch.tenants
        else:
            tenants = {event.tenant for event in events if event is not None and event.data.__class__ is not ClockTicked}
        for tenant in tenants:
            self.heard[tenant] = timestamp_ms

    def _look_up(
        self, events: Sequence[Any], batch: Batch | None, records: Sequence[Record], offsets: Sequence[int], odd: dict[int, InvalidEvent | None]
    ) -> None:
        """Enter the slice into the dedupe window; duplicates become odd."""
        known: Sequence[int] = offsets
        metrics: list[tuple[int, str]] = []
        if batch is None or any(map(_headers, records)):
            pairs = [(event, record) for event, record in zip(events, records, strict=True) if event is not None]
            known = [record.offset for _, record in pairs]
            names = [known_by(event, record) for event, record in pairs]
        elif len(batch.tenants) == 1:
            first = next(iter(batch.tenants)) + "\0"
            names = [first + event.id for event in batch.events]
        else:
            names = [event.tenant + "\0" + event.id for event in events]
        if self.topic == MetricRecorded.TOPIC:
            for event, record in zip(events, records, strict=True):
                if event is not None and (name := metric_known_by(event, record)) is not None:
                    metrics.append((record.offset, name))
        for offset in self.window.note(known, names, metrics, offsets):
            odd[offset] = None

    def _moved(self, tenant: str, time_us: int, offset: int) -> None:
        """The tenant's watermark has seen this event time at this offset."""
        space = self.spaces[WATERMARK.index].get(tenant)
        row = space.get(()) if space is not None else None
        if row is None:
            row = self.space(WATERMARK, tenant)[()] = Row(tenant, (), -1, -1, Watermark())
        mark = row.state
        if mark.__class__ is bytes:
            mark = WATERMARK.load(row)
        if time_us > mark.time_us and offset > row.applied:
            mark.time_us = time_us
            row.applied = offset
            self.dirty[WATERMARK.index].add(row)

    def _dead_letter(self, record: Record, reason: str, error: str) -> None:
        if not self._counting:
            return
        counters = self.counters()
        counters.dead_lettered += 1
        counters.reasons[reason] = counters.reasons.get(reason, 0) + 1
        minutes, minute = counters.minutes, record.timestamp // 60_000
        minutes[minute] = minutes.get(minute, 0) + 1
        if len(minutes) > 3:
            del minutes[min(minutes)]
        counters.last_letter = record.offset, record.timestamp
        headers = dead_letter_headers(reason, error, self.topic, self.number, record.offset, record.timestamp)
        self.outputs.append(Output("dead-letters", record.key, record.value, None, [*record.headers, *headers], record.offset))

    # ---- out of the partition

    def mark(self, index: int, rows: Iterable[Row]) -> None:
        """Rows of a table (or the graves of such) are changed, and not dirty any more: lists that are kept of them look at their keys again."""
        marks = self.watched.get(index)
        if marks is not None:
            marks.update(rows)
            if len(marks) > MOST_MARKS:
                del self.watched[index]

    def drain(self) -> Iterator[tuple[bytes, bytes, Row, int]]:
        """Changed rows in rank order as (changelog key, value, row, table index); clears the marks."""
        for index in self.schema.flush_order:
            rows = self.dirty[index]
            if not rows:
                continue
            self.dirty[index] = self.marks()
            if self.watched:
                self.mark(index, rows)
            table = self.schema.tables[index]
            wire, dump, identity = self.schema.wires[index], table.dump, self.identity
            # ids in offset order: a crash must not leave a later segment without the one before it
            for row in sorted(rows, key=_applied) if table is IDS else rows:
                if row.state is GRAVE and not self.current(index, row):
                    continue  # there is a row again
                yield wire_key(wire, row.tenant, row.key), HEAD.pack(row.applied, identity) + dump(row), row, index


def partitions_of(topic: str, count: int, tables: Schema, *, identity: int = 0, source: str = "pulsefold/pulsefold") -> list[Partition]:
    """Every partition of a source topic, each of them with the others as its peers."""
    partitions = [Partition(topic, n, tables, count=count, identity=identity, source=source) for n in range(count)]
    for partition in partitions:
        partition.peers = partitions
    return partitions
