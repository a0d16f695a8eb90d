"""What a connection of kind `airbyte` may say."""

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from jobrunner.backends.airbyte.trouble import CLOUD_URL, SELF_HOSTED_PATH, is_cloud, is_sendable
from jobrunner.backends.connection import CheckedConnection
from jobrunner.paths import absolute
from jobrunner.redaction import mask_url

_AT_ONCE_SELF_HOSTED = 3  # such a server has 5 threads for the public API, and other clients
_AT_ONCE_CLOUD = 8
_CLOUD_PAGES = "https://cloud.airbyte.com"
_URL = re.compile(r"https?://[^\s\x00-\x1f/][^\s\x00-\x1f]*")


def _as_list(value: object) -> object:
    """Split `a, b`, as an environment variable has it."""
    return [part for part in value.replace(",", " ").split() if part] if isinstance(value, str) else value


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_token(value: object) -> object:
    text = _as_text(value)
    if not isinstance(text, str):
        return text
    text = text.strip()  # as a file has it, whose last line ends
    if not is_sendable(text):
        raise ValueError("holds a character that no header can have, or nothing: correct it")
    return text


def _without_slash(value: object) -> object:
    return value.strip().rstrip("/") if isinstance(value, str) else value


def _as_url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("must be of the form http:// or https://")
    try:
        parts = urlsplit(value)
        is_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port of letters or above 65535, half an IPv6 address
        is_place = False
    if not is_place:
        raise ValueError("names no host, or a port that there is not: correct it")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user or a password: give 'username' and 'password'")
    if parts.query or parts.fragment:
        raise ValueError("ends with its path: leave out what follows the ? or #")
    return value


def _as_url_or_nothing(value: str) -> str:
    return _as_url(value) if value else value


_Url = Annotated[str, BeforeValidator(_without_slash), AfterValidator(_as_url)]
_UrlOrNothing = Annotated[str, BeforeValidator(_without_slash), AfterValidator(_as_url_or_nothing)]
_Secret = Annotated[SecretStr, BeforeValidator(_as_text)]
_Token = Annotated[SecretStr, BeforeValidator(_as_token)]


class AirbyteConnection(CheckedConnection):
    """What a connection of kind `airbyte` may say; without a `url` it is Airbyte Cloud.

    One way to be let in, or none: `client_id` with `client_secret`, `token` (a bearer that lasts), or
    `username` with `password`. `workspace_ids`: the workspaces whose jobs are listed; without any, all that
    the credentials may see. `calls_at_once`: 3 for a self-hosted server, 8 for Airbyte Cloud.
    `config_api_url`: where `/api/v1` is, for the reasons of failures; empty: they are not asked for.
    `ui_url`: where people see the jobs. `ca_file`: the authorities to trust, in PEM.
    """

    url: _Url = CLOUD_URL
    client_id: Annotated[str, BeforeValidator(_as_text), Field(min_length=1)] | None = None
    client_secret: _Secret | None = None
    token: _Token | None = None
    username: Annotated[str, BeforeValidator(_as_text), Field(min_length=1)] | None = None
    password: _Secret | None = None
    workspace_ids: Annotated[tuple[UUID, ...], BeforeValidator(_as_list)] = ()
    calls_at_once: Annotated[int, Field(ge=1, le=100)] | None = None
    config_api_url: _UrlOrNothing | None = None
    ui_url: _Url | None = None
    ca_file: Annotated[Path, AfterValidator(absolute)] | None = None

    @model_validator(mode="after")
    def _lets_in_one_way(self) -> Self:
        if (self.client_id is None) != (self.client_secret is None):
            raise ValueError("'client_id' and 'client_secret' belong together: give both")
        if (self.username is None) != (self.password is None):
            raise ValueError("'username' and 'password' belong together: give both")
        ways = [key for key in ("client_id", "token", "username") if getattr(self, key) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(map(repr, ways))} are different ways to be let in: give one")
        return self

    @property
    def is_cloud(self) -> bool:
        """Whether it is Airbyte's own service."""
        return is_cloud(self.url)

    @property
    def at_once(self) -> int:
        """How many calls may be under way."""
        return self.calls_at_once or (_AT_ONCE_CLOUD if self.is_cloud else _AT_ONCE_SELF_HOSTED)

    @property
    def config_api(self) -> str | None:
        """Where the config API is; None: it is not to be asked."""
        if self.config_api_url is not None:
            return self.config_api_url or None
        root = self._root()
        return f"{root}/api/v1" if root else None

    @property
    def pages(self) -> str | None:
        """Where the pages for people begin, without a slash at the end; None: it is not known."""
        return self.ui_url or (_CLOUD_PAGES if self.is_cloud else self._root())

    @property
    def shown_url(self) -> str:
        """The URL as it may be shown."""
        return mask_url(self.url)

    def _root(self) -> str | None:
        ours = not self.is_cloud and self.url.endswith(SELF_HOSTED_PATH)
        return self.url.removesuffix(SELF_HOSTED_PATH) if ours else None
