"""Armada from end to end, without Armada: `make example`, or `python examples/armada.py`.

A small server on armada-client's own classes plays Armada on this machine, and nothing is left behind. The
steps are those of every day.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobrunner import ArmadaMonitorJob, JobFailed

try:
    import grpc
    from armada_client.armada import job_pb2, job_pb2_grpc, submit_pb2, submit_pb2_grpc
except ImportError as error:
    sys.exit(f"This example needs armada-client ({error}): pip install 'jobrunner[armada]'")


def pod(*command: str, more: str = "") -> str:
    """Return a pod spec, as a file of Kubernetes has it."""
    return f"""\
containers:
  - name: main
    image: busybox
    command: {json.dumps(command)}
    resources:
      requests: {{cpu: 500m, memory: 1Gi}}
      limits: {{cpu: 500m, memory: 1024Mi}}
{more}"""


def take_steps() -> None:
    """Do what a user does."""
    jobrunner("connections", "test", "armada_default")

    print("\n# From Python: submitted once, watched until it ends.")
    job = ArmadaMonitorJob("nightly", "etl", "march", pod("true"), timeout=3600, poll_interval=0.2)
    job.run()
    print(f"job {job.id} is {job.state}: {job.message}")

    print("\n# One that fails: the error is Armada's own.")
    try:
        ArmadaMonitorJob("broken", "etl", "march", pod("false"), poll_interval=0.2).run()
    except JobFailed as error:
        print(f"JobFailed: {error}")

    print("\n# From the command line: it exits with the outcome. This one is preempted, and submitted again.")
    Path("pod.yaml").write_text(pod("true", more="priorityClassName: preemptible\n"), encoding="utf-8")
    start = ("start", "armada", "--queue", "etl", "--job-set", "march", "--poll-interval", "0.2")
    jobrunner(*start, "--name", "report", "--pod-spec", "pod.yaml", "--resubmit", "preempted=1")

    print("\n# A queue that there is not is told in Armada's own words.")
    wrong = ("start", "armada", "--queue", "etk", "--job-set", "march", "--pod-spec", "pod.yaml")
    jobrunner(*wrong, "--name", "misspelt", code=1)

    print("\n# One that would run for ever is killed from another terminal.")
    Path("endless.yaml").write_text(pod("sleep", "infinity"), encoding="utf-8")
    with ThreadPoolExecutor() as terminal:
        endless = terminal.submit(
            jobrunner, *start, "--name", "endless", "--pod-spec", "endless.yaml", code=3
        )
        while not endless.done():
            last = ArmadaMonitorJob.most_recent_job()
            if last is not None and last.external_state == "RUNNING":
                jobrunner("kill", str(last.id), "--reason", "wrong input file", "--wait")
            time.sleep(0.1)
        endless.result()

    print("\n# What there is.")
    jobrunner("list")
    jobrunner("show", "3")


def jobrunner(*words: str, code: int = 0) -> None:
    """Run a command as you would type it; another exit code than it should have is the end."""
    command = [sys.executable, "-m", "jobrunner.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    shown = f"{done.stdout}{done.stderr}(exit code {done.returncode})"
    print(f"$ jobrunner {shlex.join(words)}\n{shown}", flush=True)
    if done.returncode != code:
        sys.exit(f"The exit code should have been {code}.")


# --- Armada, played by its client's own classes: a job waits and works for half a second each, and its
# --- command says how it ends


@dataclass
class Job:
    """A job in Armada."""

    pod: Any
    uri: str
    is_first: bool
    since_s: float = field(default_factory=time.monotonic)
    cancelled: str = ""

    @property
    def state(self) -> Any:
        """Where it is now."""
        age_s, (program, *_) = time.monotonic() - self.since_s, self.pod.containers[0].command
        if self.cancelled:
            return submit_pb2.CANCELLED
        if age_s < WAITS_S:
            return submit_pb2.QUEUED
        if age_s < WAITS_S + WORKS_S or program == "sleep":
            return submit_pb2.RUNNING
        if self.pod.priorityClassName == "preemptible" and self.is_first:
            return submit_pb2.PREEMPTED
        return submit_pb2.SUCCEEDED if program == "true" else submit_pb2.FAILED

    @property
    def error(self) -> str:
        """Why it failed."""
        errors: dict[Any, str] = {
            submit_pb2.PREEMPTED: "by a job of queue urgent",
            submit_pb2.FAILED: "container main failed with exit code 1",
        }
        return errors.get(self.state, "")


WAITS_S = WORKS_S = 0.5
jobs: dict[str, Job] = {}
ids: dict[str, str] = {}


class Submit(submit_pb2_grpc.SubmitServicer):
    """Takes jobs, one for each client id, and cancels them."""

    def SubmitJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.queue != "etl":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f'could not find queue "{request.queue}"')
        answer = submit_pb2.JobSubmitResponse()
        for item in request.job_request_items:
            job_id = ids.setdefault(f"{request.queue}:{item.client_id}", f"01{len(ids) + 1:024d}")
            pod = item.pod_specs[0]
            is_first = all(job.pod != pod for job in jobs.values())
            jobs.setdefault(job_id, Job(pod, item.external_job_uri, is_first))
            answer.job_response_items.add(job_id=job_id)
        return answer

    def CancelJobs(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        for job_id in request.job_ids:
            jobs[job_id].cancelled = request.reason
        return submit_pb2.CancellationResult(cancelled_ids=request.job_ids)


class Jobs(job_pb2_grpc.JobsServicer):
    """Answers for jobs."""

    def GetJobStatus(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        states = {each: jobs[each].state if each in jobs else submit_pb2.UNKNOWN for each in request.job_ids}
        return job_pb2.JobStatusResponse(job_states=states)

    def GetJobStatusUsingExternalJobUri(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        found = {each: job.state for each, job in jobs.items() if job.uri == request.external_job_uri}
        return job_pb2.JobStatusResponse(job_states=found)

    def GetJobErrors(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        errors = {each: jobs[each].error for each in request.job_ids if each in jobs}
        return job_pb2.JobErrorsResponse(job_errors=errors)

    def GetJobDetails(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        answer = job_pb2.JobDetailsResponse()
        for each in request.job_ids:
            answer.job_details[each].cancel_reason = jobs[each].cancelled
            answer.job_details[each].job_runs.add(cluster="cluster-1", node="node-7")
        return answer


def serve() -> tuple[Any, int]:
    """Start the server, and return it with its port."""
    server = grpc.server(ThreadPoolExecutor(8))
    submit_pb2_grpc.add_SubmitServicer_to_server(Submit(), server)  # type: ignore[no-untyped-call]
    job_pb2_grpc.add_JobsServicer_to_server(Jobs(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main() -> None:
    for name in [name for name in os.environ if name.startswith("JOBRUNNER_")]:
        del os.environ[name]
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    armada, port = serve()
    connection = "JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__"
    os.environ[f"{connection}URL"] = f"127.0.0.1:{port}"
    os.environ[f"{connection}LOOKOUT_URL_TEMPLATE"] = "https://lookout.example/?sb={job_id}"
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"JOBRUNNER_DATA_DIR": directory, "JOBRUNNER_CONFIG": os.devnull}
        os.chdir(directory)
        try:
            take_steps()
        finally:
            os.chdir(before)
            armada.stop(None).wait()


if __name__ == "__main__":
    main()
