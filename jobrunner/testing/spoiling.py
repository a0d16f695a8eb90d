"""How a backend's code can be wrong, and what its answers are then."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from jobrunner.backends.base import Found, Observation, RemoteError, Unsure
from jobrunner.clock import utcnow

ODD_TEXT = "cut in half \ud83d, ended by \0, from a file's name \udcff"
"""Text that neither database takes as it is."""


class Misbehaviour(StrEnum):
    """A way for a backend's code to be wrong."""

    SYSTEM_EXIT = "system exit"
    KEYBOARD_INTERRUPT = "keyboard interrupt"
    GENERATOR_EXIT = "generator exit"
    PANIC = "panic"
    """Raises a `BaseException` of its own, as extensions written in Rust do."""
    CANCELLED = "cancelled"
    """Raises `asyncio.CancelledError`, though nobody cancelled it."""
    UNPRINTABLE = "unprintable"
    """Raises an error whose `str()` raises."""
    HANGS = "hangs"
    """Does not return until it is cancelled."""
    CLINGS = "clings"
    """Does not return, and swallows its cancellation, until `HostileBackend.release()`."""
    NOT_ASYNC = "not async"
    """Returns None in place of something to await, and does nothing."""
    NONE = "none"
    LIST = "list"
    NUMBER = "number"
    WRONG_KEYS = "wrong keys"
    """Answers with a mapping of something else."""
    BROKEN_MAPPING = "broken mapping"
    """Answers with a mapping whose own code raises `SystemExit`."""
    WRONG_TYPES = "wrong types"
    """Answers with values of the right classes, whose fields are of wrong types."""
    ODD_TEXT = "odd text"
    """Answers with text and numbers that a database does not take."""


class _BrokenMapping(Mapping[str, Any]):
    def __init__(self, why: str) -> None:
        self._why = why

    def __getitem__(self, key: str) -> Any:
        raise SystemExit(self._why)

    def __iter__(self) -> Iterator[str]:
        raise SystemExit(self._why)

    def __len__(self) -> int:
        raise SystemExit(self._why)


def spoiled(misbehaviour: Misbehaviour, call: str, answer: Any, *, odd: str = ODD_TEXT, why: str = "") -> Any:
    """Return what comes in place of the answer of a call. `odd`: as text; `why`: of an error it raises."""
    if misbehaviour is Misbehaviour.WRONG_TYPES:
        return _of_wrong_types(call, answer)
    if misbehaviour is Misbehaviour.ODD_TEXT:
        return _with_odd_text(call, answer, odd)
    return {
        Misbehaviour.NONE: None,
        Misbehaviour.LIST: [answer],
        Misbehaviour.NUMBER: 7,
        Misbehaviour.WRONG_KEYS: {7: answer},
        Misbehaviour.BROKEN_MAPPING: _BrokenMapping(why),
    }[misbehaviour]


def _of_wrong_types(call: str, answer: Any) -> Any:
    if call == "find":
        return Found(None)  # type: ignore[arg-type]  # on purpose, as all below
    if call == "cancel":
        return {each: RemoteError(None, "soon") for each in answer}  # type: ignore[arg-type]
    if call != "fetch":
        return 7
    # The phase is right, but its word is no `Phase`; all else is wrong.
    return {
        key: Observation(str(value.phase), 7, {"a": 1}, "text", "yes", ["oom"])  # type: ignore[arg-type]
        if isinstance(value, Observation)
        else value
        for key, value in answer.items()
    }


def _with_odd_text(call: str, answer: Any, odd: str) -> Any:
    if call == "fetch":
        detail = {odd: [float("nan"), 10**5000, odd]}
        return {
            key: Observation(value.phase, odd, odd, detail, cause=odd)
            if isinstance(value, Observation)
            else value
            for key, value in answer.items()
        }
    if call == "find":
        return Unsure(utcnow().replace(tzinfo=None), odd)
    return {key: RemoteError(odd) for key in answer} if isinstance(answer, Mapping) else odd
