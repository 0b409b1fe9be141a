"""Trust: how evidence adds up, fades, decays and merges.

The rules this file keeps: only evidence fades, never the prior; with a half-life it fades by event time, and any order of the
observations gives the same sums; pseudo-counts stop at `MOST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp2, fsum

from .times import SECOND_US
from .trust_history import SEGMENT
from .trust_state import LONG_AGO, TrustSettings, TrustState, of_kind

MOST = 1e300
"""Pseudo-counts stop here, so that their sums and quotients stay finite numbers."""
ALERT_MIN_N = 20.0
"""Evidence below which ``trust.low`` neither opens nor gets worse."""


class KindRule:
    """What the settings say about one kind.

    Attributes:
        a0, b0: prior.
        half_life_s, half_life_us: None = evidence does not fade.
        history: points kept.
        slots: closed segments kept.
        judged_from: a + b from which the alert can open.
        max_keys: keys of this kind that a tenant may have in a partition.
        n_observed: observations absorbed by this process, for its figures; no fold reads it.
    """

    __slots__ = ("a0", "b0", "half_life_s", "half_life_us", "history", "judged_from", "k", "max_keys", "mid", "min_sample", "n_observed", "slots", "z")

    def __init__(self, settings: TrustSettings, kind: str) -> None:
        self.a0, self.b0 = of_kind(settings.trust_prior, kind, (1.0, 1.0))
        self.half_life_s = of_kind(settings.trust_half_life, kind, None)
        self.half_life_us = None if self.half_life_s is None else self.half_life_s * SECOND_US
        self.history = of_kind(settings.trust_history, kind, 100)
        self.slots = -(-self.history // SEGMENT)
        self.judged_from = self.a0 + self.b0 + ALERT_MIN_N
        self.z = of_kind(settings.trust_z, kind, 1.96)
        self.k = of_kind(settings.trust_strength_k, kind, 0.1)
        self.mid = of_kind(settings.trust_strength_mid, kind, 10.0)
        self.min_sample = of_kind(settings.trust_min_sample, kind, 5.0)
        self.max_keys = of_kind(settings.max_trust_keys, kind, 1_000_000)
        self.n_observed = 0

    def begin(self, state: TrustState, offset: int) -> None:
        """Make a fresh or removed state that of a key without evidence."""
        state.known = True
        if state.born < 0:
            state.born = offset
        if self.half_life_us is None:
            state.alpha, state.beta = self.a0, self.b0
        else:
            state.alpha, state.beta, state.t_ref = 0.0, 0.0, LONG_AGO

    def observe(self, state: TrustState, success: bool, weight: float, time_us: int) -> tuple[float, float]:
        """Add one observation; returns alpha and alpha + beta after it, prior included."""
        half_us = self.half_life_us
        if half_us is not None:
            behind = state.t_ref - time_us
            if behind < 0:
                fade = exp2(behind / half_us)
                state.alpha *= fade
                state.beta *= fade
                state.t_ref = time_us
            elif behind > 0:
                weight *= exp2(-behind / half_us)
        alpha, beta_ = state.alpha, state.beta
        if success:
            alpha += weight
            if alpha > MOST:
                alpha = MOST
            state.alpha = alpha
        else:
            beta_ += weight
            if beta_ > MOST:
                beta_ = MOST
            state.beta = beta_
        state.n_events += 1
        self.n_observed += 1
        last = state.last_update
        if last is None or time_us > last:
            state.last_update = time_us
        first = state.first
        if first is None or time_us < first:
            state.first = time_us
        return (alpha, alpha + beta_) if half_us is None else (self.a0 + alpha, self.a0 + alpha + self.b0 + beta_)

    def counts(self, state: TrustState, at_us: int) -> tuple[float, float]:
        """(alpha, beta) of a known key at a moment, prior included."""
        half_us = self.half_life_us
        if half_us is None:
            return state.alpha, state.beta
        behind = state.t_ref - at_us
        fade = exp2(behind / half_us) if behind < 0 else 1.0
        return self.a0 + state.alpha * fade, self.b0 + state.beta * fade

    def assign(self, state: TrustState, alpha: float, beta_: float, time_us: int) -> None:
        """Set (alpha, beta), prior included, as they are at a moment."""
        alpha, beta_ = min(alpha, MOST), min(beta_, MOST)
        if self.half_life_us is None:
            state.alpha, state.beta = alpha, beta_
        else:
            state.alpha, state.beta, state.t_ref = max(0.0, alpha - self.a0), max(0.0, beta_ - self.b0), time_us

    def decay(self, state: TrustState, factor: float, time_us: int) -> None:
        """Apply a decay command; the prior is the floor."""
        moment = max(time_us, state.t_ref)
        alpha, beta_ = self.counts(state, moment)
        self.assign(state, max(self.a0, alpha * factor), max(self.b0, beta_ * factor), moment)
        state.decays += 1

    def merge(self, states: Sequence[TrustState]) -> TrustState | None:
        """What a key's rows say together; None if nobody knows it.

        A key has one row, on its home partition, unless a producer wrote some of its observations elsewhere: then the
        evidence adds up.
        """
        states = [state for state in states if state.known]
        if len(states) <= 1:
            return states[0] if states else None
        moment = max(state.t_ref for state in states)
        counts = [self.counts(state, moment) for state in states]
        merged = TrustState(
            n_events=sum(state.n_events for state in states),
            first=min((state.first for state in states if state.first is not None), default=None),
            last_update=max((state.last_update for state in states if state.last_update is not None), default=None),
            decays=sum(state.decays for state in states),
            known=True,
        )
        self.assign(merged, self.a0 + fsum(a - self.a0 for a, _ in counts), self.b0 + fsum(b - self.b0 for _, b in counts), moment)
        return merged
