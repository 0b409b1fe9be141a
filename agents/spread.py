"""Who folds which partition: every topic's partitions spread evenly over the workers, and each stays where it is if that allows.

Kafka's sticky assignor balances the sum over all topics, so with two workers one may get all of one topic; a deployment whose load
is on that topic then folds on one worker only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

Place = tuple[str, int]


class SpreadAssignor(StickyPartitionAssignor):
    """As the sticky assignor, but balanced within each topic."""

    name = "pulsefold-spread"

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        """Assignment of every member (aiokafka's protocol)."""
        known = {member: cls.parse_member_metadata(metadata) for member, metadata in members.items()}
        held: dict[str, set[Place]] = {member: set() for member in members}
        claimed: dict[Place, tuple[int, str]] = {}
        for member in sorted(known):
            for tp in known[member].partitions:  # of two members that claim one, the newer generation is right
                place, claim = (tp.topic, tp.partition), (known[member].generation, member)
                claimed[place] = max(claimed.get(place, claim), claim)
        for place, (_, member) in claimed.items():
            held[member].add(place)
        topics = {topic: [member for member in sorted(known) if topic in known[member].subscription] for one in known.values() for topic in one.subscription}
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        found = spread(counts, topics, held)
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, [(t, sorted(ns)) for t, ns in sorted(by_topic(found[member]).items())], b"")
            for member in members
        }


def spread(counts: Mapping[str, int], members: Mapping[str, Sequence[str]], held: Mapping[str, set[Place]]) -> dict[str, list[Place]]:
    """Partitions of each member.

    Args:
        counts: topic -> number of partitions.
        members: topic -> members that read it.
        held: member -> (topic, partition) that it has now; no two have the same.

    Returns:
        member -> its partitions. Within a topic the numbers differ by one at most; over all topics the members that have one more
        take turns.
    """
    found: dict[str, list[Place]] = {member: [] for member in held}
    for topic in sorted(counts):
        readers = members[topic]
        if not readers:
            continue
        least, more = divmod(counts[topic], len(readers))
        mine = {member: sorted(n for t, n in held[member] if t == topic and n < counts[topic]) for member in readers}
        # one more for those that have least so far; among them for those that hold most already
        favoured = set(sorted(readers, key=lambda member: (len(found[member]), -len(mine[member]), member))[:more])
        quota = {member: least + (member in favoured) for member in readers}
        kept = {member: mine[member][: quota[member]] for member in readers}
        free = sorted(set(range(counts[topic])) - {n for numbers in kept.values() for n in numbers})
        for member in readers:
            take = quota[member] - len(kept[member])
            kept[member] += free[:take]
            free = free[take:]
            found[member] += [(topic, n) for n in kept[member]]
    return found


def by_topic(places: Sequence[Place]) -> dict[str, list[int]]:
    """Partition numbers by topic."""
    found: dict[str, list[int]] = {}
    for topic, number in places:
        found.setdefault(topic, []).append(number)
    return found
