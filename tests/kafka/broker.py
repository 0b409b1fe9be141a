"""A real Kafka for tests and benchmarks, on loopback.

In this order: PULSEFOLD_TEST_BOOTSTRAP; testcontainers if a Docker daemon answers; Kafka's own jars by Maven. Where none is
possible: skipped at home, failed when CI=true. ``python -m tests.kafka.broker`` runs one until Ctrl-C.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ..ports import free_port, free_ports

VERSION = "4.1.0"
LOG4J = "2.24.3"
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>pulsefold</groupId><artifactId>kafka</artifactId>
<version>1</version><dependencies>{}</dependencies></project>"""
ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-core", LOG4J),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J),
)
LOGGING = """<Configuration status="ERROR"><Appenders><Console name="c"><PatternLayout pattern="%d %p %m%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="c"/></Root></Loggers></Configuration>"""


class NoBroker(RuntimeError):
    """No real Kafka can be had here; the text says why."""


def jars() -> str:
    """Class path of Kafka's jars, fetched by Maven once."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pulsefold" / f"kafka-{VERSION}"
    libs = home / "libs"
    if not (home / "complete").exists():
        if not shutil.which("java") or not shutil.which("mvn"):
            raise NoBroker("neither PULSEFOLD_TEST_BOOTSTRAP, nor a Docker daemon, nor Java and Maven are there")
        home.mkdir(parents=True, exist_ok=True)
        one = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
        (home / "pom.xml").write_text(POM.format("".join(one.format(*artifact) for artifact in ARTIFACTS)))
        done = subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={libs}"], cwd=home, capture_output=True, text=True, timeout=500
        )
        if done.returncode:
            raise NoBroker(f"Maven could not fetch Kafka's jars: {done.stdout[-500:]}{done.stderr[-500:]}")
        (home / "complete").touch()
    return f"{libs}/*"


class KafkaCluster:
    """Kafka in KRaft mode, each node a JVM on loopback.

    Args:
        nodes: one or three.
        secured: PEM file of a certificate and its key, user and password: the first node listens by SASL_SSL too (SCRAM-SHA-512 and PLAIN).

    Attributes:
        secure: HOST:PORT of that listener.
    """

    def __init__(self, nodes: int = 1, *, secured: tuple[Path, str, str] | None = None) -> None:
        self.class_path = jars()
        self.secure = f"127.0.0.1:{free_port()}"
        listener = "" if secured is None else f",SASL_SSL://{self.secure}"
        words = [] if secured is None else ["--add-scram", f"SCRAM-SHA-512=[name={secured[1]},password={secured[2]}]"]
        self.folder = Path(tempfile.mkdtemp(prefix="pulsefold-kafka-"))
        self.nodes = nodes
        ports = free_ports(2 * nodes)
        self.ports, self.controllers = ports[:nodes], ports[nodes:]
        controllers = self.controllers
        voters = ",".join(f"{n + 1}@127.0.0.1:{port}" for n, port in enumerate(controllers))
        replicas = min(3, nodes)
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * nodes
        (self.folder / "log4j2.xml").write_text(LOGGING)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")  # a name that begins with - would be a flag
        files = [self.folder / f"{n}.properties" for n in range(nodes)]
        for n in range(nodes):
            files[n].write_text(
                "\n".join(
                    (
                        "process.roles=broker,controller",
                        f"node.id={n + 1}",
                        f"controller.quorum.voters={voters}",
                        f"listeners=PLAINTEXT://127.0.0.1:{self.ports[n]},CONTROLLER://127.0.0.1:{controllers[n]}{listener if n == 0 else ''}",
                        f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.ports[n]}{listener if n == 0 else ''}",
                        *(_secured(*secured) if secured is not None else ()),
                        "controller.listener.names=CONTROLLER",
                        f"log.dirs={self.folder / f'data{n}'}",
                        f"offsets.topic.replication.factor={replicas}",
                        f"transaction.state.log.replication.factor={replicas}",
                        "transaction.state.log.min.isr=1",
                        "offsets.topic.num.partitions=4",
                        "transaction.state.log.num.partitions=4",
                        "group.initial.rebalance.delay.ms=0",
                        "auto.create.topics.enable=false",
                        "log.cleaner.backoff.ms=500",
                        "group.min.session.timeout.ms=2000",
                        "broker.session.timeout.ms=5000",
                        "broker.heartbeat.interval.ms=1000",
                        *self.further(n),
                    )
                )
            )
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda file: self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(file), *words), files))

    def further(self, n: int) -> Iterable[str]:
        """More lines of a node's configuration, asked before it is formatted; the last line of a name counts."""
        return ()

    @property
    def bootstrap(self) -> str:
        """HOST:PORT of every node."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def _java(self, *words: str) -> str:
        done = subprocess.run(
            ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", self.class_path, f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}", *words],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise NoBroker(f"{words[0]}: {done.stdout[-500:]}{done.stderr[-500:]}")
        return done.stdout

    def start(self, n: int | None = None, wait: bool = True) -> KafkaCluster:
        """Start a node, or all."""
        for node in range(self.nodes) if n is None else (n,):
            with (self.folder / f"{node}.log").open("ab") as log:
                self.processes[node] = subprocess.Popen(
                    [
                        "java",
                        *(("-Xmx512m",) if self.nodes == 1 else ("-Xmx256m", "-XX:TieredStopAtLevel=1")),  # several share two cores: start fast
                        "-XX:+UseSerialGC",
                        "-cp",
                        self.class_path,
                        f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}",
                        "kafka.Kafka",
                        str(self.folder / f"{node}.properties"),
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
        if wait:
            self.wait()
        return self

    def wait(self, timeout_s: float = 60) -> None:
        """Until every started node is in the cluster and a group coordinator can be found."""
        deadline = time.monotonic() + timeout_s
        running = sum(process is not None for process in self.processes)
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}, logger=_Silent())
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                if len(client.list_topics(timeout=2).brokers) >= running:
                    return
            time.sleep(0.2)
        tails = "".join((self.folder / f"{n}.log").read_text()[-1000:] for n in range(self.nodes) if (self.folder / f"{n}.log").exists())
        raise NoBroker(f"Kafka did not start within {timeout_s:.0f} s: {tails}")

    def signal(self, n: int, number: int) -> None:
        """Send a signal to a node: SIGSTOP, SIGCONT, …"""
        process = self.processes[n]
        assert process is not None
        process.send_signal(number)

    def kill(self, n: int) -> None:
        """kill -9."""
        self.signal(n, signal.SIGKILL)
        process = self.processes[n]
        assert process is not None
        process.wait(10)
        self.processes[n] = None

    def stop(self) -> None:
        """End all nodes and remove their data."""
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _secured(pem: Path, user: str, password: str) -> tuple[str, ...]:
    """Properties of a listener by SASL_SSL."""
    modules = "org.apache.kafka.common.security"
    return (
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={pem}",
        "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN",
        f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
        f'listener.name.sasl_ssl.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_{user}="{password}";',
    )


class _Silent:
    def log(self, *words: object) -> None:
        """librdkafka's lines while a broker is still starting tell nothing."""

    debug = info = warning = error = critical = log


@contextlib.contextmanager
def real_broker(bootstrap: str | None = None, nodes: int = 1) -> Iterator[str]:
    """Bootstrap of a real Kafka: the given one, PULSEFOLD_TEST_BOOTSTRAP, a container, or Kafka's jars.

    Raises:
        NoBroker: none is possible here.
    """
    given = bootstrap or os.environ.get("PULSEFOLD_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    if nodes == 1 and _docker():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer().with_kraft() as container:
            yield container.get_bootstrap_server()
        return
    cluster = KafkaCluster(nodes)
    try:
        yield cluster.start().bootstrap
    finally:
        cluster.stop()


def _docker() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    with real_broker() as address:
        print(address, flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            sys.exit(0)
