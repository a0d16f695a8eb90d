"""`JobServiceBackend`: jobs of Armada, watched through its old JobService."""
# ruff: noqa: ARG002  # it has the methods of every backend, and refuses most of them

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.jobservice.client import CALL_S, JobServiceClient, methods
from jobrunner.backends.armada.jobservice.states import JobState, JobStatus, state_of
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.armada.wire import Wire
from jobrunner.backends.base import Absent, Found, Gone, LogLine, Observation, Patience, RemoteError, Unsure
from jobrunner.errors import LogsUnavailable, SubmitRejected, UsageError
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.settings import ConnectionSettings
from jobrunner.states import Phase

log = get_logger(__name__)

ONLY_WATCHES = (
    "a connection of kind armada-jobservice can only watch, because the JobService takes no jobs, cancels "
    "none and has no output: use one of kind armada"
)
CALLS_AT_ONCE = 16
"""Calls of one `fetch` that are under way at once: the service takes one id a call."""
UNKNOWN_S = 7200.0
"""For how long a job may be unknown to the service. Source: the old operator's `time_out_for_failure`."""

_SERVING = 1

_PHASES = {
    JobState.SUBMITTED: Phase.WAITING,
    JobState.RUNNING: Phase.RUNNING,
    JobState.SUCCEEDED: Phase.SUCCEEDED,
    JobState.FAILED: Phase.FAILED,
    JobState.CANCELLED: Phase.CANCELLED,
    JobState.DUPLICATE_FOUND: Phase.FAILED,
}
_MESSAGES = {
    JobState.FAILED: "it failed, and the JobService does not say why",
    JobState.CANCELLED: "cancelled in Armada",
    JobState.DUPLICATE_FOUND: "a duplicate: Armada runs the job of the same client id that came first",
}


class JobServiceBackend:
    """Armada's JobService, one id a call and several calls at once. It can only watch.

    `client`: a `JobServiceClient` whose channel is used in place of the connection's; it stays open.
    Raises `UsageError` where there is neither.
    """

    bulk_limit = 4 * CALLS_AT_ONCE  # four rounds end within `patience.call_s`, however slow the service is
    patience = Patience(call_s=60.0, appear_s=UNKNOWN_S, vanish_s=UNKNOWN_S)

    def __init__(
        self, options: ArmadaConnection | None = None, *, client: JobServiceClient | None = None
    ) -> None:
        if options is None and client is None:
            raise UsageError("The Armada JobService needs a connection, or a JobServiceClient.")
        options = options or ArmadaConnection(url="localhost:60003")
        self._wire = _JobServiceWire(options, client and client.channel)
        self._call_s = min(client.call_s if client else CALL_S, options.call_timeout_s)
        self._unknown_words = Once()

    @classmethod
    def from_connection(cls, connection: ConnectionSettings) -> Self:
        """Return the backend behind a connection. Raises `SettingsError`."""
        return cls(ArmadaConnection.of(connection))

    @classmethod
    def check_connection(cls, connection: ConnectionSettings) -> None:
        """Refuse settings by which no backend can be made. Raises `SettingsError`."""
        ArmadaConnection.of(connection)

    async def check(self) -> str:
        """Ask the service how it is, and say what answered. Raises `ArmadaError` with what failed."""
        from google.protobuf import empty_pb2

        answer = await self._ask("Health", empty_pb2.Empty())
        if answer.status != _SERVING:
            raise ArmadaError(
                f"the Armada JobService at {self._wire.place} answered Health, and does not serve",
                Kind.UNCLEAR,
            )
        return f"the Armada JobService answered Health at {self._wire.place}; it can only watch jobs"

    # --- watching --------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Ask for each job by a call of its own, some at a time."""
        free = asyncio.Semaphore(CALLS_AT_ONCE)
        answers = await asyncio.gather(*(self._look(each, free) for each in ids))
        return dict(zip(ids, answers, strict=True))

    async def _look(self, external_id: str, free: asyncio.Semaphore) -> Observation | Gone | RemoteError:
        try:
            key = JobKey.split(external_id)
        except ValueError as error:
            return RemoteError(str(error))
        from jobrunner.backends.armada.jobservice.jobservice_pb2 import JobServiceRequest

        question = JobServiceRequest(queue=key.queue, job_set_id=key.job_set, job_id=key.job_id)
        async with free:
            try:
                return self._answer_of(await self._ask("GetJobStatus", question), key)
            except ArmadaError as error:
                return RemoteError(str(error))

    async def _ask(self, method: str, question: Any) -> Any:
        try:
            return await self._wire.call("JobService", method, question, timeout_s=self._call_s)
        except ArmadaError as error:
            if error.kind is not Kind.NOT_ARMADA:
                raise
            raise ArmadaError(
                f"{self._wire.place} answered {method}, but not as the JobService does, whose port is "
                f"usually 60003 ({error.details or 'no reason was given'})",
                error.kind,
            ) from None

    def _answer_of(self, status: JobStatus, key: JobKey) -> Observation | Gone | RemoteError:
        state = state_of(status)
        if state is JobState.JOB_ID_NOT_FOUND:
            return Gone("the Armada JobService does not know it")
        if state is JobState.CONNECTION_ERR:
            reason = status.error or "no reason was given"
            return RemoteError(f"the Armada JobService cannot reach Armada: {reason}")
        if state is None:
            return self._unknown(status.state)
        link = self._wire.options.link(key)
        detail = {"lookout": link} if link else {}
        return Observation(_PHASES[state], state.name, status.error or _MESSAGES.get(state, ""), detail)

    def _unknown(self, number: int) -> Observation:
        if self._unknown_words.is_new(number):
            log.warning(
                "the Armada JobService gave a state that nobody knows, and its job waits", state=number
            )
        return Observation(Phase.WAITING, str(number), f"the JobService gave the unknown state {number}")

    # --- what it cannot do -----------------------------------------------------------------------

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Refuse: the JobService takes no jobs."""
        raise SubmitRejected(ONLY_WATCHES)

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Say that it can never be told: the JobService knows no client ids."""
        return Unsure(None, ONLY_WATCHES)

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Say for each that it cannot be cancelled here."""
        return dict.fromkeys(ids, RemoteError(ONLY_WATCHES))

    def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Raise `LogsUnavailable`: the JobService has no output."""
        raise LogsUnavailable(ONLY_WATCHES)

    async def close(self) -> None:
        """Close the channel, unless it is a client's; the jobs go on."""
        await self._wire.close()


class _JobServiceWire(Wire):
    """The way of every call to Armada, with the JobService's methods at its end."""

    def _stub(self, service: str, address: str | None) -> Any:
        channel = self._given or self._channel(address or self.options.url)
        return SimpleNamespace(**methods(channel))
