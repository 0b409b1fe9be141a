"""The alert board: what stands, twins, tombstones."""

from __future__ import annotations

import json
import random
from pathlib import Path

from agents.board import Board

from ..service import Service

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


def test_a_tenants_alerts_are_listed_newest_first_whatever_became_of_them() -> None:
    rng, board = random.Random(1), Board()
    for offset in range(3_000):
        tenant, key = rng.choice("tu"), f"a{rng.randrange(40)}"
        value = (
            None if rng.random() < 0.2 else message(rng.choice(("opened", "resolved")), str(rng.randrange(300)), f"2026-03-0{rng.randrange(1, 9)}T00:00:00Z")
        )
        board.read(key.encode(), None if value is None else value.replace(b'"tenant": "t"', f'"tenant": "{tenant}"'.encode()), (offset % 2, offset))
        mine = sorted((e for e in board.entries.values() if e.message["tenant"] == tenant), key=lambda e: (e.message["time"], e.order), reverse=True)
        standing = [entry for entry in mine if entry.open]
        assert board.of(tenant) == mine and list(board.newest(tenant, standing=True)) == standing and board.n_open(tenant) == len(standing)
        names = {id(entry): name for name, entry in board.entries.items()}
        for at, entry in enumerate(standing[:3]):
            assert list(board.newest(tenant, standing=True, behind=names[id(entry)])) == standing[at + 1 :]
            assert list(board.newest(tenant, behind=names[id(entry)])) == mine[mine.index(entry) + 1 :]
        assert list(board.newest(tenant, behind="nobody")) == mine


def test_pages_of_alerts_join_to_the_whole_list_and_a_cursor_of_another_list_is_refused(tmp_path: Path) -> None:
    service, rng = Service(tmp_path), random.Random(2)
    for n in range(60):
        text = message(
            rng.choice(("opened", "opened", "resolved")), str(n), f"2026-03-0{rng.randrange(1, 9)}T00:00:00Z", alert_id=f"a{n}", rule=rng.choice("rs")
        )
        service.engine.board.read(f"a{n}".encode(), text.replace(b'"tenant": "t"', b'"tenant": "default"'), (0, n))
    entries = sorted(service.engine.board.entries.values(), key=lambda e: (e.message["time"], e.order), reverse=True)
    for query, is_asked in (
        ("state=open", lambda entry: entry.open),
        ("state=all&rule=r", lambda entry: entry.message["data"]["rule"] == "r"),
        ("state=all&since=2026-03-05T00:00:00Z", lambda entry: entry.message["time"] >= "2026-03-05"),
    ):
        truth = [entry.message["data"]["alert_id"] for entry in entries if is_asked(entry)]
        other = next(entry.message["data"]["alert_id"] for entry in entries if not is_asked(entry))
        found, cursor, pages = [], "", 0
        while pages == 0 or cursor:
            reply = service.ask(f"/api/v1/alerts?{query}&limit=7{cursor and '&cursor=' + cursor}").json()
            found += [alert["alert_id"] for alert in reply["alerts"]]
            cursor, pages = reply["cursor"], pages + 1
        assert found == truth and pages == -(-len(truth) // 7) > 2
        assert service.ask(f"/api/v1/alerts?{query}&cursor={other}").status == 400


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
