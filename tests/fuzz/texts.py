"""Texts and values as the outside may send them: anything that the type allows, and what often goes wrong."""

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

SECRET = "s3cr3t/Horse?Battery#9"
"""A password that no message may show; unescaped, it breaks a URL."""

ODD_TEXTS = [
    "",
    " ",
    "a\x00b",
    "line\nbreak",
    "carriage\rreturn",
    "\x1b[2J\x1b]0;title\x07",
    "\u202eright to left",
    "\u2028line separator",
    "\ufeffbyte order mark",
    "\ud800",
    "\udcff\udc80",
    "\U0001f9d1\u200d\U0001f680",
    "a" * 300,
    "é" * 200,
    "%41%00%zz",
    "50% off?#x",
    "'; DROP TABLE job; --",
    '{"a": 1',
    "[" * 2000,
    "${env:",
    "${env:JOBRUNNER_NOT_SET}",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "0x10",
    "1_000",
    "\u0663",  # a digit that int() reads
    "9" * 30,
    "9" * 5000,
    "-1",
    "0",
    "true",
    "None",
    "null",
    "2026-02-30T25:00:00",
    "--help",
    "/",
    "..",
]

any_text = st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=()), max_size=40))
"""Every text that Python has, lone halves of pairs too."""


def as_argument(text: str) -> str:
    """Return a text as a process receives it among its arguments or in its environment."""
    return text.replace("\0", "").encode(errors="surrogatepass").decode(errors="surrogateescape")


argument_text = any_text.map(as_argument)
"""What an operating system can hand over: bytes without NUL, read as Python reads them."""

ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 0.0, -0.0, 1e-320, 1e308, 1e9 + 1]

any_number = st.one_of(
    st.sampled_from([*ODD_NUMBERS, math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
)

any_scalar = st.one_of(st.none(), st.booleans(), any_number, any_text)


def any_json(leaves: int = 12, scalars: st.SearchStrategy[Any] = any_scalar) -> st.SearchStrategy[Any]:
    """Return what a JSON reader may give; numbers that are none included."""
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
        max_leaves=leaves,
    )


_GONE = object()


def mutated(template: Any, leaves: int = 6, most: int = 5) -> st.SearchStrategy[Any]:
    """Return values like `template` in which up to `most` parts are something else, or missing.

    Mostly as it should be: else nothing behind the first check is ever reached.
    """
    paths = list(_paths(template, ()))
    odd = st.one_of(
        st.just(_GONE), any_json(leaves), st.sampled_from(ODD_NUMBERS), st.sampled_from(ODD_TEXTS)
    )
    return st.lists(st.tuples(st.sampled_from(paths), odd), max_size=most).map(
        lambda changes: _changed(template, changes)
    )


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in _items(value):
        yield from _paths(item, (*path, key))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _changed(template: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    root = {"": copy.deepcopy(template)}
    for path, odd in changes:
        inner: Any = root
        steps = ("", *path)
        for step in steps[:-1]:
            inner = dict(_items(inner)).get(step)
        if steps[-1] not in dict(_items(inner)):
            continue  # an earlier change took it away
        if odd is _GONE and len(steps) > 1:
            del inner[steps[-1]]
        else:
            inner[steps[-1]] = None if odd is _GONE else odd
    return root[""]
