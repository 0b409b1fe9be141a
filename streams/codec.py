"""Bytes <-> event: the one validation, used by publisher and worker alike.

The rule this file keeps: for any bytes, `decode` returns an `Event` or raises `InvalidEvent` with a reason and a sentence
that names the field; never anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Literal, cast

import msgspec

from .errors import PulsefoldError
from .events import (
    AnyEvent,
    BudgetSet,
    CostIncurred,
    CostRefunded,
    CustomRecorded,
    Data,
    Event,
    GoalCreated,
    JudgmentRecorded,
    LearningRecorded,
    MetricRecorded,
    Series,
    TrustBatchObserved,
    TrustDecayed,
    TrustImported,
    TrustObserved,
    VariablePerformanceUpdated,
)

MAX_BYTES = 1 << 20
MAX_METADATA_BYTES = 16 << 10
MAX_USD = Decimal(10) ** 9
MAX_DEPTH = 8
LEVELS = {"info": 1, "warning": 2, "critical": 3, "shutdown": 4}

_TENANT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
_KIND = re.compile(r"[a-z_]{1,32}\Z")
_SCOPE = re.compile(r"(tenant|(model|run|agent|tag):.{1,256})\Z", re.DOTALL)
_WHERE = re.compile(r" - at `(?:(key)` in `)?\$\.?(.*?)`$")
_decode = msgspec.json.Decoder(AnyEvent).decode
_encoder = msgspec.json.Encoder()
_known_tenants: set[str] = set()
_known_kinds: set[str] = set()


class InvalidEvent(PulsefoldError):
    """The bytes are no event of the contract.

    Args:
        reason: ``not_json``, ``unknown_type``, ``invalid_field`` or ``too_large``.
        error: one sentence naming the field.
        field: path such as ``data.confidence``; empty where no field is to blame.
    """

    def __init__(self, reason: str, error: str, field: str = "") -> None:
        super().__init__(error)
        self.reason = reason
        self.error = error
        self.field = field


def _bad(field: str, expected: str, reason: str = "invalid_field") -> InvalidEvent:
    return InvalidEvent(reason, f"{field}: {expected}", field)


def decode(raw: bytes | None) -> Event:
    """The event in a record's value.

    Raises:
        InvalidEvent: the bytes' fault, or that of whoever sent them.
    """
    if raw is None:
        raise InvalidEvent("not_json", "the record has no value")
    if len(raw) > MAX_BYTES:
        raise InvalidEvent("too_large", f"the record has {len(raw)} bytes, at most {MAX_BYTES} are taken")
    try:
        event: Event = _decode(raw)
    except msgspec.ValidationError as exc:
        raise _explain(exc, raw) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, ArithmeticError) as exc:
        raise InvalidEvent("not_json", f"the record is no JSON: {exc}") from None
    tenant = event.tenant
    if tenant not in _known_tenants:
        if not _TENANT.match(tenant):
            raise _bad("tenant", "expected 1 to 63 of a-z, 0-9, _ . - beginning with a letter or digit")
        if len(_known_tenants) < 10_000:
            _known_tenants.add(tenant)
    if not event.id.isprintable():
        _printable("id", event.id)
    moment = event.time
    if moment is not None and not 1970 <= moment.year < 9999:
        raise _bad("time", "expected a moment of the years 1970 to 9998")
    data = event.data
    check = _CHECKS.get(data.__class__, _names)
    check(data)
    if event.derivedfrom is not None and not 1 <= len(event.derivedfrom) <= 256:
        raise _bad("derivedfrom", "expected 1 to 256 characters")
    return event


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Many events, and what is known of all of them.

    Attributes:
        data: of the events, in order.
        tenants, classes: the sets of the events' tenants and of the classes of their data.
        moments: their times, None for one that has none.
    """

    events: list[Event]
    data: list[Data]
    tenants: set[str]
    classes: set[type[Data]]
    moments: list[datetime | None]


