"""A log in memory, fed to an archive piece by piece, and what raw queries should answer from it: plain Python over the events."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from agents.archive_keeper import Keeper
from agents.archivist import Given
from agents.raw_answers import answer
from agents.registry import FOLD_SETTINGS
from streams.codec import InvalidEvent, decode
from streams.keys import partition_for, record_key
from streams.settings import load

from .harness import Rec

START = datetime(2026, 3, 2, tzinfo=UTC)
NOW_MS = int(datetime(2026, 3, 20, tzinfo=UTC).timestamp() * 1000)
SETTINGS = Given(msgspec.to_builtins(load({}, {}, None, FOLD_SETTINGS).values))


class Feed:
    """Source topics in memory and a keeper that reads them.

    Args:
        partitions: of every topic.
        words: of the keeper.
    """

    def __init__(self, path: Path, partitions: int = 3, **words: Any) -> None:
        self.partitions = partitions
        self.words: dict[str, Any] = {"window": 4096, "chunk": 100, "clock": lambda: NOW_MS / 1000, **words}
        self.path = path
        self.tidied = 0.0
        self.log: dict[tuple[str, int], list[Rec]] = {(t, n): [] for t in ("forecasts", "training", "costs", "judgments") for n in range(partitions)}
        self.read: dict[tuple[str, int], int] = {}
        self.keeper = self.start()

    def start(self) -> Keeper:
        """A fresh keeper over the folder, at the offsets that it asks for."""
        self.keeper = Keeper(self.path, dict.fromkeys(("forecasts", "training", "costs", "judgments"), self.partitions), **self.words)
        weakref.finalize(self, self.keeper.close)  # an earlier one may still be asked
        self.read = self.keeper.open({})
        return self.keeper

    def send(self, *events: dict[str, Any] | bytes, partition: int | None = None, timestamp: int = NOW_MS, headers: Sequence[Any] = ()) -> None:
        """Append events to the log."""
        for event in events:
            raw = event if isinstance(event, bytes) else json.dumps({"specversion": "1.0", "source": "test", **event}).encode()
            try:
                decoded = decode(raw)
                topic, key = decoded.data.TOPIC, record_key(decoded)
            except InvalidEvent:
                topic, key = "training", b"broken"
            number = partition_for(key, self.partitions) if partition is None else partition
            log = self.log[(topic, number)]
            log.append(Rec(len(log), timestamp, key, raw, list(headers)))

    def take(self, most: int | None = None, rng: random.Random | None = None) -> None:
        """Let the keeper read what there is, at most so many records a partition."""
        places = list(self.log)
        if rng is not None:
            rng.shuffle(places)
        for place in places:
            begin = self.read[place]
            part = self.log[place][begin:][: most if rng is None or most is None else rng.randint(0, most)]
            if part:
                self.keeper.take(place, part, part[-1].offset + 1)
                self.read[place] = part[-1].offset + 1

    def write(self) -> None:
        """Let the keeper write every tail."""
        for topic, tail in self.keeper.tails.items():
            if tail.rows:
                self.keeper.write(topic)
                for n in range(self.partitions):
                    self.read[(topic, n)] = max(self.read[(topic, n)], tail.ends[n])

    def tidy(self) -> None:
        """Let the keeper remove what has to go."""
        self.tidied += 1e6
        self.keeper.tidy(self.tidied)

    def ask(self, op: str, tenant: str = "default", **params: Any) -> dict[str, Any]:
        """An answer's JSON, or its status and what is wrong."""
        reply = answer(self.keeper, SETTINGS, op, tenant, {"limit": 100, "format": "json", "order": "time", "scope": "tenant", **params})
        return dict(json.loads(reply["body"])) if reply["status"] == 200 else reply

    def pages(self, op: str, name: str, tenant: str = "default", **params: Any) -> list[dict[str, Any]]:
        """Every item of a list, page by page."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.ask(op, tenant, cursor=cursor, **params)
            found += page[name]
            cursor = page["cursor"]
            if cursor is None or (params.get("order") == "log" and not page[name]):
                return found

    def events(self, tenant: str = "default", topic: str | None = None) -> list[dict[str, Any]]:
        """The oracle: every valid event of the tenant once, with its place, read from the log by hand."""
        found = []
        for (name, number), records in self.log.items():
            seen: set[str] = set()
            for record in records:
                try:
                    decode(record.value)
                except InvalidEvent:
                    continue
                body = json.loads(record.value or b"")
                identity = f"{body.get('tenant', 'default')} {body['id']}"
                if identity in seen:
                    continue
                seen.add(identity)
                if body.get("tenant", "default") == tenant and topic in (None, name):
                    moment = datetime.fromisoformat(body["time"]) if "time" in body else datetime.fromtimestamp(record.timestamp / 1000, UTC)
                    found.append({"at": moment, "place": (name, number, record.offset), **body})
        return found


def metric(n: int) -> dict[str, Any]:
    """The n-th metric, of one of seven models."""
    data = {"metric_type": "t", "value": n, "model": f"m{n % 7}"}
    return {"id": f"e{n}", "type": "metric.recorded.v1", "time": "2026-03-02T00:00:00Z", "data": data}


def metrics(n: int, seed: int, tenants: Iterable[str] = ("default", "other")) -> list[dict[str, Any]]:
    """Random metrics with repeated ids, equal times, late ones and awkward names."""
    rng = random.Random(seed)
    names = list(tenants)
    made: list[dict[str, Any]] = []
    for number in range(n):
        if made and rng.random() < 0.1:
            made.append(rng.choice(made))
            continue
        moment = START + timedelta(seconds=rng.randint(0, 3 * 86_400)) if rng.random() < 0.5 else START + timedelta(seconds=number)
        data: dict[str, Any] = {"value": rng.choice([rng.random(), "NaN", "-Infinity", 3])}
        for field, choices in (
            ("metric_type", ["loss", "acc", "it's", 'q"uote']),
            ("model", ["a", "b", "x%y", "; drop table"]),
            ("run", ["r1", "r2", "é"]),
        ):
            if rng.random() < 0.8:
                data[field] = rng.choice(choices)
        data["tags"] = rng.sample(["x", "y", "z", "=1+1"], rng.randint(0, 3))
        if rng.random() < 0.3:
            data["note"] = {"lab": rng.choice(["b", "c"]), "n": rng.choice([1, 1.5, True, None])}
        if rng.random() < 0.1:
            data["no.te"] = "dotted"
        made.append({"id": f"m{number}", "type": "metric.recorded.v1", "tenant": rng.choice(names), "time": moment.isoformat(), "data": data})
    return made
