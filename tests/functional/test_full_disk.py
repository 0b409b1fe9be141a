"""Disks that are full or slow, under the archive and under a publisher's spool: degraded, said so, nothing lost.

The small disks are real ones (tmpfs), so they need the right to mount; the slow one is the real disk behind an `fsync` that takes its time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from streams.broker import EmbeddedBroker
from streams.publisher import SyncPublisher, Unspooled
from streams.spool import Spool, SpoolStuck

from ..workers import WorkerProcess
from .test_service import post

CHECKOUT = Path(__file__).resolve().parents[2]
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int fd) { usleep(1000000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { usleep(1000000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


class SmallDisk:
    """A disk of a few MB.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def mount(self, *options: str) -> bool:
        """Whether it could be mounted, or mounted anew with another size."""
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.path)], capture_output=True).returncode == 0

    def fill(self) -> None:
        """Use up what is left."""
        try:
            with (self.path / "filler").open("ab", buffering=0) as out:
                while True:
                    out.write(bytes(4096))
        except OSError:
            pass

    def free(self) -> None:
        """Give that back."""
        (self.path / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "small")
    if not shutil.which("mount") or not small.mount("size=3m"):
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield small
    finally:
        subprocess.run(["umount", "-l", str(small.path)], check=True)


def cost(n: int) -> dict[str, Any]:
    return {"id": f"c{n}", "source": "t", "type": "cost.incurred.v1", "time": "2026-03-02T00:00:00Z", "data": {"cost": 1, "model": f"m{n}"}}


def archived(folder: Path) -> list[tuple[str, int, int]]:
    """(topic, partition, offset) of every row in the files."""
    return duckdb.sql(f"SELECT topic, partition, \"offset\" FROM read_parquet('{folder}/*.parquet') ORDER BY ALL").fetchall()


@pytest.mark.timeout(300)
def test_an_archive_whose_disk_is_full_is_told_of_while_everything_else_goes_on_and_catches_up_by_itself(
    embedded: EmbeddedBroker, tmp_path: Path, disk: SmallDisk
) -> None:
    folder = disk.path / "archive"
    worker = WorkerProcess(embedded.bootstrap, tmp_path, partitions=4, archive_dir=folder).start()

    def metric(name: str) -> float:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics", timeout=20) as response:
            return next(float(line.split()[1]) for line in response.read().decode().splitlines() if line.startswith(name + " "))

    def send(first: int, n: int) -> None:
        body: Any = [cost(first + i) for i in range(n)]
        assert all(one["accepted"] for one in post(worker, body, "application/cloudevents-batch+json")[1]["results"])

    try:
        send(0, 50)
        worker.until(lambda: worker.get("/status")["archive"].get("rows", 0) == 50, 120)
        assert worker.get("/readyz", api="") == {**worker.get("/readyz", api=""), "ready": True} and metric("pulsefold_archive_behind") == 0
        disk.fill()
        send(50, 200)
        worker.until(lambda: "degraded" in worker.get("/readyz", api=""), 120)
        worker.until(lambda: worker.get("/status")["archive"]["tail_rows"] == 200)
        state = worker.get("/status")["archive"]
        assert str(folder) in state["error"] and "cannot be written" in state["error"] and state["tail_rows"] == 200
        assert worker.get("/readyz", api="")["ready"] and worker.get("/readyz", api="")["degraded"] == ["archive"]
        assert metric("pulsefold_archive_behind") == 1 and metric("pulsefold_archive_tail_bytes") > 0
        send(250, 50)  # it folds, serves, and answers from what is in memory
        worker.until(lambda: worker.get("/costs")["events"] == 300)
        worker.until(lambda: len(worker.get("/costs/events", limit=1000)["events"]) == 300)
        worker.until(lambda: not list(folder.glob(".*.tmp")))  # one that it tries to write is there for a moment
        assert len(archived(folder)) == 50
        disk.free()
        worker.until(lambda: worker.get("/status")["archive"]["error"] is None and worker.get("/status")["archive"]["rows"] == 300, 120)
        assert "degraded" not in worker.get("/readyz", api="") and metric("pulsefold_archive_behind") == 0
        rows = archived(folder)
        assert len(rows) == len(set(rows)) == 300 and sorted(offset for _, _, offset in rows) == list(range(300))  # of one tenant: one partition
        text = worker.log.read_text()
        assert text.count("cannot be written") == 1 and text.count("archive: written again") == 1
    finally:
        worker.stop()


