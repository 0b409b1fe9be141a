"""The alert board: what stands, twins, tombstones."""

from __future__ import annotations

import json

from agents.board import Board

DATA = {
    "alert_id": "a",
    "rule": "r",
    "subject": "s",
    "severity": "warning",
    "period": "2026-03-02",
    "evidence": {"topic": "costs", "partition": 0, "offset": 1},
}


def message(kind: str, id: str, time: str = "2026-03-02T00:00:00.000000Z", **data: object) -> bytes:
    return json.dumps({"type": f"alert.{kind}.v1", "id": id, "time": time, "tenant": "t", "data": {**DATA, **data}}).encode()


def read(board: Board, *values: bytes | None, key: bytes = b"a", written_ms: int = 1000) -> None:
    for value in values:
        board.read(key, value, (0, 0), written_ms)


def test_only_what_is_over_and_long_enough_ago_is_ended() -> None:
    board = Board()
    read(board, message("opened", "1"), key=b"open")
    read(board, message("opened", "2"), message("resolved", "3"), key=b"resolved")
    read(board, message("opened", "4", notice=True), key=b"notice")
    read(board, message("opened", "5"), message("resolved", "6"), key=b"later", written_ms=1001)
    assert [name for name, _ in board.over(1001)] == ["resolved", "notice"]
    assert board.over(1000) == []
    read(board, message("resolved", "3"), key=b"resolved", written_ms=1001)  # repeated after a crash
    assert [name for name, _ in board.over(1001)] == ["notice"]


def test_a_tombstone_ends_what_is_over_and_ids_go_on_where_they_were() -> None:
    board = Board()
    read(board, message("opened", "1"), message("resolved", "2"), None)
    assert board.entries == {} and board.standing("a")[1] == 2
    read(board, message("opened", "3"))
    assert board.standing("a") == (board.standing("a")[0], 3) and board.standing("a")[0].level == "warning"


def test_a_tombstone_on_an_alert_that_was_opened_again_loses_nothing_and_the_repeated_message_mends_it() -> None:
    board = Board()
    read(board, message("opened", "1"), message("resolved", "2"), message("opened", "3"), None)
    assert board.bereaved == {"a"} and board.entries["a"].open
    with board.subscribe() as told:
        read(board, message("opened", "3"))
        assert told.empty()  # it is no news
    assert not board.bereaved and board.standing("a")[1] == 3


def test_an_earlier_message_that_a_sleeper_repeats_changes_nothing_and_the_newest_is_told_again() -> None:
    board = Board()
    read(board, message("opened", "1"), message("resolved", "2"))
    with board.subscribe() as told:
        read(board, message("opened", "1"))
        assert told.empty() and board.bereaved == {"a"} and not board.entries["a"].open
    read(board, message("resolved", "2"))
    assert not board.bereaved and board.standing("a")[1] == 2
    read(board, message("opened", "1"), None)
    assert board.entries == {} and not board.bereaved, "it was ended meanwhile"
