"""Lists that are kept between questions, so that a page of a list costs what is on it, and what changed, but not every key.

The rules this file keeps:
  * what is kept is what a scan would make: one function gives a key's place from its rows, whoever asks it, and a reader that
    keeps nothing makes the list anew by the same function;
  * a place depends on the key's rows and the settings alone, never on the moment of asking;
  * a key is looked at again when one of its rows was changed, made or dropped since, whoever wrote it;
  * what is kept is bounded, and dropped when nobody asks for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import frexp
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from sortedcontainers import SortedList

from .fold import BadParameter, Reader
from .rows import Row, S, Table, unescape

if TYPE_CHECKING:
    from .partition import Partition

F = TypeVar("F")
Key = tuple[str, ...]
Place = tuple[Any, ...]
"""Where a key stands in a list: what the list is sorted by, then what tells it from every other."""
MOST_KEPT = 2_000_000
"""Places and figures kept by one worker; about 150 to 300 bytes each."""
MOST_LISTS = 24
"""Lists kept of one tenant's keys; of more the one that was asked for longest ago goes."""
IDLE_S = 300.0
"""Seconds after the last question for which a tenant's lists are kept."""
TENDED_S = 10.0
"""Seconds after the last question for which changed keys are looked at before the next one comes."""
FEW_DUE = 32
"""Changed keys that are left to the next question: those that change all the time are not looked at again and again."""
MANY_LINES = 64
"""Changed keys that are put into columns together."""
AFRESH = 4
"""A list of which more than one in so many keys changed is made anew: that is cheaper."""


class Part(Protocol):
    """What can be kept of a source's keys."""

    def fill(self, reader: Reader, found: Iterable[tuple[Key, Any]]) -> None:
        """Take every key with its figures; it was empty."""
        ...

    def take(self, reader: Reader, changed: Sequence[tuple[Key, Any]]) -> None:
        """Take figures of keys as they are now, each key once; None = it is not in the source any more."""
        ...

    def __len__(self) -> int: ...


class Order:
    """Keys by their places.

    Args:
        place: (reader, key, figures) -> the key's place, several in a list, or None where it has none. Places are unique.

    Attributes:
        sorted: the places.
    """

    def __init__(self, place: Callable[[Reader, Key, Any], Place | list[Place] | None]) -> None:
        self.place = place
        self.places: dict[Key, Place | list[Place]] = {}
        self.sorted: Any = SortedList()

    @classmethod
    def of_one(cls, reader: Reader, source: Source[Any], key: Key, place: Callable[[Reader, Key, Any], Place | list[Place] | None]) -> Order:
        """The list of one key alone, if the source has it."""
        order, figures = cls(place), source.one(reader, key)
        order.fill(reader, [] if figures is None else [(key, figures)])
        return order

    def fill(self, reader: Reader, found: Iterable[tuple[Key, Any]]) -> None:
        """Every key at once."""
        place = self.place
        self.places = {key: at for key, figures in found if (at := _single(place(reader, key, figures))) is not None}
        self.sorted = SortedList(one for at in self.places.values() for one in (at if at.__class__ is list else (at,)))

    def take(self, reader: Reader, changed: Sequence[tuple[Key, Any]]) -> None:
        """Some keys anew."""
        places, place = self.places, self.place
        old: list[Place] = []
        new: list[Place] = []
        for key, figures in changed:
            before = places.get(key)
            at = None if figures is None else _single(place(reader, key, figures))
            if at == before:
                continue
            if isinstance(before, list):
                old += before
            elif before is not None:
                old.append(before)
            if at is None:
                del places[key]
                continue
            places[key] = at
            if isinstance(at, list):
                new += at
            else:
                new.append(at)
        for one in sorted(old):  # in order, so that neighbours are found where the last one was: memory is what this waits for
            self.sorted.remove(one)
        for one in sorted(new):
            self.sorted.add(one)

    def __len__(self) -> int:
        return len(self.sorted)

    def __iter__(self) -> Iterator[Place]:
        return iter(self.sorted)

    def span(self, prefix: Place) -> tuple[int, int]:
        """Of the places that begin with these strings: index of the first, and behind the last."""
        if not prefix:
            return 0, len(self.sorted)
        return self.sorted.bisect_left(prefix), self.sorted.bisect_left((*prefix[:-1], prefix[-1] + "\0"))

    def page(
        self,
        limit: int,
        cursor: str | None,
        key_of: Callable[[str], Key],
        name: Callable[[Place], str],
        *,
        span: tuple[int, int] | None = None,
        backwards: bool = False,
    ) -> tuple[list[Place], str | None]:
        """One page, as `tables.fold.page` cuts it from the whole list.

        Args:
            limit: 1 or more.
            cursor: the name of the last place shown.
            key_of: the key that a cursor may name.
            name: of a place; of several places of one key the same.
            span: of this part of the list alone.
            backwards: from the end of the list.

        Raises:
            BadParameter: the cursor is of no place here.
        """
        low, high = span or (0, len(self.sorted))
        start = high if backwards else low
        if cursor is not None:
            at = self.places.get(key_of(cursor))
            last: Place | None = at[-1 if backwards else 0] if isinstance(at, list) else at
            index = -1 if last is None or name(last) != cursor else self.sorted.index(last)
            if not low <= index < high:
                raise BadParameter("cursor", "the cursor is not of this list; start again without it")
            start = index if backwards else index + 1
        if backwards:
            shown = list(self.sorted.islice(max(low, start - limit), start, reverse=True))
            more = start - limit > low
        else:
            shown = list(self.sorted.islice(start, min(high, start + limit)))
            more = start + limit < high
        return shown, name(shown[-1]) if shown and more else None

    def from_end(self) -> Iterator[Place]:
        """The places, last first."""
        return reversed(self.sorted)  # type: ignore[no-any-return]  # sortedcontainers is untyped

    def first(self, limit: int) -> list[Place]:
        """The first places."""
        return list(self.sorted.islice(0, limit))


