"""The network between a worker and the brokers: a TCP proxy for each broker, which can delay, hold and cut.

Slow: what a broker sends and is sent waits on its way. Held: connections stay open and nothing moves; what was sent meanwhile arrives when
they are let go, which is how a zombie's writes come late. Cut: connections are reset, new ones end at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence

CHUNK_BYTES = 1 << 16


class Proxy:
    """One port of loopback that leads to another.

    Attributes:
        delay_s: what each piece waits, in either direction.
        whole: False while it is cut.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        self.whole = True
        self.moving = asyncio.Event()
        self.moving.set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on a free port."""
        self.server = await asyncio.start_server(self._through, "127.0.0.1", 0)
        self.port = int(self.server.sockets[0].getsockname()[1])

    async def _through(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        forth: asyncio.StreamWriter | None = None
        self.writers.add(back)
        try:
            if self.whole:
                far, forth = await asyncio.open_connection("127.0.0.1", self.target)
                self.writers.add(forth)
                await asyncio.wait([asyncio.create_task(self._pump(near, forth)), asyncio.create_task(self._pump(far, back))], return_when="FIRST_COMPLETED")
        except OSError:
            pass  # the broker is not there: whoever connected sees the end
        finally:
            for writer in (back, forth):
                if writer is not None:
                    self.writers.discard(writer)
                    writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                await self.moving.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(piece)
                await writer.drain()

    def cut(self) -> None:
        """Reset every connection."""
        self.whole = False
        for writer in self.writers:
            writer.transport.abort()

    def heal(self) -> None:
        """As if nothing had been."""
        self.whole, self.delay_s = True, 0.0
        self.moving.set()


class Network:
    """The ways to several brokers, in a thread of their own.

    Args:
        targets: the brokers' ports.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.proxies = [Proxy(port) for port in targets]
        for proxy in self.proxies:
            asyncio.run_coroutine_threadsafe(proxy.open(), self.loop).result(10)

    @property
    def bootstrap(self) -> str:
        """HOST:PORT of every broker, through its proxy."""
        return ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)

    def cut(self) -> None:
        """Reset every connection, and let none be made."""
        for proxy in self.proxies:
            self.loop.call_soon_threadsafe(proxy.cut)

    def hold(self) -> None:
        """Leave connections open and move nothing."""
        for proxy in self.proxies:
            self.loop.call_soon_threadsafe(proxy.moving.clear)

    def slow(self, delay_s: float, n: int | None = None) -> None:
        """Let everything to and from one broker, or all, come later."""
        for proxy in self.proxies if n is None else (self.proxies[n],):
            proxy.delay_s = delay_s

    def heal(self) -> None:
        """As if nothing had been; what was held arrives."""
        for proxy in self.proxies:
            self.loop.call_soon_threadsafe(proxy.heal)

    def close(self) -> None:
        """End the thread."""
        self.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
