"""Armada's old JobService over real gRPC: a cache that is fed late, forgets, and fails to order.

    with serving() as service:
        service.put("queue", "job-set", "01h…", JobState.RUNNING)

The cache of a job set is filled by an event subscription that the first question about it starts; so the
first answer is JOB_ID_NOT_FOUND, and the later ones too until `lag` questions were asked.
"""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2

from jobrunner.backends.armada.jobservice import JobState
from jobrunner.backends.armada.jobservice import jobservice_pb2 as wire

Key = tuple[str, str]


@dataclass(slots=True)
class Fault:
    """What answers in place of the service: a code of gRPC, or `state` with `error`."""

    code: grpc.StatusCode | None = None
    state: int | None = None
    error: str = ""


class JobService:
    """The service and the hand that moves its world. For any thread."""

    def __init__(self, *, lag: int = 0) -> None:
        self.address = ""
        self.lag = lag
        self.asked: list[tuple[str, str, str]] = []
        """(queue, job set, job id) of each question, in order."""
        self.metadata: list[dict[str, str]] = []
        self.deadlines_s: list[float] = []
        self.under_way_most = 0
        self.serving = wire.HealthCheckResponse.SERVING
        self.health_fault: grpc.StatusCode | None = None
        self.authorization: str | None = None
        """What a caller must bring, where it must bring something."""
        self.disconnected: dict[Key, str] = {}
        """Job sets whose subscription is broken, and why: CONNECTION_ERR for each job the cache knows."""
        self._faults: deque[Fault] = deque()
        self._events: dict[Key, dict[str, tuple[int, str]]] = {}
        self._cache: dict[Key, dict[str, tuple[int, str]]] = {}
        self._questions: Counter[Key] = Counter()
        self._under_way = 0
        self._changed = threading.Condition()
        self._is_held = False

    # --- the hand ---------------------------------------------------------------------------------

    def put(self, queue: str, job_set: str, job_id: str, state: int, error: str = "") -> None:
        """Let something happen to a job; the cache hears of it where it is subscribed."""
        with self._changed:
            self._events.setdefault((queue, job_set), {})[job_id] = (state, error)

    def purge(self, queue: str, job_set: str) -> None:
        """Forget a job set and its subscription; the next question starts it anew."""
        with self._changed:
            self._cache.pop((queue, job_set), None)
            self._questions.pop((queue, job_set), None)

    def fail(self, code: grpc.StatusCode, times: int = 1) -> None:
        """Answer the next questions with an error of gRPC."""
        self._faults.extend([Fault(code)] * times)

    def answer(self, state: int, error: str = "", times: int = 1) -> None:
        """Answer the next questions with this, whatever the cache knows."""
        self._faults.extend([Fault(state=state, error=error)] * times)

    def hold(self) -> None:
        """Answer nothing until `let_go`."""
        with self._changed:
            self._is_held = True

    def let_go(self) -> None:
        """Answer what was held, and all that follows."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def wait_for_under_way(self, count: int) -> bool:
        """Wait until so many questions are held; False where they do not come."""
        with self._changed:
            return self._changed.wait_for(lambda: self._under_way >= count, timeout=10)

    # --- the service ------------------------------------------------------------------------------

    def get_job_status(self, question: wire.JobServiceRequest, context: Any) -> wire.JobServiceResponse:
        """Answer GetJobStatus."""
        with self._changed:
            self._under_way += 1
            self.under_way_most = max(self.under_way_most, self._under_way)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_held or not context.is_active())
            self._under_way -= 1
            self._note(question, context)
            fault = self._faults.popleft() if self._faults else None
        if fault is not None and fault.code is not None:
            context.abort(fault.code, f"ordered: {fault.code.name}")
        if fault is not None:
            return _response(fault.state or 0, fault.error)
        with self._changed:
            return self._from_cache(question)

    def health(self, _nothing: empty_pb2.Empty, context: Any) -> wire.HealthCheckResponse:
        """Answer Health, which asks Armada's event API in turn."""
        self._check(context)
        if self.health_fault is not None:
            context.abort(self.health_fault, "Health Check Failed for Events")
        return wire.HealthCheckResponse(status=self.serving)

    def _note(self, question: wire.JobServiceRequest, context: Any) -> None:
        self._check(context)
        self.asked.append((question.queue, question.job_set_id, question.job_id))
        self.deadlines_s.append(context.time_remaining())

    def _check(self, context: Any) -> None:
        given = {key: str(value) for key, value in context.invocation_metadata()}
        self.metadata.append(given)
        if self.authorization is not None and given.get("authorization") != self.authorization:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request in not authenticated")

    def _from_cache(self, question: wire.JobServiceRequest) -> wire.JobServiceResponse:
        key = question.queue, question.job_set_id
        known = self._cache.get(key, {}).get(question.job_id)
        self._questions[key] += 1
        if self._questions[key] > self.lag and key not in self.disconnected:
            self._cache[key] = dict(self._events.get(key, {}))
        if self.lag == 0:
            known = self._cache.get(key, {}).get(question.job_id)
        if known is None:
            return _response(JobState.JOB_ID_NOT_FOUND)
        if key in self.disconnected:
            return _response(JobState.CONNECTION_ERR, self.disconnected[key])
        return _response(*known)


def _response(state: int, error: str = "") -> wire.JobServiceResponse:
    # A number that the proto does not know goes over the wire like any other.
    return wire.JobServiceResponse.FromString(
        bytes([8, state]) + wire.JobServiceResponse(error=error).SerializeToString()
    )


def _handler(service: JobService) -> grpc.GenericRpcHandler:
    handlers = {
        "GetJobStatus": grpc.unary_unary_rpc_method_handler(
            service.get_job_status,
            request_deserializer=wire.JobServiceRequest.FromString,
            response_serializer=wire.JobServiceResponse.SerializeToString,
        ),
        "Health": grpc.unary_unary_rpc_method_handler(
            service.health,
            request_deserializer=empty_pb2.Empty.FromString,
            response_serializer=wire.HealthCheckResponse.SerializeToString,
        ),
    }
    return grpc.method_handlers_generic_handler("jobservice.JobService", handlers)


@contextlib.contextmanager
def serving(
    service: JobService | None = None, *, port: int = 0, certificate: tuple[Path, Path] | None = None
) -> Iterator[JobService]:
    """Serve on a free port of this host, and end with the block; `certificate` (and its key) for TLS."""
    service = service or JobService()
    pool = ThreadPoolExecutor(32)
    server = grpc.server(pool, handlers=[_handler(service)], options=[("grpc.so_reuseport", 0)])
    if certificate is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair = certificate[1].read_bytes(), certificate[0].read_bytes()
        bound = server.add_secure_port(f"localhost:{port}", grpc.ssl_server_credentials([pair]))
    service.address = f"127.0.0.1:{bound}" if certificate is None else f"localhost:{bound}"
    server.start()
    try:
        yield service
    finally:
        service.let_go()
        server.stop(0).wait(5)
        pool.shutdown(wait=True)


@contextlib.contextmanager
def serving_nothing() -> Iterator[str]:
    """Serve gRPC without any service, and yield the address."""
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool)
    bound = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait(5)
        pool.shutdown(wait=True)
