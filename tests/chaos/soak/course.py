"""The course of a soak: rounds of jobs of every kind through a worker that lives through all of them."""

import asyncio
import contextlib
import logging
import os
import random
import socket
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.dialects import postgresql, sqlite

from jobrunner import statements
from jobrunner.backends.base import Patience
from jobrunner.cli.log_printer import LogPrinter
from jobrunner.cli.logs import _Reader
from jobrunner.clock import utcnow
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseError
from jobrunner.models import ProcessMonitorJob
from jobrunner.models.rows import values_of
from jobrunner.statements.table import tables
from jobrunner.states import JobState
from jobrunner.testing import Fault, use_backend
from tests.chaos.soak.holdings import Holdings, holdings
from tests.chaos.soak.jobs import CONNECTIONS, KINDS, Outside, SoakJob
from tests.chaos.soak.place import Place
from tests.chaos.soak.words import Words
from tests.helpers import an_owner, insert_job, plain_connection, plain_sql, until

ROUNDS = 20
_CHUNK = 50
_UNDER_WAY_MOST = 400
_ENDS_WITHIN_S = 240.0
_TROUBLE = (
    *((Fault.NOT_MADE, "submit"), (Fault.NOT_SENT, "submit"), (Fault.ANSWER_LOST, "submit")),
    *((Fault.THROTTLE, "submit"), (Fault.ERROR, "find"), (Fault.UNSURE, "find"), (Fault.ERROR, "fetch")),
    *((Fault.GARBAGE, "fetch"), (Fault.THROTTLE, "fetch"), (Fault.TIMEOUT, "fetch"), (Fault.VANISH, "fetch")),
    *((Fault.ERROR, "cancel"), (Fault.ANSWER_LOST, "cancel")),
)
_ORPHAN, _LOST_CODE, _UNREADABLE = "is an orphan", "is code of a dead process", "cannot be read"
_UNKNOWN = "is of an unknown type"
_ASIDE: Mapping[str, frozenset[JobState]] = {
    _ORPHAN: frozenset({JobState.SUCCESS}),
    _LOST_CODE: frozenset({JobState.LOST}),
    _UNREADABLE: frozenset({JobState.FAILED}),
    _UNKNOWN: frozenset({JobState.FAILED}),
    "in the foreground": frozenset({JobState.SUCCESS}),
    "is followed": frozenset({JobState.SUCCESS}),
}
_SELF = "soak"
_CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    f"WHERE datname = current_database() AND application_name != '{_SELF}'"
)
_LIVE = "state IN ('queued', 'running') AND job_type != 'WorkerJob'"


