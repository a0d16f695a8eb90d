"""The courses that a storm may take: on PostgreSQL, and on SQLite."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobrunner import schema
from jobrunner.database import Database
from jobrunner.settings import Settings
from tests.chaos.faults import Faults
from tests.chaos.storm import Phase, Storm
from tests.chaos.verdict import Verdict
from tests.postgres import Postgres

_DEATHS = ("kill_a_worker", "kill_a_dask_worker")
_PROCESSES = (
    *(*_DEATHS, "kill_a_worker", "kill_the_scheduler", "stop_a_worker", "kill_code"),
    *("pause_past_the_grace", "pause_for_a_moment", "wish_a_kill", "wish_a_kill"),
)
_CONNECTIONS = ("cut_connections", "leave_connections_half_open", "wish_a_kill")
_STORMS = ("storm", "storm", "wish_a_kill")
_DATABASE = ("restart_the_database",)
_DISK = ("fill_the_disk",)
_SETTLE_S = 240.0


def on_postgres(seconds: float) -> list[Phase]:
    """Return the phases on PostgreSQL, so many seconds in all."""
    return [
        Phase("calm", 0.05 * seconds, (), (1, 1)),
        Phase("workers die, one at a time", 0.15 * seconds, _DEATHS, (12.0, 15.0)),
        Phase("processes die, stop and go on", 0.17 * seconds, _PROCESSES, (2.0, 8.0)),
        Phase("PostgreSQL is restarted every few seconds", 0.22 * seconds, _DATABASE, (2.0, 6.0)),
        Phase("connections are cut and half open", 0.10 * seconds, _CONNECTIONS, (1.0, 5.0)),
        Phase("the servers refuse, break off and hang", 0.10 * seconds, _STORMS, (1.0, 4.0)),
        Phase(
            "all of it at once",
            0.21 * seconds,
            (*_PROCESSES, *_DATABASE, *_CONNECTIONS, *_STORMS),
            (0.5, 3.0),
        ),
    ]


def on_sqlite(seconds: float, *, has_small_disk: bool) -> list[Phase]:
    """Return the phases on SQLite, so many seconds in all."""
    processes = ("kill_a_worker", "stop_a_worker", "pause_past_the_grace", "pause_for_a_moment", "kill_code")
    disk = _DISK if has_small_disk else ()
    return [
        Phase("calm", 0.1 * seconds, (), (1, 1)),
        Phase("the disk is full", 0.3 * seconds, (*disk, "wish_a_kill"), (1.0, 4.0)),
        Phase("all of it at once", 0.6 * seconds, (*processes, *disk, *_STORMS), (0.5, 3.0)),
    ]


def the_short_form_of(phases: Sequence[Phase]) -> list[Phase]:
    """Return the last phase alone, after a moment of calm, in the time of all of them."""
    seconds = sum(phase.seconds for phase in phases)
    return [replace(phases[0], seconds=0.2 * seconds), replace(phases[-1], seconds=0.8 * seconds)]


def blow(
    database: str,
    seconds: float,
    say: Callable[[str], object],
    *,
    is_short: bool = False,
    keep: bool = False,
    **options: Any,
) -> tuple[Verdict, Faults]:
    """Let a storm on `postgresql` or `sqlite` take its course for so many seconds, and judge what is left.

    `keep`: leave its directory, with all that was said, and say where it is. `options`: of the `Storm`.
    """
    begun = {"postgresql": _begun_on_postgres, "sqlite": _begun_on_sqlite}[database]
    with _a_directory(keep=keep) as directory, begun(directory, seconds, options) as (storm, phases), storm:
        if keep:
            say(f"{database}: {directory}")
        if storm.small_disk is None and database == "sqlite":
            say("no small disk can be mounted here (that needs root): it is never full")
        storm.run(the_short_form_of(phases) if is_short else phases, say)
        say("calm again: every job comes to its end")
        storm.settle(_SETTLE_S)
        return storm.verdict(), storm.faults


@contextmanager
def _begun_on_postgres(
    directory: Path, seconds: float, options: dict[str, Any]
) -> Iterator[tuple[Storm, list[Phase]]]:
    server = Postgres(directory / "pg")
    try:
        url = f"{_upgraded(server.url(server.create()))}&application_name=chaos"
        yield Storm(directory, url, postgres=server, **options), on_postgres(seconds)
    finally:
        server.close()


@contextmanager
def _begun_on_sqlite(
    directory: Path, seconds: float, options: dict[str, Any]
) -> Iterator[tuple[Storm, list[Phase]]]:
    with _a_small_disk(directory) as disk:
        url = _upgraded(f"sqlite:///{(disk or directory) / 'jobs.db'}")
        storm = Storm(directory, url, small_disk=disk, **{**options, "dask_workers": 0})
        yield storm, on_sqlite(seconds, has_small_disk=disk is not None)


def _upgraded(url: str) -> str:
    """Give a database its tables."""
    database = Database(Settings(database_url=url))
    schema.upgrade(database)
    database.dispose()
    return url


@contextmanager
def _a_directory(*, keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="chaos"))  # short: a socket's path is limited
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _a_small_disk(directory: Path) -> Iterator[Path | None]:
    """Mount a small file system of memory; None where that may not be done."""
    place = directory / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
