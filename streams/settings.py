"""Settings: flags, then the environment, then pulsefold.toml, then defaults (contract §4).

A setting `name` is ``PULSEFOLD_NAME`` in the environment, plain or JSON; a keyed one (`trust_half_life.model`) is
``PULSEFOLD_TRUST_HALF_LIFE__model`` or the whole map as JSON in ``PULSEFOLD_TRUST_HALF_LIFE`` (``""`` = the default). The
settings that folds read are declared by the folds themselves and given to `load` as structs, so that a new table brings its
own. A setting whose type is text takes its value as it stands (a password ``1e5`` stays that); of every other one the value
is read as JSON where it is JSON.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .errors import ConfigError
from .expected import expected, is_plain

S = TypeVar("S", bound=msgspec.Struct)
MASK = "********"
TOML = "pulsefold.toml"
OF_CLIENTS = ("token", "url", "client_cert")
"""What `streams.client` and the commands that ask a worker read of the environment."""
_OF_KUBERNETES = re.compile(r"SERVICE_HOST$|SERVICE_PORT(_\w+)?$|PORT_\d+_(TCP|UDP)(_\w+)?$")
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Window = Annotated[int, msgspec.Meta(ge=64, multiple_of=64)]
Above0 = Annotated[float, msgspec.Meta(gt=0)]
Days = Annotated[float, msgspec.Meta(ge=30)]
Secret = Annotated[str, msgspec.Meta(min_length=1)]
From0 = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern="^[A-Za-z0-9._-]+$")]
Roles = Annotated[str, msgspec.Meta(pattern="^(all|(fold|serve|archive)(,(fold|serve|archive))*)$", description="all or some of fold, serve, archive by comma")]
Prefix = Annotated[str, msgspec.Meta(max_length=100, pattern="^[A-Za-z0-9._-]*$")]


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
    Setting("topic_prefix", Prefix, "pulsefold.", "what every topic's name begins with"),
    Setting("app_id", Name, "pulsefold", "names the consumer group and the changelog topics"),
    Setting("partitions", Count, 8, "partitions of each source topic"),
    Setting("replication", Count, 1, "copies of each topic that the brokers keep"),
    Setting("topic_retention_days", Above0 | None, None, "days that source topics keep events; off = for ever"),
    Setting("changelog_lag_ms", int, 86_400_000, "min.compaction.lag.ms of the changelogs, at least one hour"),
    Setting("web_host", str, "127.0.0.1", "address that HTTP is served on; wider than loopback needs tokens"),
    Setting("web_port", Port, 6066, "port that HTTP is served on"),
    Setting("tokens", dict[str, dict[str, Any]] | None, None, "{TOKEN or sha256: hash: {tenant, scopes, expires}}", secret=True),
    Setting("tokens_file", str | None, None, "JSON file of more tokens, as in tokens; read again when it changes"),
    Setting("web_tls_cert", str | None, None, "PEM file of the certificate (and those between) that HTTP is served with; off = plain HTTP"),
    Setting("web_tls_key", str | None, None, "PEM file of its key, not encrypted; off = it is in web_tls_cert"),
    Setting("web_tls_client_ca", str | None, None, "PEM file of authorities: only callers with a certificate of theirs are served (mutual TLS); off = anybody"),
    Setting("queries_per_s", Above0 | None, 1000.0, "requests a second that one token may make, on the average, events apart; off = any number"),
    Setting("tenant_events_per_s", Above0 | None, None, "events a second that a tenant may publish by HTTP; off = any number"),
    Setting("open_metrics", bool, False, "/metrics, which tells of all tenants, without a token; it asks for the scope admin where tokens are configured"),
    Setting("dedupe_window", Window, 65_536, "offsets within which a repeated id is a duplicate; a multiple of 64"),
    Setting("max_future_s", From0, 3600.0, "seconds that an event's time may lie after its record's Kafka timestamp"),
    Setting("publish_scores", bool, True, "changed scores of variables and agents go to the topic scores"),
    Setting("alert_interval_s", Above0, 5.0, "seconds between two looks of the merged alert rules"),
    Setting("dead_letters_per_minute", Count | None, 60, "dead letters of a topic in a minute above which the alert dead_letters.rate opens; off = never"),
    Setting("dead_letters_tenant", str, "default", "whose alert that is: a record that is no event has no tenant of its own"),
    Setting(
        "outputs",
        Literal["auto", "on", "off"],
        "auto",
        "on = publish alerts and derived events; off = only fold and serve; auto = on for the app that was there first",
    ),
    Setting("roles", Roles, "all", "what this worker does; all = fold, serve, archive"),
    Setting(
        "rebuild",
        bool,
        False,
        "where tables were made with other settings or versions, fold them anew from the log's start beside those, which serve until it is done",
    ),
    Setting("archive_dir", str | None, None, "folder of the archive; off = one beside data_dir, and a temporary one with the embedded broker"),
    Setting(
        "archive_days",
        dict[str, Days],
        {"": 90.0},
        "days that the archive keeps events, by event time; 30 or more; of one tenant alone with its name as KEY",
        keyed=True,
    ),
    Setting("anonymise_key", Secret | None, None, "secret that pseudonyms are made with; set, exports are anonymised unless told otherwise", secret=True),
    Setting("anonymise_required", bool, False, "on = exports are never given with names"),
    Setting("anonymise_keep", list[str], [], "fields that anonymising would leave out and that are kept all the same"),
    Setting("clock_ticks", Literal["on", "off"], "on", "clock events by which deadlines and open alerts of a tenant that has fallen silent end"),
    Setting("clock_silence_s", Above0, 600.0, "seconds without a record of a tenant in a partition after which the clock stands in for it"),
    Setting("session_timeout_s", Above0, 6.0, "seconds without a heartbeat after which a worker's partitions go to another"),
    Setting("heartbeat_s", Above0, 2.0, "seconds between heartbeats"),
    Setting("instance_id", str | None, None, "static group membership: a worker that comes back under this name keeps its partitions"),
    Setting("flush_max_ms", Above0, 100.0, "longest time between two writes of changed rows under load, milliseconds; longer for a worker that catches up"),
    Setting("watchdog_s", Above0, 60.0, "seconds with lag and nothing folded after which the worker stops"),
    Setting("shutdown_s", Above0, 10.0, "seconds that the last write may take when a worker or a partition goes"),
    Setting("data_dir", str | None, None, "folder for what Faust keeps on disk"),
    Setting("log_level", Literal["debug", "info", "warning", "error"], "info", "debug, info, warning or error"),
    Setting("kafka_security_protocol", Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], "PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    Setting("kafka_sasl_mechanism", Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, None, "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    Setting("kafka_sasl_username", str | None, None, "user name for SASL"),
    Setting("kafka_sasl_password", str | None, None, "password for SASL", secret=True),
    Setting("kafka_ssl_cafile", str | None, None, "file of the certificate authority"),
    Setting("kafka_ssl_certfile", str | None, None, "PEM file of the client's own certificate (and those between), where the brokers ask for one"),
    Setting("kafka_ssl_keyfile", str | None, None, "PEM file of its key, not encrypted; off = it is in kafka_ssl_certfile"),
)


def roles(text: str) -> frozenset[str]:
    """The setting `roles` as a set.

    Example:
        >>> sorted(roles("all")), sorted(roles("fold,serve"))
        (['archive', 'fold', 'serve'], ['fold', 'serve'])
    """
    return frozenset(("fold", "serve", "archive") if text == "all" else text.split(","))


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
        """``flag``, the variable's name, ``pulsefold.toml`` or ``default``; of a map all that gave a part of it, by comma."""
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
        texts = attribute_texts(struct)
        for info in msgspec.structs.fields(struct):
            default = info.default
            if default is msgspec.NODEFAULT:
                default = None if info.default_factory is msgspec.NODEFAULT else info.default_factory()
            keyed = get_origin(hints[info.name]) is dict and isinstance(default, dict) and "" in default
            text = texts.get(info.name, f"of {struct.__name__}")
            declared[info.name] = Setting(info.name, hints[info.name], default, text, keyed=keyed)
    return declared


