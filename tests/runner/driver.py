"""A real monitor process: `driver.py ORDER` runs or attaches to a job as the order says, and tells of it.

It prints `started ID`, and at its end `outcome …`. `at` orders a signal to itself at one point of the
submission: `before begin_submit`, `after begin_submit`, `before submit`, `after submit`,
`before record_submitted`, `after record_submitted`; for a job of AWS Batch (`batch`: the endpoint), also
`before send` and `after send`: when the signed request leaves, and when its answer is there.
"""

import contextlib
import json
import logging
import signal
import sys
import threading
from typing import Any

from jobrunner import statements, submission
from jobrunner.backends.process import ProcessBackend
from jobrunner.errors import ClaimLost, JobEndedBadly, JobrunnerError, Released
from jobrunner.executors.local import LocalExecutor
from jobrunner.models import BaseJob, MonitorJob, ProcessMonitorJob
from jobrunner.settings import configure
from tests.runner.batch_jobs import SEND_WITHIN_S, QuickBatchJob


def say(*words: Any) -> None:
    print(*words, flush=True)  # noqa: T201


class Strike:
    """A signal to this process, at the first passage of a point."""

    def __init__(self, point: str, number: int) -> None:
        self.point, self.number = point, number
        self.when, _, self.name = point.partition(" ")
        self._passed = threading.Event()

    def at(self, when: str) -> None:
        if when == self.when and not self._passed.is_set():
            self._passed.set()
            say("at", self.point)
            # At this very thread: sent to the process, SIGSTOP may reach another one first, on a busy machine
            # a moment later, and this one would go past the point.
            signal.pthread_kill(threading.get_ident(), self.number)

    def arm(self) -> None:
        if self.name == "submit":
            self._arm_backend()
        elif self.name == "send":
            self._arm_wire()
        else:
            self._arm_statement()

    def _arm_backend(self) -> None:
        real = ProcessBackend.submit

        async def submit(*arguments: Any) -> Any:
            self.at("before")
            answer = await real(*arguments)
            self.at("after")
            return answer

        setattr(ProcessBackend, "submit", submit)  # noqa: B010  # a method is not to be assigned

    def _arm_wire(self) -> None:
        from botocore.httpsession import URLLib3Session

        real = URLLib3Session.send

        def send(session: Any, request: Any) -> Any:
            if not request.url.endswith("/v1/submitjob"):
                return real(session, request)
            self.at("before")
            answer = real(session, request)
            self.at("after")
            return answer

        setattr(URLLib3Session, "send", send)  # noqa: B010  # a method is not to be assigned

    def _arm_statement(self) -> None:
        real = getattr(statements, self.name)

        def write(connection: Any, *arguments: Any) -> Any:
            self.at("before")
            answer = real(connection, *arguments)
            if self.when == "after" and connection.in_transaction():
                connection.commit()
            self.at("after")
            return answer

        setattr(statements, self.name, write)


def _job(order: dict[str, Any], options: dict[str, Any]) -> MonitorJob:
    if "batch" in order:
        return QuickBatchJob("nightly", "queue", "definition", poll_interval=0.1, **options)
    return ProcessMonitorJob(order["command"], poll_interval=0.1, stop_grace=2, **options)


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    order = json.loads(sys.argv[1])
    if "batch" in order:
        configure(connections={"batch_default": {"endpoint_url": order["batch"]}})
        setattr(submission, "SEND_WITHIN_S", SEND_WITHIN_S)  # noqa: B010  # not a name of that module
    if "at" in order:
        Strike(order["at"], order["signal"]).arm()
    executor = LocalExecutor(
        on_exit=order.get("on_exit", "release"), on_started=lambda job_id: say("started", job_id)
    )
    try:
        if "attach" in order:
            executor.attach(order["attach"])
            job_id = order["attach"]
        else:
            job = _job(order, {"executor": executor, "heartrate": order.get("heartrate", 0.5)})
            job.run()
            job_id = job.id
    except Released as error:
        say("outcome released", error.signal)
    except ClaimLost:
        say("outcome claim lost")
    except JobEndedBadly as error:
        say("outcome", type(error).__name__, error)
    except JobrunnerError as error:
        say("outcome error", type(error).__name__, error)
    else:
        say("outcome", BaseJob.get(job_id).state)
    say("handlers", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