def decode_all(raws: Sequence[bytes | None]) -> Batch | None:
    """The events of many values, where every one of them is plainly valid; else None: decode them one by one.

    What `decode` looks at one by one is looked at for all at once, which halves the cost.
    """
    try:
        events, alike = _decode_each(raws)  # type: ignore[arg-type]  # None is a TypeError, as meant
        size = sum(map(len, raws))  # type: ignore[arg-type]  # all are bytes here
        if size > MAX_BYTES and max(map(len, raws)) > MAX_BYTES:  # type: ignore[arg-type]
            return None
        plain = size <= MAX_BYTES and _plain(b"".join(raws))  # type: ignore[arg-type]  # no copy of what may be a thousand times as much
        tenants = {event.tenant for event in events}
        if not tenants <= _known_tenants or not (plain or "".join([event.id for event in events]).isprintable()):
            return None
        data: list[Any] = [event.data for event in events]
        sources = {event.derivedfrom for event in events}
        if sources != {None} and not all([source is None or 1 <= len(source) <= 256 for source in sources]):
            return None
        classes: set[type[Data]] = set(map(type, data)) if alike is None else {alike}
        moments = [event.time for event in events]
        years = {moment.year for moment in moments if moment is not None}
        if years and not 1970 <= min(years) <= max(years) < 9999:
            return None
        if classes == {TrustObserved}:
            if not {one.kind for one in data} <= _known_kinds or not (plain or "".join([one.id for one in data]).isprintable()):
                return None
        else:
            for one in data:
                _CHECKS.get(one.__class__, _names)(one)
    except (msgspec.MsgspecError, InvalidEvent, ValueError, TypeError, RecursionError, ArithmeticError):
        return None
    return Batch(events, data, tenants, classes, moments)


def _decode_each(raws: Sequence[bytes]) -> tuple[list[Event], type[Data] | None]:
    """The events of values, and the class of their data where all are of one: those are decoded a seventh sooner."""
    if not raws:
        return [], None
    first: Event = _decode(raws[0])
    alike = first.data.__class__
    if len(raws) > 1 and _decode(raws[-1]).data.__class__ is not alike:
        return list(map(_decode, raws)), None
    try:
        return [first, *map(_decoder(alike), raws[1:])], alike
    except msgspec.ValidationError:
        return list(map(_decode, raws)), None


@cache
def _decoder(data: type[Data]) -> Callable[[bytes], Event]:
    """Decodes events of one type. Its name is a field here: as msgspec's tag of one struct alone it might lack."""
    fields = [("type", Literal[data.TYPE]), ("data", data)]
    one = msgspec.defstruct(f"{data.__name__}Alike", fields, bases=(Event,), frozen=True, kw_only=True, omit_defaults=True)
    return cast("Callable[[bytes], Event]", msgspec.json.Decoder(one).decode)


def _plain(text: bytes) -> bool:
    """Whether every string in this valid JSON is printable at a glance: what else of ASCII is not, none has unless it is escaped."""
    return text.isascii() and b"\\" not in text and b"\x7f" not in text


def encode(event: Event) -> bytes:
    """The event as conformant CloudEvents 1.0 JSON (``specversion``, ``id``, ``source``, ``type`` always there)."""
    body: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source or "pulsefold", "type": event.data.TYPE}
    if event.time is not None:
        body["time"] = event.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    body["tenant"] = event.tenant
    if event.derivedfrom is not None:
        body["derivedfrom"] = event.derivedfrom
    body["data"] = event.data
    return _encoder.encode(body)


# ---- messages


def _explain(exc: msgspec.ValidationError, raw: bytes) -> InvalidEvent:
    text = str(exc)
    found = _WHERE.search(text)
    field = found[2] if found else ""
    what = text[: found.start()] if found else text
    if found and found[1]:
        what = f"a key: {what}"
    if field == "type" or what == "Object missing required field `type`":
        if field == "type" and what.startswith("Invalid value"):
            return InvalidEvent("unknown_type", f"type: {what[14:]} is not a type of the contract", "type")
        return _bad("type", "expected the name of an event type")
    missing = re.match(r"Object missing required field `(.*)`", what)
    if missing:
        field = f"{field}.{missing[1]}" if field else missing[1]
        return _bad(field, "is required")
    if not field:
        return InvalidEvent("invalid_field", f"the record: {_lower(what)}")
    if (field == "data.value" or field.startswith(("data.values", "data.losses"))) and not _exceeds(what, field):
        what = "expected a number, or NaN, Infinity or -Infinity as text"
    return _bad(field, _lower(what), "too_large" if _exceeds(what, field) else "invalid_field")


