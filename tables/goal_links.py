"""Goals that a metric moves by itself: each of its values becomes a derived ``goal.progressed``.

The rules this file keeps:
  * a link is a row of the goal's partition; a value asks the links of **all** partitions that this worker holds rows of. So
    what is put out depends on what was followed by then, and no row may: a value changes no row of this file's tables;
  * the derived event goes to the partition of the goal's row. There it takes its place in the log like any other, and there
    alone it moves the goal; its id follows from the source's id and the goal, so a second one is a duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from streams.derive import event_bytes
from streams.events import GoalProgressed
from streams.keys import derived_id, encode_key

from .goal_state import Key, Links, name_of
from .rows import Table

if TYPE_CHECKING:
    from streams.events import Event

    from .partition import Partition

LINKS = 16
"""Links a row: with names of 256 characters it stays below 64 KiB."""


class GoalLinks:
    """Which goals want which metric.

    Args:
        rank: of the table; nothing that a row is made of reads it.
        settings: as of `Table`.
    """

    def __init__(self, *, rank: int, settings: msgspec.Struct | None) -> None:
        self.table = Table("goal_links", Links, rank=rank, settings=settings)

    def add(self, p: Partition, tenant: str, metric: str, key: Key) -> None:
        """Link the goal that the current record creates.

        Rows are filled one after the other. One that is ahead of the log (after a crash) was not full before this record, so it
        has the link already.
        """
        space = p.space(self.table, tenant)
        n = 0
        while (row := space.get((metric, str(n)))) is not None and row.applied < p.offset and len(self.table.load(row).goals) >= LINKS:
            n += 1
        links = p.open(self.table, tenant, (metric, str(n)))
        if links is not None:
            links.goals.append((key[0], key[1], p.time_us))

    def any(self, p: Partition, tenant: str) -> bool:
        """Whether the tenant has linked goals."""
        index = self.table.index
        for peer in p.peers:  # noqa: SIM110 - a generator would cost more than the loop
            if peer.spaces[index].get(tenant):
                return True
        return False

    def feed(self, event: Event, p: Partition, task: str, figures: Sequence[tuple[str, float | str | None]]) -> None:
        """Put out a derived event for every goal that wants one of the figures.

        Args:
            task: task type of the event; "" where it has none, and goals of every task type take it.
            figures: (metric, value); what is no finite number moves no goal.
        """
        table, time_us = self.table, p.time_us
        for peer in p.peers:
            space = peer.spaces[table.index].get(event.tenant)
            if not space:
                continue
            for metric, value in figures:
                if value is None or value.__class__ is str:
                    continue
                n = 0
                while (row := space.get((metric, str(n)))) is not None:
                    n += 1
                    for task_type, goal_id, created_us in table.load(row).goals:
                        if time_us >= created_us and (not task or not task_type or task == task_type):
                            self.derive(event, p, peer.number, task_type, goal_id, value)  # type: ignore[arg-type]  # texts are passed over

    def derive(self, event: Event, p: Partition, home: int, task_type: str, goal_id: str, current: float) -> None:
        """Put out where a goal stands now."""
        name = derived_id(p.topic, event.tenant, event.id, GoalProgressed.TYPE, name_of((task_type, goal_id)))
        data = GoalProgressed(goal_id=goal_id, current=current, task_type=task_type or None)
        value = event_bytes(type=GoalProgressed.TYPE, id=name, source=p.source, time_us=p.time_us, tenant=event.tenant, data=data, derivedfrom=event.id)
        p.publish(p.topic, encode_key(event.tenant, task_type or None), value, home)