def _single(at: Place | list[Place] | None) -> Place | list[Place] | None:
    """One place not in a list: that would be an object more a key for the garbage collector to look at."""
    return at if at.__class__ is not list or len(at) != 1 else at[0]  # type: ignore[arg-type,index]  # a list, not None


class Exact:
    """A sum of doubles that is rounded once, when it is asked for: what `math.fsum` gives of them all.

    Example:
        >>> sum_ = Exact()
        >>> for x in (0.1, 1e17, 0.2, -1e17):
        ...     sum_.add(x, 1)
        >>> sum_.value()
        0.30000000000000004
    """

    __slots__ = ("total",)
    SCALE = 1126  # frexp's mantissa as 53 bits, and the least exponent of a double

    def __init__(self) -> None:
        self.total = 0

    def add(self, x: float, sign: int) -> None:
        """Add a finite number, or take it away."""
        mantissa, exponent = frexp(x)
        self.total += sign * int(mantissa * 9007199254740992.0) << exponent + self.SCALE - 53

    def value(self) -> float:
        """The sum."""
        return self.total / (1 << self.SCALE)


class Totals:
    """Exact sums of figures over all keys.

    Args:
        values: (key, figures) -> what is added up, None = nothing of this key.
        n: how many numbers that are.

    Attributes:
        values_of: key -> what it has in the sums.
    """

    def __init__(self, values: Callable[[Key, Any], tuple[float, ...] | None], n: int) -> None:
        self.values = values
        self.values_of: dict[Key, tuple[float, ...] | None] = {}
        self._sums = [Exact() for _ in range(n)]
        self._n = 0

    def fill(self, reader: Reader, found: Iterable[tuple[Key, Any]]) -> None:
        """Every key at once."""
        for key, figures in found:
            self._set(key, figures)

    def take(self, reader: Reader, changed: Sequence[tuple[Key, Any]]) -> None:
        """Some keys anew."""
        for key, figures in changed:
            self._set(key, figures)

    def _set(self, key: Key, figures: Any) -> None:
        values = None if figures is None else self.values(key, figures)
        before = self.values_of.get(key)
        if figures is None:
            self.values_of.pop(key, None)
        else:
            self.values_of[key] = values
        if values == before:
            return
        for sign, numbers in ((-1, before), (1, values)):
            if numbers is not None:
                self._n += sign
                for total, x in zip(self._sums, numbers, strict=True):
                    total.add(x, sign)

    def __len__(self) -> int:
        """Keys, also those that add nothing."""
        return len(self.values_of)

    @property
    def n(self) -> int:
        """Keys that add something."""
        return self._n

    def sums(self) -> list[float]:
        """The sums, each as `math.fsum` rounds it."""
        return [total.value() for total in self._sums]


