"""Ports for servers that tests start: none is handed out twice, and nobody else is given one meanwhile."""

from __future__ import annotations

import itertools
import os
import re
import socket

FIRST, EACH, WORKERS = 10_000, 2000, 10
"""All lie below 32768: from there on Linux gives ports to whoever names none (/proc/sys/net/ipv4/ip_local_port_range)."""

_tried = itertools.count()


def free_port() -> int:
    """A port of loopback that is free and stays so until it is served: each worker of pytest-xdist has a range of its own, the master another."""
    worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    first = FIRST + EACH * (0 if worker is None else 1 + int(worker[1]) % WORKERS)
    for n in _tried:
        if n >= EACH:
            break
        port = first + (os.getpid() * 97 + n) % EACH  # another run on this machine begins elsewhere
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody has it
                continue
        return port
    raise AssertionError(f"the ports from {first} to {first + EACH - 1} were all handed out, or are taken")


def free_ports(n: int) -> list[int]:
    """So many."""
    return [free_port() for _ in range(n)]
