"""Ordered alerts on an agent: is it getting slower, worse, wrong; does it break rules or use up its budgets?

The rules this file keeps:
  * W is the last 20 completions, B up to 200 before them, at least 50. A figure is judged where at least half of W and 50 of
    B have it. While an alert is open, what B said is frozen; after 500 completions it resolves as ``new_normal``;
  * a rule opens only where the difference is more than luck: exact binomial tail or Welch's test below 0.001;
  * a completion costs the same however long the history is: counts are kept up to date by what enters and leaves, and
    the exact figures (sorting, Welch) are taken only where the counts say that the rule could open.

Completions lie in a ring of segments; the number of a completion is the agent's count of executions before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from struct import Struct
from typing import TYPE_CHECKING, Any

import msgspec

from streams.keys import encode_key

from .alerting import LEVELS, emit
from .moments import Moments, plain_sum
from .tails import binomial_tail, welch_fall
from .times import day

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition
    from .rows import Table

OK, WARNING, CRITICAL = (LEVELS.index(name) for name in ("ok", "warning", "critical"))

LATENCY, QUALITY, ERRORS, SUCCESS_RATE = "agent.latency", "agent.quality", "agent.errors", "agent.success_rate"
JUDGMENT, BUDGET, COMPLIANCE = "agent.judgment", "agent.budget", "agent.compliance"

RECENT, BEFORE, LEAST_BEFORE, LEAST_RECENT = 20, 200, 50, 10
"""Completions in W, at most in B, at least in B and in W with the figure that is judged."""
LAST = 50
"""Completions that the success rate is of; at least `RECENT`."""
FROZEN = 500
"""Completions after which an alert against B resolves by itself."""
LUCK = 0.001
"""Probability above which a difference counts as luck."""

COMPLETION = Struct("<?dd")
"""A completion: success, quality, duration in ms; NaN where it has none."""
SEGMENT = 64
SEGMENTS = 5
"""A ring that holds 220 completions beside the segment being filled."""

_unpack = COMPLETION.unpack_from
_WIDTH = COMPLETION.size
_MASK_RECENT = (1 << RECENT) - 1
_MASK_LAST = (1 << LAST) - 1
_NEARLY = 1e-6
"""Error allowed to sums that are kept up to date; what comes near a limit is taken exactly."""
_AFRESH = 1024
"""Completions after which those sums are taken anew."""
_SLACK = 0.9
_LEAST_ABOVE = 5
"""Of at most 20, that many above the 95 % quantile are needed for a binomial tail below 0.001 (of 10 to 15: 5, of 16 to 20: 6)."""


class Standing(msgspec.Struct, array_like=True, gc=False):
    """Where a rule stands with an agent: place in `LEVELS`, and the UTC day it was opened."""

    level: int = OK
    period: str = ""


class Frozen(msgspec.Struct, array_like=True, gc=False):
    """What B said when an alert opened: the completion's number, and the figures (baseline, and for quality n and variance)."""

    opened: int = 0
    baseline: float = 0.0


class Ring(msgspec.Struct, array_like=True, gc=False):
    """Up to 64 completions, packed."""

    entries: bytearray = msgspec.field(default_factory=bytearray)


class Watch(msgspec.Struct, array_like=True, gc=False):
    """What the four rules on completions need at hand.

    Attributes:
        bits: successes of the last 50, the newest lowest.
        failures: failures in B.
        qualities, quality, qualities_before, quality_before: how many of W have a quality, their sum; the same of B.
        timed, timed_before: how many of W and of B have a duration.
        floor: a duration below the 95 % quantile of B, ms; 0 before the first look.
        above, far: durations of W above it, and above twice it; at_least: durations of B not below it.
        latency, quality_rule, errors, success_rate: where the rules stand.
        latency_base, quality_base, errors_base: what B said when they opened.
    """

    bits: int = 0
    failures: int = 0
    qualities: int = 0
    quality: float = 0.0
    qualities_before: int = 0
    quality_before: float = 0.0
    timed: int = 0
    timed_before: int = 0
    floor: float = 0.0
    above: int = 0
    at_least: int = 0
    latency: Standing = msgspec.field(default_factory=Standing)
    quality_rule: Standing = msgspec.field(default_factory=Standing)
    errors: Standing = msgspec.field(default_factory=Standing)
    success_rate: Standing = msgspec.field(default_factory=Standing)
    latency_base: Frozen = msgspec.field(default_factory=Frozen)
    quality_base: Frozen = msgspec.field(default_factory=Frozen)
    errors_base: Frozen = msgspec.field(default_factory=Frozen)
    far: int = 0


