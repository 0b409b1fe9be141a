"""The commands. What lives in the service (worker, replay, demo) runs in a process of its own."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import admin
from ..codec import InvalidEvent
from ..errors import BrokerUnavailable, ConfigError, PulsefoldError
from ..settings import Settings, load

app = App(
    name="pulsefold", help="Trust, drift, cost and goals of models and agents, from events on Kafka.", version_flags=["--version"], result_action="return_value"
)
topics = App(name="topics", help="Create or verify the topics.")
alerts = App(name="alerts", help="Alerts as they come.")
dead_letters = App(name="dead-letters", help="Records that could not be absorbed.")
app.command(topics)
app.command(alerts)
app.command(dead_letters)
err = Console(stderr=True)

Config = Annotated[str | None, Parameter(help="settings file (default: pulsefold.toml in this folder, if there)")]
Bootstrap = Annotated[str | None, Parameter(help="Kafka's host:port")]
Prefix = Annotated[str | None, Parameter(help="what every topic's name begins with")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="print JSON")]
Words = Annotated[str, Parameter(allow_leading_hyphen=True, help="settings as flags, such as --web-port 8080")]


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    if argv and argv[0] in ("worker", "replay", "demo", "config") and not {"--help", "-h"} & set(argv):
        return {"config": config_words}.get(argv[0], lambda words: service(argv[0], words))(list(argv[1:]))
    found: Any = app(list(argv), exit_on_error=True, print_error=True)  # type: ignore[no-untyped-call]  # cyclopts leaves __call__ untyped
    return int(found or 0)


def settings_of(config: str | None, **flags: Any) -> Settings:
    """Service settings from flags, environment and file; fold settings in the file are the worker's business."""
    return load(flags, os.environ, config, _fold_settings())


def _fold_settings() -> Sequence[type[msgspec.Struct]]:
    """The folds' settings, where the service is installed (a trainer's machine does without)."""
    root = service_root()
    if root is None or importlib.util.find_spec("scipy") is None:
        return ()
    code = "import json; from agents.registry import FOLD_SETTINGS; print(json.dumps([n for s in FOLD_SETTINGS for n in s.__struct_fields__]))"
    found = subprocess.run([sys.executable, "-c", code], env=service_environment(root), capture_output=True, text=True, check=False)
    if found.returncode:
        return ()
    return (msgspec.defstruct("FoldSettings", [(name, Any, None) for name in json.loads(found.stdout)]),)


# ---- the service in a process of its own


def service_root() -> Path | None:
    """Folder with the packages streams, tables and agents: beside this one in a checkout, ``_service`` in the wheel."""
    here = Path(__file__).resolve().parent.parent
    for root in (here / "_service", here.parent):
        if (root / "agents" / "main.py").exists():
            return root
    return None


def service_environment(root: Path) -> dict[str, str]:
    """Environment in which ``import tables`` finds ours, whatever else is installed."""
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}


def service(command: str, words: list[str]) -> int:
    """Run worker, replay or demo; takes this process's place."""
    root = service_root()
    missing = [name for name in ("faust", "aiokafka", "scipy") if importlib.util.find_spec(name) is None]
    if command == "demo" and importlib.util.find_spec("sklearn") is None:
        missing.append("scikit-learn")
    if root is None or missing:
        extra = "service,demo" if command == "demo" else "service"
        raise PulsefoldError(f"{command}: {', '.join(missing) or 'the service'} is not installed; install with: pip install 'pulsefold[{extra}]'")
    os.execve(sys.executable, [sys.executable, "-m", "agents.main", command, *words], service_environment(root))  # noqa: S606 - our own module


@app.command
def worker(*words: Words) -> int:
    """Fold, follow, alert and serve. Every setting is a flag: --bootstrap, --web-host, --web-port, …; see `pulsefold config`."""
    return service("worker", list(words))


