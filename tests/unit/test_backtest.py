"""What other settings would have raised, against sums and crossings worked out in the test."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agents.backtest import Item, Run, compare, item
from agents.history import in_force
from agents.main import main
from agents.registry import FOLD_NAMES, FOLD_SETTINGS, folds, schema
from streams.cli.app import run as run_command
from streams.codec import decode
from streams.errors import ConfigError, PulsefoldError
from streams.keys import partition_for, record_key
from streams.settings import Settings, changed, load
from streams.topics import SOURCE_TOPICS
from tables.times import to_us

from ..harness import VECTORS, Log
from .test_cli import one_sentence, pulsefold

START = datetime(2026, 3, 2, tzinfo=UTC)
COUNTS = dict.fromkeys(SOURCE_TOPICS, 3)


def settings_of(tmp_path: Path, toml: str = "") -> Settings:
    file = tmp_path / "rules.toml"
    file.write_text(toml)
    return changed(load({}, {}, file, FOLD_SETTINGS, others=None), file, FOLD_NAMES)


def run(history: list[Item], settings: Settings) -> list[dict[str, Any]]:
    found = Run(schema(settings.fold), COUNTS, 5.0)
    found.fold(history)
    return found.messages


def items(events: list[dict[str, Any]], counts: dict[str, int] = COUNTS) -> list[Item]:
    """Events as if recorded at their own times."""
    found = []
    for event in events:
        raw = json.dumps({"specversion": "1.0", "source": "test", **event}).encode()
        decoded = decode(raw)
        stamp_ms = to_us(decoded.time) // 1000 if decoded.time is not None else 0
        one = item((decoded.data.TOPIC, partition_for(record_key(decoded), counts[decoded.data.TOPIC])), stamp_ms, raw)
        if one is not None:
            found.append(one)
    return found


def costs(n: int, seed: int) -> list[dict[str, Any]]:
    """Costs in time, a day and a bit apart now and then."""
    rng, at = random.Random(seed), START
    made = []
    for number in range(n):
        at += timedelta(minutes=rng.choice([10, 30, 400]))
        made.append({"id": f"c{number}", "type": "cost.incurred.v1", "time": at.isoformat(), "data": {"cost": str(Decimal(rng.randint(1, 40)) / 100)}})
    return made


def crossings(events: list[dict[str, Any]], limits: dict[str, Decimal]) -> list[tuple[str, str, str]]:
    """By hand: (day, time, level) of each cost that takes its day's sum to a level above the one before."""
    found: list[tuple[str, str, str]] = []
    sums: dict[str, Decimal] = {}
    levels: dict[str, int] = {}
    for event in events:
        day = event["time"][:10]
        sums[day] = sums.get(day, Decimal(0)) + Decimal(event["data"]["cost"])
        reached = sum(sums[day] >= limit for limit in limits.values())
        if reached > levels.get(day, 0):
            levels[day] = reached
            found.append((day, event["time"], list(limits)[reached - 1]))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_daily_budget_would_have_been_told_of_at_the_crossings_of_its_sums(tmp_path: Path, seed: int) -> None:
    events = costs(400, seed)
    quiet = "budget_cumulative_usd = 'off'\nbudget_monthly_usd = 'off'\nbudget_total_usd = 'off'\ncost_forecast = false\n"
    runs = {}
    for name, usd in (("present", 4), ("changed", 2)):
        messages = runs[name] = run(items(events), settings_of(tmp_path, f"budget_daily_usd = {usd}\n{quiet}"))
        limits = {level: Decimal(usd) * share / 100 for level, share in (("warning", 70), ("critical", 90), ("shutdown", 100))}
        told = [(m["period"], m["time"], m["severity"]) for m in messages if m["rule"] == "cost.daily" and not m["type"].startswith("alert.resolved")]
        assert told == [(day, time.replace("+00:00", ".000000Z"), level) for day, time, level in crossings(events, limits)]
        assert told
    found = compare(runs["present"], runs["changed"])
    days = {name: {m["period"] for m in messages if m["rule"] == "cost.daily"} for name, messages in runs.items()}
    both, only = days["present"] & days["changed"], days["changed"] - days["present"]
    assert days["present"] <= days["changed"] and both and only
    assert {row["period"] for row in found.alerts if row["rule"] == "cost.daily" and row["in"] == "both"} == both
    assert {row["period"] for row in found.alerts if row["rule"] == "cost.daily" and row["in"] == "only changed"} == only
    for name in runs:
        opened = found.rules["cost.daily"][name]["opened"]
        assert opened == len(days[name])
    first = min(only)
    (row,) = (row for row in found.alerts if row["period"] == first and row["rule"] == "cost.daily")
    assert row["present"] is None and row["changed"]["opened"].startswith(first) and row["changed"]["resolved"] is not None
    # only what was told in a span
    begin = to_us(datetime.fromisoformat(f"{first}T00:00:00+00:00"))
    part = compare(runs["present"], runs["changed"], begin, begin + 86_400_000_000)
    assert {message["time"][:10] for message in part.messages} == {first}
    assert sum(sum(one["changed"].values()) for one in part.rules.values()) == len([m for m in runs["changed"] if m["time"][:10] == first])


