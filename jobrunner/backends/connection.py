"""The settings of a connection, checked: what all kinds refuse alike, and the sentence that says so."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from jobrunner.errors import SettingsError
from jobrunner.findings import problem_of
from jobrunner.settings import ConnectionSettings


class CheckedConnection(BaseModel):
    """The settings of one connection: no key but those that its kind knows, and no value in a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def of(cls, settings: ConnectionSettings) -> Self:
        """Check a connection's settings. Raises `SettingsError` with one sentence."""
        try:
            return cls.model_validate(settings.options)
        except ValidationError as error:
            wrong = "; ".join(cls._told(item) for item in error.errors())
            raise SettingsError(
                f"A connection of kind {settings.kind} is wrong: {wrong}. Correct it; `jobrunner config` "
                "shows where it was set."
            ) from None

    @classmethod
    def _told(cls, item: Mapping[str, Any]) -> str:
        """Return what is wrong with one key; a kind says in its own words what it knows better."""
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            return f"there is no {key!r} (known: {', '.join(cls.model_fields)})"
        if item["type"] == "value_error":  # our own words; without a key they are about several
            return " ".join(filter(None, (repr(key) if key else "", str(item["ctx"]["error"]))))
        return f"{key!r} {problem_of(item)}"
