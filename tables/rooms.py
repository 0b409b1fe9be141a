"""Who waits for the other half of a join, by the bucket.

The rules this file keeps:
  * a bucket is a row that a record changes and that is written for it. So it holds few, and holds them packed: heads of fixed
    width in one piece, their names beside them. Writing a row is a copy, however many wait in it;
  * what is past its time is not found, whether it was swept out yet or not; a full bucket lets go as its class says.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import msgspec

from . import packed

NEVER, ALWAYS = -(2**62), 2**62
"""Before and after every event time, microseconds."""
OPEN, TAKEN, EARLY, EARLY_TIMED = range(4)
"""A start; a start whose completion had no execution_id; a completion that waits for its start; such a one with duration_ms."""

MOST_WAITING = 64
"""Executions a bucket: all of one agent and task are in one."""
MOST_EARLY = 16
"""Completions among them: where nobody publishes starts, each one waits for the day."""
MOST_CHARACTERS = 12_000
"""Characters of names in a bucket of executions."""
MOST_PENDING = 32
"""Verdicts a bucket."""

_EXECUTION = Struct("<8s8sqB")
"""Digest of (agent, execution_id), digest of (agent, task), event time in microseconds, state."""
_EXECUTION_BYTES = _EXECUTION.size
_TASK_AT, _STATE_AT = 8, 24
_VERDICT = Struct("<8sqBd")
"""Digest of the task, event time in microseconds, verdict, confidence."""


def places(heads: bytearray, digest: bytes, begin: int, width: int) -> Iterator[int]:
    """Places of the heads, each `width` bytes, in which a digest stands from `begin` on."""
    at = packed.find(heads, digest, width, begin=begin)
    while at >= 0:
        yield at // width
        at = packed.find(heads, digest, width, begin=begin, start=at + 1)


class Waiting(NamedTuple):
    """A start without completion, or a completion that waits for its start.

    Attributes:
        execution: digest of (agent, execution_id); of a completion that waits too.
        task: digest of (agent, task).
        time_us: its event time.
        state: `OPEN`, `TAKEN`, `EARLY` or `EARLY_TIMED`.
        agent: who.
        task_type, model_version: as told, "" where they were not. Of a completion: under which it was counted.
    """

    execution: bytes
    task: bytes
    time_us: int
    state: int
    agent: str
    task_type: str
    model_version: str


class WaitingRoom(msgspec.Struct, array_like=True, gc=False):
    """One bucket of executions that wait.

    Attributes:
        heads: packed, oldest record first.
        names: agent, task type and model version of each, joined by NUL.
        characters: of the names.
        oldest_us: none of them came before; known, a full room is not looked through each time.
        early: how many are completions.
    """

    heads: bytearray = msgspec.field(default_factory=bytearray)
    names: list[str] = []
    characters: int = 0
    oldest_us: int = NEVER
    early: int = 0

    def add(self, one: Waiting, since_us: int) -> None:
        """Let one in; those from before `since_us` go first where room is short, then completions, then starts, oldest first."""
        execution, task, time_us, state, agent, task_type, version = one
        name = f"{agent}\0{task_type}\0{version}"
        size = len(name)
        if self._full(state, size):
            if self.oldest_us <= since_us:
                self._sweep(since_us)
            while self.names and self._full(state, size):
                self._drop(self._first_early() if self.early else 0)
        self.heads += _EXECUTION.pack(execution, task, time_us, state)
        self.names.append(name)
        self.characters += size
        if state >= EARLY:
            self.early += 1
        if time_us < self.oldest_us:
            self.oldest_us = time_us

    def of_execution(self, execution: bytes, since_us: int) -> int:
        """Place of who waits under an execution_id, -1 where nobody does. A place holds until somebody goes."""
        for place in places(self.heads, execution, 0, _EXECUTION_BYTES):
            if _EXECUTION.unpack_from(self.heads, place * _EXECUTION_BYTES)[2] > since_us:
                return place
        return -1

    def only_open(self, task: bytes, since_us: int) -> int:
        """Place of the only open start of a task, -1 where there are none or several."""
        found = -1
        for place in places(self.heads, task, _TASK_AT, _EXECUTION_BYTES):
            _, _, time_us, state = _EXECUTION.unpack_from(self.heads, place * _EXECUTION_BYTES)
            if state == OPEN and time_us > since_us:
                if found >= 0:
                    return -1
                found = place
        return found

    def at(self, place: int) -> Waiting:
        """Who is there."""
        execution, task, time_us, state = _EXECUTION.unpack_from(self.heads, place * _EXECUTION_BYTES)
        return Waiting(execution, task, time_us, state, *self.names[place].split("\0"))

    def take(self, place: int) -> Waiting:
        """A completion without execution_id has found the start there: it stays, as taken."""
        self.heads[place * _EXECUTION_BYTES + _STATE_AT] = TAKEN
        return self.at(place)

    def out(self, place: int) -> Waiting:
        """Let one out."""
        one = self.at(place)
        self._drop(place)
        return one

    def open_names(self, after_us: int) -> list[str]:
        """Names of the starts without completion that came after a moment."""
        heads = _EXECUTION.iter_unpack(self.heads)
        return [name for (_, _, time_us, state), name in zip(heads, self.names, strict=True) if state == OPEN and time_us > after_us]

    def _full(self, state: int, size: int) -> bool:
        return len(self.names) >= MOST_WAITING or self.characters + size > MOST_CHARACTERS or (state >= EARLY and self.early >= MOST_EARLY)

    def _first_early(self) -> int:
        heads = self.heads
        if heads[_STATE_AT] >= EARLY:  # mostly: where there are completions, starts are few
            return 0
        return next(place for place, state in enumerate(heads[_STATE_AT::_EXECUTION_BYTES]) if state >= EARLY)

    def _drop(self, place: int) -> None:
        begin = place * _EXECUTION_BYTES
        if self.heads[begin + _STATE_AT] >= EARLY:
            self.early -= 1
        del self.heads[begin : begin + _EXECUTION_BYTES]
        self.characters -= len(self.names.pop(place))

    def _sweep(self, since_us: int) -> None:
        times = [time_us for _, _, time_us, _ in _EXECUTION.iter_unpack(self.heads)]
        for place in reversed(range(len(times))):
            if times[place] <= since_us:
                self._drop(place)
        self.oldest_us = min((time_us for time_us in times if time_us > since_us), default=ALWAYS)


class Pending(NamedTuple):
    """A verdict that waits for the evaluation of its task.

    Attributes:
        task: digest of it.
        time_us: event time.
        agreed_if: the outcome that it foretells.
        confidence: 0 to 1.
        judge: whose it is.
    """

    task: bytes
    time_us: int
    agreed_if: bool
    confidence: float
    judge: str


class PendingRoom(msgspec.Struct, array_like=True, gc=False):
    """One bucket of verdicts that wait.

    Attributes:
        heads: packed, oldest record first.
        judges: whose they are.
        oldest_us: none of them came before; known, a full room is not looked through each time.
    """

    heads: bytearray = msgspec.field(default_factory=bytearray)
    judges: list[str] = []
    oldest_us: int = NEVER

    def add(self, one: Pending, since_us: int) -> None:
        """Let one in; where there is no room those from before `since_us` go, else the oldest."""
        if len(self.judges) >= MOST_PENDING:
            if self.oldest_us <= since_us:
                self._keep([other for other in self.everybody() if other.time_us > since_us])
            if len(self.judges) >= MOST_PENDING:
                del self.heads[: _VERDICT.size], self.judges[0]
        self.heads += _VERDICT.pack(*one[:4])
        self.judges.append(one.judge)
        if one.time_us < self.oldest_us:
            self.oldest_us = one.time_us

    def evaluated(self, task: bytes, since_us: int) -> list[Pending]:
        """An evaluation has come: the verdicts on its task that are not past their time leave, and are returned in log order."""
        met: list[Pending] = []
        if self.oldest_us <= since_us or task in self.heads:
            alive = [one for one in self.everybody() if one.time_us > since_us]
            met = [one for one in alive if one.task == task]
            self._keep([one for one in alive if one.task != task])
        return met

    def everybody(self) -> list[Pending]:
        """All of them, oldest record first."""
        heads = _VERDICT.iter_unpack(self.heads)
        return [Pending(task, time_us, bool(says), sure, judge) for (task, time_us, says, sure), judge in zip(heads, self.judges, strict=True)]

    def _keep(self, those: list[Pending]) -> None:
        self.heads = bytearray().join(_VERDICT.pack(*one[:4]) for one in those)
        self.judges = [one.judge for one in those]
        self.oldest_us = min((one.time_us for one in those), default=ALWAYS)
