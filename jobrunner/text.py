"""Text and JSON as both databases can hold them: the one door for all words on their way to SQL.

What comes from outside (messages, reasons, names of hosts and users) may hold what PostgreSQL refuses: NUL,
unpaired surrogates, numbers that JSON does not have, a text longer than its column. A write must not fail
for that, so it is made storable here, visibly. What must stay exact (a `spec`, an external id) is checked
with `flaw_in` where it is given, and refused.
"""

import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

TEXT_MOST = 65_536
"""The most characters that a message, a reason or any other text of others keeps."""
DETAIL_MOST = 65_536
"""The most characters, about, that a job's `detail` keeps."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEPTH_MOST = 100
_BITS_MOST = 4_000  # PostgreSQL takes longer numbers, Python refuses to print those over 4,300 digits
_PART_MOST = 4_000  # characters of one value in a detail that is too large
_VALUES_MOST = 1_000_000
_DETAIL_VALUES_MOST = DETAIL_MOST
"""The most values of a JSON-like value, and of a detail: few objects that hold each other may be billions."""


class _Count:
    """Counts the values that were looked at, of so many at most."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most


def brief(value: object, most: int) -> str:
    """Return how a value is shown in a message: as `repr` does, of at most `most` characters.

    What holds a great deal, or itself, is shown in part; others' code may raise anything.
    """
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = most
    shown.maxlist = shown.maxtuple = shown.maxdict = shown.maxset = shown.maxfrozenset = 20
    shown.maxlevel = 3
    try:
        text = shown.repr(value)
    except BaseException:  # noqa: BLE001  # there is always something to be shown
        text = f"<{type(value).__name__}>"
    return storable(text, most)


def text_of(value: object) -> str:
    """Return `str(value)`, whatever its own code does: an error's `__str__` may raise, too."""
    if isinstance(value, str):
        return str.__str__(value)
    try:
        text = str(value)
    except BaseException:  # noqa: BLE001  # others' code: there is always something to be shown
        return f"<{type(value).__name__} without a text>"
    return str.__str__(text)


def storable(value: object, most: int | None = TEXT_MOST) -> str:
    r"""Return a text that both databases can hold, of at most `most` characters.

    A byte that was not UTF-8 (in an argument, a file's name) is shown as `\xff`; NUL and an unpaired
    surrogate become U+FFFD; what is too long ends in an ellipsis.
    """
    text = value if type(value) is str else text_of(value)
    if not text.isascii():
        text = _SURROGATE.sub(_escaped, text)
    if "\0" in text:
        text = text.replace("\0", _REPLACEMENT)
    return text if most is None or len(text) <= most else text[: most - 1] + _ELLIPSIS


def are_storable(texts: Sequence[str], most: int | None = TEXT_MOST) -> bool:
    """Whether all of these are as `storable` returns them: most often, that is seen at once."""
    every = "".join(texts)
    if every.isascii() and "\0" not in every and (most is None or len(every) <= most):
        return True
    return all(text == storable(text, most) for text in texts)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Python's own form of a byte that could not be decoded (`surrogateescape`).
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else _REPLACEMENT  # noqa: PLR2004


def storable_json(value: Any, most: int | None = TEXT_MOST) -> Any:
    """Return a value as JSON that both databases can hold; a text in it has at most `most` characters."""
    is_sound = _size(value, most, _Count(_VALUES_MOST)) is not None
    return value if is_sound else _plain(value, most, _Count(_VALUES_MOST))


def storable_detail(value: object) -> dict[str, Any]:
    """Return what a backend gave as a detail, as a bounded JSON object."""
    if type(value) is not dict and not isinstance(value, Mapping):
        value = {"detail": value}
    size = _size(value, TEXT_MOST, _Count(_DETAIL_VALUES_MOST))
    if size is not None and size <= DETAIL_MOST and type(value) is dict:
        return value
    plain: dict[str, Any] = _plain(value, TEXT_MOST, _Count(_DETAIL_VALUES_MOST))
    return plain if _size_of_plain(plain) <= DETAIL_MOST else _shortened(plain)


def _size_of_plain(value: Any) -> int:
    return _size(value, None, _Count(_VALUES_MOST)) or 0


