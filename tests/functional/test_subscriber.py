"""The subscriber against the embedded broker: each alert once, none lost by a wait that was cancelled or a program that died."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.broker import EmbeddedBroker
from streams.derive import event_bytes
from streams.errors import BrokerUnavailable, ConfigError, TopicProblem
from streams.subscriber import Alert, AlertSubscriber

DATA = {
    "alert_id": "x", "rule": "cost.daily", "severity": "warning", "subject": "tenant", "period": "2026-03-02", "value": 8.0, "threshold": 7.0,
    "previous": "ok", "message": "stop", "evidence": {"topic": "costs", "partition": 0, "offset": 1},
}  # fmt: skip


def put(broker: EmbeddedBroker, *ids: str, tenant: str = "a", raw: bytes | None = b"") -> None:
    """Alerts on the topic; `raw` instead of them, None being a tombstone."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
    for id in ids:
        value = event_bytes(type="alert.opened.v1", id=id, source="s", time_us=1, tenant=tenant, data=DATA) if raw == b"" else raw
        producer.produce("pulsefold.alerts", value, b"x")
    assert producer.flush(10) == 0


SHORT = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
"""The embedded broker keeps the place of a member that left until its session ends; a real one does not."""


def run(what: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(what, 30))


async def take(alerts: AlertSubscriber, count: int) -> list[str]:
    return [(await anext(alerts)).id for _ in range(count)]


async def nothing_more(alerts: AlertSubscriber) -> bool:
    try:
        await asyncio.wait_for(anext(alerts), 0.7)
    except TimeoutError:
        return True
    return False


def test_each_alert_comes_once_typed_and_only_of_the_tenant(embedded: EmbeddedBroker) -> None:
    put(embedded, "1", "1")
    put(embedded, "1", "2", tenant="b")
    put(embedded, "3", "1")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap, tenant="a", since="earliest") as alerts:
            first = await anext(alerts)
            assert isinstance(first, Alert) and (first.type, first.id, first.tenant) == ("alert.opened.v1", "1", "a")
            assert (first.time, first.data.severity, first.data.threshold, first.data.evidence.offset) == ("1970-01-01T00:00:00.000001Z", "warning", 7.0, 1)
            assert await take(alerts, 1) == ["3"] and await nothing_more(alerts)
        async with AlertSubscriber(embedded.bootstrap, since="earliest") as alerts:  # of every tenant: equal ids of two tenants are two
            assert await take(alerts, 4) == ["1", "1", "2", "3"]

    run(follow())


def test_latest_begins_where_the_topic_ended_at_the_start_not_at_the_first_wait(embedded: EmbeddedBroker) -> None:
    put(embedded, "old")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap) as alerts:
            put(embedded, "new")
            await asyncio.sleep(0.3)
            assert await take(alerts, 1) == ["new"] and await nothing_more(alerts)

    run(follow())


def test_a_cancelled_wait_loses_nothing(embedded: EmbeddedBroker) -> None:
    async def follow() -> None:
        found = []
        async with AlertSubscriber(embedded.bootstrap) as alerts:
            for number in range(8):
                waiting = asyncio.ensure_future(anext(alerts))
                await asyncio.sleep(0.03 * number)
                put(embedded, f"e{number}")
                if not waiting.cancel():
                    found.append(waiting.result().id)
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
            found += await take(alerts, 8 - len(found))
        assert found == [f"e{number}" for number in range(8)]

    run(follow())


def test_tombstones_and_messages_that_are_no_alerts_are_passed_over_and_counted(embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    put(embedded, "t", raw=None)
    put(embedded, "t", "t", raw=b"{not json")
    put(embedded, "t", raw=b'{"type":"alert.opened.v1","id":"1","time":"t","tenant":"a","data":{"rule":"r"}}')
    put(embedded, "good")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap, since="earliest") as alerts:
            assert await take(alerts, 1) == ["good"]
            assert alerts.skipped == 3

    run(follow())
    assert caplog.text.count("is no alert of the contract") == 1


def test_a_group_goes_on_behind_what_was_consumed_and_repeats_what_was_not(embedded: EmbeddedBroker) -> None:
    put(embedded, "1", "2", "3", "4")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap, group="pager", since="earliest", config=SHORT) as alerts:
            assert await take(alerts, 2) == ["1", "2"]  # 1 is consumed, since 2 was asked for
        async with AlertSubscriber(embedded.bootstrap, group="pager", since="earliest", config=SHORT) as alerts:
            assert await take(alerts, 2) == ["2", "3"]
            await alerts.commit()  # 3 is dealt with
        async with AlertSubscriber(embedded.bootstrap, group="pager", since="earliest", config=SHORT) as alerts:
            assert await take(alerts, 1) == ["4"]
        async with AlertSubscriber(embedded.bootstrap, group="other", since="earliest", config=SHORT) as alerts:
            assert await take(alerts, 1) == ["1"]

    run(follow())


def test_a_new_group_that_began_at_latest_misses_nothing_after_a_restart(embedded: EmbeddedBroker) -> None:
    put(embedded, "old")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap, group="pager", config=SHORT) as alerts:
            assert await nothing_more(alerts)
        put(embedded, "while it was away")
        async with AlertSubscriber(embedded.bootstrap, group="pager", config=SHORT) as alerts:
            assert await take(alerts, 1) == ["while it was away"]

    run(follow())


def test_a_new_group_begins_where_the_topic_ended_at_the_start_not_when_its_partitions_were_assigned(embedded: EmbeddedBroker) -> None:
    put(embedded, "old")

    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap, group="pager", config=SHORT) as alerts:
            put(embedded, "new")
            assert await take(alerts, 1) == ["new"] and await nothing_more(alerts)

    run(follow())


def test_an_outage_is_waited_out(embedded: EmbeddedBroker) -> None:
    async def follow() -> None:
        async with AlertSubscriber(embedded.bootstrap) as alerts:
            embedded.down()
            assert await nothing_more(alerts)
            embedded.up()
            put(embedded, "after")
            assert await take(alerts, 1) == ["after"]

    run(follow())


def test_no_broker_no_topic_and_a_wrong_start_are_told_in_a_sentence(embedded: EmbeddedBroker) -> None:
    async def enter(alerts: AlertSubscriber) -> None:
        async with alerts:
            pass

    with pytest.raises(BrokerUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1 within 0\.5 s"):
        run(enter(AlertSubscriber("127.0.0.1:1", timeout_s=0.5)))
    with pytest.raises(TopicProblem, match=r"other\.alerts: missing .* pulsefold topics create"):
        run(enter(AlertSubscriber(embedded.bootstrap, prefix="other.")))
    with pytest.raises(ConfigError, match="latest or earliest"):
        AlertSubscriber(embedded.bootstrap, since="yesterday")  # type: ignore[arg-type]
