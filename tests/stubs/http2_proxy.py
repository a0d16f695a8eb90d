"""A proxy that speaks HTTP/2 and answers every request itself, with a status and a page."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_HEADERS, _SETTINGS, _PING, _DATA = 1, 4, 6, 0
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_PREFACE_BYTES, _HEAD_BYTES = 24, 9


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """Answer meanwhile, and yield the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            clients.append(client)
            thread = threading.Thread(target=_serve, args=(client, status))
            threads.append(thread)
            thread.start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for client in clients:
            client.close()


def _serve(client: socket.socket, status: int) -> None:
    # HPACK without a table: `:status` and `content-type` by their static indexes, values as they are.
    code, kind = str(status).encode(), b"text/html"
    block = b"\x08" + bytes([len(code)]) + code + b"\x0f\x10" + bytes([len(kind)]) + kind
    with contextlib.suppress(OSError), client.makefile("rb") as heard:
        heard.read(_PREFACE_BYTES)
        client.sendall(_frame(_SETTINGS, 0, 0, b""))
        while len(head := heard.read(_HEAD_BYTES)) == _HEAD_BYTES:
            kind_of, flags = head[3], head[4]
            stream = struct.unpack(">I", head[5:])[0]
            payload = heard.read(int.from_bytes(head[:3], "big"))
            if kind_of in {_SETTINGS, _PING} and not flags & _ACK:
                client.sendall(_frame(kind_of, _ACK, 0, payload if kind_of == _PING else b""))
            elif kind_of == _HEADERS:
                page = _frame(_DATA, _END_STREAM, stream, b"<html>no</html>")
                client.sendall(_frame(_HEADERS, _END_HEADERS, stream, block) + page)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload
