"""Clearing a tenant whole: what is left, what comes back, and what a crash in the middle leaves."""

from __future__ import annotations

import random
from typing import Any

from agents.core import Core
from agents.registry import folds
from tables.partition import CLEARED, GRAVE, OWN, WATERMARK, Partition, Schema
from tables.rows import Row
from tests.harness import Log

START = "2026-03-02T00:00:00Z"


def events(tenant: str, n: int = 4) -> list[dict[str, Any]]:
    """Some of everything."""
    data = [
        ("trust.observed.v1", {"kind": "model", "id": "m", "success": True}),
        ("cost.incurred.v1", {"cost": 9, "model": "m"}),
        ("goal.created.v1", {"goal_id": "g", "target": 1}),
        ("metric.recorded.v1", {"metric_type": "loss", "value": 0.5, "run": "r"}),
        ("learning.recorded.v1", {"task_type": "t", "performance_score": 0.5, "learning_rate": 0.1, "episode_count": 1, "convergence_metric": 0.1}),
        ("forecast.issued.v1", {"forecast_id": "f", "model": "m", "confidence": 0.5, "inputs": {"v": 1.0}}),
        ("task.completed.v1", {"task": "x", "agent": "a", "success": False, "quality": 0.2}),
    ]
    return [{"id": f"{tenant}{i}-{k}", "type": kind, "time": START, "tenant": tenant, "data": one} for i in range(n) for k, (kind, one) in enumerate(data)]


def cleared(log: Log, tenant: str = "gone", id: str = "clear") -> None:
    """The command; the folds publish its copies."""
    log.send([{"id": id, "type": "tenant.cleared.v1", "time": START, "tenant": tenant, "data": {"scope": "all"}}])


def rows(log: Log) -> dict[tuple[str, int, str, str, tuple[str, ...]], bytes]:
    """States of all rows of the folds, by topic, partition, table, tenant and key."""
    return {
        (topic, p.number, table.name, tenant, key): bytes(table.dump(row))
        for topic, partitions in log.topics.items()
        for p in partitions
        for table in p.schema.tables
        if table not in OWN
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
    }


def test_nothing_of_the_tenant_is_left_in_any_table_and_the_others_keep_everything() -> None:
    log, alone = Log(folds(), 3), Log(folds(), 3)
    log.send(events("gone") + events("kept"))
    alone.send(events("kept"))
    assert len({table for _, _, table, tenant, _ in rows(log) if tenant == "gone"}) > 20
    cleared(log)
    assert {tenant for _, _, _, tenant, _ in rows(log)} == {"kept"}
    assert {k[2:] for k in rows(log)} == {k[2:] for k in rows(alone)}
    assert log.get("/trust/model/m", "gone")["status"] == 404
    assert log.get("/goals/g", "gone")["status"] == 404
    assert log.get("/costs", "gone")["events"] == 0 and log.get("/costs", "kept")["events"] == 4


def test_what_comes_later_builds_anew_as_if_nothing_had_been() -> None:
    log, fresh = Log(folds(), 3), Log(folds(), 3)
    log.send(events("gone", 9))
    cleared(log)
    later = [{**one, "id": "later" + one["id"]} for one in events("gone", 2)]
    log.send(later)
    fresh.send(later)
    assert log.get("/trust/model/m", "gone") == fresh.get("/trust/model/m", "gone")
    for path in ("/costs", "/goals/g", "/learning/metrics", "/performance/stats"):
        mine, theirs = log.get(path, "gone"), fresh.get(path, "gone")
        assert {k: v for k, v in mine.items() if k != "report_time"} == {k: v for k, v in theirs.items() if k != "report_time"}


def test_the_command_itself_and_a_clearing_of_performance_alone_drop_nothing_here() -> None:
    log = Log(folds(), 2)
    log.send(events("gone"))
    before = {key for key in rows(log) if key[2].startswith(("trust", "cost", "goal"))}
    log.send([{"id": "c", "type": "tenant.cleared.v1", "time": START, "tenant": "gone", "data": {"scope": "performance"}}])
    assert before <= set(rows(log))


