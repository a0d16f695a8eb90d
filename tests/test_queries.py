"""The questions: what they answer, and by which plan with many rows."""

import datetime as dt
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection

from jobrunner import queries, statements, worklist
from jobrunner.database import Database, get_database
from jobrunner.models import BaseJob
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import a_running_job, an_owner, calls_of, insert_job, plain_sql, statements_of

Ask = Callable[[Connection], object]

OWNER = an_owner()
JUDGEABLE = worklist.Judgeable(
    *(OWNER.uid, 3600.0, ["a/b/c"]),
    coded=["Other"],
    watched=["Common"],
    connections=[None, "x"],
)

QUESTIONS: dict[str, Ask] = {
    "most recent of any": lambda conn: queries.most_recent(conn, None),
    "most recent of a type": lambda conn: queries.most_recent(conn, ["Common"]),
    "most recent of a rare type": lambda conn: queries.most_recent(conn, ["Rare"]),
    "most recent of a type that has no job": lambda conn: queries.most_recent(conn, ["None"]),
    "most recent of several types": lambda conn: queries.most_recent(conn, ["Rare", "None", "Another"]),
    "alive": lambda conn: queries.alive_ids(conn, 2.1, limit=1),
    "alive of a type": lambda conn: queries.alive_ids(conn, 2.1, job_types=["Common"]),
    "alive on a host": lambda conn: queries.alive_ids(conn, 2.1, hostname="here"),
    "a list": lambda conn: queries.listed(conn, 2.1),
    "a list of running": lambda conn: queries.listed(conn, 2.1, states=[JobState.RUNNING]),
    "a list of queued": lambda conn: queries.listed(conn, 2.1, states=[JobState.QUEUED]),
    "a list by name": lambda conn: queries.listed(conn, 2.1, name="job 7"),
    "a list by dag": lambda conn: queries.listed(conn, 2.1, dag_id="dag 7"),
    "a list of a rare type": lambda conn: queries.listed(conn, 2.1, job_types=["Rare"]),
    "a list of what came last": lambda conn: queries.listed(conn, 2.1, since_s=60.0),
    "one": lambda conn: queries.shown(conn, 7, 2.1),
    "children": lambda conn: queries.children(conn, 7),
    "events": lambda conn: queries.events(conn, 7),
    "any live": queries.any_live,
    "flagged": lambda conn: statements.flagged(conn, "a runner"),
    "to do": worklist.todo,
    "what waits": worklist.waiting,
    "code that waits": lambda conn: worklist.queued(conn, ["Common"], [None], OWNER, [1, 2, 3], 10),
    "what code asks for": lambda conn: worklist.asked(conn, ["Common", "Other"], OWNER),
    "jobs to claim one by one": lambda conn: worklist.candidates(
        conn, "Common", None, OWNER, ["a/b/c"], [1, 2, 3], 50
    ),
    "workers": lambda conn: worklist.workers(conn, 2.1),
    "workers of known types": lambda conn: worklist.workers(conn, 2.1, ["WorkerJob", "NightWorker"]),
    "kinds of silent jobs": worklist.silent_kinds,
    "silent jobs": lambda conn: worklist.silent(conn, JUDGEABLE, 20_010, 100),
    "orphans": lambda conn: worklist.orphans(conn, [7, 8]),
    "unreadable jobs": lambda conn: worklist.unreadable(conn, OWNER, [1, 2, 3], 100),
}


# --- plans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many_rows_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """20,000 ended jobs, 200 running and 20 queued: filled once for all plans."""
    if request.param == "sqlite":
        import shutil

        path = tmp_path_factory.mktemp("many") / "jobs.db"
        shutil.copy(request.getfixturevalue("_sqlite_template"), path)
        fill(f"sqlite:///{path}")
        yield f"sqlite:///{path}"
        return
    postgres = request.getfixturevalue("postgres")
    name = postgres.create(request.getfixturevalue("_postgres_template"))
    fill(postgres.url(name))
    yield postgres.url(name)
    postgres.drop(name)


