"""The embedded broker: librdkafka's mock cluster, which confluent-kafka's wheel carries. No JVM, no Docker, and nothing kept.

Its limits: memory only; 5 MiB and 100,000 batches a partition, then the head is dropped; no compaction; topics are made here,
not by an admin client. It listens on 127.0.0.1 alone and lives as long as the process.
"""

from __future__ import annotations

import ctypes
import glob
from pathlib import Path
from types import TracebackType

import confluent_kafka

from .errors import PulsefoldError
from .topics import topic_specs

_PRODUCER = 0


class EmbeddedBroker:
    """A Kafka broker inside this process.

    Args:
        partitions: of each source topic.
        prefix, app_ids: as the settings topic_prefix and app_id; changelogs are made for each app id.
        brokers: number of nodes.

    Attributes:
        bootstrap: ``HOST:PORT`` (several by comma).

    Raises:
        PulsefoldError: the wheel's library cannot be used this way.

    Example:
        >>> with EmbeddedBroker(partitions=2) as broker:
        ...     broker.bootstrap.startswith("127.0.0.1:")
        True
    """

    def __init__(self, *, partitions: int = 8, prefix: str = "pulsefold.", app_ids: tuple[str, ...] = ("pulsefold",), brokers: int = 1) -> None:
        self._lib = _library()
        error = ctypes.create_string_buffer(512)
        conf = self._lib.rd_kafka_conf_new()
        self._lib.rd_kafka_conf_set(conf, b"log_level", b"0", error, 512)
        self._handle = self._lib.rd_kafka_new(_PRODUCER, conf, error, 512)
        if not self._handle:
            raise PulsefoldError(f"the embedded broker does not start: {error.value.decode(errors='replace')}")
        self._cluster = self._lib.rd_kafka_mock_cluster_new(self._handle, brokers)
        if not self._cluster:
            self._lib.rd_kafka_destroy(self._handle)
            raise PulsefoldError("the embedded broker does not start")
        self.bootstrap = str(self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())
        for app_id in app_ids:
            for spec in topic_specs(prefix, app_id, partitions):
                self._lib.rd_kafka_mock_topic_create(self._cluster, spec.name.encode(), spec.partitions, 1)

    def create_topic(self, name: str, partitions: int) -> None:
        """Make one more topic (full name)."""
        if self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
            raise PulsefoldError(f"{name}: the embedded broker does not create it")

    def close(self) -> None:
        """Stop; everything on it is gone."""
        if self._cluster:
            self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
            self._lib.rd_kafka_destroy(self._handle)
            self._cluster = self._handle = None

    def __enter__(self) -> EmbeddedBroker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    found = glob.glob(str(package.parent / "confluent_kafka.libs" / "librdkafka*")) + glob.glob(str(package / ".dylibs" / "librdkafka*"))
    if not found:
        raise PulsefoldError("the embedded broker needs the confluent-kafka wheel with its bundled librdkafka; use a real broker: --bootstrap HOST:PORT")
    lib = ctypes.CDLL(found[0])
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
