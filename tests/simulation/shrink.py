"""Of a schedule that fails, as little as still fails."""

from __future__ import annotations

from collections.abc import Callable, Set

from .world import World

MOST_TRIES = 1000
"""Schedules that are run to shrink one."""


def shrunk(world_of: Callable[[Set[int]], World]) -> World:
    """The world of a seed that fails, with as little happening in it as still makes it fail.

    Halves, quarters and so on of the schedule are left out as long as it fails, in whatever way; at most `MOST_TRIES` are made.

    Args:
        world_of: makes it anew, given the places of its schedule at which nothing is to happen.
    """

    def failing(skipped: Set[int]) -> World | None:
        world = world_of(skipped)
        try:
            world.run()
        except Exception:  # whatever it raises is a failure
            return world
        return None

    world = failing(frozenset())
    assert world is not None, "it does not fail"
    every = frozenset(range(world.acts))
    kept, size, tries = sorted(every), len(every) // 2, MOST_TRIES
    while size and tries:
        begin = 0
        while begin < len(kept) and tries:
            tries -= 1
            fewer = kept[:begin] + kept[begin + size :]
            found = failing(every.difference(fewer))
            if found is not None:
                world, kept = found, fewer
            else:
                begin += size
        size //= 2
    return world
