"""The rhythm of the beat, its health, the fence that follows from it, and the beats themselves."""

import datetime as dt
import logging
import time

import pytest

from jobrunner import heartbeat
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, UsageError
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, check_grace, check_rate, lost_because
from jobrunner.statements import Claim
from jobrunner.states import JobState
from tests.helpers import (
    CodeJob,
    Run,
    a_running_job,
    beat_for_ever,
    events_of,
    plain_sql,
    row_of,
    until,
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# --- the pacer ------------------------------------------------------------------------------------


def test_beats_on_time_fall_on_a_grid_without_drift() -> None:
    clock = Clock()
    pacer = Pacer(10, clock)
    for n in range(1, 1001):
        clock.now_s += pacer.remaining_s() + 0.7  # each wait ends a little late
        pacer.keep_time()
        assert pacer.remaining_s() == pytest.approx(100 + 10 * (n + 1) - clock.now_s)


def test_a_late_beat_comes_at_once_and_the_rhythm_goes_on_from_there() -> None:
    clock = Clock()
    pacer = Pacer(10, clock)
    clock.now_s += 25
    assert pacer.remaining_s() == 0
    pacer.restart()
    assert pacer.remaining_s() == 10


def test_after_an_error_the_next_try_comes_within_a_quarter_of_a_heartrate() -> None:
    clock = Clock()
    pacer = Pacer(10, clock)
    waits = set()
    for _ in range(100):
        pacer.retry_soon()
        waits.add(pacer.remaining_s())
    assert 0 < min(waits) < max(waits) <= 2.5
    assert len(waits) > 50, "jitter keeps a thousand runners from coming back at one moment"


# --- rates, graces, health ------------------------------------------------------------------------


@pytest.mark.parametrize("heartrate", [0, -5, float("nan"), float("inf")])
def test_a_rate_by_which_nobody_could_be_judged_is_refused(heartrate: float) -> None:
    with pytest.raises(UsageError, match="heartrate"):
        check_rate(heartrate, 2.1)


@pytest.mark.parametrize("grace", [1, 0, -2, float("nan"), float("inf")])
def test_a_grace_that_declares_everybody_dead_is_refused(grace: float) -> None:
    with pytest.raises(UsageError, match="grace"):
        check_grace(grace)
    with pytest.raises(UsageError, match="grace"):
        BeatHealth(5, grace)


def test_a_runner_is_fenced_when_no_beat_succeeded_for_longer_than_the_grace() -> None:
    clock = Clock()
    health = BeatHealth(10, 2, clock)
    clock.now_s += 20
    fenced = [health.is_fenced]
    clock.now_s += 0.1
    fenced.append(health.is_fenced)
    health.succeeded(clock.now_s - 15)
    fenced.append(health.is_fenced)
    assert fenced == [False, True, False]


def test_the_last_good_beat_is_the_moment_before_it_was_sent() -> None:
    clock = Clock()
    health = BeatHealth(10, 2, clock)
    sent_s = clock()
    clock.now_s += 19  # the answer was that slow
    health.succeeded(sent_s)
    clock.now_s += 2
    assert health.is_fenced


def test_health_is_said_once_on_each_change(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    health = BeatHealth(10, 2, clock)
    with caplog.at_level(logging.DEBUG):
        health.succeeded(clock())
        for _ in range(5):
            health.failed(OSError("gone"))
        clock.now_s += 12.34
        for _ in range(5):
            health.succeeded(clock())
    assert caplog.messages == ["heartbeat failing error=gone", "heartbeat recovered after 12.3 s"]


def test_the_clock_of_the_fence_counts_suspend() -> None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert monotonic_s() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


def test_a_row_that_did_not_come_back_is_lost_only_when_it_says_so() -> None:
    claim = Claim(7, "me", 2)
    mine = {"state": JobState.RUNNING, "runner_id": "me", "claims": 2}

    def why(**changes: object) -> str | None:
        return lost_because(claim, mine | changes)  # type: ignore[arg-type]

    assert why() is None
    assert lost_because(claim, None) == "Job 7 was deleted."
    assert why(state=JobState.LOST) == "Job 7 was ended as lost by others."
    assert why(runner_id="you", claims=3) == "Job 7 was taken over by runner you."
    assert why(claims=3) is not None


# --- the beats of a running job -------------------------------------------------------------------


def test_a_beat_writes_the_databases_time_and_memory_says_the_same(database: Database) -> None:
    seen: list[tuple[dt.datetime, dt.datetime]] = []

    def code(job: CodeJob) -> None:
        for _ in range(3):
            job.heartbeat()
            seen.append((job.latest_heartbeat, row_of(database, job.id)["latest_heartbeat"]))

    CodeJob(code, heartrate=0.05).run()
    assert all(memory == row for memory, row in seen)
    assert seen[0] < seen[1] < seen[2]


def test_heartbeat_keeps_the_steady_rate(database: Database) -> None:
    at: list[float] = []

    def code(job: CodeJob) -> None:
        for _ in range(10):
            time.sleep(0.03)
            job.heartbeat()
            at.append(time.monotonic())

    CodeJob(code, heartrate=0.1).run()
    assert 0.7 < at[-1] - at[0] < 3


def test_a_late_heartbeat_does_not_wait(database: Database) -> None:
    def code(job: CodeJob) -> None:
        time.sleep(1.1)
        begun_s = time.monotonic()
        job.heartbeat()
        assert time.monotonic() - begun_s < 0.8

    CodeJob(code, heartrate=1).run()


def test_beats_leave_no_event(database: Database, database_url: str) -> None:
    def code(job: CodeJob) -> None:
        for _ in range(5):
            job.heartbeat()

    job = CodeJob(code, heartrate=0.02)
    job.run()
    assert len(events_of(database_url, job.id)) == 2


# --- a job that is no longer ours -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DELETE FROM job", "deleted"),
        ("UPDATE job SET state = 'lost', end_date = latest_heartbeat", "ended as lost by others"),
        ("UPDATE job SET runner_id = 'you', claims = 2", "taken over by runner you"),
        ("UPDATE job SET claims = 2", "claimed again"),
        ("UPDATE job SET state = 'queued', runner_id = NULL", "ended as queued by others"),
    ],
)
def test_a_job_that_is_no_longer_ours_stops_and_nothing_is_written(
    database: Database, database_url: str, change: str, says: str
) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=0.05)) as run:
        job_id = run.job.id
        plain_sql(database_url, change)
        after = plain_sql(database_url, "SELECT state, runner_id, claims, end_date, message FROM job")
        error = run.join()
    assert isinstance(error, ClaimLost)
    assert says in str(error)
    assert plain_sql(database_url, "SELECT state, runner_id, claims, end_date, message FROM job") == after
    assert run.job.kills == 0  # type: ignore[attr-defined]
    assert len(events_of(database_url, job_id)) <= 1


