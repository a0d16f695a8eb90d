"""The sides of the world outside: servers that do work as planned, misbehave, and know what is true."""

import random
import shlex
import uuid
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from jobrunner import BaseJob, ProcessMonitorJob
from tests.chaos import kinds
from tests.chaos.odd_text import UNSTORABLE, any_of_it, exact
from tests.chaos.outside import FAILED, KILLED, OPEN, SUCCESS, Outside, Plan, Side
from tests.runner.armada_jobs import POD
from tests.stubs import airbyte_server, armada_server, batch_server
from tests.stubs.armada_server import State
from tests.stubs.batch_state import ENDED
from tests.stubs.moto_batch import aws_environment

_BY_ITSELF = "Essential container"
"""With these words begins why a job of Batch ended, unless somebody terminated it."""
_WORD_MOST = 2_000  # characters of an argument, or of a reason


def by_name(url: str) -> str:
    """Return the URL of a server of this machine with the machine's name in place of its address."""
    return url.replace("127.0.0.1", "localhost")


class _Quiet:
    """What has no server that could misbehave, and ends by itself."""

    is_elsewhere = False

    def environment(self) -> Mapping[str, str]:
        return {}

    def end(self, _key: str, _succeeds: bool) -> None:
        """Nothing: it is done by the work itself."""

    def storm(self, _rng: random.Random) -> str:
        return ""

    def calm(self) -> None:
        """Nothing was stirred."""


class BatchSide:
    """AWS Batch, by the stub over HTTP. `is_hostile`: jobs whose backend and hooks go wrong at times."""

    is_elsewhere = True

    def __init__(self, stub: batch_server.BatchStub, rng: random.Random, *, is_hostile: bool = False) -> None:
        self.kind, self.share = ("hostile", 0.12) if is_hostile else ("batch", 0.25)
        self._stub, self._rng = stub, rng
        self._class = kinds.ChaosHostileJob if is_hostile else kinds.ChaosBatchJob

    def environment(self) -> Mapping[str, str]:
        if self.kind == "hostile":
            return {}  # the same server's
        return {
            **aws_environment(),
            "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL": by_name(self._stub.url),
        }

    def job(self, plan: Plan, rng: random.Random) -> BaseJob:
        return self._class(plan.name, "queue", "definition", parameters={"odd": exact(rng)})

    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        found = []
        for asked in self._stub.submitted():
            key, name = asked["jobId"], asked["jobName"].rpartition("-")[0]
            if key not in over and name.partition("-")[0] == self.kind:
                found.append((key, name, self._status(key)))
        return found

    def _status(self, job_id: str) -> str:
        detail = self._stub.job(job_id)
        if detail["status"] not in ENDED:
            return OPEN
        if detail["status"] == "SUCCEEDED":
            return SUCCESS
        return FAILED if detail["statusReason"].startswith(_BY_ITSELF) else KILLED

    def end(self, key: str, succeeds: bool) -> None:
        if succeeds:
            self._stub.succeed(key)
            return
        why = any_of_it(self._rng, _WORD_MOST)
        self._stub.fail(key, reason=why, status_reason=f"{_BY_ITSELF} in task exited: {why}")

    def storm(self, rng: random.Random) -> str:
        kind = rng.choice(["throttled", "server_error", "html", "lost_answer", "hang", "delay"])
        self._stub.fault("*", kind, times=None, seconds=3.0)  # type: ignore[arg-type]  # one of its kinds
        return kind

    def calm(self) -> None:
        self._stub.clear_faults()


