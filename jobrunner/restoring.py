"""After a backup was restored: hold what was live in it, and find out what became of it since."""

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import RowMapping

from jobrunner import identity, statements
from jobrunner.aside import Aside
from jobrunner.backends.base import Found, Gone, Observation
from jobrunner.backends.checks import Answer, flaw_of_id
from jobrunner.backends.guarded import GuardedBackend, IsHeld, guarded
from jobrunner.database import Database
from jobrunner.errors import CodeError, JobrunnerError, UsageError, words_of
from jobrunner.logs import get_logger
from jobrunner.models import MonitorJob
from jobrunner.models.base_job import class_of, object_of
from jobrunner.record_places import why_unseen
from jobrunner.soundness import why_unreadable
from jobrunner.states import JobState, Phase
from jobrunner.terms import WayNumbers, made_backend, terms_of
from jobrunner.text import storable

log = get_logger(__name__)

_CLOSE_S = 5.0
_AT_ONCE = 8  # questions to the outside


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that is still held, and why."""

    job_id: int
    job_type: str
    name: str | None
    state: JobState
    why: str


@dataclass(frozen=True, slots=True)
class _Proof:
    """What the outside says of a held job. `why`: what is not proven; None: its row can be trusted again."""

    why: str | None
    external_id: str | None = None
    """What was found of a submission that the row does not know."""


def hold_all(database: Database) -> int:
    """Hold all queued and running jobs except the workers' own rows, and return how many.

    Raises `DatabaseError`.
    """
    with database.write() as connection:
        return len(statements.hold_live(connection, identity.who()))


def confirm(database: Database, job_ids: Sequence[int] | None = None) -> list[int]:
    """Let held jobs (None: all of them) be claimed again, because a person says that they have not run since.

    Returns their ids. Raises `UsageError` for one that is not held, `DatabaseError`.
    """
    with database.read() as connection:
        held = [row["id"] for row in statements.held_rows(connection)]
    wrong = [job_id for job_id in job_ids or () if job_id not in held]
    if wrong:
        raise UsageError(
            f"Job {wrong[0]} is not held: `jobrunner db restored --ask` lists the jobs that are."
        )
    ids = list(held if job_ids is None else dict.fromkeys(job_ids))
    for job_id in ids:
        with database.write() as connection:
            actor = identity.who()
            statements.free(
                connection, job_id, actor, f"confirmed by {actor} after a restore", uuid.uuid4().hex
            )
    return ids


def still_held(database: Database) -> list[HeldJob]:
    """Return the jobs that are held, each with why, as it was last found out. Raises `DatabaseError`."""
    with database.read() as connection:
        rows = statements.held_rows(connection)
    return [_held_job(row, row["message"] or statements.HELD) for row in rows]


def _held_job(row: RowMapping, why: str) -> HeldJob:
    return HeldJob(row["id"], row["job_type"], row["name"], JobState(row["state"]), why)


def prove(database: Database) -> list[HeldJob]:
    """Ask the outside about every held job, and let those be claimed again of which it proves what they are.

    Returns those that stay held. Raises `DatabaseError`.
    """
    with database.read() as connection:
        rows = statements.held_rows(connection)
    proofs = asyncio.run(_prove_all(database, rows))
    left: list[HeldJob] = []
    for row, proof in zip(rows, proofs, strict=True):
        why = _write(database, row, proof)
        if why is not None:
            left.append(_held_job(row, why))
    return left


def _write(database: Database, row: RowMapping, proof: _Proof) -> str | None:
    """Write what was proven of a job; return why it stays held."""
    why, actor = proof.why, identity.who()
    with database.write() as connection:
        if proof.external_id is not None and not statements.record_submitted(
            connection, row["id"], row["submit_token"], proof.external_id
        ):
            why = f"{proof.external_id} was found outside, and another job holds it"
        if why is None:
            statements.free(
                connection, row["id"], actor, "proven after a restore: its work was found outside"
            )
        else:
            statements.say_held(connection, row["id"], f"{statements.HELD}: {why}")
    return why


async def _prove_all(database: Database, rows: Sequence[RowMapping]) -> list[_Proof]:
    aside, numbers = Aside(), WayNumbers()
    proofs: dict[int, _Proof] = {}
    ways: dict[int, _Way] = {}
    refused: dict[tuple[type, str | None], _Proof] = {}  # what does not answer is asked once
    for row in rows:
        known = _known(row)
        if isinstance(known, _Proof):
            proofs[row["id"]] = known
            continue
        kind = known, row["connection"]
        if kind in refused:
            proofs[row["id"]] = refused[kind]
            continue
        try:
            make = partial(object_of, row)
            terms = await terms_of(aside, known, make, row["connection"], database.settings, numbers)
            if terms.way not in ways:
                backend = await made_backend(aside, terms.job, terms.behind)
                ways[terms.way] = _Way(guarded(backend, terms.connection), [])
            ways[terms.way].rows.append(row)
        except JobrunnerError as error:
            proofs[row["id"]] = proof = _Proof(f"the outside cannot be asked: {_cause(error)}")
            if not isinstance(error, CodeError):  # that may be of this job alone
                refused[kind] = proof
    free = asyncio.Semaphore(_AT_ONCE)
    for found in await asyncio.gather(*(_ask(database, way, free) for way in ways.values())):
        proofs |= found
    return [proofs[row["id"]] for row in rows]


def _known(row: RowMapping) -> type[MonitorJob] | _Proof:
    """Return the class of a job of which the outside can be asked from here; or why it cannot."""
    why = why_unreadable(row, is_monitored=False)
    if why is not None:
        return _Proof(f"{why}: correct it, and ask again")
    if row["submit_token"] is None:  # every job that watches has one
        return _Proof("nothing outside can say whether its own code has run")
    job_class = class_of(row["job_type"])
    if job_class is None or not issubclass(job_class, MonitorJob):
        return _Proof(f"its type {row['job_type']} cannot be loaded here: ask from where it is installed")
    why = why_unreadable(row, is_monitored=True)
    if why is not None:
        return _Proof(f"{why}: correct it, and ask again")
    is_here = identity.can_serve(row["host_id"], row["external_id"])
    if not is_here or row["host_uid"] not in {None, identity.uid()}:
        return _Proof(f"only {row['unixname']} on {row['hostname']} can see its process: ask from there")
    why = why_unseen(row)
    return job_class if why is None else _Proof(f"{why}: ask from where they are mounted")


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to the outside, and the held jobs that share it."""

    backend: GuardedBackend
    rows: list[RowMapping]


