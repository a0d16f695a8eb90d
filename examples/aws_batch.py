"""AWS Batch from end to end, without AWS: `make example`, or `python examples/aws_batch.py`.

moto plays AWS on this machine, and nothing is left behind. The steps are those of every day.
"""

import datetime as dt
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobrunner import BatchMonitorJob, JobFailed


def take_steps() -> None:
    """Do what a user does."""
    jobrunner("connections", "test", "batch_default")

    print("\n# From Python: submitted once, watched until it ends.")
    job = BatchMonitorJob("nightly", "etl", "import", timeout=3600, poll_interval=0.3)
    job.run()
    print(f"job {job.id} is {job.state}: {job.message}")

    print("\n# One that fails: the error is the cause.")
    try:
        BatchMonitorJob("broken", "etl", "import", poll_interval=0.3).run()
    except JobFailed as error:
        print(f"JobFailed: {error}")

    print("\n# From the command line: it exits with the outcome.")
    start = ("start", "batch", "--job-queue", "etl", "--job-definition", "import", "--poll-interval", "0.3")
    jobrunner(*start, "--job-name", "report", "--env", "DAY=2026-03-01")

    print("\n# One that would run for ever is killed from another terminal.")
    with ThreadPoolExecutor() as terminal:
        endless = terminal.submit(jobrunner, *start, "--job-name", "endless", code=3)
        while not endless.done():
            last = BatchMonitorJob.most_recent_job()
            if last is not None and last.external_state == "RUNNING":
                jobrunner("kill", str(last.id), "--reason", "wrong input file", "--wait")
            time.sleep(0.1)
        endless.result()

    print("\n# What there is.")
    jobrunner("list")
    jobrunner("show", "2")
    jobrunner("logs", "1")


def jobrunner(*words: str, code: int = 0) -> None:
    """Run a command as you would type it; another exit code than it should have is the end."""
    command = [sys.executable, "-m", "jobrunner.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    shown = f"{done.stdout}{done.stderr}(exit code {done.returncode})"
    print(f"$ jobrunner {shlex.join(words)}\n{shown}", flush=True)
    if done.returncode != code:
        sys.exit(f"The exit code should have been {code}.")


# --- AWS, played by moto: a job waits and works for half a second each, and its name says how it ends ---


def make_queue() -> None:
    """Make what a job needs: a role, a compute environment, the queue `etl`, the definition `import`."""
    import boto3

    iam, batch = boto3.client("iam"), boto3.client("batch")
    role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    batch.create_compute_environment(computeEnvironmentName="etl", type="UNMANAGED", serviceRole=role)
    order = [{"order": 1, "computeEnvironment": "etl"}]
    batch.create_job_queue(jobQueueName="etl", state="ENABLED", priority=1, computeEnvironmentOrder=order)
    image = {"image": "busybox", "vcpus": 1, "memory": 128}
    batch.register_job_definition(jobDefinitionName="import", type="container", containerProperties=image)


def accept(region: Any, *, job: Any, **_: Any) -> None:
    region.backend._jobs[job.job_id] = job
    job.status = "RUNNABLE"
    threading.Timer(0.5, work, [job]).start()


def work(job: Any) -> None:
    name, logs = job.job_name.rpartition("-")[0], job._log_backend
    job.job_started_at, job.log_stream_name = dt.datetime.now(), job._stream_name  # noqa: DTZ005  # as moto
    job.status = "RUNNING"
    logs.ensure_log_group(job._log_group)
    logs.ensure_log_stream(job._log_group, job._stream_name)
    line = {"timestamp": int(time.time() * 1000), "message": f"the work of {name}"}
    logs.put_log_events(job._log_group, job._stream_name, [line])
    time.sleep(0.5)
    while name == "endless" and not job.stop:
        time.sleep(0.1)
    job._start_attempt()  # AWS lists an attempt once it has ended
    exit_code = {"broken": 1, "endless": 137}.get(name, 0)
    job.latest_attempt["container"]["exitCode"] = exit_code
    job.job_stopped_reason = job.job_stopped_reason or "Essential container in task exited"
    job._mark_stopped(success=exit_code == 0)


def main() -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "JOBRUNNER_"))]:
        del os.environ[name]
    try:
        from moto.batch_simple.models import BatchSimpleBackend
        from moto.core.config import default_user_config
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        sys.exit(f"This example needs moto ({error}): pip install 'moto[batch,logs,server]'")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    default_user_config["batch"] = {"use_docker": False}
    moto_batch: Any = BatchSimpleBackend
    moto_batch._mark_job_as_finished = accept
    aws = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    aws.start()
    url = "http://{}:{}".format(*aws.get_host_and_port())
    os.environ |= {"AWS_ENDPOINT_URL": url, "NO_PROXY": "127.0.0.1", "AWS_DEFAULT_REGION": "eu-west-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"JOBRUNNER_DATA_DIR": directory, "JOBRUNNER_CONFIG": os.devnull}
        make_queue()
        take_steps()
    aws.stop()


if __name__ == "__main__":
    main()
