"""``pulsefold backtest`` and ``pulsefold what-if budget``: the recorded history folded with the present settings and with others."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress, TaskID

from streams.cli.output import show, write_csv
from streams.codec import InvalidEvent, decode
from streams.errors import ConfigError
from streams.keys import partition_for, record_key
from streams.settings import Settings, changed
from tables.budgets import RULES
from tables.fold import BadParameter, NotFound
from tables.partition import Schema
from tables.rows import escape
from tables.times import rfc3339
from tables.window_views import bound

from .app import load_settings
from .backtest import KINDS, RUNS, Comparison, Item, Run, compare
from .history import History, of_file, of_log, of_worker
from .registry import FOLD_NAMES, schema_of

LATE_S = 2.0
"""Seconds after which a bar shows how far it has come."""
COLUMNS = ("alert_id", "tenant", "rule", "subject", "period", "in", *(f"{run}_{name}" for run in RUNS for name in ("opened", "worst", "resolved")))
STEPS = ("settings", "period", "kind", "level", "time", "sum_usd", "limit_usd", "message")


class Bar:
    """A progress bar on stderr, for people only, once something takes its time."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    @contextmanager
    def step(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A step: gives a function that is told how many more are done."""
        done = 0

        def told(n: int) -> None:
            nonlocal done
            done += n
            if self.progress is None and sys.stderr.isatty() and time.monotonic() - self.begun > LATE_S:
                self.progress = Progress(console=Console(stderr=True), transient=True)
                self.progress.start()
            if self.progress is not None:
                if self.task is None:
                    self.task = self.progress.add_task(what, total=total)
                self.progress.update(self.task, completed=done)

        try:
            yield told
        finally:
            self.task = None

    def end(self) -> None:
        """Take it away."""
        if self.progress is not None:
            self.progress.stop()


def moment(flags: Mapping[str, Any], name: str) -> int | None:
    """A time of the command line in microseconds.

    Raises:
        ConfigError: it is none.
    """
    try:
        return bound(flags.get(name), name, end=name == "until")
    except BadParameter:
        raise ConfigError(name, f"expected a time such as 2026-11-21T08:15:30Z, or a UTC date, got {str(flags[name])[:60]!r}") from None


def gather(flags: Mapping[str, Any], bar: Bar, topics: tuple[str, ...] | None = None) -> History:
    """The history that the flags name."""
    with bar.step("reading") as told:
        if "file" in flags:
            return of_file(flags["file"], load_settings({}, flags.get("config")), flags.get("tenant"), told)
        if "from_log" in flags:
            history = of_log(load_settings({}, flags.get("config")), flags.get("tenant", "default"), told, *([topics] if topics else []))
            why = "the broker no longer has the first events (topic_retention_days)"
        else:
            history = of_worker(flags["url"], flags.get("tenant"), told, *([topics] if topics else []))
            why = "the archive no longer has the first events (archive_days); --from-log folds the log itself"
    if not history.whole:
        print(f"pulsefold: {why}; sums begin with those that are left", file=sys.stderr)
    return history


def tables_of(settings: Settings, file: str) -> Schema:
    """Tables of settings.

    Raises:
        ConfigError: a fold cannot work with them.
    """
    try:
        return schema_of(settings)
    except ValueError as wrong:
        raise ConfigError(file, str(wrong)) from None


def backtest(rules: str, flags: Mapping[str, Any]) -> int:
    """The command `backtest`.

    Args:
        rules: a file of settings.
        flags: since, until, url or file or from_log, tenant, config, json, csv.
    """
    since_us, until_us = moment(flags, "since"), moment(flags, "until")
    if since_us is not None and until_us is not None and since_us >= until_us:
        raise ConfigError("until", "must be after since")
    _tried(load_settings({}, flags.get("config")), rules)  # what is wrong with it is said before anything is read
    bar = Bar()
    try:
        history = gather(flags, bar)
        present, tried = history.settings, _tried(history.settings, rules)
        runs = {}
        for name, settings in zip(RUNS, (present, tried), strict=True):
            runs[name] = Run(tables_of(settings, rules), history.counts, settings.get("alert_interval_s"))
            with bar.step(f"folding with the {name} settings", len(history.items)) as told:
                runs[name].fold(history.items, told)
    finally:
        bar.end()
    found = compare(runs["present"].messages, runs["changed"].messages, since_us, until_us)
    differing = {name: (present.values[name], tried.values[name]) for name in sorted(FOLD_NAMES) if present.values[name] != tried.values[name]}
    settings_shown = {name: {"present": msgspec.to_builtins(a), "changed": msgspec.to_builtins(b)} for name, (a, b) in differing.items()}
    if "json" in flags:
        body = {**about(history), "settings": settings_shown, "rules": found.rules, "alerts": found.alerts, "messages": found.messages}
        print(json.dumps(body, indent=2))
    elif "csv" in flags:
        write_csv(flat(found), COLUMNS)
    else:
        tell(history, settings_shown, found)
    return 0


def _tried(present: Settings, rules: str) -> Settings:
    tried = changed(present, rules, FOLD_NAMES)
    tables_of(tried, rules)
    return tried


def about(history: History) -> dict[str, Any]:
    """How much was folded."""
    items = history.items
    return {
        "events": len(items),
        "first": rfc3339(min(one.time_us for one in items)) if items else None,
        "last": rfc3339(max(one.time_us for one in items)) if items else None,
        "refused": history.refused,
    }


def flat(found: Comparison) -> list[dict[str, Any]]:
    """Alerts as rows of a table."""
    return [
        {
            **{name: row[name] for name in ("alert_id", "tenant", "rule", "subject", "period", "in")},
            **{f"{run}_{name}": row[run] and row[run][name] for run in RUNS for name in ("opened", "worst", "resolved")},
        }
        for row in found.alerts
    ]


def tell(history: History, settings: Mapping[str, Any], found: Comparison) -> None:
    """Tables for people: what was changed, how many messages a rule gave, which alerts differ."""
    if not settings:
        print("the settings of the file are those in force already")
    rules = [
        {
            "rule": rule,
            **{f"{run} {kind}": found.rules[rule][run][kind] for kind in KINDS for run in RUNS},
            **{f"only {run}": sum(row["rule"] == rule and row["in"] == f"only {run}" for row in found.alerts) for run in RUNS},
        }
        for rule in found.rules
    ]
    rows = [row for row in flat(found) if row["in"] != "both" or any(row[f"present_{name}"] != row[f"changed_{name}"] for name in ("opened", "worst"))]
    differ = [{name: row[name] for name in COLUMNS if name != "alert_id"} for row in rows]
    shown: dict[str, Any] = {**about(history)}
    shown |= {name: f"{json.dumps(one['present'])} → {json.dumps(one['changed'])}" for name, one in settings.items()}
    show({**shown, "messages by rule": rules, "alerts that differ": differ[:100]})
    if len(differ) > 100:
        print(f"{len(differ) - 100} more alerts differ; --csv and --json have all of them")
    if not rules:
        print("no alerts with either settings")


# ---- what if


def what_if_budget(flags: Mapping[str, Any]) -> int:
    """The command `what-if budget`.

    Args:
        flags: scope, period, limits as ``level=USD,…`` or amount, starts, url or file or from_log, tenant, config, json, csv.
    """
    scope, period = flags.get("scope", "tenant"), flags.get("period", "daily")
    if period not in RULES:
        raise ConfigError("period", f"expected {', '.join(RULES)}, got {period!r}")
    bar = Bar()
    try:
        local = load_settings({}, flags.get("config"))
        budget_event(flags, scope, period, local, "default", 0)  # what is wrong with it is said before anything is read
        history = gather(flags, bar, ("costs",))
        items = [one for one in history.items if one.place[0] == "costs"]
        tables = tables_of(history.settings, "budgets")
        tenants = sorted({decode(one.value).tenant for one in items})
        if len(tenants) > 1:
            raise ConfigError("tenant", f"the file has costs of several tenants ({', '.join(tenants[:3])}, …); name one")
        tenant = tenants[0] if tenants else flags.get("tenant") or "default"
        first_us = min((one.time_us for one in items), default=0)
        value = budget_event(flags, scope, period, history.settings, tenant, first_us)
        home = partition_for(record_key(decode(value)), history.counts["costs"])
        stamp_ms = items[0].stamp_ms if items else 0
        without = [one for one in items if not sets(one.value, scope, period)]
        tried = [Item(stamp_ms, first_us, ("costs", home), value), *without]
        runs = {}
        for name, events in zip(RUNS, (items, tried), strict=True):
            runs[name] = Run(tables, history.counts, history.settings.get("alert_interval_s"))
            with bar.step(f"folding with the {name} budget", len(events)) as told:
                runs[name].fold(events, told)
    finally:
        bar.end()
    standing = {name: stands(run, tenant, scope, RULES[period]) for name, run in runs.items()}
    steps = [step for name, run in runs.items() for step in steps_of(name, run, scope, RULES[period])]
    steps.sort(key=lambda step: (step["time"], step["settings"] != "present"))
    if "json" in flags:
        print(json.dumps({**about(History(items, {}, history.settings)), "scope": scope, "period": period, **standing, "steps": steps}, indent=2))
    elif "csv" in flags:
        write_csv(steps, STEPS)
    else:
        rows = [{"settings": name, **(one or {"level": "no budget"})} for name, one in standing.items()]
        body = {**about(History(items, {}, history.settings)), "scope": scope, "period": period, "at the end": rows}
        show({**body, "when each level came and went": [{name: step[name] for name in STEPS[:-1]} for step in steps]})
        if not steps:
            print("neither budget was ever reached")
    return 0


def budget_event(flags: Mapping[str, Any], scope: str, period: str, settings: Settings, tenant: str, time_us: int) -> bytes:
    """The budget that is tried, as the event that would set it.

    Raises:
        ConfigError: naming what is wrong with it.
    """
    limits: list[dict[str, Any]] = []
    if ("limits" in flags) == ("amount" in flags):
        raise ConfigError("amount", "name either an amount, or limits as --limit LEVEL=USD")
    if "amount" in flags:
        if period == "cumulative":
            raise ConfigError("amount", "a cumulative budget has a limit for each level: --limit warning=10 --limit shutdown=100")
        from decimal import Decimal, InvalidOperation

        try:
            amount = Decimal(flags["amount"])
            if not (amount.is_finite() and amount > 0):
                raise InvalidOperation
        except InvalidOperation:
            raise ConfigError("amount", f"expected USD above 0, got {flags['amount'][:60]!r}") from None
        for level, percent in zip(("warning", "critical", "shutdown"), settings.get("budget_percent"), strict=False):
            limits.append({"level": level, "at": format(amount * Decimal(percent) / 100, "f")})
    else:
        for text in flags["limits"].split(","):
            level, equals, at = text.partition("=")
            if not equals:
                raise ConfigError("limit", f"expected LEVEL=USD, got {text[:60]!r}")
            limits.append({"level": level, "at": at})
    data: dict[str, Any] = {"scope": scope, "period": period, "limits": limits}
    if "starts" in flags:
        data["starts"] = flags["starts"]
    event = {"specversion": "1.0", "id": "what-if", "source": "what-if", "type": "budget.set.v1", "tenant": tenant, "time": rfc3339(time_us), "data": data}
    value = json.dumps(event).encode()
    try:
        decode(value)
    except InvalidEvent as bad:
        field, _, text = bad.error.partition(": ")
        name = {"limits": "limit", "scope": "scope", "starts": "starts", "period": "period"}.get(field.removeprefix("data.").split("[")[0], "limit")
        raise ConfigError("amount" if name == "limit" and "amount" in flags else name, text or bad.error) from None
    return value


def sets(value: bytes, scope: str, period: str) -> bool:
    """Whether an event sets this budget."""
    if b"budget.set" not in value:
        return False
    data: Any = decode(value).data
    return data.TYPE == "budget.set.v1" and data.scope == scope and data.period == period


def stands(run: Run, tenant: str, scope: str, rule: str) -> dict[str, Any] | None:
    """Where a budget stands at the end of a run; None = there is none, or nothing was spent."""
    view = next(view for fold in run.tables.folds for view in fold.views if view.path == "/costs/status")
    try:
        body = view.answer(run.reader(tenant), msgspec.convert({"scope": scope}, view.params))
    except NotFound:
        return None
    return next((dict(one) for one in body["budgets"] if one["rule"] == rule), None)


def steps_of(name: str, run: Run, scope: str, rule: str) -> list[dict[str, Any]]:
    """When a budget's levels came and went."""
    return [
        {
            "settings": name,
            "period": message["period"],
            "kind": message["type"].split(".")[1],
            "level": message["severity"],
            "time": message["time"],
            "sum_usd": message["value"],
            "limit_usd": message["threshold"],
            "message": message["message"],
        }
        for message in run.messages
        if message["rule"] == rule and message["subject"] == escape(scope)
    ]


__all__ = ["backtest", "what_if_budget"]
