"""Windows: every figure of a training run, summed up by minute, five minutes, hour and day of event time.

The rules this file keeps:
  * a value lives in exactly one bucket: of the finest size that is still kept when it comes. Coarser sizes are merged
    from finer ones by the reader, so a value costs the same however many sizes there are;
  * a size is a ring of slots. A bucket that is no longer kept stays in its slot until a newer one needs it; then its
    content moves up into the next size, and at last into the residue, which keeps the sketch of a whole life;
  * what is kept and what is late is judged by the watermark of (tenant, partition) before the event: by the log alone.

Content moves from finer rows to coarser ones, so a coarser size has the lower rank and is written first: after a crash the
row that received content is ahead of the row that lost it, and folding again passes over it. Every window row depends on
the series' row (is it one of the first `max_series`?), which is therefore written after them, and that on the number of
series, which is written last.

A series is (metric, model, run). `value` of a metric is the series `metric_type`, each of its `values` the series
`metric_type.NAME`; a metric without run has run ``""``. Each figure also enters the tag sums (metric, tag) of the event's tags,
which are series of their own in the sizes of 1 h and 1 day. Learning events feed `learning.performance_score`,
`.learning_rate`, `.convergence_metric` and `.episode_count`, with their task type in the place of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import ceil, inf, log
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from streams.events import LearningRecorded, MetricRecorded

from .fold import Fold, Reader
from .moments import Moments, Pairs
from .orders import Source, states_of
from .rows import Table
from .sketch import LOG_GAMMA, MAX_BUCKETS, ZERO, Sketch, shared_number
from .times import DAY_US, HOUR_US, MINUTE_US

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

TOPIC = "training"
EMPTY = -(2**62)
"""Index of a slot in which no bucket has ever been."""
SIZES = 4

Key = tuple[str, ...]
"""A series: metric, model, run; or of tag sums: metric, tag."""


class WindowSettings(msgspec.Struct, frozen=True):
    """Settings of windows.

    Attributes:
        max_series: series (and tag sums) of a tenant in a partition that have windows; further ones keep lifetime sums only.
    """

    max_series: Annotated[int, msgspec.Meta(ge=0)] = 20_000


class NonFinite(msgspec.Struct, array_like=True, gc=False):
    """Values that were no finite numbers, by kind."""

    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0

    def add(self, value: str | float) -> None:
        """Count one: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``."""
        if value == "Infinity":
            self.pos_inf += 1
        elif value == "-Infinity":
            self.neg_inf += 1
        else:
            self.nan += 1

    def merge(self, other: NonFinite) -> None:
        """Count those of another set too."""
        self.nan += other.nan
        self.pos_inf += other.pos_inf
        self.neg_inf += other.neg_inf


class Series(msgspec.Struct, array_like=True, gc=False):
    """Lifetime sums of a series. Small, because every value writes it; its sketch is spread over the buckets.

    Attributes:
        n, mean, m2, min, max: of the finite values, as in `tables.moments.Moments`.
        last_us, last: time and value of the latest finite value.
        oldest_us, newest_us: least and greatest time of any value.
        non_finite: None while there are none.
        late, expired: values by size of window (1 min, 5 min, 1 h, 1 day); None while there are none.
        created: offset of the record that brought the first value.
        windowed: whether it is one of the tenant's first `max_series`.
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float = inf
    max: float = -inf
    last_us: int = EMPTY
    last: float | None = None
    oldest_us: int = -EMPTY
    newest_us: int = EMPTY
    non_finite: NonFinite | None = None
    late: list[int] | None = None
    expired: list[int] | None = None
    created: int = -1
    windowed: bool = False

    def moments(self) -> Moments:
        """Sums of all finite values."""
        return Moments(self.n, self.mean, self.m2, self.min, self.max)

    def seen(self, time_us: int) -> None:
        """A value came, finite or not."""
        if time_us > self.newest_us:
            self.newest_us = time_us
        if time_us < self.oldest_us:
            self.oldest_us = time_us

    def add(self, y: float, time_us: int) -> None:
        """Take in one finite value."""
        n = self.n = self.n + 1
        old = self.mean
        d = y - old
        mean = old + d / n
        if mean - mean != 0.0:  # as Moments.add
            mean = old * ((n - 1) / n) + y / n
            self.m2 = inf
        else:
            self.m2 += d * (y - mean)
        self.mean = mean
        if y < self.min:
            self.min = y
        if y > self.max:
            self.max = y
        if time_us >= self.last_us:
            self.last_us = time_us
            self.last = y


