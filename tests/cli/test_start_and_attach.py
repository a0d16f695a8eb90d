import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from tests.cli.conftest import CommandLine

ENDS = [("exit 0", 0, "success"), ("exit 3", 1, "failed"), ("kill -9 $$", 1, "failed")]


@pytest.mark.parametrize(("script", "code", "state"), ENDS)
def test_a_command_is_supervised_to_its_end(
    jobrunner: CommandLine, script: str, code: int, state: str
) -> None:
    answer = jobrunner("start", "process", "--poll-interval", "0.2", "--", "sh", "-c", script)
    assert (answer.code, answer.out) == (code, "job 1\n")
    assert answer.says(f"job 1 {state}")
    assert jobrunner("show", "1", "--json").json["state"] == state


def test_the_options_of_a_command_are_its_own_after_its_first_word(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "echo", "--name", "x", "--help").code == 0
    assert jobrunner("logs", "1").out == "--name x --help\n"


def test_every_option_of_a_command_reaches_its_row(jobrunner: CommandLine) -> None:
    (jobrunner.directory / "sub").mkdir()
    given = ["--name", "n", "--heartrate", "2s", "--poll-interval", "0.5", "--timeout", "1h", "--dag-id", "d"]
    answer = jobrunner(
        "start", "process", *given, "--env", "A=b=c", "--cwd", "sub", "--", "sh", "-c", "echo $A; pwd"
    )
    assert answer.code == 0
    row = jobrunner("show", "1", "--json").json
    assert (row["name"], row["heartrate"], row["poll_interval"], row["dag_id"]) == ("n", 2.0, 0.5, "d")
    assert row["deadline_at"] is not None
    assert jobrunner("logs", "1").out == f"b=c\n{jobrunner.directory / 'sub'}\n"


def test_json_gives_the_id_first_and_the_row_last(jobrunner: CommandLine) -> None:
    answer = jobrunner("start", "process", "--json", "--poll-interval", "0.2", "--", "true")
    first, last = map(json.loads, answer.out.splitlines())
    assert first == {"id": 1, "state": "running"}
    assert (last["id"], last["state"], last["detail"]["exit_code"]) == (1, "success", 0)


def test_a_deadline_that_passes_fails_the_job(jobrunner: CommandLine) -> None:
    answer = jobrunner("start", "process", "--poll-interval", "0.2", "--timeout", "0.5", "--", "sleep", "60")
    assert answer.code == 1
    assert answer.says("job 1 failed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_monitor_releases_its_job_and_says_how_to_go_on(
    jobrunner: CommandLine, number: signal.Signals, code: int
) -> None:
    process, job_id = jobrunner.begin_job("process", "--", "sleep", "60")
    jobrunner.until(job_id, "external_id", None)
    process.send_signal(number)
    _, words = process.communicate(timeout=30)
    assert process.returncode == code, words
    assert f"jobrunner attach {job_id}" in words
    assert f"jobrunner kill {job_id}" in words
    assert "Traceback" not in words
    listed = jobrunner("list")
    assert "released, running outside" in listed.out
    assert listed.says("job 1", "deadline", "jobrunner attach 1")
    killed = jobrunner("kill", job_id, "--reason", "not needed")
    assert killed.code == 0
    assert "job 1 killed" in killed.out
    assert jobrunner("show", job_id, "--json").json["kill_reason"] == "not needed"


