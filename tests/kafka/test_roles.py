"""Roles on a real broker, which tells who is in a group."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka.admin import AdminClient

from .deployment import Deployment


def test_a_worker_that_only_serves_joins_no_group_and_one_that_folds_is_alone_in_it(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy(2)
    group = str(deployed.settings["app_id"])
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap})

    def members() -> int:
        return len(admin.describe_consumer_groups([group])[group].result(20).members)

    serving = deployed.worker(roles="serve")
    folding = deployed.worker(roles="fold")
    folding.until(lambda: all(p["owner"] for p in folding.get("/status")["partitions"]))
    assert members() == 1
    serving.until(serving.absorbed)
    folding.stop()
    assert members() == 0
