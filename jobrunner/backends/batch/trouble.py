"""What went wrong in a call to AWS: what kind of trouble it is, in one sentence, without a secret."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from jobrunner.backends.tls import is_of_the_certificate
from jobrunner.errors import BackendError
from jobrunner.redaction import mask_url


class Kind(StrEnum):
    """What a failed call means for what it asked for."""

    THROTTLED = "throttled"  # later: nothing was done
    REFUSED = "refused"  # no, for good: nothing was done
    PERMISSION = "permission denied"  # the same, and somebody can change it
    CREDENTIALS = "credentials"  # not let in: nothing was done
    EXPIRED = "credentials expired"  # the same, until somebody or something renews them
    MISSING = "no credentials"  # nothing was sent
    CLOCK = "clock"  # not let in: the signature's time is not the server's
    REGION = "region"  # nothing was sent, and nothing will be
    SETTINGS = "settings"  # the same
    NETWORK = "network"  # nobody was reached: nothing was done
    NOT_AWS = "endpoint"  # somebody else answered
    UNCLEAR = "no clear answer"  # it may have been done


NOTHING_DONE = frozenset(Kind) - {Kind.UNCLEAR}


class AwsError(BackendError):
    """AWS did not do what was asked. `kind` says what that means; `code` is AWS's own, where it gave one."""

    def __init__(
        self, message: str, kind: Kind, *, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.retry_after_s = retry_after_s


class NotAws(Exception):  # raised within botocore, and translated at once
    """The answer is a page for people, and no answer of AWS."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status} with an HTML page")
        self.status = status


# Source: botocore's own retry rules ("throttling" in data/_retry.json and retries/standard.py).
_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
_SIGNATURE = frozenset(
    {
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
    }
)
_TIME = frozenset({"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"})
_TIME_WORDS = (
    "signature expired",
    "signature not yet current",
    "is now earlier than",
    "is still later than",
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException"})
_CREDENTIALS = _SIGNATURE | {
    "AuthFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "UnrecognizedClientException",
}
_PERMISSION = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "NotAuthorized",
        "NotAuthorizedException",
        "UnauthorizedOperation",
    }
)

_REQUEST_TIMEOUT = 408
_TOO_MANY = 429
_SERVER_ERRORS = 500
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True, slots=True)
class Call:
    """What was called: the operation (`SubmitJob`), and where. Nothing leaves before there is a client."""

    operation: str
    endpoint: str
    region: str
    may_have_left: bool = True

    @property
    def place(self) -> str:
        """Return where it was called, as it may be shown."""
        return mask_url(self.endpoint) or self.region or "AWS"


def trouble_of(error: Exception, call: Call) -> AwsError:
    """Return what an error of boto3 means for a call."""
    from botocore import exceptions as aws
    from botocore.parsers import ResponseParserError

    if isinstance(error, NotAws):
        return _of_html(error.status, call)
    if isinstance(error, aws.ClientError):
        return _of_answer(error, call)
    if isinstance(error, aws.HTTPClientError | aws.ConnectionError | ResponseParserError):
        return _of_the_way(error, call)
    return _of_boto3_itself(error, call)


def _of_boto3_itself(error: Exception, call: Call) -> AwsError:
    """Read an error with which boto3 refused by itself, mostly before anything was sent."""
    from botocore import exceptions as aws

    told = _one_line(error)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return AwsError(
            f"no AWS credentials were found for {call.operation}: {told}; boto3 looks for them in the "
            "environment (AWS_ACCESS_KEY_ID …), in the profile, and in the role of the machine",
            Kind.MISSING,
        )
    if isinstance(error, _credential_errors(aws)):
        return AwsError(f"the AWS credentials could not be had: {told}", Kind.EXPIRED)
    if isinstance(error, aws.NoRegionError):
        return AwsError(
            "no AWS region is set: give `region` to the connection, or set AWS_REGION", Kind.REGION
        )
    if isinstance(error, aws.InvalidRegionError):
        return AwsError(f"{call.region!r} is no name of an AWS region, such as eu-west-1", Kind.REGION)
    if call.may_have_left and not isinstance(error, aws.ParamValidationError | aws.ProfileNotFound):
        return AwsError(f"{call.operation} got no clear answer: {type(error).__name__}: {told}", Kind.UNCLEAR)
    # A missing profile, a broken config file, an endpoint that is no URL, wrong parameters.
    return AwsError(f"{call.operation} cannot be asked for: {told}", Kind.SETTINGS)


def _of_the_way(error: Exception, call: Call) -> AwsError:
    """Read an error of the network, or an answer that nobody can read."""
    from botocore import exceptions as aws

    told = _one_line(error)
    if isinstance(error, aws.EndpointConnectionError | aws.ConnectTimeoutError | aws.ProxyConnectionError):
        if isinstance(error, aws.EndpointConnectionError):
            told = "no connection"  # its own words are the address once more
        if _is_made_from_region(call) and call.region not in _known_regions():
            return AwsError(
                f"{call.place} cannot be reached ({told}), and boto3 knows of no region {call.region!r} with "
                "AWS Batch",
                Kind.REGION,
            )
        return AwsError(f"{call.place} cannot be reached for {call.operation} ({told})", Kind.NETWORK)
    if isinstance(error, aws.SSLError) and is_of_the_certificate(error):
        return AwsError(f"{call.place} was not trusted for {call.operation}: {told}", Kind.NETWORK)
    return AwsError(f"{call.operation} got no clear answer from {call.place}: {told}", Kind.UNCLEAR)


def _credential_errors(aws: Any) -> tuple[type[Exception], ...]:
    names = (
        "ConfigNotFound",
        "CredentialRetrievalError",
        "InfiniteLoopConfigError",
        "InvalidConfigError",
        "LoginError",
        "MetadataRetrievalError",
        "NoAuthTokenError",
        "RefreshWithMFAUnsupportedError",
        "SSOError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
        "UnknownCredentialError",
    )
    return tuple(getattr(aws, name) for name in names if hasattr(aws, name))


def _of_answer(error: Any, call: Call) -> AwsError:
    """Read an error that AWS itself answered with."""
    said = error.response.get("Error", {})
    facts = error.response.get("ResponseMetadata", {})
    status = int(facts.get("HTTPStatusCode") or 0)
    code = str(said.get("Code") or status)
    message = str(said.get("Message") or said.get("message") or "no reason was given").strip()
    kind = _kind_of(code, status, message)
    # What follows the first line of such a message repeats the request, and with it the session's token.
    # It may be another call than ours: AssumeRole comes before it.
    first, operation = _first_line(message), getattr(error, "operation_name", None) or call.operation
    told = {
        Kind.THROTTLED: f"{operation} was throttled: {code}: {message}",
        Kind.CLOCK: f"AWS refused the time of {operation}: this host's clock seems to be wrong ({first})",
        Kind.EXPIRED: f"the AWS credentials for {operation} have expired: {first}",
        Kind.CREDENTIALS: f"AWS refused the credentials for {operation}: {code}: {first}",
        Kind.PERMISSION: f"permission denied for {operation}: {message}",
        Kind.UNCLEAR: f"{call.place} answered {operation} with {status} {code}: {message}",
        Kind.REFUSED: f"{code}: {message}",
    }[kind]
    retry_after_s = _seconds(facts.get("HTTPHeaders", {}).get("retry-after"))
    return AwsError(told, kind, code=code, retry_after_s=retry_after_s)


def _kind_of(code: str, status: int, message: str) -> Kind:
    words = message.lower()
    if code in _TIME or (code in _SIGNATURE and any(each in words for each in _TIME_WORDS)):
        return Kind.CLOCK
    for codes, kind in (
        (_THROTTLED, Kind.THROTTLED),
        (_EXPIRED, Kind.EXPIRED),
        (_CREDENTIALS, Kind.CREDENTIALS),
        (_PERMISSION, Kind.PERMISSION),
    ):
        if code in codes:
            return kind
    if status == _TOO_MANY:
        return Kind.THROTTLED
    if status >= _SERVER_ERRORS or status == _REQUEST_TIMEOUT or not status:
        return Kind.UNCLEAR
    return Kind.REFUSED


def _of_html(status: int, call: Call) -> AwsError:
    if status >= _SERVER_ERRORS and status != _NOT_IMPLEMENTED:
        return AwsError(
            f"{call.place} answered {call.operation} with {status} and an HTML page", Kind.UNCLEAR
        )
    return AwsError(
        f"{call.place} answered {call.operation} with {status} and an HTML page, which is not how AWS "
        "answers: correct `endpoint_url`, or the proxy in between",
        Kind.NOT_AWS,
    )


def _is_made_from_region(call: Call) -> bool:
    """Whether boto3 made the endpoint from the region, and nobody named it."""
    return bool(call.region) and f".{call.region}." in call.endpoint


def _known_regions() -> frozenset[str]:
    import botocore.session

    session = botocore.session.get_session()
    return frozenset(
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("batch", partition)
    )


def _one_line(error: BaseException) -> str:
    return mask_url(_first_line(str(error)).rstrip(".")) or type(error).__name__


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _seconds(text: str | None) -> float | None:
    """Read Retry-After; a date in it (which AWS does not send) counts as nothing."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
