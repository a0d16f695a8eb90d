"""`ArmadaBackend`: Armada behind the one boundary."""

import asyncio
import datetime as dt
import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from jobrunner.backends.armada import events, logs
from jobrunner.backends.armada.bulk import Limits
from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.finding import Finder
from jobrunner.backends.armada.ids import JobKey, split_all
from jobrunner.backends.armada.reading import UNKNOWN, detail_of, needs_error, observation_of, state_of
from jobrunner.backends.armada.spec import request_of
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.armada.wire import Wire, messages
from jobrunner.backends.base import (
    Absent,
    Found,
    Gone,
    LogLine,
    Observation,
    Patience,
    RemoteError,
    Unsure,
    patience_of,
)
from jobrunner.errors import NotSent, SpecError, SubmitRejected, Throttled
from jobrunner.logs import get_logger
from jobrunner.settings import ConnectionSettings

log = get_logger(__name__)

IDS_MOST = 500
"""Ids a call, unless the server says less. Source: its setting `maxQueryItems`, as it is shipped."""
REASON_BYTES_MOST = 50
"""Source: the server's ValidateReason."""

_JOBS_MOST = 150_000  # more than one runner watches; a job forgotten here costs a question about its details
_ENDED_MOST = 20_000
_DETAILS_S = 5.0
_ERROR_LAG_S = 0.25  # a job's error may be written a moment after its state
_ERROR_LOOKS = 3
_NOBODY = "00000000000000000000000000"  # the form of an id of Armada

# A person has to change something before such a request can be taken.
_FOR_GOOD = frozenset({Kind.REFUSED, Kind.PERMISSION, Kind.CREDENTIALS, Kind.NOT_ARMADA})


