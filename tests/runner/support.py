"""Runners in a test's own event loop, and real monitor processes to be stopped and killed."""

import asyncio
import functools
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.models import BaseJob, MonitorJob
from jobrunner.models.rows import refresh, store
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Sighting
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, Plan
from tests.helpers import an_owner, row_of, until
from tests.warm import Warm

DRIVER = Path(__file__).with_name("driver.py")

BRIEF = Patience(call_s=0.5, appear_s=0.4, vanish_s=0.4)
SOON = Plan(run_for_s=0.1)


class Thread(threading.Thread):
    """Runs something as a person in another terminal would, and keeps how it ended."""

    def __init__(self, do: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._do = do
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001  # it is what the test asks for
            self.error = error

    def ended(self) -> BaseException | None:
        self.join(30)
        assert not self.is_alive()
        return self.error


def an_outside(plan: Plan | None = None, patience: Patience | None = None, **options: Any) -> MemoryBackend:
    """Return an outside system whose jobs go on until they are moved, with a runner's usual patience."""
    return MemoryBackend(plan=plan, patience=patience or Patience(call_s=5.0), **options)


def a_job(**options: Any) -> MemoryMonitorJob:
    """Return a job that beats and is looked at often."""
    return MemoryMonitorJob(**{"heartrate": 0.3, "poll_interval": 0.05, **options})


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Let a test be a coroutine."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


@asynccontextmanager
async def a_runner(database: Database) -> AsyncIterator[Runner]:
    """Give a runner of its own; what it still owns at the end is released."""
    async with Runner(database, an_owner()) as runner:
        yield runner


def start(runner: Runner, job: MonitorJob) -> asyncio.Future[JobState]:
    """Store a job as this runner's, and let him have it."""
    with runner.database.write() as connection:
        row = store(connection, job, runner.owner)
    refresh(job, row)
    return runner.take(Claim(row["id"], runner.owner.runner_id, row["claims"]), row, job)


def take_over(runner: Runner, job: MonitorJob) -> asyncio.Future[JobState]:
    """Claim a job, queued or another's, as if its owner had been silent for long."""
    taken: list[tuple[Claim, RowMapping]] = []

    def is_taken() -> bool:  # not where its owner beats in this very moment
        with runner.database.write() as connection:
            row = statements.get(connection, job.id)
            if row["state"] is JobState.QUEUED:
                claim = statements.claim_queued(connection, job.id, runner.owner)
            else:
                seen = Sighting(row["id"], row["runner_id"], row["claims"], row["latest_heartbeat"])
                claim = statements.adopt(connection, seen, runner.owner)
            if claim is not None:
                taken.append((claim, statements.get(connection, job.id)))
        return bool(taken)

    until(is_taken)
    return runner.take(*taken[0], BaseJob.get(job.id))  # type: ignore[arg-type]


async def crash(runner: Runner) -> None:
    """Do what kill -9 does: from now on nothing is written and nothing is asked."""
    await asyncio.to_thread(runner.beats.stop)
    runner.beats.stop = lambda: None  # type: ignore[method-assign]
    for task in list(runner._tasks):
        task.cancel()
    for owned in list(runner.jobs.values()):
        owned.over = True
        owned.channel.poller.forget(owned.job_id)
    runner.jobs.clear()


async def soon(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds, while the event loop goes on."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came to be"
        await asyncio.sleep(0.01)


async def within(future: asyncio.Future[JobState], timeout_s: float = 60.0) -> JobState:
    """Wait for how a job ended."""
    return await asyncio.wait_for(asyncio.shield(future), timeout_s)


def methods(outside: MemoryBackend) -> list[str]:
    """Return the calls that arrived, in their order, each name once where it was repeated."""
    names = [call.method for call in outside.history if call.method != "close"]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


_BulkWrite = Callable[..., Any]


def bulks_of(
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    instead: Callable[[_BulkWrite], _BulkWrite] | None = None,
) -> list[int]:
    """Count the rows of each bulk that a statement sends; `instead` may get in between."""
    real: _BulkWrite = getattr(statements, statement)
    write = real if instead is None else instead(real)
    bulks: list[int] = []

    def counted(connection: Any, runner_id: str, rows: Any) -> Any:
        bulks.append(len(rows))
        return write(connection, runner_id, rows)

    counted.__name__ = statement
    monkeypatch.setattr(statements, statement, counted)
    return bulks


def while_set(event: threading.Event, error: Exception) -> Callable[[_BulkWrite], _BulkWrite]:
    """Return what raises the error in place of a write while the event is set."""

    def instead(real: _BulkWrite) -> _BulkWrite:
        def write(*arguments: Any) -> Any:
            if event.is_set():
                raise error
            return real(*arguments)

        return write

    return instead


def look(database: Database, job_id: int, *columns: str) -> tuple[Any, ...]:
    """Return some columns of a row."""
    row = row_of(database, job_id)
    return tuple(row[column] for column in columns)


# --- real processes ------------------------------------------------------------------------------


@functools.cache
def _warm() -> Warm:
    """What monitors are forked from; it ends with this process."""
    return Warm("tests.runner.driver", "boto3", options=("-W", "error"), path=DRIVER.parents[2])


class Monitor:
    """A real process that runs or attaches to a job, by the driver script."""

    def __init__(self, url: str, data_dir: Path, order: dict[str, Any]) -> None:
        environment = {
            **os.environ,
            "JOBRUNNER_DATABASE_URL": url,
            "JOBRUNNER_DATA_DIR": str(data_dir),
            "PYTHONPATH": str(DRIVER.parents[2]),
        }
        self.process = _warm().start(str(DRIVER), [json.dumps(order)], Path.cwd(), environment)
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self.said: list[str] = []

    def hear(self, word: str) -> str:
        """Wait until the monitor says a line that begins with `word`, and return the rest of it."""
        for line in self._out:
            self.said.append(line.strip())
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"it never said {word!r}: {self.said} {self.process.communicate()[1]}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def until_stopped(self) -> None:
        """Wait until SIGSTOP holds it."""
        end_s = time.monotonic() + 30
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end_s, "it was never stopped"
            time.sleep(0.01)

    def end(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; what it said last is in `said`."""
        out, err = self.process.communicate(timeout=timeout_s)
        self.said += out.split("\n")
        self.errors = err
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def outcome(self) -> str:
        """The last word: the state it reported, or the error that ended it."""
        words = [line for line in self.said if line.startswith("outcome")]
        return words[-1].removeprefix("outcome ") if words else f"none: {self.said} {self.errors}"

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Monitors:
    """Starts monitors, and leaves none of them behind."""

    def __init__(self, url: str, data_dir: Path) -> None:
        self.url, self.data_dir = url, data_dir
        self._all: list[Monitor] = []

    def __call__(self, **order: Any) -> Monitor:
        self._all.append(Monitor(self.url, self.data_dir, order))
        return self._all[-1]

    def close(self) -> None:
        for each in self._all:
            each.kill()


@contextmanager
def monitors(url: str, data_dir: Path) -> Iterator[Monitors]:
    """Give what starts monitors; at the end they are killed, and so is what they started."""
    started = Monitors(url, data_dir)
    try:
        yield started
    finally:
        started.close()
        for record in data_dir.glob("processes/*/start"):
            for pid, _ in (json.loads(record.read_text()).get(key, (0, 0)) for key in ("command", "wrapper")):
                if pid > 0:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
