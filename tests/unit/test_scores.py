"""What the topic of scores says, and ends for a cleared tenant, while partitions go from one worker to another."""

from __future__ import annotations

import asyncio
import zlib
from types import SimpleNamespace
from typing import Any

from agents.scores import REMEMBERED, Scores
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
        self.values: list[bytes | None] = []

    async def send(self, topic: str, value: bytes | None, *, key: bytes) -> Any:
        """Take a record."""
        self.keys.append(key)
        self.values.append(value)
        return asyncio.sleep(0)


def test_a_worker_that_gets_a_partition_after_a_clearing_ends_what_its_former_owner_did_not() -> None:
    fold = Variables()
    log = Log([fold])
    clearing = {"id": "clear", "type": "tenant.cleared.v1", "time": "2027-01-01T00:00:00Z", "tenant": "gone", "derivedfrom": "x", "data": {"scope": "all"}}
    log.send([clearing], fold.topics[0])
    topic, table = fold.topics[0], fold.tables[0]
    shard = SimpleNamespace(ready=False, epoch=1, partition=log.topics[topic][0])
    engine: Any = SimpleNamespace(on_changed=[], core=SimpleNamespace(shards={(topic, 0): shard}), counts={topic: 1}, partitions=log.topics, producer=Sent())
    scores = Known(engine, [Scored("variable", topic, table, lambda reader, key: None)], log.reader, "pulsefold.scores")
    owned = ((False, 1, 1, 0), (False, 1, 1, 0), (True, 2, 2, 1), (True, 2, 2, 1), (False, 2, 2, 1), (True, 3, 3, 2), (True, 5, 4, 3))
    for ready, epoch, looks, keys in owned:
        shard.ready, shard.epoch = ready, epoch
        asyncio.run(scores._forget())
        assert (scores.looks, len(engine.producer.keys)) == (looks, keys)
    assert engine.producer.values == [None] * 3


def test_what_changed_while_its_home_was_nobodys_is_told_by_whom_it_comes_to() -> None:
    fold = Variables()
    topic, log = fold.topics[0], Log([fold], partitions=2)
    shards = {(topic, n): SimpleNamespace(ready=True, epoch=1, partition=log.topics[topic][n]) for n in range(2)}
    engine: Any = SimpleNamespace(
        on_changed=[],
        ready=True,
        publishes=True,
        core=SimpleNamespace(shards=shards, served=None),
        config=SimpleNamespace(app_id="a"),
        counts={topic: 2},
        partitions=log.topics,
        producer=Sent(),
        insist=lambda work, failed: work(),
    )
    scores = Scores(engine, fold.scored, log.reader, "pulsefold.scores")
    names = [f"v{n}" for n in range(8)]
    at = {name: zlib.crc32(name.encode()) % 2 for name in names}
    here = [name for name in names if at[name] == 0]
    there = [name for name in names if at[name] == 1]
    assert here and there

    def forecast(id: str) -> None:
        data = {"model": "m", "confidence": 0.5, "fragility": 0.5, "certified": True, "inputs": dict.fromkeys(names, 1)}
        log.send([{"id": id, "type": "forecast.issued.v1", "time": "2027-01-01T00:00:00Z", "data": data}])
        for number, shard in enumerate(log.topics[topic]):
            index = fold.scored[0].table.index
            scores.changed(shards[(topic, number)], [(index, row) for rows in shard.spaces[index].values() for row in rows.values()])  # type: ignore[arg-type]

    def told() -> list[str]:
        engine.producer.keys.clear()
        scores.turn += 1
        asyncio.run(scores._tell_of(fold.scored[0]))
        return [key.decode().split("|")[2] for key in engine.producer.keys]

    forecast("one")
    assert told() == names
    assert told() == []
    shards[(topic, 1)].ready = False
    forecast("two")
    assert told() == here
    assert told() == []
    shards[(topic, 1)].ready, shards[(topic, 1)].epoch = True, 2
    assert told() == there, "what changed meanwhile, and nothing twice"
    assert told() == []
    shards[(topic, 0)].ready = False
    forecast("three")
    assert told() == there
    shards[(topic, 0)].ready, shards[(topic, 0)].epoch = True, 2
    assert told() == here, "it came back to where it was"

    shards[(topic, 1)].ready = False
    forecast("four")
    for _ in range(REMEMBERED + 1):
        told()
    shards[(topic, 1)].ready, shards[(topic, 1)].epoch = True, 3
    assert told() == [], "told by its owner long ago"
