"""Everything that jobrunner raises.

JobrunnerError
├── UsageError              what the caller asked for cannot be done as asked
│   ├── SettingsError       a setting or a connection is wrong or missing
│   ├── SpecError           a job's description is wrong, or holds a secret
│   ├── JobNotFound         there is no job with that id
│   └── NotOwner            only the runner that owns a job may do this
├── DatabaseError
│   ├── DatabaseUnavailable the database refuses, is silent, or is not there
│   ├── DatabaseRefused     it will never take this content: do not try the same write again
│   └── SchemaError         the tables are missing, old or newer than this version
├── JobEndedBadly           what `result()` and `run()` raise
│   ├── JobFailed
│   ├── JobKilled
│   └── JobLost
├── ClaimLost               the job is no longer ours: it was taken, ended or deleted
├── Released                the runner was stopped and gave its jobs back
├── WaitTimeout             the time to wait was over before the job was
├── CodeError               a job class's own code is wrong: see its message
└── BackendError            the outside system, as a backend reports it
    ├── SubmitRejected      it said no for good: nothing was made
    ├── Throttled           it said later: nothing was done
    ├── NotSent             the request did not reach it: nothing was done
    │   └── SubmitTooLate   the moment to send had passed
    ├── BackendDefect       the backend's own code is wrong: see its message
    └── LogsUnavailable     there is no output to be read, and why
"""

from jobrunner.known_secrets import without_secrets
from jobrunner.states import JobState
from jobrunner.text import storable
from jobrunner.visible import visible


class JobrunnerError(Exception):
    """Something went wrong in jobrunner. The message is one line, whatever it quotes."""

    def __init__(self, message: str | None = None) -> None:
        # The docstring is the message of an error that has nothing to add.
        # Masked here, once for all: the words of drivers and outside systems may quote a secret.
        text = message or type(self).__doc__ or type(self).__name__
        super().__init__(visible(without_secrets(text)))


class UsageError(JobrunnerError):
    """What was asked for cannot be done as asked."""


class SettingsError(UsageError):
    """A setting is wrong or missing."""


class SpecError(UsageError):
    """The job's description is wrong."""


class JobNotFound(UsageError):
    """There is no job with that id."""


class NotOwner(UsageError):
    """Only the runner that owns a job may do this."""


class DatabaseError(JobrunnerError):
    """The database did not do what was asked."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached."""


class DatabaseRefused(DatabaseError):
    """The database refused the content of a write.

    The same values are refused again whenever they are sent: a retry is of no use.
    """


class SchemaError(DatabaseError):
    """The database's schema does not fit this version: run `jobrunner db upgrade`."""


class JobEndedBadly(JobrunnerError):
    """The job ended without success."""

    def __init__(self, message: str | None = None, *, job_id: int | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobEndedBadly):
    """The job failed."""


class JobKilled(JobEndedBadly):
    """The job was killed."""


class JobLost(JobEndedBadly):
    """The job was lost: nobody knows how it ended."""


class ClaimLost(JobrunnerError):
    """The job is no longer this runner's: it was taken, ended or deleted."""


class Released(JobrunnerError):
    """The runner was stopped and released the job: the work outside goes on.

    `signal`: the number of the signal that stopped it.
    """

    def __init__(self, message: str | None = None, *, signal: int = 15) -> None:
        super().__init__(message or "The runner was stopped and released the job: the work outside goes on.")
        self.signal = signal


class WaitTimeout(JobrunnerError):
    """The time to wait was over before the job was."""


class CodeError(JobrunnerError):
    """A job class's own code is wrong: it raised, or gave a value of a wrong type."""


class BackendError(JobrunnerError):
    """The outside system did not answer as it should."""


class SubmitRejected(BackendError):
    """The outside system refused the job for good; nothing was made."""


class Throttled(BackendError):
    """The outside system asks to come back later; nothing was done.

    `retry_after_s`: seconds to wait as the system itself said, or None.
    """

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message or "The outside system asks to come back later.")
        self.retry_after_s = retry_after_s


class NotSent(BackendError):
    """The request did not reach the outside system; nothing was done."""


class SubmitTooLate(NotSent):
    """The moment in which the job could safely be sent has passed; nothing was sent."""


class BackendDefect(BackendError):
    """The backend's own code is wrong: it raised what no backend may raise, or answered with a wrong type."""


class LogsUnavailable(BackendError):
    """There is no output to be read."""


_ENDS: dict[JobState, tuple[type[JobEndedBadly], str]] = {
    JobState.FAILED: (JobFailed, "failed"),
    JobState.KILLED: (JobKilled, "was killed"),
    JobState.LOST: (JobLost, "was lost"),
}


def words_of(error: BaseException) -> str:
    """Return an error for a person: a backend's own words as they are, others after their kind."""
    text = storable(error)
    if isinstance(error, BackendError) and text:
        return text
    return without_secrets(f"{type(error).__name__}: {text}".removesuffix(": "))


def error_of_end(job_id: int, state: JobState, message: str | None) -> JobEndedBadly | None:
    """Return the error that says how a job ended without success; None for every other state."""
    if state not in _ENDS:
        return None
    error, how = _ENDS[state]
    return error(f"Job {job_id} {how}: {message}" if message else f"Job {job_id} {how}.", job_id=job_id)
