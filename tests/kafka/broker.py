"""A real Kafka for tests and benchmarks, on 127.0.0.1 alone.

Where it comes from, in this order: ``PULSEFOLD_TEST_BOOTSTRAP`` names one; a Docker daemon answers and testcontainers is
installed; Maven and Java 17 are there, and Kafka's own jars are fetched once into ``.cache/kafka-4.1.0/libs`` (55 MB). Without
any of these `NoKafka` says what is missing.

``python -m tests.kafka.broker [--nodes 3]`` prints ``HOST:PORT`` and runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

VERSION = "4.1.0"
CHECKOUT = Path(__file__).resolve().parents[2]
ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-core", "2.24.3"),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
)
# Ends the brokers when the test process is gone, whatever it died of: its end of the pipe closes, and that is all it waits for.
WATCHDOG = """\
import os, signal, sys
alive = set()
for line in sys.stdin:
    (alive.add if line[0] == "+" else alive.discard)(int(line[1:]))
for pid in alive:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class NoKafka(RuntimeError):
    """No real Kafka can be had on this machine; the text says what was looked for."""


def libraries() -> Path:
    """The folder of Kafka's jars, fetched by Maven on the first call (two processes may call it at once).

    Raises:
        NoKafka: Java or Maven is missing, or Maven cannot fetch.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise NoKafka(f"{program} is not installed (Java 17 and Maven are needed), no Docker daemon answers, PULSEFOLD_TEST_BOOTSTRAP is not set")
    home = CHECKOUT / ".cache"
    if not os.access(CHECKOUT, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pulsefold"
    folder = home / f"kafka-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            wanted = "".join(f"<dependency><groupId>{g}</groupId><artifactId>{a}</artifactId><version>{v}</version></dependency>" for g, a, v in ARTIFACTS)
            (folder / "pom.xml").write_text(
                '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>pulsefold</groupId>'
                f"<artifactId>kafka-libs</artifactId><version>1</version><dependencies>{wanted}</dependencies></project>"
            )
            words = ["mvn", "-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=libs"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise NoKafka(f"Maven cannot fetch Kafka's jars: {(done.stdout + done.stderr).strip()[:500]}")
            complete.touch()
    return folder / "libs"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found


class KafkaCluster:
    """Kafka nodes of our own, in KRaft mode: each broker and controller in one JVM, 512 MB of heap at most.

    Args:
        nodes: 1 or 3; with 3 the replication of internal topics is 3, and one node may die.
        properties: more lines for server.properties.

    Attributes:
        bootstrap: ``127.0.0.1:PORT``, several by comma; the ports stay the same over restarts.
        folder: data and logs (``node-N.log``); removed by `stop`, except when a node did not start.

    Raises:
        NoKafka: from `start`, where the jars cannot be had or a node does not come up.

    Example:
        with KafkaCluster(nodes=3) as kafka:
            kafka.kill(1)
            kafka.start(1)
    """

    def __init__(self, nodes: int = 1, properties: dict[str, str] | None = None) -> None:
        self.nodes = nodes
        self.properties = properties or {}
        ports = free_ports(2 * nodes)
        self.ports, self.controllers = ports[:nodes], ports[nodes:]
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.folder = Path()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self, node: int | None = None, timeout_s: float = 60.0) -> None:
        """Start every node that is not running, or one of them (0, 1, 2), and wait until it answers."""
        if self._watchdog is None:
            self._prepare()
        begun = [node] if node is not None else [n for n in range(self.nodes) if n not in self._processes]
        for number in begun:
            self._launch(number)
        for number in begun:
            self._await(number, timeout_s)

    def stop(self) -> None:
        """End every node at once (nothing is kept) and remove the folder."""
        for node in list(self._processes):
            self.kill(node)
        if self._watchdog is not None:
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog.wait(10)
            self._watchdog = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, node: int = 0) -> None:
        """SIGKILL, as a crash would; the data stays for `start(node)`."""
        process = self._processes.pop(node, None)
        if process is None:
            return
        process.kill()  # also ends a paused one
        process.wait(10)
        self._tell("-", process.pid)

    def shutdown(self, node: int = 0, timeout_s: float = 30.0) -> None:
        """SIGTERM: the node hands its partitions over and leaves."""
        process = self._processes[node]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        self.kill(node)

    def pause(self, node: int = 0) -> None:
        """SIGSTOP: the node hangs, its connections stay open."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: int = 0) -> None:
        """SIGCONT."""
        self._processes[node].send_signal(signal.SIGCONT)

    def log(self, node: int = 0) -> str:
        """What a node has logged."""
        return (self.folder / f"node-{node}.log").read_text(errors="replace")

    def __enter__(self) -> KafkaCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ---- inside

    def _prepare(self) -> None:
        libs = libraries()
        self.folder = Path(tempfile.mkdtemp(prefix="pulsefold-kafka-"))
        (self.folder / "log4j2.properties").write_text(
            "rootLogger.level=warn\nrootLogger.appenderRef.out.ref=out\nappender.out.type=Console\nappender.out.name=out\n"
            "appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=%d{ISO8601} %p %c{1} %m%n\n"
        )
        self._java = ["java", "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC" if self.nodes > 1 else "-XX:+UseG1GC", "-XX:TieredStopAtLevel=4",
                      f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}", "-cp", f"{libs}/*"]  # fmt: skip
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(self.controllers))
        copies = min(3, self.nodes)
        for node in range(self.nodes):
            lines = {
                "node.id": node, "process.roles": "broker,controller", "controller.quorum.voters": voters,
                "listeners": f"PLAINTEXT://127.0.0.1:{self.ports[node]},CONTROLLER://127.0.0.1:{self.controllers[node]}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.ports[node]}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": "PLAINTEXT", "log.dirs": self.folder / f"data-{node}", "auto.create.topics.enable": "false",
                "offsets.topic.num.partitions": 8, "offsets.topic.replication.factor": copies, "transaction.state.log.num.partitions": 4,
                "transaction.state.log.replication.factor": copies, "transaction.state.log.min.isr": 1, "min.insync.replicas": 1,
                "share.coordinator.state.topic.replication.factor": copies, "share.coordinator.state.topic.min.isr": 1,
                "group.initial.rebalance.delay.ms": 0, "num.network.threads": 2, "num.io.threads": 4, "log.cleaner.backoff.ms": 1000,
                **self.properties,
            }  # fmt: skip
            path = self.folder / f"node-{node}.properties"
            path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
            done = subprocess.run(
                [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(path)], capture_output=True, text=True, timeout=60, cwd=self.folder
            )
            if done.returncode:
                raise NoKafka(f"Kafka's storage cannot be formatted: {(done.stdout + done.stderr).strip()[-500:]}")
        self._watchdog = subprocess.Popen([sys.executable, "-c", WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True)

    def _launch(self, node: int) -> None:
        if node in self._processes:
            raise RuntimeError(f"node {node} is running")
        with (self.folder / f"node-{node}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self.folder / f"node-{node}.properties")], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        self._processes[node] = process
        self._tell("+", process.pid)

    def _await(self, node: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        address = f"127.0.0.1:{self.ports[node]}"
        while time.monotonic() < deadline:
            if self._processes[node].poll() is not None:
                raise NoKafka(f"Kafka's node {node} ended: {self.log(node)[-800:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[node]), 1):
                break
            time.sleep(0.1)
        client = AdminClient({"bootstrap.servers": address, "log_level": 0})
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                if node in client.list_topics(timeout=2).brokers:
                    return
            time.sleep(0.1)
        raise NoKafka(f"Kafka's node {node} does not answer within {timeout_s:.0f} s: {self.log(node)[-800:]}")

    def _tell(self, sign: str, pid: int) -> None:
        with self._lock:
            if self._watchdog is not None and self._watchdog.stdin is not None:
                self._watchdog.stdin.write(f"{sign}{pid}\n")
                self._watchdog.stdin.flush()


def _docker() -> bool:
    """Whether a Docker daemon answers and testcontainers is installed."""
    try:
        import docker
        import testcontainers.kafka  # noqa: F401
    except ImportError:
        return False
    try:
        client = docker.from_env(timeout=3)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except Exception:  # a daemon that is half there raises what its HTTP client raises
        return False
    finally:
        client.close()


@contextlib.contextmanager
def real_broker(bootstrap: str | None = None, nodes: int = 1) -> Iterator[str]:
    """The address of a real Kafka, for as long as the block lasts.

    Args:
        bootstrap: use this one; None = look for one as the module says.

    Raises:
        NoKafka: none can be had.
    """
    bootstrap = bootstrap or os.environ.get("PULSEFOLD_TEST_BOOTSTRAP")
    if bootstrap:
        yield bootstrap
    elif nodes == 1 and _docker():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer("confluentinc/cp-kafka:8.1.0").with_kraft() as container:
            yield container.get_bootstrap_server()
    else:
        with KafkaCluster(nodes) as cluster:
            yield cluster.bootstrap


def main() -> None:
    """Run a cluster until Ctrl-C; the first line of stdout is HOST:PORT, alone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--nodes", type=int, default=1, choices=[1, 3])
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with KafkaCluster(words.nodes) as cluster, contextlib.suppress(KeyboardInterrupt):
        print(cluster.bootstrap, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
