"""A library that says the same again and again is told once, with how often."""

from __future__ import annotations

import logging
import time

import pytest

from agents.repeats import condense


def test_the_same_message_is_told_once_and_then_how_often_it_came(caplog: pytest.LogCaptureFixture) -> None:
    inner = logging.getLogger("chatty.client")
    condense("chatty", every_s=0.2)
    for node in range(50):
        inner.error("no connection to %s", node)
    inner.error("something else")
    inner.warning("no connection to %s", 1)
    assert [record.getMessage() for record in caplog.records] == ["no connection to 0", "something else", "no connection to 1"]
    time.sleep(0.25)
    inner.error("no connection to %s", 50)
    assert caplog.messages[-1] == "no connection to 50 (and 49 times more since it was told last)"
    time.sleep(0.25)
    inner.error("no connection to %s", 51)
    assert caplog.messages[-1] == "no connection to 51"


def test_other_packages_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    other = logging.getLogger("chattybox.client")
    condense("chatty")
    for _ in range(3):
        other.error("again")
    assert caplog.messages == ["again"] * 3
