"""Reading archive and tail together, each (topic, partition, offset) once.

The rules this file keeps: whatever a caller gives is bound as a parameter, never put into a query's text; every read is bound
to one tenant; repeated ids and what no fold takes are left out; and of many files only those are opened that can still matter
to the page that is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import duckdb

from .archive_files import Piece

TRIES = 5
"""Times that a read begins again because a file or table was replaced under it."""
T = TypeVar("T")
Key = tuple[Any, ...]
Row = tuple[Any, ...]
"""time_us, topic, partition, offset, then the columns asked for."""


class TooLong(Exception):
    """The read took longer than it may."""


@dataclass(frozen=True)
class Snapshot:
    """Where the rows of a topic are at one moment.

    Attributes:
        table: name of the table with the tail, in the archive's database.
        covered: by partition, the offset up to which (inclusive) the files have everything.
        ends: by partition, the offset up to which (exclusive) records have been read.
    """

    pieces: tuple[Piece, ...] = ()
    table: str = ""
    covered: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


class Store(Protocol):
    """What is read."""

    def snapshot(self, topic: str) -> Snapshot:
        """Where a topic's rows are now."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """While it is open, files that are known stay where they are, unless another archiver of the folder replaces them."""
        ...

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for this thread, to be closed."""
        ...

    def erased(self, topic: str, tenant: str) -> dict[int, int]:
        """Partition -> offset up to which (inclusive) the tenant's rows are erased."""
        ...

    def keep_from_us(self, tenant: str) -> int:
        """Event time before which the tenant's rows are past their time."""
        ...

    def refresh(self) -> None:
        """A file was not there: look again what files there are."""
        ...

    def known_from_us(self, topic: str, tenant: str) -> int | None:
        """Kafka time from which on all of the tenant's rows of a topic are here, microseconds; None = from the first record on."""
        ...

    def lacks(self, topic: str, tenant: str) -> bool:
        """Whether rows of the tenant have gone because they were past their time, or never came."""
        ...

    def newest_us(self, tenant: str) -> int | None:
        """Greatest event time of the tenant, None before its first event."""
        ...


@dataclass
class Asked:
    """What rows are wanted.

    Attributes:
        columns: SQL expressions of ours, beside the place and the time.
        where: SQL conditions of ours, with named parameters.
        params: their values.
        since_us, until_us: event times, inclusive and exclusive.
        starts: topic -> by partition the first offset wanted; None = all.
    """

    tenant: str
    topics: Sequence[str]
    columns: Sequence[str]
    where: Sequence[str] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    since_us: int | None = None
    until_us: int | None = None
    starts: Mapping[str, Sequence[int]] | None = None
    whole: bool = False
    """Also rows that repeat an id, and those that are past their time and not yet removed: for folding them again."""


@dataclass(frozen=True)
class Order:
    """An order of rows.

    Attributes:
        sql: for ORDER BY.
        key: of a row; smaller comes first.
        bound: no row of a file of the tenant has a key that comes before this.
    """

    sql: str
    key: Callable[[Row], Key]
    bound: Callable[[Piece, str], Key]


NEWEST = Order('time DESC, "offset" DESC, partition DESC', lambda row: (-row[0], -row[3], -row[2]), lambda piece, tenant: (-piece.span(tenant)[1],))
OLDEST = Order('time, topic, partition, "offset"', lambda row: row[:4], lambda piece, tenant: (piece.span(tenant)[0],))
LOG = Order('topic, partition, "offset"', lambda row: row[1:4], lambda piece, tenant: (piece.topic, piece.partition, piece.first))


def read(store: Store, asked: Asked, order: Order, limit: int, *, snapshots: Mapping[str, Snapshot] | None = None, timeout_s: float = 30.0) -> list[Row]:
    """The first rows in an order, at most `limit`.

    Args:
        snapshots: by topic, where a caller needs to know them (`ends` then bounds what is read).

    Raises:
        TooLong: it took longer than the timeout.
    """

    def once(cursor: duckdb.DuckDBPyConnection) -> list[Row]:
        fixed = None if snapshots is None else {topic: _moved(store.snapshot(topic), found) for topic, found in snapshots.items()}
        return _read(store, cursor, asked, order, limit, fixed)

    return _tried(store, once, timeout_s)


def _tried(store: Store, once: Callable[[duckdb.DuckDBPyConnection], T], timeout_s: float) -> T:
    """What a read finds; it begins again where a file or the tail was replaced meanwhile.

    Raises:
        TooLong: it took longer than the timeout.
    """
    last: duckdb.Error | None = None
    for _ in range(TRIES):
        with store.reading(), store.cursor() as cursor:
            watch = threading.Timer(timeout_s, cursor.interrupt)
            watch.start()
            try:
                return once(cursor)
            except duckdb.InterruptException:
                raise TooLong from None
            except (duckdb.IOException, duckdb.CatalogException) as gone:
                last = gone
                if isinstance(gone, duckdb.IOException):
                    store.refresh()
            finally:
                watch.cancel()
    assert last is not None
    raise last


