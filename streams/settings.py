"""Settings: flags, then the environment, then pulsefold.toml, then defaults (contract §4).

A setting `name` is ``PULSEFOLD_NAME`` in the environment, plain or JSON; a keyed one (`trust_half_life.model`) is
``PULSEFOLD_TRUST_HALF_LIFE__model`` or the whole map as JSON in ``PULSEFOLD_TRUST_HALF_LIFE`` (``""`` = the default). The
settings that folds read are declared by the folds themselves and given to `load` as structs, so that a new table brings its
own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)
MASK = "********"
TOML = "pulsefold.toml"


@dataclass(frozen=True)
class Setting:
    """A declared setting.

    Attributes:
        type: what its value must be; None is allowed where the type says so, written ``null`` or ``off``.
        help: one sentence with units.
        secret: masked wherever settings are shown.
        keyed: a map whose key ``""`` is the default.
    """

    name: str
    type: Any
    default: Any
    help: str
    secret: bool = False
    keyed: bool = False


SERVICE: tuple[Setting, ...] = (
    Setting("bootstrap", str, "127.0.0.1:9092", "Kafka's host:port, several by comma"),
    Setting("topic_prefix", str, "pulsefold.", "what every topic's name begins with"),
    Setting("app_id", str, "pulsefold", "names the consumer group and the changelog topics"),
    Setting("partitions", int, 8, "partitions of each source topic"),
    Setting("replication", int, 1, "copies of each topic that the brokers keep"),
    Setting("topic_retention_days", float | None, None, "days that source topics keep events; off = for ever"),
    Setting("changelog_lag_ms", int, 86_400_000, "min.compaction.lag.ms of the changelogs, at least one hour"),
    Setting("web_host", str, "127.0.0.1", "address that HTTP is served on; wider than loopback needs tokens"),
    Setting("web_port", int, 6066, "port that HTTP is served on"),
    Setting("tokens", dict[str, Any] | None, None, "{TOKEN or sha256: hash: {tenant, scopes, expires}}", secret=True),
    Setting("dedupe_window", int, 65_536, "offsets within which a repeated id is a duplicate; a multiple of 64"),
    Setting("max_future_s", float, 3600.0, "seconds that an event's time may lie after its record's Kafka timestamp"),
    Setting("alert_interval_s", float, 5.0, "seconds between two looks of the merged alert rules"),
    Setting("outputs", str, "on", "on = publish alerts and derived events; off = only fold and serve"),
    Setting("session_timeout_s", float, 6.0, "seconds without a heartbeat after which a worker's partitions go to another"),
    Setting("heartbeat_s", float, 2.0, "seconds between heartbeats"),
    Setting("instance_id", str | None, None, "static group membership: a worker that comes back under this name keeps its partitions"),
    Setting("flush_max_ms", float, 100.0, "longest time between two writes of changed rows under load, milliseconds"),
    Setting("watchdog_s", float, 60.0, "seconds with lag and nothing folded after which the worker stops"),
    Setting("shutdown_s", float, 10.0, "seconds that the last write may take when a worker or a partition goes"),
    Setting("data_dir", str | None, None, "folder for what Faust keeps on disk"),
    Setting("log_level", str, "info", "debug, info, warning or error"),
    Setting("kafka_security_protocol", str, "PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    Setting("kafka_sasl_mechanism", str | None, None, "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    Setting("kafka_sasl_username", str | None, None, "user name for SASL"),
    Setting("kafka_sasl_password", str | None, None, "password for SASL", secret=True),
    Setting("kafka_ssl_cafile", str | None, None, "file of the certificate authority"),
)


@dataclass
class Settings:
    """Settings in force, and where each comes from."""

    declared: dict[str, Setting]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """Value of a setting; of a keyed one the whole map."""
        return self.values[name]

    def origin(self, name: str) -> str:
        """``flag``, the variable's name, ``pulsefold.toml`` or ``default``."""
        return self.origins[name]

    def fold(self, struct: type[S]) -> S:
        """The settings that a fold declared, as its struct."""
        found = {name: self.values[name] for name in struct.__struct_fields__}
        return msgspec.convert(found, struct)

    def describe(self) -> list[tuple[str, Any, str, str]]:
        """(name, value, where from, help) of every setting; secrets masked."""
        return [
            (name, MASK if one.secret and self.values[name] is not None else msgspec.to_builtins(self.values[name]), self.origins[name], one.help)
            for name, one in sorted(self.declared.items())
        ]


