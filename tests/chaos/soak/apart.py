"""A soak in a process of its own: nothing else is in what it holds."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobrunner import schema
from jobrunner.database import Database
from jobrunner.settings import Settings
from tests.chaos.processes import ROOT
from tests.chaos.soak.course import ROUNDS
from tests.postgres import Postgres

_WORDS_MOST = 4_000
"""Characters of its standard error that are shown where it went wrong."""


def soak(database: str, jobs: int, say: Callable[[str], object], *, seed: int, rounds: int = ROUNDS) -> bool:
    """Soak a process with so many jobs on `postgresql` or `sqlite`; return whether all it holds is flat."""
    options = ("--jobs", str(jobs), "--rounds", str(rounds), "--seed", str(seed))
    directory = Path(tempfile.mkdtemp(prefix="soak"))  # short: a socket's path is limited
    try:
        with _a_database(database, directory) as url, (directory / "words").open("wb") as words:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.soak", url, *options],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATA_DIR": str(directory / "data")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
            )
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    say(line.rstrip("\n"))
        if process.returncode != 0:
            say((directory / "words").read_text(errors="replace")[-_WORDS_MOST:])
        return process.returncode == 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _a_database(database: str, directory: Path) -> Iterator[str]:
    if database == "sqlite":
        yield _upgraded(f"sqlite:///{directory / 'jobs.db'}")
        return
    server = Postgres(directory / "pg")
    try:
        yield _upgraded(server.url(server.create()))
    finally:
        server.close()


def _upgraded(url: str) -> str:
    """Give a database its tables."""
    database = Database(Settings(database_url=url))
    schema.upgrade(database)
    database.dispose()
    return url
