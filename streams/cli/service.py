"""What lives in the service (worker, replay, scan, demo, config) runs in a process of its own.

There ``import tables`` finds our package whatever else is installed: the module path is our folder alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError, PulsefoldError
from ..expected import expected
from ..settings import SERVICE, flags_of, load
from .output import clean

Words = Annotated[str, Parameter(allow_leading_hyphen=True, help="settings as flags, such as --web-port 8080")]

_FOLD_SETTINGS = """
import json
from agents.registry import FOLD_SETTINGS
from streams.settings import SERVICE, declare
import msgspec
own = {one.name for one in SERVICE}
print(json.dumps([[s.name, msgspec.to_builtins(s.default), s.help] for s in declare(FOLD_SETTINGS).values() if s.name not in own]))
"""


def root() -> Path | None:
    """Folder with the packages streams, tables and agents: ``_service`` in the wheel, the checkout otherwise."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "_service", here.parent):
        if (folder / "agents" / "worker.py").exists():
            return folder
    return None


def environment(folder: Path) -> dict[str, str]:
    """Environment in which ``import tables`` finds ours, whatever else is installed."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def missing(command: str) -> list[str]:
    """Packages that a command needs and this environment lacks."""
    needed = {
        "faust": "faust-streaming",
        "aiokafka": "aiokafka",
        "scipy": "scipy",
        "duckdb": "duckdb",
        **({"sklearn": "scikit-learn"} if command == "demo" else {}),
    }
    return [package for module, package in needed.items() if importlib.util.find_spec(module) is None]


def start(command: str, words: list[str]) -> int:
    """Run a command of the service; takes this process's place.

    Raises:
        PulsefoldError: the service is not installed.
    """
    folder, lacking = root(), missing(command)
    if folder is None or lacking:
        extra = "service,demo" if command == "demo" else "service"
        raise PulsefoldError(f"{command}: {', '.join(lacking) or 'the service'} is not installed; install with: pip install 'pulsefold[{extra}]'")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "agents.worker", command, *words], environment(folder))  # noqa: S606 - our own module


def fold_settings() -> list[tuple[str, Any, str]] | None:
    """(name, default, help) of the folds' settings; None where the service is not installed."""
    folder = root()
    if folder is None or missing("worker"):
        return None
    found = subprocess.run([sys.executable, "-c", _FOLD_SETTINGS], env=environment(folder), capture_output=True, text=True, check=False)
    if found.returncode:
        raise PulsefoldError(f"the service cannot be loaded: {found.stderr.strip().rpartition(chr(10))[2]}")
    return [(name, default, text) for name, default, text in json.loads(found.stdout)]


def worker(*words: Words) -> int:
    """Fold, follow, alert and serve. Every setting is a flag: --bootstrap, --web-host, --web-port, …"""
    return run("worker", list(words))


def replay(*words: Words) -> int:
    """Rebuild every table from offset 0 in a fresh process and compare it with the live one; exit 1 if they differ."""
    return run("replay", list(words))


def scan(*words: Words) -> int:
    """List where on the topics and in the archive bytes of a tenant are; exit 1 if any is where workers and queries read."""
    return run("scan", list(words))


def demo(*words: Words) -> int:
    """Embedded broker, worker and real training runs, with a page to watch them; --exit-when-done prints a summary and leaves."""
    return run("demo", list(words))


def config(*words: Words) -> int:
    """Print every setting in force and where it comes from; secrets masked."""
    return run("config", list(words))


WITH_VALUE = frozenset(one.name for one in SERVICE if "on" not in expected(one.type).split(" or "))
"""Settings that a flag alone does not turn on."""
COMMANDS: dict[str, Callable[..., int]] = {"worker": worker, "replay": replay, "scan": scan, "demo": demo, "config": config}
_OWN_FLAGS = {
    "worker": [("config", "FILE", "settings file (default: pulsefold.toml in this folder, if there)")],
    "replay": [("config", "FILE", "settings file (default: pulsefold.toml in this folder, if there)"), ("json", "", "print JSON")],
    "scan": [
        ("tenant", "NAME", "whose bytes are looked for"),
        ("text", "TEXT", "other bytes to look for, several by comma"),
        ("config", "FILE", "settings file (default: pulsefold.toml in this folder, if there)"),
        ("json", "", "print JSON"),
    ],
    "demo": [
        ("exit-when-done", "", "print a summary and leave: 0 if every figure of it holds"),
        ("web-port", "PORT", "port that the page is served on"),
        ("topic-prefix", "PREFIX", "what every topic's name begins with"),
        ("log-dir", "FOLDER", "where the logs of the worker and the trainers go"),
    ],
    "config": [("config", "FILE", "settings file (default: pulsefold.toml in this folder, if there)"), ("json", "", "print JSON")],
}


def run(command: str, words: list[str]) -> int:
    """Check the words as far as that needs no service, then run the command."""
    if {"--help", "-h"} & set(words):
        usage(command)
        return 0
    flags, left = flags_of(words)
    for word, after in pairwise([*words, "--"]):
        name = word[2:].replace("-", "_")
        if word.startswith("--") and after.startswith("--") and (name == "config" or name in WITH_VALUE):
            raise ConfigError(name, f"expected a value after {word}")
    if left:
        raise ConfigError(left[0], f"{command} takes settings as flags only, such as --bootstrap HOST:PORT")
    if command == "demo":
        unknown = sorted(set(flags) - {name.replace("-", "_") for name, _, _ in _OWN_FLAGS["demo"]})
        if unknown:
            raise ConfigError(unknown[0], "the demo has no such flag; `pulsefold demo --help` lists them")
    if command == "config" and (root() is None or missing("config")):
        return own_config(flags)
    return start(command, words)


def own_config(flags: dict[str, str]) -> int:
    """`config` where the service is not installed: the settings that the commands read."""
    as_json = flags.pop("json", None) is not None
    rows = load(flags, os.environ, flags.pop("config", None), others=None).describe()
    if as_json:
        print(json.dumps({name: {"value": value, "from": origin} for name, value, origin, _ in rows}))
    else:
        for name, value, origin, text in rows:
            print(f"{name} = {json.dumps(value)}  ({origin}) {text}")
    return 0


def usage(command: str) -> None:
    """Print what a command does, its flags and every setting."""
    out = Console(markup=False, highlight=False)
    out.print(f"Usage: pulsefold {command} [--FLAG VALUE]...\n\n{COMMANDS[command].__doc__}\n")
    rows = [(f"--{name}" + (f" {value}" if value else ""), "", text) for name, value, text in _OWN_FLAGS[command]]
    if command != "demo":
        settings = [(one.name, one.default, one.help) for one in SERVICE] + (fold_settings() or [])
        rows += [("--" + name.replace("_", "-"), shown(default), text) for name, default, text in settings]
    table = Table(box=None, pad_edge=False)
    table.add_column("flag", no_wrap=True)
    table.add_column("default")
    table.add_column("")
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    out.print(table)
    if command != "demo":
        out.print("\nA setting is also PULSEFOLD_NAME in the environment, or a name in pulsefold.toml; one by kind or name is --name.KEY, PULSEFOLD_NAME__KEY.")


def shown(default: Any) -> str:
    """A default as one would write it; of a map by kind or name the value of every other one."""
    if isinstance(default, dict) and set(default) == {""}:
        default = default[""]
    return "off" if default is None else default if isinstance(default, str) else json.dumps(default)
