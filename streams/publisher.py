"""Publishers: what a trainer, an agent or a judge calls.

`SyncPublisher` is for training loops, `Publisher` for asyncio. The rules this file keeps:
  * every event is checked before it is sent, by the same check as the worker's, on the very bytes that are sent;
  * the caller is never held up longer than `max_block_ms`, whatever the broker does;
  * every event ends in exactly one figure of the report: accepted + recovered = delivered + failed + dropped + waiting;
  * an id is made once and kept on every repetition, so that a repetition changes nothing downstream.
Underneath is librdkafka: idempotent, acknowledged by all in-sync replicas, zstd, Java's key hash.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import math
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from .codec import InvalidEvent, decode
from .errors import ConfigError, PulsefoldError, TopicProblem
from .events import ClockTicked, Data, Event, Observation, TrustBatchObserved, TrustObserved
from .keys import encode_key, partition_for, record_key
from .spool import Spool, SpoolBusy, SpoolFull, SpoolStuck, Stored
from .topics import SOURCE_TOPICS

OnDelivery = Callable[[str, BaseException | None], None]
MAX_OBSERVATIONS = 10_000
MAX_BATCH_BYTES = 900_000
RETRY_S = 1.0
END_S = 1.0
"""What `close` may take beyond its timeout for threads to end, for what librdkafka has to tell at last, and for the spool: each."""

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("pulsefold.publisher")
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_AS_IT_IS = frozenset({str, int, bool, type(None), datetime, date, Decimal, msgspec.Raw})
_REFUSED_FOR_GOOD = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG})
# The producer broke, not the event: it goes out again through a new one.
_TAKEN_BACK = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN_PRODUCER_ID,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
    }
)


class Dropped(UserWarning):
    """Events were dropped, or given up at the end; `DeliveryReport` counts them."""


class Unspooled(UserWarning):
    """Events go without the spool, because its disk is full or slow; `DeliveryReport` counts them."""


class DeliveryReport(msgspec.Struct):
    """What became of the events of one publisher; accepted + recovered = delivered + failed + dropped + waiting.

    Attributes:
        accepted: passed the check.
        delivered: acknowledged by the broker.
        failed: refused by the broker, or not acknowledged in time.
        dropped: no room: the queue (or the spool) was full.
        waiting: not yet acknowledged.
        recovered: left in the spool by an earlier process and taken up by this one.
        resent: sent once more, with the same id: recovered ones, and attempts that failed.
        spooled: on the disk now; the next start sends them if this process does not.
        unspooled: handed over without the spool, because its disk was full or slow: these would be lost with the process.
        errors: reason -> how often, of failed events, of dropped ones and of attempts that failed.
    """

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    waiting: int = 0
    recovered: int = 0
    resent: int = 0
    spooled: int = 0
    unspooled: int = 0
    errors: dict[str, int] = {}


class _Item(NamedTuple):
    """An event on its way; `number` is the spool's, 0 without one."""

    id: str
    topic: str
    key: bytes
    value: bytes
    on_delivery: OnDelivery | None = None
    number: int = 0


def new_id() -> str:
    """A new event id: 26 characters, ordered by time to the millisecond (ULID).

    Source: https://github.com/ulid/spec
    """
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_LETTERS[value >> shift & 31] for shift in range(125, -1, -5))


