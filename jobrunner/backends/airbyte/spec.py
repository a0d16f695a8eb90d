"""What is submitted: the spec of an `AirbyteMonitorJob`."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobrunner.errors import SettingsError, SpecError, SubmitRejected
from jobrunner.findings import problem_of
from jobrunner.references import resolve

JOB_TYPES = ("sync", "reset", "refresh", "clear")
POLICIES = ("adopt", "fail")

_REFERENCE = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")


class AirbyteSpec(BaseModel):
    """The keys of a spec, as they stand in the row.

    `connectionId`: the UUID of the Airbyte connection. `jobType`: sync, reset, refresh or clear.
    `onConflict`: adopt (watch the job that runs there already) or fail. These three may have `${env:NAME}`
    in them. `minRows`: a success with fewer rows is a failure. `maxRetryDelay`: seconds between looks at
    most, where they become rarer with time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    connection_id: str = Field(alias="connectionId")
    job_type: str = Field("sync", alias="jobType")
    on_conflict: str = Field("adopt", alias="onConflict")
    min_rows: Annotated[int, Field(ge=0, strict=True)] | None = Field(None, alias="minRows")
    max_retry_delay: float | None = Field(None, alias="maxRetryDelay")

    @field_validator("connection_id")
    @classmethod
    def _is_uuid(cls, value: str) -> str:
        text = value.strip()
        if _REFERENCE.search(text):
            return text
        try:
            return str(UUID(text))
        except ValueError:
            raise ValueError("no_uuid") from None

    @field_validator("job_type")
    @classmethod
    def _is_type(cls, value: str) -> str:
        return _one_of(JOB_TYPES, value)

    @field_validator("on_conflict")
    @classmethod
    def _is_policy(cls, value: str) -> str:
        return _one_of(POLICIES, value)

    @classmethod
    def checked(cls, spec: Mapping[str, Any]) -> Self:
        """Check a spec. Raises `SpecError`, which names the key that is wrong."""
        try:
            return cls.model_validate(dict(spec))
        except ValidationError as error:
            raise SpecError(_told(error.errors(include_url=False)[0])) from None

    @classmethod
    def resolved(cls, spec: Mapping[str, Any]) -> Self:
        """Check a spec with its variables filled in. Raises `SubmitRejected`."""
        try:
            filled = resolve(dict(spec), "the spec")
            return cls.model_validate(filled)
        except SettingsError as error:
            raise SubmitRejected(str(error)) from error
        except ValidationError as error:
            item = error.errors(include_url=False)[0]
            key = str(item["loc"][0]) if item["loc"] else ""
            # What a variable holds is not for a row to tell: it may be the wrong one, with a secret in it.
            given = spec.get(key)
            is_filled = isinstance(given, str) and _REFERENCE.search(given) is not None
            raise SubmitRejected(_told({**item, "input": given} if is_filled else item)) from None

    @property
    def has_variables(self) -> bool:
        """Whether anything in it stands for what a variable holds, here and now."""
        texts = (self.connection_id, self.job_type, self.on_conflict)
        return any(_REFERENCE.search(text) for text in texts)

    def as_row(self) -> dict[str, Any]:
        """Return the spec as it stands in the row."""
        return self.model_dump(by_alias=True, exclude_none=True)


def _one_of(known: tuple[str, ...], value: str) -> str:
    text = value.strip()
    if text not in known and not _REFERENCE.search(text):
        words = ", ".join(map(repr, known[:-1]))
        raise ValueError(f"must be {words} or {known[-1]!r}")
    return text


def _told(item: Any) -> str:
    key = str(item["loc"][0]) if item["loc"] else "the spec"
    known = [str(field.alias) for field in AirbyteSpec.model_fields.values()]
    if item["type"] == "extra_forbidden":
        close = get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"The spec of an Airbyte job has no {key!r}: {hint}."
    if item["type"] == "missing":
        return f"The spec of an Airbyte job needs {key}: the UUID of the Airbyte connection."
    if "no_uuid" in item["msg"]:
        return (
            f"{key} is {item['input']!r}, which is no UUID of an Airbyte connection, such as "
            "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11; the named way to a server is --connection, connection=."
        )
    found = f"{key} is {item['input']!r:.200}, and {problem_of(item)}"
    return f"The Airbyte job cannot be started as described: {found}."
