"""Entries of one width, packed behind each other."""

from __future__ import annotations


def find(entries: bytes | bytearray, what: bytes, width: int, *, begin: int = 0, start: int = 0) -> int:
    """Where these bytes stand for themselves: `begin` bytes into one of the entries, each `width` bytes, and not across two fields; -1 if nowhere.

    Args:
        start: where to begin to look.

    Example:
        >>> find(b"abcdbcda", b"bcd", 4), find(b"abcdbcda", b"bcd", 4, begin=1), find(b"abcdbcda", b"abc", 4, start=1)
        (4, 1, -1)
    """
    at = entries.find(what, start)
    while at >= 0 and at % width != begin:
        at = entries.find(what, at + 1)
    return at
