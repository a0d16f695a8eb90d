"""The SubmitJob request that the options of `jobrunner start batch` describe, laid over a spec."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from jobrunner.cli.describing import ensure_no_secret
from jobrunner.cli.spec_file import check_values

_ATTEMPT_TIMEOUT_LEAST_S = 60
_REQUIRED = {"jobName": "--job-name", "jobQueue": "--job-queue", "jobDefinition": "--job-definition"}
_ADVICE = (
    "or may describe the Batch job, would see it: "
    "let the job definition take it from Secrets Manager (`secrets`)."
)
_OTHER_OVERRIDES = ("nodeOverrides", "eksPropertiesOverride", "ecsPropertiesOverride")


def merged(spec: dict[str, Any], given: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the spec with the options over it: single values in place of its own, names and lists added.

    `given`: the options by the names of their parameters. `command`: the container's. Raises click's
    `UsageError` and `SpecError`; what Batch itself takes is checked elsewhere.
    """
    single = {
        "jobName": given["job_name"],
        "jobQueue": given["job_queue"],
        "jobDefinition": given["job_definition"],
        "shareIdentifier": given["share_identifier"],
    }
    request = spec | {key: value for key, value in single.items() if value is not None}
    for option, pairs, key in (
        ("--parameter", given["parameters"], "parameters"),
        ("--tag", given["tags"], "tags"),
    ):
        if pairs:
            ensure_no_secret(option, pairs, _ADVICE)
            _table(request, key, option).update(pairs)
    _add_container(request, given["env"], command)
    if given["array_size"] is not None:
        _table(request, "arrayProperties", "--array-size")["size"] = given["array_size"]
    if given["attempts"] is not None:
        _table(request, "retryStrategy", "--attempts")["attempts"] = given["attempts"]
    if given["attempt_timeout"] is not None:
        seconds = _attempt_timeout_s(given["attempt_timeout"])
        _table(request, "timeout", "--attempt-timeout")["attemptDurationSeconds"] = seconds
    _add_dependencies(request, given["depends_on"])
    _ensure_complete(request)
    check_values(request, "the request")  # an argument need not be UTF-8
    return request


def _table(within: dict[str, Any], key: str, option: str) -> dict[str, Any]:
    """Return the mapping under a key of the spec, made where it is missing."""
    value = within.get(key)
    if value is None:
        value = within[key] = {}
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} cannot be added to the spec, because its {key} is no mapping.")
    return value


def _mappings(within: dict[str, Any], key: str, option: str) -> list[Any]:
    value = within.get(key)
    if value is None:
        value = within[key] = []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise click.UsageError(
            f"{option} cannot be added to the spec, because its {key} is no list of mappings."
        )
    return value


def _add_container(request: dict[str, Any], env: Sequence[tuple[str, str]], command: Sequence[str]) -> None:
    if not env and not command:
        return
    option = "--env" if env else "CMD"
    other = next((key for key in _OTHER_OVERRIDES if request.get(key)), None)
    if other is not None:
        raise click.UsageError(
            f"{option} is for a job of one container, and the spec has {other}: write it there."
        )
    overrides = _table(request, "containerOverrides", option)
    if env:
        ensure_no_secret("--env", env, _ADVICE)
        given = dict(env)
        variables = [
            item | {"value": given.pop(item["name"])} if item.get("name") in list(given) else item
            for item in _mappings(overrides, "environment", option)
        ]
        added = [{"name": name, "value": value} for name, value in given.items()]
        overrides["environment"] = variables + added
    if command:
        overrides["command"] = list(command)


def _attempt_timeout_s(seconds: float) -> int:
    if seconds < _ATTEMPT_TIMEOUT_LEAST_S:
        raise click.UsageError(
            f"--attempt-timeout of {seconds:g} s is less than AWS Batch can keep: give 60s or more."
        )
    return math.ceil(seconds)


def _add_dependencies(request: dict[str, Any], job_ids: Sequence[str]) -> None:
    if not job_ids:
        return
    if not all(job_id.strip() for job_id in job_ids):
        raise click.UsageError("--depends-on needs the id of a Batch job.")
    dependencies = _mappings(request, "dependsOn", "--depends-on")
    known = [item.get("jobId") for item in dependencies]
    dependencies += [{"jobId": job_id} for job_id in dict.fromkeys(job_ids) if job_id not in known]


def _ensure_complete(request: Mapping[str, Any]) -> None:
    missing = [
        f"{option} ({key} in the spec)" for key, option in _REQUIRED.items() if request.get(key) in (None, "")
    ]
    if missing:
        raise click.UsageError(f"A Batch job needs {', '.join(missing)}.")
