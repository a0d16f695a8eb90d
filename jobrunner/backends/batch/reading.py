"""What AWS Batch says of a job, in our words: pure functions of one entry of DescribeJobs."""

import datetime as dt
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobrunner.backends.base import Observation
from jobrunner.backends.batch.shapes import fitting_job
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.states import Phase

log = get_logger(__name__)

REASON_PREFIX = "jobrunner: "
"""What the reason of every termination of ours begins with, so that any runner knows it again."""

_PHASES = {
    "SUBMITTED": Phase.WAITING,
    "PENDING": Phase.WAITING,
    "RUNNABLE": Phase.WAITING,
    "STARTING": Phase.WAITING,
    "RUNNING": Phase.RUNNING,
    "SUCCEEDED": Phase.SUCCEEDED,
    "FAILED": Phase.FAILED,
}
_BEFORE_RUNNING = frozenset({"SUBMITTED", "PENDING", "RUNNABLE"})
_BY_SIGNAL = 128  # a shell's exit code for a command that a signal ended is 128 and its number

_unknown_words = Once()


def observation_of(job: Mapping[str, Any]) -> Observation:
    """Return what one entry of DescribeJobs says; what is not as AWS documents it is left out."""
    try:
        return _observation_of(job)
    except (TypeError, AttributeError, ValueError, LookupError, OverflowError):
        # Never seen of AWS itself, but of stand-ins for it: only what is odd is lost, not the job.
        return _observation_of(fitting_job(job))


def _observation_of(job: Mapping[str, Any]) -> Observation:
    status = str(job.get("status") or "")
    phase = _phase_of(job, status)
    return Observation(
        phase=phase,
        external_state=status,
        message=_message_of(job, status, phase),
        detail=_detail_of(job),
        has_run=_has_run(job),
        cause=_cause_word(job) if phase is Phase.FAILED else "",
    )


def _cause_word(job: Mapping[str, Any]) -> str:
    """Return the cause of a failure by which a job may be submitted again: `oom`, `preempted`, or none."""
    cause = _cause_of(job)
    if "OutOfMemory" in cause:
        return "oom"
    # How Batch tells of a spot instance that was taken away, and of any other host that went.
    return "preempted" if cause.startswith("Host EC2") else ""


