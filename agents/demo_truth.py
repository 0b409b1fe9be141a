"""What the demo's events say, computed without any of the service's code, and whether the worker says the same.

The rule this file keeps: an expectation is made of what producers published, never of what a worker derived or answered. Trust,
for one, is counted here from forecasts, tasks, judgments and evaluations, and compared with what the worker's rules made of them.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from streams.errors import PulsefoldError
from streams.topics import SOURCE_TOPICS

TENANT = "default"


class DemoFailed(PulsefoldError):
    """A part of the demo did not come up."""


@dataclass
class Check:
    """A figure of the service beside the one computed from the events.

    Attributes:
        story: it holds only of a run that was not broken off.
    """

    name: str
    shown: object
    expected: object
    holds: bool
    story: bool = False


@dataclass
class Forecast:
    """What is kept of a forecast until it is resolved."""

    confidence: float
    fragility: float
    certified: bool
    inputs: list[str]


@dataclass
class Truth:
    """What the published events say.

    Attributes:
        n: records on the log, of all tenants and of workers too.
        derived: those of them that the worker published.
        trust: (kind, id) -> [successes, failures] that the rules must give.
        spent, of_day: USD by model, and by model and UTC day.
        lines: (time, event as published) of producers, in the order of time once it is counted.
        day: UTC day of the event that is being counted.
    """

    n: int = 0
    derived: int = 0
    trust: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    spent: dict[str, Decimal] = field(default_factory=dict)
    of_day: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    limits: dict[str, Decimal] = field(default_factory=dict)
    issued: dict[tuple[str, str], Forecast] = field(default_factory=dict)
    squares: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    goals: dict[str, tuple[float, str]] = field(default_factory=dict)
    reached: dict[str, bool] = field(default_factory=dict)
    lost: dict[str, bool] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)
    passed: dict[tuple[str, str], bool] = field(default_factory=dict)
    lines: list[tuple[datetime, bytes]] = field(default_factory=list)
    day: str = ""

    def read(self, raw: bytes) -> None:
        """Take one record of a source topic."""
        event = json.loads(raw)
        self.n += 1
        if "derivedfrom" in event:
            self.derived += 1
        elif event["tenant"] == TENANT:
            self.lines.append((datetime.fromisoformat(event["time"]), raw))  # as text a whole second would come after its parts

    def count(self) -> None:
        """Work through everything read, in the order of time; forecasts first, for the clock may have been set back before one was resolved."""
        self.lines.sort(key=lambda line: line[0])
        events = [json.loads(raw) for _, raw in self.lines]
        events.sort(key=lambda event: not event["type"].startswith("forecast.issued."))
        for event in events:
            take = getattr(self, "_" + event["type"].rpartition(".")[0].replace(".", "_"), None)
            self.day = event["time"][:10]
            if take is not None:
                take(event["data"])

    def _observe(self, kind: str, name: str, success: bool) -> None:
        self.trust.setdefault((kind, name), [0, 0])[0 if success else 1] += 1

    def _forecast_issued(self, data: dict[str, Any]) -> None:
        inputs = list(data.get("inputs", {}))
        seen = Forecast(data.get("confidence", 0.0), data.get("fragility", 0.0), data.get("certified", False), inputs)
        self.issued[(data["model"], data["forecast_id"])] = seen

    def _forecast_resolved(self, data: dict[str, Any]) -> None:
        self._observe("model", data["model"], data["success"])
        for name in self.issued[(data["model"], data["forecast_id"])].inputs:
            self._observe("variable", name, data["success"])
        self.squares.append((data["probability"] - data["success"]) ** 2)

    def _task_completed(self, data: dict[str, Any]) -> None:
        self._observe("agent", data["agent"], data["success"])

    def _judgment_recorded(self, data: dict[str, Any]) -> None:
        self._observe("agent", data["agent"], data["all_criteria_pass"])
        self.verdicts[(data["agent"], data["task"])] = data["judge"], data["all_criteria_pass"]
        self._judge(data["agent"], data["task"])

    def _evaluation_completed(self, data: dict[str, Any]) -> None:
        self._observe("agent", data["agent"], data["passed"])
        self.passed[(data["agent"], data["task"])] = data["passed"]
        self._judge(data["agent"], data["task"])

    def _judge(self, agent: str, task: str) -> None:
        if (agent, task) in self.verdicts and (agent, task) in self.passed:
            judge, verdict = self.verdicts[(agent, task)]
            self._observe("judge", judge, verdict == self.passed[(agent, task)])

    def _cost_incurred(self, data: dict[str, Any]) -> None:
        model, cost = data["model"], Decimal(str(data["cost"]))
        self.spent[model] = self.spent.get(model, Decimal(0)) + cost
        self.of_day[model, self.day] = self.of_day.get((model, self.day), Decimal(0)) + cost

    def _budget_set(self, data: dict[str, Any]) -> None:
        self.limits[data["scope"].removeprefix("model:")] = Decimal(str(data["limits"][-1]["at"]))

    def _metric_recorded(self, data: dict[str, Any]) -> None:
        if "loss" in data.get("values", {}):
            self.losses.setdefault(data["model"], []).append(data["values"]["loss"])

    def _goal_created(self, data: dict[str, Any]) -> None:
        self.goals[data["goal_id"]] = (data["target"], data.get("direction", "at_least"))

    def _goal_progressed(self, data: dict[str, Any]) -> None:
        name = data["goal_id"]
        target, direction = self.goals[name]
        met = data["current"] >= target if direction == "at_least" else data["current"] <= target
        self.reached[name] = self.reached.get(name, False) or met
        self.lost[name] = self.reached[name] and not met

    def observations(self) -> int:
        """How many observations the rules must have derived."""
        return sum(map(sum, self.trust.values()))

    def drifted(self, margin: float = 0.0) -> list[str]:
        """Variables whose lifetime averages are over the default limits, less a margin, of 20 forecasts or more."""
        sums: dict[str, list[Forecast]] = {}
        for one in self.issued.values():
            for name in one.inputs:
                sums.setdefault(name, []).append(one)
        found = []
        for name, seen in sums.items():
            n = len(seen)
            fragility, certified = round(sum(f.fragility for f in seen) / n, 4), round(sum(f.certified for f in seen) / n, 4)
            if n >= 20 and (fragility > 0.25 - margin or certified < 0.75 + margin):
                found.append(name)
        return sorted(found)

    def over(self) -> list[str]:
        """Models that reached the last limit of their budget on a day."""
        return sorted({model for (model, _), spent in self.of_day.items() if model in self.limits and spent >= self.limits[model]})


class Asker:
    """Asks the worker's views."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str, tenant: str = TENANT) -> dict[str, Any]:
        """JSON body of a view under /api/v1."""
        request = urllib.request.Request(f"{self.base}/api/v1{path}", headers={"X-Tenant": tenant})
        with urllib.request.urlopen(request, timeout=10) as response:
            return dict(json.load(response))

    def ready(self) -> bool:
        """Whether the worker has restored its tables."""
        try:
            with urllib.request.urlopen(f"{self.base}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Log:
    """The source topics, read without a group."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.prefix = prefix
        self.consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "demo-truth", "enable.auto.commit": False, "log_level": 0})

    def ends(self) -> dict[tuple[str, int], int]:
        """Records a partition, by full topic and number.

        Raises:
            DemoFailed: the broker has dropped some, so nothing can be checked.
        """
        found = {}
        for topic in (self.prefix + name for name in SOURCE_TOPICS):
            for number in self.consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                low, high = self.consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
                if low:
                    raise DemoFailed(f"{topic}/{number}: the embedded broker has dropped the head of this partition; nothing can be checked against it")
                found[(topic, number)] = high
        return found

    def truth(self) -> Truth:
        """Read everything that is there now."""
        found = Truth()
        for (topic, number), end in self.ends().items():
            self.consumer.assign([TopicPartition(topic, number, 0)])
            at = 0
            while at < end:
                message = self.consumer.poll(5)
                if message is None or message.error():
                    raise DemoFailed(f"{topic}/{number}: could not be read back")
                at = message.offset() + 1
                found.read(message.value())
        found.count()
        return found

    def close(self) -> None:
        """Leave the broker."""
        self.consumer.close()


def verify(asker: Asker, truth: Truth) -> list[Check]:
    """Compare the worker's answers with the truth."""
    checks = []

    def check(name: str, shown: object, expected: object, holds: bool | None = None, *, story: bool = False) -> None:
        checks.append(Check(name, shown, expected, shown == expected if holds is None else holds, story))

    def close(name: str, shown: float | None, expected: float) -> None:
        check(
            name,
            f"{shown:.9f}" if shown is not None else None,
            f"{expected:.9f}",
            shown is not None and math.isclose(shown, expected, rel_tol=1e-9, abs_tol=1e-9),
        )

    counts = asker.get("/status")["counts"]
    check("records on the log, records absorbed", counts["in"], truth.n)
    check("folded + duplicates + dead letters", counts["folded"] + counts["duplicate"] + counts["dead_lettered"], truth.n)
    check("dead letters", counts["dead_lettered"], 0)
    rules = asker.get("/trust/rules")["rules"]
    check("observations of trust derived by rule", sum(rule["derived"] for rule in rules), truth.observations())
    wrong = 0
    for (kind, name), (good, bad) in truth.trust.items():
        one = asker.get(f"/trust/{kind}/{urllib.parse.quote(name, safe='')}")
        wrong += (one["alpha"], one["beta"]) != (1.0 + good, 1.0 + bad)
    check(f"trust of {len(truth.trust)} keys: how many differ", wrong, 0)
    check("cost in all, micro-USD", asker.get("/costs")["total_micro_usd"], int(sum(truth.spent.values(), Decimal(0)) * 1_000_000))
    if truth.squares:
        close("Brier score of all forecasts", asker.get("/forecasts/calibration")["brier"], math.fsum(truth.squares) / len(truth.squares))
    for model, losses in sorted(truth.losses.items()):
        overall = asker.get(f"/metrics/aggregate?metric=train.loss&model={model}")["overall"]
        close(f"mean training loss of {model}", overall["mean"], math.fsum(losses) / len(losses))
    drifted = truth.drifted()
    check("drifting variables", sorted(asker.get("/variables/drift?min_count=20")["flagged"]), drifted)
    goals = asker.get("/learning/goals?limit=1000")["goals"]
    check("goals reached", sorted(g["goal_id"] for g in goals if g["completed"]), sorted(n for n, met in truth.reached.items() if met))
    check("goals lost again", sorted(g["goal_id"] for g in goals if g["regressed"]), sorted(n for n, lost in truth.lost.items() if lost))
    alerts = asker.get("/alerts?state=all&limit=1000")["alerts"]
    opened = sorted(a["subject"] for a in alerts if a["rule"] == "drift.variable" and a["open"])
    near = set(truth.drifted(0.02))  # an alert stays open until its variable is well within the limits
    check("open drift alerts", opened, [*drifted, *(name for name in opened if name in near and name not in drifted)], set(drifted) <= set(opened) <= near)
    told = sorted(a["subject"] for a in alerts if a["rule"] == "cost.daily" and a["severity"] == "shutdown" and a["subject"].startswith("model:"))
    check("models over their budget", told, [f"model:{name}" for name in truth.over()])
    check("the story: cancer-b is over its budget", truth.over(), ["cancer-b"], story=True)
    story = bool(drifted) and all(name.startswith("drifting_") for name in drifted)
    check("the story: only the faded inputs drift", story, True, story=True)
    lost = sorted(n for n, lost in truth.lost.items() if lost)
    check("the story: only the drifting run loses its goal", lost, ["digits-drifting-accuracy"], story=True)
    return checks
