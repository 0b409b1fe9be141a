"""Trust: its settings, and what a key keeps.

The rule this file keeps: a key costs the same however much it has absorbed, pseudo-counts and the open segment of its history.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Annotated, Any

import msgspec

from .alerting import LEVELS

TOPIC = "judgments"
OK, WARNING, CRITICAL = (LEVELS.index(name) for name in ("ok", "warning", "critical"))
LONG_AGO = -(2**62)
"""Before every event time, microseconds."""

Positive = Annotated[float, msgspec.Meta(gt=0)]
Z = Annotated[float, msgspec.Meta(gt=0, le=6)]
Key = tuple[str, ...]
"""(kind, id)"""


class ScheduledDecay(msgspec.Struct, frozen=True):
    """A decay command that the worker publishes by itself.

    Attributes:
        every_s: seconds between two commands.
        factor: of the command, above 0, at most 1.
        min_count: of the command.
    """

    every_s: Positive
    factor: Annotated[float, msgspec.Meta(gt=0, le=1)]
    min_count: Annotated[float, msgspec.Meta(ge=0)] = 5.0


class TrustSettings(msgspec.Struct, frozen=True):
    """Settings of trust. Dictionaries are by kind; ``""`` is the value of every other kind.

    Attributes:
        trust_prior: (alpha, beta) of a key without evidence.
        trust_half_life: seconds of event time after which evidence counts half; None = it does not fade.
        trust_history: points of history a key.
        trust_z: half width of intervals in standard deviations.
        trust_strength_k, trust_strength_mid: steepness and middle of the curve of strength.
        trust_min_sample: evidence from which the report judges a key.
        trust_low: limit of the alert ``trust.low``.
        max_trust_keys: keys of a kind that a tenant may have in a partition; further ones are counted as overflow.
        trust_scheduled_decay: decay commands by themselves; None = off.
    """

    trust_prior: dict[str, tuple[Positive, Positive]] = msgspec.field(default_factory=lambda: {"": (1.0, 1.0)})
    trust_half_life: dict[str, Positive | None] = msgspec.field(default_factory=lambda: {"": None})
    trust_history: dict[str, Annotated[int, msgspec.Meta(ge=0, le=10_000)]] = msgspec.field(default_factory=lambda: {"": 100})
    trust_z: dict[str, Z] = msgspec.field(default_factory=lambda: {"": 1.96})
    trust_strength_k: dict[str, float] = msgspec.field(default_factory=lambda: {"": 0.1})
    trust_strength_mid: dict[str, float] = msgspec.field(default_factory=lambda: {"": 10.0})
    trust_min_sample: dict[str, float] = msgspec.field(default_factory=lambda: {"": 5.0})
    trust_low: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.4
    max_trust_keys: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=lambda: {"": 1_000_000})
    trust_scheduled_decay: dict[str, ScheduledDecay | None] = msgspec.field(default_factory=lambda: {"": None})


class FoldSettings(msgspec.Struct, frozen=True):
    """What of the settings the fold reads: its digest is part of the rows' version. Sorted, so that equal is equal."""

    prior: list[tuple[str, tuple[float, float]]]
    half_life: list[tuple[str, float | None]]
    history: list[tuple[str, int]]
    low: float
    max_keys: list[tuple[str, int]]


class Keys(msgspec.Struct, array_like=True, gc=False):
    """How many keys of a kind a tenant has in a partition, removed ones too."""

    n: int = 0


class Tick(msgspec.Struct, array_like=True, gc=False):
    """Event time of the last scheduled decay of a kind (``""`` = of all) that acted, microseconds."""

    last_us: int = LONG_AGO


class TrustState(msgspec.Struct, array_like=True, gc=False):
    """Evidence on one key.

    Attributes:
        alpha, beta: pseudo-counts of successes and failures, prior included. With a half-life: the decayed evidence S and F
            alone, scaled to `t_ref`.
        t_ref: event time that S and F are scaled to, microseconds; 0 without a half-life.
        n_events: observations absorbed since the key was new or imported.
        first, last_update: least and greatest event time of them, microseconds; `last_update` also by import.
        decays: decay commands that took effect.
        segment, base: number of the open history segment, and of the first that is valid (earlier ones were replaced).
        points: the open segment of the history, as `trust_history` packs it.
        level, period: of the alert ``trust.low``: place in `LEVELS`, and the day it was opened.
        born: offset of the record that made the row.
        known: False before the first record and after a removal.
    """

    alpha: float = 0.0
    beta: float = 0.0
    t_ref: int = 0
    n_events: int = 0
    first: int | None = None
    last_update: int | None = None
    decays: int = 0
    segment: int = 0
    base: int = 0
    points: bytearray = msgspec.field(default_factory=bytearray)
    level: int = OK
    period: str = ""
    born: int = -1
    known: bool = False


def of_kind(by: dict[str, Any], kind: str, default: Any) -> Any:
    """A setting for a kind: its own, else that of every other kind, else the product's default."""
    return by[kind] if kind in by else by.get("", default)


def kinds_named(settings: TrustSettings) -> set[str]:
    """Every kind that a setting names."""
    by_kind = (
        settings.trust_prior,
        settings.trust_half_life,
        settings.trust_history,
        settings.trust_z,
        settings.trust_strength_k,
        settings.trust_strength_mid,
        settings.trust_min_sample,
        settings.max_trust_keys,
    )
    return {kind for by in by_kind for kind in by if kind}


def fold_settings(settings: TrustSettings) -> FoldSettings:
    """The part of the settings that the rows depend on."""
    return FoldSettings(
        sorted(settings.trust_prior.items()),
        sorted(settings.trust_half_life.items(), key=itemgetter(0)),
        sorted(settings.trust_history.items()),
        settings.trust_low,
        sorted(settings.max_trust_keys.items()),
    )
