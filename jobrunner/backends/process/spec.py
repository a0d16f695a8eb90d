"""What a process job says: the command, and where it runs."""

import os
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobrunner.errors import SpecError


class ProcessSpec(BaseModel):
    """A command to run on the host of the runner that submits it.

    `command` is started as it stands, without a shell. `cwd` defaults to the runner's own working
    directory, `env` adds to the runner's own environment. `stop_grace_s`: seconds between SIGTERM and
    SIGKILL. `records_dir`: where the records of a job are that jobrunner 0.1 submitted; what is submitted
    now has them in the data directory of the runner that submits it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    command: list[str] = Field(min_length=1)
    cwd: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    records_dir: str | None = None
    stop_grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: list[str]) -> list[str]:
        if not command[0]:
            msg = "the command's first word is empty: name the program to run"
            raise ValueError(msg)
        if any("\0" in word for word in command):
            msg = "a word of the command holds a NUL, which no program can be given"
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
        return os.path.normpath(path)

    @field_validator("env")
    @classmethod
    def _check_env(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                msg = f"the environment variable {name!r} has a name or a value that no program can be given"
                raise ValueError(msg)
        return env


def check_spec(spec: dict[str, Any]) -> ProcessSpec:
    """Return the spec as a `ProcessSpec`. Raises `SpecError` with one sentence, without any value of it."""
    try:
        return ProcessSpec.model_validate(spec)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise SpecError(f"The process job cannot be run as described: {wrong}.") from None
