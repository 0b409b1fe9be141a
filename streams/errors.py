"""The errors of the SDK and the commands.

PulsefoldError
├── ConfigError        yours: a setting is unusable (names it)
├── InvalidEvent       yours: an event breaks the contract (names the field); in `codec`
├── BrokerUnavailable  the world's: no broker answers there
├── NotAnswered        a worker's answer is an error, or there is none; in `client`
│   └── NotKnown       nobody recorded what was asked for
└── TopicProblem       yours: a topic is missing or differs from what is needed
"""

from __future__ import annotations


class PulsefoldError(Exception):
    """Base of all; its text is one sentence for a person."""


class ConfigError(PulsefoldError):
    """A setting is unusable.

    Args:
        setting: its name.
        message: what was expected.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


class BrokerUnavailable(PulsefoldError):
    """No Kafka broker answers at the given address."""


class TopicProblem(PulsefoldError):
    """A topic is missing, or its partitions or policy differ from what is needed."""
