"""A library that says the same again and again is told once, with how often."""

from __future__ import annotations

import logging
import time

import pytest

from agents.repeats import MOST, Repeats, condense


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


def test_texts_that_are_never_the_same_take_no_more_and_more_memory() -> None:
    repeats = Repeats()
    for n in range(3 * MOST):
        assert repeats.filter(logging.LogRecord("chatty", logging.ERROR, "", 0, f"no connection to {n}", (), None))
    assert len(repeats._told) == MOST


def test_a_message_whose_arguments_do_not_fit_raises_nothing_where_it_is_logged() -> None:
    repeats = Repeats(every_s=0.05)
    for _ in range(2):
        repeats.filter(logging.LogRecord("chatty", logging.ERROR, "", 0, "%s and %s", ("one",), None))
    time.sleep(0.06)
    assert repeats.filter(logging.LogRecord("chatty", logging.ERROR, "", 0, "%s and %s", ("one",), None))