class Columns:
    """Figures of every key, a column a figure, to be had in the order of the keys: for sums that are rounded at every step, in that order.

    Args:
        lines: (key, figures) -> its lines, each a place and then the figures; [] = none. A place begins with its key.
        kinds: a letter a figure: ``i``, whole numbers of 64 bits; ``f``, doubles.

    Attributes:
        places: sorted.
        derived: what was worked out from the columns as they are, for who works it out; emptied when they change.
    """

    def __init__(self, lines: Callable[[Key, Any], list[tuple[Place, tuple[Any, ...]]]], kinds: str) -> None:
        self.lines = lines
        self.places: list[Place] = []
        self.derived: dict[str, Any] = {}
        self._slots: dict[Place, int] = {}
        self._order = np.zeros(0, dtype=np.int64)  # slots in the order of the places: what changes or comes moves nothing else
        self._columns = [np.zeros(0, dtype=np.int64 if kind == "i" else np.float64) for kind in kinds]
        self._free: list[int] = []
        self._of: dict[Key, tuple[Place, ...]] = {}
        self._later: dict[Key, list[tuple[Place, tuple[Any, ...]]]] = {}

    def fill(self, reader: Reader, found: Iterable[tuple[Key, Any]]) -> None:
        """Every key at once."""
        self.take(reader, found)

    def take(self, reader: Reader, changed: Iterable[tuple[Key, Any]]) -> None:
        """Some keys anew; the lines of a few are put in when there are more of them, or when the columns are asked for."""
        for key, figures in changed:
            self._later[key] = [] if figures is None else self.lines(key, figures)
        if len(self._later) >= MANY_LINES:
            self._settle()

    def __len__(self) -> int:
        return (len(self.places) + len(self._later)) * (1 + len(self._columns)) // 2

    def column(self, n: int, low: int = 0, high: int | None = None) -> Any:
        """A figure of all lines, or of those from `low` up to and without `high`, as they are now, in the order of their places: an array."""
        self._settle()
        return self._columns[n][self._order[low:high]]

    def span(self, first: str) -> tuple[int, int]:
        """Of the lines whose key begins with this part: index of the first, and behind the last."""
        self._settle()
        return bisect_left(self.places, ((first,),)), bisect_left(self.places, ((first + "\0",),))

    def _settle(self) -> None:
        if not self._later:
            return
        later, self._later = self._later, {}
        self.derived.clear()
        slots = self._slots
        changed: list[Place] = []
        news: list[tuple[Any, ...]] = []
        fresh: list[Place] = []
        gone: list[Place] = []
        for key, lines in later.items():
            places = tuple([place for place, _ in lines])
            before = self._of.get(key, ())
            if before != places:
                fresh += [place for place in places if place not in before]
                gone += [place for place in before if place not in places]
                if places:
                    self._of[key] = places
                else:
                    del self._of[key]
            if lines:
                changed += places
                news += [figures for _, figures in lines]
        if gone:
            left = set(gone)
            self._order = self._order[[place not in left for place in self.places]]
            self.places = [place for place in self.places if place not in left]
            self._free += [slots.pop(place) for place in gone]
        if fresh:
            self._come(sorted(fresh))
        at = [slots[place] for place in changed]
        for column, values in zip(self._columns, zip(*news, strict=True), strict=True) if news else ():
            column[at] = values

    def _come(self, fresh: list[Place]) -> None:
        """Room for lines whose places are new, sorted."""
        lacking = len(fresh) - len(self._free)
        if lacking > 0:
            size = len(self._columns[0])
            more = max(lacking, size // 8)
            self._columns = [np.concatenate([column, np.zeros(more, dtype=column.dtype)]) for column in self._columns]
            self._free += range(size, size + more)
        mine = [self._free.pop() for _ in fresh]
        self._slots.update(zip(fresh, mine, strict=True))
        at = [bisect_left(self.places, place) for place in fresh] if self.places else [0] * len(fresh)
        self._order = np.insert(self._order, at, mine)
        if len(fresh) > 100:
            self.places = sorted(self.places + fresh)
        else:
            for place, index in zip(reversed(fresh), reversed(at), strict=True):
                self.places.insert(index, place)  # moves what is behind it, but looks at none of it


class Sheet:
    """Figures of keys, a column a figure, in the order of the keys: worked out of many keys at once.

    Args:
        work: (reader, keys with what the source has of them) -> the keys that have figures, and an array of each figure.

    Attributes:
        keys: sorted; of one part each.
        names: that part of each.
        columns: the figures.
        derived: what was worked out from the columns as they are, for who works it out; emptied when they change.
    """

    def __init__(self, work: Callable[[Reader, Sequence[tuple[Key, Any]]], tuple[list[Key], list[Any]]]) -> None:
        self.work = work
        self.keys: list[Key] = []
        self.names: Any = _names([])
        self.columns: list[Any] = []
        self.derived: dict[Hashable, Any] = {}

    def fill(self, reader: Reader, found: Iterable[tuple[Key, Any]]) -> None:
        """Every key at once, in the place of what was there."""
        keys, columns = self.work(reader, list(found))
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        self.names = _names(self.keys)
        self.columns = [column[order] for column in columns]
        self.derived.clear()

    def take(self, reader: Reader, changed: Sequence[tuple[Key, Any]]) -> None:
        """Some keys anew."""
        if not changed:
            return
        self.derived.clear()
        keys, news = self.work(reader, [one for one in changed if one[1] is not None])
        row_of = {key: row for row, key in enumerate(keys)}
        places = {at: key for key, _ in changed if (at := self.find(key)) is not None}
        known = {at: row_of.pop(key) for at, key in places.items() if key in row_of}
        if known:
            indices, rows = list(known), list(known.values())
            for column, new in zip(self.columns, news, strict=True):
                column[indices] = new[rows]
        gone = [at for at in places if at not in known]
        if gone:
            stay = np.ones(len(self.keys), dtype=bool)
            stay[gone] = False
            self.keys = [self.keys[i] for i in np.flatnonzero(stay).tolist()]
            self.names = self.names[stay]
            self.columns = [column[stay] for column in self.columns]
        if row_of:
            fresh = sorted(row_of)
            indices, rows = [bisect_left(self.keys, key) for key in fresh], [row_of[key] for key in fresh]
            self.columns = [np.insert(column, indices, new[rows]) for column, new in zip(self.columns, news, strict=True)]
            self.names = np.insert(self.names, indices, _names(fresh))
            self.keys = sorted(self.keys + fresh)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, key: Key) -> int | None:
        """Index of a key that has figures."""
        at = bisect_left(self.keys, key)
        return at if at < len(self.keys) and self.keys[at] == key else None

    def names_at(self, indices: Any) -> list[str]:
        """The names of keys: faster than one by one."""
        found: list[str] = self.names[indices].tolist()
        return found

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What was worked out before of the columns as they are; a few of them are kept."""
        found = self.derived.get(name)
        if found is None:
            if len(self.derived) >= MOST_LISTS:
                self.derived.clear()
            found = self.derived[name] = make()
        return found

    def page(self, limit: int, cursor: str | None, chosen: Any = None) -> tuple[list[int], str | None]:
        """One page of the keys, as `tables.fold.page` cuts it from the whole list.

        Args:
            limit: 1 or more.
            cursor: the last key shown.
            chosen: indices of the keys in the list, ascending; None = all.

        Returns:
            The indices on the page, and the next one's cursor.

        Raises:
            BadParameter: the cursor is of no key in the list.
        """
        every = range(len(self.keys)) if chosen is None else chosen
        start = 0
        if cursor is not None:
            at = self.find((cursor,))
            place = 0 if at is None else bisect_left(every, at)
            if at is None or place >= len(every) or every[place] != at:
                raise BadParameter("cursor", "the cursor is not of this list; start again without it")
            start = place + 1
        shown = [int(i) for i in every[start : start + limit]]
        return shown, self.keys[shown[-1]][0] if shown and start + limit < len(every) else None


def _names(keys: Sequence[Key]) -> Any:
    found = np.empty(len(keys), dtype=object)
    found[:] = [key[0] for key in keys]
    return found


@dataclass(frozen=True, eq=False)
class Source(Generic[F]):
    """Where the keys of lists come from.

    Args:
        tables: table -> (key of its row -> key of the lists); whose changed rows make a key due.
        every: (reader) -> all keys with their figures, each once, in any order.
        one: (reader, key) -> the figures of one key, None where `every` would not have it.
    """

    tables: Mapping[Table[Any], Callable[[Key], Key]]
    every: Callable[[Reader], Iterable[tuple[Key, F]]]
    one: Callable[[Reader, Key], F | None]


def states_of(table: Table[S]) -> Source[list[S]]:
    """The keys of a table, each with its states over all partitions."""
    return Source({table: same}, lambda reader: reader.scan(table), lambda reader, key: reader.rows(table, key) or None)


def same(key: Key) -> Key:
    """Rows of the table have the lists' keys."""
    return key