def test_what_a_spool_took_before_its_disk_was_full_is_there_whole_after_kill_9(disk: SmallDisk) -> None:
    program = (
        "import os, signal, sys\n"
        "from streams.spool import Spool, SpoolStuck\n"
        "spool = Spool(sys.argv[1])\n"
        "for n in range(100_000):\n"
        "    try:\n"
        "        number = spool.put(f'e{n}', 't', b'k', bytes([n % 251]) * (n * 37 % 9000))\n"
        "    except SpoolStuck:\n"
        "        break\n"
        "    print(number, n, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(disk.path / "spool")], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9
    taken = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert 100 < len(taken) < 100_000
    assert disk.mount("remount", "size=16m")
    spool = Spool(disk.path / "spool")
    stored = spool.after(0, 100_000)
    assert [(one.number, int(one.id[1:])) for one in stored] == taken
    assert all(one.value == bytes([n % 251]) * (n * 37 % 9000) for one, (_, n) in zip(stored, taken, strict=True))
    spool.put("more", "t", b"k", b"v")
    spool.close()


def test_a_full_disk_holds_back_no_removal_for_ever_and_loses_none(disk: SmallDisk) -> None:
    spool = Spool(disk.path / "spool")
    numbers = [spool.put(f"e{n}", "t", b"k", bytes(500)) for n in range(100)]
    disk.fill()
    with pytest.raises(SpoolStuck, match="full"):
        for _ in range(2000):
            spool.put("more", "t", b"k", bytes(5000))
    before = len(spool)
    try:
        spool.remove(numbers)
    except SpoolStuck:
        assert len(spool) == before and {one.number for one in spool.after(0, 10_000)} >= set(numbers)
    disk.free()
    spool.checkpoint(now=True)
    spool.remove(numbers)
    assert {one.number for one in spool.after(0, 10_000)}.isdisjoint(numbers)
    spool.close()


@pytest.mark.timeout(120)
def test_a_publisher_whose_spools_disk_is_full_goes_on_without_it_says_so_once_and_comes_back_to_it(
    embedded: EmbeddedBroker, disk: SmallDisk, on_topics: Any
) -> None:
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        publisher = SyncPublisher(embedded.bootstrap, spool=disk.path / "spool")
        publisher.publish(cost(0), on_delivery=lambda id, error: told.append(id))
        disk.fill()
        longest = 0.0
        sent = 1
        while publisher.report().unspooled < 50:
            begun = time.monotonic()
            publisher.publish({**cost(sent), "data": {"cost": 1, "model": "m" * 200, "note": "x" * 5000}}, on_delivery=lambda id, error: told.append(id))
            longest = max(longest, time.monotonic() - begun)
            sent += 1
            assert sent < 20_000
        assert longest < 10  # max_block_ms is 100: the rest is this machine's
        assert publisher.flush(30) == 0
        report = publisher.report()
        assert (report.accepted, report.delivered, report.dropped, report.failed) == (sent, sent, 0, 0)
        disk.free()
        deadline = time.monotonic() + 20
        while publisher.report().spooled and time.monotonic() < deadline:
            time.sleep(0.1)
        assert publisher.report().spooled == 0  # what had arrived leaves the spool, now that there is room
        without = publisher.report().unspooled
        publisher.max_block_s = 5
        for n in range(sent, sent + 20):
            publisher.publish(cost(n), on_delivery=lambda id, error: told.append(id))
        assert publisher.flush(30) == 0 and publisher.report().unspooled == without
        publisher.close()
    assert [one.category for one in caught if issubclass(one.category, UserWarning)] == [Unspooled]
    ids = [json.loads(message.value())["id"] for message in on_topics("costs")]
    assert sorted(ids) == sorted(told) == sorted(f"c{n}" for n in range(sent + 20))


@pytest.mark.timeout(120)
def test_a_slow_disk_holds_a_training_step_no_longer_than_its_bound(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a slow fsync with")
    (tmp_path / "slow.c").write_text(SLOW)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(tmp_path / "slow.so"), str(tmp_path / "slow.c"), "-ldl"], check=True, timeout=60)
    program = (
        "import json, sys, threading, time, warnings; warnings.simplefilter('ignore')\n"
        "from streams.publisher import SyncPublisher\n"
        "publisher = SyncPublisher(sys.argv[1], spool=sys.argv[2], flush_timeout_s=60)\n"
        "slow, late = [], []\n"
        "def beat():\n"
        "    while True: begun = time.monotonic(); time.sleep(0.01); late.append(time.monotonic() - begun)\n"
        "threading.Thread(target=beat, daemon=True).start()\n"
        "for n in range(6000):\n"
        "    event = {'type': 'cost.incurred.v1', 'id': f'c{n}', 'data': {'cost': 1, 'note': 'x' * 1500}}\n"
        "    begun = time.monotonic(); publisher.publish(event); slow.append(time.monotonic() - begun)\n"
        "begun = time.monotonic(); publisher.flush(60)\n"
        "report = publisher.close()\n"
        "print(json.dumps([max(slow), max(late), report.accepted, report.delivered, report.dropped, report.unspooled, report.spooled]))"
    )
    words = [sys.executable, "-c", program, embedded.bootstrap, str(tmp_path / "spool")]
    done = subprocess.run(
        words, cwd=CHECKOUT, capture_output=True, text=True, timeout=110, env={"LD_PRELOAD": str(tmp_path / "slow.so"), "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    longest, stood, accepted, delivered, dropped, _, spooled = json.loads(done.stdout)
    # three waits for the disk are 3 s; max_block_ms is 100, the rest is this machine's: a thread that only sleeps says how long it stood still
    assert longest < 2 + stood, f"a publish took {longest:.2f} s"
    assert (accepted, delivered + dropped, spooled) == (6000, 6000, 0) and dropped < 3000
