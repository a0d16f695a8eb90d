"""The command line as a person has it: its own process, an empty directory, an embedded database."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.stubs.batch_server import BatchStub, serving
from tests.warm import Warm, can_be_warm

NAMED = ("--job-name", "nightly", "--job-queue", "etl", "--job-definition", "import:7")
"""What every Batch job needs."""

_MAIN = "jobrunner.cli.main"


class Answer(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    words: str

    @property
    def json(self) -> Any:
        """Return the last line of the data."""
        return json.loads(self.out.splitlines()[-1])

    def says(self, *parts: str) -> bool:
        """Whether each of these is among the words, and no traceback."""
        assert "Traceback" not in self.words
        missing = [part for part in parts if part not in self.words]
        assert not missing, f"{missing} in {self.words!r}"
        return True

    def is_refused(self, *parts: str, code: int = 2) -> bool:
        """Whether it was refused in one sentence, with this exit code, and without data."""
        assert self.code == code, self
        assert self.out == "", self
        assert len(self.words.strip().splitlines()) == 1, self
        assert self.words.startswith("jobrunner: "), self
        return self.says(*parts)


class CommandLine:
    """Runs `jobrunner` in one directory, with one embedded database."""

    def __init__(self, directory: Path, warm: Warm | None = None) -> None:
        self.directory = directory
        self._warm = warm
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in {"COLUMNS", "PYTHONPATH"}},
            "XDG_DATA_HOME": str(directory / "data"),
            "JOBRUNNER_HEARTRATE": "1",
        }
        self.started: list[subprocess.Popen[str]] = []

    @property
    def database(self) -> Path:
        return self.directory / "data" / "jobrunner" / "jobrunner.db"

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        """Run a command to its end, in a process of its own."""
        here = self.environment | environment
        if self._warm is not None and can_be_warm(here):
            return Answer(*self._warm.run(_MAIN, arguments, self.directory, here, stdin))
        return self.anew(*arguments, stdin=stdin, **environment)

    def anew(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        """Run a command as a shell would: by an interpreter that has imported nothing yet."""
        done = subprocess.run(
            [sys.executable, "-m", _MAIN, *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def begin(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command and leave it running."""
        process = subprocess.Popen(
            [sys.executable, "-m", _MAIN, *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def begin_job(self, *arguments: str) -> tuple["subprocess.Popen[str]", str]:
        """Start a job and return its process and id, which is printed at once."""
        process = self.begin("start", *arguments)
        assert process.stdout is not None
        word, job_id = process.stdout.readline().split()
        assert word == "job"
        return process, job_id

    @contextmanager
    def records_elsewhere(self) -> Iterator[str]:
        """Give a silent job whose records are not where it says; then they are back, and it ends with 7."""
        go = self.directory / "go"
        command = f"while ! test -e {go}; do sleep 0.05; done; exit 7"
        process, job_id = self.begin_job("process", "--heartrate", "0.5", "--", "sh", "-c", command)
        self.until(job_id, "external_state", "running")
        process.kill()
        process.communicate(timeout=30)
        records = Path(self("show", job_id, "--json").json["external_id"]).parent
        elsewhere = records.rename(records.with_name("elsewhere"))
        records.mkdir()
        yield job_id
        records.rmdir()
        elsewhere.rename(records)
        go.touch()

    def until(self, job_id: str, column: str, value: Any) -> None:
        """Wait until a job's column has this value; None: until it has any."""
        end_s = time.monotonic() + 60
        while True:
            found = self("show", job_id, "--json").json[column]
            if found is not None if value is None else found == value:
                return
            assert time.monotonic() < end_s, f"{column} stays {found!r}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """What commands are forked from."""
    started = Warm("jobrunner.cli.*")
    yield started
    started.close()


@pytest.fixture
def jobrunner(tmp_path: Path, warm: Warm) -> Iterator[CommandLine]:
    """The command line in an empty directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    line = CommandLine(directory, warm)
    yield line
    for process in line.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def no_child_left(tmp_path: Path) -> Iterator[None]:
    """End the children that were left to themselves, and the commands of jobs."""
    yield
    for process in psutil.process_iter(["cwd"]):
        if (process.info["cwd"] or "").startswith(str(tmp_path / "here")):
            with suppress(psutil.Error):
                process.kill()


@pytest.fixture
def own_jobs(jobrunner: CommandLine) -> CommandLine:
    """The command line beside a module of a user's own jobs."""
    (jobrunner.directory / "my_jobs.py").write_text(
        "import os, subprocess, time\n"
        "from jobrunner.models import BaseJob\n"
        "class Quick(BaseJob):\n"
        "    def __init__(self, rows=1, label='', **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.rows, self.label = rows, label\n"
        "    def _execute(self):\n"
        "        print(f'{self.rows!r} {self.label!r}', flush=True)\n"
        "class Endless(BaseJob):\n"
        "    def _execute(self):\n"
        "        while True:\n"
        "            self.heartbeat()\n"
        "class Swallows(Endless):\n"
        "    def _execute(self):\n"
        "        try:\n"
        "            super()._execute()\n"
        "        except BaseException:\n"
        "            return\n"
        "class SwallowsAndExits(Endless):\n"
        "    def _execute(self):\n"
        "        try:\n"
        "            super()._execute()\n"
        "        except BaseException:\n"
        "            raise SystemExit(7)\n"
        "class WithProgram(Endless):\n"
        "    def _execute(self):\n"
        "        program = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "        print('program', program.pid, flush=True)\n"
        "        super()._execute()\n"
        "class Daemonizes(Endless):\n"
        "    goes_on = True\n"
        "    def _execute(self):\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            if os.fork() == 0:\n"
        "                os.write(1, b'daemon %d\\n' % os.getpid())\n"
        "                time.sleep(60)\n"
        "            os._exit(0)\n"
        "        os.wait()\n"
        "        try:\n"
        "            os.wait()\n"
        "        except ChildProcessError:\n"
        "            os.write(1, b'no stranger %d\\n' % os.getpid())\n"
        "        if self.goes_on:\n"
        "            super()._execute()\n"
        "class LeavesDaemon(Daemonizes):\n"
        "    goes_on = False\n"
        "class Broken(BaseJob):\n"
        "    def _execute(self):\n"
        "        raise LookupError('no such table')\n"
        "class Exits(BaseJob):\n"
        "    def _execute(self):\n"
        "        raise SystemExit(7)\n"
        "class NoJob:\n"
        "    pass\n"
    )
    return jobrunner


@pytest.fixture
def aws(jobrunner: CommandLine) -> CommandLine:
    """The command line with AWS credentials that are nobody's, and nothing of this machine's own."""
    absent = str(jobrunner.directory / "absent")
    jobrunner.environment = {
        **{name: value for name, value in jobrunner.environment.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": "AKIANOBODY",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": absent,
        "AWS_SHARED_CREDENTIALS_FILE": absent,
    }
    return jobrunner


@pytest.fixture
def batch(aws: CommandLine) -> Iterator[BatchStub]:
    """The AWS Batch that the command line reaches."""
    with serving() as stub:
        aws.environment["JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL"] = stub.url
        yield stub


def submitted(batch: BatchStub) -> list[str]:
    """Return the ids of the jobs in Batch, once there is one."""
    end_s = time.monotonic() + 60
    while not batch.job_ids():
        assert time.monotonic() < end_s
        time.sleep(0.05)
    return batch.job_ids()
