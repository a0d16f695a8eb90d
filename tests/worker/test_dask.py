"""A worker that spreads its jobs over a Dask cluster: real schedulers and Dask workers, each a process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobrunner import worklist
from jobrunner.cli.spelling import why_waiting
from jobrunner.database import Database
from jobrunner.executors import children
from jobrunner.executors.dask_tasks import ELSEWHERE, CodeOrder, Sender, run_one
from jobrunner.models import BaseJob, ProcessMonitorJob
from jobrunner.settings import configured
from jobrunner.statements import Claim
from jobrunner.states import JobState
from tests.helpers import a_running_job, plain_sql, row_of, until
from tests.worker import own_jobs

ROOT = Path(__file__).parents[2]
RATE = 1.0

pytest.importorskip("distributed")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Processes:
    """A scheduler, Dask workers and the worker that spreads jobs over them, each a process."""

    def __init__(self, directory: Path, database: Database, url: str) -> None:
        self.directory, self.database, self.url = directory, database, url
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": url}
        self.started: list[subprocess.Popen[bytes]] = []
        self.words = directory / "words"

    def _start(self, *arguments: str, words: str = "dask") -> subprocess.Popen[bytes]:
        with (self.directory / words).open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.started.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        port = str(self.port)
        return self._start("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def dask_worker(self, *options: str) -> subprocess.Popen[bytes]:
        fixed = ("--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "2")
        return self._start("dask", "worker", self.address, *fixed, *options)

    def worker(self, *options: str, address: str = "") -> int:
        """Start the worker, and return its id."""
        self.process = self._start(
            *("jobrunner.cli.main", "worker", "--executor", "dask"),
            *("--dask-address", address or self.address, "--heartrate", f"{RATE}s", *options),
            words="words",
        )
        until(lambda: "job " in self.said() or self.process.poll() is not None)
        found = re.search(r"^job (\d+)$", self.said(), re.MULTILINE)
        assert found is not None, self.said()
        return int(found[1])

    def said(self) -> str:
        return self.words.read_text() if self.words.exists() else ""

    def serving(self, worker_id: int, state: JobState = JobState.RUNNING) -> list[dict[str, Any]]:
        """Return the rows of the workers that run on Dask workers for this one."""
        wanted = f"job_type = 'WorkerJob' AND parent_id = {worker_id} AND state = '{state}'"
        ids = plain_sql(self.url, f"SELECT id FROM job WHERE {wanted} ORDER BY id")
        return [row_of(self.database, job_id) for (job_id,) in ids]

    def state(self, job_id: int) -> JobState:
        return JobState(row_of(self.database, job_id)["state"])

    def until_state(self, state: JobState, *job_ids: int) -> None:
        until(lambda: all(self.state(job_id) is state for job_id in job_ids))

    def stop(self) -> int:
        """Tell the worker to stop, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def cluster(tmp_path: Path, postgres_database: Database, postgres_url: str) -> Iterator[Processes]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    processes = Processes(directory, postgres_database, postgres_url)
    yield processes
    for process in processes.started:
        if process.poll() is None:
            process.kill()
        process.wait(20)
    for each in psutil.process_iter(["cwd"]):  # what was left to itself
        if (each.info["cwd"] or "").startswith(str(directory)):
            each.kill()


def a_process(cluster: Processes) -> int:
    return ProcessMonitorJob(["sleep", "600"], heartrate=RATE, cwd=cluster.directory).store().id


def a_code_job(
    job_class: type[BaseJob], notes: Path, resources: dict[str, float] | None = None, **options: Any
) -> int:
    """Store a job as `jobrunner start MODULE:CLASS --detach --resource` does."""
    given = {"heartrate": RATE, "notes": str(notes), **options}
    job = job_class(**given)
    job.spec = {"class": own_jobs.a_path(job_class), "args": given}
    if resources:
        job.spec["resources"] = resources
    return job.store().id


