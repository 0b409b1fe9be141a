"""A real Kafka for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .broker import NoBroker, real_broker
from .deployment import Deployment


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap of a real Kafka with one node."""
    try:
        with real_broker() as bootstrap:
            yield bootstrap
    except NoBroker as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs a real Kafka: {missing}")
        pytest.skip(str(missing))


@pytest.fixture
def deploy(kafka: str, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments on the real Kafka; their workers are stopped at the end."""
    made: list[Deployment] = []

    def make(partitions: int, **settings: object) -> Deployment:
        made.append(Deployment(kafka, tmp_path, partitions, **settings))  # type: ignore[arg-type]  # settings are of every type
        return made[-1]

    yield make
    for one in made:
        one.stop()