def attempts_of(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a job's attempts that are told of, oldest first, whatever it runs on."""
    return list(job.get("attempts") or job.get("eksAttempts") or ())


def _ended(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [attempt for attempt in attempts_of(job) if attempt.get("stoppedAt")]


def containers_of(job_or_attempt: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the containers of a job or of one of its attempts: one, or those of its ECS task or EKS pod."""
    container = job_or_attempt.get("container")
    if container:
        yield container
    ecs = job_or_attempt.get("ecsProperties") or {}
    for task in job_or_attempt.get("taskProperties") or ecs.get("taskProperties") or ():
        yield from task.get("containers") or ()
    eks = (job_or_attempt.get("eksProperties") or {}).get("podProperties") or {}
    for kind in ("initContainers", "containers"):
        yield from job_or_attempt.get(kind) or eks.get(kind) or ()


def _phase_of(job: Mapping[str, Any], status: str) -> Phase:
    phase = _PHASES.get(status)
    if phase is None:
        if _unknown_words.is_new(status):
            log.warning("AWS Batch says a word that is not known here: the job waits", status=status)
        return Phase.WAITING
    if phase is Phase.FAILED and _is_cancelled(job):
        return Phase.CANCELLED
    if status == "PENDING" and _has_run(job):  # how the parent of an array looks while its children run
        return Phase.RUNNING
    return phase


def _is_cancelled(job: Mapping[str, Any]) -> bool:
    reason = str(job.get("statusReason") or "")
    return bool(job.get("isTerminated") or job.get("isCancelled")) or reason.startswith(REASON_PREFIX)


def _has_run(job: Mapping[str, Any]) -> bool:
    summary = _summary(job)
    if any(count and status not in _BEFORE_RUNNING for status, count in summary.items()):
        return True
    return bool(job.get("startedAt") or attempts_of(job))


def _summary(job: Mapping[str, Any]) -> dict[str, int]:
    """Return how many children of an array are where; empty for every other job."""
    found = (job.get("arrayProperties") or {}).get("statusSummary")
    if not found:
        return {}
    return {str(status): int(count) for status, count in found.items() if count}


# --- the one sentence ----------------------------------------------------------------------------


def _message_of(job: Mapping[str, Any], status: str, phase: Phase) -> str:
    if phase is Phase.CANCELLED and str(job.get("statusReason") or "").startswith(REASON_PREFIX):
        # Whoever asked for it knows the reason, and the row tells it.
        return ": ".join(filter(None, ("terminated", _cause_of_one(_last_words(job, attempts_of(job))))))
    if phase in {Phase.FAILED, Phase.CANCELLED}:
        return _cause_of(job)
    parts = [_array_words(job) or status, _attempt_words(job, status), _node_words(job)]
    reason = str(job.get("statusReason") or "") if phase is Phase.WAITING else ""
    head = ", ".join(filter(None, parts))
    return f"{head}: {reason}" if reason else head


def _array_words(job: Mapping[str, Any]) -> str:
    summary = _summary(job)
    size = (job.get("arrayProperties") or {}).get("size")
    if not size or not summary:
        return ""
    failed = summary.get("FAILED", 0)
    return f"{summary.get('SUCCEEDED', 0)} of {size} done" + (f", {failed} failed" if failed else "")


def _node_words(job: Mapping[str, Any]) -> str:
    nodes = (job.get("nodeProperties") or {}).get("numNodes")
    return f"main node of {nodes}" if nodes and nodes > 1 else ""


def _attempt_words(job: Mapping[str, Any], status: str) -> str:
    """Return which attempt this is, from the second on: a retry goes back to RUNNABLE."""
    ended = _ended(job)
    if not ended or _PHASES.get(status, Phase.WAITING).is_final:
        return ""
    most = (job.get("retryStrategy") or {}).get("attempts")
    words = f"attempt {len(ended) + 1}" + (f" of {most}" if most else "")
    why = _cause_of_one(ended[-1])
    return f"{words} after {why}" if why else words


def _cause_of(job: Mapping[str, Any]) -> str:
    """Return why a job failed, as one sentence."""
    ended = attempts_of(job)
    reason = job.get("statusReason") or (ended[-1].get("statusReason") if ended else None)
    cause = _cause_of_one({"statusReason": reason, **_last_words(job, ended)})
    children = _array_words(job)
    if children:
        cause = f"{cause} ({children})" if cause else children
    if len(ended) > 1:
        cause = f"{cause} (after {len(ended)} attempts)"
    return cause or "failed, and AWS Batch gave no reason"


def _last_words(job: Mapping[str, Any], ended: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what tells how the last attempt's containers ended: the job's own words, or the attempt's."""
    own = [each for each in containers_of(job) if each.get("exitCode") is not None or each.get("reason")]
    if own or not ended:
        return {"containers": own}
    return {"containers": list(containers_of(ended[-1]))}


def _cause_of_one(attempt: Mapping[str, Any]) -> str:
    containers = list(containers_of(attempt))
    guilty = next((each for each in containers if each.get("exitCode")), None) or next(
        (each for each in containers if each.get("reason")), {}
    )
    reason = str(attempt.get("statusReason") or "").rstrip(".")
    code = guilty.get("exitCode")
    exited = ""
    if code:
        name = guilty.get("name") if len(containers) > 1 else None
        exited = f"exit code {_code(code)}" + (f" in container {name}" if name else "")
    words = dict.fromkeys((str(guilty.get("reason") or "").rstrip("."), reason))
    return ": ".join(filter(None, (exited, "; ".join(filter(None, words)))))


def _code(code: int) -> str:
    if code > _BY_SIGNAL:
        try:
            return f"{code} ({signal.Signals(code - _BY_SIGNAL).name})"
        except ValueError:
            return str(code)
    return str(code)


# --- what the row keeps --------------------------------------------------------------------------


def _detail_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person asks for; no environment, no command, no parameter is in it."""
    containers = list(containers_of(job))
    found = {
        "job_name": job.get("jobName"),
        "queue": _last_part(job.get("jobQueue")),
        "definition": _last_part(job.get("jobDefinition")),
        "status_reason": job.get("statusReason"),
        "exit_code": _first(containers, "exitCode"),
        "reason": _first(containers, "reason"),
        "attempts": [_attempt_detail(each) for each in attempts_of(job)],
        "log_streams": _streams(containers),
        "array": _array_detail(job),
        "nodes": _node_detail(job),
        "created_at": _moment(job.get("createdAt")),
        "started_at": _moment(job.get("startedAt")),
        "stopped_at": _moment(job.get("stoppedAt")),
        "console": _console(job),
    }
    return _without_nothing(found)


def _array_detail(job: Mapping[str, Any]) -> dict[str, Any]:
    array = job.get("arrayProperties")
    if not array:
        return {}
    found = {"size": array.get("size"), "index": array.get("index"), "summary": _summary(job)}
    return _without_nothing(found)


def _node_detail(job: Mapping[str, Any]) -> dict[str, Any]:
    nodes = job.get("nodeProperties")
    if not nodes:
        return {}
    return _without_nothing({"count": nodes.get("numNodes"), "main": nodes.get("mainNode")})


def _attempt_detail(attempt: Mapping[str, Any]) -> dict[str, Any]:
    containers = list(containers_of(attempt))
    found = {
        "status_reason": attempt.get("statusReason"),
        "exit_code": _first(containers, "exitCode"),
        "reason": _first(containers, "reason"),
        "log_streams": _streams(containers),
        "pod": attempt.get("podName"),
        "started_at": _moment(attempt.get("startedAt")),
        "stopped_at": _moment(attempt.get("stoppedAt")),
    }
    return _without_nothing(found)


def _first(containers: Sequence[Mapping[str, Any]], key: str) -> Any:
    """Return the value of the container that failed, else of the first that has one."""
    if len(containers) == 1:
        return containers[0].get(key)
    values = [each[key] for each in containers if each.get(key) is not None]
    return next(filter(None, values), values[0] if values else None)


def _streams(containers: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["logStreamName"] for each in containers if each.get("logStreamName")]


def _without_nothing(found: Mapping[str, Any]) -> dict[str, Any]:
    # An exit code of 0 says something. Thousands of details a look: comparing with "", [] and {} is slow.
    return {key: value for key, value in found.items() if value or value == 0}


def _last_part(name: object) -> str | None:
    """Return `queue` of `arn:aws:batch:eu-west-1:123456789012:job-queue/queue`."""
    return str(name).rpartition("/")[2] if name else None


def moment_of(milliseconds: object) -> dt.datetime | None:
    """Return the time of AWS's milliseconds since 1970; None where they are none."""
    if not isinstance(milliseconds, int) or milliseconds <= 0:
        return None
    try:
        return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return None


def _moment(milliseconds: object) -> str | None:
    at = moment_of(milliseconds)
    return None if at is None else at.isoformat(timespec="milliseconds")


def _console(job: Mapping[str, Any]) -> str | None:
    """Return the job's page, where it is Amazon's public cloud."""
    parts = str(job.get("jobArn") or "").split(":")
    if parts[:3] != ["arn", "aws", "batch"]:
        return None
    region = parts[3]
    return (
        f"https://{region}.console.aws.amazon.com/batch/home?region={region}#jobs/detail/{job.get('jobId')}"
    )