def test_a_crash_after_any_part_of_the_flush_that_clears_gives_the_same_rows_and_publishes_nothing_else() -> None:
    rng = random.Random(5)
    log = Log(folds())
    log.send(events("gone", 3) + events("kept", 2))
    cleared(log)
    log.send([{**one, "id": "later" + one["id"]} for one in events("gone", 1)])
    for topic, records in ((topic, records) for (topic, _), records in log.records.items()):
        whole = Partition(topic, 0, log.schema)
        whole.absorb(records)
        outputs = {(o.topic, o.key, o.value) for o in whole.outputs}
        for _ in range(40):
            first = Core([Partition(topic, 0, Schema(folds()))])
            shard = first.gained(topic, 0, committed=None, log_start=0, changelog_end=0)
            first.chunk(shard, shard.epoch, 0, len(records), records[: rng.randrange(1, len(records) + 1)])
            flush = first.take(shard)
            assert flush is not None
            written = flush.rows[: rng.randrange(len(flush.rows) + 1)]
            second = Core([Partition(topic, 0, Schema(folds()))])
            heir = second.gained(topic, 0, committed=None, log_start=0, changelog_end=len(written))
            second.followed(heir, written, len(written))
            second.chunk(heir, heir.epoch, heir.next, len(records), [r for r in records if r.offset >= heir.next])
            assert states(heir.partition) == states(whole)
            assert {(o.topic, o.key, o.value) for o in heir.partition.outputs} <= outputs


def states(p: Partition) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, bytes]]:
    return {
        (table.name, tenant, key): (row.applied, bytes(table.dump(row)))
        for table in p.schema.tables
        for tenant, space in p.spaces[table.index].items()
        for key, row in space.items()
        if row.applied >= 0
    }


def test_graves_are_written_before_tombstones_and_a_row_that_lives_again_gets_none() -> None:
    log = Log(folds())
    log.send(events("gone"))
    cleared(log)
    records = log.records[("costs", 0)]
    core = Core([Partition("costs", 0, Schema(folds()))])
    shard = core.gained("costs", 0, committed=None, log_start=0, changelog_end=0)
    core.chunk(shard, shard.epoch, 0, len(records), records)
    graves = core.take(shard)
    assert graves is not None and None not in [value for _, value in graves.rows]
    assert graves.rows[0][0].startswith(b"schema|")
    buried = {key for (index, row, _), (key, _) in zip(graves.marks, graves.rows[1:], strict=True) if row.state is GRAVE}
    log.send([{**events("gone", 1)[1], "id": "again", "data": {"cost": 1}}])  # the tenant's ledger lives again, the model's does not
    core.acked(graves)
    core.chunk(shard, shard.epoch, len(records) - 1, len(records), records[-1:])
    again = core.take(shard)
    assert again is not None
    ended = {key for key, value in again.rows if value is None}
    alive = {key for key, value in again.rows if value is not None}
    assert ended and ended | (alive & buried) == buried and not ended & alive
    core.acked(again)
    assert core.take(shard) is None  # once
    kept = {t.name for t in shard.partition.schema.tables for tenant in shard.partition.spaces[t.index] if tenant == "gone"}
    assert {WATERMARK.name, CLEARED.name} <= kept


def test_every_row_comes_back_from_the_changelog_to_the_last_byte() -> None:
    log = Log(folds(), 2)
    rl = {"trajectories_processed": 3, "average_reward": 1, "policy_loss": 1, "value_loss": 0, "kl_divergence": 0, "training_time_ms": 5, "run": "r"}
    more = [("rl_metrics.recorded.v1", rl), ("custom.recorded.v1", {"name": "n", "fields": {"a": 1}}), ("metric.recorded.v1", {"value": 1, "cost": 1})]
    log.send(events("t") + [{"id": f"m{k}", "type": kind, "time": START, "tenant": "t", "data": one} for k, (kind, one) in enumerate(more)])
    for partitions in log.topics.values():
        for p in partitions:
            for table in p.schema.tables:
                for space in p.spaces[table.index].values():
                    for row in space.values():
                        raw = bytes(table.dump(row))
                        again = Row(row.tenant, row.key, 0, 0, raw)
                        table.load(again)
                        assert bytes(table.dump(again)) == raw, (table.name, row.key)