def test_on_exit_kill_kills_the_command(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job("process", "--on-exit", "kill", "--", "sleep", "60")
    jobrunner.until(job_id, "external_id", None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 3
    assert jobrunner("show", job_id, "--json").json["state"] == "killed"


def test_attach_takes_a_released_job_over_and_reports_its_true_outcome(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job(
        "process", "--poll-interval", "0.2", "--", "sh", "-c", "sleep 3; exit 4"
    )
    jobrunner.until(job_id, "external_id", None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    answer = jobrunner("attach", job_id)
    assert (answer.code, answer.out) == (1, "job 1\n")
    row = jobrunner("show", job_id, "--json").json
    assert (row["state"], row["detail"]["exit_code"], row["attempt"]) == ("failed", 4, 1)


def test_attach_follows_a_job_whose_monitor_lives(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job("process", "--poll-interval", "0.2", "--", "sleep", "2")
    answer = jobrunner("attach", job_id, "--json")
    assert answer.code == 0
    assert answer.json["state"] == "success"
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_closed_standard_output_does_not_end_the_job(jobrunner: CommandLine) -> None:
    process = jobrunner.begin(
        "start", "process", "--poll-interval", "0.2", "--", "sh", "-c", "sleep 1; exit 3"
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 1
    assert process.stderr is not None
    assert "Broken" not in process.stderr.read()


# --- what cannot be started ------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], *tuple[str, ...]]] = {
    "no command": (["process"], "Missing argument"),
    "a command that is not there": (["process", "--", "no-such-program"], "not found on the PATH"),
    "an empty command": (["process", "--", ""], "not found"),
    "a file that cannot be run": (["process", "--", "./plain"], "not executable"),
    "a path that is not there": (["process", "--", "./absent"], "was not found"),
    "a PATH without it": (["process", "--env", "PATH=/nowhere", "--", "ls"], "not found on the PATH"),
    "no such directory": (["process", "--cwd", "absent", "--", "ls"], "does not exist"),
    "a file as directory": (["process", "--cwd", "plain", "--", "ls"], "is no directory"),
    "a negative heartrate": (["process", "--heartrate", "-1", "--", "ls"], "--heartrate"),
    "a heartrate of 0": (["process", "--heartrate", "0", "--", "ls"], "more than 0"),
    "no number": (["process", "--heartrate", "fast", "--", "ls"], "no duration"),
    "not a number": (["process", "--timeout", "nan", "--", "ls"], "no duration"),
    "a poll interval of 0": (["process", "--poll-interval", "0s", "--", "ls"], "more than 0"),
    "another unit": (["process", "--timeout", "3w", "--", "ls"], "no duration"),
    "another exit": (["process", "--on-exit", "leave", "--", "ls"], "--on-exit"),
    "no variable": (["process", "--env", "A", "--", "ls"], "NAME=VALUE"),
    "no variable's name": (["process", "--env", "=b", "--", "ls"], "NAME=VALUE"),
    "a secret variable": (["process", "--env", "DB_PASSWORD=x", "--", "ls"], "secret", "env.DB_PASSWORD"),
    "a secret in the command": (["process", "--", "ls", "--password=x"], "secret", "command[1]"),
    "an option that is not there": (["process", "--nam", "x", "--", "ls"], "--nam", "start process --help"),
    "a kind that is not there": (["batsh"], "no kind of job 'batsh'", "process"),
    "half a path": (["my_jobs:"], "MODULE:CLASS"),
    "a module that is not there": (["absent:Job"], "'absent'", "cannot be found"),
    "a path in place of a module": (["../absent:Job"], "'../absent'", "is not the name of a module"),
    "a base of classes": (["jobrunner:BaseJob"], "'jobrunner:BaseJob'", "only a base"),
    "a class that is not there": (["my_jobs:Absent"], "has no 'Absent'"),
    "what is no job": (["my_jobs:NoJob"], "no class of a job"),
    "an argument that is not taken": (["my_jobs:Quick", "--arg", "colour=red"], "colour"),
    "no argument": (["my_jobs:Quick", "--arg", "rows"], "NAME=VALUE"),
    "a secret argument": (["my_jobs:Quick", "--arg", "api_token=abc"], "secret", "api_token"),
    "a module that breaks": (["broken_module:Job"], "SyntaxError"),
    "a wrong heartrate of one's own": (["my_jobs:Quick", "--arg", "heartrate=-1"], "heartrate of -1"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_started_is_refused_in_one_sentence_and_nothing_is_stored(
    own_jobs: CommandLine, mistake: str
) -> None:
    (own_jobs.directory / "plain").write_text("x")
    (own_jobs.directory / "broken_module.py").write_text("def\n")
    arguments, *words = REFUSED[mistake]
    assert own_jobs("start", *arguments).is_refused(*words)
    if own_jobs.database.exists():
        with closing(sqlite3.connect(own_jobs.database)) as connection, connection:
            assert connection.execute("SELECT count(*) FROM job").fetchone() == (0,)


# --- jobs of the user's own ------------------------------------------------------------------------


def test_arguments_are_json_where_they_can_be_and_kept_in_the_spec(own_jobs: CommandLine) -> None:
    answer = own_jobs(
        "start", "my_jobs:Quick", "--arg", "rows=[1, 2]", "--arg", "label=NaN", "--arg", "name=etl"
    )
    assert (answer.code, answer.out) == (0, "job 1\n[1, 2] 'NaN'\n")
    row = own_jobs("show", "1", "--json").json
    assert (row["state"], row["name"], row["job_type"]) == ("success", "etl", "Quick")
    assert row["spec"] == {"class": "my_jobs:Quick", "args": {"rows": [1, 2], "label": "NaN", "name": "etl"}}


def test_a_job_that_raises_is_failed_and_its_own_traceback_is_shown(own_jobs: CommandLine) -> None:
    answer = own_jobs("start", "my_jobs:Broken", "--json")
    assert answer.code == 1
    assert "LookupError: no such table" in answer.words
    assert "own_run.py" not in answer.words
    assert "job 1 failed" in answer.words
    assert answer.json["message"] == "LookupError: no such table"


def test_any_exit_code_of_a_job_is_a_failure(own_jobs: CommandLine) -> None:
    assert own_jobs("start", "my_jobs:Exits").code == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_of_ones_own_ends_as_killed(
    own_jobs: CommandLine, number: signal.Signals, code: int
) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:Endless")
    own_jobs.until(job_id, "state", "running")
    process.send_signal(number)
    _, words = process.communicate(timeout=30)
    assert process.returncode == code, words
    assert "Traceback" not in words
    assert own_jobs("show", job_id, "--json").json["state"] == "killed"


@pytest.mark.parametrize("job_class", ["Swallows", "SwallowsAndExits"])
@pytest.mark.parametrize(("how", "code"), [("kill", 3), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_job_of_ones_own_that_swallows_its_end_is_killed_all_the_same(
    own_jobs: CommandLine, job_class: str, how: str, code: int
) -> None:
    process, job_id = own_jobs.begin_job(f"my_jobs:{job_class}")
    own_jobs.until(job_id, "state", "running")
    if how == "kill":
        assert own_jobs("kill", job_id, "--wait").code == 0
    else:
        process.send_signal(signal.Signals[how])
    _, words = process.communicate(timeout=60)
    assert own_jobs("show", job_id, "--json").json["state"] == "killed"
    assert (process.returncode, "Traceback" in words) == (code, False), words


def test_a_killed_job_of_ones_own_exits_with_3(own_jobs: CommandLine) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:Endless")
    assert own_jobs("kill", job_id, "--wait").code == 0
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.parametrize("how", ["a kill", "SIGTERM"])
def test_a_killed_job_of_ones_own_leaves_no_program_behind(own_jobs: CommandLine, how: str) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:WithProgram")
    assert process.stdout is not None
    program = psutil.Process(int(process.stdout.readline().split()[1]))
    if how == "SIGTERM":
        process.terminate()
    else:
        assert own_jobs("kill", job_id, "--wait").code == 0
    process.communicate(timeout=60)
    assert own_jobs("show", job_id, "--json").json["state"] == "killed"
    assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE


def test_a_job_is_taken_over_only_from_where_its_records_are(jobrunner: CommandLine) -> None:
    with jobrunner.records_elsewhere() as job_id:
        answer = jobrunner("attach", job_id)
        assert answer.code == 2
        assert answer.says("cannot be seen from here", "mounted")
        row = jobrunner("show", job_id, "--json").json
        assert (row["state"], row["claims"]) == ("running", 1)
    assert jobrunner("attach", job_id).says("exit code 7")


def _daemon_and_code(process: "subprocess.Popen[str]") -> tuple[psutil.Process, psutil.Process]:
    """Return the daemon of `Daemonizes`, and the process of its code, in which no stranger was met."""
    assert process.stdout is not None
    lines = dict(process.stdout.readline().rsplit(" ", 1) for _ in range(2))
    return psutil.Process(int(lines["daemon"])), psutil.Process(int(lines["no stranger"]))


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="has no guardian")


@linux_only
@pytest.mark.parametrize(("how", "code"), [("kill", 3), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_killed_job_of_ones_own_leaves_no_daemon_behind_that_was_forked_and_nothing_more(
    own_jobs: CommandLine, how: str, code: int
) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:Daemonizes")
    daemon, _ = _daemon_and_code(process)
    if how == "kill":
        assert own_jobs("kill", job_id, "--wait").code == 0
    else:
        process.send_signal(signal.Signals[how])
    process.communicate(timeout=60)
    assert process.returncode == code
    assert own_jobs("show", job_id, "--json").json["state"] == "killed"
    assert _is_gone(daemon)


@linux_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_of_a_job_of_ones_own_counts_once(
    own_jobs: CommandLine, number: signal.Signals, code: int
) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:Daemonizes")
    daemon, code_process = _daemon_and_code(process)
    process.send_signal(number)  # as timeout(1) does: to the process, and to all of its group
    code_process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in words) == (code, False)
    assert own_jobs("show", job_id, "--json").json["state"] == "killed"
    assert _is_gone(daemon)


@linux_only
def test_what_a_job_of_ones_own_leaves_when_it_ends_by_itself_lives_on(own_jobs: CommandLine) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:LeavesDaemon")
    daemon, _ = _daemon_and_code(process)
    assert process.wait(60) == 0
    assert own_jobs("show", job_id, "--json").json["state"] == "success"
    assert not _is_gone(daemon)
    daemon.kill()


@linux_only
def test_the_code_of_a_job_of_ones_own_ends_with_the_process_that_was_started(own_jobs: CommandLine) -> None:
    process, _ = own_jobs.begin_job("my_jobs:Daemonizes")
    daemon, code = _daemon_and_code(process)
    process.kill()
    process.wait(60)
    daemon.kill()
    psutil.wait_procs([code], timeout=60)
    assert _is_gone(code)


def test_a_job_of_a_module_that_is_not_here_is_listed_shown_and_killed(own_jobs: CommandLine) -> None:
    process, job_id = own_jobs.begin_job("my_jobs:Endless")
    (own_jobs.directory / "my_jobs.py").unlink()
    assert "Endless" in own_jobs("list").out
    assert own_jobs("logs", job_id).is_refused("Endless", "no logs")
    assert own_jobs("attach", job_id).is_refused("Endless")
    assert own_jobs("kill", job_id, "--wait", "--json").json["state"] == "killed"
    process.communicate(timeout=30)