def extent(store: Store, tenant: str, topics: Sequence[str], upto_us: int, *, timeout_s: float = 30.0) -> tuple[int | None, dict[str, int]]:
    """How far back a tenant's rows reach, and how many there are up to a moment.

    Args:
        upto_us: Kafka time, microseconds, inclusive.

    Returns:
        The least Kafka timestamp of its rows in any of the topics, microseconds (None: it has no rows); topic -> rows up to the moment.

    Raises:
        TooLong: it took longer than the timeout.
    """

    def once(cursor: duckdb.DuckDBPyConnection) -> tuple[int | None, dict[str, int]]:
        first: int | None = None
        counts: dict[str, int] = {}
        asked = Asked(tenant, topics, (), params={"upto_us": upto_us}, whole=True)
        conditions, params = _conditions(store, asked)
        for topic in topics:
            at = store.snapshot(topic)
            bound = {**params, **_places(store, asked, topic, at, bounded=False)}
            where = [*conditions, *_place_conditions(asked, bounded=False)]
            paths = [piece.path for piece in at.pieces if piece.may_have(tenant)]
            sources: list[tuple[str, dict[str, Any], list[str]]] = [
                (at.table, {"covered": list(at.covered)}, ['"offset" > list_extract($covered, partition + 1)'])
            ]
            if paths:
                sources.append(("read_parquet($paths)", {"paths": paths}, []))
            counts[topic] = 0
            for source, more, conditions_more in sources:
                query = f"SELECT epoch_us(min(timestamp)), count(*) FILTER (timestamp <= make_timestamp($upto_us)) FROM {source}"
                ((least, n),) = cursor.execute(f"{query} WHERE {' AND '.join([*where, *conditions_more])}", {**bound, **more}).fetchall()
                counts[topic] += n
                first = least if first is None else first if least is None else min(first, least)
        return first, counts

    return _tried(store, once, timeout_s)


def _moved(now: Snapshot, before: Snapshot) -> Snapshot:
    """Where the rows are now that were there before."""
    return Snapshot(now.pieces, now.table, now.covered, before.ends)


def _read(store: Store, cursor: duckdb.DuckDBPyConnection, asked: Asked, order: Order, limit: int, snapshots: Mapping[str, Snapshot] | None) -> list[Row]:
    tenant = asked.tenant
    found: list[Row] = []
    waiting: list[Piece] = []
    fixed = snapshots if snapshots is not None else {topic: store.snapshot(topic) for topic in asked.topics}
    conditions, params = _conditions(store, asked)
    for topic in asked.topics:
        at = fixed[topic]
        extra = {**params, **_places(store, asked, topic, at, bounded=snapshots is not None), "covered": list(at.covered)}
        where = [*conditions, *_place_conditions(asked, bounded=snapshots is not None), '"offset" > list_extract($covered, partition + 1)']
        found += _select(cursor, at.table, asked, where, extra, order, limit)
        starts = asked.starts[topic] if asked.starts is not None else None
        for piece in at.pieces:
            low, high = piece.span(tenant)
            if (
                piece.may_have(tenant)
                and not (asked.since_us is not None and high < asked.since_us)
                and not (asked.until_us is not None and low >= asked.until_us)
                and not (starts is not None and piece.last < starts[piece.partition])
            ):
                waiting.append(piece)
    found.sort(key=order.key)
    waiting.sort(key=lambda piece: order.bound(piece, tenant))
    begin, size = 0, 2
    while begin < len(waiting):
        if len(found) >= limit and order.key(found[limit - 1]) < order.bound(waiting[begin], tenant):
            break
        group = waiting[begin : begin + size]
        begin, size = begin + size, min(64, size * 2)
        for topic in asked.topics:
            paths = [piece.path for piece in group if piece.topic == topic]
            if paths:
                extra = {**params, **_places(store, asked, topic, fixed[topic], bounded=snapshots is not None), "paths": paths}
                where = [*conditions, *_place_conditions(asked, bounded=snapshots is not None)]
                found += _select(cursor, "read_parquet($paths)", asked, where, extra, order, limit)
        found.sort(key=order.key)
        del found[limit:]
    return found[:limit]


def _conditions(store: Store, asked: Asked) -> tuple[list[str], dict[str, Any]]:
    """Conditions that are the same for every topic."""
    params: dict[str, Any] = {"tenant": asked.tenant, **asked.params}
    conditions = ["tenant = $tenant", "reason IS NULL"]
    if not asked.whole:
        params["keep_us"] = store.keep_from_us(asked.tenant)
        conditions += ["time >= make_timestamp($keep_us)", "NOT duplicate"]
    if asked.since_us is not None:
        conditions.append("time >= make_timestamp($since_us)")
        params["since_us"] = asked.since_us
    if asked.until_us is not None:
        conditions.append("time < make_timestamp($until_us)")
        params["until_us"] = asked.until_us
    return [*conditions, *asked.where], params


def _places(store: Store, asked: Asked, topic: str, at: Snapshot, *, bounded: bool) -> dict[str, Any]:
    """Parameters that depend on the topic: what is erased, where reading begins and ends."""
    erased = store.erased(topic, asked.tenant)
    found: dict[str, Any] = {"erased": [erased.get(number, -1) for number in range(len(at.ends))]}
    if asked.starts is not None:
        found["starts"] = list(asked.starts[topic])
    if bounded:
        found["ends"] = list(at.ends)
    return found


def _place_conditions(asked: Asked, *, bounded: bool) -> list[str]:
    found = ['"offset" > list_extract($erased, partition + 1)']
    if asked.starts is not None:
        found.append('"offset" >= list_extract($starts, partition + 1)')
    if bounded:
        found.append('"offset" < list_extract($ends, partition + 1)')
    return found


def _select(
    cursor: duckdb.DuckDBPyConnection, source: str, asked: Asked, where: Sequence[str], params: Mapping[str, Any], order: Order, limit: int
) -> list[Row]:
    columns = ", ".join(["epoch_us(time)", "topic", "partition", '"offset"', *asked.columns])
    query = f"SELECT {columns} FROM {source} WHERE {' AND '.join(where)} ORDER BY {order.sql} LIMIT $n_rows"
    return cursor.execute(query, {**params, "n_rows": limit}).fetchall()
