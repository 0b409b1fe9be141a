"""Lists that are kept for the next question (`tables.orders.ListKeeper`): tended while people ask, dropped when nobody does."""

from __future__ import annotations

import time

from mode import Service

from .http import Routes

LOOK_S = 30.0
TEND_S = 0.1
"""Seconds between two looks where there is nothing to do."""
TURN = 64
"""Changed keys looked at in one turn, for which nothing else is done: one or two milliseconds."""
SHARE = 0.05
"""Most of its time that a worker gives to lists between questions."""


class TendLists(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks at what changed little by little, and every half minute for what can go.

    Args:
        routes: whose lists.
    """

    def __init__(self, routes: Routes, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.routes = routes

    @Service.task
    async def _forget(self) -> None:
        while not self.should_stop:
            await self.sleep(LOOK_S)
            if self.routes.keeper is not None:
                self.routes.keeper.forget()

    @Service.task
    async def _tend(self) -> None:
        while not self.should_stop:
            begun, tended = time.monotonic(), 0
            try:
                tended = self.tend()
            except Exception:
                self.log.exception("a bug while lists were brought up to date")  # the folds do not depend on them; the next question tells it too
            pause = (time.monotonic() - begun) / SHARE
            await self.sleep(pause if tended else max(pause, TEND_S))

    def tend(self) -> int:
        """One turn; returns how many keys were looked at."""
        keeper = self.routes.keeper
        if keeper is None or keeper.partitions is not self.routes.engine.partitions:  # they were swapped: the next question has a keeper of its own
            return 0
        return keeper.tend(self.routes.reader, TURN)
