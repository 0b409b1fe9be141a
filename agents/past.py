"""Views as they stood at a moment: the tenant's records up to it, folded by the folds that are in force.

The rules this file keeps:
  * what was known at a moment is every record whose Kafka timestamp is not after it, in the order of the log; event times decide
    nothing here, so what came late is not there before it came;
  * the folds and the views are the worker's own, and the clock that a view reads is the moment: the answer is, but for `lag`, the one
    that a worker which had absorbed just these records would have given then;
  * records come from the archive; where it no longer has all of the tenant's (they went by `archive_days`), from the log itself;
  * where a record may be missing nothing is answered: a sentence says from which moment on an answer can be had;
  * folding is bounded in records and time. What is folded when the time is over is kept, and the next request goes on with it; of
    whole folds the last few are kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec
import orjson

from streams.errors import BrokerUnavailable
from streams.topics import SOURCE_TOPICS
from tables.dedupe import Window
from tables.fold import BadParameter, NotFound, View
from tables.partition import Bounds, Logged, Partition, Schema, partitions_of
from tables.reader import PartitionReader
from tables.times import rfc3339

from .archive_read import LOG, Asked, Row, Store, TooLong, extent, read
from .past_log import Log, is_of

PAGE = 20_000
"""Rows that are read at once."""
MOST_RECORDS = 3_000_000
"""Records of a tenant that are folded for one moment."""
MOST_KEPT = 4
"""Folds that are kept for the next questions about the same moments."""
MOST_KEPT_RECORDS = 1_000_000
"""Records that all kept folds together may be made of; the newest is kept however many it has."""
KEPT_S = 600.0
"""Seconds after the last question for which a fold is kept."""
FOLD_S = 20.0
"""Longest time for one answer, well below what clients wait; the next request goes on."""
COLUMNS = ("id", "type", "source", "derivedfrom", "tenant", "time_given", "data", "epoch_us(timestamp)", "duplicate", "redriven")


class Told(Window):
    """A dedupe window that was told which records repeat an id: the archive found it out over the whole log.

    Attributes:
        repeats: offsets of the next slices' duplicates.
    """

    repeats: frozenset[int] = frozenset()

    def note(self, offsets: Sequence[int], names: Sequence[str], metrics: Sequence[tuple[int, str]], every: Sequence[int]) -> set[int]:
        """The duplicates among the records of a slice."""
        return set(self.repeats.intersection(every))


@dataclass
class Moment:
    """A tenant's tables at a moment, as far as they are folded.

    Attributes:
        at_us: Kafka time, microseconds.
        known_us: what was erased when folding began; another value means that it must not be used any more.
        following: (topic, partition) -> offset to read next.
        done: topics that are folded whole.
        records: folded so far.
        from_log: records come from the log, since the archive has not all of them.
        first_us: least Kafka timestamp of the tenant's records, as far as it is known.
    """

    tenant: str
    at_us: int
    known_us: Mapping[str, int | None]
    total: Mapping[str, int]
    partitions: dict[str, list[Partition]]
    from_log: bool = False
    first_us: int | None = None
    following: dict[tuple[str, int], int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    records: int = 0
    used: float = 0.0


def record_of(row: Row) -> Logged:
    """A row of `COLUMNS` as the record that it was made of."""
    time_us, _, _, offset, id, type_, source, derivedfrom, tenant, given, data, stamp_us, _, redriven = row
    envelope: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source or "-", "type": type_, "tenant": tenant, "data": orjson.Fragment(data)}
    if given:
        envelope["time"] = rfc3339(time_us)
    if derivedfrom is not None:
        envelope["derivedfrom"] = derivedfrom
    headers = (("redriven", redriven.encode()),) if redriven else ()
    return Logged(offset, stamp_us // 1000, orjson.dumps(envelope), headers)


class Past:
    """Answers of the past. Used by one thread.

    Args:
        settings: the worker's: `fold` gives a struct of them.
        counts: source topic (without prefix) -> partitions.
        log: to read what the archive has no longer; None = there is none.
    """

    def __init__(self, settings: Any, counts: Mapping[str, int], log: Log | None = None) -> None:
        from .registry import schema_of  # what the archivist does not need otherwise

        self.log = log
        self.schema: Schema = schema_of(settings)
        self.counts = counts
        self.source = f"pulsefold/{settings.get('app_id')}"
        self.views: dict[str, View] = {view.path: view for fold in self.schema.folds for view in fold.views}
        self.kept: OrderedDict[tuple[str, int], Moment] = OrderedDict()

    def answer(self, store: Store, tenant: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A reply to ``{"view": path, "params": {…}, "at_us": …}``."""
        try:
            return {"status": 200, "kind": "application/json", "body": self._body(store, tenant, asked)}
        except NotFound as missing:
            return {"status": 404, "detail": str(missing), "members": missing.members}
        except BadParameter as bad:
            return {"status": 400, "detail": f"{bad.parameter}: {bad}", "parameter": bad.parameter}
        except TooLong as long:
            return {"status": 503, "detail": str(long) or "the archive took too long; ask again in a moment"}
        except BrokerUnavailable as gone:
            return {"status": 503, "detail": f"as_of: {gone}"}

    def _body(self, store: Store, tenant: str, asked: Mapping[str, Any]) -> bytes:
        view = self.views[asked["view"]]
        params = msgspec.convert(asked["params"], view.params, strict=False)
        deadline = time.monotonic() + FOLD_S
        moment = self._moment(store, tenant, asked["at_us"])
        topics = set(view.topics)
        while True:
            for topic in sorted(topics - moment.done):
                self._fold(store, moment, topic, deadline)
            reader = PartitionReader(moment.partitions, self.schema.homes, tenant, moment.at_us)
            try:
                body = view.answer(reader, params)
            except (NotFound, BadParameter):
                if reader.topics <= moment.done:
                    if not moment.records:
                        _not_before(moment.first_us, moment.at_us)
                    raise
            if reader.topics <= moment.done:
                if not moment.records:
                    _not_before(moment.first_us, moment.at_us)
                return orjson.dumps({**body, "lag": 0, "ready": body.get("ready", True)}, option=orjson.OPT_NON_STR_KEYS)
            topics |= reader.topics  # it read what is folded from another topic

    def _moment(self, store: Store, tenant: str, at_us: int) -> Moment:
        """The fold of a moment, begun or kept.

        Raises:
            BadParameter, NotFound: it cannot be had.
        """
        now = time.monotonic()
        known = {topic: store.known_from_us(topic, tenant) for topic in SOURCE_TOPICS}
        for key in [key for key, moment in self.kept.items() if now - moment.used > KEPT_S]:
            del self.kept[key]
        found = self.kept.pop((tenant, at_us), None)
        if found is None or found.known_us != known:
            found = self._begin(store, tenant, at_us, known)
        found.used = now
        self.kept[(tenant, at_us)] = found
        while len(self.kept) > 1 and (len(self.kept) > MOST_KEPT or sum(moment.records for moment in self.kept.values()) > MOST_KEPT_RECORDS):
            self.kept.popitem(last=False)
        return found

    def _begin(self, store: Store, tenant: str, at_us: int, known: Mapping[str, int | None]) -> Moment:
        from_log = any(store.lacks(topic, tenant) for topic in SOURCE_TOPICS)
        if from_log:
            gone = [f"{topic}/{n}" for (topic, n), start in (self.log.starts(self.counts) if self.log else {("log", 0): 1}).items() if start]
            if gone:
                text = f"neither the archive (archive_days) nor the log ({gone[0]}) goes back to the tenant's first event; there is no earlier moment than now"
                raise NotFound(f"as_of: {text}", earliest=None)
        first, total = extent(store, tenant, SOURCE_TOPICS, at_us)
        known_us = max((one for one in known.values() if one is not None), default=None)
        if known_us is not None and at_us < known_us:
            raise NotFound(f"as_of: the tenant's events were cleared; the earliest moment is {rfc3339(known_us)}", earliest=rfc3339(known_us))
        if not from_log:
            _not_before(first, at_us)
        if sum(total.values()) > MOST_RECORDS:
            raise BadParameter("as_of", f"{sum(total.values())} records would have to be folded, at most {MOST_RECORDS} are; ask for an earlier moment")
        partitions = {topic: partitions_of(topic, count, self.schema, source=self.source) for topic, count in self.counts.items()}
        for partition in (one for peers in partitions.values() for one in peers if not from_log):
            partition.window = Told(partition)
            partition.bounds = Bounds(2**62, self.schema.bounds.dedupe_window)  # the archive has left out what came too early
        return Moment(tenant, at_us, known, total, partitions, from_log, None if from_log else first)

    def _fold(self, store: Store, moment: Moment, topic: str, deadline: float) -> None:
        """Fold the rest of a topic.

        Raises:
            TooLong: the time is over; the next call goes on.
        """
        if moment.from_log:
            self._fold_log(store.erased(topic, moment.tenant), moment, topic, deadline)
            moment.done.add(topic)
            return
        where, bound = ["timestamp <= make_timestamp($at_us)"], {"at_us": moment.at_us}
        partitions = moment.partitions[topic]
        rows: list[Row] | None = None
        while rows is None or len(rows) == PAGE:
            if time.monotonic() > deadline:
                of = sum(n for name, n in moment.total.items() if name == topic or name in moment.done)
                raise TooLong(f"as_of: {moment.records} of {of} records are folded; ask again to go on")
            starts = [moment.following.get((topic, partition.number), 0) for partition in partitions]
            rows = read(store, Asked(moment.tenant, [topic], COLUMNS, where, bound, starts={topic: starts}, whole=True), LOG, PAGE)
            for number, part in groupby(rows, key=lambda row: int(row[2])):
                mine = list(part)
                partition = partitions[number]
                partition.window.repeats = frozenset(row[3] for row in mine if row[12])  # type: ignore[attr-defined]  # `Told`, see `_begin`
                _absorb(moment, partition, [record_of(row) for row in mine])
                moment.following[(topic, number)] = mine[-1][3] + 1
        moment.done.add(topic)

    def _fold_log(self, erased: Mapping[int, int], moment: Moment, topic: str, deadline: float) -> None:
        """Fold the rest of a topic from the log.

        Args:
            erased: partition -> offset up to which (inclusive) the tenant's records count no more.

        Raises:
            TooLong: the time is over; the next call goes on.
        """
        assert self.log is not None  # else there is no such moment
        starts = {n: moment.following.get((topic, n), erased.get(n, -1) + 1) for n in range(self.counts[topic])}
        for batches in self.log.records(topic, starts):
            for number, batch in batches.items():
                mine = [record for record in batch if is_of(moment.tenant, record.value)]
                if mine:
                    first_us = min(record.timestamp for record in mine) * 1000
                    moment.first_us = first_us if moment.first_us is None else min(moment.first_us, first_us)
                _absorb(moment, moment.partitions[topic][number], [record for record in mine if record.timestamp * 1000 <= moment.at_us])
                moment.following[(topic, number)] = batch[-1].offset + 1
            if moment.records > MOST_RECORDS:
                raise BadParameter("as_of", f"more than {MOST_RECORDS} records would have to be folded; ask for an earlier moment")
            if time.monotonic() > deadline:
                raise TooLong(f"as_of: {moment.records} records are folded, from the log; ask again to go on")


def _absorb(moment: Moment, partition: Partition, records: Sequence[Any]) -> None:
    """Fold records; what they put out is on the log, and what they changed is written nowhere."""
    partition.absorb(records)
    partition.outputs.clear()
    for dirty in partition.dirty:
        dirty.clear()
    moment.records += len(records)


def _not_before(first_us: int | None, at_us: int) -> None:
    """Raises:
    NotFound: the moment is before the tenant's first record.
    """
    if first_us is not None and at_us < first_us:
        first = rfc3339(first_us)
        raise NotFound(f"as_of: the tenant's first event was recorded at {first}, which is the earliest moment", earliest=first)
