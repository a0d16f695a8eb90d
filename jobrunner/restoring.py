"""After a backup was restored: hold what was live in it, and find out what became of it since."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import RowMapping

from jobrunner import identity, statements
from jobrunner.backends.base import Found, Observation
from jobrunner.backends.checks import flaw_of_id
from jobrunner.backends.guarded import GuardedBackend, IsHeld, backend_of, guarded
from jobrunner.database import Database
from jobrunner.errors import JobrunnerError, UsageError, words_of
from jobrunner.models import MonitorJob
from jobrunner.models.base_job import object_of
from jobrunner.states import JobState, Phase

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
    free = asyncio.Semaphore(_AT_ONCE)

    async def prove_one(row: RowMapping) -> _Proof:
        async with free:
            try:
                return await _prove(database, row)
            except JobrunnerError as error:
                return _Proof(words_of(error))

    return list(await asyncio.gather(*map(prove_one, rows)))


async def _prove(database: Database, row: RowMapping) -> _Proof:
    job = object_of(row)
    if not isinstance(job, MonitorJob):
        return _Proof("nothing outside can say whether its own code has run")
    if not identity.can_serve(row["host_id"], row["external_id"]) or row["host_uid"] not in {
        None,
        identity.uid(),
    }:
        return _Proof(f"only {row['unixname']} on {row['hostname']} can see its process: ask from there")
    _, connection = database.settings.connection(row["connection"], job.backend_kind)
    backend = guarded(backend_of(job, connection), row["connection"] or "")
    try:
        return await _ask(database, row, backend)
    except Exception as error:  # noqa: BLE001  # whatever a backend raises: nothing is proven
        return _Proof(f"the outside could not be asked ({words_of(error)})")
    finally:
        with suppress(Exception):  # whatever a backend raises: it was asked
            await backend.close(_CLOSE_S)


async def _ask(database: Database, row: RowMapping, backend: GuardedBackend) -> _Proof:
    external_id, found_id = row["external_id"], None
    if external_id is None:
        found = await backend.find(
            row["spec"] or {},
            row["submit_token"],
            row["submit_started_at"] or row["created_at"],
            baseline=row["submit_baseline"],
            is_held=_held_by_others(database, row["id"]),
        )
        if not isinstance(found, Found):
            return _Proof(statements.UNFOUND)
        if flaw_of_id(found.external_id) is not None:
            return _Proof(f"its work was found outside under an id that {flaw_of_id(found.external_id)}")
        external_id = found_id = found.external_id
    answer = (await backend.fetch([external_id]))[external_id]
    if not isinstance(answer, Observation):
        return _Proof(f"{external_id} cannot be seen outside", found_id)
    if answer.phase is Phase.FAILED and (row["resubmit"] or {}).get(answer.cause, 0) > 0:
        # The policy may have submitted it again since, under a token that this backup does not know.
        return _Proof(f"{external_id} failed ({answer.cause}), and may have been submitted again", found_id)
    return _Proof(None, found_id)


def _held_by_others(database: Database, job_id: int) -> IsHeld:
    async def is_held(external_ids: Sequence[str]) -> set[str]:
        def ask() -> set[str]:
            with database.read() as connection:
                return statements.held(connection, job_id, list(external_ids))

        return await asyncio.to_thread(ask)

    return is_held
