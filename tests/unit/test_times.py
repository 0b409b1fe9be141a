"""Event time: many moments at once are what each is alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.times import all_to_us, to_us

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9998, 12, 30), timezones=ZONES)
WHOLE = MOMENTS.map(lambda moment: moment.replace(microsecond=0))


@given(st.one_of(st.lists(MOMENTS, max_size=40), st.lists(WHOLE, max_size=40), st.lists(st.one_of(MOMENTS, WHOLE, st.none()), max_size=40)))
def test_many_moments_are_what_each_is_alone(moments: list[datetime | None]) -> None:
    found = all_to_us(moments)
    assert found is None or found == [to_us(moment) for moment in moments if moment is not None]


@pytest.mark.parametrize("n", [1, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("microsecond", [0, 1, 999_999])
def test_moments_of_one_width_are_taken_together(n: int, microsecond: int) -> None:
    begin = datetime(2026, 3, 2, 23, 59, 59, microsecond, tzinfo=UTC)
    moments = [begin + timedelta(seconds=i) for i in range(n)]
    assert all_to_us(moments) == [to_us(moment) for moment in moments]


def test_moments_of_several_widths_that_are_as_long_together_are_not_mistaken() -> None:
    late = datetime(2600, 1, 1, tzinfo=UTC)  # 15 bytes; a whole second takes 6, any other moment 10
    mixed: list[datetime | None] = [late] * 4 + [datetime(2026, 3, 2, tzinfo=UTC)] * 5
    assert all_to_us(mixed) is None
    assert all_to_us(mixed[::-1]) is None
    assert all_to_us([]) is None
