"""The command that looks for a tenant's bytes: what it takes for the tenant's, and what for live."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

import duckdb

from agents.archive_rows import COLUMNS
from agents.past_log import Logged
from agents.scan import Found, Sought, in_archive, told
from streams.errors import PulsefoldError
from tables.rows import wire_key


def record(key: bytes, value: bytes | None, *headers: tuple[str, bytes]) -> Logged:
    return Logged(0, 0, value, list(headers), key)


def test_a_record_is_a_tenants_by_its_key_its_event_or_its_row_and_by_no_name_that_only_looks_like_it() -> None:
    sought = Sought("acme")
    assert sought.in_record(record(b"acme|m", b"not json"), False)
    assert sought.in_record(record(b"32hexdigits", b'{"tenant":"acme","data":{}}'), False)
    assert sought.in_record(record(b"", b'{"tenant":"acme", broken'), False)  # a dead letter
    assert sought.in_record(record(wire_key("trust.1.ab", "acme", ("model", "m")), b"row"), True)
    for key, value in ((b"acme2|m", b'{"tenant":"acme2"}'), (b"x|acme", b'{"tenant":"x","data":{"run":"acme-1"}}'), (b"", b"\xff"), (b"", None)):
        assert not sought.in_record(record(key, value), False)
    assert not sought.in_record(record(wire_key("trust.1.ab", "x", ("acme",)), b"row"), True)
    assert not sought.in_record(record(b"\xff\xfe", b"row"), True)


def test_an_event_without_tenant_is_the_default_ones_and_texts_are_found_anywhere() -> None:
    assert Sought("default").in_record(record(b"", b'{"id":"1"}'), False)
    for one in (record(b"k-secret", b""), record(b"", b"..secret.."), record(b"", None, ("error", b"a secret b"))):
        assert Sought("nobody", (b"secret",)).in_record(one, False) and Sought("nobody", (b"secret",)).in_record(one, True)


def test_the_text_says_whether_anything_is_live() -> None:
    clean = [Found("costs", log=3), Found("changelog", name=2, waiting=5)]
    assert "nothing of acme is live but its name" in told(clean, "acme") and "8 wait for compaction or retention" in told(clean, "acme")
    assert "1 records and rows of acme are live" in told([*clean, Found("alerts", live=1)], "acme")


def test_a_text_with_quotes_and_backslashes_is_found_in_every_column_of_the_archive(tmp_path: Path) -> None:
    columns = {name: f"NULL::{kind}" for name, kind, _ in COLUMNS} | {"tenant": "'acme'"}
    text = "O'Brien\\x"
    for n, (name, given) in enumerate({"key": "$text", "data": "$text", "tags": "[$text, 'b']", "frame": "encode($text)", "headers": "encode($text)"}.items()):
        row = ", ".join(f'{made} AS "{column}"' for column, made in (columns | {name: given}).items())
        duckdb.sql(f"SELECT {row}", params={"text": f"a {text} b"}).write_parquet(str(tmp_path / f"costs-0-{n}-{n}.parquet"))
    assert in_archive(tmp_path, Sought("nobody", (text.encode(),))).live == 5
    assert in_archive(tmp_path, Sought("nobody", (b"O'Brian",))).live == 0


def archived(file: Path, tenant: str) -> None:
    row = ", ".join(f'{made} AS "{column}"' for column, made in ({name: f"NULL::{kind}" for name, kind, _ in COLUMNS} | {"tenant": f"'{tenant}'"}).items())
    duckdb.sql(f"SELECT {row}").write_parquet(str(file), compression="zstd")


def test_other_files_in_the_archives_folder_are_read_as_what_they_are_and_a_name_that_only_begins_alike_is_none(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('{"topic_prefix": "acme2-x.", "by": "x-acme", "of": ["acme.eu", "acme_1"]}')
    archived(tmp_path / ".costs-0-0-9.parquet.77.tmp", "acme2")
    archived(tmp_path / "costs-0-0-9.parquet.broken", "acme2")
    assert in_archive(tmp_path, Sought("acme")) == Found(str(tmp_path))
    assert in_archive(tmp_path, Sought("acme2")).live == 2 and in_archive(tmp_path, Sought("acme_1")).live == 1
    assert in_archive(tmp_path, Sought("nobody", (b"cme.e",))).live == 1
    archived(tmp_path / "costs-0-0-9.parquet.broken", "acme")
    assert in_archive(tmp_path, Sought("acme")).live == 1


def test_a_file_that_cannot_be_read_is_never_taken_for_clean(tmp_path: Path) -> None:
    archived(tmp_path / "whole", "acme")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    for n, content in enumerate((whole[:-9], whole[: len(whole) // 2], b"\0" * 9)):
        (tmp_path / f"costs-0-{n}-{n}.parquet.broken").write_bytes(content)
    (tmp_path / "notes").write_text('"a\\nacme"')
    found = in_archive(tmp_path, Sought("acme"))
    assert (found.unread, found.live) == (3, 1) and "3 files in the archive's folder cannot be read" in told([found], "acme")
    assert in_archive(tmp_path, Sought("other")).unread == 3


def test_files_that_are_written_again_meanwhile_are_looked_at_again(tmp_path: Path) -> None:
    def write(last: int, tenant: str) -> Path:
        file = tmp_path / f"costs-0-0-{last}.parquet"
        archived(tmp_path / "aside", tenant)
        return (tmp_path / "aside").rename(file)

    file, stop = write(0, "acme"), Event()

    def again() -> None:
        nonlocal file
        last = 0
        while not stop.wait(0.001):
            last += 1
            newer = write(last, "acme")
            file.unlink()
            file = newer

    writing = Thread(target=again)
    writing.start()
    try:
        for _ in range(20):
            try:
                assert in_archive(tmp_path, Sought("acme")).live >= 1
            except PulsefoldError as busy:
                assert "try again" in str(busy)
    finally:
        stop.set()
        writing.join()
