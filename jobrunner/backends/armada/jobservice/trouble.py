"""What the errors of gRPC mean for whoever asked the JobService."""

from typing import Any

from jobrunner.errors import BackendError
from jobrunner.extras import require

_NOT_ALLOWED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
# Everything else may be over in a moment; a Go server answers UNKNOWN when its own database is away.
_FOR_GOOD = _NOT_ALLOWED | {"UNIMPLEMENTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"}


class JobServiceError(BackendError):
    """The JobService gave no answer. `code` is gRPC's word for it.

    `is_passing`: it may be asked again; else a person has to change something first.
    """

    def __init__(self, message: str, *, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_passing(self) -> bool:
        """Whether it may be asked again."""
        return self.code not in _FOR_GOOD


def trouble_of(error: Exception, call_s: float | None = None) -> JobServiceError | None:
    """Return what an error of gRPC means, in one sentence; None where it is none of gRPC.

    `call_s`: the seconds that the call was given.
    """
    if isinstance(error, JobServiceError):
        return error
    grpc = require("grpc", "armada", "The Armada JobService")
    if not isinstance(error, grpc.RpcError):
        return None
    code, details = _read(error)
    within = "in time" if call_s is None else f"within {call_s:g} s"
    told = {
        "UNAVAILABLE": f"the Armada JobService cannot be reached: {details}",
        "DEADLINE_EXCEEDED": f"the Armada JobService gave no answer {within}",
        "UNIMPLEMENTED": f"what answers is no Armada JobService, whose port is usually 60003: {details}",
    }
    refused = "refused the credentials" if code in _NOT_ALLOWED else f"answered with {code}"
    return JobServiceError(told.get(code, f"the Armada JobService {refused}: {details}"), code=code)


def _read(error: Any) -> tuple[str, str]:
    # A bare RpcError, as tests raise it, has neither.
    code = error.code() if callable(getattr(error, "code", None)) else None
    details = error.details() if callable(getattr(error, "details", None)) else str(error)
    words = " ".join(str(details or "").split()).rstrip(".")
    return getattr(code, "name", "UNKNOWN"), words or "it gave no reason"
