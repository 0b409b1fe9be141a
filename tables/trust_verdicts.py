"""Judgments and evaluations of one task, joined in whichever order they come.

The rules this file keeps:
  * a judgment meets at most one evaluation: the newest by event time that is there, else the first that comes within `WITHIN_US`;
  * only what is keyed alike meets: the same agent, or neither names one;
  * a bucket of tasks depends on itself alone, and is bounded; the oldest goes first, and what waited in it stays unjoined.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from . import packed
from .fold import Absorbed
from .remembered import bucket_of, digest_of
from .rooms import ALWAYS, NEVER, places
from .rows import Table
from .times import DAY_US

if TYPE_CHECKING:
    from .partition import Partition

WITHIN_US = 7 * DAY_US
TASKS_A_BUCKET = 16
WAITING_A_BUCKET = 30
"""Judgments with names of the greatest length: a row stays under 64 KiB."""
_ENTRY = Struct("<16sqB")
"""Digest of (agent or "", task), and of its newest evaluation or of a judgment: event time in microseconds (`NEVER`: not evaluated yet), verdict."""
_WIDTH = _ENTRY.size


class Judged(NamedTuple):
    """A judgment without an evaluation yet: whose, what, when (microseconds), and its event's id."""

    judge: str
    verdict: bool
    time_us: int
    id: str


class TaskBucket(msgspec.Struct, array_like=True, gc=False):
    """Tasks that share a row, and the judgments that wait for an evaluation of one of them. Packed: see `tables.rooms`.

    Attributes:
        tasks: in the order in which they first came.
        waiting: judgments in log order.
        names: judge and id of each, joined by NUL.
    """

    tasks: bytearray = msgspec.field(default_factory=bytearray)
    waiting: bytearray = msgspec.field(default_factory=bytearray)
    names: list[str] = []

    def place(self, digest: bytes) -> int:
        """Where the task's entry begins; one that is new takes the place of the oldest, whose judgments go with it, where there is no other."""
        tasks = self.tasks
        at = packed.find(tasks, digest, _WIDTH)
        if at >= 0:
            return at
        if len(tasks) >= TASKS_A_BUCKET * _WIDTH:
            self.leave(_ENTRY.unpack_from(tasks)[0])
            del tasks[:_WIDTH]
        tasks += _ENTRY.pack(digest, NEVER, False)
        return len(tasks) - _WIDTH

    def wait(self, digest: bytes, one: Judged) -> None:
        """A judgment waits; in a full bucket the oldest goes."""
        if len(self.names) >= WAITING_A_BUCKET:
            del self.waiting[:_WIDTH], self.names[0]
        self.waiting += _ENTRY.pack(digest, one.time_us, one.verdict)
        self.names.append(f"{one.judge}\0{one.id}")

    def of_task(self, digest: bytes) -> list[Judged]:
        """Judgments that wait for a task, in log order."""
        found = []
        for place in places(self.waiting, digest, 0, _WIDTH):
            _, time_us, says = _ENTRY.unpack_from(self.waiting, place * _WIDTH)
            judge, id = self.names[place].split("\0")
            found.append(Judged(judge, bool(says), time_us, id))
        return found

    def leave(self, digest: bytes, until_us: int = ALWAYS) -> None:
        """Judgments of a task up to an event time do not wait any more."""
        for place in reversed(list(places(self.waiting, digest, 0, _WIDTH))):
            if _ENTRY.unpack_from(self.waiting, place * _WIDTH)[1] <= until_us:
                del self.waiting[place * _WIDTH : (place + 1) * _WIDTH], self.names[place]


class Verdicts:
    """The join.

    Args:
        rank: higher than that of every row which depends on the answers.
        settings: what of the settings decides the verdicts.
    """

    def __init__(self, *, rank: int, settings: msgspec.Struct | None = None) -> None:
        self.table = Table("trust_verdicts", TaskBucket, rank=rank, version=2, settings=settings)

    def judged(self, p: Partition, tenant: str, agent: str | None, task: str, one: Judged) -> bool | None:
        """Outcome of the evaluation that a judgment meets; None: it waits for one.

        Raises:
            Absorbed: the row has the record already, and so has all that depends on it.
        """
        bucket, digest, at = self._open(p, tenant, agent, task)
        _, evaluated_us, passed = _ENTRY.unpack_from(bucket.tasks, at)
        if evaluated_us != NEVER and abs(one.time_us - evaluated_us) <= WITHIN_US:
            return bool(passed)
        bucket.wait(digest, one)
        return None

    def evaluated(self, p: Partition, tenant: str, agent: str | None, task: str, passed: bool) -> list[Judged]:
        """The judgments that waited for an evaluation and meet it now, in log order.

        Raises:
            Absorbed: as `judged`.
        """
        bucket, digest, at = self._open(p, tenant, agent, task)
        time_us = p.time_us
        waiting = bucket.of_task(digest)
        if waiting:  # what is too old for this one will be for every later one; a late evaluation may still come
            bucket.leave(digest, time_us + WITHIN_US)
        if time_us >= _ENTRY.unpack_from(bucket.tasks, at)[1]:
            _ENTRY.pack_into(bucket.tasks, at, digest, time_us, passed)
        return [one for one in waiting if abs(one.time_us - time_us) <= WITHIN_US]

    def _open(self, p: Partition, tenant: str, agent: str | None, task: str) -> tuple[TaskBucket, bytes, int]:
        digest = digest_of(agent or "", task)
        bucket = p.open(self.table, tenant, bucket_of(digest))
        if bucket is None:
            raise Absorbed
        return bucket, digest, bucket.place(digest)
