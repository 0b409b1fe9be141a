"""How many schedules it takes to find each planted bug: ``python -m tests.simulation``."""

from __future__ import annotations

from .mutants import MUTANTS
from .test_simulation import first_failure


def main() -> None:
    """Print a line a bug: its name, the number of schedules, what it breaks."""
    for mutant in MUTANTS:
        found = first_failure(range(1000), mutant)
        print(f"| {mutant.__name__} | {(mutant.__doc__ or '').strip()} | {found[0] + 1 if found is not None else 'not found'} |", flush=True)
    found = first_failure(range(1000), broken_seek=True)
    print(f"| (broken seek) | A seek does nothing. | {found[0] + 1 if found is not None else 'not found'} |")


if __name__ == "__main__":
    main()
