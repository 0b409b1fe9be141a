"""The disk spool: what it has taken survives the process; what is acknowledged leaves it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streams.errors import ConfigError
from streams.publisher import SyncPublisher
from streams.spool import OVERHEAD_BYTES, Spool, SpoolFull

CHECKOUT = Path(__file__).resolve().parents[2]


def put(spool: Spool, name: str, size: int = 10) -> int:
    return spool.put(name, "pulsefold.costs", b"default", b"x" * size)


def names(spool: Spool) -> list[str]:
    return [one.id for one in spool.after(0)]


def test_events_come_back_in_order_as_they_were_put(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put("e1", "pulsefold.costs", b"acme", b'{"id":"e1"}')
    spool.put("e2", "pulsefold.training", b"acme|r1", b'{"id":"e2"}')
    assert [tuple(one)[1:] for one in spool.after(0)] == [
        ("e1", "pulsefold.costs", b"acme", b'{"id":"e1"}'), ("e2", "pulsefold.training", b"acme|r1", b'{"id":"e2"}'),
    ]  # fmt: skip
    spool.close()


def test_what_was_put_is_there_after_kill_9(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from streams.spool import Spool; s = Spool(sys.argv[1])\n"
        "[s.put(f'e{i}', 't', b'k', b'v') for i in range(100)]; s.remove(range(1, 41)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spool")], cwd=CHECKOUT, timeout=30)
    assert done.returncode == -9
    spool = Spool(tmp_path / "spool")
    assert names(spool) == [f"e{i}" for i in range(40, 100)]
    assert len(spool) == 60
    spool.close()


def test_a_number_is_never_used_twice_even_if_the_newest_event_was_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    first = put(spool, "e1")
    spool.remove([first])
    spool.close()
    spool = Spool(tmp_path / "spool")
    second = put(spool, "e2")
    assert second > first
    spool.remove([first])  # a late acknowledgement of the first
    assert names(spool) == ["e2"]
    spool.close()


def test_it_refuses_more_than_its_bound_and_takes_again_after_a_removal(tmp_path: Path) -> None:
    each = 7 + 10 + OVERHEAD_BYTES
    spool = Spool(tmp_path / "spool", max_bytes=3 * each)
    numbers = [put(spool, f"e{i}") for i in range(3)]
    with pytest.raises(SpoolFull, match="spool_max_bytes"):
        put(spool, "e3")
    assert names(spool) == ["e0", "e1", "e2"] and spool.n_bytes == 3 * each
    spool.remove(numbers[:1])
    put(spool, "e4")
    assert names(spool) == ["e1", "e2", "e4"]
    spool.close()


def test_the_bound_counts_what_an_earlier_process_left(tmp_path: Path) -> None:
    each = 7 + 10 + OVERHEAD_BYTES
    spool = Spool(tmp_path / "spool")
    put(spool, "e1")
    put(spool, "e2")
    spool.close()
    spool = Spool(tmp_path / "spool", max_bytes=2 * each)
    assert spool.n_bytes == 2 * each
    with pytest.raises(SpoolFull):
        put(spool, "e3")
    spool.close()


def test_removing_twice_or_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    number = put(spool, "e1")
    put(spool, "e2")
    spool.remove([number, number + 100])
    before = spool.n_bytes
    spool.remove([number])
    assert (spool.n_bytes, names(spool)) == (before, ["e2"])
    spool.close()


def test_a_second_process_on_the_same_file_is_told_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    program = (
        "import sys; from streams.spool import Spool; from streams.errors import ConfigError\n"
        "try: Spool(sys.argv[1])\nexcept ConfigError as e: print(e); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spool")], cwd=CHECKOUT, timeout=30, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "held by another publisher" in done.stdout
    with pytest.raises(ConfigError, match="held by another publisher"):
        Spool(tmp_path / "spool")
    put(spool, "e1")  # the first one still works
    spool.close()
    Spool(tmp_path / "spool").close()


def test_a_file_that_is_no_spool_and_a_folder_that_is_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(ConfigError, match="text cannot be used as a spool"):
        Spool(tmp_path / "text")
    with pytest.raises(ConfigError, match="folder must exist"):
        Spool(tmp_path / "nowhere" / "spool")


def test_the_files_stay_near_the_bound_while_events_come_and_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20)
    waiting: list[int] = []
    for i in range(10_000):
        waiting.append(put(spool, f"e{i}", 500))
        spool.checkpoint()  # as the publisher's own thread does
        if len(waiting) == 1500:
            spool.remove(waiting)
            waiting.clear()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.3 * (1 << 20) + (8 << 20)
    spool.close()


def test_a_removal_that_could_not_even_be_rolled_back_takes_nothing_with_it_that_is_put_later(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    put(spool, "e0")
    spool._db.execute("BEGIN")  # what such a removal leaves
    spool._db.execute("DELETE FROM spool")
    put(spool, "e1")
    spool.close()
    again = Spool(tmp_path / "spool")
    assert names(again) == ["e0", "e1"]
    again.close()


def test_flush_returns_when_what_another_thread_is_taking_out_of_the_spool_has_left_it(tmp_path: Path) -> None:
    publisher = SyncPublisher("127.0.0.1:9", spool=tmp_path / "spool", max_block_ms=10)
    spool = publisher._spool
    assert spool is not None
    number = spool.put("e1", "t", b"k", b"v")
    spool._lock.acquire()  # the disk is slow
    with publisher._lock:
        publisher._acked.append(number)
    while publisher._acked:
        time.sleep(0.001)
    threading.Timer(0.3, spool._lock.release).start()
    assert publisher.flush(30) == 0 and publisher.report().spooled == 0
    publisher.close(0)
