"""The short form of `make chaos`: everything at once, for a while."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.chaos.courses import (
    a_directory,
    a_server,
    a_small_disk,
    blow,
    on_postgres,
    on_sqlite,
    the_short_form_of,
    upgraded,
)
from tests.chaos.report import report
from tests.chaos.storm import Phase, Storm

SECONDS = 30.0


@pytest.fixture
def drawn() -> dict[str, Any]:
    """Return what a storm is to be: another one each time."""
    return {"seed": random.randrange(1_000_000), "jobs_per_s": 2.0, "workers": 1}


def check(storm: Storm, phases: Sequence[Phase], drawn: dict[str, Any]) -> None:
    verdict, faults = blow(storm, the_short_form_of(phases), lambda _words: None)
    figures = report(f"seed {drawn['seed']}", verdict, faults)
    assert not verdict.wrongs, figures
    assert sum(verdict.jobs.values()) > 10, figures
    assert len(faults.log) > 5, figures


def test_nothing_is_lost_or_done_twice_on_postgresql_and_dask(drawn: dict[str, Any]) -> None:
    with a_directory() as directory, a_server(directory) as (server, url):
        check(Storm(directory, url, postgres=server, dask_workers=1, **drawn), on_postgres(SECONDS), drawn)


def test_nothing_is_lost_or_done_twice_on_sqlite_with_a_full_disk(drawn: dict[str, Any]) -> None:
    drawn["workers"] = 2
    with a_directory() as directory, a_small_disk(directory) as disk:
        url = upgraded(f"sqlite:///{(disk or directory) / 'jobs.db'}")
        storm = Storm(directory, url, small_disk=disk, dask_workers=0, **drawn)
        check(storm, on_sqlite(SECONDS, has_small_disk=disk is not None), drawn)
