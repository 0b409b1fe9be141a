"""What a spreadsheet would take for a formula."""

from __future__ import annotations

from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe(text: Any) -> Any:
    """A cell of CSV that no spreadsheet takes for a formula: one that would be gets an apostrophe.

    Example:
        >>> safe("=1+1"), safe("a=1"), safe(-1.5)
        ("'=1+1", 'a=1', -1.5)
    """
    return "'" + text if isinstance(text, str) and text.startswith(FORMULA) else text
