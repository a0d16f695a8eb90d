"""What a connection of kind `armada` may say."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator

from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.connection import CheckedConnection
from jobrunner.paths import absolute, is_file

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+):(?P<port>\d{1,5})")
_LARGEST_PORT = 65535
_LINK_FIELDS = frozenset({"queue", "job_set", "job_id"})

Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class ArmadaConnection(CheckedConnection):
    """The settings of one connection to Armada. Only `url` has to be there.

    `url`: HOST:PORT of the server's gRPC port. `tls`: without it, TLS is used unless the host is this
    one; `plaintext = true` says the same as `tls = false`. `ca_file`, `client_cert_file` and
    `client_key_file` are PEM files. `username` with `password`, or `token`, or `token_file`, which is
    read again when it changes. `lookout_url_template` may hold {queue}, {job_set} and {job_id}.
    `binoculars_url`: HOST:PORT, and may hold {cluster}. `events`: whether job sets' event streams are
    listened to. `call_timeout_s` bounds one call, in seconds.
    """

    url: str
    tls: bool | None = None
    plaintext: bool | None = None
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    token_file: Path | None = None
    lookout_url_template: str | None = Field(default=None, pattern=r"^https?://\S+$")
    binoculars_url: str | None = None
    events: bool = False
    call_timeout_s: Seconds = 20.0

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return _checked_address(value, "armada.example:50051")

    @field_validator("binoculars_url")
    @classmethod
    def _may_name_the_cluster(cls, value: str | None) -> str | None:
        if value is not None:
            _checked_address(value.replace("{cluster}", "cluster"), "binoculars.{cluster}.example:50051")
        return value

    @field_validator("lookout_url_template")
    @classmethod
    def _knows_its_fields(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                fields = {name for _, name, _, _ in Formatter().parse(value) if name is not None}
            except ValueError:
                raise ValueError("has a single brace, which must be doubled") from None
            if not fields <= _LINK_FIELDS:
                raise ValueError("may hold {queue}, {job_set} and {job_id} alone")
            try:
                value.format(**dict.fromkeys(_LINK_FIELDS, ""))
            except (ValueError, LookupError) as error:
                raise ValueError(f"cannot be filled in ({error})") from None
        return value

    @field_validator("ca_file", "client_cert_file", "client_key_file", "token_file")
    @classmethod
    def _is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            value = absolute(value)
            if not is_file(value):
                raise ValueError(f"there is no file {value}")
        return value

    @field_validator("token")
    @classmethod
    def _is_a_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        token = value.get_secret_value().strip()  # a line end is easily taken along from a file
        if not token or not (token.isascii() and token.isprintable()):
            raise ValueError("is no token: it is empty, or holds a character that no header can have")
        return SecretStr(token)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tls is not None and self.plaintext is not None and self.tls is self.plaintext:
            raise ValueError("'tls' and 'plaintext' contradict each other: give one of them")
        ways = [self.username is not None, self.token is not None, self.token_file is not None]
        if sum(ways) > 1:
            raise ValueError("give 'username', 'token' or 'token_file', only one of them")
        if (self.username is None) is not (self.password is None):
            raise ValueError("'username' and 'password' belong together")
        if (self.client_cert_file is None) is not (self.client_key_file is None):
            raise ValueError("'client_cert_file' and 'client_key_file' belong together")
        if not self.uses_tls and (self.ca_file or self.client_cert_file):
            raise ValueError(f"its files are for TLS, which is not used for {self.url}: give 'tls = true'")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether calls are encrypted."""
        if self.tls is not None:
            return self.tls
        if self.plaintext is not None:
            return not self.plaintext
        return not _is_this_host(self.url)

    def link(self, key: JobKey) -> str | None:
        """Return the job's page in Lookout, where the connection says how it is made."""
        if self.lookout_url_template is None:
            return None
        return self.lookout_url_template.format(
            **{name: quote(part, safe="") for name, part in key._asdict().items()}
        )

    @classmethod
    def _told(cls, item: Mapping[str, Any]) -> str:
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "missing":
            return f"{key!r} is missing: give the server's address, such as armada.example:50051"
        if item["type"] == "string_pattern_mismatch":
            return f"{key!r} must begin with http:// or https://"
        return super()._told(item)


def _checked_address(value: str, example: str) -> str:
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found["port"]) <= _LARGEST_PORT:
        hint = ", without http:// and without a path" if "://" in value or "/" in value else ""
        raise ValueError(f"must be HOST:PORT, such as {example}{hint}")
    return value


def _is_this_host(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
