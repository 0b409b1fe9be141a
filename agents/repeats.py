"""What libraries log again and again: without a broker aiokafka says the same some two hundred times a second."""

from __future__ import annotations

import logging
import time

MOST = 1000
"""Messages that are remembered: a library may put its arguments into the text itself."""


class Repeats(logging.Filter):
    """Lets a message through once in `every_s` seconds, and says then how often it came in between.

    Messages are the same where logger, level and text before its arguments are put in are.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._told: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is told now."""
        now = time.monotonic()
        key = record.name, record.levelno, str(record.msg)
        told_at, left_out = self._told.get(key, (-self.every_s, 0))
        if now - told_at < self.every_s:
            self._told[key] = told_at, left_out + 1
            return False
        if left_out:
            record.msg = f"{record.msg} (and {left_out} times more since it was told last)"  # its arguments are put in later, by who can bear that it fails
        self._told.pop(key, None)  # so that the one told longest ago comes first
        self._told[key] = now, 0
        if len(self._told) > MOST:
            self._told.pop(next(iter(self._told)), None)
        return True


def condense(package: str, every_s: float = 60.0) -> None:
    """Put the filter on all loggers that a package has made so far."""
    repeats = Repeats(every_s)
    for name in [package, *(name for name in logging.root.manager.loggerDict if name.startswith(package + "."))]:
        logging.getLogger(name).addFilter(repeats)
