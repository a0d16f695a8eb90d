"""`${env:NAME}`: a text's references to environment variables, filled in when the text is used.

A value that is put into a URL is percent-encoded for the place where it stands, so that a password may hold
any character; and what is a secret there is remembered, so that no message repeats it.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from jobrunner.errors import SettingsError
from jobrunner.known_secrets import remember
from jobrunner.redaction import looks_secret

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_URL = re.compile(
    r"\s*[A-Za-z][A-Za-z0-9+.-]*://(?P<authority>[^/?]*)(?P<path>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL
)


def has_reference(text: str) -> bool:
    """Whether a variable's value is still to be filled in."""
    return _REFERENCE.search(text) is not None


def resolve(value: Any, place: str) -> Any:
    """Return the value with each `${env:NAME}` in its texts replaced; `place` is for the error's words.

    Raises `SettingsError` where a variable is not set.
    """
    if isinstance(value, str):
        return _filled(value, place)
    if isinstance(value, Mapping):
        return {key: resolve(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, place) for item in value]
    return value


def _filled(text: str, place: str) -> str:
    if not has_reference(text):
        return text
    # A reference holds a colon, which must not be taken for one of the URL's own.
    url = _URL.fullmatch(_REFERENCE.sub(lambda found: "x" * len(found[0]), text))

    def fill(found: re.Match[str]) -> str:
        value = _variable(found[1], place)
        if looks_secret(found[1]) or looks_secret(place.rpartition(".")[2]):
            remember(value)
        return value if url is None else _for_url(url, found, value)

    return _REFERENCE.sub(fill, text)


def _for_url(url: re.Match[str], found: re.Match[str], value: str) -> str:
    """Return the value as it must be written at its place in the URL."""
    if found.start() < url.end("authority"):
        userinfo, at, _ = url["authority"].rpartition("@")
        end_of_userinfo = url.start("authority") + len(userinfo)
        if not at or found.start() >= end_of_userinfo:
            return value  # a host and its port
        return _for_userinfo(url, userinfo, found, value)
    if found.start() < url.end("path"):
        return quote(value, safe="/", errors="surrogateescape")
    before = url["query"][: found.start() - url.start("query")]
    name, equals, _ = before.rpartition("&")[2].partition("=")
    if not equals:
        return value  # whole options
    if looks_secret(name):
        remember(value)
    return quote(value, safe="", errors="surrogateescape")


def _for_userinfo(url: re.Match[str], userinfo: str, found: re.Match[str], value: str) -> str:
    before = userinfo[: found.start() - url.start("authority")]
    user, colon, password = value.partition(":")
    if ":" in before:
        remember(value)
    elif len(userinfo) == len(found[0]) and colon:  # one variable holds both
        remember(password)
        return f"{_encoded(user)}:{_encoded(password)}"
    return _encoded(value)


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _variable(name: str, place: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise SettingsError(
            f"{place} needs the environment variable {name}, which is not set: set it, or change the setting"
        )
    return value
