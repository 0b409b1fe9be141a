"""What a worker says on its terminal, in order: where it is, when its tables are there, and that it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agents.app import load_settings
from agents.main import tell


def app() -> Any:
    """The part of Faust's app that is told what to run."""
    made = SimpleNamespace(should_stop=False, engine=SimpleNamespace(ready=False, sleep=asyncio.sleep))
    made.task = lambda told: setattr(made, "told", told)
    made.on_before_shutdown = SimpleNamespace(connect=lambda bye, weak: setattr(made, "bye", bye))
    return made


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_a_worker_that_was_told_to_stop_says_nothing_of_its_tables(told_to_stop: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def life() -> None:
        worker = app()
        tell(worker, load_settings({}, None))
        telling = asyncio.create_task(worker.told())
        await asyncio.sleep(0.05)
        if told_to_stop:
            await worker.bye()
        worker.engine.ready = True
        await telling
        if not told_to_stop:
            await worker.bye()

    asyncio.run(asyncio.wait_for(life(), 20))
    said = capsys.readouterr().err.splitlines()
    assert ["folding" in said[0], "stopping" in said[-1]] == [True, True]
    assert [line for line in said if "tables restored" in line] == ([] if told_to_stop else [said[1]])


def test_a_worker_that_stops_before_its_tables_are_there_ends_waiting_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    async def life() -> None:
        worker = app()
        tell(worker, load_settings({}, None))
        telling = asyncio.create_task(worker.told())
        await worker.bye()
        await telling

    asyncio.run(asyncio.wait_for(life(), 20))
    assert "tables restored" not in capsys.readouterr().err