def parts_of(cursor: str) -> Key:
    """The key whose encoded parts a cursor names, as `streams.keys.encode_key` joins them."""
    return tuple(map(unescape, cursor.split("|")))


def whole_of(cursor: str) -> Key:
    """The key of one part that a cursor names."""
    return (cursor,)


def made(
    reader: Reader, source: Source[Any], wanted: Mapping[Hashable, Callable[[], Part]], every: Sequence[tuple[Key, Any]] | None = None
) -> dict[Hashable, Any]:
    """Lists that are made anew.

    Args:
        every: the source's keys with their figures, where they are at hand.
    """
    found = {name: make() for name, make in wanted.items()}
    if every is None:
        every = list(source.every(reader))
    for part in found.values():
        part.fill(reader, every)
    return found


@dataclass(eq=False)
class Held:
    """What is kept of a source's keys of one tenant.

    Attributes:
        parts: by name, the one asked for longest ago first.
        due: keys to look at again.
        n: keys there were when a list was made last.
        counted: its size as it is in the keeper's.
        used: when it was asked for last, seconds.
    """

    source: Source[Any]
    tenant: str
    parts: dict[Hashable, Any] = field(default_factory=dict)
    due: set[Key] = field(default_factory=set)
    n: int = 0
    counted: int = 0
    used: float = 0.0

    def size(self) -> int:
        """Places and figures in it."""
        return sum(len(part) for part in self.parts.values()) + len(self.due)

    def too_many_due(self) -> bool:
        """Whether making all of it anew is cheaper than looking at what changed."""
        return len(self.due) * AFRESH > self.n + 1_000


