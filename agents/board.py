"""The alert board: every alert's standing, read back from the compacted alerts topic.

A tombstone ends an alert that is long over. One that lands on an open alert (it was opened again while the tombstone was under way)
would lose it to compaction, and so would one of which a worker that slept repeats an earlier message: the board keeps the alert, and its
owner publishes the newest message again.

It is what the alert views show, what streams to subscribers, and what the merged rules remember, so a restart or a rebuild
opens nothing twice. A twin (a message repeated after a crash, same id) is recognised and told once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from sortedcontainers import SortedList

from tables.fold import Standing


class _Evidence(msgspec.Struct):
    topic: str
    partition: int
    offset: int


class _Data(msgspec.Struct):
    alert_id: str
    rule: str
    subject: str
    severity: Literal["info", "warning", "critical", "shutdown"]
    period: str
    evidence: _Evidence
    threshold: float | None = None
    notice: bool = False
    related: list[str] = []


class _Message(msgspec.Struct):
    id: str
    type: Literal["alert.opened.v1", "alert.escalated.v1", "alert.eased.v1", "alert.resolved.v1"]
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: str
    data: _Data


FORGOTTEN = 10_000
"""Ended alerts of which the number of messages is remembered."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_check = msgspec.json.Decoder(_Message).decode


@dataclass(slots=True)
class Entry:
    """An alert's newest message and how many it had."""

    message: dict[str, Any]
    order: tuple[int, int]
    written_ms: int = 0
    """When Kafka took the newest message, milliseconds since the epoch."""
    ids: set[str] = field(default_factory=set)
    earlier: int = 0
    """Messages before the last tombstone, as far as this process saw them."""

    @property
    def open(self) -> bool:
        """Whether the alert stands: not resolved, and no mere notice."""
        return self.message["type"] != "alert.resolved.v1" and not self.message["data"].get("notice")


class Subscription(asyncio.Queue[dict[str, Any]]):
    """New messages that a subscriber has not taken yet.

    Attributes:
        tenant: whose messages; None = everybody's.
        n_lost: messages that there was no room for since it was last told.
    """

    def __init__(self, size: int, tenant: str | None = None) -> None:
        super().__init__(size)
        self.tenant = tenant
        self.n_lost = 0


