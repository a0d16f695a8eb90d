"""`BatchMonitorJob`: a job of AWS Batch."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from jobrunner.errors import SpecError, UsageError
from jobrunner.models.monitor_job import MonitorJob

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}(:\d+|#\d+)?")
_LABEL_MOST = 250


class BatchMonitorJob(MonitorJob):
    """A job of AWS Batch: submitted once, watched 100 a call, cancelled by TerminateJob.

    The arguments are those of SubmitJob, with their values as AWS has them
    (`container_overrides={"environment": [{"name": "N", "value": "1"}]}`). `attempt_timeout`: seconds
    that Batch gives one attempt, at least 60; `timeout`, as for every job, is the deadline for the
    whole. `start_timeout`: seconds after which a job that never started is cancelled. A job of somebody
    else is watched by `attach`. Raises `SpecError`, which names the key that is wrong, and `UsageError`
    where boto3 is not installed.
    """

    backend_kind: ClassVar[str] = "batch"
    resubmit_causes: ClassVar[Sequence[str] | None] = ("preempted", "oom")

    def __init__(
        self,
        job_name: str | None = None,
        job_queue: str | None = None,
        job_definition: str | None = None,
        *,
        parameters: Mapping[str, str] | None = None,
        container_overrides: Mapping[str, Any] | None = None,
        array_properties: Mapping[str, Any] | None = None,
        node_overrides: Mapping[str, Any] | None = None,
        ecs_properties_override: Mapping[str, Any] | None = None,
        eks_properties_override: Mapping[str, Any] | None = None,
        consumable_resource_properties_override: Mapping[str, Any] | None = None,
        depends_on: Sequence[Mapping[str, str]] | None = None,
        retry_strategy: Mapping[str, Any] | None = None,
        attempt_timeout: float | None = None,
        share_identifier: str | None = None,
        scheduling_priority_override: int | None = None,
        propagate_tags: bool | None = None,
        tags: Mapping[str, str] | None = None,
        executor: Any = None,
        heartrate: float | None = None,
        external_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "jobName": job_name,
            "jobQueue": job_queue,
            "jobDefinition": job_definition,
            "parameters": parameters,
            "containerOverrides": container_overrides,
            "arrayProperties": array_properties,
            "nodeOverrides": node_overrides,
            "ecsPropertiesOverride": ecs_properties_override,
            "eksPropertiesOverride": eks_properties_override,
            "consumableResourcePropertiesOverride": consumable_resource_properties_override,
            "dependsOn": depends_on,
            "retryStrategy": retry_strategy,
            "timeout": _attempt_timeout(attempt_timeout),
            "shareIdentifier": share_identifier,
            "schedulingPriorityOverride": scheduling_priority_override,
            "propagateTags": propagate_tags,
            "tags": tags,
        }
        request = {key: value for key, value in given.items() if value is not None}
        if external_id is not None:
            if request:
                raise UsageError(
                    f"The job {external_id} is there already, and is only watched: {next(iter(request))} "
                    "would describe a new one."
                )
            _check_id(external_id)
        else:
            from jobrunner.backends.batch.spec import check_request

            request = check_request(request)
        kwargs.setdefault("name", (job_name or external_id or "")[:_LABEL_MOST])
        super().__init__(executor, heartrate, spec=request, external_id=external_id, **kwargs)

    @classmethod
    def attach(cls, external_id: str, **options: Any) -> Self:
        """Return a job that watches the Batch job with this jobId, which somebody else submitted.

        It obeys kills and timeouts as any other. `options`: those of every job. Raises `UsageError`.
        """
        return cls(external_id=external_id, **options)

    @classmethod
    def from_request(cls, request: Mapping[str, Any], **options: Any) -> Self:
        """Return the job that a whole SubmitJob request describes (`{"jobName": …, "jobQueue": …}`).

        `options`: those of every job. Raises `SpecError`.
        """
        from jobrunner.backends.batch.spec import check_request

        checked = check_request(request)
        attempt = checked.pop("timeout", None) or {}
        arguments = {_snake(key): value for key, value in checked.items()}
        return cls(**arguments, attempt_timeout=attempt.get("attemptDurationSeconds"), **options)

    def log_id(self, *, child: int | None = None, node: int | None = None) -> str:
        """Return the id whose output is read: the job's own, an array's child's, or a node's."""
        if child is not None and node is not None:
            raise UsageError("A Batch job has children or nodes, never both: give --child or --node.")
        own = self.external_id or ""
        if child is not None:
            self._check_part("child", child, "children", self._known("arrayProperties", "size", "array"))
            return f"{own}:{child}"
        if node is not None:
            self._check_part("node", node, "nodes", self._known("nodeOverrides", "numNodes", "nodes"))
            return f"{own}#{node}"
        return own

    def _known(self, key: str, asked_as: str, seen_as: str) -> int | None:
        """Return how many parts of a kind there are; 0: none were seen; None: that is not known."""
        asked = ((self.spec or {}).get(key) or {}).get(asked_as)
        if self.detail is None:
            return asked
        seen = self.detail.get(seen_as) or {}
        return seen.get("size") or seen.get("count") or asked or 0

    @staticmethod
    def _check_part(what: str, number: int, plural: str, count: int | None) -> None:
        if count == 0:
            raise UsageError(f"The job has no {plural}: leave --{what} away.")
        if count is not None and not 0 <= number < count:
            raise UsageError(f"The job has {count} {plural}: give --{what} 0 to --{what} {count - 1}.")


def _attempt_timeout(seconds: float | None) -> dict[str, int] | None:
    if seconds is None:
        return None
    if not math.isfinite(seconds):
        raise SpecError(f"An attempt timeout of {seconds} s cannot be kept: give seconds, at least 60.")
    return {"attemptDurationSeconds": math.ceil(seconds)}  # Batch counts whole seconds


def _check_id(external_id: str) -> None:
    if not _JOB_ID.fullmatch(external_id):
        raise UsageError(
            f"{external_id!r} is no jobId of AWS Batch, such as 876da822-4198-45f2-a252-6cea32512ea8; a "
            "child's ends with :N, a node's with #N."
        )


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower()
