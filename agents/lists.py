"""Lists that nobody has asked for lately are dropped, also where nobody asks anything any more (`tables.orders.ListKeeper`)."""

from __future__ import annotations

from mode import Service

from .http import Routes

LOOK_S = 30.0


class ForgetLists(Service):  # type: ignore[misc]  # mode is untyped here
    """Looks every half minute.

    Args:
        routes: whose lists.
    """

    def __init__(self, routes: Routes, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.routes = routes

    @Service.task
    async def _look(self) -> None:
        while not self.should_stop:
            await self.sleep(LOOK_S)
            if self.routes.keeper is not None:
                self.routes.keeper.forget()
