"""Who has been silent, by a log on a real broker, which finds records by their time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from confluent_kafka import Producer

from agents.clock import Clock
from tables.clock import Tick

from ..service import Service
from .deployment import Deployment

SILENCE_S = 600.0


def test_a_new_owner_finds_on_the_log_who_spoke_within_the_silence(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployed = deploy(1)
    topic = deployed.source("training")
    producer = Producer({"bootstrap.servers": deployed.bootstrap})
    now_ms = int(time.time() * 1000)

    def say(ago_s: int, tenant: str, kind: str = "goal.progressed.v1") -> None:
        value = json.dumps({"id": f"{tenant}{ago_s}", "tenant": tenant, "type": kind})
        producer.produce(topic, value, partition=0, timestamp=now_ms - ago_s * 1000)

    def silent(upto: int) -> dict[str, bool]:
        service = Service(tmp_path, partitions=1)
        service.engine.config = replace(service.engine.config, bootstrap=deployed.bootstrap)
        service.engine.full_names["training"] = topic
        clock, shard = Clock(service.engine, SILENCE_S), service.engine.core.shards[("training", 0)]
        shard.next = upto

        async def asked() -> dict[str, bool]:
            return {tenant: await clock._silent(shard, Tick(tenant, 0, b"", b"")) for tenant in ("quiet", "busy", "ticked", "late")}

        return asyncio.run(asyncio.wait_for(asked(), 30))

    for n in range(2000):
        say(9000 - n, "quiet")
    say(700, "busy")
    assert producer.flush(20) == 0
    assert silent(2001) == {"quiet": True, "busy": True, "ticked": True, "late": True}, "nothing on the log is of the time of silence"
    say(500, "ticked", "clock.ticked.v1")
    for _ in range(600):
        say(400, "busy")
    say(200, "late")
    assert producer.flush(20) == 0
    assert silent(2603) == {"quiet": True, "busy": False, "ticked": True, "late": False}
    assert silent(2602) == {"quiet": True, "busy": False, "ticked": True, "late": True}, "what is not folded yet is no matter of the log's"
