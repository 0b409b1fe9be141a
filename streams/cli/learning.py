"""``pulsefold export learning`` and ``pulsefold import learning``: curves and goals in a file, and back onto the topics.

The file is one JSON object, written with one event or goal a line, so that it can be read by line too: a broken line is
refused with its number and the rest goes on. Ids are made of what a line says, so a file that is imported twice changes
nothing the second time. JSON lines of events and goals can be imported too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from .. import admin
from ..codec import InvalidEvent, decode
from ..errors import ConfigError, PulsefoldError
from ..keys import derived_id, encode_key
from .files import put
from .options import AsJson, Bootstrap, Config, OutFile, Tenant, Token, TopicPrefix, Url, security, settings_of
from .output import clean, write_csv
from .query import ask, worker_url

Ask = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""Path and parameters of a view -> its answer."""
Panel = Literal["curves", "scores", "rates", "goals"]
POINT = {
    "time": "time", "performance_score": "score", "learning_rate": "learning_rate", "episode_count": "episode_count",
    "convergence_metric": "convergence_metric",
}  # fmt: skip
"""Field of an exported event -> field of a point of the curve."""
FIGURES = ("performance_score", "learning_rate", "convergence_metric", "episode_count")
"""What a goal may be linked to in a learning event."""
LISTS = ("learning_events", "goals", "convergence_history")
_LIST = re.compile(r'"(\w+)"\s*:\s*\[\s*(\],?)?$')


# ---- export