def fill(url: str) -> None:
    on_sqlite = url.startswith("sqlite")
    numbers = (
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20220) "
        if on_sqlite
        else "WITH n AS (SELECT generate_series(1, 20220) AS n) "
    )
    when = (
        "datetime('2026-01-01', n || ' seconds')"
        if on_sqlite
        else "'2026-01-01'::timestamptz + n * interval '1 s'"
    )
    plain_sql(
        url,
        f"{numbers} INSERT INTO job "
        "(job_type, name, dag_id, state, heartrate, latest_heartbeat, end_date, hostname) SELECT "
        "CASE WHEN n = 77 THEN 'Rare' WHEN n % 3 = 0 THEN 'Other' ELSE 'Common' END, "
        "'job ' || n, 'dag ' || n / 20, "
        "CASE WHEN n <= 20000 THEN 'success' WHEN n <= 20200 THEN 'running' ELSE 'queued' END, 10, "
        f"{when}, CASE WHEN n <= 20000 THEN {when} END, 'here' FROM n",
    )
    plain_sql(
        url,
        "INSERT INTO job_event (job_id, to_state, actor) SELECT id, 'queued', 'test' FROM job",
    )
    plain_sql(url, "ANALYZE")


@pytest.fixture
def many_rows(many_rows_url: str) -> Iterator[Database]:
    """The filled database as the one of this process."""
    configure(database_url=many_rows_url)
    database = get_database()
    yield database
    database.dispose()


def plans_of(database: Database, ask: Ask) -> list[str]:
    """Ask, and return the plan of each statement that was sent."""
    with calls_of(database) as sent, database.read() as connection:
        ask(connection)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    plans = []
    with database.read() as connection:
        for statement, parameters in sent:
            rows = connection.exec_driver_sql(explain + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in rows))
    return plans


@pytest.mark.parametrize("name", QUESTIONS)
def test_with_many_rows_each_question_goes_by_an_index(many_rows: Database, name: str) -> None:
    for plan in plans_of(many_rows, QUESTIONS[name]):
        assert "Seq Scan" not in plan, plan
        # On SQLite a list walks the rowids from the newest, and ends at its limit, or at that of the
        # window in which it looks first (the co-routine).
        bare = [line for line in plan.strip().splitlines() if line.strip().startswith("SCAN job")]
        walked = [line for line in bare if "INDEX" not in line]
        is_window = plan.startswith("CO-ROUTINE") and len(walked) == 1
        assert not walked or is_window or (name == "a list" and "USE TEMP B-TREE" not in plan), plan


def test_a_rare_type_is_not_looked_for_among_all_rows(many_rows: Database) -> None:
    for plan in plans_of(many_rows, QUESTIONS["most recent of several types"]):
        assert "ix_job_end_date" not in plan, plan


def test_what_a_runner_has_to_kill_is_not_looked_for_among_all_that_it_runs(many_rows: Database) -> None:
    (plan,) = plans_of(many_rows, QUESTIONS["flagged"])
    assert "ix_job_runner_id" in plan, plan


MANY_IDS = range(1, 2_001)
OF_MANY: dict[str, Ask] = {
    "orphans": lambda conn: worklist.orphans(conn, MANY_IDS),
    "where they stand": lambda conn: statements.look(conn, MANY_IDS),
    "whole rows": lambda conn: statements.get_many(conn, MANY_IDS),
    "beats": lambda conn: statements.beat(conn, "a runner", MANY_IDS),
    "others in the queue": lambda conn: worklist.candidates(conn, "Common", None, OWNER, [], MANY_IDS, 50),
}


@pytest.mark.parametrize("name", OF_MANY)
def test_no_row_is_compared_with_one_id_after_the_other(many_rows: Database, name: str) -> None:
    """PostgreSQL puts a constant array into a hash table, and goes through a text that it has to cast."""
    plans = plans_of(many_rows, OF_MANY[name])
    assert plans
    for plan in plans:
        assert "cstring" not in plan, plan
        assert not many_rows.is_sqlite or "SCAN job" not in plan, plan


def test_a_window_of_the_newest_rows_is_bounded(many_rows: Database) -> None:
    with statements_of(many_rows) as sent, many_rows.read() as connection:
        rows = queries.listed(connection, 2.1, job_types=["Common"], limit=3)
    assert [row["id"] for row in rows] == [20219, 20218, 20216][: len(rows)]
    assert any("LIMIT" in statement.split("AS anon")[0] for statement in sent)


