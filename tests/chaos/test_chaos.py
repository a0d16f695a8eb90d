"""The short form of `make chaos`: everything at once, for a while."""

import pytest

from tests.chaos.courses import blow
from tests.chaos.report import report
from tests.chaos.seeds import short_seed

SECONDS = 30.0


@pytest.mark.parametrize(
    ("database", "workers"),
    [("postgresql", 1), ("sqlite", 2)],  # on PostgreSQL there are Dask's besides
)
def test_nothing_is_lost_or_done_twice_or_declared_dead_while_it_lives(database: str, workers: int) -> None:
    seed = short_seed()
    said: list[str] = []
    verdict, faults = blow(
        database,
        SECONDS,
        said.append,
        is_short=True,
        seed=seed,
        jobs_per_s=2.0,
        workers=workers,
        dask_workers=1,
        burst=60,
    )
    figures = report(f"{database}, seed {seed}", verdict, faults)
    assert not verdict.wrongs, figures
    assert sum(verdict.jobs.values()) > 10, figures
    assert len(faults.log) > 5, figures
