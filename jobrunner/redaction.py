"""What looks like a secret: to mask it where it would be shown, to refuse it where it would be stored.

It judges by names, never by how random a value looks: a false alarm about a value that nobody can
explain is worse than a rule that can be told in one sentence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from urllib.parse import unquote

from jobrunner.known_secrets import MASK, remember

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SECRET_ENDINGS = ("password", "passwords", "passwd", "passphrase", "apikey", "secret", "token")
_SECRET_WORDS = frozenset(
    {"accesskey", "credential", "credentials", "privatekey", "pwd", "secretkey", "secrets", "signingkey"}
)
_LAST_WORDS = frozenset({"auth", "authorization", "bearer"})
_SECRET_KEYS = frozenset(
    {
        "access",
        "account",
        "api",
        "auth",
        "encryption",
        "master",
        "private",
        "secret",
        "shared",
        "signing",
        "ssh",
    }
)
# `secret_arn`, `token_url`, `password_file`: these speak about a secret and do not hold it.
# fmt: off
_HARMLESS_LAST_WORDS = frozenset({
    "arn", "arns", "bucket", "count", "endpoint", "env", "expires", "expiry", "field", "file", "header",
    "id", "ids", "length", "lifetime", "limit", "manager", "max", "min", "mode", "mount", "name",
    "names", "path", "policy", "provider", "ref", "required", "rotation", "timeout", "ttl", "type",
    "uri", "url", "version",
})
# fmt: on

_REFERENCE = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")
_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#@:\s]*):([^/?#\s]*)@")
# One slash to four: a URL that was mistyped holds its password all the same.
_USER = r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*:/{1,4}(?:\$\{env:\w+\}|[^/?#@:\s])*):"
_WHOLE_URL = re.compile(rf"{_USER}(?P<rest>.*)", re.DOTALL)
_URL_IN_TEXT = re.compile(rf"{_USER}(?P<rest>[^\s\"'<>]*)")
_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PORT = re.compile(r"\d+(?=[/?#])")
_ASSIGNMENT = re.compile(
    r"(?P<before>(?:^|[\s?&;,'\"])-{0,2})(?P<name>[A-Za-z_][\w.-]*)=(?P<value>'[^']*'|\"[^\"]*\"|[^&\s;]+)"
)
_CONNINFO = re.compile(
    r"(?P<before>(?:^|\s))(?P<name>\w+)(?P<sign>\s*=\s*)(?P<value>'(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)+)",
    re.DOTALL,
)
"""A word of libpq's other form, `host=db password='it\\'s one'`: blanks may stand around its sign."""
_AUTHORIZATION = re.compile(
    r"\b(?:proxy-)?authorization\s*[:=]\s*(?:bearer\s+|basic\s+)?(?P<value>[^\s'\"]+)", re.IGNORECASE
)
_PAIR = re.compile(
    r"(?P<name>[A-Za-z_][\w.-]*)(?:['\"]\s*[:=]\s*|\s*:\s+|:(?=['\"]))(?!['\"]?\$\{env:)"
    r"(?:\"(?P<double>[^\"]+)|'(?P<single>[^']+)|(?:(?i:bearer|basic)\s+)?(?P<bare>[^\s'\",}\]]+))"
)
"""A name and its value as JSON, YAML and headers have them; `auth:8000` is a host and its port."""
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def looks_secret(key: str) -> bool:
    """Whether a key of this name (`api_key`, `DB_PASSWORD`, `clientSecret`) usually holds a secret."""
    words = [word.lower() for word in _WORD.findall(key)]
    if not words or words[-1] in _HARMLESS_LAST_WORDS:
        return False
    if words[-1] in _LAST_WORDS:
        return True
    if any(word.endswith(_SECRET_ENDINGS) or word in _SECRET_WORDS for word in words):
        return True
    return any(pair[1] == "key" and pair[0] in _SECRET_KEYS for pair in pairwise(words))


def is_reference(text: str) -> bool:
    """Whether the whole text is `${env:NAME}`, which names a secret without holding it."""
    return _REFERENCE.fullmatch(text) is not None


def mask_url(url: str) -> str:
    """Return the URL, or a text with URLs in it, without passwords and secret parameters."""
    pattern = _WHOLE_URL if _WHOLE_URL.match(url) else _URL_IN_TEXT
    return _ASSIGNMENT.sub(_masked_assignment, pattern.sub(_masked_password, url))


def _masked_password(found: re.Match[str]) -> str:
    rest = found["rest"]
    authority = re.match(r"[^/?#]*", rest)
    assert authority is not None  # it matches the empty text too
    is_well_formed = "@" in authority[0] and "@" not in rest[authority.end() :]
    # An unescaped "/", "?" or "#" may belong to the password, but a number before one of them is a port.
    is_web = found["before"].lower().startswith("http")
    if "@" not in rest or (is_web and _PORT.match(rest) and "@" not in authority[0]):
        return found[0]
    password, _, place = (authority[0] if is_well_formed else rest).rpartition("@")
    if is_reference(password):
        return found[0]
    if not is_well_formed and any(looks_secret(each["name"]) for each in _ASSIGNMENT.finditer(password)):
        place = MASK  # the @ may stand in the option, and the rest of its value after it
    return f"{found['before']}:{MASK}@{place}{rest[authority.end() :] if is_well_formed else ''}"


def remember_secrets(options: Mapping[str, object]) -> None:
    """Remember the secrets among a connection's options, so that no message repeats one."""
    for key, value in options.items():
        _remember(value, is_secret=looks_secret(key))


def _remember(value: object, *, is_secret: bool) -> None:
    """Remember what is secret in a value. Whatever is below a name that looks secret is one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _remember(item, is_secret=is_secret or looks_secret(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            _remember(item, is_secret=is_secret)
    elif isinstance(value, str):
        if is_secret:
            remember(value.strip())
        elif found := _WHOLE_URL.match(value.strip()):
            password, at, _ = found["rest"].rpartition("@")
            if at:
                remember(unquote(password))
        else:  # a table where a name or a path is wanted
            for secret in _secret_pairs(value):
                remember(secret)


def mask_value(key: str, value: object) -> str:
    """Return how the value of `key` may be shown: masked where the key or the value is secret."""
    if isinstance(value, Mapping) and not looks_secret(key):
        named = _named_by(value)
        shown = (
            f"{inner}: {mask_value(named if str(inner).lower() == 'value' else str(inner), item)}"
            for inner, item in value.items()
        )
        return "{" + ", ".join(shown) + "}"
    if isinstance(value, list | tuple) and not looks_secret(key):
        options = ["", *(each if _is_secret_option(each) else "" for each in value)]
        return "[" + ", ".join(mask_value(*pair) for pair in zip(options, value, strict=False)) + "]"
    text = "" if value is None else str(value)
    if text and looks_secret(key) and not is_reference(text):
        return MASK
    if _PRIVATE_KEY.search(text) or any(_secret_pairs(text)):
        return MASK
    if key.lower().endswith("url") and not _ANY_URL.match(text):
        text = _CONNINFO.sub(_masked_word, text)
        if "@" in text:  # no URL, but meant as one: what stands before the @ may be a password
            text = f"{MASK}{text[text.rindex('@') :]}"
    return mask_url(text)


def _secret_pairs(text: str) -> Iterator[str]:
    """Yield the secrets of a text that is a table, a header, or meant as one: `"client_secret": ...`."""
    pairs = [
        (found["name"], found["double"] or found["single"] or found["bare"]) for found in _PAIR.finditer(text)
    ]
    named = any(name.lower() in {"name", "key"} and looks_secret(value) for name, value in pairs)
    for name, value in pairs:
        if looks_secret(name) or (named and name.lower() == "value"):
            yield value.removeprefix("Bearer ").removeprefix("Basic ")


def _named_by(value: Mapping[object, object]) -> str:
    """Return the name that a name/value pair gives its value; "value" where it is no such pair."""
    lowered = {str(key).lower(): key for key in value}
    named = value.get(lowered.get("name", lowered.get("key")))
    return named if isinstance(named, str) else "value"


def find_secret(value: object) -> str | None:
    """Return the path of the first secret in a JSON-like value (`env[0].value`), or None.

    Secret is: a string under a secret-looking key; the value of a name/value pair with such a name;
    a word like `--password=x`, `PASSWORD=x` or the one after `--password`; an URL with a password in
    it; an `Authorization:` header; a private key. `${env:NAME}` and shell variables are allowed.
    """
    return next(_secrets(value, ""), None)


def _secrets(value: object, path: str) -> Iterator[str]:
    if isinstance(value, str):
        if _text_holds_secret(value):
            yield path or "(top)"
    elif isinstance(value, Mapping):
        yield from _secrets_of_mapping(value, path)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for index, item in enumerate(value):
            if (
                index
                and _is_secret_option(value[index - 1])
                and _is_literal(item)
                and not item.startswith("-")
            ):
                yield f"{path}[{index}]"
            yield from _secrets(item, f"{path}[{index}]")


def _secrets_of_mapping(value: Mapping[object, object], path: str) -> Iterator[str]:
    named = _named_by(value)
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        is_value_of_secret = str(key).lower() == "value" and looks_secret(named)
        if (is_value_of_secret or looks_secret(str(key))) and _is_literal(item):
            yield inner
        else:
            yield from _secrets(item, inner)


def _is_literal(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip("'\"")) and not value.strip("'\"").startswith("$")


def _is_secret_option(word: object) -> bool:
    return isinstance(word, str) and word.startswith("--") and "=" not in word and looks_secret(word)


def _text_holds_secret(text: str) -> bool:
    if _PRIVATE_KEY.search(text):
        return True
    if any(
        looks_secret(found["name"]) and _is_literal(found["value"]) for found in _ASSIGNMENT.finditer(text)
    ):
        return True
    if any(_is_literal(found["value"]) for found in _AUTHORIZATION.finditer(text)):
        return True
    return any(_is_literal(found[2]) for found in _AUTHORITY.finditer(text))


def _masked_word(found: re.Match[str]) -> str:
    value = MASK if looks_secret(found["name"]) else found["value"]
    return f"{found['before']}{found['name']}{found['sign']}{value}"


def _masked_assignment(found: re.Match[str]) -> str:
    if is_reference(found["value"]):
        return found[0]
    value = MASK if looks_secret(found["name"]) else _ASSIGNMENT.sub(_masked_assignment, found["value"])
    return f"{found['before']}{found['name']}={value}"
