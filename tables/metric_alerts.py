"""Alert rules on each series of metrics: values that are no numbers, plateaus, degradation, anomalies.

The rules this file keeps:
  * all four are ordered: judged in the log's order of the series' home partition, after each value; late values are values;
  * values that are no finite numbers feed ``metric.nonfinite`` only; the other rules see the finite ones, without gaps;
  * a value costs the same however long the series is. The last 100 finite values are 50 in an open segment and two closed ones,
    of which a flush writes the open one.

Rank: what a rule knows (`watch`) reads the segments, and a closed segment is made from the open one, which is written last. So where
the open segment has a record, everything of the series has it.

A series is (metric, model, run) as in `windows`. Its first `max_series` a tenant and partition are watched.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum
from struct import Struct
from typing import TYPE_CHECKING, Annotated

import msgspec

from streams.events import MetricRecorded

from .alerting import LEVELS, emit
from .fold import Fold
from .metric_alert_views import views
from .outliers import WINDOW, Running, score
from .rows import Table, escape
from .steps import within
from .times import day

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .windows import Key

TOPIC = "training"
SEGMENT = 50
"""Values a segment; two of them are the window of `outliers`."""
BASELINE = "baseline"
"""Tag of the values that degradation is measured against."""
LAST = 10
"""Values whose mean is judged for degradation."""
NEVER = -(2**62)

OK, INFO, WARNING, CRITICAL = (LEVELS.index(level) for level in ("ok", "info", "warning", "critical"))
PLATEAU, LOWER, HIGHER = 1, 2, 4

_DOUBLE = Struct("<d")
_FULL = SEGMENT * _DOUBLE.size
_PLACES = (("0",), ("1",))

Ratio = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Names = tuple[str, ...]
Many = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Sigmas = Annotated[float, msgspec.Meta(gt=0)]


class MetricAlertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the alert rules on metrics.

    Attributes:
        metric_z: standard deviations from the mean of the values before, beyond which a value is an outlier.
        metric_z_alone: beyond which one outlier opens ``metric.anomaly``.
        metric_z_critical: beyond which it is critical.
        metric_z_row: outliers in a row on one side that open it.
        metric_z_calm: values without an outlier after which it resolves.
        metric_z_least: values before a value from which it is judged; at most 100 are looked at.
        nonfinite_critical: values in a row that are no numbers at which ``metric.nonfinite`` is critical.
        nonfinite_calm: finite values in a row after which it resolves.
        plateau_metrics: last part of the names of the metrics that ``metric.plateau`` watches.
        plateau_step: largest step between two values of a plateau, inclusive.
        plateau_values: values in a row that make a plateau.
        degraded_falling: last part of the names of the metrics that should fall and that ``metric.degraded`` watches.
        degraded_rising: the same of those that should rise.
        degraded_warning: share of the baseline by which the mean of the last 10 values may be worse.
        degraded_critical: share by which it is critical.
        degraded_clear: share within which it resolves.
        degraded_least: values of a series from which it is judged.
        degraded_noise: standard errors of the difference of two such means by which it must be worse besides to open the alert, by the
            standard deviation of the up to 100 values before; 0 = no such condition. For figures of single batches take 5.
    """

    metric_z: Sigmas = 3.0
    metric_z_alone: Sigmas = 6.0
    metric_z_critical: Sigmas = 10.0
    metric_z_row: Many = 3
    metric_z_calm: Many = 20
    metric_z_least: Annotated[int, msgspec.Meta(ge=2, le=WINDOW)] = 30
    nonfinite_critical: Many = 3
    nonfinite_calm: Many = 10
    plateau_metrics: Names = ("mse", "rmse", "mae", "loss")
    plateau_step: Annotated[float, msgspec.Meta(ge=0)] = 0.001
    plateau_values: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 5
    degraded_falling: Names = ("mse", "rmse", "mae", "loss")
    degraded_rising: Names = ("accuracy", "f1")
    degraded_warning: Ratio = 0.1
    degraded_critical: Ratio = 0.25
    degraded_clear: Ratio = 0.05
    degraded_least: Annotated[int, msgspec.Meta(ge=LAST, le=10_000)] = 20
    degraded_noise: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class WatchSettings(msgspec.Struct, frozen=True):
    """What the rows depend on: its digest is part of their version."""

    rules: MetricAlertSettings
    max_series: int


