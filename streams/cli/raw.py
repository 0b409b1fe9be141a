"""``pulsefold export metrics|variables|contributions|learning-log|training-data`` and ``pulsefold sql``: raw events, as files and tables.

The rules this file keeps: a file is there whole or not at all; every page of an export is asked for, so nothing is cut off
silently; what a spreadsheet would take for a formula is not one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Annotated, Any, cast

from cyclopts import Parameter

from ..aside import aside
from ..client import METRIC_COLUMNS, PAGE, Client
from ..errors import ConfigError, PulsefoldError
from .options import AsCsv, AsJson, Config, OutFile, Tenant, Token, Url
from .output import show, table_value, write_csv
from .query import worker_url

Format = Annotated[str | None, Parameter(name="--format", help="csv, json, jsonl or parquet (default: by the file's name, else jsonl)")]
Gzip = Annotated[bool, Parameter(name="--gzip", negative="", help="compressed with gzip")]
Since = Annotated[str | None, Parameter(help="from this time on (RFC 3339 or a UTC date)")]
Until = Annotated[str | None, Parameter(help="before this time; a date takes in that day")]
Several = Annotated[list[str] | None, Parameter(negative="", help="any of these; may be repeated")]
FORMATS = ("csv", "json", "jsonl", "parquet")
EVENT_COLUMNS = ("id", "type", "time", "tenant", "source", "derivedfrom", "data")
CONTRIBUTION_COLUMNS = (
    "timestamp", "variable", "value", "forecast_id", "confidence", "fragility", "certified", "alignment_score", "arc_label", "symbolic_tag",
    "confidence_status",
)  # fmt: skip
NUMBERS = frozenset(("value", "epoch", "step", "cost_micro_usd", "api_calls", "token_usage", "confidence", "fragility", "alignment_score"))


def client_of(url: str | None, token: str | None, tenant: str | None, config: str | None, timeout_s: float = 120.0) -> Client:
    """A client of the worker that the flags or settings name."""
    return Client(worker_url(url, config), token=token, tenant=tenant, timeout_s=timeout_s)


def metrics(
    file: OutFile,
    *,
    types: Several = None,
    models: Several = None,
    tags: Several = None,
    runs: Several = None,
    since: Since = None,
    until: Until = None,
    filter: Annotated[str | None, Parameter(help='a JSON object: equality on fields, such as {"config.lr": 0.1}')] = None,
    as_: Format = None,
    zipped: Gzip = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write every metric that matches, one row each, newest first; with none the header alone."""
    params = {"types": types, "models": models, "tags": tags, "runs": runs, "since": since, "until": until, "filter": filter}
    with client_of(url, token, tenant, config) as client:
        return write(file, as_, zipped, client.every("/metrics", limit=PAGE, **params), METRIC_COLUMNS)


