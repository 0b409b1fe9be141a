"""Topics as a real broker describes them: under the ids that librdkafka gives them too, which rows of tables are bound to."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka.admin import AdminClient, NewTopic

from agents.metadata import Described
from streams.admin import partition_counts, topic_identities
from streams.errors import TopicProblem
from streams.topics import SOURCE_TOPICS

from ..functional.test_asked_of_brokers import ask
from .deployment import Deployment


def until_known(asked: Callable[[], Described], former: set[int]) -> Described:
    """The answer, once the node that is asked has heard of the topic, under an id that it had not before."""
    deadline = time.monotonic() + 20
    while True:
        try:
            found = asked()
            if former.isdisjoint(found.identities.values()):
                return found
        except TopicProblem:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ids_are_those_that_librdkafka_gives_and_a_topic_made_again_has_another(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy(3)
    names = [deployed.source(topic) for topic in SOURCE_TOPICS]
    found = ask(deployed.bootstrap, names)
    assert found == (partition_counts(deployed.bootstrap, names), topic_identities(deployed.bootstrap, names), False)
    assert all(found.identities.values()) and len(set(found.identities.values())) == len(names)
    assert ask(deployed.bootstrap, names, versions=(0, 11)) == found  # Kafka 2.8
    former = ask(deployed.bootstrap, names, versions=(0, 5))  # a broker that has no ids
    assert former == (found.counts, dict.fromkeys(names, 0), False)

    admin = AdminClient({"bootstrap.servers": deployed.bootstrap})
    again = deployed.source("") + "again"
    identities: set[int] = set()
    for _ in range(2):
        admin.create_topics([NewTopic(again, num_partitions=2)])[again].result(30)
        found = until_known(lambda: ask(deployed.bootstrap, [again]), identities)
        assert found.counts == {again: 2} and found.identities == topic_identities(deployed.bootstrap, [again])
        identities.update(found.identities.values())
        admin.delete_topics([again])[again].result(30)
    assert len(identities) == 2
