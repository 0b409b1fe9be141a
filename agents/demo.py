"""``pulsefold demo``: broker, worker and real training runs on one machine, with a summary that has to add up.

Every figure of the summary is asked from the running worker and compared with one computed from the events themselves
(`agents.demo_truth`); `--exit-when-done` returns 0 only if all of them hold. Ctrl-C ends it at any time, with the summary of
what there is by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streams import events
from streams.broker import EmbeddedBroker
from streams.errors import ConfigError
from streams.publisher import SyncPublisher
from streams.settings import load

from .demo_truth import Asker, Check, DemoFailed, Log, Truth, verify
from .trainer import EPOCHS, PLANS

PARTITIONS = 4
PORT = 6066
PACE_S = 0.1
"""Pause after each training step for people who watch; 640 steps a run make a bit over a minute."""
LATE_S = 10.0
"""How long figures that differ are looked at again: what is judged once a second comes when the machine has time for it."""
PROBE_TENANT = "probe"
FILE = Path("demo-events.jsonl")
TONES = {"shutdown": "bold magenta", "critical": "bold red", "warning": "yellow", "info": "cyan", "notice": "cyan", "resolved": "green"}


def port_of(text: str | None) -> int | None:
    """The port asked for, None if none was.

    Raises:
        ConfigError: it is no port, or somebody else's.
    """
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ConfigError("web_port", f"expected a port from 1 to 65535, got {text!r}")
    if not is_free(int(text)):
        raise ConfigError("web_port", f"127.0.0.1:{text} is in use; choose another with --web-port")
    return int(text)


def is_free(port: int) -> bool:
    """Whether a port of loopback can be served."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def any_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the demo, in a group of its own, so that Ctrl-C reaches the demo alone; it is ended when the demo ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ.copy(), process_group=0
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(8)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@dataclass
class Probe:
    """Times events on their way to the views, again and again, under a tenant of its own.

    Attributes:
        took: (milliseconds, whether trainers were at work).
    """

    bootstrap: str
    prefix: str
    asker: Asker
    pause_s: float
    stop: threading.Event = field(default_factory=threading.Event)
    training: threading.Event = field(default_factory=threading.Event)
    took: list[tuple[float, bool]] = field(default_factory=list)

    def run(self) -> None:
        """Until `stop`."""
        with SyncPublisher(self.bootstrap, prefix=self.prefix, tenant=PROBE_TENANT, source="demo/probe", linger_ms=1) as publisher:
            n = 0
            while not self.stop.wait(self.pause_s):
                n += 1
                begun, busy = time.perf_counter(), self.training.is_set()
                publisher.publish(events.TrustObserved(kind="probe", id="event_to_view", success=True))
                while time.perf_counter() - begun < 5 and not self.stop.is_set():
                    with contextlib.suppress(OSError, ValueError):  # 404 before the first one is an OSError too
                        if self.asker.get("/trust/probe/event_to_view", PROBE_TENANT)["observations"] >= n:
                            self.took.append(((time.perf_counter() - begun) * 1000, busy))
                            break
                    time.sleep(0.001)


