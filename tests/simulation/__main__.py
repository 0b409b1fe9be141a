"""How many schedules it takes to find each planted bug: ``python -m tests.simulation``."""

from __future__ import annotations

from .mutants import planted
from .schedules import first_failure


def main() -> None:
    """Print a line a bug: its name, what it breaks, the number of schedules."""
    for bug in planted():
        found = first_failure(bug.seeds, **bug.where)
        print(f"| `{bug.name}` | {bug.told} | {bug.seeds.index(found[0]) + 1 if found is not None else 'not found'} |", flush=True)


if __name__ == "__main__":
    main()
