"""The world outside: servers that do the jobs' work as it was planned, misbehave, and know what is true."""

import random
import shlex
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc

from jobrunner import BaseJob, ProcessMonitorJob
from tests.chaos import kinds
from tests.runner.armada_jobs import POD
from tests.stubs import airbyte_server, armada_server, batch_server
from tests.stubs.armada_server import State
from tests.stubs.batch_state import ENDED
from tests.stubs.moto_batch import aws_environment

OPEN, SUCCESS, FAILED, KILLED = "open", "success", "failed", "killed"


@dataclass(slots=True)
class Plan:
    """A job as it is meant to be, and what befell it."""

    name: str
    kind: str
    seconds: float
    succeeds: bool
    is_stored: bool = False
    is_unwanted: bool = False
    """Whether its kill was wished, or tried to be."""


@dataclass(slots=True)
class Work:
    """Work that was begun for a job."""

    key: str
    name: str
    status: str
    begun_s: float
    """time.time(), as is `ended_s`."""
    ended_s: float | None = None


class Side(Protocol):
    """One kind of work: how a job of it is made, what was begun for it, and how it is moved on."""

    kind: str
    share: float
    """Of all jobs, how many are of this kind."""

    def environment(self) -> Mapping[str, str]: ...
    def job(self, plan: Plan) -> BaseJob: ...
    def statuses(self) -> list[tuple[str, str, str]]: ...
    def end(self, key: str, succeeds: bool) -> None: ...
    def storm(self, rng: random.Random) -> str: ...
    def calm(self) -> None: ...


class _Quiet:
    """What has no server that could misbehave, and ends by itself."""

    def environment(self) -> Mapping[str, str]:
        return {}

    def end(self, _key: str, _succeeds: bool) -> None:
        """Nothing: it is done by the work itself."""

    def storm(self, _rng: random.Random) -> str:
        return ""

    def calm(self) -> None:
        """Nothing was stirred."""


class BatchSide:
    """AWS Batch, by the stub over HTTP."""

    kind, share = "batch", 0.29

    def __init__(self, stub: batch_server.BatchStub) -> None:
        self._stub = stub

    def environment(self) -> Mapping[str, str]:
        return {
            **aws_environment(),
            "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL": self._stub.url,
        }

    def job(self, plan: Plan) -> BaseJob:
        return kinds.ChaosBatchJob(plan.name, "queue", "definition")

    def statuses(self) -> list[tuple[str, str, str]]:
        return [
            (asked["jobId"], asked["jobName"].rpartition("-")[0], self._status(asked["jobId"]))
            for asked in self._stub.submitted()
        ]

    def _status(self, job_id: str) -> str:
        detail = self._stub.job(job_id)
        if detail["status"] not in ENDED:
            return OPEN
        if detail["status"] == "SUCCEEDED":
            return SUCCESS
        planned = detail["statusReason"].startswith("Essential container")
        return FAILED if planned else KILLED

    def end(self, key: str, succeeds: bool) -> None:
        (self._stub.succeed if succeeds else self._stub.fail)(key)

    def storm(self, rng: random.Random) -> str:
        kind = rng.choice(["throttled", "server_error", "html", "lost_answer", "hang", "delay"])
        self._stub.fault("*", kind, times=None, seconds=3.0)  # type: ignore[arg-type]  # one of its kinds
        return kind

    def calm(self) -> None:
        self._stub.clear_faults()


