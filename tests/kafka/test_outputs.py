"""Which app publishes, on a real broker: only one is ever recorded, and transactions shut out whoever comes in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Producer

from streams.outputs import KEY, TYPE, publishing_app, recorded_app

from .deployment import Deployment


def test_of_many_apps_at_once_one_is_recorded_once(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy(1)
    prefix = deployed.source("")
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda n: publishing_app(deployed.bootstrap, prefix, f"app{n}"), range(6)))
    assert len(found) == 1
    assert [body["data"]["app_id"] for _, body in deployed.on(prefix + "scores")] == list(found)


def test_a_claim_that_was_begun_before_another_is_not_written_after_it(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy(1)
    prefix = deployed.source("")
    slow = Producer({"bootstrap.servers": deployed.bootstrap, "transactional.id": f"{prefix}outputs", "log_level": 0})
    slow.init_transactions(60)
    slow.begin_transaction()
    slow.produce(prefix + "scores", b'{"data":{"app_id":"slow"},"type":"%s"}' % TYPE.encode(), KEY, 0)
    slow.flush(30)
    assert publishing_app(deployed.bootstrap, prefix, "quick") == "quick"
    try:
        slow.commit_transaction(10)
    except Exception as shut_out:
        assert "fenced" in str(shut_out).lower() or "epoch" in str(shut_out).lower()
    else:
        raise AssertionError("the older claim was committed")
    assert recorded_app(deployed.bootstrap, prefix) == "quick"