def _exceeds(what: str, field: str) -> bool:
    """Whether a length bound is broken from above (common.md §3: too_large)."""
    return "of length <=" in what


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# ---- names


def _printable(field: str, text: str) -> None:
    """Control characters other than tab and newline are refused; so are lone surrogates."""
    if not text.isprintable():
        for char in text:
            code = ord(char)
            if (code < 32 and char not in "\t\n") or 127 <= code < 160 or 0xD800 <= code < 0xE000:
                raise _bad(field, f"the control character U+{code:04X} is not allowed in names")


_NAME_FIELDS = (
    "id", "name", "forecast_id", "model", "arc_label", "symbolic_tag", "confidence_status", "variable", "metric_id", "metric_type", "run", "task_type", "agent",
    "goal_id", "metric", "task", "judge", "execution_id", "model_version", "refers_to", "quality",
)  # fmt: skip
_PLAIN = (
    msgspec.inspect.StrType, msgspec.inspect.IntType, msgspec.inspect.FloatType, msgspec.inspect.BoolType, msgspec.inspect.NoneType,
    msgspec.inspect.DateTimeType, msgspec.inspect.DateType, msgspec.inspect.DecimalType, msgspec.inspect.LiteralType,
)  # fmt: skip
_named: dict[type[Data], tuple[str, ...]] = {}
"""By class of data: its fields that are names, and those that may be maps or lists."""


def _fields(cls: type[Data]) -> tuple[str, ...]:
    found = []
    for field in msgspec.inspect.type_info(cls).fields:  # type: ignore[attr-defined]  # data are structs
        types = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        if not all(isinstance(one, _PLAIN) for one in types) or (field.name in _NAME_FIELDS and any(isinstance(one, msgspec.inspect.StrType) for one in types)):
            found.append(field.name)
    return tuple(found)


def _names(data: Data) -> None:
    """Names in the plain fields, keys of maps, tags and elements of lists; nesting of free objects."""
    cls = data.__class__
    fields = _named.get(cls)
    if fields is None:
        fields = _named[cls] = _fields(cls)
    for field in fields:
        value = getattr(data, field)
        kind = value.__class__
        if kind is str:
            if not value.isprintable() and field in _NAME_FIELDS:
                _printable(f"data.{field}", value)
        elif kind is dict:
            for key in value:
                if not key.isprintable():
                    _printable(f"data.{field}", key)
            if value:
                _depth(f"data.{field}", value.values(), 2)
        elif kind is list:
            for item in value:
                if item.__class__ is str:
                    if not item.isprintable():
                        _printable(f"data.{field}", item)
                elif isinstance(item, msgspec.Struct):
                    for part in item.__struct_fields__:
                        text = getattr(item, part)
                        if text.__class__ is str and part in ("agent", "id", "name", "rule"):
                            _printable(f"data.{field}.{part}", text)


def _depth(field: str, values: Iterable[Any], level: int) -> None:
    for value in values:
        if value.__class__ is dict or value.__class__ is list:
            if level >= MAX_DEPTH:
                raise _bad(field, f"objects may be nested {MAX_DEPTH} deep", "too_large")
            _depth(field, value.values() if value.__class__ is dict else value, level + 1)


# ---- what spans several fields


def _kind(field: str, kind: str) -> None:
    if kind not in _known_kinds:
        if not _KIND.match(kind):
            raise _bad(field, "expected 1 to 32 of a-z and _")
        if len(_known_kinds) < 10_000:
            _known_kinds.add(kind)


def _trust(data: TrustObserved) -> None:
    if data.kind not in _known_kinds:
        _kind("data.kind", data.kind)
    if not data.id.isprintable():
        _printable("data.id", data.id)


def _batch(data: TrustBatchObserved) -> None:
    for at, one in enumerate(data.observations):
        _kind(f"data.observations[{at}].kind", one.kind)
        _printable(f"data.observations[{at}].id", one.id)


