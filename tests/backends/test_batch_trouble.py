"""Every error of boto3 in one sentence, and what it means for what was asked."""

from typing import Any

import pytest
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError

from jobrunner.backends.batch.trouble import Call, Kind, NotAws, trouble_of

OWN = Call("SubmitJob", "http://127.0.0.1:4566", "eu-west-1")
REAL = Call("SubmitJob", "https://batch.eu-west-1.amazonaws.com", "eu-west-1")


def an_answer(code: str, message: str = "as it is", status: int = 400, **headers: str) -> aws.ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return aws.ClientError(response, "SubmitJob")


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            an_answer("ClientException", "JobQueue nope not found."),
            Kind.REFUSED,
            "ClientException: JobQueue nope not found.",
        ),
        (
            an_answer("TooManyRequestsException", "slow down", 429),
            Kind.THROTTLED,
            "SubmitJob was throttled: TooManyRequestsException: slow down",
        ),
        (
            an_answer("ThrottlingException", "Rate exceeded"),
            Kind.THROTTLED,
            "SubmitJob was throttled: ThrottlingException: Rate exceeded",
        ),
        (
            an_answer("AccessDeniedException", "User: x is not authorized to perform: batch:SubmitJob", 403),
            Kind.PERMISSION,
            "permission denied for SubmitJob: User: x is not authorized to perform: batch:SubmitJob",
        ),
        (
            an_answer("ExpiredTokenException", "The security token included in the request is expired", 403),
            Kind.EXPIRED,
            (
                "the AWS credentials for SubmitJob have expired: The security token included in the request "
                "is expired"
            ),
        ),
        (
            an_answer("UnrecognizedClientException", "The security token is invalid.", 403),
            Kind.CREDENTIALS,
            (
                "AWS refused the credentials for SubmitJob: UnrecognizedClientException: The security token "
                "is invalid."
            ),
        ),
        (
            an_answer(
                "InvalidSignatureException",
                "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z",
                403,
            ),
            Kind.CLOCK,
            (
                "AWS refused the time of SubmitJob: this host's clock seems to be wrong (Signature expired: "
                "20260101T000000Z is now earlier than 20260101T001000Z)"
            ),
        ),
        (
            an_answer("ServerException", "oops", 500),
            Kind.UNCLEAR,
            "http://127.0.0.1:4566 answered SubmitJob with 500 ServerException: oops",
        ),
        (
            NotAws(200),
            Kind.NOT_AWS,
            (
                "http://127.0.0.1:4566 answered SubmitJob with 200 and an HTML page, which is not how AWS "
                "answers: correct `endpoint_url`, or the proxy in between"
            ),
        ),
        (
            NotAws(502),
            Kind.UNCLEAR,
            "http://127.0.0.1:4566 answered SubmitJob with 502 and an HTML page",
        ),
        (NotAws(501), Kind.NOT_AWS, None),
        (
            aws.NoCredentialsError(),
            Kind.MISSING,
            (
                "no AWS credentials were found for SubmitJob: Unable to locate credentials; boto3 looks for "
                "them in the environment (AWS_ACCESS_KEY_ID …), in the profile, and in the role of the "
                "machine"
            ),
        ),
        (aws.PartialCredentialsError(provider="env", cred_var="secret_key"), Kind.MISSING, None),
        (aws.UnauthorizedSSOTokenError(), Kind.EXPIRED, None),
        (aws.CredentialRetrievalError(provider="sso", error_msg="no network"), Kind.EXPIRED, None),
        (
            aws.NoRegionError(),
            Kind.REGION,
            "no AWS region is set: give `region` to the connection, or set AWS_REGION",
        ),
        (aws.InvalidRegionError(region_name="eu west"), Kind.REGION, None),
        (aws.ProfileNotFound(profile="nope"), Kind.SETTINGS, None),
        (aws.ParamValidationError(report="Unknown parameter"), Kind.SETTINGS, None),
        (ValueError("whatever it was"), Kind.UNCLEAR, None),
        (OSError("whatever it was"), Kind.UNCLEAR, None),
        (
            aws.EndpointConnectionError(endpoint_url="http://127.0.0.1:4566"),
            Kind.NETWORK,
            "http://127.0.0.1:4566 cannot be reached for SubmitJob (no connection)",
        ),
        (aws.ConnectTimeoutError(endpoint_url="http://127.0.0.1:4566"), Kind.NETWORK, None),
        (
            aws.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
            Kind.NETWORK,
            None,
        ),
        (aws.SSLError(endpoint_url="x", error="EOF occurred"), Kind.UNCLEAR, None),
        (aws.ReadTimeoutError(endpoint_url="http://127.0.0.1:4566"), Kind.UNCLEAR, None),
        (aws.ConnectionClosedError(endpoint_url="http://127.0.0.1:4566"), Kind.UNCLEAR, None),
        (ResponseParserError("Unable to parse response"), Kind.UNCLEAR, None),
    ],
)
def test_an_error_has_its_kind_and_its_sentence(error: Exception, kind: Kind, sentence: str | None) -> None:
    trouble = trouble_of(error, OWN)
    assert trouble.kind is kind
    assert "\n" not in str(trouble)
    if sentence is not None:
        assert str(trouble) == sentence


def test_what_fails_before_there_is_a_client_was_not_sent() -> None:
    call = Call("SubmitJob", "nope", "", may_have_left=False)
    trouble = trouble_of(ValueError("Invalid endpoint: nope"), call)
    assert (trouble.kind, str(trouble)) == (
        Kind.SETTINGS,
        "SubmitJob cannot be asked for: Invalid endpoint: nope",
    )


def test_a_region_that_boto3_does_not_know_is_named() -> None:
    nowhere = Call("SubmitJob", "https://batch.eu-nowhere-1.amazonaws.com", "eu-nowhere-1")
    error = aws.EndpointConnectionError(endpoint_url=nowhere.endpoint)
    trouble = trouble_of(error, nowhere)
    assert trouble.kind is Kind.REGION
    assert "boto3 knows of no region 'eu-nowhere-1' with AWS Batch" in str(trouble)
    assert trouble_of(error, REAL).kind is Kind.NETWORK


def test_a_throttled_answer_may_say_for_how_long() -> None:
    error = an_answer("TooManyRequestsException", status=429, **{"retry-after": "7"})
    assert trouble_of(error, OWN).retry_after_s == 7.0
    error = an_answer("TooManyRequestsException", status=429, **{"retry-after": "tomorrow"})
    assert trouble_of(error, OWN).retry_after_s is None


def test_no_secret_of_the_request_gets_into_the_sentence() -> None:
    repeated = "The signature does not match.\n\nThe Canonical String was\nx-amz-security-token:hunter2"
    for code in ("SignatureDoesNotMatch", "InvalidSignatureException"):
        trouble = trouble_of(an_answer(code, repeated, 403), OWN)
        assert (trouble.kind, "hunter2" in str(trouble)) == (Kind.CREDENTIALS, False)
    guarded = Call("SubmitJob", "http://ana:hunter2@proxy.example", "eu-west-1")
    for error in (NotAws(200), aws.EndpointConnectionError(endpoint_url=guarded.endpoint)):
        assert "hunter2" not in str(trouble_of(error, guarded))
