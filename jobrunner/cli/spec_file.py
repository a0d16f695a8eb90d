"""Reading a job's spec from a file: YAML or JSON, and each mistake named with its line."""

import errno
import json
import math
import re
import sys
from typing import Any, NoReturn

from jobrunner.errors import SpecError
from jobrunner.paths import LARGEST_FILE, read_file
from jobrunner.text import flaw_in

_PIPE_S = 10.0  # for each piece of what a pipe brings, such as `--spec <(make-spec)`
_DEEPEST = 32
_MOST_VALUES = 100_000  # a few YAML aliases of aliases are billions of values

_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}\[\]]')
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def read_spec(path: str, *, extra: str = "aws") -> dict[str, Any]:
    """Return the mapping in the file; `-` is standard input.

    What is not JSON is read as YAML, but in a file named `.json`; `extra` installs what reads it.
    References such as `${env:NAME}` stay as they are. Raises `SpecError`, and `UsageError` where YAML cannot
    be read here.
    """
    shown = "standard input" if path == "-" else path
    text = _text(path, shown)
    if not text.strip():
        raise SpecError(f"{shown} is empty: write the spec into it, as YAML or JSON.")
    value = _json(text, shown, must_be=path.endswith(".json"))
    if value is None:
        from jobrunner.spec_yaml import load

        value = load(text, shown, deepest=_DEEPEST, extra=extra)
    if not isinstance(value, dict):
        kind = {list: "a list", type(None): "nothing"}.get(type(value), "a single value")
        raise SpecError(f"{shown} holds {kind}, and a spec is a mapping of keys to values.")
    check_values(value, shown)
    return value


def _text(path: str, shown: str) -> str:
    try:
        if path != "-":
            data = read_file(path, wait_s=_PIPE_S)
        elif sys.stdin is None:
            raise SpecError("standard input is closed: name a file.")
        else:
            data = sys.stdin.buffer.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise SpecError(f"The spec {shown} does not exist: correct its name.") from None
    except IsADirectoryError:
        raise SpecError(f"The spec {shown} is a directory: name a file in it.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if getattr(error, "errno", None) == errno.EFBIG:
            raise SpecError(
                f"{shown} is larger than 1 MiB, which no spec is: is it the right file?"
            ) from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"The spec {shown} cannot be read ({reason}).") from None
    if len(data) > LARGEST_FILE:
        raise SpecError(f"{shown} is larger than 1 MiB, which no spec is: is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{shown}, line {line}: not UTF-8: save the file as UTF-8.") from None


def _json(text: str, shown: str, *, must_be: bool) -> Any:
    """Return the value of a JSON text; None where it is another text, which must not be JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if must_be:
            problem = error.msg[:1].lower() + error.msg[1:]
            raise SpecError(f"{shown}, line {error.lineno}: {problem}: correct the file.") from None
        return None
    except RecursionError:
        value = None
    except ValueError as error:
        problem = str(error).partition(";")[0]  # the rest of Python's words on too long a number
        raise SpecError(f"{shown}: {problem}: correct the file.") from None
    _check_json(text, shown)
    if value is None and must_be:
        raise SpecError(f"{shown} holds nothing, and a spec is a mapping of keys to values.")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number that JSON has")


def _check_json(text: str, shown: str) -> None:
    """Refuse a key that is there twice, of which one would be lost, and too deep a nesting."""
    keys: list[set[str]] = []
    for found in _TOKEN.finditer(text):
        if found[0] in "{[":
            keys.append(set())
        elif found[0] in "}]":
            keys.pop()
        elif found[2]:
            key = json.loads(found[1])
            if key in keys[-1]:
                raise SpecError(f"{_line(text, found, shown)}: the key {key!r} is there twice: remove one.")
            keys[-1].add(key)
        if len(keys) > _DEEPEST:
            raise SpecError(f"{_line(text, found, shown)}: nested too deeply, more than {_DEEPEST} levels.")


def _line(text: str, found: re.Match[str], shown: str) -> str:
    return f"{shown}, line {text.count(chr(10), 0, found.start()) + 1}"


def check_values(spec: dict[str, Any], shown: str) -> None:
    """Refuse what no database could keep, or what never ends. Raises `SpecError`."""
    left: list[tuple[str, Any, int]] = [("", spec, 1)]
    seen = 0
    while left:
        path, value, depth = left.pop()
        seen += 1
        if depth > _DEEPEST + 1:
            raise SpecError(f"{shown}: nested too deeply at {path[:60]}, more than {_DEEPEST} levels.")
        if seen > _MOST_VALUES:
            raise SpecError(f"{shown} holds more than {_MOST_VALUES:,} values, which no spec does.")
        if isinstance(value, dict):
            left += [(f"{path}.{key}" if path else key, item, depth + 1) for key, item in value.items()]
            _check_text(shown, path, *value)
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        elif isinstance(value, str):
            _check_text(shown, path, value)
        elif isinstance(value, int) and flaw_in(value) is not None:
            raise SpecError(f"{shown}: {path} is a number too long to be stored: write it as a text.")
        elif not isinstance(value, int | float | None) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise SpecError(f"{shown}: {path} is {value!r}, for which JSON has no form: write it as a text.")


def _check_text(shown: str, path: str, *texts: str) -> None:
    if any(_UNSTORABLE.search(text) for text in texts):
        raise SpecError(
            f"{shown}: {path or 'a key'} holds a character that cannot be stored (NUL, or half a pair)."
        )