class Watch(msgspec.Struct, array_like=True, gc=False):
    """What the rules know of a series.

    Attributes:
        kind: which rules watch it, by its name: PLATEAU, LOWER (should fall), HIGHER (should rise); -1: not yet looked at.
        n: finite values.
        last: the last finite value in the log's order.
        same: how many values in a row equal it.
        running: sums of the last 100.
        outliers: values that were one, ever.
        row: outliers in a row: positive above the mean, negative below.
        calm: values since the last outlier.
        anomaly, non_finite, plateau, degraded: places in LEVELS that were told last.
        anomaly_us, non_finite_us, plateau_us, degraded_us: event time of the record that opened the alert.
        bad, good: values in a row that were no numbers; that were.
        steady: steps in a row that were small enough for a plateau.
        lately: last 10 values, of a metric that should fall or rise.
        best: best mean of 10 consecutive values before the last; None: none yet.
        tagged, tagged_us: latest value tagged `baseline`, and its event time.
        baseline: what degradation is measured against while its alert stands.
    """

    kind: int = -1
    n: int = 0
    last: float = 0.0
    same: int = 0
    running: Running = msgspec.field(default_factory=Running)
    outliers: int = 0
    row: int = 0
    calm: int = 0
    anomaly: int = OK
    anomaly_us: int = NEVER
    bad: int = 0
    good: int = 0
    non_finite: int = OK
    non_finite_us: int = NEVER
    steady: int = 0
    plateau: int = OK
    plateau_us: int = NEVER
    lately: list[float] | None = None
    best: float | None = None
    tagged: float | None = None
    tagged_us: int = NEVER
    degraded: int = OK
    degraded_us: int = NEVER
    baseline: float = 0.0


class OpenSegment(msgspec.Struct, array_like=True, gc=False):
    """The newest values of a series.

    Attributes:
        n: finite values of the series.
        values: the last 1 to 50 of them, doubles in little-endian order.
    """

    n: int = 0
    values: bytearray = msgspec.field(default_factory=bytearray)


class ClosedSegment(msgspec.Struct, array_like=True, gc=False):
    """50 values; segment i of a series is in slot i mod 2."""

    values: bytes = b""


def doubles(raw: bytes | bytearray) -> list[float]:
    """Values of a segment."""
    return [value for (value,) in _DOUBLE.iter_unpack(raw)]