WATCHED = ((LATENCY, "latency"), (QUALITY, "quality_rule"), (ERRORS, "errors"), (SUCCESS_RATE, "success_rate"))
"""Rules of a `Watch` and the fields where they stand."""


def tell(
    p: Partition,
    event: Event,
    rule: str,
    agent: str,
    standing: Standing,
    level: int,
    value: float | None,
    threshold: float | None,
    message: str,
    reason: str | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Put out the message for a change of level, and note where the rule stands now.

    Args:
        level: place in `LEVELS`; that of the standing puts out nothing.
        value, threshold: what was found, and the limit it was held against.
        message: one sentence a person can act on.
        extra: further fields of the message.
    """
    previous = standing.level
    if level == previous:
        return
    if previous == OK:
        standing.period = day(p.time_us)
    emit(
        p,
        event,
        rule=rule,
        subject=encode_key(agent).decode(),
        period=standing.period,
        previous=LEVELS[previous],
        level=LEVELS[level],
        value=value,
        threshold=threshold,
        message=message,
        reason=reason,
        extra=extra,
    )
    standing.level = level


def fallen(current: int, value: float, warning: float, critical: float, resolved: float) -> int:
    """Level of a figure that is bad when low: below a limit it opens, at `resolved` or above it is over, between it stands.

    Example:
        >>> [fallen(OK, 0.72, 0.7, 0.5, 0.75), fallen(OK, 0.6, 0.7, 0.5, 0.75), fallen(WARNING, 0.72, 0.7, 0.5, 0.75), fallen(CRITICAL, 0.8, 0.7, 0.5, 0.75)]
        [0, 2, 2, 0]
    """
    if value < critical:
        return CRITICAL
    if value < warning:
        return WARNING
    if value >= resolved:
        return OK
    return min(current, WARNING)


def quantile_95(values: Sequence[float]) -> float:
    """Exact: the value at sorted index ⌊0.95 (n − 1)⌋."""
    return sorted(values)[95 * (len(values) - 1) // 100]


def rank_95(n: int) -> int:
    """How many of n values are not below their 95 % quantile, at least."""
    return n - 95 * (n - 1) // 100


class Completions:
    """One agent's ring while a completion is absorbed.

    Args:
        p: the partition.
        rings: its table.
        n: completions before this one.
        entries: of the segment being filled, this completion included.
    """

    __slots__ = ("agent", "entries", "n", "p", "rings", "tenant")

    def __init__(self, p: Partition, rings: Table[Ring], tenant: str, agent: str, n: int, entries: bytearray) -> None:
        self.p = p
        self.rings = rings
        self.tenant = tenant
        self.agent = agent
        self.n = n
        self.entries = entries

    def segment(self, number: int) -> bytearray:
        """Packed completions of a segment that is still in the ring."""
        if number == self.n // SEGMENT:
            return self.entries
        state = self.p.read(self.rings, self.tenant, (self.agent, SLOTS[number % SEGMENTS]))
        return state.entries if state is not None else bytearray()

    def at(self, index: int) -> tuple[bool, float, float]:
        """(success, quality, duration) of a completion by its number."""
        return _unpack(self.segment(index // SEGMENT), index % SEGMENT * _WIDTH)  # type: ignore[return-value]  # as packed

    def span(self, first: int, end: int) -> list[tuple[bool, float, float]]:
        """Completions from one number up to another."""
        found: list[tuple[bool, float, float]] = []
        index = first
        while index < end:
            segment = index // SEGMENT
            stop = min(end, (segment + 1) * SEGMENT)
            start = index % SEGMENT * _WIDTH
            found += COMPLETION.iter_unpack(self.segment(segment)[start : start + (stop - index) * _WIDTH])  # type: ignore[arg-type]  # as packed
            index = stop
        return found

    def recent(self) -> list[tuple[bool, float, float]]:
        """W, this completion included."""
        return self.span(max(0, self.n + 1 - RECENT), self.n + 1)

    def before(self) -> list[tuple[bool, float, float]]:
        """B."""
        end = self.n + 1 - RECENT
        return self.span(max(0, end - BEFORE), end) if end > 0 else []


SLOTS = tuple(str(i) for i in range(SEGMENTS))


def append(ring: Ring, n: int, success: bool, quality: float | None, duration_ms: float | None) -> None:
    """Write completion number `n` into its segment, over that of `SEGMENTS` segments ago."""
    if n % SEGMENT == 0:
        ring.entries = bytearray()
    ring.entries += COMPLETION.pack(success, nan if quality is None else quality, nan if duration_ms is None else duration_ms)


def watch(p: Partition, event: Event, state: Watch, ring: Completions, agent: str, success: bool, quality: float | None, duration_ms: float | None) -> None:
    """Judge the four rules on completions after one more."""
    n = ring.n
    state.bits = (state.bits << 1 | success) & _MASK_LAST
    if n % _AFRESH == 0:
        recount(state, ring)
    else:
        if quality is not None:
            state.qualities += 1
            state.quality += quality
        if duration_ms is not None:
            state.timed += 1
            if duration_ms > state.floor:
                state.above += 1
                if duration_ms > 2.0 * state.floor:
                    state.far += 1
        if n >= RECENT:
            crossing(state, ring, n)
    failed = RECENT - (state.bits & _MASK_RECENT).bit_count()
    before = n + 1 - RECENT
    if before > BEFORE:
        before = BEFORE
    if state.errors.level or (before >= LEAST_BEFORE and failed / RECENT - state.failures / before > 0.10):
        judge_errors(p, event, state, agent, n, failed, before)
    if n + 1 >= RECENT:
        size = n + 1 if n + 1 < LAST else LAST
        rate = state.bits.bit_count() / size
        level = state.success_rate.level
        if level or rate < 0.7:
            new = fallen(level, rate, 0.7, 0.5, 0.75)
            if new != level:
                limit = 0.5 if new == CRITICAL else 0.7
                says = f"Agent {agent}: {rate:.0%} of its last {size} tasks succeeded"
                tell(p, event, SUCCESS_RATE, agent, state.success_rate, new, rate, limit, f"{says}; {_advice(new)}")
    if state.quality_rule.level or (
        state.qualities >= LEAST_RECENT
        and state.qualities_before >= LEAST_BEFORE
        and state.quality_before / state.qualities_before - state.quality / state.qualities > 0.15 - _NEARLY
    ):
        judge_quality(p, event, state, ring, agent)
    if state.latency.level or (
        state.timed_before >= LEAST_BEFORE
        and state.timed >= LEAST_RECENT
        # Else the quantile of B is not below the floor, and that of W not above twice the floor, or too few are above it.
        and (state.at_least < rank_95(state.timed_before) or (state.above >= _LEAST_ABOVE and state.far >= rank_95(state.timed)))
    ):
        judge_latency(p, event, state, ring, agent)


def crossing(state: Watch, ring: Completions, n: int) -> None:
    """The completion that leaves W for B, and the one that leaves B."""
    success, quality, duration = ring.at(n - RECENT)
    if not success:
        state.failures += 1
    if quality == quality:  # no NaN
        state.qualities -= 1
        state.quality -= quality
        state.qualities_before += 1
        state.quality_before += quality
    if duration == duration:
        state.timed -= 1
        state.timed_before += 1
        if duration > state.floor:
            state.above -= 1
            if duration > 2.0 * state.floor:
                state.far -= 1
        if duration >= state.floor:
            state.at_least += 1
    if n >= RECENT + BEFORE:
        success, quality, duration = ring.at(n - RECENT - BEFORE)
        if not success:
            state.failures -= 1
        if quality == quality:
            state.qualities_before -= 1
            state.quality_before -= quality
        if duration == duration:
            state.timed_before -= 1
            if duration >= state.floor:
                state.at_least -= 1


def recount(state: Watch, ring: Completions) -> None:
    """Take the sums anew, so that no rounding adds up."""
    recent, before = ring.recent(), ring.before()
    state.failures = sum(not success for success, _, _ in before)
    good, good_before = [q for _, q, _ in recent if q == q], [q for _, q, _ in before if q == q]
    state.qualities, state.quality = len(good), plain_sum(good)
    state.qualities_before, state.quality_before = len(good_before), plain_sum(good_before)
    timed(state, [d for _, _, d in recent if d == d], [d for _, _, d in before if d == d], state.floor)


def timed(state: Watch, recent: list[float], before: list[float], floor: float) -> None:
    """Count the durations against a new floor."""
    state.timed, state.timed_before, state.floor = len(recent), len(before), floor
    state.above = sum([d > floor for d in recent])
    state.far = sum([d > 2.0 * floor for d in recent])
    state.at_least = sum([d >= floor for d in before])


def judge_errors(p: Partition, event: Event, state: Watch, agent: str, n: int, failed: int, before: int) -> None:
    """``agent.errors``: the failure rate of W against that of B."""
    standing, frozen = state.errors, state.errors_base
    rate = failed / RECENT
    if standing.level == OK:
        base = state.failures / before
        tail = binomial_tail(failed, RECENT, max(base, 0.005))
        if tail >= LUCK:
            return
        state.errors_base = Frozen(n, base)
        level = CRITICAL if rate - base > 0.20 else WARNING
        says = f"Agent {agent} fails {rate:.0%} of its last {RECENT} tasks, {base:.0%} before; {_advice(level)}"
        tell(p, event, ERRORS, agent, standing, level, rate, base + 0.10, says, extra={"baseline": base, "tail": tail})
        return
    base = frozen.baseline
    rise = rate - base
    level = OK if rise < 0.02 else CRITICAL if rise > 0.20 else WARNING
    _against(p, event, ERRORS, agent, standing, frozen, n, level, rate, base + 0.10, f"Agent {agent} fails {rate:.0%} of its last {RECENT} tasks")


def judge_quality(p: Partition, event: Event, state: Watch, ring: Completions, agent: str) -> None:
    """``agent.quality``: the mean quality of W against that of B."""
    standing, frozen, n = state.quality_rule, state.quality_base, ring.n
    recent = Moments.of(q for _, q, _ in ring.recent() if q == q)
    if standing.level == OK:
        before = Moments.of(q for _, q, _ in ring.before() if q == q)
        fall = before.mean - recent.mean
        if not fall > 0.15:
            return
        _, luck = welch_fall(before, recent)
        if luck >= LUCK:
            return
        state.quality_base = Frozen(n, before.mean)
        level = CRITICAL if fall > 0.20 else WARNING
        says = f"Agent {agent}: mean quality {recent.mean:.2f} over its last {RECENT} tasks, {before.mean:.2f} before; {_advice(level)}"
        tell(p, event, QUALITY, agent, standing, level, recent.mean, before.mean - 0.15, says, extra={"baseline": before.mean, "p": luck})
        return
    if recent.n < LEAST_RECENT:
        level, value = standing.level, None
    else:
        fall, value = frozen.baseline - recent.mean, recent.mean
        level = OK if fall < 0.05 else CRITICAL if fall > 0.20 else WARNING
    says = f"Agent {agent}: mean quality {recent.mean:.2f} over its last {RECENT} tasks"
    _against(p, event, QUALITY, agent, standing, frozen, n, level, value, frozen.baseline - 0.15, says)


def judge_latency(p: Partition, event: Event, state: Watch, ring: Completions, agent: str) -> None:
    """``agent.latency``: the 95 % quantile of durations of W against that of B."""
    standing, frozen, n = state.latency, state.latency_base, ring.n
    recent = [d for _, _, d in ring.recent() if d == d]
    high = quantile_95(recent) if recent else nan
    if standing.level == OK:
        before = [d for _, _, d in ring.before() if d == d]
        base = quantile_95(before)
        timed(state, recent, before, _SLACK * base)
        if not high > 2.0 * base:
            return
        tail = binomial_tail(sum(d > base for d in recent), len(recent), 0.05)
        if tail >= LUCK:
            return
        state.latency_base = Frozen(n, base)
        level = CRITICAL if high > 5000.0 else WARNING
        says = f"Agent {agent}: 95 % of its last {RECENT} tasks took up to {high:.0f} ms, {base:.0f} ms before; {_advice(level)}"
        tell(p, event, LATENCY, agent, standing, level, high, 2.0 * base, says, extra={"baseline": base, "tail": tail})
        return
    if len(recent) < LEAST_RECENT:
        level, value = standing.level, None
    else:
        value = high
        level = OK if high <= 1.2 * frozen.baseline else CRITICAL if high > 5000.0 else WARNING
    says = f"Agent {agent}: 95 % of its last {RECENT} tasks took up to {high:.0f} ms"
    _against(p, event, LATENCY, agent, standing, frozen, n, level, value, 2.0 * frozen.baseline, says)


def _against(
    p: Partition,
    event: Event,
    rule: str,
    agent: str,
    standing: Standing,
    frozen: Frozen,
    n: int,
    level: int,
    value: float | None,
    threshold: float,
    says: str,
) -> None:
    """Tell what became of an open alert against B."""
    reason = None
    if level != OK and n - frozen.opened >= FROZEN:
        level, reason, says = OK, "new_normal", f"{says}, as for {FROZEN} tasks now"
    if level != standing.level:
        message = f"{says}, {frozen.baseline:.4g} before; {_advice(level)}"
        tell(p, event, rule, agent, standing, level, value, threshold, message, reason, {"baseline": frozen.baseline})


def judge_scores(p: Partition, event: Event, standing: Standing, agent: str, recent: Sequence[float]) -> None:
    """``agent.judgment``: the mean overall score of the last 20 judgments."""
    if len(recent) < RECENT:
        return
    mean = plain_sum(recent) / len(recent)
    level = fallen(standing.level, mean, 0.7, 0.5, 0.75)
    if level != standing.level:
        says = f"Agent {agent}: mean overall score {mean:.2f} over its last {RECENT} judgments; {_advice(level)}"
        tell(p, event, JUDGMENT, agent, standing, level, mean, 0.5 if level == CRITICAL else 0.7, says)


def judge_budget(p: Partition, event: Event, standing: Standing, agent: str, recent: Sequence[float]) -> None:
    """``agent.budget``: the mean utilisation of the last 20 thinking budgets."""
    if len(recent) < RECENT:
        return
    mean = plain_sum(recent) / len(recent)
    level = CRITICAL if mean > 0.95 else WARNING if mean > 0.90 else OK if mean < 0.85 else min(standing.level, WARNING)
    if level != standing.level:
        says = f"Agent {agent} uses {mean:.0%} of its last {RECENT} thinking budgets; {_advice(level)}"
        tell(p, event, BUDGET, agent, standing, level, mean, 0.95 if level == CRITICAL else 0.90, says)


def judge_compliance(p: Partition, event: Event, standing: Standing, agent: str, n: int, valid_bits: int, critical_bits: int) -> None:
    """``agent.compliance``: a critical violation in the last 20 validations, or too few of them valid.

    Args:
        n: validations so far.
        valid_bits, critical_bits: of the last 20.
    """
    size = min(n, RECENT)
    rate = valid_bits.bit_count() / size
    if critical_bits:
        level = CRITICAL
    elif (n >= RECENT and rate < 0.8) or (standing.level and (n < RECENT or rate < 0.9)):
        level = WARNING
    else:
        level = OK
    if level != standing.level:
        count = critical_bits.bit_count()
        if level == CRITICAL:
            says = f"Agent {agent}: {count} of its last {size} validations found a critical violation; {_advice(level)}"
            tell(p, event, COMPLIANCE, agent, standing, level, float(count), 1.0, says, extra={"valid_rate": rate})
        else:
            says = f"Agent {agent}: {rate:.0%} of its last {size} validations were valid; {_advice(level)}"
            tell(p, event, COMPLIANCE, agent, standing, level, rate, 0.8, says)


def cleared(p: Partition, event: Event, agent: str, standings: Mapping[str, Standing]) -> None:
    """Resolve the open ones of these rules, because what they rest on is cleared."""
    for rule, standing in standings.items():
        if standing.level:
            tell(p, event, rule, agent, standing, OK, None, None, f"Agent {agent}: its records were cleared; nothing to do.", "cleared")


def _advice(level: int) -> str:
    return "nothing to do." if level == OK else "look at its latest tasks, or route them to another agent."
