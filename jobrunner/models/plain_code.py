"""The methods of a job that are called as plain functions: a coroutine or a generator would never run.

Calling an `async def`, or a function with a `yield` in it, only makes an object. Taken for the end of the
work, that would be a success whose code never ran.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from jobrunner.backends.checks import code_not_run
from jobrunner.errors import UsageError

PLAIN = ("_execute", "on_kill", "heartbeat_callback")
"""Of every job."""


def check_plain(job_class: type, names: Iterable[str] = PLAIN) -> None:
    """Refuse a class of which a method would never run. Raises `UsageError`."""
    for name in names:
        method = getattr(job_class, name, None)
        if inspect.iscoroutinefunction(method):
            raise UsageError(_sentence(job_class, name, "is an `async def`"))
        if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
            raise UsageError(_sentence(job_class, name, "has a `yield` in it"))


def call_plain(job: object, name: str, **options: Any) -> None:
    """Call a job's method. Raises `UsageError` where what it returned is its code, not run yet.

    A decorator may hide from `check_plain` what the method is.
    """
    what = code_not_run(getattr(job, name)(**options))
    if what is not None:
        raise UsageError(_sentence(type(job), name, f"returned {what}"))


def _sentence(job_class: type, name: str, what: str) -> str:
    return (
        f"{job_class.__name__}.{name} {what}, and its code would never run: make it a plain method, "
        "which may call `asyncio.run(...)`."
    )
