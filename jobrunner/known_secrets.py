"""The secrets that this process has read: no error, log line or traceback repeats one of them.

A message of a driver or of an outside system may quote what it was given, whole, encoded or cut at a
delimiter. Whoever reads a secret remembers it here, and each door through which text leaves masks it.
"""

import re
import threading
from collections.abc import Iterator

MASK = "***"

_SHORTEST = 3
"""Shorter secrets are not masked: they would black out every message and hide nothing."""
_SHORTEST_PART = 4
_LONG = 8
"""From this length on a secret is masked inside a word too."""
_DELIMITER = re.compile(r"[@:/?#%\s]")

_MOST_CUTS = 8
"""A secret of more delimiters is looked for as a whole and by its beginnings and ends."""

_lock = threading.Lock()
_secrets: set[str] = set()
_public: set[str] = set()
_pattern: re.Pattern[str] | None = None


def remember(secret: str, *, public: frozenset[str] = frozenset()) -> None:
    """Mask `secret` from now on, as it is, encoded, and each part that a delimiter cuts off.

    `public`: texts that stay readable, such as the user's and the database's name.
    """
    global _pattern  # noqa: PLW0603  # derived from `_secrets`
    if secret in _secrets or secret in public or len(secret.strip()) < _SHORTEST:
        return
    with _lock:
        _secrets.add(secret)
        _public.update(public)
        forms = {form for known in _secrets for form in _forms(known)} - _public
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        _pattern = re.compile("|".join(map(_bounded, longest_first)))


def forget_all() -> None:
    """Forget every secret: for tests."""
    global _pattern  # noqa: PLW0603
    with _lock:
        _secrets.clear()
        _public.clear()
        _pattern = None


def without_secrets(text: str) -> str:
    """Return the text with each known secret, and each part of one, replaced by `***`."""
    pattern = _pattern
    return text if pattern is None else pattern.sub(MASK, text)


def _forms(secret: str) -> Iterator[str]:
    from urllib.parse import quote, quote_plus  # not at each start: few have a secret

    for part in (secret, *_parts(secret)):
        yield part
        yield quote(part, safe="", errors="surrogateescape")
        yield quote_plus(part, errors="surrogateescape")
        yield repr(part)[1:-1]


def _parts(secret: str) -> Iterator[str]:
    """Yield each part between two delimiters: what a parser that stumbles over one of them quotes."""
    cuts = [found.span() for found in _DELIMITER.finditer(secret)]
    begins = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(secret)]
    for begin in begins:
        for end in ends:
            is_edge = begin == 0 or end == len(secret)
            if end - begin >= _SHORTEST_PART and (is_edge or len(cuts) <= _MOST_CUTS):
                yield secret[begin:end]


def _bounded(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _LONG else rf"(?<![^\W_]){escaped}(?![^\W_])"
