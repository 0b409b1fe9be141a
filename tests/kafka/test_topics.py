"""On a real Kafka: topics or limits that would lose updates are refused with one sentence and exit code 2, never worked with."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource, ResourceType

from ..ports import free_port
from ..workers import WorkerProcess
from .deployment import Deployment, until
from .truth import body

Deploy = Callable[..., Deployment]
Prepare = Callable[[Deployment], None]


def lag_missing(deployed: Deployment) -> None:
    deployed.alter(deployed.changelog("costs"), min_compaction_lag_ms=None)


def lag_of_a_minute(deployed: Deployment) -> None:
    deployed.alter(deployed.changelog("costs"), min_compaction_lag_ms="60000")


def source_compacted(deployed: Deployment) -> None:
    deployed.alter(deployed.source("costs"), cleanup_policy="compact")


def changelog_deleted_after_a_while(deployed: Deployment) -> None:
    deployed.alter(deployed.changelog("costs"), cleanup_policy="compact,delete")


def alerts_deleted_after_a_while(deployed: Deployment) -> None:
    deployed.alter(deployed.source("alerts"), cleanup_policy="delete")


def too_few_partitions_set(deployed: Deployment) -> None:
    deployed.settings["partitions"] = 1


def changelog_with_other_partitions(deployed: Deployment) -> None:
    deployed.recreate(deployed.changelog("costs"), 2, cleanup_policy="compact", min_compaction_lag_ms="86400000")


@pytest.mark.parametrize(
    ("prepare", "sentence", "n"),
    [
        (lag_missing, r"a\w+-costs-changelog: min.compaction.lag.ms is 0, needed are at least 3600000 ", 1),
        (lag_of_a_minute, r"a\w+-costs-changelog: min.compaction.lag.ms is 60000, needed are at least 3600000 ", 1),
        (source_compacted, r"\.costs: cleanup.policy is compact, needed is delete", 1),
        (changelog_deleted_after_a_while, r"a\w+-costs-changelog: cleanup.policy is (compact,delete|delete,compact), needed is compact", 1),
        (alerts_deleted_after_a_while, r"\.alerts: cleanup.policy is delete, needed is compact", 1),
        (too_few_partitions_set, r"\.\w+(-\w+-changelog)?: has 3 partitions, the setting partitions says 1; set partitions to 3", 8),
        (
            changelog_with_other_partitions,
            r"a\w+-costs-changelog: has 2 partitions, the setting partitions says 3; delete it and run pulsefold topics create",
            1,
        ),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
@pytest.mark.timeout(180)
def test_topics_that_differ_from_what_is_needed_are_refused(deploy: Deploy, prepare: Prepare, sentence: str, n: int) -> None:
    deployed = deploy(3)
    prepare(deployed)
    for done in (deployed.run("worker", web_port=free_port()), deployed.check()):
        refused(done, sentence, n)


def refused(done: subprocess.CompletedProcess[str], sentence: str, n: int = 1) -> None:
    """Exit code 2 and so many sentences at the end, each a line; lines of the log may precede them, but no traceback."""
    text = re.sub("\x1b\\[[?0-9]+[a-z]|\b", "", done.stdout + done.stderr)
    lines = [line for line in text.splitlines() if line.strip()]
    assert done.returncode == 2, (done.returncode, text)
    assert "Traceback" not in text, text
    assert [line for line in lines if not re.match(r"\[?2\d\d\d-", line)] == lines[-n:], text  # the archivist's log has no brackets
    for line in lines[-n:]:
        assert re.search(sentence, line), line


@pytest.mark.timeout(180)
def test_good_topics_are_not_refused(deploy: Deploy) -> None:
    done = deploy(3).check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "all topics are as needed\n", "")


# ---- a topic deleted and created again

DAY = {"cleanup_policy": "compact", "min_compaction_lag_ms": "86400000"}
DELETED = r"costs: .*deleted and created again.*new app_id, or delete \S+-costs-changelog.*topics create"


def spend(deployed: Deployment, ids: range, start: str = "c") -> None:
    """A dollar an event."""
    producer = Producer({"bootstrap.servers": deployed.bootstrap})
    for n in ids:
        producer.produce(deployed.source("costs"), body(f"{start}{n}", "cost.incurred.v1", "2026-03-02T00:00:00Z", {"cost": "1"}), b"default")
    assert producer.flush(30) == 0


def ended(worker: WorkerProcess, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Exit code and output of a worker that ends by itself."""
    assert worker.process is not None
    return subprocess.CompletedProcess("worker", worker.process.wait(timeout_s), worker.log.read_text(), "")


@pytest.mark.timeout(180)
def test_a_source_topic_deleted_and_created_again_is_refused_at_start_and_the_way_out_works(deploy: Deploy) -> None:
    deployed = deploy(1)
    worker = deployed.worker()
    spend(deployed, range(40))
    worker.until(lambda: worker.get("/status")["counts"]["folded"] == 40)
    assert worker.stop() in (0, -15)
    deployed.recreate(deployed.source("costs"), 1)
    spend(deployed, range(60), "new")
    again = deployed.worker(start=False).start(wait=False)
    refused(ended(again), DELETED)
    refused(deployed.run("replay"), DELETED)
    deployed.recreate(deployed.changelog("costs"), 1, **DAY)
    rebuilt = deployed.worker()
    rebuilt.until(lambda: rebuilt.get("/status")["counts"]["folded"] == 60)
    assert rebuilt.get("/costs")["total_micro_usd"] == 60_000_000
    rebuilt.until(lambda: "cost.cumulative" in {a["rule"] for a in rebuilt.get("/alerts", state="open")["alerts"]})
    assert deployed.replay()["equal"]


@pytest.mark.parametrize("n", [10, 100], ids=["fewer_records", "more_records"])
@pytest.mark.timeout(180)
def test_a_source_topic_deleted_and_created_again_stops_a_running_worker(deploy: Deploy, n: int) -> None:
    deployed = deploy(1)
    worker = deployed.worker()
    spend(deployed, range(40))
    worker.until(lambda: worker.get("/status")["counts"]["folded"] == 40)
    until(lambda: deployed.committed().get((deployed.source("costs"), 0)) == 40)
    deployed.recreate(deployed.source("costs"), 1)
    spend(deployed, range(n), "new")
    refused(ended(worker), DELETED)
    assert deployed.committed().get((deployed.source("costs"), 0), 0) <= 0, "an offset of the old topic was committed for the new one"


# ---- a session that the broker refuses


@pytest.mark.timeout(180)
def test_a_session_longer_or_shorter_than_the_broker_allows_ends_the_worker_with_a_sentence(deploy: Deploy) -> None:
    deployed = deploy(1)
    node = deployed.admin.list_topics(timeout=10).controller_id
    config = next(iter(deployed.admin.describe_configs([ConfigResource(ResourceType.BROKER, str(node))]).values())).result(10)
    longest, shortest = (int(config[f"group.{which}.session.timeout.ms"].value) / 1000 for which in ("max", "min"))
    begun = time.monotonic()
    for seconds in (longest + 1, shortest - 0.5):
        worker = deployed.worker(start=False, session_timeout_s=seconds).start(wait=False)
        refused(ended(worker), rf"session_timeout_s: the broker refuses {seconds:g} s.*group\.min\.session\.timeout\.ms")
    assert time.monotonic() - begun < 40
