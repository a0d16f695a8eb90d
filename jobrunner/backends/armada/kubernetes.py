"""Kubernetes objects between their JSON form, which people write, and the messages of the wire.

The two differ where Kubernetes' own JSON is not that of protobuf: quantities and int-or-string fields
are plain values there, and some structs are inlined (`volumes[0].emptyDir`).
"""

import base64
import binascii
import datetime as dt
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jobrunner.backends.armada.quantity import Mistake, text_of
from jobrunner.findings import named, no_text

_QUANTITY = "k8s.io.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "k8s.io.apimachinery.pkg.util.intstr.IntOrString"
_TIME = "k8s.io.apimachinery.pkg.apis.meta.v1.Time"
_INLINED = frozenset(
    {"volumeSource", "localObjectReference", "handler", "ephemeralContainerCommon", "persistentVolumeSource"}
)
_INT32 = 2**31
_INT64 = 2**63
_OF_64_BITS = frozenset({2, 4})
"""CPPTYPE_INT64 and CPPTYPE_UINT64."""


def fill(message: Any, value: object, path: str) -> None:
    """Put a JSON value into a message. Raises `Mistake`, which names the key that is wrong.

    Keys may have the name of their field or its JSON name. What is null counts as not there.
    """
    name = message.DESCRIPTOR.full_name
    if name in _SPECIAL:
        _SPECIAL[name][0](message, value, path)
        return
    if not isinstance(value, Mapping):
        raise Mistake(f"{path or 'it'} must be a mapping, and is {named(value)}")
    fields = _fields(message.DESCRIPTOR)
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise Mistake(_unknown(inner, str(key), list(fields)))
        if item is None:
            continue
        via, field = fields[key]
        _set(getattr(message, via) if via else message, field, item, inner)


def to_json(message: Any) -> Any:
    """Return the JSON value of a message, with the names that Kubernetes gives its fields."""
    name = message.DESCRIPTOR.full_name
    if name in _SPECIAL:
        return _SPECIAL[name][1](message)
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in _INLINED:
            found |= to_json(value)
        elif _is_map(field):
            of = field.message_type.fields_by_name["value"]
            found[field.json_name] = {key: _plain(of, value[key]) for key in value}
        elif field.is_repeated:
            found[field.json_name] = [_plain(field, item) for item in value]
        else:
            found[field.json_name] = _plain(field, value)
    return found


def _fields(descriptor: Any) -> dict[str, tuple[str, Any]]:
    """Return the fields of a message by the keys of its JSON, each with the struct that is inlined."""
    found: dict[str, tuple[str, Any]] = {}
    for field in descriptor.fields:
        if field.name in _INLINED:
            found |= {key: (field.name, inner) for key, (_, inner) in _fields(field.message_type).items()}
    for field in descriptor.fields:
        # One that is inlined may stand there by its name, too, as in the official client's own dictionaries.
        if field.name not in _INLINED or field.name not in found:
            found[field.name] = found[field.json_name] = ("", field)
    return found


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _set(message: Any, field: Any, value: object, path: str) -> None:
    if _is_map(field):
        _set_map(getattr(message, field.name), field.message_type.fields_by_name["value"], value, path)
    elif field.is_repeated:
        if not isinstance(value, list | tuple):
            raise Mistake(f"{path} must be a list, and is {named(value)}")
        into = getattr(message, field.name)
        for index, item in enumerate(value):
            if field.message_type is not None:
                fill(into.add(), item, f"{path}[{index}]")
            else:
                into.append(_scalar(field, item, f"{path}[{index}]"))
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()  # `emptyDir: {}` says something
        fill(inner, value, path)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _set_map(into: Any, of: Any, value: object, path: str) -> None:
    if not isinstance(value, Mapping):
        raise Mistake(f"{path} must be a mapping, and is {named(value)}")
    for key, item in value.items():
        if not isinstance(key, str):
            raise Mistake(f"the key {key!r} in {path} is {named(key)}: put it in quotes")
        if of.message_type is not None:
            fill(into[key], item, f"{path}.{key}")
        else:
            into[key] = _scalar(of, item, f"{path}.{key}")


