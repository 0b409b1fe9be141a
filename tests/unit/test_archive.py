"""The archive without Kafka: files and tail against the log in memory."""

from __future__ import annotations

import hashlib
import json
import random
import resource
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from agents.archive_files import Unusable
from agents.archive_rows import Ids
from streams.codec import InvalidEvent, decode
from tables.dedupe import digest_of
from tables.partition import Bounds, Partition, Schema

from ..archive_feed import NOW_MS, START, Feed, metrics


def rows(path: Path, columns: str = 'topic, partition, "offset"', where: str = "true") -> list[Any]:
    files = sorted(str(file) for file in path.glob("*.parquet"))
    return duckdb.execute(f"SELECT {columns} FROM read_parquet($files) WHERE {where} ORDER BY 1, 2, 3", {"files": files}).fetchall() if files else []


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.parquet"))


def test_every_record_is_a_row_once_however_reading_writing_and_restarts_fall(tmp_path: Path) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        feed = Feed(tmp_path / str(seed))
        waiting = metrics(900, seed)
        while waiting or any(feed.read[place] < len(log) for place, log in feed.log.items()):
            feed.send(*waiting[:60])
            if rng.random() < 0.1:
                feed.send(b"no json at all", json.dumps({"id": "odd", "type": "metric.recorded.v1", "data": {"value": True}}).encode())
            waiting = waiting[60:]
            feed.take(40, rng)
            if rng.random() < 0.5:
                feed.write()
            if rng.random() < 0.1:
                feed.keeper.close()
                feed.start()
            if rng.random() < 0.7:
                continue
            everything = feed.pages("metrics", "metrics", limit=197)
            known = [event for event in feed.events(topic="training") if event["place"][2] < feed.read[event["place"][:2]]]
            assert Counter(one["id"] for one in everything) == Counter(event["id"] for event in known)
        feed.write()
        assert rows(tmp_path / str(seed)) == sorted((t, n, record.offset) for (t, n), log in feed.log.items() for record in log)
        feed.keeper.close()


