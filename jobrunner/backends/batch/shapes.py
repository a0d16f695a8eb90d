"""Answers of AWS held against boto3's own description of them: what does not fit is left out.

botocore checks no type of what it reads, and DescribeJobs is read past it for speed. So an entry may hold
anything; one that cannot be read as it is is read again without what its description does not allow.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

_NOTHING = object()
_READ_BY_BOTOCORE = frozenset({"timestamp", "blob"})  # which has made objects of them


def fitting_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of DescribeJobs without each part that is not of the type that AWS documents."""
    fitted: dict[str, Any] = _fitting(job, _job_shape())
    return fitted


def fitting_answer(answer: Mapping[str, Any], output_shape: Any) -> dict[str, Any]:
    """Return the answer of an operation without each part that is not of the type that AWS documents."""
    fitted: dict[str, Any] = _fitting(answer, output_shape)
    return fitted


def names_a_job(entry: object) -> bool:
    """Whether an answer, or an entry of a list, has the id of a job."""
    return isinstance(entry, Mapping) and isinstance(entry.get("jobId"), str) and bool(entry["jobId"])


def names_jobs(entries: object) -> bool:
    """Whether it is a list of jobs, each with its id."""
    return isinstance(entries, list) and all(map(names_a_job, entries))


@cache
def _job_shape() -> Any:
    import botocore.session

    operation = botocore.session.get_session().get_service_model("batch").operation_model("DescribeJobs")
    return operation.output_shape.members["jobs"].member


def _fitting(value: object, shape: Any) -> Any:
    kind = shape.type_name
    if kind == "list":
        return _fitting_items(value, shape.member)
    if kind in {"structure", "map"}:
        return _fitting_members(value, shape)
    return value if kind in _READ_BY_BOTOCORE or _is_scalar(value, kind) else _NOTHING


def _fitting_items(value: object, shape: Any) -> Any:
    if not isinstance(value, list):
        return _NOTHING
    items = [_fitting(item, shape) for item in value]
    return [item for item in items if item is not _NOTHING]


def _fitting_members(value: object, shape: Any) -> Any:
    if not isinstance(value, Mapping):
        return _NOTHING
    if shape.type_name == "map":
        found = {key: _fitting(item, shape.value) for key, item in value.items() if isinstance(key, str)}
    else:
        found = {key: _fitting(value[key], shape.members[key]) for key in shape.members if key in value}
    return {key: item for key, item in found.items() if item is not _NOTHING}


def _is_scalar(value: object, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.maxsize
    return is_whole or (kind in {"float", "double"} and isinstance(value, float))
