"""Airbyte from end to end, without Airbyte: `python examples/airbyte.py`.

A small server in this file plays Airbyte, and nothing is left behind. The steps are those of every day.
"""

import datetime as dt
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import Request, urlopen

from jobrunner import AirbyteMonitorJob, JobFailed

# Each Airbyte connection: a source, a destination, and what is moved between them.
ORDERS = "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11"
EMPTY = "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d12"
BROKEN = "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d13"
ENDLESS = "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d14"


def take_steps() -> None:
    """Do what a user does."""
    jobrunner("connections", "test", "airbyte_default")

    print("\n# From Python: started once, watched until it ends.")
    job = AirbyteMonitorJob(ORDERS, name="orders", min_rows=1, timeout=3600, poll_interval=0.3)
    job.run()
    print(f"job {job.id} is {job.state}: {job.message}")

    print("\n# One that fails: the error is the cause. And a success without rows can be a failure, too.")
    for connection_id, name in ((BROKEN, "broken"), (EMPTY, "empty")):
        try:
            AirbyteMonitorJob(connection_id, name=name, min_rows=1, poll_interval=0.3).run()
        except JobFailed as error:
            print(f"JobFailed: {error}")

    print("\n# From the command line: it exits with the outcome.")
    start = ("start", "airbyte", "--poll-interval", "0.3")
    jobrunner(*start, "--connection-id", "${env:ORDERS}", "--job-type", "refresh", "--name", "refresh")

    print("\n# A job that somebody else started: a sensor. Its id comes from what another command prints.")
    answer = as_somebody_else(ORDERS)
    print(f"airbyte answers {answer}")
    jobrunner(*start, "--attach", "-", "--name", "sensor", stdin=answer)
    print(f"poke: {AirbyteMonitorJob.attach(json.loads(answer)['jobId']).poke()}")

    print("\n# One that would run for ever is killed from another terminal.")
    with ThreadPoolExecutor() as terminal:
        endless = terminal.submit(jobrunner, *start, "--connection-id", ENDLESS, "--name", "endless", code=3)
        while not endless.done():
            last = AirbyteMonitorJob.most_recent_job()
            if last is not None and last.external_state == "running" and last.name == "endless":
                jobrunner("kill", str(last.id), "--reason", "wrong day", "--wait")
            time.sleep(0.1)
        endless.result()

    print("\n# What there is: rows, bytes, and the job's page.")
    jobrunner("list")
    jobrunner("show", "1")


def jobrunner(*words: str, code: int = 0, stdin: str = "") -> None:
    """Run a command as you would type it; another exit code than it should have is the end."""
    command = [sys.executable, "-m", "jobrunner.cli.main", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=600)
    shown = f"{done.stdout}{done.stderr}(exit code {done.returncode})"
    print(f"$ jobrunner {shlex.join(words)}\n{shown}", flush=True)
    if done.returncode != code:
        sys.exit(f"The exit code should have been {code}.")


