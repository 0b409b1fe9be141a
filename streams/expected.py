"""What a setting's value may be, in words: for the sentence that refuses a wrong one, and for docs/settings.md."""

from __future__ import annotations

from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"), ("multiple_of", "a multiple of"))
PLAIN = {Decimal: "amount", str: "text", int: "whole number", float: "number", bool: "on or off"}


def expected(kind: Any, *, keyed: bool = False) -> str:
    """Values of a type in words.

    Args:
        keyed: it is a map of which each value is given by name.

    Example:
        >>> expected(Annotated[int, msgspec.Meta(ge=1, le=65_535)])
        'whole number from 1 to 65535'
        >>> expected(Annotated[float, msgspec.Meta(gt=0)] | None)
        'number above 0 or off'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        described: list[str] = [meta.description for meta in parts[1:] if getattr(meta, "description", None)]
        return described[0] if described else " ".join([expected(parts[0]), *(words for meta in parts[1:] for words in _bounds(meta))])
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, UnionType):
        names = [word for part in parts if part is not type(None) for word in expected(part).split(" or ")]
        return " or ".join(dict.fromkeys([*names, *(["off"] if type(None) in parts else [])]))
    if origin is dict:
        return "by name: " + expected(parts[1]) if keyed else "map"
    if origin in (list, tuple):
        return "list of " + ", ".join(expected(part) for part in parts if part is not Ellipsis)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "{" + ", ".join(field.encode_name for field in msgspec.structs.fields(kind)) + "}"
    return PLAIN.get(kind, "object")


def is_plain(kind: Any) -> bool:
    """Whether a value is one word or number, so that `expected` says all there is to say."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_plain(parts[0])
    if origin in (Union, UnionType):
        return all(is_plain(part) for part in parts)
    return origin is Literal or kind in PLAIN or kind is type(None)


def _bounds(meta: Any) -> list[str]:
    if getattr(meta, "ge", None) is not None and getattr(meta, "le", None) is not None:
        return [f"from {meta.ge} to {meta.le}"]
    words = [f"{word} {getattr(meta, name)}" for name, word in BOUNDS if getattr(meta, name, None) is not None]
    pattern, longest = getattr(meta, "pattern", None), getattr(meta, "max_length", None)
    if pattern is not None:
        words.append(f"like {pattern}")
    if longest is not None:
        words.append(f"of at most {longest} characters")
    return words
