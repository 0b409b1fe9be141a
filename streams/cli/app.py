"""Which words the command line knows. Each command's work is in the file named after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaException
from cyclopts import App, CycloptsError

from ..errors import PulsefoldError
from . import dead_letters as letters
from . import files, kafka, learning, raw, service, trials
from .publish import publish
from .query import query
from .status import status

app = App(
    name="pulsefold",
    help="Trust, drift, cost and goals of models and agents, from events on Kafka.",
    version_flags=["--version"],
    result_action="return_value",
)
topics = App(name="topics", help="Create or verify the topics.")
alerts = App(name="alerts", help="Alerts as they come.")
dead_letters = App(name="dead-letters", help="Records that could not be absorbed.")
exports = App(name="export", help="Write what a table knows to a file.")
imports = App(name="import", help="Put a table in the state that a file has.")
what_if = App(name="what-if", help="What the recorded history would have been under other budgets.")
for group in (topics, alerts, dead_letters, exports, imports, what_if):
    app.command(group)
for command in (service.demo, kafka.broker, service.worker, publish, query, status, raw.sql, trials.backtest, service.replay, service.scan, service.config):
    app.command(command)
what_if.command(trials.budget)
topics.command(kafka.create)
topics.command(kafka.check)
alerts.command(kafka.tail)
dead_letters.command(letters.list_, name="list")
dead_letters.command(letters.inspect)
dead_letters.command(letters.redrive)
exports.command(files.export_trust, name="trust")
imports.command(files.import_trust, name="trust")
exports.command(learning.export, name="learning")
imports.command(learning.import_, name="learning")
exports.command(raw.metrics)
exports.command(raw.variables)
exports.command(raw.contributions)
exports.command(raw.learning_log)
exports.command(raw.training_data)


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code.

    Raises:
        PulsefoldError: something given cannot be used; its text is one sentence.
    """
    words = list(argv)
    if words and words[0] in service.COMMANDS:
        return service.run(words[0], words[1:])
    try:
        found: Any = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as wrong:
        raise PulsefoldError(" ".join(str(wrong).split())) from None
    except KafkaException as wrong:
        raise PulsefoldError(f"Kafka: {wrong.args[0].str()} ({wrong.args[0].name()})") from None
    return int(found or 0)
