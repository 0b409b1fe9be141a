"""The service's own command line, run by ``pulsefold worker|replay|demo`` in a process of its own.

Exit codes: 0 done, 1 differences or a failure while running, 2 a setting, a port or a broker that cannot be used (one clear
sentence on stderr, no traceback).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams.errors import ConfigError, PulsefoldError
from streams.settings import unknown_variables

M_ARENA_MAX = -8
"""Number of heaps, in glibc's malloc.h."""


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Flags as settings (``--web-port 8080`` is the setting web_port; a flag alone is on) and the remaining words."""
    flags: dict[str, Any] = {}
    words = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, _, value = word[2:].partition("=")
        if not value:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "on"
        flags[name.replace("-", "_")] = value
    return flags, words


def use_uvloop() -> None:
    """The faster event loop, where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def one_heap() -> None:
    """Where libc would keep a heap for every thread, one for all: several MB less, and Python's lock lets one thread work at a time anyway."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def worker(flags: dict[str, Any]) -> int:
    """Check what can be checked before the start, then run until SIGTERM."""
    one_heap()
    use_uvloop()
    from .access import security
    from .app import build, check_settings, load_settings
    from .aside import check_topics
    from .repeats import condense
    from .seam import Worker

    toml = flags.pop("config", None)
    settings = load_settings(flags, toml)
    for unknown in unknown_variables(os.environ, settings.declared):
        print(f"pulsefold: {unknown} names no setting; `pulsefold config` lists them", file=sys.stderr)
    check_settings(settings)
    security(settings)
    problems = check_topics(settings)
    if problems:
        for found in problems:
            print(f"pulsefold: {found}", file=sys.stderr)
        return 2
    check_address(settings.get("web_host"), settings.get("web_port"))
    check_folder(settings.get("data_dir"))
    app = build(settings)
    level = settings.get("log_level")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    if level != "debug":
        condense("aiokafka")
    if level == "info":  # a few lines of our own, and what is wrong; each start and stop of each part of Faust is for debug
        tell(app, settings)
    run = Worker(app, loglevel="WARNING" if level == "info" else level.upper(), quiet=True, redirect_stdouts=False)
    run.spinner = None  # it would write escape sequences into logs
    app.engine.on_refused = lambda: signal.raise_signal(signal.SIGTERM)
    try:
        run.execute_from_commandline()
    except SystemExit as left:
        if app.engine.refused is not None:
            raise app.engine.refused from None
        return int(left.code or 0)
    return 0


def check_address(host: str, port: int) -> None:
    """Raises:
    ConfigError: HTTP cannot be served there.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise ConfigError("web_host", f"{host} is no address of this machine ({exc.strerror})") from None
    with socket.socket(kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRNOTAVAIL:
                raise ConfigError("web_host", f"{host} is no address of this machine") from None
            raise ConfigError("web_port", f"{host}:{port} cannot be served ({exc.strerror}); choose another with --web-port") from None


def check_folder(folder: str | None) -> None:
    """Raises:
    ConfigError: nothing can be kept there.
    """
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError("data_dir", f"{folder} cannot be made ({exc.strerror})") from None
        if not os.access(folder, os.W_OK):
            raise ConfigError("data_dir", f"{folder} cannot be written to")


def tell(app: Any, settings: Any) -> None:
    """Say where the worker is, when its tables are there, and when it has ended."""
    from .limits import LOOPBACK

    def say(text: str) -> None:
        print(f"pulsefold worker: {text}", file=sys.stderr, flush=True)

    host, port, begun = settings.get("web_host"), settings.get("web_port"), time.monotonic()
    scheme = "http" if settings.get("web_tls_cert") is None else "https"
    say(f"folding {settings.get('topic_prefix')}* of {settings.get('bootstrap')} as {settings.get('app_id')}; page and API at {scheme}://{host}:{port}/")
    if scheme == "http" and host not in LOOPBACK:
        say(f"{host} is served without TLS: tokens can be read on the way (set web_tls_cert, or put a proxy with TLS before it)")

    stopping = asyncio.Event()

    def ends() -> bool:
        return stopping.is_set() or app.should_stop

    async def told() -> None:
        while not (app.engine.ready or ends()):
            await app.engine.sleep(0.1)
        if app.engine.ready and not ends():
            say(f"tables restored after {time.monotonic() - begun:.1f} s; Ctrl-C stops it")

    async def bye(*_: Any, **__: Any) -> None:
        stopping.set()
        say("stopping: what was folded is written, then the partitions are given up")

    app.task(told)
    app.on_before_shutdown.connect(bye, weak=False)


def config(flags: dict[str, Any]) -> int:
    """Print every setting in force and where it comes from; secrets masked."""
    from .app import load_settings

    as_json = flags.pop("json", None) is not None
    rows = load_settings(flags, flags.pop("config", None)).describe()
    if as_json:
        print(json.dumps({name: {"value": value, "from": origin} for name, value, origin, _ in rows}))
    else:
        for name, value, origin, text in rows:
            print(f"{name} = {json.dumps(value)}  ({origin}) {text}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags, names = parse(words[1:])
    command = words[0] if words else ""
    try:
        if command == "worker":
            return worker(flags)
        if command == "config":
            return config(flags)
        if command == "replay":
            from .replay import replay

            return replay(flags)
        if command == "scan":
            from .scan import scan

            return scan(flags)
        if command == "backtest":
            from .trials import backtest

            return backtest(names[0], flags)
        if command == "what-if-budget":
            from .trials import what_if_budget

            return what_if_budget(flags)
        if command == "demo":
            from .demo import demo

            return demo(flags)
    except PulsefoldError as problem:
        from streams.cli.output import clean

        print(clean(f"pulsefold: {problem}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"pulsefold: unknown command {command!r} (with {names}); expected worker, replay, scan or demo", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
