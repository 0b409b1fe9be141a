"""Calibration: how often forecasts come true against how sure they were, by model.

The rules this file keeps:
  * the probability of a resolution is its own, else the confidence of the forecast it resolves, else there is none: what cannot
    be joined is counted, never guessed;
  * a forecast is resolved once. A second resolution is counted and not folded as long as the first is remembered;
  * the alert's sums over the last resolutions are of whole numbers, so that what leaves them leaves nothing behind.

The rows of a model are made from what is remembered of its forecasts, and that from how many were issued: in this order they
are written, and read before what they read is opened.

Source: Brier, "Verification of forecasts expressed in terms of probability" (1950); expected calibration error over ten bins
of equal width.
"""

from __future__ import annotations

from bisect import bisect_right
from math import isfinite, log, sqrt
from typing import TYPE_CHECKING, Any

import msgspec

from streams.events import ForecastIssued, ForecastResolved
from streams.keys import encode_key

from .alerting import LEVELS, emit
from .fold import Fold, NotFound, Reader, View
from .forecast_memory import ISSUED, RESOLVED, UNKNOWN, Issued, Remembered, digest_of, find, remember, row_of
from .moments import plain_sum
from .rows import Table
from .times import day, rfc3339_or_none
from .variable_states import TOPIC, FoldSettings, Model, VariableSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.events import Event

    from .partition import Partition

ALERT = "forecast.calibration"
LAST = 100
"""Resolutions that the alert looks at."""
ALERT_MIN_N = 50
ALERT_ECE, CALM_ECE = 0.2, 0.15
"""Calibration error above which the alert opens, and from which down it resolves."""
OK, INFO = LEVELS[0], LEVELS[1]

BINS = 10
EDGES = [k / BINS for k in range(1, BINS)]
CLIP = 1e-12
ONE = 1 << 56
"""A probability of 1 as a whole number: all others from 1/16 on, and so the edges of the bins, are exact in such units."""


