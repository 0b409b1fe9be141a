"""The alert ``dead_letters.rate``: more dead letters of a topic in a minute than the setting allows.

Minutes are those of the records' Kafka timestamps, kept with the partition's counters, so neither a backlog that is folded fast nor
a rebuild looks like a burst, and a worker that takes over knows what the one before it saw. A letter may have no tenant (its bytes
may be no event at all): the alert is the tenant's that the setting ``dead_letters_tenant`` names, the people who run the service.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mode import Service

from tables.fold import Verdict
from tables.partition import Counters

from .rules import Rules
from .status import counters

RULE = "dead_letters.rate"


class LetterRate(Service):  # type: ignore[misc]  # mode is untyped here
    """Judges each source topic as often as the merged rules are judged.

    Args:
        limit: dead letters a minute that are still no alert.
        tenant: whose alert it is.
    """

    def __init__(self, engine: Any, rules: Rules, limit: int, tenant: str = "default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = engine
        self.rules = rules
        self.limit = limit
        self.tenant = tenant

    @Service.task
    async def _judge(self) -> None:
        while not self.should_stop:
            await self.sleep(self.rules.interval_s)
            if self.engine.ready:
                for topic, count in self.engine.counts.items():
                    shard = self.engine.core.shards[(topic, zlib.crc32(topic.encode()) % count)]
                    if shard.ready:
                        await self._topic(topic, int(time.time() // 60))

    async def _topic(self, topic: str, minute: int) -> None:
        """Tell of a change."""
        standing = self.engine.board.open_of(self.tenant, RULE).get(topic)
        level, period = ("ok", None) if standing is None else (standing.message["data"]["severity"], standing.message["data"]["period"])
        states = {n: counters(self.engine.core.shards[(topic, n)]) for n in range(self.engine.counts[topic])}
        verdict = judge(topic, list(states.values()), minute, self.limit)
        if verdict.level != level:
            number, last = max(states.items(), key=lambda item: item[1].last_letter[1])
            offset, time_ms = last.last_letter
            evidence = {"topic": topic, "partition": number, "offset": offset}
            await self.rules.tell(topic, self.tenant, RULE, topic, level, period, verdict, time_ms * 1000, evidence)


def judge(topic: str, states: Sequence[Counters], minute: int, limit: int) -> Verdict:
    """Warning above the limit in this minute or the one before, ok where both are within it.

    Args:
        states: counters of the topic's partitions.
        minute: now, minutes since the epoch.
        limit: dead letters a minute that are still no alert.
    """
    n_letters = max(sum(state.minutes.get(one, 0) for state in states) for one in (minute - 1, minute))
    if n_letters <= limit:
        message = f"Dead letters of {topic} are down to {n_letters} a minute, the limit is {limit}: redrive those that can be mended."
        return Verdict("ok", float(n_letters), float(limit), message)
    reasons = Counter[str]()
    for state in states:
        reasons.update(state.reasons)
    message = (
        f"{n_letters} records of {topic} became dead letters within a minute, most so far by {max(reasons, key=lambda name: reasons[name])}; the limit is "
        f"{limit}: see pulsefold dead-letters list, mend the sender, then redrive them."
    )
    return Verdict("warning", float(n_letters), float(limit), message)
