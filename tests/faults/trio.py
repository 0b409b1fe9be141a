"""Three brokers, replication 3 and at least 2 in sync, to which a worker can go directly or through a network that fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ..kafka.broker import KafkaCluster
from ..ports import free_ports
from .network import Network

SMALL_DISK = 2
"""The node whose disk is small enough to be filled."""
DISK_MB = 400


class Trio(KafkaCluster):
    """Three nodes.

    Attributes:
        network: the way of those who use its `bootstrap`.
        disk: the small disk's folder, None where this user may not mount one.
    """

    def __init__(self) -> None:
        self.through = free_ports(3)
        self.network = Network(self.through)
        self.disk: Path | None = None
        super().__init__(3)

    def further(self, n: int) -> Iterable[str]:
        """A listener of its own for the network, and the small disk."""
        yield f"listeners=PLAINTEXT://127.0.0.1:{self.ports[n]},THROUGH://127.0.0.1:{self.through[n]},CONTROLLER://127.0.0.1:{self.controllers[n]}"
        yield f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.ports[n]},THROUGH://127.0.0.1:{self.network.proxies[n].port}"
        yield "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,THROUGH:PLAINTEXT,CONTROLLER:PLAINTEXT"
        yield "inter.broker.listener.name=PLAINTEXT"
        yield "min.insync.replicas=2"
        yield "transaction.state.log.min.isr=2"
        yield "replica.lag.time.max.ms=5000"
        if n == SMALL_DISK and os.geteuid() == 0:
            disk = self.folder / "small-disk"
            disk.mkdir()
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], capture_output=True, timeout=10).returncode == 0:
                self.disk = disk
                yield f"log.dirs={disk / 'data'}"

    def fill_disk(self) -> None:
        """Leave the small disk without a byte."""
        assert self.disk is not None
        with (self.disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 16))

    def free_disk(self) -> None:
        """Give the small disk its room again."""
        if self.disk is not None:
            (self.disk / "ballast").unlink(missing_ok=True)

    def dead(self) -> list[int]:
        """Nodes that do not run."""
        return [n for n, process in enumerate(self.processes) if process is None or process.poll() is not None]

    def heal(self, timeout_s: float = 90) -> None:
        """Bring everything back that a test has broken, and wait until every replica is in sync."""
        self.network.heal()
        self.free_disk()
        for n in range(self.nodes):
            if n in self.dead():
                self.start(n, wait=False)
            else:
                self.signal(n, signal.SIGCONT)
        self.wait(timeout_s)
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        deadline = time.monotonic() + timeout_s
        while not _in_sync(admin):
            assert time.monotonic() < deadline, f"the replicas are not in sync after {timeout_s:.0f} s"
            time.sleep(0.5)

    def stop(self) -> None:
        """End all nodes, and the small disk."""
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)
        self.network.close()
        if self.disk is not None:
            subprocess.run(["umount", "-l", str(self.disk)], capture_output=True, timeout=10)
        super().stop()


def _in_sync(admin: AdminClient) -> bool:
    with contextlib.suppress(KafkaException):
        listed = admin.list_topics(timeout=5)
        return len(listed.brokers) == 3 and all(len(p.isrs) == len(p.replicas) for t in listed.topics.values() for p in t.partitions.values())
    return False
