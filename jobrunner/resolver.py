"""Host names to addresses, in bounded time.

No timeout of libpq or psycopg covers the system's resolver, which may take minutes where a name server
is silent. It is asked on a thread of its own; where it has no answer in time, the addresses that it
gave before are used again.
"""

import os
import socket
import threading
from dataclasses import dataclass, field

from jobrunner.logs import get_logger

log = get_logger(__name__)

_KNOWN_WAIT_S = 1.0
"""How long an answer is waited for where an earlier one is known."""


class NotResolved(OSError):
    """A host name has no address, or none was found in time."""


@dataclass(slots=True, eq=False)
class _Lookup:
    """One question to the system's resolver; whoever asks for the same name meanwhile shares it."""

    host: str
    done: threading.Event = field(default_factory=threading.Event)
    addresses: tuple[str, ...] = ()
    error: Exception | None = None

    def ask(self) -> None:
        try:
            found = socket.getaddrinfo(self.host, None, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
            self.addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, ValueError) as error:  # a name that IDNA cannot encode is a UnicodeError
            self.error = error
        finally:
            self.done.set()


class Resolver:
    """Resolves names: at most one thread a name, however many ask, and however long it takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[str, _Lookup] = {}
        self._known: dict[str, tuple[str, ...]] = {}

    def addresses(self, host: str, timeout_s: float) -> tuple[str, ...]:
        """Return the addresses of `host`, after at most `timeout_s` seconds. Raises `NotResolved`."""
        known = self._known.get(host)
        lookup = self._lookup(host)
        in_time = lookup.done.wait(timeout_s if known is None else min(timeout_s, _KNOWN_WAIT_S))
        if in_time and lookup.addresses:
            self._known[host] = lookup.addresses
            return lookup.addresses
        if known is not None and (not in_time or _may_pass(lookup.error)):
            log.debug("name not resolved: its last known addresses are used", host=host)
            return known
        why = lookup.error if in_time else f"no answer from the resolver within {timeout_s:g} s"
        raise NotResolved(f"failed to resolve host {host!r}: {why or 'it has no address'}")

    def _lookup(self, host: str) -> _Lookup:
        with self._lock:
            lookup = self._lookups.get(host)
            if lookup is None or lookup.done.is_set():
                lookup = self._lookups[host] = _Lookup(host)
                threading.Thread(target=lookup.ask, name="jobrunner-resolver", daemon=True).start()
            return lookup


def _may_pass(error: Exception | None) -> bool:
    return isinstance(error, socket.gaierror) and error.errno in {socket.EAI_AGAIN, socket.EAI_FAIL}


resolver = Resolver()
os.register_at_fork(after_in_child=resolver.__init__)  # type: ignore[misc]  # a fork has no threads