class Calibration(msgspec.Struct, array_like=True, gc=False):
    """What the resolutions of one model say.

    Attributes:
        resolved: resolutions folded; `re_resolved` were not.
        by_probability, by_confidence: those of them with a probability of their own, and with that of the issued forecast.
        unjoined: those that had none, since their forecast is not known.
        brier, log_loss: sums.
        bin_n, bin_p, bin_y: resolutions by bin of probability, sums of it, and successes.
        errors, error, error_abs, error2: forecasts with a prediction and an actual value, and means of prediction - actual, of its
            size and of its square.
    """

    resolved: int = 0
    re_resolved: int = 0
    by_probability: int = 0
    by_confidence: int = 0
    unjoined: int = 0
    brier: float = 0.0
    log_loss: float = 0.0
    bin_n: list[int] = msgspec.field(default_factory=lambda: [0] * BINS)
    bin_p: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    bin_y: list[int] = msgspec.field(default_factory=lambda: [0] * BINS)
    errors: int = 0
    error: float = 0.0
    error_abs: float = 0.0
    error2: float = 0.0

    @property
    def n(self) -> int:
        """Resolutions with a probability."""
        return self.by_probability + self.by_confidence

    def add(self, p: float, success: bool) -> None:
        """Take in a resolution with a probability."""
        k = bin_of(p)
        self.bin_n[k] += 1
        self.bin_p[k] += p
        self.bin_y[k] += success
        self.brier += (p - success) ** 2
        clipped = min(max(p, CLIP), 1.0 - CLIP)
        self.log_loss -= log(clipped if success else 1.0 - clipped)

    def add_error(self, error: float) -> None:
        """Take in prediction - actual."""
        n = self.errors = self.errors + 1
        self.error += (error - self.error) / n
        self.error_abs += (abs(error) - self.error_abs) / n
        self.error2 += (error * error - self.error2) / n

    def merge(self, other: Calibration) -> None:
        """Take in what another partition says."""
        na, nb = self.errors, other.errors
        if nb:
            part = nb / (na + nb)
            self.error += (other.error - self.error) * part
            self.error_abs += (other.error_abs - self.error_abs) * part
            self.error2 += (other.error2 - self.error2) * part
        for name in ("resolved", "re_resolved", "by_probability", "by_confidence", "unjoined", "brier", "log_loss", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bin_n = [a + b for a, b in zip(self.bin_n, other.bin_n, strict=True)]
        self.bin_p = [a + b for a, b in zip(self.bin_p, other.bin_p, strict=True)]
        self.bin_y = [a + b for a, b in zip(self.bin_y, other.bin_y, strict=True)]

    @property
    def ece(self) -> float | None:
        """Expected calibration error, 0…1; None without probabilities."""
        return plain_sum(abs(p - y) for p, y in zip(self.bin_p, self.bin_y, strict=True)) / self.n if self.n else None


class Recent(msgspec.Struct, array_like=True, gc=False):
    """A model's last resolutions with a probability, and its alert.

    Attributes:
        n: how many it ever had; the oldest of a full ring is at n mod `LAST`.
        ring: for each, the probability in units of 1 / `ONE`, doubled, + 1 for a success.
        bins: for each bin, sum of probability - success in those units.
        open, period: whether the alert is, and the day it was opened.
    """

    n: int = 0
    ring: list[int] = []
    bins: list[int] = msgspec.field(default_factory=lambda: [0] * BINS)
    open: bool = False
    period: str = ""

    def add(self, p: float, success: bool) -> None:
        """Take in a resolution, in the place of the oldest where the ring is full."""
        whole = int(p * ONE)
        entry = whole << 1 | success
        if len(self.ring) < LAST:
            self.ring.append(entry)
        else:
            at = self.n % LAST
            old = self.ring[at]
            self.bins[bin_of((old >> 1) / ONE)] -= (old >> 1) - (old & 1) * ONE
            self.ring[at] = entry
        self.bins[bin_of(whole / ONE)] += whole - success * ONE
        self.n += 1

    @property
    def ece(self) -> float:
        """Calibration error of the last resolutions, 0…1."""
        return sum(map(abs, self.bins)) / (len(self.ring) * ONE) if self.ring else 0.0


class Counted(msgspec.Struct, array_like=True, gc=False):
    """How many forecasts of a tenant were issued in the partition: the last one's number."""

    n: int = 0


def bin_of(p: float) -> int:
    """Which of [0, .1) … [.9, 1] a probability falls into."""
    return bisect_right(EDGES, p)


class Forecasts(Fold):
    """Issued and resolved forecasts, calibration of models, and the ordered alert ``forecast.calibration``.

    Args:
        settings: bounds.
        models: of `Variables`, by which a model that has no resolution yet is told from one that nobody has seen.
    """

    topics = (TOPIC,)

    def __init__(self, settings: VariableSettings | None = None, models: Table[Model] | None = None) -> None:
        settings = settings or VariableSettings()
        reads = FoldSettings(settings.max_variables)
        self.max = settings.max_variables
        self.models = Table("forecast_calibration", Calibration, rank=80, settings=reads)
        self.recent = Table("forecast_calibration_last", Recent, rank=81, settings=reads)
        self.memory = Table("forecast_memory", Remembered, rank=85, version=2, settings=reads)
        self.counted = Table("forecast_count", Counted, rank=86, settings=reads)
        self.tables = (self.models, self.recent, self.memory, self.counted)
        self.handlers = {ForecastIssued: self.issued, ForecastResolved: self.resolved}
        self.views = (calibration_view(self, models),)

    # ---- events

    def issued(self, event: Event, p: Partition) -> None:
        """Count a forecast, and remember it for its resolution."""
        data: ForecastIssued = event.data
        tenant = event.tenant
        number = self._issued_so_far(p, tenant) + 1
        if data.forecast_id != UNKNOWN:
            digest = digest_of(data.model or "", data.forecast_id)
            row = p.open(self.memory, tenant, row_of(digest))
            if row is not None:
                known = find(row, digest, number, p.time_us)
                if known is None or not known.resolved:
                    remember(row, digest, number, p.time_us, data.confidence, data.prediction, data.inputs, ISSUED)
        counted = p.open(self.counted, tenant, ())
        if counted is not None:
            counted.n = number

    def resolved(self, event: Event, p: Partition) -> None:
        """Take in what became of a forecast."""
        data: ForecastResolved = event.data
        tenant, model = event.tenant, data.model or ""
        number = self._issued_so_far(p, tenant)
        digest = digest_of(model, data.forecast_id)
        known = None if data.forecast_id == UNKNOWN else find(p.read(self.memory, tenant, row_of(digest)), digest, number, p.time_us)
        if known is not None and known.resolved:
            state = self._model(p, tenant, model)
            if state is not None:
                state.re_resolved += 1
            return
        probability = data.probability if data.probability is not None or known is None else known.confidence
        state = self._model(p, tenant, model)
        if state is not None:
            state.resolved += 1
            if probability is None:
                state.unjoined += 1
            elif data.probability is None:
                state.by_confidence += 1
            else:
                state.by_probability += 1
            if probability is not None:
                state.add(probability, data.success)
            if data.actual is not None and known is not None and known.prediction is not None:
                error = known.prediction - data.actual
                if isfinite(error):
                    state.add_error(error)
        if probability is not None:
            self._watch(event, p, model, probability, data.success)
        if data.forecast_id != UNKNOWN:
            row = p.open(self.memory, tenant, row_of(digest))
            if row is not None:
                remember(row, digest, number, p.time_us, 0.0, None, {}, RESOLVED)

    def known(self, p: Partition, tenant: str, model: str | None, forecast_id: str) -> Issued | None:
        """The forecast that the current record resolves, with its inputs; None if it is not remembered.

        To be asked by handlers that see the resolution before this fold does.

        Raises:
            Absorbed: this record is in the memory already, and so in all that is written before it (rank 85).
        """
        if forecast_id == UNKNOWN:
            return None
        digest = digest_of(model or "", forecast_id)
        return find(p.read(self.memory, tenant, row_of(digest)), digest, self._issued_so_far(p, tenant), p.time_us)

    # ---- steps

    def _issued_so_far(self, p: Partition, tenant: str) -> int:
        """Number of the last forecast. Where its row is ahead of this record, so are all the others here."""
        counted = p.read(self.counted, tenant, ())
        return 0 if counted is None else counted.n

    def _model(self, p: Partition, tenant: str, model: str) -> Calibration | None:
        """A model's row to change; None where it has this record, or there is no room for it."""
        space = p.space(self.models, tenant)
        if (model,) not in space and len(space) >= self.max:
            p.count_as(overflow=1)
            return None
        return p.open(self.models, tenant, (model,))

    def _watch(self, event: Event, p: Partition, model: str, probability: float, success: bool) -> None:
        """Judge ``forecast.calibration``; forecasts without a model have no subject."""
        space = p.space(self.recent, event.tenant)
        if not model or ((model,) not in space and len(space) >= self.max):
            return
        state = p.open(self.recent, event.tenant, (model,))
        if state is None:
            return
        state.add(probability, success)
        found = state.ece
        if not state.open and found > ALERT_ECE and len(state.ring) >= ALERT_MIN_N:
            state.open, state.period = True, day(p.time_us)
            previous, level = OK, INFO
            says = f"Model {model} is off by {found:.3g} on average over its last {len(state.ring)} resolutions: recalibrate its confidence."
        elif state.open and found <= CALM_ECE:
            state.open = False
            previous, level = INFO, OK
            says = f"Model {model} is calibrated again: off by {found:.3g} over its last {len(state.ring)} resolutions; nothing to do."
        else:
            return
        emit(
            p,
            event,
            rule=ALERT,
            subject=encode_key(model).decode(),
            period=state.period,
            previous=previous,
            level=level,
            value=found,
            threshold=ALERT_ECE,
            message=says,
        )


class CalibrationParams(msgspec.Struct, frozen=True):
    """``/forecasts/calibration``; no model = all of them."""

    model: str | None = None


def rendered(state: Calibration) -> dict[str, Any]:
    """Figures of the answer; null where there is nothing to take a mean of."""
    n, errors = state.n, state.errors

    def mean(x: float) -> float | None:
        return x if errors and isfinite(x) else None

    square = mean(state.error2)
    return {
        "n": n,
        "basis": {"probability": state.by_probability, "confidence": state.by_confidence},
        "brier": state.brier / n if n else None,
        "log_loss": state.log_loss / n if n else None,
        "ece": state.ece,
        "bins": [
            {"low": k / BINS, "high": (k + 1) / BINS, "n": count, "mean_p": p / count if count else None, "rate": y / count if count else None}
            for k, (count, p, y) in enumerate(zip(state.bin_n, state.bin_p, state.bin_y, strict=True))
        ],
        "errors": errors,
        "mean_error": mean(state.error),
        "mae": mean(state.error_abs),
        "rmse": None if square is None else sqrt(square),
        "unjoined": state.unjoined,
        "resolved": state.resolved,
        "re_resolved": state.re_resolved,
    }


def calibration_view(fold: Forecasts, models: Table[Model] | None) -> View:
    """``/forecasts/calibration``"""

    def answer(reader: Reader, params: CalibrationParams) -> dict[str, Any]:
        merged = Calibration()
        if params.model is None:
            found: Iterable[Calibration] = (state for _, states in reader.scan(fold.models) for state in states)
        else:
            found = reader.rows(fold.models, (params.model,))
            if not found and models is not None and not reader.rows(models, (params.model,)):
                raise NotFound(f"no forecast of the model {params.model} was issued or resolved")
        for state in found:
            merged.merge(state)
        return {"model": params.model, **rendered(merged), "as_of": rfc3339_or_none(reader.as_of())}

    return View("/forecasts/calibration", CalibrationParams, answer, (TOPIC,), "How often forecasts came true against how sure they were, and their errors.")
