"""What went wrong in a call to Armada: one sentence, and what may follow from it."""

import re
from enum import Enum, auto
from typing import Any

from jobrunner.errors import BackendError
from jobrunner.redaction import mask_url

_WORDS_MOST = 500
TOO_LARGE = re.compile(r"larger than max", re.IGNORECASE)
"""How gRPC says that a message has too many bytes."""
_HTTP_STATUS = re.compile(r"http2? header with status: (\d{3})", re.IGNORECASE)
_NOT_GRPC = re.compile(
    r"http2? header with status|Failed parsing HTTP/2|"
    r"Trying to connect an http1\.x server|invalid content-type|"
    r"unexpected content-type|frame of type \d+|preface",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(r"^failed to connect to all addresses; last error: \w+: (?:ipv[46]:\S+: )?")
_OF_TLS = re.compile(r"ssl|tls|certificate|handshake", re.IGNORECASE)


class Kind(Enum):
    """What may follow from a failure."""

    NETWORK = auto()
    """It could not be reached. Whether something was sent is told by where it is raised."""
    NO_ANSWER = auto()
    """It may have been done, or not."""
    CREDENTIALS = auto()
    PERMISSION = auto()
    THROTTLED = auto()
    REFUSED = auto()
    """The server said no, for good."""
    NOT_ARMADA = auto()
    """Something else listens there."""
    UNCLEAR = auto()


class ArmadaError(BackendError):
    """Armada did not answer as it should. `kind` says what may follow from it.

    `details`: the server's own words. `is_missing_method`: it speaks gRPC, and has not this one method.
    """

    def __init__(
        self, message: str, kind: Kind, *, details: str = "", is_missing_method: bool = False
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details
        self.is_missing_method = is_missing_method


_OF_A_PROXY = {
    "401": ("refused the credentials for", Kind.CREDENTIALS),
    "403": ("refused", Kind.PERMISSION),
    "408": ("gave up", Kind.UNCLEAR),
    "429": ("throttled", Kind.THROTTLED),
    **dict.fromkeys(("500", "502", "503", "504"), ("could not pass on", Kind.UNCLEAR)),
}


def trouble_of(error: Any, method: str, place: str, timeout_s: float) -> ArmadaError:
    """Return what a `grpc.RpcError` of a call to `method` at `place` (an address) means."""
    code = str(getattr(error.code(), "name", error.code()))
    details = _PREAMBLE.sub("", one_line(error.details() or ""))
    told = details or "no reason was given"
    status = _HTTP_STATUS.search(details)
    if status and status[1] in _OF_A_PROXY:
        # Whether it passed the request on before, nobody knows; but Armada is behind it.
        words, kind = _OF_A_PROXY[status[1]]
        return ArmadaError(f"a proxy before {place} {words} {method}: {told}", kind, details=details)
    if code == "UNIMPLEMENTED" or _NOT_GRPC.search(details):
        return ArmadaError(
            f"{place} answered {method}, but not as Armada does ({told}): give `url` the server's gRPC port",
            Kind.NOT_ARMADA,
            details=details,
            is_missing_method=not _NOT_GRPC.search(details),
        )
    if code == "RESOURCE_EXHAUSTED" and TOO_LARGE.search(details):
        return ArmadaError(f"{method} is too large: {told}", Kind.REFUSED, details=details)
    words, kind = {
        "UNAVAILABLE": (_unreachable(place, method, told), Kind.NETWORK),
        "DEADLINE_EXCEEDED": (f"{place} gave no answer to {method} within {timeout_s:g} s", Kind.NO_ANSWER),
        "UNAUTHENTICATED": (f"Armada refused the credentials for {method}: {told}", Kind.CREDENTIALS),
        "PERMISSION_DENIED": (f"permission denied for {method}: {told}", Kind.PERMISSION),
        "RESOURCE_EXHAUSTED": (f"{method} was throttled: {told}", Kind.THROTTLED),
        "INVALID_ARGUMENT": (f"{method}: {told}", Kind.REFUSED),
        "NOT_FOUND": (f"{method}: {told}", Kind.REFUSED),
        "FAILED_PRECONDITION": (f"{method}: {told}", Kind.REFUSED),
        "OUT_OF_RANGE": (f"{method}: {told}", Kind.REFUSED),
    }.get(code, (f"{method} got no clear answer from {place}: {code}: {told}", Kind.UNCLEAR))
    return ArmadaError(words, kind, details=details)


def _unreachable(place: str, method: str, told: str) -> str:
    hint = ""
    if _OF_TLS.search(told):
        hint = ": look at `tls`, `ca_file` and the port"
    elif "empty response" in told.lower() or "socket closed" in told.lower():
        hint = ": look at `tls` and the port"
    return f"{place} cannot be reached for {method} ({told}){hint}"


def one_line(text: str) -> str:
    """Return a text in one line of a bearable length, without passwords in addresses."""
    return mask_url(" ".join(text.split()))[:_WORDS_MOST].rstrip(".")
