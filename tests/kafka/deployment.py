"""Topics, workers and commands of one deployment on a real broker, and what the broker itself says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource, NewTopic, ResourceType

from streams.admin import create_topics
from streams.settings import load
from streams.topics import SOURCE_TOPICS, changelog_name

from ..workers import ROOT, WorkerProcess, log_ends

QUICK = {"session_timeout_s": 3, "heartbeat_s": 1}


class Deployment:
    """A deployment with a topic prefix and an app id of its own.

    Args:
        create: whether its topics are created.
        settings: by name, for every worker and command of it.
    """

    def __init__(self, bootstrap: str, folder: Path, partitions: int, *, create: bool = True, **settings: object) -> None:
        tag = uuid.uuid4().hex[:8]
        self.settings: dict[str, Any] = {"bootstrap": bootstrap, "topic_prefix": f"t{tag}.", "app_id": f"a{tag}", "partitions": partitions, **settings}
        self.folder = folder
        self.workers: list[WorkerProcess] = []
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        if create:
            create_topics(load(self.settings, {}))

    @property
    def bootstrap(self) -> str:
        """HOST:PORT, several by comma."""
        return str(self.settings["bootstrap"])

    # ---- names

    def source(self, topic: str) -> str:
        """Full name of a topic."""
        return f"{self.settings['topic_prefix']}{topic}"

    def changelog(self, topic: str) -> str:
        """Full name of a source topic's changelog."""
        return changelog_name(self.settings["topic_prefix"], self.settings["app_id"], topic)

    # ---- workers and commands

    def worker(self, *fault: str, start: bool = True, **settings: object) -> WorkerProcess:
        """One more worker.

        Args:
            fault: one of `tests.kafka.faults`, such as ``drop:7``.
        """
        words = {name: value for name, value in self.settings.items() if name != "bootstrap"}
        made = WorkerProcess(self.bootstrap, self.folder, **{**words, **QUICK, **settings})
        if fault:
            made.module = ("tests.kafka.faults", *fault)
        self.workers.append(made)
        return made.start() if start else made

    def run(self, *words: str, entry: str = "agents.main", timeout_s: float = 60, **settings: object) -> subprocess.CompletedProcess[str]:
        """A command with the deployment's settings, to its end."""
        flags = [word for name, value in {**self.settings, **settings}.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return subprocess.run([sys.executable, "-m", entry, *words, *flags], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, env=dict(os.environ))

    def check(self) -> subprocess.CompletedProcess[str]:
        """``pulsefold topics check``."""
        code = "import sys; from streams.cli import main; sys.exit(main())"
        flags = [word for name, value in self.settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return subprocess.run([sys.executable, "-c", code, "topics", "check", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)

    def replay(self) -> dict[str, Any]:
        """What ``pulsefold replay`` finds."""
        done = self.run("replay", "--json", timeout_s=120)
        assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
        return dict(json.loads(done.stdout))

    def stop(self) -> None:
        """Stop all workers."""
        for worker in self.workers:
            worker.stop()

    # ---- what the broker says

    def on(self, topic: str, only: bytes | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Every record of a topic now as (key, JSON body); of a changelog, where rows are no JSON, those of one key."""
        return [((message.key() or b"").decode(), json.loads(message.value() or b"null")) for message in self._read(topic) if only in (None, message.key())]

    def _read(self, topic: str) -> Iterator[Message]:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "reader", "enable.partition.eof": True, "log_level": 0})
        try:
            parts = [TopicPartition(topic, n, 0) for n in consumer.list_topics(topic, 10).topics[topic].partitions]
            consumer.assign(parts)
            open_ = len(parts)
            while open_:
                message = consumer.poll(10)
                assert message is not None, "the broker does not answer"
                if message.error() is not None:
                    open_ -= 1
                else:
                    yield message
        finally:
            consumer.close()

    def size(self, topic: str) -> int:
        """Records that a topic keeps now."""
        return sum(1 for _ in self._read(topic))

    def ends(self, *topics: str) -> dict[tuple[str, int], int]:
        """High watermark of every partition."""
        return log_ends(self.admin, topics)

    def committed(self) -> dict[tuple[str, int], int]:
        """The group's offsets, as the broker keeps them."""
        group = self.settings["app_id"]
        found = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
        return {(part.topic, part.partition): part.offset for part in found.topic_partitions or []}

    def sources(self) -> list[str]:
        """Full names of the source topics."""
        return [self.source(topic) for topic in SOURCE_TOPICS]

    def alter(self, topic: str, **config: str | None) -> None:
        """Change a topic's configuration (``a_b`` is ``a.b``); None = back to the broker's default."""
        kinds = {True: AlterConfigOpType.DELETE, False: AlterConfigOpType.SET}
        entries = [ConfigEntry(n.replace("_", "."), v or "", incremental_operation=kinds[v is None]) for n, v in config.items()]
        for future in self.admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)]).values():
            future.result(10)

        def told() -> bool:
            found = self.admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)])
            (shown,) = (future.result(10) for future in found.values())
            wanted = {n.replace("_", "."): v for n, v in config.items()}
            dynamic = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
            return all(shown[n].source != dynamic if v is None else shown[n].value == v for n, v in wanted.items())

        until(told, what=f"the configuration of {topic}")

    def recreate(self, topic: str, partitions: int, **config: str) -> None:
        """Delete a topic and create it again."""
        self.delete(topic)
        self.create(topic, partitions, **config)

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        self.admin.delete_topics([topic])[topic].result(20)

    def create(self, topic: str, partitions: int, **config: str) -> None:
        """Create a topic; patient, because the deletion of its namesake may still be under way."""
        deadline = time.monotonic() + 20
        while True:
            try:
                self.admin.create_topics([NewTopic(topic, partitions, 1, config={n.replace("_", "."): v for n, v in config.items()})])[topic].result(20)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return


def until(holds: Callable[[], object], timeout_s: float = 30, what: str = "it") -> None:
    """Wait for something to hold."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.1)


def stopped(worker: WorkerProcess) -> bool:
    """Whether the process is stopped by SIGSTOP."""
    assert worker.process is not None
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def leaders(deployed: Deployment) -> set[int]:
    """Nodes that lead a partition of the judgments."""
    return {int(p.leader) for p in deployed.admin.list_topics(deployed.source("judgments"), 10).topics[deployed.source("judgments")].partitions.values()}


def in_sync(deployed: Deployment) -> int:
    """Least number of replicas in sync of any partition of ours."""
    topics = deployed.admin.list_topics(timeout=10).topics
    return min(len(p.isrs) for name, t in topics.items() if name.startswith(deployed.source("")) for p in t.partitions.values())


def coordinator(deployed: Deployment) -> int:
    """Node that coordinates the workers' group: the leader of its partition of the offsets topic, which Java's hash of its name tells."""
    code = 0
    for character in deployed.settings["app_id"]:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    partitions = deployed.admin.list_topics("__consumer_offsets", 10).topics["__consumer_offsets"].partitions
    return int(partitions[abs(code - (code >> 31 << 32)) % len(partitions)].leader)
