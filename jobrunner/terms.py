"""What a job's class says about how its jobs are watched: asked in one place, checked, and never trusted.

A class may be anybody's, and so may each attribute of it: a property, a method that never returns, a value
whose `__hash__` raises `SystemExit`. None of that may end a worker, stop its event loop, or bar other jobs.
"""

import asyncio
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

from jobrunner import registry
from jobrunner.aside import Aside
from jobrunner.backends.base import Backend
from jobrunner.backends.calls import is_ours, name_of
from jobrunner.backends.checks import shown
from jobrunner.backends.guarded import backend_of
from jobrunner.clock import INTERVAL_LEAST, SECONDS_MOST, is_interval
from jobrunner.errors import CodeError, JobrunnerError, SettingsError, UsageError, words_of
from jobrunner.models import MonitorJob
from jobrunner.models.own_run import has_callback, has_on_kill
from jobrunner.settings import ConnectionSettings, Settings

_T = TypeVar("_T")

ASK_S = 15.0
"""Seconds within which a class must have said all that it is asked."""
MAKE_S = 60.0
"""Seconds within which its backend must be made."""
POLL_S = MonitorJob.default_poll_interval
"""Seconds between looks, where a class says nothing that can be used."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is needed to watch a job, as its class has said it."""

    job: MonitorJob
    is_kept: bool
    """Whether the object is needed while the job is watched."""
    has_callback: bool
    is_bound_here: bool
    poll_interval: float
    connection: str
    """The connection's name, as it is configured."""
    behind: ConnectionSettings
    way: int
    """The number of the way to the backend: jobs with the same one share it."""
    flaws: tuple[str, ...]
    """What the class says wrongly, and a default was taken for."""


_ASKED_OF_EACH = (
    *("own_way", "has_a_say", "judge", "look_interval_s", "heartbeat_callback", "on_kill"),
    "backend_behind",
)
_SAID_BY_THE_CLASS: dict[str, set[type]] = {
    "backend_kind": {str},
    "runs_on_this_host": {bool},
    "default_poll_interval": {int, float},
    "make_backend": {classmethod},
}


def all_say_the_same(job_class: type) -> bool:
    """Whether all jobs of a class and a connection have the same terms: it says nothing of its own on any.

    To find that out runs none of its code.
    """
    if type(job_class) is not type(MonitorJob) or job_class.__getattribute__ is not object.__getattribute__:
        return False
    says: Callable[[str], Any] = partial(inspect.getattr_static, job_class)
    asks_none = all(says(name) is inspect.getattr_static(MonitorJob, name) for name in _ASKED_OF_EACH)
    return asks_none and all(type(says(name)) in kinds for name, kinds in _SAID_BY_THE_CLASS.items())


class WayNumbers:
    """Numbers the ways to backends: equal ones have the same number. For any thread."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Hashable, str, type, Hashable], int] = {}

    def number_of(self, maker: Hashable, connection: str, own: Any) -> int:
        """Return the number of a way; it may raise whatever comparing `own` raises."""
        # With its type: so it is compared with values of the same type alone.
        return self._numbers.setdefault((maker, connection, type(own), own), len(self._numbers))


async def terms_of(
    aside: Aside,
    job_class: type,
    make: Callable[[], object],
    connection: str | None,
    settings: Settings,
    numbers: WayNumbers | None = None,
) -> Terms:
    """Ask a job's class, on a thread of its own where the class is not jobrunner's.

    `make`: return the job. `connection`: as its row names it. Raises `CodeError` where the class is at
    fault, `UsageError` where it does not answer, and what its connection raises.
    """
    asked = ask_terms(aside, job_class, make, connection, settings, numbers or WayNumbers())
    return asked if isinstance(asked, Terms) else await asked


def ask_terms(
    aside: Aside,
    job_class: type,
    make: Callable[[], object],
    connection: str | None,
    settings: Settings,
    numbers: WayNumbers,
) -> Terms | asyncio.Future[Terms]:
    """Do as `terms_of` does; where the class is not jobrunner's, return the future of its answer."""
    asking = _Asking(job_class, settings, numbers)
    if is_ours(job_class):
        return asking.terms(make, connection)
    return aside.begin((job_class, "terms"), lambda: asking.terms(make, connection), ASK_S, asking.unanswered)


async def made_backend(aside: Aside, job: MonitorJob, behind: ConnectionSettings) -> Backend:
    """Return the backend that a job's class makes for a connection, made on a thread where it is not ours.

    Raises `SettingsError`, and what making it raises as a `JobrunnerError`.
    """
    job_class = type(job)
    if is_ours(job_class) and behind.kind in {job_class.backend_kind, *registry.BACKENDS}:
        return backend_of(job, behind)

    def unanswered(why: str) -> SettingsError:
        return SettingsError(
            f"{name_of(job_class)}.make_backend does not answer: {why}: see what it waits for."
        )

    return await aside.call((job_class, "make_backend"), lambda: backend_of(job, behind), MAKE_S, unanswered)


