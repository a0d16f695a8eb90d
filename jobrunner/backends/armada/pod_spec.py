"""A pod's description in whatever form it is given, as the plain JSON that Kubernetes' own YAML is."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobrunner.backends.armada.kubernetes import named, to_json
from jobrunner.errors import SpecError
from jobrunner.extras import require

_POD_SPEC = "k8s.io.api.core.v1.PodSpec"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_LARGEST = 1024 * 1024


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
    return {str(key): item for key, item in _without_nulls(value).items()}


def _text_in(path: Path) -> str:
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise SpecError(f"The pod spec {path} cannot be read ({error.strerror}).") from None
    try:
        if len(data) > _LARGEST:
            raise SpecError(f"{path} is larger than 1 MiB, which no pod spec is: is it the right file?")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8: save the file as UTF-8.") from None


def _parsed(text: str, shown: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        pass
    yaml = require("yaml", "armada", "A pod spec in YAML")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined,misc]
        # A date in an annotation is the text that it is: JSON has no other form for it.
        yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's form
            first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return yaml.load(text, Loader)  # it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = shown if mark is None else f"{shown}, line {mark.line + 1}"
        raise SpecError(f"{place}: {error.problem or error.context}: correct it.") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise SpecError(f"{shown} is no YAML that can be read ({type(error).__name__}).") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_without_nulls(item) for item in value]
    return value
