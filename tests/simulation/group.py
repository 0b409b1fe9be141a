"""The consumer group: who owns what, by eager or cooperative rebalances, with static members or without.

Both protocols keep what Kafka promises: a partition is revoked of who can hear it before another gets it; who cannot hear it (paused
beyond its session) learns of it later, and is refused when it commits. Between revoking and assigning anything may happen.
  * eager: every member gives up everything, then gets what it gets, perhaps the same;
  * cooperative: a member keeps what it is to have anyway, and goes on with it; only the rest is revoked.
A static member that crashes and is back before its session ends gets what it had, and nobody else hears of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import Worker, World


class Group:
    """The group of a world's workers.

    Attributes:
        owners: by partition, as the brokers see it; None between revoking and assigning.
        next: who gets a partition when the rebalance that is under way ends.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.eager = world.rng.random() < 0.5
        self.static = world.rng.random() < 0.5
        self.owners: list[Worker | None] = [None] * world.parts
        self.next: dict[int, Worker] = {}

    def rebalance(self, members: Sequence[Worker]) -> None:
        """Share all partitions among the members: revoke; `assign` ends it."""
        if not members:
            return
        world, heard = self.world, self.world.awake()
        wanted = [world.pick(members) for _ in self.owners]
        self.next = {}
        for n, (old, new) in enumerate(zip(self.owners, wanted, strict=True)):
            if not self.eager and old is new and old.shard(n).owned:
                continue
            if old is not None and old in heard and old.shard(n).owned:
                world.lose(old, n)
            self.owners[n] = None
            self.next[n] = new
        if world.rng.random() < 0.5:
            self.assign()

    def left(self, worker: Worker) -> None:
        """A worker has crashed and is back with nothing in memory."""
        world = self.world
        if self.static and world.rng.random() < 0.7:
            for n, owner in enumerate(self.owners):
                if owner is worker:
                    self.owners[n], self.next[n] = None, worker
        else:
            self.rebalance([w for w in world.awake() if w is not worker] if world.rng.random() < 0.5 else world.awake())

    def assign(self) -> None:
        """What was revoked is assigned, to who is there."""
        if not self.next:
            return
        world, heard = self.world, self.world.awake()
        for n, worker in list(self.next.items()):
            if heard:
                del self.next[n]
                self.owners[n] = worker if worker in heard else world.pick(heard)
                world.gain(self.owners[n], n)
