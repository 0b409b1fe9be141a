"""Alerts as they come, for people's own programs: an async iterator over the alerts topic."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from .errors import BrokerUnavailable, TopicProblem
from .events import AlertData

_envelope = msgspec.json.Decoder(dict[str, Any]).decode


class Alert(msgspec.Struct, frozen=True):
    """One alert message.

    Attributes:
        type: ``alert.opened.v1``, ``alert.escalated.v1``, ``alert.eased.v1`` or ``alert.resolved.v1``.
        data: rule, severity, subject, value, threshold, message and the rest of contract §3.
    """

    type: str
    id: str
    time: str
    tenant: str
    data: AlertData


class AlertSubscriber:
    """Alerts of a tenant.

    Args:
        bootstrap: Kafka's ``HOST:PORT``.
        tenant: None = of every tenant.
        group: a name under which the position is kept: after a restart the iteration goes on behind the last alert that was
            followed by a request for the next one. None = no position is kept.
        since: where to begin without a kept position: ``latest`` or ``earliest``.
        config: further settings of librdkafka.

    Raises:
        TopicProblem: there is no alerts topic.
        BrokerUnavailable: nobody answers.

    Example:
        async with AlertSubscriber("127.0.0.1:9092", tenant="acme") as alerts:
            async for alert in alerts:
                print(alert.data.severity, alert.data.message)
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        prefix: str = "pulsefold.",
        tenant: str | None = None,
        group: str | None = None,
        since: Literal["latest", "earliest"] = "latest",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.topic = prefix + "alerts"
        self.tenant = tenant
        self.group = group
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._last: Message | None = None
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group or f"pulsefold-alerts-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "auto.offset.reset": since,
                "isolation.level": "read_committed",
                "allow.auto.create.topics": False,
                "log_level": 0,
                **(config or {}),
            }
        )

    async def __aenter__(self) -> AlertSubscriber:
        def start() -> None:
            try:
                found = self._consumer.list_topics(self.topic, timeout=10).topics[self.topic]
            except KafkaException as exc:
                raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {self.bootstrap} ({exc.args[0].name()})") from None
            if found.error is not None:
                raise TopicProblem(f"{self.topic}: missing on {self.bootstrap}; create with: pulsefold topics create --bootstrap {self.bootstrap}")
            self._consumer.subscribe([self.topic])

        await asyncio.to_thread(start)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self._consumer.close)

    async def __aiter__(self) -> AsyncIterator[Alert]:
        while True:
            message = await asyncio.to_thread(self._consumer.poll, 0.2)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.code() in (KafkaError._PARTITION_EOF, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    continue  # librdkafka connects again by itself
                raise KafkaException(error)
            value = message.value()
            if value is not None:
                body = _envelope(value)
                if (self.tenant is None or body["tenant"] == self.tenant) and body["id"] not in self._seen:
                    self._seen[body["id"]] = None
                    if len(self._seen) > 10_000:
                        self._seen.popitem(last=False)
                    yield Alert(body["type"], body["id"], body["time"], body["tenant"], msgspec.convert(body["data"], AlertData))
            if self.group is not None:
                await asyncio.to_thread(self._consumer.commit, message, asynchronous=False)