class Board:
    """Alerts by id; subscribers get every new message.

    Attributes:
        n_messages: messages read, without twins and tombstones.
        n_lost: messages that a slow subscriber could not take.
        n_odd: records of the topic that are no alert messages; whoever may write there may write anything.
        told: messages by tenant.
        bereaved: alerts whose last record on the topic is not what stands and would win compaction: a tombstone of an open one, or an earlier
            message that a sleeper repeated.
        fresh: alerts of which there was news since somebody looked and emptied it.
    """

    def __init__(self, recent: int = 1000) -> None:
        self.entries: dict[str, Entry] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=recent)
        self.subscribers: set[Subscription] = set()
        self.bereaved: set[str] = set()
        self.fresh: set[str] = set()
        self.n_messages = 0
        self.n_lost = 0
        self.n_odd = 0
        self.told: dict[str, int] = {}
        self._listed: dict[tuple[str, bool], Any] = {}
        """(tenant, open ones alone) -> (time, order, name) of its alerts, sorted."""
        self._forgotten: dict[str, int] = {}

    def read(self, key: bytes | None, value: bytes | None, order: tuple[int, int], written_ms: int = 0) -> dict[str, Any] | None:
        """Take one record of the alerts topic; returns the message if it is news.

        Args:
            order: (partition, offset).
            written_ms: its Kafka timestamp.
        """
        name = (key or b"").decode("utf-8", "replace")
        if value is None:
            self._end(name)
            return None
        try:
            if not _check(value).id.isprintable():
                raise ValueError("the id would break the lines of a stream")
            message = _decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.n_odd += 1
            return None
        entry = self.entries.get(name)
        self.bereaved.discard(name)
        if entry is not None and message["id"] not in entry.ids:
            self._unlist(name, entry)
        if entry is None:
            entry = self.entries[name] = Entry(message, order, earlier=self._forgotten.pop(name, 0))
        elif message["id"] in entry.ids:
            entry.written_ms = max(entry.written_ms, written_ms)
            if message["id"] != entry.message["id"]:
                self.bereaved.add(name)
            return None
        entry.message, entry.order, entry.written_ms = message, order, written_ms
        for place in self._lists(entry):
            self._listed.setdefault(place, SortedList()).add((message["time"], order, name))
        entry.ids.add(message["id"])
        self.n_messages += 1
        self.fresh.add(name)
        self.told[message["tenant"]] = self.told.get(message["tenant"], 0) + 1
        self.recent.append(message)
        for queue in self.subscribers:
            if queue.tenant not in (None, message["tenant"]):
                continue
            try:
                queue.put_nowait(message)
            except asyncio.QueueFull:
                self.n_lost += 1
                queue.n_lost += 1
        return message

    def _end(self, name: str) -> None:
        entry = self.entries.get(name)
        if entry is None:
            return
        if entry.open:
            self.bereaved.add(name)
            return
        self._unlist(name, entry)
        del self.entries[name]
        self.bereaved.discard(name)
        self.fresh.discard(name)
        self._forgotten[name] = entry.earlier + len(entry.ids)  # ids of later messages must differ from the earlier ones'
        if len(self._forgotten) > FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]

    def _lists(self, entry: Entry) -> tuple[tuple[str, bool], ...]:
        tenant = entry.message["tenant"]
        return ((tenant, False), (tenant, True)) if entry.open else ((tenant, False),)

    def _unlist(self, name: str, entry: Entry) -> None:
        for place in self._lists(entry):
            self._listed[place].remove((entry.message["time"], entry.order, name))
            if not self._listed[place]:
                del self._listed[place]

    def over(self, before_ms: int) -> list[tuple[str, Entry]]:
        """Alerts whose resolve, or notice, Kafka took before a moment, milliseconds since the epoch."""
        return [(name, entry) for name, entry in self.entries.items() if entry.written_ms < before_ms and not entry.open]

    def standing(self, alert: str) -> tuple[Standing, int]:
        """Where a rule stands with a subject, and the number of messages so far."""
        entry = self.entries.get(alert)
        if entry is None:
            return Standing(), self._forgotten.get(alert, 0)
        data = entry.message["data"]
        return Standing(data["severity"] if entry.open else "ok", data.get("period")), entry.earlier + len(entry.ids)

    def open_of(self, tenant: str, rule: str) -> dict[str, Entry]:
        """Standing alerts of a rule by subject."""
        return {
            entry.message["data"]["subject"]: entry
            for entry in self.entries.values()
            if entry.open and entry.message["tenant"] == tenant and entry.message["data"]["rule"] == rule
        }

    def of(self, tenant: str) -> list[Entry]:
        """A tenant's alerts, newest first."""
        return list(self.newest(tenant))

    def n_open(self, tenant: str) -> int:
        """How many of a tenant's alerts stand."""
        return len(self._listed.get((tenant, True), ()))

    def newest(self, tenant: str, *, standing: bool = False, behind: str | None = None) -> Iterator[Entry]:
        """A tenant's alerts, newest first.

        Args:
            standing: open ones alone.
            behind: only what comes behind the alert of this name, if it is among them; else all.
        """
        listed = self._listed.get((tenant, standing), ())
        last = None if behind is None else self.entries.get(behind)
        if last is None or (tenant, standing) not in self._lists(last):
            places = reversed(listed)
        else:
            places = listed.islice(0, listed.index((last.message["time"], last.order, behind)), reverse=True)
        return (self.entries[name] for _, _, name in places)

    @contextlib.contextmanager
    def subscribe(self, tenant: str | None = None, size: int = 1000) -> Iterator[Subscription]:
        """A queue of new messages of a tenant, or of all; a subscriber that lags by more than `size` misses some, counted in `n_lost`."""
        queue = Subscription(size, tenant)
        self.subscribers.add(queue)
        try:
            yield queue
        finally:
            self.subscribers.discard(queue)
