"""Armada over real gRPC, on the servicer classes of armada-client: stateful, in threads of the test.

`serving(...)` gives an `ArmadaStub`. It has Armada's own habits: a limit of ids a call, UNKNOWN for what it
does not know yet, cancellation that takes its time, deduplication by `queue:client_id`, and the trap that a
cancellation without an id ends the whole job set.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from armada_client.armada import (
    binoculars_pb2,
    binoculars_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    health_pb2,
    job_pb2,
    job_pb2_grpc,
    submit_pb2,
    submit_pb2_grpc,
)

from jobrunner.backends.armada.ids import JobKey

State = submit_pb2.JobState
TERMINAL = {State.SUCCEEDED, State.FAILED, State.PREEMPTED, State.CANCELLED, State.REJECTED}
_THREADS = 40
_LOOK_S = 0.02


@dataclass(slots=True)
class Call:
    """A request that arrived."""

    method: str
    authorization: str
    ids: int
    request: Any
    deadline_s: float | None
    """Seconds that the client gave it; None: no deadline."""


@dataclass(slots=True)
class _Fault:
    method: str
    code: grpc.StatusCode | None
    details: str
    left: float
    performed: bool
    hangs_s: float


@dataclass(slots=True)
class Job:
    """A job in Armada."""

    key: JobKey
    item: Any
    state: int
    made_s: float
    error: str = ""
    cancelled_at_s: float | None = None
    cancel_reason: str = ""
    cluster: str = ""
    started: bool = False
    log: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


class ArmadaStub:
    """The jobs, and how badly they are served. All attributes may be set at any time."""

    def __init__(self, *, port: int = 0, credentials: Any = None, **options: Any) -> None:
        self.max_query_items = 500
        self.max_cancel_items = 500
        self.too_many = (grpc.StatusCode.UNKNOWN, "request contained more than {most} {word}")
        """How too many ids are refused."""
        self.delay_s = 0.0
        """Before each answer."""
        self.appear_after_s = 0.0
        self.cancel_takes_s = 0.0
        self.known_queues: set[str] | None = None
        self.authorization: str | None = None
        """Where set: what every call must carry."""
        self.keeps_client_ids = True
        self.lists_by_uri = True
        self.states: dict[str, Any] = {}
        """What is told of an id, whatever is true of it."""
        self.calls: list[Call] = []
        self.cancelled_job_sets: list[tuple[str, str]] = []
        self.jobs: dict[str, Job] = {}
        self._client_ids: dict[str, str] = {}
        self._faults: list[_Fault] = []
        self._events: dict[tuple[str, str], list[Any]] = {}
        self._deaf_before = 0
        self._streams = 0
        self.lock = threading.RLock()
        self._news = threading.Condition(self.lock)
        self._stopped = threading.Event()
        self._credentials = credentials
        self._server: grpc.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.port = port
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    # --- the hand that moves it --------------------------------------------------------------------

    def start(self) -> None:
        """Listen; a second time, on the same port, with the same jobs."""
        self._stopped.clear()
        self._pool = ThreadPoolExecutor(_THREADS)
        server = grpc.server(self._pool)
        submit_pb2_grpc.add_SubmitServicer_to_server(_Submit(self), server)  # type: ignore[no-untyped-call]
        job_pb2_grpc.add_JobsServicer_to_server(_Jobs(self), server)  # type: ignore[no-untyped-call]
        event_pb2_grpc.add_EventServicer_to_server(_Event(self), server)  # type: ignore[no-untyped-call]
        binoculars_pb2_grpc.add_BinocularsServicer_to_server(_Binoculars(self), server)  # type: ignore[no-untyped-call]
        address = f"localhost:{self.port}"
        self.port = (
            server.add_insecure_port(address)
            if self._credentials is None
            else server.add_secure_port(address, self._credentials)
        )
        server.start()
        self._server = server

    def stop(self) -> None:
        """Be gone: whoever is connected is cut off."""
        self._stopped.set()
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None
        if self._pool is not None:
            self._pool.shutdown()

    def fault(
        self,
        method: str,
        code: grpc.StatusCode | None = None,
        details: str = "",
        *,
        times: float | None = 1,
        performed: bool = False,
        hangs_s: float = 0.0,
    ) -> None:
        """Serve a method ("*": any) badly so many times (None: until cleared).

        `performed`: it is done all the same. `hangs_s`: it takes that long. Without a code it is answered.
        """
        with self.lock:
            left = float("inf") if times is None else times
            self._faults.append(_Fault(method, code, details, left, performed, hangs_s))

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def forget_calls(self) -> None:
        with self.lock:
            self.calls.clear()

    def calls_per_method(self) -> dict[str, int]:
        with self.lock:
            return dict(Counter(call.method for call in self.calls))

    def external_ids(self) -> list[str]:
        with self.lock:
            return [job.key.join() for job in self.jobs.values()]

    def job(self, external_id: str) -> Job:
        with self.lock:
            return self.jobs[JobKey.split(external_id).job_id]

    def move(self, external_id: str, state: int, error: str = "", *, tells: bool = True) -> None:
        """Bring a job into a state. `tells`: its job set's event stream says so."""
        with self.lock:
            job = self.job(external_id)
            job.state, job.error = state, error
            if state in {State.LEASED, State.PENDING, State.RUNNING}:
                job.cluster = "cluster-1"
                job.started = job.started or state == State.RUNNING
            if tells:
                self._tell(job)

    def move_all(self, state: int, error: str = "", *, every: int = 1) -> None:
        """Bring all jobs, or each so manieth, into a state; no stream says so."""
        for external_id in self.external_ids()[::every]:
            self.move(external_id, state, error, tells=False)

    def is_over(self, external_id: str) -> bool:
        """Whether a job has ended."""
        with self.lock:
            return self._state_of(self.job(external_id)) in TERMINAL

    def run(self, external_id: str) -> None:
        self.move(external_id, State.RUNNING)

    def succeed(self, external_id: str) -> None:
        self.move(external_id, State.SUCCEEDED)

    def fail(self, external_id: str, error: str = "container main failed with exit code 1") -> None:
        self.move(external_id, State.FAILED, error)

    def forget(self, external_id: str) -> None:
        with self.lock:
            del self.jobs[JobKey.split(external_id).job_id]

    def silence_streams(self) -> None:
        """Let the streams that are open say nothing more, and stay open."""
        with self.lock:
            self._deaf_before = self._streams

    def seed(self, queue: str, job_set: str, count: int = 1) -> list[str]:
        """Make jobs as somebody else does, and return their external ids."""
        with self.lock:
            return [
                self._make(queue, job_set, submit_pb2.JobSubmitRequestItem()).key.join() for _ in range(count)
            ]

    # --- inside ------------------------------------------------------------------------------------

    def _make(self, queue: str, job_set: str, item: Any) -> Job:
        job_id = f"01{len(self.jobs) + 1:024d}"
        job = Job(JobKey(queue, job_set, job_id), item, State.QUEUED, time.monotonic())
        self.jobs[job_id] = job
        self._tell(job)
        return job

    def _tell(self, job: Job) -> None:
        kinds: dict[int, tuple[str, Callable[..., Any]]] = {
            State.QUEUED: ("queued", event_pb2.JobQueuedEvent),
            State.PENDING: ("pending", event_pb2.JobPendingEvent),
            State.RUNNING: ("running", event_pb2.JobRunningEvent),
            State.SUCCEEDED: ("succeeded", event_pb2.JobSucceededEvent),
            State.FAILED: ("failed", event_pb2.JobFailedEvent),
            State.PREEMPTED: ("preempted", event_pb2.JobPreemptedEvent),
            State.CANCELLED: ("cancelled", event_pb2.JobCancelledEvent),
        }
        if job.state not in kinds:
            return
        name, kind = kinds[job.state]
        told = kind(job_id=job.key.job_id, job_set_id=job.key.job_set, queue=job.key.queue)
        log = self._events.setdefault((job.key.queue, job.key.job_set), [])
        number = f"{int(time.time() * 1000)}:{len(log)}:0:1"
        message = event_pb2.EventMessage(**{name: told})
        log.append(event_pb2.EventStreamMessage(id=number, message=message))
        self._news.notify_all()

    def _state_of(self, job: Job) -> Any:
        at_s = job.cancelled_at_s
        if job.state not in TERMINAL and at_s is not None and time.monotonic() >= at_s:
            job.state = State.CANCELLED
            self._tell(job)
        return job.state

    def _seen(self, job_id: str) -> Job | None:
        job = self.jobs.get(job_id)
        if job is None or time.monotonic() - job.made_s < self.appear_after_s:
            return None
        return job

    def serve(self, method: str, request: Any, context: Any, answer: Callable[[], Any], ids: int = 0) -> Any:
        """Answer a call, badly where it was told to."""
        given = dict(context.invocation_metadata())
        authorization = str(given.get("authorization", ""))
        left_s = context.time_remaining()
        if self.delay_s:
            self._stopped.wait(self.delay_s)
        with self.lock:
            deadline_s = left_s if left_s is not None and left_s < 1e6 else None
            self.calls.append(Call(method, authorization, ids, request, deadline_s))
            fault = next(
                (each for each in self._faults if each.method in {"*", method} and each.left > 0), None
            )
            if fault is not None:
                fault.left -= 1
            if fault is None or (fault.performed and fault.code is not None):
                if self.authorization is not None and authorization != self.authorization:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, f"no user for {authorization or 'nobody'}")
                answered = answer()
        if fault is None:
            return answered
        if fault.hangs_s:
            self._stopped.wait(fault.hangs_s)
        if fault.code is not None:
            context.abort(fault.code, fault.details)
        with self.lock:
            return answer()

    def submit(self, request: Any, context: Any) -> Any:
        if self.known_queues is not None and request.queue not in self.known_queues:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f'could not find queue "{request.queue}"')
        items = []
        for item in request.job_request_items:
            if not item.namespace:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "namespace is a required field")
            known = f"{request.queue}:{item.client_id}"
            if known not in self._client_ids or not item.client_id:
                job = self._make(request.queue, request.job_set_id, item)
                if item.client_id and self.keeps_client_ids:
                    self._client_ids[known] = job.key.job_id
                items.append(job.key.job_id)
            else:
                items.append(self._client_ids[known])
        return submit_pb2.JobSubmitResponse(
            job_response_items=[submit_pb2.JobSubmitResponseItem(job_id=each) for each in items]
        )

    def cancel(self, request: Any, context: Any) -> Any:
        if len(request.reason.encode()) > 50:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "reason cannot be longer than 50 bytes")
        if len(request.job_ids) > self.max_cancel_items:
            self._refuse_count(self.max_cancel_items, "jobIds", context)
        ids = [each for each in (*request.job_ids, request.job_id) if each]
        if not ids:
            self.cancelled_job_sets.append((request.queue, request.job_set_id))
            ids = [
                job.key.job_id
                for job in self.jobs.values()
                if job.key[:2] == (request.queue, request.job_set_id)
            ]
        for each in ids:
            job = self.jobs.get(each)
            if job is not None and job.key[:2] == (request.queue, request.job_set_id):
                if job.cancelled_at_s is None:
                    job.cancelled_at_s = time.monotonic() + self.cancel_takes_s
                job.cancel_reason = request.reason
        return submit_pb2.CancellationResult(cancelled_ids=ids)

    def check_count(self, count: int, word: str, context: Any) -> None:
        if count > self.max_query_items:
            self._refuse_count(self.max_query_items, word, context)

    def _refuse_count(self, most: int, word: str, context: Any) -> None:
        code, words = self.too_many
        context.abort(code, words.format(most=most, word=word))

    def status(self, request: Any, context: Any) -> Any:
        self.check_count(len(request.job_ids), "jobIds", context)
        states = {}
        for each in request.job_ids:
            job = self._seen(each)
            state = State.UNKNOWN if job is None else self._state_of(job)
            states[each] = self.states.get(each, state)
        return job_pb2.JobStatusResponse(job_states=states)

    def by_uri(self, request: Any, context: Any) -> Any:
        if not self.lists_by_uri:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method GetJobStatusUsingExternalJobUri")
        found = {
            job.key.job_id: self._state_of(job)
            for job in self.jobs.values()
            if job.item.external_job_uri == request.external_job_uri
            and job.key[:2] == (request.queue, request.jobset)
            and self._seen(job.key.job_id) is not None
        }
        return job_pb2.JobStatusResponse(job_states=found)

    def errors(self, request: Any, context: Any) -> Any:
        self.check_count(len(request.job_ids), "JobIds", context)
        found = {each: self.jobs[each].error for each in request.job_ids if each in self.jobs}
        return job_pb2.JobErrorsResponse(job_errors=found)

    def details(self, request: Any, context: Any) -> Any:
        self.check_count(len(request.job_ids), "jobIds", context)
        found = {}
        for each in request.job_ids:
            job = self._seen(each)
            if job is None:
                continue
            detail = job_pb2.JobDetails(
                job_id=each,
                queue=job.key.queue,
                jobset=job.key.job_set,
                namespace=job.item.namespace,
                state=self._state_of(job),
                cancel_reason=job.cancel_reason,
                latest_run_id="run-1" if job.cluster else "",
            )
            if job.cluster and request.expand_job_run:
                run = detail.job_runs.add(run_id="run-1", job_id=each, cluster=job.cluster, node="node-7")
                if job.started:
                    run.started_ts.GetCurrentTime()
            found[each] = detail
        return job_pb2.JobDetailsResponse(job_details=found)

    def stream(self, request: Any, context: Any) -> Iterator[Any]:
        with self.lock:
            self._streams += 1
            number = self._streams
        start = tuple(int(part) for part in request.from_message_id.split(":") if part)
        sent = 0
        while context.is_active() and not self._stopped.is_set():
            with self._news:
                log = self._events.get((request.queue, request.id), [])
                if number <= self._deaf_before or len(log) <= sent:
                    if not request.watch:
                        return
                    self._news.wait(_LOOK_S)
                    continue
                news, sent = log[sent:], len(log)
            for message in news:
                if tuple(int(part) for part in message.id.split(":")) > start:
                    yield message

    def logs(self, request: Any, context: Any) -> Any:
        job = self.jobs.get(request.job_id)
        if job is None or not job.log or request.pod_namespace != job.item.namespace:
            context.abort(grpc.StatusCode.NOT_FOUND, "The pod with these logs doesn't exist")
        assert job is not None  # for the type checker
        name = request.log_options.container
        if not name and len(job.log) > 1:
            names = " ".join(job.log)
            context.abort(
                grpc.StatusCode.UNKNOWN,
                f"a container name must be specified for pod armada-x-0, choose one of: [{names}]",
            )
        second = request.since_time.partition(".")[0].rstrip("Z")
        found = [
            binoculars_pb2.LogLine(timestamp=at, line=line)
            for at, line in job.log[name or next(iter(job.log))]
            if at >= second
        ]
        most, size = 2_000_000, 0
        for index, line in enumerate(found):
            size += len(line.line) + 31
            if size > most:
                found = found[:index]
                break
        return binoculars_pb2.LogResponse(log=found)


