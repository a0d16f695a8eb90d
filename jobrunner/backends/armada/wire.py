"""The one way by which every call to Armada leaves: its channels, its credentials, a deadline on each call.

A call is made once and never repeated here: whoever asked decides what its failure means.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.credentials import Credentials, ssl_of
from jobrunner.backends.armada.trouble import ArmadaError, Kind, trouble_of
from jobrunner.backends.base import ensure_in_time
from jobrunner.clock import monotonic_s
from jobrunner.errors import NotSent
from jobrunner.extras import require

_MODULES = {"Submit": "submit", "Jobs": "job", "Event": "event", "Binoculars": "binoculars"}
_STUBS_OF_A_CLIENT = {"Submit": "submit_stub", "Jobs": "job_stub", "Event": "event_stub"}

_SILENT_CALLS_MOST = 2  # then the connection may lead nowhere, and a new one is made
_CLOSE_S = 2.0
_WHY_S = 3.0
_LARGEST_ANSWER = 64 * 1024 * 1024  # the errors of 500 jobs

_OPTIONS = (
    # What gRPC repeats by itself it repeats where nothing was sent; even that is ours to decide.
    ("grpc.enable_retries", 0),
    # Channels to one address would share their connection, and how long they wait for it, for ever.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", _LARGEST_ANSWER),
)


def messages(of: str) -> Any:
    """Return armada-client's module of messages `of` submit, job, event or binoculars."""
    return _required(f"armada_client.armada.{of}_pb2")


def _required(module: str) -> Any:
    # gRPC's core writes of each handshake that fails to standard error, past all logging.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return require(module, "armada", "Armada")


def is_usable(given: Any) -> bool:
    """Whether it may be given in place of a connection's own channel.

    Raises `UsageError` where armada-client is not installed.
    """
    grpc = _required("grpc")
    if isinstance(given, grpc.Channel | grpc.aio.Channel):
        return True
    return all(getattr(given, name, None) is not None for name in ("submit_stub", "job_stub"))


