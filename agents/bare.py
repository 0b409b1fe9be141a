"""What a worker without the role `serve` answers by HTTP: whether it is well, and its figures. No views, no events, no pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from tables.fold import NotFound

from .http import API, Routes

ANSWERED = ("/healthz", "/readyz", "/metrics", f"{API}/status")


class Bare(Routes):
    """The few routes that every worker has."""

    def route(self, request: web.Request) -> tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """As `Routes.route`, for these alone."""
        path = request.rel_url.raw_path
        if path not in ANSWERED:
            raise NotFound(f"this worker does not serve (its roles do not name serve); it answers {', '.join(ANSWERED)}")
        return super().route(request)
