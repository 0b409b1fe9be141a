"""What other settings would have raised: a recorded history folded anew, and the alerts that come of it.

The rules this file keeps:
  * the folds, the ordered rules in them and the merged rules are the worker's own; nothing is published;
  * what a worker derived is derived again, since other settings may derive something else; its ticks of the clock alone are history;
  * merged rules are judged as a worker would that had been there: whenever `alert_interval_s` has passed, by the events' times or by
    those of the log, whichever comes first (a history that was sent in one go is judged as if it had come in its time);
  * the same history and settings give the same messages.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from streams.keys import partition_for
from streams.topics import SOURCE_TOPICS
from tables.alerting import LEVELS, RESOLVED, change_type, verdict_data
from tables.budgets import RULES
from tables.fold import MergedRule, Standing, Verdict
from tables.partition import GRAVE, Logged, Schema, partitions_of
from tables.reader import PartitionReader
from tables.times import day, rfc3339, to_us

SLICE = 500
"""Most records between two looks of the merged rules."""


@dataclass(frozen=True, slots=True)
class Item:
    """An event of a history.

    Attributes:
        stamp_ms: Kafka timestamp.
        time_us: event time; the stamp where the event has none.
        place: topic without prefix, partition.
    """

    stamp_ms: int
    time_us: int
    place: tuple[str, int]
    value: bytes


class _Head(msgspec.Struct):
    type: str = ""
    time: datetime | None = None
    derivedfrom: str | None = None


_head = msgspec.json.Decoder(_Head).decode


def item(place: tuple[str, int], stamp_ms: int, value: bytes) -> Item | None:
    """An event as part of a history; None where a worker derived it, for it is derived again."""
    head = _head(value)
    if head.derivedfrom is not None and head.type != "clock.ticked.v1":
        return None
    return Item(stamp_ms, stamp_ms * 1000 if head.time is None else to_us(head.time), place, value)


class Run:
    """One fold of a history.

    Args:
        tables: of the settings that are tried.
        counts: source topic (without prefix) -> partitions.
        interval_s: `alert_interval_s`.

    Attributes:
        messages: alert messages so far: ``type``, ``time``, ``tenant`` and the fields of their data.
    """

    def __init__(self, tables: Schema, counts: Mapping[str, int], interval_s: float = 5.0) -> None:
        self.tables = tables
        self.interval_us = int(interval_s * 1e6)
        self.rules: list[MergedRule] = [rule for fold in tables.folds for rule in fold.rules]
        self.partitions = {topic: partitions_of(topic, counts[topic], tables) for topic in SOURCE_TOPICS}
        self.messages: list[dict[str, Any]] = []
        self.standing: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.now_us = 0
        self._touched: dict[str, set[int]] = {}

    def fold(self, history: Iterable[Item], told: Callable[[int], None] = lambda n: None) -> None:
        """Fold a history in the order of its Kafka times; `told` hears how many events were taken."""
        for part in slices(history, self.interval_us):
            self.now_us = max(self.now_us, *(max(one.stamp_ms * 1000, one.time_us) for one in part))
            queue: deque[tuple[tuple[str, int], list[tuple[int, bytes | None, bytes | None, Any]]]] = deque()
            grouped: dict[tuple[str, int], list[tuple[int, bytes | None, bytes | None, Any]]] = {}
            for one in part:
                grouped.setdefault(one.place, []).append((one.stamp_ms, None, one.value, ()))
            queue.extend(grouped.items())
            stamp_ms = part[-1].stamp_ms
            while queue:
                self._absorb(*queue.popleft(), stamp_ms, queue)
            self._judge()
            told(len(part))

    def reader(self, tenant: str) -> PartitionReader:
        """A reader of a tenant's tables, at the end of what was folded."""
        return PartitionReader(self.partitions, self.tables.homes, tenant, self.now_us)

    def _absorb(self, place: tuple[str, int], records: list[tuple[int, bytes | None, bytes | None, Any]], stamp_ms: int, queue: deque[Any]) -> None:
        topic, number = place
        partition = self.partitions[topic][number]
        self._touched.setdefault(topic, set()).add(number)
        partition.absorb([Logged(partition.next + at, stamp, value, headers, key) for at, (stamp, key, value, headers) in enumerate(records)])
        outputs, partition.outputs = partition.outputs, []
        for out in outputs:
            if out.topic == "alerts" and out.value is not None:
                event = json.loads(out.value)
                self._tell({"type": event["type"], "time": event["time"], "tenant": event["tenant"], **event["data"]})
            elif out.topic in self.partitions:
                home = out.partition if out.partition is not None else _home(out.key, len(self.partitions[out.topic]))
                queue.append(((out.topic, home), [(stamp_ms, out.key, out.value, out.headers)]))

    def _tell(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        standing = self.standing.setdefault((message["tenant"], message["rule"]), {})
        if message["type"] == RESOLVED:
            standing.pop(message["subject"], None)
        elif not message.get("notice"):
            standing[message["subject"]] = message

    def _judge(self) -> None:
        """Look at what changed with the merged rules (`agents.rules` does it in a worker)."""
        touched = {topic: [self.partitions[topic][number] for number in sorted(numbers)] for topic, numbers in self._touched.items()}
        for rule in self.rules:
            due: set[tuple[str, tuple[str, ...]]] = set()
            for partition in touched.get(rule.topic, ()):
                due.update((row.tenant, row.key) for row in partition.dirty[rule.table.index] if row.state is not GRAVE)
                if rule.beat is not None:
                    for tenant in {row.tenant for row in partition.dirty[rule.beat.index]}:
                        for peer in self.partitions[rule.topic]:
                            due.update((tenant, key) for key in peer.spaces[rule.table.index].get(tenant, ()))
            for tenant, key in sorted(due):
                self._subject(rule, tenant, key)
        for partitions in touched.values():
            for partition in partitions:
                for dirty in partition.dirty:
                    dirty.clear()
        self._touched = {}

    def _subject(self, rule: MergedRule, tenant: str, key: tuple[str, ...]) -> None:
        subject = rule.subject(key)
        opened = self.standing.get((tenant, rule.name), {})
        before = opened.get(subject)
        level, period = ("ok", None) if before is None else (before["severity"], before["period"])
        told: frozenset[str] = frozenset()
        if rule.beat is not None:
            told = frozenset(opened).union(*(message.get("related", ()) for message in opened.values()))
        reader = self.reader(tenant)
        verdict = rule.judge(reader, key, Standing(level, period, told))
        if verdict is not None and verdict.level != level:
            self._change(rule, tenant, key, subject, level, period, verdict)

    def _change(self, rule: MergedRule, tenant: str, key: tuple[str, ...], subject: str, level: str, period: str | None, verdict: Verdict) -> None:
        kind = change_type(level, verdict.level)
        reader = self.reader(tenant)
        reader.topics.add(rule.topic)
        as_of = reader.as_of()
        time_us = self.now_us if as_of is None else as_of
        data = verdict_data(verdict, tenant, rule.name, subject, period or day(time_us), level, {"topic": rule.topic})
        self._tell({"type": kind, "time": rfc3339(time_us), "tenant": tenant, **data})


def _home(key: bytes | None, count: int) -> int:
    return 0 if key is None else partition_for(key, count)


def slices(history: Iterable[Item], interval_us: int) -> Iterator[list[Item]]:
    """A history in pieces after each of which the merged rules look: by `interval_us` of Kafka time or of event time.

    Example:
        >>> items = [Item(0, at, ("costs", 0), b"") for at in (0, 3, 5, 4, 11)]
        >>> [[one.time_us for one in part] for part in slices(items, 5)]
        [[0, 3], [5, 4], [11]]
    """
    part: list[Item] = []
    begun_ms = newest_us = 0
    for one in history:
        if part and ((one.stamp_ms - begun_ms) * 1000 >= interval_us or one.time_us - newest_us >= interval_us or len(part) >= SLICE):
            yield part
            part = []
        if not part:
            begun_ms, newest_us = one.stamp_ms, max(newest_us, one.time_us)
        part.append(one)
    if part:
        yield part


# ---- two runs beside each other


BUDGET_RULES = frozenset(RULES.values())
KINDS = ("opened", "escalated", "eased", "resolved")


@dataclass
class Course:
    """How an alert went in one run.

    Attributes:
        opened, resolved: times of the first message and of the last resolve; None while it stands.
        worst: highest level.
    """

    opened: str
    worst: str
    resolved: str | None = None


@dataclass
class Comparison:
    """Messages of two runs beside each other.

    Attributes:
        rules: rule -> run -> number of messages by kind.
        alerts: one row an alert that either run had: what it is about, in which run, and its course in each.
        messages: of both runs, in time.
    """

    rules: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)