def test_an_outcome_is_not_written_over_anothers(database: Database, database_url: str) -> None:
    def code(_job: CodeJob) -> None:
        plain_sql(database_url, "UPDATE job SET runner_id = 'you', claims = 2")

    job = CodeJob(code)
    with pytest.raises(
        ClaimLost, match=r"taken over by runner you\. Its outcome here, success, was not written"
    ):
        job.run()
    assert plain_sql(database_url, "SELECT state, end_date FROM job") == [("running", None)]


def test_code_that_swallows_the_loss_is_told_again(database: Database, database_url: str) -> None:
    def code(job: CodeJob) -> None:
        plain_sql(database_url, "DELETE FROM job")
        for _ in range(3):
            with pytest.raises(ClaimLost, match="deleted"):
                job.heartbeat()

    with pytest.raises(ClaimLost, match="deleted"):
        CodeJob(code, heartrate=0.05).run()


# --- the beater: beats in bulk --------------------------------------------------------------------


def test_one_statement_beats_for_all_jobs_of_a_runner_and_for_no_other(
    database: Database, database_url: str
) -> None:
    from jobrunner import statements
    from tests.helpers import an_owner, insert_job

    owner = an_owner()
    mine = [insert_job(database, owner) for _ in range(50)]
    other, _ = a_running_job(database)
    before = row_of(database, other.job_id)["latest_heartbeat"]
    beater = Beater(database, owner.runner_id, 5.0)
    try:
        time.sleep(0.01)
        answers = beater.beat([*mine, other.job_id, 4711], with_time=True)
    finally:
        beater.close()
    assert sorted(answer.job_id for answer in answers) == mine
    assert all(answer.claims == 1 and not answer.kill_requested for answer in answers)
    assert all(
        answer.latest_heartbeat == row_of(database, answer.job_id)["latest_heartbeat"] for answer in answers
    )
    assert row_of(database, other.job_id)["latest_heartbeat"] == before
    with database.read() as connection:
        standing = statements.look(connection, [*mine, other.job_id, 4711])
    assert set(standing) == {*mine, other.job_id}


