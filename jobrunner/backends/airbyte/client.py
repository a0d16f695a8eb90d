"""The calls to Airbyte's public API: one way by which each leaves, and what its answer means."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from jobrunner.backends.airbyte.connection import AirbyteConnection
from jobrunner.backends.airbyte.reading import Failure, Job, failures_of, id_of, job_of
from jobrunner.backends.airbyte.tokens import TokenAnswer, Tokens
from jobrunner.backends.airbyte.transport import Raw, Transport
from jobrunner.backends.airbyte.trouble import (
    AirbyteError,
    Call,
    Kind,
    date_of,
    is_html,
    is_usual,
    not_airbyte,
    of_status,
)
from jobrunner.backends.base import ensure_in_time, in_time_to_send
from jobrunner.logs import get_logger

log = get_logger(__name__)

PAGE = 100
"""Jobs a page. Source: GET /jobs, limit <= 100."""

_UNAUTHORIZED = 401
_SUCCESS = range(200, 300)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `count`: how many entries the server gave; `at`: its own clock, where told."""

    jobs: list[Job]
    count: int
    at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class _Answer:
    data: Any
    status: int
    at: dt.datetime | None


class Api:
    """Makes every call of one connection, for one event loop: few at once, each with its own time.

    A call is made once. Only one that was answered with 401, and so was not let in, is made once more with a
    new token. Every method raises `AirbyteError`, and `UsageError` where httpx is not installed; to make one
    raises `SettingsError` for a `ca_file` that cannot be used.
    """

    def __init__(self, options: AirbyteConnection) -> None:
        self.options = options
        self._transport = Transport(options.ca_file)
        self._has_warned = False
        self._all = asyncio.Semaphore(options.at_once)
        # Calls that take a minute must leave a place to those that take a moment.
        self._long = asyncio.Semaphore(max(1, options.at_once - 1))
        self._tokens: Tokens | None = None
        if options.client_id is not None and options.client_secret is not None:
            secret = options.client_secret.get_secret_value()
            self._tokens = Tokens(self._ask_for_token, options.client_id, secret)

    async def get_job(self, job_id: int) -> Job:
        """GET /jobs/{id}."""
        answer = await self._call("GET", f"/jobs/{job_id}")
        job = job_of(answer.data)
        if job is None or job.id != job_id:
            what = "no job" if job is None else f"the job {job.id}"
            raise not_airbyte(self._place(f"GET /jobs/{job_id}"), answer.status, what)
        return job

    async def list_jobs(self, params: Mapping[str, Any]) -> Page:
        """GET /jobs with these filters; `limit` is at most 100."""
        # Where the URL is as it should be, a 404 is about the Airbyte connection that the filter names.
        shows_url = "connectionId" not in params or not is_usual(self.options.url)
        answer = await self._call("GET", "/jobs", params={"limit": PAGE, **params}, shows_url=shows_url)
        entries = answer.data.get("data", 0) if isinstance(answer.data, dict) else 0
        if entries is None:  # how some servers write that there are none
            entries = []
        if not isinstance(entries, list):
            raise not_airbyte(self._place("GET /jobs"), answer.status, "no list of jobs")
        jobs = [job for job in map(job_of, entries) if job is not None]
        if len(jobs) < len(entries) and not self._has_warned:
            self._has_warned = True
            log.warning("Airbyte lists jobs that cannot be read", count=len(entries) - len(jobs))
        return Page(jobs, len(entries), answer.at)

    async def newest_jobs(self, connection_id: str) -> list[Job]:
        """Return the newest jobs of a connection, whatever their type, newest first."""
        params = {"connectionId": connection_id, "orderBy": "createdAt|DESC"}
        page = await self.list_jobs(params)
        return sorted(page.jobs, key=lambda job: job.id, reverse=True)

    async def post_job(self, connection_id: str, job_type: str) -> tuple[int, Job | None]:
        """POST /jobs, within the time in which a submission may leave; never repeated once it was let in.

        Returns the new job's id, and the job where the answer tells of it.
        """
        body = {"connectionId": connection_id, "jobType": job_type}
        try:
            answer = await self._call("POST", "/jobs", body=body, submits=True)
        except AirbyteError as error:
            if error.status not in _SUCCESS:
                raise
            # Whoever it was that said yes in such a way: the job may have been made.
            raise AirbyteError(str(error), Kind.UNCLEAR, status=error.status) from error
        job_id = id_of(answer.data)
        if job_id is None:
            raise AirbyteError("POST /jobs was answered without a job", Kind.UNCLEAR, status=answer.status)
        return job_id, job_of(answer.data)

    async def delete_job(self, job_id: int) -> None:
        """DELETE /jobs/{id}: ends what runs on the job's connection, which may be another job."""
        await self._call("DELETE", f"/jobs/{job_id}")

    async def workspace_of(self, connection_id: str) -> str | None:
        """Return the workspace of an Airbyte connection (GET /connections/{id})."""
        answer = await self._call("GET", f"/connections/{connection_id}")
        found = answer.data.get("workspaceId") if isinstance(answer.data, dict) else None
        return found if isinstance(found, str) else None

    async def why_failed(self, job_id: int) -> list[Failure]:
        """Return a job's reasons for its failure, from the config API."""
        url = f"{self.options.config_api}/jobs/get_without_logs"
        return failures_of((await self._call("POST", url, body={"id": job_id}, is_long=False)).data)

    async def close(self) -> None:
        """Give the connections back."""
        if self._tokens is not None:
            await self._tokens.close()
        await self._transport.close()

    # --- the one way --------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        is_long: bool | None = None,
        submits: bool = False,
        shows_url: bool = False,
    ) -> _Answer:
        is_long = method != "GET" if is_long is None else is_long
        url = path if "://" in path else f"{self.options.url}{path}"
        call = self._place(
            f"{method} {path.removeprefix(self.options.config_api or '')}", shows_url=shows_url
        )
        for attempt in (1, 2):
            authorization, token = await self._authorization()
            async with self._place_free(is_long=is_long, submits=submits):
                if submits:
                    ensure_in_time()
                inside = call.letting_in(authorization)
                raw = await self._transport.send(
                    inside, method, url, is_long=is_long, params=params, json=body, headers=authorization
                )
            if raw.status == _UNAUTHORIZED and token is not None and attempt == 1:
                assert self._tokens is not None
                self._tokens.forget(token)
                continue
            break
        return _read(inside, raw)

    @asynccontextmanager
    async def _place_free(self, *, is_long: bool, submits: bool = False) -> AsyncIterator[None]:
        async with AsyncExitStack() as places:
            # A token is asked for by one for all: it is no part of the submission that needed it first.
            async with in_time_to_send() if submits else nullcontext():
                for place in (self._long, self._all) if is_long else (self._all,):
                    await places.enter_async_context(place)
            yield

    # --- being let in -------------------------------------------------------------------------------

    async def _authorization(self) -> tuple[dict[str, str], str | None]:
        """Return the headers that let a call in, and the token in them where it can be renewed."""
        options = self.options
        if self._tokens is not None:
            try:
                token = await self._tokens.get()
            except AirbyteError as error:
                # Whatever was to be asked has not been sent, and so was not answered.
                kind = Kind.NETWORK if error.kind is Kind.UNCLEAR else error.kind
                raise AirbyteError(str(error), kind, retry_after_s=error.retry_after_s) from error
            return {"Authorization": f"Bearer {token}"}, token
        if options.token is not None:
            return {"Authorization": f"Bearer {options.token.get_secret_value()}"}, None
        if options.username is not None and options.password is not None:
            import base64

            pair = f"{options.username}:{options.password.get_secret_value()}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, None
        return {}, None

    async def _ask_for_token(self, fields: dict[str, str], as_form: bool) -> TokenAnswer:
        call = self._place("POST /applications/token", shows_url=True)
        url = f"{self.options.url}/applications/token"
        body: dict[str, Any] = {"data": fields} if as_form else {"json": fields}
        async with self._place_free(is_long=False):
            raw = await self._transport.send(call, "POST", url, is_long=False, **body)
        try:
            answer = _read(call, raw)
        except AirbyteError as error:
            if error.status in {400, 401, 403, 422} and error.kind is not Kind.NOT_AIRBYTE:
                told = f"Airbyte refused the client id or secret at {call.place}: {error.status} {error.said}"
                raise AirbyteError(told, Kind.CREDENTIALS, status=error.status) from None
            raise
        if not isinstance(answer.data, dict):
            raise not_airbyte(call, answer.status, "no token")
        return TokenAnswer(answer.data, answer.at.timestamp() if answer.at is not None else None)

    def _place(self, name: str = "", *, shows_url: bool = False) -> Call:
        options = self.options
        hidden = (options.client_secret, options.token, options.password)
        secrets = tuple(each.get_secret_value() for each in hidden if each is not None)
        return Call(name, options.url, tuple(filter(None, secrets)), shows_url)


def _read(call: Call, raw: Raw) -> _Answer:
    """Return the JSON of a success. Raises `AirbyteError` for every other answer."""
    status, headers, text = raw.status, raw.headers, raw.text
    if status not in _SUCCESS:
        raise of_status(call, status, headers, text)
    data: Any = None
    if text.strip():
        if is_html(headers, text):
            raise not_airbyte(call, status, "an HTML page")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise not_airbyte(call, status, "something that is no JSON") from None
    return _Answer(data, status, date_of(headers))
