"""What happens again and again is logged once a minute, and counted."""

import logging

import pytest

from jobrunner.log_limits import AGAIN_S, EVENT_MOST, Once, Seldom, Trouble
from jobrunner.logs import get_logger

log = get_logger("jobrunner.test")


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_each_subject_is_new_once_and_of_a_flood_only_the_first_are() -> None:
    once = Once(most=3)
    assert [once.is_new(each) for each in (1, 1, 2, "a", "b", 2)] == [True, False, True, True, False, False]
    assert len(once._seen) == 3


def test_the_same_is_logged_again_after_a_minute_and_says_how_often_it_happened(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    seldom = Seldom(clock)
    for _ in range(5):
        seldom.warning(log, "it failed", about=7, job=7)
        clock.now_s += AGAIN_S / 4
    assert messages(caplog) == ["it failed job=7", "it failed times=4 job=7"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_of_one_event_few_messages_are_logged_whatever_they_are_about(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    seldom = Seldom(clock)
    for job in range(5_000):
        seldom.error(log, "it failed", about=job, job=job)
    seldom.error(log, "another", job=1)
    assert len(messages(caplog)) == EVENT_MOST + 1
    clock.now_s += AGAIN_S
    seldom.error(log, "it failed", about=1, job=1)
    assert messages(caplog)[-1] == f"it failed times={5_000 - EVENT_MOST + 1} job=1"
    assert len(seldom._said_s) == 1


def test_nothing_is_kept_of_what_may_be_logged_again(clock: Clock) -> None:
    seldom = Seldom(clock)
    for job in range(10_000):
        clock.now_s += AGAIN_S / 5
        seldom.warning(log, f"event {job % 7} failed", about=job)
        assert len(seldom._said_s) <= 5
        assert sum(map(len, seldom._of_event.values())) <= 5


def test_trouble_that_comes_and_goes_is_logged_once_a_minute(clock: Clock) -> None:
    trouble = Trouble(clock)
    said = []
    for _ in range(100):
        said += [trouble.begins(), trouble.begins(), trouble.ends(), trouble.ends()]
        clock.now_s += AGAIN_S / 10
    assert said.count(True) == 2 * 10
    assert said[:4] == [True, False, True, False]


def test_trouble_that_lasts_is_logged_however_soon_it_came_again(clock: Clock) -> None:
    trouble = Trouble(clock)
    assert trouble.begins()
    assert trouble.ends()
    clock.now_s += 1
    assert not trouble.begins()
    clock.now_s += AGAIN_S
    assert trouble.begins()
    assert trouble.ends()
    assert not trouble.ends()