class Demo:
    """One run.

    Args:
        leave: end when the trainers have ended, and make haste.
        port: that the page is served on.
        logs: folder for what the processes print.
    """

    def __init__(self, console: Console, *, leave: bool, port: int, prefix: str, logs: Path) -> None:
        self.console, self.leave, self.port, self.prefix, self.logs = console, leave, port, prefix, logs
        self.asker = Asker(port)
        self.told: set[str] = set()
        self.whole = False
        self.probe: Probe | None = None

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.port}/"

    def run(self) -> int:
        """0 if every figure holds."""
        with contextlib.ExitStack() as stack:
            try:
                broker, worker, log, begun = self.start(stack)
            except KeyboardInterrupt:
                self.console.print("\nstopped before the worker was ready: nothing has happened yet")
                return 130
            try:
                self.train(broker.bootstrap, worker)
                self.whole = True
            except KeyboardInterrupt:
                self.console.print("\nstopping: what there is by now is added up …")
            with contextlib.suppress(KeyboardInterrupt):
                return self.conclude(worker, log, time.monotonic() - begun)
            return 130

    def start(self, stack: contextlib.ExitStack) -> tuple[EmbeddedBroker, subprocess.Popen[bytes], Log, float]:
        """Broker, worker, a reader of the log, and when it began; all end with the stack."""
        broker = stack.enter_context(EmbeddedBroker(partitions=PARTITIONS, prefix=self.prefix))
        self.introduce(broker.bootstrap)
        begun = time.monotonic()
        words = ["--bootstrap", broker.bootstrap, "--topic-prefix", self.prefix, "--partitions", str(PARTITIONS), "--web-port", str(self.port)]
        words += ["--alert-interval-s", "1", "--log-level", "warning"]
        worker = stack.enter_context(child(["-m", "agents.main", "worker", *words], self.logs / "worker.log"))
        log = Log(broker.bootstrap, self.prefix)
        stack.callback(log.close)
        while not self.asker.ready():
            self.alive(worker)
            if time.monotonic() - begun > 60:
                raise DemoFailed(f"the worker is not ready after a minute; see {self.logs / 'worker.log'}")
            time.sleep(0.1)
        self.console.print(f"[green]ready[/] after {time.monotonic() - begun:.1f} s. Alerts as they come:\n")
        return broker, worker, log, begun

    def introduce(self, bootstrap: str) -> None:
        """The first lines: where to look, and what at."""
        say = self.console.print
        say("[bold]pulsefold demo[/]: an embedded broker, a worker and three real training runs\n")
        say(f"  [bold]dashboard[/]  [link={self.url}]{self.url}[/]  (open it now)")
        say(f"  broker     {bootstrap}, in memory: nothing is kept after the demo")
        say(f"  logs       {self.logs}\n", soft_wrap=True)
        say("What to look at on the page, for about " + ("20 seconds" if self.leave else "a minute and a half") + ":")
        say("  [bold]digits-a[/]         learns to read digits: its goals are reached, its trust grows")
        say("  [bold]cancer-b[/]         has a budget of $0.005 a day and will pass it: Alerts, Costs")
        say("  [bold]digits-drifting[/]  has its inputs fade at 40 %: Variables, Trust, Goals;")
        say("                   a judge that sees only its training loss will be wrong: Trust\n")

    def alive(self, worker: subprocess.Popen[bytes]) -> None:
        """Raises:
        DemoFailed: the worker has ended.
        """
        if worker.poll() is not None:
            raise DemoFailed(f"the worker has ended with code {worker.returncode}; see {self.logs / 'worker.log'}")

    def train(self, bootstrap: str, worker: subprocess.Popen[bytes]) -> None:
        """Run the trainers to their end, telling alerts meanwhile."""
        self.probe = probe = Probe(bootstrap, self.prefix, self.asker, 0.05 if self.leave else 0.5)
        probing = threading.Thread(target=probe.run, daemon=True)
        shown = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} epochs"), TimeElapsedColumn())
        with contextlib.ExitStack() as stack, Progress(*shown, console=self.console, transient=True) as progress:
            stack.callback(probing.join, 10)
            stack.callback(probe.stop.set)
            probing.start()
            bar = progress.add_task("training", total=EPOCHS * len(PLANS))
            probe.training.set()
            pace = "0" if self.leave else str(PACE_S)
            left = {
                name: stack.enter_context(
                    child(["-m", "agents.trainer", name, "--bootstrap", bootstrap, "--prefix", self.prefix, "--pace-s", pace], self.logs / f"{name}.log")
                )
                for name in PLANS
            }
            while left:
                time.sleep(0.3)
                self.alive(worker)
                self.tell(progress.console)
                progress.update(bar, completed=self.asker.get("/learning/metrics")["total_learning_events"])
                for name, process in list(left.items()):
                    if process.poll() is not None:
                        del left[name]
                        if process.returncode:
                            raise DemoFailed(f"the trainer {name} ended with code {process.returncode}; see {self.logs / (name + '.log')}")
            probe.training.clear()
            progress.update(bar, description="last events", completed=EPOCHS * len(PLANS))
            until = time.monotonic() + 3
            while time.monotonic() < until:
                time.sleep(0.3)
                self.tell(progress.console)

    def tell(self, console: Console) -> None:
        """Print what is new among the alerts, one line each."""
        found = self.asker.get("/alerts?state=all&limit=1000")["alerts"]
        for alert in reversed(found):
            if alert["id"] not in self.told:
                self.told.add(alert["id"])
                word = word_of(alert)
                line = Text.assemble((alert["time"][11:19], "dim"), "  ", (f"{word:9}", TONES[word]), " ", alert["message"])
                console.print(line)

    def conclude(self, worker: subprocess.Popen[bytes], log: Log, seconds: float) -> int:
        """Let the worker finish, compare, print; then serve on, if so wished."""
        self.settle(worker, log)
        deadline = time.monotonic() + LATE_S
        while True:
            truth = log.truth()
            checks = [one for one in verify(self.asker, truth) if self.whole or not one.story]
            if all(one.holds for one in checks) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        self.tell(self.console)
        self.summary(truth, checks, seconds)
        holds = all(one.holds for one in checks)
        self.keep(truth)
        if not self.whole:
            return 130 if self.leave else int(not holds)  # broken off: only who asked for the end to be waited for has missed something
        if not self.leave:
            query = f"pulsefold query /trust/model/digits-drifting --url {self.url.rstrip('/')}"
            self.console.print(f"\nstill serving [bold]{self.url}[/] until Ctrl-C. Or ask from another shell:\n  {query}", soft_wrap=True)
            with contextlib.suppress(KeyboardInterrupt):
                while worker.poll() is None:
                    time.sleep(0.3)
        return int(not holds)

    def settle(self, worker: subprocess.Popen[bytes], log: Log, timeout_s: float = 60) -> None:
        """Wait until the worker has absorbed all of the log and nothing has come for as long as the merged rules take."""
        deadline, quiet_s = time.monotonic() + timeout_s, 2.2 if self.whole else 1.5
        last, since = -1, time.monotonic()
        while time.monotonic() < deadline:
            self.alive(worker)
            end, absorbed = sum(log.ends().values()), self.asker.get("/status")["counts"]["in"]
            if end != last or absorbed != end:
                last, since = end, time.monotonic()
            elif time.monotonic() - since > quiet_s:
                return
            time.sleep(0.2)
        raise DemoFailed(f"the worker has not absorbed all events within {timeout_s:.0f} s")

    def keep(self, truth: Truth) -> None:
        """Write what producers published as JSON lines."""
        aside = FILE.with_suffix(".tmp")
        try:
            aside.write_bytes(b"".join(raw + b"\n" for _, raw in truth.lines))
            aside.replace(FILE)
        except OSError as bad:
            self.console.print(f"the events were not kept: {FILE} cannot be written here ({bad.strerror})")
            return
        self.console.print(
            f"\n{len(truth.lines):,} events are kept in {FILE}; publish them anywhere: pulsefold publish {FILE} --bootstrap HOST:PORT", soft_wrap=True
        )

    # ---- the summary

    def summary(self, truth: Truth, checks: Sequence[Check], seconds: float) -> None:
        """What happened, as tables."""
        say, get = self.console.print, self.asker.get
        say()
        self.console.rule("what happened", align="left")
        say(f"{truth.n:,} records in {seconds:.0f} s: {truth.n - truth.derived:,} published, {truth.derived:,} derived from them by the worker.\n")
        trust = [trust_row(one) for one in self.some_trust()]
        self.show("trust: share of successes expected next", ("kind", "id", ">trust", ">95 % interval", ">seen"), trust)
        goals = [(g["goal_id"], target(g), number(g["current"]), standing(g)) for g in get("/learning/goals")["goals"]]
        self.show("goals", ("goal", ">target", ">now", "standing"), goals)
        drifting = get("/variables/drift?min_count=20")["variables"]
        drifted = [(v["name"], f"{v['avg_fragility']:.3f}", f"{v['certified_ratio']:.3f}", f"{v['count']:,}") for v in drifting]
        title = "drifting variables: fragility above 0.25 or certified below 0.75"
        self.show(title if drifted else "no variable drifts", ("variable", ">fragility", ">certified", ">forecasts"), drifted)
        costs = [(name, f"${spent:.4f}", self.budget(name)) for name, spent in get("/costs?by=model").get("models", {}).items()]
        self.show("costs: CPU seconds at $0.25", ("model", ">spent", "budget"), costs)
        kinds = Counter((alert["rule"], word_of(alert)) for alert in get("/alerts?state=all&limit=1000")["alerts"])
        self.show("alerts", ("rule", "now", ">how many"), [(rule, Text(word, TONES[word]), str(n)) for (rule, word), n in sorted(kinds.items())])
        for words, busy in (("while the trainers had the processor", True), ("afterwards", False)):
            times = sorted(took for took, mine in (self.probe.took if self.probe else ()) if mine is busy)
            if times:
                p95 = times[max(0, int(len(times) * 0.95) - 1)]
                say(f"event to view, {words}: p50 {statistics.median(times):.1f} ms, p95 {p95:.1f} ms ({len(times)} probes)")
        say()
        self.console.rule("checked: the worker's figures against ones computed from the events alone", align="left")
        wrong = sum(not one.holds for one in checks)
        rows = [(one.name, short(one.shown), short(one.expected), Text("holds", "green") if one.holds else Text("DIFFERS", "bold red")) for one in checks]
        say(table(("figure", "worker", "events", ""), rows), "")
        say(f"[bold red]{wrong} of {len(checks)} figures differ.[/]" if wrong else f"[bold green]All {len(checks)} figures hold.[/]")

    def show(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
        """Print a table under its title."""
        self.console.print(f"[bold]{title}[/]")
        self.console.print(table(heads, rows))
        self.console.print()

    def some_trust(self) -> list[dict[str, Any]]:
        """Every model, agent and judge, and the least and most trusted variable."""
        found = [one for kind in ("model", "agent", "judge") for one in self.asker.get(f"/trust?kind={kind}&sort=trust&order=asc&limit=10")["entries"]]
        ends = [self.asker.get(f"/trust?kind=variable&sort=trust&order={order}&limit=1")["entries"] for order in ("asc", "desc")]
        return found + [one for end in ends for one in end]

    def budget(self, model: str) -> str:
        """Where a model stands with its own budget."""
        try:
            budgets = self.asker.get(f"/costs/status?scope=model:{model}")["budgets"]
        except urllib.error.HTTPError:
            budgets = []
        return (
            ", ".join(f"{b['level']}: ${b['sum_usd']:.4f} of ${b['limits'][-1]['at_usd']:g} {b['rule'].removeprefix('cost.')}" for b in budgets)
            or "none of its own"
        )


def table(heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table; a head that begins with > is of a column of numbers."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        made.add_column(head.lstrip(">"), justify="right" if head.startswith(">") else "left")
    for row in rows:
        made.add_row(*row)
    return made


def trust_row(one: dict[str, Any]) -> tuple[str, ...]:
    """Cells of a key."""
    low, high = one["beta_interval"]
    return one["kind"], one["id"], f"{one['trust']:.3f}", f"{low:.3f} … {high:.3f}", f"{one['sample_size']:,}"


def word_of(alert: dict[str, Any]) -> str:
    """What an alert is now."""
    return str(alert["severity"]) if alert["open"] else "notice" if alert.get("notice") else "resolved"


def target(goal: dict[str, Any]) -> str:
    """What a goal wants."""
    return f"{'≤' if goal['direction'] == 'at_most' else '≥'} {goal['target']}"


def standing(goal: dict[str, Any]) -> Text:
    """How a goal stands, in words."""
    if goal["regressed"]:
        return Text("reached, then lost", "yellow")
    return Text(f"reached {goal['completed_at'][11:19]}", "green") if goal["completed"] else Text(f"{goal['percentage'] or 0:.0f} % of the way")


def number(value: float | None) -> str:
    """A value, or a dash before the first."""
    return "–" if value is None else f"{value:.4f}"


def short(value: object) -> str:
    """A figure of the proof as text; of a list how many and the first."""
    if isinstance(value, list):
        return "none" if not value else str(value[0]) if len(value) == 1 else f"{len(value)}: {value[0]}, …"
    return "yes" if value is True else "no" if value is False else f"{value:,}" if isinstance(value, int) else str(value)


def demo(flags: dict[str, Any]) -> int:
    """Run it; 0 if every figure holds.

    Raises:
        ConfigError: a port, a folder or a prefix cannot be used.
        DemoFailed: a part of it did not come up.
    """
    leave = flags.get("exit_when_done") not in (None, "off", "false")
    console = Console(highlight=False)
    prefix = load({"topic_prefix": flags.get("topic_prefix")}, {}, others=None).get("topic_prefix")
    port = port_of(flags.get("web_port"))
    if port is None:
        port = PORT if not leave and is_free(PORT) else any_port()
        if not leave and port != PORT:
            console.print(f"port {PORT} is in use, so the page is on {port} (or choose with --web-port)")
    folder = Path(flags.get("log_dir") or tempfile.gettempdir())
    logs = folder / f"pulsefold-demo-{os.getpid()}"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as bad:
        raise ConfigError("log_dir", f"{folder} cannot be written to ({bad.strerror})") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        return Demo(console, leave=leave, port=port, prefix=prefix, logs=logs).run()
    except (urllib.error.URLError, TimeoutError, KafkaException, json.JSONDecodeError) as gone:
        who = "the broker" if isinstance(gone, KafkaException) else "the worker"
        raise DemoFailed(f"{who} does not answer any more ({gone}); see {logs / 'worker.log'}") from None
    except KeyboardInterrupt:
        return 130
