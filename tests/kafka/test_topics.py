"""On a real Kafka: topics or limits that would lose updates are refused with one sentence and exit code 2, never worked with."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from .broker import free_ports
from .deployment import Deployment

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
@pytest.mark.timeout(60)
def test_topics_that_differ_from_what_is_needed_are_refused(deploy: Deploy, prepare: Prepare, sentence: str, n: int) -> None:
    deployed = deploy(3)
    prepare(deployed)
    for done in (deployed.run("worker", web_port=free_ports(1)[0]), deployed.check()):
        refused(done, sentence, n)


def refused(done: subprocess.CompletedProcess[str], sentence: str, n: int = 1) -> None:
    """Exit code 2 and so many sentences, each a line, no traceback."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 2, (done.returncode, lines)
    assert len(lines) == n, lines
    for line in lines:
        assert re.search(sentence, line), line


@pytest.mark.timeout(60)
def test_good_topics_are_not_refused(deploy: Deploy) -> None:
    done = deploy(3).check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "all topics are as needed\n", "")