def as_somebody_else(connection_id: str) -> str:
    """Start a job without jobrunner, as a schedule or a colleague does, and return Airbyte's answer."""
    place = f"{os.environ['JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__URL']}/jobs"
    body = json.dumps({"connectionId": connection_id, "jobType": "sync"}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with urlopen(Request(place, body, headers), timeout=60) as answer:  # noqa: S310  # http to this very process
        return str(answer.read().decode())


# --- Airbyte, played by this process: a job is pending and running for half a second each ---

PREFIX = "/api/public/v1"
WORKSPACE = "c0ffee00-0000-4000-8000-000000000001"
CLIENT_ID, CLIENT_SECRET, TOKEN = "the-client", "the-secret", "the-token"
OPEN = ("pending", "running")
LOCK = threading.RLock()
JOBS: dict[int, dict[str, Any]] = {}
UPDATED: dict[int, str] = {}


class Airbyte(BaseHTTPRequestHandler):
    """What jobrunner asks of Airbyte's public API, and the config API's word for why a job failed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        last = parts.path.rpartition("/")[2]
        with LOCK:
            if parts.path == f"{PREFIX}/jobs":
                self.say(200, {"data": listed(query)})
            elif parts.path == f"{PREFIX}/connections/{last}":
                self.say(200, {"connectionId": last, "workspaceId": WORKSPACE, "name": "orders"})
            elif last.isdecimal() and int(last) in JOBS:
                self.say(200, JOBS[int(last)])
            else:
                self.say(404, {"title": "resource-not-found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            if self.path == f"{PREFIX}/applications/token":
                is_known = (body["client_id"], body["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)
                token = {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 900}
                self.say(*((200, token) if is_known else (401, {"title": "unauthorized"})))
            elif self.path == "/api/v1/jobs/get_without_logs":
                self.say(200, {"attempts": [{"attempt": {"failureSummary": {"failures": [FAILURE]}}}]})
            elif any(job["connectionId"] == body["connectionId"] for job in JOBS.values() if is_open(job)):
                message = f"A sync is already running for: {body['connectionId']}"
                self.say(409, {"title": "try-again-later", "data": {"message": message}})
            else:
                self.say(200, accept(body["connectionId"], body["jobType"]))

    def do_DELETE(self) -> None:
        with LOCK:
            job = JOBS[int(self.path.rpartition("/")[2])]
            if is_open(job):
                change(job, "cancelled")
            self.say(200, job)

    def say(self, status: int, said: Any) -> None:
        if not self.path.endswith("/token") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, said = 401, {"title": "unauthorized"}
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        pass


FAILURE = {
    "failureOrigin": "source",
    "failureType": "config_error",
    "externalMessage": "relation orders does not exist",
}


def listed(query: dict[str, str]) -> list[dict[str, Any]]:
    offset, limit = int(query.get("offset", 0)), int(query.get("limit", 20))
    jobs = [
        job
        for job in JOBS.values()
        if job["connectionId"] == query.get("connectionId", job["connectionId"])
        and job["status"] == query.get("status", job["status"])
        and UPDATED[job["jobId"]] >= query.get("updatedAtStart", "")
    ]
    if query.get("orderBy", "").endswith("DESC"):
        jobs.reverse()
    return jobs[offset : offset + limit]


def is_open(job: dict[str, Any]) -> bool:
    return job["status"] in OPEN


def accept(connection_id: str, kind: str) -> dict[str, Any]:
    job: dict[str, Any] = {"jobId": 101 + len(JOBS), "connectionId": connection_id, "jobType": kind}
    JOBS[job["jobId"]] = job
    change(job, "pending")
    job["startTime"] = UPDATED[job["jobId"]]
    threading.Thread(target=work, args=[job], daemon=True).start()
    return job


def change(job: dict[str, Any], status: str, **amounts: Any) -> None:
    job |= {"status": status, **amounts}
    UPDATED[job["jobId"]] = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not is_open(job):
        job["lastUpdatedAt"] = UPDATED[job["jobId"]]


def work(job: dict[str, Any]) -> None:
    time.sleep(0.5)
    with LOCK:
        if is_open(job):
            change(job, "running")
    time.sleep(0.5)
    with LOCK:
        if not is_open(job) or job["connectionId"] == ENDLESS:
            return
        if job["connectionId"] == BROKEN:
            change(job, "failed", duration="PT1S")
            return
        rows = 0 if job["connectionId"] == EMPTY else 12_345
        change(job, "succeeded", rowsSynced=rows, bytesSynced=rows * 543, duration="PT1S")


def main() -> None:
    for name in [name for name in os.environ if name.startswith("JOBRUNNER_")]:
        del os.environ[name]
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        sys.exit(f"This example needs httpx ({error}): pip install 'jobrunner[airbyte]'")
    airbyte = ThreadingHTTPServer(("127.0.0.1", 0), Airbyte)
    airbyte.daemon_threads = True
    threading.Thread(target=airbyte.serve_forever, daemon=True).start()
    # In real life this is [connections.airbyte_default] in jobrunner.toml.
    prefix = "JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__"
    os.environ |= {
        f"{prefix}KIND": "airbyte",
        f"{prefix}URL": f"http://127.0.0.1:{airbyte.server_address[1]}{PREFIX}",
        f"{prefix}CLIENT_ID": CLIENT_ID,
        f"{prefix}CLIENT_SECRET": "${env:AIRBYTE_CLIENT_SECRET}",
        "AIRBYTE_CLIENT_SECRET": CLIENT_SECRET,
        "ORDERS": ORDERS,
        "NO_PROXY": "127.0.0.1",
    }
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"JOBRUNNER_DATA_DIR": directory, "JOBRUNNER_CONFIG": os.devnull}
        take_steps()
    airbyte.shutdown()
    airbyte.server_close()


if __name__ == "__main__":
    main()
