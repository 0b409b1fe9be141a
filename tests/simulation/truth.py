"""What must be: the pure fold of a partition's log, record by record, and what is compared with it at every step."""

from __future__ import annotations

from tables.dedupe import IDS
from tables.partition import HEAD, Partition, Schema
from tables.rows import wire_key

from .broker import UNVERSIONED, Broker, buried_of
from .folds import BOUNDS, Ordered


class Truth:
    """The pure fold of one partition by one schema, as far as it was asked for.

    Args:
        n: the partition.
        parts: how many there are.

    Attributes:
        log, gone: of the topic as it is now; when it is made again its broker has others.
        states: (changelog key, version) -> the row as it must be written.
        changes: (offset, changelog key, version) of each change of a row.
        outputs: of the fold, in order.
    """

    def __init__(self, n: int, parts: int, broker: Broker, schema: Schema) -> None:
        self.n = n
        self.broker = broker
        self.log = broker.log
        self.gone = broker.gone
        self.partition = Ordered("judgments", n, schema, count=parts, bounds=BOUNDS, identity=broker.identity)
        self.states: dict[tuple[bytes, int], bytes] = {}
        self.changes: list[tuple[int, bytes, int]] = []
        self.outputs: list[tuple[int, str, bytes | None, bytes | None]] = []
        self.known: set[tuple[int, str, bytes | None, bytes | None]] = set()
        self.n_folded = 0
        self._at = 0
        self._durable = 0
        self._published = 0

    def advance(self, upto: int) -> None:
        """Fold every record below an offset that is not gone."""
        partition, log = self.partition, self.log
        while self._at < len(log) and log[self._at].offset < upto:
            record = log[self._at]
            self._at += 1
            if self.gone and self.lost(record.offset, record.offset + 1):
                continue
            partition.absorb([record])
            self.n_folded += 1
            for key, value, row, _ in partition.drain():
                self.states[(key, row.applied)] = value
                self.changes.append((record.offset, key, row.applied))
            if partition.outputs:
                found = [(o.offset, o.topic, o.key, o.value) for o in partition.outputs]
                self.outputs += found
                self.known.update(found)
                partition.outputs = []

    def lost(self, start: int, end: int) -> int:
        """How many offsets of [start, end) are gone for good."""
        return sum(max(0, min(end, until) - max(start, since)) for since, until in self.gone)

    def check_row(self, key: bytes, value: bytes) -> None:
        """A row is written: it must be that of the pure fold at its version, to the last bit."""
        applied = HEAD.unpack_from(value)[0]
        self.advance(applied + 1)
        if len(value) > HEAD.size:
            assert self.states.get((key, applied)) == value, f"partition {self.n}: {key!r} at {applied} is not what the log gives"

    def check_output(self, offset: int, topic: str, key: bytes | None, value: bytes | None) -> None:
        """An output is published: it must be one of the pure fold."""
        self.advance(offset + 1)
        assert (offset, topic, key, value) in self.known, f"partition {self.n}: false output {topic} of {offset}: {value!r}"

    def check_durable(self, offset: int, *, alerts_from: int = 0) -> None:
        """An offset is committed: rows and outputs of all records below are on their topics.

        Args:
            alerts_from: alerts of records below it may be missing, told by other tables.
        """
        self.advance(offset)
        broker, newest = self.broker, {}
        while self._durable < len(self.changes) and self.changes[self._durable][0] < offset:
            _, key, applied = self.changes[self._durable]
            newest[key] = applied
            self._durable += 1
        for key, applied in newest.items():
            if broker.newest.get(key, -1) < applied and broker.buried.get(buried_of(key), -1) < applied:  # else it is cleared with what is in its grave
                raise AssertionError(f"partition {self.n}: committed {offset}, but {key!r} at {applied} is not on the changelog")
        while self._published < len(self.outputs) and self.outputs[self._published][0] < offset:
            output = self.outputs[self._published]
            self._published += 1
            if output[1] != "alerts" or output[0] >= alerts_from:
                assert output in broker.published, f"partition {self.n}: committed {offset}, but the output {output[1]} of {output[0]} is not on its topic"

    def check_read(self, partition: Partition, offset: int, name: str) -> None:
        """A worker is ready to fold from an offset on: it lacks no row of what is below, as far as anybody has written any."""
        there = {wire_key(partition.schema.wires[index], tenant, key): row.applied for (index, tenant, key), row in partition.graves.items()}
        there |= {wire_key(*key): applied for key, (applied, _) in rows_of(partition).items()}
        newest = {key: applied for at, key, applied in self.changes if at < offset}
        for key, applied in newest.items():
            if self.broker.buried.get(buried_of(key), -1) < applied:  # else it is cleared with what is in its grave
                assert there.get(key, -1) >= applied, f"partition {self.n}: {name} would fold from {offset}, but has {key!r} at {there.get(key)}, not {applied}"

    def check_end(self, partition: Partition, name: str) -> None:
        """At the end: these rows are the pure fold's, and its counters count every record once."""
        self.advance(self.broker.end)
        wanted, found = rows_of(self.partition), rows_of(partition)
        assert found == wanted, f"partition {self.n}: worker {name} differs in {[k for k in wanted | found if found.get(k) != wanted.get(k)][:3]}"
        counters = self.partition.counters()
        counted = counters.folded + counters.duplicate + counters.dead_lettered
        assert counted == self.n_folded, f"partition {self.n}: {self.n_folded} records, {counted} counted"

    def check_kept(self) -> None:
        """At the end: what was cleared has nothing but tombstones on the changelog."""
        live = {wire_key(*key) for key in rows_of(self.partition)}
        kept = {key for _, key, value in self.broker.changelog if value is not None and not key.startswith(UNVERSIONED)}
        assert kept <= live, f"partition {self.n}: still on the changelog {sorted(kept - live)[:3]}"


def rows_of(partition: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    """Every row with its version and bytes."""
    found = {}
    for table in partition.schema.tables:
        for tenant, space in partition.spaces[table.index].items():
            for key, row in space.items():
                if table is IDS or row.applied >= 0:
                    found[(partition.schema.wires[table.index], tenant, key)] = (row.applied, bytes(table.dump(row)))
    return found
