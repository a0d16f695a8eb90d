"""What backends answer, checked: the one door for every value that their code hands over.

A backend may be anybody's. A value of a wrong type is made right where its meaning is beyond doubt, and is
otherwise no answer: it must not reach the poller, a runner or the database as it is.
"""

import datetime as dt
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jobrunner.backends.base import Absent, Found, Gone, LogLine, Observation, RemoteError, Unsure
from jobrunner.errors import BackendDefect, words_of
from jobrunner.states import Phase
from jobrunner.text import are_storable, brief, flaw_in, storable, storable_detail, text_of

Answer = Observation | Gone | RemoteError
Say = Callable[[str], None]
"""Takes a sentence about a value that had to be made right."""

ID_MOST = 2_000
"""The most bytes of an external id: PostgreSQL's index takes about 2,700, with the connection's name."""

SUBMISSIONS_AT_ONCE = 32
"""Jobs that are submitted, or looked for, at once, by default: calls that are answered slowly leave room."""

_SHOWN = 200
_WAIT_MOST_S = 86_400.0
_NO_REASON = "no reason was given"


def shown(value: object) -> str:
    """Return how a value of others is shown in a message."""
    return brief(value, _SHOWN)


def code_not_run(returned: object) -> str | None:
    """Return what a method returned in place of having run; None: it is no such thing."""
    if inspect.iscoroutine(returned):
        returned.close()  # else Python warns that it was never awaited, which is said by whoever asks
        return "a coroutine"
    if inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        return "a generator"
    return "what would have to be awaited" if inspect.isawaitable(returned) else None


def fetched(answers: object, ids: Iterable[str], say: Say) -> dict[str, Answer]:
    """Return an answer for each of `ids` and no other, whatever `fetch` returned."""
    if not isinstance(answers, Mapping):
        error = RemoteError(f"the backend answered with {type(answers).__name__}, not with a mapping")
        return dict.fromkeys(ids, error)
    return {each: _fetched_one(answers, each, say) for each in ids}


_MISSING = RemoteError("not answered for")


def _fetched_one(answers: Mapping[Any, Any], external_id: str, say: Say) -> Answer:
    try:
        return answer_of(answers.get(external_id, _MISSING), say)
    except BaseException as error:  # noqa: BLE001  # the code of others' mappings and answers
        return RemoteError(f"the backend's answer cannot be read: {words_of(error)}")


def answer_of(answer: object, say: Say) -> Answer:
    """Return the answer for one id, checked. It may raise what the answer's own code raises."""
    if isinstance(answer, Observation):
        return observed(answer, say)
    if isinstance(answer, Gone):
        return Gone(_words(answer.reason, "reason", say) or _NO_REASON, certain=answer.certain is True)
    if isinstance(answer, RemoteError):
        return RemoteError(
            _words(answer.message, "message", say) or _NO_REASON, seconds_of(answer.retry_after_s)
        )
    return RemoteError(f"the backend gave an answer of no known kind: {shown(answer)}")


def observed(observation: Observation, say: Say) -> Observation | RemoteError:
    """Return an observation whose fields are of the right types, or an error for one without a phase."""
    given: Any = observation  # whatever its annotations say, its fields may hold anything
    if _is_sound(given):  # as most are
        return observation
    phase = given.phase
    if not isinstance(phase, Phase):
        if not isinstance(phase, str) or phase not in list(Phase):
            return RemoteError(f"the backend gave no known phase: {shown(phase)}")
        say(f"the phase is {type(phase).__name__}, not Phase")
        phase = Phase(phase)
    state, message = (
        _words(given.external_state, "external_state", say),
        _words(given.message, "message", say),
    )
    detail = _detail(given.detail, say)
    cause, has_run = _cause(given.cause, say), _truth(given.has_run, say)
    return Observation(phase, state, message, detail, has_run, cause)


def _is_sound(given: Any) -> bool:
    """Whether each field is of its very type, and can be stored as it is."""
    kinds = (type(given), type(given.phase), type(given.has_run), type(given.detail))
    texts = (given.external_state, given.message, given.cause)
    return (
        kinds == (Observation, Phase, bool, dict)
        and all(type(text) is str for text in texts)
        and are_storable(texts)
        and (not given.detail or storable_detail(given.detail) is given.detail)
    )


def _detail(value: Any, say: Say) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        say(f"the detail is {type(value).__name__}, not a mapping")
    return storable_detail(value)


def _cause(value: Any, say: Say) -> str:
    if isinstance(value, str):
        return storable(value)
    if value is not None:
        say(f"the cause is {type(value).__name__}, not text")
    return ""  # what is no word is in no policy


def _truth(value: Any, say: Say) -> bool:
    if isinstance(value, bool):
        return value
    say(f"has_run is {type(value).__name__}, not bool")
    return value not in (None, "", 0)  # in doubt, work is not cancelled as unstarted