class MetricAlerts(Fold):
    """Watches every series of metrics.

    Args:
        settings: of the rules.
        max_series: series of a tenant in a partition that are watched.
    """

    topics = (TOPIC,)

    def __init__(self, settings: MetricAlertSettings | None = None, max_series: int = 20_000) -> None:
        self.settings = rules = settings or MetricAlertSettings()
        self.max_series = max_series
        both = WatchSettings(rules, max_series)
        self.watches = Table("metric_watches", Watch, rank=47, settings=both)
        self.closed = Table("metric_values_closed", ClosedSegment, rank=48, settings=both)
        self.newest = Table("metric_values", OpenSegment, rank=49, settings=both)
        self.tables = (self.watches, self.closed, self.newest)
        self.handlers = {MetricRecorded: self.recorded}
        self.views = views(self)
        self._limit2 = rules.metric_z * rules.metric_z

    # ---- absorbing

    def recorded(self, e: Event, p: Partition) -> None:
        """A metric: its `value` and each of its `values`."""
        data: MetricRecorded = e.data  # type: ignore[assignment]  # dispatched by type
        value, values = data.value, data.values
        metric, model, run = data.metric_type, data.model, data.run or ""
        tagged = BASELINE in data.tags
        if value is not None:
            self._one(e, p, (metric, model, run), value, tagged)
        if values:
            for name, x in values.items():
                self._one(e, p, (f"{metric}.{name}", model, run), x, tagged)

    def _one(self, e: Event, p: Partition, key: Key, value: float | str, tagged: bool) -> None:
        tenant = e.tenant
        space = p.space(self.newest, tenant)
        if len(space) >= self.max_series and key not in space:
            return
        newest = p.open(self.newest, tenant, key)
        if newest is None:
            return
        watch = p.open(self.watches, tenant, key)
        if watch is not None and watch.kind < 0:
            watch.kind = self._kind(key[0])
        if value.__class__ is str:
            if watch is not None:
                self._non_finite(e, p, key, watch, value)  # type: ignore[arg-type]  # strings only
            return
        x: float = value  # type: ignore[assignment]  # strings are above
        n = newest.n
        if watch is not None:
            self._finite(e, p, key, watch, newest, n, x, tagged)
        at = n % SEGMENT
        if at == 0 and n:
            closed = p.open(self.closed, tenant, (*key, str((n // SEGMENT - 1) % 2)))
            if closed is not None:
                closed.values = bytes(newest.values)
            newest.values.clear()
        newest.values += _DOUBLE.pack(x)
        newest.n = n + 1

    def _kind(self, metric: str) -> int:
        rules, name = self.settings, metric.rpartition(".")[2]
        falling = LOWER if name in rules.degraded_falling else 0
        return (PLATEAU if name in rules.plateau_metrics else 0) | (falling or (HIGHER if name in rules.degraded_rising else 0))

    def before(self, p: Partition, tenant: str, key: Key, newest: OpenSegment) -> list[float]:
        """The last up to 100 values, the current one not among them; in no order that matters."""
        n = newest.n
        at = n % SEGMENT
        values = doubles(newest.values)
        if n <= SEGMENT:
            return values
        number = n // SEGMENT  # the segment that a value to come belongs to
        older = p.read(self.closed, tenant, (*key, str(number % 2))) if number >= 2 else None
        if older is not None:
            values += doubles(older.values[at * _DOUBLE.size :])
        if at:
            previous = p.read(self.closed, tenant, (*key, str((number - 1) % 2)))
            if previous is not None:
                values += doubles(previous.values)
        return values

    # ---- the rules

    def _finite(self, e: Event, p: Partition, key: Key, watch: Watch, newest: OpenSegment, n: int, x: float, tagged: bool) -> None:
        """Judge a finite value, and remember what the next one needs of it."""
        rules = self.settings
        if watch.good < rules.nonfinite_calm:
            watch.bad = 0
            watch.good += 1
            if watch.non_finite and watch.good == rules.nonfinite_calm:
                self._calmed(e, p, key, watch)
        leaving: float | None = None
        if n >= WINDOW:
            closed = p.read(self.closed, e.tenant, key + _PLACES[n // SEGMENT % 2])
            if closed is not None:
                (leaving,) = _DOUBLE.unpack_from(closed.values, n % SEGMENT * 8)
        running = watch.running
        last = watch.last
        compared = n if n < WINDOW else WINDOW
        if watch.same >= compared:  # all are equal, or there is none
            running.age = WINDOW
            if compared >= rules.metric_z_least and x != last:
                self._outlier(e, p, key, watch, None, 1 if x > last else -1)
            elif watch.calm < rules.metric_z_calm:
                self._no_outlier(e, p, key, watch, newest, x)
        elif compared >= rules.metric_z_least:
            if running.certainly_inside(x, compared, self._limit2):
                if watch.calm < rules.metric_z_calm:
                    self._no_outlier(e, p, key, watch, newest, x)
                else:
                    watch.row = 0
            else:
                z, mean, m2 = score(self.before(p, e.tenant, key, newest), x)
                running.restart(mean, m2)
                if z is None or abs(z) > rules.metric_z:
                    self._outlier(e, p, key, watch, z, 1 if x > mean else -1)
                else:
                    self._no_outlier(e, p, key, watch, newest, x)
            running.enter(x, leaving)
        kind = watch.kind
        if kind:
            if kind & PLATEAU and n:
                self._plateau(e, p, key, watch, x)
            if kind & (LOWER | HIGHER):
                self._degraded(e, p, key, watch, newest, x, tagged)
        watch.same = watch.same + 1 if n and x == last else 1
        watch.last = x
        watch.n = n + 1

    def _outlier(self, e: Event, p: Partition, key: Key, watch: Watch, z: float | None, side: int) -> None:
        """A value beyond the limit.

        Args:
            z: None where the values before are all equal.
            side: 1 above their mean, -1 below.
        """
        rules = self.settings
        watch.outliers += 1
        watch.calm = 0
        watch.row = row = watch.row + side if watch.row * side > 0 else side
        far = abs(z) if z is not None else 0.0
        if far > rules.metric_z_critical:
            level, threshold = CRITICAL, rules.metric_z_critical
        elif far > rules.metric_z_alone:
            level, threshold = WARNING, rules.metric_z_alone
        elif abs(row) >= rules.metric_z_row:
            level, threshold = WARNING, rules.metric_z
        else:
            return
        previous = watch.anomaly
        if level <= previous:
            return
        if not previous:
            watch.anomaly_us = p.time_us
        watch.anomaly = level
        where = "is off the values before it, which were all equal" if z is None else f"lies {z:.2f} standard deviations off the values before it"
        row_text = f", the {abs(row)}th outlier in a row" if abs(row) > 1 else ""
        text = f"{self._name(key)} {where}{row_text}: check the run or the data that feeds it."
        self._tell(e, p, "metric.anomaly", key, watch.anomaly_us, previous, level, z, threshold, text)

    def _no_outlier(self, e: Event, p: Partition, key: Key, watch: Watch, newest: OpenSegment, x: float) -> None:
        watch.row = 0
        watch.calm += 1
        previous = watch.anomaly
        if previous and watch.calm >= self.settings.metric_z_calm:
            watch.anomaly = OK
            z = score(self.before(p, e.tenant, key, newest), x)[0]
            text = f"{self._name(key)} had {watch.calm} values in a row without an outlier: it looks normal again."
            self._tell(e, p, "metric.anomaly", key, watch.anomaly_us, previous, OK, z, self.settings.metric_z, text, "calm")

    def _non_finite(self, e: Event, p: Partition, key: Key, watch: Watch, value: str) -> None:
        """Judge a value that is no finite number."""
        critical = self.settings.nonfinite_critical
        watch.good = 0
        watch.bad = bad = watch.bad + 1
        previous = watch.non_finite
        level = CRITICAL if bad >= critical else WARNING
        if level <= previous:
            return
        if not previous:
            watch.non_finite_us = p.time_us
        watch.non_finite = level
        times = f"{bad} times in a row" if bad > 1 else "once"
        text = f"{self._name(key)} was no finite number {times}, last {value}: the run may have diverged, stop it or lower its learning rate."
        self._tell(e, p, "metric.nonfinite", key, watch.non_finite_us, previous, level, bad, critical if level == CRITICAL else 1, text)

    def _calmed(self, e: Event, p: Partition, key: Key, watch: Watch) -> None:
        previous, watch.non_finite = watch.non_finite, OK
        text = f"{self._name(key)} had {watch.good} finite values in a row: it is a number again."
        self._tell(e, p, "metric.nonfinite", key, watch.non_finite_us, previous, OK, 0, 1, text, "finite_again")

    def _plateau(self, e: Event, p: Partition, key: Key, watch: Watch, x: float) -> None:
        """Judge the step from the last value to this one."""
        rules = self.settings
        step = rules.plateau_step
        if abs(x - watch.last) <= 2 * step and within(watch.last, x, step):
            watch.steady += 1
            if watch.plateau or watch.steady < rules.plateau_values - 1:
                return
            watch.plateau, watch.plateau_us = INFO, p.time_us
            text = f"{self._name(key)} has moved by at most {step} in each of its last {watch.steady} steps: training may be done, or stuck."
            self._tell(e, p, "metric.plateau", key, p.time_us, OK, INFO, abs(x - watch.last), step, text)
            return
        watch.steady = 0
        if watch.plateau:
            watch.plateau = OK
            text = f"{self._name(key)} moved by more than {step} again: the plateau is over."
            self._tell(e, p, "metric.plateau", key, watch.plateau_us, INFO, OK, abs(x - watch.last), step, text, "moved")

    def _degraded(self, e: Event, p: Partition, key: Key, watch: Watch, newest: OpenSegment, x: float, tagged: bool) -> None:
        """Judge the mean of the last 10 values, this one among them."""
        if tagged and p.time_us >= watch.tagged_us:
            watch.tagged, watch.tagged_us = x, p.time_us
        lately = watch.lately
        if lately is None:
            lately = watch.lately = []
        lately.append(x)
        if len(lately) <= LAST - 1:
            return
        if len(lately) > LAST:
            del lately[0]
        mean = mean_of(lately)
        sign = 1.0 if watch.kind & LOWER else -1.0
        baseline = watch.baseline if watch.degraded else watch.tagged if watch.tagged is not None else watch.best
        if (
            baseline is not None
            and baseline > 0
            and watch.n + 1 >= self.settings.degraded_least
            and (watch.degraded or mean * sign > (1 + sign * self.settings.degraded_warning) * baseline * sign)
            and (watch.degraded or not self.settings.degraded_noise or self._beyond_noise(p, e.tenant, key, newest, x, (mean - baseline) * sign))
        ):
            self._measure(e, p, key, watch, mean, baseline, sign)
        if watch.best is None or mean * sign < watch.best * sign:
            watch.best = mean

    def _beyond_noise(self, p: Partition, tenant: str, key: Key, newest: OpenSegment, x: float, worse: float) -> bool:
        """Whether a mean of 10 values is worse than the baseline by more than noise: the best of many such means is so good by luck alone.

        Args:
            worse: by how much.
        """
        values = self.before(p, tenant, key, newest)
        error2 = 2.0 / LAST * score(values, x)[2] / (len(values) - 1)  # squared standard error of the difference of two means
        return not worse * worse <= self.settings.degraded_noise**2 * error2

    def _measure(self, e: Event, p: Partition, key: Key, watch: Watch, mean: float, baseline: float, sign: float) -> None:
        """Compare a mean with the baseline.

        Args:
            sign: 1.0 where lower is better, -1.0 where higher is.
        """
        rules = self.settings
        warning = (1 + sign * rules.degraded_warning) * baseline
        critical = (1 + sign * rules.degraded_critical) * baseline
        previous = watch.degraded
        if mean * sign > critical * sign:
            level = CRITICAL
        elif mean * sign > warning * sign or (previous and mean * sign > (1 + sign * rules.degraded_clear) * baseline * sign):
            level = WARNING
        else:
            level = OK
        if level == previous:
            return
        watch.degraded = level
        if not previous:
            watch.degraded_us, watch.baseline = p.time_us, baseline
        better = "below" if sign > 0 else "above"
        against = f"its mean of the last {LAST} values is {mean:.6g} against a baseline of {baseline:.6g}"
        if level == OK:
            text, reason = f"{self._name(key)} has recovered: {against}.", "recovered"
        else:
            text, reason = f"{self._name(key)} should stay {better} {warning:.6g}, but {against}: check what changed, or go back.", None
        self._tell(e, p, "metric.degraded", key, watch.degraded_us, previous, level, mean, critical if level == CRITICAL else warning, text, reason)

    # ---- messages

    def _name(self, key: Key) -> str:
        metric, model, run = key
        return f"{metric} of model {model}" + (f", run {run}," if run else "")

    def _tell(
        self,
        e: Event,
        p: Partition,
        rule: str,
        key: Key,
        opened_us: int,
        previous: int,
        level: int,
        value: float | None,
        threshold: float,
        message: str,
        reason: str | None = None,
    ) -> None:
        emit(
            p,
            e,
            rule=rule,
            subject=subject(key),
            period=day(opened_us),
            previous=LEVELS[previous],
            level=LEVELS[level],
            value=value,
            threshold=threshold,
            reason=reason,
            message=message,
        )


def subject(key: Iterable[str]) -> str:
    """Subject of a series: metric, model and, where it has one, run, joined as record keys are."""
    return "|".join(escape(part) for part in key if part)


def mean_of(values: list[float]) -> float:
    """Mean of a few finite values, rounded once and in any order alike."""
    try:
        return fsum(values) / len(values)
    except OverflowError:  # the sum is no double, the mean is
        return fsum([value / len(values) for value in values])
