"""What a table's author writes: a `Fold` and its `View`s.

A fold names the tables it keeps and a handler an event type. A handler gets the event and the `Partition` it was read
from (``p.offset``, ``p.time_us``), opens the rows it changes and assigns to their state:

    def observed(self, e, p):
        state = p.open(self.rows, e.tenant, (kind, id))
        if state is None:          # this record is already in the row (redelivery after a crash)
            return
        ...                        # compute first, assign last

Laws (the conformance suite checks them for every fold): replay gives the same rows; redelivery changes nothing; the
outcome depends on the log's prefix alone; a partition's rows never read another partition's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from .rows import S, Table

if TYPE_CHECKING:
    from streams.events import Data, Event

    from .orders import Part, Source
    from .partition import Partition

Handler = Callable[["Event", "Partition"], None]
"""Absorbs one event. May raise `Refused` before it has changed anything; any other exception is a bug and stops the worker."""


RunHandler = Callable[[Sequence["Event"], Sequence[Any], Sequence[int], Sequence[int], "Partition"], None]
"""Absorbs a run of events of one type and tenant (events, the data of each, offsets, event times in microseconds, partition): exactly
what the handler of the type would do one by one, only with less said a time. It neither refuses nor reads other rows nor counts."""


class Refused(Exception):
    """The event is well-formed but cannot be absorbed here: it becomes a dead letter.

    Args:
        reason: short code of contract §2, such as ``goal_conflict``.
        error: one sentence naming the field.
    """

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason = reason
        self.error = error


class Absorbed(Exception):
    """Raised by `Partition.read` during a refold: what is read, and so all that depends on it, has this record already.

    A handler lets it pass, or opens the row that depends on the read one first and reads only where that is not None.
    """


class Fold:
    """Base of all folds.

    Attributes:
        tables: what it keeps, each with its rank (readers before what they read).
        handlers: data type of an event -> handler.
        runs: likewise, for types that come by the hundred thousand; optional.
        repeats: data type of an event -> handler of a repeat within the dedupe window; it may count it, and refuse nothing.
        views: HTTP views of these tables.
        rules: alert rules that look at several partitions (ordered rules live in the handlers).
        scored: what the topic ``scores`` is told.
        topics: source topics (without prefix) whose partitions keep these tables.
    """

    tables: Sequence[Table[Any]] = ()
    handlers: Mapping[type[msgspec.Struct], Handler] = {}
    runs: Mapping[type[msgspec.Struct], RunHandler] = {}
    repeats: Mapping[type[msgspec.Struct], Handler] = {}
    views: Sequence[View] = ()
    rules: Sequence[MergedRule] = ()
    scored: Sequence[Scored] = ()
    topics: tuple[str, ...] = ()

    def figures(self, partitions: Iterable[Partition]) -> Mapping[str, Mapping[str, int]]:
        """What this process did since it started, for ``/status``: name -> figures. No fold reads it, and a restart begins anew.

        Args:
            partitions: all that this process serves.
        """
        return {}

    def due(self, p: Partition) -> Iterable[tuple[str, int]]:
        """What waits for time in a partition's rows: (tenant, moment in microseconds that the tenant's watermark has to pass).

        The clock asks it of tenants that have fallen silent; a moment is named until it was passed.
        """
        return ()


class NotFound(LookupError):
    """Asked for something nobody recorded: 404, with `members` in its body."""

    def __init__(self, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.members = members


class BadParameter(ValueError):
    """A request parameter is unusable: 400 naming it."""

    def __init__(self, parameter: str, detail: str) -> None:
        super().__init__(detail)
        self.parameter = parameter


class Reader(Protocol):
    """What a view may read: one tenant's rows over all partitions.

    Attributes:
        tenant: every read is bound to it.
        now_us: the server's clock, microseconds since the epoch (UTC); the default of ``at``.
        topics: topics that were read so far; feeds ``as_of`` and ``lag`` of the answer.
    """

    tenant: str
    now_us: int

    def rows(self, table: Table[S], key: tuple[str, ...]) -> list[S]:
        """States of a key, one a partition that has it, in partition order."""
        ...

    def placed(self, table: Table[S], key: tuple[str, ...]) -> list[tuple[int, S]]:
        """As `rows`, each with its partition's number."""
        ...

    def everywhere(self, table: Table[S]) -> Iterator[tuple[int, S]]:
        """Every state of the tenant, with its partition's number; in no particular order within one."""
        ...

    def beside(self, home: Table[Any], key: tuple[str, ...], table: Table[S], keys: Iterable[tuple[str, ...]]) -> Iterator[S]:
        """States of many keys of a table whose rows are only where a row of `key` is in `home`: key by key, each in partition order."""
        ...

    def scan(self, table: Table[S]) -> Iterator[tuple[tuple[str, ...], list[S]]]:
        """Every key of the tenant with its states, in no particular order."""
        ...

    def lists(self, source: Source[Any], wanted: Mapping[Hashable, Callable[[], Part]]) -> dict[Hashable, Any]:
        """Lists of a source's keys as they are now, by name: kept from an earlier question, or made.

        Args:
            wanted: name -> an empty list. Of one source the same name always means the same list.
        """
        ...

    def watermarks(self, topic: str) -> dict[int, int]:
        """Greatest event time absorbed in each partition of a topic that has any, microseconds."""
        ...

    def as_of(self) -> int | None:
        """Greatest event time absorbed in the topics read so far; None before the first event."""
        ...