class _Submit(submit_pb2_grpc.SubmitServicer):
    def __init__(self, stub: ArmadaStub) -> None:
        self.stub = stub

    def SubmitJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.stub.serve("SubmitJobs", request, context, lambda: self.stub.submit(request, context))

    def CancelJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        ids = len(request.job_ids)
        return self.stub.serve(
            "CancelJobs", request, context, lambda: self.stub.cancel(request, context), ids
        )

    def Health(self, request: Any, context: Any) -> Any:  # noqa: N802
        serving = health_pb2.HealthCheckResponse.SERVING
        return self.stub.serve(
            "Health", request, context, lambda: health_pb2.HealthCheckResponse(status=serving)
        )


class _Jobs(job_pb2_grpc.JobsServicer):
    def __init__(self, stub: ArmadaStub) -> None:
        self.stub = stub

    def GetJobStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        ids = len(request.job_ids)
        return self.stub.serve(
            "GetJobStatus", request, context, lambda: self.stub.status(request, context), ids
        )

    def GetJobStatusUsingExternalJobUri(self, request: Any, context: Any) -> Any:  # noqa: N802
        method = "GetJobStatusUsingExternalJobUri"
        return self.stub.serve(method, request, context, lambda: self.stub.by_uri(request, context))

    def GetJobErrors(self, request: Any, context: Any) -> Any:  # noqa: N802
        ids = len(request.job_ids)
        return self.stub.serve(
            "GetJobErrors", request, context, lambda: self.stub.errors(request, context), ids
        )

    def GetJobDetails(self, request: Any, context: Any) -> Any:  # noqa: N802
        ids = len(request.job_ids)
        return self.stub.serve(
            "GetJobDetails", request, context, lambda: self.stub.details(request, context), ids
        )


class _Event(event_pb2_grpc.EventServicer):
    def __init__(self, stub: ArmadaStub) -> None:
        self.stub = stub

    def GetJobSetEvents(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.stub.serve("GetJobSetEvents", request, context, lambda: None)
        yield from self.stub.stream(request, context)


class _Binoculars(binoculars_pb2_grpc.BinocularsServicer):
    def __init__(self, stub: ArmadaStub) -> None:
        self.stub = stub

    def Logs(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.stub.serve("Logs", request, context, lambda: self.stub.logs(request, context))


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[ArmadaStub]:
    """Serve Armada meanwhile. `options`: attributes of the stub; `credentials`: of a server, for TLS."""
    stub = ArmadaStub(**options)
    stub.start()
    try:
        yield stub
    finally:
        stub.stop()