class ArmadaSide:
    """Armada, by the stub over gRPC."""

    kind, share = "armada", 0.26

    def __init__(self, stub: armada_server.ArmadaStub) -> None:
        self._stub = stub

    def environment(self) -> Mapping[str, str]:
        return {"JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL": self._stub.address}

    def job(self, plan: Plan) -> BaseJob:
        return kinds.ChaosArmadaJob(
            plan.name, "queue", "chaos", POD, namespace="chaos", labels={"job": plan.name}
        )

    def statuses(self) -> list[tuple[str, str, str]]:
        says: dict[Any, str] = {State.SUCCEEDED: SUCCESS, State.FAILED: FAILED, State.CANCELLED: KILLED}
        found = []
        for key in self._stub.external_ids():
            job = self._stub.job(key)
            found.append((key, job.item.labels["job"], says.get(job.state, OPEN)))
        return found

    def end(self, key: str, succeeds: bool) -> None:
        with self._stub.lock:  # what was cancelled a moment ago does not end again
            if not self._stub.is_over(key):
                (self._stub.succeed if succeeds else self._stub.fail)(key)

    def storm(self, rng: random.Random) -> str:
        code = rng.choice(
            [
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ]
        )
        is_done = rng.random() < 0.5  # one of two: the answer alone is lost
        hangs_s = 3.0 if code is grpc.StatusCode.DEADLINE_EXCEEDED else 0.0
        self._stub.fault("*", code, "chaos", times=None, performed=is_done, hangs_s=hangs_s)
        return f"{code.name}{', done all the same' if is_done else ''}"

    def calm(self) -> None:
        self._stub.clear_faults()


class AirbyteSide:
    """Airbyte, by the stub over HTTP; each job has a connection of its own."""

    kind, share = "airbyte", 0.26

    def __init__(self, stub: airbyte_server.AirbyteStub) -> None:
        self._stub = stub
        self._names: dict[str, str] = {}

    def environment(self) -> Mapping[str, str]:
        of = "JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__"
        return {
            f"{of}URL": self._stub.url,
            f"{of}CLIENT_ID": self._stub.client_id,
            f"{of}CLIENT_SECRET": self._stub.client_secret,
        }

    def job(self, plan: Plan) -> BaseJob:
        connection_id = str(uuid.uuid5(uuid.NAMESPACE_OID, plan.name))
        self._names[connection_id] = plan.name
        return kinds.ChaosAirbyteJob(connection_id)

    def statuses(self) -> list[tuple[str, str, str]]:
        says = {"succeeded": SUCCESS, "failed": FAILED, "cancelled": KILLED}
        return [
            (str(job_id), self._names[self._stub.get(job_id).connection_id], says.get(status, OPEN))
            for job_id in self._stub.job_ids()
            for status in [self._stub.status(job_id)]
        ]

    def end(self, key: str, succeeds: bool) -> None:
        with self._stub.lock:
            if self._stub.get(int(key)).is_open:
                (self._stub.succeed if succeeds else self._stub.fail)(int(key))

    def storm(self, rng: random.Random) -> str:
        kind = rng.choice(["throttled", "server_error", "bad_gateway", "lost_answer", "dropped", "hang"])
        self._stub.fault("*", kind, times=None, seconds=3.0)  # type: ignore[arg-type]  # one of its kinds
        return kind

    def calm(self) -> None:
        self._stub.clear_faults()


class ProcessSide(_Quiet):
    """Commands on this host, which note when they begin and end."""

    kind, share = "process", 0.13

    def __init__(self, notes: "Notes") -> None:
        self._notes = notes

    def job(self, plan: Plan) -> BaseJob:
        file = shlex.quote(str(self._notes.of(plan)))
        code = 0 if plan.succeeds else 1
        script = f"echo begin $$ >> {file}; sleep {plan.seconds:.2f}; echo end >> {file}; exit {code}"
        return ProcessMonitorJob(["sh", "-c", script], cwd=self._notes.directory, stop_grace=1.0)

    def statuses(self) -> list[tuple[str, str, str]]:
        return self._notes.statuses(self.kind)