class Bucket(msgspec.Struct, array_like=True, gc=False):
    """The values of one series in one span of time.

    Attributes:
        index: of the span: its start divided by its size; `EMPTY` in a fresh slot.
        n, mean, m2, min, max: of the finite values, as in `tables.moments.Moments`.
        mean_x, m2_x, cxy: with x = hours since the bucket's start, as in `tables.moments.Pairs`.
        sketch: of the finite values.
        non_finite: None while there are none.
        late: values that came late for the window of each size; None while there are none.
    """

    index: int = EMPTY
    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float = inf
    max: float = -inf
    mean_x: float = 0.0
    m2_x: float = 0.0
    cxy: float = 0.0
    sketch: Sketch = msgspec.field(default_factory=Sketch)
    non_finite: NonFinite | None = None
    late: list[int] | None = None

    def add(self, x: float, y: float) -> None:
        """Take in one finite value.

        Args:
            x: hours since the bucket's start.
            y: the value.
        """
        n = self.n = self.n + 1
        old = self.mean
        d = y - old
        mean = old + d / n
        dx = x - self.mean_x
        mean_x = self.mean_x = self.mean_x + dx / n
        self.m2_x += dx * (x - mean_x)
        if mean - mean != 0.0:  # the difference of two huge values is no finite number, their mean is
            mean = old * ((n - 1) / n) + y / n
            self.m2 = inf
            self.cxy = inf
        else:
            rest = y - mean
            self.m2 += d * rest
            self.cxy += dx * rest
        self.mean = mean
        if y < self.min:
            self.min = y
        if y > self.max:
            self.max = y
        sketch = self.sketch
        if y >= ZERO:  # the common case of Sketch.add, without the call
            i = ceil(log(y) / LOG_GAMMA)
            store = sketch.positive
            if i in store:
                store[i] += 1
            else:
                store[shared_number(i, i)] = 1
                if len(store) > MAX_BUCKETS:
                    sketch.collapse(store)
        else:
            sketch.add(y)

    def merge(self, other: Bucket, shift_hours: float) -> None:
        """Take in the values of another span.

        Args:
            other: stays as it is.
            shift_hours: from this bucket's start to the other's.
        """
        nb = other.n
        if nb:
            na = self.n
            n = self.n = na + nb
            if na:
                part = nb / n
                weight = na * nb / n
                d = other.mean - self.mean
                mean = self.mean + d * part
                dx = other.mean_x + shift_hours - self.mean_x
                self.mean_x += dx * part
                self.m2_x += other.m2_x + dx * dx * weight
                if mean - mean != 0.0:  # as Moments.merge
                    mean = self.mean * (na / n) + other.mean * part
                    self.m2 = self.cxy = inf
                else:
                    self.m2 += other.m2 + d * d * weight
                    self.cxy += other.cxy + dx * d * weight
                self.mean = mean
            else:
                self.mean, self.m2, self.mean_x, self.m2_x, self.cxy = (
                    other.mean,
                    other.m2,
                    other.mean_x + shift_hours,
                    other.m2_x,
                    other.cxy,
                )
            if other.min < self.min:
                self.min = other.min
            if other.max > self.max:
                self.max = other.max
            self.sketch.merge(other.sketch)
        if other.non_finite is not None:
            if self.non_finite is None:
                self.non_finite = NonFinite()
            self.non_finite.merge(other.non_finite)
        if other.late is not None:
            self.late = added(self.late, other.late)

    def take(self) -> Bucket:
        """Move the content out; the bucket is as fresh afterwards."""
        values = msgspec.structs.astuple(self)
        for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(Bucket()), strict=True):
            setattr(self, name, value)
        return Bucket(*values)

    def moments(self) -> Moments:
        """Sums of the values."""
        return Moments(self.n, self.mean, self.m2, self.min, self.max)

    def pairs(self) -> Pairs:
        """Sums of (hours since the bucket's start, value)."""
        return Pairs(self.n, self.mean_x, self.m2_x, self.mean, self.m2, self.cxy)


class Residue(msgspec.Struct, array_like=True, gc=False):
    """What has left the last ring of a series: only its sketch; the sums are in the series' row."""

    sketch: Sketch = msgspec.field(default_factory=Sketch)


class SeriesCount(msgspec.Struct, array_like=True, gc=False):
    """How many series of a tenant have windows in this partition."""

    n: int = 0


class Span(NamedTuple):
    """A size of window: how long it is kept (event time behind the watermark), and when a value is late for it."""

    name: str
    size_us: int
    kept_us: int
    grace_us: int


