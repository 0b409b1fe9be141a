"""Flags that several commands share, and the settings they become."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import ConfigError
from ..settings import TOML, Settings, load, needs_credentials
from . import service

Config = Annotated[str | None, Parameter(help="settings file (default: pulsefold.toml in this folder, if there)")]
Bootstrap = Annotated[str | None, Parameter(help="Kafka's host:port, several by comma")]
TopicPrefix = Annotated[str | None, Parameter(help="what every topic's name begins with")]
AppId = Annotated[str | None, Parameter(help="names the consumer group and the changelog topics")]
Partitions = Annotated[int | None, Parameter(help="partitions of each source topic")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="print JSON")]
AsCsv = Annotated[bool, Parameter(name="--csv", negative="", help="print CSV")]
Url = Annotated[str | None, Parameter(help="of the worker (default: the settings web_host and web_port)")]
Token = Annotated[str | None, Parameter(help="default: the environment's PULSEFOLD_TOKEN")]
Tenant = Annotated[str | None, Parameter(help="whose data, where the token does not say")]
OutFile = Annotated[str, Parameter(allow_leading_hyphen=True, help="written aside and renamed; - = stdout")]


def settings_of(config: str | None, **flags: Any) -> Settings:
    """Settings that a command reads. The folds' own settings in the file are the worker's business, but must be known names."""
    others: Collection[str] | None = ()
    if config is not None or Path(TOML).exists():
        known = service.fold_settings()
        others = None if known is None else {name for name, _, _ in known}
    return load(flags, os.environ, config, others=others)


def security(found: Settings) -> dict[str, Any]:
    """librdkafka's settings for a protected Kafka.

    Raises:
        ConfigError: a part of the credentials, or the certificates' file, is missing.
    """
    needs_credentials(found)
    for name in ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile"):
        if found.get(name) is not None and not Path(found.get(name)).is_file():
            raise ConfigError(name, f"there is no file {found.get(name)}")
    names = {
        "security.protocol": "kafka_security_protocol",
        "sasl.mechanism": "kafka_sasl_mechanism",
        "sasl.username": "kafka_sasl_username",
        "sasl.password": "kafka_sasl_password",
        "ssl.ca.location": "kafka_ssl_cafile",
    }
    words = {theirs: found.get(ours) for theirs, ours in names.items() if found.get(ours) is not None}
    if found.get("kafka_ssl_certfile") is not None:
        words["ssl.certificate.location"] = found.get("kafka_ssl_certfile")
        words["ssl.key.location"] = found.get("kafka_ssl_keyfile") or found.get("kafka_ssl_certfile")
    return words


__all__ = ["AppId", "AsCsv", "AsJson", "Bootstrap", "Config", "OutFile", "Partitions", "Tenant", "Token", "TopicPrefix", "Url", "security", "settings_of"]