def _decayed(data: TrustDecayed) -> None:
    if data.kind is not None:
        _kind("data.kind", data.kind)
    elif data.id is not None:
        raise _bad("data.kind", "is required where data.id is given")
    if data.id is not None:
        _printable("data.id", data.id)


def _imported(data: TrustImported) -> None:
    _kind("data.kind", data.kind)
    _printable("data.id", data.id)
    if data.removed:
        if data.alpha is not None or data.beta is not None:
            raise _bad("data.removed", "a removed key has no alpha and beta")
        return
    if data.alpha is None or data.beta is None:
        raise _bad("data.alpha" if data.alpha is None else "data.beta", "is required (or removed: true)")
    if isinstance(data.history, Series) and len(data.history.times) != len(data.history.values):
        raise _bad("data.history", f"{len(data.history.times)} times and {len(data.history.values)} values")
    moments: Iterable[Any] = [data.last_update]
    if isinstance(data.history, Series):
        moments = [data.last_update, *data.history.times]
    elif data.history is not None:
        moments = [data.last_update, *(at for at, _ in data.history)]
    for at in moments:
        if isinstance(at, float) and not -62_135_596_800 <= at <= 253_402_300_799:
            raise _bad("data.history" if at is not data.last_update else "data.last_update", "unix seconds of the years 1 to 9999 expected")


def _usd(field: str, amount: Decimal | None, *, positive: bool = False) -> None:
    if amount is None:
        return
    if not amount.is_finite() or amount < 0 or (positive and amount == 0):
        raise _bad(field, "expected an amount in USD above 0" if positive else "expected an amount in USD of 0 or more")
    if amount > MAX_USD:
        raise _bad(field, "at most 1e9 USD")


def _cost(data: CostIncurred) -> None:
    _usd("data.cost", data.cost)
    _names(data)


def _refund(data: CostRefunded) -> None:
    _usd("data.cost", data.cost, positive=True)
    _names(data)


def _metric(data: MetricRecorded) -> None:
    _usd("data.cost", data.cost)
    _names(data)


def _budget(data: BudgetSet) -> None:
    if not _SCOPE.match(data.scope):
        raise _bad("data.scope", "expected tenant, model:NAME, run:NAME, agent:NAME or tag:NAME")
    _printable("data.scope", data.scope)
    if data.starts is not None and data.period != "cumulative":
        raise _bad("data.starts", "belongs to period cumulative only")
    last: tuple[int, Decimal] | None = None
    for at, limit in enumerate(sorted(data.limits, key=lambda limit: LEVELS[limit.level])):
        _usd(f"data.limits[{at}].at", limit.at)
        now = LEVELS[limit.level], limit.at
        if last is not None and (now[0] == last[0] or now[1] <= last[1]):
            raise _bad("data.limits", "each level once, and the amounts must rise with the level")
        last = now


def _learning(data: LearningRecorded) -> None:
    _names(data)
    if data.metadata is not None and len(_encoder.encode(data.metadata)) > MAX_METADATA_BYTES:
        raise _bad("data.metadata", f"at most {MAX_METADATA_BYTES} bytes", "too_large")


def _goal(data: GoalCreated) -> None:
    _names(data)
    if data.deadline is not None and not 1970 <= data.deadline.year < 9999:
        raise _bad("data.deadline", "expected a moment of the years 1970 to 9998")


def _judgment(data: JudgmentRecorded) -> None:
    if data.overall_score is None and not data.criteria:
        raise _bad("data.overall_score", "is required where there are no criteria")
    _names(data)


def _free(field: str) -> Callable[[Any], None]:
    def check(data: Data) -> None:
        _names(data)
        _depth(f"data.{field}", [getattr(data, field)], 1)

    return check


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    TrustObserved: _trust,
    TrustBatchObserved: _batch,
    TrustDecayed: _decayed,
    TrustImported: _imported,
    CostIncurred: _cost,
    CostRefunded: _refund,
    MetricRecorded: _metric,
    BudgetSet: _budget,
    LearningRecorded: _learning,
    GoalCreated: _goal,
    JudgmentRecorded: _judgment,
    VariablePerformanceUpdated: _free("new_score"),
    CustomRecorded: _free("fields"),
}
