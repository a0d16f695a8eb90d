"""What a Batch job says: a SubmitJob request, held against boto3's own description of it."""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from jobrunner.errors import SpecError
from jobrunner.extras import require
from jobrunner.findings import named, no_text

TOKEN_TAG = "jobrunner-token"  # noqa: S105  # the name of a tag
"""The tag that carries a submission's token, beside the end of the job's name."""

_NAME_MOST = 128  # source: SubmitJob, jobName
_TAGS_MOST = 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ARRAY_LEAST, _ARRAY_MOST = 2, 10_000
_ATTEMPTS_MOST = 10
_TIMEOUT_LEAST_S = 60


class BatchSpec(BaseModel):
    """A SubmitJob request, with the names that AWS gives them (`jobName`, `containerOverrides` …)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    request: dict[str, Any]

    @model_validator(mode="after")
    def _is_a_request(self) -> "BatchSpec":
        wrong = next(_mistakes(self.request), None)
        if wrong is not None:
            raise ValueError(wrong)
        return self


def check_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a SubmitJob request that is right as far as can be told here.

    Raises `SpecError`, which names the key that is wrong, and `UsageError` where boto3 is not installed.
    """
    try:
        return BatchSpec(request=dict(request)).request
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpecError(f"The Batch job cannot be submitted as described: {told}.") from None


def with_token(request: Mapping[str, Any], token: str) -> dict[str, Any]:
    """Return the request under a name, and with a tag, by which its job can be found again."""
    tags = {**(request.get("tags") or {}), TOKEN_TAG: token}
    return {**request, "jobName": name_with_token(request["jobName"], token), "tags": tags}


def name_with_token(job_name: str, token: str) -> str:
    """Return the job's name in Batch: what fits of its own, and the token."""
    return f"{job_name[: _NAME_MOST - len(token) - 1]}-{token}"


@cache
def _submit_shape() -> Any:
    require("boto3", "aws", "AWS Batch")
    import botocore.session

    return botocore.session.get_session().get_service_model("batch").operation_model("SubmitJob").input_shape


def _mistakes(request: Mapping[str, Any]) -> Iterator[str]:
    yield from _of_shape(request, _submit_shape(), "")
    yield from _of_rules(request)


def _of_shape(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Find what boto3 itself would refuse, and say it by the path of the key."""
    kind = shape.type_name
    if kind == "structure":
        yield from _of_structure(value, shape, path)
    elif kind == "list":
        if not isinstance(value, list | tuple):
            yield f"{path} must be a list, and is {named(value)}"
            return
        for index, item in enumerate(value):
            yield from _of_shape(item, shape.member, f"{path}[{index}]")
    elif kind == "map":
        if not isinstance(value, Mapping):
            yield f"{path} must be a mapping, and is {named(value)}"
            return
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"the key {key!r} in {path} is {named(key)}: put it in quotes"
            yield from _of_shape(item, shape.value, f"{path}.{key}")
    else:
        yield from _of_scalar(value, shape, path)


def _of_structure(value: Any, shape: Any, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{path or 'the request'} must be a mapping, and is {named(value)}"
        return
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in shape.members:
            yield _unknown(f"{prefix}{key}", str(key), list(shape.members))
    for key in shape.required_members:
        if value.get(key) is None:
            yield f"{prefix}{key} is missing"
    for key, item in value.items():
        yield from _of_shape(item, shape.members[key], f"{prefix}{key}")


def _of_scalar(value: Any, shape: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if kind == "string":
        if not isinstance(value, str):
            # Not turned into one: YAML has made another value of `0755`, `1.10` or `yes` by now.
            yield f"{path} {no_text(value)}"
        elif shape.enum and value not in shape.enum:
            yield f"{path} is {value!r}, and must be one of {', '.join(shape.enum)}"
    elif kind == "boolean":
        if not isinstance(value, bool):
            yield f"{path} must be true or false, and is {named(value)}"
    elif kind in {"integer", "long"}:
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{path} must be a whole number, and is {named(value)}"
    elif not isinstance(value, int | float) or isinstance(value, bool):
        yield f"{path} must be a number, and is {named(value)}"


def _unknown(path: str, key: str, known: list[str]) -> str:
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower().replace("_", ""), lowered, n=1)
    hint = f"did you mean {lowered[close[0]]!r}?" if close else f"known are {', '.join(known)}"
    return f"there is no key {path!r} ({hint})"


def _of_rules(request: Mapping[str, Any]) -> Iterator[str]:
    """Find what only Batch would refuse, where its documentation is plain about it."""
    name = request["jobName"]
    if not _NAME.fullmatch(name) or len(name) > _NAME_MOST:
        yield (
            f"jobName is {name!r}: it begins with a letter or digit, has letters, digits, - and _, "
            f"and at most {_NAME_MOST} of them"
        )
    for key in ("jobQueue", "jobDefinition"):
        if not request[key].strip():
            yield f"{key} is empty"
    size = (request.get("arrayProperties") or {}).get("size")
    if size is not None and not _ARRAY_LEAST <= size <= _ARRAY_MOST:
        yield f"arrayProperties.size is {size}: an array has {_ARRAY_LEAST} to {_ARRAY_MOST} children"
    attempts = (request.get("retryStrategy") or {}).get("attempts")
    if attempts is not None and not 1 <= attempts <= _ATTEMPTS_MOST:
        yield f"retryStrategy.attempts is {attempts}: there are 1 to {_ATTEMPTS_MOST}"
    seconds = (request.get("timeout") or {}).get("attemptDurationSeconds")
    if seconds is not None and seconds < _TIMEOUT_LEAST_S:
        yield f"timeout.attemptDurationSeconds is {seconds}: the least is {_TIMEOUT_LEAST_S}"
    tags = request.get("tags") or {}
    if TOKEN_TAG in tags:
        yield f"tags.{TOKEN_TAG} is jobrunner's own tag"
    if len(tags) >= _TAGS_MOST:
        yield f"tags has {len(tags)} of them: Batch takes {_TAGS_MOST}, and one is jobrunner's own"
