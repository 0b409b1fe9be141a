"""When heartbeats are sent for a worker whose loop is held, and when not."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from agents.app import build, load_settings
from agents.pulse import Pulse
from agents.seam import Inline


class Counted(Pulse):
    """Counts in the place of what is sent to a broker."""

    refused = False

    async def _beat(self) -> None:
        while self._held():
            if self.refused:
                raise AssertionError("whatever it is")
            self.n_beats += 1
            await asyncio.sleep(0.05)


def hold(seconds: float) -> None:
    """Hold this thread, as a computation would."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def pulse_of(known: tuple[int, str] | None) -> Counted:
    return Counted({}, "g", lambda: known, session_s=3.0, heartbeat_s=1.0, longest_s=60.0)


async def held(pulse: Pulse) -> int:
    """How often it beat while the loop was held for two seconds."""
    await pulse.start()
    try:
        await asyncio.sleep(0.1)
        hold(2.0)
        n_beats = pulse.n_beats
        await asyncio.sleep(0.3)
        return n_beats
    finally:
        await pulse.stop()


@pytest.mark.parametrize(
    ("known", "seconds", "over", "beats"),
    [((1, "m"), 0.0, False, False), ((1, "m"), 1.0, False, True), ((1, "m"), 61.0, False, False), (None, 1.0, False, False), ((1, "m"), 1.0, True, False)],
)
def test_a_member_has_heartbeats_while_its_loop_is_held_but_not_for_ever(known: tuple[int, str] | None, seconds: float, over: bool, beats: bool) -> None:
    pulse = pulse_of(known)
    pulse._known, pulse._turned = known, time.monotonic() - seconds
    if over:
        pulse._over.set()
    assert pulse._held() == (known if beats else None)


def test_a_member_that_the_group_does_not_know_any_more_is_left_alone_until_it_is_another() -> None:
    pulse = pulse_of((1, "m"))
    pulse._known, pulse._turned, pulse._refused = (1, "m"), time.monotonic() - 1.0, (1, "m")
    assert pulse._held() is None
    pulse._known = (2, "m")
    assert pulse._held() == (2, "m")


def test_a_loop_that_was_held_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(held(pulse_of((1, "m")))) > 0
    assert [record for record in caplog.records if "the worker's loop was held for" in record.getMessage()]
    assert asyncio.run(held(pulse_of(None))) == 0


def test_a_heartbeat_that_cannot_be_sent_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    pulse = pulse_of((1, "m"))
    pulse.refused = True
    assert asyncio.run(held(pulse)) == 0
    assert len([record for record in caplog.records if "no heartbeat could be sent" in record.getMessage()]) > 1


def test_a_worker_that_folds_has_one_and_no_other() -> None:
    for roles, n in (("fold,serve", 1), ("serve", 0)):
        app = build(load_settings({"bootstrap": "127.0.0.1:1", "roles": roles, "session_timeout_s": 12, "watchdog_s": 33}, None))
        found = [child for child in app.engine._children if isinstance(child, Pulse)]
        assert len(found) == n
        for pulse in found:
            assert (pulse.group, pulse.held_s, pulse.longest_s) == ("pulsefold", 2.0, 33.0) and pulse.clients["bootstrap_servers"] == "127.0.0.1:1"


def test_who_has_not_joined_is_no_member() -> None:
    for consumer, found in (
        (None, None),
        (SimpleNamespace(_coordinator=None), None),
        (SimpleNamespace(_coordinator=SimpleNamespace(generation=-1, member_id="")), None),
        (SimpleNamespace(_coordinator=SimpleNamespace(generation=3, member_id="m")), (3, "m")),
    ):
        assert Inline.member(SimpleNamespace(_consumer=consumer)) == found
