"""What a job with code asks of the machine that runs it, such as `{"GPU": 1}`.

It stands in the row as `spec["resources"]`.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jobrunner.errors import UsageError
from jobrunner.text import brief

NONE: Mapping[str, float] = MappingProxyType({})
"""No resources."""
KEY = "resources"
"""Where they stand in the `spec`."""


def checked(resources: Any) -> dict[str, float]:
    """Return resources as they are stored. Raises `UsageError` where they are none."""
    if not isinstance(resources, Mapping):
        raise UsageError(f"{brief(resources, 100)} names no resources: give them as {{'GPU': 1}}.")
    for name, count in resources.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"{brief(name, 100)} is no name of a resource.")
        if isinstance(count, bool) or not isinstance(count, int | float) or not 0 < count < float("inf"):
            raise UsageError(f"A job cannot ask for {name}={brief(count, 100)}: give a number, more than 0.")
    return dict(resources)


def resources_in(spec: Any) -> dict[str, float]:
    """Return the resources that a job's `spec` asks for. Raises `UsageError` where it cannot be read."""
    return checked(spec[KEY]) if isinstance(spec, Mapping) and spec.get(KEY) else {}


def parsed(text: str | None) -> dict[str, float]:
    """Return the resources that the database gave as JSON. Raises `UsageError`."""
    return checked(json.loads(text)) if text else {}


def spec_with(spec: Mapping[str, Any] | None, resources: Mapping[str, float]) -> dict[str, Any] | None:
    """Return a `spec` that asks for these, unless it asks for others already. Raises `UsageError`."""
    if spec is not None and KEY in spec:
        return {**spec, KEY: checked(spec[KEY])}
    if not resources:
        return None if spec is None else dict(spec)
    return {**(spec or {}), KEY: checked(resources)}


def words_of(resources: Mapping[str, float]) -> str:
    """Return them for a person: `GPU=1, memory=2`."""
    return ", ".join(f"{name}={count:g}" for name, count in sorted(resources.items()))