@dataclass(frozen=True)
class View:
    """One HTTP view under ``/api/v1``.

    Args:
        path: template such as ``/trust/{kind}/{id}``; its names are fields of `params` too.
        params: frozen struct of path and query parameters, with types, bounds and defaults (lists: comma-separated
            or repeated in the query; bool: true/false).
        answer: from reader and parameters to the JSON body. Raises `NotFound`, `BadParameter`.
        topics: source topics (without prefix) that feed it.
        summary: one line for the API's description.
        table: the answer's `rows` have the names in its `columns`, so it can be had as CSV too.
    """

    path: str
    params: type[msgspec.Struct]
    answer: Callable[[Reader, Any], dict[str, Any]]
    topics: tuple[str, ...]
    summary: str
    table: bool = False


def page(items: Sequence[Any], limit: int, cursor: str | None, name: Callable[[Any], str]) -> tuple[list[Any], str | None]:
    """One page of a sorted list; the cursor is the name of the last item shown, so it is stable under new records.

    Args:
        items: sorted; `name` is unique over them.
        limit: 1 or more.
        cursor: from the page before.
    """
    start = 0
    if cursor is not None:
        at = next((i for i, item in enumerate(items) if name(item) == cursor), None)
        if at is None:
            raise BadParameter("cursor", "the cursor is not of this list; start again without it")
        start = at + 1
    shown = list(items[start : start + limit])
    return shown, name(shown[-1]) if shown and start + limit < len(items) else None


def names(values: Iterable[str]) -> list[str]:
    """Comma-separated and repeated values as one list."""
    return [name for value in values for name in value.split(",") if name]


@dataclass(frozen=True)
class Standing:
    """Where a subject stands with a merged rule: read back from the alerts topic."""

    level: str = "ok"
    period: str | None = None
    told: frozenset[str] = frozenset()
    """Subjects of the rule with an open alert, and those that such an alert names as related (rules with a `beat` only)."""


@dataclass(frozen=True)
class Verdict:
    """What a merged rule finds now: `level` of ``tables.alerting.LEVELS`` (equal to the standing one: nothing is told)."""

    level: str
    value: float | None
    threshold: float | None
    message: str
    reason: str | None = None
    related: list[str] | None = None


@dataclass(frozen=True)
class MergedRule:
    """An alert rule over partials of several partitions, judged by the follower when something changed.

    Args:
        name: such as ``drift.variable``.
        topic: its source topic (without prefix); the owner of partition crc32(subject) mod P of it publishes.
        table: whose changed rows make a subject due.
        subject: row key -> subject (parts joined as record keys are).
        judge: (reader of the tenant, row key, standing) -> verdict; None = leave it as it stands.
        beat: where given, any changed row of this table makes every subject of its tenant due: for rules that depend on time.
    """

    name: str
    topic: str
    table: Table[Any]
    subject: Callable[[tuple[str, ...]], str]
    judge: Callable[[Reader, tuple[str, ...], Standing], Verdict | None]
    beat: Table[Any] | None = None


@dataclass(frozen=True)
class Scored:
    """Figures that are published when they changed, for learners downstream.

    Args:
        kind: of the subject, such as ``variable``; part of the record key.
        topic: source topic (without prefix) of the rows.
        table: whose changed rows make a subject due; the key's first part is its name.
        event: (reader of the tenant, row key) -> what is published; None = nothing.
    """

    kind: str
    topic: str
    table: Table[Any]
    event: Callable[[Reader, tuple[str, ...]], Data | None]