class SyncPublisher:
    """Publishes events from ordinary code, without ever holding a training step up for long. Safe to share between threads.

    Flushed at exit, even if nobody closes it. Not for use across ``fork``: make one in each process.

    Args:
        bootstrap: Kafka's ``HOST:PORT``, several by comma. It need not answer yet.
        prefix: the setting topic_prefix.
        tenant: of events that name none.
        source: CloudEvents source; default host and process.
        batch_size, linger_ms: events of a partition are sent when either is reached.
        max_queue: events that may wait in memory for the broker.
        max_block_ms: longest time that `publish` waits: for room in the queue, and once for the broker's first answer.
        on_full: ``drop`` (counted, warned about once) or ``spool``; default ``spool`` if there is one.
        spool: file; every event is stored there until acknowledged, and sent again after a crash. While its disk is full or slow they go
            through the queue alone, counted and warned about once; such an event may overtake earlier ones of its key that still wait in the spool.
        spool_max_bytes: its bound; beyond it events are dropped and counted.
        delivery_timeout_ms: after which an unacknowledged event counts as failed (from a spool it is sent again).
        flush_timeout_s: longest wait for acknowledgements in `close` and at exit.
        config: further settings of librdkafka, such as ``security.protocol``.

    Raises:
        ConfigError: yours: the spool cannot be used, or `on_full` and `spool` do not go together.

    Example:
        with SyncPublisher("127.0.0.1:9092") as publisher:
            publisher.publish(MetricRecorded(metric_type="train", model="m1", run="r1", values={"loss": 0.3}))
    """

    def __init__(
        self, bootstrap: str, *, prefix: str = "pulsefold.", tenant: str = "default", source: str | None = None, batch_size: int = 50, linger_ms: int = 50,
        max_queue: int = 100_000, max_block_ms: float = 100.0, on_full: Literal["drop", "spool"] | None = None, spool: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = 1 << 30, delivery_timeout_ms: int = 120_000, flush_timeout_s: float = 10.0, config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if on_full == "spool" and spool is None:
            raise ConfigError("on_full", "spool needs the file to spool to: spool=PATH")
        if on_full == "drop" and spool is not None:
            raise ConfigError("on_full", "drop and a spool exclude each other: every event goes to the spool first")
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.tenant = tenant
        self.source = source or f"{socket.gethostname()}/{os.getpid()}"
        self.max_block_s = max_block_ms / 1000
        self.flush_timeout_s = flush_timeout_s
        self._config = {
            "bootstrap.servers": bootstrap, "enable.idempotence": True, "acks": "all", "compression.type": "zstd", "partitioner": "murmur2_random",
            "linger.ms": linger_ms, "batch.num.messages": batch_size, "queue.buffering.max.messages": max_queue, "message.max.bytes": 4 << 20,
            "message.timeout.ms": delivery_timeout_ms, "topic.metadata.propagation.max.ms": 5000, "allow.auto.create.topics": False, "log_level": 0,
            "error_cb": self._on_error, **(config or {}),
        }  # fmt: skip
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of the report, and of what waits for the sending thread
        self._order = threading.RLock()  # of spooling and sending, so that events leave in the order they came
        self._report = DeliveryReport()
        self._acked: list[int] = []
        self._again: list[_Item] = []
        self._failed: list[int] = []  # numbers of attempts that failed, and that the spool still has
        self._warned = self._fatal = self._closed = self._told_stuck = False
        self._stuck = False  # the spool's disk took nothing the last time
        self._settle_at = 0.0
        self._counts: dict[str, int] | None = None  # partitions by topic, once the broker has answered
        self._answered = threading.Event()
        self._waited = False
        self._asked_at = 0.0
        self._spool = Spool(spool, spool_max_bytes) if spool is not None else None
        self._cursor = 0  # last number given to librdkafka, or to be skipped
        self._in_flight: set[int] = set()
        self._tried: set[int] = set()
        self._callbacks: dict[int, OnDelivery] = {}
        self._backlog = self._spool is not None and len(self._spool) > 0
        self._newest = self._spool.newest if self._spool is not None else 0
        self._recovered_to = self._newest
        self._next_feed = 0.0
        self._report.recovered = len(self._spool) if self._spool is not None else 0
        self._producer = self._connect()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="pulsefold-acks", daemon=True),
            threading.Thread(target=self._learn, name="pulsefold-topics", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    # ---- publishing

    def publish(
        self, event: Data | Event | Mapping[str, Any], *, tenant: str | None = None, id: str | None = None, time: datetime | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> str:  # fmt: skip
        """Check an event and hand it over for sending; returns its id.

        Args:
            event: a struct of `pulsefold.events`, a decoded `Event`, or an envelope as a dictionary. Numbers may be numpy's or
                torch's; not-a-number and infinities become text, which metrics take and everything else refuses.
            id: default a new one; give your own to make a repetition recognisable.
            time: event time with an offset, default now.
            on_delivery: told (id, None) on acknowledgement or (id, error) if given up, from another thread.

        Raises:
            InvalidEvent: yours: the event breaks the contract; nothing was sent.
            TopicProblem: yours: the broker has no such topic.
            PulsefoldError: yours: the publisher is closed, or was made before a fork.
        """
        item = self._prepare(event, tenant, id, time, on_delivery)
        self._hand_over(item)
        return item.id

    def record_many(self, events: Iterable[Data | Event | Mapping[str, Any]], *, tenant: str | None = None) -> list[str]:
        """Check all events, then hand all over; if one is invalid none is sent. Returns their ids.

        Raises:
            As `publish`.
        """
        items = [self._prepare(event, tenant, None, None, None) for event in events]
        for item in items:
            self._hand_over(item)
        return [item.id for item in items]

    def observe(self, kind: str, id: str, success: bool, weight: float = 1.0, *, tenant: str | None = None) -> str:
        """Record one success or failure; returns the event's id."""
        return self.publish(TrustObserved(kind=kind, id=id, success=success, weight=weight), tenant=tenant)

    def observe_many(self, observations: Iterable[Observation], *, tenant: str | None = None) -> list[str]:
        """Record several, grouped by home partition so that no observation travels twice; returns the events' ids.

        While the broker has not answered yet, its number of partitions is unknown: then each goes as an event of its own.
        """
        self._await_answer()
        count = (self._counts or {}).get(self.prefix + "judgments")
        if count is None:
            return self.record_many([TrustObserved(kind=o.kind, id=o.id, success=o.success, weight=o.weight) for o in observations], tenant=tenant)
        groups: dict[int, list[Observation]] = {}
        for one in observations:
            groups.setdefault(partition_for(encode_key(tenant or self.tenant, one.kind, one.id), count), []).append(one)
        return self.record_many([TrustBatchObserved(observations=batch) for group in groups.values() for batch in _batches(group)], tenant=tenant)

    def flush(self, timeout_s: float = 30.0) -> int:
        """Send what waits now, without lingering; returns how many events are not acknowledged in time.

        Args:
            timeout_s: longest wait, for brokers and for the spool's disk. What could not be taken out of the spool in time leaves it later.
        """
        if os.getpid() != self._pid:
            return 0
        deadline = time.monotonic() + timeout_s
        while (waiting := self.report().waiting) and (left := deadline - time.monotonic()) > 0:
            if not self._serve(min(left, 0.1), flush=True):
                time.sleep(0.002)  # what is still waiting is with the sending thread
        self._settle(max(0.0, deadline - time.monotonic()))
        return waiting

    def report(self) -> DeliveryReport:
        """What became of the events so far."""
        with self._lock:
            found = msgspec.structs.replace(self._report, errors=dict(self._report.errors))
        found.waiting = found.accepted + found.recovered - found.delivered - found.failed - found.dropped
        found.spooled = len(self._spool) if self._spool is not None else 0
        return found

    def close(self, timeout_s: float | None = None) -> DeliveryReport:
        """Flush and stop; a second call does nothing. What is not acknowledged then stays in the spool or counts as failed.

        Args:
            timeout_s: default `flush_timeout_s`. Where brokers or the spool's disk answer late it takes a few seconds longer at most; a spool that
                could not be closed by then is told of by the warning `Unspooled`: what it still has is sent again by the next start.
        """
        if self._closed or os.getpid() != self._pid:
            return self.report()
        self._closed = True
        atexit.unregister(self.close)
        self.flush(self.flush_timeout_s if timeout_s is None else timeout_s)
        self._stop.set()
        over = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, over - time.monotonic()))
        self._producer.purge()
        self._serve(END_S, flush=True)
        self._settle(END_S / 2)
        for item in self._again:
            self._give_up(item, "not acknowledged when the publisher was closed")
        self._again.clear()
        if self._spool is not None:
            try:
                self._spool.close(timeout_s=END_S / 2)
            except SpoolBusy as busy:
                threading.Thread(target=self._spool.close, name="pulsefold-spool", daemon=True).start()
                warnings.warn(f"{busy}: it was not closed in time, and the next start sends again what it still has", Unspooled, stacklevel=2)
        report = self.report()
        if report.failed or report.dropped or report.waiting:
            kept = f", {report.spooled} wait in the spool for the next start" if report.spooled else ""
            warnings.warn(
                f"of {report.accepted + report.recovered} events to {self.bootstrap} {report.delivered} were acknowledged, {report.failed} failed, "
                f"{report.dropped} were dropped{kept}: {report.errors}", Dropped, stacklevel=2,
            )  # fmt: skip
        return report

    def __enter__(self) -> SyncPublisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- in the caller's thread

    def _prepare(
        self, event: Data | Event | Mapping[str, Any], tenant: str | None, id: str | None, time: datetime | None, on_delivery: OnDelivery | None
    ) -> _Item:
        if isinstance(event, Data):
            body: dict[str, Any] = {"type": event.TYPE, "data": event}
        elif isinstance(event, Event):
            body = {"type": event.data.TYPE, **{name: getattr(event, name) for name in ("id", "source", "time", "tenant", "derivedfrom", "data")}}
        else:
            body = dict(event)
        body |= {
            "specversion": body.get("specversion", "1.0"), "id": id or body.get("id") or new_id(), "source": body.get("source") or self.source,
            "time": time or body.get("time") or datetime.now(UTC), "tenant": tenant or body.get("tenant") or self.tenant,
        }  # fmt: skip
        try:
            raw = _encode(_plain({name: value for name, value in body.items() if value is not None}))
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise InvalidEvent("invalid_field", f"data: cannot be written as JSON: {exc}", "data") from None
        checked = decode(raw)
        if checked.derivedfrom is not None:
            raise InvalidEvent("refused", "derivedfrom: set by workers only", "derivedfrom")
        if checked.data.TOPIC not in SOURCE_TOPICS or isinstance(checked.data, ClockTicked):
            raise InvalidEvent("refused", f"type: {checked.data.TYPE} is published by workers only", "type")
        if self._closed or os.getpid() != self._pid:
            why = "is closed" if os.getpid() == self._pid else f"was made in process {self._pid}, before a fork: make one in each process"
            raise PulsefoldError(f"the publisher {why}")
        item = _Item(checked.id, self.prefix + checked.data.TOPIC, record_key(checked), raw, on_delivery)
        self._check_topic(item.topic)
        return item

    def _accept(self) -> None:
        with self._lock:
            self._report.accepted += 1

    def _hand_over(self, item: _Item) -> None:
        self._accept()
        deadline = time.monotonic() + self.max_block_s
        if self._offer(item, deadline):
            return
        while time.monotonic() < deadline:
            time.sleep(0.001)
            if self._offer(item, deadline):
                return
        self._drop(item, "the queue was full")

    def _offer(self, item: _Item, deadline: float, *, wait: bool = True) -> bool:
        """Take the event at once, into the spool or the queue; False if there is no room now.

        Args:
            deadline: monotonic seconds until which the spool may be waited for; then the event goes without it.
            wait: here; else False is returned as long as it should be waited for.
        """
        if self._spool is None:
            return self._produce(item)
        later = not wait and time.monotonic() < deadline
        if not self._order.acquire(timeout=max(0.0, deadline - time.monotonic()) if wait else 0.0):
            return not later and self._without_spool(item, f"spool: the disk of {self._spool.path} is slow")
        try:
            try:
                left_s = max(0.0, deadline - time.monotonic()) if wait else 0.0
                number = self._spool.put(item.id, item.topic, item.key, item.value, timeout_s=left_s)
            except SpoolFull as full:
                self._drop(item, str(full))
                return True
            except SpoolBusy as busy:
                return not later and self._without_spool(item, str(busy))
            except SpoolStuck as stuck:
                return self._without_spool(item, str(stuck))
            self._newest = number
            if item.on_delivery is not None:
                self._callbacks[number] = item.on_delivery
            if self._failed:
                self._take_back()
            if not self._backlog:
                self._backlog = not self._produce(item._replace(number=number))
                if not self._backlog:
                    self._cursor = number
        finally:
            self._order.release()
        return True

    def _without_spool(self, item: _Item, why: str) -> bool:
        """Hand an event over that the spool did not take; False if there is no room for it in memory either."""
        self._stuck = True
        if not self._produce(item):
            return False
        with self._lock:
            self._report.unspooled += 1
            first, self._told_stuck = not self._told_stuck, True
        if first:
            warnings.warn(f"{why}: events to {self.bootstrap} go without it and are counted in report().unspooled", Unspooled, stacklevel=5)
        return True

    def _produce(self, item: _Item) -> bool:
        def done(error: KafkaError | None, message: Message) -> None:
            self._told(error, item)

        if item.number:
            with self._lock:
                self._in_flight.add(item.number)
        try:
            self._producer.produce(item.topic, item.value, item.key, on_delivery=done)
            return True
        except BufferError:
            pass
        except KafkaException as exc:
            if exc.args[0].code() not in _TAKEN_BACK:
                self._told(exc.args[0], item)
                return True
        if item.number:
            with self._lock:
                self._in_flight.discard(item.number)
        return False

    def _drop(self, item: _Item, why: str) -> None:
        with self._lock:
            self._report.dropped += 1
            self._report.errors[why] = self._report.errors.get(why, 0) + 1
            first, self._warned = not self._warned, True
        self._tell(item, PulsefoldError(f"dropped: {why}"))
        if first:
            warnings.warn(f"{why}: events to {self.bootstrap} are dropped and counted in report().dropped", Dropped, stacklevel=4)

    def _await_answer(self) -> None:
        """Wait for the broker's first answer, once, within the bound."""
        if not self._waited:
            self._answered.wait(self.max_block_s)
            self._waited = True

    def _check_topic(self, topic: str) -> None:
        self._await_answer()
        if self._counts is None or topic in self._counts:
            return
        if time.monotonic() - self._asked_at > 1:
            self._ask(max(self.max_block_s, 0.05))
        if topic not in self._counts:
            raise TopicProblem(f"{topic}: missing on {self.bootstrap}; create with: pulsefold topics create --bootstrap {self.bootstrap}")

    # ---- in threads of our own

    def _connect(self) -> Producer:
        return Producer(self._config, logger=_log)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True

    def _ask(self, timeout_s: float) -> None:
        """Which topics there are; asking for all makes none."""
        self._asked_at = time.monotonic()
        try:
            listed = self._producer.list_topics(timeout=timeout_s).topics
        except KafkaException:
            return
        self._counts = {name: len(topic.partitions) for name, topic in listed.items() if topic.error is None}
        self._answered.set()

    def _learn(self) -> None:
        while not self._answered.is_set() and not self._stop.is_set():
            self._ask(1.0)
            if not self._answered.is_set():
                self._stop.wait(0.1)

    def _serve(self, timeout_s: float, *, flush: bool = False) -> int:
        """Let librdkafka hand its news on. A producer that broke says so by raising, whatever else it had to tell."""
        try:
            return int(self._producer.flush(timeout_s) if flush else self._producer.poll(timeout_s))
        except KafkaException as exc:
            if not exc.args[0].fatal():
                raise
            self._fatal = True
            return 0

    def _run(self) -> None:
        """Serve acknowledgements, empty the spool, replace a producer that broke."""
        while not self._stop.is_set():
            self._serve(0.01 if self._backlog else 0.05)
            if self._failed:
                self._take_back()
            if time.monotonic() >= self._settle_at:
                if self._spool is not None:
                    stuck, self._stuck = self._stuck, False
                    self._spool.checkpoint(now=stuck)  # here, and not under `_order`: it waits for the disk
                    if stuck:
                        self._settle_at = time.monotonic() + RETRY_S
                self._settle()
            if self._fatal:
                self._renew()
            if self._again:
                self._repeat()
            if self._backlog and time.monotonic() >= self._next_feed:
                self._feed()

    def _renew(self) -> None:
        """librdkafka gives an idempotent producer up when the log it wrote to is not the one it finds (a broker that lost its disk, for one).

        A new one sends again what the old one had not seen acknowledged; the ids make a repetition harmless.
        """
        old, self._producer, self._fatal = self._producer, self._connect(), False
        old.purge()
        with contextlib.suppress(KafkaException):  # what broke it, once more
            old.flush(1)

    def _repeat(self) -> None:
        with self._lock:
            again, self._again = self._again, []
        for at, item in enumerate(again):
            if not self._produce(item):
                with self._lock:
                    self._again[:0] = again[at:]
                return
            with self._lock:
                self._report.resent += 1

    def _feed(self) -> None:
        assert self._spool is not None
        with self._order:
            try:
                stored = self._spool.after(self._cursor)
            except SpoolStuck:
                self._next_feed = time.monotonic() + RETRY_S
                return
            for one in stored:
                if one.number not in self._in_flight:
                    if not self._produce(self._item(one)):
                        return
                    with self._lock:
                        self._report.resent += one.number <= self._recovered_to or one.number in self._tried
                self._cursor = one.number
            if not stored:
                self._cursor = self._newest
            self._backlog = self._cursor < self._newest

    def _item(self, one: Stored) -> _Item:
        return _Item(one.id, one.topic, one.key, one.value, self._callbacks.get(one.number), one.number)

    def _told(self, error: KafkaError | None, item: _Item) -> None:
        """The broker's word on an event, or librdkafka's."""
        if error is None:
            with self._lock:
                self._report.delivered += 1
                if item.number:
                    self._acked.append(item.number)
            self._tell(item, None)
        elif item.number and error.code() not in _REFUSED_FOR_GOOD:
            with self._lock:  # the spool keeps it: once more from there, a little later
                self._report.errors[_reason(error)] = self._report.errors.get(_reason(error), 0) + 1
                self._failed.append(item.number)  # who serves acknowledgements must not wait for `_order`, and so for a slow disk
        elif error.code() in _TAKEN_BACK:
            with self._lock:
                self._again.append(item)
        else:
            self._give_up(item, _reason(error))

    def _give_up(self, item: _Item, why: str) -> None:
        with self._lock:
            self._report.failed += 1
            self._report.errors[why] = self._report.errors.get(why, 0) + 1
            if item.number:
                self._acked.append(item.number)
        self._tell(item, PulsefoldError(why))

    def _tell(self, item: _Item, error: BaseException | None) -> None:
        if item.number:
            self._callbacks.pop(item.number, None)
        if item.on_delivery is not None:
            try:
                item.on_delivery(item.id, error)
            except Exception:
                _log.exception("on_delivery raised for event %s", item.id)  # the caller's bug must not stop the acknowledgements of others

    def _take_back(self) -> None:
        """Send again from the spool what failed."""
        with self._order, self._lock:
            failed, self._failed = self._failed, []
            if not failed:
                return  # another thread was first
            self._in_flight.difference_update(failed)
            self._tried.update(failed)
            self._cursor = min(self._cursor, *(number - 1 for number in failed))
            self._backlog = True
            self._next_feed = time.monotonic() + RETRY_S

    def _settle(self, timeout_s: float = -1) -> None:
        """Take acknowledged events out of the spool.

        Args:
            timeout_s: longest wait for others who use the spool, also for what they are taking out now; -1 = for ever, but not where only others
                have something to take out. What could not be taken out stays for the next time.
        """
        if self._spool is None or (timeout_s < 0 and not self._acked):
            return
        if not self._order.acquire(timeout=timeout_s):  # so that the spool is not read in between
            return
        try:
            with self._lock:
                acked, self._acked = self._acked, []
            if not acked:
                return  # another thread was first, and is done
            try:
                self._spool.remove(acked, timeout_s=timeout_s)
            except SpoolStuck:  # they have arrived: sent again by the next start they change nothing
                self._stuck = True
                with self._lock:
                    self._acked[:0] = acked
                return
            with self._lock:
                self._in_flight.difference_update(acked)
                self._tried.difference_update(acked)
        finally:
            self._order.release()


