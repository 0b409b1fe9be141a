"""Judgments and evaluations of one task, joined in whichever order they come.

The rules this file keeps:
  * a judgment meets at most one evaluation: the newest by event time that is there, else the first that comes within `WITHIN_US`;
  * only what is keyed alike meets: the same agent, or neither names one;
  * a bucket of tasks depends on itself alone, and is bounded; the oldest goes first, and what waited in it stays unjoined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .fold import Absorbed
from .remembered import bucket_of, digest_of
from .rows import Table
from .times import DAY_US

if TYPE_CHECKING:
    from .partition import Partition

WITHIN_US = 7 * DAY_US
TASKS_A_BUCKET = 32
WAITING_A_BUCKET = 32
"""Judgments with names of the greatest length: a row stays under 64 KiB."""
NEVER = -(2**62)


class Waiting(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A judgment without an evaluation yet: who, what, when (microseconds), and its event's id."""

    judge: str
    verdict: bool
    time_us: int
    id: str


class Task(msgspec.Struct, array_like=True, gc=False):
    """The newest evaluation of a task, and the judgments that wait for one."""

    evaluated_us: int = NEVER
    passed: bool = False
    waiting: list[Waiting] = []


class TaskBucket(msgspec.Struct, array_like=True, gc=False):
    """Tasks by digest of (agent or "", task), in the order in which they first came.

    Attributes:
        n_waiting: judgments that wait, of all tasks.
    """

    tasks: dict[bytes, Task] = {}
    n_waiting: int = 0


class Verdicts:
    """The join.

    Args:
        rank: higher than that of every row which depends on the answers.
        settings: what of the settings decides the verdicts.
    """

    def __init__(self, *, rank: int, settings: msgspec.Struct | None = None) -> None:
        self.table = Table("trust_verdicts", TaskBucket, rank=rank, settings=settings)

    def judged(self, p: Partition, tenant: str, agent: str | None, task: str, one: Waiting) -> bool | None:
        """Outcome of the evaluation that a judgment meets; None: it waits for one.

        Raises:
            Absorbed: the row has the record already, and so has all that depends on it.
        """
        bucket, state = self._open(p, tenant, agent, task)
        if state.evaluated_us != NEVER and abs(one.time_us - state.evaluated_us) <= WITHIN_US:
            return state.passed
        if bucket.n_waiting >= WAITING_A_BUCKET:
            del next(other.waiting for other in bucket.tasks.values() if other.waiting)[0]
        else:
            bucket.n_waiting += 1
        state.waiting.append(one)
        return None

    def evaluated(self, p: Partition, tenant: str, agent: str | None, task: str, passed: bool) -> list[Waiting]:
        """The judgments that waited for an evaluation and meet it now, in log order.

        Raises:
            Absorbed: as `judged`.
        """
        bucket, state = self._open(p, tenant, agent, task)
        time_us = p.time_us
        met = [one for one in state.waiting if abs(one.time_us - time_us) <= WITHIN_US]
        if state.waiting:  # what is too old for this one will be for every later one; a late evaluation may still come
            kept = [one for one in state.waiting if one.time_us > time_us + WITHIN_US]
            bucket.n_waiting -= len(state.waiting) - len(kept)
            state.waiting = kept
        if time_us >= state.evaluated_us:
            state.evaluated_us, state.passed = time_us, passed
        return met

    def _open(self, p: Partition, tenant: str, agent: str | None, task: str) -> tuple[TaskBucket, Task]:
        digest = digest_of(agent or "", task)
        bucket = p.open(self.table, tenant, bucket_of(digest))
        if bucket is None:
            raise Absorbed
        tasks = bucket.tasks
        state = tasks.get(digest)
        if state is None:
            if len(tasks) >= TASKS_A_BUCKET:
                bucket.n_waiting -= len(tasks.pop(next(iter(tasks))).waiting)
            state = tasks[digest] = Task()
        return bucket, state
