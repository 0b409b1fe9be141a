"""Fuzzing for as long as one likes: ``make fuzz``, or ``python -m tests.fuzz.run --seconds 600 events http atheris schemathesis``.

A failure is told with the seed that gives it again: ``python -m tests.fuzz.run --seed SEED --times 1 events``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from streams.topics import SOURCE_TOPICS

KINDS = ("events", "http", "schemathesis", "atheris")


def one_log(rng: random.Random) -> None:
    """A log of wild events."""
    from .events import check, event

    check([event(rng) for _ in range(rng.choice((1, 3, 12, 40)))], rng.choice(SOURCE_TOPICS), look=rng.random() < 0.3)


def events(seed: int, goes_on: Callable[[int], bool]) -> int:
    """Wild events by seed; returns the number of failures."""
    return by_seed("events", one_log, seed, goes_on)


def http(seed: int, goes_on: Callable[[int], bool]) -> int:
    """Wild requests by seed."""
    from . import http as wild

    with tempfile.TemporaryDirectory() as folder:
        made = wild.service(Path(folder), seed)
        paths, known = wild.described(made), wild.names()

        def one(rng: random.Random) -> None:
            target, headers = wild.request(rng, paths, known)
            reply = asyncio.run(made.reply(target, headers))
            assert wild.fine(reply), (target, headers, reply.status, reply.body[:300])

        failed = by_seed("http", one, seed, goes_on)
        made.feed.keeper.close()
    return failed


def by_seed(name: str, one: Callable[[random.Random], None], seed: int, goes_on: Callable[[int], bool]) -> int:
    """Run examples, each by a seed of its own, and tell those that fail."""
    n = failed = 0
    while goes_on(n):
        try:
            one(random.Random(seed + n))
        except Exception:
            failed += 1
            print(f"{name}: seed {seed + n}\n{traceback.format_exc()[-3000:]}", flush=True)
        n += 1
    print(f"{name}: {n} examples from seed {seed}, {failed} failures", flush=True)
    return failed


def schemathesis(seed: int, seconds: float) -> int:
    """What the API's description promises, against the worker's real server."""
    from ..service import Server
    from . import http as wild

    with tempfile.TemporaryDirectory() as folder:
        made = wild.service(Path(folder), seed)
        with Server(made) as server:
            words = [
                "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
                "-H", "Authorization: Bearer token-of-acme", "--exclude-path-regex", "stream$|events$", "--seed", str(seed), "--phases", "examples,fuzzing",
                "--max-examples", str(max(5, int(seconds / 4))), "--no-color", "--workers", "1",
            ]  # fmt: skip
            done = subprocess.run([sys.executable, "-m", "schemathesis.cli", *words], check=False, timeout=60 + 20 * seconds)
        made.feed.keeper.close()
    return int(done.returncode != 0)


def atheris(seed: int, seconds: float) -> int:
    """Coverage-guided: bytes are varied by which lines of codec and folds they reach."""
    words = [f"-max_total_time={int(seconds)}", f"-seed={seed % 2**31 or 1}", "-max_len=2000", "-timeout=20", "-print_final_stats=1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    return int(subprocess.run([sys.executable, "-m", "tests.fuzz.coverage", *words], check=False, env=environment).returncode != 0)


def main() -> int:
    """Returns 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000 * 1000)
    parser.add_argument("--times", type=int, default=None, help="examples instead of seconds, of events and http")
    given = parser.parse_args()
    failed = 0
    for kind in given.kinds:
        begun = time.monotonic()

        def goes_on(n: int, begun: float = begun) -> bool:
            return n < given.times if given.times is not None else time.monotonic() - begun < given.seconds

        if kind in ("events", "http"):
            failed += (events if kind == "events" else http)(given.seed, goes_on)
        else:
            failed += (schemathesis if kind == "schemathesis" else atheris)(given.seed, given.seconds)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
