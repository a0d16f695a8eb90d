"""What Armada says of a job, in our words: pure functions of its answers."""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.trouble import one_line
from jobrunner.backends.base import Observation
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.states import Phase

log = get_logger(__name__)

UNKNOWN = 5
"""What the server says of a job that it does not know, or not yet. Source: api.JobState."""

_STATES = {
    0: ("QUEUED", Phase.WAITING),
    1: ("PENDING", Phase.WAITING),  # a pod exists, and its containers are being made
    2: ("RUNNING", Phase.RUNNING),
    3: ("SUCCEEDED", Phase.SUCCEEDED),
    4: ("FAILED", Phase.FAILED),
    6: ("SUBMITTED", Phase.WAITING),
    7: ("LEASED", Phase.WAITING),
    8: ("PREEMPTED", Phase.FAILED),
    9: ("CANCELLED", Phase.CANCELLED),
    10: ("REJECTED", Phase.FAILED),
}
_WHY = {"PREEMPTED": "preempted by Armada", "REJECTED": "rejected by Armada"}
_OUT_OF_MEMORY = re.compile(r"OOM[\s_-]?Killed|\bOOM\b|(?i:out[\s_-]?of[\s_-]?memory)")
_ERROR_MOST = 4000

_unknown_states = Once()


def state_of(number: int) -> tuple[str, Phase]:
    """Return Armada's word for a state, and ours; one that is not known here waits."""
    found = _STATES.get(number)
    if found is None:
        if _unknown_states.is_new(number):
            log.warning("Armada tells a state that is not known here: the job waits", state=number)
        return f"STATE_{number}", Phase.WAITING
    return found


def needs_error(number: int) -> bool:
    """Whether the server has more to tell of a job in this state than the state."""
    return state_of(number)[1] is Phase.FAILED


def observation_of(
    key: JobKey,
    number: int,
    *,
    error: str = "",
    detail: Mapping[str, Any] | None = None,
    link: str | None = None,
) -> Observation:
    """Return what a job's state, its error and its details say together."""
    word, phase = state_of(number)
    known = dict(detail or {})
    found = {
        "job_id": key.job_id,
        "queue": key.queue,
        "job_set": key.job_set,
        **known,
        "error": error.strip()[:_ERROR_MOST],
        "lookout": link,
    }
    return Observation(
        phase=phase,
        external_state=word,
        message=_message(word, phase, error, known),
        detail={name: value for name, value in found.items() if value not in (None, "")},
        has_run=bool(known.get("started_at")),
        cause=_cause(word, phase, error),
    )


def _message(word: str, phase: Phase, error: str, detail: Mapping[str, Any]) -> str:
    if phase is Phase.FAILED:
        why = one_line(error)
        head = _WHY.get(word, "")
        return ": ".join(filter(None, (head, why))) or "failed, and Armada gave no reason"
    if phase is Phase.CANCELLED:
        reason = detail.get("cancel_reason")
        by = detail.get("cancelled_by")
        return "CANCELLED" + (f" by {by}" if by else "") + (f": {reason}" if reason else "")
    where = detail.get("cluster")
    return f"{word} on {where}" if where and phase is Phase.RUNNING else word


def _cause(word: str, phase: Phase, error: str) -> str:
    """Return why it failed, as a policy of resubmission names it."""
    if phase is not Phase.FAILED:
        return ""
    if word in _WHY:
        return word.lower()
    return "oom" if _OUT_OF_MEMORY.search(error) else ""


def detail_of(found: Any) -> dict[str, Any]:
    """Return what is worth keeping of one `JobDetails`; nothing of the pod's description is in it."""
    runs = list(found.job_runs)
    run = next((each for each in runs if each.run_id == found.latest_run_id), runs[0] if runs else None)
    kept: dict[str, Any] = {
        "namespace": found.namespace,
        "submitted_at": _moment(found, "submitted_ts"),
        "cancel_reason": one_line(found.cancel_reason),
        "cancelled_by": found.cancel_user,
        "runs": len(runs) if len(runs) > 1 else None,
    }
    if run is not None:
        kept |= {
            "cluster": run.cluster,
            "node": run.node,
            "run_id": run.run_id,
            "started_at": _moment(run, "started_ts"),
            "finished_at": _moment(run, "finished_ts"),
        }
    return {name: value for name, value in kept.items() if value not in (None, "")}


def _moment(message: Any, name: str) -> str | None:
    if not message.HasField(name):
        return None
    stamp = getattr(message, name)
    try:
        at = dt.datetime.fromtimestamp(stamp.seconds, dt.UTC) + dt.timedelta(microseconds=stamp.nanos // 1000)
    except (OverflowError, ValueError, OSError):
        return None
    return at.isoformat(timespec="milliseconds")
