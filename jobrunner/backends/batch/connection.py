"""One connection to AWS: its settings, its clients, and the one way by which every call leaves."""

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from jobrunner.backends.base import ensure_in_time
from jobrunner.backends.batch.limiter import Lane, Limiter
from jobrunner.backends.batch.shapes import fitting_answer, names_a_job, names_jobs
from jobrunner.backends.batch.threads import in_daemon_thread
from jobrunner.backends.batch.trouble import AwsError, Call, Kind, NotAws, trouble_of
from jobrunner.backends.connection import CheckedConnection
from jobrunner.clock import monotonic_s
from jobrunner.errors import JobrunnerError, SettingsError
from jobrunner.extras import require
from jobrunner.redaction import looks_secret, mask_url
from jobrunner.settings import ConnectionSettings

_T = TypeVar("_T")

THREADS = 4
"""Calls that may be under way at once: more gain nothing at 100 ids a call."""
_THREADS_OF = {Lane.WATCH: THREADS, Lane.SUBMIT: THREADS - 1}
"""... of one line: submissions that are answered slowly leave a place for the watching."""
_A_CALL_A_JOB = frozenset({"submit_job", "list_jobs"})

_CONNECT_S, _READ_S = 5.0, 20.0
_LONG_POLL_S = 20.0  # the longest that SQS waits for a message
_CLOSE_S = 2.0  # a call that ends within this time gives its connection back
_RENEW_AFTER_S = 5.0  # clients younger than this were made with the credentials there are
# What an answer has to hold: boto3 takes whatever it cannot read for one that says nothing, by which
# every job would be gone, and every submission absent.
_MUST_SAY: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "submit_job": names_a_job,
    "describe_jobs": lambda answer: names_jobs(answer.get("jobs")),
    "list_jobs": lambda answer: names_jobs(answer.get("jobSummaryList")),
}
_KEPT = frozenset({Kind.CREDENTIALS, Kind.EXPIRED, Kind.MISSING, Kind.SETTINGS, Kind.REGION})
_CREDENTIAL_KEYS = ("access_key", "access_key_id", "session_token", "aws_access_key_id", "aws_session_token")


class BatchConnection(CheckedConnection):
    """What a connection of kind `batch` may say; without any of it, boto3's own chain decides.

    `region`, `profile`; `role_arn` to assume, with `external_id` where the role asks for it.
    `endpoint_url` serves every call of the connection. `calls_per_s` bounds them all together.
    `events_queue_url`: an SQS queue fed by EventBridge. `log_group`: for jobs whose own is not told.
    """

    region: str | None = None
    profile: str | None = None
    role_arn: str | None = Field(default=None, pattern=r"^arn:[^:]+:iam::\d+:role/.+$")
    external_id: str | None = None
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    events_queue_url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    log_group: str = "/aws/batch/job"
    calls_per_s: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 25.0

    @classmethod
    def of(cls, settings: ConnectionSettings) -> Self:
        """Check a connection's settings. Raises `SettingsError` with one sentence."""
        for key in settings.options:
            if key in _CREDENTIAL_KEYS or looks_secret(key):
                raise SettingsError(
                    f"A connection of kind batch holds no credentials, and {key!r} looks like one: boto3 "
                    "finds them by itself (environment, profile, role)."
                )
        return super().of(settings)

    @classmethod
    def _told(cls, item: Mapping[str, Any]) -> str:
        if item["type"] != "string_pattern_mismatch":
            return super()._told(item)
        key = ".".join(map(str, item["loc"]))
        form = "http:// or https://" if key.endswith("_url") else "arn:aws:iam::123456789012:role/NAME"
        return f"{key!r} must be of the form {form}"


