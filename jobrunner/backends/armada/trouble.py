"""What went wrong in a call to Armada: one sentence, and what may follow from it."""

import re
from enum import Enum, auto
from typing import Any

from jobrunner.errors import BackendError
from jobrunner.redaction import mask_url

_WORDS_MOST = 500
_TOO_LARGE = re.compile(r"larger than max", re.IGNORECASE)
_TOO_MANY_IDS = re.compile(r"contained more than (\d+) \w*ids", re.IGNORECASE)
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
    TOO_MANY_IDS = auto()
    NOT_ARMADA = auto()
    """Something else listens there."""
    UNCLEAR = auto()


class ArmadaError(BackendError):
    """Armada did not answer as it should. `kind` says what may follow from it.

    `details`: the server's own words. `most`: how many ids it takes, where there were too many.
    """

    def __init__(self, message: str, kind: Kind, *, details: str = "", most: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details
        self.most = most


def trouble_of(error: Any, method: str, place: str, timeout_s: float) -> ArmadaError:
    """Return what a `grpc.RpcError` of a call to `method` at `place` (an address) means."""
    code = str(getattr(error.code(), "name", error.code()))
    details = _PREAMBLE.sub("", one_line(error.details() or ""))
    told = details or "no reason was given"
    too_many = _TOO_MANY_IDS.search(details)
    if too_many:
        return ArmadaError(
            f"{method}: {details}", Kind.TOO_MANY_IDS, details=details, most=max(1, int(too_many[1]))
        )
    if code == "UNIMPLEMENTED" or _NOT_GRPC.search(details):
        return ArmadaError(
            f"{place} answered {method}, but not as Armada does ({told}): give `url` the server's gRPC port",
            Kind.NOT_ARMADA,
            details=details,
        )
    if code == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(details):
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
