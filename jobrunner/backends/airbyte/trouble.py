"""What went wrong in a call to Airbyte: what kind of trouble it is, in one sentence, without a secret."""

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit

from jobrunner.backends.base import RemoteError
from jobrunner.backends.tls import is_of_the_certificate
from jobrunner.clock import utcnow
from jobrunner.errors import BackendError, NotSent, SubmitRejected, Throttled
from jobrunner.redaction import mask_url

CLOUD_URL = "https://api.airbyte.com/v1"
SELF_HOSTED_PATH = "/api/public/v1"

_TOLD_MOST = 600
# Control characters and halves of pairs: no database keeps a NUL, and no terminal should be moved.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


class Kind(StrEnum):
    """What a failed call means for what it asked for."""

    THROTTLED = "throttled"  # later: nothing was done
    REFUSED = "refused"  # no, for good: nothing was done
    PERMISSION = "permission denied"  # the same, and somebody can change it; or there is no such thing
    NOT_THERE = "not there"  # the same, and there is no such thing
    CONFLICT = "conflict"  # not in the state that things are in: nothing was done by this request
    CREDENTIALS = "credentials"  # not let in: nothing was done
    NETWORK = "network"  # nobody was reached: nothing was done
    NOT_AIRBYTE = "endpoint"  # somebody else answered
    SETTINGS = "settings"  # nothing was sent, and nothing will be
    UNCLEAR = "no clear answer"  # it may have been done


NOTHING_DONE = frozenset(Kind) - {Kind.UNCLEAR}
NOT_VISIBLE = frozenset({Kind.PERMISSION, Kind.NOT_THERE, Kind.CONFLICT})
"""What a GET of an unknown job may answer: it depends on the server and on the role."""
_FOR_GOOD = frozenset(
    {
        *(Kind.REFUSED, Kind.PERMISSION, Kind.NOT_THERE),
        *(Kind.CREDENTIALS, Kind.NOT_AIRBYTE, Kind.SETTINGS),
    }
)


class AirbyteError(BackendError):
    """Airbyte did not do what was asked. `kind` says what that means.

    `status` is HTTP's own, 0 without an answer; `said` are the server's own words, where it gave some.
    """

    def __init__(
        self,
        message: str,
        kind: Kind,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        said: str = "",
    ) -> None:
        super().__init__(shown(message))
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s
        self.said = said

    def of_submission(self) -> BackendError:
        """Return what this means for a submission: itself where the job may have been made."""
        if self.kind is Kind.THROTTLED:
            return Throttled(str(self), retry_after_s=self.retry_after_s)
        if self.kind in _FOR_GOOD:
            return SubmitRejected(str(self))
        if self.kind is Kind.NETWORK:
            return NotSent(str(self))
        return self

    def of_reading(self) -> BackendError:
        """Return what this means for a look: later, where the server says when."""
        if self.kind is Kind.THROTTLED or self.retry_after_s is not None:
            return Throttled(str(self), retry_after_s=self.retry_after_s)
        return self

    def as_answer(self) -> RemoteError:
        """Return this as the answer for one id."""
        return RemoteError(str(self), self.retry_after_s)


@dataclass(frozen=True, slots=True)
class Call:
    """What was called: `GET /jobs/7`, under which URL, and with which words that nobody may see."""

    name: str
    url: str
    secrets: tuple[str, ...] = ()
    shows_url: bool = False
    """Whether a 404 is about the URL itself: every Airbyte has this path."""

    def letting_in(self, authorization: Mapping[str, str]) -> Self:
        """Return the call with what lets it in among the words that nobody may see."""
        words = (each.rpartition(" ")[2] for each in authorization.values())
        return replace(self, secrets=(*self.secrets, *words))

    @property
    def place(self) -> str:
        """Return where it was called, as it may be shown."""
        return mask_url(self.url)


def shown(text: str) -> str:
    """Return a text of the server's as a row can keep it and a terminal can show it."""
    return _UNSHOWABLE.sub(" ", text)


def is_sendable(token: str) -> bool:
    """Whether a header can have it; an error about one that cannot would repeat it."""
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


def is_cloud(url: str) -> bool:
    """Whether it is Airbyte's own service."""
    host = urlsplit(url).hostname or ""
    return host == "airbyte.com" or host.endswith(".airbyte.com")


def is_usual(url: str) -> bool:
    """Whether the URL of a connection looks as it should."""
    return url.rstrip("/") == _usual(url)


def date_of(headers: Mapping[str, str]) -> dt.datetime | None:
    """Return the server's own time, where it tells it."""
    return _date(headers.get("date", ""))