class ListKeeper:
    """What a worker keeps of the lists that were asked for, over partitions in memory. It is asked between records, never while one is absorbed.

    Args:
        partitions: topic (without prefix) -> its partitions; of one schema. They have one keeper: it takes their marks.
        homes: table's wire name -> topics whose partitions keep it.
        clock: seconds that never go back.
        most: places and figures.

    Attributes:
        n_kept: places and figures in all of it.
        n_made, n_again: lists made by looking at every key; keys looked at again.
    """

    def __init__(
        self,
        partitions: Mapping[str, Sequence[Partition]],
        homes: Mapping[str, tuple[str, ...]],
        clock: Callable[[], float] = lambda: 0.0,
        most: int = MOST_KEPT,
    ) -> None:
        self.partitions = partitions
        self.homes = homes
        self.clock = clock
        self.most = most
        self.held: dict[tuple[str, Source[Any]], Held] = {}
        self.n_made = 0
        self.n_again = 0
        self.n_kept = 0
        self._using: dict[Table[Any], dict[str, list[Held]]] = {}
        self._looked: dict[tuple[Partition, int], dict[Row, int]] = {}

    def get(self, reader: Reader, source: Source[Any], wanted: Mapping[Hashable, Callable[[], Part]]) -> dict[Hashable, Any]:
        """The lists of the reader's tenant as they are now, kept or made.

        Args:
            wanted: name -> its empty list; the same name always means the same list.
        """
        name = reader.tenant, source
        self._collect(source)
        held = self.held.pop(name, None) or self._begin(name)
        self.held[name] = held  # the one asked for last
        held.used = self.clock()
        with self._dropped_if_not_whole(name):
            answer = self._answer(reader, held, wanted)
        self._count(held)
        if self.n_kept > self.most:
            oldest = list(self.held)
            for one in oldest:
                if self.n_kept > self.most:
                    self._drop(one)
            self._unwatch()
        return answer

    def _begin(self, name: tuple[str, Source[Any]]) -> Held:
        """Nothing is kept yet, but who changes a row marks it from now on."""
        tenant, source = name
        held = Held(source, tenant)
        for table in source.tables:
            self._using.setdefault(table, {}).setdefault(tenant, []).append(held)
        return held

    @contextmanager
    def _dropped_if_not_whole(self, name: tuple[str, Source[Any]]) -> Iterator[None]:
        """Where looking at keys fails, which is a bug of a view, no list is kept that lacks them."""
        try:
            yield
        except BaseException:
            self._drop(name)
            self._unwatch()
            raise

    def _answer(self, reader: Reader, held: Held, wanted: Mapping[Hashable, Callable[[], Part]]) -> dict[Hashable, Any]:
        if held.too_many_due():
            held.due = set()
            held.parts.clear()
        elif held.due:
            due, held.due = held.due, set()
            self._take(reader, held, due)
        lacking = {one: make for one, make in wanted.items() if one not in held.parts}
        if lacking:
            self._watch(held.source)
            self.n_made += len(lacking)
        answer = {one: held.parts.pop(one) for one in wanted if one in held.parts}
        if lacking:
            every = list(held.source.every(reader))
            held.n = len(every)
            answer |= made(reader, held.source, lacking, every)
        held.parts |= answer
        while len(held.parts) > max(MOST_LISTS, len(wanted)):
            del held.parts[next(iter(held.parts))]
        return answer

    def tend(self, reader_of: Callable[[str], Reader], most: int) -> int:
        """Look at some changed keys of lists that were asked for lately, so that the next question finds few; drop lists that it would make anew.

        Args:
            reader_of: a tenant's reader.
            most: keys looked at. Where none is left to look at, all rows that were marked meanwhile are gone through for their keys besides.

        Returns:
            How many keys were looked at; 0 = there is nothing to do.
        """
        waiting = self._waiting()
        if not waiting:
            for source in dict.fromkeys(held.source for held in self._asked()):
                self._collect(source)
            stale = [name for name, held in self.held.items() if held.too_many_due()]
            for name in stale:
                self._drop(name)
            if stale:
                self._unwatch()
            waiting = self._waiting()
        if not waiting:
            return 0
        held = max(waiting, key=lambda held: len(held.due))
        some = set(islice(held.due, most))
        held.due -= some
        with self._dropped_if_not_whole((held.tenant, held.source)):
            self._take(reader_of(held.tenant), held, some)
        self._count(held)
        return len(some)

    def _asked(self) -> list[Held]:
        """Lists that were asked for lately."""
        now = self.clock()
        return [held for held in self.held.values() if now - held.used <= TENDED_S]

    def _waiting(self) -> list[Held]:
        """Those of them with more changed keys than are left to the next question."""
        return [held for held in self._asked() if len(held.due) > FEW_DUE]

    def _take(self, reader: Reader, held: Held, due: Collection[Key]) -> None:
        """Look at keys again."""
        self.n_again += len(due)
        changed = [(key, held.source.one(reader, key)) for key in due]
        for part in held.parts.values():
            part.take(reader, changed)

    def _count(self, held: Held) -> None:
        size = held.size()
        self.n_kept += size - held.counted
        held.counted = size

    def forget(self) -> None:
        """Drop what nobody has asked for lately."""
        now = self.clock()
        idle = [name for name, held in self.held.items() if now - held.used > IDLE_S]
        for name in idle:
            self._drop(name)
        if idle:
            self._unwatch()

    def _drop(self, name: tuple[str, Source[Any]]) -> None:
        held = self.held.pop(name)
        self.n_kept -= held.counted
        for table in held.source.tables:
            using = self._using[table]
            using[held.tenant].remove(held)
            if not using[held.tenant]:
                del using[held.tenant]
            if not using:
                del self._using[table]

    def _over(self, table: Table[Any]) -> Iterator[Partition]:
        for topic in self.homes.get(table.wire, tuple(self.partitions)):
            yield from self.partitions.get(topic, ())

    def _watch(self, source: Source[Any]) -> None:
        for table in source.tables:
            for partition in self._over(table):
                if table.index not in partition.watched:
                    partition.watched[table.index] = set()
                    self._looked[(partition, table.index)] = {row: row.applied for row in partition.dirty[table.index]}

    def _unwatch(self) -> None:
        """Nobody marks changed rows of tables that no list is made of."""
        needed = {table.index for table in self._using}
        for partition, index in [place for place in self._looked if place[1] not in needed]:
            partition.watched.pop(index, None)
            del self._looked[(partition, index)]

    def _collect(self, source: Source[Any]) -> None:
        """Make due what changed in the rows of a source's tables, in every list that is made of them."""
        for table in source.tables:
            index, using = table.index, self._using.get(table)
            if using is None:
                continue
            for partition in self._over(table):
                marks = partition.watched.get(index)
                if marks is None:  # too many were marked, or those who would have were not asked: nothing kept is of use
                    for name in [(held.tenant, held.source) for every in using.values() for held in every]:
                        self._drop(name)
                    self._unwatch()
                    break
                dirty = partition.dirty[index]
                before = self._looked.get((partition, index), {})
                for row in (*marks, *dirty):
                    if before.get(row) != row.applied:
                        for held in using.get(row.tenant, ()):
                            held.due.add(held.source.tables[table](row.key))
                marks.clear()
                self._looked[(partition, index)] = {row: row.applied for row in dirty}
