"""What Airbyte says of a job, in our words: pure functions of one JobResponse."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jobrunner.backends.airbyte.trouble import shown
from jobrunner.backends.base import Observation
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.redaction import mask_url
from jobrunner.states import Phase

log = get_logger(__name__)

_PHASES = {
    "pending": Phase.WAITING,
    "queued": Phase.WAITING,
    "running": Phase.RUNNING,
    "incomplete": Phase.WAITING,  # an attempt failed, and another one follows
    "succeeded": Phase.SUCCEEDED,
    "failed": Phase.FAILED,
    "cancelled": Phase.CANCELLED,
}
OPEN_STATUSES = tuple(status for status, phase in _PHASES.items() if not phase.is_final)
"""In which a job may stand that is still watched."""

_BEGUN = frozenset({"running", "incomplete"})
_KINDS_ALIKE = ({"reset", "clear"},)  # newer servers do a reset as a clear
_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_MILLISECONDS_FROM = 10**11
_MESSAGE_MOST = 1000
_RAW_MOST = 10_000  # of a message that may be a whole stack trace
_FAILURES_MOST = 5
_TEXT_MOST = 200
_NUMBERS = range(2**63)  # what databases and JSON readers of others can hold

_unknown_words = Once()


def _moment(value: object) -> dt.datetime | None:
    """Read a time leniently: without seconds, with nanoseconds, or as a number; None where it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value / 1000 if value >= _MILLISECONDS_FROM else value
        try:
            return dt.datetime.fromtimestamp(seconds, dt.UTC)
        except (ValueError, OverflowError, OSError):
            return None
    if not isinstance(value, str):
        return None
    try:
        found = dt.datetime.fromisoformat(value.strip())
        return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    try:
        found = int(value)
    except (ValueError, OverflowError):
        return None
    return found if found in _NUMBERS else None


def _text(value: object) -> str:
    return shown(value).strip()[:_TEXT_MOST] if isinstance(value, str) else ""


_Text = Annotated[str, BeforeValidator(_text)]
_Number = Annotated[int | None, BeforeValidator(_number)]
_Id = Annotated[int, Field(gt=0), BeforeValidator(_number)]


