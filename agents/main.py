"""The service's own command line, run by ``pulsefold worker|replay|demo`` in a process of its own.

Exit codes: 0 done, 1 differences or a failure while running, 2 a setting, a port or a broker that cannot be used (one clear
sentence on stderr, no traceback).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from streams.errors import PulsefoldError


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


def worker(flags: dict[str, Any]) -> int:
    """Check what can be checked before the start, then run until SIGTERM."""
    use_uvloop()
    from streams.admin import check_topics

    from .app import build, check_settings, load_settings, security

    toml = flags.pop("config", None)
    settings = load_settings(flags, toml)
    check_settings(settings)
    _, theirs = security(settings)
    problems = check_topics(settings, security=theirs)
    if problems:
        for found in problems:
            print(f"pulsefold: {found}", file=sys.stderr)
        return 2
    host, port = settings.get("web_host"), settings.get("web_port")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            print(f"pulsefold: web_port: {host}:{port} cannot be served ({exc.strerror}); choose another with --web-port", file=sys.stderr)
            return 2
    import faust

    app = build(settings)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    run = faust.Worker(app, loglevel=settings.get("log_level").upper(), quiet=True, redirect_stdouts=False)
    app.engine.on_refused = lambda: signal.raise_signal(signal.SIGTERM)
    try:
        run.execute_from_commandline()
    except SystemExit as left:
        if app.engine.refused is not None:
            raise app.engine.refused from None
        return int(left.code or 0)
    return 0


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
        if command == "demo":
            from .demo import demo

            return demo(flags)
    except PulsefoldError as problem:
        print(f"pulsefold: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"pulsefold: unknown command {command!r} (with {names}); expected worker, replay or demo", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
