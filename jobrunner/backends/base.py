"""The one boundary to the outside: what a backend is, and the values that cross it."""

import asyncio
import datetime as dt
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jobrunner.clock import monotonic_s
from jobrunner.errors import SubmitTooLate
from jobrunner.states import Phase


@dataclass(frozen=True, slots=True)
class Observation:
    """What the outside system says of one job.

    `external_state` is its own word, `phase` ours for it. `detail` is a whitelist of fields worth
    keeping in the row: never an environment, a command line or a secret. `has_run`: the work started
    at some time, where the phase alone does not tell (a retry waits once more). `cause`: in a word why
    failed work failed, by which a job may be submitted again (`preempted`, `oom`, `rejected`).
    """

    phase: Phase
    external_state: str
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    has_run: bool = False
    cause: str = ""

    @property
    def has_started(self) -> bool:
        """Whether the work has ever started."""
        return self.has_run or self.phase is not Phase.WAITING


@dataclass(frozen=True, slots=True)
class Gone:
    """The outside system answered, and does not know the id.

    `certain`: it can never come back, so that no patience is owed (a host that restarted).
    """

    reason: str = "the outside system does not know it"
    certain: bool = False


@dataclass(frozen=True, slots=True)
class RemoteError:
    """No answer for one id. Trouble in watching is not trouble in the job."""

    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The submission happened: this is its job."""

    external_id: str


@dataclass(frozen=True, slots=True)
class Absent:
    """The submission did not happen, and a late first one can no longer succeed."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """It cannot be told yet.

    `retry_at`: when to ask again, by the database's clock; None: it can never be told, and a
    person must settle it. `reason` is the doubt in one sentence.
    """

    retry_at: dt.datetime | None
    reason: str = "it cannot be told whether the submission happened"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's output, without its line end. `source` names the stream where there are several."""

    text: str
    at: dt.datetime | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a backend may take, in seconds, before a runner draws a conclusion.

    `call_s` bounds one call. `appear_s` is how long a job may stay unknown after its submission,
    `vanish_s` how long one that was seen may be gone, before it ends as `lost`.
    """

    call_s: float = 60.0
    appear_s: float = 300.0
    vanish_s: float = 900.0


@runtime_checkable
class Backend(Protocol):
    """An outside system that does monitor jobs' work.

    A backend may also carry `patience: Patience`; without it the defaults hold. Each method may
    raise `Throttled`; any other error means that there was no answer.

    Three methods more are used where a backend has them. `check_connection(connection)`, a class method,
    raises `SettingsError` for a connection's settings by which no backend can be made, and opens nothing: it
    is called before a job is stored. `async check() -> str` makes one harmless call
    and says in a sentence what answered, or raises `BackendError` with what failed. `events() ->
    AsyncIterator[str]` yields the external ids of jobs of which something was heard, so that they are
    asked about at once; it may tell too much, too little, or twice: `fetch` remains the truth.

    `submissions_at_once: int`, where a backend has it, says how many jobs of a connection are submitted, or
    looked for, at once; by default 32. The others wait for their turn, outside of any call's deadline.

    A system that knows no token may still be asked what is there: `async baseline(spec) -> str` is
    called before a submission begins, and its answer is stored with the intent. `find` is then called
    with two keywords more: `baseline` (None: it was never stored) and `is_held(ids)`, which returns
    those that other jobs of the connection hold.
    """

    bulk_limit: int
    """The most ids that one call of `fetch` or `cancel` takes."""

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Start the job described by `spec` under `token` and return its external id.

        Raises `SubmitRejected` when the system refused for good, `Throttled` or `NotSent` when nothing
        was done and it may be tried again.
        After any other error the job may exist: the runner asks `find`.
        """
        ...

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Prove what became of a submission begun at `since` (UTC, the database's clock)."""
        ...

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Ask for at most `bulk_limit` jobs. An id without an answer is an error, never gone."""
        ...

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Ask to end at most `bulk_limit` jobs, and return the ids that could not be asked for.

        It may be asked again and again; the end itself is seen by `fetch`.
        """
        ...

    def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Yield the job's output so far, oldest first, from `since` on where that is known.

        Raises `LogsUnavailable` with the reason where there is none to be read.
        """
        ...

    async def close(self) -> None:
        """Give back what is held. The outside work goes on."""
        ...


def patience_of(backend: object) -> Patience:
    """Return the backend's own patience, and the default of each part that makes no sense."""
    try:
        given = getattr(backend, "patience", None)
    except BaseException:  # noqa: BLE001  # it may be a property
        given = None
    if not isinstance(given, Patience):
        return Patience()
    default = Patience()
    return Patience(
        call_s=given.call_s if _is_time(given.call_s) and 0 < given.call_s < math.inf else default.call_s,
        appear_s=given.appear_s if _is_time(given.appear_s) else default.appear_s,
        vanish_s=given.vanish_s if _is_time(given.vanish_s) else default.vanish_s,
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0  # which NaN is not


SEND_WITHIN_S = 10.0
"""How long after the intent was stored a request may still leave (`ensure_in_time`)."""

_send_before_s: ContextVar[float | None] = ContextVar("jobrunner_send_before_s", default=None)


@contextmanager
def sending_until(deadline_s: float) -> Iterator[None]:
    """Let `ensure_in_time` refuse, within this block, once `monotonic_s()` is past `deadline_s`."""
    mark = _send_before_s.set(deadline_s)
    try:
        yield
    finally:
        _send_before_s.reset(mark)


@asynccontextmanager
async def in_time_to_send() -> AsyncIterator[None]:
    """End what a submission under way waits for with `SubmitTooLate`, once its request may leave no more.

    A backend waits within it for a place among its calls. Ended by a call's own deadline instead, the
    submission would be in doubt, though nothing was sent.
    """
    deadline_s = _send_before_s.get()
    try:
        async with asyncio.timeout(None if deadline_s is None else max(0.0, deadline_s - monotonic_s())):
            yield
    except TimeoutError:
        raise SubmitTooLate from None


def ensure_in_time() -> None:
    """Raise `SubmitTooLate` when the submission under way was paused for too long.

    A backend calls it as its very last step before the request leaves: a process that was stopped
    between "I may send" and the send could otherwise submit after another runner proved it absent.
    """
    deadline_s = _send_before_s.get()
    if deadline_s is not None and monotonic_s() > deadline_s:
        raise SubmitTooLate
