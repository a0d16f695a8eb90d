"""The one way by which every call to Armada leaves: its channels, its credentials, a deadline on each call.

A call is made once and never repeated here: whoever asked decides what its failure means.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.trouble import ArmadaError, Kind, trouble_of
from jobrunner.backends.base import ensure_in_time
from jobrunner.clock import monotonic_s
from jobrunner.errors import NotSent, SettingsError
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
        self._token: tuple[tuple[int, int, int], str] | None = None

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
        except grpc.RpcError as error:
            trouble = trouble_of(error, method, place, timeout_s)
            self._note(trouble, address)
            raise self._without_secrets(trouble) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ArmadaError(f"{method} was cut off, for its channel was closed", Kind.UNCLEAR) from None
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise ArmadaError(f"{method} could not be made: {error}", Kind.UNCLEAR) from None
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
        call = getattr(self._stub(service, None), method)(request, metadata=self._metadata(None))
        if not hasattr(call, "__aiter__"):
            call.cancel()
            raise ArmadaError(f"{method} needs an asyncio client, and a blocking one was given", Kind.REFUSED)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise self._without_secrets(trouble_of(error, method, self.place, 0)) from None
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
            self._loop, self._channels = loop, {}
        if address not in self._channels:
            grpc = _required("grpc")
            if self.options.uses_tls:
                self._channels[address] = grpc.aio.secure_channel(
                    address, _credentials(grpc, self.options), options=_OPTIONS
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
            if error.kind is Kind.NOT_ARMADA:
                return error
            if error.kind is Kind.NETWORK:
                return NotSent(str(error).replace("for Health", f"for {method}", 1))
        return NotSent(f"{self.place} could not be reached for {method} a moment ago")

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

    # --- credentials -----------------------------------------------------------------------------

    def _metadata(self, address: str | None) -> tuple[tuple[str, str], ...]:
        """Return who asks. As metadata, because gRPC's call credentials refuse a plain connection."""
        if self._given is not None and address is None:
            return ()
        options = self.options
        if options.username is not None and options.password is not None:
            pair = f"{options.username}:{options.password.get_secret_value()}".encode()
            return (("authorization", f"Basic {base64.b64encode(pair).decode()}"),)
        token = options.token.get_secret_value() if options.token is not None else self._token_in_file()
        return (("authorization", f"Bearer {token}"),) if token is not None else ()

    def _token_in_file(self) -> str | None:
        path = self.options.token_file
        if path is None:
            return None
        try:
            found = path.stat()
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._token is None or self._token[0] != mark:
                self._token = mark, path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no token"
            raise ArmadaError(f"the token file {path} cannot be read ({reason})", Kind.CREDENTIALS) from None
        token = self._token[1]
        if not token or not token.isprintable():
            raise ArmadaError(f"the token file {path} holds no token", Kind.CREDENTIALS)
        return token

    def _without_secrets(self, error: ArmadaError) -> ArmadaError:
        """Return the error without what a server, or a proxy, repeated of the credentials."""
        options = self.options
        given = [each.get_secret_value() for each in (options.password, options.token) if each is not None]
        secrets = [each for each in (*given, self._token[1] if self._token else "") if each]
        told = str(error)
        if not any(secret in told for secret in secrets):
            return error
        for secret in secrets:
            told = told.replace(secret, "***")
        return ArmadaError(told, error.kind, most=error.most)


async def _made(grpc: Any, method: Any, request: Any, timeout_s: float, metadata: Any) -> Any:
    if not isinstance(method, grpc.UnaryUnaryMultiCallable):
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


def _credentials(grpc: Any, options: ArmadaConnection) -> Any:
    files = (options.ca_file, options.client_key_file, options.client_cert_file)
    found: list[bytes | None] = []
    for path in files:
        try:
            found.append(path.read_bytes() if path is not None else None)
        except OSError as error:
            raise SettingsError(f"The file {path} cannot be read ({error.strerror}).") from None
    return grpc.ssl_channel_credentials(*found)
