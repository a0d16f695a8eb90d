"""What is submitted: the spec of an `AirbyteMonitorJob`."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobrunner.errors import SettingsError, SpecError, SubmitRejected
from jobrunner.settings_sources import resolve

JOB_TYPES = ("sync", "reset", "refresh", "clear")

_REFERENCE = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")


class AirbyteSpec(BaseModel):
    """The keys of a spec, as they stand in the row.

    `connectionId`: the UUID of the Airbyte connection, or with `${env:NAME}` in it. `jobType`: sync, reset,
    refresh or clear. `onConflict`: adopt (watch the job that runs there already) or fail. `minRows`: a
    success with fewer rows is a failure. `maxRetryDelay`: seconds between looks at most, where they become
    rarer with time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    connection_id: str = Field(alias="connectionId")
    job_type: Literal["sync", "reset", "refresh", "clear"] = Field("sync", alias="jobType")
    on_conflict: Literal["adopt", "fail"] = Field("adopt", alias="onConflict")
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
            return cls.checked(resolve(dict(spec), "the spec"))
        except (SettingsError, SpecError) as error:
            raise SubmitRejected(str(error)) from error

    def as_row(self) -> dict[str, Any]:
        """Return the spec as it stands in the row."""
        return self.model_dump(by_alias=True, exclude_none=True)


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
    if item["type"] == "literal_error":
        return f"{key} is {item['input']!r}, and must be {item['ctx']['expected']}."
    return f"{key} is {item['input']!r}: {item['msg'][:1].lower()}{item['msg'][1:]}."