SPANS = (
    Span("1m", MINUTE_US, 6 * HOUR_US, 10 * MINUTE_US),
    Span("5m", 5 * MINUTE_US, 2 * DAY_US, 10 * MINUTE_US),
    Span("1h", HOUR_US, 30 * DAY_US, 10 * MINUTE_US),
    Span("1d", DAY_US, 400 * DAY_US, DAY_US),
)
HOURLY = 2
"""Place of the size of 1 h."""
RINGS = tuple(span.kept_us // span.size_us + 2 for span in SPANS)
"""Slots a ring: one more than can be kept at once, so that a newer bucket only ever displaces one that is not."""
SLOTS = tuple(str(i) for i in range(max(RINGS)))


def added(into: list[int] | None, counts: list[int]) -> list[int]:
    """Sums of two lists of counts by size."""
    return list(counts) if into is None else [a + b for a, b in zip(into, counts, strict=True)]


def judged(time_us: int, watermark_us: int, behind: tuple[int, ...]) -> list[int]:
    """1 for each size whose window of this time ended at least `behind` (by size, microseconds) before the watermark."""
    return [int((time_us // span.size_us + 1) * span.size_us + wait <= watermark_us) for span, wait in zip(SPANS, behind, strict=True)]


GRACES = tuple(span.grace_us for span in SPANS)
KEPT = tuple(span.kept_us for span in SPANS)


class SeriesWindows:
    """One kind of series in one partition's rows: their lifetime sums, and rings of windows from the finest size up.

    Args:
        prefix: first part of the tables' names.
        series: name of the table of lifetime sums.
        finest: place in `SPANS` of the size that values enter.
        counted: whether late and expired values count in ``/status``: once an event, so not for its tags again.
        bounds: settings.

    Attributes:
        rings: window tables by place in `SPANS`; None for the sizes below the finest.
    """

    def __init__(self, prefix: str, series: str, *, finest: int, counted: bool, bounds: WindowSettings) -> None:
        self.bounds = bounds
        self.finest = finest
        self.counted = counted
        self.residue = Table(f"{prefix}_residue", Residue, rank=40, settings=bounds)
        self.rings = tuple(
            Table(f"{prefix}_{span.name}", Bucket, rank=44 - level, settings=bounds) if level >= finest else None for level, span in enumerate(SPANS)
        )
        self.series = Table(series, Series, rank=45, settings=bounds)
        self.count = Table(f"{series}_count", SeriesCount, rank=46, settings=bounds)
        self.all: tuple[Table[Any], ...] = (self.residue, *(ring for ring in reversed(self.rings) if ring is not None), self.series, self.count)
        self._size_us = SPANS[finest].size_us
        self._patience_us = self._size_us + SPANS[finest].grace_us
        self._ring = RINGS[finest]
        self._first: Table[Bucket] = self.ring(finest)

    @cached_property
    def source(self) -> Source[list[Series]]:
        """The series, for lists of them."""
        return states_of(self.series)

    def ring(self, level: int) -> Table[Bucket]:
        """Window table of a size, which is not below the finest."""
        table = self.rings[level]
        assert table is not None
        return table

    # ---- absorbing

    def absorb(self, p: Partition, tenant: str, figures: Sequence[tuple[Any, ...]]) -> None:
        """Take in the figures of one event.

        Args:
            p: reads offset and time of the current record.
            tenant: owner.
            figures: a series' key followed by the value; no series twice; the value a number, "NaN", "Infinity" or "-Infinity".
        """
        time_us = p.time_us
        watermark_us = p.watermark(tenant)
        index = time_us // self._size_us
        late = expired = None
        if watermark_us is not None and index * self._size_us + self._patience_us <= watermark_us:
            late = judged(time_us, watermark_us, GRACES)
            if self.counted:
                p.count_as(late=1)
            expired = judged(time_us, watermark_us, KEPT)
            if not expired[self.finest]:
                expired = None
            elif self.counted:
                p.count_as(expired=1)
        if late is None:
            figures = self._plain(p, tenant, figures, time_us, index)
        one, created = self._one, 0
        for figure in figures:
            created += one(p, tenant, figure[:-1], figure[-1], time_us, index, late, expired, created)
        if created:
            count = p.open(self.count, tenant, ())
            if count is not None:
                count.n += created

    def _plain(self, p: Partition, tenant: str, figures: Sequence[tuple[Any, ...]], time_us: int, index: int) -> list[tuple[Any, ...]]:
        """Take in the figures that are plainly numbers of a known series in its open bucket; returns the others, for `_one`.

        The rows are opened in place, as `Partition.open` does, for most of the time of most events goes here. A figure is taken in whole or not
        touched.
        """
        offset, table, first = p.offset, self.series, self._first
        rows, buckets = p.spaces[table.index].get(tenant), p.spaces[first.index].get(tenant)
        if rows is None or buckets is None:
            return list(figures)
        find, find_bucket = rows.get, buckets.get
        dirty, dirty_bucket = p.dirty[table.index].add, p.dirty[first.index].add
        slot = (SLOTS[index % self._ring],)
        x = (time_us - index * self._size_us) / HOUR_US
        others = []
        for figure in figures:
            key, y = figure[:-1], figure[-1]
            row, row_of_bucket = find(key), find_bucket(key + slot)
            if row is None or row_of_bucket is None or row.applied >= offset or row_of_bucket.applied >= offset or y.__class__ is not float:
                others.append(figure)
                continue
            series: Any = row.state
            bucket: Any = row_of_bucket.state
            if series.__class__ is not Series or bucket.__class__ is not Bucket or bucket.index != index or not series.windowed:
                others.append(figure)
                continue
            row.applied = row_of_bucket.applied = offset
            dirty(row)
            dirty_bucket(row_of_bucket)
            series.seen(time_us)
            series.add(y, time_us)
            bucket.add(x, y)
        return others

    def _one(
        self,
        p: Partition,
        tenant: str,
        key: Key,
        value: float | str,
        time_us: int,
        index: int,
        late: list[int] | None,
        expired: list[int] | None,
        created: int,
    ) -> int:
        """Take in one figure; returns how many series with windows that created: 0 or 1.

        Args:
            index: of the window of the finest size.
            late, expired: 1 for each size for which it is; None where it is for none.
            created: series that the same event created before.
        """
        series = p.open(self.series, tenant, key)
        if series is None:  # absorbed, and so are its windows; the number of series may still be behind
            known = self.series.load(p.space(self.series, tenant)[key])  # what it was created as never changes
            return int(known.created == p.offset and known.windowed)
        brought = 0
        if series.created < 0:
            series.created = p.offset
            if self._count(p, tenant) + created < self.bounds.max_series:
                series.windowed = True
                brought = 1
            else:
                p.count_as(overflow=1)
        newest = series.newest_us // self._size_us
        series.seen(time_us)
        if late is not None:
            series.late = added(series.late, late)
            if expired is not None:
                series.expired = added(series.expired, expired)
        if value.__class__ is str:
            if series.non_finite is None:
                series.non_finite = NonFinite()
            series.non_finite.add(value)
        else:
            series.add(value, time_us)  # type: ignore[arg-type]  # strings are above
        if not series.windowed:
            return brought
        if expired is not None:
            level = expired.index(0, self.finest) if 0 in expired[self.finest :] else SIZES
            origin = min(level, SIZES - 1)
            self._rise(p, tenant, key, level, self._alone(origin, time_us, value, late), origin)
            return brought
        bucket = p.open(self._first, tenant, (*key, SLOTS[index % self._ring]))
        if bucket is None:
            return brought
        if bucket.index != index:
            if bucket.index > index:  # a newer one has the slot, so this one is not kept
                self._rise(p, tenant, key, self.finest + 1, self._alone(self.finest, time_us, value, late), self.finest)
                return brought
            displaced = bucket.take() if bucket.index != EMPTY else None
            bucket.index = index
            if displaced is not None:
                self._rise(p, tenant, key, self.finest + 1, displaced, self.finest)
            if newest < index:
                self._pack(p, tenant, key, self.finest, newest, index)
        if late is not None:
            bucket.late = added(bucket.late, late)
        if value.__class__ is str:
            if bucket.non_finite is None:
                bucket.non_finite = NonFinite()
            bucket.non_finite.add(value)
        else:
            bucket.add((time_us - index * self._size_us) / HOUR_US, value)  # type: ignore[arg-type]  # strings are above
        return brought

    def _count(self, p: Partition, tenant: str) -> int:
        state = p.read(self.count, tenant, ())
        return 0 if state is None else state.n

    def _pack(self, p: Partition, tenant: str, key: Key, level: int, past: int, index: int) -> None:
        """Now that there is a bucket of a later index, the past one and the one before it have hardly more to come: packed, a row takes half the memory."""
        table, ring = self.ring(level), RINGS[level]
        find = p.space(table, tenant).get
        for slot in {past % ring, (past - 1) % ring} - {index % ring}:
            table.pack(find((*key, SLOTS[slot])))

    def _alone(self, level: int, time_us: int, value: float | str, late: list[int] | None) -> Bucket:
        """A bucket with one value."""
        size = SPANS[level].size_us
        bucket = Bucket(index=time_us // size, late=late)
        if isinstance(value, str):
            bucket.non_finite = NonFinite()
            bucket.non_finite.add(value)
        else:
            bucket.add((time_us - bucket.index * size) / HOUR_US, value)
        return bucket

    def _rise(self, p: Partition, tenant: str, key: Key, level: int, content: Bucket, origin: int) -> None:
        """Put content into its slot of a size, and what that displaces into the next, up to the residue.

        A row that has absorbed the record already had the rest of the way behind it when it was written: so it ends there.

        Args:
            level: size to put it into.
            content: of the size `origin`, at most `level`.
        """
        while level < SIZES:
            size = SPANS[level].size_us
            start_us = content.index * SPANS[origin].size_us
            index = start_us // size
            slot = p.open(self.ring(level), tenant, (*key, SLOTS[index % RINGS[level]]))
            if slot is None:
                return
            if slot.index > index:  # a newer one has the slot: the content goes on
                level += 1
                continue
            displaced = slot.take() if EMPTY != slot.index < index else None
            if slot.index < index:
                self._pack(p, tenant, key, level, index - 1, index)
            slot.index = index
            slot.merge(content, (start_us - index * size) / HOUR_US)
            if displaced is None:
                return
            content, origin = displaced, level
            level += 1
        residue = p.open(self.residue, tenant, key)
        if residue is not None:
            residue.sketch.merge(content.sketch)

    # ---- reading

    def lifetime(self, reader: Reader, key: Key) -> tuple[Moments, Sketch]:
        """Sums and sketch of everything a series has ever had, over all partitions."""
        moments, sketch = Moments(), Sketch()
        for series in reader.rows(self.series, key):
            moments.merge(series.moments())
        for residue in reader.rows(self.residue, key):
            sketch.merge(residue.sketch)
        for level in range(self.finest, SIZES):
            for slot in SLOTS[: RINGS[level]]:
                for bucket in reader.rows(self.ring(level), (*key, slot)):
                    sketch.merge(bucket.sketch)
        return moments, sketch


class Windows(Fold, SeriesWindows):
    """Series and tag sums, and their windows.

    Args:
        settings: bounds.
    """

    def __init__(self, settings: WindowSettings | None = None) -> None:
        from .window_views import views  # here, because the views read these tables

        self.settings = settings or WindowSettings()
        SeriesWindows.__init__(self, "window", "series", finest=0, counted=True, bounds=self.settings)
        self.tags = SeriesWindows("tag", "tag_sums", finest=HOURLY, counted=False, bounds=self.settings)
        self.tables = (*self.all, *self.tags.all)
        self.handlers = {MetricRecorded: self.recorded, LearningRecorded: self.learned}
        self.topics = (TOPIC,)
        self.views = views(self)

    def recorded(self, e: Event, p: Partition) -> None:
        """A metric: its `value` and each of its `values`."""
        data: MetricRecorded = e.data
        value, values = data.value, data.values
        metric, model, run = data.metric_type, data.model, data.run or ""
        if not values:
            if value is None:
                return
            self.absorb(p, e.tenant, ((metric, model, run, value),))
            if data.tags:
                self.tags.absorb(p, e.tenant, [(metric, tag, value) for tag in dict.fromkeys(data.tags)])
            return
        named = [(f"{metric}.{name}", x) for name, x in values.items()]
        if value is not None:
            named.append((metric, value))
        self.absorb(p, e.tenant, [(name, model, run, x) for name, x in named])
        if data.tags:
            tags = dict.fromkeys(data.tags)
            self.tags.absorb(p, e.tenant, [(name, tag, x) for name, x in named for tag in tags])

    def learned(self, e: Event, p: Partition) -> None:
        """A learning event: four series, with the task type in the place of the model."""
        data: LearningRecorded = e.data
        task, run = data.task_type, data.run or ""
        self.absorb(
            p,
            e.tenant,
            (
                ("learning.performance_score", task, run, data.performance_score),
                ("learning.learning_rate", task, run, data.learning_rate),
                ("learning.convergence_metric", task, run, data.convergence_metric),
                ("learning.episode_count", task, run, float(data.episode_count)),
            ),
        )
