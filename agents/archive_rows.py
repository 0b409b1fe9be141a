"""Records of a source topic -> rows of the archive: the columns that queries use, beside the event's JSON as it came.

The rules this file keeps: the rows of a range of offsets are a function of the log alone, so whoever makes them makes the same;
every record is a row, also one that no fold takes (`reason` says why) and one that repeats an id (`duplicate`), so that counts
can be compared; of a record that is no event nothing is kept but its place and its digest: its key may name a tenant, whose clearing
would not find it. The value of an event can be had again to the byte, and its headers (`value_of`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.codec import InvalidEvent, decode, decode_all
from streams.derive import sent_again
from streams.events import Event, MetricRecorded, TenantCleared
from tables.dedupe import SLICE, Chains, digest_of, digests_of, known_by, metric_known_by, offsets_of, redriven
from tables.partition import Record
from tables.times import to_us

Columns = dict[str, NDArray[Any]]

COLUMNS: tuple[tuple[str, str, str], ...] = (
    # name, type in the archive, how it is made of the batch's column ("" stands for null in texts)
    ("topic", "VARCHAR", "topic"),
    ("partition", "INTEGER", "partition"),
    ("offset", "BIGINT", '"offset"'),
    ("timestamp", "TIMESTAMP", "make_timestamp(timestamp_us)"),
    ("time", "TIMESTAMP", "make_timestamp(time_us)"),
    ("time_given", "BOOLEAN", "time_given"),
    ("tenant", "VARCHAR", "nullif(tenant, '')"),
    ("type", "VARCHAR", "nullif(type, '')"),
    ("id", "VARCHAR", "nullif(id, '')"),
    ("source", "VARCHAR", "nullif(source, '')"),
    ("derivedfrom", "VARCHAR", "nullif(derivedfrom, '')"),
    ("redriven", "VARCHAR", "nullif(redriven, '')"),
    ("key", "VARCHAR", "nullif(key, '')"),
    ("digest", "BLOB", "digest"),
    ("size", "INTEGER", "size"),
    ("reason", "VARCHAR", "nullif(reason, '')"),
    ("duplicate", "BOOLEAN", "duplicate"),
    ("metric_id", "VARCHAR", "nullif(metric_id, '')"),
    ("metric_type", "VARCHAR", "nullif(metric_type, '')"),
    ("model", "VARCHAR", "nullif(model, '')"),
    ("run", "VARCHAR", "nullif(run, '')"),
    ("agent", "VARCHAR", "nullif(agent, '')"),
    ("task", "VARCHAR", "nullif(task, '')"),
    ("tags", "VARCHAR[]", "from_json(nullif(tags, ''), '[\"VARCHAR\"]')"),
    ("data", "VARCHAR", "nullif(data, '')"),
    ("frame", "BLOB", "frame"),
    ("headers", "BLOB", "headers"),
)
"""The archive's columns. `timestamp` is Kafka's, `time` the event's (UTC); `size` are the bytes of the record's value. `frame` is what is around the data
in a value that the other columns do not give to the byte, `headers` those of Kafka (msgpack) where there are any."""
TABLE = ", ".join(f'"{name}" {kind}' for name, kind, _ in COLUMNS)
NAMES = ", ".join(f'"{name}"' for name, _, _ in COLUMNS)
MADE = ", ".join(f"CAST({made} AS {kind})" for _, kind, made in COLUMNS)
TEXTS = (
    "tenant",
    "type",
    "id",
    "source",
    "derivedfrom",
    "redriven",
    "key",
    "reason",
    "metric_id",
    "metric_type",
    "model",
    "run",
    "agent",
    "task",
    "tags",
    "data",
)
_NAMED = ("metric_id", "metric_type", "model", "run", "agent", "task")


WHOLE = 0xFFFFFFFF
"""In place of where the data begins: the frame is the whole value."""


def plain_value(id: str, source: str, type: str, time: str | None, tenant: str, derivedfrom: str | None, data: bytes) -> bytes:
    """An event's value as pulsefold's own publishers write it.

    Args:
        time: as `streams.derive.time_text` writes it; None where the event has none.
        data: JSON, as it came.
    """
    body: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source, "type": type}
    if time is not None:
        body["time"] = time
    body["tenant"] = tenant
    if derivedfrom is not None:
        body["derivedfrom"] = derivedfrom
    body["data"] = msgspec.Raw(data)
    return _encode(body)


def frame_of(value: bytes, data: bytes, plain: bytes) -> bytes | None:
    """What has to be kept of a value beside its data; None where nothing has, because it is the plain one.

    Example:
        >>> value_of(frame_of(b'{"data": {}, "id": "a"}', b"{}", b""), b"{}", b"")
        b'{"data": {}, "id": "a"}'
        >>> frame_of(b"{}", b"{}", b"{}") is None
        True
    """
    if value == plain and b"\\u" not in value:  # texts with NULs are kept with others in their place
        return None
    at = value.find(data)
    if at < 0 or not _is_text(data):
        return WHOLE.to_bytes(4, "big") + value
    return at.to_bytes(4, "big") + value[:at] + value[at + len(data) :]


def value_of(frame: bytes | None, data: bytes, plain: bytes) -> bytes:
    """The value that `frame_of` was made of."""
    if frame is None:
        return plain
    at, rest = int.from_bytes(frame[:4], "big"), frame[4:]
    return rest if at == WHOLE else rest[:at] + data + rest[at:]


def _is_text(data: bytes) -> bool:
    try:
        return b"\0" not in data and bool(data.decode())
    except UnicodeDecodeError:
        return False


class Envelope(msgspec.Struct):
    """What is read of an event a second time: its data as it came."""

    source: str = ""
    time: str | None = None
    data: msgspec.Raw = msgspec.Raw()


_envelope = msgspec.json.Decoder(Envelope).decode
_encode = _tags = msgspec.json.Encoder().encode
_packed = msgspec.msgpack.Encoder().encode


@dataclass
class Batch:
    """Rows of consecutive records of a partition.

    Attributes:
        newest: tenant -> greatest event time, microseconds.
        cleared: tenant -> offset up to which (inclusive) all of it is to be removed from this partition.
    """

    columns: Columns
    rows: int
    json_bytes: int
    newest: dict[str, int] = field(default_factory=dict)
    cleared: dict[str, int] = field(default_factory=dict)


class Ids(Chains):
    """Chains that keep what tells digests apart themselves: here are no rows that have them.

    Args:
        window: in offsets.
    """

    __slots__ = ("kept",)

    def __init__(self, window: int) -> None:
        super().__init__(window, self._is)
        self.kept = np.zeros(self.ring, np.uint64)  # the second half of each; of the first, the tag was compared

    def occurred(self, offsets: Sequence[int], names: Sequence[str]) -> list[int]:
        """Enter names of at most `SLICE` records; returns the indices of those that occurred within the window before."""
        if not offsets:
            return []
        at, digests = offsets_of(offsets), digests_of([digest_of(name) for name in names])
        found = self.note(at, digests)
        near = at > at[-1] - self.ring  # one a place
        self.kept[at[near] % self.ring] = digests.view(np.uint64)[near, 1]
        return found

    def _is(self, offset: int, digest: bytes) -> bool:
        return self.kept[offset % self.ring].tobytes() == digest[8:]


class Rows:
    """Makes the rows of one partition, in offset order.

    Args:
        topic: without prefix.
        window: `dedupe_window`, offsets.
        max_future_us: how far an event's time may lie after the record's Kafka timestamp.
    """

    def __init__(self, topic: str, partition: int, *, window: int, max_future_us: int) -> None:
        self.topic = topic
        self.partition = partition
        self.window = window
        self.max_future_us = max_future_us
        self.ids = Ids(window)
        self.metrics = Ids(window)

    def remember(self, rows: Sequence[tuple[int, str, str, str | None, str | None]]) -> None:
        """Enter ids that occurred before, from the archive.

        Args:
            rows: (offset, tenant, id, redriven, metric_id or None) by offset, events only.
        """
        for begin in range(0, len(rows), SLICE):
            part = rows[begin : begin + SLICE]
            self.ids.occurred([row[0] for row in part], [redriven(row[3]) if row[3] else f"{row[1]}\0{row[2]}" for row in part])
            metrics = [(row[0], f"{row[1]}\0{row[4]}") for row in part if row[4] is not None and not row[3]]
            self.metrics.occurred([offset for offset, _ in metrics], [name for _, name in metrics])

    def make(self, records: Sequence[Record]) -> Batch:
        """Rows of the next records, one each."""
        n = len(records)
        events, reasons = self._decode(records)
        duplicate = np.zeros(n, dtype=bool)
        for begin in range(0, n, SLICE):
            self._look_up(records[begin : begin + SLICE], events[begin : begin + SLICE], duplicate[begin : begin + SLICE])
        times = [record.timestamp * 1000 if event is None or event.time is None else to_us(event.time) for event, record in zip(events, records, strict=True)]
        for at, (time_us, record) in enumerate(zip(times, records, strict=True)):
            if events[at] is not None and not duplicate[at] and time_us > record.timestamp * 1000 + self.max_future_us:
                reasons[at] = "time_in_future"
        texts: dict[str, list[str]] = {name: [""] * n for name in TEXTS}
        batch = Batch({}, n, 0)
        digests = np.empty(n, dtype=object)
        sizes = np.empty(n, dtype=np.int64)
        given = np.zeros(n, dtype=bool)
        frames, headers = np.full(n, None, dtype=object), np.full(n, None, dtype=object)
        for at, (record, event) in enumerate(zip(records, events, strict=True)):
            value = record.value or b""
            sizes[at] = len(value)
            digests[at] = hashlib.sha256(value).digest()
            if reasons[at] is not None:
                texts["reason"][at] = str(reasons[at])
                times[at] = record.timestamp * 1000
                continue
            if event is None:
                continue
            if record.key:
                texts["key"][at] = record.key.decode("utf-8", "backslashreplace")
            data = event.data
            envelope = _envelope(value)
            given[at] = event.time is not None
            texts["tenant"][at] = tenant = event.tenant
            texts["type"][at] = data.TYPE
            texts["id"][at] = event.id
            texts["source"][at] = envelope.source
            texts["derivedfrom"][at] = event.derivedfrom or ""
            texts["redriven"][at] = sent_again(record.headers) or ""
            raw = bytes(envelope.data)
            texts["data"][at] = raw.decode("utf-8", "replace")
            text = envelope.time
            if text is None or (len(text) == 27 and text[10] == "T" and text[19] == "." and text[26] == "Z"):  # of a valid moment this is the only such text
                plain = plain_value(event.id, envelope.source, data.TYPE, text, tenant, event.derivedfrom, raw)
            else:
                plain = b""
            frames[at] = frame_of(value, raw, plain)
            if record.headers:
                headers[at] = _packed([(name, bytes(one or b"")) for name, one in record.headers])
            for name in _NAMED:
                text = getattr(data, name, None)
                if text is not None:
                    texts[name][at] = text
            if data.__class__ is MetricRecorded and data.metric_id is None:
                texts["metric_id"][at] = event.id
            tags = getattr(data, "tags", None)
            if tags:
                texts["tags"][at] = _tags(tags).decode()
            if times[at] > batch.newest.get(tenant, -(2**62)):
                batch.newest[tenant] = times[at]
            if isinstance(data, TenantCleared) and data.scope == "all" and event.derivedfrom is not None and not duplicate[at]:
                batch.cleared[tenant] = record.offset
        batch.json_bytes = int(sizes.sum())
        batch.columns = {
            "topic": _texts([self.topic] * n),
            "partition": np.full(n, self.partition, dtype=np.int32),
            "offset": np.array([record.offset for record in records], dtype=np.int64),
            "timestamp_us": np.array([record.timestamp * 1000 for record in records], dtype=np.int64),
            "time_us": np.array(times, dtype=np.int64),
            "time_given": given,
            "digest": digests,
            "size": sizes,
            "duplicate": duplicate,
            "frame": frames,
            "headers": headers,
            **{name: _texts(column) for name, column in texts.items()},
        }
        return batch

    def _decode(self, records: Sequence[Record]) -> tuple[list[Event | None], list[str | None]]:
        """Events, and why a record is none."""
        reasons: list[str | None] = [None] * len(records)
        found = decode_all([record.value for record in records])
        if found is not None:
            return list(found.events), reasons
        events: list[Event | None] = []
        for at, record in enumerate(records):
            try:
                events.append(decode(record.value))
            except InvalidEvent as bad:
                events.append(None)
                reasons[at] = bad.reason
        return events, reasons

    def _look_up(self, records: Sequence[Record], events: Sequence[Event | None], duplicate: NDArray[np.bool_]) -> None:
        """Enter a slice into the dedupe windows, as the folds do, and mark what occurred before."""
        there = [at for at, event in enumerate(events) if event is not None]
        names, metrics, metric_at = [], [], []
        for at in there:
            event, record = events[at], records[at]
            assert event is not None
            names.append(known_by(event, record))
            metric = metric_known_by(event, record)
            if metric is not None:
                metric_at.append(at)
                metrics.append(metric)
        for index in self.ids.occurred([records[at].offset for at in there], names):
            duplicate[there[index]] = True
        for index in self.metrics.occurred([records[at].offset for at in metric_at], metrics):
            duplicate[metric_at[index]] = True


def _texts(column: Sequence[str]) -> NDArray[Any]:
    """A column of texts that any UTF-8 reader takes: lone surrogates and NULs (of a source, say) become U+FFFD."""
    joined = "".join(column)
    if "\0" in joined or not _is_utf8(joined):
        column = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd") for text in column]
    found = np.empty(len(column), dtype=object)
    found[:] = column
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
