"""Hints of a kill: heard within milliseconds, never trusted, cheap to wait for."""

import logging
import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from jobrunner import hints as module
from jobrunner.database import Database, get_database
from jobrunner.hints import Hints, Wake
from jobrunner.settings import configure
from tests.helpers import a_running_job, insert_job, plain_sql, until
from tests.postgres import Postgres

KILL = "UPDATE job SET kill_requested_at = '2026-03-01 12:00:00'"


@pytest.fixture
def hints(database: Database) -> Iterator[Hints]:
    """Hints that listen, with nothing to hear yet."""
    listening = Hints(database)
    settle(listening)
    yield listening
    listening.close()


def settle(hints: Hints) -> None:
    """Take in the first look and the echo."""
    until(lambda: not hints.wait(0.2))


def later(do: object, after_s: float = 0.1) -> threading.Timer:
    timer = threading.Timer(after_s, do)  # type: ignore[arg-type]
    timer.start()
    return timer


def test_the_first_wait_looks_at_once_for_what_was_set_before(database: Database) -> None:
    hints = Hints(database)
    begun_s = time.monotonic()
    assert hints.wait(30)
    assert time.monotonic() - begun_s < 10
    hints.close()


def test_a_flag_set_by_plain_sql_ends_the_wait(hints: Hints, database: Database, database_url: str) -> None:
    a_running_job(database)
    settle(hints)
    timer = later(lambda: plain_sql(database_url, KILL))
    begun_s = time.monotonic()
    assert hints.wait(30)
    assert time.monotonic() - begun_s < 2
    timer.join()


def test_a_flag_set_between_two_waits_is_heard_by_the_next(
    hints: Hints, database: Database, database_url: str
) -> None:
    a_running_job(database)
    settle(hints)
    plain_sql(database_url, KILL)
    begun_s = time.monotonic()
    assert hints.wait(30)
    assert time.monotonic() - begun_s < 2


def test_a_wait_without_a_hint_lasts_as_long_as_it_was_told(hints: Hints) -> None:
    begun_s = time.monotonic()
    assert not hints.wait(0.3)
    assert 0.29 < time.monotonic() - begun_s < 5


def test_beats_and_other_writes_are_no_hint_on_postgresql(
    postgres_database: Database, postgres_url: str
) -> None:
    hints = Hints(postgres_database)
    insert_job(postgres_database)
    settle(hints)
    plain_sql(postgres_url, "UPDATE job SET latest_heartbeat = now(), name = 'x'")
    plain_sql(postgres_url, "UPDATE job SET kill_requested_at = NULL")
    assert not hints.wait(0.3)
    hints.close()


def test_waiting_costs_next_to_nothing(hints: Hints) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun_s = time.monotonic()
    while (left_s := begun_s + 1 - time.monotonic()) > 0:
        hints.wait(left_s)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s / (time.monotonic() - begun_s) < 0.05


# --- to wake a waiting thread ---------------------------------------------------------------------


def test_a_wake_ends_the_wait_of_another_thread(database: Database) -> None:
    wake = Wake()
    hints = Hints(database, wake)
    settle(hints)
    timer = later(wake.set)
    begun_s = time.monotonic()
    hints.wait(30)
    assert time.monotonic() - begun_s < 5
    timer.join()
    begun_s = time.monotonic()
    hints.wait(0.2)
    assert time.monotonic() - begun_s > 0.19, "it was taken back"
    hints.close()
    wake.close()


def test_a_wake_that_was_set_before_ends_the_next_wait_however_often_it_was_set() -> None:
    wake = Wake()
    for _ in range(100_000):
        wake.set()
    wake.clear()
    os.set_blocking(wake.fileno(), False)
    with pytest.raises(BlockingIOError):
        os.read(wake.fileno(), 1)
    wake.close()


def test_descriptors_beyond_a_thousand_are_waited_for(database: Database) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    wake = Wake()
    hints = Hints(database, wake)
    try:
        settle(hints)
        wake.set()
        assert not hints.wait(5)
    finally:
        hints.close()
        wake.close()
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a deaf ear -----------------------------------------------------------------------------------


def test_where_no_echo_comes_it_says_so_once_and_looks_every_second(
    postgres: Postgres,
    postgres_url: str,
    empty_postgres_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobrunner.ears._ECHO_S", 0.2)
    monkeypatch.setattr(module, "_DEAF_LOOK_S", 0.1)
    monkeypatch.setattr(module, "_MEND_S", 0.5)
    configure(database_url=postgres_url, listen_url=empty_postgres_url)
    hints = Hints(get_database())
    with caplog.at_level(logging.INFO):
        looks = 0
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < 2:
            looks += hints.wait(0.4)
    hints.close()
    said = [message for message in caplog.messages if "kill hints are not heard" in message]
    assert len(said) == 1
    assert "no echo came: set listen_url" in said[0]
    assert looks >= 4


def test_waiting_for_the_echo_makes_no_beat_late(postgres_url: str, empty_postgres_url: str) -> None:
    configure(database_url=postgres_url, listen_url=empty_postgres_url)
    hints = Hints(get_database())
    hints.wait(0.1)
    begun_s = time.monotonic()
    hints.wait(0.1)
    assert time.monotonic() - begun_s < 1
    hints.close()


def test_a_listener_that_was_cut_off_listens_again(
    postgres_database: Database,
    postgres_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MEND_S", 0.1)
    monkeypatch.setattr(module, "_DEAF_LOOK_S", 0.05)
    a_running_job(postgres_database)
    hints = Hints(postgres_database)
    settle(hints)
    listeners = "SELECT pid FROM pg_stat_activity WHERE application_name = 'jobrunner listen'"
    (before,) = plain_sql(postgres_url, listeners)
    with caplog.at_level(logging.INFO):
        plain_sql(postgres_url, f"SELECT pg_terminate_backend({before[0]})")
        until(lambda: hints.wait(5))  # it says look, because something may have been missed
        settle(hints)
    assert len([message for message in caplog.messages if "not heard" in message]) == 1
    (after,) = plain_sql(postgres_url, listeners)
    assert after != before
    timer = later(lambda: plain_sql(postgres_url, KILL))
    begun_s = time.monotonic()
    assert hints.wait(30)
    assert time.monotonic() - begun_s < 2
    timer.join()
    hints.close()


def test_listen_url_may_name_a_variable_of_the_environment(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DIRECT_URL", postgres_url)
    configure(database_url=postgres_url, listen_url="${env:DIRECT_URL}")
    hints = Hints(get_database())
    settle(hints)
    assert "not heard" not in caplog.text
    hints.close()


def test_a_listener_outlives_the_idle_time_that_a_role_allows(postgres: Postgres, postgres_url: str) -> None:
    name = plain_sql(postgres_url, "SELECT current_database()")[0][0]
    plain_sql(postgres_url, f"ALTER ROLE postgres IN DATABASE {name} SET idle_session_timeout = '300ms'")
    configure(database_url=postgres_url)
    database = get_database()
    a_running_job(database)
    hints = Hints(database)
    settle(hints)
    time.sleep(1)  # longer than a session may be idle
    plain_sql(postgres_url, KILL)
    assert hints.wait(30)
    assert hints._listener is not None
    assert not hints._listener.has_said_deaf
    hints.close()
