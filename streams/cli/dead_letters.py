"""``pulsefold dead-letters``: what could not be absorbed, looked at and sent again after a fix.

The rules this file keeps: a dead letter is known by the record it was made from, TOPIC/PARTITION/OFFSET of the source topic; what is
sent again are the original bytes under the original key, to that record's own partition, with that name in the header ``redriven``,
by which workers know it instead of by its id. So however often a letter is sent again, it counts once: workers recognise it within
their dedupe window, and beyond that the log itself is asked.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from cyclopts import Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import admin
from ..derive import REDRIVEN, dead_letter_headers, sent_again
from ..errors import ConfigError, PulsefoldError
from ..settings import Settings
from ..topics import SOURCE_TOPICS
from .options import AsJson, Bootstrap, Config, TopicPrefix, security, settings_of
from .output import cell, clean, err, show

Reason = Annotated[str | None, Parameter(help="only those of this reason, such as invalid_field")]
Type = Annotated[str | None, Parameter(name="--type", help="only events of this type, such as metric.recorded.v1")]
Since = Annotated[str | None, Parameter(help="only records of this time or later (RFC 3339, by their Kafka timestamp)")]
OURS = len(dead_letter_headers("", "", "", 0, 0, 0))
"""Headers that a worker adds, behind the record's own."""
Place = tuple[str, int, int]


@dataclass(slots=True)
class Letter:
    """A dead letter.

    Attributes:
        place: topic (without prefix), partition and offset of the record it was made from.
        reason, error, time: as its headers say; time is the record's Kafka timestamp.
        headers: the record's own.
        key, value: the record's own bytes.
    """

    place: Place
    reason: str
    error: str
    time: str
    headers: list[tuple[str, bytes]]
    key: bytes | None
    value: bytes | None

    @property
    def name(self) -> str:
        """``TOPIC/PARTITION/OFFSET``, as in the header ``redriven``."""
        return "/".join(map(str, self.place))

    @property
    def sent_again(self) -> str | None:
        """Name of the letter that this one was when it was sent again, None for a first letter."""
        return sent_again(self.headers)

    def event(self) -> dict[str, Any]:
        """The event's envelope, as far as the bytes are one."""
        try:
            found = json.loads(self.value or b"")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def row(self) -> dict[str, Any]:
        """What a list shows."""
        event = self.event()
        found: dict[str, Any] = {"reason": self.reason, "error": self.error, "topic": self.place[0], "partition": self.place[1], "offset": self.place[2]}
        found |= {"time": self.time, **{name: event.get(name) for name in ("type", "tenant", "id")}}
        if self.sent_again is not None:
            found[REDRIVEN] = self.sent_again
        return {**found, "bytes": len(self.value or b""), "value": (self.value or b"")[:200].decode("utf-8", "replace")}


def read_letter(message: Message) -> Letter | None:
    """A record of the dead-letters topic; None where it is none of ours."""
    headers = [(name, value.encode() if isinstance(value, str) else value or b"") for name, value in message.headers() or []]
    said = {name: value.decode("utf-8", "replace") for name, value in headers[-OURS:]}
    try:
        place = said["topic"], int(said["partition"]), int(said["offset"])
        return Letter(place, said["reason"], said["error"], said["time"], headers[:-OURS], message.key(), message.value())
    except (KeyError, ValueError):
        return None


# ---- commands


