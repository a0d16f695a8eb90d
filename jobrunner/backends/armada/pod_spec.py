"""A pod's description in whatever form it is given, as the plain JSON that Kubernetes' own YAML is."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobrunner.backends.armada.kubernetes import to_json
from jobrunner.errors import SpecError
from jobrunner.findings import named
from jobrunner.paths import absolute, read_file
from jobrunner.spec_yaml import load

_POD_SPEC = "k8s.io.api.core.v1.PodSpec"
_DEEPEST = 32
_MOST_VALUES = 100_000  # a few YAML aliases of aliases are billions of values


def plain_pod_spec(given: object) -> dict[str, Any]:
    """Return a pod's description as a JSON mapping; what is null is left out.

    `given`: a mapping, a text in YAML or JSON, a `pathlib.Path` to such a text, or armada-client's
    message (`core_v1.PodSpec`). Raises `SpecError`.
    """
    value = given
    descriptor = getattr(given, "DESCRIPTOR", None)
    if descriptor is not None:
        if descriptor.full_name != _POD_SPEC:
            raise SpecError(f"A pod spec was expected, and this is a message {descriptor.full_name}.")
        value = to_json(given)
    elif isinstance(given, Path):
        value = _parsed(_text_in(given), str(given))
    elif isinstance(given, str):
        value = _parsed(given, "The pod spec")
    if not isinstance(value, Mapping):
        hint = " (a file is given as a pathlib.Path)" if isinstance(given, str) else ""
        raise SpecError(f"A pod spec is a mapping of keys to values, and this is {named(value)}{hint}.")
    if "kind" in value and "spec" in value:
        raise SpecError(
            f"This is a whole {value['kind']} of Kubernetes, and a pod spec is needed: give what stands "
            "under its `spec` (for a Job, under `spec.template.spec`)."
        )
    _count_values(value)
    return {str(key): item for key, item in _without_nulls(value).items()}


def _text_in(path: Path) -> str:
    try:
        data = read_file(absolute(path))
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise SpecError(
                f"{path} is larger than 1 MiB, which no pod spec is: is it the right file?"
            ) from None
        raise SpecError(f"The pod spec {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise SpecError(f"The path of the pod spec {error}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8: save the file as UTF-8.") from None


def _parsed(text: str, shown: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_twins(pairs, shown))
    except (json.JSONDecodeError, RecursionError):
        return load(text, shown, deepest=_DEEPEST, extra="armada")
    except ValueError as error:  # too long a number
        raise SpecError(f"{shown}: {str(error).partition(';')[0]}: correct it.") from None


def _without_twins(pairs: list[tuple[str, Any]], shown: str) -> dict[str, Any]:
    """Return a mapping; a key that is there twice is refused, because one of them would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpecError(f"{shown}: the key {key!r} is there twice, remove one: correct it.")
        found[key] = value
    return found


def _count_values(value: Any) -> None:
    left, seen = [(value, 1)], 0
    while left:
        item, depth = left.pop()
        seen += 1
        if seen > _MOST_VALUES or depth > _DEEPEST:
            much = f"more than {_MOST_VALUES:,} values" if seen > _MOST_VALUES else "too deep a nesting"
            raise SpecError(f"The pod spec has {much}, as no pod spec does.")
        if isinstance(item, Mapping):
            left += [(each, depth + 1) for each in item.values()]
        elif isinstance(item, list | tuple):
            left += [(each, depth + 1) for each in item]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value
