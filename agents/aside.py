"""What a worker has to ask once, before it folds, by librdkafka: whether the topics are as they must be, and which app publishes outputs.

Asked in a process that ends with the answer. In the worker the library would stay in memory, 7 MB of it, for two questions.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from streams.errors import BrokerUnavailable, PulsefoldError, TopicProblem
from streams.settings import Gets, Settings

from .pipe import environment

NEEDED = {"bootstrap", "topic_prefix", "app_id", "partitions", "replication", "topic_retention_days", "changelog_lag_ms"}
"""Settings that the questions are about, and how to reach Kafka."""
PR_SET_PDEATHSIG = 1
"""In Linux's prctl.h: which signal a process gets when who started it has ended."""
KINDS: dict[str, type[PulsefoldError]] = {kind.__name__: kind for kind in (BrokerUnavailable, TopicProblem)}


def check_topics(settings: Settings) -> list[str]:
    """What is wrong with the topics, as `streams.admin.check_topics` says it.

    Raises:
        BrokerUnavailable: nobody answers.
        PulsefoldError: nobody could be asked.
    """
    return [str(one) for one in _ask("check_topics", settings)]


def publishing_app(settings: Settings) -> str:
    """The app that publishes outputs, as `streams.outputs.publishing_app` finds it; this one is recorded if nobody was.

    Raises:
        TopicProblem: the topic cannot be read, or the record not be written.
        PulsefoldError: nobody could be asked.
    """
    return str(_ask("publishing_app", settings))


def _ask(question: str, settings: Settings) -> Any:
    values = {name: value for name, value in settings.values.items() if name in NEEDED or name.startswith("kafka_")}
    done = subprocess.run(
        [sys.executable, "-m", "agents.aside"],
        input=json.dumps([question, values]).encode(),  # not as arguments, which others on this machine see: there are passwords among them
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for the worker alone
        check=False,
    )
    if done.returncode or not done.stdout:
        raise PulsefoldError(f"{question}: the process that asks the broker ended with {done.returncode}")
    answer = json.loads(done.stdout)
    if "found" in answer:
        return answer["found"]
    raise KINDS.get(answer["kind"], PulsefoldError)(answer["problem"])


def _answer(question: str, settings: Gets) -> Any:
    from streams import admin, outputs

    from .access import security

    get, (_, theirs) = settings.get, security(settings)
    if question == "check_topics":
        return admin.check_topics(settings, security=theirs)
    return outputs.publishing_app(get("bootstrap"), get("topic_prefix"), get("app_id"), security=theirs)


def main() -> None:
    """Answer the question on stdin."""
    with suppress(OSError, AttributeError):  # elsewhere it ends with its answer
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is to be recorded for a worker that is gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a supervisor that stops all there is; the worker ends by it, and this with it
    question, values = json.loads(sys.stdin.buffer.read())
    try:
        said = {"found": _answer(question, SimpleNamespace(get=values.__getitem__))}
    except PulsefoldError as problem:
        said = {"kind": type(problem).__name__, "problem": str(problem)}
    with suppress(BrokenPipeError):  # the worker was stopped meanwhile
        os.write(sys.stdout.fileno(), json.dumps(said).encode())


if __name__ == "__main__":
    main()
