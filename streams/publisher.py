"""Publishers: what a trainer, an agent or a judge calls.

`SyncPublisher` is for training loops, `Publisher` for asyncio. Both check every event before sending, by the same check as the
worker; batch by size and time; never block the caller longer than `max_block_ms`; and count what became of each event.
Underneath is librdkafka: idempotent, acks from all in-sync replicas, zstd, Java's key hash.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from .codec import decode
from .errors import BrokerUnavailable, PulsefoldError, TopicProblem
from .events import EVENT_TYPES, Data, Event, Observation, TrustBatchObserved, TrustObserved
from .keys import encode_key, partition_for, record_key
from .spool import Spool

_encode = msgspec.json.Encoder().encode
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Dropped(UserWarning):
    """Events were dropped because the queue was full; `DeliveryReport.dropped` counts them."""


class DeliveryReport(msgspec.Struct):
    """What became of the events of one publisher.

    Attributes:
        accepted: taken by `publish`.
        delivered: acknowledged by the broker.
        failed: given up by the client library; `errors` says why.
        dropped: not taken because the queue was full (`on_full="drop"`).
        resent: left by an earlier process in the spool and sent again.
        waiting: not yet acknowledged.
    """

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    resent: int = 0
    waiting: int = 0
    errors: dict[str, int] = {}


def new_id() -> str:
    """A new event id: 26 characters, ordered by time (ULID).

    Source: https://github.com/ulid/spec
    """
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_LETTERS[value >> shift & 31] for shift in range(125, -1, -5))


class SyncPublisher:
    """Publishes events from ordinary code, without ever holding a training step up for long.

    Args:
        bootstrap: Kafka's ``HOST:PORT``, several by comma.
        prefix: the setting topic_prefix.
        tenant: of events that name none.
        source: CloudEvents source; default the host and process.
        batch_size, linger_ms: events are sent when either is reached.
        max_queue: events that may wait for the broker.
        max_block_ms: longest time that `publish` waits for room in the queue.
        on_full: ``drop`` (counted, warned about once) or ``spool`` (needs `spool`).
        spool: file; events are stored there until acknowledged, and sent again after a crash.
        spool_max_bytes: its bound.
        delivery_timeout_ms: after which an unacknowledged event counts as failed (a spool keeps it).
        config: further settings of librdkafka, such as ``security.protocol``.

    Raises:
        ConfigError: the spool cannot be used.

    Example:
        with SyncPublisher("127.0.0.1:9092") as publisher:
            publisher.publish(MetricRecorded(metric_type="train", model="m1", run="r1", values={"loss": 0.3}))
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        prefix: str = "pulsefold.",
        tenant: str = "default",
        source: str | None = None,
        batch_size: int = 50,
        linger_ms: int = 50,
        max_queue: int = 100_000,
        max_block_ms: float = 100.0,
        on_full: Literal["drop", "spool"] = "drop",
        spool: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = 1 << 30,
        delivery_timeout_ms: int = 120_000,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if on_full == "spool" and spool is None:
            raise PulsefoldError("on_full: spool needs the file to spool to: spool=PATH")
        self.prefix = prefix
        self.tenant = tenant
        self.source = source or f"{os.uname().nodename}/{os.getpid()}"
        self.max_block_s = max_block_ms / 1000
        self.bootstrap = bootstrap
        self._report = DeliveryReport()
        self._lock = threading.Lock()
        self._acked: list[tuple[int, int]] = []
        self._counts: dict[str, int] = {}
        self._warned = False
        self._closed = False
        self._spool = Spool(os.fspath(spool), spool_max_bytes) if spool is not None else None
        self._unsent = 0
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": "zstd",
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "batch.num.messages": batch_size,
                "queue.buffering.max.messages": max_queue,
                "message.max.bytes": 4 << 20,
                "message.timeout.ms": delivery_timeout_ms,
                "allow.auto.create.topics": False,
                "log_level": 0,
                **(config or {}),
            }
        )
        self._stop = threading.Event()
        self._poller = threading.Thread(target=_poll, args=(weakref.ref(self), self._producer, self._stop), name="pulsefold-acks", daemon=True)
        self._poller.start()
        self._at_exit: weakref.WeakMethod[Callable[..., object]] = weakref.WeakMethod(self.close)
        atexit.register(_close_at_exit, self._at_exit)
        self._resend()

    # ---- publishing

    def publish(
        self,
        event: Data | Event | Mapping[str, Any],
        *,
        tenant: str | None = None,
        id: str | None = None,
        time: datetime | None = None,
        on_delivery: Callable[[str, BaseException | None], None] | None = None,
    ) -> str:
        """Check an event and hand it over for sending; returns its id.

        Args:
            event: a struct of `pulsefold.events`, a decoded `Event`, or an envelope as a dictionary.
            id: default a new one; give your own to make a repetition recognisable.
            time: event time with an offset, default now.
            on_delivery: told (id, None) on acknowledgement or (id, error), from another thread.

        Raises:
            InvalidEvent: the event breaks the contract; nothing was sent.
            SpoolFull: the spool's bound is reached.
        """
        raw, checked = self._encode(event, tenant, id, time)
        self._hand_over(self.prefix + checked.data.TOPIC, record_key(checked), raw, checked.id, on_delivery)
        return checked.id

    def record_many(self, events: Iterable[Data | Event | Mapping[str, Any]], *, tenant: str | None = None) -> list[str]:
        """Check all events, then hand all over; if one is invalid none is sent. Returns their ids."""
        checked = [self._encode(event, tenant, None, None) for event in events]
        for raw, event in checked:
            self._hand_over(self.prefix + event.data.TOPIC, record_key(event), raw, event.id, None)
        return [event.id for _, event in checked]

    def observe(self, kind: str, id: str, success: bool, weight: float = 1.0, *, tenant: str | None = None) -> str:
        """Record one success or failure; returns the event's id."""
        return self.publish(TrustObserved(kind=kind, id=id, success=success, weight=weight), tenant=tenant)

    def observe_many(self, observations: Iterable[Observation], *, tenant: str | None = None) -> list[str]:
        """Record several, grouped by home partition so that no observation travels twice; returns the events' ids."""
        count = self._partitions("judgments")
        groups: dict[int, list[Observation]] = {}
        for one in observations:
            groups.setdefault(partition_for(encode_key(tenant or self.tenant, one.kind, one.id), count), []).append(one)
        return self.record_many([TrustBatchObserved(observations=group) for group in groups.values()], tenant=tenant)

    def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until everything is acknowledged; returns how many events are not."""
        deadline = time.monotonic() + timeout_s
        left = self._producer.flush(timeout_s)
        while self._poller.is_alive() and self.report().waiting and time.monotonic() < deadline:
            time.sleep(0.005)  # acknowledgements that the polling thread is just handing on
        self._settle()
        return max(left, self.report().waiting)

    def report(self) -> DeliveryReport:
        """What became of the events so far."""
        with self._lock:
            found = msgspec.structs.replace(self._report, errors=dict(self._report.errors))
        found.waiting = found.accepted + found.resent - found.delivered - found.failed - found.dropped
        return found

    def close(self, timeout_s: float = 30.0) -> DeliveryReport:
        """Flush and stop; also done at exit. What is not acknowledged then stays in the spool, or is reported as waiting."""
        if self._closed:
            return self.report()
        self._closed = True
        self.flush(timeout_s)
        self._stop.set()
        self._poller.join(5)
        if self._spool is not None:
            self._spool.close()
        atexit.unregister(_close_at_exit)
        return self.report()

    def __enter__(self) -> SyncPublisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- inside

    def _encode(self, event: Data | Event | Mapping[str, Any], tenant: str | None, id: str | None, time: datetime | None) -> tuple[bytes, Event]:
        if isinstance(event, Data):
            body: dict[str, Any] = {"type": event.TYPE, "data": event}
        elif isinstance(event, Event):
            body = {"id": event.id, "source": event.source, "type": event.data.TYPE, "time": event.time, "tenant": event.tenant, "data": event.data}
        else:
            body = dict(event)
        body = {
            "specversion": body.get("specversion", "1.0"),
            "id": id or body.get("id") or new_id(),
            "source": body.get("source") or self.source,
            "type": body.get("type"),
            "time": time or body.get("time") or datetime.now(UTC),
            "tenant": tenant or body.get("tenant") or self.tenant,
            **{name: value for name, value in body.items() if name not in ("specversion", "id", "source", "type", "time", "tenant") and value is not None},
        }
        raw = _encode(body)
        return raw, decode(raw)

    def _hand_over(self, topic: str, key: bytes, raw: bytes, id: str, on_delivery: Callable[[str, BaseException | None], None] | None) -> None:
        number = self._spool.put(topic, key, raw) if self._spool is not None else 0
        with self._lock:
            self._report.accepted += 1
        self._send(topic, key, raw, id, number, on_delivery)

    def _send(self, topic: str, key: bytes, raw: bytes, id: str, number: int, on_delivery: Callable[[str, BaseException | None], None] | None) -> None:
        size = len(raw)

        def done(error: KafkaError | None, message: Message) -> None:
            self._delivered(error, number, size)
            if on_delivery is not None:
                on_delivery(id, None if error is None else KafkaException(error))

        deadline = time.monotonic() + self.max_block_s
        while True:
            try:
                self._producer.produce(topic, raw, key, on_delivery=done)
                return
            except BufferError:
                if time.monotonic() < deadline:
                    time.sleep(0.001)
                    continue
            except KafkaException as exc:
                self._delivered(exc.args[0], number, size)
                return
            break
        if number:
            self._unsent += 1  # the spool keeps it; sent again when there is room, or by the next process
            return
        with self._lock:
            self._report.dropped += 1
        if not self._warned:
            self._warned = True
            warnings.warn(f"the queue to {self.bootstrap} is full: events are dropped and counted in report().dropped", Dropped, stacklevel=4)

    def _delivered(self, error: KafkaError | None, number: int, size: int) -> None:
        with self._lock:
            if error is None:
                self._report.delivered += 1
                if number:
                    self._acked.append((number, size))
            elif not number:
                self._report.failed += 1
                text = _reason(error)
                self._report.errors[text] = self._report.errors.get(text, 0) + 1
            else:
                self._unsent += 1
                text = _reason(error)
                self._report.errors[text] = self._report.errors.get(text, 0) + 1
            due = len(self._acked) >= 200
        if due:
            self._settle()

    def _settle(self) -> None:
        if self._spool is None:
            return
        with self._lock:
            acked, self._acked = self._acked, []
        if acked:
            self._spool.remove(acked)

    def _resend(self) -> None:
        """Send what an earlier process left in the spool."""
        if self._spool is None:
            return
        for number, topic, key, raw in self._spool.waiting():
            with self._lock:
                self._report.resent += 1
            self._send(topic, key, raw, "", number, None)

    def _partitions(self, topic: str) -> int:
        name = self.prefix + topic
        if name not in self._counts:
            try:
                found = self._producer.list_topics(name, timeout=10).topics[name]
            except KafkaException as exc:
                raise BrokerUnavailable(f"bootstrap: no Kafka broker answers at {self.bootstrap} ({exc.args[0].name()})") from None
            if found.error is not None:
                raise TopicProblem(f"{name}: missing on {self.bootstrap}; create with: pulsefold topics create --bootstrap {self.bootstrap}")
            self._counts[name] = len(found.partitions)
        return self._counts[name]


def _reason(error: KafkaError) -> str:
    if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
        return "the topic does not exist; create it with: pulsefold topics create"
    return str(error.str())


def _poll(owner: weakref.ref[SyncPublisher], producer: Producer, stop: threading.Event) -> None:
    """Serve acknowledgements until the publisher is closed or gone."""
    while not stop.is_set() and owner() is not None:
        producer.poll(0.05)
    producer.poll(0)


def _close_at_exit(close: weakref.WeakMethod[Callable[..., object]]) -> None:
    method = close()
    if method is not None:
        method()


class Publisher:
    """Publishes events from asyncio; as `SyncPublisher`, but `publish` can be awaited until the broker has acknowledged.

    Args:
        bootstrap: Kafka's ``HOST:PORT``.
        **options: of `SyncPublisher`.

    Example:
        async with Publisher("127.0.0.1:9092") as publisher:
            await publisher.publish(TrustObserved(kind="model", id="m1", success=True))
    """

    def __init__(self, bootstrap: str, **options: Any) -> None:
        self._sync = SyncPublisher(bootstrap, **options)

    async def publish(self, event: Data | Event | Mapping[str, Any], **options: Any) -> str:
        """Send and wait for the acknowledgement; returns the id.

        Raises:
            InvalidEvent: the event breaks the contract.
            PulsefoldError: the broker did not acknowledge it.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def told(_: str, error: BaseException | None) -> None:
            def settle() -> None:
                if not done.done():
                    done.set_result(None) if error is None else done.set_exception(PulsefoldError(f"not acknowledged: {error.args[0]}"))

            loop.call_soon_threadsafe(settle)

        dropped = self._sync.report().dropped
        name = self._sync.publish(event, on_delivery=told, **options)
        if self._sync.report().dropped > dropped:
            raise PulsefoldError("not sent: the queue is full")
        await done
        return name

    def send(self, event: Data | Event | Mapping[str, Any], **options: Any) -> str:
        """Hand over without waiting; returns the id. `report` tells what became of it."""
        return self._sync.publish(event, **options)

    def record_many(self, events: Iterable[Data | Event | Mapping[str, Any]], *, tenant: str | None = None) -> list[str]:
        """As `SyncPublisher.record_many`."""
        return self._sync.record_many(events, tenant=tenant)

    async def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until everything is acknowledged; returns how many events are not."""
        return await asyncio.to_thread(self._sync.flush, timeout_s)

    def report(self) -> DeliveryReport:
        """What became of the events so far."""
        return self._sync.report()

    async def close(self) -> DeliveryReport:
        """Flush and stop."""
        return await asyncio.to_thread(self._sync.close)

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


__all__ = ["EVENT_TYPES", "DeliveryReport", "Dropped", "Publisher", "SyncPublisher", "new_id"]