class Job(BaseModel):
    """One JobResponse, read leniently: only the id and the status must be there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: _Id = Field(alias="jobId")
    status: Annotated[_Text, Field(min_length=1)]
    kind: _Text = Field("", alias="jobType")
    connection_id: _Text = Field("", alias="connectionId")
    started: Annotated[dt.datetime | None, BeforeValidator(_moment)] = Field(None, alias="startTime")
    updated: Annotated[dt.datetime | None, BeforeValidator(_moment)] = Field(None, alias="lastUpdatedAt")
    duration: _Text = ""
    rows: _Number = Field(None, alias="rowsSynced")
    bytes: _Number = Field(None, alias="bytesSynced")

    @property
    def phase(self) -> Phase:
        """What its status means; a word that is not known waits, and is logged once."""
        phase = _PHASES.get(self.status.lower())
        if phase is None:
            if _unknown_words.is_new(self.status):
                log.warning("Airbyte says a word that is not known here: the job waits", status=self.status)
            return Phase.WAITING
        return phase

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return self.phase.is_final

    @property
    def has_begun(self) -> bool:
        """Whether its status tells that work was done."""
        return self.status.lower() in _BEGUN

    def is_of_kind(self, kind: str) -> bool:
        """Whether it is what was asked for by this jobType."""
        own = self.kind.lower()
        return own == kind or any({own, kind} <= alike for alike in _KINDS_ALIKE)


def job_of(data: object) -> Job | None:
    """Read one JobResponse; None where it is none."""
    try:
        return Job.model_validate(data)
    except ValidationError:
        return None


def id_of(data: object) -> int | None:
    """Read the id of one JobResponse, whatever else is in it; None where there is none."""
    return _number(data.get("jobId")) or None if isinstance(data, Mapping) else None


@dataclass(frozen=True, slots=True)
class Failure:
    """One reason for a failure, as the config API tells it."""

    origin: str
    kind: str
    message: str

    @property
    def words(self) -> str:
        """The reason as one sentence."""
        where = ", ".join(filter(None, (self.origin, self.kind)))
        return f"{self.message} ({where})" if where else self.message


def failures_of(answer: object) -> list[Failure]:
    """Return why a job's last attempt failed, out of the config API's answer; fields may be null."""
    attempts = answer.get("attempts") if isinstance(answer, Mapping) else None
    for entry in reversed(attempts if isinstance(attempts, list) else []):
        attempt = entry.get("attempt", entry) if isinstance(entry, Mapping) else None
        summary = attempt.get("failureSummary") if isinstance(attempt, Mapping) else None
        found = summary.get("failures") if isinstance(summary, Mapping) else None
        entries = found if isinstance(found, list) else []
        reasons = [_failure(each) for each in entries if isinstance(each, Mapping)]
        if reasons:
            return [reason for reason in reasons if reason.message][:_FAILURES_MOST]
    return []


def _failure(found: Mapping[str, Any]) -> Failure:
    told = (found.get(key) for key in ("externalMessage", "internalMessage"))
    message = next((each for each in told if isinstance(each, str) and each.strip()), "")
    return Failure(
        _text(found.get("failureOrigin")),
        _text(found.get("failureType")),
        mask_url(" ".join(shown(message[:_RAW_MOST]).split()))[:_MESSAGE_MOST],
    )


def observation_of(
    job: Job,
    *,
    has_run: bool = False,
    page: str | None = None,
    failures: Sequence[Failure] = (),
    note: str = "",
) -> Observation:
    """Return what is known of a job. `note`: what a person must know besides."""
    message = _message_of(job, failures)
    return Observation(
        phase=job.phase,
        external_state=job.status,
        message=f"{message}; {note}" if note else message,
        detail=_detail_of(job, page, failures, note),
        has_run=has_run or job.has_begun,
    )


def _message_of(job: Job, failures: Sequence[Failure]) -> str:
    phase = job.phase
    if phase is Phase.SUCCEEDED:
        amounts = _amounts(job)
        return f"succeeded: {amounts}" if amounts else "succeeded"
    if phase is Phase.FAILED:
        if failures:
            return f"failed: {'; '.join(each.words for each in failures)}"
        return "failed, and Airbyte gave no reason"
    return job.status


def _amounts(job: Job) -> str:
    seconds = duration_s(job.duration)
    parts = [
        f"{job.rows:,} rows" if job.rows is not None else "",
        _size(job.bytes) if job.bytes is not None else "",
        f"in {seconds:g} s" if seconds is not None else "",
    ]
    return ", ".join(filter(None, parts)).replace(", in ", " in ")


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:  # noqa: PLR2004
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"


def duration_s(text: str) -> float | None:
    """Return the seconds of an ISO 8601 duration such as PT1H2M3S; None where it is none."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        return None
    parts = {name: float(value) for name, value in found.groupdict().items() if value}
    try:
        return dt.timedelta(**parts).total_seconds()
    except OverflowError:
        return None


def _detail_of(job: Job, page: str | None, failures: Sequence[Failure], note: str) -> dict[str, Any]:
    found = {
        "airbyte_connection_id": job.connection_id,
        "airbyte_job_type": job.kind,
        "rows": job.rows,
        "bytes": job.bytes,
        "duration_s": duration_s(job.duration),
        "created_at": _shown(job.started),
        "updated_at": _shown(job.updated),
        "failures": [
            {"origin": each.origin, "type": each.kind, "message": each.message} for each in failures
        ],
        "note": note,
        "page": page,
    }
    return {key: value for key, value in found.items() if value is not None and value not in ("", [])}


def _shown(moment: dt.datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment is not None else None