def _scalar(field: Any, value: object, path: str) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return _bytes(value, path)
        if not isinstance(value, str):
            # Not turned into one: YAML has made another value of `0755`, `1.10` or `yes` by now.
            raise Mistake(f"{path} {no_text(value)}")
        return value
    if kind == field.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise Mistake(f"{path} must be true or false, and is {named(value)}")
        return value
    if kind in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Mistake(f"{path} must be a number, and is {named(value)}")
        return float(value)
    if kind == field.CPPTYPE_ENUM:
        return _enum(field, value, path)
    return _whole(field, value, path)


def _whole(field: Any, value: object, path: str) -> int:
    if isinstance(value, str) and field.cpp_type in _OF_64_BITS and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)  # protobuf's own JSON has them as texts
    if isinstance(value, bool) or not isinstance(value, int):
        raise Mistake(f"{path} must be a whole number, and is {named(value)}")
    most = _INT64 if field.cpp_type in _OF_64_BITS else _INT32
    least = 0 if field.cpp_type in {field.CPPTYPE_UINT32, field.CPPTYPE_UINT64} else -most
    if not least <= value < most:
        raise Mistake(f"{path} is {value}, which is too large or too small")
    return value


def _enum(field: Any, value: object, path: str) -> int:
    known: dict[str, int] = {each.name: each.number for each in field.enum_type.values}
    if isinstance(value, str) and value in known:
        return known[value]
    if isinstance(value, int) and not isinstance(value, bool) and value in known.values():
        return value
    raise Mistake(f"{path} is {named(value)}, and must be one of {', '.join(known)}")


def _bytes(value: object, path: str) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise Mistake(f"{path} must be a text in base64") from None


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.cpp_type == field.CPPTYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _unknown(path: str, key: str, known: list[str]) -> str:
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower().replace("_", ""), lowered, n=1)
    names = ", ".join(dict.fromkeys(known))
    hint = f"did you mean {lowered[close[0]]!r}?" if close else f"known are {names}"
    return f"there is no key {path!r} ({hint})"


# --- the three whose JSON is a plain value ---------------------------------------------------------


def _fill_quantity(message: Any, value: object, path: str) -> None:
    if isinstance(value, Mapping) and set(value) == {"string"}:
        value = value["string"]  # the form that the official client's own dictionaries have
    try:
        message.string = text_of(value)
    except ValueError as error:
        raise Mistake(f"{path} {error}") from None


def _fill_int_or_string(message: Any, value: object, path: str) -> None:
    if isinstance(value, Mapping) and value and set(value) <= {"type", "intVal", "strVal"}:
        # the form that the official client's own dictionaries have
        value = value.get("strVal", "") if str(value.get("type", "0")) == "1" else value.get("intVal", 0)
    if isinstance(value, str):
        message.type, message.strVal = 1, value
    elif isinstance(value, int) and not isinstance(value, bool) and -_INT32 <= value < _INT32:
        message.type, message.intVal = 0, value
    else:
        raise Mistake(f"{path} must be a whole number or a text, and is {named(value)}")


def _fill_time(message: Any, value: object, path: str) -> None:
    try:
        at = dt.datetime.fromisoformat(value if isinstance(value, str) else "?")
        message.seconds = int(at.timestamp())
    except ValueError:
        raise Mistake(f"{path} must be a time, such as 2026-03-01T12:00:00Z") from None


def _time_of(message: Any) -> str:
    return dt.datetime.fromtimestamp(message.seconds, dt.UTC).isoformat().replace("+00:00", "Z")


_SPECIAL: dict[str, tuple[Callable[[Any, object, str], None], Callable[[Any], Any]]] = {
    _QUANTITY: (_fill_quantity, lambda message: message.string),
    _INT_OR_STRING: (
        _fill_int_or_string,
        lambda message: message.strVal if message.type == 1 else message.intVal,
    ),
    _TIME: (_fill_time, _time_of),
}
