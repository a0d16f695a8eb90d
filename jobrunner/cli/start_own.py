"""`jobrunner start MODULE:CLASS`: a job of the user's own class, in this process."""

import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from jobrunner.cli.options import Pair, detach_option, json_option


@click.command("own")
@click.option(
    "--arg",
    "arguments",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument for the class; a value that is JSON is read as JSON. May be repeated.",
)
@click.option(
    "--resource",
    "resources",
    type=Pair(),
    multiple=True,
    metavar="NAME=N",
    help="With --detach: what its code asks of a Dask worker, such as GPU=1. May be repeated.",
)
@detach_option
@json_option
@click.pass_context
def own(
    ctx: click.Context,
    *,
    arguments: tuple[tuple[str, str], ...],
    resources: tuple[tuple[str, str], ...],
    detach: bool,
    as_json: bool,
) -> int:
    """Start a job of your own class, MODULE:CLASS, in this process.

    The module is looked for in the working directory, too. Ctrl-C and SIGTERM end the job as killed.
    With --detach a worker runs it, where the module has to be found as well.
    """
    from jobrunner import registry
    from jobrunner.cli.foreground import queue, run_own_code, watch_to_the_end
    from jobrunner.cli.live import Live
    from jobrunner.cli.output import log_as_words
    from jobrunner.errors import UsageError
    from jobrunner.executors.family import Family
    from jobrunner.models import MonitorJob
    from jobrunner.resources import KEY

    path = ctx.info_name or ""
    given = _parsed(arguments)
    guardian = os.getpid() if detach else _guardian(ctx)
    log_as_words()
    job = _make(path, given)
    is_watched = isinstance(job, MonitorJob)
    if not is_watched and job.spec is None:
        job.spec = {"class": path, "args": given}
    if resources:
        if is_watched or not detach:
            raise UsageError(
                "--resource is for code that a worker runs: a class with _execute, and --detach."
            )
        job.spec = {**job.spec, KEY: {**job.resources, **_counts(resources)}}
    if detach:
        return queue(job, as_json=as_json)
    # The output of code that runs in this process would tear a live line apart.
    with Live(as_json=as_json, quiet=not is_watched) as live:
        see_off = None if is_watched else Family.of_this_process(guardian).see_off
        make: Any = registry.load_executor_class("LocalExecutor")
        job.executor = make(on_started=live.started, see_off=see_off)
        if is_watched:
            return watch_to_the_end(job.run, live)
        return run_own_code(job, live)


def _guardian(ctx: click.Context) -> int:
    """Go on under a guardian, and return its pid; this process's own where it is another program's."""
    from jobrunner.cli.init import OWN_PROCESS
    from jobrunner.executors.guardian import go_on_in_foreground_under_guardian

    is_ours = ctx.obj is OWN_PROCESS and threading.active_count() == 1
    return go_on_in_foreground_under_guardian() if is_ours else os.getpid()


def _counts(resources: Iterable[tuple[str, str]]) -> dict[str, float]:
    from jobrunner.resources import checked

    return checked({name: _value(text) for name, text in resources})


def _parsed(arguments: Iterable[tuple[str, str]]) -> dict[str, Any]:
    from jobrunner.errors import SpecError
    from jobrunner.redaction import find_secret

    given = {name: _value(text) for name, text in arguments}
    secret = find_secret(given)
    if secret is not None:
        raise SpecError(
            f"The argument {secret} looks like a secret, and everybody who reads the database would see it: "
            "let the job read it from its environment."
        )
    return given


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are no JSON, and no database would take them


@contextmanager
def imports_of(what: str) -> Iterator[None]:
    """Turn whatever the import of somebody's module raises into one sentence. Raises `UsageError`."""
    from jobrunner.errors import JobrunnerError, UsageError, words_of

    try:
        yield
    except (JobrunnerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # somebody's code may raise anything
        raise UsageError(f"{what} cannot be imported: {words_of(error)}") from error


def find_modules_here() -> None:
    """Let modules be found in the working directory, too, as `python -m` does."""
    try:
        here = os.getcwd()  # noqa: PTH109  # the very text that sys.path holds
    except FileNotFoundError:  # it was removed: no module can be in it
        return
    if here not in sys.path:
        sys.path.insert(0, here)


def _make(path: str, given: dict[str, Any]) -> Any:
    from jobrunner import registry
    from jobrunner.errors import JobrunnerError, UsageError, words_of
    from jobrunner.models import BaseJob

    find_modules_here()
    with imports_of(f"The module of {path!r}"):
        job_class = registry.load(path)
    if not (isinstance(job_class, type) and issubclass(job_class, BaseJob)):
        raise UsageError(f"{path!r} is no class of a job: derive it from jobrunner.models.BaseJob.")
    if job_class.__mapper__.polymorphic_abstract:
        raise UsageError(f"{path!r} is only a base of job classes: start one that is derived from it.")
    try:
        return job_class(**given)
    except (JobrunnerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # its constructor may raise anything
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "no arguments"
        raise UsageError(f"{path} cannot be made with {shown}: {words_of(error)}") from error
