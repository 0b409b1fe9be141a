"""A real Kafka for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .broker import NoBroker, real_broker


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