class ArmadaSide:
    """Armada, by the stub over gRPC."""

    kind, share, is_elsewhere = "armada", 0.22, True

    def __init__(self, stub: armada_server.ArmadaStub, rng: random.Random) -> None:
        self._stub, self._rng = stub, rng

    def environment(self) -> Mapping[str, str]:
        return {"JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL": by_name(self._stub.address)}

    def job(self, plan: Plan, rng: random.Random) -> BaseJob:
        return kinds.ChaosArmadaJob(
            *(plan.name, "queue", "chaos", POD),
            namespace="chaos",
            labels={"job": plan.name},
            annotations={"odd": exact(rng)},
        )

    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        says: dict[Any, str] = {State.SUCCEEDED: SUCCESS, State.FAILED: FAILED, State.CANCELLED: KILLED}
        found = []
        for key in self._stub.external_ids():
            if key not in over:
                job = self._stub.job(key)
                found.append((key, job.item.labels["job"], says.get(job.state, OPEN)))
        return found

    def end(self, key: str, succeeds: bool) -> None:
        with self._stub.lock:  # what was cancelled a moment ago does not end again
            if self._stub.is_over(key):
                return
            if succeeds:
                self._stub.succeed(key)
            else:
                self._stub.fail(key, f"exit code 1: \0 {exact(self._rng)}")

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

    kind, share, is_elsewhere = "airbyte", 0.22, True

    def __init__(self, stub: airbyte_server.AirbyteStub, rng: random.Random) -> None:
        self._stub, self._rng = stub, rng
        self._names: dict[str, str] = {}

    def environment(self) -> Mapping[str, str]:
        of = "JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__"
        return {
            f"{of}URL": by_name(self._stub.url),
            f"{of}CLIENT_ID": self._stub.client_id,
            f"{of}CLIENT_SECRET": self._stub.client_secret,
        }

    def job(self, plan: Plan, _rng: random.Random) -> BaseJob:
        connection_id = str(uuid.uuid5(uuid.NAMESPACE_OID, plan.name))
        self._names[connection_id] = plan.name
        return kinds.ChaosAirbyteJob(connection_id)

    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        says = {"succeeded": SUCCESS, "failed": FAILED, "cancelled": KILLED}
        return [
            (key, self._names[self._stub.get(job_id).connection_id], says.get(status, OPEN))
            for job_id in self._stub.job_ids()
            for key in [str(job_id)]
            if key not in over
            for status in [self._stub.status(job_id)]
        ]

    def end(self, key: str, succeeds: bool) -> None:
        with self._stub.lock:
            if not self._stub.get(int(key)).is_open:
                return
            if succeeds:
                self._stub.succeed(int(key))
                return
            why = any_of_it(self._rng, _WORD_MOST)
            self._stub.fail(int(key), {"failureOrigin": why, "externalMessage": why, "internalMessage": why})

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

    def job(self, plan: Plan, rng: random.Random) -> BaseJob:
        file = shlex.quote(str(self._notes.of(plan)))
        code = 0 if plan.succeeds else 1
        script = f"echo begin $$ >> {file}; sleep {plan.seconds:.2f}; echo end >> {file}; exit {code}"
        odd = [exact(rng), UNSTORABLE[2]]  # bytes that are not UTF-8 are any command's right
        return ProcessMonitorJob(
            ["sh", "-c", script, *odd], cwd=self._notes.directory, env={"ODD": odd[0]}, stop_grace=1.0
        )

    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        return self._notes.statuses(self.kind, over)


class CodeSide(_Quiet):
    """Jobs that run code of their own. `again`: such as stand running twice."""

    def __init__(self, notes: "Notes", *, again: bool) -> None:
        self.kind, self.share = ("again", 0.02) if again else ("code", 0.04)
        self._notes = notes
        self._class = kinds.ChaosAgainJob if again else kinds.ChaosCodeJob

    def job(self, plan: Plan, _rng: random.Random) -> BaseJob:
        given: dict[str, Any] = {
            "notes": str(self._notes.of(plan)),
            "seconds": round(plan.seconds, 2),
            "succeeds": plan.succeeds,
        }
        job = self._class(**given)
        job.spec = {"class": f"{self._class.__module__}:{self._class.__name__}", "args": given}
        return job

    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        return self._notes.statuses(self.kind, over)


class Notes:
    """The files in which work on this host says that it begins and ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._plans: dict[str, Plan] = {}
        self._sizes: dict[str, int] = {}

    def of(self, plan: Plan) -> Path:
        self._plans[plan.name] = plan
        return self.directory / plan.name

    def statuses(self, kind: str, over: Collection[str]) -> list[tuple[str, str, str]]:
        """Return each beginning, with how it ended; one that only began is open, or was cut short."""
        found = []
        for name, plan in list(self._plans.items()):
            if plan.kind != kind or not self._has_news(name):
                continue
            lines = (self.directory / name).read_text().splitlines()
            begins = [line for line in lines if line.startswith("begin")]
            ended = SUCCESS if plan.succeeds else FAILED
            ends = [ended] * lines.count("end")
            for number, begin in enumerate(begins):
                key = f"{name}: {begin}"
                if key not in over:
                    found.append((key, name, ends[number] if number < len(ends) else OPEN))
        return found

    def _has_news(self, name: str) -> bool:
        """Whether a file has grown since it was read."""
        try:
            size = (self.directory / name).stat().st_size
        except FileNotFoundError:
            return False
        before, self._sizes[name] = self._sizes.get(name), size
        return size != before


def outside(stack: ExitStack, notes: Path, seed: int) -> Outside:
    """Begin to serve it all, until the stack is closed. `seed`: of what is said when work fails."""
    kept, rng = Notes(notes), random.Random(seed)
    batch = stack.enter_context(batch_server.serving(signature_lifetime_s=kinds.SIGNATURE_LIFETIME_S))
    sides: list[Side] = [
        BatchSide(batch, rng),
        BatchSide(batch, rng, is_hostile=True),
        ArmadaSide(stack.enter_context(armada_server.serving()), rng),
        AirbyteSide(stack.enter_context(airbyte_server.serving()), rng),
        ProcessSide(kept),
        CodeSide(kept, again=False),
        CodeSide(kept, again=True),
    ]
    return Outside({side.kind: side for side in sides})