def _shortened(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return what fits of a detail that is too large, and how much does not."""
    kept: dict[str, Any] = {}
    room = DETAIL_MOST
    for key, value in detail.items():
        part = value if _size_of_plain(value) <= _PART_MOST else storable(value, _PART_MOST)
        room -= len(key) + _size_of_plain(part)
        if room < 0:
            kept[_ELLIPSIS] = f"{len(detail) - len(kept)} more left out: the detail is too large"
            break
        kept[storable(key, _PART_MOST)] = part
    return kept


def _size(value: Any, most: int | None, count: _Count, depth: int = 0) -> int | None:
    """Return about how long a value is as JSON; None: it is not JSON that can be stored as it is.

    It is asked for each look at each job: so it looks at exact types, and leaves all others to `_plain`.
    """
    kind = type(value)
    if kind is str:
        return len(value) + 2 if value == storable(value, most) else None
    if kind is dict or kind is list:
        return _size_of_container(value, most, count, depth) if depth < _DEPTH_MOST else None
    if kind is int:
        return 8 if value.bit_length() <= _BITS_MOST else None
    if kind is float:
        return 8 if math.isfinite(value) else None
    return 4 if value is None or kind is bool else None


def _size_of_container(value: Any, most: int | None, count: _Count, depth: int) -> int | None:
    count.left -= len(value)
    if count.left < 0:
        return None
    texts: list[str] = []
    total = 2
    for each in value.values() if type(value) is dict else value:
        if type(each) is str:
            texts.append(each)
        elif each is None:
            total += 6
        elif (size := _size(each, most, count, depth + 1)) is None:
            return None
        else:
            total += size + 2
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            return None
        texts += value
        total -= 2 * len(value)  # what separates them is counted with the values
    return total + sum(map(len, texts)) + 4 * len(texts) if are_storable(texts, most) else None


def _plain(value: Any, most: int | None, count: _Count, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _BITS_MOST else f"a number of {value.bit_length()} bits"
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping | list | tuple):
        try:
            return _plain_container(value, most, count, depth)
        except Exception as error:  # noqa: BLE001  # others' containers: there is always something to be shown
            return f"<{type(value).__name__} that cannot be read: {type(error).__name__}>"
    return storable(value, most)


def _plain_container(value: Any, most: int | None, count: _Count, depth: int) -> Any:
    if depth >= _DEPTH_MOST or count.left <= 0:  # or it holds itself
        return _ELLIPSIS
    if isinstance(value, Mapping):
        return {
            storable(key, most): _plain(each, most, count, depth + 1)
            for key, each in _first(value.items(), count)
        }
    return [_plain(each, most, count, depth + 1) for each in _first(value, count)]


def _first(values: Iterable[_T], count: _Count) -> Iterator[_T]:
    """Yield as many of the values as may be looked at: there may be no end of them."""
    for each in values:
        if count.left <= 0:
            return
        count.left -= 1
        yield each


def flaw_in(value: object) -> str | None:
    """Return why a JSON-like value cannot be stored exactly, and where; None: it can."""
    return next(_flaws(value, "", 0, _Count(_VALUES_MOST)), None)


def _flaws(value: object, path: str, depth: int, count: _Count) -> Iterator[str]:
    count.left -= 1
    if count.left < 0:
        yield f"more than {_VALUES_MOST:,} values"
    if isinstance(value, Mapping | list | tuple):
        if depth >= _DEPTH_MOST:
            yield f"more than {_DEPTH_MOST} levels{_at(path)}"
        elif isinstance(value, Mapping):
            for key, each in value.items():
                yield from _flaws(key, path, depth, count)
                inner = f"{path}.{text_of(key)}" if path else text_of(key)
                yield from _flaws(each, inner, depth + 1, count)
        else:
            for number, each in enumerate(value):
                yield from _flaws(each, f"{path}[{number}]", depth + 1, count)
        return
    flaw = _flaw_of_text(value) if isinstance(value, str) else _flaw_of_scalar(value)
    if flaw is not None:
        yield flaw + _at(path)


def _at(path: str) -> str:
    return f" at {storable(path, 200)}" if path else ""


def _flaw_of_text(value: str) -> str | None:
    if "\0" in value:
        return "a NUL character"
    is_valid = value.isascii() or _SURROGATE.search(value) is None
    return None if is_valid else "text that is not valid Unicode"


def _flaw_of_scalar(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is not a JSON number,"
    if isinstance(value, int) and value.bit_length() > _BITS_MOST:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, int | float):
        return None
    return f"a value of type {type(value).__name__}, which JSON does not have,"
