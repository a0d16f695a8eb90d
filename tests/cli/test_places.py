"""Where a command finds itself: without a home, without a working directory, with closed streams."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner import identity
from tests.cli.conftest import Answer, CommandLine

HOME_LESS = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "env", "-i"]
POWERLESS = (
    "setpriv --inh-caps=-all --bounding-set=-dac_override,-dac_read_search" if os.geteuid() == 0 else ""
)
"""What lets the permissions of files hold for root, too."""
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


def _in_a_shell(jobrunner: CommandLine, script: str, *arguments: str, **environment: str) -> Answer:
    """Run the script, whose `"$@"` is the command."""
    command = [sys.executable, "-m", "jobrunner.cli.main", *arguments]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=jobrunner.directory,
        env=jobrunner.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_with_closed_streams_does_what_it_does(jobrunner: CommandLine, closed: str) -> None:
    script = f'exec "$@" {closed}'
    answer = _in_a_shell(jobrunner, script, "start", "process", "--", "sh", "-c", "echo hello")
    assert answer.code == 0, answer
    assert _in_a_shell(jobrunner, script, "list").code == 0
    assert _in_a_shell(jobrunner, script, "nosuch").code == 2
    assert jobrunner("logs", "1").out == "hello\n"


def test_a_question_that_nobody_can_answer_is_not_asked(jobrunner: CommandLine) -> None:
    assert jobrunner("db", "upgrade").code == 0
    assert _in_a_shell(jobrunner, 'exec "$@" <&-', "db", "downgrade", "base").is_refused("--yes")


REMOVED = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'


def test_a_removed_working_directory_is_ordinary(jobrunner: CommandLine) -> None:
    assert _in_a_shell(jobrunner, REMOVED, "list").code == 0
    assert _in_a_shell(jobrunner, REMOVED, "start", "process", "--cwd", "/", "--", "true").code == 0
    for arguments in (["--", "true"], ["--cwd", "here", "--", "true"]):
        assert _in_a_shell(jobrunner, REMOVED, "start", "process", *arguments).is_refused("--cwd")
    assert _in_a_shell(jobrunner, REMOVED, "start", "my_jobs:Quick").is_refused("my_jobs")
    assert _in_a_shell(jobrunner, REMOVED, "list", JOBRUNNER_DATA_DIR="here").is_refused("whole path")


def test_without_a_home_a_command_says_what_to_set_or_works(jobrunner: CommandLine) -> None:
    url = f"sqlite:///{jobrunner.directory / 'jobs.db'}"
    jobrunner.environment = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere", "PYTHONPATH": _root()}
    for command in (["list"], ["start", "process", "--", "true"], ["db", "upgrade"], ["worker"]):
        assert jobrunner(*command).is_refused("JOBRUNNER_DATA_DIR", "JOBRUNNER_DATABASE_URL")
    assert jobrunner("config").code == 0
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = url
    assert jobrunner("db", "upgrade").code == 0
    try:
        assert jobrunner("start", "process", "--", "echo", "hello").code == 0
        assert jobrunner("logs", "1").out == "hello\n"
    finally:
        record = Path(jobrunner("show", "1", "--json").json["external_id"])
        assert record.parts[-3] == f"jobrunner-{os.geteuid()}"
        shutil.rmtree(record)
    assert not list(jobrunner.directory.glob("*~*"))


@pytest.fixture
def closed_home(tmp_path: Path) -> Iterator[Path]:
    """A home that the commands of these tests may not enter, such as the one of root after `sudo -u`."""
    home = tmp_path / "closed"
    home.mkdir(mode=0o700)
    if POWERLESS and not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed, and permissions do not hold for root")
    if POWERLESS:
        os.chown(home, 54321, 54321)
    else:
        home.chmod(0)
    yield home
    home.chmod(0o700)


def test_a_home_that_this_user_may_not_enter_is_none(jobrunner: CommandLine, closed_home: Path) -> None:
    def run(*arguments: str, **environment: str) -> Answer:
        return _in_a_shell(jobrunner, f'exec {POWERLESS} "$@"', *arguments, **environment)

    url = f"sqlite:///{jobrunner.directory / 'jobs.db'}"
    jobrunner.environment = {"PATH": os.environ["PATH"], "HOME": str(closed_home), "PYTHONPATH": _root()}
    for command in (["list"], ["start", "process", "--", "true"], ["db", "upgrade"]):
        assert run(*command).is_refused("JOBRUNNER_DATA_DIR", "JOBRUNNER_DATABASE_URL")
    elsewhere = run("list", JOBRUNNER_DATABASE_URL=f"sqlite:///{closed_home}/own/jobs.db")
    assert elsewhere.is_refused("may not enter")
    inside = run("list", JOBRUNNER_DATABASE_URL=f"sqlite:///{closed_home}/jobs.db")
    assert inside.is_refused("may read and write that file")
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = url
    assert run("db", "upgrade").code == 0
    assert run("start", "process", "--", f"{closed_home}/run").is_refused("may not enter")
    assert run("start", "process", "--cwd", f"{closed_home}/run", "--", "true").is_refused("may not enter")
    started = run("start", "process", "--timeout", "60s", "--", "echo", "hello")
    record = Path(jobrunner("show", "1", "--json").json["external_id"])
    try:
        assert started.code == 0, started
        assert record.parts[-3] == f"jobrunner-{os.geteuid()}"
    finally:
        shutil.rmtree(record)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may become another user"
)
def test_a_user_without_an_entry_in_passwd_runs_a_job_and_leaves_nothing_called_tilde(
    jobrunner: CommandLine, open_directory: Path
) -> None:
    if not _others_may_run_this_python():
        pytest.skip("other users may not read this environment")
    jobrunner.directory = open_directory
    data = open_directory / "data%2F dir?"
    script = f'exec {" ".join(HOME_LESS)} PYTHONPATH={_root()} "JOBRUNNER_DATA_DIR={data}" "$@"'
    answer = _in_a_shell(jobrunner, script, "start", "process", "--", "id", "-u")
    assert answer.code == 0, answer
    assert (data / "jobrunner.db").stat().st_uid == 54321
    script = f'exec {" ".join(HOME_LESS)} PYTHONPATH={_root()} "$@"'
    assert _in_a_shell(jobrunner, script, "list").is_refused("there is no home", "JOBRUNNER_DATA_DIR")
    assert not list(jobrunner.directory.rglob("*~*"))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others reach, too: those above pytest's are the user's alone."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


def _root() -> str:
    return str(Path(identity.__file__).parent.parent)


def _others_may_run_this_python() -> bool:
    command = [*HOME_LESS, sys.executable, "-c", "import click, alembic"]
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def test_a_directory_of_an_odd_name_is_the_place_of_everything(
    jobrunner: CommandLine, tmp_path: Path
) -> None:
    home = tmp_path / "100%/a?b#c d/%41 é"
    home.mkdir(parents=True)
    jobrunner.directory = home
    jobrunner.environment |= {"JOBRUNNER_DATA_DIR": "data%2Fdir", "HOME": str(home)}
    (home / "jobrunner.toml").write_bytes(b"\xef\xbb\xbfheartrate = 2\r\n")
    answer = jobrunner("start", "process", "--", "pwd")
    assert answer.code == 0, answer
    assert jobrunner("logs", "1").out == f"{home}\n"
    assert {"jobrunner.db", "processes"} <= {path.name for path in (home / "data%2Fdir").iterdir()}
    shown = jobrunner("config").out
    assert re.search(r"^heartrate +1 ", shown, re.MULTILINE)  # the fixture's variable comes before the file
    assert jobrunner("db", "check").code == 0


def test_a_password_of_a_variable_reaches_no_word_of_a_failing_command(jobrunner: CommandLine) -> None:
    url = "postgresql://me:${env:JR_PW}@localhost.invalid/x"
    answer = jobrunner(
        "list", JOBRUNNER_DATABASE_URL=url, JR_PW="xyzzy1@plugh2/frotz3?#%", JOBRUNNER_DEBUG="1"
    )
    assert answer.code == 2
    assert "localhost.invalid" in answer.words
    for part in ("xyzzy1", "plugh2", "frotz3"):
        assert part not in answer.words