@app.command
def replay(*words: Words) -> int:
    """Rebuild every table from offset 0 in a fresh process and compare it with the live one; exit 1 if they differ. --json"""
    return service("replay", list(words))


@app.command
def demo(*words: Words) -> int:
    """Embedded broker, worker and real training runs. --exit-when-done prints a summary and leaves; --web-port chooses the port."""
    return service("demo", list(words))


@app.command
def config(*words: Words) -> int:
    """Print every setting in force and where it comes from; secrets masked. --json, --config FILE, and any setting as a flag."""
    return config_words(list(words))


def config_words(words: list[str]) -> int:
    """`config`, asked of the service where it is installed, so that the folds' settings are there."""
    root = service_root()
    if root is not None and importlib.util.find_spec("scipy") is not None and importlib.util.find_spec("faust") is not None:
        return service("config", words)
    rows = load({}, os.environ, None).describe()
    for name, value, origin, text in rows:
        print(f"{name} = {json.dumps(value)}  ({origin}) {text}")
    return 0


# ---- broker and topics


@app.command
def broker(*, partitions: int = 8, topic_prefix: str = "pulsefold.", app_id: str = "pulsefold") -> int:
    """The embedded broker alone, until Ctrl-C. The first line of stdout is HOST:PORT. It keeps nothing."""
    from ..broker import EmbeddedBroker

    with EmbeddedBroker(partitions=partitions, prefix=topic_prefix, app_ids=(app_id,)) as running:
        print(running.bootstrap, flush=True)
        print("embedded broker: memory only, nothing is kept after Ctrl-C", file=sys.stderr, flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


@topics.command
def create(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: Prefix = None,
    app_id: str | None = None,
    partitions: int | None = None,
    replication: int | None = None,
    config: Config = None,
) -> int:
    """Create every topic that is missing."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix, app_id=app_id, partitions=partitions, replication=replication)
    created, present = admin.create_topics(found, security=security(found))
    for name in created:
        print(f"created  {name}")
    for name in present:
        print(f"present  {name}")
    return check_and_print(found)


@topics.command
def check(*, bootstrap: Bootstrap = None, topic_prefix: Prefix = None, app_id: str | None = None, partitions: int | None = None, config: Config = None) -> int:
    """Verify every topic; exit 1 if one differs from what is needed."""
    return check_and_print(settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix, app_id=app_id, partitions=partitions))


def check_and_print(found: Settings) -> int:
    """Print problems, one a line."""
    problems = admin.check_topics(found, security=security(found))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("all topics are as needed")
    return 1 if problems else 0


def security(found: Settings) -> dict[str, Any]:
    """librdkafka's settings for a protected Kafka."""
    names = {
        "security.protocol": "kafka_security_protocol",
        "sasl.mechanism": "kafka_sasl_mechanism",
        "sasl.username": "kafka_sasl_username",
        "sasl.password": "kafka_sasl_password",
        "ssl.ca.location": "kafka_ssl_cafile",
    }
    return {theirs: found.get(ours) for theirs, ours in names.items() if found.get(ours) is not None}


# ---- publish


@app.command
def publish(
    file: str, *, bootstrap: Bootstrap = None, topic_prefix: Prefix = None, tenant: str = "default", as_json: AsJson = False, config: Config = None
) -> int:
    """Publish CloudEvents JSON lines (- = stdin) onto the right topics; a line without id gets one made from its content."""
    from ..publisher import SyncPublisher

    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    admin.partition_counts(found.get("bootstrap"), [found.get("topic_prefix") + "judgments"], security=security(found))
    refused: list[dict[str, Any]] = []
    accepted = 0
    with SyncPublisher(
        found.get("bootstrap"), prefix=found.get("topic_prefix"), tenant=tenant, source="pulsefold-publish", max_block_ms=60_000, config=security(found)
    ) as publisher:
        for number, line in progress_over(file):
            try:
                if not line.strip():
                    continue
                publisher.publish(prepare(line))
                accepted += 1
            except InvalidEvent as bad:
                refused.append({"line": number, "reason": bad.reason, "error": bad.error})
        publisher.flush(120)
        report = publisher.report()
    failed = report.accepted - report.delivered
    if as_json:
        print(json.dumps({"accepted": accepted, "delivered": report.delivered, "failed": failed, "refused": refused}))
    else:
        for one in refused:
            print(f"line {one['line']}: {one['reason']}: {one['error']}", file=sys.stderr)
        print(f"{report.delivered} accepted, {len(refused)} refused" + (f", {failed} not acknowledged ({report.errors})" if failed else ""))
    return 1 if refused or failed else 0


def prepare(line: bytes) -> dict[str, Any]:
    """A line as an envelope: numbers keep their decimal text; ids come from the content where there is none.

    Raises:
        InvalidEvent: not JSON, or something that only workers publish.
    """
    from ..codec import InvalidEvent as Bad

    try:
        body = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        plain = {name: msgspec.json.decode(raw) for name, raw in body.items() if name != "data"}
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Bad("not_json", f"the line is no JSON object: {exc}") from None
    if plain.get("derivedfrom") is not None:
        raise Bad("refused", "derivedfrom: set by workers only", "derivedfrom")
    if str(plain.get("type", "")).startswith(("clock.", "alert.")):
        raise Bad("refused", f"type: {plain['type']} is published by workers only", "type")
    if not plain.get("id"):
        plain["id"] = "c-" + hashlib.sha256(b"|".join(name.encode() + b"=" + bytes(raw) for name, raw in sorted(body.items()))).hexdigest()[:40]
    return {**plain, "data": body.get("data")}


def progress_over(file: str) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of a file, with a progress bar on a terminal."""
    try:
        size = Path(file).stat().st_size if file != "-" else None
        stream = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror}") from None
    with (
        stream,
        Progress(
            TextColumn("publishing"),
            BarColumn(),
            TextColumn("{task.completed:.0f} bytes"),
            TimeElapsedColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        ) as bar,
    ):
        task = bar.add_task("publishing", total=size)
        for number, line in enumerate(stream, 1):
            yield number, line
            bar.advance(task, len(line))


# ---- query


@app.command
def query(
    path: str,
    *params: str,
    url: str = "http://127.0.0.1:6066",
    token: str | None = None,
    tenant: str | None = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, Parameter(name="--csv", negative="", help="print CSV")] = False,
) -> int:
    """Ask a view: `pulsefold query /trust/model/m1`, `pulsefold query /variables/rank key=count limit=5`."""
    body = ask(url, path, dict(one.partition("=")[::2] for one in params), token or os.environ.get("PULSEFOLD_TOKEN"), tenant)
    if as_json:
        print(json.dumps(body, indent=2))
    elif as_csv:
        write_csv(rows_of(body))
    else:
        show(body)
    return 0


def ask(url: str, path: str, params: Mapping[str, str], token: str | None, tenant: str | None) -> Any:
    """JSON of a view.

    Raises:
        PulsefoldError: nobody answers, or the answer is an error (its detail).
    """
    full = (
        url.rstrip("/") + ("" if path.startswith(("/api/", "/readyz", "/healthz", "/openapi")) else "/api/v1") + (path if path.startswith("/") else "/" + path)
    )
    if params:
        full += "?" + urllib.parse.urlencode(params)
    headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **({"X-Tenant": tenant} if tenant else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(full, headers=headers), timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as exc:
        try:
            detail = json.load(exc).get("detail", exc.reason)
        except ValueError:
            detail = exc.reason
        raise PulsefoldError(f"{path}: {exc.code} {detail}") from None
    except (urllib.error.URLError, OSError) as exc:
        raise BrokerUnavailable(f"url: no worker answers at {url} ({getattr(exc, 'reason', exc)})") from None


def rows_of(body: Any) -> list[dict[str, Any]]:
    """The list inside an answer, else the answer as one row."""
    if isinstance(body, dict):
        for value in body.values():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                return value
        return [body]
    return list(body)


def write_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """CSV on stdout; cells that a spreadsheet would take for a formula get an apostrophe."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = csv.writer(sys.stdout)
    out.writerow(names)
    for row in rows:
        cells = [row.get(name) for name in names]
        texts = ["" if c is None else json.dumps(c) if isinstance(c, (dict, list)) else c for c in cells]
        out.writerow(["'" + t if isinstance(t, str) and t[:1] in "=+-@" and t else t for t in texts])


def show(body: Any) -> None:
    """A table for people."""
    rows = rows_of(body)
    table = Table(show_lines=False)
    if len(rows) == 1 and rows[0] is body:
        table.add_column("field")
        table.add_column("value")
        for name, value in body.items():
            table.add_row(name, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        for name in names:
            table.add_column(name)
        for row in rows:
            table.add_row(*(json.dumps(row.get(n)) if isinstance(row.get(n), (dict, list)) else "" if row.get(n) is None else str(row.get(n)) for n in names))
    Console(markup=False).print(table)


# ---- alerts and dead letters


@alerts.command
def tail(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: Prefix = None,
    tenant: str | None = None,
    since: str = "latest",
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Print alerts as they come, until Ctrl-C. --since earliest begins with those on the topic."""
    from ..subscriber import AlertSubscriber

    if since not in ("latest", "earliest"):
        raise ConfigError("since", "expected latest or earliest")
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)

    async def follow() -> None:
        async with AlertSubscriber(found.get("bootstrap"), prefix=found.get("topic_prefix"), tenant=tenant, since=since, config=security(found)) as subscribed:  # type: ignore[arg-type]  # checked above
            async for alert in subscribed:
                if as_json:
                    print(json.dumps(msgspec.to_builtins(alert)), flush=True)
                else:
                    print(
                        f"{alert.time}  {alert.type.split('.')[1]:9} {alert.data.severity:8} {alert.data.rule:18} {alert.tenant}  {alert.data.message}",
                        flush=True,
                    )

    asyncio.run(follow())
    return 0


@dead_letters.command(name="list")
def list_dead_letters(
    *, bootstrap: Bootstrap = None, topic_prefix: Prefix = None, reason: str | None = None, limit: int = 100, as_json: AsJson = False, config: Config = None
) -> int:
    """The newest dead letters, with why and where from."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    rows = [row for row in read_dead_letters(found) if reason is None or row["reason"] == reason][-limit:]
    if as_json:
        print(json.dumps(rows))
    elif rows:
        show({"dead_letters": rows})
    else:
        print("no dead letters")
    return 0


def read_dead_letters(found: Settings) -> list[dict[str, Any]]:
    """Everything on the dead-letters topic, oldest first."""
    topic = found.get("topic_prefix") + "dead-letters"
    admin.partition_counts(found.get("bootstrap"), [topic], security=security(found))
    consumer = Consumer(
        {"bootstrap.servers": found.get("bootstrap"), "group.id": "pulsefold-cli", "enable.auto.commit": False, "log_level": 0, **security(found)}
    )
    rows = []
    try:
        for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            consumer.assign([TopicPartition(topic, number, low)])
            at = low
            with Progress(TextColumn("reading"), BarColumn(), MofNCompleteColumn(), console=err, disable=not err.is_terminal, transient=True) as bar:
                task = bar.add_task("reading", total=high - low)
                while at < high:
                    message = consumer.poll(10)
                    if message is None:
                        break
                    if message.error():
                        raise KafkaException(message.error())
                    at = message.offset() + 1
                    bar.advance(task)
                    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or []}
                    raw = message.value()
                    rows.append({**headers, "bytes": len(raw or b""), "value": (raw or b"")[:200].decode("utf-8", "replace")})
    finally:
        consumer.close()
    return sorted(rows, key=lambda row: row.get("time", ""))
