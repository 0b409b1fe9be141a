"""pulsefold: event-sourced tracking of models, agents, judges, costs and goals on Kafka.

A trainer needs three lines:

    from pulsefold import SyncPublisher, events
    with SyncPublisher("127.0.0.1:9092") as publisher:
        publisher.publish(events.MetricRecorded(metric_type="train", model="m1", run="r1", values={"loss": 0.3}))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import events
    from .client import Answer, AsyncClient, Client, NotAnswered, NotKnown
    from .codec import InvalidEvent
    from .errors import BrokerUnavailable, ConfigError, PulsefoldError, TopicProblem
    from .publisher import DeliveryReport, Publisher, SyncPublisher
    from .subscriber import Alert, AlertSubscriber

_HOME = {
    "Alert": "subscriber", "AlertSubscriber": "subscriber", "Answer": "client", "AsyncClient": "client", "BrokerUnavailable": "errors",
    "Client": "client", "ConfigError": "errors", "DeliveryReport": "publisher", "InvalidEvent": "codec", "NotAnswered": "client", "NotKnown": "client",
    "Publisher": "publisher", "PulsefoldError": "errors", "SyncPublisher": "publisher", "TopicProblem": "errors",
}  # fmt: skip
__all__ = [
    "Alert",
    "AlertSubscriber",
    "Answer",
    "AsyncClient",
    "BrokerUnavailable",
    "Client",
    "ConfigError",
    "DeliveryReport",
    "InvalidEvent",
    "NotAnswered",
    "NotKnown",
    "Publisher",
    "PulsefoldError",
    "SyncPublisher",
    "TopicProblem",
    "events",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package costs little."""
    if name == "events":
        return importlib.import_module(".events", __name__)
    if name in _HOME:
        return getattr(importlib.import_module("." + _HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