def test_a_row_has_the_records_digest_its_data_as_it_came_and_the_fields_that_queries_use(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    data = '{"cost":0.10000000000000000000001,"model":"m","tags":["a","b"], "new_field" : {"x":1}}'
    raw = f'{{"specversion":"1.0","id":"c1","source":"s","type":"cost.incurred.v1","time":"2026-03-02T02:00:00+02:00","tenant":"t","data":{data}}}'.encode()
    feed.send(raw, b"\xff broken")
    feed.take()
    feed.write()
    columns = 'topic, partition, "offset", id, type, epoch_us(time), tenant, key, digest, data, model, tags, size, reason'
    assert rows(tmp_path, columns) == [
        ("costs", 0, 0, "c1", "cost.incurred.v1", int(START.timestamp() * 1e6), "t", "t", hashlib.sha256(raw).digest(), data, "m", ["a", "b"], len(raw), None),
        ("training", 0, 0, None, None, NOW_MS * 1000, None, None, hashlib.sha256(b"\xff broken").digest(), None, None, None, 8, "not_json"),
    ]
    assert names(tmp_path) == ["costs-0-0-0.parquet", "training-0-0-0.parquet"]


def test_files_are_cut_at_multiples_and_two_archivers_write_the_same_bytes(tmp_path: Path) -> None:
    feeds = [Feed(tmp_path / name, 1) for name in ("one", "two")]
    events = metrics(450, 7)
    for feed, step in zip(feeds, (450, 33), strict=True):
        feed.send(*events)
        for _ in range(0, 450, step):
            feed.take(step)
            feed.write()
    assert (
        names(tmp_path / "one")
        == names(tmp_path / "two")
        == [f"training-0-{n}00-{n}99.parquet".replace("-000-099", "-0-99") for n in range(4)] + ["training-0-400-449.parquet"]
    )
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_writing_a_range_again_changes_nothing_and_a_faster_archiver_is_followed(tmp_path: Path) -> None:
    slow, fast = Feed(tmp_path, 1), Feed(tmp_path, 1)
    events = metrics(250, 1)
    for feed in (slow, fast):
        feed.send(*events)
    slow.take(30)
    fast.take()
    fast.write()
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    slow.write()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    slow.take()
    slow.write()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert len(slow.pages("metrics", "metrics", limit=50)) == len(slow.events())


def test_a_reader_whose_file_somebody_else_replaced_looks_again(tmp_path: Path) -> None:
    slow, fast = Feed(tmp_path, 1), Feed(tmp_path, 1)
    events = metrics(90, 2)
    for feed in (slow, fast):
        feed.send(*events)
    slow.take(30)
    slow.write()
    fast.start()
    fast.take()
    fast.write()  # the file that `slow` knows is gone now
    assert names(tmp_path) == ["training-0-0-89.parquet"]
    assert len(slow.pages("metrics", "metrics", limit=50)) == len(fast.events())


def started_again(feed: Feed) -> None:
    """What came so far is in files, and what is known of it is known from them."""
    feed.take()
    feed.write()
    feed.keeper.close()
    feed.start()


def folds_count(feed: Feed) -> int:
    """Duplicates that the folds find in the log."""
    partition = Partition("training", 0, Schema([]), bounds=Bounds(dedupe_window=128))
    partition.absorb(feed.log[("training", 0)])
    return partition.counters().duplicate


def test_repeated_ids_are_those_that_the_folds_count(tmp_path: Path) -> None:
    events = [*metrics(600, 3, ["default"]), *metrics(100, 4, ["default"])]
    for number in (5, 200, 400):  # the same metric under another event's id
        events.insert(number + 20, {**events[number], "id": f"again{number}", "data": {**events[number]["data"], "metric_id": events[number]["id"]}})
    feed = Feed(tmp_path, 1, window=128)
    for begin in range(0, len(events), 100):
        feed.send(*events[begin : begin + 100])
        started_again(feed)
    found = rows(tmp_path, "count(*) FILTER (duplicate), count(*), 0")
    assert found == [(folds_count(feed), len(events), 0)]
    assert folds_count(feed) > 30


def test_ids_whose_tags_and_slots_agree_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.archive_rows.digest_of", lambda name: bytes(8) + digest_of(name)[:8])
    rng, ids = random.Random(1), Ids(128)
    last: dict[str, int] = {}
    for begin, end in ((0, 1), (1, 25), (25, 300), (300, 1324), (1324, 1400), (1400, 2400)):
        part = [f"e{rng.randrange(200)}" for _ in range(begin, end)]
        wanted = []
        for at, name in enumerate(part):
            if name in last and begin + at - last[name] <= 128:
                wanted.append(at)
            last[name] = begin + at
        assert ids.occurred(range(begin, end), part) == wanted
        assert end < 300 or wanted


def test_a_redriven_metric_takes_no_metric_id_as_in_the_folds(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    for n, (id, headers) in enumerate({"a": [("redriven", b"training/0/7")], "b": [], "c": [("redriven", b"training/0/8")], "d": []}.items()):
        feed.send({"id": id, "type": "metric.recorded.v1", "data": {"metric_id": "one", "value": n}}, headers=headers)
        if id in "ad":
            started_again(feed)
    assert rows(tmp_path, "id, duplicate, 0") == [("a", False, 0), ("b", False, 0), ("c", False, 0), ("d", True, 0)]
    assert folds_count(feed) == 1


def test_a_header_that_names_no_record_is_passed_over_as_in_the_folds_before_and_after_a_restart(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    for n, value in enumerate((None, b"", b"training/0/7\0", b"a\0b")):
        for _ in range(2):
            feed.send({"id": f"e{n}", "type": "metric.recorded.v1", "data": {"value": 1}}, headers=[("redriven", value)])
            started_again(feed)
    assert rows(tmp_path, "id, duplicate, redriven") == [(f"e{n}", again, None) for n in range(4) for again in (False, True)]
    assert folds_count(feed) == 4


def test_what_no_fold_takes_is_a_row_without_content(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    bad = [
        {"id": "a", "type": "metric.recorded.v1", "time": "2026-03-20T01:00:01Z", "data": {}},  # an hour and a second ahead of the clock
        {"id": "b", "type": "metric.recorded.v2", "data": {}},
        {"id": "c", "type": "metric.recorded.v1", "data": {"epoch": -1}},
    ]
    feed.send(*bad)
    feed.take()
    feed.write()
    assert sorted(rows(tmp_path, "reason, 0, 0")) == [("invalid_field", 0, 0), ("time_in_future", 0, 0), ("unknown_type", 0, 0)]
    assert rows(tmp_path, "tenant, id, data", "tenant IS NOT NULL OR id IS NOT NULL OR data IS NOT NULL") == []
    assert feed.ask("metrics")["count"] == 0


def test_a_disk_that_is_full_is_told_loses_nothing_and_is_tried_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    feed.send(*metrics(60, 5))
    feed.take()
    feed.write()
    before = names(tmp_path)
    feed.send(*metrics(130, 6))
    feed.take()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert not feed.keeper.write("training")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in feed.keeper.state({})["error"]
    assert names(tmp_path) == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(feed.pages("metrics", "metrics", limit=50)) == len(feed.events())
    assert feed.keeper.write("training")
    assert feed.keeper.state({})["error"] is None
    assert len(feed.pages("metrics", "metrics", limit=50)) == len(feed.events())
    assert len(rows(tmp_path)) == 190


def test_reading_pauses_while_nothing_can_be_written(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    feed.send({"id": "big", "type": "custom.recorded.v1", "data": {"name": "n", "fields": {"text": "x" * 900_000}}})
    record = feed.log[("judgments", 0)][0]
    n = 0
    while not feed.keeper.full():
        record.offset = n
        feed.keeper.take(("judgments", 0), [record], n + 1)
        n += 1
    assert 70 < n < 90  # 64 MiB
    assert "judgments" in feed.keeper.due(0.0)


def test_a_broken_file_is_kept_aside_told_and_made_again_from_the_log(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    events = metrics(350, 8)
    feed.send(*events)
    feed.take()
    feed.write()
    whole = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for broken in ("training-0-0-99.parquet", "training-0-200-299.parquet"):
        feed.keeper.close()
        (tmp_path / broken).write_bytes(whole[broken][: len(whole[broken]) // 2])
        feed.start()
        assert feed.keeper.state({})["broken_files"] == [broken]
        assert (tmp_path / f"{broken}.broken").exists()
        for _ in range(20):
            feed.take(30)
            feed.write()
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == whole
        assert len(feed.pages("metrics", "metrics", limit=50)) == len(feed.events())


def test_the_archive_of_another_log_is_not_written_into(tmp_path: Path) -> None:
    Feed(tmp_path, 1).keeper.close()
    with pytest.raises(Unusable, match="another log"):
        Feed(tmp_path, 1, prefix="other.")
    with pytest.raises(Unusable, match="another log"):
        Feed(tmp_path, 1, identities={"training": 5})


def cleared(tenant: str, partition: int, scope: str = "all") -> dict[str, Any]:
    return {
        "id": f"clear-{tenant}-{partition}", "type": "tenant.cleared.v1", "tenant": tenant, "time": (START + timedelta(days=4)).isoformat(),
        "derivedfrom": "clear", "data": {"scope": scope},
    }  # fmt: skip


@pytest.mark.parametrize("written", [True, False], ids=["in-files", "in-the-tail"])
def test_a_cleared_tenant_is_gone_from_answers_at_once_and_from_the_files_soon(tmp_path: Path, written: bool) -> None:
    feed = Feed(tmp_path, 2)
    feed.send(*metrics(500, 9))
    feed.take()
    if written:
        feed.write()
    feed.log[("training", 0)].append(feed_record(feed, cleared("other", 0), "training", 0))
    feed.log[("training", 1)].append(feed_record(feed, cleared("other", 1), "training", 1))
    feed.log[("training", 0)].append(feed_record(feed, cleared("default", 0, "performance"), "training", 0))
    kept = len(feed.events("default", "training"))
    feed.take()
    assert feed.ask("metrics", "other")["count"] == 0
    feed.send({"id": "later", "type": "metric.recorded.v1", "tenant": "other", "time": "2026-03-07T00:00:00Z", "data": {"model": "a"}})
    feed.take()
    assert [one["id"] for one in feed.pages("metrics", "metrics", "other")] == ["later"]
    feed.write()
    feed.tidy()
    assert rows(tmp_path, "id, 0, 0", "tenant = 'other'") == [("later", 0, 0)]
    assert len(rows(tmp_path, where="tenant = 'default' AND NOT duplicate")) == kept
    feed.keeper.close()
    feed.start()  # and stays gone, with the same place to go on from
    assert feed.read == {place: len(log) for place, log in feed.log.items()}
    assert [one["id"] for one in feed.pages("metrics", "metrics", "other")] == ["later"]
    assert len(feed.pages("metrics", "metrics", limit=50)) == len([e for e in feed.events("default", "training") if e["type"] == "metric.recorded.v1"])


def feed_record(feed: Feed, event: dict[str, Any], topic: str, number: int) -> Any:
    from ..harness import Rec

    raw = json.dumps({"specversion": "1.0", "source": "test", **event}).encode()
    decode(raw)
    return Rec(len(feed.log[(topic, number)]), NOW_MS, b"key", raw)


def test_what_is_older_than_archive_days_goes_by_event_time_behind_the_tenants_newest(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1, days=30.0)

    def metric(id: str, days: float, tenant: str = "default") -> dict[str, Any]:
        return {"id": id, "type": "metric.recorded.v1", "tenant": tenant, "time": (START - timedelta(days=days)).isoformat(), "data": {"model": "a"}}

    old = [metric(f"old{n}", 30.5 + n % 40) for n in range(150)]
    young = [metric(f"young{n}", n % 29) for n in range(120)]
    feed.send(*old, *young, metric("now", 0), metric("theirs", 200, "other"))
    feed.take()
    asked = {one["id"] for one in feed.pages("metrics", "metrics", limit=40)}
    assert asked == {"now", *(event["id"] for event in young)}
    assert [one["id"] for one in feed.pages("metrics", "metrics", "other")] == ["theirs"]  # measured from that tenant's newest
    feed.write()
    feed.tidy()
    left = {row[0] for row in rows(tmp_path, "id, 0, 0")}
    assert {"now", "theirs", *(event["id"] for event in young)} <= left
    assert all(float(event["id"][3:]) >= 0 for event in old)
    assert not {event["id"] for n, event in enumerate(old) if 30.5 + n % 40 > 32} & left  # up to a day's worth may wait for more
    assert names(tmp_path)[0] == "training-0-100-199.parquet"  # a file without anything left is deleted
    feed.keeper.close()
    feed.start()
    assert feed.read[("training", 0)] == len(feed.log[("training", 0)])  # and is not made again


def test_each_tenant_may_have_archive_days_of_its_own_shorter_or_longer_also_when_it_has_fallen_silent(tmp_path: Path) -> None:
    now = [NOW_MS / 1000]
    feed = Feed(tmp_path, 1, days={"": 60.0, "short": 30.0, "long": 300.0}, clock=lambda: now[0])
    tenants = ("short", "other", "long")

    def ages(tenant: str) -> list[int]:
        return sorted(int(row[0]) for row in rows(tmp_path, "id, 0, 0", f"tenant = '{tenant}'"))

    for days in (0, 10, 40, 70, 200, 400):  # each tenant has the same
        for tenant in tenants:
            moment = (START - timedelta(days=days)).isoformat()
            feed.send({"id": str(days), "type": "metric.recorded.v1", "tenant": tenant, "time": moment, "data": {"model": "a"}})
    feed.send(b"no event")
    feed.take()
    asked = {tenant: sorted(int(one["id"]) for one in feed.pages("metrics", "metrics", tenant)) for tenant in tenants}
    assert asked == {"short": [0, 10], "other": [0, 10, 40], "long": [0, 10, 40, 70, 200]}  # at once; the files follow
    feed.write()
    feed.tidy()
    assert {tenant: ages(tenant) for tenant in tenants} == asked
    for passed, left in ((40, {"short": [], "other": asked["other"], "long": asked["long"]}), (80, {"short": [], "other": [], "long": asked["long"]})):
        now[0] = NOW_MS / 1000 + passed * 86_400  # nobody sends anything any more
        feed.tidy()
        assert {tenant: ages(tenant) for tenant in tenants} == left
        assert bool(rows(tmp_path, where="tenant IS NULL")) == (passed < 60)  # what is no event is nobody's: by the days of all others


def test_a_silent_tenant_goes_by_the_clock(tmp_path: Path) -> None:
    now = [NOW_MS / 1000]
    feed = Feed(tmp_path, 1, days=30.0, clock=lambda: now[0])
    feed.send(*metrics(120, 11))
    feed.take()
    feed.write()
    feed.tidy()
    assert len(rows(tmp_path)) == 120
    now[0] += 86_400 * 32
    feed.tidy()
    assert rows(tmp_path) == []
    assert names(tmp_path) == ["training-0-100-119.parquet"]  # says where to go on


def test_the_archive_takes_less_than_a_third_of_the_json(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1, chunk=50_000)
    rng = random.Random(1)
    for n in range(8_000):
        data = {"metric_type": "train", "model": "resnet", "run": f"run-{n // 4000}", "values": {"loss": round(rng.random(), 4)}, "step": n, "epoch": n // 100}
        moment = (START + timedelta(seconds=n)).isoformat()
        feed.send({"id": f"{rng.getrandbits(64):016x}", "type": "metric.recorded.v1", "tenant": "acme", "time": moment, "data": data})
    feed.take()
    feed.write()
    state = feed.keeper.state({})
    assert state["json_bytes"] == sum(len(record.value or b"") for record in feed.log[("training", 0)])
    assert state["bytes"] == sum(file.stat().st_size for file in tmp_path.glob("*.parquet"))
    assert state["ratio"] < 0.3, state["ratio"]


def test_invalid_events_are_those_of_the_codec(tmp_path: Path) -> None:
    feed = Feed(tmp_path, 1)
    feed.send(*[json.dumps({"id": "x" * n, "type": "metric.recorded.v1", "data": {"value": v}}).encode() for n in (0, 5, 200) for v in (1, "NaN", "x", None)])
    reasons = []
    for record in feed.log[("training", 0)]:
        try:
            decode(record.value)
            reasons.append(None)
        except InvalidEvent as bad:
            reasons.append(bad.reason)
    feed.take()
    feed.write()
    assert [row[3] for row in rows(tmp_path, 'topic, partition, "offset", reason')] == reasons
