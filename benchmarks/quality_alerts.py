"""False alarms of every alert rule on streams without a change, and how soon it tells a planted one, beside river's detectors.

The folds, the rules in them and the merged rules are the product's (`agents.backtest.Run`, without a broker). A case of `quality_streams` is
a number of independent streams, each a subject of its own; the detectors get the figure that the rule looks at, scaled to mean 0 and
standard deviation 1 of the healthy streams, with the parameters that river gives them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, median, pstdev
from typing import Any

from agents.backtest import Item, Run
from agents.registry import FOLD_SETTINGS, schema
from streams.events import EVENT_TYPES
from streams.settings import load
from streams.topics import SOURCE_TOPICS
from tables.times import to_us

from .made import START_US, event
from .quality_streams import CASES, Case

SLOW = 10
"""KSWIN takes a third of a millisecond a value: it gets the first of each so many streams."""
LOOK = 5
"""Merged rules look after so many values of every stream."""
_STREAM = re.compile(r"s(\d{3})")


@dataclass
class Found:
    """Alarms of one detector on the streams of a case.

    Attributes:
        streams: how many it was given.
        false: alarms before any change, and the values in which they came.
        alarmed: streams with a false alarm.
        hits: delays, in values from the change on, of the streams whose change it told.
    """

    streams: int = 0
    false: int = 0
    values: int = 0
    alarmed: int = 0
    hits: list[int] | None = None

    def row(self, name: str) -> str:
        """A row of the table."""
        hits = self.hits or []
        told = "–" if self.hits is None else f"{len(hits) / self.streams:.0%}"
        delay = f"{median(hits):.0f}" if hits else "–"
        return f"| {name} | {1000 * self.false / max(1, self.values):.2f} | {self.alarmed / self.streams:.0%} | {told} | {delay} |"


def detectors() -> dict[str, Callable[[int], Any]]:
    """river's, by name; empty where it is not installed."""
    try:
        from river.drift import ADWIN, KSWIN, PageHinkley
    except ImportError:
        return {}
    return {"ADWIN": lambda seed: ADWIN(), "Page-Hinkley": lambda seed: PageHinkley(), "KSWIN": lambda seed: KSWIN(seed=seed)}


def history(case: Case, changed: bool, streams: int, figures: dict[int, list[float]]) -> Iterator[Item]:
    """Events of all streams of a case, in time; `figures` gets what the detectors see."""
    made = [case.make(f"s{number:03}", random.Random(1000 * case.seed + number), changed) for number in range(streams)]
    for i in range(-1, case.n):
        at_us = START_US + round(i * case.every_s * 1e6)
        for number, one in enumerate(made):
            name = f"s{number:03}"
            tenant = name if case.tenants else "default"
            events, figure = one(i)
            if i >= 0 and figure is not None:
                figures.setdefault(number, []).append(figure)
            for k, (kind, data) in enumerate(events):
                value = event(f"{name}-{i}-{k}", kind, at_us, data, tenant)
                yield Item(at_us // 1000, at_us, (EVENT_TYPES[kind].topic, 0), value)


def alarms(case: Case, changed: bool, streams: int) -> tuple[dict[int, list[int]], dict[int, list[float]]]:
    """(places of the rule's opened and escalated messages, figures), by stream."""
    settings = load(dict(case.settings), {}, None, FOLD_SETTINGS, others=None)
    run = Run(schema(settings.fold), dict.fromkeys(SOURCE_TOPICS, 1), LOOK * case.every_s)
    figures: dict[int, list[float]] = {}
    run.fold(history(case, changed, streams, figures))
    found: dict[int, list[int]] = {number: [] for number in range(streams)}
    for message in run.messages:
        if message["rule"] == case.rule and message["type"] in ("alert.opened.v1", "alert.escalated.v1"):
            place = int((to_us(datetime.fromisoformat(message["time"])) - START_US) / 1e6 / case.every_s)
            for name in [message["subject"], *message.get("related", ())]:
                number = _STREAM.search(message["tenant"] if case.tenants else name)
                if number is not None:
                    found[int(number[1])].append(place)
    return found, figures


def river(make: Callable[[int], Any], figures: dict[int, list[float]], mean: float, std: float) -> dict[int, list[int]]:
    """Places of a detector's alarms, by stream."""
    found = {}
    for number, values in figures.items():
        detector = make(number)
        found[number] = []
        for place, value in enumerate(values):
            detector.update((value - mean) / std)
            if detector.drift_detected:
                found[number].append(place)
    return found


def tallied(case: Case, healthy: dict[int, list[int]], changed: dict[int, list[int]] | None) -> Found:
    """Alarms on healthy streams, and delays on changed ones."""
    found = Found(len(healthy), sum(map(len, healthy.values())), case.n * len(healthy), sum(map(bool, healthy.values())))
    if changed is not None:
        found.hits = [after[0] - case.change for places in changed.values() if (after := [place for place in places if place >= case.change])]
    return found


def case_rows(case: Case, streams: int) -> list[str]:
    """The table's rows of one case."""
    healthy, figures = alarms(case, False, streams)
    changed, shifted = alarms(case, True, streams) if case.what else (None, {})
    rows = [tallied(case, healthy, changed).row(f"**{case.rule}** {case.healthy}{' → ' + case.what if case.what else ''}")]
    values = [value for one in figures.values() for value in one]
    if values:
        mean, std = fmean(values), pstdev(values) or 1.0
        for name, make in detectors().items():
            some = {number: one for number, one in figures.items() if name != "KSWIN" or number % SLOW == 0}
            after = {number: shifted[number] for number in some} if case.what else None
            found = tallied(case, river(make, some, mean, std), None if after is None else river(make, after, mean, std))
            rows.append(found.row(f"&nbsp;&nbsp;{name}"))
    return rows


def report(streams: int, only: str = "") -> Iterator[str]:
    """The section, as lines of Markdown."""
    yield from (
        "## False alarms and delay of the alert rules",
        "",
        f"{streams} independent streams a case (KSWIN: every {SLOW}th of them). *false*: alarms in 1,000 values without a change; *streams*: share of healthy",
        "streams with any; *told*: share of changed streams with an alarm after the change; *delay*: median number of values from the change to it.",
        "",
        "| rule: healthy stream → change | false / 1,000 | streams | told | delay |",
        "|---|---|---|---|---|",
    )
    for case in CASES:
        if only in case.rule:
            yield from case_rows(case, streams)
    if not detectors():
        yield from ("", "river is not installed (`pip install 'pulsefold[dev]'`): the rules alone.")
