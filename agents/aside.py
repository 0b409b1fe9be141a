"""What a worker has to ask once, before it folds, by librdkafka: whether the topics are as they must be, and which app publishes outputs.

Asked in a process that ends with the answer. In the worker the library would stay in memory, 7 MB of it, for two questions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import msgspec

from streams.errors import BrokerUnavailable, PulsefoldError, TopicProblem
from streams.settings import Gets, Settings

from .pipe import environment

KINDS: dict[str, type[PulsefoldError]] = {kind.__name__: kind for kind in (BrokerUnavailable, TopicProblem)}


def check_topics(settings: Settings) -> list[str]:
    """What is wrong with the topics, as `streams.admin.check_topics` says it.

    Raises:
        BrokerUnavailable: nobody answers.
    """
    return [str(one) for one in _ask("check_topics", settings)]


def publishing_app(settings: Settings) -> str:
    """The app that publishes outputs, as `streams.outputs.publishing_app` finds it; this one is recorded if nobody was.

    Raises:
        TopicProblem: the topic cannot be read, or the record not be written.
    """
    return str(_ask("publishing_app", settings))


def _ask(question: str, settings: Settings) -> Any:
    said = msgspec.msgpack.encode([question, msgspec.to_builtins(settings.values)])  # on its stdin: passwords are no arguments
    done = subprocess.run([sys.executable, "-m", "agents.aside"], input=said, stdout=subprocess.PIPE, env=environment(), check=False)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"{question}: the process that asks the broker ended with {done.returncode}")
    answer = msgspec.msgpack.decode(done.stdout)
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
    question, values = msgspec.msgpack.decode(sys.stdin.buffer.read())
    try:
        said = {"found": _answer(question, SimpleNamespace(get=values.__getitem__))}
    except PulsefoldError as problem:
        said = {"kind": type(problem).__name__, "problem": str(problem)}
    with suppress(BrokenPipeError):  # the worker was stopped meanwhile
        os.write(sys.stdout.fileno(), msgspec.msgpack.encode(said))


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the worker, and this ends by itself
    main()