PLAIN = sorted(
    name for name, one in VECTORS.items() if not one.get("settings") and name not in ("A1", "M3") and not any("derivedfrom" in event for event in one["events"])
)


@pytest.mark.parametrize("name", PLAIN)
def test_ordered_rules_say_of_a_vector_what_they_say_in_a_worker(tmp_path: Path, name: str) -> None:
    events = VECTORS[name]["events"]
    harness = Log(folds(), 3)
    for event in events:
        harness.send([event])
    ordered = [(a["type"], a["rule"], a["subject"], a["severity"], a["time"], a["value"]) for a in harness.alerts()]
    raws = [json.dumps({"specversion": "1.0", "source": "test", **event}).encode() for event in events]
    history = []
    for raw in raws:
        try:
            decoded = decode(raw)
        except ValueError:
            continue
        one = item((decoded.data.TOPIC, partition_for(record_key(decoded), 3)), 4_102_444_800_000, raw)
        assert one is not None
        history.append(one)
    found = Run(schema(), COUNTS, 5.0)
    for one in history:  # one by one, as the harness does: the order over partitions is then the same
        found.fold([one])
    merged = {rule.name for rule in found.rules}
    assert [(m["type"], m["rule"], m["subject"], m["severity"], m["time"], m["value"]) for m in found.messages if m["rule"] not in merged] == ordered


def message(kind: str, at: str, day: str, rule: str = "trust.low", severity: str = "warning") -> dict[str, Any]:
    about = {"tenant": "t", "rule": rule, "subject": "model|a", "period": day, "alert_id": f"{rule} {day}"}
    return {"type": f"alert.{kind}.v1", "time": f"2026-03-{at}:00:00.000000Z", "severity": severity, **about}


def test_an_alert_that_would_have_opened_on_another_day_is_the_same_one_if_both_stood_at_once() -> None:
    def shown(present: list[dict[str, Any]], tried: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(row["in"], *(row[run] and row[run]["opened"][8:13] for run in ("present", "changed"))) for row in compare(present, tried).alerts]

    late = [message("opened", "04T10", "2026-03-04"), message("resolved", "05T10", "2026-03-04")]
    early = [message("opened", "03T10", "2026-03-03")]
    assert shown(late, early) == [("both", "04T10", "03T10")]
    assert shown(late, [*early, message("resolved", "04T12", "2026-03-03")]) == [("both", "04T10", "03T10")]
    assert shown(late, [*early, message("resolved", "04T09", "2026-03-03")]) == [("only changed", None, "03T10"), ("only present", "04T10", None)]
    assert shown([message("opened", "04T10", "2026-03-04", "cost.daily")], [message("opened", "03T10", "2026-03-03", "cost.daily")]) == [
        ("only changed", None, "03T10"),
        ("only present", "04T10", None),
    ]
    again = [*late, message("opened", "08T10", "2026-03-08", severity="critical")]
    assert shown(again, early) == [("both", "04T10", "03T10"), ("only present", "08T10", None)]


