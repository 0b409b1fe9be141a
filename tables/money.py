"""Money: whole micro-USD inside, decimal text at the edges, binary floating point only in answers.

The rule this file keeps: an amount is read as decimal, multiplied as decimal and rounded **once**, half-even, at the sixth
place; after that it is an integer and sums are exact.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

MICRO = 1_000_000
"""Micro-USD in one USD."""
MAX_USD = 10**9
"""Largest amount of one event or one question, USD."""

_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_LARGEST = Decimal(10) ** 30


def micro_usd(usd: Decimal | int) -> int:
    """Amount in whole micro-USD, rounded half-even at the sixth place.

    Args:
        usd: USD, any sign.

    Raises:
        ValueError: the caller's fault: NaN, infinite, or 1e30 USD and more.

    Example:
        >>> micro_usd(Decimal("0.0000015")), micro_usd(Decimal("0.0000025")), micro_usd(Decimal("0.1"))
        (2, 2, 100000)
    """
    amount = Decimal(usd)
    if not amount.is_finite() or amount.copy_abs() >= _LARGEST:
        raise ValueError("not an amount of money")
    return int(amount.scaleb(6, _EXACT).to_integral_value(ROUND_HALF_EVEN))


def priced(count: int, usd_each: Decimal) -> int:
    """Price of a count of equal things, micro-USD, rounded half-even once.

    Args:
        count: tokens or calls.
        usd_each: USD for one, may be far below a micro-USD.

    Example:
        >>> priced(15_000, Decimal("0.000002")), priced(3, Decimal("0.0000005"))
        (30000, 2)
    """
    return micro_usd(_EXACT.multiply(Decimal(count), usd_each))


def share(micro: int, percent: Decimal | int) -> int:
    """Part of an amount, micro-USD, rounded half-even.

    Args:
        percent: 0 and up; 100 is the whole.
    """
    return int(_EXACT.multiply(Decimal(micro), Decimal(percent)).scaleb(-2, _EXACT).to_integral_value(ROUND_HALF_EVEN))


def usd(micro: int) -> float:
    """USD as a number for an answer: the float nearest to the exact amount.

    Example:
        >>> usd(1_033_007)
        1.033007
    """
    return micro / MICRO


def usd_text(micro: int) -> str:
    """USD as exact text with at least two decimals, for messages.

    Example:
        >>> usd_text(10_500_000), usd_text(-1), usd_text(1_033_007)
        ('10.50', '-0.000001', '1.033007')
    """
    whole, rest = divmod(abs(micro), MICRO)
    decimals = f"{rest:06d}"
    while len(decimals) > 2 and decimals.endswith("0"):
        decimals = decimals[:-1]
    return f"{'-' if micro < 0 else ''}{whole}.{decimals}"
