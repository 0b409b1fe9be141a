"""The worker: ``faust -A agents.worker worker|agents|tables|send``, or ``python -m agents.worker worker``.

`app` is made from the environment and pulsefold.toml on first use, so importing this module does nothing.
"""

from __future__ import annotations

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "app":
        from .app import build, load_settings

        globals()["app"] = made = build(load_settings())
        return made
    raise AttributeError(name)


if __name__ == "__main__":
    from agents.main import main

    sys.exit(main())