def test_what_a_worker_derived_is_derived_again_by_the_settings_that_are_tried(tmp_path: Path) -> None:
    resolved = {"forecast_id": "f", "model": "m", "success": False, "inputs": {"vix": 1.0}}
    events = [
        {"id": f"r{n}", "type": "forecast.resolved.v1", "time": (START + timedelta(minutes=n)).isoformat(), "data": {**resolved, "forecast_id": f"f{n}"}}
        for n in range(60)
    ]
    derived = {
        "id": "d-1",
        "type": "trust.observed.v1",
        "time": START.isoformat(),
        "derivedfrom": "r0",
        "data": {"kind": "model", "id": "other", "success": False},
    }
    history = items([derived, *events])
    assert len(history) == 60
    low = {m["subject"] for m in run(history, settings_of(tmp_path)) if m["rule"] == "trust.low"}
    off = {m["subject"] for m in run(history, settings_of(tmp_path, "[trust_rule]\nforecast_variables = 'off'\n")) if m["rule"] == "trust.low"}
    assert low - off == {"variable|vix"} and "model|m" in off


def test_settings_of_a_worker_and_of_a_file_are_put_together(tmp_path: Path) -> None:
    worker = load({"budget_daily_usd": "7.5", "trust_low": "0.3"}, {}, None, FOLD_SETTINGS, others=None)
    told = [{"name": name, "value": value, "from": origin} for name, value, origin, _ in worker.describe()]
    found = in_force(json.loads(json.dumps(told)))
    for struct in FOLD_SETTINGS:
        assert found.fold(struct) == worker.fold(struct)
    file = tmp_path / "rules.toml"
    file.write_text("trust_low = 0.2\n[trust_half_life]\nmodel = 60\n")
    tried = changed(found, file, FOLD_NAMES)
    assert (tried.get("trust_low"), tried.get("budget_daily_usd"), found.get("trust_low")) == (0.2, Decimal("7.5"), 0.3)
    assert tried.get("trust_half_life") == {"": None, "model": 60.0}
    for text, name in (("web_port = 1\n", "web_port"), ("trust_lw = 1\n", "trust_lw"), ("trust_low = 'x'\n", "trust_low"), ("= 1", "rules.toml")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=name):
            changed(found, file, FOLD_NAMES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Costs of two days and one line that is no event."""
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"specversion": "1.0", "source": "test", **event}) for event in costs(60, 5)]
    path.write_text("\n".join([*lines[:30], "no event", *lines[30:]]) + "\n")
    return path


def test_the_commands_print_tables_json_and_csv(tmp_path: Path, file: Path) -> None:
    (tmp_path / "r.toml").write_text("budget_daily_usd = 1\n")
    code, out, told = pulsefold("backtest", "r.toml", "--file", str(file), "--json", cwd=tmp_path)
    assert (code, told) == (0, "")
    body = json.loads(out)
    assert (body["events"], body["refused"]) == (60, 1)
    assert body["settings"] == {"budget_daily_usd": {"present": 10, "changed": 1}}
    daily = body["rules"]["cost.daily"]
    limits = {"warning": Decimal("0.7"), "critical": Decimal("0.9"), "shutdown": Decimal(1)}
    by_hand = crossings(costs(60, 5), limits)
    assert daily["changed"]["opened"] == len({day for day, _, _ in by_hand}) and daily["changed"]["opened"] + daily["changed"]["escalated"] == len(by_hand)
    assert {row["in"] for row in body["alerts"] if row["rule"] == "cost.daily"} == {"only changed"}
    code, out, _ = pulsefold("backtest", "r.toml", "--file", str(file), "--csv", cwd=tmp_path)
    assert code == 0 and out.startswith("alert_id,tenant,rule,subject,period,in,present_opened") and out.count("only changed") == daily["changed"]["opened"]
    code, out, _ = pulsefold("backtest", "r.toml", "--file", str(file), "--since", "2026-03-04", cwd=tmp_path)
    assert code == 0 and "10 → 1" in out and "cost.daily" in out and "│ 2026-03-02 │" not in out
    code, out, _ = pulsefold("what-if", "budget", "--limit", "warning=0.70", "--limit", "shutdown=1", "--file", str(file), "--json", cwd=tmp_path)
    body = json.loads(out)
    told_by_hand = crossings(costs(60, 5), {"warning": Decimal("0.7"), "shutdown": Decimal(1)})
    steps = [(s["period"], s["time"], s["level"]) for s in body["steps"] if s["settings"] == "changed" and s["kind"] != "resolved"]
    assert steps == [(day, time.replace("+00:00", ".000000Z"), level) for day, time, level in told_by_hand]
    spent = sum(Decimal(one["data"]["cost"]) for one in costs(60, 5) if one["time"][:10] == body["changed"]["period"])
    assert body["changed"]["sum_usd"] == body["present"]["sum_usd"] == float(spent)
    assert [one["at_usd"] for one in body["changed"]["limits"]] == [0.7, 1.0] and [one["at_usd"] for one in body["present"]["limits"]] == [7.0, 9.0, 10.0]
    code, out, _ = pulsefold("what-if", "budget", "--amount", "1", "--file", str(file), cwd=tmp_path)
    assert code == 0 and "when each level came and went" in out and "0.9" in out
    code, out, _ = pulsefold("what-if", "budget", "--period", "total", "--amount", "5000", "--file", str(file), "--csv", cwd=tmp_path)
    assert (code, out.splitlines()) == (0, ["settings,period,kind,level,time,sum_usd,limit_usd,message"])


CASES = [
    ("backtest none.toml", "rules: there is no file none.toml"),
    ("backtest r.toml --file none.jsonl", "file: there is no file none.jsonl"),
    ("backtest r.toml --file e.jsonl --since noon", "since: expected a time"),
    ("backtest r.toml --file e.jsonl --url http://h:1", "url: name one source"),
    ("backtest r.toml --file e.jsonl --from-log", "from-log: name one source"),
    ("backtest r.toml --file e.jsonl --json --csv", "csv: name either"),
    ("what-if budget --file e.jsonl", "amount: name either"),
    ("what-if budget --amount 1 --limit warning=1 --file e.jsonl", "amount: name either"),
    ("what-if budget --limit warning --file e.jsonl", "limit: expected LEVEL=USD"),
    ("what-if budget --amount 1 --period weekly --file e.jsonl", "period"),
]
OF_THE_SERVICE = [
    ("backtest r.toml --file=e.jsonl --since=2026-03-03 --until=2026-03-02", "until: must be after since"),
    ("backtest bad.toml --file=e.jsonl", "web_port: changes no alert"),
    ("backtest worse.toml --file=e.jsonl", "budget_percent"),
    ("backtest r.toml --file=r.toml", "file: r.toml holds no events"),
    ("backtest r.toml --url=http://127.0.0.1:1", "url: no worker answers"),
    ("what-if-budget --amount=-1 --file=e.jsonl", "amount: expected USD above 0"),
    ("what-if-budget --limits=loud=1 --file=e.jsonl", "limit"),
    ("what-if-budget --limits=shutdown=1,warning=2 --file=e.jsonl", "limit"),
    ("what-if-budget --amount=1 --scope=shop:x --file=e.jsonl", "scope"),
    ("what-if-budget --amount=1 --period=cumulative --file=e.jsonl", "amount: a cumulative budget"),
    ("what-if-budget --limits=warning=1 --starts=noon --period=cumulative --file=e.jsonl", "starts"),
    ("what-if-budget --amount=1 --file=two.jsonl", "tenant: the file has costs of several tenants"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands find files that are right and files that are wrong."""
    (tmp_path / "r.toml").write_text("budget_daily_usd = 1\n")
    (tmp_path / "bad.toml").write_text("web_port = 1\n")
    (tmp_path / "worse.toml").write_text("budget_percent = [90, 70, 100]\n")
    lines = [json.dumps({"specversion": "1.0", "source": "test", **event}) for event in costs(3, 1)]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    (tmp_path / "two.jsonl").write_text("\n".join([*lines, lines[0].replace('"id": "c0"', '"id": "d0", "tenant": "acme"')]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "says"), CASES)
def test_wrong_words_are_refused_before_the_service_is_asked(folder: Path, words: str, says: str) -> None:
    with pytest.raises(PulsefoldError) as refused:
        run_command(words.split())
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("words", "says"), OF_THE_SERVICE)
def test_what_only_the_service_can_tell_is_one_sentence_too(folder: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    found = capsys.readouterr()
    assert found.out == "" and says in one_sentence(found.err)


def test_a_wrong_file_of_settings_ends_the_command_with_two(folder: Path) -> None:
    code, out, told = pulsefold("backtest", "bad.toml", "--file", "e.jsonl", cwd=folder)
    assert (code, out) == (2, "") and "web_port" in one_sentence(told)
