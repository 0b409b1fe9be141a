"""The target of atheris (libFuzzer): ``python -m tests.fuzz.coverage -max_total_time=60``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streams", "tables"]):
    import tables.partition  # noqa: F401 - imported here to be instrumented
    from streams.topics import SOURCE_TOPICS

    from .events import FromBytes, check, event


def one(data: bytes) -> None:
    """The first byte says on which topic, and whether the rest is a record or what chance is made of."""
    if not data:
        return
    topic = SOURCE_TOPICS[data[0] % len(SOURCE_TOPICS)]
    if data[0] & 64:
        check([data[1:], data[1:]], topic)
    else:
        rng = FromBytes(data[1:])
        check([event(rng) for _ in range(1 + rng.randrange(6))], topic, look=bool(data[0] & 128))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
