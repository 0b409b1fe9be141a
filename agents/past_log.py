"""The log itself, read from the broker in the order of its offsets: for histories that the archive has no longer whole.

Used by one thread, which may wait for the broker; nothing here shares a consumer with anything else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.errors import BrokerUnavailable
from tables.partition import Logged

from .access import security

WAIT_S = 10.0
"""Longest wait for the next record."""
BATCH = 2_000


class _Whose(msgspec.Struct):
    tenant: str = "default"


_whose = msgspec.json.Decoder(_Whose).decode


def is_of(tenant: str, value: bytes | None) -> bool:
    """Whether a record's event is of the tenant; what is no event is nobody's.

    Example:
        >>> is_of("default", b'{"id": "a"}'), is_of("acme", b'{"tenant": "acme"}'), is_of("acme", b"[]"), is_of("acme", None)
        (True, True, False, False)
    """
    try:
        return value is not None and _whose(value).tenant == tenant
    except (msgspec.DecodeError, RecursionError):
        return False


class Log:
    """The source topics.

    Args:
        settings: of the worker: how to reach Kafka.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def _consumer(self) -> Consumer:
        _, theirs = security(self.settings)
        return Consumer(
            {
                "bootstrap.servers": self.settings.get("bootstrap"),
                "group.id": f"{self.settings.get('app_id')}-past",  # never joined, never committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
                "log_level": 0,
                **theirs,
            }
        )

    def starts(self, counts: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """First offset that the broker has of each partition.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        prefix = self.settings.get("topic_prefix")
        consumer = self._consumer()
        try:
            places = [(topic, number) for topic, count in counts.items() for number in range(count)]
            return {place: consumer.get_watermark_offsets(TopicPartition(prefix + place[0], place[1]), timeout=WAIT_S)[0] for place in places}
        except KafkaException as failed:
            raise BrokerUnavailable(f"the log cannot be read: {failed.args[0].str()}") from None
        finally:
            consumer.close()

    def records(self, topic: str, starts: Mapping[int, int]) -> Iterator[dict[int, list[Logged]]]:
        """Records of some partitions of a topic, from an offset each up to their present ends: batches by partition.

        Raises:
            BrokerUnavailable: the broker does not answer, or no longer has what comes next.
        """
        consumer = self._consumer()
        try:
            name = self.settings.get("topic_prefix") + topic
            consumer.assign([TopicPartition(name, number, start) for number, start in starts.items()])
            waiting = set(starts)
            heard = time.monotonic()
            while waiting:
                found: dict[int, list[Logged]] = {}
                for message in consumer.consume(BATCH, timeout=0.2):
                    error = message.error()
                    if error is None:
                        headers = [(name, raw or b"") for name, raw in message.headers() or ()]
                        record = Logged(message.offset(), message.timestamp()[1], message.value(), headers, message.key())
                        found.setdefault(message.partition(), []).append(record)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        waiting.discard(message.partition())
                    else:
                        raise BrokerUnavailable(f"the log cannot be read: {error.str()}")
                if found:
                    heard = time.monotonic()
                    yield found
                if time.monotonic() - heard > WAIT_S:
                    raise BrokerUnavailable(f"the log cannot be read: nothing came within {WAIT_S:.0f} s")
        finally:
            consumer.close()
