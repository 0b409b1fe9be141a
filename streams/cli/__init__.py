"""The command line, ``pulsefold``.

Exit codes: 0 done; 1 something differs, was refused or failed; 2 a word, a setting, a topic or a broker that cannot be used, told in one
sentence on stderr without a traceback.
"""

from __future__ import annotations

import sys

from ..errors import PulsefoldError


def main() -> int:
    """Entry point of the console script."""
    try:
        from .app import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("rich", "cyclopts"):
            raise
        print(f"pulsefold: the command line needs {package}; install with: pip install 'pulsefold[cli]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        return run(sys.argv[1:])
    except PulsefoldError as problem:
        from .output import clean

        print(clean(f"pulsefold: {problem}"), file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; say nothing more
        return 0
    except KeyboardInterrupt:
        return 130
