"""Three brokers for the rows of the fault matrix, whole again before each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..kafka.broker import NoBroker
from .scene import Scene
from .trio import Trio


@pytest.fixture(scope="session")
def brokers() -> Iterator[list[Trio]]:
    """The three brokers in use; others take their place where a row has broken them for good."""
    made: list[Trio] = []
    try:
        yield made
    finally:
        for one in made:
            one.stop()


@pytest.fixture
def trio(brokers: list[Trio]) -> Trio:
    """Three brokers, every replica in sync."""
    if brokers:
        try:
            brokers[-1].heal()
        except (AssertionError, NoBroker):
            brokers[-1].stop()
        else:
            return brokers[-1]
    try:
        brokers.append(Trio())
        brokers[-1].start()
        brokers[-1].heal()
    except NoBroker as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs a real Kafka: {missing}")
        pytest.skip(str(missing))
    return brokers[-1]


@pytest.fixture
def scene(trio: Trio, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Scene]:
    """A deployment on them; its workers are ended and its topics removed afterwards."""
    made = Scene(trio, tmp_path, record_property)
    try:
        yield made
    finally:
        trio.network.heal()
        made.close()
