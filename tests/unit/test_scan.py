"""The command that looks for a tenant's bytes: what it takes for the tenant's, and what for live."""

from __future__ import annotations

from pathlib import Path

import duckdb

from agents.archive_rows import COLUMNS
from agents.past_log import Logged
from agents.scan import Found, Sought, in_archive, told
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
