"""How to reach Kafka: what a protected broker asks for, and what topics there are. Without Faust, so that other processes can ask."""

from __future__ import annotations

import ssl
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.errors import ConfigError
from streams.settings import Gets, needs_credentials, no_password
from streams.topics import SOURCE_TOPICS


def security(settings: Gets) -> tuple[dict[str, Any], dict[str, Any]]:
    """How to reach a protected Kafka: keyword arguments for aiokafka, configuration for confluent-kafka.

    Raises:
        ConfigError: a certificate or a part of the credentials is missing.
    """
    protocol = settings.get("kafka_security_protocol") or "PLAINTEXT"
    ours: dict[str, Any] = {"security_protocol": protocol}
    theirs: dict[str, Any] = {"security.protocol": protocol}
    if "SSL" in protocol:
        cafile = settings.get("kafka_ssl_cafile")
        try:
            ours["ssl_context"] = ssl.create_default_context(cafile=cafile)
        except (OSError, ssl.SSLError) as bad:
            raise ConfigError("kafka_ssl_cafile", f"{cafile} holds no certificates that can be read ({bad.strerror or bad})") from None
        if cafile:
            theirs["ssl.ca.location"] = cafile
        cert, key = settings.get("kafka_ssl_certfile"), settings.get("kafka_ssl_keyfile")
        needs_credentials(settings)
        if cert is not None:
            try:
                ours["ssl_context"].load_cert_chain(cert, key, password=no_password)
            except (OSError, ssl.SSLError, ValueError) as bad:
                name, said = ("kafka_ssl_certfile" if key is None else "kafka_ssl_keyfile"), getattr(bad, "strerror", None) or bad
                raise ConfigError(name, f"{cert}{'' if key is None else f' and {key}'} are no certificate and its key ({said})") from None
            theirs |= {"ssl.certificate.location": cert, "ssl.key.location": key or cert}
    if "SASL" in protocol:
        needs_credentials(settings)
        mechanism, user, password = (settings.get(f"kafka_sasl_{n}") for n in ("mechanism", "username", "password"))
        ours |= {"sasl_mechanism": mechanism, "sasl_plain_username": user, "sasl_plain_password": password}
        theirs |= {"sasl.mechanism": mechanism, "sasl.username": user, "sasl.password": password}
    return ours, theirs


def discover_partitions(settings: Gets, security: dict[str, Any]) -> tuple[dict[str, int], dict[str, int], bool]:
    """Source topic -> number of partitions, and -> 32 bits of its Kafka topic id; whether the broker is the embedded one.

    For who has no aiokafka client that would know (`agents.metadata`).
    """
    from streams.admin import is_embedded, partition_counts, topic_identities  # loads librdkafka, which a worker does without

    bootstrap, prefix = settings.get("bootstrap"), settings.get("topic_prefix")
    full = [prefix + topic for topic in SOURCE_TOPICS]
    counts = partition_counts(bootstrap, full, security=security)
    identities = topic_identities(bootstrap, full, security=security)
    return {t: counts[prefix + t] for t in SOURCE_TOPICS}, {t: identities.get(prefix + t, 0) for t in SOURCE_TOPICS}, is_embedded(bootstrap, security=security)


def folder_of(settings: Gets, identities: Mapping[str, int]) -> Path:
    """The archive's folder, as set, or beside `data_dir`, named after the log."""
    get = settings.get
    if get("archive_dir") is not None:
        return Path(get("archive_dir")).expanduser()
    base = get("data_dir") or Path(tempfile.gettempdir()) / f"pulsefold-{get('app_id')}"
    log_name = zlib.crc32(repr((get("topic_prefix"), sorted(identities.items()))).encode())
    return Path(base) / f"archive-{log_name:08x}"
