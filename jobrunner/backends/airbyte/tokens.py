"""The access token of an application: fetched once for all who wait for it, and renewed before it expires."""

import asyncio
import base64
import binascii
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobrunner.backends.airbyte.trouble import AirbyteError, Kind, is_sendable
from jobrunner.clock import monotonic_s

_LIFE_S = 180.0  # of older servers; where none is told
_MARGIN_S = 30.0
_MARGIN = 0.2  # of a life that is shorter than a few margins
_JWT_PARTS = 3
_DENIED = frozenset({401, 403})
_NOT_ABOUT_THE_FORM = frozenset({Kind.THROTTLED, Kind.NOT_AIRBYTE})

Ask = Callable[[dict[str, str], bool], Awaitable["TokenAnswer"]]
"""POST /applications/token with these fields, as a form or (False) as JSON. Raises `AirbyteError`."""


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """What the server said, and when by its own clock (seconds since 1970; None: it does not tell)."""

    data: Mapping[str, Any]
    server_now_s: float | None


class Tokens:
    """The tokens of one client at one server: no other server is ever shown them.

    For one event loop.
    """

    def __init__(self, ask: Ask, client_id: str, client_secret: str) -> None:
        self._ask = ask
        self._client_id = client_id
        self._client_secret = client_secret
        self._token: str | None = None
        self._good_until_s = 0.0
        self._as_form: bool | None = None
        """What this server was seen to accept; None: nothing yet."""
        self._fetching: asyncio.Task[str] | None = None

    async def get(self) -> str:
        """Return a token that is good for a while. Raises `AirbyteError`."""
        if self._token is not None and monotonic_s() < self._good_until_s:
            return self._token
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._on_fetched)
        return await asyncio.shield(self._fetching)  # whoever gives up takes it from nobody else

    def forget(self, token: str) -> None:
        """Drop a token that the server no longer takes, unless there is a newer one by now."""
        if self._token == token:
            self._token = None

    async def close(self) -> None:
        """End a request that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def _on_fetched(self, task: asyncio.Task[str]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did any more, it is nobody's

    async def _fetch(self) -> str:
        asked_s = monotonic_s()
        answer = await self._asked()
        token = answer.data.get("access_token") or answer.data.get("accessToken")
        if not isinstance(token, str) or not is_sendable(token):
            raise AirbyteError("Airbyte answered the request for a token without one", Kind.NOT_AIRBYTE)
        life_s = life_of(answer.data, token, answer.server_now_s)
        self._token = token
        self._good_until_s = asked_s + life_s - min(_MARGIN_S, life_s * _MARGIN)
        return token

    async def _asked(self) -> TokenAnswer:
        # The one is OAuth's name, the other stands in some of Airbyte's specifications.
        fields = {
            "client_id": self._client_id,
            "client_secret": self._client_secret,
            "grant_type": "client_credentials",
            "grant-type": "client_credentials",
        }
        as_form = bool(self._as_form)
        try:
            answer = await self._ask(fields, as_form)
        except AirbyteError as first:
            is_refusal = 400 <= first.status < 500 and first.kind not in _NOT_ABOUT_THE_FORM  # noqa: PLR2004
            if self._as_form is not None and is_refusal:
                self._as_form = None  # it may be another version of the server by now
                raise
            if not is_refusal:
                raise
            try:
                answer = await self._ask(fields, True)
            except AirbyteError as second:
                # A server that takes only JSON says nothing of use about a form.
                raise (second if second.status in _DENIED else first) from None
            as_form = True
        self._as_form = as_form
        return answer


def life_of(data: Mapping[str, Any], token: str, server_now_s: float | None) -> float:
    """Return for how many seconds a token is good: the smaller of what the server and the token say.

    `server_now_s`: the server's clock, in seconds since 1970; it may hand out a token that it made before.
    """
    lives: list[float] = []
    told = data.get("expires_in", data.get("expiresIn"))
    if isinstance(told, (int, float, str)) and not isinstance(told, bool):
        with suppress(ValueError):
            lives.append(float(told))
    claims = _claims(token)
    expires = claims.get("exp")
    if isinstance(expires, (int, float)):
        issued = claims.get("iat")
        begins = [each for each in (issued, server_now_s) if isinstance(each, (int, float))]
        lives.append(float(expires) - max(map(float, begins), default=time.time()))
    return max(0.0, min(filter(math.isfinite, lives), default=_LIFE_S))


def _claims(token: str) -> Mapping[str, Any]:
    """Return what a JWT says of itself, unproven; nothing where it is none."""
    parts = token.split(".")
    if len(parts) != _JWT_PARTS:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