def attribute_texts(struct: type) -> dict[str, str]:
    '''What the ``Attributes:`` of a docstring say about each name.

    Example:
        >>> class Limits:
        ...     """Limits.
        ...
        ...     Attributes:
        ...         low, high: bounds,
        ...             inclusive.
        ...     """
        >>> attribute_texts(Limits)
        {'low': 'bounds, inclusive.', 'high': 'bounds, inclusive.'}
    '''
    section = (inspect.getdoc(struct) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        begins = re.match(r"    ([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if begins:
            names = begins[1].split(", ")
            found.update(dict.fromkeys(names, begins[2].strip()))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def load(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    toml_path: str | Path | None = None,
    fold_settings: Sequence[type[msgspec.Struct]] = (),
    *,
    others: Collection[str] | None = (),
) -> Settings:
    """Settings in force.

    Args:
        flags: by name; None = not given.
        toml_path: a file that must be there; None = ``pulsefold.toml`` in the working folder, if it is there.
        fold_settings: structs whose fields are settings.
        others: names in the file that are somebody else's, such as the folds' settings in a command that folds nothing;
            None = whatever is not declared here (a machine without the service does not know the folds' settings).

    Raises:
        ConfigError: naming the setting and what was expected.
    """
    declared = declare(fold_settings)
    settings = Settings(declared)
    for name, one in declared.items():
        settings.values[name], settings.origins[name] = one.default, "default"
    for name, key, value in _from_toml(toml_path, declared, others):
        _apply(settings, name, key, value, TOML if toml_path is None else str(toml_path))
    for name, key, text, variable in sorted(_from_environment(environ, declared), key=lambda found: found[1] is not None):
        _apply(settings, name, key, text, variable, plain=True)
    for name, value in flags.items():
        if value is None:
            continue
        base, _, flag_key = name.partition(".")
        if base not in declared:
            raise ConfigError(base, "there is no such setting; `pulsefold config` lists them")
        _apply(settings, base, flag_key or None, value, "flag", plain=isinstance(value, str))
    return settings


def changed(settings: Settings, toml_path: str | Path, allowed: Collection[str]) -> Settings:
    """Settings with those of a file put over them.

    Args:
        allowed: names that the file may have.

    Raises:
        ConfigError: naming the one that is unknown, not allowed or has a wrong value, or the file.
    """
    found = Settings(settings.declared, dict(settings.values), dict(settings.origins))
    for name, key, value in _from_toml(toml_path, settings.declared, ()):
        if name not in allowed:
            raise ConfigError(name, f"changes no alert; {toml_path} may have settings of the tables only (docs/settings.md)")
        _apply(found, name, key, value, str(toml_path))
    return found


class Gets(Protocol):
    """Settings by name."""

    def get(self, name: str) -> Any:
        """Value of a setting."""
        ...


def needs_credentials(settings: Gets) -> None:
    """Check that SASL, and a certificate of the client's own, have all they need.

    Raises:
        ConfigError: naming the first setting that is missing.
    """
    protocol = settings.get("kafka_security_protocol")
    for name in ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"):
        if "SASL" in protocol and settings.get(name) is None:
            raise ConfigError(name, f"is needed for kafka_security_protocol = {protocol}")
    if settings.get("kafka_ssl_keyfile") is not None and settings.get("kafka_ssl_certfile") is None:
        raise ConfigError("kafka_ssl_certfile", "is needed beside kafka_ssl_keyfile")


def no_password() -> str:
    """What is asked for the password of an encrypted key.

    Raises:
        ValueError: always; OpenSSL would ask on the terminal.
    """
    raise ValueError("the key is encrypted; give one that is not")


def flags_of(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Words of a command line as settings by name, and what is left; a flag without a value is on.

    Example:
        >>> flags_of(["--web-port", "8080", "--app-id=b", "file", "--json"])
        ({'web_port': '8080', 'app_id': 'b', 'json': 'on'}, ['file'])
    """
    flags: dict[str, str] = {}
    left = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            left.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "on"
        base, _, key = name.partition(".")
        flags[base.replace("-", "_") + ("." + key if key else "")] = value
    return flags, left


def _from_toml(path: str | Path | None, declared: Mapping[str, Setting], others: Collection[str] | None) -> list[tuple[str, str | None, Any]]:
    file = Path(path) if path is not None else Path(TOML)
    if path is None and not file.exists():
        return []
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(str(file), "is no UTF-8 text, which TOML must be") from None
    except OSError as exc:
        raise ConfigError(str(file), f"cannot be read: {exc.strerror or exc}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(str(file), f"is no TOML: {exc}") from None
    found = []
    for name, value in content.items():
        base, _, key = name.partition(".")
        if base in declared:
            found.append((base, key or None, value))
        elif others is not None and base not in others:
            raise ConfigError(base, f"there is no such setting ({file}); `pulsefold config` lists them")
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


def unknown_variables(environ: Mapping[str, str], declared: Collection[str]) -> list[str]:
    """Variables ``PULSEFOLD_…`` that name no setting, sorted; what follows ``__`` is left out, it may be a secret.

    Names of the client's own, of tests, and those that Kubernetes gives every container for a service called pulsefold are none of them.

    Args:
        declared: names of all settings.

    Raises:
        ConfigError: one is so near to a setting that it was meant.

    Example:
        >>> unknown_variables({"PULSEFOLD_COLOUR": "red", "PULSEFOLD_URL": "…", "PULSEFOLD_PORT": "tcp://10.0.0.1:6066"}, ["web_port"])
        ['PULSEFOLD_COLOUR']
    """
    found = []
    for variable, value in environ.items():
        name = variable.removeprefix("PULSEFOLD_").partition("__")[0]
        if not variable.startswith("PULSEFOLD_") or name.lower() in declared or name.lower() in OF_CLIENTS or name.startswith("TEST_"):
            continue
        if _OF_KUBERNETES.search(name) or value.startswith(("tcp://", "udp://")):
            continue
        near = difflib.get_close_matches(name.lower(), declared, 1, 0.8)
        if near:
            raise ConfigError(f"PULSEFOLD_{name}", f"names no setting; PULSEFOLD_{near[0].upper()} is one")
        found.append(f"PULSEFOLD_{name}")
    return sorted(found)


def _read(text: str, kind: Any) -> Any:
    """Text as a value of the type: JSON where it is JSON, but text stays text unless it is quoted."""
    if _is_text(kind) and not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(kind: Any) -> bool:
    """Whether values of the type are text, null apart."""
    if get_origin(kind) is Annotated:
        return _is_text(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return all(isinstance(one, str) for one in get_args(kind))
    rest = [one for one in get_args(kind) if one is not type(None)]
    return kind is str or (type(None) in get_args(kind) and len(rest) == 1 and _is_text(rest[0]))


def _apply(settings: Settings, name: str, key: str | None, value: Any, origin: str, *, plain: bool = False) -> None:
    """Put one value in force; `plain`: it is text of the environment or a flag."""
    one = settings.declared[name]
    shown = name if key is None else f"{name}.{key}"
    if one.keyed:
        item_type = get_args(one.type)[1]
        if plain:
            value = _read(value, item_type if key is not None else None)
        given = {key: value} if key is not None else value if isinstance(value, dict) and not _is_one(value, item_type) else {"": value}
        merged = dict(settings.values[name])
        for part, item in given.items():
            merged[part] = _convert(f"{name}.{part}" if part else name, item, item_type, origin)
        settings.values[name] = merged
        if settings.origins[name] not in ("default", origin):
            origin = f"{settings.origins[name]}, {origin}"
    elif key is not None and one.secret:
        raise ConfigError(name, "takes one value for everything; what was given after its name is not shown")
    elif key is not None:
        raise ConfigError(shown, f"{name} takes one value for everything (from {origin})")
    else:
        settings.values[name] = _convert(name, _read(value, one.type) if plain else value, one.type, origin, secret=one.secret)
    settings.origins[name] = origin


def _is_one(value: Any, item_type: Any) -> bool:
    """Whether a map is one value of the type, not a map of values."""
    try:
        msgspec.convert(value, item_type)
    except msgspec.ValidationError:
        return False
    return True


def short(value: Any) -> str:
    """A wrong value as it is told, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


def _convert(shown: str, value: Any, kind: Any, origin: str, *, secret: bool = False) -> Any:
    allows_none = type(None) in get_args(kind)
    if allows_none and (value is None or (isinstance(value, str) and value.lower() in ("off", "null", "none", ""))):
        return None
    if kind is bool and isinstance(value, str) and value.lower() in ("on", "off"):
        return value.lower() == "on"
    if isinstance(value, bool) and get_origin(kind) is Literal:
        value = "on" if value else "off"
    elif _is_text(kind) and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        text = f"expected {expected(kind)}, got {short(value)}" if is_plain(kind) and not secret else str(exc)
        raise ConfigError(shown, f"{text[:1].lower()}{text[1:]} (from {origin})") from None