def test_monitor_jobs_are_spread_and_taken_over_and_given_back(cluster: Processes) -> None:
    cluster.scheduler()
    dask_workers = {process.pid: process for process in (cluster.dask_worker(), cluster.dask_worker())}
    worker_id = cluster.worker("--drain-timeout", "30s")
    until(lambda: len(cluster.serving(worker_id)) == 2)
    assert {row["pid"] for row in cluster.serving(worker_id)} == dask_workers.keys()
    ids = [a_process(cluster) for _ in range(6)]
    until(lambda: all(row_of(cluster.database, job_id)["external_id"] for job_id in ids))
    rows = [row_of(cluster.database, job_id) for job_id in ids]
    assert {(row["executor_class"], row["hostname"]) for row in rows} == {
        ("DaskExecutor", socket.gethostname())
    }
    assert {row["runner_id"] for row in rows} == {row["runner_id"] for row in cluster.serving(worker_id)}
    assert {row["pid"] for row in rows} == dask_workers.keys()

    # A Dask worker is cut off: its jobs are watched on by the other one, under the same external ids.
    cut_off = rows[0]["pid"]
    (other,) = dask_workers.keys() - {cut_off}
    dask_workers[cut_off].send_signal(signal.SIGSTOP)
    until(lambda: {row_of(cluster.database, job_id)["pid"] for job_id in ids} == {other})
    for before in rows:
        after = row_of(cluster.database, before["id"])
        assert after["external_id"] == before["external_id"]
        assert after["claims"] == (2 if before["pid"] == cut_off else 1)
    until(lambda: len(cluster.serving(worker_id, JobState.LOST)) == 1)
    dask_workers[cut_off].send_signal(signal.SIGCONT)  # it learns of it, and begins anew
    until(lambda: {row["pid"] for row in cluster.serving(worker_id)} == dask_workers.keys())
    assert {row_of(cluster.database, job_id)["pid"] for job_id in ids} == {other}

    # One dies.
    dask_workers[other].kill()
    until(lambda: {row_of(cluster.database, job_id)["pid"] for job_id in ids} == {cut_off})
    assert [row_of(cluster.database, row["id"])["external_id"] for row in rows] == [
        row["external_id"] for row in rows
    ]
    until(lambda: len(cluster.serving(worker_id, JobState.LOST)) == 2)

    # A new one is used, too; and the old one is retired: it gives its jobs back.
    new = cluster.dask_worker()
    until(lambda: {row["pid"] for row in cluster.serving(worker_id)} == {cut_off, new.pid})
    (retired,) = (row for row in cluster.serving(worker_id) if row["pid"] == cut_off)
    code = "import sys, distributed as d; d.Client(sys.argv[1]).retire_workers([sys.argv[2]])"
    subprocess.run(
        [sys.executable, "-c", code, cluster.address, retired["spec"]["dask_worker"]],
        check=True,
        timeout=60,
        capture_output=True,
    )
    until(lambda: {row_of(cluster.database, job_id)["pid"] for job_id in ids} == {new.pid})

    assert cluster.stop() == 0
    rows = [row_of(cluster.database, job_id) for job_id in ids]
    assert {row["state"] for row in rows} == {JobState.QUEUED}
    assert not [row for row in rows if row["kill_requested_at"] or row["cancel_cause"]]
    ended = cluster.serving(worker_id, JobState.SUCCESS)
    assert f"stopped: worker {worker_id} stops" in {row["message"] for row in ended}
    assert row_of(cluster.database, worker_id)["state"] is JobState.SUCCESS


