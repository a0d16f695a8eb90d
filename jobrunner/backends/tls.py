"""What the errors of TLS say, for all who speak HTTP."""

import ssl


def is_of_the_certificate(error: BaseException) -> bool:
    """Whether TLS failed before anything could be sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    return "CERTIFICATE_VERIFY_FAILED" in text or "WRONG_VERSION_NUMBER" in text