def variables(
    file: OutFile,
    *,
    exact: Annotated[bool, Parameter(negative="", help="means unrounded")] = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write all scores of one moment, as {variable: score}."""
    with client_of(url, token, tenant, config) as client:
        answer = client.get("/exports/variables", exact=exact)
    if not answer.ready:
        raise PulsefoldError("the worker is still restoring its tables; ask again when /readyz says 200")
    scores = answer["variables"]
    with out_file(file) as out:
        out.write(json.dumps(scores, indent=1, ensure_ascii=False).encode() + b"\n")
    print(f"{len(scores)} variables as of {answer['as_of']}", file=sys.stderr)
    return 0


def contributions(
    file: OutFile,
    *,
    since: Since = None,
    until: Until = None,
    as_: Format = None,
    zipped: Gzip = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write what each forecast contributed to each variable: one line a forecast and variable, each once."""
    with client_of(url, token, tenant, config) as client:
        return write(file, as_, zipped, lines(client, "/exports/contributions", since, until), CONTRIBUTION_COLUMNS)


def learning_log(
    file: OutFile,
    *,
    since: Since = None,
    until: Until = None,
    zipped: Gzip = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write the performance updates of variables as `memory_update` lines."""
    with client_of(url, token, tenant, config) as client:
        return write(file, "jsonl", zipped, lines(client, "/exports/learning-log", since, until), ())


def training_data(
    file: OutFile,
    *,
    since: Since = None,
    until: Until = None,
    types: Several = None,
    anonymise: Annotated[bool | None, Parameter(help="pseudonyms for names (default: as the service is configured)")] = None,
    as_: Format = None,
    zipped: Gzip = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write the events of agents, tasks and judgments, oldest first, as they came."""
    params = {"since": since, "until": until, "types": types, "anonymise": anonymise}
    with client_of(url, token, tenant, config) as client:
        return write(file, as_, zipped, client.every("/performance/training-data", limit=PAGE, **params), EVENT_COLUMNS)


def sql(
    query: Annotated[str, Parameter(help="one SELECT over the view events")],
    *,
    limit: Annotated[int, Parameter(help="most rows, up to 10000")] = 1000,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    config: Config = None,
) -> int:
    """Ask a question of one's own of one's own events, e.g. `pulsefold sql "select model, count(*) from events group by all"`."""
    with client_of(url, token, tenant, config) as client:
        answer = client.sql(query, limit=limit)
    if as_json:
        print(json.dumps(answer, indent=2))
    elif as_csv:
        write_csv(answer["rows"], [column["name"] for column in answer["columns"]])
    else:
        show({"rows": answer["rows"]} if answer["rows"] else {"rows": "none"})
        if answer["truncated"]:
            print(f"the first {answer['count']} rows; more with --limit", file=sys.stderr)
    return 0


# ---- writing


def lines(client: Client, path: str, since: str | None, until: str | None) -> Iterator[dict[str, Any]]:
    """Every line of an export, page by page until nothing more is there."""
    cursor = None
    while True:
        page = client.get(path, since=since, until=until, limit=1000, cursor=cursor)
        yield from page["lines"]
        cursor = page.cursor
        if page["n_events"] < 1000:
            return


def write(file: str, kind: str | None, zipped: bool, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Write rows into a file in a format; says how many."""
    zipped = zipped or file.endswith(".gz")
    kind = kind or (Path(file.removesuffix(".gz")).suffix[1:].lower() if file != "-" else "") or "jsonl"
    kind = "jsonl" if kind == "ndjson" else kind
    if kind not in FORMATS:
        raise ConfigError("format", f"expected one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "parquet" and zipped:
        raise ConfigError("gzip", "Parquet files are compressed already")
    counted = Counted(rows)
    with out_file(file, zipped) as out:
        if kind == "parquet":
            _parquet(out, counted, columns)
        else:
            _text(out, kind, counted, columns)
    print(f"{counted.n} rows", file=sys.stderr)
    return 0


class Counted:
    """Rows, counted as they go by."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = rows
        self.n = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self._rows:
            self.n += 1
            yield row


@contextmanager
def out_file(file: str, zipped: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes its place when all of it is written; ``-`` is stdout.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with nullcontext(sys.stdout.buffer) if file == "-" else aside(Path(file)) as raw:
            if zipped:
                with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
                    yield cast(IO[bytes], packed)
            else:
                yield raw
            raw.flush()
    except BrokenPipeError:
        raise  # who read our output has gone
    except OSError as failed:
        raise ConfigError(file, f"cannot be written: {failed.strerror or failed}") from None


def _text(out: IO[bytes], kind: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if kind == "csv":
        text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow(columns)
        table.writerows([table_value(row.get(name), number=name in NUMBERS) for name in columns] for row in rows)
        text.detach()
    elif kind == "jsonl":
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    else:
        begin = b"[\n"
        for row in rows:
            out.write(begin + json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace"))
            begin = b",\n"
        out.write(b"\n]\n" if begin == b",\n" else b"[]\n")


def _parquet(out: IO[bytes], rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    try:
        import duckdb
    except ImportError:
        raise PulsefoldError("parquet needs duckdb; install with: pip install 'pulsefold[service]'") from None
    with tempfile.TemporaryDirectory(prefix="pulsefold-") as folder:
        given, made = Path(folder, "rows.jsonl"), Path(folder, "rows.parquet")
        with given.open("w", encoding="utf-8", errors="backslashreplace") as lines_:
            for row in rows:
                texts = {name: table_value(row.get(name), number=True) for name in columns}
                lines_.write(json.dumps({name: None if text == "" else str(text) for name, text in texts.items()}) + "\n")
        types = {"time": "TIMESTAMP", "timestamp": "TIMESTAMP", "cost_micro_usd": "BIGINT", "api_calls": "BIGINT", "token_usage": "BIGINT"}
        kinds = {name: types.get(name, "DOUBLE" if name in NUMBERS else "VARCHAR") for name in columns}
        casts = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in kinds.items())
        with duckdb.connect(":memory:") as database:
            read = f"SELECT {casts} FROM read_json($given, columns = $columns, format = 'newline_delimited')"  # noqa: S608 - names of ours
            database.execute(f"CREATE TABLE rows AS {read}", {"given": str(given), "columns": dict.fromkeys(columns, "VARCHAR")})
            database.execute("COPY rows TO $made (FORMAT parquet, COMPRESSION zstd)", {"made": str(made)})
        out.write(made.read_bytes())