def test_code_runs_as_tasks_with_their_resources(cluster: Processes, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    cluster.scheduler()
    cluster.dask_worker()
    with_gpu = cluster.dask_worker("--resources", "GPU=1")
    worker_id = cluster.worker()
    crash = a_code_job(own_jobs.Segfault, notes)
    nowhere = a_code_job(own_jobs.Good, notes, {"TPU": 2})
    on_gpu = [a_code_job(own_jobs.Patient, notes, {"GPU": 1}) for _ in range(2)]
    good = a_code_job(own_jobs.Good, notes)  # and none of those that wait keeps it back
    cluster.until_state(JobState.SUCCESS, good)
    cluster.until_state(JobState.FAILED, crash)
    row = row_of(cluster.database, good)
    assert (row["executor_class"], row["claims"], row["message"]) == ("DaskExecutor", 1, "done")
    assert row_of(cluster.database, crash)["message"] == "its process was ended by SIGSEGV"

    # Orphans: what stands running twice is run again, at least once; the rest is lost.
    again = tmp_path / "again"
    again.write_text("ran 1\n")  # in the machine that died
    spec = {"class": own_jobs.a_path(own_jobs.Again), "args": {"heartrate": RATE, "notes": str(again)}}
    orphan, _ = a_running_job(cluster.database, job_type="Again", heartrate=0.5, spec=spec)
    stray, _ = a_running_job(cluster.database, job_type="Good", heartrate=0.5, adoptable=False)
    cluster.until_state(JobState.SUCCESS, orphan.job_id)
    cluster.until_state(JobState.LOST, stray.job_id)
    assert len(again.read_text().splitlines()) == 2
    assert row_of(cluster.database, orphan.job_id)["executor_class"] == "DaskExecutor"

    until(lambda: JobState.RUNNING in map(cluster.state, on_gpu))
    assert sorted(map(cluster.state, on_gpu)) == ["queued", "running"]  # there is one GPU
    first, second = sorted(on_gpu, key=lambda job_id: cluster.state(job_id) is JobState.QUEUED)
    ancestors = psutil.Process(row_of(cluster.database, first)["pid"]).parents()
    assert with_gpu.pid in {each.pid for each in ancestors}
    BaseJob.get(first).request_kill(by="somebody")
    cluster.until_state(JobState.KILLED, first)
    cluster.until_state(JobState.RUNNING, second)

    def why(job_id: int) -> str:
        row = row_of(cluster.database, job_id)
        with cluster.database.read() as connection:
            workers = worklist.workers(connection, 2.1)
        return why_waiting(row["job_type"], row["connection"], workers, row["spec"]) or ""

    until(lambda: f"worker {worker_id} does not take it: no Dask worker has TPU=2" in why(nowhere))
    another = a_code_job(own_jobs.Hang, notes, {"GPU": 1})
    assert why(another) == ""  # it waits for its turn

    # The worker that is stopped takes back what has not begun, and waits for what runs.
    cluster.process.send_signal(signal.SIGTERM)
    until(lambda: not cluster.serving(worker_id))
    assert cluster.process.poll() is None
    assert cluster.state(second) is JobState.RUNNING
    BaseJob.get(second).request_kill()
    assert cluster.process.wait(60) == 0
    assert [cluster.state(job_id) for job_id in (second, nowhere, another)] == ["killed", "queued", "queued"]


def test_a_scheduler_that_dies_is_said_and_reached_again(cluster: Processes, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first = cluster.scheduler()
    cluster.dask_worker()
    worker_id = cluster.worker()
    until(lambda: len(cluster.serving(worker_id)) == 1)
    job_id = a_process(cluster)
    until(lambda: row_of(cluster.database, job_id)["external_id"])
    before = row_of(cluster.database, job_id)

    first.kill()
    first.wait()
    until(lambda: "cannot be reached" in row_of(cluster.database, worker_id)["message"])
    beaten = row_of(cluster.database, worker_id)["latest_heartbeat"]
    until(lambda: row_of(cluster.database, worker_id)["latest_heartbeat"] > beaten)
    code = a_code_job(own_jobs.Good, notes)
    looked = row_of(cluster.database, worker_id)["detail"]
    until(lambda: row_of(cluster.database, worker_id)["detail"] != looked)
    assert "cannot be reached" in str(row_of(cluster.database, worker_id)["detail"]["unserved"])
    assert cluster.state(code) is JobState.QUEUED

    cluster.scheduler()  # on the same port
    new = cluster.dask_worker()
    cluster.until_state(JobState.SUCCESS, code)
    until(lambda: row_of(cluster.database, job_id)["pid"] == new.pid)
    assert row_of(cluster.database, job_id)["external_id"] == before["external_id"]
    assert cluster.said().count("the Dask scheduler is gone") == 1
    assert "the Dask scheduler is reached again" in cluster.said()
    cluster.process.kill()  # and with the worker gone, nobody serves for it
    until(lambda: not cluster.serving(worker_id))
    until(lambda: cluster.state(job_id) is JobState.QUEUED)


def test_a_cluster_of_its_own(cluster: Processes, tmp_path: Path) -> None:
    job_id = a_code_job(own_jobs.Good, tmp_path / "notes")
    cluster.worker("--processes", "1", address="local")
    cluster.until_state(JobState.SUCCESS, job_id)
    assert cluster.stop() == 0
    assert "Traceback" not in cluster.said()


# --- what is refused ------------------------------------------------------------------------------


def refused(database_url: str, *options: str, first: str = "") -> str:
    """Run `jobrunner worker` with what it has to refuse, and return what it says."""
    code = f"import sys; {first}\nfrom jobrunner.cli.main import main\nmain(sys.argv[1:])"
    answer = subprocess.run(
        [sys.executable, "-c", code, "worker", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 2, answer
    assert answer.stdout == ""
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert plain_sql(database_url, "SELECT id FROM job") == []
    return answer.stderr


def test_resources_are_given_on_the_command_line(sqlite_database: Database) -> None:
    start = [sys.executable, "-m", "jobrunner.cli.main", "start", own_jobs.a_path(own_jobs.OnGpu)]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        url = sqlite_database.settings.database_url
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": str(url)}
        return subprocess.run(
            [*start, *options], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    answer = run("--detach", "--resource", "memory=2.5")
    assert answer.stdout == "job 1\n", answer
    assert row_of(sqlite_database, 1)["spec"]["resources"] == {"GPU": 1, "memory": 2.5}
    for options, said in (
        (["--resource", "GPU=1"], "--resource is for code that a worker runs"),
        (["--detach", "--resource", "GPU=none"], "A job cannot ask for GPU='none'"),
        (["--detach", "--resource", "GPU"], "'GPU' is no NAME=VALUE"),
    ):
        answer = run(*options)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert said in answer.stderr


def test_bad_addresses_and_a_missing_extra_are_said_in_one_sentence(sqlite_url: str) -> None:
    dask = ("--executor", "dask")
    nobody = f"tcp://127.0.0.1:{free_port()}"
    assert f"The Dask scheduler at {nobody} cannot be reached" in refused(
        sqlite_url, *dask, "--dask-address", nobody
    )
    assert "The Dask scheduler at ftp://x cannot be reached" in refused(
        sqlite_url, *dask, "--dask-address", "ftp://x"
    )
    assert "--executor dask needs --dask-address" in refused(sqlite_url, *dask)
    assert "--dask-address is for --executor dask" in refused(sqlite_url, "--dask-address", "local")
    without = "sys.modules['distributed'] = None"
    assert "needs distributed, which is not installed: pip install 'jobrunner[dask]'" in refused(
        sqlite_url, *dask, "--dask-address", nobody, first=without
    )


# --- what Dask runs -------------------------------------------------------------------------------


def an_order(database: Database, job_id: int) -> CodeOrder:
    claim, _ = a_running_job(database, job_type="WorkerJob", adoptable=False)
    return CodeOrder(Sender(claim, configured(), ()), job_id)


def test_a_second_copy_of_a_task_ends_untouched(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notes = tmp_path / "notes"
    job_id = a_code_job(own_jobs.Good, notes)
    order = an_order(database, job_id)
    assert run_one(order) is None
    first = row_of(database, job_id)
    assert (first["state"], first["executor_class"]) == (JobState.SUCCESS, "DaskExecutor")
    assert run_one(order) is None
    assert row_of(database, job_id) == first
    assert len(notes.read_text().splitlines()) == 1


def test_a_task_ends_though_its_process_goes_on_after_the_outcome(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(children, "LINGER_S", 0.5)
    job_id = a_code_job(own_jobs.LeavesThread, tmp_path / "notes")
    assert run_one(an_order(sqlite_database, job_id)) is None
    assert row_of(sqlite_database, job_id)["state"] is JobState.SUCCESS


def test_a_task_that_sees_another_database_does_nothing(database: Database, tmp_path: Path) -> None:
    job_id = a_code_job(own_jobs.Good, tmp_path / "notes")
    elsewhere = an_order(database, job_id)
    stranger = Claim(elsewhere.sender.claim.job_id, "somebody else", 1)
    assert run_one(CodeOrder(Sender(stranger, configured(), ()), job_id)) == ELSEWHERE
    assert row_of(database, job_id)["claims"] == 0
