"""The HTTP service in this process: the product's engine, folds, archive keeper and routes over logs in memory, and its real server.

It is no mock: what is missing is Kafka and the archivist's pipe.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from agents.app import PAGES, STATIC
from agents.auth import Tokens
from agents.engine import Engine, EngineConfig
from agents.http import Routes
from agents.past import Past
from agents.raw_answers import answer
from agents.registry import FOLD_SETTINGS, schema
from agents.seam import Runner
from streams.settings import Settings, load
from streams.topics import SOURCE_TOPICS

from .archive_feed import Feed
from .harness import Log, Rec

R = TypeVar("R")
TOKENS = {
    "token-of-a": {"tenant": "a", "scopes": ["read", "publish"]},
    "token-of-b": {"tenant": "b", "scopes": ["read", "publish"]},
    "token-of-root": {"tenant": "*", "scopes": ["read", "publish", "admin"]},
}


class KeptArchive:
    """The archivist without its process: the same keeper, the same answers.

    Args:
        feed: the log in memory that it reads.
    """

    enabled = True

    def __init__(self, feed: Feed, settings: Settings) -> None:
        self.feed = feed
        self.settings = settings
        self.past = Past(settings, feed.keeper.counts)

    async def ask(self, op: str, tenant: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A reply, as it is after the way through the pipe."""
        if op == "past":
            return self.past.answer(self.feed.keeper, tenant, params)
        return answer(self.feed.keeper, self.settings, op, tenant, params)

    def behind(self) -> bool:
        """Nothing is wrong with it."""
        return False

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {"enabled": True, "ready": True, **self.feed.keeper.state({})}


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Service(Log):
    """A worker's HTTP face over logs in memory.

    Args:
        path: folder of the archive's files.
        partitions: of every source topic.
        allowed: tokens as in the setting; None = no tokens.
        words: settings.
    """

    def __init__(self, path: Path, partitions: int = 2, allowed: Mapping[str, Any] | None = None, **words: Any) -> None:
        self.settings = load({name: str(value) for name, value in words.items()}, {}, None, FOLD_SETTINGS)
        found = schema(self.settings.fold)
        super().__init__(found.folds, partitions)
        config = EngineConfig("127.0.0.1:1", "pulsefold.", {topic: topic + "-rows" for topic in SOURCE_TOPICS}, publishes=False)
        self.engine = Engine(None, config, found)
        self.engine.prepare(dict.fromkeys(SOURCE_TOPICS, partitions), {})
        self.schema, self.topics = found, dict(self.engine.partitions)
        self.engine.ready = True
        self.feed = Feed(path, partitions, days=self.settings.get("archive_days"))
        self.archive = KeptArchive(self.feed, self.settings)
        self.tokens = Tokens(allowed or {})
        pages = {at: (kind, (STATIC / name).read_bytes()) for at, (kind, name) in PAGES.items()}
        self.routes = Routes(self.engine, self.tokens, self.settings, pages, self.archive)  # type: ignore[arg-type]  # the part of Archive that is asked
        for shard in self.engine.core.shards.values():
            shard.ready = True
        self._told = 0
        self._asked: web.Request | None = None

    def append(self, topic: str, key: bytes | None, raw: bytes | None, number: int | None, timestamp: int, headers: Any = ()) -> None:
        """As of `Log`; alerts go onto the board, and everything to the archive."""
        super().append(topic, key, raw, number, timestamp, headers)
        for out in self.outputs[self._told :]:
            if out.topic == "alerts":
                self.engine.board.read(out.key, out.value, (0, len(self.outputs)))
        self._told = len(self.outputs)

    def settle(self, *, write: bool = True) -> None:
        """What was sent so far is in the archive; the first half in files, if so wished."""
        for place, records in self.records.items():
            self.feed.log[place] = [Rec(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]
        self.feed.take(most=None)
        if write:
            self.feed.write()
        for shard in self.engine.core.shards.values():
            shard.next = shard.partition.next

    async def reply(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
        """Answer a request without a network."""
        self._asked = self._asked or make_mocked_request("GET", "/")  # made once: it is most of the work
        request = self._asked.clone(method=method, rel_url=path, headers={"Host": "127.0.0.1:6066", **(headers or {})})
        found = await self.routes.handle(request)
        assert isinstance(found, web.Response)
        body = found.body
        assert body is None or isinstance(body, (bytes, bytearray))
        return Reply(found.status, found.headers, bytes(body or b""))

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
        """`reply` from outside an event loop."""
        return asyncio.run(self.reply(path, headers, method))


class Server:
    """The worker's real HTTP server for a service, in a thread with a loop of its own.

    Args:
        tls: an ssl.SSLContext.
    """

    def __init__(self, service: Service, tls: Any = None) -> None:
        self.service = service
        self.tls = tls
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Server:
        self.thread.start()
        self.run(self._start())
        return self

    async def _start(self) -> None:
        application = web.Application()
        self.service.routes.install(application)
        self.runner = Runner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.port = self.runner.addresses[0][1]

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run in the server's loop, and wait."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def _stop(self) -> None:
        self.service.engine._stopped.set()
        await self.runner.cleanup()
