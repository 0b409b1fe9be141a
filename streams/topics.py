"""Every topic: name, partitions and what the broker must keep of it (contract §1)."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE_TOPICS = ("forecasts", "training", "costs", "judgments")
MIN_LAG_MS = 3_600_000
"""Smallest compaction lag of a changelog that the repair of stale rows is safe with: one hour."""
DAY_MS = 86_400_000


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it must be.

    Attributes:
        name: in full, with prefix.
        config: of the broker; only these are checked.
        counted: whether the number of partitions must be this one.
        of: full name of the source topic, for a changelog.
    """

    name: str
    partitions: int
    replication: int
    config: dict[str, str]
    counted: bool = True
    of: str | None = None


def changelog_name(prefix: str, app_id: str, topic: str) -> str:
    """Full name of the changelog of a source topic."""
    return f"{prefix}{app_id}-{topic}-changelog"


def topic_specs(
    prefix: str, app_id: str, partitions: int, *, retention_days: float | None = None, changelog_lag_ms: int = DAY_MS, replication: int = 1
) -> list[TopicSpec]:
    """All topics of a deployment.

    Args:
        replication: copies of each; from three on two of them must have a record before it counts as written, so that a broker can
            be lost without loss and without standing still.
    """
    safe = {"min.insync.replicas": "2"} if replication >= 3 else {}
    keep = "-1" if retention_days is None else str(int(retention_days * DAY_MS))
    source = {"cleanup.policy": "delete", "retention.ms": keep, "max.message.bytes": str(4 << 20), **safe}
    compacted = {"cleanup.policy": "compact", **safe}
    compacted["max.compaction.lag.ms"] = str(max(2 * DAY_MS, 2 * changelog_lag_ms))  # else what was erased stays in a segment that nothing rolls
    lagging = {**compacted, "min.compaction.lag.ms": str(changelog_lag_ms)}
    letters = {"cleanup.policy": "delete", "retention.ms": str(14 * DAY_MS), "max.message.bytes": str(5 << 20), **safe}
    return [
        *(TopicSpec(prefix + name, partitions, replication, source) for name in SOURCE_TOPICS),
        TopicSpec(prefix + "alerts", 1, replication, compacted, counted=False),
        TopicSpec(prefix + "dead-letters", 1, replication, letters, counted=False),
        TopicSpec(prefix + "scores", 1, replication, compacted, counted=False),
        *(TopicSpec(changelog_name(prefix, app_id, name), partitions, replication, lagging, of=prefix + name) for name in SOURCE_TOPICS),
    ]
