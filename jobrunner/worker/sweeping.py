"""Orphans: a worker watches silent jobs stand still, judges them, and adopts, starts again or loses them."""

import math
import random
from collections.abc import Collection, Mapping
from functools import cache, partial

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements, worklist
from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s
from jobrunner.errors import UsageError
from jobrunner.logs import get_logger
from jobrunner.resources import resources_in
from jobrunner.statements import Owner, Sighting
from jobrunner.sweeper import SILENT_MOST, StandStill, look_at_silent, why_given_up, why_lost
from jobrunner.worker.means import Means
from jobrunner.worker.stopping import Stop
from jobrunner.worker.taking import Taking
from jobrunner.worker.telling import Telling
from jobrunner.worklist import Judgeable

log = get_logger(__name__)

_ASK_A_S = 10_000  # silent jobs of whose kinds is asked in a second: where there are more, the answer stands
_ASK_AGAIN_S = 10.0  # ... for so long at most
_LIVES_S = 60.0  # for which a look at the processes of a job holds
_LATE = 1.5  # heartrates, after which a beat of our own is late, and so may be those of others


class Sweeping:
    """Finds the orphans among the silent jobs, and sees to those that are ours to judge."""

    def __init__(self, means: Means, taking: Taking, telling: Telling, stop: Stop) -> None:
        self._means = means
        self._taking = taking
        self._telling = telling
        self._stop = stop
        self._settings = means.runner.database.settings
        self._still = StandStill(self._settings.grace_multiplier)
        self._looked_s = 0.0
        self._after = 0
        """The id behind which the next look begins: where there are too many for one, they take turns."""
        self._judgeable: Judgeable | None = None
        self._judgeable_until_s = 0.0
        self._lived_s: Bounded[int, float] = Bounded(SILENT_MOST)
        """When jobs whose records cannot be seen were last seen to have live processes."""

    def restart(self) -> None:
        """Count anew for how long each job has stood still: what was seen until now is no proof."""
        self._still.restart()
        self._judgeable = None

    async def sweep(self, adopt_within_s: float) -> int:
        """Look at the silent jobs, and see to the orphans; return how many were adopted.

        `adopt_within_s`: seconds after which no more are adopted for this look. Raises `DatabaseError`.
        """
        judgeable, after = await self._can_judge(), self._after
        look = await self._means.read(look_at_silent, judgeable, after, monotonic_s())
        if not self._beats_on_time():
            self._still.restart()
            return 0
        self._after = 0 if look.until == math.inf else int(look.until)
        runner, code = self._means.runner, self._means.code
        mine = runner.jobs.keys() | code.held | {self._means.itself.job_id}
        others = {row["id"]: (row, took_s) for row, took_s in look.rows if row["id"] not in mine}
        self._still.keep(others.keys(), after, look.until)
        before_s, self._looked_s = self._looked_s, monotonic_s()
        looks = ((row, self._still.look(row, took_s, before_s)) for row, took_s in others.values())
        sighted = {row["id"]: seen for row, seen in looks if seen is not None}
        orphans = await self._of_sighted(sighted)
        unseen = await self._unseen([row for row, _ in orphans])
        to_adopt, to_start, to_lose = self._judged(orphans, unseen)
        if to_lose and not await self._means.act(to_lose, partial(_lose, why=to_lose)):
            self._still.forget(seen.job_id for seen in to_lose)
        took = 0
        if to_adopt:
            took = await self._adopt(to_adopt, adopt_within_s)
        if to_start:
            await self._start_again(to_start)
        return took

    async def _can_judge(self) -> Judgeable:
        """Return which silent jobs are ours to judge: to ask it is dear where there are many of them."""
        asked_s = monotonic_s()
        if self._judgeable is None or asked_s >= self._judgeable_until_s:
            kinds = await self._means.read(worklist.silent_kinds)
            stands_s = min(_ASK_AGAIN_S, sum(kind.count for kind in kinds) / _ASK_A_S)
            self._judgeable_until_s = asked_s + stands_s
            serving = self._means.serving
            here = [kind for kind in kinds if identity.can_serve(kind.host_id)]
            served = [
                kind
                for kind in here
                if serving.why_not(kind.job_type, kind.connection, is_watched=kind.is_watched) is None
            ]
            watched = [kind for kind in served if serving.is_monitored(kind.job_type)]
            self._judgeable = Judgeable(
                identity.uid(),
                self._settings.host_grace_s,
                host_ids={kind.host_id for kind in here if kind.host_id is not None},
                coded={kind.job_type for kind in served} - {kind.job_type for kind in watched},
                watched={kind.job_type for kind in watched},
                connections={kind.connection for kind in watched},
            )
        return self._judgeable

    async def _of_sighted(self, sighted: Mapping[int, Sighting]) -> list[tuple[RowMapping, Sighting]]:
        """Return the orphans with what they are judged by: asked only of them, as the silent are many."""
        if not sighted:
            return []
        rows = await self._means.read(worklist.orphans, sighted.keys())
        return [(row, sighted[row["id"]]) for row in rows]

    def _beats_on_time(self) -> bool:
        """Whether the database was there all the while: else it has kept others from beating, too."""
        itself = self._means.itself
        return monotonic_s() - itself.good_s <= _LATE * itself.heartrate

    def _is_late(self, row: RowMapping) -> bool:
        """Whether whoever can see an orphan's work has been silent for too long."""
        return row["age_s"] is None or row["age_s"] >= self._settings.host_grace_s

    def _is_given_up(self, row: RowMapping) -> bool:
        """Whether an orphan whose work cannot be seen is lost by now: not while its processes live here."""
        return self._is_late(row) and not self._has_lived(row["id"])

    def _is_for_others(self, job_type: str, connection: str | None, is_watched: bool) -> bool:
        return self._means.serving.why_not(job_type, connection, is_watched=is_watched) is not None

    def _has_lived(self, job_id: int) -> bool:
        return monotonic_s() - self._lived_s.get(job_id, -math.inf) <= _LIVES_S

    async def _unseen(self, orphans: list[RowMapping]) -> dict[int, str]:
        """Return the orphans of this host whose records cannot be seen from here, each with the reason."""
        ours = [
            row
            for row in orphans
            if row["adoptable"]
            and row["host_uid"] in {None, identity.uid()}
            and identity.can_serve(row["host_id"])
        ]
        unseen = await self._means.sight.unseen(ours)
        self._telling.unseen = unseen
        to_ask = [row for row in ours if row["id"] in unseen and self._is_given_up(row)]
        for job_id in await self._means.sight.living(to_ask):
            self._lived_s[job_id] = monotonic_s()
        for job_id, why in unseen.items():
            self._means.runner.seldom.warning(
                log, "a silent job of this host is left alone", about=job_id, job=job_id, why=why
            )
        return unseen

    def _judged(
        self, orphans: list[tuple[RowMapping, Sighting]], unseen: Mapping[int, str]
    ) -> tuple[list[tuple[RowMapping, Sighting]], list[Sighting], dict[Sighting, str]]:
        """Tell the orphans to watch, to run again, and to lose, of those that are ours to judge."""
        serving, code, uid = self._means.serving, self._means.code, identity.uid()
        # Thousands of them have the same host, and are of the same kind.
        can_serve, is_for_others = cache(identity.can_serve), cache(self._is_for_others)
        is_monitored = cache(serving.is_monitored)
        to_adopt: list[tuple[RowMapping, Sighting]] = []
        to_start: list[Sighting] = []
        to_lose: dict[Sighting, str] = {}
        for row, seen in orphans:
            if not row["adoptable"]:
                to_lose[seen] = why_lost(row, is_worker=row["is_worker"])
            elif row["id"] in unseen or not can_serve(row["host_id"]):
                if self._is_given_up(row):
                    to_lose[seen] = why_given_up(row, row["age_s"], unseen.get(row["id"]))
            elif row["host_uid"] is not None and row["host_uid"] != uid:
                continue  # only that user's workers may
            elif is_for_others(row["job_type"], row["connection"], row["submit_token"] is not None):
                continue
            elif is_monitored(row["job_type"]):
                to_adopt.append((row, seen))
            elif not code.is_resting(seen.job_id):
                to_start.append(seen)
        return to_adopt, to_start, to_lose

    async def _adopt(self, orphans: list[tuple[RowMapping, Sighting]], within_s: float) -> int:
        means = self._means
        # At random: others who adopt at the same time shall adopt others of them.
        left = random.sample(orphans, len(orphans))
        took, until_s = 0, monotonic_s() + within_s
        # Several times for one look, which costs more than a share where a full worker has died.
        while left and not means.is_fenced and not self._stop.is_wished and monotonic_s() < until_s:
            most = await self._taking.share(len(left))
            if most <= 0:
                break
            some, left = left[:most], left[most:]
            hosts = {row["host_id"] for row, _ in some if row["host_id"] is not None}
            seen = [sighting for _, sighting in some]
            adopt = partial(_adopt, owner=means.runner.owner, hosts=hosts)
            rows = await means.act(seen, adopt)
            if not rows:  # it had to wait, or others were first
                self._still.forget(each.job_id for each in seen)
                break
            took += await self._taking.own(rows)
        if took:
            log.info("adopted from silent runners", jobs=took)
        return took

    async def _start_again(self, orphans: list[Sighting]) -> None:
        code = self._means.code
        seen_of = {seen.job_id: seen for seen in orphans}
        for row in await self._means.read(statements.get_many, list(seen_of)):
            try:
                resources = resources_in(row["spec"])
            except UsageError:  # stored by other hands: it is left as it is
                continue
            if code.why_not(resources) is None and code.has_room_for(resources):
                await code.start(row["id"], seen_of[row["id"]], resources)


def _adopt(
    connection: Connection, seen: list[Sighting], *, owner: Owner, hosts: Collection[str]
) -> list[RowMapping]:
    return statements.adopt_many(connection, seen, owner, hosts)


def _lose(connection: Connection, seen: list[Sighting], *, why: Mapping[Sighting, str]) -> list[int]:
    return statements.lose_many(connection, {each: why[each] for each in seen}, identity.who())
