"""Who asks Armada, and that nobody reads it who should not."""

import base64
from typing import Any

from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.errors import SettingsError
from jobrunner.paths import read_file


class Credentials:
    """What the calls of one connection carry."""

    def __init__(self, options: ArmadaConnection) -> None:
        self._options = options
        self._token = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return who asks. As metadata, because gRPC's call credentials refuse a plain connection.

        Raises `ArmadaError` where there is no token in the token file.
        """
        basic = _basic(self._options)
        if basic:
            return (("authorization", f"Basic {basic}"),)
        token = self._options.token
        told = token.get_secret_value() if token is not None else self._token_in_file()
        return (("authorization", f"Bearer {told}"),) if told is not None else ()

    def _token_in_file(self) -> str | None:
        path = self._options.token_file
        if path is None:
            return None
        try:
            # Each time: its time stamp may be the same after a change, and it is small.
            self._token = read_file(path).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no token"
            raise ArmadaError(f"the token file {path} cannot be read ({reason})", Kind.CREDENTIALS) from None
        if not self._token or not self._token.isprintable():
            raise ArmadaError(f"the token file {path} holds no token", Kind.CREDENTIALS)
        return self._token

    def masked(self, error: ArmadaError) -> ArmadaError:
        """Return the error without what a server, or a proxy, repeated of the credentials."""
        options = self._options
        given = [each.get_secret_value() for each in (options.password, options.token) if each is not None]
        secrets = [each for each in (_basic(options), *given, self._token) if each]
        told = str(error)
        if not any(secret in told for secret in secrets):
            return error
        for secret in secrets:
            told = told.replace(secret, "***")
        return ArmadaError(told, error.kind)


def ssl_of(grpc: Any, options: ArmadaConnection) -> Any:
    """Return the credentials of a channel with TLS. Raises `SettingsError` for a file that cannot be read."""
    files = (options.ca_file, options.client_key_file, options.client_cert_file)
    found: list[bytes | None] = []
    for path in files:
        try:
            found.append(read_file(path) if path is not None else None)
        except OSError as error:
            raise SettingsError(f"The file {path} cannot be read ({error.strerror}).") from None
    return grpc.ssl_channel_credentials(*found)


def _basic(options: ArmadaConnection) -> str:
    """Return user and password as HTTP's basic authentication has them; empty where there are none."""
    if options.username is None or options.password is None:
        return ""
    pair = f"{options.username}:{options.password.get_secret_value()}".encode()
    return base64.b64encode(pair).decode()
