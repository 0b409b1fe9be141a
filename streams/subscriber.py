"""Alerts as they come, for people's own programs: an async iterator over the alerts topic.

The rules this file keeps: an alert is given once, though its message may be on the topic twice (same tenant and id); with a group, an
alert counts as consumed when the next one is asked for (or `commit` is called), so a program that dies in between gets it
again; nothing is lost when a wait is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

import msgspec
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from .errors import BrokerUnavailable, ConfigError, PulsefoldError, TopicProblem
from .events import AlertData

SEEN = 65_536
_log = logging.getLogger("pulsefold.subscriber")
_FOR_GOOD = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC,
    KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._AUTHENTICATION, KafkaError._FATAL,
})  # fmt: skip


class Alert(msgspec.Struct, frozen=True):
    """One alert message.

    Attributes:
        type: ``alert.opened.v1``, ``alert.escalated.v1``, ``alert.eased.v1`` or ``alert.resolved.v1``.
        id: of the message; `data.alert_id` is the alert's, the same from its opening to its end.
        time: event time, RFC 3339 in UTC.
        data: rule, severity, subject, value, threshold, message and the rest of contract §3.
    """

    type: str
    id: str
    time: str
    tenant: str
    data: AlertData


_decode = msgspec.json.Decoder(Alert).decode


class AlertSubscriber:
    """Alerts of a tenant, for one task at a time.

    Args:
        bootstrap: Kafka's ``HOST:PORT``.
        tenant: None = of every tenant.
        group: a name under which the position is kept on the broker; programs of one group share the alerts. None = no position
            is kept, and every program gets every alert.
        since: where to begin without a kept position: ``latest`` (what is published after the start) or ``earliest`` (with what
            the topic still holds; it is compacted).
        timeout_s: longest wait for the broker at the start.
        config: further settings of librdkafka, such as ``security.protocol``.

    Attributes:
        skipped: messages that are no alerts of the contract; logged once.

    Raises:
        ConfigError: yours: `since` is neither.

    Example:
        async with AlertSubscriber("127.0.0.1:9092", tenant="acme") as alerts:
            async for alert in alerts:
                print(alert.data.severity, alert.data.message)
    """

    def __init__(
        self, bootstrap: str, *, prefix: str = "pulsefold.", tenant: str | None = None, group: str | None = None,
        since: Literal["latest", "earliest"] = "latest", timeout_s: float = 10.0, config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if since not in ("latest", "earliest"):
            raise ConfigError("since", "expected latest or earliest")
        self.bootstrap = bootstrap
        self.topic = prefix + "alerts"
        self.tenant = tenant
        self.group = group
        self.since = since
        self.timeout_s = timeout_s
        self.skipped = 0
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._ready: deque[Message] = deque()
        self._polling: asyncio.Future[list[Message]] | None = None
        self._passed: dict[int, int] = {}  # partition -> offset behind what was consumed
        self._begin: dict[int, int] = {}  # partition -> where a group without a position begins: the end at the start
        self._given: Message | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pulsefold-alerts")  # the consumer's only thread
        self._consumer: Any = None
        self._config = {
            "bootstrap.servers": bootstrap, "group.id": group or f"pulsefold-alerts-{uuid.uuid4().hex}", "enable.auto.commit": False,
            "enable.auto.offset.store": False, "auto.offset.reset": since, "isolation.level": "read_committed", "allow.auto.create.topics": False,
            "max.poll.interval.ms": 3_600_000, "log_level": 0, **(config or {}),
        }  # fmt: skip

    async def start(self) -> None:
        """Connect and fix the position: with ``latest``, what is published from here on is given.

        Raises:
            TopicProblem: yours: there is no alerts topic.
            BrokerUnavailable: the world's: nobody answers within `timeout_s`.
        """
        if self._consumer is None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def close(self) -> None:
        """Leave; what was given last and not followed by a request for the next is given again to the group."""
        if self._consumer is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._stop)
        self._thread.shutdown(wait=False)

    async def commit(self) -> None:
        """Say that everything given so far is consumed, without asking for the next."""
        self._consume()
        if self.group is not None and self._consumer is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, dict(self._passed))

    async def __aenter__(self) -> AlertSubscriber:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Alert]:
        return self

    async def __anext__(self) -> Alert:
        """The next alert, whenever it comes; a cancelled wait loses nothing.

        Raises:
            PulsefoldError: the broker refuses (rights, a removed topic). Outages are waited out.
        """
        await self.start()
        if self._given is not None:
            await self.commit()
        while True:
            while self._ready:
                message = self._ready.popleft()
                alert = self._read(message)
                if alert is not None:
                    self._given = message
                    return alert
                self._pass(message)
            if self._polling is None:
                self._polling = asyncio.get_running_loop().run_in_executor(self._thread, self._poll)
            try:
                messages = await asyncio.shield(self._polling)
            except PulsefoldError:
                self._polling = None
                raise
            self._polling = None
            self._ready.extend(messages)

    # ---- inside

    def _consume(self) -> None:
        if self._given is not None:
            self._pass(self._given)
            self._given = None

    def _pass(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None and offset is not None, "a message that was polled has both"
        self._passed[partition] = offset + 1

    def _read(self, message: Message) -> Alert | None:
        value = message.value()
        if value is None:
            return None  # a tombstone: the alert is long over
        try:
            alert = _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            self.skipped += 1
            if self.skipped == 1:
                _log.warning("%s/%d offset %d is no alert of the contract: %s", self.topic, message.partition(), message.offset(), exc)
            return None
        name = alert.tenant, alert.id
        if (self.tenant is not None and alert.tenant != self.tenant) or name in self._seen:
            return None
        self._seen[name] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return alert

    # ---- in the consumer's thread

    def _start(self) -> None:
        consumer = Consumer(self._config)
        try:
            listed = consumer.list_topics(timeout=self.timeout_s).topics
            if self.topic not in listed:
                raise TopicProblem(f"{self.topic}: missing on {self.bootstrap}; create with: pulsefold topics create --bootstrap {self.bootstrap}")
            partitions = [TopicPartition(self.topic, number) for number in listed[self.topic].partitions]
            if self.group is None:
                consumer.assign(self._from_start(consumer, partitions))
            else:
                if self.since == "latest":
                    self._begin = {one.partition: one.offset for one in self._from_start(consumer, partitions)}
                consumer.subscribe([self.topic], on_assign=self._assigned)
        except KafkaException as exc:
            consumer.close()
            raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {self.bootstrap} within {self.timeout_s:g} s ({exc.args[0].name()})") from None
        except TopicProblem:
            consumer.close()
            raise
        self._consumer = consumer

    def _from_start(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        found = []
        for one in partitions:
            low, high = consumer.get_watermark_offsets(one, timeout=self.timeout_s)
            found.append(TopicPartition(one.topic, one.partition, low if self.since == "earliest" else high))
        return found

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """A group's first start fixes its position; else what comes before the first commit would be lost by a restart.

        It is the one of the start: until partitions are assigned, alerts may have come.
        """
        try:
            new = [one for one in consumer.committed(partitions, timeout=self.timeout_s) if one.offset == OFFSET_INVALID]
            if new:
                found = [
                    TopicPartition(one.topic, one.partition, max(self._begin[one.partition], self._passed.get(one.partition, 0)))
                    for one in new
                    if one.partition in self._begin
                ]
                found += self._from_start(consumer, [one for one in new if one.partition not in self._begin])
                consumer.commit(offsets=found, asynchronous=False)
        except KafkaException as exc:
            _log.warning("%s: the group's position cannot be fixed at the start: %s", self.topic, exc.args[0].str())
        for one in partitions:
            self._passed.pop(one.partition, None)

    def _poll(self) -> list[Message]:
        messages = []
        for message in self._consumer.consume(100, 0.2):
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.code() in _FOR_GOOD:
                raise PulsefoldError(f"{self.topic}: {error.str()}")
            # all others are outages, which librdkafka waits out
        return messages

    def _commit(self, passed: dict[int, int]) -> None:
        mine = {one.partition for one in self._consumer.assignment()}
        offsets = [TopicPartition(self.topic, partition, offset) for partition, offset in passed.items() if partition in mine]
        if offsets:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as exc:
                _log.info("%s: the position could not be kept, alerts may come again: %s", self.topic, exc.args[0].str())

    def _stop(self) -> None:
        self._consumer.close()
        self._consumer = None