class Aws:
    """Makes every call of one connection: shared clients, few threads, one limiter around all.

    A call is made once and never repeated here: whoever asked decides what its failure means.
    """

    def __init__(self, options: BatchConnection) -> None:
        self.options = options
        self.limiter = Limiter(options.calls_per_s, burst=THREADS)
        self._free: tuple[asyncio.AbstractEventLoop, dict[Lane, tuple[asyncio.Semaphore, ...]]] | None = None
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._made_s = 0.0
        self._under_way: set[asyncio.Future[Any]] = set()

    async def call(
        self, service: str, operation: str, /, *, region: str = "", is_long: bool = False, **params: Any
    ) -> dict[str, Any]:
        """Call `client(service).operation(**params)` and return its answer.

        `is_long`: it waits for something on the other side, and must not hold up the others.
        Raises `AwsError`, `SubmitTooLate`, and `UsageError` where boto3 is not installed.
        """
        lane = Lane.SUBMIT if operation in _A_CALL_A_JOB else Lane.WATCH
        await self.limiter.turn(lane)
        context = contextvars.copy_context()  # a submission's deadline travels along
        do = partial(context.run, self._call, service, operation, region, params)
        try:
            answer: dict[str, Any] = await (in_daemon_thread(do) if is_long else self._in_turn(do, lane))
        except AwsError as error:
            if error.kind is Kind.THROTTLED:
                self.limiter.slow_down()
            raise
        self.limiter.speed_up()
        return answer

    async def _in_turn(self, do: Callable[[], _T], lane: Lane = Lane.WATCH) -> _T:
        """Do it in a thread, one of few; a caller that gave up keeps the place until the thread has ended."""
        with ExitStack() as taken:
            for free in self._free_now(lane):
                await free.acquire()
                taken.callback(free.release)
            call, places = in_daemon_thread(do), taken.pop_all()
        call.add_done_callback(lambda _call: places.close())
        self._under_way.add(call)
        call.add_done_callback(self._under_way.discard)
        return await asyncio.shield(call)

    def _free_now(self, lane: Lane) -> tuple[asyncio.Semaphore, ...]:
        """Return the places of a line, and of all: both have to be free."""
        loop = asyncio.get_running_loop()
        if self._free is None or self._free[0] is not loop:  # a client may be used in one loop after another
            everywhere = asyncio.Semaphore(THREADS)
            self._free = loop, {each: (asyncio.Semaphore(n), everywhere) for each, n in _THREADS_OF.items()}
        return self._free[1][lane]

    @property
    def region(self) -> str:
        """The region of the calls, as far as it is known by now; empty: none is set."""
        return self.options.region or str(getattr(self._session, "region_name", None) or "")

    async def endpoint(self) -> str:
        """Return the address of AWS Batch, as it may be shown."""
        return mask_url(await self._in_turn(lambda: self._client("batch", self.region).meta.endpoint_url))

    async def checks_signatures(self) -> bool:
        """Whether the endpoint is AWS's own, which lets no request in that was signed too long ago."""
        return await self._in_turn(self._is_aws_itself)

    async def close(self) -> None:
        """Give the connections back; a call that takes long is left to itself."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_S)
        self._forget_clients()

    # --- in the threads --------------------------------------------------------------------------

    def _call(self, service: str, operation: str, region: str, params: dict[str, Any]) -> dict[str, Any]:
        name = "".join(part.capitalize() for part in operation.split("_"))
        region = region or self.region
        call = Call(name, self.options.endpoint_url or "", region, may_have_left=False)
        try:
            client = self._client(service, region)
            method = _method(client, operation, name)
            call = Call(name, client.meta.endpoint_url, client.meta.region_name)
            answer: dict[str, Any] = method(**params)
            if operation != "describe_jobs":  # which is many, read plainly, and checked job by job
                shape = client.meta.service_model.operation_model(name).output_shape
                answer = fitting_answer(answer, shape)
        except JobrunnerError:
            raise
        except Exception as error:
            trouble = trouble_of(error, call)
            if trouble.kind in _KEPT:
                # boto3 keeps what it found once: new credentials need new clients.
                self._forget_clients(older_than_s=_RENEW_AFTER_S)
            raise trouble from error
        if operation in _MUST_SAY and not _MUST_SAY[operation](answer):
            told = f"{call.place} answered {name} with something that is no answer of AWS Batch"
            raise AwsError(told, Kind.UNCLEAR)
        return answer

    def _is_aws_itself(self) -> bool:
        host = urlsplit(self._client("batch", self.region).meta.endpoint_url).hostname or ""
        with self._lock:
            loader = self._session_now()._session.get_component("data_loader")  # boto3 has no door to it
        outputs = [each["outputs"] for each in loader.load_data("partitions")["partitions"]]
        suffixes = [
            each[key] for each in outputs for key in ("dnsSuffix", "dualStackDnsSuffix") if key in each
        ]
        return any(host.endswith(f".{suffix}") for suffix in suffixes)

    def _client(self, service: str, region: str) -> Any:
        with self._lock:  # making a client is not safe in several threads; using one is
            key = (service, region)
            if key not in self._clients:
                self._clients[key] = self._make_client(service, region)
            return self._clients[key]

    def _make_client(self, service: str, region: str) -> Any:
        from botocore.config import Config

        is_sqs = service == "sqs"
        config = Config(
            # One call is one request: a repeated SubmitJob makes two jobs, and our own back-off sees every
            # refusal. (`max_attempts` would count the repetitions, `total_max_attempts` counts the calls.)
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S + (_LONG_POLL_S if is_sqs else 0.0),
            max_pool_connections=THREADS,
            user_agent_extra="jobrunner",
        )
        client = self._session_now().client(
            service,
            region_name=region or None,
            endpoint_url=self.options.endpoint_url,
            config=config,
        )
        client.meta.events.register("before-parse.*.*", _refuse_html)
        if service == "batch":
            client.meta.events.register_last("before-send.batch.SubmitJob", _before_submit)
            for operation, key in (("DescribeJobs", "jobs"), ("ListJobs", "jobSummaryList")):
                event = f"before-parse.batch.{operation}"
                client.meta.events.register_last(event, partial(_read_plainly, key))
        return client

    def _session_now(self) -> Any:
        if self._session is None:
            self._session = _session(self.options)
            self._made_s = monotonic_s()
        return self._session

    def _forget_clients(self, older_than_s: float = 0.0) -> None:
        with self._lock:
            if monotonic_s() - self._made_s < older_than_s:
                return
            clients, self._clients, self._session = self._clients, {}, None
        for client in clients.values():
            client.close()


def _method(client: Any, operation: str, name: str) -> Callable[..., dict[str, Any]]:
    method: Callable[..., dict[str, Any]] | None = getattr(client, operation, None)
    if method is None:
        raise AwsError(f"the installed boto3 knows no {name}: upgrade it", Kind.SETTINGS)
    return method


def _before_submit(**_request: Any) -> None:
    ensure_in_time()


def _refuse_html(response_dict: Any, **_event: Any) -> None:
    # By the body, too: some stand-ins for AWS call their JSON html.
    is_html = "html" in str(response_dict["headers"].get("content-type", "")).lower()
    if is_html and response_dict["body"].lstrip().startswith(b"<"):
        raise NotAws(response_dict["status_code"])


def _read_plainly(key: str, response_dict: Any, customized_response_dict: Any, **_event: Any) -> None:
    """Read the jobs under `key` as the JSON that they are.

    botocore walks all of its model for each job, which is most of what a sweep costs, and changes
    nothing: these answers have no time, no blob and no renamed member. What is not plain is left to it;
    but not what is no list, which it would take for an empty one: then every job would be gone.
    """
    try:
        jobs = json.loads(response_dict["body"])[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if response_dict["status_code"] == HTTPStatus.OK:
        customized_response_dict[key] = jobs if isinstance(jobs, list) else None
        if key == "jobs":
            response_dict["body"] = b"{}"


def _session(options: BatchConnection) -> Any:
    """Return a session of boto3 with the connection's region, profile and role."""
    import os

    boto3 = require("boto3", "aws", "AWS Batch")
    import botocore.session

    core = botocore.session.Session(profile=options.profile)
    # boto3 itself reads AWS_DEFAULT_REGION alone; the other SDKs, and most containers, say AWS_REGION.
    region = options.region or os.environ.get("AWS_REGION") or None
    if options.role_arn is not None:
        _assume_role(core, options, region)
    return boto3.session.Session(botocore_session=core, region_name=region)


def _assume_role(core: Any, options: BatchConnection, region: str | None) -> None:
    """Let the session take its credentials from the role, renewed before they expire."""
    from botocore.credentials import (
        AssumeRoleCredentialFetcher,
        CredentialProvider,
        DeferredRefreshableCredentials,
    )

    def sts(service: str, **kwargs: Any) -> Any:
        kwargs.setdefault("region_name", region)
        return core.create_client(service, endpoint_url=options.endpoint_url, **kwargs)

    class _Role(CredentialProvider):  # type: ignore[misc]  # botocore has no types
        METHOD = "assume-role"
        CANONICAL_NAME = "jobrunner-role"

        def load(self) -> Any:
            extra = {"RoleSessionName": "jobrunner"}
            if options.external_id is not None:
                extra["ExternalId"] = options.external_id
            fetcher = AssumeRoleCredentialFetcher(sts, source, options.role_arn, extra_args=extra)
            return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)

    source = core.get_credentials()
    if source is None:
        from botocore.exceptions import NoCredentialsError

        raise NoCredentialsError
    resolver = core.get_component("credential_provider")
    resolver.providers.insert(0, _Role())
    core._credentials = None  # what was found first is the role's source
