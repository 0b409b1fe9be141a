"""``pulsefold replay``: rebuild every table from offset 0 in a fresh process and compare it with the live one.

The live tables are read from the changelog, as a new worker would; the rebuilt ones from the log alone. They must agree in
every row, to the last byte. Nothing is published.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.progress import Progress

from tables.dedupe import IDS
from tables.partition import Partition, Schema

from .access import discover_partitions, security
from .app import load_settings
from .core import Core, WrongIdentity
from .generations import other_tables
from .registry import schema_of


@dataclass
class Outcome:
    """What a replay found.

    Attributes:
        records: read from the source topics.
        rows: compared.
        in_flight: rows that the live worker was writing meanwhile; compared by the next replay.
        differences: one sentence each, at most 100.
        truncated: partitions whose head the broker no longer keeps.
    """

    records: int = 0
    rows: int = 0
    in_flight: int = 0
    differences: list[str] = field(default_factory=list)
    n_different: int = 0
    truncated: list[str] = field(default_factory=list)


async def run(settings: Any, tables: Schema, progress: Progress | None = None) -> Outcome:
    """Restore the live tables from the changelog, rebuild them from the log, compare."""
    ours, theirs = security(settings)
    counts, identities, _ = discover_partitions(settings, theirs)
    prefix, app_id = settings.get("topic_prefix"), settings.get("app_id")
    from streams.topics import changelog_name

    def make() -> dict[tuple[str, int], Partition]:
        return {(t, n): Partition(t, n, tables, count=c, identity=identities[t], source=f"pulsefold/{app_id}") for t, c in counts.items() for n in range(c)}

    live, rebuilt, outcome = make(), make(), Outcome()
    core = Core(live.values())
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.get("bootstrap"),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=1 << 20,
        **ours,
    )
    await consumer.start()
    try:
        changelog = {TopicPartition(changelog_name(prefix, app_id, t), n): (t, n) for t, n in live}

        def restore(tp: TopicPartition, records: list[Any]) -> None:
            core.followed(core.shards[changelog[tp]], ((r.key, r.value) for r in records), records[-1].offset + 1)

        await _read(consumer, list(changelog), None, progress, "live tables", restore)
        other = next((shard for shard in core.shards.values() if core.differs(shard)), None)
        if other is not None:
            raise other_tables(other)
        done = {name: max((row.applied for row in p.space(IDS, "").values()), default=-1) for name, p in live.items()}
        sources = {TopicPartition(prefix + t, n): (t, n) for t, n in live}
        starts = await consumer.beginning_offsets(list(sources))
        outcome.truncated = [f"{tp.topic}/{tp.partition}" for tp, start in starts.items() if start > 0]

        def fold(tp: TopicPartition, records: list[Any]) -> None:
            name = sources[tp]
            kept = [r for r in records if r.offset <= done[name]]
            outcome.records += len(kept)
            rebuilt[name].absorb(kept)
            rebuilt[name].outputs.clear()

        await _read(
            consumer, [tp for tp, name in sources.items() if done[name] >= 0], {tp: done[name] + 1 for tp, name in sources.items()}, progress, "log", fold
        )
    except WrongIdentity as wrong:
        raise wrong.told(prefix + wrong.topic, changelog_name(prefix, app_id, wrong.topic)) from None
    finally:
        await consumer.stop()
    for name, mine in live.items():
        compare(name, mine, rebuilt[name], done[name], outcome)
    return outcome


def compare(name: tuple[str, int], live: Partition, rebuilt: Partition, done: int, outcome: Outcome) -> None:
    """Add to the outcome how two partitions differ."""
    for table in live.schema.tables:
        tenants = set(live.spaces[table.index]) | set(rebuilt.spaces[table.index])
        for tenant in sorted(tenants):
            mine, theirs = live.spaces[table.index].get(tenant, {}), rebuilt.spaces[table.index].get(tenant, {})
            for key in sorted(set(mine) | set(theirs)):
                a, b = mine.get(key), theirs.get(key)
                if a is not None and a.applied > done:
                    outcome.in_flight += 1
                    continue
                outcome.rows += 1
                if a is None or b is None or a.applied != b.applied or table.dump(a) != table.dump(b):
                    outcome.n_different += 1
                    if len(outcome.differences) < 100:
                        what = (
                            "is missing in the live table"
                            if a is None
                            else "is missing in the rebuilt table"
                            if b is None
                            else (f"is at offset {a.applied} live and {b.applied} rebuilt" if a.applied != b.applied else "differs")
                        )
                        outcome.differences.append(f"{name[0]}/{name[1]} {table.name} {tenant} {'|'.join(key)} {what}")


async def _read(
    consumer: AIOKafkaConsumer, tps: list[TopicPartition], until: dict[TopicPartition, int] | None, progress: Progress | None, what: str, take: Any
) -> None:
    """Read partitions from their start up to their present end, or `until`."""
    if not tps:
        return
    consumer.assign(tps)
    await consumer.seek_to_beginning(*tps)
    ends = await consumer.end_offsets(tps)
    if until is not None:
        ends = {tp: min(end, until[tp]) for tp, end in ends.items()}
    starts = await consumer.beginning_offsets(tps)
    task = progress.add_task(what, total=sum(max(0, ends[tp] - starts[tp]) for tp in tps)) if progress else None
    waiting = {tp for tp in tps if ends[tp] > starts[tp]}
    while waiting:
        for tp, records in (await consumer.getmany(*waiting, timeout_ms=200)).items():
            take(tp, records)
            if progress and task is not None:
                progress.advance(task, len(records))
        for tp in list(waiting):
            if await consumer.position(tp) >= ends[tp]:
                waiting.discard(tp)


def replay(flags: dict[str, Any]) -> int:
    """The command: 0 where all is equal, 1 where something differs."""
    as_json = flags.pop("json", None) is not None
    settings = load_settings(flags, flags.pop("config", None))
    tables = schema_of(settings)
    if as_json or not sys.stderr.isatty():
        outcome = asyncio.run(run(settings, tables))
    else:
        from rich.console import Console

        with Progress(console=Console(stderr=True)) as progress:
            outcome = asyncio.run(run(settings, tables, progress))
    if as_json:
        body = {k: getattr(outcome, k) for k in ("records", "rows", "in_flight", "n_different", "differences", "truncated")}
        print(json.dumps({"equal": not outcome.n_different, **body}))
    else:
        for line in outcome.differences:
            print(line)
        for name in outcome.truncated:
            print(f"{name}: the broker no longer keeps its head, so a rebuild starts later than the live table did")
        print(
            f"{outcome.records} records rebuilt {outcome.rows} rows: {'equal' if not outcome.n_different else f'{outcome.n_different} differ'}"
            + (f" ({outcome.in_flight} rows were being written and are left out)" if outcome.in_flight else "")
        )
    return 1 if outcome.n_different else 0