def _words(value: object, name: str, say: Say) -> str:
    if isinstance(value, str):
        return storable(value)
    if value is None:
        return ""
    say(f"the {name} is {type(value).__name__}, not text")
    return storable(shown(value))


def seconds_of(value: object) -> float | None:
    """Return what a server asked to wait; 0 for what makes no sense, None where it did not ask."""
    if value is None:
        return None
    if not isinstance(value, int | float) or math.isnan(value):
        return 0.0
    return float(min(max(value, 0.0), _WAIT_MOST_S))


def cancelled(answers: object, ids: Iterable[str], say: Say) -> dict[str, str]:
    """Return what stood in the way of asking for the end, by id; an id without an entry was asked for.

    Raises `BackendDefect` for what is no mapping.
    """
    if not isinstance(answers, Mapping):
        raise BackendDefect(f"cancel answered with {shown(answers)}, not with a mapping")
    troubles: dict[str, str] = {}
    for each in ids:
        trouble = answers.get(each)
        if isinstance(trouble, RemoteError):
            troubles[each] = _words(trouble.message, "message", say) or _NO_REASON
        elif trouble is not None:
            troubles[each] = f"cancel answered with {shown(trouble)}"
    return troubles


def submitted(answer: object) -> str:
    """Return the external id that `submit` returned. Raises `BackendDefect`."""
    if not isinstance(answer, str) or not answer:
        raise BackendDefect(f"the backend answered with {shown(answer)}, which is no id")
    return text_of(answer)


def flaw_of_id(external_id: str) -> str | None:
    """Return why an external id cannot be stored exactly; None: it can."""
    flaw = flaw_in(external_id)
    if flaw is not None:
        return f"it holds {flaw}"
    size = len(external_id.encode())
    return None if size <= ID_MOST else f"it has {size} bytes, more than {ID_MOST}"


def proof_of(answer: Any, say: Say) -> Found | Absent | Unsure:
    """Return what `find` proved. Raises `BackendDefect` for what proves nothing."""
    if isinstance(answer, Absent):
        return answer
    external_id: Any = answer.external_id if isinstance(answer, Found) else None
    if isinstance(external_id, str) and external_id:
        return Found(text_of(external_id))
    retry_at: Any = answer.retry_at if isinstance(answer, Unsure) else ""
    if isinstance(answer, Unsure) and (retry_at is None or isinstance(retry_at, dt.datetime)):
        if retry_at is not None and retry_at.utcoffset() is None:
            say("retry_at has no time zone, and is read as UTC")
            retry_at = retry_at.replace(tzinfo=dt.UTC)
        return Unsure(retry_at, _words(answer.reason, "reason", say) or _NO_REASON)
    raise BackendDefect(f"the backend answered with {shown(answer)}, which proves nothing")


def baseline_of(answer: object) -> str:
    """Return what `baseline` learned. Raises `BackendDefect` for what cannot be stored exactly."""
    if not isinstance(answer, str):
        raise BackendDefect(f"baseline answered with {shown(answer)}, not with text")
    flaw = flaw_in(answer)
    if flaw is not None or storable(answer) != answer:
        raise BackendDefect(f"baseline answered with what cannot be stored: {flaw or 'it is too long'}")
    return text_of(answer)


def line_of(line: Any) -> LogLine:
    """Return a line of output. Raises `BackendDefect` for what is none."""
    if not isinstance(line, LogLine):
        raise BackendDefect(f"logs gave {shown(line)}, which is no line of output")
    given: Any = line
    at = given.at if isinstance(given.at, dt.datetime) else None
    if at is not None and at.utcoffset() is None:
        at = at.replace(tzinfo=dt.UTC)
    return LogLine(text_of(given.text), at, "" if given.source is None else text_of(given.source))


def limit_of(backend: object, say: Say) -> int:
    """Return how many ids one call takes, at least 1."""
    return _count_in(backend, "bulk_limit", 1, say)


def submissions_at_once_of(backend: object, say: Say) -> int:
    """Return how many jobs may be submitted, or looked for, at once; a backend need not say."""
    return _count_in(backend, "submissions_at_once", SUBMISSIONS_AT_ONCE, say, is_optional=True)


def _count_in(backend: object, name: str, default: int, say: Say, *, is_optional: bool = False) -> int:
    try:
        count = getattr(backend, name, None) if is_optional else getattr(backend, name)
    except BaseException as error:  # noqa: BLE001  # it may be a property
        say(f"{name} cannot be read: {words_of(error)}")
        return default
    if count is None and is_optional:
        return default
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        say(f"{name} is {shown(count)}, not a number of 1 or more")
        return default
    return count
