"""What the tests of the Airbyte backend share."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection
from jobrunner.backends.airbyte.client import Api
from jobrunner.clock import monotonic_s
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub

SPEC = {"connectionId": CONNECTION, "jobType": "sync", "onConflict": "adopt"}


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Let a test be a coroutine."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


def options_of(stub: AirbyteStub, **changes: Any) -> AirbyteConnection:
    """Return a connection to the stub, let in as its `auth` demands."""
    ways: dict[str, dict[str, Any]] = {
        "client": {"client_id": stub.client_id, "client_secret": stub.client_secret},
        "bearer": {"token": "hunter2"},
        "basic": {"username": "ana", "password": "hunter2"},
        "none": {},
    }
    return AirbyteConnection.model_validate({"url": stub.url, **ways[stub.auth], **changes})


@asynccontextmanager
async def an_api(stub: AirbyteStub, **changes: Any) -> AsyncIterator[Api]:
    api = Api(options_of(stub, **changes))
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def a_backend(
    stub: AirbyteStub, connection: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[AirbyteBackend]:
    """Give a backend that holds nothing for fresh, and doubts briefly."""
    chosen = {"fresh_s": 0.0, "doubt_s": 0.2, **options}
    backend = AirbyteBackend(options_of(stub, **(connection or {})), **chosen)
    try:
        yield backend
    finally:
        await backend.close()


async def soon(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds, while the event loop goes on."""
    end_s = monotonic_s() + timeout_s
    while not condition():
        assert monotonic_s() < end_s, "it never came to be"
        await asyncio.sleep(0.005)
