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
    *("pause_past_the_grace", "pause_for_a_moment"),
)
_KILLS = ("wish_a_kill", "kill_for_an_odd_reason")
_CONNECTIONS = ("cut_connections", "leave_connections_half_open", "kill_the_pooler")
_STORMS = ("storm", "storm")
_DATABASE = ("restart_the_database",)
_DEMOTIONS = ("turn_sessions_read_only", "leave_a_worker_on_an_old_primary")
_NAMES = ("let_names_hang", "let_names_fail")
_CUTS = ("cut_connections", "cut_connections")
_CODE = ("let_code_of_others_go_wrong",)
_BURSTS = ("burst",)
_DISK = ("fill_the_disk",)
_DISK_SIZE = "256m"  # half an hour's jobs, with their long texts, have 50 MB
_SETTLE_S = 240.0


def on_postgres(seconds: float) -> list[Phase]:
    """Return the phases on PostgreSQL, so many seconds in all."""
    return [
        Phase("calm", 0.03 * seconds, (), (1, 1)),
        Phase("workers die, one at a time", 0.07 * seconds, _DEATHS, (12.0, 15.0)),
        Phase("processes die, stop and go on", 0.10 * seconds, (*_PROCESSES, *_KILLS), (0.7, 3.0)),
        Phase("PostgreSQL is restarted every few seconds", 0.10 * seconds, _DATABASE, (1.0, 4.0)),
        Phase("the primary is demoted", 0.07 * seconds, (*_DEMOTIONS, *_KILLS), (0.7, 3.0)),
        Phase("connections are cut and half open", 0.07 * seconds, (*_CONNECTIONS, *_KILLS), (0.5, 2.0)),
        Phase("names resolve slowly", 0.07 * seconds, (*_NAMES, *_CUTS, *_KILLS), (0.5, 2.0)),
        Phase("the servers refuse, break off and hang", 0.06 * seconds, (*_STORMS, *_KILLS), (0.5, 2.0)),
        Phase("others' code is wrong", 0.06 * seconds, (*_CODE, *_KILLS, "kill_a_worker"), (0.5, 2.0)),
        Phase("bursts", 0.05 * seconds, (*_BURSTS, *_KILLS), (1.0, 4.0)),
        Phase(
            "all of it at once",
            0.32 * seconds,
            (
                *(*_PROCESSES, *_KILLS, *_DATABASE, *_DEMOTIONS, *_CONNECTIONS, *_NAMES),
                *(*_STORMS, *_CODE, *_BURSTS),
            ),
            (0.3, 1.0),
        ),
    ]


def on_sqlite(seconds: float, *, has_small_disk: bool) -> list[Phase]:
    """Return the phases on SQLite, so many seconds in all."""
    processes = ("kill_a_worker", "stop_a_worker", "pause_past_the_grace", "pause_for_a_moment", "kill_code")
    disk = _DISK if has_small_disk else ()
    return [
        Phase("calm", 0.05 * seconds, (), (1, 1)),
        Phase("the disk is full", 0.15 * seconds, (*disk, *_KILLS), (0.5, 2.0)),
        Phase("names resolve slowly", 0.08 * seconds, (*_NAMES, *_KILLS), (0.5, 2.0)),
        Phase("others' code is wrong", 0.10 * seconds, (*_CODE, *_KILLS, "kill_a_worker"), (0.5, 2.0)),
        Phase("bursts", 0.10 * seconds, (*_BURSTS, *_KILLS), (1.0, 4.0)),
        Phase(
            "all of it at once",
            0.52 * seconds,
            (*processes, *_KILLS, *disk, *_NAMES, *_STORMS, *_CODE, *_BURSTS),
            (0.3, 1.0),
        ),
    ]


def the_short_form_of(phases: Sequence[Phase]) -> list[Phase]:
    """Return the last phase alone, after a moment of calm, in the time of all of them: each fault comes."""
    seconds = sum(phase.seconds for phase in phases)
    faults = tuple(dict.fromkeys(phases[-1].faults))
    return [
        replace(phases[0], seconds=0.1 * seconds),
        replace(phases[-1], seconds=0.9 * seconds, faults=faults),
    ]


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
        if not storm.has_pooler and database == "postgresql":
            say("PgBouncer is not installed: none is in between")
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
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_SIZE}", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