async def _ask(database: Database, way: _Way, free: asyncio.Semaphore) -> dict[int, _Proof]:
    """Ask about the jobs of one backend: by what id it is known, one by one; where it is, in bulk."""
    proofs: dict[int, _Proof] = {}
    try:
        known = [_Known(row, row["external_id"]) for row in way.rows if row["external_id"] is not None]
        unknown = [row for row in way.rows if row["external_id"] is None]
        for row, found in zip(
            unknown, await asyncio.gather(*(_find(database, way, row, free) for row in unknown)), strict=True
        ):
            if isinstance(found, _Proof):
                proofs[row["id"]] = found
            else:
                known.append(_Known(row, found, is_new=True))
        answers = await _Fetching(way.backend, (each.external_id for each in known)).answers(free)
        return proofs | {each.row["id"]: _seen(each, answers[each.external_id]) for each in known}
    finally:
        with suppress(Exception):  # whatever a backend raises: it was asked
            await way.backend.close(_CLOSE_S)


@dataclass(frozen=True, slots=True)
class _Known:
    """A job whose work has an id outside. `is_new`: its row does not know that id."""

    row: RowMapping
    external_id: str
    is_new: bool = False


async def _find(database: Database, way: _Way, row: RowMapping, free: asyncio.Semaphore) -> str | _Proof:
    """Return the id of work that was submitted since the backup, or what is not proven."""
    try:
        async with free:
            found = await way.backend.find(
                row["spec"] or {},
                row["submit_token"],
                row["submit_started_at"] or row["created_at"],
                baseline=row["submit_baseline"],
                is_held=_held_by_others(database, row["id"]),
            )
    except Exception as error:  # noqa: BLE001  # whatever a backend raises: nothing is proven
        return _unasked(error)
    if not isinstance(found, Found):
        return _Proof(statements.UNFOUND)
    flaw = flaw_of_id(found.external_id)
    if flaw is not None:
        return _Proof(f"its work was found outside under an id that {flaw}")
    return found.external_id


