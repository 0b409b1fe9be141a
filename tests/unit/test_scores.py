"""What the topic of scores says of a cleared tenant ends, whoever owns the subjects' partitions by then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from agents.scores import Scores
from streams.keys import encode_key
from tables.fold import Scored
from tables.variables import Variables

from ..harness import Log


class Known(Scores):
    """Scores that knows the keys on the topic without a broker."""

    looks = 0

    async def _keys(self) -> list[bytes]:
        self.looks += 1
        return [encode_key("gone", "variable", "v")]


class Sent:
    """What was sent, as a producer takes it."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    async def send(self, topic: str, value: bytes | None, *, key: bytes) -> Any:
        """Take a record."""
        assert value is None
        self.keys.append(key)
        return asyncio.sleep(0)


def test_a_worker_that_gets_a_partition_after_a_clearing_ends_what_its_former_owner_did_not() -> None:
    fold = Variables()
    log = Log([fold])
    clearing = {"id": "clear", "type": "tenant.cleared.v1", "time": "2027-01-01T00:00:00Z", "tenant": "gone", "derivedfrom": "x", "data": {"scope": "all"}}
    log.send([clearing], fold.topics[0])
    topic, table = fold.topics[0], fold.tables[0]
    shard = SimpleNamespace(ready=False, partition=log.topics[topic][0])
    engine: Any = SimpleNamespace(on_changed=[], core=SimpleNamespace(shards={(topic, 0): shard}), counts={topic: 1}, partitions=log.topics, producer=Sent())
    scores = Known(engine, [Scored("variable", topic, table, lambda reader, key: None)], log.reader, "pulsefold.scores")
    for ready, looks, keys in ((False, 1, 0), (False, 1, 0), (True, 2, 1), (True, 2, 1), (False, 2, 1), (True, 3, 2)):
        shard.ready = ready
        asyncio.run(scores._forget())
        assert (scores.looks, len(engine.producer.keys)) == (looks, keys)
