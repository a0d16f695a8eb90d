"""Standard output that is full or closed: the job is what it was, and the exit code is the job's."""

import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import Answer, CommandLine

FULL, CLOSED = ">/dev/full", ">&-"
QUICK = ("start", "process", "--poll-interval", "0.2")


def _refused(jobrunner: CommandLine, how: str, *arguments: str) -> Answer:
    """Run a command whose standard output is refused."""
    line = ["bash", "-c", f'"$@" {how}', "bash", sys.executable, "-m", "jobrunner.cli.main", *arguments]
    done = subprocess.run(
        line,
        cwd=jobrunner.directory,
        env=jobrunner.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def _state(jobrunner: CommandLine, job_id: str = "1") -> str:
    return str(jobrunner("show", job_id, "--json").json["state"])


@pytest.mark.parametrize("how", [FULL, CLOSED, ">/dev/full 2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize(("script", "code", "state"), [("exit 0", 0, "success"), ("exit 3", 1, "failed")])
def test_a_command_is_watched_to_its_end(
    jobrunner: CommandLine, how: str, script: str, code: int, state: str
) -> None:
    answer = _refused(jobrunner, how, *QUICK, "--", "sh", "-c", script)
    assert (answer.code, _state(jobrunner)) == (code, state), answer
    if how == FULL:
        assert answer.says("standard output cannot be written (No space left on device)", f"job 1 {state}")


def test_json_that_is_refused_is_said_once(jobrunner: CommandLine) -> None:
    answer = _refused(jobrunner, FULL, *QUICK, "--json", "--", "true")
    assert (answer.code, _state(jobrunner)) == (0, "success")
    assert answer.words.count("No space left on device") == 1


@pytest.mark.parametrize("how", [FULL, CLOSED])
def test_a_detached_job_is_queued_once_and_named_on_standard_error(jobrunner: CommandLine, how: str) -> None:
    answer = _refused(jobrunner, how, "start", "process", "--detach", "--", "true")
    assert answer.code == 0
    assert answer.says("job 1 is queued")
    assert _state(jobrunner) == "queued"


@pytest.mark.parametrize("how", [FULL, CLOSED])
def test_a_job_of_ones_own_runs(own_jobs: CommandLine, how: str) -> None:
    assert _refused(own_jobs, how, "start", "my_jobs:Broken").code == 1
    assert _state(own_jobs) == "failed"
    (own_jobs.directory / "silent.py").write_text(
        "from jobrunner.models import BaseJob\n"
        "class Silent(BaseJob):\n"
        "    def _execute(self):\n"
        "        pass\n"
        "class Prints(BaseJob):\n"
        "    def _execute(self):\n"
        "        print('in a buffer')\n"
    )
    for name in ("Silent", "Prints"):
        assert _refused(own_jobs, how, "start", f"silent:{name}", "--json").code == 0
    assert (_state(own_jobs, "2"), _state(own_jobs, "3")) == ("success", "success")


def test_attach_wait_and_kill_do_what_they_were_asked(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job("process", "--", "sleep", "60")
    jobrunner.until(job_id, "external_id", None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    other = jobrunner("start", "process", "--detach", "--", "sleep", "60").out.split()[1]
    assert _refused(jobrunner, FULL, "kill", job_id, other).code == 0
    assert (_state(jobrunner, job_id), _state(jobrunner, other)) == ("killed", "killed")
    assert _refused(jobrunner, FULL, "wait", job_id).code == 3
    assert _refused(jobrunner, FULL, "attach", job_id).code == 3


def test_what_only_asks_fails_where_nothing_can_be_written(jobrunner: CommandLine) -> None:
    jobrunner("start", "process", "--detach", "--", "true")
    answer = _refused(jobrunner, FULL, "list")
    assert answer.code == 1
    assert answer.says("No space left on device")
