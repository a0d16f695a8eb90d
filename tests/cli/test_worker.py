"""`jobrunner worker` and `--detach`, as a person and a service manager meet them."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine
from tests.cli.worker_process import WorkerProcess, until

pytestmark = pytest.mark.usefixtures("no_child_left")


# --- detached ---------------------------------------------------------------------------------------


def test_a_detached_job_is_queued_and_a_worker_runs_it(jobrunner: CommandLine) -> None:
    answer = jobrunner("start", "process", "--detach", "--", "sh", "-c", "echo hello; exit 0")
    assert (answer.code, answer.out) == (0, "job 1\n")
    assert answer.says("job 1 is queued: no worker is alive; `jobrunner worker` starts one")
    assert "no worker is alive" in jobrunner("list").out
    assert jobrunner("show", "1").says("job 1 is queued: no worker is alive")
    worker = WorkerProcess(jobrunner)
    jobrunner.until("1", "state", "success")
    assert jobrunner("logs", "1").out == "hello\n"
    again = jobrunner("start", "process", "--detach", "--json", "--", "true")
    assert again.json == {"id": 3, "state": "queued"}
    assert again.words == ""  # somebody takes it
    jobrunner.until("3", "state", "success")
    worker.send(signal.SIGTERM)
    code, words = worker.ended()
    assert code == 0
    assert f"worker {worker.job_id} has stopped by SIGTERM" in words
    assert jobrunner("show", worker.job_id, "--json").json["state"] == "success"


def test_a_detached_job_of_ones_own_class_is_run_by_a_worker_beside_it(own_jobs: CommandLine) -> None:
    answer = own_jobs("start", "my_jobs:Quick", "--arg", "rows=7", "--arg", "label=x", "--detach")
    assert (answer.code, answer.out) == (0, "job 1\n")
    worker = WorkerProcess(own_jobs)
    own_jobs.until("1", "state", "success")
    worker.send(signal.SIGINT)
    assert worker.ended()[0] == 0
    assert worker.out.splitlines()[1:] == ["7 'x'"]


def test_what_a_worker_does_not_take_is_listed_with_the_reason(jobrunner: CommandLine) -> None:
    worker = WorkerProcess(jobrunner, "--job-type", "BatchMonitorJob")
    (job,) = jobrunner("start", "process", "--detach", "--", "true").out.splitlines()
    job_id = job.removeprefix("job ")
    reason = f"worker {worker.job_id} does not take it: this worker serves only BatchMonitorJob"
    until(lambda: reason in jobrunner("list", COLUMNS="250").out)
    assert jobrunner("show", job_id).says(reason)
    worker.send(signal.SIGTERM)
    assert worker.ended()[0] == 0


def test_a_silent_job_whose_records_a_worker_does_not_see_is_listed_with_the_reason(
    jobrunner: CommandLine,
) -> None:
    with jobrunner.records_elsewhere() as job_id:
        worker = WorkerProcess(jobrunner)
        reason = f"worker {worker.job_id} does not take it: its records in"
        until(lambda: reason in jobrunner("list", COLUMNS="400").out)
        assert jobrunner("show", job_id).says(f"job {job_id} is silent: {reason}")
        assert jobrunner("logs", job_id).is_refused("cannot be seen from here")
    jobrunner.until(job_id, "state", "failed")
    assert "exit code 7" in jobrunner("list").out
    worker.send(signal.SIGTERM)
    assert worker.ended()[0] == 0


def test_on_exit_kill_makes_no_sense_for_a_detached_job(jobrunner: CommandLine) -> None:
    answer = jobrunner("start", "process", "--detach", "--on-exit", "kill", "--", "true")
    assert answer.is_refused("--on-exit kill is about a job in the foreground")
    assert jobrunner("list").says("There are no jobs yet.")


# --- stopping ---------------------------------------------------------------------------------------


def test_a_second_signal_leaves_at_once_and_loses_nothing(own_jobs: CommandLine) -> None:
    own_jobs("start", "my_jobs:Endless", "--detach")
    own_jobs("start", "process", "--detach", "--", "sleep", "600")
    worker = WorkerProcess(own_jobs)
    own_jobs.until("1", "state", "running")
    own_jobs.until("2", "external_state", None)
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGTERM)  # the same one, as `timeout` and some shells send it
    own_jobs.until("2", "state", "queued")  # given back
    assert worker.process.poll() is None  # and its child is waited for
    time.sleep(1)
    worker.send(signal.SIGTERM)
    code, words = worker.ended()
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM again: leaving at once" in words
    own_jobs.until("1", "alive", True)  # the child goes on by itself
    second = WorkerProcess(own_jobs)
    own_jobs.until("2", "state", "running")
    own_jobs.until(worker.job_id, "state", "lost")
    assert own_jobs("kill", "1", "2", "--wait").code == 0
    assert {own_jobs("show", job_id, "--json").json["state"] for job_id in ("1", "2")} == {"killed"}
    second.send(signal.SIGTERM)
    assert second.ended()[0] == 0


def test_a_child_that_is_waited_for_no_longer_goes_on_by_itself(own_jobs: CommandLine) -> None:
    own_jobs("start", "my_jobs:Endless", "--detach")
    worker = WorkerProcess(own_jobs, "--drain-timeout", "1s")
    own_jobs.until("1", "state", "running")
    worker.send(signal.SIGTERM)
    code, words = worker.ended()
    assert code == 0
    assert "code goes on by itself" in words
    before = own_jobs("show", "1", "--json").json["latest_heartbeat"]
    until(lambda: own_jobs("show", "1", "--json").json["latest_heartbeat"] > before)
    assert own_jobs("kill", "1", "--wait").code == 0
    assert own_jobs("show", "1", "--json").json["state"] == "killed"


def test_a_worker_is_killed_as_any_job_is(jobrunner: CommandLine) -> None:
    worker = WorkerProcess(jobrunner, "--name", "blue")
    assert jobrunner("check", "--job-type", "WorkerJob", "--local").code == 0
    assert jobrunner("kill", worker.job_id, "--wait", "--reason", "deploy").code == 0
    code, words = worker.ended()
    assert code == 3
    assert "deploy" in words
    assert jobrunner("check", "--job-type", "WorkerJob", "--local").code == 1


def test_an_orphan_of_a_worker_that_was_killed_hard_is_taken_over(jobrunner: CommandLine) -> None:
    jobrunner("start", "process", "--detach", "--", "sleep", "600")
    first = WorkerProcess(jobrunner)
    jobrunner.until("1", "external_state", None)
    before = jobrunner("show", "1", "--json").json
    first.send(signal.SIGKILL)
    second = WorkerProcess(jobrunner)
    jobrunner.until("1", "claims", 2)
    after = jobrunner("show", "1", "--json").json
    assert after["external_id"] == before["external_id"]
    jobrunner.until(first.job_id, "state", "lost")
    assert jobrunner("kill", "1", "--wait").code == 0
    second.send(signal.SIGTERM)
    assert second.ended()[0] == 0


# --- probes and service managers ----------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_the_probe_tells_whether_it_lives_and_takes_jobs(own_jobs: CommandLine) -> None:
    port = free_port()
    own_jobs("start", "my_jobs:Endless", "--detach")
    worker = WorkerProcess(own_jobs, "--probe-port", str(port))
    until(lambda: status(port, "/readyz") == 200)
    assert status(port, "/livez") == 200
    assert status(port, "/") == 404
    own_jobs.until("1", "state", "running")
    worker.send(signal.SIGTERM)
    until(lambda: status(port, "/readyz") == 503)  # it drains
    assert status(port, "/livez") == 200
    assert own_jobs("kill", "1", "--wait").code == 0
    assert worker.ended()[0] == 0


def test_a_port_that_is_taken_is_said(jobrunner: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = jobrunner("worker", "--probe-port", str(port))
    assert answer.is_refused(f"The probe cannot listen on 127.0.0.1:{port}: Address already in use")
    assert jobrunner("list").says("There are no jobs yet.")


def test_systemd_is_told(jobrunner: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        ear.settimeout(30)
        worker = WorkerProcess(jobrunner, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="400000")
        said: list[str] = []
        while "WATCHDOG=1" not in said:
            said += ear.recv(4096).decode().splitlines()
        assert "READY=1" in said
        assert "STATUS=watching 0 jobs" in said
        worker.send(signal.SIGSTOP)  # a worker that hangs says nothing
        ear.setblocking(False)
        with suppress(BlockingIOError):
            while ear.recv(4096):
                pass
        time.sleep(1)  # more than two of its words
        with pytest.raises(BlockingIOError):
            ear.recv(4096)
        worker.send(signal.SIGCONT)
        ear.settimeout(30)
        worker.send(signal.SIGTERM)
        while "STOPPING=1" not in said:
            said += ear.recv(4096).decode().splitlines()
        assert worker.ended()[0] == 0


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--capacity", "-1"], ["--capacity"]),
        (["--capacity", "0", "--processes", "0"], ["has nothing to do"]),
        (["--job-type", "Nobodys"], ["'Nobodys' is not known here", "--import"]),
        (["--connection", "nowhere"], ["There is no connection 'nowhere'"]),
        (["--import", "no_such_module"], ["'no_such_module'", "cannot be found"]),
        (["--probe-port", "http"], ["'http' is no port"]),
        (["--probe-port", "70000"], ["'70000' is no port"]),
        (["--drain-timeout", "soon"], ["'soon' is no duration"]),
        (["--heartrate", "0"], ["must be more than 0"]),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    jobrunner: CommandLine, options: list[str], parts: list[str]
) -> None:
    answer = jobrunner("worker", *options)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.says(*parts)
    assert jobrunner("list").says("There are no jobs yet.")


def test_the_worker_in_json(jobrunner: CommandLine) -> None:
    worker = WorkerProcess(jobrunner, "--json")
    assert json.loads(worker.out) == {"id": 1, "state": "running"}
    worker.send(signal.SIGTERM)
    assert worker.ended()[0] == 0