def export(
    file: OutFile,
    *,
    since: Annotated[str | None, Parameter(help="no event before this time (RFC 3339)")] = None,
    panel: Annotated[Panel | None, Parameter(help="only what this picture is drawn of")] = None,
    format: Annotated[Literal["json", "csv"], Parameter(help="csv is of one panel")] = "json",
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    config: Config = None,
) -> int:
    """Write learning events, goals with their values, convergences and the report into a file.

    The events are those that the worker keeps of each task and run (the last 1,000); how many there were is told. With --panel, the rows
    of one picture instead: curves by task, distribution of scores, learning rates over time, or progress of goals.
    """
    if format == "csv" and panel is None:
        raise ConfigError("format", "a CSV file holds one table; say which with --panel curves, scores, rates or goals")
    if panel == "goals" and since is not None:
        raise ConfigError("since", "goals have none")
    if since is not None:
        try:
            moment = datetime.fromisoformat(since)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ConfigError("since", f"expected an RFC 3339 time with an offset, got {since!r}")
    at = worker_url(url, config)
    secret = token or os.environ.get("PULSEFOLD_TOKEN")

    def view(path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = ask(at, path, [(k, str(v)) for k, v in params.items()], secret, tenant)
        if not body.pop("ready", True):
            raise PulsefoldError("the worker is still restoring its tables; ask again when /readyz says 200")
        return body

    if panel is not None:
        names, rows = panel_of(view, panel, since)
        if format == "csv":
            out = io.StringIO(newline="")
            write_csv(rows, names, out)
            text = out.getvalue()
        else:
            text = json.dumps(rows, indent=2) + "\n"
        put(file, text)
        print(f"{len(rows)} rows", file=sys.stderr)
        return 0
    found = document(view, since)
    put(file, text_of(found))
    n, total = len(found["learning_events"]), found["events_total"]
    older = f" of {total} (older ones are no longer in the curves, or before --since)" if total > n else ""
    print(f"{n} learning events{older}, {len(found['goals'])} goals", file=sys.stderr)
    return 0


def panel_of(ask: Ask, panel: Panel, since: str | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and all rows of a panel, page by page; of each task and run all points that the worker keeps."""
    params = {"limit": 1000} if panel == "goals" else {"window": 1000, **({} if since is None else {"since": since})}
    body = ask(f"/learning/panels/{panel}", params)
    rows = list(body["rows"])
    while body["cursor"] is not None:
        body = ask(f"/learning/panels/{panel}", {**params, "cursor": body["cursor"]})
        rows += body["rows"]
    return body["columns"], rows


def document(ask: Ask, since: str | None = None) -> dict[str, Any]:
    """What is exported, by asking views; events and goals by time."""
    events: list[dict[str, Any]] = []
    total = 0
    for stream in pages(ask, "/learning/streams", "streams"):
        total += stream["total_events"]
        params = {"task": stream["task"], "run": stream["run"] or "", "window": 1000, **({} if since is None else {"since": since})}
        names = {"task_type": stream["task"], **({} if stream["run"] is None else {"run": stream["run"]})}
        events += [{**names, **{ours: point[theirs] for ours, theirs in POINT.items()}} for point in ask("/learning/curve", params)["points"]]
    goals = list(pages(ask, "/learning/goals", "goals", history="true"))
    return {
        "export_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "events_total": total,
        "learning_events": sorted(events, key=lambda one: (one["time"], one["task_type"], one.get("run", ""))),
        "goals": sorted(goals, key=lambda one: (one["created_at"], one["goal_id"], one["task_type"] or "")),
        "convergence_history": ask("/learning/convergence", {})["recent_convergences"],
        "learning_report": ask("/learning/report", {}),
    }


def pages(ask: Ask, path: str, name: str, **params: str) -> Iterator[dict[str, Any]]:
    """Every item of a list, page by page."""
    cursor = None
    while True:
        body = ask(path, {"limit": 200, **params, **({} if cursor is None else {"cursor": cursor})})
        yield from body[name]
        cursor = body["cursor"]
        if cursor is None:
            return


def text_of(found: Mapping[str, Any]) -> str:
    """One JSON object; the items of its lists a line each."""
    parts = []
    for name, value in found.items():
        if name in LISTS:
            lines = ",\n".join(json.dumps(item) for item in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]" if value else f"{json.dumps(name)}: []")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# ---- import


def import_(
    file: Annotated[str, Parameter(allow_leading_hyphen=True, help="of `export learning`, or JSON lines; - = stdin")],
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    tenant: Annotated[str, Parameter(help="who gets it")] = "default",
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Publish the learning events and goals of a file; doing it twice changes nothing. Exit code 1 if a line was refused."""
    from ..publisher import SyncPublisher

    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    theirs = security(found)
    try:
        with nullcontext(sys.stdin) if file == "-" else open(file, encoding="utf-8", errors="replace") as lines:
            read = Import(tenant)
            read.take(lines)
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror}") from None
    admin.partition_counts(found.get("bootstrap"), [found.get("topic_prefix") + "training"], security=theirs)
    with SyncPublisher(found.get("bootstrap"), prefix=found.get("topic_prefix"), source="pulsefold-import", max_block_ms=60_000, config=theirs) as publisher:
        for event in read.events():
            publisher.publish(event)
        publisher.flush(120)
        report = publisher.report()
    failed = report.accepted - report.delivered
    if as_json:
        print(json.dumps({"events": read.n_events, "goals": read.n_goals, "delivered": report.delivered, "failed": failed, "refused": read.refused}))
    else:
        for one in read.refused:
            print(clean(f"line {one['line']}: {one['reason']}: {one['error']}"), file=sys.stderr)
        told = f"{read.n_events} learning events and {read.n_goals} goals imported, {len(read.refused)} lines refused"
        print(told + (f", {failed} events not acknowledged ({report.errors})" if failed else ""))
    return 1 if read.refused or failed else 0


@dataclass
class Import:
    """A file's lines as events of the contract.

    Attributes:
        tenant: who gets them.
        refused: (line, reason, error) of what is none.
        n_events, n_goals: learning events and goals taken.
    """

    tenant: str
    refused: list[dict[str, Any]] = field(default_factory=list)
    n_events: int = 0
    n_goals: int = 0
    _found: list[tuple[datetime, dict[str, Any]]] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)
    _sources: dict[tuple[str, str, float], list[tuple[str, str]]] = field(default_factory=dict)
    _linked: list[tuple[dict[str, Any], list[dict[str, Any]]]] = field(default_factory=list)

    def take(self, lines: Iterable[str]) -> None:
        """Read a file; what cannot be taken is in `refused`."""
        for number, text in items(lines):
            try:
                item = json.loads(text)
                if not isinstance(item, dict):
                    raise InvalidEvent("not_json", "expected a JSON object: a learning event or a goal")
                if "goal_id" in item:
                    self._goal(item)
                else:
                    self._event(item)
            except InvalidEvent as bad:
                self.refused.append({"line": number, "reason": bad.reason, "error": bad.error})
            except (ValueError, RecursionError) as bad:
                self.refused.append({"line": number, "reason": "not_json", "error": f"the line is no JSON: {bad}"})

    def events(self) -> Iterator[dict[str, Any]]:
        """Envelopes to publish, by time; the values of a goal stay in their order."""
        for goal, values in self._linked:
            self._name_as_derived(goal, values)
        for _, event in sorted(self._found, key=lambda one: one[0]):
            yield event

    def _event(self, item: dict[str, Any]) -> None:
        event = self._envelope("learning.recorded.v1", item.get("time"), {name: value for name, value in item.items() if name not in ("time", "id")})
        moment = checked(event)
        self._found.append((moment, event))
        self.n_events += 1
        for name in FIGURES:
            self._sources.setdefault((event["time"], name, item[name]), []).append((item["task_type"], event["id"]))

    def _goal(self, item: dict[str, Any]) -> None:
        names = ("goal_id", "description", "target", "direction", "task_type", "metric", "deadline")
        start = item.get("given_start") if "given_start" in item else item.get("start")
        data = {name: item[name] for name in names if item.get(name) is not None} | ({} if start is None else {"start": start})
        created = self._envelope("goal.created.v1", item.get("created_at", item.get("time")), data)
        home: dict[str, Any] = {name: data[name] for name in ("goal_id", "task_type") if name in data}
        history = item.get("history") or []
        if not isinstance(history, list) or not all(isinstance(one, dict) for one in history):
            raise InvalidEvent("invalid_field", "history: expected a list of {time, current}", "history")
        values = [self._envelope("goal.progressed.v1", one.get("time"), {**home, "current": one.get("current")}) for one in history]
        order = moment = checked(created)
        placed = [(moment, created)]
        for value in values:
            order = max(order, checked(value))
            placed.append((order, value))
        self._found += placed
        self.n_goals += 1
        if data.get("metric") in FIGURES:
            self._linked.append((data, values))

    def _envelope(self, type: str, time: object, data: dict[str, Any]) -> dict[str, Any]:
        """An event whose id is made of its content, and of how many equal ones came before it."""
        if time is None:
            raise InvalidEvent("invalid_field", "time: is required", "time")
        body = {"specversion": "1.0", "type": type, "time": time, "data": data}
        content = json.dumps(body, sort_keys=True, separators=(",", ":"))
        self._seen[content] += 1
        name = "i-" + hashlib.sha256(f"{content}#{self._seen[content]}".encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return {**body, "id": name, "tenant": self.tenant, "source": "pulsefold-import"}

    def _name_as_derived(self, goal: dict[str, Any], values: list[dict[str, Any]]) -> None:
        """Give values that a learning event of the file brought the id that a worker will give them: so they count once."""
        task = goal.get("task_type")
        name = encode_key(task, goal["goal_id"]).decode()
        for value in values:
            sources = self._sources.get((value["time"], goal["metric"], value["data"]["current"]), [])
            for source_task, source in sources:
                derived = derived_id("training", self.tenant, source, "goal.progressed.v1", name)
                if task in (None, source_task) and not self._seen[derived]:
                    self._seen[derived] += 1
                    value["id"] = derived
                    break


def checked(event: dict[str, Any]) -> datetime:
    """Time of an event that the contract takes.

    Raises:
        InvalidEvent: it does not.
    """
    found = decode(msgspec.json.encode(event))
    if found.time is None:
        raise InvalidEvent("invalid_field", "time: is required", "time")
    return found.time


def items(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line number, text) of the events and goals in a file: of an exported one, or of JSON lines."""
    section: str | None = None
    exported = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        found = _LIST.search(text) if section is None else None
        if not text:
            continue
        if section is not None:
            if text in ("]", "],"):
                section = None
            elif section in LISTS[:2]:
                yield number, text.removesuffix(",")
        elif found is not None:
            exported = True
            section = None if found[2] else found[1]
        elif text == "{" and number == 1:
            exported = True
        elif not exported:
            yield number, text
