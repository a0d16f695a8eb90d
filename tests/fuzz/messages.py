"""What every message must be, whoever says it: one line that a person can act on."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jobrunner.visible import visible
from tests.fuzz.texts import SECRET

_LEAST = 20
_QUOTED_LEAST = len("Error")  # characters: without shorter words, what is looked for would not be found
_CLASS_OF_ERROR = re.compile(r"\b(?:[a-z_]+\.)*[A-Z][A-Za-z]+(?:Error|Exception)\b")
_NAMED = re.compile(r'"[^"]*"')  # what somebody else has named, such as a setting that is none
_UNFORESEEN = re.compile(r"unexpected [A-Z]")  # how the command line names what nobody foresaw
_LEAKS = ("Traceback", "<object", "NoneType", "has no attribute", "not subscriptable", "(builtins.")
_PARTS_OF_SECRET = tuple(part for part in re.split(r"[/?#]", SECRET) if len(part) > 3)

_said: Counter[str] = Counter()


def ensure_message(text: str, *names: str, quotes: Iterable[str] = ()) -> None:
    """Hold a message against the rules. `names`: it must name one of them. `quotes`: what it may quote."""
    assert text.strip(), "an error without a word"
    assert len(text.splitlines()) == 1, f"more than one line: {text!r}"
    assert visible(text) == text, f"it would move a terminal: {text!r}"
    assert len(text) >= _LEAST, f"too short to say what is wrong, and what to do: {text!r}"
    own = text
    for quoted in sorted((each for each in quotes if len(each) >= _QUOTED_LEAST), key=len, reverse=True):
        own = own.replace(quoted, "")
    for leak in _LEAKS:
        assert leak not in own, f"{leak!r} in {text!r}"
    assert not _UNFORESEEN.search(own), text
    found = _CLASS_OF_ERROR.search(_NAMED.sub("", own))
    assert found is None, f"the class of an error in {text!r}"
    ensure_no_secret(text)
    assert not names or any(name in text for name in names), f"none of {names} is named in {text!r}"
    _said[text] += 1


def ensure_sentence(text: str, *names: str, quotes: Iterable[str] = ()) -> None:
    """Hold a message of the command line against the rules; there it also ends as a sentence does."""
    ensure_message(text, *names, quotes=quotes)
    assert text.endswith((".", "?", "!", "`")), f"it does not end as a sentence: {text!r}"


def ensure_no_secret(text: str) -> None:
    """Refuse a text that shows the secret, in whole or in part."""
    for part in _PARTS_OF_SECRET:
        assert part not in text, f"a part of the secret is shown: {text!r}"


def write_said(path: Path) -> None:
    """Append every distinct message to a file, for a person to read."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{text}\n" for text in sorted(_said))
    _said.clear()


SAID_VARIABLE = "JOBRUNNER_FUZZ_MESSAGES"
"""Names the file to which all messages of a run are appended."""


def said_path() -> Path | None:
    """Return the file for the messages, where one is wanted."""
    named = os.environ.get(SAID_VARIABLE)
    return Path(named) if named else None
