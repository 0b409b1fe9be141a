"""Event time: many moments at once are what each is alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tables.times import all_to_us, to_us

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])
ERAS = [st.datetimes(datetime(begin, 1, 1), datetime(end, 1, 1), timezones=ZONES) for begin, end in ((1970, 2106), (2106, 2514), (2514, 9998))]
KINDS = [*ERAS, *(era.map(lambda moment: moment.replace(microsecond=0)) for era in ERAS)]
EARLY = datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=5)))  # before the epoch
RECENT = datetime(2026, 3, 2, tzinfo=UTC)
MICRO = RECENT.replace(microsecond=1)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3).flatmap(lambda kinds: st.lists(st.one_of(kinds), max_size=40)))
@example([])
@example([EARLY])
@example([MICRO, EARLY, RECENT, EARLY.replace(microsecond=1)])
def test_many_moments_are_what_each_is_alone(moments: list[datetime]) -> None:
    assert all_to_us(moments) == [to_us(moment) for moment in moments]


@pytest.mark.parametrize("n", [1, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("microsecond", [0, 1, 999_999])
def test_moments_of_one_width_are_taken_together(n: int, microsecond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = datetime(2026, 3, 2, 23, 59, 59, microsecond, tzinfo=UTC)
    moments = [begin + timedelta(seconds=i) for i in range(n)]
    wanted = [to_us(moment) for moment in moments]
    monkeypatch.delattr("tables.times.to_us")
    assert all_to_us(moments) == wanted


def test_whole_seconds_among_others_are_taken_together_too(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [RECENT, MICRO, MICRO, RECENT, RECENT, MICRO]
    wanted = [to_us(moment) for moment in moments]
    monkeypatch.delattr("tables.times.to_us")
    assert all_to_us(moments) == wanted


def test_moments_of_several_widths_that_are_as_long_together_are_not_mistaken() -> None:
    late = datetime(2600, 1, 1, tzinfo=UTC)  # 15 bytes; a whole second takes 6, any other moment 10
    mixed = [MICRO, *[late] * 4, *[RECENT] * 5]
    for moments in (mixed, mixed[::-1], mixed[1:]):
        assert all_to_us(moments) == [to_us(moment) for moment in moments]
