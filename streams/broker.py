"""The embedded broker: librdkafka's mock cluster, which confluent-kafka's wheel carries. No JVM, no Docker, and nothing kept.

Its limits: memory only; 5 MiB and 100,000 batches a partition, then the head is dropped; no compaction; topics are
made here, not by an admin client, and have no configuration to ask for; `read_committed` is served but aborted
transactions stay visible; in a group of two aiokafka members a rebalance may end with InvalidRequestError for the one
that does not lead (it must ask for its share before the leader hands them out), so run one worker on it; and one that
joins where another was killed may wait half a minute, if the machine stands still at the wrong moment. It listens on
127.0.0.1 alone, on a port that the system chooses and that stays while it lives: as long as the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import socket
import threading
from collections.abc import Iterator
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

    Faults for tests: `down`, `up`, `slow`, `fail`.

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
        self._nodes = range(1, brokers + 1)
        self.bootstrap = str(self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())
        with self._awake():
            self._lib.rd_kafka_mock_set_controller_id(self._cluster, 1)  # else admin clients wait for one until they time out
            self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 200)  # 3 s by default
            for app_id in app_ids:
                for spec in topic_specs(prefix, app_id, partitions):
                    self._lib.rd_kafka_mock_topic_create(self._cluster, spec.name.encode(), spec.partitions, 1)

    def create_topic(self, name: str, partitions: int) -> None:
        """Make one more topic (full name)."""
        if self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
            raise PulsefoldError(f"{name}: the embedded broker does not create it")

    def down(self) -> None:
        """Refuse every connection, as a broker that is not running would; what it holds is still there after `up`."""
        for node in self._nodes:
            self._lib.rd_kafka_mock_broker_set_down(self._cluster, node)

    def up(self) -> None:
        """Answer again."""
        for node in self._nodes:
            self._lib.rd_kafka_mock_broker_set_up(self._cluster, node)

    def slow(self, rtt_ms: int) -> None:
        """Answer every request only after so many milliseconds; 0 = at once."""
        for node in self._nodes:
            self._lib.rd_kafka_mock_broker_set_rtt(self._cluster, node, rtt_ms)

    def fail(self, api_key: int, *errors: int) -> None:
        """Answer the next requests of a kind with these errors, one each.

        Args:
            api_key: of Kafka's protocol: 0 produce, 1 fetch, 3 metadata, …
            errors: codes as in ``confluent_kafka.KafkaError``.
        """
        self._lib.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, len(errors), (ctypes.c_int * len(errors))(*errors))

    def close(self) -> None:
        """Stop; everything on it is gone."""
        if self._cluster:
            with self._awake():
                self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
            self._lib.rd_kafka_destroy(self._handle)
            self._cluster = self._handle = None

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """Knock at its port meanwhile: its thread misses some orders until the next second or the next packet, whichever is first."""
        host, port = self.bootstrap.split(",")[0].rsplit(":", 1)
        done = threading.Event()

        def knock() -> None:
            while not done.wait(0.005):
                with contextlib.suppress(OSError):
                    socket.create_connection((host, int(port)), 1).close()

        knocking = threading.Thread(target=knock, name="pulsefold-broker-awake", daemon=True)
        knocking.start()
        try:
            yield
        finally:
            done.set()
            knocking.join()

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
        ("rd_kafka_mock_set_controller_id", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, ctypes.c_int32, number]),
        ("rd_kafka_mock_push_request_errors_array", None, [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
