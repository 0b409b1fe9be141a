"""Which schedule a seed is."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from agents.core import Core

from .recreate import Recreated
from .upgrade import Upgraded
from .world import World


def schedule_of(seed: int) -> type[World]:
    """One in ten schedules has a changed setting, one in twenty a topic that is made again."""
    return Upgraded if seed % 10 == 3 else Recreated if seed % 20 == 7 else World


def world_of(seed: int, core_type: Callable[..., Core] = Core, *, skipped: Set[int] = frozenset(), **planted: Any) -> World:
    """The world of a seed.

    Args:
        core_type: the core, or a planted bug.
        skipped: places in the schedule at which nothing happens.
        planted: other planted bugs.
    """
    return schedule_of(seed)(seed, core_type, skipped=skipped, **planted)


def first_failure(seeds: range, core_type: Callable[..., Core] = Core, **planted: Any) -> tuple[int, BaseException] | None:
    """The first schedule that breaks an invariant, and how."""
    for seed in seeds:
        try:
            world_of(seed, core_type, **planted).run()
        except Exception as broken:  # whatever it raises is a finding
            return seed, broken
    return None
