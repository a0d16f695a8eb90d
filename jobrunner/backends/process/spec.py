"""What a process job says: the command, and where it runs."""

import os
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
)

from jobrunner.errors import SpecError
from jobrunner.findings import problem_of
from jobrunner.text import flaw_in

DEFAULT_STOP_GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL, where the job does not say."""
_BYTES = "bytes"
_SAFE = " /:=-._~,+@"  # what stays readable; a percent sign does not


def _decoded(word: Any) -> Any:
    """Return a word as Python has it, from how it stands in the row."""
    if isinstance(word, Mapping) and set(word) == {_BYTES} and isinstance(word[_BYTES], str):
        return os.fsdecode(unquote_to_bytes(word[_BYTES]))
    return word


def _encoded(word: str) -> Any:
    """Return a word as JSON: bytes that are not UTF-8, which JSON cannot hold, with percent signs."""
    if flaw_in(word) is None:
        return word
    return {_BYTES: quote_from_bytes(os.fsencode(word), safe=_SAFE)}


Word = Annotated[str, BeforeValidator(_decoded), PlainSerializer(_encoded)]
"""What a program is given: any bytes but NUL; those that are not UTF-8 stand in it as Python has them."""


class ProcessSpec(BaseModel):
    """A command to run on the host of the runner that submits it.

    `command` is started as it stands, without a shell. `cwd` defaults to the runner's own working
    directory, `env` adds to the runner's own environment. `stop_grace_s`: seconds between SIGTERM and
    SIGKILL. `records_dir`: where the records of a job are that jobrunner 0.1 submitted; what is submitted
    now has them in the data directory of the runner that submits it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    command: list[Word] = Field(min_length=1)
    cwd: Word | None = None
    env: dict[str, Word] = Field(default_factory=dict)
    records_dir: str | None = None
    stop_grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = DEFAULT_STOP_GRACE_S

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: list[str]) -> list[str]:
        if not command[0]:
            msg = "the command's first word is empty: name the program to run"
            raise ValueError(msg)
        if any("\0" in word for word in command):
            msg = "a word of the command holds a NUL, which no program can be given"
            raise ValueError(msg)
        for number, word in enumerate(command):
            if not _has_bytes(word):
                msg = f"word {number} of the command is not text: it holds half of a character"
                raise ValueError(msg)
        return command

    @field_validator("cwd", "records_dir")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is None:
            return None
        # Relative to what? The job may be started by another runner, from another directory.
        if not os.path.isabs(path) or "\0" in path:  # noqa: PTH117  (it stays a string)
            msg = "must be an absolute path"
            raise ValueError(msg)
        if not _has_bytes(path):
            msg = "is not a path: it holds half of a character"
            raise ValueError(msg)
        return os.path.normpath(path)

    @field_validator("records_dir")
    @classmethod
    def _check_records_dir(cls, path: str | None) -> str | None:
        # It becomes a part of the external id.
        if flaw_in(path) is not None:
            msg = "must be a path in UTF-8: set JOBRUNNER_DATA_DIR to one"
            raise ValueError(msg)
        return path

    @field_validator("env")
    @classmethod
    def _check_env(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            is_text = flaw_in(name) is None and "\0" not in value and _has_bytes(value)
            if not name or "=" in name or not is_text:
                msg = f"the environment variable {name!r} has a name or a value that no program can be given"
                raise ValueError(msg)
        return env


def _has_bytes(word: str) -> bool:
    """Whether a text has a form as bytes: an unpaired surrogate that stands for no byte has none."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def check_spec(spec: dict[str, Any]) -> ProcessSpec:
    """Return the spec as a `ProcessSpec`. Raises `SpecError` with one sentence, without any value of it."""
    try:
        return ProcessSpec.model_validate(spec)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))} {problem_of(item)}" for item in error.errors())
        raise SpecError(f"The process job cannot be run as described: {wrong}.") from None
