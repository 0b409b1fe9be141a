"""Which app publishes outputs (contract §4): the one that is recorded first in the topics; any other only reads.

The record is an event ``outputs.claimed.v1`` under the key ``outputs`` in partition 0 of the compacted topic `scores` (the keys of
scores have three parts, so it is nobody's else). It is written once, ever: whoever wants to write it first takes the transactional id
``PREFIXoutputs``, by which the broker shuts out everybody who took it before, then reads the topic to its end, and writes only if
nobody is recorded. So of two apps that start at the same moment one is recorded and the other reads that. Where a broker does not
shut out (the embedded one), the first record on the log is the one that counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from .derive import event_bytes
from .errors import TopicProblem

KEY = b"outputs"
TYPE = "outputs.claimed.v1"


def recorded_app(bootstrap: str, prefix: str, *, security: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> str | None:
    """The app that publishes outputs; None while nobody is recorded.

    Raises:
        TopicProblem: the topic cannot be read.
    """
    place = TopicPartition(prefix + "scores", 0)
    config = {
        "bootstrap.servers": bootstrap, "group.id": "pulsefold-outputs", "enable.auto.commit": False, "enable.partition.eof": True,
        "isolation.level": "read_committed", "log_level": 0, **(security or {}),
    }  # fmt: skip
    deadline = time.monotonic() + timeout_s
    with closing(Consumer(config)) as consumer:
        consumer.assign([TopicPartition(place.topic, place.partition, 0)])
        while time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is None:
                continue
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return None
            if error is not None and not error.retriable():
                raise TopicProblem(f"{place.topic}: which app publishes outputs cannot be read: {error.str()}")
            value = message.value()
            if error is None and message.key() == KEY and value is not None:
                return str(msgspec.json.decode(value)["data"]["app_id"])
    raise TopicProblem(f"{place.topic}: which app publishes outputs could not be read within {timeout_s:g} s; set outputs to on or off")


def publishing_app(bootstrap: str, prefix: str, app_id: str, *, security: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> str:
    """The app that publishes outputs; this one is recorded if nobody was.

    Raises:
        TopicProblem: the topic cannot be read, or the record not be written.
    """
    deadline = time.monotonic() + timeout_s
    while (found := recorded_app(bootstrap, prefix, security=security, timeout_s=timeout_s)) is None:
        try:
            _claim(bootstrap, prefix, app_id, security, timeout_s)
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH) and time.monotonic() < deadline:
                continue  # somebody else came in between, and is recorded now or shortly
            raise TopicProblem(
                f"{prefix}scores: this app cannot be recorded as the one that publishes outputs: {error.str()}; set outputs to on or off"
            ) from None
    return found


def _claim(bootstrap: str, prefix: str, app_id: str, security: Mapping[str, Any] | None, timeout_s: float) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{prefix}outputs", "log_level": 0, **(security or {})})
    producer.init_transactions(timeout_s)
    if recorded_app(bootstrap, prefix, security=security, timeout_s=timeout_s) is not None:
        return
    value = event_bytes(type=TYPE, id="outputs", source=f"pulsefold/{app_id}", time_us=time.time_ns() // 1000, tenant="default", data={"app_id": app_id})
    producer.begin_transaction()
    producer.produce(prefix + "scores", value, KEY, 0)
    producer.commit_transaction(timeout_s)
