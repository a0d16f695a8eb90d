"""An Armada job's output, from a stub of Binoculars."""

import asyncio
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.base import LogLine
from jobrunner.errors import LogsUnavailable
from tests.backends.test_armada_conformance import SPEC
from tests.stubs.armada_server import ArmadaStub, serving


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


def read(
    armada: ArmadaStub,
    log: dict[str, list[tuple[str, str]]],
    *,
    since: dt.datetime | None = None,
    **options: Any,
) -> list[LogLine]:
    async def main() -> list[LogLine]:
        backend = ArmadaBackend(ArmadaConnection(**{"url": armada.address, **options}))
        try:
            external_id = await backend.submit(SPEC, "token")
            if log:
                armada.run(external_id)
                armada.job(external_id).log = log
            return [line async for line in backend.logs(external_id, since)]
        finally:
            await backend.close()

    return asyncio.run(main())


def at(second: int, nanoseconds: str = "123456789") -> str:
    return f"2026-03-01T12:00:{second:02d}.{nanoseconds}Z"


def test_lines_come_with_their_time(armada: ArmadaStub) -> None:
    lines = read(armada, {"main": [(at(1), "hello"), (at(2), "world")]}, binoculars_url=armada.address)
    assert [line.text for line in lines] == ["hello", "world"]
    assert lines[0].at == dt.datetime(2026, 3, 1, 12, 0, 1, 123456, tzinfo=dt.UTC)


def test_every_container_is_read(armada: ArmadaStub) -> None:
    log = {"main": [(at(1), "hello")], "sidecar": [(at(1), "ho")]}
    assert [(line.source, line.text) for line in read(armada, log, binoculars_url=armada.address)] == [
        ("main", "hello"),
        ("sidecar", "ho"),
    ]


def test_a_long_output_is_read_page_by_page_without_a_line_twice(armada: ArmadaStub) -> None:
    log = [(at(n // 500, f"{n % 500 // 2:09d}"), f"{n} {'x' * 200}") for n in range(20_000)]
    lines = read(armada, {"main": log}, binoculars_url=armada.address)
    assert [line.text for line in lines] == [text for _, text in log]


def test_only_what_is_new_is_read(armada: ArmadaStub) -> None:
    since = dt.datetime(2026, 3, 1, 12, 0, 2, tzinfo=dt.UTC)
    log = {"main": [(at(1), "old"), (at(2), "new")]}
    assert [line.text for line in read(armada, log, since=since, binoculars_url=armada.address)] == ["new"]


@pytest.mark.parametrize(
    ("has_run", "options", "words"),
    [
        (True, {}, "Armada itself keeps no output: give the connection a `binoculars_url`"),
        (False, {"binoculars_url": "localhost:1"}, "It has no output yet"),
    ],
)
def test_output_that_is_not_to_be_had_is_a_sentence(
    armada: ArmadaStub, options: dict[str, Any], words: str, *, has_run: bool
) -> None:
    with pytest.raises(LogsUnavailable, match=words):
        read(armada, {"main": [(at(1), "x")]} if has_run else {}, **options)


def test_times_with_fewer_digits_sort_as_times_do(armada: ArmadaStub) -> None:
    """A page begins anew at a whole second: what it repeats is told by its time, without a digit lost."""

    def stamp(milliseconds: int) -> str:
        fraction = f"{milliseconds % 1000:03d}".rstrip("0")
        return f"2026-03-01T12:00:{milliseconds // 1000:02d}{'.' * bool(fraction)}{fraction}Z"

    log = [(stamp(2 * n), f"{n} {'x' * 200}") for n in range(20_000)]
    lines = read(armada, {"main": log}, binoculars_url=armada.address)
    assert [line.text for line in lines] == [text for _, text in log]
