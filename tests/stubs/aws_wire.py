"""How AWS answers and refuses on the wire: REST-JSON for Batch, JSON 1.1 for Logs, query for STS."""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qs

Payload = dict[str, Any]
FaultKind = Literal[
    "throttled",
    "throttled_400",
    "server_error",
    "html",
    "access_denied",
    "expired_token",
    "unknown_token",
    "clock_skew",
    "lost_answer",
    "hang",
    "delay",
    "slow_body",
]

ACCOUNT = "123456789012"
REGION = "eu-west-1"
ARN = f"arn:aws:batch:{REGION}:{ACCOUNT}"
_USER = f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/session"
_JSON = "Content-Type: application/json\r\n"
_XML = "Content-Type: text/xml\r\n"
_HTML = b"<html><head><title>%d</title></head><body><h1>Something between answered</h1></body></html>"
_STS_NAMES = "https://sts.amazonaws.com/doc/2011-06-15/"
_STAMP = "%Y%m%dT%H%M%SZ"
_BATCH = (
    *("SubmitJob", "DescribeJobs", "ListJobs", "CancelJob", "CancelJobs", "TerminateJob", "TerminateJobs"),
    *("DescribeJobQueues", "DescribeJobDefinitions"),
)
_BATCH_PATHS = {f"/v1/{name.lower()}": name for name in _BATCH}


class Refused(Exception):
    """The service says no."""

    def __init__(self, message: str, code: str = "ClientException", status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(slots=True)
class Answer:
    """Of HTTP."""

    status: int
    body: bytes
    headers: str = _JSON


def operation_of(path: str, headers: dict[str, str], body: bytes) -> str:
    """Return which operation a request asks for; the path where none is known."""
    if "x-amz-target" in headers:
        return headers["x-amz-target"].partition(".")[2]
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return parse_qs(body.decode()).get("Action", [path])[0]
    return _BATCH_PATHS.get(path, path)


def signed_at_s(headers: dict[str, str]) -> float:
    """Return when a request was signed, in whole seconds of Unix time."""
    if "x-amz-date" not in headers:
        raise Refused("Missing Authentication Token", "MissingAuthenticationTokenException", 403)
    return datetime.strptime(headers["x-amz-date"], _STAMP).replace(tzinfo=UTC).timestamp()


def signature_ahead(signed_s: float, now_s: float, lifetime_s: float) -> Refused:
    """Return AWS's refusal of a clock that is ahead."""
    signed, latest, now = _stamps(signed_s, now_s + lifetime_s, now_s)
    message = (
        f"Signature not yet current: {signed} is still later than {latest} ({now} + {lifetime_s / 60:g} min.)"
    )
    return Refused(message, "InvalidSignatureException", 403)


def signature_expired(signed_s: float, now_s: float, lifetime_s: float) -> Refused:
    """Return AWS's refusal of a signature that is too old, or of a clock that is behind."""
    signed, oldest, now = _stamps(signed_s, now_s - lifetime_s, now_s)
    message = f"Signature expired: {signed} is now earlier than {oldest} ({now} - {lifetime_s / 60:g} min.)"
    return Refused(message, "InvalidSignatureException", 403)


def _stamps(*moments_s: float) -> list[str]:
    return [datetime.fromtimestamp(moment_s, UTC).strftime(_STAMP) for moment_s in moments_s]


def throttled() -> Refused:
    """Return what Batch says to a caller that is too quick."""
    return Refused("Too Many Requests", "TooManyRequestsException", 429)


def faulty(kind: FaultKind, operation: str, status: int, now_s: float) -> Answer | None:
    """Return the answer of a fault that has one. `status`: of html and server_error."""
    if kind == "html":
        return Answer(status, _HTML % status, "Content-Type: text/html\r\n")
    denied = (
        f"User: {_USER} is not authorized to perform: batch:{operation} on resource: {ARN}:job-queue/queue "
        f"because no identity-based policy allows the batch:{operation} action"
    )
    token = "The security token included in the request is"
    said: dict[str, Refused] = {
        "throttled": throttled(),
        "throttled_400": Refused("Rate exceeded", "ThrottlingException"),
        "server_error": Refused("An internal error occurred", "ServerException", status),
        "access_denied": Refused(denied, "AccessDeniedException", 403),
        "expired_token": Refused(f"{token} expired", "ExpiredTokenException", 403),
        "unknown_token": Refused(f"{token} invalid.", "UnrecognizedClientException", 403),
        "clock_skew": signature_expired(now_s - 900, now_s, 300),
    }
    return refused(said[kind], operation) if kind in said else None


def refused(error: Refused, operation: str) -> Answer:
    """Return an error in the protocol of the operation's service."""
    if operation in STS:
        said = f"<Error><Type>Sender</Type><Code>{error.code}</Code><Message>{error}</Message></Error>"
        body = (
            f'<ErrorResponse xmlns="{_STS_NAMES}">{said}<RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>'
        )
        return Answer(error.status, body.encode(), _XML)
    named = {} if operation in _BATCH else {"__type": error.code}
    said = json.dumps({**named, "message": str(error)})
    return Answer(error.status, said.encode(), f"{_JSON}x-amzn-ErrorType: {error.code}\r\n")


def _sts(operation: str, result: str) -> Answer:
    meta = "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
    result = f"<{operation}Result>{result}</{operation}Result>"
    body = f'<{operation}Response xmlns="{_STS_NAMES}">{result}{meta}</{operation}Response>'
    return Answer(200, body.encode(), _XML)


STS = {
    "GetCallerIdentity": _sts(
        "GetCallerIdentity", f"<Arn>{_USER}</Arn><UserId>AROA:session</UserId><Account>{ACCOUNT}</Account>"
    ),
    "AssumeRole": _sts(
        "AssumeRole",
        f"<AssumedRoleUser><AssumedRoleId>AROA:session</AssumedRoleId><Arn>{_USER}</Arn></AssumedRoleUser>"
        "<Credentials><AccessKeyId>ASIAASSUMED</AccessKeyId><SecretAccessKey>assumed</SecretAccessKey>"
        "<SessionToken>assumed-token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>",
    ),
}
