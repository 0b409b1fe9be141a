"""The command line, ``pulsefold``.

Exit codes: 0 done; 1 something differs, was refused or failed; 2 a word, a setting or a broker that cannot be used, told in one
sentence on stderr without a traceback.
"""

from __future__ import annotations

import sys

from ..errors import PulsefoldError


def main() -> int:
    """Entry point of the console script."""
    from .app import run

    try:
        return run(sys.argv[1:])
    except PulsefoldError as problem:
        print(f"pulsefold: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130
