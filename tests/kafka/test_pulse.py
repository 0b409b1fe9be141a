"""Who holds a worker's loop for longer than a session timeout does not cost it its partitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiokafka
import pytest

from agents.pulse import Pulse

from .deployment import Deployment

HOLD_S = 10.0


@pytest.mark.parametrize("beats", [True, False])
def test_a_member_whose_loop_is_held_stays_one_if_somebody_beats_for_it(deploy: Callable[..., Deployment], beats: bool) -> None:
    deployed = deploy(2)
    topic, group = deployed.source("judgments"), f"held-{beats}"

    async def held() -> tuple[tuple[int, str], tuple[int, str], int]:
        consumer = aiokafka.AIOKafkaConsumer(
            topic, bootstrap_servers=deployed.bootstrap, group_id=group, session_timeout_ms=6000, heartbeat_interval_ms=2000, enable_auto_commit=False
        )
        await consumer.start()
        coordinator = consumer._coordinator

        def member() -> tuple[int, str]:
            return coordinator.generation, coordinator.member_id

        pulse = Pulse({"bootstrap_servers": deployed.bootstrap}, group, member, session_s=6.0, heartbeat_s=2.0, longest_s=60.0)
        if beats:
            await pulse.start()
        try:
            await consumer.getmany(timeout_ms=0)
            await asyncio.sleep(1)  # it is told of
            assert len(consumer.assignment()) == 2
            before, until = member(), time.monotonic() + HOLD_S
            while time.monotonic() < until:
                pass  # under Python's lock, as a computation would be
            n_beats = pulse.n_beats
            await asyncio.sleep(5)  # its own heartbeats go on, or are refused
            return before, member(), n_beats
        finally:
            await pulse.stop()
            await consumer.stop()

    before, after, n_beats = asyncio.run(asyncio.wait_for(held(), 60))
    assert (after == before) is beats and (n_beats > 2) is beats