def test_a_beat_of_many_thousand_rows_is_one_statement(database: Database) -> None:
    from sqlalchemy import insert

    from jobrunner import statements
    from tests.helpers import an_owner, statements_of

    owner = an_owner()
    job, _ = statements.tables()
    row = {"job_type": "Bare", "heartrate": 10, "state": "running", "runner_id": owner.runner_id, "claims": 1}
    with database.write() as connection:
        connection.execute(insert(job), [row] * 5000)
        ids = [id_ for (id_,) in connection.execute(job.select().with_only_columns(job.c.id))]
    beater = Beater(database, owner.runner_id, 5.0)
    try:
        beater.beat(ids[:1])  # connects
        with statements_of(database) as sent:
            assert len(beater.beat(ids)) == 5000
        assert len(sent) == 1
    finally:
        beater.close()


def test_the_beater_serves_several_threads_one_at_a_time(database: Database) -> None:
    from concurrent.futures import ThreadPoolExecutor

    claim, owner = a_running_job(database)
    beater = Beater(database, owner.runner_id, 5.0)
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _n: beater.beat([claim.job_id]), range(50)))
    finally:
        beater.close()
    assert all(len(answer) == 1 for answer in answers)


def test_a_job_beats_on_while_its_row_is_held_locked(postgres_database: Database, postgres_url: str) -> None:
    import psycopg

    with Run(CodeJob(beat_for_ever, heartrate=0.1)) as run:
        with psycopg.connect(postgres_url) as holder:
            holder.execute("SELECT * FROM job FOR UPDATE")
            held = row_of(postgres_database, run.job.id)["latest_heartbeat"]
            time.sleep(0.5)
            assert run.error is None, "a locked row is no verdict"
            assert row_of(postgres_database, run.job.id)["latest_heartbeat"] == held
        until(lambda: row_of(postgres_database, run.job.id)["latest_heartbeat"] > held)
        run.job.request_kill()


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_host_whose_clock_is_wrong_is_warned_once_and_judged_as_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hours: int
) -> None:
    wrong = dt.timedelta(hours=hours)
    monkeypatch.setattr(heartbeat, "_warned_of_skew", False)
    monkeypatch.setattr(heartbeat, "utcnow", lambda: dt.datetime.now(dt.UTC) + wrong)
    told: list[bool] = []

    def beat_once(job: CodeJob) -> None:
        job.heartbeat()
        told.append(job.is_alive())

    for _ in range(2):
        CodeJob(beat_once, heartrate=0.1).run()
    assert told == [True, True]
    assert caplog.text.count("s apart") == 1
    assert "the database's are 10800 s apart" in caplog.text


def test_a_host_whose_clock_is_right_is_not_warned(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "_warned_of_skew", False)
    CodeJob(heartrate=0.5).run()
    assert "apart" not in caplog.text
