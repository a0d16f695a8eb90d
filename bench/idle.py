"""How many statements a worker sends while there is nothing for it to do."""

import time
from collections.abc import Iterator

from bench.places import Place
from bench.report import Row
from bench.worker_apart import a_worker, at_work, until

HEARTRATE_S = 5.0
_SETTLE_S = 3.0
_MOST_A_S = 1.0


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the statements a second, counted in the worker's process and by the database."""
    seconds = 10 if quick else 120
    with place.postgresql() as database, a_worker(database, heartrate=HEARTRATE_S) as worker:
        until(lambda: at_work(database) == 1, "the worker looks around", 30)
        time.sleep(_SETTLE_S)
        before, began_s = worker.tell(), time.monotonic()
        time.sleep(seconds)
        after, took_s = worker.tell(), time.monotonic() - began_s
    sent = {
        statement: count - before["statements"].get(statement, 0)
        for statement, count in after["statements"].items()
        if count > before["statements"].get(statement, 0)
    }
    rate = sum(sent.values()) / took_s
    cpu = (after["cpu_s"] - before["cpu_s"]) / took_s
    yield Row(
        f"PostgreSQL: an idle worker, heartrate {HEARTRATE_S:g} s, over {seconds} s",
        f"{rate:.2f} statements a second, {cpu:.2%} of a core",
        f"<= {_MOST_A_S:g} a second",
        rate <= _MOST_A_S,
        {"statements_per_s": rate, "cpu_share": cpu, "statements": sent, "seconds": took_s},
    )
