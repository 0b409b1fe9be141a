"""``pulsefold backtest`` and ``pulsefold what-if``: what the recorded history would have raised under other settings or budgets.

The folding is the service's and runs in a process of its own (`service.start`); here words are checked as far as that needs no service.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..errors import ConfigError
from . import service
from .options import AsCsv, AsJson, Config, Tenant, Token
from .query import moment_of, worker_url

Url = Annotated[str | None, Parameter(help="of the worker whose archive is folded (default: the settings web_host and web_port)")]
File = Annotated[str | None, Parameter(help="fold this file of CloudEvents, one a line, instead of a worker's archive")]
FromLog = Annotated[bool, Parameter(negative="", help="fold the log itself, from Kafka, as `replay` does (settings of this folder)")]


def backtest(
    rules: Annotated[str, Parameter(help="settings to try, a TOML file as pulsefold.toml; those that are not in it stay as they are")],
    *,
    since: Annotated[str | None, Parameter(help="alerts told from this event time on (RFC 3339 or a UTC date); folding begins at the first event")] = None,
    until: Annotated[str | None, Parameter(help="alerts told before this event time; a date takes in that day")] = None,
    file: File = None,
    from_log: FromLog = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    config: Config = None,
) -> int:
    """Fold the recorded history with the present settings and with others, and print which alerts each would have raised, and when."""
    if not Path(rules).is_file():
        raise ConfigError("rules", f"there is no file {rules}")
    words = [rules]
    for name, text in (("since", since), ("until", until)):
        if text is not None:
            words += [f"--{name}={moment_of(text, name)}"]
    return start("backtest", words, file, from_log, url, token, tenant, as_json, as_csv, config)


def budget(
    *,
    scope: Annotated[str, Parameter(help="tenant, model:NAME, run:NAME, agent:NAME or tag:NAME")] = "tenant",
    period: Annotated[Literal["cumulative", "daily", "monthly", "total"], Parameter(help="of the budget")] = "daily",
    amount: Annotated[str | None, Parameter(help="USD; the levels are the setting budget_percent of it")] = None,
    limit: Annotated[list[str] | None, Parameter(negative="", help="LEVEL=USD, such as warning=7.50; one for each level instead of an amount")] = None,
    starts: Annotated[str | None, Parameter(help="UTC date from which a cumulative budget counts")] = None,
    file: File = None,
    from_log: FromLog = False,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    config: Config = None,
) -> int:
    """Fold the recorded costs with the present budget and with another, and print when each level would have come, and where it stands."""
    words = [f"--scope={scope}", f"--period={period}"]
    if (amount is None) == (not limit):
        raise ConfigError("amount", "name either an amount, or limits as --limit LEVEL=USD")
    for one in limit or ():
        if "," in one or "=" not in one:
            raise ConfigError("limit", f"expected LEVEL=USD, got {one[:60]!r}")
    words += [f"--amount={amount}"] if amount is not None else [f"--limits={','.join(limit or ())}"]
    words += [f"--starts={starts}"] if starts is not None else []
    return start("what-if-budget", words, file, from_log, url, token, tenant, as_json, as_csv, config)


def start(
    command: str,
    words: list[str],
    file: str | None,
    from_log: bool,
    url: str | None,
    token: str | None,
    tenant: str | None,
    as_json: bool,
    as_csv: bool,
    config: str | None,
) -> int:
    """Run a command of the service with the flags that both have; the token is not among its words, where others could read it."""
    if (file is not None) + (url is not None) + from_log > 1:
        raise ConfigError("url" if url is not None else "from-log", "name one source: --file, --from-log, or --url of the worker whose archive is folded")
    if file is not None and not Path(file).is_file():
        raise ConfigError("file", f"there is no file {file}")
    if as_json and as_csv:
        raise ConfigError("csv", "name either --json or --csv")
    if token is not None:
        os.environ["PULSEFOLD_TOKEN"] = token
    source = f"--file={file}" if file is not None else "--from-log" if from_log else f"--url={worker_url(url, config)}"
    more = [f"--{name}={value}" for name, value in (("tenant", tenant), ("config", config)) if value is not None]
    shown = ["--json"] if as_json else ["--csv"] if as_csv else []
    return service.start(command, [*words, source, *more, *shown])