def declare(fold_settings: Sequence[type[msgspec.Struct]]) -> dict[str, Setting]:
    """All settings by name."""
    declared = {one.name: one for one in SERVICE}
    for struct in fold_settings:
        hints = get_type_hints(struct, include_extras=True)
        for info in msgspec.structs.fields(struct):
            default = (
                info.default if info.default is not msgspec.NODEFAULT else info.default_factory() if info.default_factory is not msgspec.NODEFAULT else None
            )
            keyed = get_origin(hints[info.name]) is dict and isinstance(default, dict) and "" in default
            declared[info.name] = Setting(info.name, hints[info.name], default, f"of {struct.__name__}; see its documentation", keyed=keyed)
    return declared


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], toml_path: str | Path | None = None, fold_settings: Sequence[type[msgspec.Struct]] = ()
) -> Settings:
    """Settings in force.

    Args:
        flags: by name; None = not given.
        toml_path: a file that must be there; None = ``pulsefold.toml`` in the working folder, if it is there.
        fold_settings: structs whose fields are settings.

    Raises:
        ConfigError: naming the setting and what was expected.
    """
    declared = declare(fold_settings)
    settings = Settings(declared)
    for name, one in declared.items():
        settings.values[name], settings.origins[name] = one.default, "default"
    for name, key, value in _from_toml(toml_path, declared):
        _apply(settings, name, key, value, TOML if toml_path is None else str(toml_path))
    for name, key, text, variable in sorted(_from_environment(environ, declared), key=lambda found: found[1] is not None):
        _apply(settings, name, key, _plain_or_json(text), variable)
    for name, value in flags.items():
        if value is None:
            continue
        base, _, flag_key = name.partition(".")
        if base not in declared:
            raise ConfigError(name, "there is no such setting; `pulsefold config` lists them")
        _apply(settings, base, flag_key or None, _plain_or_json(value) if isinstance(value, str) else value, "flag")
    return settings


def _from_toml(path: str | Path | None, declared: Mapping[str, Setting]) -> list[tuple[str, str | None, Any]]:
    file = Path(path) if path is not None else Path(TOML)
    if path is None and not file.exists():
        return []
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(str(file), f"cannot be read: {getattr(exc, 'strerror', None) or exc}") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(str(file), f"is no TOML: {exc}") from None
    found = []
    for name, value in content.items():
        base, _, key = name.partition(".")
        if base not in declared:
            raise ConfigError(name, f"there is no such setting ({file}); `pulsefold config` lists them")
        found.append((base, key or None, value))
    return found


def _from_environment(environ: Mapping[str, str], declared: Mapping[str, Setting]) -> list[tuple[str, str | None, str, str]]:
    found = []
    for variable, text in environ.items():
        if not variable.startswith("PULSEFOLD_"):
            continue
        name, _, key = variable.removeprefix("PULSEFOLD_").partition("__")
        if name.lower() in declared:
            found.append((name.lower(), key or None, text, variable))
    return found


def _plain_or_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _apply(settings: Settings, name: str, key: str | None, value: Any, origin: str) -> None:
    one = settings.declared[name]
    shown = name if key is None else f"{name}.{key}"
    if one.keyed:
        item_type = get_args(one.type)[1]
        given = {key: value} if key is not None else value if isinstance(value, dict) and not _is_one(value, item_type) else {"": value}
        merged = dict(settings.values[name])
        for part, item in given.items():
            merged[part] = _convert(f"{name}.{part}" if part else name, item, item_type)
        settings.values[name] = merged
    elif key is not None:
        raise ConfigError(shown, f"{name} takes one value for everything")
    else:
        settings.values[name] = _convert(name, value, one.type)
    settings.origins[name] = origin


def _is_one(value: Any, item_type: Any) -> bool:
    """Whether a map is one value of the type, not a map of values."""
    try:
        msgspec.convert(value, item_type)
    except msgspec.ValidationError:
        return False
    return True


def _convert(shown: str, value: Any, kind: Any) -> Any:
    allows_none = type(None) in get_args(kind)
    if allows_none and (value is None or (isinstance(value, str) and value.lower() in ("off", "null", "none", ""))):
        return None
    if kind is bool and isinstance(value, str) and value.lower() in ("on", "off"):
        return value.lower() == "on"
    if kind is str and not isinstance(value, (str, dict, list)) and value is not None:
        value = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        text = str(exc)
        raise ConfigError(shown, text[:1].lower() + text[1:]) from None