class _Fetching:
    """Asks a backend about many ids, in bulk, and in halves where one of them spoils the call for all.

    So many failures in a row as no single id explains are an outage: then nothing more is asked.
    """

    def __init__(self, backend: GuardedBackend, external_ids: Iterable[str]) -> None:
        self._backend = backend
        ids, most = list(dict.fromkeys(external_ids)), backend.bulk_limit
        self._left = [ids[start : start + most] for start in range(0, len(ids), most)]
        self._answers: dict[str, Answer | _Proof] = {}
        self._failures = 0
        self._failures_most = most.bit_length() + 1

    async def answers(self, free: asyncio.Semaphore) -> Mapping[str, Answer | _Proof]:
        """Return the answer for each id, or why there is none."""
        await asyncio.gather(*(self._ask(free) for _ in range(min(_AT_ONCE, len(self._left)))))
        return self._answers

    async def _ask(self, free: asyncio.Semaphore) -> None:
        while self._left:
            ids = self._left.pop()
            try:
                async with free:
                    self._answers |= await self._backend.fetch(ids)
                self._failures = 0
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: nothing is proven
                self._failures += 1
                half = len(ids) // 2
                if half and self._failures < self._failures_most:
                    self._left += [ids[half:], ids[:half]]
                    continue
                given_up = [ids] if self._failures < self._failures_most else [ids, *self._left]
                for some in given_up:
                    self._answers |= dict.fromkeys(some, _unasked(error))
                if len(given_up) > 1:
                    self._left.clear()


def _seen(known: _Known, answer: Answer | _Proof) -> _Proof:
    """Return what an answer about a job's work proves."""
    external_id, found_id = known.external_id, known.external_id if known.is_new else None
    if isinstance(answer, _Proof):
        return replace(answer, external_id=found_id)
    if not isinstance(answer, Observation):
        said = answer.reason if isinstance(answer, Gone) else answer.message
        return _Proof(f"{external_id} cannot be seen outside: {said}", found_id)
    if answer.phase is Phase.FAILED and (known.row["resubmit"] or {}).get(answer.cause, 0) > 0:
        # The policy may have submitted it again since, under a token that this backup does not know.
        return _Proof(f"{external_id} failed ({answer.cause}), and may have been submitted again", found_id)
    return _Proof(None, found_id)


def _unasked(error: Exception) -> _Proof:
    return _Proof(f"the outside could not be asked: {_cause(error)}; ask again with `db restored --ask`")


def _cause(error: Exception) -> str:
    """Return what went wrong for a person, without the names that Python has for it."""
    text = storable(error).rstrip(".")
    if isinstance(error, JobrunnerError) and text:
        return text
    log.warning("a backend failed", error=words_of(error))
    return "the backend's own code failed, as the log says"


def _held_by_others(database: Database, job_id: int) -> IsHeld:
    async def is_held(external_ids: Sequence[str]) -> set[str]:
        def ask() -> set[str]:
            with database.read() as connection:
                return statements.held(connection, job_id, list(external_ids))

        return await asyncio.to_thread(ask)

    return is_held
