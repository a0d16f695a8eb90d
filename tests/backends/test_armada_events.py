"""The event streams of job sets: hints, resumed from the last one, and opened again when they fall silent."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.armada import events as events_module
from tests.stubs.armada_server import ArmadaStub, serving


@pytest.fixture
def armada(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArmadaStub]:
    monkeypatch.setattr(events_module, "_LOOK_S", 0.02)
    with serving() as stub:
        yield stub


def with_events(
    armada: ArmadaStub, test: Callable[[ArmadaBackend, Any], Awaitable[None]], *, silence_s: float = 60.0
) -> None:
    async def main() -> None:
        backend = ArmadaBackend(ArmadaConnection(url=armada.address, events=True))
        backend._listener.silence_s = silence_s
        stream = backend.events()
        try:
            async with asyncio.timeout(20):
                await test(backend, stream)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
            await backend.close()

    asyncio.run(main())


def streams(armada: ArmadaStub) -> list[Any]:
    return [call.request for call in armada.calls if call.method == "GetJobSetEvents"]


def test_without_the_setting_there_are_no_events(armada: ArmadaStub) -> None:
    assert not hasattr(ArmadaBackend(ArmadaConnection(url=armada.address)), "events")


def test_an_event_of_a_job_set_that_was_asked_about_is_heard(armada: ArmadaStub) -> None:
    ours, theirs = *armada.seed("etl", "ours"), *armada.seed("etl", "theirs")

    async def test(backend: ArmadaBackend, stream: Any) -> None:
        await backend.fetch([ours])
        armada.succeed(theirs)
        armada.succeed(ours)
        assert await anext(stream) == ours

    with_events(armada, test)
    assert {request.id for request in streams(armada)} == {"ours"}


def test_a_stream_that_fell_silent_is_opened_again_where_it_ended(armada: ArmadaStub) -> None:
    (ours,) = armada.seed("etl", "ours")

    async def test(backend: ArmadaBackend, stream: Any) -> None:
        await backend.fetch([ours])
        armada.run(ours)
        assert await anext(stream) == ours
        armada.silence_streams()
        armada.succeed(ours)
        assert await anext(stream) == ours

    with_events(armada, test, silence_s=0.3)
    first, *_, last = streams(armada)
    assert first.from_message_id.endswith(":0:0:1")
    assert last.from_message_id not in {"", first.from_message_id}


def test_a_stream_that_is_refused_is_tried_again(armada: ArmadaStub) -> None:
    (ours,) = armada.seed("etl", "ours")
    armada.fault("GetJobSetEvents", grpc.StatusCode.UNAVAILABLE, "not now")

    async def test(backend: ArmadaBackend, stream: Any) -> None:
        await backend.fetch([ours])
        armada.succeed(ours)
        assert await anext(stream) == ours

    with_events(armada, test)
    assert len(streams(armada)) == 2


def test_who_takes_his_time_with_an_event_hears_the_next(armada: ArmadaStub) -> None:
    """The look for new job sets is bounded in time; who was told of an event must not be cut off by it."""
    one, other = armada.seed("etl", "ours", 2)

    async def test(backend: ArmadaBackend, stream: Any) -> None:
        await backend.fetch([one, other])
        armada.succeed(one)
        assert await anext(stream) == one
        await asyncio.sleep(5 * events_module._LOOK_S)
        armada.succeed(other)
        assert await anext(stream) == other

    with_events(armada, test)


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN])
def test_a_message_id_that_is_refused_is_not_insisted_on(armada: ArmadaStub, code: grpc.StatusCode) -> None:
    """It may be too old by now, or of another form than this server's."""
    (ours,) = armada.seed("etl", "ours")
    armada.fault("GetJobSetEvents", code, "invalid from_message_id")

    async def test(backend: ArmadaBackend, stream: Any) -> None:
        await backend.fetch([ours])
        armada.succeed(ours)
        assert await anext(stream) == ours

    with_events(armada, test)
    first, second = streams(armada)
    assert first.from_message_id.endswith(":0:0:1")
    assert second.from_message_id == ""


def test_without_the_setting_no_job_set_is_remembered(armada: ArmadaStub) -> None:
    async def main() -> None:
        backend = ArmadaBackend(ArmadaConnection(url=armada.address))
        await backend.fetch(armada.seed("etl", "ours"))
        assert not backend._listener._asked_s
        await backend.close()

    asyncio.run(main())
