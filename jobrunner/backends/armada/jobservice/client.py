"""`JobServiceClient`: the two calls of the JobService, each with a deadline."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from jobrunner.backends.armada.jobservice.states import JobStatus
from jobrunner.backends.armada.jobservice.trouble import trouble_of
from jobrunner.errors import UsageError
from jobrunner.extras import require

if TYPE_CHECKING:
    from jobrunner.backends.armada.jobservice.jobservice_pb2 import HealthCheckResponse, JobServiceRequest

CALL_S = 10.0
"""How long one call may take, in seconds: the service answers from its cache."""

_WHAT = "The Armada JobService"


def methods(channel: Any) -> dict[str, Any]:
    """Return the service's methods on a gRPC channel, by their names.

    Without a generated stub: what grpcio-tools makes refuses every grpcio that is older than itself.
    """
    wire = require(f"{__package__}.jobservice_pb2", "armada", _WHAT)
    empty = require("google.protobuf.empty_pb2", "armada", _WHAT)
    return {
        "GetJobStatus": channel.unary_unary(
            "/jobservice.JobService/GetJobStatus",
            request_serializer=wire.JobServiceRequest.SerializeToString,
            response_deserializer=wire.JobServiceResponse.FromString,
        ),
        "Health": channel.unary_unary(
            "/jobservice.JobService/Health",
            request_serializer=empty.Empty.SerializeToString,
            response_deserializer=wire.HealthCheckResponse.FromString,
        ),
    }


class JobServiceClient:
    """Asks the JobService over a gRPC channel: `JobServiceClient(grpc.insecure_channel("host:60003"))`.

    `channel`: a `grpc.Channel` of any making; it stays the caller's to close.
    `max_workers`: how many calls of `get_job_status_future` are under way at once; None: as many as
    there are CPUs. The threads start with the first of them. `call_s`: seconds that one call may take.

    It may be used from any thread. Raises `UsageError` for what is no channel, and where grpcio is missing.
    """

    def __init__(self, channel: Any, max_workers: int | None = None, *, call_s: float = CALL_S) -> None:
        grpc = require("grpc", "armada", _WHAT)
        if not isinstance(channel, grpc.Channel):
            raise UsageError(
                f"JobServiceClient needs a grpc.Channel, such as grpc.insecure_channel('host:60003'), "
                f"not {type(channel).__name__} of {type(channel).__module__}."
            )
        if max_workers is not None and max_workers < 1:
            raise UsageError(f"max_workers must be 1 or more, not {max_workers}.")
        if not call_s > 0:
            raise UsageError(f"call_s must be a number of seconds above 0, not {call_s:g}.")
        self.max_workers = max_workers or os.cpu_count() or 1
        self.call_s = call_s
        self.channel = channel
        self._methods = methods(channel)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def get_job_status(self, queue: str, job_set_id: str, job_id: str) -> JobStatus:
        """Ask for one job, and return the wire's JobServiceResponse: `state` (see `JobState`) and `error`.

        Raises `JobServiceError` where there is no answer within `call_s`, `UsageError` for an empty name.
        """
        status: JobStatus = self._call("GetJobStatus", _question(queue, job_set_id, job_id))
        return status

    def get_job_status_future(self, queue: str, job_set_id: str, job_id: str) -> Future[JobStatus]:
        """Do the same in a thread, at most `max_workers` at a time, and return what becomes of it."""
        question = _question(queue, job_set_id, job_id)
        with self._lock:
            self._ensure_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.max_workers, thread_name_prefix="jobrunner-jobservice")
            return self._pool.submit(self._call, "GetJobStatus", question)

    def health(self) -> "HealthCheckResponse":
        """Ask how the service itself is; `status` is 1 where it serves. Raises `JobServiceError`."""
        from google.protobuf import empty_pb2

        answer: HealthCheckResponse = self._call("Health", empty_pb2.Empty())
        return answer

    def close(self) -> None:
        """Give the threads back: what waits for one is cancelled, what is under way ends by its deadline."""
        with self._lock:
            self._is_closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _call(self, method: str, question: Any) -> Any:
        self._ensure_open()
        try:
            return self._methods[method](question, timeout=self.call_s)
        except ValueError as error:  # how grpc says that the channel was closed
            raise UsageError(f"This JobServiceClient can no longer ask: {error}") from error
        except Exception as error:
            trouble = trouble_of(error, self.call_s)
            if trouble is None:
                raise
            raise trouble from error

    def _ensure_open(self) -> None:
        if self._is_closed:
            raise UsageError("This JobServiceClient is closed.")


def _question(queue: str, job_set_id: str, job_id: str) -> "JobServiceRequest":
    from jobrunner.backends.armada.jobservice.jobservice_pb2 import JobServiceRequest

    names: dict[str, Any] = {"queue": queue, "job_set_id": job_set_id, "job_id": job_id}
    for name, value in names.items():
        if not isinstance(value, str) or not value:
            raise UsageError(f"{name} must be a text that is not empty, not {value!r}.")
    return JobServiceRequest(**names)
