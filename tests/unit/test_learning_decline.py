"""The alert ``learning.declining``: scipy as the oracle over random streams, its ends, and the laws of folds for it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from scipy import stats

from tables.learning import Learning
from tables.learning_state import LearningSettings
from tables.times import rfc3339
from tests.harness import Log

START_US = 1_772_409_600_000_000  # 2026-03-02
Event = dict[str, Any]


def step(n: int, score: float, seconds: float | None = None, **data: Any) -> Event:
    body = {"task_type": "task", "performance_score": score, "learning_rate": 0.01, "episode_count": n, "convergence_metric": 0.5, **data}
    time = rfc3339(START_US + round((60 * n if seconds is None else seconds) * 1e6))
    return {"id": f"e{n}", "type": "learning.recorded.v1", "time": time, "tenant": "golden", "data": body}


def stream(seed: int, n: int) -> list[Event]:
    """Scores of three streams that rise, fall and stand still by turns; some events late, some of one moment, some sent twice."""
    rng = random.Random(seed)
    level = {name: 0.5 for name in ("", "r1", "r|2")}
    slope = dict.fromkeys(level, 0.0)
    found: list[Event] = []
    for i in range(n):
        run = rng.choice(list(level))
        if rng.random() < 0.02:
            slope[run] = rng.choice([-0.004, -0.0015, 0.0, 0.004])
        level[run] = min(0.9, max(0.1, level[run] + slope[run]))
        seconds = rng.choice([i, i, i, i, max(0, i - rng.randrange(200)), i // 5 * 5])
        found.append(step(i, min(1.0, max(0.0, level[run] + rng.gauss(0, 0.02))), seconds, **({"run": run} if run else {})))
        if rng.random() < 0.05:
            found.append(found[-1])
    return found


def expected(log: Log, ring: int) -> list[tuple[str, str, str]]:
    """(subject, type, id of the event) of every message by the rule's words, from the log of each partition."""
    told = []
    for (topic, _), records in log.records.items():
        streams: dict[str, list[tuple[str, int, float]]] = {}
        standing: dict[str, bool] = {}
        seen: set[str] = set()
        for record in records if topic == "training" else ():
            event = json.loads(record.value or b"")
            if event["id"] in seen:
                continue
            seen.add(event["id"])
            run = event["data"].get("run", "")
            name = "task" + ("|" + run.replace("|", "%7C") if run else "")
            mine = streams.setdefault(name, [])
            mine.append((event["time"], record.offset, event["data"]["performance_score"]))
            if len(mine) % 10:
                continue
            window = [score for _, _, score in sorted(mine[-ring:])[-50:]]
            if len(window) < 30:
                continue
            line = stats.linregress(range(len(window)), window)
            standing.setdefault(name, False)
            if not standing[name] and line.slope < 0 and line.pvalue < 0.001 and -line.slope * len(window) > 0.05:
                standing[name] = True
                told.append((name, "alert.opened.v1", event["id"]))
            elif standing[name] and (line.slope >= 0 or line.pvalue > 0.05):
                standing[name] = False
                told.append((name, "alert.resolved.v1", event["id"]))
    return sorted(told)


@pytest.mark.parametrize("ring", [32, 40, 1000])
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_decline_opens_and_ends_where_scipy_says_so(seed: int, partitions: int, ring: int) -> None:
    log = Log([Learning(LearningSettings(learning_ring=ring))], partitions)
    log.send(stream(seed, 1500))
    told = sorted((a["subject"], a["type"], a["derivedfrom"]) for a in log.alerts("learning.declining"))
    assert told == expected(log, ring)
    assert {"alert.opened.v1", "alert.resolved.v1"} <= {kind for _, kind, _ in told}


def test_a_decline_is_one_alert_a_stream_from_its_first_sure_look_to_its_end() -> None:
    log = Log([Learning()])
    log.send(step(i, 0.9 - 0.005 * i, run="r1") for i in range(60))
    log.send(step(60 + i, 0.6 + 0.006 * i, run="r1") for i in range(60))
    opened, resolved = log.alerts("learning.declining")
    assert (opened["type"], opened["severity"], opened["previous"], opened["subject"]) == ("alert.opened.v1", "warning", "ok", "task|r1")
    assert (opened["derivedfrom"], opened["period"], opened["threshold"]) == ("e29", "2026-03-02", 0.05)
    assert opened["value"] == pytest.approx(0.005 * 30)
    assert opened["message"] == "task in run r1 is declining: its score fell by 0.15 over its last 30 events (p = 0)."
    assert (resolved["type"], resolved["severity"], resolved["previous"], resolved["alert_id"]) == (
        "alert.resolved.v1",
        "warning",
        "warning",
        opened["alert_id"],
    )
    assert resolved["value"] < 0.05


@pytest.mark.parametrize("fall", [0.04, 0.049])
def test_a_sure_but_small_fall_is_no_decline(fall: float) -> None:
    log = Log([Learning()])
    log.send(step(i, 0.9 - fall / 50 * i) for i in range(200))
    assert not log.alerts("learning.declining")
    log.send(step(200 + i, 0.9 - 4 * fall - 0.06 / 50 * i) for i in range(60))
    assert len(log.alerts("learning.declining")) == 1


def test_a_fall_of_fewer_than_thirty_events_is_not_judged() -> None:
    log = Log([Learning()])
    log.send(step(i, 0.9 - 0.02 * i) for i in range(29))
    assert not log.alerts("learning.declining")


@pytest.mark.parametrize("partitions", [1, 3])
def test_replay_gives_the_same_messages(partitions: int) -> None:
    log, again = Log([Learning()], partitions), Log([Learning()], partitions)
    log.send(stream(7, 900))
    for number, p in enumerate(again.topics["training"]):
        records = log.records[("training", number)]
        for at in range(0, len(records), 17):
            p.absorb(records[at : at + 17])
    told = [(o.key, o.value) for p in again.topics["training"] for o in p.outputs]
    assert sorted(told, key=str) == sorted([(o.key, o.value) for o in log.outputs], key=str)
    assert log.alerts("learning.declining")
