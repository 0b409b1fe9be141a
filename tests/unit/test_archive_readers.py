"""Files of the archive are replaced while they are read: every answer is of one moment, whole, and never an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import archive_files, sandbox
from agents.archive_keeper import Keeper
from agents.archive_read import NEWEST, Asked, Snapshot, read

from ..archive_feed import Feed, metric

COUNT = "SELECT count(*) AS n FROM events"


def counted(feed: Feed) -> int:
    n: int = sandbox.run(feed.keeper, "default", COUNT, 10)[1][0]["n"]
    return n


def listed(feed: Feed) -> int:
    return len(read(feed.keeper, Asked("default", ["training"], ["id"]), NEWEST, 100_000))


def files(feed: Feed) -> set[str]:
    return {path.name for path in feed.path.glob("*.parquet")}


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    """A hundred events in files."""
    made = Feed(tmp_path / "archive")
    made.send(*(metric(n) for n in range(100)))
    made.take()
    made.write()
    yield made
    made.keeper.close()


def more(feed: Feed, begin: int, end: int) -> None:
    feed.send(*(metric(n) for n in range(begin, end)))
    feed.take()
    feed.write()


def test_what_is_read_stays_until_its_last_reader_has_ended(feed: Feed) -> None:
    first = files(feed)
    with feed.keeper.reading():
        more(feed, 100, 130)
        second = files(feed)
        assert first < second
        with feed.keeper.reading():
            more(feed, 130, 160)
            third = files(feed)
            assert second < third
        feed.tidy()
        assert first < files(feed) == third, "the outer reader knows the first files, and may come to know the second ones"
        feed.keeper.refresh()
        assert (counted(feed), listed(feed)) == (160, 160), "what was replaced is not taken up again"
    more(feed, 160, 190)
    assert len(files(feed)) == len(feed.keeper.folder.all())
    assert files(feed).isdisjoint(first)


def test_readers_refreshes_and_writes_at_the_same_time(feed: Feed) -> None:
    wrong: list[str] = []
    there, coming, stop = [100], [100], threading.Event()

    def ask(count: Any) -> None:
        while not stop.is_set():
            low = there[0]
            try:
                found = count(feed)
            except Exception as error:  # all of them are what is looked for
                wrong.append(f"{type(error).__name__}: {error}")
                return
            if not low <= found <= coming[0]:
                wrong.append(f"{count.__name__} found {found}, not {low} to {coming[0]}")

    def refresh() -> None:
        while not stop.wait(0.002):
            feed.keeper.refresh()

    threads = [threading.Thread(target=ask, args=(count,)) for count in (counted, counted, listed)] + [threading.Thread(target=refresh)]
    for thread in threads:
        thread.start()
    for n in range(100, 520, 7):
        coming[0] = n + 7
        feed.send(*(metric(one) for one in range(n, n + 7)))
        feed.take()
        there[0] = n + 7
        feed.write()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert (counted(feed), listed(feed)) == (520, 520)


class Stale(Keeper):
    """Tells once of files as they were before another archiver of the folder replaced them."""

    before: Snapshot | None = None

    def snapshot(self, topic: str) -> Snapshot:
        found, self.before = self.before if topic == "training" else None, None if topic == "training" else self.before
        return found or super().snapshot(topic)


@pytest.mark.parametrize("count", [counted, listed])
def test_a_file_that_another_archiver_has_replaced_is_looked_for_again(feed: Feed, count: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = feed.keeper.snapshot("training")
    more(feed, 100, 130)
    assert not all(Path(piece.path).exists() for piece in before.pieces)
    monkeypatch.setattr(feed.keeper, "__class__", Stale)
    monkeypatch.setattr(feed.keeper, "before", before, raising=False)
    assert count(feed) == 130


def test_a_file_that_another_archiver_replaces_between_the_view_and_its_query(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [Feed(feed.path)]
    answer = sandbox._answer

    def late(*words: Any) -> Any:
        for other in others:
            other.send(*(metric(n) for n in range(130)))
            other.take()
            other.write()
        others.clear()
        return answer(*words)

    monkeypatch.setattr(sandbox, "_answer", late)
    before = files(feed)
    assert counted(feed) == 130
    assert before - files(feed)


@pytest.mark.parametrize("when", ["at the next start", "as time goes by"])
def test_files_that_an_archiver_could_not_delete_any_more_go(feed: Feed, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: (feed.path / name).read_bytes() for name in files(feed)}
    more(feed, 100, 130)
    left = files(feed)
    for name in first.keys() - left:
        (feed.path / name).write_bytes(first[name])
    assert first.keys() - left
    feed.tidy()
    assert first.keys() - left < files(feed), "another archiver may have put its newer ones there a moment ago, and read these"
    monkeypatch.setattr(archive_files, "READ_S", -1.0)
    if when == "at the next start":
        feed.keeper.close()
        feed.start()
    else:
        feed.tidy()
    assert files(feed) == left
    assert counted(feed) == 130


def test_at_a_clean_stop_nothing_is_left_that_somebody_was_still_reading(feed: Feed) -> None:
    with feed.keeper.reading():
        more(feed, 100, 130)
        replaced = files(feed) - {Path(piece.path).name for piece in feed.keeper.folder.all()}
        assert replaced
        feed.keeper.close()
    assert not replaced & files(feed)
    feed.start()


def test_a_file_that_cannot_be_deleted_is_told_once_tried_again_and_stops_nothing(
    feed: Feed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlink, stuck = Path.unlink, [True]

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if stuck[0] and path.suffix == ".parquet" and "training-0" in path.name:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    more(feed, 100, 130)
    more(feed, 130, 160)
    feed.tidy()
    assert "Operation not permitted" in feed.keeper.state({})["error"]
    assert len([record for record in caplog.records if "cannot be deleted" in record.message]) == 1
    assert (counted(feed), listed(feed)) == (160, 160)
    names = {Path(piece.path).name for piece in feed.keeper.folder.all()}
    assert {name.rsplit("-", 2)[0] for name in files(feed) - names} == {"training-0"}
    stuck[0] = False
    feed.tidy()
    assert feed.keeper.state({})["error"] is None and files(feed) == names


def test_of_a_cleared_tenant_nothing_is_left_when_who_read_it_has_ended(feed: Feed) -> None:
    cleared = {"id": "c", "type": "tenant.cleared.v1", "time": "2026-03-02T01:00:00Z", "derivedfrom": "x", "data": {"scope": "all"}}
    with feed.keeper.reading():
        for number in range(feed.partitions):
            feed.send({**cleared, "id": f"c{number}"}, partition=number)
            copied = feed.log[("training", number)]
            copied.append(replace(feed.log[("judgments", number)][-1], offset=len(copied)))
        feed.take()
        feed.write()
        feed.tidy()
        assert counted(feed) == 0
        replaced = files(feed) - {Path(piece.path).name for piece in feed.keeper.folder.all()}
    feed.tidy()
    assert replaced and not replaced & files(feed)
