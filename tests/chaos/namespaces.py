"""Hosts in network namespaces of their own, each of which can be cut off from one service alone."""

import ctypes
import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.proxy import Address, Relay

# Of 198.18.0.0/15, which RFC 2544 sets apart for the measuring of networks.
DATABASE, BACKEND = "198.19.0.2", "198.19.0.3"
_GATEWAY = "198.19.0.1"

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_numbers = itertools.count()


@functools.cache
def why_not() -> str | None:
    """Return why there can be no such network here; None: one was made, and taken down again."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip`"
    try:
        with a_network() as network:
            host = network.add_host()
            network.cut(host, DATABASE)
            _ip("netns", "exec", host.namespace, "true")
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` was refused: {error.stderr.strip()}"
    return None


class Host:
    """A network namespace with an address, and the processes in it."""

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace, self.address = namespace, address
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], out: Path, err: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process in it, which is killed at the latest with the network."""
        with out.open("wb") as said, err.open("wb") as complained:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],  # `ip` becomes the command: same pid
                cwd=out.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complained,
            )
        self._started.append(process)
        return process

    def kill(self) -> None:
        """End the processes."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


class Network:
    """Hosts, a router, and a namespace in which the services listen; this machine's own stays as it is."""

    def __init__(self) -> None:
        self._name = f"jobrunner-{os.getpid()}-{next(_numbers)}"
        self._router, self._services = f"{self._name}-router", f"{self._name}-services"
        self._namespaces: list[str] = []
        self._hosts: list[Host] = []
        self._relays: list[Relay] = []

    def open(self) -> None:
        """Make the router, and the namespace of the services behind it."""
        self._add_namespace(self._router)
        _ip("netns", "exec", self._router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._connect(self._services, _GATEWAY, DATABASE, BACKEND)

    def close(self) -> None:
        """Take everything down that was made."""
        for host in self._hosts:
            host.kill()
        for relay in self._relays:
            relay.close()
        for namespace in self._namespaces:
            with suppress(subprocess.CalledProcessError):  # the others are taken down all the same
                _ip("netns", "delete", namespace)

    def add_host(self) -> Host:
        """Make a host that reaches the services."""
        number = len(self._hosts)
        host = Host(f"{self._name}-host{number}", f"198.18.{number}.2")
        self._hosts.append(host)
        self._connect(host.namespace, f"198.18.{number}.1", host.address)
        return host

    def serve(self, service: str, server: Address) -> int:
        """Let a service listen, and pass what it hears on to a server of this machine; return its port."""
        with ThreadPoolExecutor(1) as thread:  # it enters the namespace, and ends there
            listener = thread.submit(_listen, self._services, service).result()
        self._relays.append(Relay(listener, server))
        return int(listener.getsockname()[1])

    def cut(self, host: Host, service: str) -> None:
        """Lose all packets between a host and a service, in both directions and without a word."""
        self._rule("add", host, service)

    def heal(self, host: Host, service: str) -> None:
        """Lose them no more."""
        self._rule("delete", host, service)

    def _rule(self, verb: str, host: Host, service: str) -> None:
        for source, target in ((host.address, service), (service, host.address)):
            _ip("-n", self._router, "rule", verb, "from", source, "to", target, "blackhole")

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _connect(self, namespace: str, gateway: str, *addresses: str) -> None:
        """Make a namespace with these addresses, and a cable from it to the router."""
        self._add_namespace(namespace)
        end = f"to{len(self._namespaces)}"
        _ip("-n", self._router, "link", "add", end, "type", "veth", "peer", "eth0", "netns", namespace)
        for name, device, *own in ((self._router, end, gateway), (namespace, "eth0", *addresses)):
            for address in own:
                _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", namespace, "route", "add", "default", "via", gateway)


@contextmanager
def a_network() -> Iterator[Network]:
    """Give a network; at the end nothing of it is left."""
    network = Network()
    try:
        network.open()
        yield network
    finally:
        network.close()


def _listen(namespace: str, address: str) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/var/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"the namespace {namespace} cannot be entered")
    return socket.create_server((address, 0), backlog=50)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
