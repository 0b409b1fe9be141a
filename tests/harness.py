"""A log in memory and the folds over it: the whole data flow of a worker without a broker, for unit tests.

It is no mock: the partitions, folds and views are the product's own; only the transport is a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from streams.codec import decode
from streams.keys import partition_for, record_key
from streams.topics import SOURCE_TOPICS
from tables.fold import Fold, NotFound, View
from tables.partition import Bounds, Output, Partition, Schema
from tables.reader import PartitionReader

VECTORS = {v["id"]: v for v in json.loads((Path(__file__).parent / "golden" / "vectors.json").read_text())["vectors"]}


@dataclass
class Rec:
    """A Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)


class Log:
    """Source topics of a number of partitions, folded as they grow.

    Args:
        folds: as in the product's registry.
        partitions: of every source topic.
    """

    def __init__(self, folds: Sequence[Fold], partitions: int = 1, bounds: Bounds | None = None) -> None:
        self.folds = folds
        self.schema = Schema(folds)
        self.count = partitions
        self.topics = {topic: [Partition(topic, n, self.schema, count=partitions, bounds=bounds) for n in range(partitions)] for topic in SOURCE_TOPICS}
        for found in self.topics.values():
            for partition in found:
                partition.peers = found
        self.records: dict[tuple[str, int], list[Rec]] = {(t, n): [] for t in self.topics for n in range(partitions)}
        self.outputs: list[Output] = []
        self.homes = {table.wire: fold.topics for fold in folds for table in fold.tables if fold.topics}

    def send(self, events: Iterable[dict[str, Any] | bytes], topic: str | None = None, timestamp: int = 4_102_444_800_000) -> None:
        """Append events (envelopes; `specversion` and `source` are filled in) and fold them, derived ones too."""
        for event in events:
            raw = event if isinstance(event, bytes) else json.dumps({"specversion": "1.0", "source": "test", **event}).encode()
            if topic is None:
                decoded = decode(raw)
                home, key = decoded.data.TOPIC, record_key(decoded)
            else:
                home, key = topic, None
            self.append(home, key, raw, None, timestamp)

    def append(self, topic: str, key: bytes | None, raw: bytes | None, number: int | None, timestamp: int, headers: Any = ()) -> None:
        """Append one record and fold it, and whatever it derives."""
        if number is None:
            number = partition_for(key, self.count) if key is not None else 0
        log = self.records[(topic, number)]
        record = Rec(len(log), timestamp, key, raw, list(headers))
        log.append(record)
        partition = self.topics[topic][number]
        partition.absorb([record])
        outputs, partition.outputs = partition.outputs, []
        for out in outputs:
            self.outputs.append(out)
            if out.topic in self.topics:
                self.append(out.topic, out.key, out.value, out.partition, timestamp, out.headers)

    def pour(self, events: Iterable[dict[str, Any]], timestamp: int = 4_102_444_800_000) -> None:
        """Append events to their partitions and fold each partition's in one go, then what they derive: `send` for many events."""
        waiting: dict[tuple[str, int], list[Rec]] = {}
        for event in events:
            raw = json.dumps({"specversion": "1.0", "source": "test", **event}).encode()
            decoded = decode(raw)
            self._lay(waiting, decoded.data.TOPIC, record_key(decoded), raw, None, timestamp, ())
        while waiting:
            now, waiting = waiting, {}
            for (topic, number), records in now.items():
                partition = self.topics[topic][number]
                partition.absorb(records)
                outputs, partition.outputs = partition.outputs, []
                self.outputs += outputs
                for out in outputs:
                    if out.topic in self.topics:
                        self._lay(waiting, out.topic, out.key, out.value, out.partition, timestamp, out.headers)

    def _lay(self, waiting: dict[tuple[str, int], list[Rec]], topic: str, key: bytes | None, raw: bytes | None, number: int | None, ms: int, head: Any) -> None:
        if number is None:
            number = partition_for(key, self.count) if key is not None else 0
        log = self.records[(topic, number)]
        log.append(Rec(len(log), ms, key, raw, list(head)))
        waiting.setdefault((topic, number), []).append(log[-1])

    def alerts(self, rule: str | None = None) -> list[dict[str, Any]]:
        """Alert messages put out so far: ``type``, ``time`` and the data's fields in one dictionary."""
        found = []
        for out in self.outputs:
            if out.topic == "alerts" and out.value is not None:
                event = json.loads(out.value)
                if rule is None or event["data"]["rule"] == rule:
                    found.append({"type": event["type"], "time": event["time"], "derivedfrom": event.get("derivedfrom"), **event["data"]})
        return found

    def dead_letters(self) -> list[tuple[bytes | None, dict[str, str]]]:
        """Dead letters put out so far: (original bytes, headers)."""
        return [(o.value, {k: v.decode() for k, v in o.headers}) for o in self.outputs if o.topic == "dead-letters"]

    def reader(self, tenant: str = "golden", now_us: int = 4_102_444_800_000_000) -> PartitionReader:
        """A reader of one tenant."""
        return PartitionReader(self.topics, self.homes, tenant, now_us)

    def get(self, path: str, tenant: str = "golden", now_us: int = 4_102_444_800_000_000, **params: Any) -> dict[str, Any]:
        """Ask a view as HTTP would; 404 comes back as ``{"status": 404, **members}``."""
        for fold in self.folds:
            for view in sorted(fold.views, key=lambda v: v.path.count("{")):
                found = match(view, path)
                if found is not None:
                    lists = {f.encode_name for f in msgspec.structs.fields(view.params) if "list" in str(f.type)}
                    values = {k: v.split(",") if k in lists and isinstance(v, str) else v for k, v in {**found, **params}.items()}
                    asked = msgspec.convert(values, view.params, strict=False)
                    try:
                        return view.answer(self.reader(tenant, now_us), asked)
                    except NotFound as missing:
                        return {"status": 404, **missing.members}
        raise LookupError(f"no view answers {path}")


def match(view: View, path: str) -> dict[str, str] | None:
    """Path parameters if the view answers this path."""
    want, have = view.path.split("/"), path.split("/")
    if len(want) != len(have):
        return None
    found = {}
    for w, h in zip(want, have, strict=True):
        if w.startswith("{"):
            found[w[1:-1]] = h
        elif w != h:
            return None
    return found


def subset(expected: Any, actual: Any, where: str = "", abs_: float = 1e-9, rel: float = 1e-9) -> list[str]:
    """Differences between the expected fields and an answer (fields that are not named are not compared)."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [d for k, v in expected.items() for d in (subset(v, actual[k], f"{where}.{k}", abs_, rel) if k in actual else [f"{where}.{k} is missing"])]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{where}: {len(actual)} items, expected {len(expected)}"]
        return [d for i, (e, a) in enumerate(zip(expected, actual, strict=True)) for d in subset(e, a, f"{where}[{i}]", abs_, rel)]
    if isinstance(expected, float) and isinstance(actual, (int, float)) and not isinstance(actual, bool):
        if where.rsplit(".", 1)[-1].split("[")[0] in ("beta_interval",):
            abs_ = 1e-7
        if where.rsplit(".", 1)[-1] in ("p",):
            rel = 1e-6
        return [] if abs(expected - actual) <= max(abs_, rel * abs(expected)) else [f"{where}: {actual!r}, expected {expected!r}"]
    return [] if (expected == actual and type(expected) is not bool) or expected is actual else [f"{where}: {actual!r}, expected {expected!r}"]