class ArmadaBackend:
    """Armada, by the stubs of armada-client: 500 ids a call, a deadline on each, one channel.

    `given`: a client of armada-client or a gRPC channel, to be used in place of the connection's own.
    `watch`: what looks at jobs instead (the old JobService). `settle_s`: for how many seconds a
    submission that got no answer is only looked for, before the server is asked for it by its client id.
    """

    events: Callable[[], AsyncIterator[str]]
    """What was heard of jobs; there only where the connection says `events = true`."""

    def __init__(
        self,
        options: ArmadaConnection,
        *,
        given: Any = None,
        watch: Any = None,
        settle_s: float | None = None,
    ) -> None:
        self.options = options
        self.wire = Wire(options, given)
        self.bulk_limit = IDS_MOST if watch is None else min(IDS_MOST, watch.bulk_limit)
        seen_by = Patience(appear_s=300.0, vanish_s=900.0) if watch is None else patience_of(watch)
        self.patience = replace(seen_by, call_s=max(2 * options.call_timeout_s + 10, seen_by.call_s))
        self._watch = watch
        self._limits = Limits(IDS_MOST)
        self._finder = Finder(self.wire, self._submit, settle_s)
        self._ended: OrderedDict[str, Observation] = OrderedDict()
        self._states: OrderedDict[str, int] = OrderedDict()
        self._details: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._errorless: OrderedDict[str, int] = OrderedDict()
        self._listener = events.Listener(self.wire)
        if options.events:
            self.events = self._listener.external_ids

    @classmethod
    def from_connection(cls, connection: ConnectionSettings) -> Self:
        """Return the backend behind a connection. Raises `SettingsError`."""
        return cls(ArmadaConnection.of(connection))

    @classmethod
    def check_connection(cls, connection: ConnectionSettings) -> None:
        """Refuse settings by which no backend can be made. Raises `SettingsError`."""
        ArmadaConnection.of(connection)

    async def check(self) -> str:
        """Ask for a job that nobody has, and say what answered. Raises `ArmadaError` with what failed."""
        await self.wire.call("Jobs", "GetJobStatus", messages("job").JobStatusRequest(job_ids=[_NOBODY]))
        how = "with TLS" if self.options.uses_tls else "without TLS"
        return f"Armada answered GetJobStatus at {self.options.url}, {how}"

    # --- submitting ------------------------------------------------------------------------------

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Submit a job with the token as its client id, in one request; return its external id."""
        return await self._submit(spec, token)

    async def _submit(self, spec: Mapping[str, Any], token: str) -> str:
        try:
            answer = await self.wire.send_once("Submit", "SubmitJobs", request_of(spec, token))
        except SpecError as error:
            raise SubmitRejected(str(error)) from error
        except ArmadaError as error:
            raise self._of_submission(error) from error
        items = list(answer.job_response_items)
        if len(items) != 1 or (not items[0].job_id and not items[0].error):
            raise ArmadaError("SubmitJobs was answered with no job id", Kind.UNCLEAR)
        if items[0].error:
            raise SubmitRejected(f"SubmitJobs: {items[0].error}")
        return JobKey(spec["queue"], spec["jobSetId"], items[0].job_id).join()

    def _of_submission(self, error: ArmadaError) -> Exception:
        told = str(error)
        if error.kind is Kind.THROTTLED:
            return Throttled(told)
        if error.kind is Kind.CREDENTIALS and self.options.token_file is not None:
            return NotSent(told)  # whoever writes the file writes another one soon
        return SubmitRejected(told) if error.kind in _FOR_GOOD else error

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Look for the submission, and then ask for it by its client id, which makes no second job."""
        return await self._finder.find(spec, token, since)

    # --- watching --------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Ask for the states of jobs, 500 a call, and for the errors and details of those that changed.

        An end that was seen stays: Armada may tell several of one job.
        """
        keys, wrong = split_all(ids)
        if self.options.events:
            self._listener.listen_to(keys.values())
        answers: dict[str, Observation | Gone | RemoteError] = {
            each: RemoteError(f"{each!r:.200} is no id of an Armada job") for each in wrong
        }
        answers |= {each: self._ended[each] for each in keys if each in self._ended}
        asked = {each: key for each, key in keys.items() if each not in answers}
        if not asked:
            return answers
        if self._watch is not None:
            answers |= await self._watch.fetch(list(asked))
        else:
            answers |= await self._observed(asked)
        for each in asked:
            answer = answers.get(each)
            if isinstance(answer, Observation) and answer.phase.is_final:
                _remember(self._ended, each, answer, _ENDED_MOST)
                for memory in (self._states, self._details, self._errorless):
                    memory.pop(each, None)
        return answers

    async def _observed(self, asked: Mapping[str, JobKey]) -> dict[str, Observation | Gone | RemoteError]:
        states = await self._ask_many("GetJobStatus", "JobStatusRequest", "job_states", asked.values())
        self.bulk_limit = min(self.bulk_limit, self._limits.of("GetJobStatus"))
        answers: dict[str, Observation | Gone | RemoteError] = {}
        known: dict[str, JobKey] = {}
        for each, key in asked.items():
            if key.job_id not in states:  # never by `[]`: a map of protobuf answers 0, which is QUEUED
                answers[each] = RemoteError("Armada did not answer for it")
            elif states[key.job_id] == UNKNOWN:
                answers[each] = Gone(
                    "Armada does not know it (or not yet; finished jobs are kept for some weeks)"
                )
            else:
                known[each] = key
        changed = {each: key for each, key in known.items() if self._states.get(each) != states[key.job_id]}
        await self._learn_details(
            {each: key for each, key in changed.items() if _is_telling(states[key.job_id])}
        )
        failed = {each: key for each, key in known.items() if needs_error(states[key.job_id])}
        errors = await self._errors(failed)
        for each, key in known.items():
            error = errors.get(each, "")
            if isinstance(error, RemoteError):
                answers[each] = error
                continue
            _remember(self._states, each, states[key.job_id])
            answers[each] = observation_of(
                key,
                states[key.job_id],
                error=error,
                detail=self._details.get(each),
                link=self.options.link(key),
            )
        return answers

    async def _learn_details(self, asked: Mapping[str, JobKey]) -> None:
        """Learn where jobs run, or who cancelled them: asked for when they changed, and dispensable."""
        if not asked:
            return
        try:
            found = await self._ask_many(
                "GetJobDetails",
                "JobDetailsRequest",
                "job_details",
                asked.values(),
                timeout_s=_DETAILS_S,
                expand_job_run=True,
            )
        except (ArmadaError, Throttled) as error:
            log.debug("the details of jobs were not told", jobs=len(asked), error=error)
            return
        for each, key in asked.items():
            if key.job_id in found:
                _remember(self._details, each, detail_of(found[key.job_id]))

    async def _errors(self, failed: Mapping[str, JobKey]) -> dict[str, str | RemoteError]:
        """Return why jobs failed. Where that cannot be learnt now it is asked again, but not for ever."""
        if not failed:
            return {}
        try:
            errors = await self._ask_errors(failed.values())
            late = [key for key in failed.values() if not errors.get(key.job_id)]
            if late:
                await asyncio.sleep(_ERROR_LAG_S)
                errors |= await self._ask_errors(late)
        except (ArmadaError, Throttled) as error:
            return {each: self._without_error(each, error) for each in failed}
        return {each: errors.get(key.job_id, "") for each, key in failed.items()}

    async def _ask_errors(self, keys: Any) -> dict[str, str]:
        return await self._ask_many("GetJobErrors", "JobErrorsRequest", "job_errors", keys)

    def _without_error(self, external_id: str, error: ArmadaError | Throttled) -> str | RemoteError:
        if isinstance(error, ArmadaError) and error.is_missing_method:
            return ""  # an older server
        looks = self._errorless.get(external_id, 0) + 1
        _remember(self._errorless, external_id, looks)
        if looks >= _ERROR_LOOKS or getattr(error, "kind", None) in {Kind.PERMISSION, Kind.NOT_ARMADA}:
            return f"why is not known: {error}"
        return RemoteError(f"it has ended, but not yet why: {error}")

    async def _ask_many(
        self, method: str, request: str, field: str, keys: Any, *, timeout_s: float | None = None, **more: Any
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def ask(some: list[str]) -> None:
            question = getattr(messages("job"), request)(job_ids=some, **more)
            answer = await self.wire.call("Jobs", method, question, timeout_s=timeout_s)
            values = getattr(answer, field)
            found.update((each, values[each]) for each in some if each in values)

        try:
            await self._limits.in_parts(method, list(dict.fromkeys(key.job_id for key in keys)), ask)
        except ArmadaError as error:
            if error.kind is Kind.THROTTLED:
                raise Throttled(str(error)) from error
            raise
        return found

    def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Yield a job's output, from the Binoculars of the cluster that it runs in."""
        return logs.lines(self.wire, external_id, since)

    # --- cancelling ------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Ask for the end of jobs, one call for those of a job set; the end itself is seen by `fetch`."""
        keys, wrong = split_all(ids)
        failed = {each: RemoteError(f"{each!r:.200} is no id of an Armada job") for each in wrong}
        groups: dict[tuple[str, str], dict[str, str]] = {}
        for each, key in keys.items():
            groups.setdefault((key.queue, key.job_set), {})[each] = key.job_id
        for (queue, job_set), group in groups.items():
            asked: set[str] = set()
            ask = functools.partial(self._cancel_some, asked, queue, job_set, reason)
            try:
                await self._limits.in_parts("CancelJobs", list(dict.fromkeys(group.values())), ask)
            except ArmadaError as error:
                left = [each for each, job_id in group.items() if job_id not in asked]
                failed |= dict.fromkeys(left, RemoteError(str(error)))
        return failed

    async def _cancel_some(
        self, asked: set[str], queue: str, job_set: str, reason: str, job_ids: list[str]
    ) -> None:
        await self.wire.call("Submit", "CancelJobs", cancel_request(queue, job_set, job_ids, reason))
        asked.update(job_ids)

    async def close(self) -> None:
        """Give the channels back; the jobs go on."""
        await self._listener.close()
        if self._watch is not None:
            await self._watch.close()
        await self.wire.close()


def cancel_request(queue: str, job_set: str, job_ids: Sequence[str], reason: str) -> Any:
    """Return the request that ends these jobs and no others.

    The one place where such a request is made: without an id Armada would end the whole job set.
    Raises ValueError then. `reason` is cut at 50 bytes.
    """
    ids = list(dict.fromkeys(job_ids))
    if not ids or not all(each.strip() for each in (*ids, queue, job_set)):
        raise ValueError(f"an empty id would end the whole job set {job_set!r} in queue {queue!r}")
    told = " ".join(reason.split()).encode()[:REASON_BYTES_MOST].decode(errors="ignore")
    return messages("submit").JobCancelRequest(queue=queue, job_set_id=job_set, job_ids=ids, reason=told)


def _is_telling(state: int) -> bool:
    """Whether the details of a job are worth a question when it comes into this state."""
    word, phase = state_of(state)
    return word == "RUNNING" or (phase.is_final and word != "REJECTED")


def _remember(memory: OrderedDict[str, Any], key: str, value: Any, most: int = _JOBS_MOST) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)