class Soak:
    """Jobs by the thousand, and a look at what the process holds after each round, when all have ended."""

    def __init__(self, url: str, jobs: int, seed: int, rounds: int = ROUNDS) -> None:
        self._url = url if url.startswith("sqlite") else f"{url}&application_name={_SELF}"
        self._database: Database = get_database()
        self._rng = random.Random(seed)
        self._a_round, self._rounds = max(_CHUNK, jobs // rounds), rounds
        self._outside = Outside(patience=Patience(call_s=1.0, appear_s=0.5, vanish_s=0.5))
        self._to_kill: list[tuple[float, str]] = []
        self.done: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self.words = Words()

    def run(self, say: Callable[[str], object]) -> Iterator[Holdings]:
        """Do it round by round, and yield what is held after each."""
        logger = logging.getLogger("jobrunner")
        logger.addHandler(self.words)
        try:
            with use_backend(self._outside), Place("soak") as place:
                for _ in range(self._rounds):
                    begun_s = time.monotonic()
                    self._round(place)
                    look = holdings(self.done.total())
                    say(self._line(look, time.monotonic() - begun_s))
                    yield look
        finally:
            logger.removeHandler(self.words)

    def _line(self, look: Holdings, seconds: float) -> str:
        return (
            f"{look.jobs:>7,} jobs, {self._a_round / seconds:4.0f} a second: {look.rss_mb:6.1f} MB, "
            f"{look.descriptors.total()} descriptors, {look.threads.total()} threads, "
            f"{look.objects.total():,} objects, {look.entries.total():,} entries, {look.blocks:,} blocks"
        )

    # --- one round ---------------------------------------------------------------------------------

    def _round(self, place: Place) -> None:
        with Place("guest", capacity=50) as guest, ThreadPoolExecutor(4, "aside") as beside:
            aside = [beside.submit(do) for do in self._ways()]
            for number in range(self._a_round // _CHUNK):
                self._store()
                self._disturb(guest if number % 2 else place)
                self._until(lambda: self._under_way() < _UNDER_WAY_MOST, place)
            for each in aside:
                each.result()
            self._cut()  # with jobs under way still
        # What the guest had is taken over.
        self._until(lambda: not self._to_kill and not self._under_way() and self._is_idle(), place)
        self._judge()
        self._outside.forget()

    def _ways(self) -> list[Callable[[], object]]:
        """Return what goes another way than to be stored and taken, in each round once, in any order."""
        ways: list[Callable[[], object]] = [
            *(partial(self._insert, name) for name in (_ORPHAN, _LOST_CODE, _UNREADABLE, _UNKNOWN)),
            *(self._unserved, self._deleted, self._in_the_foreground, self._followed),
        ]
        return self._rng.sample(ways, len(ways))

    def _store(self) -> None:
        """Store some jobs, in one statement, and note which of them are to be killed when."""
        kinds = self._rng.choices(KINDS, [kind.share for kind in KINDS], k=_CHUNK)
        jobs = [kind.make(self._rng) for kind in kinds]
        rows = [
            {"deadline_at": None, **values_of(job), "name": kind.name}
            for kind, job in zip(kinds, jobs, strict=True)
        ]
        make = sqlite.insert if self._database.is_sqlite else postgresql.insert
        while True:
            try:
                with self._database.write() as connection:
                    connection.execute(make(tables()[0]).values(rows).on_conflict_do_nothing())
                break
            except DatabaseError:  # it was cut; what stands is not stored again
                until(self._is_back)
        now_s = time.monotonic()
        for kind, job in zip(kinds, jobs, strict=True):
            if kind.killed_after_s is not None:
                self._to_kill.append((now_s + self._rng.uniform(*kind.killed_after_s), str(job.key)))

    def _disturb(self, place: Place) -> None:
        """Let something go wrong outside, and let it say a lot; ask a probe, or keep it waiting."""
        if self._rng.random() < 0.3:
            fault, call = self._rng.choice(_TROUBLE)
            self._outside.order(
                fault, call, retry_after_s=0.1 if fault is Fault.THROTTLE else None, retry_at=utcnow()
            )
        self._outside.tell(
            *self._rng.sample(list(self._outside.jobs), min(5, len(self._outside.jobs))), uuid.uuid4().hex
        )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", place.port), 1.0) as peer:
            if self._rng.random() < 0.5:
                peer.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
                peer.recv(100)

    def _until(self, condition: Callable[[], object], place: Place) -> None:
        until_s = time.monotonic() + _ENDS_WITHIN_S
        while True:
            place.check()
            self._kill_some()
            if condition():
                return
            assert time.monotonic() < until_s, f"not ended in time: {self._left()}"
            time.sleep(0.05)

    def _kill_some(self) -> None:
        """Kill those whose time has come, by plain SQL."""
        now_s = time.monotonic()
        due = [key for at_s, key in self._to_kill if at_s <= now_s]
        self._to_kill = [each for each in self._to_kill if each[0] > now_s]
        if due:
            keys = ", ".join(f"'{key}'" for key in due)
            self._sql(f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE key IN ({keys})")

    def _sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement past all of ours, however long another process keeps SQLite's only writer."""
        until_s = time.monotonic() + _ENDS_WITHIN_S
        while True:
            try:
                return plain_sql(self._url, statement)
            except (sqlite3.Error, psycopg.Error):
                if time.monotonic() > until_s:
                    raise

    def _under_way(self) -> int:
        ((count,),) = self._sql(f"SELECT count(*) FROM job WHERE {_LIVE}")
        return int(count)

    def _is_idle(self) -> bool:
        """Whether the worker has found out, in a round of its own, that it has nothing to do."""
        rows = self._sql("SELECT message FROM job WHERE job_type = 'WorkerJob' AND state = 'running'")
        return rows == [("watching 0 jobs, running 0 processes",)]

    def _left(self) -> str:
        rows = self._sql(
            f"SELECT id, name, state, message, kill_requested_at FROM job WHERE {_LIVE} LIMIT 10"
        )
        return "; ".join(map(str, rows))

    def _judge(self) -> None:
        """See that all have ended as their kinds may, and let the database forget them, too."""
        allowed = {**{kind.name: kind.ends_as for kind in KINDS}, **_ASIDE}
        rows = self._sql(
            "SELECT name, state, count(*), min(id), min(message) FROM job "
            "WHERE job_type != 'WorkerJob' GROUP BY name, state"
        )
        for name, state, count, one, message in rows:
            self.done[name] += count
            if state not in allowed[name]:
                self.wrongs.append(f"{count} jobs of the kind {name!r} are {state}, such as {one}: {message}")
        with self._database.write() as connection:
            while statements.prune(connection, 0.0, 1_000):
                pass

    # --- ways of their own -------------------------------------------------------------------------

    def _insert(self, name: str) -> None:
        values: dict[str, Any] = {
            "job_type": "SoakJob",
            "connection": self._rng.choice(CONNECTIONS),
            "spec": {"run_for_s": 0.1},
        }
        owner = None if name in {_UNREADABLE, _UNKNOWN} else an_owner()  # who is never heard of
        if name == _LOST_CODE:
            values = {"job_type": "SoakCodeJob", "adoptable": False, "submit_token": None}
        elif name == _UNKNOWN:
            values = {"job_type": _unknown_type(), "submit_token": None}
        elif name == _UNREADABLE:
            values["spec"] = "no mapping"
        insert_job(
            self._database,
            owner,
            **{
                "name": name,
                "heartrate": 1.0,
                "poll_interval": 0.1,
                "submit_token": uuid.uuid4().hex,
                **values,
            },
        )

    def _unserved(self) -> None:
        """Store jobs that nobody can serve, wait until that was noticed, and delete them."""
        none: dict[str, Any] = {"job_type": "SoakJob", "connection": f"none_{uuid.uuid4().hex}"}
        unknown = {"job_type": _unknown_type(), "connection": self._rng.choice(CONNECTIONS)}
        jobs = [
            insert_job(self._database, name="unserved", submit_token=uuid.uuid4().hex, **values)
            for values in (none, unknown)
        ]
        time.sleep(2.0)
        for job_id in jobs:
            self._delete(job_id)

    def _deleted(self) -> None:
        """Delete jobs that are watched."""
        jobs = [
            SoakJob(spec={"run_for_s": 600.0}, heartrate=1.0, poll_interval=0.1, name="deleted").store()
            for _ in range(5)
        ]
        time.sleep(1.0)
        self._delete(*(job.id for job in jobs))

    def _delete(self, *ids: int) -> None:
        for job_id in ids:
            self._sql(f"DELETE FROM job WHERE id = {job_id}")

    def _in_the_foreground(self) -> None:
        SoakJob(spec={"run_for_s": 0.3}, heartrate=1.0, poll_interval=0.1, name="in the foreground").run()

    def _followed(self) -> None:
        job = ProcessMonitorJob(
            ["sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.3; done"],
            heartrate=1.0,
            poll_interval=0.2,
            name="is followed",
        ).store()
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            asyncio.run(_Reader(job, LogPrinter(as_json=False), follow=True, child=None, node=None).read())

    def _cut(self) -> None:
        """Let the database be away for a moment."""
        with contextlib.closing(plain_connection(self._url)) as connection:
            if self._database.is_sqlite:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(0.5)
                connection.execute("ROLLBACK")
            else:
                connection.execute(_CUT)
        until(self._is_back)

    def _is_back(self) -> bool:
        """Whether the jobs of the soak itself can be stored: its connections were cut, too."""
        with contextlib.suppress(DatabaseError), self._database.write() as connection:
            statements.now(connection)
            return True
        return False


def _unknown_type() -> str:
    return f"Unknown{uuid.uuid4().hex}"
