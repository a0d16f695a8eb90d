"""The way to a server over HTTP: each call with its own time, on a connection that suits it."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobrunner.backends.airbyte.trouble import AirbyteError, Call, Kind, not_airbyte, of_transport
from jobrunner.errors import SettingsError
from jobrunner.extras import require
from jobrunner.paths import check_file
from jobrunner.redaction import mask_url

LONG_S = 100.0
"""How long a POST or DELETE may take: the server waits up to 60 s for the workflow before it answers."""

_CONNECT_S, _READ_S = 5.0, 20.0
_SLACK_S = 10.0  # for the connection, and for the body after its first byte
_KEEP_S = 4.0  # servers end an idle connection after 5 s or more
_BODY_MOST = 32 * 1024 * 1024  # bytes; a page of a hundred jobs has 40 kB


@dataclass(frozen=True, slots=True)
class Raw:
    """What came over the wire."""

    status: int
    headers: Mapping[str, str]
    text: str


class Transport:
    """Sends requests by httpx, for one event loop.

    `ca_file`: the authorities to trust, in PEM; without one, the usual. Raises `SettingsError` where it
    cannot be used.
    """

    def __init__(self, ca_file: Path | None) -> None:
        self._trusted = _trusted(ca_file)
        self._clients: tuple[Any, Any] | None = None

    async def send(self, call: Call, method: str, url: str, *, is_long: bool, **request: Any) -> Raw:
        """Send a request, once, and return the answer whatever it is.

        Raises `AirbyteError` where there is none, and `UsageError` where httpx is not installed.
        """
        plain, fresh = self._clients_now()
        import httpx

        read_s = LONG_S if is_long else _READ_S
        times = httpx.Timeout(_READ_S, connect=_CONNECT_S, read=read_s)
        # A connection that was kept may be closed by the server in this very moment: a GET is asked again
        # by whoever wants to know, while a POST would be in doubt for nothing.
        client = fresh if method != "GET" else plain
        try:
            async with (
                asyncio.timeout(read_s + _SLACK_S),
                client.stream(method, url, timeout=times, **request) as response,
            ):
                return await _received(call, response)
        except TimeoutError:
            told = f"{call.name} got no answer from {call.place} within {read_s + _SLACK_S:g} s"
            raise AirbyteError(told, Kind.UNCLEAR) from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise of_transport(call, error) from error

    async def close(self) -> None:
        """Give the connections back."""
        clients, self._clients = self._clients, None
        for client in clients or ():
            await client.aclose()

    def _clients_now(self) -> tuple[Any, Any]:
        if self._clients is None:
            httpx = require("httpx", "airbyte", "Airbyte")
            common: dict[str, Any] = {
                "verify": self._trusted,
                "follow_redirects": False,  # a login page is no answer, and a POST must not become a GET
                "headers": {"User-Agent": f"jobrunner/{version('jobrunner')}", "Accept": "application/json"},
            }
            keep = httpx.Limits(keepalive_expiry=_KEEP_S)
            forget = httpx.Limits(max_keepalive_connections=0)
            try:
                self._clients = (
                    httpx.AsyncClient(limits=keep, **common),
                    httpx.AsyncClient(limits=forget, **common),
                )
            except (httpx.InvalidURL, ImportError, ValueError) as error:  # of the proxy in the environment
                told = f"Airbyte cannot be called through the proxy that HTTP_PROXY, … name: {error}"
                raise AirbyteError(mask_url(told), Kind.SETTINGS) from None
        return self._clients


def _trusted(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        check_file(ca_file)
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, RuntimeError) as error:  # RuntimeError: `~` of nobody
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"The `ca_file` {ca_file} of the connection cannot be used: {reason}.") from None


async def _received(call: Call, response: Any) -> Raw:
    """Return an answer, as far as it is no larger than answers are."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _BODY_MOST:
            raise not_airbyte(call, response.status_code, f"more than {_BODY_MOST // 2**20} MiB")
    return Raw(response.status_code, response.headers, body.decode("utf-8-sig", "replace"))