class Wire:
    """Makes the calls of one connection. Channels are made when they are used, one for each address.

    `given`: a client of armada-client, or a gRPC channel, to be used in place of the connection's own.
    """

    def __init__(self, options: ArmadaConnection, given: Any = None) -> None:
        self.options = options
        self._given = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: dict[str, Any] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._silent_calls = 0
        self._who = Credentials(options)

    @property
    def place(self) -> str:
        """The server, as a person may see it."""
        return self.options.url if self._given is None else "the given client's server"

    async def call(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_s: float | None = None,
        address: str | None = None,
    ) -> Any:
        """Call one method and return its answer. `timeout_s`: the connection's own, unless given.

        Raises `ArmadaError`, and `UsageError` where armada-client is not installed.
        """
        grpc = _required("grpc")
        timeout_s = timeout_s or self.options.call_timeout_s
        place = self.place if address is None else address
        stub, metadata = self._stub(service, address), self._metadata(address)
        try:
            answer = await _made(grpc, getattr(stub, method), request, timeout_s, metadata)
        except grpc.FutureCancelledError:
            raise ArmadaError(f"{method} was cut off, for its channel was closed", Kind.UNCLEAR) from None
        except grpc.RpcError as error:
            trouble = trouble_of(error, method, place, timeout_s)
            self._note(trouble, address)
            raise self._who.masked(trouble) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ArmadaError(f"{method} was cut off, for its channel was closed", Kind.UNCLEAR) from None
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise ArmadaError(f"{method} could not be made: {error}", Kind.UNCLEAR) from None
        except ValueError as error:  # how a blocking channel says that it was closed: nothing was sent
            raise ArmadaError(f"{method} could not be made: {error}", Kind.REFUSED) from None
        self._silent_calls = 0
        return answer

    async def send_once(self, service: str, method: str, request: Any) -> Any:
        """Make a call that must not be made twice: over a connection that stands, and in time.

        Raises `NotSent` where there was no connection, so that nothing can have left; `SubmitTooLate`;
        and what `call` raises.
        """
        if self._given is None:
            await self._connect(method)
        ensure_in_time()
        return await self.call(service, method, request)

    async def stream(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        """Yield what a streaming method sends, until it ends. Raises `ArmadaError`."""
        grpc = _required("grpc")
        multi = getattr(self._stub(service, None), method)
        _ensure_at_home(multi)
        call = multi(request, metadata=self._metadata(None))
        if not hasattr(call, "__aiter__"):
            call.cancel()
            raise ArmadaError(f"{method} needs an asyncio client, and a blocking one was given", Kind.REFUSED)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise self._who.masked(trouble_of(error, method, self.place, 0)) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channels that were made here; a given client stays its owner's."""
        channels, self._channels = list(self._channels.values()), {}
        if self._loop is asyncio.get_running_loop():
            for channel in channels:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_S):
                        await channel.close()
            for task in list(self._closing):
                task.cancel()
            await asyncio.gather(*self._closing, return_exceptions=True)

    # --- channels --------------------------------------------------------------------------------

    def _stub(self, service: str, address: str | None) -> Any:
        if self._given is not None and address is None:
            stub = getattr(self._given, _STUBS_OF_A_CLIENT[service], None)
            if stub is not None:
                return stub
        module = _required(f"armada_client.armada.{_MODULES[service]}_pb2_grpc")
        given = self._given if address is None else None
        return getattr(module, f"{service}Stub")(given or self._channel(address or self.options.url))

    def _channel(self, address: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a channel lives in one loop
            self._loop, self._channels, self._closing = loop, {}, set()
        if address not in self._channels:
            grpc = _required("grpc")
            if self.options.uses_tls:
                self._channels[address] = grpc.aio.secure_channel(
                    address, ssl_of(grpc, self.options), options=_OPTIONS
                )
            else:
                self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return self._channels[address]

    async def _connect(self, method: str) -> None:
        """Wait until the connection stands. Raises `NotSent`, and `ArmadaError` where it is no Armada."""
        grpc = _required("grpc")
        state_of = grpc.ChannelConnectivity
        channel = self._channel(self.options.url)
        until_s = monotonic_s() + self.options.call_timeout_s
        state = channel.get_state(try_to_connect=True)
        while state is not state_of.READY:
            if state in {state_of.TRANSIENT_FAILURE, state_of.SHUTDOWN}:
                raise await self._why_unreachable(method)
            try:
                async with asyncio.timeout(until_s - monotonic_s()):
                    await channel.wait_for_state_change(state)
            except TimeoutError:
                raise NotSent(
                    f"{self.place} cannot be reached for {method} (no connection within "
                    f"{self.options.call_timeout_s:g} s)"
                ) from None
            state = channel.get_state(try_to_connect=True)

    async def _why_unreachable(self, method: str) -> Exception:
        """Return what to raise for a connection that failed; why it did, only a call is told."""
        from google.protobuf import empty_pb2

        try:
            await self.call("Submit", "Health", empty_pb2.Empty(), timeout_s=_WHY_S)
        except ArmadaError as error:
            if error.kind is Kind.NOT_ARMADA and not error.is_missing_method:
                return error
            if error.kind is Kind.NETWORK:
                return NotSent(str(error).replace("for Health", f"for {method}", 1))
        return NotSent(f"{self.place} could not be reached for {method} a moment ago")

    def _metadata(self, address: str | None) -> tuple[tuple[str, str], ...]:
        # A given client brings its own credentials.
        return () if self._given is not None and address is None else self._who.metadata()

    def _note(self, trouble: ArmadaError, address: str | None) -> None:
        """Make a new connection where this one may lead nowhere; TCP itself notices that after 15 minutes."""
        self._silent_calls = self._silent_calls + 1 if trouble.kind is Kind.NO_ANSWER else 0
        if self._silent_calls < _SILENT_CALLS_MOST:
            return
        self._silent_calls = 0
        channel = self._channels.pop(address or self.options.url, None)
        if channel is not None:  # calls under way may still be answered
            task = asyncio.get_running_loop().create_task(channel.close(self.options.call_timeout_s))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _ensure_at_home(method: Any) -> None:
    """Refuse a given asyncio client of another event loop, in which a call would never be answered."""
    home = getattr(method, "_loop", None)
    if home is not None and home is not asyncio.get_running_loop():
        raise ArmadaError(
            "the given asyncio client belongs to another event loop: give a blocking ArmadaClient",
            Kind.REFUSED,
        )


async def _made(grpc: Any, method: Any, request: Any, timeout_s: float, metadata: Any) -> Any:
    if not isinstance(method, grpc.UnaryUnaryMultiCallable):
        _ensure_at_home(method)
        return await method(request, timeout=timeout_s, metadata=metadata)
    # A blocking client's: its answer comes on a thread of gRPC's own.
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()
    call = method.future(request, timeout=timeout_s, metadata=metadata)
    call.add_done_callback(lambda _call: _tell(loop, answered))
    try:
        await answered.wait()
    except asyncio.CancelledError:
        call.cancel()
        raise
    return call.result()


def _tell(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed meanwhile: nobody wants to know
        loop.call_soon_threadsafe(answered.set)
