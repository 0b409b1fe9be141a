"""Schedules in which the source topic is deleted and made again while workers run.

Nothing of the old topic may be taken for the new one's: whoever finds it out (a look at the broker now and then and at each gain, or rows
on the changelog that were made of another topic) stops with an error, for good, and nothing is folded or committed until a person has
deleted the changelog too. As `agents.engine` does, each worker looks before the new topic can have the offsets it was at: offsets alone
do not tell.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

from agents.core import Shard, WrongIdentity

from .folds import OLD
from .truth import Truth
from .world import Worker, World


class Recreated(World):
    """A schedule with a topic that is deleted and made again."""

    also: ClassVar = {"recreate": 0.5, "look": 1}

    def __init__(self, seed: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(seed, *args, **kwargs)
        self.former: list[Truth] = []

    def do_recreate(self) -> None:
        """The topic is deleted and made again; all else is as it was."""
        if self.former:
            return
        self.former = self.truth[OLD.generation]
        for broker in self.brokers:
            broker.recreate()
        self.truth = {OLD.generation: [Truth(n, self.parts, broker, OLD) for n, broker in enumerate(self.brokers)]}
        self.asleep_until = 1 << 60  # from now on it matters who has stopped

    def truth_of(self, shard: Shard) -> Truth:
        truth = super().truth_of(shard)
        return truth if shard.partition.identity == truth.broker.identity else self.former[shard.partition.number]

    def awake(self) -> list[Worker]:
        return [worker for worker in super().awake() if worker.stopped is None]

    def stop(self, worker: Worker, why: Exception) -> None:
        """A worker has found it out."""
        worker.stopped = why
        for n, owner in enumerate(self.group.owners):
            if owner is worker:
                self.group.owners[n] = None
            worker.lost(n)

    def same(self, worker: Worker) -> bool:
        """Whether the topic is the one that the worker was started with; if not, it stops."""
        for n, broker in enumerate(self.brokers):
            if worker.shard(n).partition.identity != broker.identity:
                self.stop(worker, WrongIdentity("judgments"))
                return False
        return True

    def do_produce(self) -> None:
        if not self.former or all(self.untold(n) > broker.end for n, broker in enumerate(self.brokers)):
            super().do_produce()

    def do_control(self) -> None:
        if not self.former:
            super().do_control()

    def do_redrive(self) -> None:
        if not self.former:
            super().do_redrive()

    def do_retain(self) -> None:
        if not self.former:
            super().do_retain()

    def untold(self, n: int) -> int:
        """How far the new topic may be before somebody who has not looked yet has to."""
        running = [w.shard(n) for w in self.workers if w.stopped is None and w.shard(n).partition.identity != self.brokers[n].identity]
        return min((shard.next for shard in running if shard.owned), default=1 << 60)

    def do_look(self) -> None:
        """A worker looks whether the topic is still the same."""
        worker = self.worker()
        if worker is not None and self.former:
            self.same(worker)

    def do_fetch(self) -> None:
        for worker in self.workers:
            for n, broker in enumerate(self.brokers):
                if worker.fetch[n] > broker.end:
                    worker.fetch[n] = broker.start  # out of range
        super().do_fetch()

    def gain(self, worker: Worker, n: int) -> None:
        if self.same(worker):
            super().gain(worker, n)

    def follow(self, worker: Worker, n: int, most: int) -> None:
        if worker.stopped is None:
            try:
                super().follow(worker, n, most)
            except WrongIdentity as found:
                self.stop(worker, found)

    def check_commit(self, shard: Shard, offset: int) -> None:
        """An owner that does not know yet commits what it has folded of the deleted topic: a commit of it is refused, it does not exist."""
        if shard.partition.identity != self.brokers[shard.partition.number].identity:
            raise AssertionError("committed to a topic that it has not folded")
        super().check_commit(shard, offset)

    def commit(self, worker: Worker) -> None:
        if worker.shard(0).partition.identity == self.brokers[0].identity:
            super().commit(worker)

    def heal(self) -> None:
        """Everybody finds it out, once more after a restart; a person deletes the changelog, and all begins anew."""
        self.do_recreate()
        for worker in self.workers:
            worker.paused_until = -1
            if worker.stopped is None:
                self.same(worker)
        made_of_another = any(value is not None and not key.startswith(b"schema|") for b in self.brokers for _, key, value in b.changelog)
        for worker in self.workers:
            self.restart(worker, made_of_another=made_of_another)
        for writing in chain(self.orphans, *(worker.writing for worker in self.workers)):
            while writing.outputs or writing.rows:
                self.advance(writing)
        self.orphans = []
        for broker, truth in zip(self.brokers, self.former, strict=True):
            false = broker.published - truth.known - self.truth[OLD.generation][truth.n].known
            assert not false, f"partition {truth.n}: outputs false {sorted(false)[:2]}"
            broker.changelog, broker.newest, broker.graves, broker.buried, broker.outputs, broker.published = [], {}, {}, {}, [], set()
            broker.changelog_end = 0
            broker.committed, broker.highest, broker.whole = None, -1, -1
        self.truth = {OLD.generation: [Truth(n, self.parts, broker, OLD) for n, broker in enumerate(self.brokers)]}
        self.group.owners, self.group.next = [None] * self.parts, {}
        for worker in self.workers:
            worker.boot()
        self.former = []
        for _ in range(10):
            self.do_produce()
        super().heal()

    def restart(self, worker: Worker, *, made_of_another: bool) -> None:
        """A supervisor starts a worker again: it must find it out, before it is ready."""
        if worker.shard(0).partition.identity != self.brokers[0].identity or worker.stopped is not None:
            assert worker.stopped is not None, f"{worker.name} goes on with a topic that is not the one it has folded"
            worker.crash()
        for n in range(self.parts):
            self.follow(worker, n, 1 << 30)
        if made_of_another and worker.stopped is None:
            mine = [value for b in self.brokers for _, key, value in b.changelog if value is not None and not key.startswith(b"schema|")]
            assert all(int.from_bytes(value[8:12], "big") == self.brokers[0].identity for value in mine), f"{worker.name} takes rows of another topic"
