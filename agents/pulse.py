"""Heartbeats while the worker's loop is held.

The consumer lives in that loop (`agents.seam.Inline`). What holds it for longer than a session timeout, such as the first question about
a list of a million keys, would cost the worker its partitions; and who got them would be asked the same next. So a thread of its own beats
for the worker's group while the loop does not turn, over a connection of its own. It keeps nothing alive that does not come back: after
`longest_s` it stops, and a process that is stopped beats no more than it folds. What holds Python's lock itself, such as the sorting of a
million names, holds this thread too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import HeartbeatRequest
from mode import Service

HELD = 1 / 6
"""Part of a session timeout without a turn of the loop after which it is held; looked at twice as often."""


class Pulse(Service):  # type: ignore[misc]  # mode is untyped here
    """Beats for a member of a consumer group while nobody else in its process does.

    Args:
        clients: keyword arguments of aiokafka clients.
        group: the consumer group.
        member: the generation and the name that the worker is a member by now, None = it is none.
        session_s, heartbeat_s: of the group's members.
        longest_s: how long a loop may be held and its partitions be kept.

    Attributes:
        n_beats: heartbeats that were taken.
    """

    def __init__(
        self,
        clients: Mapping[str, Any],
        group: str,
        member: Callable[[], tuple[int, str] | None],
        *,
        session_s: float,
        heartbeat_s: float,
        longest_s: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clients = clients
        self.group = group
        self.member = member
        self.held_s = session_s * HELD
        self.heartbeat_s = heartbeat_s
        self.longest_s = longest_s
        self.n_beats = 0
        self._turned = time.monotonic()
        self._known: tuple[int, str] | None = None
        self._refused: tuple[int, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pulse", daemon=True)

    async def on_start(self) -> None:
        """Begin to look."""
        self._thread.start()

    async def on_stop(self) -> None:
        """What is held now ends without us."""
        self._over.set()

    @Service.task
    async def _turn(self) -> None:
        n_beats = 0
        while not self.should_stop:
            before, self._known, self._turned = self._turned, self.member(), time.monotonic()
            if self.n_beats > n_beats:
                self.log.warning("the worker's loop was held for %.1f s; its partitions were kept meanwhile", self._turned - before)
            n_beats = self.n_beats
            await self.sleep(self.held_s / 2)

    def _held(self) -> tuple[int, str] | None:
        """Whom to beat for, None while the loop turns."""
        known = self._known
        held = not self._over.is_set() and self.held_s < time.monotonic() - self._turned < self.longest_s
        return known if held and known != self._refused else None

    def _look(self) -> None:
        while not self._over.wait(self.held_s / 2):
            if self._held():
                try:
                    asyncio.run(self._beat())
                except Exception as exc:  # whatever it is: it is told and tried again, for this thread must not end
                    self.log.warning("no heartbeat could be sent while the worker's loop was held: %r", exc)

    async def _beat(self) -> None:
        """Beat until the loop turns again, or the group does not know this member any more."""
        client = AIOKafkaClient(**self.clients)
        try:
            await client.bootstrap()
            node = await client.coordinator_lookup(CoordinationType.GROUP, self.group)
            while known := self._held():
                answer = await client.send(node, HeartbeatRequest(self.group, *known), group=ConnectionGroup.COORDINATION)
                refused = for_code(answer.error_code)
                if refused in (IllegalGenerationError, UnknownMemberIdError):
                    self._refused = known  # the group has gone on without it
                if answer.error_code and refused is not RebalanceInProgressError:  # who is to join again stays a member until then
                    raise refused
                self.n_beats += 1
                await asyncio.sleep(min(self.heartbeat_s, self.held_s))
        finally:
            await client.close()
