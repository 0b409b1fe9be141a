"""Trust: the ordered alert ``trust.low``, judged in the key's own partition after each record that changed it.

The rule this file keeps: it opens and gets worse only on `ALERT_MIN_N` observations of evidence or more, and resolves only well
above its limit. With a half-life it is judged at the observation's time, so fading alone opens nothing and resolves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.keys import encode_key

from . import beta
from .alerting import LEVELS, emit
from .times import day
from .trust_evidence import ALERT_MIN_N, KindRule
from .trust_state import CRITICAL, OK, WARNING, Key, TrustState

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

ALERT = "trust.low"
ALERT_CRITICAL = 0.2
ALERT_MARGIN = 0.05
"""How far above `trust_low` the upper end must be to resolve."""


class LowTrust:
    """The alert's limits and what it tells.

    Args:
        low: setting `trust_low`: upper end of the 95 % interval below which it opens.
    """

    def __init__(self, low: float) -> None:
        self.low = low
        self.critical = min(ALERT_CRITICAL, low)

    def judge(self, event: Event, p: Partition, key: Key, rule: KindRule, state: TrustState) -> None:
        """Judge a key after a record that changed it, and tell a change of level."""
        alpha, beta_ = rule.counts(state, state.t_ref)
        effective_n = alpha + beta_ - rule.a0 - rule.b0
        enough = effective_n >= ALERT_MIN_N
        before = state.level
        after = before
        below = beta.upper_is_below
        if before == OK:
            if enough and below(alpha, beta_, self.low):
                after = CRITICAL if below(alpha, beta_, self.critical) else WARNING
        elif not below(alpha, beta_, min(1.0, self.low + ALERT_MARGIN)):
            after = OK
        elif not below(alpha, beta_, self.critical):
            after = WARNING
        elif enough:
            after = CRITICAL
        if after == before:
            return
        if before == OK:
            state.period = day(p.time_us)
        period = state.period
        state.level = after
        if after == OK:
            state.period = ""
        high = beta.upper(alpha, beta_, 1.96)
        says = "no longer low" if after == OK else "low"
        message = f"Trust in {key[0]} {key[1]} is {says}: at most {high:.3f} by {effective_n:.0f} observations."
        self.tell(event, p, key, before, after, period, high, message)

    def removed(self, event: Event, p: Partition, key: Key, level: int, period: str) -> None:
        """Resolve what stood for a key that is no more."""
        if level != OK:
            self.tell(event, p, key, level, OK, period, None, f"{key[0]} {key[1]} was removed.", "removed")

    def tell(
        self, event: Event, p: Partition, key: Key, before: int, after: int, period: str, value: float | None, message: str, reason: str | None = None
    ) -> None:
        """Put out a change of level."""
        emit(
            p,
            event,
            rule=ALERT,
            subject=encode_key(*key).decode(),
            period=period,
            previous=LEVELS[before],
            level=LEVELS[after],
            value=value,
            threshold=self.critical if after == CRITICAL else self.low,
            message=message,
            reason=reason,
        )