def test_a_list_of_what_came_last_ends_where_the_older_ones_begin(many_rows: Database) -> None:
    newest = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    with many_rows.read() as connection:
        assert queries.listed(connection, 2.1, since=newest) == []
        assert len(queries.listed(connection, 2.1, since_s=3600.0, limit=7)) == 7
        assert [row["id"] for row in queries.listed(connection, 2.1, job_types=["Rare"])] == [77]


# --- answers --------------------------------------------------------------------------------------


def ids(rows: list[object]) -> list[int]:
    return [row["id"] for row in rows]  # type: ignore[index]


def test_a_list_is_newest_first_and_filtered_by_all_that_is_asked(database: Database) -> None:
    plain = insert_job(database)
    named = insert_job(database, name="nightly", dag_id="etl")
    typed = insert_job(database, name="nightly", job_type="of.a.Newer.Version")
    running, _ = a_running_job(database)
    with database.read() as connection:

        def listed(**filters: object) -> list[int]:
            return ids(list(queries.listed(connection, 2.1, **filters)))  # type: ignore[arg-type]

        assert listed() == [running.job_id, typed, named, plain]
        assert listed(limit=2) == [running.job_id, typed]
        assert listed(name="nightly") == [typed, named]
        assert listed(name="nightly", dag_id="etl") == [named]
        assert listed(job_types=["of.a.Newer.Version", "Other"]) == [typed]
        assert listed(states=[JobState.RUNNING]) == [running.job_id]
        assert listed(states=["running", "queued"]) == [running.job_id, typed, named, plain]
        assert listed(since_s=3600) == [running.job_id, typed, named, plain]
        assert listed(since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == []


def test_a_list_judges_each_row(database: Database, database_url: str) -> None:
    silent, _ = a_running_job(database)
    plain_sql(database_url, "UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00'")
    alive, _ = a_running_job(database)
    insert_job(database)
    with database.read() as connection:
        rows = {row["id"]: row for row in queries.listed(connection, 2.1)}
    assert [bool(rows[job_id]["alive"]) for job_id in sorted(rows)] == [False, True, False]
    assert rows[silent.job_id]["age_s"] > 1000 > rows[alive.job_id]["age_s"] >= 0


def test_jobs_of_an_unknown_type_are_answered_for_like_all_others(database: Database) -> None:
    job_id = insert_job(database, an_owner(), job_type="of.a.Newer.Version")
    with database.read() as connection:
        assert queries.alive_ids(connection, 2.1) == [job_id]
        assert queries.is_alive(connection, job_id, 2.1)
        shown = queries.shown(connection, job_id, 2.1)
        assert ids(list(queries.listed(connection, 2.1))) == [job_id]
    assert shown is not None
    assert shown["job_type"] == "of.a.Newer.Version"
    assert BaseJob.get(job_id).is_alive()


def test_the_most_recent_is_the_last_that_ended_where_none_runs(many_rows: Database) -> None:
    with many_rows.read() as connection:
        running = queries.most_recent(connection, ["Common", "Other"])
        rare = queries.most_recent(connection, ["Rare", "None"])
        assert queries.most_recent(connection, ["None"]) is None
    assert running is not None
    assert running["state"] == JobState.RUNNING
    assert rare is not None
    assert rare["name"] == "job 77"


def test_what_is_not_there_is_answered_for_as_not_there(database: Database) -> None:
    with database.read() as connection:
        assert queries.most_recent(connection, None) is None
        assert queries.shown(connection, 4711, 2.1) is None
        assert not queries.is_alive(connection, 4711, 2.1)
        assert queries.alive_ids(connection, 2.1) == []
        assert queries.events(connection, 4711) == []
        assert queries.children(connection, 4711) == []
        assert not queries.any_live(connection)


def test_any_live_tells_of_queued_and_running_jobs(database: Database, database_url: str) -> None:
    insert_job(database)
    with database.read() as connection:
        assert queries.any_live(connection)
        plain_sql(database_url, "UPDATE job SET state = 'lost'")
        assert not queries.any_live(connection)