RUNS = ("present", "changed")


def _same(courses: Mapping[str, Mapping[str, Course]], about: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of alerts that are one: of a rule and subject, each of one run alone, open at the same time though opened on different days.

    The alert_id of a budget's period stands for that period, so those are compared period by period.
    """
    alone: dict[tuple[str, str, str], list[str]] = {}
    for name, message in about.items():
        if len(courses[name]) == 1 and message["rule"] not in BUDGET_RULES and not message.get("notice"):
            alone.setdefault((message["tenant"], message["rule"], message["subject"]), []).append(name)
    found = []
    for names in alone.values():
        by_time = sorted(names, key=lambda name: next(iter(courses[name].values())).opened)
        paired: set[str] = set()
        for at, early in enumerate(by_time):
            (run, first), *_ = courses[early].items()
            for late in by_time[at + 1 :]:
                (other, second), *_ = courses[late].items()
                if other != run and not {early, late} & paired and (first.resolved is None or second.opened < first.resolved):
                    found.append((early, late))
                    paired |= {early, late}
    return found


def compare(present: Sequence[Mapping[str, Any]], changed: Sequence[Mapping[str, Any]], since_us: int | None = None, until_us: int | None = None) -> Comparison:
    """Alerts of two runs: messages told from `since_us` on and before `until_us` (event times), and the whole course of the alerts that they tell of."""
    found = Comparison()
    shown: set[str] = set()
    courses: dict[str, dict[str, Course]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    for run, messages in zip(RUNS, (present, changed), strict=True):
        for message in messages:
            told_us = to_us(datetime.fromisoformat(message["time"]))
            kind = message["type"].split(".")[1]
            name = message["alert_id"]
            if (since_us is None or told_us >= since_us) and (until_us is None or told_us < until_us):
                found.rules.setdefault(message["rule"], {each: dict.fromkeys(KINDS, 0) for each in RUNS})[run][kind] += 1
                found.messages.append({"settings": run, "kind": kind, **message})
                shown.add(name)
            about.setdefault(name, message)
            course = courses.setdefault(name, {}).get(run)
            if course is None:
                course = courses[name][run] = Course(message["time"], message["severity"])
            course.worst = max(course.worst, message["severity"], key=LEVELS.index)
            course.resolved = message["time"] if kind == "resolved" else None
    for early, late in _same(courses, about):
        courses[early] |= courses.pop(late)
        if late in shown:
            shown = (shown - {late}) | {early}
    found.messages.sort(key=lambda message: (message["time"], message["rule"], message["subject"], message["settings"] != "present"))
    found.rules = dict(sorted(found.rules.items()))
    for name in sorted(shown, key=lambda name: (min(course.opened for course in courses[name].values()), about[name]["rule"], about[name]["subject"])):
        message, runs = about[name], courses[name]
        row: dict[str, Any] = {key: message[key] for key in ("alert_id", "tenant", "rule", "subject", "period")}
        row["in"] = "both" if len(runs) == 2 else f"only {next(iter(runs))}"
        for run in RUNS:
            course = runs.get(run)
            row[run] = None if course is None else {"opened": course.opened, "worst": course.worst, "resolved": course.resolved}
        found.alerts.append(row)
    return found