def list_(
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    reason: Reason = None,
    type_: Type = None,
    since: Since = None,
    limit: Annotated[int, Parameter(help="how many, counted from the newest")] = 100,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """The newest dead letters, with why and where from."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    chosen = chooser(reason, type_, since)
    newest: deque[dict[str, Any]] = deque(maxlen=max(0, limit))
    for letter in letters(found):
        if chosen(letter):
            newest.append(letter.row())
    rows = sorted(newest, key=lambda row: str(row["time"]))
    if as_json:
        print(json.dumps(rows))
    elif rows:
        show({"dead_letters": rows})
    else:
        print("no dead letters")
    return 0


def inspect(
    place: Annotated[str, Parameter(help="TOPIC/PARTITION/OFFSET of the record, as the list shows them")],
    *,
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    raw: Annotated[bool, Parameter(negative="", help="write the original bytes alone, unchanged")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """One dead letter whole: why, its headers, its key and all its bytes."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    wanted = places([place])
    letter = next((one for one in letters(found) if (one.place[0], one.place[1], one.place[2]) in wanted), None)
    if letter is None or len(place.split("/")) != 3:
        raise PulsefoldError(f"{place}: there is no dead letter of this record; `pulsefold dead-letters list` shows topic, partition and offset")
    value = letter.value or b""
    if raw:
        sys.stdout.buffer.write(value)
        sys.stdout.flush()
        return 0
    body = {**letter.row(), "key": readable(letter.key), "headers": {name: readable(one) for name, one in letter.headers}}
    try:
        body["value"] = value.decode()
    except UnicodeDecodeError:
        body.pop("value")
        body["value_base64"] = base64.b64encode(value).decode()
    if as_json:
        print(json.dumps(body))
    else:
        for name, one in body.items():
            print(f"{name:12} {cell(one)}")
    return 0


def redrive(
    *chosen: Annotated[str, Parameter(help="TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET of the records")],
    bootstrap: Bootstrap = None,
    topic_prefix: TopicPrefix = None,
    reason: Reason = None,
    type_: Type = None,
    since: Since = None,
    all_: Annotated[bool, Parameter(name="--all", negative="", help="everything that is there")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="only say what would be sent")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Send dead letters again, by reason, by place or all: the original bytes. However often it is done, each counts once."""
    found = settings_of(config, bootstrap=bootstrap, topic_prefix=topic_prefix)
    if not (chosen or reason or type_ or since or all_):
        raise ConfigError("redrive", "name a reason, a type, a time or places, or say --all")
    fits, wanted = chooser(reason, type_, since), places(chosen)
    selected: dict[Place, None] = {}
    again: set[str] = set()
    for letter in letters(found):
        if letter.sent_again is not None:
            again.add(letter.sent_again)  # it failed again, and that letter stands for it
        if fits(letter) and (not chosen or any(letter.place[:n] in wanted for n in (1, 2, 3))) and letter.place[0] in SOURCE_TOPICS:
            selected[letter.place] = None
    skipped = {place: "superseded" for place in selected if name_of(place) in again}
    skipped |= dict.fromkeys(on_the_log(found, [place for place in selected if place not in skipped]), "redriven")
    sending = [place for place in selected if place not in skipped]
    failed: dict[str, str] = {}
    if not dry_run and sending:
        failed = send(found, set(sending))
    counts = Counter(skipped.values())
    body: dict[str, Any] = {
        "redriven": 0 if dry_run else len(sending) - len(failed),
        "would_redrive" if dry_run else "failed": len(sending) if dry_run else len(failed),
        "skipped": {name: counts[name] for name in ("superseded", "redriven")},
        "letters": [name_of(place) for place in sending],
    }
    if as_json:
        print(json.dumps(body))
        return 1 if failed else 0
    if dry_run:
        for place in sending:
            print(name_of(place))
        print(f"would send {len(sending)} dead letters again")
    else:
        for name, why in failed.items():
            print(f"{name}: {clean(why)}", file=sys.stderr)
        print(f"sent {len(sending) - len(failed)} of {len(sending)} dead letters again")
    if counts:
        print(f"left out: {counts['superseded']} that failed again and have a later letter, {counts['redriven']} that are on the log again already")
    return 1 if failed else 0


# ---- choosing


def chooser(reason: str | None, type_: str | None, since: str | None) -> Callable[[Letter], bool]:
    """Whether a letter is meant.

    Raises:
        ConfigError: `since` is no time.
    """
    moment = None
    if since is not None:
        try:
            moment = datetime.fromisoformat(since)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ConfigError("since", f"expected an RFC 3339 time with an offset, got {since!r}")

    def meant(letter: Letter) -> bool:
        return (
            (reason is None or letter.reason == reason)
            and (moment is None or datetime.fromisoformat(letter.time) >= moment)
            and (type_ is None or letter.event().get("type") == type_)
        )

    return meant


def places(texts: Iterable[str]) -> set[tuple[str | int, ...]]:
    """TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET, each as a tuple of what it names.

    Example:
        >>> sorted(places(["costs", "judgments/3/41"]))
        [('costs',), ('judgments', 3, 41)]

    Raises:
        ConfigError: a text is none of these.
    """
    found: set[tuple[str | int, ...]] = set()
    for text in texts:
        topic, *numbers = text.split("/")
        if topic not in SOURCE_TOPICS or len(numbers) > 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise ConfigError(text, f"expected TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET, with TOPIC one of {', '.join(SOURCE_TOPICS)}")
        found.add((topic, *map(int, numbers)))
    return found


def name_of(place: Place) -> str:
    """``TOPIC/PARTITION/OFFSET``"""
    return "/".join(map(str, place))


# ---- reading and sending


def letters(found: Settings) -> Iterator[Letter]:
    """Everything on the dead-letters topic, a partition after the other; what a restart made twice comes once."""
    topic = found.get("topic_prefix") + "dead-letters"
    count = admin.partition_counts(found.get("bootstrap"), [topic], security=security(found))[topic]
    seen: set[Place] = set()
    for message in records(found, {(topic, number): 0 for number in range(count)}):
        letter = read_letter(message)
        if letter is not None and letter.place not in seen:
            seen.add(letter.place)
            yield letter


def records(found: Settings, begins: dict[tuple[str, int], int]) -> Iterator[Message]:
    """Records of partitions (full topic name, number) from an offset on up to their present ends."""
    config = {
        "bootstrap.servers": found.get("bootstrap"), "group.id": "pulsefold-cli", "enable.auto.commit": False, "enable.partition.eof": True,
        "auto.offset.reset": "earliest", "isolation.level": "read_committed", "log_level": 0, **security(found),
    }  # fmt: skip
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with closing(Consumer(config)) as consumer, Progress(*shown, console=err, disable=not err.is_terminal, transient=True) as bar:
        for (topic, number), begin in begins.items():
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            begin = max(low, begin)
            task = bar.add_task(f"reading {topic}/{number}", total=high - begin)
            if begin >= high:
                continue
            consumer.assign([TopicPartition(topic, number, begin)])
            while True:
                message = consumer.poll(10)
                if message is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer about {topic} within 10 s"))
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    break
                if error is not None:
                    raise KafkaException(error)
                offset = message.offset() or 0
                if offset < high:
                    yield message
                bar.update(task, completed=offset + 1 - begin)
                if offset >= high - 1:
                    break


def on_the_log(found: Settings, chosen: Sequence[Place]) -> set[Place]:
    """Those that were sent again before. Only partitions are read whose log has grown beyond what workers remember since the letter."""
    prefix, window = found.get("topic_prefix"), found.get("dedupe_window")
    first: dict[tuple[str, int], int] = {}
    for topic, number, offset in chosen:
        first[(prefix + topic, number)] = min(offset, first.get((prefix + topic, number), offset))
    with closing(Consumer({"bootstrap.servers": found.get("bootstrap"), "group.id": "pulsefold-cli", "log_level": 0, **security(found)})) as consumer:
        begins = {
            (topic, number): offset + 1
            for (topic, number), offset in first.items()
            if consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1] - offset > window
        }
    names = {name_of(place): place for place in chosen}
    seen = set()
    for message in records(found, begins):
        seen.add(sent_again(message.headers() or ()))
    return {names[name] for name in seen if name in names}


def send(found: Settings, sending: set[Place]) -> dict[str, str]:
    """Send letters again; returns those that the broker did not take, with why."""
    failed: dict[str, str] = {}
    producer = Producer(
        {
            "bootstrap.servers": found.get("bootstrap"),
            "enable.idempotence": True,
            "message.max.bytes": 6 << 20,
            "linger.ms": 5,
            "log_level": 0,
            **security(found),
        }
    )
    for letter in letters(found):
        if letter.place not in sending:
            continue

        def told(error: KafkaError | None, _: Message, name: str = letter.name) -> None:
            if error is not None:
                failed[name] = error.str()

        headers = [(name, value) for name, value in letter.headers if name != REDRIVEN]
        # without a time of its own an event is of its record's time, which must not change
        timestamp = 0 if letter.event().get("time") is not None or letter.reason == "time_in_future" else milliseconds(letter.time)
        topic = found.get("topic_prefix") + letter.place[0]
        while True:
            try:
                producer.produce(
                    topic,
                    letter.value,
                    letter.key,
                    letter.place[1],
                    on_delivery=told,
                    timestamp=timestamp,
                    headers=[*headers, (REDRIVEN, letter.name.encode())],
                )
                break
            except BufferError:
                producer.poll(1)
        producer.poll(0)
    if producer.flush(120):
        raise PulsefoldError("redrive: the broker did not take everything within 120 s; run it again, what was taken counts once")
    return failed


def milliseconds(time: str) -> int:
    """Kafka timestamp of a letter's header."""
    return int(datetime.fromisoformat(time).astimezone(UTC).timestamp() * 1000)


def readable(raw: bytes | None) -> str | None:
    """Bytes as text."""
    return None if raw is None else raw.decode("utf-8", "replace")
