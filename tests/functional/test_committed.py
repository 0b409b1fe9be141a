"""What the group has committed, asked without being in it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from streams.broker import EmbeddedBroker

from ..unit.test_decisions import engine_of
from ..unit.test_upgrades import NEW


def test_it_is_known_when_a_broker_answers_though_none_did_when_it_was_asked_first() -> None:
    async def asked(broker: EmbeddedBroker) -> dict[TopicPartition, int]:
        engine = engine_of(**NEW)
        engine.config = replace(engine.config, bootstrap=broker.bootstrap)
        broker.down()
        with pytest.raises(KafkaError):
            await engine._committed([TopicPartition("pulsefold.costs", 0)])
        broker.up()
        try:
            return await engine._committed([TopicPartition("pulsefold.costs", 0)])
        finally:
            await engine._admin.close()

    with EmbeddedBroker(partitions=2) as broker:
        assert asyncio.run(asyncio.wait_for(asked(broker), 30)) == {}
