"""HOT updates: does a beat stay on its page, and what grows with 300,000 of them?

An update is HOT when no indexed column changes and the new version fits on the same page: no index
is touched then, and the next visitor of the page clears the old version away.
"""

from collections.abc import Iterator
from contextlib import closing

from bench.places import RUNNER, Place, fill, settle
from bench.report import Row
from bench.timing import median, ms, side_by_side
from jobrunner import statements
from jobrunner.models.base_job import FILLFACTOR

JOBS = 10_000
_SPECS = (300, 1500, 3000)
_FILLFACTORS = (100, 90, 70, 50)
_AIRFLOW_INDEX = "CREATE INDEX bad_example ON job (state, latest_heartbeat)"


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the share of HOT updates and the growth, by fillfactor and size of the specification."""
    rounds = 6 if quick else 30
    for spec_bytes in (300, 3000) if quick else _SPECS:
        for fillfactor in (FILLFACTOR,) if quick else sorted({*_FILLFACTORS, FILLFACTOR}, reverse=True):
            yield _measured(place, spec_bytes, fillfactor, rounds)
    yield _measured(place, 300, FILLFACTOR, rounds, extra_index=_AIRFLOW_INDEX)


def _measured(place: Place, spec_bytes: int, fillfactor: int, rounds: int, extra_index: str = "") -> Row:
    with place.postgresql() as database:
        with database.read() as connection:
            connection.exec_driver_sql(f"ALTER TABLE job SET (fillfactor = {fillfactor})")
        fill(database, JOBS, spec_bytes=spec_bytes)
        if extra_index:
            with database.read() as connection:
                connection.exec_driver_sql(extra_index)
        settle(database)
        ids = list(range(1, JOBS + 1))
        with closing(database.held()) as held:
            sizes = "SELECT pg_relation_size('job'), pg_indexes_size('job')"
            heap_before, indexes_before = held.exec_driver_sql(sizes).one()
            (took,) = side_by_side(lambda: statements.beat(held, RUNNER, ids), rounds=rounds, warm_up=0)
            held.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job'"
            updates, hot = held.exec_driver_sql(counts).one()
            heap, indexes = held.exec_driver_sql(sizes).one()
            settings = held.exec_driver_sql(
                "SELECT name, setting FROM pg_settings WHERE name LIKE 'autovacuum%%'"
            ).all()
    share = hot / updates
    what = "with Airflow's index" if extra_index else f"fillfactor {fillfactor}"
    promised = fillfactor == FILLFACTOR and not extra_index
    return Row(
        f"{updates:,} beats, spec {spec_bytes} bytes, {what}",
        f"{share:.1%} HOT; heap {_mb(heap_before)} to {_mb(heap)} MB, indexes {_mb(indexes_before)} to "
        f"{_mb(indexes)} MB; {ms(median(took))} a round",
        ">= 95 %" if promised else "",
        share >= 0.95 if promised else None,
        {
            "hot_share": share,
            "heap_bytes": [heap_before, heap],
            "index_bytes": [indexes_before, indexes],
            "round_s": median(took),
            "settings": dict(map(tuple, settings)),
        },
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