def of_status(call: Call, status: int, headers: Mapping[str, str], text: str) -> AirbyteError:
    """Return what an answer means that is no success."""
    retry_after_s = _retry_after_s(headers.get("retry-after", ""), date_of(headers))
    if is_html(headers, text):
        return _of_html(call, status, retry_after_s)
    if 300 <= status < 400:  # noqa: PLR2004
        return not_airbyte(call, status, "a redirection")
    said = _masked(_words_of(text), call)
    kind = _kind_of(status)
    if call.shows_url and status in {404, 405}:
        kind = Kind.NOT_AIRBYTE
    told = {
        Kind.THROTTLED: f"Airbyte asks to come back later ({call.name}: {status} {said})",
        Kind.CREDENTIALS: f"Airbyte refused the credentials for {call.name}: {said}",
        Kind.PERMISSION: f"permission denied for {call.name}: {said}",
        Kind.UNCLEAR: f"{call.place} answered {call.name} with {status}: {said}",
        Kind.NOT_AIRBYTE: (
            f"{call.place} answered {call.name} with {status} ({said}): {expectation(call.url)}"
        ),
    }.get(kind, f"{call.name}: {status} {said}")
    return AirbyteError(told, kind, status=status, retry_after_s=retry_after_s, said=said)


def not_airbyte(call: Call, status: int, what: str) -> AirbyteError:
    """Return the error of an answer that Airbyte does not give."""
    return AirbyteError(
        f"{call.place} answered {call.name} with {status} and {what}, which is not how Airbyte's API "
        f"answers: {expectation(call.url)}",
        Kind.NOT_AIRBYTE,
        status=status,
    )


def of_transport(call: Call, error: Exception) -> AirbyteError:
    """Return what an error of httpx means, or of the time that was up."""
    import httpx

    told = _masked(_one_line(error), call)
    if is_of_the_certificate(error):
        return AirbyteError(f"{call.place} was not trusted for {call.name}: {told}", Kind.NETWORK)
    before_sending = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    if isinstance(error, before_sending):
        return AirbyteError(f"{call.place} cannot be reached for {call.name} ({told})", Kind.NETWORK)
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return AirbyteError(f"{call.name} cannot be asked for: {told}", Kind.SETTINGS)
    return AirbyteError(f"{call.name} got no clear answer from {call.place}: {told}", Kind.UNCLEAR)


def expectation(url: str) -> str:
    """Return how the URL of a connection should look, in words."""
    if is_usual(url):
        return "correct `url`, or the proxy in between"
    expected = mask_url(_usual(url))
    rule = f"the `url` of a self-hosted Airbyte ends with {SELF_HOSTED_PATH}: expected {expected}"
    if is_cloud(url):
        rule = f"the `url` of Airbyte Cloud is {expected}"
    return f"{rule}, not {mask_url(url)}"


def _usual(url: str) -> str:
    parts = urlsplit(url)
    return CLOUD_URL if is_cloud(url) else f"{parts.scheme}://{parts.netloc}{SELF_HOSTED_PATH}"


def is_html(headers: Mapping[str, str], text: str) -> bool:
    """Whether the answer is a page for people."""
    return "html" in headers.get("content-type", "").lower() or text.lstrip()[:1] == "<"


def _of_html(call: Call, status: int, retry_after_s: float | None) -> AirbyteError:
    if status >= 500 and status != 501:  # noqa: PLR2004  # a gateway whose server is away, as a rule
        told = f"{call.place} answered {call.name} with {status} and an HTML page"
        return AirbyteError(told, Kind.UNCLEAR, status=status, retry_after_s=retry_after_s)
    if status == 429:  # noqa: PLR2004
        told = f"{call.place} answered {call.name} with 429 and an HTML page"
        return AirbyteError(told, Kind.THROTTLED, status=status, retry_after_s=retry_after_s)
    return not_airbyte(call, status, "an HTML page")


def _kind_of(status: int) -> Kind:
    kinds = {
        401: Kind.CREDENTIALS,
        403: Kind.PERMISSION,
        404: Kind.NOT_THERE,
        408: Kind.UNCLEAR,
        409: Kind.CONFLICT,
        429: Kind.THROTTLED,
    }
    if status in kinds:
        return kinds[status]
    return Kind.REFUSED if status < 500 else Kind.UNCLEAR  # noqa: PLR2004


def _words_of(text: str) -> str:
    """Return the server's own words out of a problem document, or the text itself."""
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())[:_TOLD_MOST] or "no reason was given"
    if isinstance(said, dict):
        data = said.get("data")
        found = [data.get("message")] if isinstance(data, dict) else []
        found += [said.get(key) for key in ("detail", "message", "error_description", "title", "error")]
        texts = (" ".join(shown(each).split()) for each in found if isinstance(each, str))
        words = next(filter(None, texts), "")
        return words[:_TOLD_MOST] or "no reason was given"
    return " ".join(text.split())[:_TOLD_MOST]


def _masked(words: str, call: Call) -> str:
    for secret in call.secrets:
        words = words.replace(secret, "***")
    return mask_url(words)


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _retry_after_s(text: str, server_now: dt.datetime | None) -> float | None:
    """Read Retry-After: seconds, or a date by the server's own clock."""
    try:
        return max(0.0, float(text))
    except ValueError:
        at = _date(text)
    return None if at is None else max(0.0, (at - (server_now or utcnow())).total_seconds())


def _date(text: str) -> dt.datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)
