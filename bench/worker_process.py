"""A worker as a process of its own: `python -m bench.worker_process URL [OPTIONS]`, options as JSON.

Its jobs are on a backend of arithmetic. Through stdin it is asked, a word a line: `tell`, and it answers on
stdout with what it has and what it has cost so far; `down` and `up` end and bring back its backend.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import psutil
from sqlalchemy import event

from bench.peers import resident_bytes
from jobrunner.backends.base import Absent, Backend, LogLine, Observation, Patience
from jobrunner.database import get_database
from jobrunner.errors import BackendError
from jobrunner.models import MonitorJob
from jobrunner.settings import ConnectionSettings, configure
from jobrunner.states import Phase
from jobrunner.worker import WorkerJob
from jobrunner.worker.collector import calm

JOB_TYPE = "bench.WatchedJob"
_CHANGES_EVERY_S = 3600.0
_ANSWER_S = 0.005
_STATEMENT_CHARS = 90  # by which statements are told apart


class Clockwork:
    """Work that never ends, and changes its state once an hour, each job at a moment of its own."""

    bulk_limit = 100
    patience = Patience()

    def __init__(self) -> None:
        self.is_down = False
        self.calls = 0
        self.looks = 0
        self.looked_at: set[str] | None = None
        """The ids that were asked about, where they are noted."""

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:  # noqa: ARG002  # all work is alike
        await self._arrive()
        return f"work-{token}"

    async def find(self, spec: Mapping[str, Any], token: str, since: Any) -> Absent:  # noqa: ARG002  # as above
        await self._arrive()
        return Absent()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation]:
        await self._arrive()
        self.calls += 1
        self.looks += len(ids)
        if self.looked_at is not None:
            self.looked_at.update(ids)
        now_s = time.time()
        return {
            each: Observation(
                Phase.RUNNING, f"RUNNING in hour {int((now_s + crc32(each.encode())) // _CHANGES_EVERY_S)}"
            )
            for each in ids
        }

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, Any]:  # noqa: ARG002  # nothing ends
        await self._arrive()
        return {}

    async def logs(self, external_id: str, since: Any) -> AsyncIterator[LogLine]:  # noqa: ARG002  # it says nothing
        nothing: Sequence[LogLine] = ()
        for line in nothing:
            yield line

    async def close(self) -> None:
        pass

    async def _arrive(self) -> None:
        await asyncio.sleep(_ANSWER_S)
        if self.is_down:
            raise BackendError("the backend is away")


CLOCKWORK = Clockwork()


class WatchedJob(MonitorJob, job_type=JOB_TYPE):
    """A job whose work is a `Clockwork`'s."""

    backend_kind: ClassVar[str] = "clockwork"

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:  # noqa: ARG003  # there is one
        return CLOCKWORK


class _Door:
    """Answers on stdout what is asked through stdin, from a thread of its own."""

    def __init__(self) -> None:
        self.statements: Counter[str] = Counter()

    def on_statement(self, _conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.statements[" ".join(statement.split())[:_STATEMENT_CHARS]] += 1

    def serve(self) -> None:
        for line in sys.stdin:
            word = line.strip()
            if word in {"down", "up"}:
                CLOCKWORK.is_down = word == "down"
            print(json.dumps(self._found()), flush=True)

    def _found(self) -> dict[str, Any]:
        return {
            "cpu_s": time.process_time(),
            "resident_bytes": resident_bytes(),
            "most_bytes": _most_bytes(),
            "calls": CLOCKWORK.calls,
            "looks": CLOCKWORK.looks,
            "looked_at": len(CLOCKWORK.looked_at or ()),
            "statements": dict(self.statements),
            "cpu_s_by_thread": _cpu_by_thread(),
        }


def _most_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_by_thread() -> dict[str, float]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    used: dict[str, float] = {}
    for each in psutil.Process().threads():
        name = names.get(each.id, "other").partition("_")[0]
        used[name] = used.get(name, 0.0) + each.user_time + each.system_time
    return used


def main(url: str, options: Mapping[str, Any]) -> None:
    settings = {key: options[key] for key in ("heartrate",) if key in options}
    configure(database_url=url, **settings)
    if options.get("notes_ids"):
        CLOCKWORK.looked_at = set()
    door = _Door()
    event.listen(get_database().engine, "before_cursor_execute", door.on_statement)
    threading.Thread(target=door.serve, name="door", daemon=True).start()
    job = WorkerJob(capacity=options.get("capacity", 10_000), processes=1, name=options.get("name"))
    calm()  # as `jobrunner worker` does
    job.run()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
