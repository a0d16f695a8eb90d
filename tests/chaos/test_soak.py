"""The short form of the soak, and that its judge finds what grows."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.seeds import short_seed
from tests.chaos.soak.apart import soak
from tests.chaos.soak.flatness import ENTRIES_MOST, growths
from tests.chaos.soak.holdings import Holdings

JOBS, ROUNDS = 600, 3


def test_what_a_process_holds_is_flat() -> None:
    said: list[str] = []
    seed = short_seed()
    assert soak("sqlite", JOBS, said.append, seed=seed, rounds=ROUNDS), "\n".join([f"seed {seed}", *said])


def looks() -> list[Holdings]:
    """Return what a process holds that has something under way at each look, another each time."""
    rng = random.Random(7)
    return [
        Holdings(
            jobs=2_500 * number,
            rss_mb=100.0 + rng.random(),
            blocks=500_000 + rng.randrange(2_000),
            descriptors=Counter(socket=20 + rng.randrange(3)),
            threads=Counter(database=4),
            objects=Counter({"jobrunner.owned.OwnedJob": rng.randrange(40), "builtins.dict": 15_000}),
            entries=Counter({"jobrunner.runner.Runner.jobs": rng.randrange(40)}),
        )
        for number in range(1, 21)
    ]


def test_what_depends_on_what_is_under_way_is_flat() -> None:
    assert growths(looks()) == []


@pytest.mark.parametrize(
    ("title", "name", "one_in"),
    [
        ("entries", "jobrunner.backends.process.cancelling.Canceller._asked", 1_000),
        ("objects", "jobrunner.owned.OwnedJob", 500),
        ("objects", "builtins.dict", 10),
        ("descriptors", "socket", 1_000),
        ("threads", "database", 1_000),
    ],
)
def test_one_that_is_kept_of_so_many_jobs_is_found(title: str, name: str, one_in: int) -> None:
    leaking = [
        replace(look, **{title: getattr(look, title) + Counter({name: look.jobs // one_in})})
        for look in looks()
    ]
    (growth,) = growths(leaking)
    assert growth.what == f"{title}: {name}"
    assert growth.after - growth.before > ENTRIES_MOST


def test_memory_that_no_object_shows_is_found() -> None:
    leaking = [replace(look, rss_mb=look.rss_mb + look.jobs / 1_000) for look in looks()]
    assert [growth.what for growth in growths(leaking)] == ["rss_mb"]
    leaking = [replace(look, blocks=look.blocks + look.jobs) for look in looks()]
    assert [growth.what for growth in growths(leaking)] == ["blocks"]
