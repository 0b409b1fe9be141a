"""The head of a log from the archive's files: the records as they were on the log, and what is refused where they are not all there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from agents.archive_files import STOOD_IN
from agents.archive_head import STANDS_IN, Gap, Head
from agents.archive_rows import frame_of, plain_value, value_of
from agents.registry import FOLD_SETTINGS, schema
from streams.codec import InvalidEvent, decode, encode
from streams.errors import TopicProblem
from streams.settings import load
from tables.partition import Partition

from ..archive_feed import NOW_MS, Feed, metrics
from ..harness import Rec
from .test_upgrades import dumped

TOPICS = ("forecasts", "training", "costs", "judgments")
PLACE = ("training", 0)


def head_of(feed: Feed) -> Head:
    found = Head(feed.path, prefix="pulsefold.", identities=dict.fromkeys(TOPICS, 0))
    found.look()
    return found


def everything(head: Head, start: int, end: int) -> list[Any]:
    found: list[Any] = []
    while start < end:
        records, start = head.read(PLACE, start)
        found += records
    return found


def odd_ones(rng: random.Random) -> list[bytes | dict[str, Any]]:
    """Events in forms that no publisher of ours writes, bad ones, and one that repeats an id."""
    value = {"value": 0.5, "metric_type": "loss"}
    plain = {"specversion": "1.0", "id": "o1", "source": "s\u0000é", "type": "metric.recorded.v1", "data": value}
    return [
        json.dumps(plain).encode(),
        json.dumps({"type": "metric.recorded.v1", "data": value, "id": "o2", "unknown": [1, {"x": "y"}], "subject": "s"}, indent=1).encode(),
        b'{"data": {"value":1e0, "more" : "\\u00e9\\u0000"}, "id":"o3","type":"metric.recorded.v1","time":"2026-03-02T02:00:00.1+02:00"}',
        *(  # moments in other words
            b'{"specversion":"1.0","id":"%s","source":"","type":"metric.recorded.v1","time":"%s","tenant":"default","data":{}}' % (time[5:], time)
            for time in (b"2026-03-02T02:00:00.1+00:00", b"2026-03-02 02:00:00.100000Z", b"2026-03-02T02:00:00.1000001Z", b"2026-03-02T02:00:00.100000Z")
        ),
        b'{"data":{},"id":"{}","tags":{},"type":"metric.recorded.v1"}',
        encode(decode(json.dumps({**plain, "id": "o4", "source": "", "time": "2026-03-02T00:00:00Z"}).encode())),
        encode(decode(json.dumps({**plain, "id": "o5", "source": "x"}).encode())),
        b"no json",
        b"\xff\xfe",
        b'{"id":"u","type":"nothing.v1","data":{}}',
        b'{"id":"i","type":"metric.recorded.v1","data":{"epoch":-1}}',
        json.dumps(plain).encode(),
        b"x" * (rng.randrange(3) + (1 << 20)),
    ]


def test_what_the_archive_gives_back_folds_to_the_same_rows_as_the_log_and_events_are_those_bytes(tmp_path: Path) -> None:
    for seed in range(2):
        rng = random.Random(seed)
        feed = Feed(tmp_path / str(seed), 1)
        waiting: list[Any] = [*metrics(300, seed), *odd_ones(rng)]
        rng.shuffle(waiting)
        for at in range(0, len(waiting), 50):
            feed.send(*waiting[at : at + 40], partition=0)
            feed.send(*waiting[at + 40 : at + 50], partition=0, headers=[("redriven", b"training/0/7%d" % at), ("trace", b"\x00\xff")])
            feed.take(33)
            feed.write()
        feed.take()
        feed.write()
        log = feed.log[PLACE]
        head = head_of(feed)
        assert (head.begins(PLACE, len(log)), head.gap(PLACE, 0, len(log))) == (0, None)
        found = everything(head, 0, len(log))
        for mine, theirs in zip(found, log, strict=True):
            assert (mine.offset, mine.timestamp) == (theirs.offset, theirs.timestamp)
            try:
                decode(theirs.value)
            except InvalidEvent as bad:
                with pytest.raises(InvalidEvent) as same:
                    decode(mine.value)
                assert same.value.reason == bad.reason
            else:
                assert (mine.value, list(mine.headers)) == (theirs.value, list(theirs.headers))
        partitions = [Partition("training", 0, schema(load({}, {}, None, FOLD_SETTINGS).fold)) for _ in range(2)]
        partitions[0].absorb(log)
        partitions[1].absorb(found[:100])
        partitions[1].absorb(found[100:])
        assert dumped(partitions[1]) == dumped(partitions[0])
        assert partitions[0].counters().duplicate and partitions[0].counters().dead_lettered == 5
        feed.keeper.close()


def test_a_value_that_a_publisher_of_ours_wrote_needs_no_frame(tmp_path: Path) -> None:
    event = decode(json.dumps({"id": "a", "source": "s", "type": "metric.recorded.v1", "time": "2026-03-02T00:00:00Z", "data": {"value": 1.5}}).encode())
    value = encode(event)
    data = value[value.index(b'"data":') + 7 : -1]
    plain = plain_value("a", "s", "metric.recorded.v1", "2026-03-02T00:00:00.000000Z", "default", None, data)
    assert frame_of(value, data, plain) is None
    assert value_of(None, data, plain) == value


def test_every_reason_has_a_record_that_is_refused_for_it() -> None:
    assert set(STANDS_IN) == set(STOOD_IN)
    for reason in STOOD_IN:
        with pytest.raises(InvalidEvent) as bad:
            decode(STANDS_IN[reason])
        assert bad.value.reason == reason


def test_what_is_not_whole_is_named_and_not_given(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "a", 1)
    assert head_of(feed).gap(PLACE, 0, 5) == Gap(0, 5, "the archive has no such file")
    feed.send(*metrics(250, 1), partition=0)
    feed.take()
    feed.write()
    head = head_of(feed)
    n = len(feed.log[PLACE])
    assert head.begins(PLACE, n) == 0 and head.begins(PLACE, n + 1) == n + 1
    assert head.gap(PLACE, 0, n + 3) == Gap(n, n + 3, "the archive has no such file")
    path = head.pieces[PLACE][100].path
    Path(path).unlink()
    head.look()
    assert head.begins(PLACE, n) == 200 and head.gap(PLACE, 20, n) == Gap(100, 200, "the archive has no such file")
    with pytest.raises(TopicProblem, match="no longer has offset 150"):
        head.read(PLACE, 150)
    other = Head(tmp_path / "a", prefix="pulsefold.", identities=dict.fromkeys(TOPICS, 7))
    other.look()
    found = other.gap(PLACE, 0, 9)
    assert found is not None and "another log" in found.why and other.begins(PLACE, 9) == 9
    nowhere = Head(tmp_path / "b", prefix="pulsefold.", identities={})
    nowhere.look()
    missing = nowhere.gap(PLACE, 0, 9)
    assert missing is not None and "no archive" in missing.why and not (tmp_path / "b").exists()


def test_rows_that_went_events_of_the_future_and_what_the_log_had_lost_first_are_gaps(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "cleared", 1, days=30.0)
    feed.send(*metrics(150, 1, ["t", "u"]), partition=0)
    cleared = {"id": "x", "source": "s", "type": "tenant.cleared.v1", "tenant": "t", "derivedfrom": "y", "data": {"scope": "all"}}
    feed.log[PLACE].append(Rec(150, NOW_MS, b"t", json.dumps(cleared).encode(), []))  # as it comes to every topic
    feed.take()
    feed.write()
    feed.tidy()
    gap = head_of(feed).gap(PLACE, 0, 151)
    assert gap is not None and (gap.begin, gap.end) == (0, 100) and "cleared tenant" in gap.why
    assert head_of(feed).begins(PLACE, 151) > 100

    feed = Feed(tmp_path / "future", 1)
    feed.send({"id": "a", "type": "metric.recorded.v1", "time": "2026-03-20T01:00:01Z", "data": {}}, partition=0)
    feed.take()
    feed.write()
    gap = head_of(feed).gap(PLACE, 0, 1)
    assert gap is not None and "future" in gap.why

    feed = Feed(tmp_path / "late", 1)
    feed.send(*metrics(250, 1), partition=0)
    feed.keeper.close()
    feed.start()
    feed.read = feed.keeper.open({PLACE: 30})
    feed.take(40)
    feed.write()
    feed.read[PLACE] = 90
    feed.keeper.pass_over(PLACE, 90)
    feed.take()
    feed.write()
    head, n = head_of(feed), len(feed.log[PLACE])
    assert head.gap(PLACE, 0, n) == Gap(0, 30, "the log had removed them before the archive read them")
    assert head.gap(PLACE, 30, n) == Gap(70, 90, "the log had removed them before the archive read them")
    assert head.begins(PLACE, n) == 90 and head.gap(PLACE, 90, n) is None
    assert [one.offset for one in everything(head, 90, n)] == list(range(90, n))