def _plain(value: Any) -> Any:
    """As JSON can say it: numbers of numpy and torch as Python's; not-a-number and infinities as the contract's text."""
    if value.__class__ in _AS_IT_IS or (value.__class__ is float and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, msgspec.Struct):
        fields = {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        if all(found is getattr(value, name) for name, found in fields.items()):
            return value  # msgspec writes it, and leaves defaults out
        return {name: found for name, found in fields.items() if found is not None}
    if isinstance(value, Mapping):
        changed = {name: _plain(found) for name, found in value.items()}
        return value if value.__class__ is dict and all(found is value[name] for name, found in changed.items()) else changed
    if isinstance(value, (list, tuple)):
        ones = [_plain(one) for one in value]
        return value if all(new is old for new, old in zip(ones, value, strict=True)) else ones
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _batches(observations: list[Observation]) -> Iterator[list[Observation]]:
    """Cut into what one event may hold: 10,000 observations and well under 1 MiB."""
    batch: list[Observation] = []
    size = 0
    for one in observations:
        length = len(_encode(_plain(one))) + 1
        if batch and (len(batch) == MAX_OBSERVATIONS or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch


def _reason(error: KafkaError) -> str:
    if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION):
        return "the topic does not exist; create it with: pulsefold topics create"
    if error.code() == KafkaError._MSG_TIMED_OUT:
        return "not acknowledged in time (delivery_timeout_ms)"
    if error.code() in _TAKEN_BACK:
        return "not acknowledged when the publisher was closed"
    return str(error.str())


class Publisher:
    """Publishes events from asyncio; as `SyncPublisher`, but `publish` returns when the broker has acknowledged.

    Args:
        bootstrap: Kafka's ``HOST:PORT``.
        **options: of `SyncPublisher`.

    Example:
        async with Publisher("127.0.0.1:9092") as publisher:
            await publisher.publish(TrustObserved(kind="model", id="m1", success=True))
    """

    def __init__(self, bootstrap: str, **options: Any) -> None:
        self._sync = SyncPublisher(bootstrap, **options)

    async def publish(self, event: Data | Event | Mapping[str, Any], *, tenant: str | None = None, id: str | None = None, time: datetime | None = None) -> str:
        """Send and wait for the acknowledgement; returns the id. Many may wait at once (``asyncio.gather``): they share batches.

        Raises:
            InvalidEvent, TopicProblem: yours, as `SyncPublisher.publish`.
            PulsefoldError: the world's: dropped, refused, or not acknowledged in time; the text says which.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        def told(_: str, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(settle, error)

        await self._answer()
        item = self._sync._prepare(event, tenant, id, time, told)
        await self._hand_over(item)
        await done
        return item.id

    async def send(
        self, event: Data | Event | Mapping[str, Any], *, tenant: str | None = None, id: str | None = None, time: datetime | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> str:  # fmt: skip
        """Hand over without waiting for the broker; returns the id. `report` tells what became of it."""
        await self._answer()
        item = self._sync._prepare(event, tenant, id, time, on_delivery)
        await self._hand_over(item)
        return item.id

    async def record_many(self, events: Iterable[Data | Event | Mapping[str, Any]], *, tenant: str | None = None) -> list[str]:
        """As `SyncPublisher.record_many`."""
        return await asyncio.to_thread(self._sync.record_many, events, tenant=tenant)

    async def observe(self, kind: str, id: str, success: bool, weight: float = 1.0, *, tenant: str | None = None) -> str:
        """As `SyncPublisher.observe`, without waiting for the broker."""
        return await self.send(TrustObserved(kind=kind, id=id, success=success, weight=weight), tenant=tenant)

    async def observe_many(self, observations: Iterable[Observation], *, tenant: str | None = None) -> list[str]:
        """As `SyncPublisher.observe_many`."""
        return await asyncio.to_thread(self._sync.observe_many, observations, tenant=tenant)

    async def flush(self, timeout_s: float = 30.0) -> int:
        """As `SyncPublisher.flush`."""
        return await asyncio.to_thread(self._sync.flush, timeout_s)

    def report(self) -> DeliveryReport:
        """What became of the events so far."""
        return self._sync.report()

    async def close(self, timeout_s: float | None = None) -> DeliveryReport:
        """As `SyncPublisher.close`."""
        return await asyncio.to_thread(self._sync.close, timeout_s)

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _answer(self) -> None:
        if not self._sync._waited:
            await asyncio.to_thread(self._sync._await_answer)

    async def _hand_over(self, item: _Item) -> None:
        """As the sync one, but other tasks run while there is no room, or the spool's disk is slow."""
        self._sync._accept()
        deadline = time.monotonic() + self._sync.max_block_s
        while True:
            over = time.monotonic() >= deadline
            if self._sync._offer(item, deadline, wait=False):
                return
            if over:
                self._sync._drop(item, "the queue was full")
                return
            await asyncio.sleep(0.002)


__all__ = ["DeliveryReport", "Dropped", "OnDelivery", "Publisher", "SyncPublisher", "new_id"]
