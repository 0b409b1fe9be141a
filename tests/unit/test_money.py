"""Money is decimal text in, whole micro-USD inside, and rounded once."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.money import micro_usd, priced, share, usd, usd_text

amounts = st.decimals(min_value=-(10**9), max_value=10**9, allow_nan=False, places=12)


@given(amounts)
def test_rounding_is_half_even_at_the_sixth_place_as_decimal_quantizes(amount: Decimal) -> None:
    expected = amount.quantize(Decimal("0.000001"), ROUND_HALF_EVEN, Context(prec=60))
    assert micro_usd(amount) == int(expected * 1_000_000)


@given(st.integers(-(10**15), 10**15))
def test_a_tie_goes_to_the_even_neighbour(micro: int) -> None:
    tie = Decimal(f"{micro}.5").scaleb(-6, Context(prec=60)) if micro >= 0 else Decimal(f"-{-micro}.5").scaleb(-6, Context(prec=60))
    got = micro_usd(tie)
    assert got % 2 == 0
    assert abs(2 * got - int(tie * 2_000_000)) == 1


def test_a_tenth_ten_times_is_one_dollar() -> None:
    assert 10 * micro_usd(Decimal("0.1")) == 1_000_000


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity", "1e30", "1e999999", "-1e31"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        micro_usd(Decimal(text))


def test_an_amount_far_below_a_micro_dollar_is_nothing() -> None:
    assert micro_usd(Decimal("1e-999999")) == 0


@given(st.integers(0, 2**53), st.decimals(0, 1, places=12))
def test_a_price_is_rounded_once_after_multiplying(count: int, each: Decimal) -> None:
    exact = Fraction(each) * count * 1_000_000
    assert priced(count, each) == round(exact)  # Fraction rounds half-even


@given(st.integers(0, 10**15), st.integers(0, 200))
def test_a_share_is_the_rounded_percentage(micro: int, percent: int) -> None:
    assert share(micro, percent) == round(Fraction(micro * percent, 100))


@given(st.integers(-(10**15), 10**15))
def test_text_is_exact_and_has_two_decimals_or_more(micro: int) -> None:
    text = usd_text(micro)
    assert micro_usd(Decimal(text)) == micro
    assert len(text.partition(".")[2]) >= 2


@given(st.integers(-(10**15), 10**15))
def test_the_number_in_an_answer_is_the_nearest_float(micro: int) -> None:
    assert usd(micro) == float(Fraction(micro, 1_000_000))