class CodeSide(_Quiet):
    """Jobs that run code of their own. `again`: such as stand running twice."""

    def __init__(self, notes: "Notes", *, again: bool) -> None:
        self.kind, self.share = ("again", 0.02) if again else ("code", 0.04)
        self._notes = notes
        self._class = kinds.ChaosAgainJob if again else kinds.ChaosCodeJob

    def job(self, plan: Plan) -> BaseJob:
        given: dict[str, Any] = {
            "notes": str(self._notes.of(plan)),
            "seconds": round(plan.seconds, 2),
            "succeeds": plan.succeeds,
        }
        job = self._class(**given)
        job.spec = {"class": f"{self._class.__module__}:{self._class.__name__}", "args": given}
        return job

    def statuses(self) -> list[tuple[str, str, str]]:
        return self._notes.statuses(self.kind)


class Notes:
    """The files in which work on this host says that it begins and ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._plans: dict[str, Plan] = {}

    def of(self, plan: Plan) -> Path:
        self._plans[plan.name] = plan
        return self.directory / plan.name

    def statuses(self, kind: str) -> list[tuple[str, str, str]]:
        """Return each beginning, with how it ended; one that only began is open, or was cut short."""
        found = []
        for name, plan in list(self._plans.items()):
            if plan.kind != kind or not (self.directory / name).exists():
                continue
            lines = (self.directory / name).read_text().splitlines()
            begins = [line for line in lines if line.startswith("begin")]
            ended = SUCCESS if plan.succeeds else FAILED
            ends = [ended] * lines.count("end")
            for number, begin in enumerate(begins):
                found.append((f"{name}: {begin}", name, ends[number] if number < len(ends) else OPEN))
        return found


@dataclass
class Outside:
    """All that is outside, and the hand that ends each work when its time has come."""

    sides: dict[str, Side]
    plans: dict[str, Plan] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a worker reaches all of it."""
        found: dict[str, str] = {}
        for side in self.sides.values():
            found |= side.environment()
        return found

    def plan(self, rng: random.Random) -> Plan:
        """Think of the next job."""
        sides = list(self.sides.values())
        kind = rng.choices(sides, [side.share for side in sides])[0].kind
        plan = Plan(f"{kind}-{len(self.plans)}", kind, rng.uniform(1.0, 20.0), rng.random() < 0.8)
        self.plans[plan.name] = plan
        return plan

    def job(self, plan: Plan) -> BaseJob:
        """Return the job, not yet stored."""
        job = self.sides[plan.kind].job(plan)
        job.name = plan.name
        return job

    def move(self) -> None:
        """End what is due, and take note of what has begun and ended."""
        for side in self.sides.values():
            for key, name, status in side.statuses():
                now_s = time.time()
                work = self.works.setdefault(f"{side.kind} {key}", Work(key, name, OPEN, now_s))
                if work.status == OPEN and status == OPEN:
                    plan = self.plans[name]
                    if now_s - work.begun_s >= plan.seconds:
                        side.end(key, plan.succeeds)
                        work.ended_s = work.ended_s or now_s
                elif work.status == OPEN:
                    work.status, work.ended_s = status, work.ended_s or now_s

    def at_work(self) -> list[Plan]:
        """Return the jobs whose work is not known to have ended, and whose kill nobody wished yet."""
        over = {work.name for work in list(self.works.values()) if work.status != OPEN}
        return [
            plan
            for plan in list(self.plans.values())
            if plan.is_stored and not plan.is_unwanted and plan.name not in over
        ]

    def works_of(self, name: str) -> list[Work]:
        """Return all work that was ever begun for a job."""
        return [work for work in self.works.values() if work.name == name]


def outside(stack: ExitStack, notes: Path) -> Outside:
    """Begin to serve it all, until the stack is closed."""
    kept = Notes(notes)
    batch = batch_server.serving(signature_lifetime_s=kinds.SIGNATURE_LIFETIME_S)
    sides: list[Side] = [
        BatchSide(stack.enter_context(batch)),
        ArmadaSide(stack.enter_context(armada_server.serving())),
        AirbyteSide(stack.enter_context(airbyte_server.serving())),
        ProcessSide(kept),
        CodeSide(kept, again=False),
        CodeSide(kept, again=True),
    ]
    return Outside({side.kind: side for side in sides})