def kind_of(job_class: Any) -> str:
    """Return the kind of a class's connections. Raises `CodeError`."""
    kind = _asked(f"{name_of(job_class)}.backend_kind", lambda: job_class.backend_kind)
    if not isinstance(kind, str):
        raise CodeError(f"{name_of(job_class)}.backend_kind is {shown(kind)}, not a text: correct the class.")
    return kind


def connection_of(
    settings: Settings, job_class: Any, connection: str | None
) -> tuple[str, ConnectionSettings]:
    """Return the name of a class's connection, as it is configured, and its settings.

    `connection`: as the row of a job names it. Raises `CodeError`, and what the connection raises.
    """
    kind = kind_of(job_class)
    return _asked(f"{name_of(job_class)}.backend_kind", lambda: settings.connection(connection, kind))


def maker_of(job_class: Any) -> Hashable:
    """Return what makes the backends of a class: a subclass that inherits it shares them."""
    name = name_of(job_class)
    make = _asked(f"{name}.make_backend", lambda: getattr(job_class.make_backend, "__func__", None))
    behind = _asked(f"{name}.backend_behind", lambda: job_class.backend_behind)
    is_plain = isinstance(make, FunctionType) and isinstance(behind, FunctionType)
    return (make, behind) if is_plain else job_class


class _Asking:
    """Asks the class of one job. `of`: what was asked last, for who waits for the answer in vain."""

    def __init__(self, job_class: type, settings: Settings, numbers: WayNumbers) -> None:
        self._name = self.of = name_of(job_class)
        self._settings = settings
        self._numbers = numbers
        self._flaws: list[str] = []

    def unanswered(self, why: str) -> UsageError:
        """Return what is raised where the class does not answer."""
        return UsageError(f"{self.of} does not answer: {why}: see what it waits for.")

    def terms(self, make: Callable[[], object], connection: str | None) -> Terms:
        job = self._asked("__new__ (or its __setattr__)", make)
        if not isinstance(job, MonitorJob):
            raise UsageError(f"{self._name} is not a monitor job that is installed here: install it.")
        self.of = f"{self._name}.backend_kind"
        name, behind = connection_of(self._settings, type(job), connection)
        own = self._asked("own_way", lambda: job.own_way())  # noqa: PLW0108  # to look it up may raise, too
        maker = maker_of(type(job))
        calls_back = self._asked("heartbeat_callback", lambda: has_callback(job))
        cleans_up = self._asked("on_kill", lambda: has_on_kill(job))
        has_a_say = self._truth("has_a_say", lambda: job.has_a_say())  # noqa: PLW0108  # see above
        return Terms(
            job=job,
            is_kept=calls_back or cleans_up or has_a_say,
            has_callback=calls_back,
            is_bound_here=self._truth("runs_on_this_host", lambda: job.runs_on_this_host),
            poll_interval=self._interval(job),
            connection=name,
            behind=behind,
            way=self._asked("own_way", lambda: self._numbers.number_of(maker, name, own), of=own),
            flaws=tuple(self._flaws),
        )

    def _interval(self, job: MonitorJob) -> float:
        given: Any = self._asked("default_poll_interval", lambda: job.default_poll_interval)
        if self._asked("default_poll_interval", lambda: is_interval(given)):
            return float(given)
        self._flaws.append(
            f"{self._name}.default_poll_interval is {shown(given)}, not a number of seconds from "
            f"{INTERVAL_LEAST:g} to {SECONDS_MOST:g}: {POLL_S:g} is used"
        )
        return POLL_S

    def _truth(self, attribute: str, ask: Callable[[], Any]) -> bool:
        given = self._asked(attribute, ask)
        if isinstance(given, int):  # a bool is one
            return bool(given)
        raise CodeError(
            f"{self._name}.{attribute} gave {shown(given)}, neither True nor False: correct the class."
        )

    def _asked(self, attribute: str, ask: Callable[[], _T], of: object = None) -> _T:
        self.of = f"{self._name}.{attribute}"
        return _asked(self.of if of is None else f"{self.of}, which returned {shown(of)},", ask)


def _asked(what: str, ask: Callable[[], _T]) -> _T:
    """Return what a class answers. Raises our own errors as they are, and `CodeError` for any other."""
    try:
        return ask()
    except JobrunnerError:
        raise
    except BaseException as error:  # SystemExit, too, and a cancellation that nobody asked for
        raise CodeError(f"{what} raised {words_of(error)}: correct the class.") from error
