"""The live line: what a person sees of a job while he waits for it."""

import sys
import threading
from functools import partial
from types import TracebackType
from typing import Self

from sqlalchemy import RowMapping

from jobrunner import queries
from jobrunner.aside import Late, within
from jobrunner.cli import spelling
from jobrunner.cli.output import (
    erase_live_line,
    is_terminal,
    live_line,
    report,
    report_json,
    row_as_json,
    word,
)
from jobrunner.database import get_database
from jobrunner.errors import DatabaseError
from jobrunner.states import JobState

_LOOK_S = 1.0


class Live:
    """Shows one job from `started` on: its id on standard output, how it goes on standard error.

    On a terminal as one line that changes; elsewhere as one line for each change of its state or
    message. A database that fails is said, and ends nothing. `quiet`: only the start and the end.
    `is_new`: the job is this process's own from the start, so it runs.
    """

    def __init__(self, *, as_json: bool, quiet: bool = False, is_new: bool = True) -> None:
        self.job_id: int | None = None
        self._as_json = as_json
        self._quiet = quiet
        self._is_new = is_new
        self._on_terminal = is_terminal(sys.stderr)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def started(self, job_id: int) -> None:
        """Print the id, and show the job from now on.

        The database is not waited for: nobody beats for a new job before this returns.
        """
        self.job_id = job_id
        if self._as_json:
            row = None if self._is_new else _row_within(_LOOK_S, job_id)
            report_json({"id": job_id, "state": str(row["state"]) if row is not None else JobState.RUNNING})
        else:
            report(f"job {job_id}")
        if not self._quiet:
            self._thread = threading.Thread(target=self._show, name="live line", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Show no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LOOK_S)
        erase_live_line()

    def finish(self, within_s: float = threading.TIMEOUT_MAX) -> RowMapping | None:
        """Say how the job stands at the end, and return its row; None where it cannot be read in time."""
        self.stop()
        row = None if self.job_id is None else _row_within(within_s, self.job_id)
        if row is None:
            return None
        if self._as_json:
            report_json(row_as_json(row))
        if JobState(row["state"]).is_terminal:
            word(spelling.ended(row))
        return row

    def _show(self) -> None:
        while not self._stop.is_set():
            self._show_once()
            self._stop.wait(_LOOK_S)

    def _show_once(self) -> None:
        assert self.job_id is not None
        try:
            with get_database().read() as connection:
                row = queries.shown(connection, self.job_id, get_database().settings.grace_multiplier)
        except DatabaseError as error:
            line = said = f"job {self.job_id}: cannot be read now ({error})"
        else:
            if row is None:
                line = said = f"job {self.job_id} was deleted"
            elif JobState(row["state"]).is_terminal:
                return  # `finish` says it
            else:
                line, said = _live_text(row), _change_text(row)
        if self._stop.is_set():
            return
        if self._on_terminal:
            live_line(line)
        elif said != self._said:
            word(said)
        self._said = said


def _row_within(seconds: float, job_id: int) -> RowMapping | None:
    """Return the job's row; None where it cannot be read in time."""
    try:
        return within(seconds, partial(_row, job_id))
    except Late:
        return None


def _row(job_id: int) -> RowMapping | None:
    try:
        database = get_database()
        with database.read() as connection:
            return queries.shown(connection, job_id, database.settings.grace_multiplier)
    except DatabaseError:
        return None


def _live_text(row: RowMapping) -> str:
    took = spelling.elapsed_s(row)
    parts = [
        f"job {row['id']}",
        spelling.state(row),
        "" if took is None else spelling.duration(took),
        f"beat {spelling.ago(row['age_s'])}" if row["state"] == JobState.RUNNING and row["alive"] else "",
        _trouble(row),
        spelling.message(row),
    ]
    return "  ".join(part for part in parts if part)


def _change_text(row: RowMapping) -> str:
    parts = [spelling.state(row), _trouble(row), spelling.message(row)]
    return f"job {row['id']}: " + ", ".join(part for part in parts if part)


def _trouble(row: RowMapping) -> str:
    words = []
    if row["state"] == JobState.RUNNING and not row["alive"]:
        words.append("silent")
    if row["kill_requested_at"] is not None:
        words.append("kill requested")
    return ", ".join(words)
